// Numbers of a node as they come: board, GPU, model, queue, and its state.
"use strict";

const shown = require("../lib/shown");
const { words } = require("../lib/words");

const KINDS = ["host", "gpu", "llm", "queue", "state", "status", "ota"];
/** Where the documents of a kind are, below a node. */
const PLACES = { state: "state", status: "status", ota: "ota/state" };
const restOf = (kind) => PLACES[kind] ?? `tele/${kind}`;

/** `ttft_ms.p95` of a document; undefined where there is none. */
function valueAt(document, path) {
  return path.split(".").reduce((at, key) => (at !== null && typeof at === "object" ? at[key] : undefined), document);
}

module.exports = function (RED) {
  const _ = words(RED);

  class OrinocoTelemetryNode {
    constructor(config) {
      RED.nodes.createNode(this, config);
      this.server = RED.nodes.getNode(config.server);
      // "status" is taken: the editor keeps what a node shows below itself there.
      this.kinds = KINDS.filter((kind) => config[kind === "status" ? "presence" : kind] === true);
      this.key = (config.key || "").trim();
      // A pool has no numbers of its own: those of all nodes are sent.
      const target = this.server?.target;
      this.only = config.node || (target?.kind === "node" ? target.name : "") || undefined;
      const link = this.server?.link;
      this.look = () => this.status(this.shown ?? shown.presence(_, link, this.only ? { kind: "node", name: this.only } : target));
      this.hear = ({ node, rest, value }) => {
        if ((this.only && node !== this.only) || value === undefined) return;
        const kind = this.kinds.find((one) => restOf(one) === rest);
        if (kind !== undefined) this.tell(node, kind, value, (message) => this.send(message));
        else if (rest === "status") this.look();
      };
      if (link) {
        link.on("document", this.hear);
        link.on("connection", this.look);
        for (const kind of this.kinds) link.follow("+", restOf(kind));
        // What another node had subscribed to before is here already.
        setImmediate(() => this.tellAll((message) => this.send(message)));
      }
      this.look();
      this.on("input", (msg, send, done) => {
        this.tellAll(send, msg);
        done();
      });
      this.on("close", (removed, done) => {
        link?.off("document", this.hear);
        link?.off("connection", this.look);
        done();
      });
    }

    tellAll(send, msg = {}) {
      const link = this.server?.link;
      for (const { name } of link?.nodes() ?? []) {
        if (this.only && name !== this.only) continue;
        for (const kind of this.kinds) {
          const value = link.latest(name, restOf(kind));
          if (value !== undefined) this.tell(name, kind, value, (message) => send({ ...msg, ...message }));
        }
      }
    }

    tell(node, kind, document, send) {
      const payload = this.key === "" ? document : valueAt(document, this.key);
      if (payload === undefined) return;
      const state = this.server.link.latest(node, "status")?.state;
      const message = { topic: `${node}/${kind}${this.key === "" ? "" : `/${this.key}`}`, payload, node, kind, at_ms: document.at_ms ?? document.since_ms };
      // Retained numbers outlive their node.
      if (state !== "online") message.stale = true;
      if (kind === "llm" && Number.isFinite(document.tok_s)) {
        this.shown = { fill: state === "online" ? "green" : "grey", shape: "dot", text: `${document.streams_count ?? 0} × · ${document.tok_s.toFixed(0)} tok/s` };
      } else if (typeof payload === "number") {
        this.shown = { fill: state === "online" ? "green" : "grey", shape: "dot", text: shown.short(`${Number(payload.toPrecision(4))}`) };
      }
      this.look();
      send(message);
    }
  }
  RED.nodes.registerType("orinoco-telemetry", OrinocoTelemetryNode);
};
