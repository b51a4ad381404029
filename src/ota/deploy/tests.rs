//! Every cut of the power at every step, forward and back, in a world that is made up.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, Once};

use super::*;
use crate::ota::catalog;
use crate::ota::fetch::Progress;
use crate::ota::name::{Digest, ModelId};
use crate::ota::state::{Origin, Record, Release};
use crate::ota::vfs::{Cut, Keeps, Unsynced, Vfs};

const DIR: &str = "/ota";

fn line() -> LineName {
    LineName::new("assistant").unwrap()
}

fn release(seq: u64) -> Release {
    Release {
        release_seq: seq,
        id: ModelId::new(&format!("m{seq}")).unwrap(),
        manifest: Digest::of(&[0, seq as u8]),
        weights: Digest::of(&[1, seq as u8]),
        weights_bytes: 10,
        others: Vec::new(),
        title: String::new(),
    }
}

/// What outlives the power: blobs, on the same disk; and what the network has.
#[derive(Clone)]
struct Fake {
    disk: Unsynced,
    catalog: Arc<Mutex<Catalog>>,
    /// What a trial of a release says.
    trials: Arc<Mutex<BTreeMap<u64, Tried>>>,
    /// The network is there.
    is_online: Arc<Mutex<bool>>,
    serves: Arc<Mutex<Vec<u64>>>,
    sticks: Arc<Mutex<Vec<std::path::PathBuf>>>,
    /// Somebody else fills the disk during a trial, and clears it up when it is over.
    fills_up: Arc<Mutex<bool>>,
    settled: Arc<Mutex<Vec<bool>>>,
    /// What reading all files again finds.
    damaged: Arc<Mutex<Vec<Digest>>>,
    trial: Option<u64>,
    progress: watch::Sender<Progress>,
}

fn blob(digest: &Digest) -> std::path::PathBuf {
    Path::new(DIR).join("blobs").join(digest.to_string())
}

impl Fake {
    fn new(disk: Unsynced, catalog: Catalog) -> Self {
        Self {
            disk,
            catalog: Arc::new(Mutex::new(catalog)),
            trials: Arc::default(),
            is_online: Arc::new(Mutex::new(true)),
            serves: Arc::default(),
            sticks: Arc::default(),
            fills_up: Arc::default(),
            settled: Arc::default(),
            damaged: Arc::default(),
            trial: None,
            progress: watch::channel(Progress::default()).0,
        }
    }

    fn on(&self, disk: Unsynced) -> Self {
        Self {
            disk,
            trial: None,
            ..self.clone()
        }
    }

    fn serves(&self) -> Vec<u64> {
        self.serves.lock().unwrap().clone()
    }

    fn unreachable(&self) -> Option<No> {
        (!*self.is_online.lock().unwrap()).then(|| No {
            reason: Reason::SourceUnreachable,
            detail: "no network".into(),
        })
    }
}

impl World for Fake {
    fn use_stick(&mut self, path: Option<&Path>) {
        self.sticks.lock().unwrap().extend(path.map(Path::to_owned));
    }

    async fn check(&mut self, _want: Option<&Want>) -> Result<Catalog, No> {
        self.disk.reached("check");
        match self.unreachable() {
            Some(no) => Err(no),
            None => Ok(self.catalog.lock().unwrap().clone()),
        }
    }

    async fn plan(
        &mut self,
        _line: &LineName,
        found: &catalog::Release,
    ) -> Result<(Release, u64), No> {
        self.disk.reached("plan");
        Ok((release(found.release_seq), 10))
    }

    async fn download(&mut self, release: &Release, _max_kbit_s: u32) -> Result<(), No> {
        let partial = Path::new(DIR).join("partial");
        for piece in 0..3 {
            if let Some(no) = self.unreachable() {
                return Err(no);
            }
            self.disk.write(&partial, &[piece]).unwrap();
            self.disk.sync(&partial).unwrap();
        }
        let _ = release;
        self.disk.reached("download:over");
        Ok(())
    }

    async fn verify(&mut self, _line: &LineName, release: &Release) -> Result<(), No> {
        for digest in release.files() {
            crate::ota::vfs::replace(&self.disk, &blob(&digest), &digest.0).unwrap();
        }
        self.disk.reached("verify:over");
        Ok(())
    }

