//! What the dispatcher takes from the configuration.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::access::Role;
use crate::config::UserLimits;
use crate::frames::{Constraint, Input};
use crate::models::Releases;
use crate::models::release::Runtime;
use crate::wire::error::{ApiError, Code};
use crate::wire::request::history::Bounds;
use crate::wire::request::template::Templates;
use crate::wire::request::{self, Defaults, Limits, Priority, Request};
use crate::wire::topic::{Name, Names, Op};

/// What each user is for, as its account on the embedded broker says; empty with other brokers.
pub type Accounts = BTreeMap<String, Role>;

/// Limits and defaults of all users.
#[derive(Debug, Clone)]
pub struct UsersSettings {
    /// For users without an entry.
    pub by_role: BTreeMap<Role, UserSettings>,
    /// Users with an entry.
    pub by_name: HashMap<String, UserEntry>,
    /// Changes while the daemon runs.
    pub accounts: watch::Receiver<Arc<Accounts>>,
}

/// A user that the configuration names.
#[derive(Debug, Clone)]
pub struct UserEntry {
    /// What it is for; `None`: what its account says.
    pub role: Option<Role>,
    /// What it gets in each role.
    pub by_role: BTreeMap<Role, UserSettings>,
}

impl UsersSettings {
    /// Limits and defaults of a user.
    pub fn get(&self, name: &Name) -> &UserSettings {
        let account = || {
            let accounts = self.accounts.borrow();
            accounts.get(name.as_str()).copied().unwrap_or_default()
        };
        let (by_role, role) = match self.by_name.get(name.as_str()) {
            Some(entry) => (&entry.by_role, entry.role.unwrap_or_else(account)),
            None => (&self.by_role, account()),
        };
        &by_role[&role]
    }

    /// The system prompts that the configuration has, each once.
    pub fn system_prompts(&self) -> BTreeSet<&str> {
        let named = self.by_name.values().flat_map(|entry| &entry.by_role);
        let all = named.chain(&self.by_role).map(|(_, user)| &user.defaults);
        all.filter_map(|defaults| defaults.system_prompt.as_deref())
            .collect()
    }
}

/// Limits and defaults of one user.
#[derive(Debug, Clone)]
pub struct UserSettings {
    /// What a request leaves open.
    pub defaults: Defaults,
    /// The most tokens that a request may ask for.
    pub max_tokens_max: u32,
    /// Ops allowed.
    pub ops: Vec<Op>,
    /// Priorities that may be claimed.
    pub priorities: Vec<Priority>,
    /// How much it may ask for.
    pub limits: UserLimits,
}

impl UserSettings {
    /// Whether this user may use the op.
    pub fn allows(&self, op: Op) -> bool {
        self.ops.contains(&op)
    }

    /// Whether this user may ask for that much, and that soon.
    ///
    /// # Errors
    /// What was asked for and what is allowed.
    pub fn check(&self, request: &Request) -> Result<(), ApiError> {
        let limit = self.max_tokens_max;
        if let Some(found) = request.max_tokens.filter(|asked| *asked > limit) {
            let text = format!("max_tokens is {found}, this user may ask for at most {limit}");
            return Err(ApiError::new(Code::InvalidRequest, text).with_param("max_tokens"));
        }
        if let Some(claimed) = request
            .priority
            .filter(|claimed| !self.priorities.contains(claimed))
        {
            let text = format!("this user may not claim priority {}", claimed.as_str());
            return Err(ApiError::new(Code::NotAllowed, text).with_param("priority"));
        }
        Ok(())
    }
}

/// Whether the node shows itself to Home Assistant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discovery {
    /// It never did.
    Never,
    /// It did, and does no more: what is retained is taken back.
    TakenBack,
    /// It does.
    Shown,
}

