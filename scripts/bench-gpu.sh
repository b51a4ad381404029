#!/usr/bin/env bash
# The benchmarks on a CUDA machine that has neither Rust nor a network: packed here, run there.
set -euo pipefail

usage() {
    cat <<'END'
Usage: scripts/bench-gpu.sh pack FOLDER                 where Rust and the network are
       FOLDER/bench-gpu.sh [OPTION...] [MODEL...]       on the CUDA machine

pack puts into FOLDER the daemon and its worker, which take libllama.so and libggml*.so from where they run,
the source of llama.cpp with its tools, and the benchmarks: 25 MB. The other machine needs an NVIDIA GPU with its
driver, nvcc, CMake, a C++ compiler, and Python 3.10 with numpy; the processor and the C library must be no
older than those of the machine that packed (and for x86-64 have AVX2).

There, llama.cpp is compiled for that GPU (4 minutes on 16 cores), models of random weights are made, and each
MODEL is measured: ours, llama-bench, llama-batched-bench and llama-server in turn. Tables come on stdout, and
with every figure in results/.

MODEL is a shape (llama-3.2-1b, llama-3.2-3b, llama-3.1-8b: random weights, Q4_K_M) or a GGUF file.
Without one: llama-3.2-3b llama-3.1-8b.

    --rounds N       rounds of each model (default 5; about a minute and a half each)
    --arch N         CUDA architecture (default: this GPU's)
    --keep FILE      what was compiled, packed, for the next machine of this kind
    --kept FILE      what --keep made: nothing is compiled
    --build-only     compiles and makes the models, measures nothing

Examples:
    scripts/bench-gpu.sh pack /tmp/orinoco-gpu && scp -r /tmp/orinoco-gpu gpu-machine:
    orinoco-gpu/bench-gpu.sh --rounds 3 llama-3.2-3b SmolLM2-135M-Instruct.Q4_1.gguf
END
}

# Beside this script in scripts/ and in a packed folder.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

pack() {
    local folder=$1 target source
    # shellcheck source=benches/peers.sh
    . "$repo_dir/benches/peers.sh"
    source=$repo_dir/src/ota.rs
    # One llama.cpp serves the peers and the worker, whose interface to it is not stable.
    grep -q "ENGINE_BUILD: u32 = $peers_build;" "$source" \
        || die "the peers are llama.cpp b$peers_build, the worker is not ($(grep -o 'ENGINE_BUILD: u32 = [0-9]*' "$source")): bring both to one"
    want_build_tools
    install_wanted
    need_rust
    fetch_peers
    mkdir -p "$folder/benches"
    folder=$(cd "$folder" && pwd)

    step "building the daemon and a worker that finds llama.cpp where it runs"
    target=$repo_dir/target/gpu
    local flags=''
    [ "$(uname -m)" != x86_64 ] || flags='-C target-cpu=x86-64-v3'
    # Two calls: features of the worker must not reach the daemon's build.
    (cd "$repo_dir" && RUSTFLAGS=$flags CARGO_TARGET_DIR=$target cargo build --release --locked -p orinoco-engine --features dynamic-link) >&2
    (cd "$repo_dir" && RUSTFLAGS=$flags CARGO_TARGET_DIR=$target cargo build --release --locked -p orinoco) >&2
    install -s "$target/release/orinoco" "$target/release/orinoco-engine" "$folder/"
    # Debian's compiler may be older or newer than the other machine's; its OpenMP goes along.
    cp -L "$(ldd "$target/release/orinoco-engine" | awk '/libgomp/ { print $3 }')" "$folder/" 2>/dev/null || true

    step "packing llama.cpp b$peers_build, the benchmarks and a vocabulary"
    (cd "$peers/src" && tar -cJf "$folder/llama.cpp.tar.xz" \
        --exclude=./docs --exclude=./models --exclude=./media --exclude=./tests --exclude=./examples \
        --exclude='./ggml/src/ggml-'{vulkan,opencl,sycl,hexagon,metal,webgpu,openvino,et,cann,musa,zdnn,virtgpu} .)
    [ -e "$repo_dir/models/SmolLM2-135M-Instruct.Q4_1.gguf" ] || "$repo_dir/scripts/fetch-models.sh" smollm2
    python3 -m pip --disable-pip-version-check -q install --upgrade --target "$target/python" gguf==0.19.0 >&2
    PYTHONPATH=$target/python python3 "$repo_dir/benches/gpu_model.py" vocabulary \
        "$repo_dir/models/SmolLM2-135M-Instruct.Q4_1.gguf" "$folder/vocabulary.json.gz"
    cp "$repo_dir"/benches/{peers,report,vs_llama_cpp,gpu_model}.py "$folder/benches/"
    python3 -m pip --disable-pip-version-check -q install --no-deps --upgrade --require-hashes --target "$folder/python" \
        -r <(grep '^paho-mqtt' "$repo_dir/tests/interop/requirements.txt") >&2
    git -C "$repo_dir" describe --always --dirty >"$folder/commit"
    printf 'peers_cmake=(%s)\n' "${peers_cmake[*]@Q}" >"$folder/settings.sh"
    cp "$here"/{bench-gpu,lib}.sh "$folder/"
    say "packed: $(du -sh "$folder" | cut -f1) in $folder"
}

# What the options want to be there, said before minutes are spent.
check_machine() {
    nvidia-smi -L >&2 || die "nvidia-smi finds no GPU; this is for a CUDA machine"
    python3 -c 'import sys, numpy; sys.exit(sys.version_info < (3, 10))' || die "Python 3.10 or newer with numpy is needed"
    [ -n "$kept" ] && return
    local tool
    for tool in nvcc cmake c++; do
        have $tool || die "no $tool in PATH (CUDA's tools are often in /usr/local/cuda/bin)"
    done
}

build() {
    [ ! -x built/llama-server ] || return 0
    mkdir -p built
    if [ -n "$kept" ]; then
        tar -xf "$kept" -C built
        return
    fi
    local began=$SECONDS generator=()
    ! have ninja || generator=(-G Ninja)
    mkdir -p llama.cpp && tar -xJf llama.cpp.tar.xz -C llama.cpp
    say "compiling llama.cpp for architecture $arch; build/log has its words"
    # shellcheck source=/dev/null
    . ./settings.sh
    mkdir -p build
    {
        cmake -S llama.cpp -B build "${generator[@]}" "${peers_cmake[@]}" -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON -DGGML_CUDA=ON \
            -DGGML_CUDA_NCCL=OFF -DCMAKE_CUDA_ARCHITECTURES="$arch" &&
            cmake --build build -j "$(nproc)" --target llama-bench llama-batched-bench llama-server llama-quantize
    } >build/log 2>&1 || { tail -n 20 build/log >&2; die "llama.cpp does not compile; the whole log: $PWD/build/log"; }
    cp -a build/bin/. built/
    strip -s built/*.so.*.*.* built/llama-* 2>/dev/null || true
    say "compiled in $((SECONDS - began)) s"
    if [ -n "$keep" ]; then
        tar -cf - -C built . | xz -T0 -3 >"$keep"
        say "kept: $(du -h "$keep" | cut -f1) in $keep"
    fi
}

# make_model SHAPE: prints the file's name; made once.
make_model() {
    local file=models/$1-random.Q4_K_M.gguf
    if [ ! -e "$file" ]; then
        say "making $1 of random weights"
        PYTHONPATH=llama.cpp/gguf-py python3 benches/gpu_model.py make "$1" vocabulary.json.gz models/f16 >&2
        built/llama-quantize models/f16 models/quantized Q4_K_M >models/quantize.log 2>&1 \
            || { tail -n 5 models/quantize.log >&2; die "llama-quantize failed"; }
        rm models/f16
        mv models/quantized "$file"
    fi
    printf '%s\n' "$file"
}

measure() {
    local model file
    export LD_LIBRARY_PATH=$PWD/built:$PWD${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} PYTHONPATH=$PWD/python PYTHONDONTWRITEBYTECODE=1
    mkdir -p models results
    for model in "$@"; do
        case "$model" in
            *.gguf) [ -e "$model" ] || die "no file $model" ;;
        esac
    done
    for model in "$@"; do
        file=$model
        case "$model" in *.gguf) ;; *) file=$(make_model "$model") ;; esac
        [ -z "$build_only" ] || continue
        name=$(basename "$file" .gguf)
        python3 benches/vs_llama_cpp.py --peers built --program ./orinoco --model "$file" --rounds "$rounds" --threads "$(nproc)" \
            --broker child --hardware cuda --commit "$(cat commit)" --json "results/$name.json" | tee "results/$name.md"
    done
}

if [ "${1:-}" = pack ]; then
    [ $# = 2 ] || { usage >&2; exit 2; }
    pack "$2"
    exit
fi
rounds=5 arch=native keep='' kept='' build_only='' models=()
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --rounds) rounds=${2:?--rounds needs a number} && shift ;;
        --arch) arch=${2:?--arch needs a number} && shift ;;
        --keep) keep=$(realpath "${2:?--keep needs a file}") && shift ;;
        --kept) kept=$(realpath "${2:?--kept needs a file}") && shift ;;
        --build-only) build_only=1 ;;
        -*) usage >&2 && die "unknown option: $1" ;;
        *.gguf) models+=("$(realpath "$1")") ;;
        llama-3.2-1b | llama-3.2-3b | llama-3.1-8b) models+=("$1") ;;
        *) die "$1 is neither a GGUF file nor a shape that is known: llama-3.2-1b, llama-3.2-3b, llama-3.1-8b" ;;
    esac
    shift
done
[ -e "$here/settings.sh" ] || die "this folder is not packed; first, where Rust is:  scripts/bench-gpu.sh pack FOLDER"
[ ${#models[@]} -gt 0 ] || models=(llama-3.2-3b llama-3.1-8b)
cd "$here"
check_machine
build
measure "${models[@]}"
