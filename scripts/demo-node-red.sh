#!/usr/bin/env bash
# Node-RED with the dashboard example, against the daemon of the quickstart.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    cat <<'END'
Usage: scripts/demo-node-red.sh [--port PORT] [--dir FOLDER] [--cpu]

Starts Orinoco as scripts/quickstart.sh does, unless that serves already, then Node-RED on 127.0.0.1 with the
dashboard example deployed, and prints the addresses. Node-RED and its flows are kept in one folder, nothing
else is touched. Ctrl-C stops both.

    --port PORT    of Node-RED (1880)
    --dir FOLDER   where it is installed and keeps its flows (target/demo-node-red)
    --cpu          as in scripts/quickstart.sh

Example:
    scripts/demo-node-red.sh
END
}

port=1880 cpu=() demo=''
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --cpu) cpu=(--cpu) ;;
        --port)
            [[ "${2:-}" =~ ^[0-9]+$ ]] || die "--port needs a number"
            port=$2 && shift
            ;;
        --dir)
            [ -n "${2:-}" ] || die "--dir needs a folder"
            demo=$(realpath -m "$2") && shift
            ;;
        *) usage >&2 && die "unknown argument: $1" ;;
    esac
    shift
done

cd "$repo_dir"
demo=${demo:-$repo_dir/target/demo-node-red}
note=$repo_dir/target/quickstart/runtime.json
# Only the user's own prompts and flows are in there.
mkdir -p "$demo/user" && chmod 700 "$demo"
orinoco='' red=''
# shellcheck disable=SC2317 # called by the trap
stop() {
    [ -z "$red" ] || kill -TERM "$red" 2>/dev/null || true
    [ -z "$orinoco" ] || kill -TERM "$orinoco" 2>/dev/null || true
    wait 2>/dev/null || true
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

want nodejs "Node-RED runs on it" have node
want npm "fetches Node-RED" have npm
want python3 "reads where the daemon serves" have python3
install_wanted
[ "$(node -p 'process.versions.node.split(".")[0]')" -ge 18 ] || die "Node-RED 4 needs Node.js 18 or newer, here is $(node --version)"

value() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$note" "$1"; }
serves() { [ -e "$note" ] && kill -0 "$(value pid)" 2>/dev/null; }

if serves; then
    say "Orinoco serves already, as node $(value node)"
else
    step "starting Orinoco (scripts/quickstart.sh); the first build takes some minutes"
    scripts/quickstart.sh "${cpu[@]}" >"$demo/quickstart.log" 2>&1 &
    orinoco=$!
    until serves; do
        kill -0 "$orinoco" 2>/dev/null || { tail -n 20 "$demo/quickstart.log" >&2 && die "Orinoco did not start"; }
        sleep 0.5
    done
fi

if [ ! -e "$demo/node_modules/node-red/red.js" ]; then
    step "installing Node-RED 4.1 and its dashboard into $demo"
    npm --prefix "$demo" install --loglevel=error --no-audit --no-fund node-red@4.1 @flowfuse/node-red-dashboard@1.31 >&2 \
        || die "npm could not install Node-RED"
fi
# As installed by npm; a link would not find Node-RED's modules of its own place.
place=$demo/user/node_modules/@orinoco/node-red-orinoco
rm -rf "$place" && mkdir -p "$place"
cp -r node-red/package.json node-red/nodes node-red/lib node-red/resources node-red/examples "$place/"
printf '{"name": "demo", "version": "1.0.0", "dependencies": {"@orinoco/node-red-orinoco": "*"}}\n' >"$demo/user/package.json"
if [ ! -e "$demo/user/flows.json" ]; then
    cp node-red/examples/dashboard.json "$demo/user/flows.json"
fi
# The broker may have taken another port than last time.
node -e '
const [file, port] = process.argv.slice(1), fs = require("node:fs");
const flows = JSON.parse(fs.readFileSync(file, "utf8"));
for (const node of flows) if (node.id === "dash-broker") node.port = port;
fs.writeFileSync(file, JSON.stringify(flows, null, 4));
' "$demo/user/flows.json" "$(value port)"
cat >"$demo/user/settings.js" <<END
module.exports = { uiHost: "127.0.0.1", uiPort: $port, flowFile: "flows.json", flowFilePretty: true, telemetry: { enabled: false }, editorTheme: { tours: false } };
END

step "starting Node-RED"
node "$demo/node_modules/node-red/red.js" --userDir "$demo/user" >"$demo/node-red.log" 2>&1 &
red=$!
for _ in $(seq 300); do
    ! grep -q 'Started flows' "$demo/node-red.log" || break
    kill -0 "$red" 2>/dev/null || { tail -n 20 "$demo/node-red.log" >&2 && die "Node-RED did not start"; }
    sleep 0.2
done
cat >&2 <<END

Dashboard:  http://127.0.0.1:$port/dashboard/orinoco
Editor:     http://127.0.0.1:$port/
Orinoco:    node $(value node), MQTT on $(value host):$(value port)

Other examples: menu, Import, Examples, @orinoco/node-red-orinoco. Logs are in $demo. Ctrl-C stops it.
END
wait "$red" && code=0 || code=$?
red=''
die "Node-RED ended with exit code $code; its log is $demo/node-red.log"
