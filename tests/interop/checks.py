"""What an answer of protocol v1 must look like, and the requests that every client tries.

A client brings `exchange(op, body, cancel_after=None)`, which publishes one request and returns the
answer's messages in order; everything else is here, so that all clients are held to the same rules.
"""

import hashlib
import json
import secrets
from dataclasses import dataclass, field

N_TOKENS = 24
TIMEOUT_S = 60


class Broken(Exception):
    """The answer breaks the contract."""


def check(condition, message):
    if not condition:
        raise Broken(message)


@dataclass
class Message:
    """One message of an answer; `props` only with MQTT 5."""

    payload: bytes
    props: dict | None = None


@dataclass
class Exchange:
    """A request and all that came back."""

    request_id: str
    messages: list = field(default_factory=list)

    def is_over(self, op):
        """Whether the last message is the final one."""
        if not self.messages:
            return False
        last = self.messages[-1].payload
        if op == "text":
            return True
        if op == "text-stream":
            return last == b"" or last.startswith(b"!")
        return json.loads(last).get("final") is True


def new_id(client):
    """Ids are never used twice, not even by two runs of this test within ten minutes."""
    return f"{client}-{secrets.token_hex(6)}"


def check_properties(exchange, node, correlation):
    """MQTT 5: each packet says what it is."""
    last = len(exchange.messages) - 1
    for n, message in enumerate(exchange.messages):
        props = message.props
        check(props["correlation"] == correlation, f"message {n}: correlation {props['correlation']!r}, sent {correlation!r}")
        check(props["user"].get("seq") == str(n), f"message {n}: user property seq is {props['user'].get('seq')!r}")
        check(props["user"].get("node") == node, f"message {n}: user property node is {props['user'].get('node')!r}")
        check((props["user"].get("final") == "1") == (n == last), f"message {n} of {last}: final is {props['user'].get('final')!r}")
        check(props["content_type"] in ("application/json", "text/plain"), f"message {n}: content type {props['content_type']!r}")
    check("status" in exchange.messages[last].props["user"], "the final has no user property status")


def json_answer(exchange):
    """The bodies of an answer in JSON: ids, contiguous seq, one final, which is the last."""
    bodies = [json.loads(message.payload) for message in exchange.messages]
    for n, body in enumerate(bodies):
        check(body["id"] == exchange.request_id, f"id is {body['id']}, sent {exchange.request_id}")
        check(body["seq"] == n, f"message {n} has seq {body['seq']}")
        check(body["final"] == (n == len(bodies) - 1), f"message {n} of {len(bodies)}: final is {body['final']}")
        check(body["attempt"] == bodies[0]["attempt"], "the attempt changed without a restart")
    return bodies


def text_of(body):
    choice = body["choices"][0]
    return choice.get("text") or choice.get("delta", {}).get("content") or ""


