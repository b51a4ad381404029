#!/usr/bin/env bash
# Runs clients that we did not write against a running Orinoco.
set -uo pipefail

usage() {
    cat <<'END'
Usage: tests/interop/run.sh HOST PORT NODE USER [CLIENT...]

CLIENT: mosquitto, paho5, paho311, mqttjs, examples (default: all). The user's password, if there is one, is in
ORINOCO_TEST_PASSWORD. scripts/test.sh installs the clients into target/test-deps; from there they are
taken unless PYTHONPATH and NODE_PATH are set. Ends with 1 when a flow failed, with 2 when a client is
missing.
END
}

case "${1:-}" in -h | --help) usage && exit 0 ;; esac
[ $# -ge 4 ] || { usage >&2 && exit 64; }
host=$1 port=$2 node=$3 user=$4
shift 4
clients=("$@")
[ ${#clients[@]} -gt 0 ] || clients=(mosquitto paho5 paho311 mqttjs examples)

here=$(cd "$(dirname "$0")" && pwd)
deps=$here/../../target/test-deps
export PYTHONPATH=${PYTHONPATH:-$deps/python} NODE_PATH=${NODE_PATH:-$deps/node/node_modules} PYTHONDONTWRITEBYTECODE=1

need() {
    "${@:2}" >/dev/null 2>&1 || {
        echo "MISSING $1; scripts/test.sh installs it" >&2
        exit 2
    }
}

failed=0
for client in "${clients[@]}"; do
    case "$client" in
        examples)
            need libmosquitto-dev test -e /usr/include/mosquitto.h
            password=${ORINOCO_TEST_PASSWORD:-}
            env ${password:+ORINOCO_PASSWORD="$password"} "$here/../../examples/clients/check.sh" "$host" "$port" "$node" "$user" || failed=1
            ;;
        mosquitto)
            need mosquitto-clients command -v mosquitto_pub
            python3 "$here/mosquitto_clients.py" "$host" "$port" "$node" "$user" || failed=1
            ;;
        paho5 | paho311)
            need paho-mqtt python3 -c 'import paho.mqtt.client'
            python3 "$here/paho_client.py" "$host" "$port" "$node" "$user" "${client#paho}" || failed=1
            ;;
        mqttjs)
            need MQTT.js node -e 'require("mqtt")'
            node "$here/mqtt_js.js" "$host" "$port" "$node" "$user" || failed=1
            ;;
        *) echo "no client named '$client' here; there are: mosquitto, paho5, paho311, mqttjs, examples" >&2 && exit 64 ;;
    esac
done
exit "$failed"
