//! Signed releases go into service while streams run, and come out of it again by themselves when they do not
//! work: with the publisher's own tool, a plain static web server, a real broker and real processes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "ota_deploy/crash.rs"]
mod crash;
#[path = "ota_deploy/fleet.rs"]
mod fleet;
#[path = "ota_deploy/health.rs"]
mod health;
#[path = "ota_deploy/kept.rs"]
mod kept;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "ota_deploy/real.rs"]
mod real;
#[path = "ota_deploy/setup.rs"]
mod setup;
mod support;
#[path = "ota_deploy/switch.rs"]
mod switch;