    async fn begin_trial(&mut self, _line: &LineName, release: &Release) -> Option<Tried> {
        assert!(self.is_intact(release), "only what was verified is loaded");
        self.disk.reached("trial:load");
        self.trial = Some(release.release_seq);
        None
    }

    async fn end_trial(&mut self) -> Tried {
        self.disk.reached("trial:probe");
        if *self.fills_up.lock().unwrap() {
            self.disk.set_room(Some(0));
        }
        let seq = self.trial.expect("begun");
        let passed = Tried::Passed {
            serves: true,
            detail: String::new(),
        };
        self.trials
            .lock()
            .unwrap()
            .get(&seq)
            .cloned()
            .unwrap_or(passed)
    }

    fn settle(&mut self, is_written: bool) {
        self.disk.reached("settle");
        self.settled.lock().unwrap().push(is_written);
        self.disk.set_room(None);
    }

    fn in_service(&mut self, record: &Record, _at_once: bool) {
        let active = record.lines.values().map(|installed| {
            assert!(
                self.is_intact(&installed.active),
                "what serves is here and verified"
            );
            installed.active.release_seq
        });
        *self.serves.lock().unwrap() = active.collect();
        self.disk.reached("in_service");
    }

    fn is_intact(&self, release: &Release) -> bool {
        release.files().all(|digest| {
            let bytes = self.disk.read(&blob(&digest), 100).unwrap();
            bytes.is_some_and(|bytes| bytes == digest.0)
        })
    }

    fn sweep(&mut self, kept: &std::collections::BTreeSet<Digest>) {
        for (path, _) in self.disk.list(&Path::new(DIR).join("blobs")).unwrap() {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let digest = Digest::from_hex(&name);
            if !digest.is_ok_and(|digest| kept.contains(&digest)) {
                self.disk.remove(&path).unwrap();
            }
        }
        self.disk.sync_dir(&Path::new(DIR).join("blobs")).unwrap();
    }

    async fn scrub(&mut self) -> Result<Vec<Digest>, String> {
        let damaged = std::mem::take(&mut *self.damaged.lock().unwrap());
        for digest in &damaged {
            // Set aside: nothing may open it any more.
            self.disk.remove(&blob(digest)).unwrap();
        }
        Ok(damaged)
    }

    fn bytes_here(&self, _release: &Release) -> u64 {
        0
    }

    fn now_s(&self) -> u64 {
        1_800_000_000
    }

    fn minute_of_day(&self) -> u32 {
        0
    }

    fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    fn describe(&self, _state: &mut State) {}

    fn reached(&self, point: &str) {
        self.disk.reached(point);
    }
}

fn catalog_of(releases: &[(u64, &str)]) -> Catalog {
    let releases: Vec<_> = (releases.iter())
        .map(|(seq, state)| serde_json::json!({"release_seq": seq, "id": format!("m{seq}"), "state": state}))
        .collect();
    let json = serde_json::json!({
        "schema": 1, "catalog_seq": 1, "issued": "2026-11-21T13:30:00Z",
        "lines": [{"line": "assistant", "releases": releases}],
    });
    Catalog::parse(json.to_string().as_bytes()).unwrap()
}

fn wish(id: &str, seq: u64) -> Command {
    Command::Want(super::look::want(id, &line(), seq, Origin::Operator))
}

/// A life of the daemon: starts, hears the commands, and works until nothing is under way. The power may go.
fn live(world: &Fake, commands: &[Command]) -> Result<Record, Cut> {
    live_with(world, commands, None)
}

