// Texts for status lines and errors in the editor's language, from locales/*/orinoco-node.json.
"use strict";

const SPACE = "@orinoco/node-red-orinoco/orinoco-node";
const ENGLISH = require("../nodes/locales/en-US/orinoco-node.json");

/** Returns _(key, fallback); without a fallback the English text, in the end the key itself. */
function words(RED) {
  return (key, fallback) => {
    const text = RED._(`${SPACE}:${key}`);
    if (typeof text === "string" && text !== "" && !text.endsWith(key)) return text;
    const english = key.split(".").reduce((at, part) => at?.[part], ENGLISH);
    return typeof english === "string" ? english : (fallback ?? key);
  };
}

module.exports = { words };
