//! A device whose process dies at any named place of an update, forward and back, starts again and comes to the same
//! end: with the product's own code in a process of its own, which is aborted. Then the same, where the disk has also
//! lost all that was not synced.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, ExitStatus, Stdio};
use std::sync::Arc;

use orinoco::ota::deploy::{Command, Order, State};
use orinoco::ota::state::{DeploymentId, Origin, Phase, Record, Want, When};
use orinoco::ota::{Digest, LineName, Reason, crash};
use orinoco_ota::intake::{Intake, add};
use orinoco_ota::repository::Repository;
use orinoco_ota::sign::{Expiry, sign};
use orinoco_ota::{example, keys, time};

use super::device::{Device, Running, memory};

/// Set for the process that dies: the folder of its updates, the repository, what is wanted, what models answer.
const CHILD: &str = "ORINOCO_UPDATE_CHILD";
const SIGABRT: i32 = 6;

fn line() -> LineName {
    LineName::new("tiny").unwrap()
}

fn want(deployment: &str, release_seq: u64) -> Command {
    Command::Want(Want {
        deployment: DeploymentId::new(deployment).unwrap(),
        line: line(),
        release_seq: Some(release_seq),
        when: When::Asap,
        window: None,
        max_kbit_s: 0,
        force: true,
        origin: Origin::Operator,
    })
}

/// What is asked of the device; the same after its restart, as a retained wish is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Play {
    /// Release 3, which works.
    Forward,
    /// Release 3, which answers wrong.
    Unfit,
    /// Back to the release before, with the mirror gone.
    Back,
}

impl Play {
    fn word(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Unfit => "unfit",
            Self::Back => "back",
        }
    }

    fn command(self) -> Command {
        match self {
            Self::Forward | Self::Unfit => want("d-3", 3),
            Self::Back => Command::Want(Want::rollback("now", line(), None)),
        }
    }

    fn deployment(self) -> String {
        match self.command() {
            Command::Want(want) => want.deployment.to_string(),
            _ => unreachable!("each play is a wish"),
        }
    }

    /// The release in service at the end, and why it is that one.
    fn end(self) -> (u64, Option<Reason>) {
        match self {
            Self::Forward => (3, None),
            Self::Unfit => (1, Some(Reason::ProbeGolden)),
            Self::Back => (1, Some(Reason::Cancelled)),
        }
    }
}

fn device(dir: &Path, repo: &Path, play: Play) -> Device {
    let source = match play {
        Play::Back => dir.join("no-such-mirror"),
        _ => repo.to_owned(),
    };
    let source = source.to_str().unwrap().to_owned();
    Device {
        answers: Arc::new(
            move |release| match play == Play::Unfit && release.release_seq == 3 {
                true => "42".into(),
                false => "b".into(),
            },
        ),
        ..Device::new(
            "n1",
            dir.to_owned(),
            source,
            repo.join("metadata/1.root.json"),
        )
    }
}

/// Lives until the deployment is over; says how, and what is in service then.
fn live(device: Device, command: Command, deployment: &str) -> (State, Vec<PathBuf>) {
    let is_over = |state: &State| {
        state.deployment.as_deref() == Some(deployment) && state.state.is_some_and(Phase::is_over)
    };
    live_until(device, command, is_over)
}

fn live_until(
    device: Device,
    command: Command,
    is_it: impl Fn(&State) -> bool,
) -> (State, Vec<PathBuf>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let Running {
            orders,
            mut state,
            mut told,
            in_service,
        } = device.start();
        tokio::task::spawn_local(async move { while told.recv().await.is_some() {} });
        let ticket = None;
        orders.send(Order { command, ticket }).await.unwrap();
        let found = state.wait_for(is_it).await.unwrap().clone();
        // What belongs to the step is done when the next order is heard.
        orders
            .send(Order {
                command: Command::Stop,
                ticket: None,
            })
            .await
            .unwrap();
        while orders.capacity() < orders.max_capacity() {
            tokio::task::yield_now().await;
        }
        let served = in_service.borrow().iter().map(|r| r.path.clone()).collect();
        (found, served)
    })
}

