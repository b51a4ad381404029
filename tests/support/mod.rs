//! What the tests of the whole share: brokers, daemons, a client that follows the contract.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test file uses its own part of this module"
)]

pub mod board;
pub mod broker;
pub mod daemon;
pub mod journal;
pub mod requester;
pub mod systemd;