def check_stream(exchange, finish):
    """accepted, chunks, final; the chunks' text has the SHA-256 that the final tells."""
    bodies = json_answer(exchange)
    check("error" not in bodies[-1], f"the answer is an error: {bodies[-1].get('error')}")
    check(len(bodies) >= 3, f"{len(bodies)} messages; expected accepted, at least one chunk, and the final")
    accepted, final = bodies[0], bodies[-1]
    check(text_of(accepted) == "" and "queue" in accepted["orinoco"], f"the first message is not accepted: {accepted}")
    text = "".join(text_of(body) for body in bodies)
    check(text != "", "the answer has no text")
    digest = hashlib.sha256(text.encode()).hexdigest()
    check(final["orinoco"]["text_sha256"] == digest, f"text_sha256 is {final['orinoco']['text_sha256']}, the chunks give {digest}")
    reason = final["choices"][0]["finish_reason"]
    check(reason in finish, f"finish_reason is {reason}, expected {' or '.join(finish)}")
    check(all(body["choices"][0]["finish_reason"] is None for body in bodies[:-1]), "finish_reason before the final")
    check(final["orinoco"]["n_chunks"] == len(bodies) - 2, f"n_chunks is {final['orinoco']['n_chunks']}, came {len(bodies) - 2}")
    usage = final["usage"]
    check(usage["prompt_tokens"] > 0 and usage["completion_tokens"] > 0, f"usage is {usage}")
    check(usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"], f"usage does not add up: {usage}")
    return bodies


def chat_plain(exchange):
    check_stream(exchange, ["stop", "length"])


def chat_json(exchange):
    bodies = check_stream(exchange, ["stop", "length"])
    check(bodies[0]["object"] == "chat.completion.chunk", f"object is {bodies[0]['object']}")
    check(bodies[-1]["usage"]["completion_tokens"] <= N_TOKENS, f"more than max_tokens: {bodies[-1]['usage']}")


def chat_whole(exchange):
    bodies = json_answer(exchange)
    final = bodies[-1]
    check(final.get("object") == "chat.completion", f"the answer is {final}")
    check(final["choices"][0]["message"]["content"] != "", "the answer has no text")


def complete(exchange):
    bodies = check_stream(exchange, ["stop", "length"])
    check(bodies[0]["object"] == "text_completion", f"object is {bodies[0]['object']}")


def text(exchange):
    check(len(exchange.messages) == 1, f"{len(exchange.messages)} messages, expected one")
    payload = exchange.messages[0].payload
    check(0 < len(payload) <= 1024 and not payload.startswith(b"!"), f"the answer is {payload!r}")


def text_stream(exchange):
    *pieces, end = [message.payload for message in exchange.messages]
    check(end == b"", f"the last message is {end!r}, expected an empty one")
    check(pieces and all(pieces), f"the pieces are {pieces!r}")
    b"".join(pieces).decode()


def text_error(exchange):
    check(len(exchange.messages) == 1, f"{len(exchange.messages)} messages, expected one")
    line = exchange.messages[0].payload
    check(line.startswith(b"!invalid_request "), f"the answer is {line!r}, expected !invalid_request …")


def tokenize(exchange):
    (body,) = json_answer(exchange)
    check(body.get("object") == "tokenize" and body["n_tokens"] == len(body["tokens"]) > 0, f"the answer is {body}")
    check(all(isinstance(token, int) for token in body["tokens"]), f"the ids are {body['tokens']}")


def cancelled(exchange):
    bodies = check_stream(exchange, ["cancelled"])
    made = bodies[-1]["usage"]["completion_tokens"]
    check(made < 1500, f"{made} tokens were made before the cancel took effect")


def error(code):
    def checker(exchange):
        bodies = json_answer(exchange)
        found = bodies[-1].get("error", {}).get("code")
        check(found == code, f"error.code is {found}, expected {code}: {bodies[-1]}")

    return checker


MESSAGES = [{"role": "user", "content": "Name three rivers."}]
CHAT = {"messages": MESSAGES, "max_tokens": N_TOKENS, "temperature": 0}

# name, op, body, check, how many messages to wait for before a cancel is sent
FLOWS = [
    ("chat, plain text", "chat", "hello", chat_plain, None),
    ("chat, JSON", "chat", json.dumps(CHAT), chat_json, None),
    ("chat, not streamed", "chat", json.dumps(CHAT | {"stream": False}), chat_whole, None),
    ("complete", "complete", json.dumps({"prompt": "The river", "max_tokens": N_TOKENS}), complete, None),
    ("text", "text", "Say yes.", text, None),
    ("text-stream", "text-stream", "Name three rivers.", text_stream, None),
    ("tokenize", "tokenize", "The river", tokenize, None),
    ("cancel", "chat", json.dumps({"messages": MESSAGES, "max_tokens": 1800, "ignore_eos": True}), cancelled, 3),
    ("error, bad body", "chat", '{"messages": 3}', error("invalid_request"), None),
    ("error, unknown op", "sing", "la", error("unknown_op"), None),
    ("error, empty text", "text", "", text_error, None),
]


def run(client, exchange, only=None):
    """Runs the flows through `exchange`; returns how many failed."""
    failed = 0
    for name, op, body, checker, cancel_after in FLOWS:
        if only and name not in only:
            continue
        try:
            checker(exchange(op, body, cancel_after))
            print(f"ok      {client}: {name}", flush=True)
        except Exception as problem:  # any surprise is a failed flow, and the next one still runs
            failed += 1
            print(f"FAILED  {client}: {name}: {type(problem).__name__}: {problem}", flush=True)
    return failed
