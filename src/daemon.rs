//! Composition root of `orinoco run`: builds the parts, owns their handles, and knows the order in which
//! they start and stop.
//!
//! Start: job store (recovered) → broker, when it is a child → link with its last will → worker → dispatcher.
//! Requests are taken while the model loads; they are on disk and wait.
//!
//! Stop (SIGTERM or SIGINT; a second one ends at once): nothing more is taken, running streams have
//! `drain_seconds` to finish, what does not finish starts again at the next start; finals leave; `offline`
//! is published, since a clean disconnect does not fire the will; then worker, broker and store end.

mod accounts;
mod broker_child;
mod credentials;
mod hardware;
mod lineup;
mod service;
mod settings;
mod tuning;
mod updates;
mod vigil;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use crate::board::Root;
use crate::config::{BrokerMode, Config, Sources};
use crate::dispatch::{self, Control, Parts};
use crate::link::{self, Inbox};
use crate::notify::Notifier;
use crate::runtime_file::{self, Runtime, RuntimeFile};
use crate::wire::report::{Presence, Status};
use crate::wire::topic::{Name, Names};
use crate::worker::Checker;
use crate::{governor, store, telemetry, worker};
use broker_child::BrokerChild;
pub use broker_child::serve_child as serve_broker_child;
pub use credentials::{unit_password, unusable_files};
use service::Service;
pub use settings::{
    Choice, broker as broker_config, choose as choose_model, worker as worker_config,
};
use tuning::Tuner;

/// Words and notices between governor and dispatcher that wait; both are rare.
const GOVERNOR_QUEUE: usize = 64;
/// Orders and questions to the dispatcher that wait.
const CONTROL_QUEUE: usize = 4;
/// Last messages, `offline` among them, must be acknowledged within this time.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// Everything after the drain: the last messages, the ends of worker, broker and store.
const END_LIMIT: Duration = Duration::from_secs(20);

/// Runs until a signal. `sources`: what `config` was read from; settings of the fleet are laid into it.
///
/// # Errors
/// What keeps it from starting: a taken state directory, a broker that does not start, no place to write.
pub fn run(config: Config, sources: &Sources) -> anyhow::Result<ExitCode> {
    // One thread: children are spawned on it and the kernel ends them with it; and nothing here computes.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    runtime.block_on(serve(config, sources))
}

