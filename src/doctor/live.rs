//! What running programs say when they are asked: the daemon by its retained documents, its broker, and the
//! engine by its first words.
//!
//! The broker is asked with an account that may be there already, under a client id of its own, so that
//! nobody is thrown out. What is published to try the rules goes to the answers of a user that does not
//! exist, or calls off a request that nobody made.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::Facts;
use super::facts::service::Service;
use crate::access::{Role, Rules, Who};
use crate::config::{BrokerMode, Config};
use crate::frames::{Hello, LoadSpec, PROTOCOL, PlanAsk};
use crate::ledger;
use crate::link::{
    self, Credentials, IdentityFiles, Inbound, Inbox, Link, LinkConfig, Publish, TlsFiles,
};
use crate::runtime_file::{self, Runtime};
use crate::secret;
use crate::users::Users;
use crate::wire::report::{Info, State};
use crate::wire::topic::{LOCAL_USER, Name, Names};
use crate::worker::{self, Planner};

/// Longest wait for the broker to let us in.
const CONNECT: Duration = Duration::from_secs(5);

/// Longest wait for retained documents and acknowledgements.
const ANSWERS: Duration = Duration::from_secs(3);

/// Longest wait for the engine's first words: its libraries are loaded until then.
const HELLO: Duration = Duration::from_secs(20);

/// Longest wait for each answer about a model, and the most models that are planned.
const PLAN: Duration = Duration::from_secs(10);
const PLANS_MAX: usize = 8;

/// Tokens that a model is planned with where the configuration leaves them to memory: a conversation of a
/// page or two.
const N_CTX: u32 = 2048;

/// A user that does not exist.
const NOBODY: &str = "doctor-nobody";

/// What was asked; or why it was not, or not answered.
pub type Asked<T> = Result<T, String>;

/// Who asks the broker: an account and the file with its password.
pub type Asker = (String, PathBuf);

/// All answers.
#[derive(Debug)]
pub struct Live {
    /// The daemon of this state directory.
    pub daemon: Daemon,
    /// Its broker.
    pub broker: Asked<Broker>,
    /// Whether the broker lets in who says nothing about itself.
    pub lets_anybody_in: Asked<bool>,
    /// The engine.
    pub engine: Asked<Hello>,
    /// What each model would take.
    pub plans: Asked<Vec<Planned>>,
}

/// A model as the engine plans it; nothing is loaded for that.
#[derive(Debug)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// Tokens that it was planned with: as configured, else a small pool.
    pub n_ctx: u32,
    /// What it would take of main memory, bytes; or why there is no plan.
    pub need_bytes: Asked<u64>,
}

/// Whether a daemon runs.
#[derive(Debug)]
pub enum Daemon {
    /// One does.
    Runs(Runtime),
    /// One did, and did not take its file away.
    Gone(Runtime),
    /// None has left a file.
    None,
    /// Its file cannot be used.
    Unreadable(String),
}

/// A broker that was asked.
#[derive(Debug)]
pub struct Broker {
    /// Host and port.
    pub address: String,
    /// With which account; `None`: with none.
    pub account: Option<String>,
    /// What it said, or why it did not let us in.
    pub session: Result<Session, String>,
}

/// One connection.
#[derive(Debug, Default)]
pub struct Session {
    /// What the daemon last told about itself.
    pub info: Option<Info>,
    /// What it does now.
    pub state: Option<State>,
    /// Subscriptions that were refused: filter, and the broker's reason.
    pub refused: Vec<(String, String)>,
    /// What was published.
    pub tries: Vec<Try>,
}

/// One publish, to see whether the rules of the broker are ours.
#[derive(Debug)]
pub struct Try {
    /// Where to.
    pub topic: String,
    /// Whether our rules allow it.
    pub is_allowed: bool,
    /// Whether the broker took it, or why not; `None`: it did not answer.
    pub taken: Option<Result<(), String>>,
}

/// Asks everything. Must be called on the main thread: the engine is a child of it.
///
/// # Errors
/// No runtime, a sentence.
pub fn ask(facts: &Facts, asker: Option<&Asker>) -> Result<Live, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| format!("start the runtime: {e}"))?;
    Ok(runtime.block_on(ask_all(facts, asker)))
}

