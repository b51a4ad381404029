#!/usr/bin/env bash
# From a clone to streamed tokens: installs what is missing, builds, fetches a model, starts, asks, serves.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'END'
Usage: scripts/quickstart.sh [--once "PROMPT"] [--cpu] [--plan]

Installs what is missing (apt), builds release, fetches SmolLM2-135M-Instruct into models/, starts Orinoco
with its own broker on 127.0.0.1, asks a first prompt, then keeps serving until Ctrl-C and says how to talk
to it. Needs Debian 12, Ubuntu 22.04 or JetPack 6, with Rust.

    --once "PROMPT"   print only the answer on stdout, stop, and end with exit code 0
    --cpu             use the processor cores although there is, or could be, a GPU
    --plan            say what would be built and for which board, and stop

    GGUF=path         serve this model instead
    PROMPT="..."      the first prompt, without --once

Examples:
    scripts/quickstart.sh
    scripts/quickstart.sh --once "Name three rivers."
    GGUF=~/models/qwen2.5-1.5b-instruct-q4_k_m.gguf scripts/quickstart.sh
END
}

once='' plan='' cpu=''
first_prompt=${PROMPT:-Name three rivers and say one thing about each.}
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --once)
            [ -n "${2:-}" ] || die '--once needs a prompt:  scripts/quickstart.sh --once "Name three rivers."'
            once=1 first_prompt=$2 && shift
            ;;
        --cpu) cpu=cpu ;;
        --plan) plan=1 ;;
        *) usage >&2 && die "unknown argument: $1" ;;
    esac
    shift
done

detect_board
choose_build "$cpu"
say "$board_name: building for $build_note"
[ -z "$plan" ] || exit 0

# Before anything that takes minutes.
model=$repo_dir/models/SmolLM2-135M-Instruct.Q4_1.gguf
if [ -n "${GGUF:-}" ]; then
    [ -r "$GGUF" ] || die "GGUF=$GGUF: no such file, or not readable"
    case "$GGUF" in *.gguf) ;; *) die "GGUF=$GGUF: a model file ends in .gguf" ;; esac
    model=$(readlink -f "$(dirname "$GGUF")")/$(basename "$GGUF")
fi

want_build_tools
install_wanted
need_rust
apply_build
[ -n "${GGUF:-}" ] || "$repo_dir/scripts/fetch-models.sh" smollm2

[ -x "$repo_dir/target/release/orinoco-engine" ] || step "building; llama.cpp takes some minutes, once"
build_orinoco
orinoco=$repo_dir/target/release/orinoco

# --once takes a state of its own, so it neither meets nor disturbs a daemon that serves already.
if [ -n "$once" ]; then
    state_dir=$(mktemp -d)
else
    state_dir=$repo_dir/target/quickstart
    mkdir -p "$state_dir" && chmod 700 "$state_dir" # prompts are stored there
fi
runtime=$state_dir/runtime.json # the daemon's own note of where it serves
log=$state_dir/orinoco.log
daemon='' asking=''

# value KEY: out of that note.
value() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$runtime" "$1"; }

if [ -e "$runtime" ]; then
    pid=$(value pid)
    ! kill -0 "$pid" 2>/dev/null || die "Orinoco serves from $state_dir already, as process $pid; stop it first (kill $pid)"
    rm "$runtime"
fi

# shellcheck disable=SC2317 # called by the trap
stop() {
    [ -z "$asking" ] || kill -TERM "$asking" 2>/dev/null || true
    if [ -n "$daemon" ] && kill -TERM "$daemon" 2>/dev/null; then
        # The daemon sets its own limit for draining; past that it is stuck.
        for _ in $(seq 150); do
            kill -0 "$daemon" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$daemon" 2>/dev/null && say "Orinoco did not stop in 15 s and was killed"
        wait "$daemon" 2>/dev/null || true
    fi
    [ -z "$once" ] || rm -rf "$state_dir"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

settings=(
    --set "paths.state_dir=$state_dir"
    --set "paths.models_dir=$(dirname "$model")"
    --set "model.active=$(basename "$model" .gguf)"
    --set broker.mode=child
)
[ -z "$use_cpu" ] || settings+=(--set engine.backend=cpu)

"$orinoco" run "${settings[@]}" >"$log" 2>&1 </dev/null &
daemon=$!

# The daemon writes its note when it takes requests; the model may be loading still.
for _ in $(seq 600); do
    [ ! -e "$runtime" ] || break
    kill -0 "$daemon" 2>/dev/null || break
    sleep 0.1
done

# The answer streams to stdout; figures and errors go to stderr. A daemon that ends meanwhile ends the wait.
"$orinoco" ask --state-dir "$state_dir" --accept-seconds 60 "$first_prompt" &
asking=$!
[ -n "$once" ] || step "$first_prompt"
code=0
wait -n "$daemon" "$asking" || code=$?
if ! kill -0 "$daemon" 2>/dev/null; then
    tail -n 20 "$log" >&2
    daemon=''
    die "Orinoco did not stay up (exit code $code)"
fi
asking=''
if [ "$code" != 0 ]; then
    tail -n 20 "$log" >&2
    say "no answer (exit code $code)"
    exit "$code"
fi
[ -z "$once" ] || exit 0

host=$(value host) port=$(value port) node=$(value node)
cat >&2 <<END

Orinoco serves as node $node on $host:$port; its log is $log. Ctrl-C stops it.
Talk to it from another terminal:

    $orinoco ask --state-dir $state_dir "What is a watershed?"

    mosquitto_sub -h $host -p $port -t 'orinoco/v1/resp/local/#' -v
    mosquitto_pub -h $host -p $port -V 311 -q 1 -t orinoco/v1/$node/req/local/chat/a1 -m 'hello'

Use a new id in place of a1 for each prompt. (apt install mosquitto-clients)
END
wait "$daemon" && code=0 || code=$?
daemon=''
tail -n 5 "$log" >&2
die "Orinoco ended with exit code $code; its log is $log"
