#!/usr/bin/env bash
# Asks a running node with each example:  check.sh HOST PORT NODE USER
#
# Prints "ok      examples: NAME" for each that answered. ORINOCO_PASSWORD as in the examples; PYTHONPATH and
# NODE_PATH lead to paho-mqtt and MQTT.js.
set -uo pipefail
[ $# = 4 ] || { echo 'usage: check.sh HOST PORT NODE USER' >&2 && exit 64; }
here=$(cd "$(dirname "$0")" && pwd)
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
failed=0

try() {
    local name=$1 answer
    shift
    if answer=$(timeout 60 "$@" "Name three rivers." 2>"$built/said") && [ -n "${answer//[[:space:]]/}" ] && [ "${answer:0:1}" != "!" ]; then
        echo "ok      examples: $name"
    else
        echo "FAILED  examples: $name: ${answer:-no answer}; $(tr '\n' ' ' <"$built/said")"
        failed=1
    fi
}

try python python3 "$here/ask.py" "$@"
try node node "$here/ask.js" "$@"
try shell "$here/ask.sh" "$@"
if cc -O2 -Wall -Wextra -Werror -o "$built/ask" "$here/ask.c" -lmosquitto; then
    try c "$built/ask" "$@"
else
    echo "FAILED  examples: c: it does not compile; libmosquitto-dev is needed"
    failed=1
fi
# As the Arduino core for the ESP32 compiles: without exceptions and type information.
if c++ -std=c++17 -O1 -Wall -Wextra -Werror -fno-exceptions -fno-rtti -I "$here/esp32/host" -o "$built/esp32" "$here/esp32/host/main.cpp" -lmosquitto; then
    try esp32 "$built/esp32" "$@"
else
    echo "FAILED  examples: esp32: the sketch does not compile"
    failed=1
fi
exit "$failed"