async fn ask_all(facts: &Facts, asker: Option<&Asker>) -> Live {
    let config = &facts.config;
    let daemon = daemon(&config.paths.state_dir);
    let unit = facts.service.as_ref().ok().and_then(Option::as_ref);
    let place = place(config, unit, &daemon, asker);
    let (broker, lets_anybody_in) = match place {
        Ok(place) => {
            let anybody = place.clone().without_name();
            let session = place.visit().await;
            let anybody = match (&session, anybody) {
                (Ok(_), Ok(anybody)) => Ok(anybody.enter().await.is_ok()),
                (Ok(_), Err(why)) => Err(why),
                (Err(_), _) => Err("the broker could not be asked: see broker.reachable".into()),
            };
            let broker = Broker {
                address: format!("{}:{}", place.host, place.port),
                account: place.credentials.as_ref().map(|c| c.user.clone()),
                session,
            };
            (Ok(broker), anybody)
        }
        Err(why) => (Err(why.clone()), Err(why)),
    };
    let engine = match &facts.engine.header {
        Ok(Some(_)) => {
            let hello = worker::greet(Path::new(&facts.engine.path), HELLO).await;
            hello.map_err(|error| {
                let last = error.stderr_tail.last();
                last.map_or(error.to_string(), |last| format!("{error}: {last}"))
            })
        }
        _ => Err("there is no program to start: see engine.program".into()),
    };
    let plans = match &engine {
        Ok(hello) if hello.protocol == PROTOCOL => plans(facts).await,
        _ => Err("no engine to plan with: see engine.hello".into()),
    };
    Live {
        daemon,
        broker,
        lets_anybody_in,
        engine,
        plans,
    }
}

async fn plans(facts: &Facts) -> Asked<Vec<Planned>> {
    let models = facts.models.as_ref().map_err(String::clone)?;
    let config = &facts.config;
    let mut plans = Vec::new();
    for model in models
        .iter()
        // One that makes vectors is planned by its own worker, which asks the memory when it is started.
        .filter(|model| (model.header.as_ref()).is_ok_and(|header| !header.makes_vectors()))
        .take(PLANS_MAX)
    {
        let spec = config.models.get(&model.name);
        let load = spec.load_spec(&config.engine, &model.name, Path::new(&model.path));
        let n_ctx = match load.n_ctx {
            0 => N_CTX,
            n_ctx => n_ctx,
        };
        let rules = ledger::Rules {
            gpu_context_bytes: config.memory.gpu_context_bytes,
        };
        plans.push(Planned {
            name: model.name.clone(),
            n_ctx,
            need_bytes: need(Path::new(&facts.engine.path), &load, n_ctx, rules).await,
        });
    }
    Ok(plans)
}

async fn need(program: &Path, load: &LoadSpec, n_ctx: u32, rules: ledger::Rules) -> Asked<u64> {
    let planner = Planner::start(program, load, PLAN).await;
    let mut planner = planner.map_err(|error| error.to_string())?;
    let ask = PlanAsk {
        n_ctx: n_ctx.min(planner.outline.n_ctx_train.max(1)),
        ..PlanAsk::of(load)
    };
    match planner.ask(ask).await {
        Ok(plan) => {
            let devices = planner.outline.devices.clone();
            planner.end().await;
            Ok(ledger::Need::of(&plan?, &devices, rules).total_bytes())
        }
        Err(verdict) => Err(planner.bury(verdict).await.to_string()),
    }
}

fn daemon(state_dir: &Path) -> Daemon {
    match runtime_file::read(state_dir) {
        Ok(Some(runtime)) if Path::new(&format!("/proc/{}", runtime.pid)).exists() => {
            Daemon::Runs(runtime)
        }
        Ok(Some(runtime)) => Daemon::Gone(runtime),
        Ok(None) => Daemon::None,
        Err(error) => Daemon::Unreadable(error.to_string()),
    }
}

