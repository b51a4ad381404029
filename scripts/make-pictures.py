#!/usr/bin/env python3
"""Draws the pictures of the guide from what was measured:  make-pictures.py [--check]

    docs/images/architecture.svg   from the words in this file
    docs/images/streams.svg        from the tables in docs/benchmarks.md
    docs/images/ladder.svg         from docs/images/ladder.json, which benches/pressure.py --trace recorded

Standard library only. --check: says with exit code 1 which picture is not what would be drawn now.
"""

import json
import pathlib
import re
import sys
from html import escape

REPO = pathlib.Path(__file__).resolve().parent.parent
IMAGES = REPO / "docs/images"
INK, DIM, LINE, GOOD, WARN, BAD = "#1f3a44", "#5f7178", "#c9d3d6", "#1f7a70", "#c98a1b", "#b3261e"
GIB = 1 << 30


class Svg:
    def __init__(self, width, height, title):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" font-family="system-ui, sans-serif" font-size="13">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        ]

    def text(self, x, y, words, anchor="start", color=INK, size=13, weight=400):
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}" font-size="{size}" '
            f'font-weight="{weight}">{escape(words)}</text>'
        )

    def line(self, x1, y1, x2, y2, color=LINE, width=1.0, dash=None, arrow=False):
        more = f' stroke-dasharray="{dash}"' if dash else ""
        more += ' marker-end="url(#arrow)"' if arrow else ""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}"{more}/>'
        )

    def path(self, points, color, width=2.0):
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{places}" fill="none" stroke="{color}" stroke-width="{width}"/>')

    def dot(self, x, y, color, r=4):
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{color}"/>')

    def box(self, x, y, w, h, fill="#f4f7f7", stroke=LINE, dash=None):
        more = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" fill="{fill}" stroke="{stroke}"{more}/>')

    def arrows(self):
        self.parts.append(
            f'<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" fill="{DIM}"/></marker></defs>'
        )

    def done(self):
        return "\n".join([*self.parts, "</svg>", ""])


def architecture():
    svg = Svg(900, 400, "How a prompt becomes tokens: devices, broker, supervisor, worker")
    svg.arrows()
    svg.box(20, 110, 150, 190)
    svg.text(95, 136, "Plant", "middle", weight=600)
    for n, words in enumerate(["microcontrollers", "PLCs, gateways", "Node-RED", "Home Assistant", "orinoco top"]):
        svg.text(95, 168 + 26 * n, words, "middle", DIM)
    svg.box(250, 150, 110, 110)
    svg.text(305, 180, "Broker", "middle", weight=600)
    svg.text(305, 206, "Mosquitto,", "middle", DIM)
    svg.text(305, 226, "or the own one", "middle", DIM)
    svg.box(430, 40, 450, 330, fill="#ffffff", stroke=GOOD, dash="5 4")
    svg.text(446, 64, "Jetson Orin", color=GOOD, weight=600)
    svg.box(450, 80, 200, 270)
    svg.text(550, 106, "Supervisor", "middle", weight=600)
    rows = ["queue, limits, roles", "job store, on disk", "memory watchdog", "power mode, heat", "telemetry", "signed updates"]
    for n, words in enumerate(rows):
        svg.text(550, 138 + 26 * n, words, "middle", DIM)
    svg.text(550, 328, "no llama.cpp, no CUDA", "middle", GOOD, 12)
    svg.box(720, 120, 140, 170)
    svg.text(790, 146, "Worker", "middle", weight=600)
    for n, words in enumerate(["llama.cpp", "one model, KV cache", "on the GPU", "no network"]):
        svg.text(790, 178 + 26 * n, words, "middle", DIM)
    for x1, x2, words, below in ((170, 250, "prompt", "tokens"), (360, 450, "prompt", "accepted,"), (650, 720, "jobs", "tokens")):
        svg.line(x1 + 4, 195, x2 - 4, 195, DIM, 1.4, arrow=True)
        svg.line(x2 - 4, 215, x1 + 4, 215, DIM, 1.4, arrow=True)
        svg.text((x1 + x2) / 2, 187, words, "middle", INK, 12)
        svg.text((x1 + x2) / 2, 232, below, "middle", INK, 12)
    svg.text(405, 246, "tokens, final", "middle", INK, 12)
    svg.text(790, 312, "may die: streams go on", "middle", WARN, 12)
    return svg.done()


def axes(svg, area, x_ticks, y_ticks, x_words, y_words):
    left, top, right, bottom = area
    for at, words in y_ticks:
        svg.line(left, at, right, at)
        svg.text(left - 8, at + 4, words, "end", DIM, 12)
    for at, words in x_ticks:
        svg.text(at, bottom + 18, words, "middle", DIM, 12)
    svg.line(left, bottom, right, bottom, DIM)
    svg.text((left + right) / 2, bottom + 38, x_words, "middle", DIM, 12)
    svg.text(left, top - 12, y_words, "start", DIM, 12)


