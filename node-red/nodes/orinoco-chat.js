// Asks a model. Outputs: 1 pieces as they are made, 2 the whole answer, 3 errors.
"use strict";

const shown = require("../lib/shown");
const { chat, BodyError } = require("../lib/body");
const { failure } = require("../lib/exchange");
const { Sessions } = require("../lib/sessions");
const { isId, newId } = require("../lib/topics");
const { words } = require("../lib/words");

/** A status a person can read: not more often than this. */
const STATUS_MS = 250;
/** Cancels have this long to leave when flows stop; Node-RED itself waits 15 s for a node. */
const CLOSE_MS = 2000;

module.exports = function (RED) {
  const _ = words(RED);

  class OrinocoChatNode {
    constructor(config) {
      RED.nodes.createNode(this, config);
      this.server = RED.nodes.getNode(config.server);
      this.settings = {
        system: config.system || "",
        template: config.template || "",
        model: config.model || this.server?.model || "",
        maxTokens: config.maxTokens,
        temperature: config.temperature,
        schema: config.schema || "",
        tools: config.tools || "",
        priority: config.priority || "normal",
        deadline: config.deadline,
        session: config.session || "",
      };
      const whole = (value, fallback, least, most) => {
        const given = value === undefined || value === "" ? fallback : Number(value);
        return Number.isFinite(given) ? Math.min(Math.max(Math.round(given), least), most) : fallback;
      };
      this.nMax = whole(config.concurrency, 4, 1, 64);
      this.nWaitMax = whole(config.queue, 16, 0, 1000);
      this.timeoutMs = whole(config.timeout, 120, 0, 86_400) * 1000;
      this.sessions = new Sessions(whole(config.turns, 8, 0, 100));
      this.running = new Map();
      this.waiting = [];
      this.isClosed = false;
      this.statusAt = 0;
      this.hasErrorWire = Array.isArray(config.wires) && Array.isArray(config.wires[2]) && config.wires[2].length > 0;

      this.on("input", (msg, send, done) => this.input(msg, send, done));
      this.on("close", (removed, done) => this.stop(done));
      const link = this.server?.link;
      this.look = () => {
        if (this.running.size === 0 && this.waiting.length === 0 && !this.keepsStatus) this.status(shown.presence(_, link, this.server?.target));
      };
      this.lookAtDocument = ({ rest }) => {
        if (rest === "status" || rest === "state") this.look();
      };
      this.lookAnew = () => {
        this.keepsStatus = false;
        this.look();
        if (!link.connected && this.running.size > 0) this.status({ fill: "yellow", shape: "ring", text: _("orinoco.status.noBrokerWaits") });
      };
      link?.on("document", this.lookAtDocument);
      link?.on("connection", this.lookAnew);
      this.look();
    }

    input(msg, send, done) {
      if (msg.cancel === true) return this.cancel(msg, done);
      if (msg.forget === true) {
        this.sessions.forget(msg.session);
        return done();
      }
      const job = { msg, send, done, isStream: msg.stream !== false };
      if (!this.server?.link) return this.fail(job, failure("no_config", _("orinoco.error.no_broker")));
      if (this.running.size < this.nMax) return this.start(job);
      if (this.waiting.length >= this.nWaitMax) {
        return this.fail(job, failure("busy", `${this.running.size} requests run and ${this.waiting.length} wait in this node, which is all that it is set to`));
      }
      this.waiting.push(job);
      return this.status({ fill: "yellow", shape: "dot", text: `${this.running.size} ${_("orinoco.status.running")}, ${this.waiting.length} ${_("orinoco.status.waiting")}` });
    }

    start(job) {
      const { msg } = job;
      const { link, target } = this.server;
      try {
        const name = msg.session || this.settings.session;
        const turns = name ? this.sessions.turns(String(name)) : [];
        Object.assign(job, chat(this.settings, msg, turns));
        job.id = msg.requestId === undefined ? newId() : String(msg.requestId);
        if (!isId(job.id)) throw new BodyError("requestId", `requestId ${JSON.stringify(job.id)}: expected 1 to 64 of the characters A-Z a-z 0-9 _ -`);
        const to = link.resolve(msg.node ? { kind: "node", name: msg.node } : msg.pool ? { kind: "pool", name: msg.pool } : target);
        job.index = 0;
        job.startedAt = Date.now();
        job.partsId = job.id;
        job.attempt = 1;
        const deadlineMs = job.body.deadline_ms ?? 0;
        const expiryMs = deadlineMs || this.timeoutMs;
        job.exchange = link.ask(
          { target: to, op: "chat", id: job.id, body: JSON.stringify(job.body), timeoutMs: this.timeoutMs, expirySeconds: Math.ceil(expiryMs / 1000) },
          {
            accepted: ({ node, queue, model }) => this.accepted(job, node, queue, model),
            text: (piece, body) => this.piece(job, piece, body),
            startedOver: () => this.startedOver(job),
            refused: () => this.status({ fill: "yellow", shape: "ring", text: _("orinoco.status.poolBusy") }),
            end: (result) => this.end(job, result),
          },
        );
        this.running.set(job.id, job);
        this.keepsStatus = false;
        this.status(link.connected
          ? { fill: "blue", shape: "ring", text: _("orinoco.status.asking") }
          : { fill: "yellow", shape: "ring", text: _("orinoco.status.noBrokerWaits") });
      } catch (error) {
        this.fail(job, failure(error.code ?? "invalid_request", error.message, { param: error.param }));
        this.next();
      }
    }

    accepted(job, node, queue, model) {
      job.node = node;
      job.model = model;
      if (queue > 0) this.status({ fill: "yellow", shape: "dot", text: `${queue} ${_("orinoco.status.before")}` });
      else this.status({ fill: "blue", shape: "dot", text: _("orinoco.status.reading") });
    }

    /** Pieces of one answer have the same msg.parts.id, so that a join node puts them together. */
    partOf(job, more) {
      return {
        ...RED.util.cloneMessage(job.msg),
        requestId: job.id,
        orinoco: { node: job.node, model: job.model, attempt: job.attempt },
        parts: { id: job.partsId, index: job.index, type: "string", ch: "" },
        ...more,
      };
    }

    piece(job, piece, body) {
      if (this.isClosed || !job.isStream) return;
      job.nCharacters = (job.nCharacters ?? 0) + piece.length;
      job.firstAt ??= Date.now();
      const calls = body.choices?.[0]?.delta?.tool_calls;
      if (piece !== "") {
        job.send([this.partOf(job, { payload: piece }), null, null]);
        job.index += 1;
      } else if (calls) {
        const message = this.partOf(job, { payload: "", toolCallPieces: calls });
        delete message.parts;
        job.send([message, null, null]);
      }
      const now = Date.now();
      if (now - this.statusAt >= STATUS_MS) {
        this.statusAt = now;
        this.status(shown.streaming(job.nCharacters, now - job.firstAt));
      }
    }

    /** The node began anew, after a power cut or in another member of the pool: what was sent is void. */
    startedOver(job) {
      if (job.isStream && job.index > 0) job.send([this.partOf(job, { payload: "", reset: true }), null, null]);
      job.attempt += 1;
      job.partsId = `${job.id}.${job.attempt}`;
      job.index = 0;
      job.nCharacters = 0;
      job.firstAt = undefined;
    }

    end(job, result) {
      this.running.delete(job.id);
      if (this.isClosed) {
        job.done();
        return;
      }
      if (result.ok) this.succeed(job, result);
      else this.fail(job, result.error, result);
      this.next();
    }

    succeed(job, { text, body, node, toolCalls }) {
      const choice = body.choices?.[0] ?? {};
      let payload = text;
      if (job.wantsJson && toolCalls.length === 0) {
        try {
          payload = JSON.parse(text);
        } catch (error) {
          const why = choice.finish_reason === "length" ? "the answer was cut at max_tokens" : error.message;
          this.fail(job, failure("no_json", `the answer is not the JSON that was asked for: ${why}`), { text, node, body });
          return;
        }
      }
      // What Orinoco made of a template is not known here.
      if (job.session !== undefined && job.added.length > 0) {
        const answer = { role: "assistant", content: text };
        if (toolCalls.length > 0) answer.tool_calls = toolCalls;
        this.sessions.add(job.session, [...job.added.filter((message) => message?.role !== "system"), answer]);
      }
      const result = {
        ...RED.util.cloneMessage(job.msg),
        payload,
        requestId: job.id,
        finish_reason: choice.finish_reason,
        usage: body.usage,
        orinoco: { ...body.orinoco, node, model: body.model },
      };
      delete result.parts;
      if (job.msg.parts) result.parts = job.msg.parts;
      if (toolCalls.length > 0) {
        result.tool_calls = toolCalls;
        // What to send back as msg.messages, with the tools' answers behind it.
        result.messages = [...(job.body.messages ?? []), { role: "assistant", content: text, tool_calls: toolCalls }];
      }
      const last = job.isStream ? this.partOf(job, { payload: "", complete: true, finish_reason: choice.finish_reason }) : null;
      if (last) last.parts.count = job.index + 1;
      job.send([last, result, null]);
      this.keepsStatus = true;
      this.status(shown.finished(_, body));
      job.done();
    }

    fail(job, error, { text = "", node, body } = {}) {
      const said = {
        ...RED.util.cloneMessage(job.msg),
        payload: error.message,
        text,
        requestId: job.id,
        error: { code: error.code, type: error.type, message: error.message, param: error.param ?? undefined, retry_after_ms: error.retry_after_ms, source: { id: this.id, type: this.type, name: this.name } },
        orinoco: { node: node ?? job.node, ...(body?.usage ? { usage: body.usage } : {}) },
      };
      if (job.isStream && job.index > 0) {
        // The pieces sent so far never become a whole.
        job.send([this.partOf(job, { payload: "", reset: true }), null, said]);
      } else {
        job.send([null, null, said]);
      }
      this.keepsStatus = true;
      this.status(shown.failed(_, error));
      // Who wired the third output deals with it there; for others there are Catch nodes.
      if (this.hasErrorWire || error.code === "cancelled") job.done();
      else job.done(new Error(`${error.code}: ${error.message}`));
    }

    next() {
      while (!this.isClosed && this.running.size < this.nMax && this.waiting.length > 0) this.start(this.waiting.shift());
    }

    /** msg.cancel with msg.requestId: that one; without: everything of this node. */
    cancel(msg, done) {
      const ids = msg.requestId === undefined ? [...this.running.keys()] : [String(msg.requestId)];
      if (msg.requestId === undefined) {
        for (const job of this.waiting.splice(0)) this.fail(job, failure("cancelled", "called off before it was asked"));
      } else {
        const at = this.waiting.findIndex((job) => String(job.msg.requestId) === String(msg.requestId));
        if (at >= 0) this.fail(this.waiting.splice(at, 1)[0], failure("cancelled", "called off before it was asked"));
      }
      for (const id of ids) this.running.get(id)?.exchange.cancel();
      done();
    }

    /** Nothing goes on when the flow stops: what runs is called off, and the broker has heard it. */
    stop(done) {
      this.isClosed = true;
      const link = this.server?.link;
      link?.off("document", this.lookAtDocument);
      link?.off("connection", this.lookAnew);
      for (const job of this.waiting.splice(0)) job.done();
      const jobs = [...this.running.values()];
      let nLeft = jobs.length;
      if (nLeft === 0) return done();
      const timer = setTimeout(finish, CLOSE_MS);
      function finish() {
        clearTimeout(timer);
        nLeft = -1;
        for (const { exchange } of jobs) exchange.finish({ ok: false, error: failure("closed", "the flow was stopped"), text: "" });
        done();
      }
      for (const { exchange } of jobs) {
        exchange.cancel(failure("closed", "the flow was stopped"), (isTold) => {
          if (!isTold) link.owe(exchange);
          nLeft -= 1;
          if (nLeft === 0) finish();
        });
      }
      return undefined;
    }
  }
  RED.nodes.registerType("orinoco-chat", OrinocoChatNode);
};
