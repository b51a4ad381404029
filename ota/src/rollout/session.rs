//! The rollout on MQTT: hears the devices, asks the policy, publishes the wish.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use orinoco::link::{
    self, Credentials, Inbound, Inbox, Link, LinkConfig, Props, Publish, TlsFiles,
};
use orinoco::ota::{GroupName, LineName};
use orinoco::secret;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

use super::policy::{Decision, Plan, decide, is_settled};
use super::report::{Fleet, Seen, Wanted};

/// Time for the retained states to come before anything is opened.
const GATHER: Duration = Duration::from_secs(2);
/// For the last publish.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// How often the policy is asked when nothing is heard.
const TICK: Duration = Duration::from_millis(500);

/// How the broker is reached.
#[derive(Debug, Clone)]
pub struct Reach {
    /// Host.
    pub host: String,
    /// Port.
    pub port: u16,
    /// First level of every topic.
    pub root: String,
    /// User, and the file of the password.
    pub user: Option<(String, PathBuf)>,
    /// Authorities, for TLS.
    pub ca_file: Option<PathBuf>,
}

/// What is rolled out.
#[derive(Debug, Clone)]
pub struct Rollout {
    /// The line.
    pub line: LineName,
    /// The release.
    pub release_seq: u64,
    /// To whom.
    pub group: GroupName,
    /// How.
    pub plan: Plan,
    /// When devices put it into service: `asap`, `window` or `staged-only`.
    pub when: String,
    /// For `window`, e.g. `22:00-05:00`.
    pub window: Option<String>,
    /// Most kilobits a second of each device; 0: as configured there.
    pub max_kbit_s: u32,
    /// Devices that must have been heard before anything opens.
    pub devices_min: usize,
    /// Give up after this time; the wish stays as far as it was open.
    pub limit: Duration,
}

/// The fleet's wish, retained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Desired {
    desired_seq: u64,
    deployment: String,
    line: LineName,
    release_seq: u64,
    percent: u8,
    when: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    window: Option<String>,
    #[serde(default)]
    max_kbit_s: u32,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// All waves are open, and enough devices have the release.
    Done {
        /// Devices that have it, of how many.
        done: usize,
        /// Devices to which it was opened.
        targeted: usize,
    },
    /// Too many failed; nobody else begins.
    Stopped {
        /// Devices that failed.
        failed: usize,
        /// Devices to which it was opened.
        targeted: usize,
        /// The share to which it was opened, in percent.
        percent: u8,
        /// Reasons, and devices of each.
        reasons: Vec<(String, Vec<String>)>,
    },
}

/// Rolls out until all have it, too many failed, or time is up. `now_s` numbers the first wish.
///
/// # Errors
/// The broker cannot be reached or refuses, or time is up.
pub fn run(reach: &Reach, rollout: &Rollout, now_s: u64) -> Result<End> {
    rollout.plan.check()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    runtime.block_on(async {
        let topic = format!("{}/v1/fleet/{}/desired", reach.root, rollout.group);
        let (link, inbox) = link::spawn(config(reach, &topic, now_s)?);
        let mut session = Session {
            link,
            inbox,
            rollout,
            reach,
            states: format!("{}/v1/", reach.root),
            topic,
            wanted: Wanted {
                deployment: format!("{}-{}-{now_s}", rollout.line, rollout.release_seq),
                line: rollout.line.clone(),
                release_seq: rollout.release_seq,
                group: rollout.group.to_string(),
            },
            fleet: Fleet::default(),
            open: 0,
            desired_seq: now_s,
            settled_at: None,
            bar: bar()?,
        };
        // A deployment's id is 64 bytes at most.
        session.wanted.deployment.truncate(64);
        let end = session.follow().await;
        session.bar.finish_and_clear();
        let closed = session.link.close(None, CLOSE_LIMIT).await;
        let end = end?;
        closed.context("the broker did not confirm the last message")?;
        Ok(end)
    })
}

fn config(reach: &Reach, topic: &str, now_s: u64) -> Result<LinkConfig> {
    let credentials = match &reach.user {
        None => None,
        Some((user, file)) => {
            let password = secret::password(file).context("password")?;
            Some(Credentials {
                user: user.clone(),
                password,
            })
        }
    };
    let tls = reach.ca_file.as_ref().map(|ca_file| TlsFiles {
        ca_file: ca_file.clone(),
        identity: None,
        server_name: None,
    });
    Ok(LinkConfig {
        credentials,
        tls,
        clean_start: true,
        session_expiry: Duration::ZERO,
        subscriptions: vec![topic.to_owned(), format!("{}/v1/+/ota/state", reach.root)],
        ..LinkConfig::new(
            &reach.host,
            reach.port,
            format!("orinoco-ota-{now_s}-{}", std::process::id()),
        )
    })
}

fn bar() -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:30} {pos:>4} of {len} devices  {msg}")
        .context("the template is a constant")?;
    Ok(ProgressBar::new(0).with_style(style))
}

struct Session<'a> {
    link: Link,
    inbox: Inbox,
    rollout: &'a Rollout,
    reach: &'a Reach,
    /// What comes before a device's name in the topic of its state.
    states: String,
    topic: String,
    wanted: Wanted,
    fleet: Fleet,
    /// The share to which the release is open, in percent.
    open: u8,
    desired_seq: u64,
    /// Since when enough devices of the open waves have come to an end.
    settled_at: Option<Instant>,
    bar: ProgressBar,
}