def measured():
    """[(model, {streams: (llama.cpp, over MQTT)})] of the CUDA machine, from the tables of docs/benchmarks.md."""
    page = (REPO / "docs/benchmarks.md").read_text(encoding="utf-8")
    part = page.split("## On a CUDA machine")[1].split("\n## ")[0]
    words = {"one stream (tg128)": 1, "four streams": 4, "eight streams": 8}
    found = []
    for name, block in re.findall(r"\n(SmolLM2[^\n]*|Llama[^\n]*):\n\n((?:\|[^\n]*\n)+)", part):
        rates = {}
        for row in block.splitlines():
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            if cells[0] in words:
                rates[words[cells[0]]] = (float(cells[1]), float(cells[4]))
        found.append((name.replace(", random weights", "").replace(" shape", ""), rates))
    if not found or any(len(rates) < 3 for _, rates in found):
        raise SystemExit("docs/benchmarks.md: the tables of the CUDA machine are not where this looks for them")
    return found


def streams():
    models = measured()
    top = 1.1 * max(max(pair) for _, rates in models for pair in rates.values())
    svg = Svg(760, 380, "Tokens a second against streams, over MQTT and in llama.cpp's own batched benchmark")
    area = (80, 40, 560, 310)
    x = lambda n: area[0] + (area[2] - area[0]) * n / 8.5
    y = lambda rate: area[3] - (area[3] - area[1]) * rate / top
    step = 1000 if top > 2500 else 250
    ticks = [(y(rate), str(rate)) for rate in range(0, int(top), step)]
    axes(svg, area, [(x(n), str(n)) for n in (1, 4, 8)], ticks, "streams side by side (NVIDIA H200)", "tokens a second, all streams together")
    for (name, rates), color in zip(models, (GOOD, "#3b6ea5")):
        order = sorted(rates)
        svg.path([(x(n), y(rates[n][0])) for n in order], LINE, 2)
        svg.path([(x(n), y(rates[n][1])) for n in order], color, 2.5)
        for n in order:
            svg.dot(x(n), y(rates[n][0]), LINE)
            svg.dot(x(n), y(rates[n][1]), color)
            svg.text(x(n), y(rates[n][1]) + 18, f"{rates[n][1]:.0f}", "end" if n == order[-1] else "middle", color, 11)
        last = order[-1]
        svg.text(x(last) + 12, y(rates[last][1]) + 4, name, color=color, weight=600)
        svg.text(x(last) + 12, y(rates[last][1]) + 20, f"each stream {rates[last][1] / last:.0f}", color=DIM, size=12)
    svg.text(area[0], 368, "grey: llama-batched-bench on the same machine. The 3B has random weights. Source: docs/benchmarks.md", color=DIM, size=11)
    return svg.done()


def ladder():
    run = json.loads((IMAGES / "ladder.json").read_text(encoding="utf-8"))
    points, steps, thresholds = run["available_bytes"], run["steps"], run["thresholds"]
    # What follows the last step tells nothing more.
    end = min(points[-1][0], steps[-1][0] + 12)
    points = [point for point in points if point[0] <= end]
    low = min(b for _, b in points) - 0.1 * GIB
    high = max(b for _, b in points) + 0.1 * GIB
    svg = Svg(860, 400, "Available memory while another process eats it, and the steps of the memory watchdog")
    area = (70, 56, 760, 330)
    x = lambda s: area[0] + (area[2] - area[0]) * s / end
    y = lambda b: area[3] - (area[3] - area[1]) * (b - low) / (high - low)
    ticks = []
    n = int(low / GIB * 2) + 1
    while n / 2 * GIB < high:
        ticks.append((y(n / 2 * GIB), f"{n / 2:.1f}"))
        n += 1
    seconds = max(1, round(end / 8))
    axes(svg, area, [(x(s), str(s)) for s in range(0, int(end) + 1, seconds)], ticks, "seconds", "GiB available")
    colors = {"ok": GOOD, "trim": GOOD, "park": WARN, "shrink": WARN, "kill": BAD}
    for level, n_bytes in thresholds.items():
        svg.line(area[0], y(n_bytes), area[2], y(n_bytes), colors[level], 1, "4 4")
        svg.text(area[2] + 8, y(n_bytes) + 4, level, color=colors[level], size=12)
    svg.path([(x(s), y(b)) for s, b in points], INK, 1.6)
    for n, (at, level) in enumerate(steps):
        svg.line(x(at), area[1], x(at), area[3], colors.get(level, DIM), 1)
        svg.text(x(at) + 3, area[1] + 12 + 15 * (n % 3), level, color=colors.get(level, DIM), size=12, weight=600)
    svg.text(area[0], 388, "streams of SmolLM2 go on through all of it; recorded by benches/pressure.py --trace", color=DIM, size=11)
    return svg.done()


def main():
    wrong = []
    for name, draw in (("architecture", architecture), ("streams", streams), ("ladder", ladder)):
        file, picture = IMAGES / f"{name}.svg", draw()
        if "--check" not in sys.argv:
            file.write_text(picture, encoding="utf-8")
        elif not file.exists() or file.read_text(encoding="utf-8") != picture:
            wrong.append(str(file.relative_to(REPO)))
    if wrong:
        sys.exit(f"not as they would be drawn now, run scripts/make-pictures.py: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
