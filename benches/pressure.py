#!/usr/bin/env python3
"""Real pressure on a real machine: memory is eaten under a daemon that streams, and given back.

A daemon with thresholds 2 GiB below what is available, eight streams, and a process that takes memory in
steps and touches every page. MemAvailable and the worker's resident memory are read here, 1000 times a second,
so that what the daemon says about itself is not what is measured. Time runs from the first reading below a
threshold to the first one above it, while the eater holds what it has: that includes the daemon's own wait for
its next look (20 ms there); and to the reading at which the worker no longer holds what the step gives back.

Some kernels count freed memory late: a virtual machine whose balloon reports free pages takes them off the
free lists while its host is told. So a plain process of the worker's size is killed before, as a control, and
what MemAvailable shows of it and when stands below the table.

Prints a table for docs/benchmarks.md. Needs a build (cargo build --release --workspace), SmolLM2, 6 GiB and a
minute. Nothing else may run: what others take and give back is counted along.
"""

import argparse
import datetime
import json
import mmap
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

REPO = pathlib.Path(__file__).resolve().parent.parent
MIB = 1 << 20
GIB = 1 << 30
N_STREAMS = 8
BITE_BYTES = 16 * MIB
# From the first threshold to the last, each below the one before by so much.
SPACING_BYTES = 256 * MIB
BELOW_BYTES = 2 * GIB


def meminfo(key):
    for line in open("/proc/meminfo", encoding="ascii"):
        name, value = line.split(":", 1)
        if name == key:
            return int(value.split()[0]) * 1024
    return 0


def oom_kills():
    for line in open("/proc/vmstat", encoding="ascii"):
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return None


def cgroup_limit():
    """The name and bytes of the nearest limit of memory above this process, or None."""
    for line in open("/proc/self/cgroup", encoding="ascii"):
        _, controllers, path = line.strip().split(":", 2)
        if controllers == "":
            top, name = "/sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        place = pathlib.PurePosixPath(path)
        for group in [place, *place.parents]:
            file = pathlib.Path(f"{top}{group}") / name
            try:
                text = file.read_text(encoding="ascii").strip()
            except OSError:
                continue
            if text != "max" and int(text) < 1 << 60:
                return str(group), int(text)
    return None


def reports_free_pages():
    """Whether a balloon of this virtual machine tells its host of free pages (VIRTIO_BALLOON_F_REPORTING)."""
    for device in pathlib.Path("/sys/bus/virtio/devices").glob("*"):
        try:
            is_balloon = int((device / "device").read_text(encoding="ascii"), 16) == 5
            if is_balloon and (device / "features").read_text(encoding="ascii")[5] == "1":
                return True
        except (OSError, ValueError, IndexError):
            continue
    return False


class Memory(threading.Thread):
    """MemAvailable and a process's own resident memory over time, read by a thread of their own."""

    def __init__(self):
        super().__init__(daemon=True)
        self.samples = []
        # (seconds, bytes) of the process that is watched; 0 from its end on.
        self.own = []
        self._watched = None
        self._file = os.open("/proc/meminfo", os.O_RDONLY)
        self._over = False
        self.start()

    def run(self):
        pattern = re.compile(rb"MemAvailable:\s+(\d+) kB")
        while not self._over:
            text = os.pread(self._file, 512, 0)
            self.samples.append((time.monotonic(), int(pattern.search(text)[1]) * 1024))
            if self._watched is not None:
                own = own_bytes(self._watched)
                if own is not None:
                    self.own.append((time.monotonic(), own))
            time.sleep(0.001)

    def watch(self, pid):
        self._watched = pid

    def given_back(self, n_bytes, since):
        """When the watched process first held so much less than at `since`."""
        held = None
        for at, own in self.own:
            if at < since:
                held = own
            elif held is None:
                return None
            elif own <= held - n_bytes:
                return at
        return None

    def end(self):
        self._over = True
        self.join()

    def now(self):
        return self.samples[-1][1]

    def dip(self, threshold, since):
        """When it fell below the threshold, and when it was above again."""
        below = None
        for at, available in self.samples:
            if at < since:
                continue
            if below is None:
                if available < threshold:
                    below = at
            elif available >= threshold:
                return below, at
        return below, None


