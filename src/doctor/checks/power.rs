//! Power mode, clocks, heat and the supply.

use super::mhz;
use crate::board::ReadError;
use crate::board::caps::{Cap, Caps, Difference};
use crate::board::nvpmodel::{self, Mode, Table};
use crate::board::power::NamedBy;
use crate::board::thermal::junction_millicelsius;
use crate::doctor::{Facts, Finding};

/// Orin slows its own clocks from here on, °C.
const CELSIUS_THROTTLE: f32 = 99.0;

/// What every check here says on machines without NVIDIA's power modes.
const NO_MODES: &str = "no power modes: not an Orin";

pub(super) fn table(facts: &Facts) -> Finding {
    if !facts.identity.kind.is_orin() {
        return Finding::skipped(NO_MODES);
    }
    let remedy =
        "`sudo apt install --reinstall nvidia-l4t-nvpmodel`; on Yocto, the package tegra-nvpmodel";
    match &facts.power_table {
        None => Finding::warn(
            "no table of power modes (/etc/nvpmodel.conf)",
            "the modes of this module",
            remedy,
        ),
        Some((path, Err(error))) => Finding::warn(
            error.to_string(),
            format!("a table of power modes in {path}"),
            remedy,
        ),
        Some((path, Ok(table))) if table.default_id.is_none() => Finding::warn(
            format!("{path}: {}, none of them the default", names(table)),
            "a line < PM_CONFIG DEFAULT=N >: without it a board that was never told a mode has none",
            remedy,
        ),
        Some((path, Ok(table))) if !path.starts_with("/etc/nvpmodel.conf") && !is_in_use(path) => {
            Finding::warn(
                format!("{} in {path}, and no /etc/nvpmodel.conf", names(table)),
                "/etc/nvpmodel.conf, a link to the table that is made at boot",
                "`sudo systemctl restart nvpower nvpmodel`, and look at their logs",
            )
        }
        Some((path, Ok(table))) => Finding::ok(format!("{} in {path}", names(table))),
    }
}

/// Whether it is where nvpmodel itself would say that its table is: outside of the folder of all tables.
fn is_in_use(path: &str) -> bool {
    !path.starts_with("/etc/nvpmodel/")
}

fn names(table: &Table) -> String {
    let names: Vec<&str> = table.modes.iter().map(|mode| mode.name.as_str()).collect();
    names.join(", ")
}

pub(super) fn status(facts: &Facts) -> Finding {
    if !facts.identity.kind.is_orin() {
        return Finding::skipped(NO_MODES);
    }
    let power = &facts.power;
    let fault = power
        .faults
        .iter()
        .find(|fault| fault.path() == nvpmodel::STATUS);
    if let Some(fault) = fault {
        return Finding::warn(
            fault.to_string(),
            "pmode: and the id of a mode",
            "`sudo nvpmodel -q` says the mode, `sudo nvpmodel -m ID` writes the file anew",
        );
    }
    match (&power.mode, power.named_by) {
        (Some(mode), NamedBy::Status) => Finding::ok(format!("{} ({})", mode.name, mode.id)),
        (Some(mode), NamedBy::Default) => Finding::ok(format!(
            "{} ({}), the table's default: no mode was ever chosen on this board",
            mode.name, mode.id
        )),
        (Some(mode), _) => Finding::ok(format!("{} ({}), by nvpmodel -q", mode.name, mode.id)),
        (None, _) => Finding::warn(
            "nobody says which power mode it is",
            "a mode in /var/lib/nvpmodel/status, or a default in the table",
            "see power.table; then `sudo nvpmodel -m ID`",
        ),
    }
}

/// Whether the clocks in force are those of the mode.
pub(super) fn clocks(facts: &Facts) -> Finding {
    if !facts.identity.kind.is_orin() {
        return Finding::skipped(NO_MODES);
    }
    let power = &facts.power;
    let others: Vec<String> = (power.faults.iter())
        .filter(|fault| fault.path() != nvpmodel::STATUS && !is_table(facts, fault))
        .map(ToString::to_string)
        .collect();
    if !others.is_empty() {
        return Finding::warn(
            others.join("; "),
            "clocks that can be read",
            "the power mode is judged by its table alone; report the file's content",
        );
    }
    let Some(mode) = &power.mode else {
        return match power.caps == Caps::default() {
            true => Finding::skipped("no mode and no clocks in sight"),
            false => Finding::ok(format!("{}, whatever the mode", shown(&power.caps))),
        };
    };
    if power.differences.is_empty() {
        return Finding::ok(format!("{}, as {} says", shown(&power.caps), mode.name));
    }
    let differences: Vec<String> = power.differences.iter().map(difference).collect();
    let looks_like = match &power.looks_like {
        Some(other) => format!("; these are the clocks of {}", other.name),
        None => String::new(),
    };
    Finding::warn(
        format!(
            "{} is named, but {}{looks_like}",
            mode.name,
            differences.join(", ")
        ),
        format!("the clocks of {}", mode.name),
        "`sudo nvpmodel -m ID` sets it again, some modes only with a reboot; if heat or `jetson_clocks` did it, \
         see heat.throttling",
    )
}

fn is_table(facts: &Facts, fault: &ReadError) -> bool {
    let path = facts.power_table.as_ref().map(|(path, _)| path.as_str());
    path == Some(fault.path())
}

