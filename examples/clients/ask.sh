#!/usr/bin/env bash
# Asks an Orinoco node with the programs of mosquitto-clients:  ask.sh HOST PORT NODE USER "QUESTION"
#
# Bare text, as the smallest device would do it: listen, ask, print the pieces until the empty one. Where the
# broker wants one, the password is in ORINOCO_PASSWORD.
set -euo pipefail
[ $# = 5 ] || { echo 'usage: ask.sh HOST PORT NODE USER "QUESTION"' >&2 && exit 64; }
host=$1 port=$2 node=$3 user=$4 question=$5

login=()
[ -z "${ORINOCO_PASSWORD:-}" ] || login=(-u "$user" -P "$ORINOCO_PASSWORD")
# An id is new for each question: a repeated one gets the old answer.
id=$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')

# -d says when the subscription is there: an answer must not come before it. %x: bytes may be anything.
coproc LISTEN { exec stdbuf -oL mosquitto_sub -d -h "$host" -p "$port" "${login[@]}" -q 1 -W 120 -t "orinoco/v1/resp/$user/$id" -F 'piece %x'; }
listener=$LISTEN_PID
trap 'kill "$listener" 2>/dev/null || true' EXIT
while read -r line <&"${LISTEN[0]}"; do
    case "$line" in
        Subscribed*)
            mosquitto_pub -h "$host" -p "$port" "${login[@]}" -q 1 -t "orinoco/v1/$node/req/$user/text-stream/$id" -m "$question"
            ;;
        'piece 21'*) # starts with "!": an error, and the last message
            printf '\n%b\n' "$(sed 's/^piece //; s/../\\x&/g' <<<"$line")" >&2
            exit 1
            ;;
        'piece '*) printf '%b' "$(sed 's/^piece //; s/../\\x&/g' <<<"$line")" ;;
        piece)
            echo
            exit 0
            ;;
    esac
done
echo "no whole answer within 120 s" >&2
exit 1
