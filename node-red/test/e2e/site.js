// What the plays in a browser need: a daemon with a real model, a real Node-RED, an eye on telemetry.
"use strict";

const { execFile, execFileSync, spawn } = require("node:child_process");
const fs = require("node:fs");
const http = require("node:http");
const os = require("node:os");
const path = require("node:path");
const { promisify } = require("node:util");
const mqtt = require("mqtt");
const { freePort } = require("../ports.js");

const repository = path.resolve(__dirname, "../../..");
const program = path.join(repository, "target/release/orinoco");
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(what, test, ms = 30_000) {
  const end = Date.now() + ms;
  for (;;) {
    const found = await test();
    if (found) return found;
    if (Date.now() > end) throw new Error(`${what}: not within ${ms / 1000} s`);
    await wait(50);
  }
}

/** A child whose output goes to a file, and who ends with us. */
function start(command, args, log, options = {}) {
  const out = fs.openSync(log, "a");
  const child = spawn(command, args, { stdio: ["ignore", out, out], ...options });
  fs.closeSync(out);
  child.isOver = false;
  child.over = new Promise((resolve) => child.once("exit", (code, signal) => {
    child.isOver = true;
    resolve({ code, signal });
  }));
  return child;
}

/** A fleet's publisher: signed releases of a line, and a static web server for them. */
class Publisher {
  static async start() {
    const publisher = new Publisher();
    publisher.dir = fs.mkdtempSync(path.join(os.tmpdir(), "orinoco-publisher-"));
    publisher.repository = path.join(publisher.dir, "repository");
    publisher.keys = path.join(publisher.dir, "keys");
    await publisher.run("init", publisher.repository, "--keys", publisher.keys);
    publisher.server = http.createServer((request, response) => publisher.serve(request, response));
    await new Promise((resolve) => publisher.server.listen(0, "127.0.0.1", resolve));
    publisher.url = `http://127.0.0.1:${publisher.server.address().port}`;
    return publisher;
  }

  /** Never waited for in place: the web server is in this process. */
  run(...args) {
    return promisify(execFile)(path.join(repository, "target/release/orinoco-ota"), args);
  }

  /** The next release of "assistant", which is to answer `question` with something that matches `answer`. */
  async release(model, id, question, answer) {
    const manifest = path.join(this.dir, `${id}.json`);
    fs.writeFileSync(manifest, JSON.stringify({ model: { licence: "Apache-2.0" }, health: { load_ms_max: 60_000 } }));
    await this.run("add", this.repository, path.join(repository, "models", `${model}.gguf`), "--line", "assistant", "--id", id,
      "--licence", "Apache-2.0", "--manifest", manifest, "--golden", question, answer);
    await this.run("sign", this.repository, "--keys", this.keys);
  }

  serve(request, response) {
    const file = path.join(this.repository, path.normalize(decodeURIComponent(request.url.split("?")[0])));
    let size;
    try {
      size = fs.statSync(file).size;
    } catch {
      response.writeHead(404).end();
      return;
    }
    const asked = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "");
    const from = asked ? Number(asked[1]) : 0;
    const to = asked?.[2] ? Math.min(Number(asked[2]), size - 1) : size - 1;
    const headers = { "content-length": to - from + 1, "accept-ranges": "bytes" };
    if (asked) headers["content-range"] = `bytes ${from}-${to}/${size}`;
    response.writeHead(asked ? 206 : 200, headers);
    if (request.method === "HEAD" || size === 0) response.end();
    else fs.createReadStream(file, { start: from, end: to }).pipe(response).on("error", () => {});
  }

  end() {
    this.server.close();
    this.server.closeAllConnections();
    fs.rmSync(this.dir, { recursive: true, force: true });
  }
}

/** `orinoco run` with SmolLM2 and its own broker, a member of the publisher's fleet; keeps state and port over restarts. */
/** A wording that the node has for requests of one kind. */
const WORDINGS = `
[templates.fault]
system = "You judge faults of a hydraulic press."
user = "How severe is this fault?"
schema = '{"type": "object", "properties": {"severity": {"enum": ["watch", "service", "stop"]}}, "required": ["severity"], "additionalProperties": false}'

[[templates.fault.vars]]
name = "code"
type = "integer"

[[templates.fault.vars]]
name = "celsius"
type = "number"
line = "Temperature of the oil: {} degrees Celsius"
`;

class Daemon {
  static async start(publisher) {
    const daemon = new Daemon();
    daemon.publisher = publisher;
    daemon.dir = fs.mkdtempSync(path.join(os.tmpdir(), "orinoco-site-"));
    daemon.port = await freePort();
    // Orders are for operators, and from the first account on everybody needs one.
    daemon.login = { user: "plant", password: "for this test only" };
    const password = path.join(daemon.dir, "password");
    fs.writeFileSync(password, `${daemon.login.password}\n`, { mode: 0o600 });
    execFileSync(program, ["user", "add", daemon.login.user, "--role", "operator", "--password-file", password, "--state-dir", daemon.dir, "--set", "broker.mode=child"], { stdio: "pipe" });
    await daemon.up();
    const { user: username, password: secret } = daemon.login;
    daemon.client = mqtt.connect(`mqtt://127.0.0.1:${daemon.port}`, { protocolVersion: 5, reconnectPeriod: 200, username, password: secret });
    daemon.latest = {};
    daemon.client.on("message", (topic, payload) => {
      if (!topic.startsWith(`orinoco/v1/${daemon.node}/`)) return;
      daemon.latest[topic.split("/").slice(3).join("/")] = JSON.parse(payload.toString() || "null");
    });
    daemon.client.on("connect", () => daemon.client.subscribe(["status", "state", "models", "info", "tele/+", "ota/state"].map((rest) => `orinoco/v1/${daemon.node}/${rest}`), { qos: 1 }));
    await until("the model serves", () => daemon.latest.state?.mode === "serving", 60_000);
    return daemon;
  }

