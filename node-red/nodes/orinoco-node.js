// Which Orinoco the other nodes talk to: broker, root, node or pool, user, model. Answers the editor's
// questions for names.
"use strict";

const { Link } = require("../lib/link");
const { words } = require("../lib/words");

module.exports = function (RED) {
  const _ = words(RED);

  class OrinocoNode {
    constructor(config) {
      RED.nodes.createNode(this, config);
      this.broker = RED.nodes.getNode(config.broker);
      this.target = { kind: config.kind === "pool" ? "pool" : "node", name: (config.target || "").trim() };
      this.model = (config.model || "").trim();
      this.link = undefined;
      if (this.broker && typeof this.broker.subscribe === "function") {
        const user = (config.user || "").trim() || this.broker.username || "local";
        try {
          for (const [what, name] of [[this.target.kind, this.target.name]]) {
            if (name !== "" && !/^[A-Za-z0-9_.-]{1,64}$/.test(name)) throw new Error(`${what} ${JSON.stringify(name)}: expected 1 to 64 of the characters A-Z a-z 0-9 _ . -`);
          }
          this.link = new Link(this, this.broker, { root: (config.root || "orinoco").trim(), user });
          this.link.on("strange", (message) => this.warn(message));
        } catch (error) {
          this.error(error.message);
        }
      } else {
        this.error(_("orinoco.error.no_broker"));
      }
      this.on("close", (removed, done) => (this.link ? this.link.close(removed, done) : done()));
    }
  }
  RED.nodes.registerType("orinoco-node", OrinocoNode);

  const summary = (link) => ({
    connected: link.connected,
    nodes: link.nodes().map(({ name, status, info, models, state }) => ({
      name,
      state: status?.state ?? "offline",
      board: info?.hardware?.board ?? info?.hardware?.arch ?? "",
      pools: Array.isArray(info?.pools) ? info.pools : [],
      active: models?.active ?? state?.model ?? "",
      models: Array.isArray(models?.models) ? models.models.map((model) => model.name) : [],
    })),
  });

  // The editor fills its lists from here: what a deployed orinoco-node sees.
  RED.httpAdmin.get("/orinoco/nodes/:id", RED.auth.needsPermission("orinoco-node.read"), (request, response) => {
    const node = RED.nodes.getNode(request.params.id);
    if (!node?.link) return response.json({ connected: false, nodes: [], isDeployed: Boolean(node) });
    return response.json({ ...summary(node.link), isDeployed: true });
  });

  /** Looking through a broker that is deployed, before the orinoco-node itself is. */
  const LOOK_MS = 700;
  let nLooks = 0;
  RED.httpAdmin.get("/orinoco/broker/:id", RED.auth.needsPermission("orinoco-node.read"), (request, response) => {
    const broker = RED.nodes.getNode(request.params.id);
    if (!broker || typeof broker.subscribe !== "function") return response.json({ connected: false, nodes: [], isDeployed: false });
    let link;
    const root = typeof request.query.root === "string" && request.query.root !== "" ? request.query.root : "orinoco";
    try {
      link = new Link({ id: `orinoco-look-${++nLooks}` }, broker, { root, user: "local" });
    } catch (error) {
      return response.status(400).json({ connected: false, nodes: [], isDeployed: true, error: error.message });
    }
    setTimeout(() => {
      const found = summary(link);
      link.close(true, () => response.json({ ...found, isDeployed: true }));
    }, LOOK_MS);
    return undefined;
  });
};
