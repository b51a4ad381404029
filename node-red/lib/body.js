// PURE: the body of a request, from what the node is set to and what the message brings. The message wins.
"use strict";

/** Keys of the wire that a message may set as they are, `msg.temperature` and so on. */
const PASSED = [
  "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "frequency_penalty", "presence_penalty",
  "seed", "stop", "logit_bias", "logprobs", "top_logprobs", "min_tokens", "grammar", "keep_latest", "tool_choice", "parallel_tool_calls", "coalesce_ms",
];
/** Forms of an answer that are JSON. */
const IN_JSON = new Set(["json_schema", "json_object"]);
const PRIORITIES = new Set(["alarm", "normal", "batch"]);
const NAME = /^[A-Za-z0-9_.-]{1,64}$/;

class BodyError extends Error {
  constructor(param, message) {
    super(message);
    this.code = "invalid_request";
    this.param = param;
  }
}

const isSet = (value) => value !== undefined && value !== null && value !== "";

/** JSON that may have been written as text, in an edit dialog or a message. */
function parsed(what, value, wanted) {
  if (!isSet(value)) return undefined;
  let result = value;
  if (typeof value === "string") {
    try {
      result = JSON.parse(value);
    } catch (error) {
      throw new BodyError(what, `${what} is no JSON: ${error.message}`);
    }
  }
  const isArray = Array.isArray(result);
  if (result === null || typeof result !== "object" || isArray !== (wanted === "array")) {
    throw new BodyError(what, `${what}: expected an ${wanted}, found ${isArray ? "an array" : result === null ? "null" : typeof result}`);
  }
  return result;
}

function number(what, value, least, most) {
  if (!isSet(value)) return undefined;
  const result = typeof value === "string" ? Number(value) : value;
  if (!Number.isFinite(result) || result < least || result > most) {
    throw new BodyError(what, `${what} is ${JSON.stringify(value)}, expected a number from ${least} to ${most}`);
  }
  return result;
}

/** The text to ask with: msg.prompt, else msg.payload. */
function promptOf(msg) {
  const value = isSet(msg.prompt) ? msg.prompt : msg.payload;
  if (typeof value === "string") return value;
  if (Buffer.isBuffer(value)) return value.toString("utf8");
  if (typeof value === "number" || typeof value === "boolean") return String(value);
  if (value !== undefined && value !== null && typeof value === "object") return JSON.stringify(value);
  return "";
}

/**
 * The wording of Orinoco's own that is wanted, and what varies in it: msg.vars, else an object in msg.payload.
 * Undefined where none is. The template node of Node-RED leaves texts in msg.template, which are no names.
 */
function wordingOf(config, msg) {
  const isMeant = isSet(msg.vars) || NAME.test(String(msg.template));
  const template = isSet(msg.template) && isMeant ? String(msg.template) : config.template;
  if (!isSet(template)) {
    if (isSet(msg.vars)) throw new BodyError("template", "msg.vars is given, and neither msg.template nor the dialog names a template");
    return undefined;
  }
  if (!NAME.test(template)) throw new BodyError("template", `template ${JSON.stringify(template)}: expected 1 to 64 of the characters A-Z a-z 0-9 _ . -`);
  if (isSet(msg.messages)) throw new BodyError("template", "msg.messages and a template are given, expected one of them");
  const isObject = msg.payload !== null && typeof msg.payload === "object" && !Array.isArray(msg.payload) && !Buffer.isBuffer(msg.payload);
  const vars = parsed("vars", msg.vars, "object") ?? (isObject ? msg.payload : undefined);
  return { template, ...(vars ? { vars } : {}) };
}

/**
 * A chat. config: {system, template, model, maxTokens, temperature, schema, tools, priority, deadline, session} of the
 * node; turns: earlier messages of the session. Returns {body, added, session, wantsJson}; `added` is what
 * this question adds to the session.
 */
function chat(config, msg, turns = []) {
  const wording = wordingOf(config, msg);
  const given = wording ? [] : parsed("messages", msg.messages, "array");
  let added = given;
  if (!given) {
    const prompt = promptOf(msg);
    if (prompt.trim() === "") throw new BodyError("payload", "nothing to ask: msg.payload, msg.prompt and msg.messages are empty");
    added = [{ role: "user", content: prompt }];
  }
  if (!wording && added.length === 0) throw new BodyError("messages", "msg.messages is an empty array");
  const system = isSet(msg.system) ? String(msg.system) : config.system;
  const hasOwn = added.some((message) => message?.role === "system" || message?.role === "developer");
  const messages = [...(isSet(system) && !hasOwn ? [{ role: "system", content: system }] : []), ...turns, ...added];

  // Of a wording Orinoco has the system message too, and no earlier turns belong to it.
  const body = { ...(wording ?? { messages }), stream: msg.stream !== false };
  const model = isSet(msg.model) ? msg.model : config.model;
  if (isSet(model)) body.model = String(model);
  const maxTokens = number("max_tokens", msg.max_tokens ?? config.maxTokens, 1, 32768);
  if (maxTokens !== undefined) body.max_tokens = Math.round(maxTokens);
  const temperature = number("temperature", msg.temperature ?? config.temperature, 0, 2);
  if (temperature !== undefined) body.temperature = temperature;
  for (const key of PASSED) {
    if (key !== "temperature" && isSet(msg[key])) body[key] = msg[key];
  }
  const priority = msg.priority ?? config.priority;
  if (isSet(priority) && priority !== "normal") {
    if (!PRIORITIES.has(priority)) throw new BodyError("priority", `priority is ${JSON.stringify(priority)}, expected alarm, normal or batch`);
    body.priority = priority;
  }
  const deadline = number("deadline_ms", msg.deadline_ms ?? (isSet(config.deadline) ? config.deadline * 1000 : undefined), 1, 86_400_000);
  if (deadline !== undefined) body.deadline_ms = Math.round(deadline);
  const schema = parsed("schema", msg.schema ?? config.schema, "object");
  if (schema) {
    body.response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema } };
  } else if (isSet(msg.response_format)) {
    body.response_format = msg.response_format;
  }
  const tools = parsed("tools", msg.tools ?? config.tools, "array");
  if (tools && tools.length > 0) body.tools = tools;
  const session = isSet(msg.session) ? String(msg.session) : config.session || undefined;
  if (session !== undefined) {
    if (!NAME.test(session)) throw new BodyError("session", `session ${JSON.stringify(session)}: expected 1 to 64 of the characters A-Z a-z 0-9 _ . -`);
    body.session = session;
  }
  return { body, added, session, wantsJson: IN_JSON.has(body.response_format?.type) };
}

/** Op embed, in OpenAI's shape: {input, model?, dimensions?}. */
function embed(config, msg) {
  const value = isSet(msg.input) ? msg.input : msg.payload;
  let input;
  if (Array.isArray(value)) input = value.map((text) => (typeof text === "string" ? text : JSON.stringify(text)));
  else input = promptOf({ payload: value });
  if (input.length === 0 || (Array.isArray(input) ? input.some((text) => !text || text.trim() === "") : input.trim() === "")) {
    throw new BodyError("input", "nothing to embed: expected text, or an array of texts, none of them empty");
  }
  const body = { input };
  const model = isSet(msg.model) ? msg.model : config.model;
  if (isSet(model)) body.model = String(model);
  const dimensions = number("dimensions", msg.dimensions ?? config.dimensions, 1, 65536);
  if (dimensions !== undefined) body.dimensions = Math.round(dimensions);
  return { body, isBatch: Array.isArray(input) };
}

/** The vectors of an answer to embed: one for a text, an array for an array. */
function vectors(body, isBatch) {
  const data = Array.isArray(body.data) ? body.data : [];
  const found = data
    .slice()
    .sort((a, b) => (a?.index ?? 0) - (b?.index ?? 0))
    .map((item) => (typeof item?.embedding === "string" ? floats(item.embedding) : item?.embedding));
  if (found.length === 0 || found.some((vector) => !Array.isArray(vector) || vector.some((x) => typeof x !== "number"))) {
    throw new BodyError("data", "the answer holds no vector of numbers");
  }
  return isBatch ? found : found[0];
}

/** OpenAI's base64 form: 32-bit floats, little endian. */
function floats(base64) {
  const bytes = Buffer.from(base64, "base64");
  const result = [];
  for (let at = 0; at + 4 <= bytes.length; at += 4) result.push(bytes.readFloatLE(at));
  return result;
}

module.exports = { chat, embed, vectors, BodyError };
