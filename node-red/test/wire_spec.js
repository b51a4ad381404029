// The wire: the same files that hold the daemon, tests/wire, read in the language of these nodes.
"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");
const path = require("node:path");
const { Topics, RESERVED, isId, newId } = require("../lib/topics");
const { Receiver, HearError } = require("../lib/receiver");
const { chat, embed, vectors } = require("../lib/body");
const { Sessions } = require("../lib/sessions");
const { command } = require("../lib/command");
const { Deployment, otaProgress } = require("../lib/deployment");

const folder = path.join(__dirname, "../../tests/wire");
const read = (name) => JSON.parse(fs.readFileSync(path.join(folder, name), "utf8"));

describe("topics", () => {
  it("are those of the contract", () => {
    const wire = read("v1/topics.json");
    const topics = new Topics(wire.root);
    const target = { kind: "node", name: wire.node };
    for (const [op, topic] of Object.entries(wire.req)) assert.equal(topics.request(target, wire.user, op, wire.id), topic);
    assert.equal(topics.cancel(target, wire.user, wire.id), wire.cancel);
    assert.equal(topics.response(wire.user, wire.id), wire.resp);
    for (const name of ["status", "info", "models", "state"]) {
      assert.equal(topics.of(wire.node, name), wire[name]);
      assert.deepEqual(topics.parse(wire[name]), { node: wire.node, rest: name });
    }
  });

  it("of a pool are those of the contract", () => {
    const wire = read("v1/topics_pool.json");
    const topics = new Topics(wire.root);
    const target = { kind: "pool", name: wire.pool };
    for (const [op, topic] of Object.entries(wire.req)) assert.equal(topics.request(target, wire.user, op, wire.id), topic);
  });

  it("refuse a root that would be something else", () => {
    for (const root of ["", "a//b", "/a", "a/", "a/+", "#", "ü", 7]) assert.throws(() => new Topics(root), /expected names/);
  });

  it("of fleets and pools are no nodes", () => {
    const topics = new Topics("orinoco");
    assert.equal(topics.parse("orinoco/v1/fleet/hall2/desired"), undefined);
    assert.equal(topics.parse("other/v1/press-7/status"), undefined);
    assert.ok(RESERVED.has("pool"));
  });

  it("have ids that are valid, new and in order of time", () => {
    const ids = Array.from({ length: 1000 }, (_, n) => newId(1_790_000_000_000 + n));
    assert.ok(ids.every(isId));
    assert.deepEqual([...ids].sort(), ids);
    assert.equal(new Set(ids).size, ids.length);
  });
});

describe("an answer", () => {
  for (const play of read("plays.json")) {
    it(play.name, () => {
      const receiver = new Receiver(play.pool);
      const heard = play.hear.map((message) => {
        try {
          return receiver.hear(Buffer.from(JSON.stringify(message))).what;
        } catch (error) {
          assert.ok(error instanceof HearError, error.stack);
          return error.code;
        }
      });
      assert.deepEqual(heard, play.heard);
      assert.equal(receiver.text, play.text);
      const { error, body } = receiver.end;
      assert.equal(error ? `error ${error.code}` : body.choices[0].finish_reason, play.end);
    });
  }

  it("is read from each pinned message", () => {
    for (const name of ["accepted_chat", "chunk_chat", "accepted_complete", "chunk_complete", "chunk_chat_call", "tokens", "error_retry", "error_param"]) {
      const receiver = new Receiver();
      const body = read(`v1/${name}.json`);
      if (body.seq > 0 && !body.final) receiver.hear(Buffer.from(JSON.stringify({ ...read("v1/accepted_chat.json"), attempt: body.attempt })));
      assert.doesNotThrow(() => receiver.hear(Buffer.from(JSON.stringify(body))), name);
    }
  });

  it("with calls of tools is put together from its pieces", () => {
    const receiver = new Receiver();
    for (const name of ["accepted_chat", "chunk_chat_call", "chunk_chat_call_more", "final_chat_calls"]) {
      // The digest in these files is of no text.
      const { orinoco: { text_sha256: _, ...orinoco }, ...body } = read(`v1/${name}.json`);
      receiver.hear(Buffer.from(JSON.stringify({ ...body, orinoco })));
    }
    const whole = read("v1/whole_chat_calls.json").choices[0].message;
    assert.deepEqual(receiver.toolCalls, whole.tool_calls);
    assert.equal(receiver.text, "I see.");
    assert.equal(receiver.end.body.choices[0].finish_reason, "tool_calls");
  });
});

