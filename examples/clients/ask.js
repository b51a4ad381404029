// Asks an Orinoco node with MQTT.js (npm install mqtt):  node ask.js HOST PORT NODE USER "QUESTION"
//
// Prints the answer as it comes, then its figures. Where the broker wants one, the password is in
// ORINOCO_PASSWORD. Follows the rules of docs/protocol.md that matter for one answer of one node.
"use strict";

const crypto = require("node:crypto");
const mqtt = require("mqtt");

const [host, port, node, user, question] = process.argv.slice(2);
const id = crypto.randomUUID(); // new for each question: a repeated id gets the old answer
const request = (op) => `orinoco/v1/${node}/req/${user}/${op}/${id}`;
const body = JSON.stringify({ messages: [{ role: "user", content: question }], max_tokens: 64 });
const login = process.env.ORINOCO_PASSWORD ? { username: user, password: process.env.ORINOCO_PASSWORD } : {};
const client = mqtt.connect({ host, port: Number(port), ...login });

const state = { text: "", attempt: 0, nextSeq: 0 };
let patienceMs = 2000;
let timer;

function end(code, message) {
  if (message) console.error(message);
  clearTimeout(timer);
  client.end(false, () => process.exit(code));
}

/** The same id makes it one request, however often it is published. */
function ask() {
  client.publish(request("chat"), body, { qos: 1 });
  clearTimeout(timer);
  patienceMs = Math.min(patienceMs * 1.5, 10_000);
  timer = setTimeout(ask, patienceMs);
}

// Listen first, then ask; the same after a lost connection.
client.on("connect", () => client.subscribe(`orinoco/v1/resp/${user}/${id}`, { qos: 1 }, ask));
// A refusal has a number; what the network says is tried again, and after the end it is nobody's business.
client.on("error", (error) => {
  if (typeof error.code === "number") end(1, String(error));
  else if (!client.disconnecting) console.error(`${error.message}: trying again`);
});
client.on("message", (_topic, payload) => {
  const answer = JSON.parse(payload);
  if (answer.error) return end(1, `${answer.error.code}: ${answer.error.message}`);
  if (answer.attempt > state.attempt) {
    // The node lost power and began anew: what was printed is void.
    if (state.text) process.stdout.write("\n[begins anew]\n");
    Object.assign(state, { text: "", attempt: answer.attempt, nextSeq: 0 });
  }
  if (answer.attempt < state.attempt || answer.seq !== state.nextSeq) return undefined; // seen before, or one was lost
  state.nextSeq += 1;
  const piece = answer.choices[0].delta.content ?? "";
  state.text += piece;
  process.stdout.write(piece);
  timer.refresh();
  if (!answer.final) return undefined;
  const isWhole = crypto.createHash("sha256").update(state.text).digest("hex") === answer.orinoco.text_sha256;
  const figures = `[${answer.usage.completion_tokens} tokens, first after ${answer.orinoco.ttft_ms.toFixed(0)} ms]`;
  return end(isWhole ? 0 : 1, isWhole ? `\n${figures}` : "\nthe text is not what was sent");
});
setTimeout(() => {
  client.publish(request("cancel"), "", { qos: 1 });
  end(1, "no whole answer within 120 s");
}, 120_000).unref();