def own_bytes(pid):
    """Resident and not shared with a file; 0 after its end, None while it ends: what it held is being freed."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    if fields[0] == "0":
        return None
    return (int(fields[1]) - int(fields[2])) * mmap.PAGESIZE


class Eater:
    """A process of its own, so that the kernel sees another program take the memory; a byte asks for a bite."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--eat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.eaten = 0

    def kill(self):
        self._process.kill()
        self._process.wait()

    def bite(self):
        self._process.stdin.write(b"b")
        self._process.stdin.flush()
        self._process.stdout.read(1)
        self.eaten += BITE_BYTES

    def until_below(self, memory, level, threshold):
        """Eats until the threshold is passed, slowly enough for every step before to be taken."""
        while memory.now() >= threshold:
            if memory.now() < 256 * MIB:
                raise RuntimeError(f"nothing is left before {level}: the eater stops")
            self.bite()
            time.sleep(0.01)

    def stop(self):
        self._process.stdin.close()
        self._process.wait()


def eat():
    kept = []
    while sys.stdin.buffer.read(1):
        block = mmap.mmap(-1, BITE_BYTES)
        for offset in range(0, BITE_BYTES, mmap.PAGESIZE):
            block[offset] = 1
        kept.append(block)
        sys.stdout.buffer.write(b"b")
        sys.stdout.buffer.flush()


class Daemon:
    def __init__(self, args, state_dir, settings):
        self.program = str(REPO / "target/release/orinoco")
        self.state_dir = pathlib.Path(state_dir)
        # A folder without a word in it: nothing of the machine's own configuration counts.
        config = self.state_dir / "config"
        config.mkdir(exist_ok=True)
        (config / "config.toml").write_text("")
        self.log_file = self.state_dir / "log"
        (self.state_dir / "runtime.json").unlink(missing_ok=True)
        command = [self.program, "run", "--config", str(config), "--state-dir", str(state_dir)]
        command += ["--models-dir", str(args.model.parent)]
        for setting in settings:
            command += ["--set", setting]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=open(self.log_file, "w"))
        self.until("model serves")
        self.port = json.loads((self.state_dir / "runtime.json").read_text())["port"]

    def log(self):
        return self.log_file.read_text()

    def until(self, words, limit_s=60, times=1):
        end = time.monotonic() + limit_s
        while self.log().count(words) < times:
            if time.monotonic() > end or self.process.poll() is not None:
                raise RuntimeError(f"no {words!r} in {limit_s} s:\n{self.log()[-4000:]}")
            time.sleep(0.05)

    def stepped(self, level):
        """When it first said that it took this step, by this program's clock, and what that was to give back."""
        for line in re.sub("\x1b\\[[0-9;]*m", "", self.log()).splitlines():
            if f"to={level.capitalize()} " in line and "memory watchdog" in line:
                told = datetime.datetime.fromisoformat(line.split()[0].replace("Z", "+00:00"))
                relief = int(re.search(r"relief_bytes=(\d+)", line)[1])
                return told.timestamp() - time.time() + time.monotonic(), relief
        return None, 0

    def ask(self, n_tokens, seed, text=""):
        command = [self.program, "ask", "--config", str(self.state_dir / "config"), "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--node", "bench", "--max-tokens", str(n_tokens)]
        command += ["--seed", str(seed), "--json", f"{seed}: tell a long story about a number. {text}"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def worker(self):
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in children:
            if "engine" in pathlib.Path(f"/proc/{pid}/comm").read_text():
                return pid
        raise RuntimeError("no worker")

    def worker_bytes(self):
        """What the worker's end gives back: memory of its own, without the mapped model."""
        rollup = pathlib.Path(f"/proc/{self.worker()}/smaps_rollup").read_text()
        return sum(int(kb) for kb in re.findall(r"Private_Dirty:\s+(\d+) kB", rollup)) * 1024

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)


def gib(n_bytes):
    return f"{n_bytes / GIB:.2f} GiB"


