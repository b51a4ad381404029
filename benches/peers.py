"""The programs that are measured: two tools that run to their end, and two servers behind one interface.

A server takes `start(prompt, n)` and gives a Stream that fills while `pump()` is called.
"""

import bisect
import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import re
import selectors
import shutil
import signal
import socket
import subprocess
import time

import paho.mqtt.client as mqtt

N_CTX = 16384  # one pool: seven running streams and a prompt of some thousand tokens
N_SLOTS = 8
LOAD_LIMIT_S = 60


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclasses.dataclass
class Rig:
    """What every measurement has in common: the programs, the model, and what computes."""

    peers: pathlib.Path
    program: pathlib.Path
    model: pathlib.Path
    threads: int
    on_gpu: bool

    def llama_options(self):
        """Of llama.cpp's servers and tools. Flash attention is `auto` for all but on a GPU, where llama-bench defaults to off."""
        return ["-m", self.model, "-t", str(self.threads), *(["-ngl", "99"] if self.on_gpu else [])]


def llama_bench(rig):
    """Tokens a second of prefill (pp512) and decoding (tg128), without sampling."""
    command = [rig.peers / "llama-bench", *rig.llama_options(), "-p", "512", "-n", "128", "-r", "3", "-o", "json"]
    command += ["-fa", "1"] if rig.on_gpu else []
    rows = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return {"pp512": rows[0]["avg_ts"], "tg128": rows[1]["avg_ts"]}


def batched_bench(rig):
    """Tokens a second of decoding in 1, 4 and 8 sequences side by side, without sampling."""
    command = [rig.peers / "llama-batched-bench", *rig.llama_options(), "-c", "4096", "-b", "2048", "-ub", "512"]
    command += ["-npp", "128", "-ntg", "128", "-npl", "1,4,8", "--output-format", "jsonl"]
    command += ["-fa", "on"] if rig.on_gpu else []
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return {f"tg{row['pl']}": row["speed_tg"] for row in rows}


@contextlib.contextmanager
def mosquitto(work):
    """A Mosquitto of our own on a free port; None where none is installed."""
    if not shutil.which("mosquitto"):
        yield None
        return
    port = free_port()
    conf = work / "mosquitto.conf"
    conf.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nmax_queued_messages 10000\n")
    broker = subprocess.Popen(["mosquitto", "-c", conf], stderr=subprocess.PIPE, text=True)
    while "running" not in (line := broker.stderr.readline()):
        if not line:
            raise RuntimeError("mosquitto does not start")
    try:
        yield port
    finally:
        broker.kill()
        broker.wait()


class Stream:
    """One answer: `pieces` are (seconds, bytes of text) in the order of arrival; `text` is whole once it is done."""

    def __init__(self, sent_s):
        self.sent_s = sent_s
        self.accepted_s = None
        self.pieces = []
        self.is_done = False
        self.error = None
        self.text = ""
        self.n_tokens = self.n_prompt = self.prefill_ms = self.resumed = None


