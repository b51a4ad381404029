// PURE: what a requester does so that its question is answered once: asks, asks again, follows one node,
// calls the others off, and turns to another when its node is gone (docs/protocol.md, "Retries" and "Pools").
//
// Feed it with every message of the answer's topic (hear), with what nodes say of their presence (presence)
// and with the time in milliseconds; do what poll() says. A request to a node is the simple case: there is
// nobody to turn to, and each refusal is the end. The same decisions stand in src/receive/requester.rs.
"use strict";

const { Receiver, HearError } = require("./receiver");

/** Without `accepted` the request is published again after this time, and later each time by half more. */
const ACCEPT_WAIT = 2000;
const ACCEPT_WAIT_MAX = 5000;
/** After a refusal: at least this, doubled with each further one in a row; at most the other. */
const REFUSED_WAIT = 100;
const REFUSED_WAIT_MAX = 30_000;
/** A node that is said to be offline may come back within this time. */
const OFFLINE_GRACE = 3000;
/** A node that says nothing for this long is asked whether it has the request ... */
const SILENCE = 10_000;
/** ... and is given up, in a pool, when it does not answer in this time. */
const PROBE_WAIT = 4000;
const NODES_MAX = 64;

class Requester {
  constructor(isOfPool, now) {
    this.isOfPool = isOfPool;
    this.receiver = new Receiver(isOfPool);
    this.actions = [];
    this.askAt = now;
    this.pause = ACCEPT_WAIT;
    this.nRefused = 0;
    this.heardAt = now;
    this.probedAt = undefined;
    this.offlineSince = undefined;
    this.isTorn = false;
    this.isCalledOff = false;
    this.offline = new Set();
    /** Nodes that took the request, are not followed and were told so. */
    this.told = new Set();
    this.givenUp = undefined;
  }

  /** The next thing to publish now: {what: "ask" | "cancel", node?}; without node to where it was asked first. */
  poll(now) {
    for (;;) {
      if (this.actions.length > 0) return this.actions.shift();
      if (this.receiver.end || this.isCalledOff) return undefined;
      const node = this.receiver.node;
      if (node === undefined) {
        if (now < this.askAt) return undefined;
        this.askAt = now + this.pause;
        this.pause = Math.min(this.pause * 1.5, ACCEPT_WAIT_MAX);
        return { what: "ask" };
      }
      const gone = this.goneAt();
      if (gone !== undefined && gone <= now) {
        if (this.told.has(node)) {
          this.receiver.void();
        } else {
          this.receiver.release();
          this.givenUp = node;
        }
        this.askAgain(now);
        continue;
      }
      const probe = this.probeAt();
      if (probe <= now) {
        this.probedAt = now;
        return { what: "ask", node };
      }
      return undefined;
    }
  }

  /** When to poll again if nothing is heard before; undefined: never. */
  wake() {
    if (this.actions.length > 0) return 0;
    if (this.receiver.end || this.isCalledOff) return undefined;
    if (this.receiver.node === undefined) return this.askAt;
    return Math.min(this.goneAt() ?? Infinity, this.probeAt());
  }

  /** Takes the next message of the answer's topic; what is missing is asked for again. */
  hear(payload, now) {
    const wasFollowing = this.receiver.node !== undefined;
    let heard;
    try {
      heard = this.receiver.hear(payload);
    } catch (error) {
      if (!(error instanceof HearError) || error.code !== "gap") throw error;
      const node = this.receiver.node;
      if (node !== undefined && this.told.has(node)) return this.void(node, now);
      if (node !== undefined) {
        this.isTorn = true;
        this.alive(now);
      }
      return { what: "repeat" };
    }
    const node = this.receiver.node;
    if (heard.what === "end" && this.isVoid(node)) return this.void(node, now);
    switch (heard.what) {
      case "refused":
        this.refused(heard.error, now);
        break;
      case "other_node":
        if (heard.isFirst || !(heard.isFinal || this.told.has(heard.node))) this.tell(heard.node);
        break;
      case "repeat":
        this.alive(now);
        break;
      default:
        this.isTorn = false;
        this.alive(now);
    }
    if (!wasFollowing && this.receiver.node !== undefined) this.follow(this.receiver.node, now);
    return heard;
  }

  /** What a node says of itself on its status topic. */
  presence(node, state, now) {
    const isOffline = state === "offline";
    if (isOffline && this.offline.size < NODES_MAX) this.offline.add(node);
    else if (!isOffline) this.offline.delete(node);
    if (this.receiver.node === node) this.offlineSince = isOffline ? (this.offlineSince ?? now) : undefined;
  }

  /** The session with the broker was lost, and maybe messages with it. */
  sessionLost(now) {
    if (this.receiver.end || this.isCalledOff) return;
    const node = this.receiver.node;
    if (node === undefined) {
      this.askAgain(now);
    } else {
      this.probedAt = now;
      this.actions.push({ what: "ask", node });
    }
  }

  /** The answer is not wanted any more. It still ends, as `cancelled`, where a node has it. */
  cancel() {
    if (this.isCalledOff) return;
    this.isCalledOff = true;
    this.actions.push({ what: "cancel", node: this.receiver.node });
  }

  follow(node, now) {
    this.offlineSince = this.offline.has(node) ? now : undefined;
    if (!this.told.has(node) && this.givenUp !== undefined) {
      const old = this.givenUp;
      this.givenUp = undefined;
      if (old !== node) this.tell(old);
    }
    // It took the request after the cancel.
    if (this.isCalledOff && !this.receiver.end) this.actions.push({ what: "cancel", node });
  }

  tell(node) {
    if (this.told.size >= NODES_MAX && !this.told.has(node)) return;
    this.told.add(node);
    this.actions.push({ what: "cancel", node });
  }

  /** Whether the end is the `cancelled` that we asked a node for when another one was followed. */
  isVoid(node) {
    const end = this.receiver.end;
    const isCancelled = end.error ? end.error.code === "cancelled" : end.body.choices?.[0]?.finish_reason === "cancelled";
    return isCancelled && !this.isCalledOff && this.told.has(node);
  }

  void(node, now) {
    const error = { code: "cancelled", message: `node ${node} was told before not to answer`, type: "cancelled" };
    this.receiver.void();
    this.refused(error, now);
    return { what: "refused", error };
  }

  refused(error, now) {
    const wanted = Number.isFinite(error.retry_after_ms) ? error.retry_after_ms : 0;
    const least = REFUSED_WAIT * 2 ** Math.min(this.nRefused, 5);
    this.nRefused += 1;
    this.askAt = now + Math.min(Math.max(wanted, least), REFUSED_WAIT_MAX);
  }

  askAgain(now) {
    this.askAt = now;
    this.pause = ACCEPT_WAIT;
    this.nRefused = 0;
  }

  alive(now) {
    this.heardAt = now;
    this.probedAt = undefined;
  }

  goneAt() {
    if (!this.isOfPool) return undefined;
    const offline = this.offlineSince === undefined ? Infinity : Math.max(this.offlineSince, this.heardAt) + OFFLINE_GRACE;
    const silent = this.probedAt === undefined ? Infinity : this.probedAt + PROBE_WAIT;
    const at = Math.min(offline, silent);
    return at === Infinity ? undefined : at;
  }

  probeAt() {
    if (this.probedAt !== undefined) return this.isOfPool ? Infinity : this.probedAt + SILENCE;
    return this.heardAt + (this.isTorn ? ACCEPT_WAIT : SILENCE);
  }
}

module.exports = { Requester };
