#!/usr/bin/env bash
# Compiles llama.cpp's kernels for Jetson Orin (sm_87) on a machine without a GPU, to know that they compile.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'END'
Usage: scripts/cuda-sm87.sh [--jobs N] [NAME...]

Compiles the device code of the llama.cpp that Cargo.lock names to machine code for sm_87, file by file, with the
flags that its CMake gives and without CUDA's virtual memory pool, as the builds for Orin are. nvcc is that of CUDA_PATH
or /usr/local/cuda, else of PyPI's packages (CUDA 13.0, 600 MB, into target/cuda-sm87). Some fifteen seconds for each of
190 files: half an hour on two idle cores. With NAMEs only the files whose names begin so.

Says how many files, how long, and how large. Not covered: linking, and running on an Orin. JetPack 6 has CUDA 12.6,
which is not to be had as packages; the first build on a board is what shows it.

    LLAMA_CPP=DIR    llama.cpp's sources, in place of those of the crate

Examples:
    scripts/cuda-sm87.sh
    scripts/cuda-sm87.sh mmvq softmax
END
}

jobs=$(nproc) names=()
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --jobs) jobs=${2:?--jobs needs a number} && shift ;;
        -*) usage >&2 && die "unknown option: $1" ;;
        *) names+=("$1") ;;
    esac
    shift
done
work=$repo_dir/target/cuda-sm87
mkdir -p "$work"

source_dir=${LLAMA_CPP:-}
if [ -z "$source_dir" ]; then
    need_rust
    crate=$(cargo metadata --locked --format-version 1 --manifest-path "$repo_dir/Cargo.toml" \
        | python3 -c 'import json, sys; print(next(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "llama-cpp-sys-2"))')
    source_dir=$(dirname "$crate")/llama.cpp
fi
cuda_source=$source_dir/ggml/src/ggml-cuda
[ -f "$cuda_source/common.cuh" ] || die "$source_dir holds no llama.cpp"

# Sets nvcc, and include for headers that are elsewhere.
find_nvcc() {
    local toolkit
    toolkit=$(find_cuda)
    include=()
    if [ -n "$toolkit" ]; then
        nvcc=$toolkit/bin/nvcc
        return 0
    fi
    toolkit=$work/pypi/nvidia/cu13
    if [ ! -e "$work/pypi.done" ]; then
        step "fetching nvcc from PyPI"
        rm -rf "$work/pypi"
        python3 -m pip --disable-pip-version-check -q install --no-deps --only-binary :all: --target "$work/pypi" \
            nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 \
            nvidia-cuda-cccl==13.0.85 nvidia-cublas==13.1.0.3 >&2 || die "PyPI could not be reached, or does not hold what was pinned"
        touch "$work/pypi.done"
    fi
    nvcc=$toolkit/bin/nvcc
    chmod +x "$toolkit/bin/"* "$toolkit/nvvm/bin/"* 2>/dev/null || true
    include=(-I "$toolkit/include" -I "$toolkit/include/cccl")
    [ -x "$nvcc" ] || die "the packages of PyPI hold no $nvcc"
}
find_nvcc
say "$("$nvcc" --version | grep release), llama.cpp in $(basename "$(dirname "$source_dir")")"

# Each kernel and each instance of a template, also those that a build leaves out by default.
files=$(cd "$cuda_source" && find . -name '*.cu' -printf '%P\n' | LC_ALL=C sort)
# Each pair of types of K and V has its instance, and a definition that says so.
pairs=$(sed -n 's/.*fattn-vec-instance-\(.*\)-\(.*\)\.cu$/-DGGML_CUDA_FA_\U\1_\2=1/p' <<<"$files" | tr '\n' ' ')
if [ ${#names[@]} -gt 0 ]; then
    files=$(for name in "${names[@]}"; do grep -E "(^|/)$name" <<<"$files" || die "no file begins with $name"; done)
fi
n_files=$(wc -l <<<"$files")

compile() {
    local out
    out=$work/$(tr / _ <<<"$1").cubin
    # shellcheck disable=SC2086 # definitions, one a word
    "$nvcc" -cubin -arch=sm_87 -std=c++17 -O3 -use_fast_math -extended-lambda --expt-relaxed-constexpr \
        -DGGML_CUDA_NO_VMM -DGGML_CUDA_USE_GRAPHS -DGGML_CUDA_PEER_MAX_BATCH_SIZE=128 -DNDEBUG -DGGML_VERSION='"0"' -DGGML_COMMIT='"0"' $pairs \
        "${include[@]}" -I "$cuda_source/.." -I "$cuda_source/../../include" -o "$out" "$cuda_source/$1" 2>"$out.log" \
        || { printf 'FAILED %s\n' "$1" && head -n 5 "$out.log" && exit 1; }
}
export -f compile
export nvcc work cuda_source pairs
rm -f "$work"/*.cubin "$work"/*.log
from=$SECONDS
# An array does not go into the environment; functions take it as text.
export include_text="${include[*]}"
# shellcheck disable=SC2016 # expanded by the inner shell
xargs -d '\n' -n 1 -P "$jobs" bash -c 'read -ra include <<<"$include_text"; compile "$1"' compile <<<"$files" >&2 \
    || die "device code that does not compile for sm_87"
made=$(find "$work" -maxdepth 1 -name '*.cubin' -size +0 | wc -l)
[ "$made" = "$n_files" ] || die "$made of $n_files files have been made"
# Machine code says for which chip it is: 190 is CUDA's machine, and the flags hold 87 (0x57).
python3 - "$work" <<'END' || die "that is no machine code for sm_87"
import pathlib, sys
for path in pathlib.Path(sys.argv[1]).glob("*.cubin"):
    head = path.read_bytes()[:52]
    machine, flags = int.from_bytes(head[18:20], "little"), int.from_bytes(head[48:52], "little")
    if machine != 190 or 87 not in (flags & 0xFF, flags >> 8 & 0xFF):
        sys.exit(f"{path.name}: machine {machine}, flags {flags:#x}")
END
bytes=$(find "$work" -maxdepth 1 -name '*.cubin' -printf '%s\n' | awk '{ sum += $1 } END { printf "%.0f", sum }')
say "sm_87: $n_files files in $((SECONDS - from)) s with $jobs jobs, $((bytes / 1048576)) MiB of machine code"