/// Not a test of its own: the process that dies.
#[test]
fn child_updates_until_it_dies() {
    let Ok(given) = std::env::var(CHILD) else {
        return;
    };
    let [dir, repo, play] = given.split('|').collect::<Vec<_>>()[..] else {
        panic!("{given}");
    };
    let play = [Play::Forward, Play::Unfit, Play::Back]
        .into_iter()
        .find(|known| known.word() == play)
        .unwrap();
    let device = device(Path::new(dir), Path::new(repo), play);
    live(device, play.command(), &play.deployment());
}

fn die(dir: &Path, repo: &Path, play: Play, place: &str) -> ExitStatus {
    Process::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "crash::child_updates_until_it_dies",
            "--nocapture",
        ])
        .env(
            CHILD,
            format!("{}|{}|{}", dir.display(), repo.display(), play.word()),
        )
        .env(crash::ENV, place)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap()
}

/// As it lies on the disk; opening it would count as a start of the daemon.
fn record(dir: &Path) -> Record {
    serde_json::from_slice(&fs::read(dir.join("state.json")).unwrap()).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => _ = fs::copy(entry.path(), to).unwrap(),
        }
    }
}

/// All files below, by their path in it.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

/// Takes from the disk what had not been synced when the power went at `place`.
fn lose_unsynced(dir: &Path, before: &Path, place: &str) {
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    for file in files(dir) {
        let name = name(&file);
        // Written beside what it replaces, and synced only from `:synced` on.
        if name.ends_with(".new") && place.ends_with(":written") {
            fs::write(&file, b"").unwrap();
        }
        // Never synced: which pieces are there, and how the sources did.
        if name.ends_with(".have") {
            let bytes = fs::metadata(&file).unwrap().len();
            fs::write(&file, vec![0; usize::try_from(bytes).unwrap()]).unwrap();
        }
        // Synced at the end of a deployment.
        if name == "journal.jsonl" && !place.ends_with(":after") {
            let bytes = fs::read(&file).unwrap();
            let whole = bytes[..bytes.len() - 1].iter().rposition(|b| *b == b'\n');
            let half = whole.map_or(0, |at| at + 1) + 10;
            fs::write(&file, &bytes[..half.min(bytes.len())]).unwrap();
        }
    }
    match place.split('#').next().unwrap() {
        "piece:written" => {
            let partial = files(&dir.join("partial"));
            let file = partial.iter().find(|file| name(file).len() == 64).unwrap();
            let mut bytes = fs::read(file).unwrap();
            bytes[1024..].fill(0);
            fs::write(file, bytes).unwrap();
        }
        // A rename whose folder was not synced.
        "blob:renamed" => {
            let known: BTreeSet<_> = files(&before.join("blobs"))
                .iter()
                .map(|f| name(f))
                .collect();
            let mut blobs = files(&dir.join("blobs"));
            blobs.retain(|file| !known.contains(&name(file)));
            fs::rename(&blobs[0], dir.join("partial").join(name(&blobs[0]))).unwrap();
        }
        place => {
            if let Some(file) = place.strip_suffix(":renamed") {
                let old = files(before).into_iter().find(|path| name(path) == file);
                let old = old.unwrap();
                fs::copy(&old, dir.join(old.strip_prefix(before).unwrap())).unwrap();
            }
        }
    }
}

/// Signs a release of a few kilobytes with this number, which the device fetches in several pieces.
fn publish(repository: &Repository, dir: &Path, seq: u8, change: impl FnOnce(&mut Intake)) {
    let id = format!("tiny-{seq}");
    let model = dir.join(format!("{id}.gguf"));
    fs::write(&model, example::tiny_gguf(seq)).unwrap();
    let mut intake = Intake::new(&model, id.parse().unwrap(), line());
    intake.licence = Some("CC0-1.0".into());
    intake.piece_bytes = 1024;
    change(&mut intake);
    add(repository, &intake).unwrap();
    let keys = keys::in_folders(&[dir.join("keys")]).unwrap();
    sign(repository, &keys, time::now(), Expiry::default()).unwrap();
}

struct Stage {
    dir: tempfile::TempDir,
    repo: PathBuf,
    /// Held: a process that another test is just starting has a copy of its lock for a moment.
    repository: Repository,
    /// Release 1 is in service, and release 3 was published since; for [`Play::Back`] release 3 is in service.
    before: PathBuf,
}

