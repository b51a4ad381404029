#!/usr/bin/env python3
"""Renders the transcript with Python's jinja2, as transformers' apply_chat_template does: what the engine is
compared with (src/template/golden.rs).   make.py TEMPLATES_DIR    (needs jinja2)"""

import json
import pathlib
import sys

from jinja2 import Environment
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent
TEMPLATES = {
    "hermes3": "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "qwen25": "Qwen-Qwen2.5-7B-Instruct",
    "llama32": "meta-llama-Llama-3.2-3B-Instruct",
    "mistral-nemo": "mistralai-Mistral-Nemo-Instruct-2407",
}


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise ValueError(message)


def main():
    transcript = json.loads((HERE / "transcript.json").read_text())
    env: Environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda _format: "TODAY"
    for name, file in TEMPLATES.items():
        template = env.from_string((pathlib.Path(sys.argv[1]) / f"{file}.jinja").read_text())
        messages = json.loads(json.dumps(transcript["messages"]))
        for message in messages:
            for call in message.get("tool_calls", []):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        text = template.render(
            messages=messages, tools=transcript["tools"], add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
        )
        (HERE / f"{name}.txt").write_text(text)


main()
