// The examples as a person runs them: imported in the editor, deployed, their buttons pressed, in headless
// Chromium, with a real Node-RED, the real daemon and a real model.
//
//   node run.js MODULES [--node PROGRAM] [--shots FOLDER] [--brief]
//
// MODULES: the node_modules with node-red, @flowfuse/node-red-dashboard; mqtt and puppeteer-core come from
// NODE_PATH. --node: the Node.js for Node-RED. --shots: keep the pictures. --brief: the plays that a new version
// of Node-RED could break, without the restarts.
"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");
const path = require("node:path");
const puppeteer = require("puppeteer-core");
const { Daemon, NodeRed, Publisher, until, wait } = require("./site");

const [modules, ...options] = process.argv.slice(2);
const option = (name) => (options.includes(name) ? options[options.indexOf(name) + 1] : undefined);
const shots = option("--shots");
const isBrief = options.includes("--brief");
const chromium = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find((file) => fs.existsSync(file));

let publisher;
let daemon;
let red;
let page;
let browser;

async function shoot(name, of = page) {
  if (!shots) return;
  // Without the editor's own messages of success, and without a tooltip.
  if (of === page) {
    await page.mouse.move(700, 780);
    await page.evaluate(() => document.querySelectorAll(".red-ui-notification").forEach((message) => { message.style.display = "none"; }));
    await wait(400);
  }
  await of.screenshot({ path: path.join(shots, `${name}.png`) });
}

/** The editor, with one example in it as the import dialog brings it, and the broker's port set; long: tokens of a long answer. */
async function open(example, long) {
  const dirty = await page.evaluate(() => window.RED?.nodes?.dirty?.());
  if (dirty) await page.evaluate(() => { window.onbeforeunload = null; RED.nodes.dirty(false); });
  await fetch(`${red.url}/flows`, { method: "POST", headers: { "content-type": "application/json", "Node-RED-Deployment-Type": "full" }, body: "[]" });
  await page.goto(red.url, { waitUntil: "domcontentloaded" });
  await page.waitForFunction("window.RED && RED.nodes && RED.nodes.getType && RED.nodes.getType('orinoco-chat') && RED.workspaces.count() > 0", { timeout: 60_000 });
  await page.evaluate(async (name, port, login, nTokens) => {
    const nodes = await $.getJSON(`library/examples/flows/@orinoco/node-red-orinoco/${name}`);
    for (const node of nodes) {
      if (node.type === "mqtt-broker") node.port = String(port);
      const wanted = nTokens && node.props?.find((prop) => prop.p === "max_tokens");
      if (wanted) wanted.v = String(nTokens);
      if (nTokens && node.priority === "batch") node.maxTokens = String(nTokens);
    }
    RED.view.importNodes(nodes, { generateIds: false, addFlow: false, touchImport: true });
    RED.workspaces.show(nodes[0].id);
    for (const node of nodes.filter(({ type }) => type === "mqtt-broker")) {
      Object.assign(RED.nodes.node(node.id), { credentials: { ...login, has_password: true }, changed: true });
    }
    // Only the example's own tab, and our nodes in the palette.
    RED.nodes.eachWorkspace((tab) => { if (tab.id !== nodes[0].id) RED.workspaces.delete(tab); });
    [...document.querySelectorAll(".red-ui-palette-header")].find((header) => header.textContent.includes("Orinoco"))?.scrollIntoView();
    RED.view.redraw(true);
    RED.sidebar.show("debug");
  }, example, daemon.port, daemon.login, long);
  await deploy();
}

async function deploy() {
  await page.evaluate(() => { RED.nodes.dirty(true); RED.deploy.setDeploymentType?.("full"); });
  const before = red.said().split("Started flows").length;
  await page.evaluate(() => RED.actions.invoke("core:deploy-flows"));
  await until("the flows start", () => red.said().split("Started flows").length > before);
  await page.waitForFunction("!RED.nodes.dirty()", { timeout: 30_000 });
}

const press = (id) => page.evaluate((which) => fetch(`inject/${which}`, { method: "POST", headers: { "Node-RED-API-Version": "v2" } }).then((answer) => answer.ok), id);
/** What the debug sidebar shows of one debug node, newest last. */
const debug = (name) => page.evaluate((which) => [...document.querySelectorAll(".red-ui-debug-msg")]
  .filter((message) => message.querySelector(".red-ui-debug-msg-name")?.textContent.includes(which))
  .map((message) => message.querySelector(".red-ui-debug-msg-payload")?.textContent ?? ""), name);