impl Session<'_> {
    async fn follow(&mut self) -> Result<End> {
        let give_up = Instant::now() + self.rollout.limit;
        let (mut is_up, mut gathered_at, mut last_down) = (false, None, None);
        loop {
            let inbound = tokio::select! {
                inbound = self.inbox.recv() => Some(inbound.context("the link ended by itself")?),
                () = sleep_until(Instant::now() + TICK) => None,
                () = sleep_until(give_up) => {
                    let why = match is_up {
                        true => self.standing(),
                        false => last_down.unwrap_or_else(|| "no answer".to_owned()),
                    };
                    bail!(
                        "{}:{}: not done within {} s: {why}; the same command goes on",
                        self.reach.host, self.reach.port, self.rollout.limit.as_secs()
                    );
                }
            };
            match inbound {
                Some(Inbound::Up { .. }) => {
                    is_up = true;
                    gathered_at.get_or_insert(Instant::now() + GATHER);
                }
                Some(Inbound::Down { reason, .. }) => last_down = Some(reason),
                Some(Inbound::Message(message)) => {
                    self.hear(&message.topic, &message.payload);
                    self.link.try_ack(message.ack).context("acknowledge")?;
                }
                Some(Inbound::Undelivered { reason, .. }) => bail!(
                    "the broker refused the wish: {reason}; only operators may give one (orinoco user add NAME \
                     --role operator)"
                ),
                Some(Inbound::SubscribeRefused { filter, reason }) => {
                    bail!("the broker refused {filter}: {reason}; the user must be an operator")
                }
                _ => {}
            }
            let is_gathered = gathered_at.is_some_and(|at| Instant::now() >= at)
                && self.fleet.len() >= self.rollout.devices_min;
            if is_gathered && let Some(end) = self.decide()? {
                return Ok(end);
            }
        }
    }

    fn hear(&mut self, topic: &str, payload: &[u8]) {
        if topic == self.topic {
            self.hear_desired(payload);
            return;
        }
        let device = topic
            .strip_prefix(&self.states)
            .and_then(|rest| rest.strip_suffix("/ota/state"));
        if let Some(device) = device {
            self.fleet
                .hear(device, Seen::parse(payload), &self.wanted.group);
        }
    }

    /// The wish as it stands: of ourselves, of an earlier run, or of another rollout.
    fn hear_desired(&mut self, payload: &[u8]) {
        let Ok(desired) = serde_json::from_slice::<Desired>(payload) else {
            return;
        };
        self.desired_seq = self.desired_seq.max(desired.desired_seq);
        let is_ours =
            desired.line == self.wanted.line && desired.release_seq == self.wanted.release_seq;
        // One that was stopped begins anew, under a new name: devices that failed may try again.
        if is_ours && desired.percent > 0 && self.open == 0 {
            self.wanted.deployment = desired.deployment;
            self.open = desired.percent;
        }
    }

    fn decide(&mut self) -> Result<Option<End>> {
        let tally = self.fleet.tally(&self.wanted, self.open);
        match is_settled(&self.rollout.plan, tally) {
            true => _ = self.settled_at.get_or_insert(Instant::now()),
            false => self.settled_at = None,
        }
        let stood = self.settled_at.map_or(Duration::ZERO, |at| at.elapsed());
        self.bar.set_length(self.fleet.len() as u64);
        self.bar.set_position(tally.done as u64);
        self.bar.set_message(self.standing());
        Ok(match decide(&self.rollout.plan, self.open, tally, stood) {
            Decision::Hold => None,
            Decision::Open(percent) => {
                ensure!(
                    self.fleet.len() > 0,
                    "no device of group {} has told its state on {}+/ota/state",
                    self.wanted.group,
                    self.states
                );
                self.publish(percent)?;
                self.open = percent;
                self.settled_at = None;
                None
            }
            Decision::Stop => {
                self.publish(0)?;
                Some(End::Stopped {
                    failed: tally.failed,
                    targeted: tally.targeted,
                    percent: self.open,
                    reasons: self.fleet.failures(&self.wanted, 5),
                })
            }
            Decision::Done => Some(End::Done {
                done: tally.done,
                targeted: tally.targeted,
            }),
        })
    }

    fn standing(&self) -> String {
        let tally = self.fleet.tally(&self.wanted, self.open);
        format!(
            "open to {} %: {} devices, {} have it, {} failed",
            self.open, tally.targeted, tally.done, tally.failed
        )
    }

    fn publish(&mut self, percent: u8) -> Result<()> {
        self.desired_seq += 1;
        let desired = Desired {
            desired_seq: self.desired_seq,
            deployment: self.wanted.deployment.clone(),
            line: self.wanted.line.clone(),
            release_seq: self.wanted.release_seq,
            percent,
            when: self.rollout.when.clone(),
            window: self.rollout.window.clone(),
            max_kbit_s: self.rollout.max_kbit_s,
        };
        let publish = Publish {
            topic: self.topic.clone(),
            payload: serde_json::to_vec(&desired)
                .context("write the wish")?
                .into(),
            at_least_once: true,
            retain: true,
            props: Props::default(),
            token: None,
        };
        self.link.try_publish(publish).context("publish the wish")
    }
}
