#!/usr/bin/env bash
# scripts/demo-node-red.sh as a person would run it:  demo_test.sh MODULES
#
# It starts, prints its addresses, dashboard and editor answer, the flow sees the node, and it ends with all that
# it started. MODULES: a node_modules with Node-RED and its dashboard, so that nothing is fetched anew.
set -euo pipefail
cd "$(dirname "$0")/.."
modules=$(realpath "$1")
work=$(mktemp -d)
mkdir "$work/demo"
ln -s "$modules" "$work/demo/node_modules"
said=$work/said
port=$(shuf -i 12000-31999 -n 1) # below those that the kernel gives to whoever connects
note=target/quickstart/runtime.json
was_there=''
[ ! -e "$note" ] || ! kill -0 "$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["pid"])' "$note")" 2>/dev/null || was_there=yes

fail() {
    echo "FAILED  demo: $1" >&2
    tail -n 30 "$said" "$work"/demo/*.log >&2 2>/dev/null || true
    exit 1
}
ok() { echo "ok      demo: $1"; }

scripts/demo-node-red.sh --cpu --port "$port" --dir "$work/demo" 2>"$said" &
demo=$!
# shellcheck disable=SC2317 # called by the trap
clean() {
    kill -TERM "$demo" 2>/dev/null || true
    wait "$demo" 2>/dev/null || true
    rm -rf "$work"
}
trap clean EXIT

for _ in $(seq 1200); do
    ! grep -q '^Dashboard:' "$said" || break
    kill -0 "$demo" 2>/dev/null || fail "it ended by itself"
    sleep 0.1
done
dashboard=$(sed -n 's/^Dashboard:  *//p' "$said")
editor=$(sed -n 's/^Editor:  *//p' "$said")
[ "$dashboard" = "http://127.0.0.1:$port/dashboard/orinoco" ] || fail "no address within two minutes"
ok "prints its addresses"

# page URL WHAT: the page is there and is what it should be.
page() {
    python3 - "$@" <<'END' || fail "$1 is not the page with $2"
import sys, time, urllib.request
url, what = sys.argv[1:]
for _ in range(300):
    try:
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        if what in text:
            sys.exit(0)
    except OSError as error:
        text = str(error)
    time.sleep(0.2)
sys.exit(text[:500])
END
}
page "$dashboard" 'FlowFuse Dashboard'
ok "the dashboard answers"
page "$editor" 'red/red.min.js'
page "${editor}orinoco/nodes/dash-orinoco" '"connected":true,"nodes":[{"name"'
ok "the flow is deployed and sees the node"
pid=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["pid"])' "$note")

kill -TERM "$demo"
for _ in $(seq 300); do
    kill -0 "$demo" 2>/dev/null || break
    sleep 0.1
done
! kill -0 "$demo" 2>/dev/null || fail "it does not end within 30 s"
code=0 && wait "$demo" || code=$?
[ "$code" = 143 ] || fail "it ended with $code, expected 143 after SIGTERM"
! python3 -c 'import socket, sys; socket.create_connection(("127.0.0.1", int(sys.argv[1])), 1)' "$port" 2>/dev/null || fail "Node-RED is still there"
if [ -z "$was_there" ]; then
    for _ in $(seq 100); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    ! kill -0 "$pid" 2>/dev/null || fail "Orinoco is still there"
fi
ok "ends with all that it started"