/// The parts, in the order in which they are stopped.
async fn serve(mut config: Config, sources: &Sources) -> anyhow::Result<ExitCode> {
    let mut stop = Stop::new()?;
    let mut notifier = Notifier::from_environment();
    notifier.status("opening the job store");
    let boot = format!(
        "{:016x}",
        getrandom::u64().context("failed to make a boot id")?
    );
    let node = Name::new(&config.node.name).context("node.name is no valid name")?;
    let pools = config.pools.names.iter().map(|name| Name::new(name));
    let pools = pools.collect::<Result<_, _>>();
    let found = updates::open(&mut config, sources);
    let mut names = Names::new(&config.node.root, node)
        .context("node.root is no valid name")?
        .with_pools(pools.context("pools.names has an invalid name")?)
        .context("pools.names has an invalid name")?;
    if found.is_some() {
        // A board without a group hears what is wished of all.
        let group = Name::new(config.ota.group.as_deref().unwrap_or("all"));
        names = names.with_fleet(group.context("ota.group is no valid name")?);
    }
    info!(
        node = config.node.name,
        version = env!("CARGO_PKG_VERSION"),
        "orinoco starts"
    );

    let known = found.as_ref().map(|found| found.releases.clone());
    let choice = settings::choose_with(&config, known)?;

    let clock = dispatch::Clock::start();
    let (store, recovered) =
        store::open(settings::store(&config), clock.now_ms()).with_context(|| {
            format!(
                "failed to open the job store in {}",
                config.paths.state_dir.display()
            )
        })?;
    if let Some(damaged) = &recovered.set_aside {
        error!(path = %damaged.path.display(), reason = damaged.reason, "damaged job store moved aside; its jobs are lost");
    }

    let broker = match config.broker.mode {
        BrokerMode::Child => Some(BrokerChild::start(&config).await?),
        BrokerMode::Unit | BrokerMode::External => None,
    };
    let at = match (&broker, config.broker.mode) {
        (Some(broker), _) => Some((broker.address, broker.password.clone())),
        (None, BrokerMode::Unit) => Some(settings::unit_broker(&config)?),
        (None, _) => None,
    };
    let ours = at.as_ref().map(|(address, _)| *address);
    let link_config = settings::link(&config, &names, &boot, clock.now_ms(), at)?;
    let pools = settings::pool_link(&link_config, &names).map(link::spawn);
    let (link, inbound) = link::spawn(link_config);

    let worker_config = settings::worker(&config, &choice)?;
    let checker = Checker::start(worker_config.program.clone(), config.engine.sandbox.clone());
    let (worker, keeper) = worker::spawn(worker_config);
    let (orders, control) = mpsc::channel(CONTROL_QUEUE);
    let mut service = Service::new(notifier, orders.clone(), worker.pulse);
    let (notices, notice_queue) = mpsc::channel(GOVERNOR_QUEUE);
    let (words, word_queue) = mpsc::channel(GOVERNOR_QUEUE);
    let (releases, watched) = watch::channel(choice.releases.clone());
    let (busy, runs) = watch::channel(false);
    let running = match found {
        Some(found) => {
            let (tuner, tuned) = Tuner::new(sources.clone(), Arc::new(config.clone()));
            let running = updates::start(&config, found, releases, runs.clone(), tuner)?;
            if let Some(running) = &running {
                let (governor, dispatcher) = (running.governor.clone(), orders.clone());
                tokio::spawn(tuning::hand_on(tuned, governor, dispatcher));
            }
            running
        }
        None => None,
    };
    let (updates, offers, stopper) = match running.map(updates::Running::split) {
        Some((updates, offers, stopper)) => (Some(updates), Some(offers), Some(stopper)),
        None => (None, None, None),
    };
    let governor = governor::Parts {
        orders: worker.orders,
        words,
        notices: notice_queue,
        updates: offers,
    };
    tokio::spawn(governor::run(
        settings::governor(&config, &choice, watched.clone())?,
        governor,
    ));
    let own_accounts = config.broker.mode != BrokerMode::External;
    let accounts = accounts::watch(own_accounts.then(|| config.paths.users_file()))?;
    let embedder = settings::embedder(&config, &choice)?;
    let settings = settings::dispatcher(&config, names.clone(), &boot, &choice, accounts, watched);
    let parts = Parts {
        link: link.clone(),
        inbound,
        pools,
        store: store.clone(),
        recovered,
        clock,
        reports: worker.reports,
        checker,
        notices,
        words: word_queue,
        readings: config
            .telemetry
            .interval
            .map(|interval| telemetry::spawn(Root::new(&config.paths.board_root), interval, runs)),
        updates,
        busy,
        control,
        embedder,
    };
    let mut dispatcher = tokio::spawn(dispatch::run(settings, parts));

    let runtime = Runtime {
        node: config.node.name.clone(),
        root: config.node.root.clone(),
        host: ours.map_or(config.mqtt.host.clone(), |ours| ours.ip().to_string()),
        port: ours.map_or(config.mqtt.port, |ours| ours.port()),
        own_broker: ours.is_some(),
        tls: match (&ours, &config.mqtt.tls) {
            (None, Some(tls)) => Some(runtime_file::Tls {
                ca_file: tls.ca_file.clone(),
                server_name: tls.server_name.clone(),
            }),
            _ => None,
        },
        pid: std::process::id(),
    };
    let runtime_file = RuntimeFile::write(&config.paths.state_dir, &runtime)
        .context("failed to say where to find us")?;

    let end = service
        .during(async {
            tokio::select! {
                name = stop.signal() => End::Signal(name),
                ended = &mut dispatcher => End::Dispatcher(ended.ok()),
            }
        })
        .await;
    service.stopping(config.engine.drain + END_LIMIT);
    let (code, inbox) = match end {
        End::Dispatcher(inbox) => {
            error!("the dispatcher ended by itself");
            (ExitCode::FAILURE, inbox)
        }
        End::Signal(name) => {
            info!(signal = name, "stopping; a second signal ends at once");
            let (done, drained) = oneshot::channel();
            let limit = config.engine.drain;
            let drain = async {
                // A dispatcher that has ended is noticed below.
                let _ = orders.send(Control::Drain { limit, done }).await;
                tokio::select! {
                    _ = drained => None,
                    name = stop.signal() => Some(name),
                }
            };
            if let Some(name) = service.during(drain).await {
                warn!(signal = name, "ending at once");
                return Ok(ExitCode::from(1));
            }
            (ExitCode::SUCCESS, dispatcher.await.ok())
        }
    };
    service.closing(END_LIMIT);

    let offline = Status {
        state: Presence::Offline,
        boot,
        since_ms: clock.now_ms(),
    };
    let goodbye = dispatch::retained(names.status(), &offline);
    let close = async {
        if let Err(error) = link.close(Some(goodbye), CLOSE_LIMIT).await {
            warn!(%error, "the broker may learn of our end from the last will only");
        }
        drop(inbox); // Before the close it would have ended the link.
        if let Some(stopper) = stopper {
            stopper.stop().await;
        }
        // The dispatcher's end closed the worker's reports, and with them the worker.
        if let Err(error) = keeper.await {
            warn!(%error, "the worker's keeper failed");
        }
        drop(runtime_file);
        if let Some(broker) = broker {
            broker.stop().await;
        }
        store.close().await;
    };
    service.during(close).await;
    info!("orinoco ended");
    Ok(code)
}

/// What ends the daemon.
enum End {
    Signal(&'static str),
    /// By itself, which it should not.
    Dispatcher(Option<Inbox>),
}

/// SIGTERM and SIGINT.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?,
        })
    }

    async fn signal(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
