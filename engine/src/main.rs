//! The `orinoco-engine` worker: llama.cpp behind a socketpair.
//!
//! Backend, model and loop stay on the main thread; see `worker` for its life and `run` for the loop.

#![allow(
    unsafe_code,
    reason = "an environment variable is the only way to switch CUDA graphs off"
)]

use std::process::ExitCode;

use orinoco::frames::Switch;
use orinoco_engine::llama::{self, LlamaLoader};

fn main() -> ExitCode {
    orinoco_engine::worker::main(llama::VERSION, llama::backends(), |spec, closed| {
        if spec.cuda_graphs == Switch::Off {
            #[expect(
                clippy::disallowed_methods,
                reason = "ggml reads it once, when the CUDA backend starts"
            )]
            // SAFETY: called before the socket's threads and the backend start; no other thread exists.
            unsafe {
                std::env::set_var("GGML_CUDA_DISABLE_GRAPHS", "1");
            }
        }
        LlamaLoader::new(closed)
    })
}
