//! A worker without a model, for tests of the supervisor: same frames, same loop, hooks in the prompt.
//! See [`orinoco_engine::scripted`]. Not shipped.

use std::process::ExitCode;

use orinoco_engine::scripted::ScriptedLoader;

fn main() -> ExitCode {
    orinoco_engine::worker::main("scripted", vec!["CPU".to_owned()], |_, _| {
        Ok(ScriptedLoader::for_process())
    })
}
