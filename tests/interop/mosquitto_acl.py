"""configs/mosquitto as shipped, under a real Mosquitto:  mosquitto_acl.py

Only paths and the port are replaced. A message counts as kept away when one sent after it, on the same
connection, has arrived.
"""

import pathlib
import queue
import re
import socket
import subprocess
import sys
import tempfile

import paho.mqtt.client as mqtt

TIMEOUT_S = 20
configs = pathlib.Path(__file__).parents[2] / "configs" / "mosquitto"


class Client:
    def __init__(self, port, user, topics):
        self.inbox, acks, refusals = queue.Queue(), queue.Queue(), queue.Queue()
        self.mqtt = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        if user:
            self.mqtt.username_pw_set(user, f"{user}-secret")
        self.mqtt.on_connect = lambda _c, _u, _f, reason, _p: (refusals if reason.is_failure else acks).put(reason)
        self.mqtt.on_subscribe = lambda *_: acks.put(True)
        self.mqtt.on_message = lambda _c, _u, message: self.inbox.put((message.topic, message.payload.decode()))
        self.mqtt.connect("127.0.0.1", port)
        self.mqtt.loop_start()
        self.refusal = refusals.get(timeout=TIMEOUT_S) if not user else None
        if user:
            acks.get(timeout=TIMEOUT_S)
            for topic in topics:
                self.mqtt.subscribe(topic, qos=1)
                acks.get(timeout=TIMEOUT_S)

    def send(self, topic, payload="x"):
        self.mqtt.publish(topic, payload, qos=1)

    def next(self):
        return self.inbox.get(timeout=TIMEOUT_S)


def expect(what, found, expected):
    if found != expected:
        sys.exit(f"FAILED  {what}: {found!r}, expected {expected!r}")
    print(f"ok      {what}")


def main(work):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    conf = (configs / "orinoco.conf").read_text()
    conf = conf.replace("listener 1883", f"listener {port}")
    conf = conf.replace("/etc/mosquitto/orinoco.passwd", f"{work}/passwd")
    conf = conf.replace("/etc/mosquitto/orinoco.acl", f"{work}/acl")
    pathlib.Path(work, "conf").write_text(conf + f"persistence_location {work}/\nuser root\n")
    pathlib.Path(work, "acl").write_text((configs / "orinoco.acl").read_text())
    pathlib.Path(work, "passwd").touch()
    for user in ("daemon", "alice", "bob"):
        subprocess.run(["mosquitto_passwd", "-b", f"{work}/passwd", user, f"{user}-secret"], check=True, stderr=subprocess.DEVNULL)
    broker = subprocess.Popen(["mosquitto", "-c", f"{work}/conf"], stderr=subprocess.PIPE, text=True)
    try:
        log = ""
        while not re.search(r"mosquitto version .* running", log):
            line = broker.stderr.readline()
            if not line:
                sys.exit(f"FAILED  mosquitto refused the configuration:\n{log}")
            log += line

        daemon = Client(port, "daemon", ["orinoco/v1/n1/req/#", "orinoco/v1/pool/p1/req/#"])
        alice = Client(port, "alice", ["orinoco/v1/resp/#", "orinoco/v1/+/status"])
        bob = Client(port, "bob", ["orinoco/v1/resp/bob/#"])

        expect("nobody is anonymous", Client(port, None, []).refusal.is_failure, True)

        alice.send("orinoco/v1/n1/req/bob/chat/1", "forged")
        alice.send("orinoco/v1/resp/bob/1", "forged")
        alice.send("orinoco/v1/n1/status", "forged")
        alice.send("orinoco/v1/pool/p1/req/bob/chat/1", "forged")
        alice.send("orinoco/v1/n1/req/alice/chat/1", "mine")
        alice.send("orinoco/v1/pool/p1/req/alice/chat/1", "mine")
        expect("own request arrives, forged ones do not", daemon.next(), ("orinoco/v1/n1/req/alice/chat/1", "mine"))
        expect("own request to a pool arrives", daemon.next(), ("orinoco/v1/pool/p1/req/alice/chat/1", "mine"))

        daemon.send("orinoco/v1/resp/bob/1", "for bob")
        daemon.send("orinoco/v1/resp/alice/1", "for alice")
        expect("others' answers stay away", alice.next(), ("orinoco/v1/resp/alice/1", "for alice"))
        expect("forged answers stay away", bob.next(), ("orinoco/v1/resp/bob/1", "for bob"))

        daemon.send("orinoco/v1/n1/status", "online")
        expect("status can be read, and only the daemon writes it", alice.next(), ("orinoco/v1/n1/status", "online"))
    finally:
        broker.kill()
        broker.wait()


with tempfile.TemporaryDirectory() as folder:
    main(folder)