/// The same, and somebody has put in a stick.
fn live_with(world: &Fake, commands: &[Command], request: Option<Request>) -> Result<Record, Cut> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if panic.payload().downcast_ref::<Cut>().is_none() {
                usual(panic);
            }
        }));
    });
    let done = catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let Opened::Ready(book) =
                open(Arc::new(world.disk.clone()), Path::new(DIR), 0, &|_| true)
            else {
                panic!("our own schema");
            };
            let (send, orders) = mpsc::channel(16);
            for command in commands {
                let order = Order {
                    command: command.clone(),
                    ticket: None,
                };
                send.send(order).await.unwrap();
            }
            let (state, _) = watch::channel(State::default());
            let (told, mut events) = mpsc::channel(1000);
            let policy = Policy {
                device: "n1".into(),
                group: "hall2".into(),
                check_every: Duration::ZERO,
                scrub_every: None,
                probation: Duration::from_secs(600),
                requests: None,
            };
            let mut deploy = Deploy {
                book: *book,
                world: world.clone(),
                policy,
                parts: Parts {
                    orders,
                    state,
                    told,
                },
                catalog: None,
                failed_check: None,
                next_check: Instant::now(),
                steady_at: None,
                scrub_at: None,
                to_mend: Vec::new(),
                request: request.clone(),
            };
            deploy.world.in_service(&deploy.book.record, false);
            let mut n_steps = 0;
            loop {
                n_steps += 1;
                assert!(n_steps < 1000, "it comes to an end");
                while events.try_recv().is_ok() {}
                match deploy.book.record.phase() {
                    Some(phase) => drop(deploy.step(phase).await),
                    None if deploy.request.is_some()
                        || deploy.scrub_at.is_some()
                        || !deploy.to_mend.is_empty()
                        || !deploy.parts.orders.is_empty() =>
                    {
                        drop(deploy.idle().await);
                    }
                    None => break,
                }
            }
            deploy.book.record.clone()
        })
    }));
    match done {
        Ok(record) => Ok(record),
        Err(panic) => match panic.downcast::<Cut>() {
            Ok(cut) => Err(*cut),
            Err(panic) => std::panic::resume_unwind(panic),
        },
    }
}

/// A device with release 1 in service.
fn device(releases: &[(u64, &str)]) -> Fake {
    let world = Fake::new(Unsynced::new(), catalog_of(releases));
    let record = live(&world, &[wish("d1", 1)]).unwrap();
    assert_eq!(active(&record), 1);
    world
}

fn active(record: &Record) -> u64 {
    record.lines[&line()].active.release_seq
}

/// Cuts the power at each step of `commands`, with each idea of what a disk keeps; then the device starts again,
/// is told the same again, as a retained wish is, and works until it is done. Says at how many different points.
fn cut_everywhere(start: &Fake, commands: &[Command], judge: impl Fn(&Record)) -> usize {
    let mut points = std::collections::BTreeSet::new();
    for keeps in [Keeps::Everything, Keeps::Synced, Keeps::NamesOnly] {
        for at in 0.. {
            let world = start.on(start.disk.cut(Keeps::Everything));
            world.disk.cut_after(at);
            let Err(Cut(point)) = live(&world, commands) else {
                break;
            };
            points.insert(point.clone());
            let after = world.on(world.disk.cut(keeps));
            let record = live(&after, commands).unwrap_or_else(|cut| panic!("no cut now: {cut:?}"));
            assert_eq!(record.deployment, None, "cut at {point}, {keeps:?}");
            assert!(after.is_intact(&record.lines[&line()].active));
            assert_eq!(
                *after.serves.lock().unwrap(),
                [active(&record)],
                "cut at {point}"
            );
            judge(&record);
        }
    }
    points.len()
}

#[test]
fn power_cut_at_every_step_of_an_update_ends_with_the_new_release_or_after_two_cuts_with_the_old() {
    let start = device(&[(1, "active"), (2, "active")]);
    let n_points = cut_everywhere(&start, &[wish("d2", 2)], |record| {
        assert_eq!(active(record), 2)
    });
    assert!(n_points >= 25, "{n_points} different points");
}

#[test]
fn power_cut_at_every_step_of_a_failed_probe_ends_with_the_old_release() {
    let start = device(&[(1, "active"), (2, "active")]);
    let no = No {
        reason: Reason::ProbeGolden,
        detail: "no Paris".into(),
    };
    start.trials.lock().unwrap().insert(2, Tried::No(no));
    let n_points = cut_everywhere(&start, &[wish("d2", 2)], |record| {
        assert_eq!(active(record), 1);
        assert_eq!(
            record.last.as_ref().unwrap().reason,
            Some(Reason::ProbeGolden)
        );
        assert!(record.has_failed(&line(), 2));
    });
    assert!(n_points >= 25, "{n_points} different points");
}

