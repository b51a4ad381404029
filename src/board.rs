//! The board: everything that is read from it, through one root path.
//!
//! Memory, swap and pressure; the power mode and the clocks in force; GPU, temperatures, rails and
//! counters; and which board it is. Parsers take bytes and return values, [`root::Root`] does all reading:
//! `/` in production, a directory of another board in tests and for support. A value that the board does
//! not have is `None`, never zero; what is there and cannot be understood is a [`root::ReadError`] with
//! file, line, what was found and what was expected. No bytes make a parser panic.
//!
//! | question | module |
//! |---|---|
//! | how much memory is left, many times a second | [`memory`], [`pressure`] |
//! | which swap, which limit of a control group | [`swap`], [`cgroup`] |
//! | load, clocks, temperatures, watts, counters as one snapshot | [`sensors`] |
//! | which power mode, what it allows, what is in force | [`nvpmodel`], [`caps`], [`power`] |
//! | tell me when the power mode changes | [`watch`] |
//! | which board, which Jetson Linux, which device nodes | [`identity`], [`l4t`] |
//!
//! This module only reads. It sets no mode and no clock, keeps no history, and decides nothing.

pub mod caps;
pub mod cgroup;
pub mod fan;
pub mod gpu;
mod hwmon;
pub mod identity;
pub mod l4t;
pub mod memory;
pub mod nvpmodel;
pub mod power;
pub mod pressure;
pub mod rails;
pub mod root;
pub mod sensors;
pub mod swap;
pub mod text;
pub mod thermal;
pub mod throttle;
pub mod watch;

#[cfg(test)]
mod tests;

pub use root::{Faults, ReadError, Root};
