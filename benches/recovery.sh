#!/usr/bin/env bash
# What a daemon costs when idle, and how long a stream pauses when its worker is killed.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../scripts/lib.sh"

case "${1:-}" in
    -h | --help)
        echo "Usage: benches/recovery.sh [MODEL.gguf]
Prints the supervisor's resident memory and idle CPU, and for five kills of the worker (kill -9) in the
middle of a stream the time from the kill to the next token, beside the load time that it contains.
Needs mosquitto-clients and a build (cargo build --release --workspace)."
        exit 0
        ;;
esac
model=${1:-$repo_dir/models/SmolLM2-135M-Instruct.Q4_1.gguf}
orinoco=$repo_dir/target/release/orinoco
state_dir=$(mktemp -d)
daemon=''
# shellcheck disable=SC2317 # called by the trap
stop() {
    [ -z "$daemon" ] || { kill -TERM "$daemon" && wait "$daemon"; } 2>/dev/null || true
    rm -rf "$state_dir"
}
trap stop EXIT

"$orinoco" run --state-dir "$state_dir" --models-dir "$(dirname "$model")" --set node.name=bench \
    --set "model.active=$(basename "$model" .gguf)" >"$state_dir/log" 2>&1 &
daemon=$!
for _ in $(seq 600); do
    ! grep -q "model serves" "$state_dir/log" || break
    sleep 0.1
done
port=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["port"])' "$state_dir/runtime.json")

cpu_ticks() { awk '{print $14 + $15}' "/proc/$daemon/stat"; }
from=$(cpu_ticks)
sleep 10
say "supervisor idle: $(awk '/VmRSS/ {print $2}' "/proc/$daemon/status") kB resident, $(( $(cpu_ticks) - from )) of 1000 CPU ticks in 10 s"

for round in 1 2 3 4 5; do
    mosquitto_sub -p "$port" -t "orinoco/v1/resp/local/k$round" -F '%U %l' >"$state_dir/heard" &
    hearing=$!
    sleep 0.3
    mosquitto_pub -p "$port" -q 1 -t "orinoco/v1/bench/req/local/chat/k$round" \
        -m '{"messages":[{"role":"user","content":"Count."}],"max_tokens":400,"temperature":0,"ignore_eos":true,"coalesce_ms":0}'
    sleep 1
    killed=$(date +%s.%N)
    pkill -9 -P "$daemon" orinoco-engine
    for _ in $(seq 300); do
        # What was on its way at the kill arrives within some milliseconds and does not count.
        next=$(awk -v at="$killed" '$1 > at + 0.03 {print $1; exit}' "$state_dir/heard")
        [ -z "$next" ] || break
        sleep 0.1
    done
    load=$(grep -o 'load_ms=[0-9]*' "$state_dir/log" | tail -n 1)
    awk -v at="$killed" -v next_at="$next" -v load="$load" \
        'BEGIN {printf "kill to next token: %.0f ms (%s)\n", (next_at - at) * 1000, load}'
    kill "$hearing" 2>/dev/null || true
    sleep 11 # A worker that served ten seconds is restarted without back-off.
done
