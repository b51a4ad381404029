//! Ports for brokers of tests.

#![allow(unreachable_pub, reason = "part of each test program")]

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Ports below those that the kernel gives to whoever connects: one of those may be taken by any client in the moment
/// before a broker listens on it, and a client that tries it may even be connected with itself.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// A port that was free a moment ago, and that no other call in this process gives.
pub fn free_port() -> u16 {
    static CALLS: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    // Processes side by side begin at places far from each other.
    let begin = std::process::id().wrapping_mul(7919) % u32::from(count);
    loop {
        let call = CALLS.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + ((begin + u32::from(call)) % u32::from(count)) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