class Server:
    """What both servers share: a process and a clock."""

    clock = staticmethod(time.perf_counter)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class LlamaServer(Server):
    """llama-server over HTTP with server-sent events, default sampler, one KV pool for all slots."""

    name = "llama-server"

    def __init__(self, rig, work):
        self.port = free_port()
        command = [rig.peers / "llama-server", *rig.llama_options(), "--host", "127.0.0.1", "--port", str(self.port), "--no-ui"]
        command += ["-np", str(N_SLOTS), "-c", str(N_CTX), "-kvu"]
        self.log = open(work / "llama-server.log", "w")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        self.selector = selectors.DefaultSelector()
        end = self.clock() + LOAD_LIMIT_S
        while not self._is_healthy():
            if self.process.poll() is not None or self.clock() > end:
                raise RuntimeError(f"llama-server does not serve: {pathlib.Path(self.log.name).read_text()[-2000:]}")
            time.sleep(0.05)

    def _is_healthy(self):
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False

    def start(self, prompt, n, greedy=False, per_token=True, flush=True):
        body = {"prompt": prompt, "n_predict": n, "stream": True, "ignore_eos": True}
        if greedy:
            body["temperature"] = 0
        raw = json.dumps(body).encode()
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = f"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        stream = Stream(self.clock())
        stream.socket, stream.raw, stream.arrivals, stream.n_seen = connection, bytearray(), [], 0
        connection.sendall(head.encode() + raw)
        self.selector.register(connection, selectors.EVENT_READ, stream)
        return stream

    def pump(self, timeout_s):
        for key, _ in self.selector.select(timeout_s):
            stream = key.data
            data = stream.socket.recv(1 << 16)
            stream.arrivals.append((len(stream.raw), self.clock()))
            stream.raw += data
            # Every event is one chunk of its own; counting them is all that is done meanwhile.
            if n_events := data.count(b"data: "):
                stream.pieces += [(self.clock(), 1)] * n_events
            if b'"stop":true' in data or not data:
                self._finish(stream)

    def _finish(self, stream):
        self._close(stream)
        begins = [at for at, _ in stream.arrivals]
        stream.pieces = []
        for event in re.finditer(rb"data: (\{.*?\})\r?\n", bytes(stream.raw)):
            body = json.loads(event[1])
            at = stream.arrivals[bisect.bisect_right(begins, event.end() - 1) - 1][1]
            if body.get("content"):
                stream.pieces.append((at, len(body["content"].encode())))
                stream.text += body["content"]
            if body.get("stop"):
                timings = body["timings"]
                stream.n_tokens, stream.n_prompt = body["tokens_predicted"], body["tokens_evaluated"]
                stream.prefill_ms = timings["prompt_ms"]
                stream.is_done = True
        if not stream.is_done:
            stream.error = f"no final event: {bytes(stream.raw[-300:])!r}"

    def _close(self, stream):
        with contextlib.suppress(KeyError):
            self.selector.unregister(stream.socket)
        stream.socket.close()

    def cancel(self, stream):
        """Closing the connection is how llama-server is told."""
        if not stream.is_done:
            self._close(stream)


