//! `[requests]`, `[defaults]` and `[users.NAME]`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::frames::Sampling;

use super::MqttConfig;
use super::node::check_name;
use super::reader::{Root, Section};

/// Room for topic and properties in a packet, beside the body.
const PACKET_OVERHEAD_BYTES: u64 = 4096;

/// `[requests]`: limits and timing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestsConfig {
    /// Largest request body.
    pub payload_bytes_max: usize,
    /// Accepted jobs that wait.
    pub queue_jobs_max: usize,
    /// Sum of their bodies.
    pub queue_bytes_max: usize,
    /// Text is gathered for this long; zero: a message for each token.
    pub coalesce: Duration,
    /// Text is gathered up to this many bytes.
    pub coalesce_bytes: usize,
    /// Cap of the answer to op `text`.
    pub text_bytes_max: usize,
    /// Text of one stream that may wait for the network.
    pub output_pending_bytes_max: usize,
    /// How long finished requests are remembered.
    pub retention: Duration,
}

impl RequestsConfig {
    pub(super) fn read(root: &mut Root<'_>, mqtt: &MqttConfig) -> Self {
        let mut section = root.section("requests");
        let config = Self {
            payload_bytes_max: section.integer("payload_bytes_max", 256..=64 << 20),
            queue_jobs_max: section.integer("queue_jobs_max", 1..=100_000),
            queue_bytes_max: section.integer("queue_bytes_max", 64 << 10..=1 << 30),
            coalesce: section.milliseconds("coalesce_ms", 0..=1000),
            coalesce_bytes: section.integer("coalesce_bytes", 1..=65_536),
            text_bytes_max: section.integer("text_bytes_max", 16..=65_536),
            output_pending_bytes_max: section.integer("output_pending_bytes_max", 4096..=64 << 20),
            retention: section.seconds("retention_seconds", 10..=86_400),
        };
        let room = u64::from(mqtt.packet_bytes_max).saturating_sub(PACKET_OVERHEAD_BYTES);
        if config.payload_bytes_max as u64 > room {
            section.contradiction(
                "payload_bytes_max",
                "mqtt.packet_bytes_max",
                format!(
                    "expected at most {room}: mqtt.packet_bytes_max less {PACKET_OVERHEAD_BYTES} for topic and properties"
                ),
            );
        }
        if config.queue_bytes_max < config.payload_bytes_max {
            let payload = config.payload_bytes_max;
            section.contradiction(
                "queue_bytes_max",
                "requests.payload_bytes_max",
                format!("expected at least payload_bytes_max = {payload}, or the largest request never fits"),
            );
        }
        config
    }
}

/// `[defaults]` and `[users.NAME]`.
#[derive(Debug, Clone, PartialEq)]
pub struct UsersConfig {
    /// For users without a table of their own.
    pub default: UserPolicy,
    /// Users with a table of their own.
    pub by_name: BTreeMap<String, UserPolicy>,
}

impl UsersConfig {
    pub(super) fn read(root: &mut Root<'_>) -> Self {
        let inherited = root.copy("defaults");
        let mut section = root.section("defaults");
        let default = UserPolicy::read(&mut section);
        drop(section);
        let by_name = root.named("users", &inherited, check_user, |mut section, _| {
            UserPolicy::read(&mut section)
        });
        Self { default, by_name }
    }

    /// What this user gets and may ask for.
    pub fn get(&self, user: &str) -> &UserPolicy {
        self.by_name.get(user).unwrap_or(&self.default)
    }
}

/// What a user gets when a request does not say, and what it may ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct UserPolicy {
    /// Put before conversations without a system message.
    pub system_prompt: Option<String>,
    /// Model for requests that name none; `None`: the active one.
    pub model: Option<String>,
    /// Tokens of an answer when the request does not say.
    pub max_tokens: u32,
    /// Most tokens that a request may ask for.
    pub max_tokens_max: u32,
    /// Operations allowed, by their names in topics.
    pub ops: Vec<&'static str>,
    /// Priorities that may be claimed.
    pub priorities: Vec<&'static str>,
    /// Sampling; its seed and bias are those of the request.
    pub sampling: Sampling,
}

impl UserPolicy {
    fn read(section: &mut Section<'_>) -> Self {
        let config = Self {
            system_prompt: section.optional_text("system_prompt", 64 << 10),
            model: section
                .checked("model", |name| match name {
                    "" => Ok(None),
                    name => check_name(name).map(|()| Some(name.to_owned())),
                })
                .flatten(),
            max_tokens: section.integer("max_tokens", 1..=1 << 20),
            max_tokens_max: section.integer("max_tokens_max", 1..=1 << 20),
            ops: section.choices(
                "ops",
                &[
                    "chat",
                    "complete",
                    "text",
                    "text-stream",
                    "tokenize",
                    "embed",
                ]
                .map(|op| (op, op)),
            ),
            priorities: section
                .choices("priorities", &["alarm", "normal", "batch"].map(|p| (p, p))),
            sampling: Sampling {
                temperature: section.number("temperature", 0.0..=5.0),
                top_k: section.integer("top_k", 0..=1 << 20),
                top_p: section.number("top_p", 0.0..=1.0),
                min_p: section.number("min_p", 0.0..=1.0),
                repeat_penalty: section.number("repeat_penalty", 0.1..=10.0),
                repeat_last_n: section.integer("repeat_last_n", 0..=1 << 20),
                frequency_penalty: section.number("frequency_penalty", -2.0..=2.0),
                presence_penalty: section.number("presence_penalty", -2.0..=2.0),
                seed: 0,
                logit_bias: Vec::new(),
            },
        };
        if config.max_tokens > config.max_tokens_max {
            let max = config.max_tokens_max;
            section.contradiction(
                "max_tokens",
                "defaults.max_tokens_max",
                format!("expected at most max_tokens_max = {max}"),
            );
        }
        config
    }

    /// Whether requests of this kind are allowed.
    pub fn allows_op(&self, op: &str) -> bool {
        self.ops.contains(&op)
    }

    /// Whether this priority may be claimed.
    pub fn allows_priority(&self, priority: &str) -> bool {
        self.priorities.contains(&priority)
    }
}

/// `local` is the user of clients without credentials on loopback, so it can have a policy.
fn check_user(name: &str) -> Result<(), String> {
    match name {
        "local" => Ok(()),
        name => check_name(name),
    }
}
