#!/usr/bin/env python3
"""The Debian packages in a clean root: installed, started, upgraded under load, downgraded, removed, purged.

    python3 tests/deb/lifecycle.py            # as root; wants target/release, models/, cargo-deb, mmdebstrap, paho-mqtt
    CARGO_TARGET_DIR=target/deb/build python3 tests/deb/lifecycle.py target/release-0.1.0

With a folder that scripts/release.sh made, its own packages are the older version of the play, and the newer one is
packed from the build that they were made of.

The root has Debian's own Mosquitto and none of our files. Namespaces of its own keep its network, processes and
mounts from this machine's. There is no systemd as process 1: tests/deb/systemctl starts what the units say, at the
word of the packages' own maintainer scripts.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import queue
import re
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time

TREE = pathlib.Path(__file__).resolve().parents[2]
MODEL = TREE / "models/SmolLM2-135M-Instruct.Q4_1.gguf"
SCRIPTED = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", TREE / "target"), "release/orinoco-engine-scripted")
PACKAGES = ("systemd", "mosquitto", "libgomp1", "libstdc++6")
TIMEOUT_S = 60
UNITS = ("orinoco", "orinoco-broker", "orinoco-mosquitto-account")
ENABLED = ("orinoco", "orinoco-mosquitto-account")
STREAMS, STREAM_TOKENS = 8, 400
# What dpkg, debconf and users' tools keep of their own.
FOREIGN = re.compile(
    r"/(proc|sys|dev|run|tmp|opt/test|var/(cache|log|lib/(dpkg|apt|systemd|mosquitto)))(/|$)"
    r"|/etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$|/etc/\.pwd\.lock$|/etc/ld\.so\.cache$"
)


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        sys.exit(f"FAILED  {' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def expect(fact, found, expected):
    if found != expected:
        sys.exit(f"FAILED  {fact}: {found!r}, expected {expected!r}")
    print(f"ok      {fact}", flush=True)


def wait_until(what, condition):
    until = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > until:
            expect(f"{what} within {TIMEOUT_S} s", False, True)
        time.sleep(0.05)


class Root:
    """The clean Debian, from within."""

    def __init__(self, path):
        self.path = pathlib.Path(path)

    def at(self, path):
        return self.path / path.lstrip("/")

    def run(self, *command, **options):
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        return run("chroot", self.path, *command, env=environment, stdin=subprocess.DEVNULL, **options)

    def dpkg(self, *arguments):
        return self.run("dpkg", *arguments)

    def files(self):
        """Everything that could be a package's, without what belongs to others."""
        found = set()
        for folder, folders, names in os.walk(self.path):
            inside = "/" + os.path.relpath(folder, self.path).removeprefix(".")
            inside = "" if inside == "/" else inside
            folders[:] = [name for name in folders if not FOREIGN.match(f"{inside}/{name}")]
            found |= {f"{inside}/{name}" for name in [*folders, *names] if not FOREIGN.match(f"{inside}/{name}")}
        return found

    def asked(self):
        """What maintainer scripts have asked of systemd since the last time, without questions."""
        path = self.at("/run/asked")
        lines = path.read_text().splitlines() if path.exists() else []
        path.write_text("")
        words = (re.sub(r"(?<!\S)-\S+ ?", "", line) for line in lines)
        return [line for line in words if not line.startswith(("is-", "daemon-reload"))]

    def revision(self):
        return self.run("dpkg-query", "-W", "-f", "${Version}", "orinoco").rsplit("-", 1)[1]

    def pid(self, unit):
        return int(self.at(f"/run/pid.{unit}").read_text())

    def log(self, unit):
        return self.at(f"/run/log.{unit}").read_text()


