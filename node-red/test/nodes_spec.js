// Each node in a real Node-RED runtime, over a real Mosquitto, against a daemon that follows a script.
"use strict";

const assert = require("node:assert/strict");
const { Broker, ScriptedDaemon, helper, load, until, wire } = require("./support");

describe("nodes", () => {
  let broker;
  let daemon;

  before(async () => {
    broker = await new Broker().start();
    await new Promise((resolve) => helper.startServer(resolve));
  });
  after(async () => {
    await new Promise((resolve) => helper.stopServer(resolve));
    await broker.end();
  });
  beforeEach(async () => {
    daemon = await new ScriptedDaemon(broker.port).start();
  });
  afterEach(async () => {
    await helper.unload();
    await daemon.end();
  });

  const chatNode = { type: "orinoco-chat", timeout: "30", concurrency: "4", queue: "2", turns: "8" };
  /** Loaded, connected, and the node seen. */
  async function ready(node, more) {
    const loaded = await load(broker.port, node, more);
    await until("the node is seen", () => loaded.server.link.nodes().length > 0 && loaded.server.link.connected);
    return loaded;
  }
  /** The broker comes back, then the daemon, which a broker with a disk would have remembered, then the flow. */
  async function restart(server) {
    await broker.start();
    await daemon.isBack();
    server.broker.client.reconnect();
  }
  const requests = (op) => daemon.heard.filter(({ topic }) => topic.includes(`/${op}/`));

  describe("orinoco-chat", () => {
    it("streams pieces with parts, and the whole as a result", async () => {
      daemon.on("chat", ({ say }) => daemon.answer(say, ["Seven ", "bar."]));
      const { subject, out, shown } = await ready(chatNode);
      subject.receive({ payload: "How much?", topic: "press", mine: { kept: true } });
      const [result] = await until("a result", () => out.h2.length > 0 && out.h2);
      assert.deepEqual(out.h1.map((msg) => msg.payload), ["Seven ", "bar.", ""]);
      assert.deepEqual(out.h1.map((msg) => msg.parts.index), [0, 1, 2]);
      assert.equal(out.h1[2].parts.count, 3);
      assert.equal(out.h1[2].complete, true);
      assert.equal(new Set(out.h1.map((msg) => msg.parts.id)).size, 1);
      assert.equal(result.payload, "Seven bar.");
      assert.equal(result.topic, "press");
      assert.deepEqual(result.mine, { kept: true });
      assert.equal(result.usage.completion_tokens, 12);
      assert.equal(result.orinoco.node, "press-7");
      assert.equal(out.h3.length, 0);
      assert.equal(shown.at(-1).text, "12 tok · 31 tok/s");
    });

    it("gives pieces that the core join node puts together", async () => {
      daemon.on("chat", ({ say }) => daemon.answer(say, ["a", "b", "c"]));
      const joiner = { id: "j", type: "join", mode: "auto", wires: [["h1"]] };
      const { subject, out } = await ready({ ...chatNode, wires: [["j"], ["h2"], ["h3"]] }, [joiner]);
      subject.receive({ payload: "x" });
      await until("the joined text", () => out.h1.length > 0);
      assert.equal(out.h1[0].payload, "abc");
    });

    it("drops the pieces of an answer that starts anew", async () => {
      daemon.on("chat", ({ say }) => {
        daemon.accept(say);
        say({ seq: 1, choices: [{ delta: { content: "void" } }] });
        say({ seq: 0, attempt: 2, choices: [{ delta: { content: "" } }], orinoco: { node: "press-7", queue: 0 } });
        say({ seq: 1, attempt: 2, choices: [{ delta: { content: "good" } }] });
        say({ seq: 2, attempt: 2, final: true, choices: [{ delta: {}, finish_reason: "stop" }] });
      });
      const joiner = { id: "j", type: "join", mode: "auto", wires: [["h1"]] };
      const { subject, out } = await ready({ ...chatNode, wires: [["j"], ["h2"], ["h3"]] }, [joiner]);
      subject.receive({ payload: "x" });
      await until("a result", () => out.h2.length > 0 && out.h1.length > 0);
      assert.equal(out.h2[0].payload, "good");
      assert.deepEqual(out.h1.map((msg) => msg.payload), ["good"]);
    });

    it("sends errors to the third output, with code and sentence", async () => {
      daemon.on("chat", ({ say }) => daemon.fail(say, 0, { message: "32 jobs wait", type: "rate_limit_error", code: "queue_full", retry_after_ms: 1500 }));
      const { subject, out, shown } = await ready(chatNode);
      subject.receive({ payload: "x" });
      const [failed] = await until("an error", () => out.h3.length > 0 && out.h3);
      assert.equal(failed.payload, "32 jobs wait");
      assert.deepEqual([failed.error.code, failed.error.retry_after_ms], ["queue_full", 1500]);
      assert.equal(shown.at(-1).text, "queue is full");
      assert.equal(out.h2.length, 0);
    });

    it("leaves errors to catch nodes where nothing is wired to the third output", async () => {
      const catcher = { id: "c", type: "catch", scope: null, wires: [["h3"]], z: "tab" };
      daemon.on("chat", ({ say }) => daemon.fail(say, 0, { message: "no", type: "x", code: "no_model" }));
      const { subject } = await ready({ ...chatNode, wires: [["h1"], ["h2"], []] }, [catcher].slice(1));
      const failed = new Promise((resolve) => subject.on("call:error", (call) => resolve(call.args[0])));
      subject.receive({ payload: "x" });
      assert.match(String(await failed), /no_model: no/);
    });

    it("calls off one request by its id, and all without", async () => {
      daemon.on("chat", ({ id, say }) => {
        daemon.accept(say);
        say({ seq: 1, choices: [{ delta: { content: "half" } }] });
        daemon.on("cancel", ({ id: which, say: sayTo }) => daemon.finish(which === id ? say : sayTo, 2, "cancelled"));
      });
      const { subject, out } = await ready(chatNode);
      subject.receive({ payload: "x", requestId: "r1" });
      await until("the first piece", () => out.h1.length > 0);
      subject.receive({ cancel: true, requestId: "r1" });
      const failed = await until("the end", () => out.h3[0]);
      assert.deepEqual([failed.error.code, failed.text, failed.requestId], ["cancelled", "half", "r1"]);
      assert.deepEqual(requests("cancel").map(({ topic, payload }) => [topic, payload]), [["orinoco/v1/press-7/req/local/cancel/r1", ""]]);
      subject.receive({ payload: "x", requestId: "r2" });
      await until("the second is asked", () => requests("chat").some(({ topic }) => topic.endsWith("/r2")));
      subject.receive({ cancel: true });
      await until("both ended", () => out.h3.length === 2);
    });

    it("bounds what runs and what waits", async () => {
      const open = [];
      daemon.on("chat", ({ say }) => open.push(say));
      const { subject, out, shown } = await ready({ ...chatNode, concurrency: "1", queue: "1" });
      for (const payload of ["1", "2", "3"]) subject.receive({ payload });
      const refused = await until("the third is refused", () => out.h3[0]);
      assert.equal(refused.error.code, "busy");
      await until("one runs", () => open.length === 1);
      assert.ok(shown.some((status) => status.text === "1 running, 1 waiting"), JSON.stringify(shown));
      daemon.answer(open[0], ["one"]);
      await until("the second is asked", () => open.length === 2);
      daemon.answer(open[1], ["two"]);
      await until("both results", () => out.h2.length === 2);
    });

    it("remembers the turns of a session, and forgets them when told", async () => {
      const bodies = [];
      daemon.on("chat", ({ body, say }) => {
        bodies.push(body);
        daemon.answer(say, [`answer ${bodies.length}`]);
      });
      const { subject, out } = await ready({ ...chatNode, system: "Be brief.", session: "hall" });
      for (const [n, payload] of ["one", "two"].entries()) {
        subject.receive({ payload });
        await until("a result", () => out.h2.length === n + 1);
      }
      assert.deepEqual(bodies[1].messages.map(({ role, content }) => `${role}: ${content}`), ["system: Be brief.", "user: one", "assistant: answer 1", "user: two"]);
      assert.equal(bodies[1].session, "hall");
      subject.receive({ forget: true });
      subject.receive({ payload: "three" });
      await until("the third", () => bodies.length === 3);
      assert.equal(bodies[2].messages.length, 2);
    });

    it("parses an answer held to a schema, and says when it is none", async () => {
      const answers = ['{"cause": "worn seal"}', "Well, the seal"];
      daemon.on("chat", ({ say }) => daemon.answer(say, [answers.shift()]));
      const { subject, out } = await ready({ ...chatNode, schema: '{"type":"object"}' });
      subject.receive({ payload: "why?" });
      await until("a result", () => out.h2.length > 0);
      assert.deepEqual(out.h2[0].payload, { cause: "worn seal" });
      subject.receive({ payload: "why?" });
      const failed = await until("an error", () => out.h3[0]);
      assert.equal(failed.error.code, "no_json");
      assert.equal(failed.text, "Well, the seal");
    });

    it("hands out the calls of tools with the conversation to go on with", async () => {
      const bodies = [];
      daemon.on("chat", ({ body, say }) => {
        bodies.push(body);
        if (bodies.length > 1) return daemon.answer(say, ["It is 7 bar."]);
        daemon.accept(say);
        say({ seq: 1, choices: [{ delta: { tool_calls: [{ index: 0, id: "c1", function: { name: "read", arguments: '{"which":' } }] } }] });
        say({ seq: 2, choices: [{ delta: { tool_calls: [{ index: 0, function: { arguments: '"p1"}' } }] } }] });
        return daemon.finish(say, 3, "tool_calls");
      });
      const { subject, out } = await ready({ ...chatNode, tools: '[{"type":"function","function":{"name":"read"}}]' });
      subject.receive({ payload: "pressure?" });
      const call = await until("a call", () => out.h2[0]);
      assert.deepEqual(call.tool_calls[0].function, { name: "read", arguments: '{"which":"p1"}' });
      subject.receive({ messages: [...call.messages, { role: "tool", tool_call_id: "c1", content: "7 bar" }] });
      await until("the answer", () => out.h2.length === 2);
      assert.deepEqual(bodies[1].messages.map(({ role }) => role), ["user", "assistant", "tool"]);
      assert.equal(out.h2[1].payload, "It is 7 bar.");
    });

    it("asks again under the same id when nothing is heard", async () => {
      daemon.on("chat", ({ say }) => {
        if (requests("chat").length > 1) daemon.answer(say, ["late"]);
      });
      const { subject, out } = await ready(chatNode);
      subject.receive({ payload: "x" });
      await until("a result", () => out.h2.length > 0);
      const [first, second] = requests("chat");
      assert.deepEqual(first, second);
    });

    it("loses no answer when the broker restarts, and says what it waits for", async () => {
      let open;
      daemon.on("chat", ({ say }) => {
        if (!open) {
          daemon.accept(say);
          say({ seq: 1, choices: [{ delta: { content: "one " } }] });
          open = say;
        } else {
          // Said again, as a node does for a request that has ended.
          daemon.answer(say, ["one ", "two"]);
        }
      });
      const { subject, out, shown, server } = await ready(chatNode);
      server.broker.client.options.reconnectPeriod = 0;
      subject.receive({ payload: "x" });
      await until("the first piece", () => out.h1.length === 1);
      await broker.stop();
      await until("the loss is shown", () => shown.some((status) => status.text === "waits for the broker"));
      await restart(server);
      await until("a result", () => out.h2.length > 0);
      assert.equal(out.h2[0].payload, "one two");
      assert.deepEqual(out.h1.map((msg) => msg.payload), ["one ", "two", ""]);
    });

    it("calls off what runs when the flow is deployed anew", async () => {
      daemon.on("chat", ({ say }) => daemon.accept(say));
      const { subject, server } = await ready(chatNode);
      subject.receive({ payload: "x", requestId: "r9" });
      await until("it runs", () => server.link.exchanges.get("r9")?.requester.receiver.node === "press-7");
      await subject.close();
      await until("the cancel has come", () => requests("cancel").length === 1);
      assert.match(requests("cancel")[0].topic, /cancel\/r9$/);
      assert.equal(server.link.exchanges.size, 0);
    });

    it("calls off later what ran when it could not be told", async () => {
      daemon.on("chat", ({ say }) => daemon.accept(say));
      const { subject, server } = await ready(chatNode);
      server.broker.client.options.reconnectPeriod = 0;
      subject.receive({ payload: "x", requestId: "r10" });
      await until("it runs", () => requests("chat").length === 1);
      await broker.stop();
      await until("the loss is seen", () => !server.link.connected);
      await subject.close();
      await restart(server);
      await until("the cancel has come", () => requests("cancel").length > 0);
    });

    it("turns to another member when a pool's node is full", async () => {
      daemon.on("chat", ({ topic, say }) => {
        const n = requests("chat").length;
        assert.match(topic, /pool\/hall2/);
        if (n === 1) daemon.fail(say, 0, { message: "8 wait", type: "unavailable_error", code: "draining", retry_after_ms: 50 });
        else daemon.answer(say, ["from the pool"]);
      });
      const { subject, out } = await ready(chatNode);
      subject.receive({ payload: "x", pool: "hall2" });
      await until("a result", () => out.h2.length > 0);
      assert.equal(out.h2[0].payload, "from the pool");
      assert.equal(out.h3.length, 0);
    });

    it("gives up after its time, and calls off", async () => {
      daemon.on("chat", ({ say }) => daemon.accept(say));
      daemon.on("cancel", ({ say }) => daemon.finish(say, 1, "cancelled"));
      const { subject, out } = await ready({ ...chatNode, timeout: "1" });
      subject.receive({ payload: "x" });
      const failed = await until("an error", () => out.h3[0]);
      assert.equal(failed.error.code, "timeout");
      await until("the cancel has come", () => requests("cancel").length === 1);
    });

    it("says what is wrong with a question without asking it", async () => {
      const { subject, out } = await ready(chatNode);
      subject.receive({ payload: "x", temperature: 7 });
      subject.receive({ payload: "x", requestId: "a/b" });
      await until("both errors", () => out.h3.length === 2);
      assert.deepEqual(out.h3.map((msg) => msg.error.code), ["invalid_request", "invalid_request"]);
      assert.match(out.h3[1].payload, /expected 1 to 64/);
      assert.equal(requests("chat").length, 0);
    });

    it("shows whether there is somebody to ask", async () => {
      const { shown } = await ready(chatNode);
      await until("serving", () => shown.at(-1)?.text === "press-7");
      await daemon.tell("state", { mode: "no_model", reasons: ["none"], since_ms: 2 });
      await until("no model", () => shown.at(-1)?.text === "no model");
      await daemon.tell("status", { state: "offline", boot: "b1", since_ms: 3 });
      await until("offline", () => shown.at(-1)?.text === "press-7: offline");
    });
  });

  describe("orinoco-embed", () => {
    const embedNode = { type: "orinoco-embed", timeout: "10", wires: [["h1"], ["h3"]] };

    it("gives a vector for a text and vectors for texts", async () => {
      daemon.on("embed", ({ body, say }) => say({ seq: 0, final: true, object: "list", data: [].concat(body.input).map((text, index) => ({ index, embedding: [text.length, 0.5] })), usage: { prompt_tokens: 2 } }));
      const { subject, out, shown } = await ready(embedNode);
      subject.receive({ payload: "abc" });
      await until("a vector", () => out.h1.length === 1);
      assert.deepEqual(out.h1[0].payload, [3, 0.5]);
      subject.receive({ payload: ["a", "bc"] });
      await until("vectors", () => out.h1.length === 2);
      assert.deepEqual(out.h1[1].payload, [[1, 0.5], [2, 0.5]]);
      assert.equal(shown.at(-1).text, "2 × 2");
    });

    it("says that a node has no embeddings", async () => {
      daemon.on("embed", ({ say }) => daemon.fail(say, 0, { message: "embed is not served by this version", type: "invalid_request_error", code: "not_supported" }));
      const { subject, out, shown } = await ready(embedNode);
      subject.receive({ payload: "abc" });
      const failed = await until("an error", () => out.h3[0]);
      assert.equal(failed.error.code, "not_supported");
      assert.equal(shown.at(-1).text, "not supported there");
    });
  });

  describe("orinoco-telemetry", () => {
    it("sends documents as they come, and what is known when asked", async () => {
      const { subject, out, shown } = await ready({ type: "orinoco-telemetry", llm: true, host: true, key: "" });
      await daemon.tell("tele/llm", { at_ms: 5, streams_count: 2, tok_s: 212.4 });
      await until("a document", () => out.h1.length === 1);
      assert.deepEqual([out.h1[0].topic, out.h1[0].payload.tok_s, out.h1[0].kind], ["press-7/llm", 212.4, "llm"]);
      assert.equal(shown.at(-1).text, "2 × · 212 tok/s");
      subject.receive({ wanted: 1 });
      await until("again", () => out.h1.length === 2);
      assert.equal(out.h1[1].wanted, 1);
      await daemon.tell("tele/llm", "");
    });

    it("sends when a node comes and goes", async () => {
      const { out } = await ready({ type: "orinoco-telemetry", presence: true, key: "state" });
      await daemon.tell("status", { state: "draining", boot: "b1", since_ms: 3 });
      await until("it", () => out.h1.some((msg) => msg.payload === "draining" && msg.topic === "press-7/status/state"));
    });

    it("sends how updates go", async () => {
      const { out } = await ready({ type: "orinoco-telemetry", ota: true, key: "update_percentage" });
      await daemon.tell("ota/state", wire("ota_state_downloading"));
      await until("a value", () => out.h1.length === 1);
      assert.deepEqual([out.h1[0].payload, out.h1[0].topic], [42, "press-7/ota/update_percentage"]);
      await daemon.tell("ota/state", "");
    });

    it("sends one value for a gauge, marked when its node is away", async () => {
      const { out } = await ready({ type: "orinoco-telemetry", llm: true, key: "ttft_ms.p95" });
      await daemon.tell("status", { state: "offline", boot: "b1", since_ms: 3 });
      await daemon.tell("tele/llm", { at_ms: 6, streams_count: 0, ttft_ms: { p95: 140.2 } });
      await until("a value", () => out.h1.length === 1);
      assert.deepEqual([out.h1[0].payload, out.h1[0].stale, out.h1[0].topic], [140.2, true, "press-7/llm/ttft_ms.p95"]);
      await daemon.tell("tele/llm", "");
    });
  });

  describe("orinoco-model", () => {
    const modelNode = { type: "orinoco-model", action: "list", timeout: "30" };

    it("lists what a node has", async () => {
      const { subject, out } = await ready(modelNode);
      await until("models are known", () => subject.server.link.latest("press-7", "models"));
      subject.receive({});
      await until("a list", () => out.h1.length === 1);
      assert.deepEqual(out.h1[0].payload.map((model) => model.name), ["smollm2-135m", "qwen3-4b"]);
      assert.equal(out.h1[0].active, "smollm2-135m");
    });

    it("orders another model, tells the progress, and clears the order", async () => {
      daemon.on("cmd/model", async ({ rest, body }) => {
        if (body.status !== "init") return;
        await daemon.tell(rest, { status: "executing", model: body.model });
        await daemon.tell("state", { mode: "loading", model: body.model, reasons: [], load_progress: 0.5, since_ms: 4 });
        await daemon.tell(rest, { status: "successful", model: body.model });
      });
      const { subject, out } = await ready({ ...modelNode, action: "use" });
      subject.receive({ payload: "qwen3-4b" });
      await until("the outcome", () => out.h1.length === 1);
      assert.equal(out.h1[0].payload.status, "successful");
      assert.deepEqual(out.h2.map((msg) => [msg.payload, msg.state]), [[50, "loading"], [100, "successful"]]);
      await until("the order is cleared", () => daemon.heard.some(({ topic, payload }) => topic.includes("/cmd/model/") && payload === ""));
    });

    it("tells why an order failed", async () => {
      daemon.on("cmd/model", ({ rest, body }) => body.status === "init" && daemon.tell(rest, { status: "failed", model: body.model, reason: "there is no model \"huge\" on this node" }));
      const { subject, out, shown } = await ready({ ...modelNode, action: "use", model: "huge" });
      subject.receive({ payload: 1 });
      const failed = await until("the error", () => out.h3[0]);
      assert.equal(failed.payload, 'there is no model "huge" on this node');
      assert.equal(shown.at(-1).text, "failed");
    });

    /** A daemon that takes orders about updates as the real one does: answers with a deployment, then tells of it. */
    function takes(tell) {
      const orders = [];
      daemon.on("cmd/ota", async ({ rest, body }) => {
        if (body.status !== "init") return;
        orders.push(body);
        await daemon.tell(rest, { ...wire("ota_command_taken"), deployment: wire("ota_state_downloading").deployment });
        await tell(body);
      });
      return orders;
    }
    const told = (name) => daemon.tell("ota/state", wire(name));

    it("installs a signed release: taken is no success, in service is", async () => {
      let end;
      const orders = takes(async () => {
        await told("ota_state_downloading");
        await told("ota_state_probing");
        await new Promise((resolve) => (end = resolve));
        await told("ota_state_committed");
      });
      const { subject, out, shown } = await ready({ ...modelNode, action: "install" });
      subject.receive({ release: { line: "assistant", release_seq: 12 } });
      await until("the trial", () => out.h2.length === 2);
      assert.equal(out.h1.length, 0);
      assert.equal(shown.at(-1).text, "probing");
      end();
      const done = await until("installed", () => out.h1[0]);
      assert.deepEqual(out.h2.map((msg) => [msg.payload, msg.state]), [[42, "downloading"], [100, "probing"], [100, "committed"]]);
      assert.equal(out.h2[0].document.eta_s, 136);
      assert.deepEqual(done.payload, { status: "successful", deployment: "cmd-01J9Z4", state: "committed", line: "assistant", release_seq: 12 });
      assert.equal(done.state, "committed");
      assert.equal(shown.at(-1).text, "assistant 12");
      assert.deepEqual(orders, [wire("ota_command")]);
      await until("the order is cleared", () => daemon.heard.some(({ topic, payload }) => topic.includes("/cmd/ota/") && payload === ""));
      await daemon.tell("ota/state", "");
    });

    it("tells why a release was taken back, also when only the event says so", async () => {
      takes(async () => {
        await daemon.tell("evt/ota", wire("ota_event"), false);
      });
      const { subject, out, shown } = await ready({ ...modelNode, action: "install" });
      subject.receive({});
      const failed = await until("the error", () => out.h3[0]);
      assert.equal(failed.error.code, "probe_golden");
      assert.match(failed.payload, /^rolled back: golden prompt 1: "Rome" has no match/);
      assert.equal(failed.outcome.state, "rolled_back");
      assert.match(shown.at(-1).text, /^failed its trial/);
      assert.equal(out.h1.length, 0);
    });

    it("rolls back: what is a failure of an install is what was wanted", async () => {
      const orders = takes(() => told("ota_state_rolled_back"));
      const { subject, out } = await ready({ ...modelNode, action: "rollback" });
      subject.receive({});
      const done = await until("rolled back", () => out.h1[0]);
      assert.equal(done.payload.state, "rolled_back");
      assert.deepEqual(orders, [wire("ota_command_rollback")]);
      await daemon.tell("ota/state", "");
    });

    it("tells of an update that another one took the place of", async () => {
      takes(async () => {
        await told("ota_state_downloading");
        await daemon.tell("ota/state", { ...wire("ota_state_probing"), deployment: "d-9" });
      });
      const { subject, out } = await ready({ ...modelNode, action: "install" });
      subject.receive({});
      const failed = await until("the error", () => out.h3[0]);
      assert.equal(failed.error.code, "superseded");
      await daemon.tell("ota/state", "");
    });

    it("gives orders to an update that is under way, and is told when there is none", async () => {
      daemon.on("cmd/ota", ({ rest, body }) => body.status === "init" && daemon.tell(rest, body.action === "check" ? { status: "successful" } : wire("ota_command_failed")));
      const { subject, out } = await ready(modelNode);
      subject.receive({ action: "check" });
      await until("checked", () => out.h1.length === 1);
      subject.receive({ action: "pause" });
      assert.equal((await until("the error", () => out.h3[0])).payload, "nothing is being downloaded");
    });
  });

  describe("orinoco-event", () => {
    it("tells events and presence, and only the types wanted", async () => {
      const { out } = await ready({ type: "orinoco-event", types: "switch, presence" });
      await daemon.tell("evt/pressure", { from: "ok", to: "trim" }, false);
      await daemon.tell("evt/switch", { model: "qwen3-4b", served: true, reason: "ordered" }, false);
      await daemon.tell("status", { state: "draining", boot: "b1", since_ms: 9 });
      await until("both", () => out.h1.length === 2);
      assert.deepEqual(out.h1.map((msg) => [msg.event, msg.topic]), [["switch", "press-7/switch"], ["presence", "press-7/presence"]]);
      assert.equal(out.h1[1].payload.to, "draining");
    });
  });

  it("orinoco-event: shows a failed update as no good news", async () => {
    const { out, shown } = await ready({ type: "orinoco-event", types: "" });
    await daemon.tell("evt/ota", wire("ota_event"), false);
    await until("it", () => out.h1.length === 1);
    assert.deepEqual([shown.at(-1).fill, shown.at(-1).text], ["yellow", "ota: rolled back"]);
  });

  describe("orinoco-node", () => {
    it("answers the editor with what is there", async () => {
      await ready(chatNode);
      const { link } = helper.getNode("server");
      await until("models are known", () => link.latest("press-7", "models") && link.latest("press-7", "info"));
      const seen = (await helper.request().get("/orinoco/nodes/server").expect(200)).body;
      assert.deepEqual(seen, { connected: true, isDeployed: true, nodes: [{ name: "press-7", state: "online", board: "x86_64", pools: ["hall2"], active: "smollm2-135m", models: ["smollm2-135m", "qwen3-4b"] }] });
      const through = (await helper.request().get("/orinoco/broker/broker?root=orinoco").expect(200)).body;
      assert.deepEqual(through.nodes, seen.nodes);
      assert.equal((await helper.request().get("/orinoco/nodes/nothing").expect(200)).body.isDeployed, false);
      await helper.request().get("/orinoco/broker/broker?root=%23").expect(400);
    });

    it("says which nodes are there when it should choose among several", async () => {
      const other = await new ScriptedDaemon(broker.port, "press-8").start();
      const { subject, out, server } = await ready(chatNode);
      await until("both are seen", () => server.link.nodes().length === 2);
      subject.receive({ payload: "x" });
      const failed = await until("an error", () => out.h3[0]);
      assert.match(failed.payload, /press-7, press-8.*name one, or a pool/);
      for (const rest of ["status", "info", "models", "state"]) await other.tell(rest, "");
      await other.end();
    });
  });
});