describe("a request", () => {
  const config = { system: "", model: "", priority: "normal" };

  it("is what the contract's smallest one is", () => {
    const { body } = chat(config, { payload: "hi" });
    assert.deepEqual({ messages: body.messages }, read("v1/request_chat_small.json"));
  });

  it("takes each key of the contract from the message", () => {
    const wire = read("v1/request_chat.json");
    const { body } = chat(config, { ...wire, max_tokens: wire.max_completion_tokens });
    for (const key of ["messages", "model", "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "repeat_last_n", "frequency_penalty", "presence_penalty", "seed", "stop", "logit_bias", "priority", "deadline_ms", "keep_latest", "coalesce_ms"]) {
      assert.deepEqual(body[key], wire[key], key);
    }
    assert.equal(body.max_tokens, 128);
    const odds = read("v1/request_chat_logprobs.json");
    assert.deepEqual(chat(config, odds).body, { ...odds, stream: true });
  });

  it("is a wording of the node's with what varies", () => {
    const wire = read("v1/request_chat_template.json");
    const { body, added } = chat(config, wire);
    assert.deepEqual(body, { ...wire, stream: true });
    assert.deepEqual(added, []);
    const set = { ...config, template: "alarm-text", system: "not sent" };
    assert.deepEqual(chat(set, { payload: { code: 7 } }).body, { template: "alarm-text", vars: { code: 7 }, stream: true });
    assert.deepEqual(chat(set, { payload: "go" }, [{ role: "user", content: "before" }]).body, { template: "alarm-text", stream: true });
    // What Node-RED's own template node leaves behind.
    assert.equal(chat(config, { payload: "hi", template: "Hello {{payload}}" }).body.template, undefined);
    for (const msg of [{ vars: { a: 1 } }, { template: "a b", vars: {} }, { template: "a", messages: [{}] }, { template: "a", vars: [1] }]) {
      assert.throws(() => chat(config, msg), /template|vars/, JSON.stringify(msg));
    }
  });

  it("has the form that the message asks for", () => {
    const form = { type: "json_schema", json_schema: { schema: { type: "object" } } };
    for (const [msg, key, wanted] of [
      [{ response_format: form }, "response_format", true], [{ response_format: { type: "json_object" } }, "response_format", true],
      [{ response_format: { type: "text" } }, "response_format", false], [{ grammar: 'start: "yes" | "no"' }, "grammar", false],
      [{ tool_choice: "none" }, "tool_choice", false], [{ parallel_tool_calls: false }, "parallel_tool_calls", false],
    ]) {
      const { body, wantsJson } = chat(config, { payload: "hi", ...msg });
      assert.deepEqual(body[key], msg[key]);
      assert.equal(wantsJson, wanted, key);
    }
  });

  it("has the dialog's settings unless the message has its own", () => {
    const set = { system: "Be brief.", model: "a", maxTokens: "64", temperature: "0.2", priority: "batch", deadline: "2.5", schema: '{"type":"object"}' };
    const { body, wantsJson } = chat(set, { payload: "hi", model: "b", temperature: 0 });
    assert.deepEqual(body, {
      messages: [{ role: "system", content: "Be brief." }, { role: "user", content: "hi" }], stream: true,
      model: "b", max_tokens: 64, temperature: 0, priority: "batch", deadline_ms: 2500,
      response_format: { type: "json_schema", json_schema: { name: "answer", strict: true, schema: { type: "object" } } },
    });
    assert.equal(wantsJson, true);
  });

  it("that is wrong says what was found and expected", () => {
    for (const [msg, what] of [
      [{ payload: " " }, /nothing to ask/], [{}, /nothing to ask/], [{ messages: [] }, /empty/], [{ messages: "x" }, /no JSON/],
      [{ payload: "a", temperature: 9 }, /temperature is 9, expected a number from 0 to 2/], [{ payload: "a", max_tokens: "many" }, /max_tokens/],
      [{ payload: "a", priority: "high" }, /expected alarm, normal or batch/], [{ payload: "a", schema: "[]" }, /expected an object, found an array/],
      [{ payload: "a", tools: {} }, /expected an array/], [{ payload: "a", session: "a b" }, /session/],
    ]) assert.throws(() => chat(config, msg), what);
  });

  it("for vectors takes a text or several", () => {
    assert.deepEqual(embed({}, { payload: "a" }).body, { input: "a" });
    assert.deepEqual(embed({ model: "m", dimensions: "8" }, { payload: ["a", "b"] }), { body: { input: ["a", "b"], model: "m", dimensions: 8 }, isBatch: true });
    assert.throws(() => embed({}, { payload: ["a", ""] }), /none of them empty/);
    const base64 = Buffer.from(new Float32Array([1, -0.5]).buffer).toString("base64");
    assert.deepEqual(vectors({ data: [{ index: 1, embedding: base64 }, { index: 0, embedding: [0.5, 2] }] }, true), [[0.5, 2], [1, -0.5]]);
    assert.throws(() => vectors({ data: [] }, false), /no vector/);
  });
});

describe("sessions", () => {
  it("keep the last turns, of the last sessions", () => {
    const sessions = new Sessions(2);
    for (const n of [1, 2, 3]) sessions.add("a", [{ role: "user", content: String(n) }]);
    assert.deepEqual(sessions.turns("a").map((turn) => turn.content), ["2", "3"]);
    for (let n = 0; n < 100; n += 1) sessions.add(`s${n}`, [{ role: "user", content: "x" }]);
    assert.deepEqual(sessions.turns("a"), []);
    sessions.forget();
    assert.deepEqual(sessions.turns("s99"), []);
  });

  it("never grow over what a request may have", () => {
    const sessions = new Sessions(8);
    for (let n = 0; n < 8; n += 1) sessions.add("a", [{ role: "user", content: "x".repeat(20_000) }]);
    assert.equal(sessions.turns("a").length, 2);
    sessions.add("a", [{ role: "user", content: "x".repeat(100_000) }]);
    assert.deepEqual(sessions.turns("a"), []);
  });
});

describe("orders", () => {
  it("are the commands of the contract", () => {
    assert.deepEqual(command("use", { payload: "qwen3-4b" }), { op: "model", body: { status: "init", model: "qwen3-4b" } });
    const orders = (name) => ({ op: "ota", body: read(`v1/${name}.json`) });
    assert.deepEqual(command("use", { model: "qwen3-4b" }).body, read("v1/model_command.json"));
    assert.deepEqual(command("install", { release: { line: "assistant", release_seq: 12, url: "http://elsewhere" } }), orders("ota_command"));
    assert.deepEqual(command("install", {}), orders("ota_command_best"));
    assert.deepEqual(command("rollback", {}), orders("ota_command_rollback"));
    assert.deepEqual(command("rollback", { release: { line: "assistant" } }).body, { status: "init", action: "rollback", line: "assistant" });
    assert.deepEqual(command("cancel", {}), { op: "ota", body: { status: "init", action: "cancel" } });
    assert.throws(() => command("use", {}), /name of a model/);
    assert.throws(() => command("install", { release: { line: 7 } }), /expected/);
    assert.throws(() => command("erase", {}), /expected one of list, use, install, rollback/);
  });

  it("have their progress in percent of the download", () => {
    const shown = (name) => otaProgress(read(`v1/ota_state_${name}.json`));
    assert.deepEqual(shown("none"), { percent: undefined, state: "idle", text: "idle" });
    assert.deepEqual(shown("downloading"), { percent: 42, state: "downloading", text: "downloading 42 %" });
    assert.deepEqual(shown("probing"), { percent: 100, state: "probing", text: "probing" });
    assert.deepEqual(shown("rolled_back"), { percent: undefined, state: "rolled_back", text: "rolled back" });
    assert.equal(otaProgress({ state: "downloading", bytes_done: 50, bytes_total: 200 }).text, "downloading 25 %");
    assert.equal(otaProgress("x"), undefined);
  });
});

describe("a deployment", () => {
  const state = (name) => read(`v1/ota_state_${name}.json`);

  it("is followed up to its end, by states or by events", () => {
    const install = new Deployment("cmd-01J9Z4", "committed");
    assert.equal(install.hearState(state("none")), undefined);
    assert.equal(install.hearState(state("downloading")).what, "progress");
    assert.equal(install.hearEvent(read("v1/ota_event_step.json")), undefined);
    assert.deepEqual(install.hearState(state("committed")), { what: "end", ok: true, state: "committed" });
    for (const heard of [install.hearState(state("rolled_back")), install.hearEvent(read("v1/ota_event.json"))]) {
      assert.deepEqual([heard.ok, heard.code], [false, "probe_golden"]);
    }
    assert.equal(new Deployment("cmd-01J9Z4", "rolled_back").hearState(state("rolled_back")).ok, true);
  });

  it("waits behind another one, and is gone when a third takes its place", () => {
    const queued = new Deployment("d-8", "committed");
    assert.equal(queued.hearState(state("downloading")), undefined);
    assert.equal(queued.hearState(state("unreachable")).state, "queued");
    assert.deepEqual(queued.hearState(state("downloading")), { what: "gone" });
  });

  it("makes nothing of what is no document", () => {
    const one = new Deployment("x", "committed");
    for (const value of [undefined, null, 7, "x", [], {}]) {
      assert.equal(one.hearState(value), undefined);
      assert.equal(one.hearEvent(value), undefined);
    }
  });
});
