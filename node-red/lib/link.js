// The way from an orinoco-node to its broker, over Node-RED's own mqtt-broker node.
//
// Owns: the subscriptions, the questions that run, the last retained document of each topic. The broker's
// connection belongs to the mqtt-broker node, whose methods register, subscribe, publish, unsubscribe and
// deregister are used as the core MQTT nodes use them. They are no documented interface: the tests run this
// against each supported Node-RED.
"use strict";

const { EventEmitter } = require("node:events");
const { Topics, isName } = require("./topics");
const { Exchange, failure } = require("./exchange");

/** Largest document that is kept, in bytes; a node's largest, `models`, is a few KiB. */
const DOCUMENT_BYTES_MAX = 256 * 1024;
/** Nodes that are kept, and topics of each. */
const NODES_MAX = 1024;
const TOPICS_MAX = 64;
/** Cancels that could not be sent, by the id of the orinoco-node; they outlast a deploy. */
const owed = new Map();
const OWED_MAX = 256;

class Link extends EventEmitter {
  /**
   * host: the orinoco-node; it is registered with the broker, so that it counts as a user of it.
   * broker: the mqtt-broker node. options: {root, user}.
   */
  constructor(host, broker, options) {
    super();
    this.setMaxListeners(0);
    this.host = host;
    this.broker = broker;
    this.topics = new Topics(options.root);
    this.user = Topics.checkName("user", options.user);
    this.exchanges = new Map();
    /** node name → Map of rest of topic → {payload, topic}. */
    this.documents = new Map();
    this.filters = new Map();
    this.wasConnected = false;
    this.isClosed = false;

    // The broker tells its users how the connection is by setting their status.
    host.status = () => setImmediate(() => this.look());
    broker.register(host);
    this.subscribe(`${this.topics.base}/resp/${this.user}/+`, (topic, payload) => this.hearAnswer(topic, payload));
    for (const document of ["status", "info", "models", "state"]) this.follow("+", document);
    this.clock = setInterval(() => this.look(), 1000);
    this.look();
  }

  get connected() {
    return this.broker.connected === true;
  }

  publish(message, done = () => {}) {
    // Not connected, the broker node would drop it and never call back.
    if (this.connected) this.broker.publish(message, done);
    else done(new Error("not connected to the broker"));
  }

  /** Tells when the connection came or went. */
  look() {
    if (this.isClosed || this.connected === this.wasConnected) return;
    this.wasConnected = this.connected;
    if (this.connected) {
      this.payOwed();
      for (const exchange of [...this.exchanges.values()]) exchange.reconnected();
    }
    this.emit("connection", this.connected);
  }

  subscribe(filter, callback) {
    const { broker } = this;
    const isShared = broker.subscriptions?.[filter] !== undefined;
    this.filters.set(filter, callback);
    broker.subscribe(filter, { qos: 1 }, callback, this.host.id);
    if (!isShared || !this.connected) return;
    // Somebody has this subscription already, and MQTT.js does not say it again by itself: without that the
    // broker does not send what is retained.
    const properties = broker.subscriptionIdentifiersAvailable?.() ? { subscriptionIdentifier: broker.subscriptionIds[filter] } : undefined;
    broker.client.subscribe({ [filter]: { qos: 1, properties }, resubscribe: true });
  }

  /** Keeps what nodes (one, or "+") say below `rest`, a topic filter, and emits it as "document". */
  follow(node, rest) {
    const filter = this.topics.of(node, rest);
    if (this.filters.has(filter)) return;
    this.subscribe(filter, (topic, payload, packet) => this.hearDocument(topic, payload, packet));
  }

