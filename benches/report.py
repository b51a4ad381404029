"""The table of one run, and its place in a page: between two markers; the rest of the page belongs to people."""

import datetime
import os
import pathlib
import platform
import statistics
import subprocess


# Wanted ratios: one stream greedy and by default, eight greedy and by default, a second turn.
GOALS = {"cpu": (0.97, 1.15, 0.95, 1.2, 0.05), "cuda": (0.95, 1.05, 0.90, 1.2, 0.25)}


def table(args, rounds, busy):
    goals = GOALS[args.hardware]

    def median(*keys):
        values = []
        for found in rounds:
            for key in keys:
                found = found[key]
            values.append(found)
        values = [value for value in values if value is not None]
        return statistics.median(values) if values else None

    def ratio(top, bottom):
        """Median of the rounds' own ratios: what slows a whole round cancels out."""
        values = []
        for found in rounds:
            a, b = found, found
            for key in top:
                a = a[key]
            for key in bottom:
                b = b[key]
            values.append(a / b)
        return statistics.median(values)

    ours, theirs = "orinoco", "llama_server"
    rows = []

    def row(number, measure, our_value, peer_value, result, goal, is_met):
        rows.append(f"| {number} | {measure} | {our_value} | {peer_value} | {result} | {goal} | {'yes' if is_met else 'no'} |")

    def faster(number, measure, top, bottom, peer, goal):
        found = ratio(top, bottom)
        row(number, measure, f"{median(*top):.0f} t/s", f"{median(*bottom):.0f} t/s ({peer})", f"{found:.2f}", f"≥ {goal}", found >= goal)

    faster("1", "one stream through MQTT, greedy", (ours, "one_greedy"), ("llama_bench", "tg128"), "llama-bench tg128", goals[0])
    faster("1", "one stream through MQTT, default sampling", (ours, "one"), (theirs, "one"), "llama-server", goals[1])
    faster("2", "eight streams through MQTT, greedy", (ours, "eight_greedy"), ("batched_bench", "tg8"), "llama-batched-bench B=8", goals[2])
    faster("2", "eight streams through MQTT, default sampling", (ours, "eight"), (theirs, "eight"), "llama-server", goals[3])

    first, over = median(ours, "ttft_ms"), median(ours, "overhead_ms")
    their_first, their_over = median(theirs, "ttft_ms"), median(theirs, "overhead_ms")
    row(
        "3",
        "first token of a 24-word prompt − prefill, p50, fsync included",
        f"{first:.1f} − {median(ours, 'prefill_ms'):.1f} ms",
        f"{their_first:.1f} − {median(theirs, 'prefill_ms'):.1f} ms (llama-server)",
        f"{over:.1f} ms against {their_over:.1f} ms",
        "≤ 3 ms, first token before llama-server's",
        over <= 3 and first < their_first,
    )
    gap = ratio((ours, "stall_ms"), (theirs, "stall_ms"))
    row(
        "4",
        f"longest pause of 7 streams while {median(ours, 'n_long'):.0f} tokens are read",
        f"{median(ours, 'stall_ms'):.0f} ms (read in {median(ours, 'long_ttft_ms') / 1000:.1f} s)",
        f"{median(theirs, 'stall_ms'):.0f} ms (read in {median(theirs, 'long_ttft_ms') / 1000:.1f} s) (llama-server)",
        f"{gap:.2f}",
        "≤ 0.15",
        gap <= 0.15,
    )
    again = ratio((ours, "second_ms"), (ours, "cold_ms"))
    row(
        "5",
        "second turn of a conversation of 2,000 tokens: first token ÷ cold",
        f"{median(ours, 'second_ms'):.0f} of {median(ours, 'cold_ms'):.0f} ms",
        f"{median(theirs, 'second_ms'):.0f} of {median(theirs, 'cold_ms'):.0f} ms (llama-server)",
        f"{again:.3f}",
        f"≤ {goals[4]}",
        again <= goals[4],
    )
    resume, load = median("resume_ms"), median("load_ms")
    prefill = median(ours, "prefill_ms")
    if load is None:
        row("7", "worker killed in mid-stream → next token", f"{resume:.0f} ms", "–", "load time unknown", "≤ load + prefill + 200 ms", False)
    else:
        limit = load + prefill + 200
        row("7", "worker killed in mid-stream → next token", f"{resume:.0f} ms", f"load {load:.0f} + prefill {prefill:.0f} ms", f"{resume - load - prefill:+.0f} ms", "≤ load + prefill + 200 ms", resume <= limit)
    idle, cpu = median("idle_mib"), median("idle_cpu")
    row("8", "supervisor's resident memory", f"{idle:.1f} MiB", "–", f"{idle:.1f} MiB", "≤ 30 MiB", idle <= 30)
    if "accepts" in rounds[0]:
        queued = median("queued_mib")
        row("8", "… with 1,000 queued jobs", f"{queued:.1f} MiB", "–", f"{queued:.1f} MiB", "≤ 40 MiB", queued <= 40)
    row("8", "idle processor use of all processes", f"{cpu:.2%}", "–", f"{cpu:.2%} of a core", "≤ 0.5 %", cpu <= 0.005)
    if "accepts" in rounds[0]:
        accepts = median("accepts")
        row("9", "durable accepts, while eight streams decode", f"{accepts:.0f}/s", "–", f"{accepts:.0f}/s", "≥ 500/s", accepts >= 500)

    repo = pathlib.Path(__file__).parents[1]
    commit = args.commit or subprocess.run(["git", "-C", repo, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    cpu_line = next(line for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    memory_gib = int(pathlib.Path("/proc/meminfo").read_text().split()[1]) / 1024 / 1024
    cores = len(os.sched_getaffinity(0))
    broker = {"child": "the embedded broker", "mosquitto": "Mosquitto"}[args.broker]
    machine = f"{cpu_line.split(':')[1].strip()}, {cores} cores, {memory_gib:.0f} GiB, Linux {platform.release()}"
    command = f"benches/vs_llama_cpp.sh --rounds {len(rounds)} --threads {args.threads} --broker {args.broker} models/{args.model.name}"
    if args.hardware == "cuda":
        machine = f"{gpu()}, {machine}"
        command = f"bench-gpu.sh --rounds {len(rounds)}"
    lines = [
        f"{datetime.date.today()}, commit {commit}. {machine}. "
        f"{args.model.name}, {args.threads} threads, {broker}, llama.cpp b11434 as peer. Medians of {len(rounds)} round(s)"
        + (f"; others used up to {busy:.0%} of the processor" if busy > 0.05 else "")
        + ".",
        "",
        f"    {command}",
        "",
        "| goal | measure | Orinoco | peer | result | wanted | met |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines)


def gpu():
    """The first GPU's name and driver, by nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    name, driver = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0].split(", ")
    return f"{name}, driver {driver}"


def page(path, key, text):
    """Puts the text between the markers of `key`, which are made below "Results" where they are missing."""
    begin, end = f"<!-- vs_llama_cpp {key}: begin -->", f"<!-- vs_llama_cpp {key}: end -->"
    old = path.read_text()
    if begin in old and end in old:
        head, _, rest = old.partition(begin)
        tail = rest.partition(end)[2]
    else:
        head, results, tail = old.partition("## Results\n")
        head += results + f"\n### {key}\n\n"
        tail = "\n" + tail
    path.write_text(f"{head}{begin}\n{text}\n{end}{tail}")
    print(f"written to {path}")
