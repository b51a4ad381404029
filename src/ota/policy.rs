//! Settings for the fleet: `policy.toml`, a target like a model.
//!
//! ```toml
//! schema = 1
//! policy_seq = 3
//!
//! [profiles.slow]
//! order = 20
//! model = "assistant-s"
//!
//! [requests]
//! queue_jobs_max = 200
//! ```
//!
//! What is in it are keys of the configuration, laid between the defaults and the device's own files: profiles,
//! thresholds and limits, and nothing that decides whom the device talks to, what it trusts, which files and
//! programs it opens or who may do what. Whether a value is right is judged by the configuration, which knows
//! each key; here it is bounded, and the sections are checked.

use serde::Deserialize;

use super::error::{Check, FileError};
use super::manifest::RELEASE_SEQ_MAX;

/// Longest policy, bytes.
pub const POLICY_BYTES_MAX: usize = 64 << 10;
/// Of the meaning of a policy.
pub const SCHEMA: u32 = 1;
/// Most profiles.
pub const PROFILES_MAX: usize = 64;

/// What a policy may set, as `section` or `section.key`.
pub const ALLOWED: &[&str] = &[
    "memory",
    "power.celsius_high",
    "power.celsius_low",
    "power.choose",
    "power.hold_seconds",
    "power.over_current_s_max",
    "power.settle_ms",
    "power.step_seconds",
    "power.tok_s_min",
    "power.ttft_ms_max",
    "profiles",
    "requests",
    "telemetry",
    "watchdog",
];

const CHECK: Check = Check("policy");

/// What a policy sets: sections of the configuration.
pub type Settings = toml::Table;

/// Settings for the fleet.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Rises with each policy.
    pub policy_seq: u64,
    /// What it sets: sections of the configuration.
    pub settings: Settings,
}

#[derive(Deserialize)]
struct File {
    schema: u32,
    policy_seq: u64,
    #[serde(flatten)]
    settings: toml::Table,
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// It is too long, no TOML of this shape, of another schema, or sets what a policy may not.
    pub fn parse(bytes: &[u8]) -> Result<Self, FileError> {
        CHECK.length(bytes.len(), POLICY_BYTES_MAX)?;
        let wrong = |message: String| FileError::Toml {
            what: CHECK.0,
            message,
        };
        let text = std::str::from_utf8(bytes).map_err(|e| wrong(e.to_string()))?;
        let file: File = toml::from_str(text).map_err(|e| wrong(e.to_string()))?;
        CHECK.schema(file.schema, SCHEMA)?;
        CHECK.within("policy_seq", file.policy_seq, 1..=RELEASE_SEQ_MAX)?;
        for (section, value) in &file.settings {
            allowed(section, value)?;
        }
        if let Some(profiles) = file.settings.get("profiles") {
            let n_profiles = profiles.as_table().map_or(0, toml::Table::len);
            CHECK.count("profiles", n_profiles, PROFILES_MAX)?;
        }
        Ok(Self {
            policy_seq: file.policy_seq,
            settings: file.settings,
        })
    }
}

/// That a section may be set, all of it or each of its keys.
fn allowed(section: &str, value: &toml::Value) -> Result<(), FileError> {
    let sections = || format!("one of {}", ALLOWED.join(", "));
    let Some(table) = value.as_table() else {
        return CHECK.that(false, section, value.type_str(), "a section");
    };
    if ALLOWED.contains(&section) {
        return Ok(());
    }
    let of_section = |name: &&&str| name.split('.').next() == Some(section);
    CHECK.that(
        ALLOWED.iter().any(|name| of_section(&name)),
        section,
        "a section that a policy may not set",
        sections(),
    )?;
    for key in table.keys() {
        let name = format!("{section}.{key}");
        let is_allowed = ALLOWED.contains(&name.as_str());
        CHECK.that(
            is_allowed,
            name,
            "a key that a policy may not set",
            sections(),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str = "schema = 1\npolicy_seq = 3\n";

    fn parse(text: &str) -> Result<Policy, FileError> {
        Policy::parse(format!("{HEAD}{text}").as_bytes())
    }

    #[test]
    fn profiles_thresholds_and_limits_may_be_set() {
        let policy = parse(
            "[profiles.slow]\norder = 20\nmodel = 'assistant-s'\n[requests]\nqueue_jobs_max = 200\n\
             [watchdog]\nkill_percent = 4\n[power]\ncelsius_high = 88.0\n",
        );
        let policy = policy.unwrap();
        assert_eq!(policy.policy_seq, 3);
        assert_eq!(
            policy.settings["requests"]["queue_jobs_max"].as_integer(),
            Some(200)
        );
        assert!(!policy.settings.contains_key("schema"));
    }

    #[test]
    fn whom_the_device_trusts_talks_to_and_what_it_opens_may_not_be_set() {
        for text in [
            "[mqtt]\nhost = 'evil'",
            "[broker]\nlisten = '0.0.0.0'",
            "[paths]\nstate_dir = '/tmp'",
            "[engine]\nsandbox = 'off'",
            "[model]\nchat_template_file = '/etc/shadow'",
            "[ota]\nroot = 'x'",
            "[users.x]\nrole = 'operator'",
            "[roles.device]\nops = []",
            "[defaults]\nmax_tokens = 1",
            "[power]\ntable_file = '/etc/shadow'",
            "[models.x]\nfile = '/etc/shadow'",
            "[log]\nlevel = 'trace'",
            "[store]\nbytes_max = 1",
            "[node]\nname = 'x'",
            "requests = 3",
        ] {
            assert!(
                matches!(parse(text), Err(FileError::Value { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn policy_of_a_newer_schema_too_long_or_no_toml_is_refused() {
        assert!(matches!(
            Policy::parse(b"schema = 2\npolicy_seq = 1"),
            Err(FileError::Schema { .. })
        ));
        assert!(Policy::parse(&vec![b'\n'; POLICY_BYTES_MAX + 1]).is_err());
        assert!(Policy::parse(b"schema = 1\npolicy_seq = 0").is_err());
        assert!(Policy::parse(b"schema = 1").is_err());
        assert!(Policy::parse(b"\xff").is_err());
        let many: String = (0..65).map(|n| format!("[profiles.p{n}]\n")).collect();
        assert!(parse(&many).is_err());
    }

    proptest! {
        #[test]
        fn only_listed_sections_pass(section in "[a-z]{1,10}", key in "[a-z_]{1,12}") {
            let name = format!("{section}.{key}");
            let is_listed = ALLOWED.contains(&section.as_str()) || ALLOWED.contains(&name.as_str());
            prop_assert_eq!(parse(&format!("[{name}]\n")).is_ok(), is_listed);
        }
    }
}
