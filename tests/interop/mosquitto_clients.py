"""Interoperability with mosquitto_pub and mosquitto_sub:  mosquitto_clients.py HOST PORT NODE USER

The commands are those of the README, MQTT 3.1.1. The user's password, if there is one, is in
ORINOCO_TEST_PASSWORD.
"""

import os
import re
import select
import shlex
import subprocess
import sys
import time

import checks

host, port, node, user = sys.argv[1:]
password = os.environ.get("ORINOCO_TEST_PASSWORD")
login = f"-u {user} -P {shlex.quote(password)}" if password else ""
where = f"-h {host} -p {port} {login}"


def publish(op, request_id, body):
    topic = f"orinoco/v1/{node}/req/{user}/{op}/{request_id}"
    message = f"-m {shlex.quote(body)}" if body else "-n"
    subprocess.run(shlex.split(f"mosquitto_pub {where} -V 311 -q 1 -t {topic} {message}"), check=True, timeout=checks.TIMEOUT_S)


def exchange(op, body, cancel_after):
    done = checks.Exchange(checks.new_id("mosquitto"))
    # The retained status comes right after the SUBACK: from then on nothing is missed.
    command = f"mosquitto_sub {where} -V 311 -q 1 -t 'orinoco/v1/resp/{user}/#' -v -t 'orinoco/v1/{node}/status'"
    sub = subprocess.Popen(shlex.split(command), stdout=subprocess.PIPE)
    # A message starts on a line of its own with its topic; its text may go on over further lines.
    starts = re.compile(rf"^orinoco/v1/(?:resp/{user}/(\S+)|{node}/status) ", re.M)
    try:
        output, sent, cancelled = "", False, False
        deadline = time.monotonic() + checks.TIMEOUT_S
        while not done.is_over(op):
            wait = deadline - time.monotonic()
            checks.check(wait > 0 and select.select([sub.stdout], [], [], wait)[0], f"no final within {checks.TIMEOUT_S} s; so far: {output!r}")
            piece = os.read(sub.stdout.fileno(), 65536)
            checks.check(piece, f"mosquitto_sub ended; so far: {output!r}")
            output += piece.decode()
            if not sent:
                sent = True
                publish(op, done.request_id, body)
                continue
            if not output.endswith("\n"):
                continue
            found = list(starts.finditer(output))
            ends = [match.start() for match in found[1:]] + [len(output)]
            done.messages = []
            for match, end in zip(found, ends):
                if match[1] is None:
                    continue
                checks.check(match[1] == done.request_id, f"a message for {match[1]}, expected {done.request_id}")
                text = output[match.end() : end].removesuffix("\n")
                # mosquitto_sub -v prints this for an empty payload.
                done.messages.append(checks.Message(b"" if text == "(null)" else text.encode()))
            if cancel_after and not cancelled and len(done.messages) >= cancel_after:
                cancelled = True
                publish("cancel", done.request_id, "")
        return done
    finally:
        sub.terminate()
        sub.wait()


sys.exit(1 if checks.run("mosquitto", exchange) else 0)
