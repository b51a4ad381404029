//! `[defaults]`, `[roles.ROLE]` and `[users.NAME]`: each takes from the one before what it does not say.

use std::collections::BTreeMap;

use config::Value;

use crate::access::Role;
use crate::frames::Sampling;

use super::layers::DEFAULT;
use super::node::check_name;
use super::reader::{Root, Section};

/// What users get and may ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct UsersConfig {
    /// For users without a table of their own, by what they are for.
    pub by_role: BTreeMap<Role, UserPolicy>,
    /// Users with a table of their own.
    pub by_name: BTreeMap<String, UserConfig>,
}

/// One `[users.NAME]`.
#[derive(Debug, Clone, PartialEq)]
pub struct UserConfig {
    /// What the user is for; `None`: what its account says.
    pub role: Option<Role>,
    /// What it gets in each role.
    pub by_role: BTreeMap<Role, UserPolicy>,
}

impl UsersConfig {
    pub(super) fn read(root: &mut Root<'_>) -> Self {
        let defaults = root.copy("defaults");
        UserPolicy::read(&mut root.section("defaults"));

        let check_role = |name: &str| name.parse::<Role>().map(drop).map_err(|e| e.to_string());
        let (mut keys_of, mut by_role) = (BTreeMap::new(), BTreeMap::new());
        for named in root.named("roles", check_role) {
            let policy = UserPolicy::read(&mut root.heir(&named, &defaults));
            if let Ok(role) = named.name.parse() {
                keys_of.insert(role, named.over(&defaults));
                by_role.insert(role, policy);
            }
        }

        let mut by_name = BTreeMap::new();
        for named in root.named("users", check_user) {
            let keys_in = |role: Role| {
                let mut keys = keys_of.get(&role).unwrap_or(&defaults).clone();
                keys.insert("role".into(), Value::new(Some(&DEFAULT.to_owned()), ""));
                keys
            };
            let read = |section: &mut Section<'_>| {
                let role = section.checked("role", |text| match text {
                    "" => Ok(None),
                    text => text.parse::<Role>().map(Some).map_err(|_| {
                        let names = Role::ALL.map(|role| format!("\"{role}\"")).join(", ");
                        format!("one of {names}, or \"\" for that of the account")
                    }),
                });
                (role.flatten(), UserPolicy::read(section))
            };
            // The role decides what is inherited, so it is looked at before what is wrong is told.
            let (role, _) = root.heir_again(&named, &keys_in(Role::default()), read);
            read(&mut root.heir(&named, &keys_in(role.unwrap_or_default())));
            let in_role = |role| root.heir_again(&named, &keys_in(role), read).1;
            let by_role = Role::ALL.map(|role| (role, in_role(role))).into();
            by_name.insert(named.name.clone(), UserConfig { role, by_role });
        }
        Self { by_role, by_name }
    }

    /// What users are for, where the configuration says so.
    pub fn roles(&self) -> BTreeMap<String, Role> {
        let role = |(name, user): (&String, &UserConfig)| Some((name.clone(), user.role?));
        self.by_name.iter().filter_map(role).collect()
    }

    /// What a user gets and may ask for, when its account says that it is for `role`.
    pub fn policy(&self, user: &str, role: Role) -> &UserPolicy {
        let (by_role, role) = match self.by_name.get(user) {
            Some(user) => (&user.by_role, user.role.unwrap_or(role)),
            None => (&self.by_role, role),
        };
        &by_role[&role]
    }
}

/// What a user gets when a request does not say, what it may ask for, and how much of it.
#[derive(Debug, Clone, PartialEq)]
pub struct UserPolicy {
    /// Put before conversations without a system message.
    pub system_prompt: Option<String>,
    /// Model for requests that name none; `None`: the active one.
    pub model: Option<String>,
    /// Class of requests that claim none.
    pub priority: &'static str,
    /// Deadline of requests that have none.
    pub deadline_ms: Option<u64>,
    /// Key of requests that have none.
    pub keep_latest: Option<String>,
    /// Conversation of requests that name none.
    pub session: Option<String>,
    /// Tokens of an answer when the request does not say.
    pub max_tokens: u32,
    /// Most tokens that a request may ask for.
    pub max_tokens_max: u32,
    /// Operations allowed, by their names in topics.
    pub ops: Vec<&'static str>,
    /// Priorities that may be claimed.
    pub priorities: Vec<&'static str>,
    /// How much it may ask for.
    pub limits: UserLimits,
    /// Sampling; its seed and bias are those of the request.
    pub sampling: Sampling,
}

/// How much one user may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserLimits {
    /// Requests a minute, repeats and refused ones among them; `None`: no limit.
    pub requests_per_minute_max: Option<u32>,
    /// Bytes of their bodies a minute; `None`: no limit.
    pub prompt_bytes_per_minute_max: Option<u64>,
    /// Tokens of prompts a minute, counted when they are read; `None`: no limit.
    pub prompt_tokens_per_minute_max: Option<u64>,
    /// Accepted jobs that have not ended.
    pub queue_jobs_max: usize,
    /// Sum of their bodies.
    pub queue_bytes_max: usize,
    /// Of those, how many the worker may have at a time; `None`: as many as there are sequences.
    pub running_jobs_max: Option<usize>,
    /// Turns for each one of a user with 1, while both have jobs waiting.
    pub weight: u32,
}

impl UserLimits {
    fn read(section: &mut Section<'_>) -> Self {
        // 0 in the file is no limit.
        let some = |n: u64| (n > 0).then_some(n);
        Self {
            requests_per_minute_max: some(
                section.integer("requests_per_minute_max", 0..=1_000_000),
            )
            .and_then(|n| n.try_into().ok()),
            prompt_bytes_per_minute_max: some(
                section.integer("prompt_bytes_per_minute_max", 0..=1 << 40),
            ),
            prompt_tokens_per_minute_max: some(
                section.integer("prompt_tokens_per_minute_max", 0..=1 << 40),
            ),
            queue_jobs_max: section.integer("queue_jobs_max", 1..=100_000),
            queue_bytes_max: section.integer("queue_bytes_max", 1024..=1 << 30),
            running_jobs_max: some(section.integer("running_jobs_max", 0..=64))
                .and_then(|n| n.try_into().ok()),
            weight: section.integer("weight", 1..=100),
        }
    }
}

impl UserPolicy {
    fn read(section: &mut Section<'_>) -> Self {
        let mut config = Self {
            system_prompt: section.optional_text("system_prompt", 64 << 10),
            model: section
                .checked("model", |name| match name {
                    "" => Ok(None),
                    name => check_name(name).map(|()| Some(name.to_owned())),
                })
                .flatten(),
            priority: section.choice("priority", &["alarm", "normal", "batch"].map(|p| (p, p))),
            deadline_ms: Some(section.integer("deadline_ms", 0..=86_400_000))
                .filter(|ms: &u64| *ms > 0),
            keep_latest: name_or_none(section, "keep_latest"),
            session: name_or_none(section, "session"),
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
            limits: UserLimits::read(section),
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
            // Reported, unless it comes from an account's role, which no file names beside this table.
            config.max_tokens = max;
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

fn name_or_none(section: &mut Section<'_>, key: &'static str) -> Option<String> {
    let name = section.checked(key, |name| match name {
        "" => Ok(None),
        name => check_name(name).map(|()| Some(name.to_owned())),
    });
    name.flatten()
}

/// `local` is the user of clients without credentials on loopback, so it can have a policy.
fn check_user(name: &str) -> Result<(), String> {
    match name {
        "local" => Ok(()),
        name => check_name(name),
    }
}
