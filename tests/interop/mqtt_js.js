// Interoperability with MQTT.js, MQTT 5:  mqtt_js.js HOST PORT NODE USER
//
// The user's password, if there is one, is in ORINOCO_TEST_PASSWORD. The rules for answers are those of
// checks.py, written down a second time in the language of Node-RED.
"use strict";

const assert = require("node:assert/strict");
const crypto = require("node:crypto");
const mqtt = require("mqtt");

const [host, port, node, user] = process.argv.slice(2);
const TIMEOUT_MS = 60_000;
const N_TOKENS = 24;
const messages = [{ role: "user", content: "Name three rivers." }];
const chat = { messages, max_tokens: N_TOKENS, temperature: 0 };

function isOver(op, payload) {
  if (op === "text") return true;
  if (op === "text-stream") return payload.length === 0 || payload[0] === 0x21; // "!"
  return JSON.parse(payload).final === true;
}

/** Publishes one request; resolves with its answer, one {payload, packet} for each message. */
function exchange(client, op, body, cancelAfter) {
  const id = `mqttjs-${crypto.randomBytes(6).toString("hex")}`;
  const base = `orinoco/v1/${node}/req/${user}`;
  const responseTopic = `orinoco/v1/resp/${user}/${id}`;
  const correlationData = Buffer.from(id);
  return new Promise((resolve, reject) => {
    const got = [];
    const timer = setTimeout(() => finish(new Error(`no final; ${got.length} messages came`)), TIMEOUT_MS);
    function finish(problem) {
      clearTimeout(timer);
      client.removeListener("message", onMessage);
      return problem ? reject(problem) : resolve({ id, got });
    }
    function onMessage(topic, payload, packet) {
      try {
        assert.equal(topic, responseTopic);
        assert.equal(packet.retain, false);
        assert.equal(packet.qos, 1);
        got.push({ payload, packet });
        if (got.length === cancelAfter) client.publish(`${base}/cancel/${id}`, "", { qos: 1 });
        if (isOver(op, payload)) finish();
      } catch (problem) {
        finish(problem);
      }
    }
    client.on("message", onMessage);
    const properties = { responseTopic, correlationData };
    client.publish(`${base}/${op}/${id}`, body, { qos: 1, properties }, (problem) => problem && finish(problem));
  });
}

/** Ids, contiguous seq, one final; the same again in the MQTT 5 properties. */
function jsonAnswer({ id, got }) {
  return got.map(({ payload, packet }, n) => {
    const body = JSON.parse(payload);
    const isLast = n === got.length - 1;
    const { correlationData, userProperties, contentType } = packet.properties;
    assert.equal(body.id, id);
    assert.equal(body.seq, n);
    assert.equal(body.final, isLast);
    assert.equal(correlationData.toString(), id);
    assert.equal(userProperties.seq, String(n));
    assert.equal(userProperties.node, node);
    assert.equal(userProperties.final === "1", isLast);
    assert.equal(contentType, "application/json");
    return body;
  });
}

const textOf = ({ choices: [choice] }) => choice.text ?? choice.delta?.content ?? "";

/** accepted, chunks, final; the chunks' text has the SHA-256 that the final tells. */
function stream(answer, finishReasons) {
  const bodies = jsonAnswer(answer);
  const final = bodies[bodies.length - 1];
  assert.equal(final.error, undefined);
  assert.ok(bodies.length >= 3, `${bodies.length} messages`);
  assert.equal(textOf(bodies[0]), "");
  assert.ok("queue" in bodies[0].orinoco, "the first message is accepted");
  const text = bodies.map(textOf).join("");
  assert.notEqual(text, "");
  assert.equal(final.orinoco.text_sha256, crypto.createHash("sha256").update(text).digest("hex"));
  assert.ok(finishReasons.includes(final.choices[0].finish_reason), final.choices[0].finish_reason);
  return bodies;
}

const flows = [
  ["chat, plain text", "chat", "hello", (answer) => stream(answer, ["stop", "length"])],
  ["chat, JSON", "chat", JSON.stringify(chat), (answer) => stream(answer, ["stop", "length"])],
  ["complete", "complete", JSON.stringify({ prompt: "The river", max_tokens: N_TOKENS }), (answer) => stream(answer, ["stop", "length"])],
  ["text", "text", "Say yes.", ({ got }) => {
    assert.equal(got.length, 1);
    assert.ok(got[0].payload.length > 0 && got[0].payload.length <= 1024 && got[0].payload[0] !== 0x21, String(got[0].payload));
  }],
  ["text-stream", "text-stream", "Name three rivers.", ({ got }) => {
    assert.equal(got[got.length - 1].payload.length, 0);
    assert.ok(got.length >= 2 && got.slice(0, -1).every(({ payload }) => payload.length > 0));
  }],
  ["tokenize", "tokenize", "The river", (answer) => {
    const [body] = jsonAnswer(answer);
    assert.equal(body.object, "tokenize");
    assert.ok(body.n_tokens > 0 && body.n_tokens === body.tokens.length);
  }],
  ["cancel", "chat", JSON.stringify({ messages, max_tokens: 1800, ignore_eos: true }), (answer) => {
    const bodies = stream(answer, ["cancelled"]);
    assert.ok(bodies[bodies.length - 1].usage.completion_tokens < 1500);
  }, 3],
  ["error, bad body", "chat", '{"messages": 3}', (answer) => {
    const bodies = jsonAnswer(answer);
    assert.equal(bodies[bodies.length - 1].error.code, "invalid_request");
  }],
];

async function main() {
  const password = process.env.ORINOCO_TEST_PASSWORD;
  const login = password ? { username: user, password } : {};
  const client = await mqtt.connectAsync({ host, port: Number(port), protocolVersion: 5, reconnectPeriod: 0, ...login });
  await client.subscribeAsync(`orinoco/v1/resp/${user}/#`, { qos: 1 });
  let failed = 0;
  for (const [name, op, body, check, cancelAfter] of flows) {
    try {
      check(await exchange(client, op, body, cancelAfter));
      console.log(`ok      mqttjs: ${name}`);
    } catch (problem) {
      failed += 1;
      console.log(`FAILED  mqttjs: ${name}: ${problem.message.replaceAll("\n", " ")}`);
    }
  }
  await client.endAsync();
  return failed;
}

main().then(
  (failed) => process.exit(failed ? 1 : 0),
  (problem) => {
    console.log(`FAILED  mqttjs: ${problem.message}`);
    process.exit(1);
  },
);
