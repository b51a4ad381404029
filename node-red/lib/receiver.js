// PURE: how the messages of one answer become its text.
//
// An answer is that of the node that first said something; messages of others are not part of it. Messages
// of a lower attempt are void; a higher attempt starts the text anew; within an attempt a seq that was seen
// is a repeat, a seq that is skipped is a gap. The first final ends the answer, and its SHA-256 is that of
// the text put together here. The same rules stand in src/receive.rs; tests/wire/plays.json holds both to them.
"use strict";

const crypto = require("node:crypto");
const { isName } = require("./topics");

/** Longest text that is put together, in characters; 32,768 tokens, the most that a node makes, are far below. */
const TEXT_MAX = 4 * 1024 * 1024;

/** A message that breaks the contract. `code` is malformed, gap, digest or too_long. */
class HearError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

function parse(payload) {
  let body;
  try {
    body = JSON.parse(payload.toString());
  } catch (error) {
    throw new HearError("malformed", `${payload.length} bytes are no answer: ${error.message}`);
  }
  const good = body !== null && typeof body === "object"
    && Number.isSafeInteger(body.seq) && body.seq >= 0
    && Number.isSafeInteger(body.attempt) && body.attempt >= 0
    && typeof body.final === "boolean"
    && body.orinoco !== null && typeof body.orinoco === "object" && isName(body.orinoco.node)
    && (body.error === undefined || (body.error !== null && typeof body.error === "object" && body.final));
  if (!good) throw new HearError("malformed", `${payload.length} bytes are no answer: seq, attempt, final or orinoco.node is missing`);
  return body;
}

/** The text that a message carries. */
function pieceOf(body) {
  const choice = Array.isArray(body.choices) ? body.choices[0] : undefined;
  const piece = choice?.delta?.content ?? choice?.message?.content ?? choice?.text ?? "";
  return typeof piece === "string" ? piece : "";
}

/** Adds the pieces of tool calls, as OpenAI streams them: by index, arguments in parts. */
function addToolCalls(calls, body) {
  const choice = Array.isArray(body.choices) ? body.choices[0] : undefined;
  const pieces = choice?.delta?.tool_calls ?? choice?.message?.tool_calls;
  if (!Array.isArray(pieces)) return;
  pieces.slice(0, 64).forEach((piece, n) => {
    const index = Number.isSafeInteger(piece?.index) && piece.index >= 0 && piece.index < 64 ? piece.index : n;
    const call = (calls[index] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
    if (typeof piece.id === "string") call.id = piece.id;
    if (typeof piece.function?.name === "string") call.function.name += piece.function.name;
    if (typeof piece.function?.arguments === "string") call.function.arguments += piece.function.arguments;
  });
}

class Receiver {
  /** isOfPool: a refusal that names a time to ask again is no end, since another node may take the request. */
  constructor(isOfPool = false) {
    this.isOfPool = isOfPool;
    this.node = undefined;
    this.clear();
    this.hasBegun = false;
  }

  clear() {
    this.textOf = undefined;
    this.attempt = 0;
    this.seqNext = 0;
    this.text = "";
    this.toolCalls = [];
    this.end = undefined;
  }

  /** The node that answers is gone: the next one to begin is followed, be it another or the same. */
  release() {
    if (!this.end) this.node = undefined;
  }

  /** The answer is worth nothing, its end included: what comes next starts it over. */
  void() {
    this.node = undefined;
    this.clear();
  }

  /**
   * Takes the next message of this answer's topic. Returns what it meant:
   * {what: "accepted" | "text" | "started_over" | "end" | "repeat" | "refused" | "other_node", ...}.
   * Throws HearError when it breaks the contract; the state is then as before it.
   */
  hear(payload) {
    const body = parse(payload);
    const node = body.orinoco.node;
    if (this.node !== undefined && this.node !== node) {
      return { what: "other_node", node, isFirst: body.seq === 0 && !body.final, isFinal: body.final };
    }
    if (this.node === undefined) {
      if (body.error && this.isOfPool && Number.isFinite(body.error.retry_after_ms)) {
        return { what: "refused", error: body.error };
      }
      if (body.seq > 0 && !body.final && this.textOf !== node) {
        throw new HearError("gap", `message ${body.seq} came where 0 was due`);
      }
    }
    if (this.end) return { what: "repeat" };
    const isOther = this.textOf !== undefined && this.textOf !== node;
    if (!isOther && body.attempt < this.attempt) return { what: "repeat" };
    const isAnew = isOther || body.attempt > this.attempt;
    const startedOver = this.hasBegun && isAnew;
    let heard;
    if (isAnew) {
      // Only a message that keeps the contract takes the place of what is there.
      const anew = new Receiver(this.isOfPool);
      anew.attempt = body.attempt;
      heard = anew.next(body, payload);
      Object.assign(this, { attempt: anew.attempt, seqNext: anew.seqNext, text: anew.text, toolCalls: anew.toolCalls, end: anew.end });
    } else {
      heard = this.next(body, payload);
    }
    this.node = node;
    this.textOf = node;
    this.hasBegun = true;
    return startedOver && heard.what === "accepted" ? { ...heard, what: "started_over" } : heard;
  }

  next(body, payload) {
    if (body.seq < this.seqNext) return { what: "repeat" };
    if (body.seq > this.seqNext && !body.error) {
      throw new HearError("gap", `message ${body.seq} came where ${this.seqNext} was due`);
    }
    if (body.error) {
      this.seqNext = body.seq + 1;
      this.end = { payload, body, error: body.error };
      return { what: "end", end: this.end };
    }
    const piece = pieceOf(body);
    const text = this.text + piece;
    if (text.length > TEXT_MAX) throw new HearError("too_long", `an answer of more than ${TEXT_MAX} characters`);
    const expected = body.orinoco.text_sha256;
    if (body.final && typeof expected === "string") {
      const calculated = crypto.createHash("sha256").update(text).digest("hex");
      if (calculated !== expected) {
        throw new HearError("digest", `the text received has SHA-256 ${calculated}, the final says ${expected}`);
      }
    }
    this.text = text;
    this.seqNext = body.seq + 1;
    addToolCalls(this.toolCalls, body);
    if (body.final) {
      this.end = { payload, body };
      return { what: "end", end: this.end, piece };
    }
    return body.seq === 0 ? { what: "accepted", body } : { what: "text", piece, body };
  }
}

module.exports = { Receiver, HearError };
