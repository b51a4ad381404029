// PURE: how a release that was ordered gets on, by what the node tells of it (docs/ota/states.md).
//
// The answer to an order only says that it was taken, and names the deployment. What comes of it is told
// twice: by `ota/state`, retained, of which the last one is enough, and by `evt/ota`, one for each step.
"use strict";

const ENDS = new Set(["committed", "rolled_back", "failed"]);
/** Where nothing is said of bytes: before any is here, and after all of them are. */
const BEFORE = new Set(["checking", "planned", "downloading"]);
const AFTER = new Set(["verifying", "staged", "waiting", "switching", "probing", "committed"]);

/** What `ota/state` says of progress: {percent of the download 0-100 or undefined, state, text}. */
function otaProgress(document) {
  if (document === null || typeof document !== "object") return undefined;
  const state = typeof document.state === "string" ? document.state : document.in_progress ? "in progress" : "idle";
  let percent;
  if (Number.isFinite(document.update_percentage)) percent = document.update_percentage;
  else if (Number.isFinite(document.bytes_done) && document.bytes_total > 0) percent = (document.bytes_done / document.bytes_total) * 100;
  else if (BEFORE.has(state)) percent = 0;
  else if (AFTER.has(state)) percent = 100;
  if (percent !== undefined) percent = Math.floor(Math.min(Math.max(percent, 0), 100));
  const isMoving = percent !== undefined && percent > 0 && percent < 100;
  return { percent, state, text: isMoving ? `${state} ${percent} %` : state.replaceAll("_", " ") };
}

class Deployment {
  /** id: as the node's answer named it; wanted: the end that is a success, "committed" or "rolled_back". */
  constructor(id, wanted) {
    this.id = id;
    this.wanted = wanted;
    this.wasSeen = false;
  }

  /** Takes `ota/state`: {what: "progress", percent, state, text}, {what: "end", ...}, {what: "gone"} or undefined. */
  hearState(document) {
    if (document === null || typeof document !== "object") return undefined;
    if (document.deployment === this.id) {
      this.wasSeen = true;
      return ENDS.has(document.state) ? this.end(document) : { what: "progress", ...otaProgress(document) };
    }
    if (document.queued === this.id) {
      this.wasSeen = true;
      return { what: "progress", percent: 0, state: "queued", text: "queued" };
    }
    // Another one is under way: how this one ended is in an event, or was missed.
    return this.wasSeen ? { what: "gone" } : undefined;
  }

  /** Takes `evt/ota`: {what: "end", ...} or undefined. */
  hearEvent(event) {
    if (event === null || typeof event !== "object" || event.deployment !== this.id) return undefined;
    this.wasSeen = true;
    return ENDS.has(event.state) ? this.end(event) : undefined;
  }

  end({ state, reason, detail }) {
    if (state === this.wanted) return { what: "end", ok: true, state };
    const why = [detail, reason].find((text) => typeof text === "string" && text !== "") ?? "the node gave no reason";
    const code = typeof reason === "string" && reason !== "" ? reason : state;
    return { what: "end", ok: false, state, code, message: `${state.replaceAll("_", " ")}: ${why}` };
  }
}

module.exports = { Deployment, otaProgress };
