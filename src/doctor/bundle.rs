//! The support archive: the report, and what it was made from, for somebody who is not at the board.
//!
//! ```text
//!     orinoco-support/report.txt, report.json
//!     orinoco-support/versions.txt
//!     orinoco-support/config.toml      the values in force and where each was set; prompts and secrets left out
//!     orinoco-support/log.txt          the last lines of the journal, none below the level `info`
//!     orinoco-support/tree/...         files of the board, so that `orinoco doctor --root tree` can be asked again
//! ```
//!
//! It holds what is listed here and nothing else: files are taken by name from lists, never whole folders,
//! and none from the state directory, where prompts, answers and accounts are. Units are left out, as their
//! environment may hold anything.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::facts::{is_private, is_prompt};
use super::{Facts, Report};
use crate::board::Root;

const TOP: &str = "orinoco-support";

/// Files of the board, as they stand.
const FILES: &[&str] = &[
    "/etc/ld.so.conf",
    "/etc/nv_tegra_release",
    "/etc/nvpmodel.conf",
    "/etc/os-release",
    "/proc/device-tree/compatible",
    "/proc/device-tree/model",
    "/proc/meminfo",
    "/proc/pressure/memory",
    "/proc/swaps",
    "/proc/sys/kernel/osrelease",
    "/sys/devices/system/cpu/online",
    "/sys/devices/system/cpu/present",
    "/sys/kernel/nvpmodel_clk_cap/emc",
    "/sys/kernel/nvpmodel_emc_cap/emc_iso_cap",
    "/sys/kernel/security/lsm",
    "/var/lib/nvpmodel/status",
];

/// Of each entry of a folder whose name starts so, these files.
const ENTRIES: &[(&str, &str, &[&str])] = &[
    ("/etc/ld.so.conf.d", "", &[""]),
    (
        "/sys/class/devfreq",
        "",
        &[
            "available_frequencies",
            "cur_freq",
            "max_freq",
            "min_freq",
            "device/load",
            "device/of_node/name",
            "device/tpc_pg_mask",
        ],
    ),
    (
        "/sys/class/hwmon",
        "hwmon",
        &[
            "name",
            "in1_enable",
            "in1_input",
            "in1_label",
            "in2_enable",
            "in2_input",
            "in2_label",
            "in3_enable",
            "in3_input",
            "in3_label",
            "curr1_crit",
            "curr1_input",
            "curr1_max",
            "curr2_crit",
            "curr2_input",
            "curr2_max",
            "curr3_crit",
            "curr3_input",
            "curr3_max",
            "oc1_event_cnt",
            "oc2_event_cnt",
            "oc3_event_cnt",
            "pwm1",
            "rpm",
        ],
    ),
    (
        "/sys/class/thermal",
        "thermal_zone",
        &["type", "temp", "trip_point_0_type", "trip_point_0_temp"],
    ),
    (
        "/sys/class/thermal",
        "cooling_device",
        &["type", "cur_state", "max_state"],
    ),
    ("/sys/class/rtc", "rtc", &["since_epoch"]),
    ("/sys/block", "zram", &["mm_stat"]),
    (
        "/sys/devices/system/cpu/cpufreq",
        "policy",
        &["cpuinfo_max_freq", "scaling_max_freq"],
    ),
];

/// Largest file that is taken, bytes, and the most of all together.
const FILE_BYTES_MAX: usize = 64 * 1024;
const TREE_BYTES_MAX: usize = 4 << 20;

/// Lines of the journal that are asked for, and the most bytes of its answer.
const LOG_LINES: &str = "2000";
const LOG_BYTES_MAX: usize = 8 << 20;

/// Time for the journal's answer.
const LOG_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no archive.
#[derive(Debug, thiserror::Error)]
#[error("write {path}: {source}{}", if .source.kind() == io::ErrorKind::AlreadyExists {
    "; choose another name, nothing is overwritten"
} else {
    ""
})]
pub struct BundleError {
    /// The archive.
    pub path: String,
    /// What the system says.
    pub source: io::Error,
}

