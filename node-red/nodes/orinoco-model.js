// Which models a node has and which serves; orders another one, installs a signed release, goes back.
// Outputs: 1 the outcome, 2 progress, 3 errors.
"use strict";

const shown = require("../lib/shown");
const { command } = require("../lib/command");
const { Deployment } = require("../lib/deployment");
const { failure } = require("../lib/exchange");
const { newId } = require("../lib/topics");
const { words } = require("../lib/words");

/** A node takes a command at once or does not know it. */
const TAKEN_MS = 10_000;
const ENDED = new Set(["successful", "failed"]);
/** For the event that says how a deployment ended, once another one is seen in its place. */
const GONE_MS = 2000;
const RUNNING_MAX = 8;

module.exports = function (RED) {
  const _ = words(RED);

  class OrinocoModelNode {
    constructor(config) {
      RED.nodes.createNode(this, config);
      this.server = RED.nodes.getNode(config.server);
      this.action = config.action || "list";
      this.model = config.model || "";
      this.timeoutMs = Math.min(Math.max(Number(config.timeout) || 600, 1), 86_400) * 1000;
      this.running = new Map();
      this.hasErrorWire = Array.isArray(config.wires) && Array.isArray(config.wires[2]) && config.wires[2].length > 0;
      const link = this.server?.link;
      this.hear = (document) => this.document(document);
      this.look = () => {
        if (this.running.size > 0 || this.keepsStatus) return;
        const active = this.activeModel();
        this.status(active && link.connected ? { fill: "green", shape: "ring", text: shown.short(active) } : shown.presence(_, link, this.server?.target));
      };
      this.lookAnew = () => {
        this.keepsStatus = false;
        this.look();
      };
      link?.on("document", this.hear);
      link?.on("connection", this.lookAnew);
      link?.follow("+", "ota/state");
      link?.follow("+", "evt/+");
      link?.follow("+", "cmd/model/+");
      link?.follow("+", "cmd/ota/+");
      this.look();
      this.on("input", (msg, send, done) => this.input({ msg, send, done }));
      this.on("close", (removed, done) => {
        link?.off("document", this.hear);
        link?.off("connection", this.lookAnew);
        // A command goes on in the node that has it: nothing of it is lost, and the event node tells its outcome.
        for (const job of this.running.values()) {
          clearTimeout(job.timer);
          job.done();
        }
        this.running.clear();
        done();
      });
    }

    /** The node that a message is for: commands go to one node, never to a pool. */
    nodeFor(msg) {
      const { link, target } = this.server;
      if (msg.node) return link.resolve({ kind: "node", name: msg.node }).name;
      if (target.kind === "pool") throw new Error(`models are ordered of one node, and this node is set to the pool ${target.name}: set msg.node`);
      return link.resolve(target).name;
    }

    activeModel() {
      try {
        const { link } = this.server;
        const node = this.nodeFor({});
        return link.latest(node, "models")?.active ?? link.latest(node, "state")?.model;
      } catch {
        return undefined;
      }
    }

    input(job) {
      const { msg } = job;
      if (!this.server?.link) return this.fail(job, failure("no_config", _("orinoco.error.no_broker")));
      const { link } = this.server;
      try {
        const action = msg.action ?? this.action;
        job.node = this.nodeFor(msg);
        if (action === "list") return this.list(job);
        if (this.running.size >= RUNNING_MAX) throw Object.assign(new Error(`${RUNNING_MAX} orders run in this node already`), { code: "busy" });
        if (!link.connected) throw Object.assign(new Error(_("orinoco.status.noBroker")), { code: "no_connection" });
        const order = command(action, msg.model || action !== "use" || (typeof msg.payload === "string" && msg.payload.trim() !== "") ? msg : { ...msg, model: this.model });
        job.cid = newId();
        job.rest = `cmd/${order.op}/${job.cid}`;
        job.op = order.op;
        job.action = action;
        this.running.set(job.cid, job);
        job.timer = setTimeout(() => this.giveUp(job, "not_taken", `node ${job.node} did not take the order within ${TAKEN_MS / 1000} s: it is away, its version does not know "${order.op}" orders, or the broker's rules do not let this user give them`), TAKEN_MS);
        link.publish({ topic: link.topics.of(job.node, job.rest), payload: JSON.stringify(order.body), qos: 1, retain: true });
        this.status({ fill: "blue", shape: "ring", text: _("orinoco.status.ordered") });
      } catch (error) {
        this.fail(job, failure(error.code ?? "invalid_request", error.message));
      }
      return undefined;
    }

    list(job) {
      const { link } = this.server;
      const models = link.latest(job.node, "models");
      if (!models) return this.fail(job, failure("no_models", `node ${job.node} has not said which models it has; it may be away`));
      const active = this.activeModel();
      job.send([{ ...job.msg, payload: models.models ?? [], active: models.active, node: job.node, state: link.latest(job.node, "state"), update: link.latest(job.node, "ota/state") }, null, null]);
      if (active) this.status({ fill: "green", shape: "ring", text: shown.short(active) });
      return job.done();
    }

    document({ node, rest, value }) {
      for (const job of [...this.running.values()]) {
        if (job.node !== node) continue;
        if (rest === job.rest && value && value.status !== "init") this.heard(job, value);
        else if (rest === "state" && job.op === "model" && value?.mode === "loading") this.progress(job, Math.round((value.load_progress ?? 0) * 100), value.mode, value);
        else if (rest === "ota/state" && job.deployment) this.step(job, job.deployment.hearState(value), value);
        else if (rest === "evt/ota" && job.deployment) this.step(job, job.deployment.hearEvent(value), value);
      }
      if (rest === "models" || rest === "state" || rest === "status") this.look();
    }

    /** The node said something on the command's topic. */
    heard(job, value) {
      clearTimeout(job.timer);
      if (!ENDED.has(value.status)) {
        this.status({ fill: "blue", shape: "dot", text: shown.short(String(value.status)) });
        job.timer = setTimeout(() => this.giveUp(job, "timeout", `no outcome within ${this.timeoutMs / 1000} s; the node may still be at it`), this.timeoutMs);
        return;
      }
      this.clear(job);
      if (value.status === "failed") {
        this.end(job);
        this.fail(job, failure("failed", String(value.reason ?? "the node gave no reason")), value);
        return;
      }
      if (typeof value.deployment !== "string") {
        this.succeed(job, "successful", value);
        return;
      }
      job.deployment = new Deployment(value.deployment, job.action === "rollback" ? "rolled_back" : "committed");
      job.timer = setTimeout(() => this.giveUp(job, "timeout", `no end of the update within ${this.timeoutMs / 1000} s; the node is still at it, and the event node tells its end`), this.timeoutMs);
      // It may have come so far that nothing more is said.
      const latest = this.server.link.latest(job.node, "ota/state");
      this.step(job, job.deployment.hearState(latest), latest);
    }

    /** What the node's state, or an event, said of a release that is under way. */
    step(job, heard, document) {
      if (heard?.what === "progress") {
        this.progress(job, heard.percent, heard.state, document, heard.text);
      } else if (heard?.what === "end") {
        const { deployment, state, line, release_seq: seq, reason, detail } = document;
        if (heard.ok) {
          this.succeed(job, state, { status: "successful", deployment, state, line, release_seq: seq });
        } else {
          this.end(job);
          this.fail(job, failure(heard.code, heard.message), { status: "failed", deployment, state, line, release_seq: seq, reason, detail });
        }
      } else if (heard?.what === "gone" && !job.isGone) {
        job.isGone = true;
        clearTimeout(job.timer);
        job.timer = setTimeout(() => this.giveUp(job, "superseded", `node ${job.node} is at another update now`), GONE_MS);
      }
    }

    succeed(job, state, value) {
      this.end(job);
      this.progress(job, 100, state, value);
      job.send([{ ...job.msg, payload: value, state, node: job.node, action: job.action }, null, null]);
      this.keepsStatus = true;
      const release = value.line === undefined ? undefined : `${value.line} ${value.release_seq ?? ""}`.trim();
      this.status({ fill: "green", shape: "dot", text: shown.short(value.model ?? release ?? _("orinoco.status.done")) });
      job.done();
    }

    progress(job, percent, state, document, text = percent === undefined ? state : `${state} ${percent} %`) {
      if (job.percent === percent && job.state === state) return;
      Object.assign(job, { percent, state });
      job.send([null, { ...job.msg, payload: percent, state, node: job.node, action: job.action, document }, null]);
      this.status({ fill: "blue", shape: "dot", text: shown.short(text) });
    }

    giveUp(job, code, message) {
      this.end(job);
      if (!job.deployment) this.clear(job);
      this.fail(job, failure(code, message));
    }

    end(job) {
      clearTimeout(job.timer);
      this.running.delete(job.cid);
    }

    /** Who ordered takes the order away once its outcome is known. */
    clear(job) {
      const { link } = this.server;
      link.publish({ topic: link.topics.of(job.node, job.rest), payload: "", qos: 1, retain: true });
    }

    fail(job, error, value) {
      const source = { id: this.id, type: this.type, name: this.name };
      job.send([null, null, { ...job.msg, payload: error.message, node: job.node, outcome: value, error: { code: error.code, message: error.message, source } }]);
      this.keepsStatus = true;
      this.status(shown.failed(_, error));
      if (this.hasErrorWire) job.done();
      else job.done(new Error(`${error.code}: ${error.message}`));
    }
  }
  RED.nodes.registerType("orinoco-model", OrinocoModelNode);
};
