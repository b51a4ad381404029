// PURE: conversations that a chat node remembers, bounded in turns, bytes and number.
"use strict";

/** Conversations at most; the one unused for the longest goes first. */
const SESSIONS_MAX = 100;
/** Bytes of one conversation, below half of what a request may have by default (131,072). */
const SESSION_BYTES_MAX = 60_000;

class Sessions {
  /** nTurns: questions with their answers that are kept of each conversation. */
  constructor(nTurns) {
    this.nTurns = nTurns;
    this.kept = new Map();
  }

  turns(name) {
    return (this.kept.get(name) ?? []).flat();
  }

  /** Adds a question with its answer, both arrays of messages. */
  add(name, messages) {
    const turns = [...(this.kept.get(name) ?? []), messages].slice(-this.nTurns);
    while (turns.length > 1 && Buffer.byteLength(JSON.stringify(turns)) > SESSION_BYTES_MAX) turns.shift();
    this.kept.delete(name);
    if (this.nTurns === 0 || Buffer.byteLength(JSON.stringify(turns)) > SESSION_BYTES_MAX) return;
    this.kept.set(name, turns);
    if (this.kept.size > SESSIONS_MAX) this.kept.delete(this.kept.keys().next().value);
  }

  forget(name) {
    if (name === undefined) this.kept.clear();
    else this.kept.delete(name);
  }
}

module.exports = { Sessions };
