//! Orinoco's publisher of signed model updates, as a library for its own tests.
//!
//! Owns the operator's side of a fleet update: keys, the repository as a tree of static files, what is staged
//! for the next signature, and the rollout over MQTT. What the files mean is [`orinoco::ota`], which devices
//! read; nothing of this crate is on a device.
//!
//! ```text
//!   add, withdraw, waves, policy ──▶ staged/ ──sign──▶ metadata/, targets/ ──export──▶ stick, mirror
//!   rotate, renew ──▶ staged/N.root.json ──sign──▶  as soon as enough keys signed it
//! ```
//!
//! Only `sign` needs keys; whoever prepares a release needs none. Every file is written whole and synced
//! before the next, and `timestamp.json` last: until then clients see the old repository.

pub mod cli;
pub mod disk;
pub mod example;
pub mod export;
pub mod intake;
pub mod keys;
pub mod progress;
pub mod releases;
pub mod repository;
pub mod rollout;
pub mod root;
pub mod sign;
pub mod time;
pub mod verify;