impl Stage {
    fn set(play: Play) -> Self {
        let dir = memory();
        let repository = example::make(dir.path(), time::now()).unwrap();
        let (repo, before) = (dir.path().join("repo"), dir.path().join("before"));
        let device = |play| device(&before, &repo, play);
        live(device(Play::Forward), want("d-1", 1), "d-1");
        let golden = vec![("Which letter comes after a?".into(), "b".into())];
        publish(&repository, dir.path(), 3, |intake| intake.golden = golden);
        if play == Play::Back {
            live(device(Play::Forward), want("d-3", 3), "d-3");
        }
        Self {
            dir,
            repo,
            repository,
            before,
        }
    }

    /// Dies at `place`, starts again, and comes to the end of the play.
    fn dies_and_comes_through(&self, play: Play, place: &str, loses: bool) {
        let dir = self.dir.path().join(format!("device-{loses}-{place}"));
        copy(&self.before, &dir);
        let status = die(&dir, &self.repo, play, place);
        assert_eq!(status.signal(), Some(SIGABRT), "{place}: {status}");
        if loses {
            lose_unsynced(&dir, &self.before, place);
        }
        // Whatever it was: what is told to be in service is here, and is one.
        assert_eq!(record(&dir).lines.len(), 1, "{place}");

        let (state, served) = live(
            device(&dir, &self.repo, play),
            play.command(),
            &play.deployment(),
        );
        let (release_seq, reason) = play.end();
        assert_eq!(state.reason, reason, "{place}: {state:?}");
        assert_eq!(state.lines.len(), 1, "{place}");
        assert_eq!(
            state.lines[0].active.release_seq, release_seq,
            "{place}: {state:?}"
        );
        // It is one, whole, and the right one; nothing is left but it and the one before.
        assert_eq!(served.len(), 1, "{place}");
        let digest = Digest::of(&fs::read(&served[0]).unwrap()).to_string();
        assert_eq!(
            served[0].file_name().unwrap().to_str(),
            Some(&*digest),
            "{place}"
        );
        let kept = record(&dir).kept();
        for folder in ["blobs", "partial", "manifests"] {
            for file in files(&dir.join(folder)) {
                let stem = file.file_stem().unwrap().to_str().unwrap();
                let is_kept = Digest::from_hex(stem).is_ok_and(|digest| kept.contains(&digest));
                assert!(is_kept, "{place}: {} is left", file.display());
            }
        }
        fs::remove_dir_all(dir).unwrap();
    }

    fn dies_everywhere(&self, play: Play, places: &[String]) {
        let different: BTreeSet<_> = places.iter().collect();
        assert_eq!(different.len(), places.len());
        for place in places {
            for loses in [false, true] {
                self.dies_and_comes_through(play, place, loses);
            }
        }
    }
}

fn saves(phases: &[&str]) -> Vec<String> {
    let both = |phase: &&str| {
        [
            format!("state:{phase}:before"),
            format!("state:{phase}:after"),
        ]
    };
    phases.iter().flat_map(both).collect()
}

fn replaced(names: &[&str]) -> Vec<String> {
    let steps = |name: &&str| ["written", "synced", "renamed"].map(|step| format!("{name}:{step}"));
    names.iter().flat_map(steps).collect()
}

fn named(places: &[&str]) -> Vec<String> {
    places.iter().map(ToString::to_string).collect()
}

#[test]
fn a_device_that_dies_at_any_place_of_an_update_has_the_new_release_in_the_end() {
    let saves = saves(&[
        "checking",
        "planned",
        "downloading",
        "verifying",
        "staged",
        "switching",
        "probing",
        "committed",
    ]);
    let trust = replaced(&[
        "targets.json",
        "snapshot.json",
        "timestamp.json",
        "floor.a",
        "floor.b",
    ]);
    let others = named(&[
        "journal:written",
        "check:trusted",
        "plan:manifest",
        "plan:pieces",
        "piece:written#2",
        "piece:synced#2",
        "piece:kept#2",
        "download:over",
        "file:hashed",
        "blob:sealed",
        "blob:renamed",
        "blob:synced",
        "verify:judged",
        "trial:offered",
        "trial:loaded",
        "trial:judged",
        "service:told#2",
        "trial:settled",
        "sweep:before#2",
        "sweep:blobs#2",
    ]);
    let places = [saves, replaced(&["state.json"]), trust, others].concat();
    assert!(places.len() >= 25, "{}", places.len());
    Stage::set(Play::Forward).dies_everywhere(Play::Forward, &places);
}