/// A broker, and as whom to visit it.
#[derive(Debug, Clone)]
struct Place {
    host: String,
    port: u16,
    tls: Option<TlsFiles>,
    credentials: Option<Credentials>,
    /// It is the daemon's own account.
    is_daemon: bool,
    /// A daemon runs, so that its documents will come.
    is_told: bool,
    names: Names,
}

/// Where the broker is and who may ask it; the error says why nobody can.
fn place(
    config: &Config,
    unit: Option<&Service>,
    daemon: &Daemon,
    asker: Option<&Asker>,
) -> Asked<Place> {
    let running = match daemon {
        Daemon::Runs(runtime) => Some(runtime),
        _ => None,
    };
    let is_child = config.broker.mode == BrokerMode::Child;
    let (host, port, node, root) = match running {
        Some(daemon) => (&daemon.host, daemon.port, &daemon.node, &daemon.root),
        None if is_child => {
            return Err("the broker is a child of the daemon, and no daemon runs".into());
        }
        None => (
            &config.mqtt.host,
            config.mqtt.port,
            &config.node.name,
            &config.node.root,
        ),
    };
    let node = Name::new(node).map_err(|e| e.to_string())?;
    let names = Names::new(root, node).map_err(|e| e.to_string())?;
    let password = |path: &Path| secret::password(path).map_err(|e| e.to_string());
    let (credentials, is_daemon) = match asker {
        Some((user, file)) => {
            let password = password(file)?;
            let user = user.clone();
            (Some(Credentials { user, password }), false)
        }
        None if is_child => {
            let users = Users::read(&config.paths.users_file()).map_err(|e| e.to_string())?;
            if !users.is_empty() {
                return Err("the broker has accounts: --user and --password-file name one".into());
            }
            (None, false)
        }
        None => match &config.mqtt.username {
            Some(user) => {
                // A person has no credentials of systemd; the unit says which file they are from.
                let of_unit = unit.into_iter().flat_map(Service::credentials);
                let of_unit = of_unit.filter(|(name, _)| name == "mqtt.password");
                let mut of_unit = of_unit.map(|(_, path)| PathBuf::from(path));
                let file = config.mqtt.password_file.clone().or_else(|| of_unit.next());
                let password = file
                    .as_deref()
                    .map(password)
                    .transpose()?
                    .unwrap_or_default();
                let user = user.clone();
                (Some(Credentials { user, password }), true)
            }
            None => (None, true),
        },
    };
    let tls = config
        .mqtt
        .tls
        .as_ref()
        .filter(|_| !is_child)
        .map(|tls| TlsFiles {
            ca_file: tls.ca_file.clone(),
            identity: tls
                .identity
                .clone()
                .map(|(cert_file, key_file)| IdentityFiles {
                    cert_file,
                    key_file,
                }),
            server_name: tls.server_name.clone(),
        });
    Ok(Place {
        host: host.clone(),
        port,
        tls,
        credentials,
        is_daemon,
        is_told: running.is_some(),
        names,
    })
}

impl Place {
    /// The same broker without a name.
    fn without_name(mut self) -> Asked<Self> {
        if self.credentials.take().is_none() {
            return Err("it was asked without an account: see broker.reachable".into());
        }
        if let Some(tls) = &mut self.tls {
            tls.identity = None;
        }
        Ok(self)
    }

    /// Connects; gives the connection, its name, and what was said until then.
    async fn enter(&self) -> Result<(Link, Inbox, String, Session), String> {
        let id = random().map_err(|e| e.to_string())?;
        let (link, mut inbox) = link::spawn(LinkConfig {
            credentials: self.credentials.clone(),
            tls: self.tls.clone(),
            clean_start: true,
            session_expiry: Duration::ZERO,
            connect_timeout: CONNECT,
            subscriptions: vec![self.names.info(), self.names.state()],
            ..LinkConfig::new(&self.host, self.port, format!("orinoco-doctor-{id}"))
        });
        let mut session = Session::default();
        connected(&mut inbox, &mut session).await?;
        Ok((link, inbox, id, session))
    }

