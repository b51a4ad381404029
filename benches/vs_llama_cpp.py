"""Runs llama.cpp's own programs and Orinoco in turn and compares; started by vs_llama_cpp.sh.

One thread, one select loop, no parsing while a measurement runs: with two cores and threads that wait by
spinning, a busy client would be measured along. Both servers are read the same way: raw bytes with the time
of their arrival, taken apart afterwards.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from peers import LlamaServer, Orinoco, Rig, batched_bench, llama_bench, mosquitto
from report import GOALS, page, table

N_GEN = 128  # as llama-bench's tg128
N_ONE = 5
N_GEN_MANY = 256
N_STREAMS = 8
N_TTFT = 20
N_FIRST = 16  # tokens asked for where the first is what counts: one alone may be half a character
N_LONG_WORDS = 3500  # a token each, with the words below
N_TALKS = 3
N_TALK_WORDS = 2000


def wait_for(peer, streams, condition, limit_s):
    """Reads until the condition holds; a stream that failed or never comes is an error."""
    end = peer.clock() + limit_s
    while not condition():
        for stream in streams:
            if stream.error:
                raise RuntimeError(f"{peer.name}: {stream.error}")
        if peer.clock() > end:
            raise RuntimeError(f"{peer.name}: no end after {limit_s} s")
        peer.pump(0.25)


def all_done(streams):
    return lambda: all(stream.is_done for stream in streams)


def rate(streams):
    """Tokens a second of all streams together, while all of them run.

    The window reaches from the last stream's first text to the first stream's last. A stream's tokens are
    spread over its bytes, since a message may hold several.
    """
    begin = max(stream.pieces[0][0] for stream in streams)
    end = min(stream.pieces[-1][0] for stream in streams)
    if end <= begin:
        raise RuntimeError("the streams did not run side by side")
    tokens = 0.0
    for stream in streams:
        inside = sum(size for at, size in stream.pieces if begin < at <= end)
        tokens += stream.n_tokens * inside / sum(size for _, size in stream.pieces)
    return tokens / (end - begin)


def one_stream(peer, prompts, greedy):
    """Median of several streams, as llama-bench takes several: one lasts under a second."""
    rates = []
    for _ in range(N_ONE):
        stream = peer.start(prompts.short(), N_GEN, greedy=greedy)
        wait_for(peer, [stream], all_done([stream]), 120)
        rates.append(rate([stream]))
    return statistics.median(rates)


def many_streams(peer, prompts, greedy):
    streams = [peer.start(prompts.short(), N_GEN_MANY, greedy=greedy) for _ in range(N_STREAMS)]
    wait_for(peer, streams, all_done(streams), 300)
    return rate(streams)


def ttft(peer, prompts):
    """Medians in milliseconds: to the first text, and what of it was prefill by the server's own clock."""
    firsts, prefills = [], []
    for _ in range(N_TTFT):
        stream = peer.start(prompts.short(), N_FIRST, greedy=True)
        wait_for(peer, [stream], all_done([stream]), 60)
        firsts.append((stream.pieces[0][0] - stream.sent_s) * 1000)
        prefills.append(stream.prefill_ms)
    overheads = [first - prefill for first, prefill in zip(firsts, prefills)]
    return statistics.median(firsts), statistics.median(prefills), statistics.median(overheads)


def stall(peer, prompts):
    """Longest gap of seven running streams while a long prompt is read, in milliseconds, and its tokens."""
    running = [peer.start(prompts.short(), 1200, per_token=True) for _ in range(N_STREAMS - 1)]
    wait_for(peer, running, lambda: all(len(stream.pieces) >= 10 for stream in running), 120)
    long = peer.start(prompts.words(N_LONG_WORDS), N_FIRST, greedy=True)
    wait_for(peer, [long, *running], lambda: long.is_done, 300)
    from_s, to_s = long.sent_s, long.pieces[0][0]
    gaps = []
    for stream in running:
        times = [at for at, _ in stream.pieces]
        gaps += [b - a for a, b in zip(times, times[1:]) if b > from_s and a < to_s]
        # A running one may just hold back half a character.
        if stream.is_done and times[-1] < to_s:
            raise RuntimeError(f"{peer.name}: a stream ended before the long prompt was read")
    for stream in running:
        peer.cancel(stream)
    return max(gaps) * 1000, long.n_prompt, (to_s - from_s) * 1000


def second_turn(peer, prompts):
    """Medians in milliseconds to the first text: of a long prompt read cold, and of the turn that goes on from its answer."""
    colds, seconds = [], []
    for _ in range(N_TALKS):
        said = prompts.words(N_TALK_WORDS)
        first = peer.start(said, 32, greedy=True)
        wait_for(peer, [first], all_done([first]), 120)
        # A person reads before answering; meanwhile a server may put in order what it keeps.
        idle(peer, 0.5)
        second = peer.start(f"{said}{first.text} {prompts.short()}", N_FIRST, greedy=True)
        wait_for(peer, [second], all_done([second]), 120)
        colds.append((first.pieces[0][0] - first.sent_s) * 1000)
        seconds.append((second.pieces[0][0] - second.sent_s) * 1000)
    return statistics.median(colds), statistics.median(seconds)


def idle(peer, seconds):
    end = peer.clock() + seconds
    while peer.clock() < end:
        peer.pump(0.05)


