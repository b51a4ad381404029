//! Orinoco's supervisor as a library: everything of the daemon and its command line but `main`.
//!
//! Neither llama.cpp nor CUDA is named or linked here; models run in `orinoco-engine`, a child process
//! that speaks [`frames`] over an inherited socketpair. ARCHITECTURE.md has the picture.

pub mod access;
pub mod bench;
pub mod board;
pub mod broker;
pub mod cli;
pub mod config;
pub mod contract;
pub mod daemon;
pub mod disk;
pub mod dispatch;
pub mod doctor;
pub mod frames;
pub mod governor;
pub mod home_assistant;
pub mod kv_file;
pub mod ledger;
pub mod link;
pub mod logging;
pub mod models;
pub mod notify;
pub mod offload;
pub mod ota;
pub mod pressure;
pub mod process;
pub mod receive;
pub mod runtime_file;
pub mod secret;
pub mod selection;
pub mod store;
pub mod telemetry;
pub mod top;
pub mod users;
pub mod wire;
pub mod worker;
