//! The table of power modes. See [`super`] for its form.

use std::collections::{BTreeMap, BTreeSet};

use crate::board::caps::Caps;
use crate::board::text::{ParseError, lines, word_number, words};

/// Most modes; boards have at most nine.
const MODES_MAX: usize = 64;

/// Longest name of a mode, bytes.
const NAME_BYTES_MAX: usize = 64;

/// Clusters of an Orin's GPU that a mask may switch off: its bits.
const TPC_MASK_BITS: u64 = 0xff;

/// Clusters of the largest Orin.
const N_TPCS: u32 = 8;

/// Values that stand for "no cap" where a mode is written or printed.
const NO_CAP: &[i64] = &[-1, 0, i32::MAX as i64, i64::MAX];

/// All modes of a board.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// In the order of the file.
    pub modes: Vec<Mode>,
    /// Id of the mode of a board that was never told otherwise.
    pub default_id: Option<u32>,
}

impl Table {
    /// The mode with this id.
    pub fn get(&self, id: u32) -> Option<&Mode> {
        self.modes.iter().find(|mode| mode.id == id)
    }

    /// The mode with this name.
    pub fn named(&self, name: &str) -> Option<&Mode> {
        self.modes.iter().find(|mode| mode.name == name)
    }

    /// The mode of a board without status file.
    pub fn default_mode(&self) -> Option<&Mode> {
        self.get(self.default_id?)
    }
}

/// One power mode. Caps are `None` where the mode sets none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mode {
    /// As in the status file.
    pub id: u32,
    /// e.g. `MAXN_SUPER`, `25W`, `MODE_30W`.
    pub name: String,
    /// Cores switched on; `None`: the mode leaves them alone.
    pub n_cores: Option<u32>,
    /// Highest clock of each CPU cluster that is on, kHz, by the cluster's name (`CPU_A78_0`).
    pub cpu_khz_max: BTreeMap<String, Option<u64>>,
    /// Highest GPU clock, Hz.
    pub gpu_hz_max: Option<u64>,
    /// Highest memory clock, Hz.
    pub emc_hz_max: Option<u64>,
    /// Clusters of the GPU that are switched off, as bits; `None`: the mode leaves them alone.
    pub tpc_mask: Option<u64>,
}

impl Mode {
    /// Watts in the name, to be shown and never to be judged by.
    pub fn watts(&self) -> Option<u32> {
        let digits_end = self.name.strip_suffix('W')?;
        let start = digits_end
            .rfind(|c: char| !c.is_ascii_digit())
            .map_or(0, |at| at + 1);
        digits_end[start..].parse().ok()
    }

    /// What the mode allows.
    pub fn caps(&self) -> Caps {
        Caps {
            gpu_hz: self.gpu_hz_max,
            n_tpcs: self.tpc_mask.map(n_tpcs),
            emc_hz: self.emc_hz_max,
            n_cores: self.n_cores,
            // One cluster without cap, and the CPU has none.
            cpu_khz: (self.cpu_khz_max.values().copied())
                .reduce(|a, b| Some(a?.max(b?)))
                .flatten(),
        }
    }
}

/// Clusters left on by a mask.
pub(in crate::board) fn n_tpcs(mask: u64) -> u32 {
    N_TPCS - (mask & TPC_MASK_BITS).count_ones()
}

/// Parses a table.
///
/// # Errors
/// A heading that is not closed or lacks its keys, an id that came before, a value that is no number, a
/// default that no mode has.
pub fn parse(bytes: &[u8]) -> Result<Table, ParseError> {
    let mut table = Table::default();
    let mut ids = BTreeSet::new();
    let mut default_line = 0;
    let mut is_in_mode = false;
    for (number, line) in lines(bytes) {
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        if line.starts_with(b"<") {
            is_in_mode = false;
            match heading(number, line)? {
                Heading::Mode { id, name } => {
                    if !ids.insert(id) || table.modes.len() == MODES_MAX {
                        let expected = format!("at most {MODES_MAX} modes, each id once");
                        return Err(ParseError::new(number, line, expected));
                    }
                    table.modes.push(Mode {
                        id,
                        name,
                        ..Mode::default()
                    });
                    is_in_mode = true;
                }
                Heading::Default(id) => {
                    table.default_id = Some(id);
                    default_line = number;
                }
                Heading::Other => {}
            }
        } else if is_in_mode && let Some(mode) = table.modes.last_mut() {
            setting(mode, number, line)?;
        }
    }
    match table.default_id {
        Some(id) if !ids.contains(&id) => Err(ParseError::new(
            default_line,
            format!("DEFAULT={id}").as_bytes(),
            "the id of a mode in this file",
        )),
        _ => Ok(table),
    }
}

