//! systemd, secrets, disks and clocks.

use std::time::{Duration, SystemTime};

use crate::board::identity::is_clock_set;
use crate::config::BrokerMode;
use crate::doctor::facts::host::{Secret, SecretState};
use crate::doctor::{Facts, Finding};
use crate::ledger::memory as bytes;

/// Less free than this, and the job store or a log may stop.
const FREE_BYTES_MIN: u64 = 512 << 20;

/// Clocks that are further apart than this were not set together.
const APART_MAX: Duration = Duration::from_secs(24 * 3600);

pub(super) fn unit(facts: &Facts) -> Finding {
    const EXPECTED: &str = "orinoco.service, which starts the daemon at boot and after a failure";
    let service = match &facts.service {
        Ok(Some(service)) => service,
        Ok(None) => {
            return Finding::warn(
                "no orinoco.service",
                EXPECTED,
                "install the package, or copy systemd/ and `sudo systemctl enable --now orinoco`",
            );
        }
        Err(error) => {
            return Finding::warn(
                error.clone(),
                EXPECTED,
                "`sudo systemctl unmask orinoco`, or install it anew",
            );
        }
    };
    match service.last("Restart") {
        Some("always" | "on-failure" | "on-abnormal") => Finding::ok(service.path.clone()),
        other => Finding::warn(
            format!("{} has Restart={}", service.path, other.unwrap_or("no")),
            "Restart=always or on-failure: nobody logs in to the board to start it again",
            "`systemctl edit orinoco`: [Service], Restart=always",
        ),
    }
}

pub(super) fn watchdog(facts: &Facts) -> Finding {
    let Ok(Some(service)) = &facts.service else {
        return Finding::skipped("no unit: see service.unit");
    };
    let (kind, every) = (service.last("Type"), service.last("WatchdogSec"));
    let is_on = every.is_some_and(|every| !matches!(every, "0" | "infinity"));
    if kind == Some("notify") && is_on {
        return Finding::ok(format!(
            "Type=notify, WatchdogSec={}",
            every.unwrap_or_default()
        ));
    }
    Finding::warn(
        format!(
            "Type={}, WatchdogSec={}",
            kind.unwrap_or("simple"),
            every.unwrap_or("0")
        ),
        "Type=notify and WatchdogSec=: else a daemon that hangs is never started again",
        "take the drop-in away that changes them, or install the unit that comes with Orinoco",
    )
}

/// With `broker.mode = "unit"` somebody must start the broker.
pub(super) fn broker(facts: &Facts) -> Finding {
    let mode = facts.config.broker.mode;
    match (&facts.broker_service, mode) {
        (_, BrokerMode::Child) => Finding::ok("the broker is the daemon's child"),
        (_, BrokerMode::External) => {
            Finding::skipped("the broker is somebody else's: see broker.reachable")
        }
        (Ok(Some(service)), BrokerMode::Unit) => Finding::ok(service.path.clone()),
        (Ok(None), BrokerMode::Unit) => Finding::fail(
            "broker.mode = \"unit\", and no orinoco-broker.service",
            "the unit that starts the broker",
            "install the package, or copy systemd/ and `sudo systemctl enable --now orinoco-broker`",
        ),
        (Err(error), BrokerMode::Unit) => Finding::fail(
            error.clone(),
            "the unit that starts the broker",
            "`sudo systemctl unmask orinoco-broker`, or install it anew",
        ),
    }
}

/// Settings of the unit with which no GPU and no memory can be seen.
pub(super) fn devices(facts: &Facts) -> Finding {
    let Ok(Some(service)) = &facts.service else {
        return Finding::skipped("no unit: see service.unit");
    };
    let mut blocks = Vec::new();
    for key in ["PrivateDevices", "PrivateNetwork", "PrivateUsers"] {
        if service.is_on(key) {
            blocks.push(format!("{key}={}", service.last(key).unwrap_or_default()));
        }
    }
    if service.last("ProcSubset") == Some("pid") {
        blocks.push("ProcSubset=pid".into());
    }
    let is_closed = matches!(service.last("DevicePolicy"), Some("closed" | "strict"));
    let allowed: Vec<&str> = service.all("DeviceAllow").collect();
    let is_reached = |node: &str| allowed.iter().any(|entry| entry.starts_with(node));
    if is_closed
        && facts.identity.kind.is_orin()
        && !is_reached("/dev/nv")
        && !is_reached("char-nv")
    {
        blocks.push("DevicePolicy= without DeviceAllow= for the GPU".into());
    }
    if blocks.is_empty() {
        return Finding::ok(
            "nothing in the unit stands between the daemon and GPU, memory or network",
        );
    }
    Finding::fail(
        format!("{}: {}", service.path, blocks.join(", ")),
        "device nodes, /proc/meminfo and the network within reach",
        "take it out of the unit or its drop-ins; the worker has a sandbox of its own",
    )
}