    /// Connects, reads what is retained, and tries the rules where there is an account.
    async fn visit(&self) -> Result<Session, String> {
        let (link, mut inbox, id, mut session) = self.enter().await?;
        session.tries = self.tries(&id);
        for (token, probe) in session.tries.iter_mut().enumerate() {
            let published = link.try_publish(Publish {
                topic: probe.topic.clone(),
                at_least_once: true,
                token: Some(token as u64),
                ..Publish::default()
            });
            if let Err(error) = published {
                probe.taken = Some(Err(error.to_string()));
            }
        }
        let deadline = Instant::now() + ANSWERS;
        while !session.is_complete(self.is_told) {
            match timeout_at(deadline, inbox.recv()).await {
                Ok(Some(inbound)) => session.take(inbound),
                Ok(None) | Err(_) => break,
            }
        }
        // Everything that counts was said; a broker that does not say goodbye is no finding.
        let _ = link.close(None, Duration::from_secs(1)).await;
        Ok(session)
    }

    /// What may be published and what may not, by our own rules, and where it does no harm if it can be.
    fn tries(&self, id: &str) -> Vec<Try> {
        let rules = Rules::new(self.names.root());
        let user = self
            .credentials
            .as_ref()
            .map_or(LOCAL_USER, |c| c.user.as_str());
        let who = match self.is_daemon {
            true => Who::Daemon,
            // What else operators may do is not tried.
            false => Who::User {
                name: user,
                role: Role::Device,
            },
        };
        let below = |rest: &str| format!("{}/v1/{rest}", self.names.root());
        let cancel = |user: &str| {
            below(&format!(
                "{}/req/{user}/cancel/doctor-{id}",
                self.names.node()
            ))
        };
        let answer = |user: &str| below(&format!("resp/{user}/doctor-{id}"));
        let topics = match (self.is_daemon, &self.credentials) {
            (true, None) => Vec::new(),
            (true, Some(_)) => vec![
                answer(NOBODY),
                // No user can have this name, and answers to it would be requests.
                answer("req"),
                format!("{}-doctor/{id}", self.names.root()),
            ],
            (false, _) => vec![cancel(user), cancel(NOBODY), answer(NOBODY), answer(user)],
        };
        let probe = |topic: String| Try {
            is_allowed: rules.may_write(who, &topic),
            topic,
            taken: None,
        };
        topics.into_iter().map(probe).collect()
    }
}

/// Waits until the broker let us in.
async fn connected(inbox: &mut Inbox, session: &mut Session) -> Result<(), String> {
    let deadline = Instant::now() + CONNECT + Duration::from_secs(1);
    loop {
        match timeout_at(deadline, inbox.recv()).await {
            Ok(Some(Inbound::Up { .. })) => return Ok(()),
            Ok(Some(Inbound::Down { reason, .. })) => return Err(reason),
            Ok(Some(inbound)) => session.take(inbound),
            Ok(None) | Err(_) => return Err(format!("no answer within {} s", CONNECT.as_secs())),
        }
    }
}

impl Session {
    /// Whether nothing is waited for any more; the documents only of a daemon that runs.
    fn is_complete(&self, is_told: bool) -> bool {
        let has_documents = self.info.is_some() && self.state.is_some();
        (has_documents || !is_told) && self.tries.iter().all(|probe| probe.taken.is_some())
    }

    fn take(&mut self, inbound: Inbound) {
        let mut settle = |token: Option<u64>, taken| {
            let at = token.and_then(|token| usize::try_from(token).ok());
            if let Some(probe) = at.and_then(|at| self.tries.get_mut(at)) {
                probe.taken = Some(taken);
            }
        };
        match inbound {
            Inbound::Delivered { token } => settle(Some(token), Ok(())),
            Inbound::Undelivered { token, reason, .. } => settle(token, Err(reason)),
            Inbound::SubscribeRefused { filter, reason } => self.refused.push((filter, reason)),
            Inbound::Message(message) if message.topic.ends_with("/info") => {
                // Of a later version it may not be understood; then it is as if nothing was said.
                self.info = serde_json::from_slice(&message.payload)
                    .ok()
                    .or(self.info.take());
            }
            Inbound::Message(message) if message.topic.ends_with("/state") => {
                self.state = serde_json::from_slice(&message.payload)
                    .ok()
                    .or(self.state.take());
            }
            _ => {}
        }
    }
}

fn random() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