def serve(peer, prompts, greedy_too):
    """All that is asked of a server, in one life of it."""
    one_stream(peer, prompts, greedy=True)  # warm: pages, caches, threads
    found = {"one": one_stream(peer, prompts, greedy=False), "eight": many_streams(peer, prompts, greedy=False)}
    if greedy_too:
        found["one_greedy"] = one_stream(peer, prompts, greedy=True)
        found["eight_greedy"] = many_streams(peer, prompts, greedy=True)
    found["ttft_ms"], found["prefill_ms"], found["overhead_ms"] = ttft(peer, prompts)
    found["cold_ms"], found["second_ms"] = second_turn(peer, prompts)
    found["stall_ms"], found["n_long"], found["long_ttft_ms"] = stall(peer, prompts)
    return found


def resume(peer, prompts):
    """Worker killed in mid-stream: milliseconds to the next text, and of them loading."""
    # Long enough that it is under way after eight messages, however fast.
    stream = peer.start(prompts.short(), 1500)
    wait_for(peer, [stream], lambda: len(stream.pieces) >= 8, 60)
    killed_s = peer.kill_worker()
    wait_for(peer, [stream], lambda: stream.is_done, 300)
    # What was on its way when the worker died still arrives, and it dies slowly where a GPU's memory is taken back
    # from it; the pause is the longest gap after it.
    times = [killed_s, *(at for at, _ in stream.pieces if at > killed_s)]
    gap_ms = max(b - a for a, b in zip(times, times[1:])) * 1000
    if stream.resumed != 1:
        raise RuntimeError(f"the final says resumed: {stream.resumed}, expected 1")
    return gap_ms


def durable_accepts(peer, prompts, n):
    """n requests as fast as they go: accepted a second, and the supervisor's memory with them queued."""
    streams = [peer.start(prompts.short(), 512, flush=False) for _ in range(n)]
    wait_for(peer, streams, lambda: all(stream.accepted_s for stream in streams), 120)
    seconds = max(stream.accepted_s for stream in streams) - streams[0].sent_s
    return n / seconds, peer.supervisor_mib()


def busy_share(seconds=1.0):
    """Share of all cores that others use."""

    def read():
        values = [int(value) for value in pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
        return sum(values), values[3] + values[4]

    total, idle = read()
    time.sleep(seconds)
    total, idle = (b - a for a, b in zip((total, idle), read()))
    return 1 - idle / total


class Prompts:
    """Prompts of common words; no two begin alike, so nothing is found in a cache."""

    WORDS = (
        "river stone water light early morning small green field north wind paper house garden bread "
        "winter road table window letter horse silver mountain valley bridge market music story village "
        "summer forest island harbor engine signal copper winter number answer machine sensor reading value"
    ).split()

    def __init__(self):
        self.count = 0

    def words(self, n):
        self.count += 1
        start = f"{self.count * 7919 % 10007} "
        return start + " ".join(self.WORDS[(self.count * 31 + k * (k + 3)) % len(self.WORDS)] for k in range(n - 1))

    def short(self):
        return self.words(24)


def measure(rig, broker, work, n, mosquitto_port, prompts):
    """One round: everybody in turn, servers started anew."""
    found = {"llama_bench": llama_bench(rig), "batched_bench": batched_bench(rig)}
    with LlamaServer(rig, work) as peer:
        found["llama_server"] = serve(peer, prompts, greedy_too=False)
    with Orinoco(rig, work / f"round{n}", mosquitto_port if broker == "mosquitto" else None) as peer:
        # After the first answer there is still something to put in order.
        time.sleep(5)
        found["idle_mib"], found["idle_cpu"] = peer.supervisor_mib(), peer.idle_cpu(10)
        found["orinoco"] = serve(peer, prompts, greedy_too=True)
        found["resume_ms"], found["load_ms"] = resume(peer, prompts), peer.load_ms()
    # Over Mosquitto, since the embedded broker holds each user to a rate, which is not what is measured.
    if mosquitto_port:
        with Orinoco(rig, work / f"queue{n}", mosquitto_port) as peer:
            found["accepts"], found["queued_mib"] = durable_accepts(peer, prompts, 1000)
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=pathlib.Path, required=True, help="folder of llama-bench and the others")
    parser.add_argument("--program", type=pathlib.Path, required=True, help="orinoco, with orinoco-engine beside it")
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--broker", choices=["child", "mosquitto"], required=True)
    parser.add_argument("--hardware", choices=list(GOALS), default="cpu", help="what computes, and so which goals hold")
    parser.add_argument("--commit", help="what was measured, where git cannot say")
    parser.add_argument("--json", type=pathlib.Path, required=True, help="where every figure of every round goes")
    parser.add_argument("--page", type=pathlib.Path, help="the page that gets the table; without it, stdout")
    args = parser.parse_args()
    rig = Rig(args.peers.resolve(), args.program.resolve(), args.model.resolve(), args.threads, on_gpu=args.hardware != "cpu")
    prompts, rounds = Prompts(), []
    busy = [busy_share()]
    if busy[0] > 0.05:
        print(f"warning: others use {busy[0]:.0%} of the processor; the table will say so", file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        with mosquitto(work) as mosquitto_port:
            for n in range(args.rounds):
                rounds.append(measure(rig, args.broker, work, n, mosquitto_port, prompts))
                busy.append(busy_share())
                print(f"round {n + 1} of {args.rounds}: {json.dumps(rounds[-1])}", file=sys.stderr, flush=True)
                args.json.write_text(json.dumps({"busy": busy, "rounds": rounds}, indent=1))

    text = table(args, rounds, max(busy))
    if args.page:
        page(args.page, f"{rig.model.stem}-{args.broker}", text)
    else:
        print(text)


if __name__ == "__main__":
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    try:
        main()
    except (RuntimeError, subprocess.CalledProcessError) as problem:
        sys.exit(f"error: {problem}")
