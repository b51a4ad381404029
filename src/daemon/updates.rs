//! Updates of models: opened before a model is chosen, then run on a thread of their own.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use super::tuning::{self, Tuner};
use crate::board::{Root, memory};
use crate::config::{Config, Sources};
use crate::dispatch::Updates;
use crate::governor::Update;
use crate::models::Releases;
use crate::ota::blobs::BlobStore;
use crate::ota::deploy::site::{self, Site, SiteConfig};
use crate::ota::deploy::{self, Book, Command, Opened, Order, Policy, State};
use crate::ota::fetch::FetchConfig;
use crate::ota::fetch::standing::Patience;
use crate::ota::reason::Reason;
use crate::ota::source::Terms;
use crate::ota::vfs::Disk;

/// A root of trust is no longer than this.
const ROOT_BYTES_MAX: u64 = 64 << 10;
/// Orders that wait, and confirmations of events. An operator's next one finds room when the first was read.
const ORDERS: usize = 64;
/// Events that wait for the dispatcher; beyond it the engine waits.
const TOLD: usize = 64;
/// Releases offered to the governor that wait: there is one at a time.
const OFFERS: usize = 4;
/// The engine ends within this time of the daemon's end, or is left.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What was found at the start.
pub(super) struct Found {
    book: Option<Book>,
    root: Vec<u8>,
    /// What is in service.
    pub(super) releases: Releases,
}

/// Reads what is on the device and does what a start means for it, before any model is chosen. `None`: the
/// device has no root of trust, and takes no updates.
pub(super) fn open(config: &mut Config, sources: &Sources) -> Option<Found> {
    use crate::ota::vfs::Vfs as _;
    let dir = &config.ota.deploy.dir.clone();
    let path = &config.ota.root_file;
    let root = match Disk.read(path, ROOT_BYTES_MAX) {
        Ok(Some(root)) => root,
        Ok(None) => return None,
        Err(error) => {
            error!(%error, path = %path.display(), "updates are off: the root of trust cannot be read");
            return None;
        }
    };
    let is_here = |release: &crate::ota::state::Release| {
        let blobs = BlobStore::open(dir);
        blobs.is_ok_and(|blobs| blobs.has(&release.weights, release.weights_bytes))
    };
    let (book, record) = match deploy::open(Arc::new(Disk), dir, 0, &is_here) {
        Opened::Ready(mut book) => {
            with_policy(config, sources, &mut book);
            let record = book.record.clone();
            (Some(*book), record)
        }
        Opened::Newer { record, .. } => (None, *record),
    };
    Some(Found {
        book,
        root,
        releases: site::releases(&record, dir).into(),
    })
}

/// Lays the fleet's settings below the device's own. Those that cannot be had any more are given up, as the
/// device's own may have changed meanwhile.
fn with_policy(config: &mut Config, sources: &Sources, book: &mut Book) {
    while let Some(active) = book.record.policies.active {
        let kept = site::kept_policy(&config.ota.deploy.dir, &active);
        let loaded = kept.and_then(|policy| tuning::load_with(sources, Some(&policy.settings)));
        match loaded {
            Ok(loaded) => {
                info!(
                    policy_seq = active.policy_seq,
                    "settings of the fleet are in force"
                );
                // The command line has had its word on that one.
                let log = config.log.clone();
                *config = Config { log, ..loaded };
                return;
            }
            Err(why) => {
                error!(
                    policy_seq = active.policy_seq,
                    why, "settings of the fleet are given up"
                );
                book.record.policies.take_back(Reason::BadCatalog, &why);
                // One that cannot be written is given up at the next start again.
                book.save(0, 0);
            }
        }
    }
}

/// The engine's ends.
pub(super) struct Running {
    /// For the dispatcher.
    pub(super) updates: Updates,
    /// For the governor.
    pub(super) offers: mpsc::Receiver<Update>,
    /// The governor's ear, for settings that change.
    pub(super) governor: mpsc::Sender<Update>,
    orders: mpsc::Sender<Order>,
    thread: JoinHandle<()>,
}

