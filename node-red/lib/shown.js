// PURE: what a node's status says, in at most 20 or so characters. `_` translates.
"use strict";

const short = (text, most = 24) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

/** While text comes: counted in characters, as a node sends several tokens at once; about four make a token. */
function streaming(nCharacters, elapsedMs) {
  const tokens = Math.max(1, Math.round(nCharacters / 4));
  const rate = elapsedMs > 200 ? tokens / (elapsedMs / 1000) : 0;
  const text = rate > 0 ? `~${tokens} tok · ~${rate.toFixed(rate < 10 ? 1 : 0)} tok/s` : `~${tokens} tok`;
  return { fill: "blue", shape: "dot", text };
}

/** At the end: as the node counted. */
function finished(_, body) {
  const tokens = body.usage?.completion_tokens;
  const rate = body.orinoco?.tok_s;
  const parts = [];
  if (Number.isFinite(tokens)) parts.push(`${tokens} tok`);
  if (Number.isFinite(rate)) parts.push(`${rate.toFixed(rate < 10 ? 1 : 0)} tok/s`);
  return { fill: "green", shape: "dot", text: parts.join(" · ") || _("orinoco.status.done") };
}

function failed(_, error) {
  const shape = error.code === "cancelled" || error.code === "closed" ? "ring" : "dot";
  const fill = shape === "ring" ? "grey" : "red";
  return { fill, shape, text: short(_(`orinoco.error.${error.code}`, String(error.code))) };
}

/** Of a connection: what a person should know before the first question. */
function presence(_, link, target) {
  if (!link) return { fill: "red", shape: "ring", text: _("orinoco.status.noConfig") };
  if (!link.connected) return { fill: "red", shape: "ring", text: _("orinoco.status.noBroker") };
  if (target?.kind === "pool") return { fill: "green", shape: "ring", text: short(target.name) };
  let name;
  try {
    name = link.resolve(target).name;
  } catch {
    const isNone = link.nodes().length === 0;
    return { fill: "yellow", shape: "ring", text: _(isNone ? "orinoco.status.noNode" : "orinoco.status.chooseNode") };
  }
  const state = link.latest(name, "status")?.state;
  if (state === "online") {
    const { mode } = link.latest(name, "state") ?? {};
    if (mode === "no_model") return { fill: "red", shape: "ring", text: _("orinoco.status.noModel") };
    if (mode === "loading" || mode === "starting") return { fill: "yellow", shape: "ring", text: _("orinoco.status.loading") };
    return { fill: "green", shape: "ring", text: short(name) };
  }
  if (state === "draining") return { fill: "yellow", shape: "ring", text: short(`${name}: ${_("orinoco.status.draining")}`) };
  if (state === "offline") return { fill: "red", shape: "ring", text: short(`${name}: ${_("orinoco.status.offline")}`) };
  return { fill: "yellow", shape: "ring", text: _("orinoco.status.unseen") };
}

module.exports = { streaming, finished, failed, presence, short };