class Device:
    """A client of Mosquitto: asks, and keeps what comes for each id."""

    def __init__(self, user, password):
        import paho.mqtt.client as mqtt

        self.user, self.acks, self.answers, self.node = user, queue.Queue(), {}, None
        self.mqtt = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=user, protocol=mqtt.MQTTv311)
        self.mqtt.username_pw_set(user, password)
        self.mqtt.on_connect = lambda _c, _u, _f, reason, _p: self.acks.put(str(reason))
        self.mqtt.on_subscribe = lambda *_: self.acks.put("subscribed")
        self.mqtt.on_message = self.take
        self.mqtt.connect("127.0.0.1", 1883)
        self.mqtt.loop_start()
        expect(f"{user} may connect", self.acks.get(timeout=TIMEOUT_S), "Success")
        for topic in (f"orinoco/v1/resp/{user}/#", "orinoco/v1/+/state"):
            self.mqtt.subscribe(topic, qos=1)
            self.acks.get(timeout=TIMEOUT_S)

    def take(self, _client, _data, message):
        if message.topic.endswith("/state"):
            state = json.loads(message.payload)
            self.node = message.topic.split("/")[2] if state.get("mode") == "serving" else None
        else:
            self.answers.setdefault(message.topic.rsplit("/", 1)[1], []).append(json.loads(message.payload))

    def ask(self, identity, prompt, **more):
        body = {"messages": [{"role": "user", "content": prompt}], **more}
        self.mqtt.publish(f"orinoco/v1/{self.node}/req/{self.user}/chat/{identity}", json.dumps(body), qos=1)

    def finals(self, identity):
        return [piece for piece in self.answers.get(identity, []) if piece.get("final")]

    def text(self, identity):
        """Chunks by their numbers, each once; or what one object says."""
        by_number = {piece["seq"]: piece for piece in self.answers[identity] if "seq" in piece}
        expect_whole = sorted(by_number) == list(range(len(by_number)))
        texts = [(choice.get("delta") or choice.get("message") or {}).get("content") or ""
                 for _, piece in sorted(by_number.items()) for choice in piece.get("choices", [])]
        return "".join(texts) if expect_whole else f"numbers {sorted(by_number)}"


def is_alive(pid):
    with contextlib.suppress(OSError):
        return not re.search(r"^State:\s*[ZX]", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M)
    return False


def counted(n):
    text = "".join(f"{i} " for i in range(n))
    return text[:n]