  hearDocument(topic, payload, packet) {
    const place = this.topics.parse(topic);
    if (!place || payload.length > DOCUMENT_BYTES_MAX) return;
    const isEvent = place.rest.startsWith("evt/");
    let value;
    if (payload.length > 0) {
      try {
        value = JSON.parse(payload.toString());
      } catch {
        this.emit("strange", `${topic}: ${payload.length} bytes that are no JSON`);
        return;
      }
    }
    if (!isEvent) {
      let of = this.documents.get(place.node);
      if (!of) {
        if (this.documents.size >= NODES_MAX) return;
        this.documents.set(place.node, (of = new Map()));
      }
      if (value === undefined) of.delete(place.rest);
      else if (of.has(place.rest) || of.size < TOPICS_MAX) of.set(place.rest, value);
    }
    if (place.rest === "status" && typeof value?.state === "string") {
      for (const exchange of [...this.exchanges.values()]) exchange.presence(place.node, value.state);
    }
    this.emit("document", { ...place, topic, value, retained: packet?.retain === true });
  }

  /** The latest document of a node, as "status" or "tele/llm"; undefined when there is none. */
  latest(node, rest) {
    return this.documents.get(node)?.get(rest);
  }

  /** What is known of each node: [{name, status, info, models, state}], those that are there first. */
  nodes() {
    const seen = [];
    for (const [name, of] of this.documents) {
      if (!of.has("status")) continue;
      seen.push({ name, status: of.get("status"), info: of.get("info"), models: of.get("models"), state: of.get("state") });
    }
    const rank = (node) => (node.status?.state === "online" ? 0 : 1);
    return seen.sort((a, b) => rank(a) - rank(b) || a.name.localeCompare(b.name));
  }

  /** Whom to ask: what the flow says, or the only node that is there. Throws a sentence for people. */
  resolve(target) {
    if (target?.name) return { kind: target.kind === "pool" ? "pool" : "node", name: Topics.checkName(target.kind ?? "node", target.name) };
    const all = this.nodes();
    const online = all.filter((node) => node.status?.state === "online");
    const candidates = online.length > 0 ? online : all;
    if (candidates.length === 1) return { kind: "node", name: candidates[0].name };
    if (candidates.length === 0) throw new Error("no Orinoco node is seen on this broker; check broker, root and user, or name the node");
    throw new Error(`several nodes are there (${candidates.slice(0, 5).map((node) => node.name).join(", ")}): name one, or a pool`);
  }

  /** Asks. question: {target, op, id, body, timeoutMs, expirySeconds}; returns the Exchange. */
  ask(question, on) {
    if (this.exchanges.has(question.id)) throw new Error(`request id ${question.id} runs already`);
    const exchange = new Exchange({ ...question, topics: this.topics, user: this.user }, this, {
      ...on,
      strange: (error) => this.emit("strange", `answer ${question.id}: ${error.message}`),
      end: (result) => {
        this.exchanges.delete(question.id);
        on.end(result);
      },
    });
    if (!exchange.isOver) this.exchanges.set(question.id, exchange);
    return exchange;
  }

  hearAnswer(topic, payload) {
    this.exchanges.get(topic.slice(topic.lastIndexOf("/") + 1))?.hear(payload);
  }

  /** A cancel that could not be said: it is said when the connection is back, also by the next deploy. */
  owe(exchange) {
    const { target, id } = exchange.question;
    const node = exchange.requester.receiver.node;
    const list = owed.get(this.host.id) ?? [];
    if (list.length < OWED_MAX) list.push({ target: node === undefined ? target : { kind: "node", name: node }, id });
    owed.set(this.host.id, list);
  }

  payOwed() {
    for (const { target, id } of owed.get(this.host.id) ?? []) {
      this.publish({ topic: this.topics.cancel(target, this.user, id), payload: "", qos: 1 });
    }
    owed.delete(this.host.id);
  }

  close(removed, done) {
    this.isClosed = true;
    clearInterval(this.clock);
    for (const exchange of [...this.exchanges.values()]) exchange.finish({ ok: false, error: failure("closed", "the flow was stopped"), text: "" });
    for (const filter of this.filters.keys()) this.broker.unsubscribe(filter, this.host.id, true);
    this.removeAllListeners();
    if (removed) owed.delete(this.host.id);
    // deregister sets a status, which nobody shows.
    this.broker.deregister(this.host, done, removed);
  }
}

module.exports = { Link, isName };
