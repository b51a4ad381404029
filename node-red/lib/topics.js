// PURE: names, ids and topics of the wire contract, version 1 (docs/protocol.md, "Topics").
"use strict";

const crypto = require("node:crypto");

const NAME = /^[A-Za-z0-9_.-]{1,64}$/;
const ID = /^[A-Za-z0-9_-]{1,64}$/;
const ROOT = /^[A-Za-z0-9_.-]+(\/[A-Za-z0-9_.-]+)*$/;
/** Words with a meaning in topics; no user, node or pool may be named so. `local` is who has no credentials. */
const RESERVED = new Set([
  "req", "resp", "pool", "fleet", "tele", "evt", "cmd", "set", "status", "state", "info", "models", "ota", "daemon", "local",
]);

const isName = (text) => typeof text === "string" && NAME.test(text);
const isId = (text) => typeof text === "string" && ID.test(text);

/** A new request id: 26 characters, the first ten of them the time, so that ids sort by age. */
function newId(nowMs = Date.now()) {
  const time = nowMs.toString(32).padStart(10, "0").slice(-10);
  return time + crypto.randomBytes(10).toString("hex").slice(0, 16);
}

/**
 * Topics below one root.
 *
 * A target is {kind: "node" | "pool", name}.
 */
class Topics {
  constructor(root) {
    if (typeof root !== "string" || root.length > 64 || !ROOT.test(root)) {
      throw new Error(`root ${JSON.stringify(root)}: expected names joined by single slashes, 64 characters at most, as orinoco`);
    }
    this.base = `${root}/v1`;
  }

  static checkName(what, name) {
    if (!isName(name)) throw new Error(`${what} ${JSON.stringify(name)}: expected 1 to 64 of the characters A-Z a-z 0-9 _ . -`);
    return name;
  }

  requests(target) {
    return target.kind === "pool" ? `${this.base}/pool/${target.name}/req` : `${this.base}/${target.name}/req`;
  }

  request(target, user, op, id) {
    return `${this.requests(target)}/${user}/${op}/${id}`;
  }

  cancel(target, user, id) {
    return this.request(target, user, "cancel", id);
  }

  response(user, id) {
    return `${this.base}/resp/${user}/${id}`;
  }

  /** A retained document or a stream of numbers and events of a node; `+` for all of them. */
  of(node, rest) {
    return `${this.base}/${node}/${rest}`;
  }

  /** Splits `{base}/{node}/{rest}`; undefined where it is something else. */
  parse(topic) {
    if (!topic.startsWith(`${this.base}/`)) return undefined;
    const [node, ...rest] = topic.slice(this.base.length + 1).split("/");
    if (!isName(node) || (RESERVED.has(node) && node !== "local") || rest.length === 0) return undefined;
    return { node, rest: rest.join("/") };
  }
}

module.exports = { Topics, RESERVED, isName, isId, newId };