/// Writes the archive to `path`, which must not exist; only its owner can read it.
///
/// # Errors
/// [`BundleError`]; a part of a file may then be left.
pub fn write(path: &Path, root: &Root, facts: &Facts, report: &Report) -> Result<(), BundleError> {
    let open = || {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).open(path)
    };
    let written = open().and_then(|file| fill(file, root, facts, report));
    written.map_err(|source| BundleError {
        path: path.display().to_string(),
        source,
    })
}

fn fill(file: File, root: &Root, facts: &Facts, report: &Report) -> io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs();
    let mut put = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(now);
        archive.append_data(&mut header, format!("{TOP}/{name}"), bytes)
    };
    put("report.txt", report.to_string().as_bytes())?;
    put("report.json", &serde_json::to_vec_pretty(report)?)?;
    put("versions.txt", versions(facts).as_bytes())?;
    put("config.toml", configuration(facts).as_bytes())?;
    let log = match facts.is_live {
        true => journal().unwrap_or_else(|why| format!("the journal cannot be read: {why}\n")),
        false => "a tree: no journal\n".into(),
    };
    put("log.txt", log.as_bytes())?;
    let mut left = TREE_BYTES_MAX;
    for path in paths(root) {
        // What the board does not have, or does not give, is not in the archive.
        let Ok(Some(bytes)) = root.bytes(&path, FILE_BYTES_MAX.min(left)) else {
            continue;
        };
        left -= bytes.len();
        put(&format!("tree{path}"), &bytes)?;
    }
    archive.into_inner()?.finish()?.sync_all()
}

fn paths(root: &Root) -> Vec<String> {
    let mut paths: Vec<String> = FILES.iter().map(|path| (*path).to_owned()).collect();
    for (dir, start, files) in ENTRIES {
        for entry in root.names(dir, start) {
            paths.extend(files.iter().map(|file| match *file {
                "" => format!("{dir}/{entry}"),
                file => format!("{dir}/{entry}/{file}"),
            }));
        }
    }
    paths
}

fn versions(facts: &Facts) -> String {
    let said = |text: Option<String>| text.unwrap_or_else(|| "not known".into());
    let live = facts.live.as_ref().and_then(|live| live.as_ref().ok());
    let engine = live.and_then(|live| live.engine.as_ref().ok());
    let engine = engine.map(|hello| {
        let backends = hello.backends.join(", ");
        format!("{} with {} ({backends})", hello.version, hello.llama)
    });
    format!(
        "orinoco {}\norinoco-engine {}\nkernel {}\nJetson Linux {}\n",
        env!("CARGO_PKG_VERSION"),
        said(engine),
        said(facts.kernel.release.clone()),
        said(facts.identity.l4t.map(|l4t| l4t.to_string())),
    )
}

/// As `orinoco config show --origin`, without the values that are nobody else's business.
fn configuration(facts: &Facts) -> String {
    let mut text = String::new();
    if !facts.config_problems.is_empty() {
        text.push_str(
            "# The configuration has mistakes, see report.txt; these are the defaults.\n",
        );
    }
    let mut section = "";
    for entry in facts
        .config
        .entries
        .iter()
        .filter(|entry| !entry.is_inherited)
    {
        if entry.section != section {
            section = &entry.section;
            text.push_str(&format!("\n[{section}]\n"));
        }
        let key = format!("{section}.{}", entry.key);
        let is_shown = is_empty(&entry.value) || (is_path(&entry.value) && !is_prompt(&key));
        let value = match is_private(&key) && !is_shown {
            true => "\"(left out)\"",
            false => &entry.value,
        };
        text.push_str(&format!("{} = {value}  # {}\n", entry.key, entry.origin));
    }
    text
}

fn is_empty(value: &str) -> bool {
    matches!(value, "\"\"" | "[]")
}

/// A path to a secret says where it is and not what it is.
fn is_path(value: &str) -> bool {
    value.starts_with("\"/")
}

