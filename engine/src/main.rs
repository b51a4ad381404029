//! The `orinoco-engine` worker.

fn main() {}