  async up() {
    const note = path.join(this.dir, "runtime.json");
    fs.rmSync(note, { force: true });
    const settings = {
      "node.name": "press-7", "paths.state_dir": this.dir, "paths.models_dir": path.join(repository, "models"), "model.active": "SmolLM2-135M-Instruct.Q4_1",
      "embeddings.model": "all-MiniLM-L6-v2.F16",
      "broker.mode": "child", "broker.port": this.port, "engine.backend": "cpu", "engine.n_threads": 1, "telemetry.interval_seconds": 1,
      [`users.${this.login.user}.priorities`]: "alarm,normal,batch",
      "ota.root_file": path.join(this.publisher.repository, "metadata/1.root.json"), "ota.fetch.sources": this.publisher.url,
      "ota.fetch.reserve_bytes": 0, "ota.fetch.bytes_per_second_max": 40_000_000, "ota.deploy.check_minutes": 0,
    };
    const config = path.join(this.dir, "wordings.toml");
    fs.writeFileSync(config, WORDINGS);
    this.log = path.join(this.dir, "orinoco.log");
    this.child = start(program, ["run", "--config", config, ...Object.entries(settings).flatMap(([key, value]) => ["--set", `${key}=${value}`])], this.log);
    await until("the daemon takes requests", () => {
      if (this.child.isOver) throw new Error(`the daemon ended:\n${fs.readFileSync(this.log, "utf8").slice(-2000)}`);
      return fs.existsSync(note);
    }, 60_000);
    this.node = JSON.parse(fs.readFileSync(note, "utf8")).node;
  }

  /** As by a power cut: nothing is said goodbye to. */
  async crash() {
    this.child.kill("SIGKILL");
    await this.child.over;
  }

  /** Numbers of telemetry that were read after now. */
  async numbers(kind) {
    const after = Date.now();
    return until(`telemetry of ${kind}`, () => this.latest[`tele/${kind}`]?.at_ms > after && this.latest[`tele/${kind}`]);
  }

  async idle() {
    await until("no request runs or waits", async () => {
      const { running_count: running, waiting_count: waiting } = await this.numbers("queue");
      const { streams_count: streams } = this.latest["tele/llm"] ?? {};
      return running === 0 && waiting === 0 && streams === 0;
    });
  }

  async end() {
    await this.client?.endAsync(true);
    this.child.kill("SIGTERM");
    await Promise.race([this.child.over, wait(10_000)]);
    if (!this.child.isOver) this.child.kill("SIGKILL");
    fs.rmSync(this.dir, { recursive: true, force: true });
  }
}

/** A real Node-RED with our package as npm would install it, and nothing of the user's. */
class NodeRed {
  /** modules: the folder in which node-red and the dashboard are installed; node: which Node.js runs it. */
  static async start(modules, node) {
    const red = new NodeRed();
    red.dir = fs.mkdtempSync(path.join(os.tmpdir(), "orinoco-node-red-"));
    const place = path.join(red.dir, "node_modules/@orinoco/node-red-orinoco");
    fs.mkdirSync(place, { recursive: true });
    const source = path.join(repository, "node-red");
    for (const name of [...JSON.parse(fs.readFileSync(path.join(source, "package.json"), "utf8")).files, "package.json"]) {
      fs.cpSync(path.join(source, name), path.join(place, name), { recursive: true });
    }
    fs.writeFileSync(path.join(red.dir, "package.json"), JSON.stringify({ name: "site", version: "1.0.0", dependencies: { "@orinoco/node-red-orinoco": "*" } }));
    red.port = await freePort();
    fs.writeFileSync(path.join(red.dir, "settings.js"), `module.exports = ${JSON.stringify({
      uiHost: "127.0.0.1", uiPort: red.port, flowFile: "flows.json", credentialSecret: "only for this test", mqttReconnectTime: 500,
      telemetry: { enabled: false, updateNotification: false }, editorTheme: { tours: false, projects: { enabled: false } },
      externalModules: { palette: { allowInstall: false } }, logging: { console: { level: "info", metrics: false, audit: false } },
    })};\n`);
    red.log = path.join(red.dir, "node-red.log");
    red.child = start(node, [path.join(modules, "node-red/red.js"), "--userDir", red.dir], red.log);
    red.url = `http://127.0.0.1:${red.port}`;
    await until("Node-RED starts", async () => {
      if (red.child.isOver) throw new Error(`Node-RED ended:\n${red.said().slice(-3000)}`);
      try {
        return (await fetch(`${red.url}/settings`)).ok;
      } catch {
        return false;
      }
    }, 60_000);
    red.version = (await (await fetch(`${red.url}/settings`)).json()).version;
    return red;
  }

  said() {
    return fs.readFileSync(this.log, "utf8");
  }

  async end() {
    this.child.kill("SIGTERM");
    await Promise.race([this.child.over, wait(15_000)]);
    if (!this.child.isOver) this.child.kill("SIGKILL");
    fs.rmSync(this.dir, { recursive: true, force: true });
  }
}

module.exports = { Daemon, NodeRed, Publisher, until, wait, freePort, repository };