#[test]
fn a_device_that_dies_at_any_place_of_a_failed_probe_has_the_old_release_and_the_reason() {
    let saves = saves(&["switching", "probing", "rolling_back", "rolled_back"]);
    let others = named(&[
        "trial:loaded",
        "trial:judged",
        "rolling_back:before",
        "service:told#2",
        "sweep:before#2",
        "sweep:blobs#2",
    ]);
    Stage::set(Play::Unfit).dies_everywhere(Play::Unfit, &[saves, others].concat());
}

#[test]
fn a_device_that_dies_at_any_place_of_a_rollback_without_a_network_has_the_release_before() {
    let saves = saves(&["rolling_back", "rolled_back"]);
    let others = named(&[
        "journal:written",
        "rolling_back:before",
        "service:told#2",
        "sweep:before#2",
        "sweep:blobs#2",
    ]);
    let places = [saves, replaced(&["state.json"]), others].concat();
    Stage::set(Play::Back).dies_everywhere(Play::Back, &places);
}

#[test]
fn a_release_that_was_staged_by_a_newer_orinoco_is_not_tried_by_an_older_one() {
    let stage = Stage::set(Play::Forward);
    let manifest = stage.dir.path().join("tiny-4.json");
    fs::write(&manifest, r#"{"needs":{"min_engine_build":12000}}"#).unwrap();
    publish(&stage.repository, stage.dir.path(), 4, |intake| {
        intake.manifest = Some(manifest);
    });
    let of_build = |engine_build| Device {
        engine_build,
        ..device(&stage.before, &stage.repo, Play::Forward)
    };

    let (state, _) = live(of_build(11_999), want("early", 4), "early");
    assert_eq!(
        (state.state, state.reason),
        (Some(Phase::Failed), Some(Reason::IncompatibleEngine)),
        "{state:?}"
    );
    assert!(
        files(&stage.before.join("partial")).is_empty(),
        "nothing was fetched"
    );

    // Staged after Orinoco was updated; then the update of Orinoco was taken back.
    let Command::Want(want_4) = want("d-4", 4) else {
        unreachable!("it is a wish")
    };
    let staged = Command::Want(Want {
        when: When::StagedOnly,
        ..want_4
    });
    let waits = |state: &State| state.state == Some(Phase::Waiting);
    live_until(of_build(12_000), staged, waits);
    let (state, _) = live(of_build(11_999), Command::Activate, "d-4");
    assert_eq!(
        (state.state, state.reason),
        (Some(Phase::RolledBack), Some(Reason::IncompatibleEngine)),
        "{state:?}"
    );
    assert_eq!(state.lines[0].active.release_seq, 1);
    assert_eq!(
        record(&stage.before).failed,
        [],
        "the release is not to blame"
    );
    let (state, _) = live(of_build(12_000), want("d-5", 4), "d-5");
    assert_eq!(
        (state.state, state.lines[0].active.release_seq),
        (Some(Phase::Committed), 4),
        "{state:?}"
    );
}

#[test]
fn of_two_processes_one_has_the_updates_and_the_other_is_told() {
    let stage = Stage::set(Play::Forward);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let local = tokio::task::LocalSet::new();
    let child = |dir: &Path| {
        Process::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "crash::child_updates_until_it_dies",
                "--nocapture",
            ])
            .env(
                CHILD,
                format!("{}|{}|forward", dir.display(), stage.repo.display()),
            )
            .output()
            .unwrap()
    };
    local.block_on(&runtime, async {
        let _first = device(&stage.before, &stage.repo, Play::Forward).start();
        let second = child(&stage.before);
        let words = String::from_utf8_lossy(&second.stderr).into_owned();
        assert!(!second.status.success(), "{words}");
        assert!(words.contains("is held by another process"), "{words}");
    });
    drop(local);
    assert!(
        child(&stage.before).status.success(),
        "the first one has gone"
    );
    assert_eq!(record(&stage.before).lines[&line()].active.release_seq, 3);
}