#[test]
fn power_cut_at_every_step_of_a_rollback_ends_with_the_release_before() {
    let start = device(&[(1, "active"), (2, "active")]);
    live(&start, &[wish("d2", 2)]).unwrap();
    *start.is_online.lock().unwrap() = false; // It needs no network.
    let back = Command::Want(Want::rollback("now", line(), None));
    cut_everywhere(&start, &[back], |record| assert_eq!(active(record), 1));
}

#[test]
fn a_second_power_cut_in_the_recovery_from_the_first_changes_nothing() {
    let start = device(&[(1, "active"), (2, "active")]);
    let commands = [wish("d2", 2)];
    let mut n_nested = 0;
    for first in (0..).step_by(3) {
        let world = start.on(start.disk.cut(Keeps::Everything));
        world.disk.cut_after(first);
        if live(&world, &commands).is_ok() {
            break;
        }
        for second in (0..).step_by(2) {
            let after = world.on(world.disk.cut(Keeps::Synced));
            after.disk.cut_after(second);
            if live(&after, &commands).is_ok() {
                break;
            }
            n_nested += 1;
            let last = after.on(after.disk.cut(Keeps::Synced));
            let record = live(&last, &commands).unwrap();
            assert_eq!(record.deployment, None);
            assert!(last.is_intact(&record.lines[&line()].active));
            // Two ends while it was put into service are the release's fault.
            let last = record.last.as_ref().unwrap();
            match active(&record) {
                2 => assert_eq!(last.reason, None),
                _ => assert_eq!(last.reason, Some(Reason::ProbeCrash)),
            }
        }
    }
    assert!(n_nested > 50, "{n_nested}");
}

#[test]
fn rollback_whose_files_are_gone_is_told_and_the_release_in_service_stays() {
    let world = device(&[(1, "active"), (2, "active")]);
    live(&world, &[wish("d2", 2)]).unwrap();
    world.disk.remove(&blob(&release(1).weights)).unwrap();
    let record = live(&world, &[Command::Rollback(None)]).unwrap();
    assert_eq!(active(&record), 2);
    assert_eq!(record.last.unwrap().reason, Some(Reason::PreviousMissing));
}

#[test]
fn downgrade_is_refused_whoever_asks_unless_the_catalogue_allows_it() {
    let world = device(&[(1, "active"), (2, "active")]);
    live(&world, &[wish("d2", 2)]).unwrap();
    let record = live(&world, &[wish("down", 1)]).unwrap();
    assert_eq!(active(&record), 2);
    assert_eq!(record.last.unwrap().reason, Some(Reason::DowngradeRefused));
    world.catalog.lock().unwrap().lines[0].allow_downgrade_to = vec![1];
    let record = live(&world, &[wish("down2", 1)]).unwrap();
    assert_eq!(active(&record), 1);
}

#[test]
fn a_recalled_release_is_left_for_a_better_one_or_for_the_one_before() {
    let world = device(&[(1, "active"), (2, "active")]);
    live(&world, &[wish("d2", 2)]).unwrap();
    let refused = live(&world, &[]).unwrap();
    assert_eq!(active(&refused), 2);

    *world.catalog.lock().unwrap() = catalog_of(&[(1, "active"), (2, "withdrawn")]);
    let record = live(&world, &[Command::Check]).unwrap();
    assert_eq!(active(&record), 1, "the one before");
    assert_eq!(
        record.last.as_ref().unwrap().reason,
        Some(Reason::Withdrawn)
    );
    let record = live(&world, &[wish("again", 2)]).unwrap();
    assert_eq!(record.last.unwrap().reason, Some(Reason::Withdrawn));

    *world.catalog.lock().unwrap() =
        catalog_of(&[(1, "withdrawn"), (2, "withdrawn"), (3, "active")]);
    let record = live(&world, &[Command::Check]).unwrap();
    assert_eq!(active(&record), 3, "a better one");
}

