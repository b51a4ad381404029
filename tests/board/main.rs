//! What is read from the three boards, from each broken variant, and while the power mode changes; and
//! which model serves there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod boards;
mod models;
mod reading;
mod variants;
mod watching;