const statusOf = (id) => page.evaluate((which) => RED.nodes.node(which)?.status?.text ?? "", id);
const result = (name, ms = 60_000) => until(`something in debug "${name}"`, async () => (await debug(name))[0], ms);

const plays = {
  async "hello: tokens come, join to the whole answer, and the status counts them"() {
    await open("hello");
    await until("the node is seen", async () => (await statusOf("hello-chat")) === daemon.node);
    await press("hello-ask");
    const whole = await result("whole answer");
    const joined = await result("joined again");
    const tokens = await debug("tokens as they come");
    assert.ok(tokens.length >= 3, `${tokens.length} pieces`);
    assert.ok(joined.length > 10 && whole.length > 0);
    assert.match(await statusOf("hello-chat"), /^\d+ tok · [\d.]+ tok\/s$/);
    await shoot("editor");
  },

  async "stop: a cancel from a flow frees the slot"() {
    await press("hello-long");
    await until("the stream runs", async () => (await daemon.numbers("llm")).streams_count === 1);
    await shoot("streaming");
    await press("hello-stop");
    assert.match(await result("errors"), /called off/);
    await daemon.idle();
  },

  async "redeploy: nothing of a stream goes on"() {
    await press("hello-long");
    await until("the stream runs", async () => (await daemon.numbers("llm")).streams_count === 1);
    await deploy();
    await daemon.idle();
  },

  async "anomaly-explainer: a reading outside its limits becomes JSON that the flow acts on"() {
    await open("anomaly-explainer");
    await until("the node is seen", async () => (await statusOf("anomaly-explain")) === daemon.node);
    await wait(300);
    await press("anomaly-good");
    await press("anomaly-bad");
    const ends = async () => [...(await debug("for the shift book")), ...(await debug("stop the press")), ...(await debug("why it was not"))];
    await until("an end", async () => (await ends()).length > 0, 60_000);
    await shoot("example-anomaly");
    assert.deepEqual(await debug("why it was not"), []);
    const [note] = await ends();
    assert.match(note, /severity: "(watch|service|stop)"|object/);
    assert.equal((await ends()).length, 1, "the good reading is asked about as well");
  },

  async "template: the wording is the node's, and the message has what varies"() {
    await open("hello");
    await until("the node is seen", async () => (await statusOf("hello-chat")) === daemon.node);
    await page.evaluate(() => RED.editor.edit(RED.nodes.node("hello-chat")));
    // Prepared, which its lists show; and not key by key: the dialog takes the focus away when it has slid in.
    await page.waitForFunction((node) => document.querySelector("#orinoco-seen")?.textContent.includes(node), { timeout: 30_000 }, daemon.node);
    await page.evaluate(() => { $("#node-input-template").val("fault").trigger("change"); $("#node-dialog-ok").click(); });
    await page.waitForFunction(() => RED.nodes.node("hello-chat").template === "fault", { timeout: 30_000 });
    await page.waitForFunction(() => !document.querySelector("#orinoco-seen"), { timeout: 30_000 });
    await page.evaluate(() => {
      const buttons = { "hello-ask": '{"code": 1734, "celsius": 81.2}', "hello-long": '{"code": 1734}' };
      for (const [id, payload] of Object.entries(buttons)) Object.assign(RED.nodes.node(id), { payload, payloadType: "json", changed: true });
      Object.assign(RED.nodes.node("hello-result"), { complete: "payload", targetType: "msg", changed: true });
    });
    await deploy();
    await until("the node is seen", async () => (await statusOf("hello-chat")) === daemon.node);
    await press("hello-ask");
    assert.match(await result("whole answer"), /"severity": ?"(watch|service|stop)"/);
    assert.deepEqual(await debug("errors"), []);
    await press("hello-long");
    assert.match(await result("errors"), /celsius/);
  },

  async "alarm: it is answered before the batch is done, or the fallback says why not"() {
    await open("alarm", 150); // Some seconds of work, so that it is not over before it is seen.
    await until("the node is seen", async () => (await statusOf("alarm-batch")) === daemon.node);
    await press("alarm-many");
    await until("the batch runs", async () => (await daemon.numbers("llm")).streams_count > 0);
    await press("alarm-now");
    const [advice, fallback] = await until("advice or fallback", async () => {
      const found = [(await debug("the advice"))[0], (await debug("fallback"))[0]];
      return found.some(Boolean) && found;
    }, 120_000);
    const nDone = (await debug("summary")).length;
    assert.ok(advice || /deadline_exceeded/.test(fallback), fallback);
    assert.ok(nDone < 10, "the alarm waited for the whole batch");
    await until("ten summaries", async () => (await debug("summary")).length === 10, 120_000);
    assert.deepEqual(await debug("refused"), []);
    await shoot("example-alarm");
  },

  async "tool-call: a call reaches the device, and what the device said the model"() {
    await open("tool-call");
    await until("the node is seen", async () => (await statusOf("tools-chat")) === daemon.node);
    await press("tools-ask");
    const [said, error] = await until("an end", async () => {
      const found = [(await debug("what it says"))[0], (await debug("errors"))[0]];
      return found.some(Boolean) && found;
    }, 60_000);
    await shoot("example-tool-call");
    assert.equal(error, undefined);
    assert.ok(said.length > 0);
    assert.match(await statusOf("tools-check"), /^set_valve ([1-4] (open|closed)|refused)$/);
  },

  async "fleet-update: a group's wish, a release with progress, one that fails its trial, and back"() {
    const ota = () => daemon.latest["ota/state"] ?? {};
    await open("fleet-update");
    await until("the node is seen", async () => (await statusOf("fleet-listed")).startsWith("SmolLM2"));
    await press("fleet-list");
    assert.match(await result("models"), /SmolLM2|array/);

    await press("fleet-asap");
    await until("the wish is fulfilled", () => ota().state === "committed" && ota().installed_version === "smol-1", 60_000);
    await until("the table says so", async () => /1 nodes, 1 committed, 0 not/.test(await statusOf("fleet-table")));

    await publisher.release("gemma-3-270m-q4_k_m", "gemma-2", "Say hello.", ".");
    await press("fleet-install");
    await until("the download is shown", async () => (await debug("progress")).some((line) => /░.*downloading/.test(line)), 60_000);
    await shoot("example-fleet");
    const outcomes = () => debug("outcome");
    await until("in service", async () => (await outcomes()).some((line) => /state: "committed"/.test(line)), 90_000);
    await until("it is told", () => ota().installed_version === "gemma-2");
    assert.match((await debug("progress")).join("\n"), /probing/);
    assert.equal(await statusOf("fleet-installit"), "assistant 2");

    await publisher.release("SmolLM2-135M-Instruct.Q4_1", "smol-3", "What is the capital of France?", "xyzzy");
    await press("fleet-install");
    const why = await until("why not", async () => (await debug("errors"))[0], 90_000);
    assert.match(why, /rolled back: golden prompt 1/);
    assert.equal(await statusOf("fleet-installit"), "failed its trial");
    await until("it is told", () => ota().installed_version === "gemma-2");

    await press("fleet-back");
    await until("the release before", async () => (await outcomes()).some((line) => /state: "rolled_back"/.test(line)), 60_000);
    await until("it is told", () => ota().installed_version === "smol-1");
    await press("fleet-use");
    await until("a model by order", async () => (await outcomes()).some((line) => /action: "use"/.test(line)));
    assert.match((await debug("events")).join("\n"), /committed|ota/);
    await until("the model serves", () => daemon.latest.state?.mode === "serving");
  },

  async "similar-faults: the nearest past fault, by vectors"() {
    await open("similar-faults");
    await until("the node is seen", async () => (await statusOf("similar-vectors")) === daemon.node);
    await press("similar-learn");
    await until("an end", async () => (await debug("errors")).length > 0 || /learnt/.test(await statusOf("similar-compare")));
    assert.deepEqual(await debug("errors"), []);
    await press("similar-ask");
    assert.match(await result("remedy"), /^"?like ".+" \(-?[0-9.]+\): /);
  },

  async "edit dialogs: each opens, with what is there in its lists"() {
    await open("fleet-update");
    await page.evaluate(() => { RED.sidebar.show("help"); });
    for (const type of ["orinoco-chat", "orinoco-embed", "orinoco-telemetry", "orinoco-model", "orinoco-event"]) {
      await page.evaluate((which) => {
        const node = RED.nodes.node("fleet-installit").type === which ? RED.nodes.node("fleet-installit") : RED.nodes.filterNodes({ type: which })[0];
        if (node) return RED.editor.edit(node);
        const defaults = RED.nodes.getType(which).defaults;
        const made = { id: `made-${which}`, type: which, z: RED.workspaces.active(), x: 600, y: 500, wires: [], _def: RED.nodes.getType(which), inputs: 1, outputs: 1, changed: false, dirty: true };
        for (const [key, { value }] of Object.entries(defaults)) made[key] = value;
        made.server = "fleet-orinoco";
        RED.nodes.add(made);
        return RED.editor.edit(made);
      }, type);
      await page.waitForSelector("#orinoco-seen", { timeout: 30_000 });
      await page.waitForFunction((node) => document.querySelector("#orinoco-seen").textContent.includes(node), { timeout: 30_000 }, daemon.node);
      const untranslated = await page.evaluate(() => document.querySelector(".red-ui-tray-body").innerText.match(/orinoco\.[a-z]+\.\w+/)?.[0]);
      assert.equal(untranslated, undefined);
      if (type === "orinoco-chat") {
        await page.click("#node-input-model");
        await page.waitForFunction(() => [...document.querySelectorAll(".orinoco-entry")].some((entry) => entry.textContent.includes("SmolLM2")), { timeout: 30_000 });
        await wait(300);
      } else {
        await wait(500);
      }
      await shoot(`dialog-${type.slice(8)}`);
      await page.evaluate(() => $("#node-dialog-cancel").click());
      await page.waitForFunction(() => !document.querySelector("#orinoco-seen"), { timeout: 30_000 });
      await wait(400);
    }
    await page.evaluate(() => RED.editor.editConfig("", "orinoco-node", "fleet-orinoco"));
    await page.waitForFunction((node) => document.querySelector("#orinoco-config-seen")?.textContent.includes(node), { timeout: 30_000 }, daemon.node);
    await wait(500);
    await shoot("dialog-node");
    await page.evaluate(() => $("#node-config-dialog-cancel").click());
    await wait(400);
  },

  async "dashboard: tokens arrive in the browser, and gauges move"() {
    await open("dashboard");
    await until("the node is seen", async () => (await statusOf("dash-chat")) === daemon.node);
    const board = await browser.newPage();
    // Left open, it would keep the editor in the background, where Chromium lets pages sleep.
    try {
      await board.setViewport({ width: 1280, height: 760 });
      await board.goto(`${red.url}/dashboard/orinoco`, { waitUntil: "domcontentloaded" });
      const field = await board.waitForSelector(".orinoco-form input", { timeout: 30_000 });
      await wait(1500);
      await field.type("Tell a long story about a pump that draws air, and how the oil pressure falls.");
      await board.click(".orinoco-ask");
      const text = () => board.evaluate(() => document.querySelector(".orinoco-answer")?.textContent ?? "");
      const early = await until("the first tokens", async () => (await text()).length > 40 && text());
      const hasEnded = () => board.evaluate(() => /tok\/s/.test(document.querySelector(".orinoco-note")?.textContent ?? ""));
      await until("telemetry counts them", async () => (await daemon.numbers("llm")).tok_s > 0 || hasEnded());
      await until("more tokens", async () => (await text()).length > early.length + 200 || hasEnded());
      await shoot("dashboard-streaming", board);
      await until("the answer ends", hasEnded, 60_000);
      assert.ok((await text()).length > early.length);
      await wait(2500);
      await shoot("dashboard", board);
      assert.ok(await board.evaluate((node) => document.body.textContent.includes(`${node}: serving`), daemon.node));
    } finally {
      await board.close();
    }
  },

  async "daemon restart: the answer comes all the same, once"() {
    await open("hello", 1000);
    await until("the node is seen", async () => (await statusOf("hello-chat")) === daemon.node);
    await press("hello-long");
    await until("the stream runs", async () => (await debug("tokens as they come")).length > 5);
    await daemon.crash();
    await until("the status says so", async () => (await statusOf("hello-chat")) === "waits for the broker");
    await wait(1000);
    await daemon.up();
    await result("whole answer", 120_000);
    assert.equal((await debug("whole answer")).length, 1);
    assert.equal((await debug("errors")).length, 0);
    await daemon.idle();
  },

  async "broker restart: the answer comes all the same, once"() {
    await until("connected", async () => /tok/.test(await statusOf("hello-chat")) || (await statusOf("hello-chat")) === daemon.node);
    await page.evaluate(() => RED.debug.clearMessageList?.(true, true) ?? $("#red-ui-sidebar-debug-clear").click());
    const before = (await debug("whole answer")).length;
    await press("hello-long");
    await until("the stream runs", async () => (await daemon.numbers("llm")).streams_count === 1);
    const broker = fs.readdirSync("/proc").filter((pid) => /^\d+$/.test(pid)).find((pid) => {
      try {
        const parent = fs.readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1].split(" ")[1];
        return Number(parent) === daemon.child.pid && fs.readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0").includes("broker");
      } catch {
        return false;
      }
    });
    assert.ok(broker, "the daemon's broker is its child");
    process.kill(Number(broker), "SIGKILL");
    await until("the status says so", async () => (await statusOf("hello-chat")) === "waits for the broker");
    await until("the answer", async () => (await debug("whole answer")).length > before, 120_000);
    assert.equal((await debug("whole answer")).length, before + 1);
    assert.equal((await debug("errors")).length, 0);
    await daemon.idle();
  },

  async "slow flow: a flow that blocks loses no result"() {
    const nodes = JSON.parse(fs.readFileSync(path.join(__dirname, "../../examples/hello.json"), "utf8"));
    for (const node of nodes) {
      if (node.type === "mqtt-broker") Object.assign(node, { port: String(daemon.port), credentials: daemon.login });
      if (node.id === "hello-chat") node.wires[0] = ["slow"];
      if (node.id === "hello-result") Object.assign(node, { complete: "payload", targetType: "msg" });
    }
    nodes.push({ id: "slow", type: "function", z: "hello", name: "slow", func: "const end = Date.now() + 150; while (Date.now() < end); return msg;", outputs: 1, x: 600, y: 400, wires: [["hello-tokens", "hello-join"]], libs: [] });
    await fetch(`${red.url}/flows`, { method: "POST", headers: { "content-type": "application/json", "Node-RED-Deployment-Type": "full" }, body: JSON.stringify(nodes) });
    await page.goto(red.url, { waitUntil: "domcontentloaded" });
    await page.waitForFunction("window.RED && RED.nodes && RED.nodes.node('hello-chat')", { timeout: 60_000 });
    await page.evaluate(() => RED.sidebar.show("debug"));
    await until("the node is seen", async () => (await statusOf("hello-chat")) === daemon.node);
    await press("hello-ask");
    const whole = await result("whole answer", 90_000);
    // Every piece went through, in order: the join node has the same text.
    assert.equal(await result("joined again", 90_000), whole);
    assert.equal((await debug("errors")).length, 0);
    assert.match(await statusOf("hello-chat"), /^\d+ tok · [\d.]+ tok\/s$/);
    await daemon.idle();
  },
};