#[test]
fn what_is_not_in_the_catalogue_cannot_be_asked_for() {
    let world = device(&[(1, "active")]);
    let record = live(&world, &[wish("x", 9)]).unwrap();
    assert_eq!(record.last.unwrap().reason, Some(Reason::NotInCatalog));
    assert!(record.lines.contains_key(&line()));
}

#[test]
fn damaged_state_is_made_up_from_the_journal_and_one_of_a_newer_version_is_left_alone() {
    let world = device(&[(1, "active"), (2, "active")]);
    live(&world, &[wish("d2", 2)]).unwrap();
    let path = Path::new(DIR).join("state.json");
    let good = world.disk.read(&path, 1 << 20).unwrap().unwrap();
    for damaged in [&b""[..], b"{", &good[..good.len() / 2], b"\0\0\0\0"] {
        world.disk.write(&path, damaged).unwrap();
        let Opened::Ready(book) = open(Arc::new(world.disk.clone()), Path::new(DIR), 0, &|_| true)
        else {
            panic!("it is not newer");
        };
        assert_eq!(active(&book.record), 2);
        assert_eq!(book.record.previous(&line()), Some(&release(1)));
    }
    let mut newer: serde_json::Value = serde_json::from_slice(&good).unwrap();
    newer["schema"] = 9.into();
    let newer = newer.to_string();
    world.disk.write(&path, newer.as_bytes()).unwrap();
    let Opened::Newer { schema, record } =
        open(Arc::new(world.disk.clone()), Path::new(DIR), 0, &|_| true)
    else {
        panic!("it is newer");
    };
    assert_eq!((schema, active(&record)), (9, 2));
    assert_eq!(
        world.disk.read(&path, 1 << 20).unwrap().unwrap(),
        newer.as_bytes()
    );
}

#[test]
fn a_disk_that_is_full_at_the_commit_leaves_the_old_release_in_service_and_says_so() {
    let world = device(&[(1, "active"), (2, "active")]);
    *world.fills_up.lock().unwrap() = true;
    let record = live(&world, &[wish("d2", 2)]).unwrap();
    assert_eq!(
        *world.settled.lock().unwrap(),
        [true, false],
        "what served before the second trial was put back"
    );
    assert_eq!((active(&record), world.serves()), (1, vec![1]));
    let last = record.last.as_ref().unwrap();
    assert_eq!(
        (last.phase, last.reason),
        (Phase::Failed, Some(Reason::NoSpace)),
        "{last:?}"
    );
    assert!(
        !record.has_failed(&line(), 2),
        "the release is not to blame"
    );
    // With room again, the next wish brings it.
    *world.fills_up.lock().unwrap() = false;
    assert_eq!(active(&live(&world, &[wish("d3", 2)]).unwrap()), 2);
}

#[test]
fn power_that_goes_while_the_disk_is_full_at_the_commit_starts_with_the_old_release() {
    let world = device(&[(1, "active"), (2, "active")]);
    *world.fills_up.lock().unwrap() = true;
    let dry = world.on(world.disk.cut(Keeps::Everything));
    live(&dry, &[wish("d2", 2)]).unwrap();
    let steps = dry.disk.steps();
    let at = steps.iter().position(|step| step == "settle").unwrap();
    for keeps in [Keeps::Everything, Keeps::Synced, Keeps::NamesOnly] {
        let cut = world.on(world.disk.cut(Keeps::Everything));
        cut.disk.cut_after(at as u64);
        assert!(live(&cut, &[wish("d2", 2)]).is_err());
        *world.fills_up.lock().unwrap() = false;
        let after = world.on(cut.disk.cut(keeps));
        let Opened::Ready(book) = open(Arc::new(after.disk.clone()), Path::new(DIR), 0, &|_| true)
        else {
            panic!("our own schema");
        };
        assert_eq!(
            (active(&book.record), book.record.phase()),
            (1, Some(Phase::Staged))
        );
        *world.fills_up.lock().unwrap() = true;
    }
}

