// One question until its answer has ended: gives the decisions of a Requester time and a connection.
//
// Never does: Node-RED, topics of others. The connection is {connected, publish(message, done)}.
"use strict";

const { Requester } = require("./requester");
const { isName } = require("./topics");

/** A question that was called off ends here after this time, whether or not the node confirms it. */
const CANCEL_WAIT_MS = 5000;

/** An error of this package, in the shape of the wire's errors. */
function failure(code, message, more = {}) {
  return { code, message, type: "client_error", ...more };
}

class Exchange {
  /**
   * question: {topics, target, user, op, id, body (string), timeoutMs, expirySeconds}
   * connection: as above
   * on: {accepted({node, queue, model}), text(piece), startedOver(), refused(error), end(result)}; end comes once.
   *
   * The result: {ok: true, text, body, node, toolCalls, attempt} or {ok: false, error, text, node}.
   */
  constructor(question, connection, on, now = () => Date.now()) {
    this.question = question;
    this.connection = connection;
    this.on = on;
    this.now = now;
    this.requester = new Requester(question.target.kind === "pool", now());
    this.isOver = false;
    this.timer = undefined;
    this.reason = undefined;
    this.waiters = [];
    if (question.timeoutMs > 0) {
      this.deadline = setTimeout(() => {
        this.cancel(failure("timeout", `no whole answer within ${question.timeoutMs / 1000} s; the request was called off`));
      }, question.timeoutMs);
    }
    this.turn();
  }

  get id() {
    return this.question.id;
  }

  hear(payload) {
    if (this.isOver) return;
    let heard;
    try {
      heard = this.requester.hear(payload, this.now());
    } catch (error) {
      // Not this answer's, or broken on its way: the real one is asked for again when nothing else comes.
      this.on.strange?.(error);
      return;
    }
    switch (heard.what) {
      case "accepted":
        this.on.accepted?.(acceptance(heard.body));
        break;
      case "started_over":
        this.on.startedOver?.();
        this.on.accepted?.(acceptance(heard.body));
        break;
      case "text":
        if (heard.piece !== "" || heard.body.choices?.[0]?.delta?.tool_calls) this.on.text?.(heard.piece, heard.body);
        break;
      case "refused":
        this.on.refused?.(heard.error);
        break;
      case "end":
        if (heard.piece && heard.end.body.object === "chat.completion.chunk") this.on.text?.(heard.piece, heard.end.body);
        this.finish(this.result());
        return;
      default:
    }
    this.turn();
  }

  presence(node, state) {
    if (this.isOver) return;
    this.requester.presence(node, state, this.now());
    this.turn();
  }

  /** The connection is back; what was published meanwhile may be lost. */
  reconnected() {
    if (this.isOver) return;
    if (this.requester.isCalledOff) this.requester.actions.push({ what: "cancel", node: this.requester.receiver.node });
    else this.requester.sessionLost(this.now());
    this.turn();
  }

  /** Calls the request off. `told` is called when the broker has the cancel, or cannot be told. */
  cancel(reason = failure("cancelled", "called off"), told) {
    if (this.isOver) {
      told?.(true);
      return;
    }
    if (told) this.waiters.push(told);
    if (this.requester.isCalledOff) return;
    this.reason = reason;
    clearTimeout(this.deadline);
    this.requester.cancel();
    this.deadline = setTimeout(() => this.finish(this.cancelled()), CANCEL_WAIT_MS);
    this.turn();
  }

  cancelled() {
    const { receiver } = this.requester;
    return { ok: false, error: this.reason, text: receiver.text, node: receiver.node };
  }

  result() {
    const { receiver } = this.requester;
    const { body, error } = receiver.end;
    if (error) {
      const reason = this.reason && error.code === "cancelled" ? this.reason : error;
      return { ok: false, error: reason, text: receiver.text, node: receiver.node, body };
    }
    if (this.reason && body.choices?.[0]?.finish_reason === "cancelled") return { ...this.cancelled(), body };
    return {
      ok: true, text: receiver.text, body, node: receiver.node, attempt: receiver.attempt,
      toolCalls: receiver.toolCalls.filter(Boolean),
    };
  }

  finish(result) {
    if (this.isOver) return;
    this.isOver = true;
    clearTimeout(this.timer);
    clearTimeout(this.deadline);
    this.flushWaiters(true);
    this.on.end(result);
  }

  flushWaiters(isTold) {
    for (const told of this.waiters.splice(0)) told(isTold);
  }

  /** Does what is to be done now, and sets the clock for what comes next. */
  turn() {
    if (this.isOver) return;
    clearTimeout(this.timer);
    if (!this.connection.connected) {
      // Nothing can be said; `reconnected` comes. A cancel is owed by whoever holds the connection.
      if (this.requester.isCalledOff) this.flushWaiters(false);
      return;
    }
    let action;
    while ((action = this.requester.poll(this.now()))) this.publish(action);
    const at = this.requester.wake();
    if (at !== undefined && at !== Infinity) this.timer = setTimeout(() => this.turn(), Math.max(at - this.now(), 0));
  }

  publish({ what, node }) {
    const { topics, target, user, op, id, body, expirySeconds } = this.question;
    const to = node === undefined ? target : { kind: "node", name: node };
    if (what === "cancel") {
      this.connection.publish({ topic: topics.cancel(to, user, id), payload: "", qos: 1 }, () => this.flushWaiters(true));
      return;
    }
    const message = { topic: topics.request(to, user, op, id), payload: body, qos: 1, contentType: "application/json" };
    // For brokers that speak MQTT 5: nobody answers a question whose asker has given up.
    if (expirySeconds > 0) message.messageExpiryInterval = expirySeconds;
    this.connection.publish(message, () => {});
  }
}

function acceptance(body) {
  const queue = body.orinoco.queue;
  return { node: isName(body.orinoco.node) ? body.orinoco.node : undefined, queue: Number.isFinite(queue) ? queue : 0, model: body.model };
}

module.exports = { Exchange, failure };
