"""Asks an Orinoco node with paho-mqtt (pip install paho-mqtt):  ask.py HOST PORT NODE USER "QUESTION"

Prints the answer as it comes, then its figures. Where the broker wants one, the password is in
ORINOCO_PASSWORD. Follows the rules of docs/protocol.md that matter for one answer of one node.
"""

import hashlib
import json
import os
import queue
import sys
import time
import uuid

import paho.mqtt.client as mqtt

host, port, node, user, question = sys.argv[1:]
request_id = uuid.uuid4().hex  # new for each question: a repeated id gets the old answer
request_topic = f"orinoco/v1/{node}/req/{user}/chat/{request_id}"
body = json.dumps({"messages": [{"role": "user", "content": question}], "max_tokens": 64})
inbox = queue.Queue()


def on_connect(client, _userdata, _flags, reason, _properties):
    if reason.is_failure:
        inbox.put(ConnectionError(f"the broker refused: {reason}"))
    # Also after a lost connection: the broker may have forgotten us.
    client.subscribe(f"orinoco/v1/resp/{user}/{request_id}", qos=1)


def ask(client, *_):
    # Listen first, then ask; asked again after a lost connection it is still one request.
    client.publish(request_topic, body, qos=1)


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
if "ORINOCO_PASSWORD" in os.environ:
    client.username_pw_set(user, os.environ["ORINOCO_PASSWORD"])
client.on_connect = on_connect
client.on_subscribe = ask
client.on_message = lambda _client, _userdata, message: inbox.put(message)
client.connect(host, int(port))
client.loop_start()

text, attempt, next_seq, patience = "", 0, 0, 2.0
give_up_at = time.monotonic() + 120
while True:
    try:
        message = inbox.get(timeout=patience)
    except queue.Empty:
        if time.monotonic() > give_up_at:
            client.publish(request_topic.replace("/chat/", "/cancel/"), b"", qos=1).wait_for_publish(2)
            sys.exit("no whole answer within 120 s")
        # Nothing heard: the same again, which is harmless while it waits or runs.
        patience = min(patience * 1.5, 10)
        ask(client)
        continue
    if isinstance(message, Exception):
        sys.exit(str(message))
    answer = json.loads(message.payload)
    if "error" in answer:
        sys.exit(f"{answer['error']['code']}: {answer['error']['message']}")
    if answer["attempt"] > attempt:  # the node lost power and began anew: what was printed is void
        print("\n[begins anew]\n" if text else "", end="")
        text, attempt, next_seq = "", answer["attempt"], 0
    if answer["attempt"] < attempt or answer["seq"] != next_seq:
        continue  # seen before; or one was lost, and a repeat brings it
    next_seq += 1
    patience = 10.0
    piece = answer["choices"][0]["delta"].get("content") or ""
    text += piece
    print(piece, end="", flush=True)
    if answer["final"]:
        break

client.loop_stop()
client.disconnect()
figures = answer["orinoco"]
assert hashlib.sha256(text.encode()).hexdigest() == figures["text_sha256"], "the text is not what was sent"
print(f"\n[{answer['usage']['completion_tokens']} tokens, first after {figures['ttft_ms']:.0f} ms]", file=sys.stderr)