enum Heading {
    Mode { id: u32, name: String },
    Default(u32),
    Other,
}

/// `< POWER_MODEL ID=3 NAME=25W >`
fn heading(number: usize, line: &[u8]) -> Result<Heading, ParseError> {
    let bad = |expected: &str| ParseError::new(number, line, expected);
    let inner = line
        .strip_prefix(b"<")
        .and_then(|line| line.strip_suffix(b">"))
        .ok_or_else(|| bad("a heading that ends with >"))?;
    let mut parts = words(inner);
    let kind = parts.next().ok_or_else(|| bad("a word behind <"))?;
    let value =
        |key: &[u8]| words(inner).find_map(|word| word.strip_prefix(key)?.strip_prefix(b"="));
    let id = |key: &[u8], expected| {
        let word = value(key).ok_or_else(|| bad(expected))?;
        word_number::<u32>(number, word, &(0..=u32::MAX))
    };
    match kind {
        b"POWER_MODEL" => {
            let expected = "< POWER_MODEL ID=N NAME=TEXT >";
            let name = value(b"NAME")
                .and_then(|name| std::str::from_utf8(name).ok())
                .filter(|name| !name.is_empty() && name.len() <= NAME_BYTES_MAX)
                .ok_or_else(|| bad(expected))?;
            Ok(Heading::Mode {
                id: id(b"ID", expected)?,
                name: name.to_owned(),
            })
        }
        b"PM_CONFIG" => Ok(Heading::Default(id(b"DEFAULT", "< PM_CONFIG DEFAULT=N >")?)),
        _ => Ok(Heading::Other),
    }
}

/// `GPU MAX_FREQ 408000000`; what is not about cores, clocks of CPU, GPU and memory, or GPU clusters is
/// skipped.
fn setting(mode: &mut Mode, number: usize, line: &[u8]) -> Result<(), ParseError> {
    let mut parts = words(line);
    let (Some(param), Some(argument), value) = (parts.next(), parts.next(), parts.next()) else {
        return Err(ParseError::new(number, line, "PARAM ARGUMENT VALUE"));
    };
    let value = || value.ok_or_else(|| ParseError::new(number, line, "PARAM ARGUMENT VALUE"));
    match (param, argument) {
        (b"CPU_ONLINE", _) => {
            let is_on = word_number::<u32>(number, value()?, &(0..=1))?;
            mode.n_cores = Some(mode.n_cores.unwrap_or(0) + is_on);
        }
        (b"TPC_POWER_GATING", b"TPC_PG_MASK") => {
            mode.tpc_mask = Some(word_number(number, value()?, &(0..=u64::MAX))?);
        }
        (b"GPU", b"MAX_FREQ") => mode.gpu_hz_max = cap(number, value()?)?,
        (b"EMC", b"MAX_FREQ") => mode.emc_hz_max = cap(number, value()?)?,
        (cpu, b"MAX_FREQ") if cpu.starts_with(b"CPU_") => {
            let cluster = String::from_utf8_lossy(cpu).into_owned();
            mode.cpu_khz_max.insert(cluster, cap(number, value()?)?);
        }
        _ => {}
    }
    Ok(())
}

fn cap(number: usize, word: &[u8]) -> Result<Option<u64>, ParseError> {
    let value = word_number::<i64>(number, word, &(-1..=i64::MAX))?;
    // Not negative but -1, which is "no cap".
    Ok(Some(value.unsigned_abs()).filter(|_| !NO_CAP.contains(&value)))
}