fn difference(difference: &Difference) -> String {
    let Difference { what, named, live } = difference;
    match what {
        Cap::GpuHz => format!("the GPU has {} instead of {}", mhz(*live), mhz(*named)),
        Cap::EmcHz => format!("memory has {} instead of {}", mhz(*live), mhz(*named)),
        Cap::CpuKhz => {
            let [live, named] = [live, named].map(|khz| mhz(khz.saturating_mul(1000)));
            format!("the CPU has {live} instead of {named}")
        }
        Cap::Tpcs => format!("{live} GPU clusters are on instead of {named}"),
        Cap::Cores => format!("{live} cores are on instead of {named}"),
    }
}

/// Whether there is a mode that allows more.
pub(super) fn mode(facts: &Facts) -> Finding {
    if !facts.identity.kind.is_orin() {
        return Finding::skipped(NO_MODES);
    }
    let Some((_, Ok(table))) = &facts.power_table else {
        return Finding::skipped("no table of power modes: see power.table");
    };
    let power = &facts.power;
    let within = |mode: &Mode| mode.caps().within(&power.limits);
    let best = table.modes.iter().max_by_key(|mode| within(mode).rank());
    let (Some(best), Some(now)) = (best, power.effective_mode()) else {
        return Finding::skipped("the mode is not known: see power.status");
    };
    if within(now).rank() >= within(best).rank() {
        return Finding::ok(format!(
            "{} allows the most: {}",
            now.name,
            shown(&power.caps)
        ));
    }
    Finding::warn(
        format!("{}: {}", now.name, shown(&within(now))),
        format!("{}: {}", best.name, shown(&within(best))),
        format!(
            "`sudo nvpmodel -m {}` where supply and cooling allow it; else nothing: the model for {} is chosen \
             by [profiles]",
            best.id, now.name
        ),
    )
}

/// `GPU 1020 MHz × 4 clusters, memory 3199 MHz, 6 cores`.
fn shown(caps: &Caps) -> String {
    let gpu = match (caps.gpu_hz, caps.n_tpcs) {
        (Some(hz), Some(n)) => Some(format!("GPU {} × {n} clusters", mhz(hz))),
        (Some(hz), None) => Some(format!("GPU {}", mhz(hz))),
        (None, _) => None,
    };
    let emc = caps.emc_hz.map(|hz| format!("memory {}", mhz(hz)));
    let cores = caps.n_cores.map(|n| format!("{n} cores"));
    let parts: Vec<String> = [gpu, emc, cores].into_iter().flatten().collect();
    match parts.is_empty() {
        true => "no clocks known".into(),
        false => parts.join(", "),
    }
}

pub(super) fn over_current(facts: &Facts) -> Finding {
    let Some(counters) = &facts.sensors.over_current else {
        return Finding::skipped("no over-current counters on this board");
    };
    let count = |n: Option<u64>| n.unwrap_or(0);
    let (sags, average) = (count(counters.under_voltage), count(counters.average));
    let found = format!(
        "since boot {sags} under-voltages, {average} average and {} instantaneous over-currents",
        count(counters.instantaneous)
    );
    if sags == 0 && average == 0 {
        // The instantaneous ones last a millisecond and are usual in uncapped modes.
        return Finding::ok(found);
    }
    let remedy = match sags > 0 {
        true => {
            "the supply sags under load: a stronger supply or shorter cable, or a lower power mode"
        }
        false => "the board draws more than its limit: a lower power mode",
    };
    Finding::warn(
        found,
        "no under-voltage and no average over-current",
        remedy,
    )
}

pub(super) fn junction(facts: &Facts) -> Finding {
    let Some(milli) = junction_millicelsius(&facts.sensors.zones) else {
        return Finding::skipped("no temperatures on this board");
    };
    let celsius = milli as f32 / 1000.0;
    let high = facts.config.power.celsius_high;
    let found = format!("{celsius:.1} °C at the hottest junction");
    let remedy = "let air through: dust, the fan (`sudo systemctl status nvfancontrol`), the enclosure; or a \
                  lower power mode";
    if celsius >= CELSIUS_THROTTLE {
        let expected = format!("below {CELSIUS_THROTTLE:.0} °C, where Orin slows its clocks");
        return Finding::fail(found, expected, remedy);
    }
    if celsius >= high {
        let expected =
            format!("below {high:.0} °C (power.celsius_high), where fewer prompts run at a time");
        return Finding::warn(found, expected, remedy);
    }
    Finding::ok(found)
}

pub(super) fn throttling(facts: &Facts) -> Finding {
    let cooling = &facts.sensors.cooling;
    if cooling.is_empty() {
        return Finding::skipped("no cooling devices on this board");
    }
    let acting: Vec<String> = (cooling.iter())
        .filter(|device| device.is_throttling())
        .map(|device| {
            format!(
                "{} at {} of {}",
                device.name, device.state, device.state_max
            )
        })
        .collect();
    if acting.is_empty() {
        return Finding::ok("no clock is held down by heat");
    }
    Finding::warn(
        format!("heat holds clocks down: {}", acting.join(", ")),
        "no clock held down",
        "cool the board, see heat.junction; until then fewer prompts run at a time",
    )
}
