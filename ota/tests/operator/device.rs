//! A device without a model: its trust, its state and its files are the product's own and lie on a real disk; what a
//! model would answer is said by the test.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use orinoco::frames::Finish;
use orinoco::governor::{Offer, Update, Verdict};
use orinoco::models::release::{Release, Releases};
use orinoco::ota::blobs::BlobStore;
use orinoco::ota::deploy::site::{Site, SiteConfig, releases};
use orinoco::ota::deploy::{self, Book, Opened, Order, Parts, Policy, State, Told};
use orinoco::ota::fetch::FetchConfig;
use orinoco::ota::fetch::standing::Patience;
use orinoco::ota::source::Terms;
use orinoco::ota::vfs::Disk;
use orinoco::worker::trial::{Answer, Ask, Shown, TrialEnd};
use tokio::sync::{mpsc, watch};

/// A folder in memory, where there is one. A process that dies leaves the same there as on a disk; and many devices
/// that sync to one disk would wait for one another, which no two boards do.
pub(crate) fn memory() -> tempfile::TempDir {
    match Path::new("/dev/shm") {
        shm if shm.is_dir() => tempfile::tempdir_in(shm),
        _ => tempfile::tempdir(),
    }
    .unwrap()
}

/// What is to be known of a device.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) name: String,
    /// Its folder of updates.
    pub(crate) dir: PathBuf,
    /// A mirror or a folder.
    pub(crate) source: String,
    /// The root of trust that it was provisioned with.
    pub(crate) root: PathBuf,
    /// Between two looks at the source; zero: only by command.
    pub(crate) check_every: Duration,
    /// Build of its engine.
    pub(crate) engine_build: u32,
    /// What a release answers to each golden prompt.
    pub(crate) answers: Arc<dyn Fn(&Release) -> String + Send + Sync>,
}

/// A running device.
pub(crate) struct Running {
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) state: watch::Receiver<State>,
    pub(crate) told: mpsc::Receiver<Told>,
    /// What the rest of the daemon would load.
    pub(crate) in_service: watch::Receiver<Releases>,
}

impl Device {
    pub(crate) fn new(name: &str, dir: PathBuf, source: String, root: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            dir,
            source,
            root,
            check_every: Duration::ZERO,
            engine_build: orinoco::ota::ENGINE_BUILD,
            answers: Arc::new(|_| "b".to_owned()),
        }
    }

    /// What is on the disk, after what a start of the daemon does.
    fn open(&self) -> Book {
        let blobs = BlobStore::open(&self.dir).unwrap();
        let is_here = |release: &orinoco::ota::state::Release| {
            blobs.has(&release.weights, release.weights_bytes)
        };
        match deploy::open(Arc::new(Disk), &self.dir, 0, &is_here) {
            Opened::Ready(book) => *book,
            Opened::Newer { schema, .. } => panic!("schema {schema}"),
        }
    }

    /// Starts it on this thread's `LocalSet`; it ends with its orders.
    pub(crate) fn start(self) -> Running {
        let book = self.open();
        let (orders, order_queue) = mpsc::channel(16);
        let (state_sender, state) = watch::channel(State::default());
        let (told_sender, told) = mpsc::channel(1000);
        let found = releases(&book.record, &self.dir);
        let (in_service_sender, in_service) = watch::channel(found.into());
        let (offers, offer_queue) = mpsc::channel(4);
        let config = SiteConfig {
            dir: self.dir.clone(),
            root: std::fs::read(&self.root).unwrap(),
            // Nothing is known of the board.
            board_root: self.dir.join("board"),
            sources: vec![self.source.clone()],
            terms: Terms::default(),
            fetch: FetchConfig {
                bytes_per_second_max: None,
                reserve_bytes: 0,
                patience: Patience::default(),
            },
            scrub_bytes_per_second: 1 << 30,
            reserve_bytes: 0,
            engine_build: self.engine_build,
        };
        let policy = Policy {
            device: self.name.clone(),
            group: "hall2".into(),
            check_every: self.check_every,
            scrub_every: None,
            probation: Duration::from_secs(600),
            requests: Some(self.dir.clone()),
        };
        let parts = Parts {
            orders: order_queue,
            state: state_sender,
            told: told_sender,
        };
        let hold = watch::channel(false).1;
        let site = Site::open(config, in_service_sender, offers, hold, Box::new(())).unwrap();
        tokio::task::spawn_local(govern(offer_queue, self.answers));
        tokio::task::spawn_local(deploy::run(book, site, policy, parts));
        Running {
            orders,
            state,
            told,
            in_service,
        }
    }
}

/// Tries what is offered, as the governor would with a worker.
async fn govern(
    mut offers: mpsc::Receiver<Update>,
    answers: Arc<dyn Fn(&Release) -> String + Send + Sync>,
) {
    while let Some(update) = offers.recv().await {
        let Update::Offer(offer) = update else {
            continue;
        };
        let Offer {
            release,
            trial,
            trying,
            verdict,
            settled,
            ..
        } = *offer;
        assert!(release.path.exists(), "what is loaded is here");
        let _ = trying.send(());
        // It takes a while: what is told first is heard first.
        tokio::task::yield_now().await;
        let answer = |ask: &Ask| match ask {
            Ask::Chat { .. } => Answer::Text {
                text: answers(&release),
                finish: Finish::Stop,
            },
            Ask::Score(_) => unreachable!("no release of these tests asks for a likelihood"),
        };
        let shown = Box::new(Shown {
            load: Duration::from_millis(100),
            answers: trial.asks.iter().map(answer).collect(),
            speed: None,
            peak_bytes: 1 << 20,
        });
        let end = match (trial.judge)(&shown) {
            true => TrialEnd::Passed(shown),
            false => TrialEnd::Unfit(shown),
        };
        let serves = matches!(end, TrialEnd::Passed(_));
        let _ = verdict.send(Verdict::Tried { end, serves });
        if serves {
            let _ = settled.await;
        }
    }
}