/// Starts the engine. `None`: there is nothing to run.
///
/// # Errors
/// Its thread does not start.
pub(super) fn start(
    config: &Config,
    found: Found,
    releases: watch::Sender<Releases>,
    busy: watch::Receiver<bool>,
    tuner: Tuner,
) -> anyhow::Result<Option<Running>> {
    let Some(book) = found.book else {
        return Ok(None);
    };
    let site = site_config(config, found.root);
    let policy = Policy {
        device: config.node.name.clone(),
        // As in the topic of the fleet's wish.
        group: config.ota.group.clone().unwrap_or_else(|| "all".into()),
        check_every: config.ota.deploy.check,
        scrub_every: config.ota.scrub.interval,
        probation: config.ota.deploy.probation,
        requests: Some(config.ota.deploy.dir.clone()),
    };
    let hold = match config.ota.fetch.pause_while_busy {
        true => busy,
        false => watch::channel(false).1,
    };
    let (orders, order_queue) = mpsc::channel(ORDERS);
    let (state_sender, state) = watch::channel(State::default());
    let (told, told_queue) = mpsc::channel(TOLD);
    let (offer_sender, offers) = mpsc::channel(OFFERS);
    let governor = offer_sender.clone();
    let parts = deploy::Parts {
        orders: order_queue,
        state: state_sender,
        told,
    };
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return error!(%error, "updates are off: no runtime"),
        };
        // Opened here: it reads and syncs files.
        let site = match Site::open(site, releases, offer_sender, hold, Box::new(tuner)) {
            Ok(site) => site,
            Err(reason) => return error!(reason, "updates are off"),
        };
        runtime.block_on(deploy::run(book, site, policy, parts));
    };
    let named = std::thread::Builder::new().name("ota".into());
    let thread = named
        .spawn(work)
        .context("failed to start the thread of updates")?;
    info!(dir = %config.ota.deploy.dir.display(), group = config.ota.group, "updates are on");
    Ok(Some(Running {
        updates: Updates {
            state,
            told: told_queue,
            orders: orders.clone(),
        },
        offers,
        governor,
        orders,
        thread,
    }))
}

fn site_config(config: &Config, root: Vec<u8>) -> SiteConfig {
    let fetch = &config.ota.fetch;
    let board = Root::new(&config.paths.board_root);
    let total_bytes = memory::read(&board).map_or(0, |memory| memory.total_bytes);
    SiteConfig {
        dir: config.ota.deploy.dir.clone(),
        root,
        board_root: config.paths.board_root.clone(),
        sources: fetch.sources.clone(),
        terms: Terms {
            connect_timeout: fetch.connect_timeout,
            stall_timeout: fetch.stall_timeout,
            ca_file: fetch.ca_file.clone(),
        },
        fetch: FetchConfig {
            bytes_per_second_max: fetch.bytes_per_second_max,
            reserve_bytes: fetch.reserve_bytes,
            patience: Patience {
                wait_max: fetch.retry_max,
                ..Patience::default()
            },
        },
        scrub_bytes_per_second: config.ota.scrub.bytes_per_second_max,
        reserve_bytes: config.memory.reserve.of(total_bytes),
        engine_build: crate::ota::ENGINE_BUILD,
    }
}

/// What stops the engine after the dispatcher has taken its ends.
pub(super) struct Stopper {
    orders: mpsc::Sender<Order>,
    thread: JoinHandle<()>,
}

impl Running {
    /// Parts it: for the dispatcher, for the governor, and for the end.
    pub(super) fn split(self) -> (Updates, mpsc::Receiver<Update>, Stopper) {
        let stopper = Stopper {
            orders: self.orders,
            thread: self.thread,
        };
        (self.updates, self.offers, stopper)
    }
}

impl Stopper {
    /// An end in order is no crash: the release on probation is told.
    pub(super) async fn stop(self) {
        let order = Order {
            command: Command::Stop,
            ticket: None,
        };
        let sent = tokio::time::timeout(STOP_LIMIT, self.orders.send(order)).await;
        drop(self.orders);
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
        let joined = tokio::task::spawn_blocking(move || self.thread.join());
        match tokio::time::timeout(STOP_LIMIT, joined).await {
            Ok(Ok(Ok(()))) => {}
            _ => warn!("updates did not end in time; they go on at the next start"),
        }
    }
}