class Orinoco(Server):
    """Orinoco over MQTT 5 at QoS 1, one connection, text gathered as by default (40 ms) or token by token."""

    name = "orinoco"

    def __init__(self, rig, state_dir, broker_port):
        state_dir.mkdir()
        self.state_dir = state_dir
        settings = {
            "paths.state_dir": state_dir,
            "paths.models_dir": rig.model.parent,
            "model.active": rig.model.stem,
            "model.n_ctx": N_CTX,
            "engine.n_seq_max": N_SLOTS,
            "engine.n_threads": rig.threads,
            "engine.backend": "auto" if rig.on_gpu else "cpu",
            "requests.queue_jobs_max": 2000,
            # One user stands for many here; what holds one user back is not what is measured.
            "defaults.requests_per_minute_max": 0,
            "defaults.queue_jobs_max": 2000,
        }
        if broker_port:
            settings |= {"broker.mode": "external", "mqtt.host": "127.0.0.1", "mqtt.port": broker_port}
        else:
            settings |= {"broker.mode": "child", "broker.port": free_port()}
        command = [rig.program, "run"]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        self.log = open(state_dir / "orinoco.log", "w")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        # The daemon writes its note when it takes requests; the answer waits for the model.
        end = self.clock() + LOAD_LIMIT_S
        while not (state_dir / "runtime.json").exists() and self.process.poll() is None and self.clock() < end:
            time.sleep(0.05)
        ask = [rig.program, "ask", "--state-dir", state_dir, "--accept-seconds", str(LOAD_LIMIT_S), "Say yes."]
        try:
            subprocess.run(ask, check=True, capture_output=True, timeout=2 * LOAD_LIMIT_S)
        except subprocess.SubprocessError as problem:
            self.__exit__()
            raise RuntimeError(f"orinoco does not serve: {problem}\n{pathlib.Path(self.log.name).read_text()[-2000:]}")
        where = json.loads((state_dir / "runtime.json").read_text())
        self.base = f"orinoco/v1/{where['node']}"
        self.streams, self.n_ids, self.documents = {}, 0, {}
        self.mqtt = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="bench", protocol=mqtt.MQTTv5)
        self.mqtt.max_inflight_messages_set(2000)
        self.mqtt.on_message = self._on_message
        self.mqtt.on_socket_open = lambda _c, _u, opened: opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        n_acks = []
        self.mqtt.on_subscribe = lambda *_: n_acks.append(1)
        self.mqtt.connect(where["host"], where["port"])
        self._pump_until(self.mqtt.is_connected)
        self.mqtt.subscribe([("orinoco/v1/resp/local/#", mqtt.SubscribeOptions(qos=1)), (f"{self.base}/+", mqtt.SubscribeOptions(qos=1))])
        self._pump_until(lambda: n_acks)

    def _pump_until(self, condition):
        end = self.clock() + 10
        while not condition():
            if self.clock() > end:
                raise RuntimeError("the broker does not answer")
            self.pump(0.1)

    def _on_message(self, _client, _userdata, message):
        at = self.clock()
        stream = self.streams.get(message.topic)
        if stream is None:
            self.documents[message.topic] = message.payload
            return
        payload = message.payload
        if b'"final":true' not in payload:
            if stream.accepted_s is None:
                stream.accepted_s = at
            else:
                # The bytes of the text are counted afterwards.
                stream.pieces.append((at, payload))
            return
        body = json.loads(payload)
        del self.streams[message.topic]
        if "error" in body:
            stream.error = body["error"]
            return
        usage = body["usage"]
        stream.n_tokens, stream.n_prompt = usage["completion_tokens"], usage["prompt_tokens"]
        stream.prefill_ms, stream.resumed = body["orinoco"]["prefill_ms"], body["orinoco"]["resumed"]
        texts = [(at, json.loads(piece)["choices"][0]["text"]) for at, piece in stream.pieces]
        stream.text = "".join(text for _, text in texts)
        stream.pieces = [(at, len(text.encode())) for at, text in texts]
        stream.is_done = True

    def start(self, prompt, n, greedy=False, per_token=False, flush=True):
        body = {"prompt": prompt, "max_tokens": n, "ignore_eos": True}
        if greedy:
            body["temperature"] = 0
        if per_token:
            body["coalesce_ms"] = 0
        self.n_ids += 1
        stream = Stream(self.clock())
        stream.id = f"b{self.n_ids}"
        self.streams[f"orinoco/v1/resp/local/{stream.id}"] = stream
        self.mqtt.publish(f"{self.base}/req/local/complete/{stream.id}", json.dumps(body), qos=1)
        if flush:
            self.pump(0)
        return stream

    def pump(self, timeout_s):
        if self.mqtt.loop(timeout_s) != mqtt.MQTT_ERR_SUCCESS:
            raise RuntimeError("the broker closed the connection")

    def cancel(self, stream):
        if not stream.is_done:
            self.mqtt.publish(f"{self.base}/req/local/cancel/{stream.id}", b"", qos=1)

    def _children(self):
        task = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in task.read_text().split()]

    def kill_worker(self):
        """SIGKILL to the worker; returns when, in seconds of `clock`."""
        for pid in self._children():
            if pathlib.Path(f"/proc/{pid}/exe").resolve().name == "orinoco-engine":
                os.kill(pid, signal.SIGKILL)
                return self.clock()
        raise RuntimeError("no orinoco-engine among the daemon's children")

    def load_ms(self):
        """The last load, from the daemon's log; None when it does not say."""
        found = re.findall(r"load_ms=(\d+)", pathlib.Path(self.log.name).read_text())
        return int(found[-1]) if found else None

    def supervisor_mib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024

    def idle_cpu(self, seconds):
        """Share of one core that supervisor, broker and worker use together while nobody asks."""

        def ticks():
            total = 0
            for pid in [self.process.pid, *self._children()]:
                fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
            return total

        before = ticks()
        time.sleep(seconds)
        return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds
