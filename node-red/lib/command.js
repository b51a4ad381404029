// PURE: commands of operators and what their retained topic says of them (docs/protocol.md).
//
//   requester  ── {"status":"init", ...} retained ─▶ cmd/{op}/{cid}
//   node       ── executing ─▶ successful | failed (reason), retained on the same topic
//   requester  ── empty, retained: it has seen the outcome
"use strict";

class CommandError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** {op, body} for an action of the model node. */
function command(action, msg) {
  const wanted = typeof msg.model === "string" && msg.model !== "" ? msg.model : typeof msg.payload === "string" ? msg.payload.trim() : "";
  switch (action) {
    case "use":
      if (wanted === "") throw new CommandError("invalid_request", "use: expected the name of a model, or auto, in msg.model or msg.payload");
      return { op: "model", body: { status: "init", model: wanted } };
    case "install": {
      const release = msg.release ?? msg.payload;
      if (release !== null && typeof release === "object" && !Array.isArray(release) && !Buffer.isBuffer(release)) {
        const { line, release_seq: seq } = release;
        if (typeof line !== "string" || line === "" || (seq !== undefined && !Number.isSafeInteger(seq))) {
          throw new CommandError("invalid_request", 'install: expected {"line": "assistant-s", "release_seq": 12} in msg.release or msg.payload');
        }
        return { op: "ota", body: { ...release, status: "init", action: "install" } };
      }
      // Without a choice: what the fleet's signed catalogue has for this node.
      return { op: "ota", body: { status: "init", action: "install" } };
    }
    case "rollback":
      return { op: "ota", body: { status: "init", action: "rollback" } };
    default:
      throw new CommandError("invalid_request", `action ${JSON.stringify(action)}: expected list, use, install or rollback`);
  }
}

/** What `ota/state` says of progress: {percent 0-100 or undefined, state, text}. */
function otaProgress(state) {
  if (state === null || typeof state !== "object") return undefined;
  let percent;
  if (Number.isFinite(state.update_percentage)) percent = state.update_percentage;
  else if (Number.isFinite(state.bytes_done) && state.bytes_total > 0) percent = (state.bytes_done / state.bytes_total) * 100;
  if (percent !== undefined) percent = Math.round(Math.min(Math.max(percent, 0), 100));
  const word = typeof state.state === "string" ? state.state : state.in_progress ? "in progress" : "idle";
  return { percent, state: word, text: percent === undefined ? word : `${word} ${percent} %` };
}

module.exports = { command, otaProgress, CommandError };
