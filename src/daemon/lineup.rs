//! What could serve on this board now: configuration, shipped profiles, measured table, files and memory
//! brought together as the input of [`crate::selection`].

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;

use tracing::warn;

use crate::board::identity::{self, Identity};
use crate::board::power::Present;
use crate::board::{Faults, Root, memory};
use crate::config::{Choose, Config, PowerConfig, ProfileConfig, shipped_profiles};
use crate::models::Catalogue;
use crate::selection::{self, Line, Row, Site, TABLE_BYTES_MAX};

/// Of all memory, what stays free: this share, and at least so many bytes. The engine's plan judges each load
/// with the operator's reserve; this only passes over what has no chance.
const RESERVE_PERCENT: u64 = 7;
const RESERVE_BYTES_MIN: u64 = 512 << 20;

/// All that a choice is made from, but the power mode of the moment.
pub(super) struct Lineup {
    power: PowerConfig,
    profiles: BTreeMap<String, ProfileConfig>,
    rows: Vec<Row>,
    models: BTreeSet<String>,
    n_seq_max: u32,
    root: Root,
    identity: Identity,
}

impl Lineup {
    pub(super) fn read(config: &Config, catalogue: &Catalogue) -> Self {
        let root = Root::new(&config.paths.board_root);
        let identity = identity::read(&root, &mut Faults::default());
        let mut profiles = identity
            .kind
            .profiles()
            .map_or_else(BTreeMap::new, shipped_profiles);
        profiles.extend(config.profiles.clone());
        let is_here = |entry: &&crate::models::Entry| entry.file_bytes.is_some();
        let here = catalogue.entries().iter().filter(is_here);
        Self {
            rows: rows(&config.power),
            power: config.power.clone(),
            profiles,
            models: here.map(|entry| entry.name.clone()).collect(),
            n_seq_max: config.engine.n_seq_max,
            root,
            identity,
        }
    }

    /// The board, as it was when this was read.
    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What could serve in this power mode, best first. `own_bytes`: what our own worker has taken and
    /// gives back when another model takes its place.
    pub(super) fn candidates(
        &self,
        present: &Present,
        pinned: Option<&str>,
        own_bytes: u64,
    ) -> Vec<Line> {
        let room_bytes = memory::read(&self.root).ok().map(|memory| {
            let percent = memory.total_bytes / 100 * RESERVE_PERCENT;
            let reserve_bytes = percent.max(RESERVE_BYTES_MIN);
            memory
                .available_bytes
                .saturating_add(own_bytes)
                .saturating_sub(reserve_bytes)
        });
        // What is not known is left to the plan before the load.
        let fits = |line: &Line| match (line.memory_bytes, room_bytes) {
            (Some(needs), Some(room)) => needs <= room,
            _ => true,
        };
        let mode = present.effective_mode().map(|mode| mode.name.as_str());
        let site = Site {
            caps: present.caps,
            mode,
            models: &self.models,
            n_seq_max: self.n_seq_max,
            fits: &fits,
            pinned,
        };
        selection::candidates(&self.power, &self.profiles, &self.rows, &site)
    }
}

/// The measured table, where it is asked for. One that cannot be used is as good as none.
fn rows(power: &PowerConfig) -> Vec<Row> {
    if power.choose != Choose::Auto {
        return Vec::new();
    }
    let path = power.table_file.display().to_string();
    // The path is one of this machine, not of the board's tree.
    match Root::live().bytes(&path, TABLE_BYTES_MAX) {
        Ok(Some(bytes)) => selection::parse_table(&bytes).unwrap_or_else(|e| {
            warn!(path, error = &e as &dyn Error, "measured table not used");
            Vec::new()
        }),
        Ok(None) => Vec::new(),
        Err(e) => {
            warn!(path, error = &e as &dyn Error, "measured table not used");
            Vec::new()
        }
    }
}
