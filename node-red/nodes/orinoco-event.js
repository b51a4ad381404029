// What happens on a node: memory pressure, another model, steps of an update, coming and going.
"use strict";

const shown = require("../lib/shown");
const { words } = require("../lib/words");

/** Steps of an update that are no good news. */
const BAD_STEPS = new Set(["failed", "rolling_back", "rolled_back"]);

module.exports = function (RED) {
  const _ = words(RED);

  class OrinocoEventNode {
    constructor(config) {
      RED.nodes.createNode(this, config);
      this.server = RED.nodes.getNode(config.server);
      this.types = new Set((config.types || "").split(",").map((type) => type.trim()).filter(Boolean));
      const target = this.server?.target;
      this.only = config.node || (target?.kind === "node" ? target.name : "") || undefined;
      const link = this.server?.link;
      this.states = new Map();
      this.look = () => {
        if (!this.last || !link?.connected) this.status(shown.presence(_, link, this.only ? { kind: "node", name: this.only } : target));
        else this.status(this.last);
      };
      this.hear = ({ node, rest, value, retained }) => {
        if ((this.only && node !== this.only) || value === undefined) return;
        if (rest.startsWith("evt/")) {
          if (!retained) this.tell(node, rest.slice(4), value);
        } else if (rest === "status") {
          const before = this.states.get(node);
          this.states.set(node, value.state);
          if (before !== undefined && before !== value.state) this.tell(node, "presence", { from: before, to: value.state, at_ms: value.since_ms });
          else this.look();
        }
      };
      if (link) {
        for (const { name, status } of link.nodes()) this.states.set(name, status?.state);
        link.on("document", this.hear);
        link.on("connection", this.look);
        link.follow("+", "evt/+");
      }
      this.look();
      this.on("close", (removed, done) => {
        link?.off("document", this.hear);
        link?.off("connection", this.look);
        done();
      });
    }

    tell(node, type, payload) {
      if (this.types.size > 0 && !this.types.has(type)) return;
      const isGood = type === "presence" ? payload.to === "online" : type === "pressure" ? payload.to === "ok" : type === "ota" ? !BAD_STEPS.has(payload?.state) : payload?.served !== false;
      this.last = { fill: isGood ? "green" : "yellow", shape: "dot", text: shown.short(`${type}: ${payload?.to ?? payload?.model ?? payload?.state?.replaceAll?.("_", " ") ?? ""}`) };
      this.look();
      this.send({ topic: `${node}/${type}`, payload, node, event: type });
    }
  }
  RED.nodes.registerType("orinoco-event", OrinocoEventNode);
};
