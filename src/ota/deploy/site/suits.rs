//! Whether a release suits this board, this system, this engine, and the file its manifest.

use super::{Site, no};
use crate::board::power::PowerProbe;
use crate::board::{Faults, Root, identity, memory};
use crate::models::gguf;
use crate::models::release::Release as Served;
use crate::ota::manifest::Manifest;
use crate::ota::probe::No;
use crate::ota::reason::Reason;

impl Site {
    /// Whether the board is one that the release is made for.
    pub(super) fn gate(&self, manifest: &Manifest) -> Result<(), No> {
        let needs = &manifest.needs;
        let is_board = |name: &&crate::ota::BoardName| name.as_str() == self.board;
        if !needs.boards.is_empty() && needs.boards.iter().find(is_board).is_none() {
            let board = match self.board.as_str() {
                "" => "no board that is known",
                board => board,
            };
            let made_for: Vec<_> = needs.boards.iter().map(ToString::to_string).collect();
            return Err(no(
                Reason::IncompatibleBoard,
                format!(
                    "this is {board}, the release is for {}",
                    made_for.join(", ")
                ),
            ));
        }
        let mode = self.mode();
        if !needs.power_modes.is_empty() && !needs.power_modes.contains(&mode) {
            return Err(no(
                Reason::IncompatibleBoard,
                format!(
                    "power mode {mode:?}, the release is for {}",
                    needs.power_modes.join(", ")
                ),
            ));
        }
        if let Some(min) = needs.min_l4t
            && self.l4t.is_none_or(|l4t| l4t < min.0)
        {
            let found = self.l4t.map_or("none".to_owned(), |l4t| l4t.to_string());
            return Err(no(
                Reason::IncompatibleL4t,
                format!(
                    "Jetson Linux {found}, the release needs {}: update the system first",
                    min.0
                ),
            ));
        }
        if needs.min_engine_build > self.config.engine_build {
            return Err(no(
                Reason::IncompatibleEngine,
                format!(
                    "llama.cpp build {}, the release needs {}: update Orinoco first",
                    self.config.engine_build, needs.min_engine_build
                ),
            ));
        }
        if !gguf::limits::ARCHITECTURES.contains(&manifest.model.arch.as_str()) {
            return Err(no(
                Reason::IncompatibleEngine,
                format!(
                    "architecture {:?} is none that this Orinoco opens",
                    manifest.model.arch
                ),
            ));
        }
        let root = Root::new(&self.config.board_root);
        if let (Some(mib), Ok(memory)) = (
            needs.memory_mib(manifest.runtime.n_ctx),
            memory::read(&root),
        ) {
            let room = memory.total_bytes.saturating_sub(self.config.reserve_bytes) >> 20;
            if mib > room {
                return Err(no(
                    Reason::IncompatibleMemory,
                    format!("the board has {room} MiB for models, the release needs {mib}"),
                ));
            }
        }
        Ok(())
    }

    /// The draft model that the release works with: on the device, and of the same vocabulary.
    pub(super) fn pair(
        &self,
        record: &[Served],
        manifest: &Manifest,
        n_vocab: u32,
    ) -> Result<(), No> {
        let Some((line, min_seq)) = manifest.draft() else {
            return Ok(());
        };
        let draft = record.iter().find(|release| release.line == line.as_str());
        let draft = draft.filter(|draft| draft.release_seq >= min_seq).ok_or_else(|| {
            no(
                Reason::IncompatibleEngine,
                format!("its draft model, release {min_seq} of {line} or later, is not on the device"),
            )
        })?;
        let header = gguf::preflight(&draft.path)
            .map_err(|error| no(Reason::GgufRejected, error.to_string()))?;
        match header.n_vocab == n_vocab {
            true => Ok(()),
            false => Err(no(
                Reason::GgufRejected,
                format!(
                    "its draft model {} has {} tokens, it has {n_vocab}",
                    draft.name, header.n_vocab
                ),
            )),
        }
    }

    pub(super) fn mode(&self) -> String {
        let root = Root::new(&self.config.board_root);
        let identity = identity::read(&root, &mut Faults::default());
        let present = PowerProbe::new(&root, identity.module).read(None);
        let mode = present.effective_mode();
        mode.map(|mode| mode.name.clone()).unwrap_or_default()
    }
}

/// That a file is the model that its manifest tells of.
pub(super) fn check_header(header: &gguf::Header, manifest: &Manifest) -> Result<(), No> {
    let model = &manifest.model;
    let figures = [
        ("n_params", header.n_params, model.n_params),
        ("n_vocab", header.n_vocab.into(), model.n_vocab.into()),
        (
            "n_ctx_train",
            header.n_ctx_train.into(),
            model.n_ctx_train.into(),
        ),
    ];
    for (what, found, said) in figures {
        if found != said {
            return Err(no(
                Reason::GgufRejected,
                format!("{what} of the file is {found}, of the manifest {said}"),
            ));
        }
    }
    match header.arch == model.arch {
        true => Ok(()),
        false => Err(no(
            Reason::GgufRejected,
            format!(
                "the file is {:?}, the manifest says {:?}",
                header.arch, model.arch
            ),
        )),
    }
}
