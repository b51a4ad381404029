// Parts of the plays: a Mosquitto of its own, a daemon that follows a script, Node-RED with our nodes.
"use strict";

const { spawn } = require("node:child_process");
const fs = require("node:fs");
const net = require("node:net");
const os = require("node:os");
const path = require("node:path");
const mqtt = require("mqtt");
const { freePort } = require("./ports.js");

const helper = require("node-red-node-test-helper");
helper.init(require.resolve("node-red"));
const core = require("@node-red/nodes/core/network/10-mqtt.js");
const join = require("@node-red/nodes/core/sequence/17-split.js");
const ours = ["node", "chat", "embed", "telemetry", "model", "event"].map((name) => require(`../nodes/orinoco-${name}.js`));

/** A message as the daemon is held to by tests/wire_v1.rs. */
const wire = (name) => JSON.parse(fs.readFileSync(path.join(__dirname, "../../tests/wire/v1", `${name}.json`), "utf8"));

/** A promise, or an error after a while that says what was waited for. */
function within(ms, what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not within ${ms} ms`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function until(what, test, ms = 20_000) {
  const end = Date.now() + ms;
  for (;;) {
    const found = test();
    if (found) return found;
    if (Date.now() > end) throw new Error(`${what}: not within ${ms} ms`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

class Broker {
  async start(port) {
    this.dir ??= fs.mkdtempSync(path.join(os.tmpdir(), "orinoco-nodes-"));
    this.port = port ?? this.port ?? (await freePort());
    const conf = path.join(this.dir, "mosquitto.conf");
    fs.writeFileSync(conf, `listener ${this.port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n`);
    const program = ["/usr/sbin/mosquitto", "/usr/bin/mosquitto"].find((file) => fs.existsSync(file)) ?? "mosquitto";
    this.child = spawn(program, ["-c", conf], { stdio: "ignore" });
    for (;;) {
      const isThere = await new Promise((resolve) => {
        const socket = net.connect(this.port, "127.0.0.1", () => socket.end(() => resolve(true)));
        socket.on("error", () => resolve(false));
      });
      if (isThere) return this;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  async stop() {
    const over = new Promise((resolve) => this.child.once("exit", resolve));
    this.child.kill("SIGKILL");
    await over;
  }

  async end() {
    await this.stop();
    fs.rmSync(this.dir, { recursive: true, force: true });
  }
}

/** Says what a test has it say. Requests come to `on(op, handler)`; handlers get {id, body, say}. */
class ScriptedDaemon {
  constructor(port, node = "press-7") {
    this.node = node;
    this.handlers = new Map();
    this.heard = [];
    this.client = mqtt.connect(`mqtt://127.0.0.1:${port}`, { protocolVersion: 5, reconnectPeriod: 50 });
    this.client.on("message", (topic, payload) => this.message(topic, payload.toString()));
  }

  async start() {
    await within(20_000, "the scripted daemon connects", new Promise((resolve) => this.client.once("connect", resolve)));
    await this.listen();
    await this.tell("status", { state: "online", boot: "b1", since_ms: 1 });
    await this.tell("info", { protocol: "1.0", node: this.node, ops: ["chat"], pools: ["hall2"], hardware: { arch: "x86_64", n_cores: 2 } });
    await this.tell("models", { active: "smollm2-135m", models: [{ name: "smollm2-135m" }, { name: "qwen3-4b" }] });
    await this.tell("state", { mode: "serving", model: "smollm2-135m", reasons: [], since_ms: 1 });
    return this;
  }

  listen() {
    const base = `orinoco/v1/${this.node}`;
    return this.client.subscribeAsync([`${base}/req/#`, `${base}/cmd/#`, `orinoco/v1/pool/hall2/req/#`], { qos: 1 });
  }

  /** After the broker was away. */
  async isBack() {
    await until("the scripted daemon is back", () => this.client.connected);
    await this.listen();
  }

  tell(rest, document, retain = true) {
    return this.client.publishAsync(`orinoco/v1/${this.node}/${rest}`, document === "" ? "" : JSON.stringify(document), { qos: 1, retain });
  }

  on(op, handler) {
    this.handlers.set(op, handler);
  }

  message(topic, payload) {
    this.heard.push({ topic, payload });
    const parts = topic.split("/");
    if (parts.includes("req")) {
      const [user, op, id] = parts.slice(-3);
      const say = (body) => this.client.publish(`orinoco/v1/resp/${user}/${id}`, JSON.stringify({ id, object: "chat.completion.chunk", model: "smollm2-135m", attempt: 1, final: false, orinoco: { node: this.node }, ...body }), { qos: 1 });
      this.handlers.get(op)?.({ id, topic, body: op === "cancel" ? undefined : JSON.parse(payload), say });
    } else if (payload !== "") {
      this.handlers.get(`cmd/${parts[4]}`)?.({ rest: parts.slice(3).join("/"), body: JSON.parse(payload) });
    }
  }

  /** accepted, pieces, final. */
  answer(say, pieces, finish = "stop") {
    this.accept(say);
    pieces.forEach((content, n) => say({ seq: n + 1, choices: [{ index: 0, delta: { content }, finish_reason: null }] }));
    this.finish(say, pieces.length + 1, finish);
  }

  accept(say, queue = 0) {
    say({ seq: 0, choices: [{ index: 0, delta: { role: "assistant", content: "" }, finish_reason: null }], orinoco: { node: this.node, queue } });
  }

  finish(say, seq, finish = "stop") {
    say({ seq, final: true, choices: [{ index: 0, delta: {}, finish_reason: finish }], usage: { prompt_tokens: 3, completion_tokens: 12, total_tokens: 15 }, orinoco: { node: this.node, tok_s: 31.25 } });
  }

  fail(say, seq, error) {
    say({ seq, final: true, error });
  }

  end() {
    return this.client.endAsync(true);
  }
}

/** Node-RED with a flow of a broker, an orinoco-node and what is given; helpers h1, h2, h3 on its outputs. */
async function load(port, node, more = []) {
  const flow = [
    { id: "broker", type: "mqtt-broker", broker: "127.0.0.1", port: String(port), clientid: "", autoConnect: true, protocolVersion: "5", keepalive: "60", cleansession: true },
    { id: "server", type: "orinoco-node", broker: "broker", root: "orinoco", kind: "node", target: "", user: "", model: "" },
    { id: "n", server: "server", wires: [["h1"], ["h2"], ["h3"]], ...node },
    { id: "h1", type: "helper" }, { id: "h2", type: "helper" }, { id: "h3", type: "helper" },
    ...more,
  ];
  const credentials = {};
  await helper.load([core, join, ...ours], flow, credentials);
  const out = { h1: [], h2: [], h3: [] };
  for (const name of Object.keys(out)) helper.getNode(name).on("input", (msg) => out[name].push(msg));
  const subject = helper.getNode("n");
  const shown = [];
  subject.on("call:status", (call) => shown.push(call.args[0]));
  return { subject, out, shown, server: helper.getNode("server") };
}

module.exports = { Broker, ScriptedDaemon, helper, load, until, within, freePort, wire };
