//! Orinoco's supervisor as a library: everything of the daemon and its command line but `main`.
//!
//! Neither llama.cpp nor CUDA is named or linked here; models run in `orinoco-engine`, a child process
//! that speaks [`frames`] over an inherited socketpair. ARCHITECTURE.md has the picture.

pub mod config;
pub mod frames;
pub mod link;
pub mod receive;
pub mod wire;
pub mod logging;
pub mod broker;
pub mod frames;
pub mod link;
pub mod process;
pub mod users;
