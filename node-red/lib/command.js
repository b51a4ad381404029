// PURE: commands of operators and what their retained topic says of them (docs/protocol.md).
//
//   requester  ── {"status":"init", ...} retained ─▶ cmd/{op}/{cid}
//   node       ── executing ─▶ successful | failed (reason), retained on the same topic; of a release that is
//                 installed or rolled back `successful` means taken, and lib/deployment.js follows it
//   requester  ── empty, retained: it has seen the outcome
"use strict";

class CommandError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** What `cmd/ota` knows of; `scrub` reads all files, which is for a terminal. */
const ACTIONS = ["install", "rollback", "check", "pause", "resume", "cancel", "activate"];

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
        return { op: "ota", body: { status: "init", action: "install", line, ...(seq === undefined ? {} : { release_seq: seq }) } };
      }
      // Without a choice: what the fleet's signed catalogue has for this node.
      return { op: "ota", body: { status: "init", action: "install" } };
    }
    case "rollback": {
      const { line } = msg.release ?? {};
      return { op: "ota", body: { status: "init", action: "rollback", ...(typeof line === "string" && line !== "" ? { line } : {}) } };
    }
    case "check":
    case "pause":
    case "resume":
    case "cancel":
    case "activate":
      return { op: "ota", body: { status: "init", action } };
    default:
      throw new CommandError("invalid_request", `action ${JSON.stringify(action)}: expected one of list, use, ${ACTIONS.join(", ")}`);
  }
}

module.exports = { command, CommandError };
