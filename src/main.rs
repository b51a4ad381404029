//! The `orinoco` command.

fn main() {}