/// The last lines of the daemon's and the broker's journal, from the level `info` up: below it are prompts.
fn journal() -> Result<String, String> {
    let mut child = Command::new("journalctl")
        .args([
            "--unit=orinoco",
            "--unit=orinoco-broker",
            "--no-pager",
            "--utc",
        ])
        .args(["--output=json", "--priority=info", "--lines", LOG_LINES])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("journalctl: {e}"))?;
    let out = child.stdout.take().expect("stdout is piped");
    let (sender, receiver) = std::sync::mpsc::channel();
    // Ends with the pipe, at the latest when the child is killed.
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read =
            io::Read::read_to_end(&mut io::Read::take(out, LOG_BYTES_MAX as u64), &mut bytes);
        // Nobody waits any more when this is late.
        let _ = sender.send(read.map(|_| bytes));
    });
    let answer = receiver.recv_timeout(LOG_LIMIT);
    let _ = child.kill();
    let _ = child.wait();
    match answer {
        Ok(Ok(bytes)) => Ok(String::from_utf8_lossy(&bytes)
            .lines()
            .filter_map(line)
            .collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!(
            "journalctl gave no answer within {} s",
            LOG_LIMIT.as_secs()
        )),
    }
}

/// One entry of the journal as a line; `None` for what may hold prompts, or is nothing of ours.
///
/// Entries with fields have a message of fixed words, and the level as their priority. Lines of standard
/// error all have the priority `info`, so that the level in the line decides; one without a level goes on
/// with the entry before it, whose level is not known here.
fn line(json: &str) -> Option<String> {
    let entry: serde_json::Value = serde_json::from_str(json).ok()?;
    let text = |key: &str| entry.get(key)?.as_str();
    let message = text("MESSAGE")?;
    let micros: u64 = text("__REALTIME_TIMESTAMP")?.parse().ok()?;
    if text("_TRANSPORT") != Some("journal") {
        let mut words = message.split_whitespace().take(3);
        if !words.any(|word| matches!(word, "ERROR" | "WARN" | "INFO")) {
            return None;
        }
    }
    let clean: String = message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    Some(format!(
        "{}.{:06} {clean}\n",
        micros / 1_000_000,
        micros % 1_000_000
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_journal_only_lines_whose_level_is_known_to_be_harmless_are_taken() {
        let entry = |transport: &str, message: &str| {
            serde_json::json!({
                "MESSAGE": message, "_TRANSPORT": transport, "__REALTIME_TIMESTAMP": "1700000000000001",
            })
            .to_string()
        };
        let taken = |transport, message| line(&entry(transport, message));
        assert_eq!(
            taken("journal", "prompt started").unwrap(),
            "1700000000.000001 prompt started\n"
        );
        let info = "2026-01-01T00:00:00Z  INFO orinoco: ready";
        assert!(
            taken("stdout", info)
                .unwrap()
                .ends_with("INFO orinoco: ready\n")
        );
        for private in [
            "2026-01-01T00:00:00Z TRACE orinoco: prompt text=\"secret\"",
            "2026-01-01T00:00:00Z DEBUG orinoco: x",
            "the second line of a prompt, INFO in it or not",
            "",
        ] {
            assert_eq!(taken("stdout", private), None, "{private}");
        }
        assert_eq!(line("no json"), None);
        assert_eq!(line("{}"), None);
    }

    #[test]
    fn paths_of_secrets_are_shown_and_what_else_stands_there_is_not() {
        assert!(is_path("\"/etc/orinoco/mqtt.password\"") && is_empty("\"\""));
        assert!(!is_path("\"hunter2\"") && !is_empty("\"hunter2\""));
        // Some models are told by a slash not to think.
        assert!(is_prompt("defaults.system_prompt") && !is_prompt("mqtt.password_file"));
        assert!(is_private("password_file") && is_private("mqtt.tls_key_file"));
        assert!(is_private("users.ann.system_prompt") && !is_private("max_tokens"));
        assert!(is_private("templates.a.user") && is_private("templates.a.vars[0].line"));
        assert!(!is_private("templates.a.vars[0].type") && !is_private("model.default"));
    }
}