/// The dispatcher's part of the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This node's topics.
    pub names: Names,
    /// Differs at each start; tells a late last will from a new birth.
    pub boot: String,
    /// The model that serves first; or why there is none yet.
    pub model: Result<String, String>,
    /// Models of the catalogue, for the retained list.
    pub models: Vec<crate::wire::report::Model>,
    /// Other names for models or lines in requests.
    pub aliases: BTreeMap<String, String>,
    /// Who is loaded because requests name it.
    pub turns: super::TurnSettings,
    /// Models that came as signed releases, as they change.
    pub releases: watch::Receiver<Releases>,
    /// What the operator wants the model to run on.
    pub backend: crate::frames::Backend,
    /// The board, for `info`.
    pub hardware: crate::wire::report::Hardware,
    /// What Home Assistant is told.
    pub discovery: Discovery,
    /// Bounds of a request body.
    pub limits: Limits,
    /// Who may ask for what, and how much.
    pub users: UsersSettings,
    /// Wordings for requests that bring what varies alone.
    pub templates: Templates,
    /// When this node takes requests from its pools.
    pub pools: super::pools::policy::Limits,
    /// What is kept of a conversation.
    pub sessions: Bounds,
    /// Whether any is kept.
    pub keeps_sessions: bool,
    /// Where workers leave what was said, as KV states; `None`: nowhere.
    pub kv_dir: Option<std::path::PathBuf>,
    /// Jobs that may wait or run.
    pub queue_jobs_max: usize,
    /// Bytes of their bodies.
    pub queue_bytes_max: usize,
    /// Text of one job that may wait for the broker.
    pub output_pending_bytes_max: usize,
    /// The model is unloaded when nobody asked for so long; `None`: never.
    pub idle_unload: Option<Duration>,
    /// How long answers are remembered.
    pub retention: Duration,
    /// How often streams that wait are told of their place; `None`: never.
    pub queue_notice: Option<Duration>,
    /// Text is joined this long.
    pub coalesce: Duration,
    /// Or until this many bytes.
    pub coalesce_bytes: usize,
}

/// Limits that change while the dispatcher runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Largest body of a request.
    pub payload_bytes: usize,
    /// Cap of the answer to op `text`, bytes.
    pub text_bytes: usize,
    /// Jobs that may wait or run.
    pub queue_jobs_max: usize,
    /// Bytes of their bodies.
    pub queue_bytes_max: usize,
    /// Text of one job that may wait for the broker.
    pub output_pending_bytes_max: usize,
    /// How often streams that wait are told of their place; `None`: never.
    pub queue_notice: Option<Duration>,
    /// Text is joined this long.
    pub coalesce: Duration,
    /// Or until this many bytes.
    pub coalesce_bytes: usize,
}

impl Settings {
    /// Other limits, for requests that come from now on.
    pub fn tune(&mut self, tuning: &Tuning) {
        self.limits.payload_bytes = tuning.payload_bytes;
        self.limits.text_bytes = tuning.text_bytes;
        self.queue_jobs_max = tuning.queue_jobs_max;
        self.queue_bytes_max = tuning.queue_bytes_max;
        self.pools.jobs_max = tuning.queue_jobs_max;
        self.pools.bytes_max = tuning.queue_bytes_max;
        self.output_pending_bytes_max = tuning.output_pending_bytes_max;
        self.queue_notice = tuning.queue_notice;
        self.coalesce = tuning.coalesce;
        self.coalesce_bytes = tuning.coalesce_bytes;
    }

    /// How the publisher of this model wants it run; `None` for files that somebody put on the board.
    pub fn runtime_of(&self, model: &str) -> Option<Runtime> {
        let releases = self.releases.borrow();
        let release = releases.iter().find(|release| release.name == model);
        release.map(|release| release.runtime.clone())
    }

    /// Other names of a release, or of its line.
    pub fn aliases_of(&self, model: &str, line: &str) -> Vec<String> {
        let pairs = self.aliases.iter();
        let of = pairs.filter(|(_, of)| *of == model || *of == line);
        of.map(|(alias, _)| alias.clone()).collect()
    }

    /// The model or line that a request means by `name`.
    pub fn meant<'a>(&'a self, name: &'a str) -> &'a str {
        self.aliases.get(name).map_or(name, String::as_str)
    }

    /// What many prompts begin with, each once, and the form of the answers: templates, then system prompts of the
    /// configuration.
    pub fn beginnings(&self) -> Vec<(Input, Option<Constraint>)> {
        let prompts = self.users.system_prompts();
        let mut all = Vec::new();
        for template in self.templates.0.values() {
            let form = template.schema.clone().map(Constraint::JsonSchema);
            all.push((template.beginning(None), form.clone()));
            if template.system.is_none() {
                let chats = prompts
                    .iter()
                    .map(|prompt| template.beginning(Some(prompt)));
                all.extend(chats.map(|chat| (chat, form.clone())));
            }
        }
        let chats = prompts.into_iter().map(request::beginning);
        all.extend(chats.map(|chat| (chat, None)));
        all
    }

    /// Limits and defaults of a user.
    pub fn user(&self, name: &Name) -> &UserSettings {
        self.users.get(name)
    }
}
