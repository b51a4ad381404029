// Which models a node has and which serves; orders another one, installs a signed release, goes back.
// Outputs: 1 the outcome, 2 progress, 3 errors.
"use strict";

const shown = require("../lib/shown");
const { command, otaProgress } = require("../lib/command");
const { failure } = require("../lib/exchange");
const { newId } = require("../lib/topics");
const { words } = require("../lib/words");

/** A node takes a command at once or does not know it. */
const TAKEN_MS = 10_000;
const ENDED = new Set(["successful", "failed"]);
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
      link?.follow("+", "cmd/model/+");
      link?.follow("+", "cmd/ota/+");
      this.look();
      this.on("input", (msg, send, done) => this.input({ msg, send, done }));
      this.on("close", (removed, done) => {
        link?.off("document", this.hear);
        link?.off("connection", this.lookAnew);
        // A command goes on in the node that has it: nothing of it is lost, and its outcome is on `evt`.
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
        else if (rest === "ota/state" && job.op === "ota") {
          const now = otaProgress(value);
          if (now) this.progress(job, now.percent, now.state, value);
        }
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
      this.running.delete(job.cid);
      this.clear(job);
      if (value.status === "failed") {
        this.fail(job, failure("failed", String(value.reason ?? "the node gave no reason")), value);
        return;
      }
      this.progress(job, 100, "successful", value);
      job.send([{ ...job.msg, payload: value, node: job.node, action: job.action }, null, null]);
      this.keepsStatus = true;
      this.status({ fill: "green", shape: "dot", text: shown.short(value.model ?? _("orinoco.status.done")) });
      job.done();
    }

    progress(job, percent, state, document) {
      if (job.percent === percent && job.state === state) return;
      Object.assign(job, { percent, state });
      job.send([null, { ...job.msg, payload: percent, state, node: job.node, action: job.action, document }, null]);
      this.status({ fill: "blue", shape: "dot", text: shown.short(percent === undefined ? state : `${state} ${percent} %`) });
    }

    giveUp(job, code, message) {
      this.running.delete(job.cid);
      this.clear(job);
      this.fail(job, failure(code, message));
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