const onlyFull = new Set(["daemon restart", "broker restart", "slow flow", "alarm", "fleet-update"]);

async function main() {
  assert.ok(chromium, "no Chromium: scripts/test.sh installs it");
  if (shots) fs.mkdirSync(shots, { recursive: true });
  publisher = await Publisher.start();
  await publisher.release("SmolLM2-135M-Instruct.Q4_1", "smol-1", "What is 2+2?", "4");
  daemon = await Daemon.start(publisher);
  red = await NodeRed.start(path.resolve(modules), option("--node") ?? process.execPath);
  browser = await puppeteer.launch({ executablePath: chromium, args: ["--no-sandbox", "--disable-dev-shm-usage"], defaultViewport: { width: 1440, height: 800 } });
  page = await browser.newPage();
  page.on("dialog", (dialog) => dialog.accept());
  const wrong = [];
  page.on("pageerror", (error) => wrong.push(error.message));
  const wanted = process.env.PLAY;
  let nFailed = 0;
  for (const [name, play] of Object.entries(plays)) {
    if ((isBrief && onlyFull.has(name.split(":")[0])) || (wanted && !wanted.split(",").some((part) => name.startsWith(part)))) continue;
    const from = Date.now();
    try {
      await play();
      console.log(`ok      Node-RED ${red.version}: ${name} (${((Date.now() - from) / 1000).toFixed(1)} s)`);
    } catch (error) {
      nFailed += 1;
      console.log(`FAILED  Node-RED ${red.version}: ${name}: ${error.stack}`);
      await shoot(`failed-${name.split(":")[0].replaceAll(" ", "-")}`);
    }
  }
  for (const message of new Set(wrong)) console.log(`FAILED  the editor: ${message}`);
  const crashes = red.said().split("\n").filter((line) => /Uncaught|UnhandledPromise|TypeError|ReferenceError/.test(line));
  for (const line of crashes) console.log(`FAILED  Node-RED's log: ${line}`);
  assert.ok(!red.child.isOver, "Node-RED ended");
  return nFailed + wrong.length + crashes.length;
}

main()
  .catch((error) => {
    console.log(`FAILED  ${error.stack}`);
    return 1;
  })
  .then(async (nFailed) => {
    await browser?.close();
    if (process.env.KEEP_LOG && red) fs.copyFileSync(red.log, process.env.KEEP_LOG);
    await red?.end();
    await daemon?.end();
    publisher?.end();
    process.exit(nFailed > 0 ? 1 : 0);
  });
