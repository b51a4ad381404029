//! Orinoco's worker as a library: everything of `orinoco-engine` but `main`.
//!
//! A worker holds one model and the jobs in its slots, nothing else: no MQTT, no users, no policy.
//! `run` is the loop (commands, admit, plan, decode, sample, emit); `schedule`, `prefix`, `sampling`
//! and `text` are its pure parts; `model` is the seam to `llama`, the only folder that names
//! llama.cpp; `scripted` stands in for it in tests; `pipe` moves frames over the socketpair;
//! `sandbox` holds the process in before a model is opened; `budget` holds hostile templates in; `grammar` says
//! which tokens may follow; `archive` leaves saved sequences on disk.

pub mod archive;
pub mod budget;
pub mod controls;
pub mod draft;
pub mod embed;
pub mod grammar;
pub mod llama;
pub mod markers;
pub mod model;
pub mod pipe;
pub mod prefix;
pub mod process;
pub mod run;
pub mod sampling;
pub mod sandbox;
pub mod schedule;
pub mod scripted;
pub mod shelf;
pub mod slot;
pub mod speculation;
pub mod template;
pub mod text;
pub mod worker;
