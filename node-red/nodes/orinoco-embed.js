// Turns text into vectors. Outputs: 1 the vector, or an array of them for an array of texts; 2 errors.
"use strict";

const shown = require("../lib/shown");
const { embed, vectors } = require("../lib/body");
const { failure } = require("../lib/exchange");
const { newId } = require("../lib/topics");
const { words } = require("../lib/words");

const CLOSE_MS = 2000;
/** Requests that run; more are refused, as a flow that asks faster than the node answers never ends. */
const RUNNING_MAX = 16;

module.exports = function (RED) {
  const _ = words(RED);

  class OrinocoEmbedNode {
    constructor(config) {
      RED.nodes.createNode(this, config);
      this.server = RED.nodes.getNode(config.server);
      this.settings = { model: config.model || "", dimensions: config.dimensions };
      this.timeoutMs = Math.min(Math.max(Number(config.timeout) || 60, 1), 86_400) * 1000;
      this.running = new Map();
      this.isClosed = false;
      this.hasErrorWire = Array.isArray(config.wires) && Array.isArray(config.wires[1]) && config.wires[1].length > 0;
      const link = this.server?.link;
      this.look = () => {
        if (this.running.size === 0 && !this.keepsStatus) this.status(shown.presence(_, link, this.server?.target));
      };
      this.lookAnew = () => {
        this.keepsStatus = false;
        this.look();
      };
      link?.on("document", this.look);
      link?.on("connection", this.lookAnew);
      this.look();
      this.on("input", (msg, send, done) => this.input({ msg, send, done }));
      this.on("close", (removed, done) => this.stop(done));
    }

    input(job) {
      if (!this.server?.link) return this.fail(job, failure("no_config", _("orinoco.error.no_broker")));
      if (this.running.size >= RUNNING_MAX) return this.fail(job, failure("busy", `${RUNNING_MAX} requests run in this node already`));
      const { link, target } = this.server;
      try {
        const { body, isBatch } = embed(this.settings, job.msg);
        job.id = newId();
        const question = {
          target: link.resolve(job.msg.node ? { kind: "node", name: job.msg.node } : target),
          op: "embed", id: job.id, body: JSON.stringify(body), timeoutMs: this.timeoutMs, expirySeconds: Math.ceil(this.timeoutMs / 1000),
        };
        job.exchange = link.ask(question, { end: (result) => this.end(job, result, isBatch) });
        this.running.set(job.id, job);
        this.status({ fill: "blue", shape: "ring", text: _("orinoco.status.asking") });
      } catch (error) {
        this.fail(job, failure(error.code ?? "invalid_request", error.message, { param: error.param }));
      }
      return undefined;
    }

    end(job, result, isBatch) {
      this.running.delete(job.id);
      if (this.isClosed) return job.done();
      if (!result.ok) return this.fail(job, result.error);
      try {
        const payload = vectors(result.body, isBatch);
        const n = isBatch ? payload.length : 1;
        job.send([{ ...job.msg, payload, requestId: job.id, usage: result.body.usage, orinoco: { ...result.body.orinoco, model: result.body.model } }, null]);
        this.keepsStatus = true;
        this.status({ fill: "green", shape: "dot", text: `${n} × ${(isBatch ? payload[0] : payload).length}` });
        return job.done();
      } catch (error) {
        return this.fail(job, failure("malformed", error.message));
      }
    }

    fail(job, error) {
      const source = { id: this.id, type: this.type, name: this.name };
      job.send([null, { ...job.msg, payload: error.message, requestId: job.id, error: { code: error.code, type: error.type, message: error.message, param: error.param ?? undefined, retry_after_ms: error.retry_after_ms, source } }]);
      this.keepsStatus = true;
      this.status(shown.failed(_, error));
      if (this.hasErrorWire) job.done();
      else job.done(new Error(`${error.code}: ${error.message}`));
    }

    stop(done) {
      this.isClosed = true;
      const link = this.server?.link;
      link?.off("document", this.look);
      link?.off("connection", this.lookAnew);
      const jobs = [...this.running.values()];
      if (jobs.length === 0) return done();
      let nLeft = jobs.length;
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
  RED.nodes.registerType("orinoco-embed", OrinocoEmbedNode);
};
