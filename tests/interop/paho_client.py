"""Interoperability with paho-mqtt:  paho_client.py HOST PORT NODE USER 5|311

The user's password, if there is one, is in ORINOCO_TEST_PASSWORD.
"""

import os
import queue
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import checks

host, port, node, user, protocol = sys.argv[1:]
is_v5 = protocol == "5"
client_name = f"paho{protocol}"
inbox = queue.Queue()
ready = queue.Queue()


def on_connect(client, _userdata, _flags, reason, _properties):
    if reason.is_failure:
        sys.exit(f"{client_name}: the broker refused: {reason}")
    client.subscribe(f"orinoco/v1/resp/{user}/#", qos=1)


def properties_of(message):
    found = message.properties
    return {
        "correlation": getattr(found, "CorrelationData", None),
        "content_type": getattr(found, "ContentType", None),
        "user": dict(getattr(found, "UserProperty", [])),
    }


client = mqtt.Client(
    mqtt.CallbackAPIVersion.VERSION2,
    client_id=checks.new_id(client_name),
    protocol=mqtt.MQTTv5 if is_v5 else mqtt.MQTTv311,
)
password = os.environ.get("ORINOCO_TEST_PASSWORD")
if password:
    client.username_pw_set(user, password)
client.on_connect = on_connect
client.on_subscribe = lambda *_: ready.put(True)
client.on_message = lambda _client, _userdata, message: inbox.put(message)
client.connect(host, int(port))
client.loop_start()
ready.get(timeout=checks.TIMEOUT_S)


def exchange(op, body, cancel_after):
    done = checks.Exchange(checks.new_id(client_name))
    base = f"orinoco/v1/{node}/req/{user}"
    answer_topic = f"orinoco/v1/resp/{user}/{done.request_id}"
    properties, correlation = None, done.request_id.encode()
    if is_v5:
        answer_topic += "/mine"
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = answer_topic
        properties.CorrelationData = correlation
    client.publish(f"{base}/{op}/{done.request_id}", body, qos=1, properties=properties)
    while not done.is_over(op):
        message = inbox.get(timeout=checks.TIMEOUT_S)
        checks.check(message.topic == answer_topic, f"a message on {message.topic}, expected {answer_topic}")
        checks.check(not message.retain and message.qos == 1, f"retain {message.retain}, QoS {message.qos}")
        props = properties_of(message) if is_v5 else None
        done.messages.append(checks.Message(message.payload, props))
        if len(done.messages) == cancel_after:
            client.publish(f"{base}/cancel/{done.request_id}", b"", qos=1)
    if is_v5 and op not in ("text", "text-stream"):
        checks.check_properties(done, node, correlation)
    return done


failed = checks.run(client_name, exchange)
client.disconnect()
client.loop_stop()
sys.exit(1 if failed else 0)
