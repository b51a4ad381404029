// Ports for the brokers of the plays.
"use strict";

const net = require("node:net");

/** A port that was free a moment ago, below those that the kernel gives to whoever connects. */
async function freePort() {
  for (;;) {
    const port = 12_000 + Math.floor(Math.random() * 20_000);
    const isFree = await new Promise((resolve) => {
      const probe = net.createServer().once("error", () => resolve(false));
      probe.listen(port, "127.0.0.1", () => probe.close(() => resolve(true)));
    });
    if (isFree) return port;
  }
}

module.exports = { freePort };