pub(super) fn credentials(facts: &Facts) -> Finding {
    let secrets = &facts.secrets;
    let bad: Vec<String> = secrets.iter().filter_map(sentence).collect();
    if !bad.is_empty() {
        return Finding::fail(
            bad.join("; "),
            "files that the daemon can read and nobody else can",
            "`sudo chmod 600 FILE` (640 where root owns it and a group reads it), and a new secret where others \
             could read it",
        );
    }
    let named = |state: SecretState| -> Vec<&str> {
        let those = secrets.iter().filter(|secret| secret.state == state);
        those.map(|secret| secret.path.as_str()).collect()
    };
    let (fine, hidden) = (named(SecretState::Fine), named(SecretState::Hidden));
    if !hidden.is_empty() {
        return Finding::skipped(format!(
            "not ours to read: {}; run doctor as root",
            hidden.join(", ")
        ));
    }
    Finding::ok(match fine.is_empty() {
        true => "no file with a secret is named".into(),
        false => format!("{}: read by their owner alone", fine.join(", ")),
    })
}

fn sentence(secret: &Secret) -> Option<String> {
    match &secret.state {
        SecretState::Bad(what) => Some(format!("{} ({}): {what}", secret.path, secret.named_by)),
        _ => None,
    }
}

pub(super) fn disk(facts: &Facts) -> Finding {
    if facts.disks.is_empty() {
        return Finding::skipped("a tree has no disks");
    }
    let shown = |disk: &crate::doctor::facts::host::Disk| {
        format!(
            "{} of {} free in {} ({})",
            bytes(disk.free_bytes),
            bytes(disk.size_bytes),
            disk.path.display(),
            disk.named_by
        )
    };
    let all: Vec<String> = facts.disks.iter().map(shown).collect();
    let state = facts
        .disks
        .iter()
        .find(|disk| disk.named_by == "paths.state_dir");
    let Some(state) = state else {
        return Finding::skipped("the disk of paths.state_dir does not say what it has");
    };
    if state.is_read_only {
        return Finding::fail(
            format!("{} is mounted read-only", state.path.display()),
            "a disk that the job store can be written to",
            "look for errors of the disk in `dmesg`; on a read-only image set paths.state_dir to a data partition",
        );
    }
    let needed = facts.config.store.bytes_max.saturating_add(FREE_BYTES_MIN);
    if state.free_bytes < FREE_BYTES_MIN {
        let expected = format!(
            "at least {}: without room no prompt is accepted",
            bytes(FREE_BYTES_MIN)
        );
        return Finding::fail(
            all.join(", "),
            expected,
            "remove models or logs (`journalctl --vacuum-size=100M`)",
        );
    }
    if state.free_bytes < needed {
        return Finding::warn(
            all.join(", "),
            format!(
                "at least {}, for store.bytes_max and some more",
                bytes(needed)
            ),
            "remove models or logs, or lower store.bytes_max",
        );
    }
    Finding::ok(all.join(", "))
}

pub(super) fn clock(facts: &Facts) -> Finding {
    let clocks = &facts.clocks;
    let remedy = "let the board reach an NTP server of the site (`timedatectl`), and put a battery on the RTC";
    let expected = "a time that can be: certificates, expiries and schedules rest on it";
    let year = |time: SystemTime| {
        let seconds = time
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        // Good enough to tell 1970 from today.
        1970 + seconds / 31_556_952
    };
    if let Some(now) = clocks.now.filter(|now| !is_clock_set(*now)) {
        return Finding::warn(
            format!("the clock was never set: it is {}", year(now)),
            expected,
            remedy,
        );
    }
    if let Some(hardware) = clocks.hardware {
        if !is_clock_set(hardware) {
            return Finding::warn(
                format!(
                    "the hardware clock says {}: without a battery it starts anew",
                    year(hardware)
                ),
                expected,
                remedy,
            );
        }
        if let Some(now) = clocks.now {
            let apart = now
                .duration_since(hardware)
                .or(hardware.duration_since(now))
                .unwrap_or_default();
            if apart > APART_MAX {
                let days = apart.as_secs() / 86_400;
                let found = format!("the hardware clock is {days} days from the system's");
                return Finding::warn(found, "the same time on both", "`sudo hwclock --systohc`");
            }
        }
    }
    let heard = match clocks.is_synchronized {
        true => ", and a time server was heard since boot",
        false => "",
    };
    match (clocks.now, clocks.hardware) {
        (Some(_), Some(_)) => Finding::ok(format!("the clocks are set{heard}")),
        (Some(_), None) => Finding::ok(format!("the clock is set, without one in hardware{heard}")),
        (None, Some(_)) => Finding::ok(format!("the hardware clock is set{heard}")),
        (None, None) => Finding::skipped("a tree without a hardware clock"),
    }
}