#[test]
fn starts_again_and_again_take_the_new_release_back_before_a_model_is_chosen() {
    let world = device(&[(1, "active"), (2, "active")]);
    live(&world, &[wish("d2", 2)]).unwrap();
    for _ in 0..super::super::state::STARTS_MAX {
        let Opened::Ready(book) = open(Arc::new(world.disk.clone()), Path::new(DIR), 0, &|_| true)
        else {
            panic!("our own schema");
        };
        assert_eq!(active(&book.record), 2);
    }
    let Opened::Ready(book) = open(Arc::new(world.disk.clone()), Path::new(DIR), 0, &|_| true)
    else {
        panic!("our own schema");
    };
    assert_eq!(active(&book.record), 1);
    assert_eq!(
        book.record.last.as_ref().unwrap().reason,
        Some(Reason::CrashLoop)
    );
}

fn stick(id: &str) -> Option<Request> {
    Some(Request {
        id: id.into(),
        path: "/run/orinoco/usb".into(),
    })
}

#[test]
fn a_stick_that_somebody_puts_in_brings_the_best_release_of_the_line_in_service() {
    let world = device(&[(1, "active"), (2, "active"), (3, "withdrawn")]);
    let record = live_with(&world, &[], stick("s1")).unwrap();
    assert_eq!(active(&record), 2);
    let last = record.last.as_ref().unwrap();
    assert_eq!(
        (last.want.origin, last.want.deployment.as_str()),
        (Origin::Stick, "s1")
    );
    assert_eq!(
        *world.sticks.lock().unwrap(),
        [Path::new("/run/orinoco/usb")]
    );
    // Put in again, it has nothing new, and says so as a success under its own name.
    let record = live_with(&world, &[], stick("s2")).unwrap();
    assert_eq!(active(&record), 2);
    let last = record.last.unwrap();
    assert_eq!((last.want.deployment.as_str(), last.reason), ("s2", None));
}

#[test]
fn a_stick_that_cannot_be_read_fails_under_its_own_name_with_the_reason() {
    let world = device(&[(1, "active"), (2, "active")]);
    *world.is_online.lock().unwrap() = false;
    let last = live_with(&world, &[], stick("s1")).unwrap().last.unwrap();
    assert_eq!(last.want.deployment.as_str(), "s1");
    assert_eq!(last.reason, Some(Reason::SourceUnreachable));
}

fn break_file(world: &Fake, seq: u64) {
    *world.damaged.lock().unwrap() = vec![release(seq).weights];
}

#[test]
fn a_damaged_file_of_the_release_in_service_is_fetched_again() {
    let world = device(&[(1, "active"), (2, "active")]);
    live(&world, &[wish("d2", 2)]).unwrap();
    break_file(&world, 2);
    let record = live(&world, &[Command::Scrub]).unwrap();
    assert_eq!(active(&record), 2);
    assert!(world.is_intact(&release(2)));
    let last = record.last.unwrap();
    assert_eq!(last.phase, Phase::Committed);
    assert_eq!(last.want.origin, Origin::Repair);
    assert_eq!(
        record.lines[&line()].previous.as_ref().unwrap().release_seq,
        1,
        "there is still something to go back to"
    );
}

#[test]
fn a_damaged_file_that_no_source_has_leaves_service_to_the_release_before() {
    let world = device(&[(1, "active"), (2, "active")]);
    live(&world, &[wish("d2", 2)]).unwrap();
    break_file(&world, 2);
    *world.is_online.lock().unwrap() = false;
    let record = live(&world, &[Command::Scrub]).unwrap();
    assert_eq!(active(&record), 1);
    let last = record.last.clone().unwrap();
    assert_eq!(
        (last.phase, last.reason),
        (Phase::RolledBack, Some(Reason::FileDamaged))
    );
    assert!(
        !record.has_failed(&line(), 2),
        "the release is not to blame for the disk"
    );
}

#[test]
fn a_damaged_file_of_the_release_before_is_mended_without_touching_what_serves() {
    let world = device(&[(1, "active"), (2, "active")]);
    live(&world, &[wish("d2", 2)]).unwrap();
    break_file(&world, 1);
    let record = live(&world, &[Command::Scrub]).unwrap();
    assert_eq!(active(&record), 2);
    assert!(world.is_intact(&release(1)));
    assert_eq!(record.last.unwrap().phase, Phase::Committed);
}