def secrets_are_nowhere(root, when):
    secret = root.at("/etc/orinoco/mqtt.password").read_text().strip()
    expect(f"no secret is in an argument, an environment or a log {when}", leaks(root, secret, "secret-of-plc-3"), [])
    # The same with a process that does tell, or it would show nothing.
    # It speaks first: /proc shows no environment of a program that has only just been started.
    teller = subprocess.Popen(["/bin/sh", "-c", "echo; read line"], env={"PASSWORD": secret}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    teller.stdout.readline()
    expect("a secret in an environment would be found", leaks(root, secret), [f"environ of {teller.pid}"])
    teller.kill()
    teller.wait()


def leaks(root, *secrets):
    """Where these stand in arguments, environments and logs of everything that runs here."""
    secrets, found = [secret.encode() for secret in secrets], []
    assert all(len(secret) >= 15 for secret in secrets)
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                content = (process / name).read_bytes()
                found += [f"{name} of {process.name}" for secret in secrets if secret in content]
    logs = [*root.at("/run").glob("log.*"), *root.at("/var/log").rglob("*")]
    for path in logs:
        if path.is_file():
            found += [str(path) for secret in secrets if secret in path.read_bytes()]
    return found


def play(root, debs):
    """The life of a package, in one go: each part begins where the one before ended."""
    clean = root.files()
    root.run("dpkg-divert", "--quiet", "--rename", "--add", "/bin/systemctl")
    shutil.copy(TREE / "tests/deb/systemctl", root.at("/bin/systemctl"))
    clean |= {"/usr/bin/systemctl.distrib"}
    root.at("/run/systemd/system").mkdir(parents=True)

    # --- The daemon alone, with a broker of its own -----------------------------------------------------
    said = root.dpkg("-i", f"/opt/test/{debs[1]['orinoco']}")
    expect("the package installs without a word of warning", re.findall(r"(?i)^.*(?:warning|error|cannot|fail).*$", said, re.M), [])
    expect("an installation starts the daemon", root.asked(), ["start orinoco.service"])
    # What starts it is root for a moment.
    wait_until("the daemon is nobody's but its user's", lambda: os.stat(f"/proc/{root.pid('orinoco.service')}").st_uid != 0)
    expect("the daemon has a user of its own", os.stat(f"/proc/{root.pid('orinoco.service')}").st_uid,
           int(root.run("id", "-u", "orinoco")))
    expect("the user may use the GPU", set(root.run("id", "-nG", "orinoco").split()), {"orinoco", "video", "render"})
    users = root.at("/var/lib/orinoco/users.toml").stat()
    expect("accounts are the daemon's and its group's alone", stat.S_IMODE(users.st_mode), 0o640)
    as_daemon = ("setpriv", "--reuid", "orinoco", "--regid", "orinoco", "--init-groups")
    root.run(*as_daemon, "orinoco", "models", "add", "/opt/test/smol.gguf", "--name", "smol")
    root.run("systemctl", "restart", "orinoco.service")
    answer = root.run("orinoco", "ask", "--accept-seconds", "60", "Name three rivers.", timeout=TIMEOUT_S * 2)
    expect("the installed daemon and worker answer with a real model", len(answer.split()) > 3, True)
    print(f"        {answer.strip().splitlines()[0][:100]}")

    # --- Mosquitto, with our rules ----------------------------------------------------------------------
    root.run("systemctl", "start", "mosquitto.service")
    root.asked()
    # A site's own words, and an engine whose answers are known.
    config = root.at("/etc/orinoco/config.toml")
    config.write_text(config.read_text() + '\n[engine]\nworker_path = "/opt/test/orinoco-engine-scripted"\nbackend = "cpu"\nsandbox_read = "/opt/test"\n')
    root.dpkg("-i", f"/opt/test/{debs[1]['orinoco-mosquitto']}")
    expect("Mosquitto and the daemon learn of each other", root.asked(), [
        "start orinoco-mosquitto-account.service", "start orinoco-password.service",
        "stop orinoco.service", "restart mosquitto.service", "start orinoco.service"])
    password = root.at("/etc/orinoco/mqtt.password").stat()
    expect("the daemon's password is root's alone", (password.st_uid, stat.S_IMODE(password.st_mode)), (0, 0o600))
    accounts = root.at("/etc/mosquitto/orinoco.passwd")
    with accounts.open("a") as lines:
        lines.write("plc-3:secret-of-plc-3\n")
    # Hashed in the file: -b would show it in the arguments.
    hashed = accounts.read_text().splitlines()
    plain = root.at("/opt/test/plc")
    plain.write_text(hashed[-1] + "\n")
    root.run("mosquitto_passwd", "-U", "/opt/test/plc")
    accounts.write_text("\n".join([*hashed[:-1], plain.read_text().strip()]) + "\n")
    plain.unlink()
    os.kill(root.pid("mosquitto.service"), 1)
    device = Device("plc-3", "secret-of-plc-3")
    wait_until("the daemon serves on Mosquitto", lambda: device.node)

    # --- An upgrade under load --------------------------------------------------------------------------
    ids = [f"s{i}" for i in range(STREAMS)]
    prompt = f"!count !tokens {STREAM_TOKENS} !step 40"
    for identity in ids:
        device.ask(identity, prompt, stream=True, max_tokens=STREAM_TOKENS)
    wait_until("all streams have text", lambda: all(len(device.answers.get(i, [])) > 2 for i in ids))
    before = root.pid("orinoco.service")
    expect("no stream has ended", [i for i in ids if device.finals(i)], [])
    root.dpkg("--unpack", f"/opt/test/{debs[2]['orinoco']}", f"/opt/test/{debs[2]['orinoco-mosquitto']}")
    expect("while files are exchanged nothing is stopped", (root.asked(), is_alive(before)), ([], True))
    secrets_are_nowhere(root, "under load")
    root.dpkg("--configure", "-a")
    asked = root.asked()
    expect("the upgrade restarts the daemon, never stops it alone", [a for a in asked if "stop" in a or "killed" in a], [])
    expect("it was restarted", "restart orinoco.service" in asked and root.pid("orinoco.service") != before, True)
    wait_until("all streams end", lambda: all(device.finals(i) for i in ids))
    time.sleep(1)  # for a second final, which would be wrong
    expect("each stream has one final", [len(device.finals(i)) for i in ids], [1] * STREAMS)
    expect("no stream lost or repeats a token", [device.text(i) for i in ids], [counted(STREAM_TOKENS)] * STREAMS)
    expect("what the site wrote into the configuration stands", "worker_path" in config.read_text(), True)
    expect("the new version is there", root.revision(), "2")

    # --- A downgrade ------------------------------------------------------------------------------------
    wait_until("the new version serves", lambda: device.node)
    device.node = None
    root.dpkg("-i", *(f"/opt/test/{name}" for name in debs[1].values()))
    expect("the older version is back", root.revision(), "1")
    wait_until("it serves", lambda: device.node)
    device.answers.clear()
    device.ask("s0", prompt, stream=True, max_tokens=STREAM_TOKENS)
    wait_until("an id of before is answered again", lambda: device.finals("s0"))
    stored = device.finals("s0")[0]
    device.ask("after", "!count !tokens 12", max_tokens=12, stream=True)
    wait_until("a new prompt ends", lambda: device.finals("after"))
    expect("a new prompt is answered", device.text("after"), counted(12))
    expect("jobs of the newer version are known to the older", "error" in stored, False)
    secrets_are_nowhere(root, "after a downgrade")

    # --- Removal, and purge -----------------------------------------------------------------------------
    root.asked()
    running = root.pid("orinoco.service")
    root.dpkg("--remove", "orinoco-mosquitto", "orinoco")
    expect("a removal stops the daemon", ("stop orinoco.service" in root.asked(), is_alive(running)), (True, False))
    left = root.files() - clean
    state = {path for path in left if path.startswith("/var/lib/orinoco")}
    expect("a removal leaves configuration and accounts, masks the units, and nothing else", left - state, {
        "/etc/orinoco", "/etc/orinoco/config.toml", "/etc/orinoco/config.d", "/etc/orinoco/config.d/50-mosquitto.toml",
        "/etc/orinoco/mqtt.password", "/etc/mosquitto/conf.d/orinoco.conf", "/etc/mosquitto/orinoco.acl",
        "/etc/mosquitto/orinoco.passwd", *(f"/etc/systemd/system/{name}.service" for name in UNITS),
        *(f"/etc/systemd/system/multi-user.target.wants/{name}.service" for name in ENABLED)})
    expect("a removal leaves models and jobs", {"/var/lib/orinoco/models/smol.gguf", "/var/lib/orinoco/users.toml"} <= state, True)
    root.dpkg("--purge", "orinoco-mosquitto", "orinoco")
    expect("a purge leaves the models, which may be the only copies", root.files() - clean,
           {"/var/lib/orinoco", "/var/lib/orinoco/models"} | {p for p in state if p.startswith("/var/lib/orinoco/models/")})
    gone = clean - root.files()
    expect("a purge takes nothing that was there before", gone, set())
    root.dpkg("-i", f"/opt/test/{debs[2]['orinoco']}")
    expect("models are there after a new installation", "smol" in root.run(*as_daemon, "orinoco", "models", "list"), True)
    root.run("systemctl", "stop", "orinoco.service")
    shutil.rmtree(root.at("/var/lib/orinoco/models"))
    root.dpkg("--purge", "orinoco")
    expect("without models a purge leaves nothing", root.files() - clean, set())


def inside(path):
    """In the namespaces: loopback, /proc and /run of their own."""
    with socket.socket() as any_socket:
        flags = struct.pack("16sh", b"lo", 0x41)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(any_socket, 0x8914, flags)  # SIOCSIFFLAGS
    root = Root(path)
    for kind, place in (("proc", "/proc"), ("tmpfs", "/run"), ("tmpfs", "/tmp")):
        run("mount", "-t", kind, kind, root.at(place))
    run("mount", "-t", "proc", "proc", "/proc")
    # The sandbox of the worker and the watchdog want to see a machine.
    run("mount", "--bind", "/sys", root.at("/sys"))
    debs = {1: {}, 2: {}}
    for path in sorted(root.at("/opt/test").glob("*.deb")):
        name, version, _ = path.name.split("_")
        debs[int(version.rsplit("-", 1)[1])][name] = path.name
    try:
        play(root, debs)
    except BaseException:
        for log in [*root.at("/run").glob("log.*"), *root.at("/var/log/mosquitto").glob("*")]:
            print(f"--- {log.name}\n{log.read_text()[-3000:]}", file=sys.stderr)
        raise


def main():
    if sys.argv[1:2] == ["--inside"]:
        return inside(sys.argv[2])
    released = [path for folder in sys.argv[1:] for path in pathlib.Path(folder).glob("*.deb")]
    if sys.argv[1:] and len(released) != 2:
        sys.exit(f"{sys.argv[1]} holds {len(released)} packages, expected orinoco and orinoco-mosquitto of scripts/release.sh")
    if os.geteuid() != 0:
        print("skipped: the Debian packages in a clean root, as that needs root")
        return None
    cache = TREE / "target/test-deps/deb-root.tar"
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="orinoco-deb-") as work:
        root = pathlib.Path(work, "root")
        if not cache.exists():
            codename = re.search(r"^VERSION_CODENAME=(\S+)", pathlib.Path("/etc/os-release").read_text(), re.M).group(1)
            cache.parent.mkdir(parents=True, exist_ok=True)
            run("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}", codename, f"{cache}.new.tar")
            os.rename(f"{cache}.new.tar", cache)
        root.mkdir()
        run("tar", "-xf", cache, "-C", root)
        opt = root / "opt/test"
        opt.mkdir(parents=True)
        for path in released:
            shutil.copy(path, opt)
        for revision in ("2",) if released else ("1", "2"):
            run(TREE / "scripts/deb.sh", "--no-build", "--fast", "--revision", revision, "--out", opt)
        shutil.copy(MODEL, opt / "smol.gguf")
        shutil.copy(SCRIPTED, opt)
        print(f"        packages and a clean root: {time.monotonic() - began:.0f} s", flush=True)
        namespaces = ["unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "--kill-child", "--propagation", "private"]
        done = subprocess.run([*namespaces, sys.executable, __file__, "--inside", root], check=False)
        if done.returncode != 0:
            sys.exit(done.returncode)
    print(f"        all of it: {time.monotonic() - began:.0f} s")
    return None


if __name__ == "__main__":
    main()
