// Preloaded into node-red-dev, which otherwise asks the public catalogue and registry and stops where there is
// none: the names of published packages are then not compared with ours, all else is checked.
"use strict";

const path = require("node:path");

// Its own one: there may be several.
const place = path.dirname(require.resolve("node-red-dev/package.json"));
const axios = require(require.resolve("axios", { paths: [place] }));

const ask = axios.get.bind(axios);
const nodeRed = { "dist-tags": { latest: "5.0.7" }, versions: { "5.0.7": { engines: { node: ">=22.9.0" } } } };
axios.get = async (url, ...more) => {
  if (url.includes("catalogue.nodered.org")) return { data: { modules: [] } };
  if (url.endsWith("registry.npmjs.org/node-red")) return { data: nodeRed };
  return ask(url, ...more);
};