def control(n_bytes, limit_s=5):
    """(milliseconds, bytes): a plain process of this size is killed; when 0.9 of it was available again, or None,
    and how much of it was at the limit."""
    memory, eater = Memory(), Eater()
    try:
        for _ in range(n_bytes // BITE_BYTES):
            eater.bite()
        time.sleep(1)
        held, begin = memory.now(), time.monotonic()
        eater.kill()
        while memory.now() < held + 0.9 * eater.eaten and time.monotonic() < begin + limit_s:
            time.sleep(0.001)
        took_ms = (time.monotonic() - begin) * 1000
        back = memory.now() - held
        return (took_ms if back >= 0.9 * eater.eaten else None), back, eater.eaten
    finally:
        memory.end()


def trace(file, memory, begin, thresholds, log):
    """Keeps the run for docs/images: MemAvailable every 50 ms, and when the watchdog took which step."""
    offset = time.time() - time.monotonic()
    rows, due = [], 0.0
    for at, available in memory.samples:
        if at >= begin and at - begin >= due:
            rows.append([round(at - begin, 3), available])
            due = at - begin + 0.05
    steps = []
    for line in log.splitlines():
        if "memory watchdog" in line and (found := re.search(r"to=(\w+)", line)):
            told = datetime.datetime.fromisoformat(line.split()[0].replace("Z", "+00:00")).timestamp()
            steps.append([round(told - offset - begin, 3), found[1].lower()])
    file.write_text(json.dumps({"available_bytes": rows, "steps": steps, "thresholds": thresholds}) + "\n")


def one_round(args, n_ctx):
    settings = [
        "node.name=bench",
        f"model.active={args.model.stem}",
        f"model.n_ctx={n_ctx}",
        "model.n_ctx_seq=4096",
        "engine.backend=cpu",
        "defaults.requests_per_minute_max=0",
    ]
    with tempfile.TemporaryDirectory() as state_dir:
        # A first life to see what is left with the model loaded.
        daemon = Daemon(args, state_dir, settings)
        present = meminfo("MemAvailable")
        worker = daemon.worker_bytes()
        daemon.stop()
        killed = control(worker)
        levels = ["trim", "park", "shrink", "kill"]
        thresholds = {level: present - BELOW_BYTES - n * SPACING_BYTES for n, level in enumerate(levels)}
        settings += [f"watchdog.{level}_bytes={n_bytes}" for level, n_bytes in thresholds.items()]
        daemon = Daemon(args, state_dir, settings)
        memory, eater, kills = Memory(), Eater(), oom_kills()
        try:
            # What ended jobs leave behind is what the first step has to give back.
            for ask in [daemon.ask(8, seed, "word " * 600) for seed in range(N_STREAMS)]:
                ask.communicate(timeout=300)
            asks = [daemon.ask(args.tokens, seed) for seed in range(N_STREAMS)]
            time.sleep(1.5)
            found = {}
            begin = time.monotonic()
            memory.watch(daemon.worker())
            for level, limit_s in (("trim", 2), ("shrink", 15), ("kill", 15)):
                if level == "kill":
                    # What shrink made smaller is what is ended.
                    daemon.until("model serves", times=2)
                    worker = daemon.worker_bytes()
                    memory.watch(daemon.worker())
                    time.sleep(0.1)
                eater.until_below(memory, level, thresholds[level])
                daemon.until(f"to={level.capitalize()} ", limit_s=10)
                limit = time.monotonic() + limit_s
                crossed, _ = memory.dip(thresholds[level], begin)
                stepped, relief = daemon.stepped(level)
                # Only the first step leaves the worker alive.
                wanted = 0.9 * (relief if level == "trim" else worker)
                back = freed = None
                while None in (back, freed) and time.monotonic() < limit:
                    time.sleep(0.01)
                    back = memory.dip(thresholds[level], begin)[1]
                    freed = memory.given_back(wanted, crossed)
                found[level] = (crossed, freed, back, stepped, relief, worker)
            held = eater.eaten
            time.sleep(1)
            is_alive = [ask.poll() is None for ask in asks]
            eater.stop()
            ended = [ask.communicate(timeout=180) for ask in asks]
            daemon.until("to=Ok ", limit_s=120)
        finally:
            eater.stop()
            memory.end()
            daemon.stop()
        log = re.sub("\x1b\\[[0-9;]*m", "", daemon.log())
        if args.trace:
            trace(args.trace, memory, begin, thresholds, log)
        walked = re.findall(r"from=(\w+) to=(\w+)", log)
        finals = [json.loads(out.strip().splitlines()[-1]) for out, _ in ended]
        whole = [ask.returncode == 0 and final.get("final") for ask, final in zip(asks, finals)]
        return {
            "n_ctx": n_ctx,
            "present": present,
            "control": killed,
            "eaten": held,
            "found": found,
            "walked": walked,
            "n_alive": sum(is_alive),
            "n_whole": sum(map(bool, whole)),
            "n_resumed": sum(bool(final.get("orinoco", {}).get("resumed")) for final in finals),
            "oom_kills": None if kills is None else oom_kills() - kills,
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=REPO / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--tokens", type=int, default=600, help="tokens of each stream")
    parser.add_argument("--n-ctx", type=int, action="append", help="pool of the worker; may be given again")
    parser.add_argument("--trace", type=pathlib.Path, help="keep the (last) run here, for scripts/make-pictures.py")
    parser.add_argument("--eat", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.eat:
        return eat()
    limit = cgroup_limit()
    if limit:
        print(f"skipped: the control group {limit[0]} is limited to {gib(limit[1])}; its own killer would come first")
        return None
    if meminfo("MemAvailable") < 6 * GIB:
        print(f"skipped: {gib(meminfo('MemAvailable'))} are available, 6 GiB are needed")
        return None
    load = os.getloadavg()[0]
    rounds = [one_round(args, n_ctx) for n_ctx in args.n_ctx or [65536]]
    commit = subprocess.run(["git", "-C", REPO, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    swap = meminfo("SwapTotal")
    print(
        f"{datetime.date.today()}, commit {commit.stdout.strip()}. {os.cpu_count()} cores, {gib(meminfo('MemTotal'))}, "
        f"{'no swap' if swap == 0 else gib(swap) + ' of swap'}, Linux {os.uname().release}. {args.model.name}, {N_STREAMS} streams; load average before it {load:.1f}.\n"
    )
    print("| pool | the worker's own memory | step | crossed → ordered | → given back by the worker | → MemAvailable above again | wanted | met |")
    print("|---:|---:|---|---:|---:|---:|---:|---|")
    for found in rounds:
        for level, (crossed, freed, back, stepped, relief, worker) in found["found"].items():
            def after(at):
                return "never" if at is None or crossed is None else f"{(at - crossed) * 1000:.0f} ms"

            row = f"| {found['n_ctx']} | {gib(worker)} | {level} | {after(stepped)} |"
            if relief == 0:
                print(f"{row} nothing to give back | – | – | – |")
                continue
            row += f" {after(freed)} | {after(back)} |"
            wanted_ms = {"trim": 500, "kill": 100 + 100 * worker / GIB}.get(level)
            if wanted_ms is None:
                print(f"{row} – | – |")
                continue
            def is_met(at):
                return "yes" if None not in (at, crossed) and (at - crossed) * 1000 <= wanted_ms else "no"

            met = "yes" if is_met(back) == "yes" else f"worker: {is_met(freed)}; MemAvailable: no"
            print(f"{row} ≤ {wanted_ms:.0f} ms | {met} |")
    print()
    for found in rounds:
        path = " → ".join([found["walked"][0][0], *(to for _, to in found["walked"])]).lower()
        print(
            f"Pool {found['n_ctx']}: {gib(found['eaten'])} eaten; {path}; {found['n_alive']} of {N_STREAMS} streams under "
            f"way at the worker's end, {found['n_resumed']} resumed, {found['n_whole']} answered whole; "
            f"the kernel's OOM killer acted {found['oom_kills']} times.\n"
        )
        took_ms, shown, ended = found["control"]
        took = f"{took_ms:.0f} ms" if took_ms is not None else "more than 5 s"
        print(
            f"Control: a plain process of {gib(ended)} is killed; MemAvailable shows 0.9 of it after {took}, "
            f"{gib(shown)} then.{' A balloon of this virtual machine reports free pages to its host.' if reports_free_pages() else ''}\n"
        )
    return None


if __name__ == "__main__":
    main()
