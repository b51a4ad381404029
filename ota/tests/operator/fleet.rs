//! A fleet in one process: each device with a connection, a trust store and a place among the waves of its own, on
//! a real Mosquitto, with one mirror. Models are not loaded: which devices the release fails on is decided here.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use orinoco::link::{self, Inbound, Link, LinkConfig, Props, Publish};
use orinoco::ota::catalog::{Catalog, ReleaseState};
use orinoco::ota::manifest::Manifest;
use orinoco::ota::pieces::PieceTable;
use orinoco::ota::source::{Source, Terms};
use orinoco::ota::trust::{Client, Trust as _};
use orinoco::ota::waves::{is_within, place};
use orinoco::ota::{GroupName, LineName, TargetName};
use orinoco_ota::rollout::policy::Plan;
use orinoco_ota::rollout::{End, Reach, Rollout, run};
use orinoco_ota::sign::{Expiry, sign};
use orinoco_ota::{example, keys, releases, time};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{device, now};

const DESIRED: &str = "orinoco/v1/fleet/hall2/desired";

fn line() -> LineName {
    LineName::new("tiny").unwrap()
}

struct Mosquitto {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Mosquitto {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let conf = dir.path().join("conf");
        fs::write(
            &conf,
            format!("listener {port} 127.0.0.1\nallow_anonymous true\n"),
        )
        .unwrap();
        let program = ["/usr/sbin/mosquitto", "mosquitto"]
            .into_iter()
            .find(|program| !program.starts_with('/') || Path::new(program).exists())
            .unwrap();
        let child = Command::new(program)
            .arg("-c")
            .arg(&conf)
            .stderr(Stdio::null())
            .spawn()
            .expect("scripts/test.sh installs mosquitto");
        let give_up = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < give_up, "mosquitto does not listen");
            std::thread::yield_now();
        }
        Self {
            child,
            port,
            _dir: dir,
        }
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What all devices of a test have in common.
struct Shared {
    repo: PathBuf,
    root: PathBuf,
    folder: PathBuf,
    port: u16,
    /// Devices on which release 2 answers wrong.
    bad: Vec<String>,
    /// Bytes that the mirror was asked for.
    fetched_bytes: AtomicU64,
    /// Active release of each device, for the test to see.
    active: Mutex<std::collections::BTreeMap<String, u64>>,
}

struct Device {
    name: String,
    shared: Arc<Shared>,
    trust: Client,
    source: Source,
    link: Link,
    active: u64,
    deployment: Option<String>,
}

impl Device {
    /// Lives until the test ends.
    async fn run(name: String, shared: Arc<Shared>) {
        let (link, mut inbox) = link::spawn(LinkConfig {
            clean_start: true,
            session_expiry: Duration::ZERO,
            subscriptions: vec![DESIRED.into()],
            ..LinkConfig::new("127.0.0.1", shared.port, name.clone())
        });
        let mut device = Self {
            trust: device(&shared.folder.join(&name), &shared.root),
            source: Source::at(shared.repo.to_str().unwrap(), &Terms::default()).unwrap(),
            link,
            active: 1,
            deployment: None,
            name,
            shared,
        };
        device.tell("idle", None);
        while let Some(inbound) = inbox.recv().await {
            if let Inbound::Message(message) = inbound {
                if let Ok(desired) = serde_json::from_slice(&message.payload) {
                    device.hear(&desired);
                }
                device.link.try_ack(message.ack).unwrap();
            }
        }
    }

    fn hear(&mut self, desired: &Value) {
        let (seq, percent) = (&desired["release_seq"], &desired["percent"]);
        let (seq, percent) = (seq.as_u64().unwrap(), percent.as_u64().unwrap());
        let deployment = desired["deployment"].as_str().unwrap().to_owned();
        let is_turn = is_within(
            place(&self.name, &line(), seq),
            u8::try_from(percent).unwrap(),
        );
        if !is_turn || self.deployment.as_ref() == Some(&deployment) {
            return;
        }
        self.deployment = Some(deployment);
        match self.take(seq) {
            Ok(()) if seq == 2 && self.shared.bad.contains(&self.name) => {
                self.tell("rolled_back", Some("probe_golden"));
            }
            Ok(()) => {
                self.active = seq;
                self.tell("committed", None);
            }
            Err(reason) => self.tell("failed", Some(reason)),
        }
    }

    /// Trust, catalogue, manifest and pieces as devices have them.
    fn take(&mut self, seq: u64) -> Result<(), &'static str> {
        let refreshed = self.trust.refresh(&mut self.source, now());
        refreshed.map_err(|_| "signature")?;
        let catalog = self.read(&TargetName::catalog())?;
        let catalog = Catalog::parse(&catalog).map_err(|_| "bad_catalog")?;
        let line = catalog.line(&line()).ok_or("not_in_catalog")?;
        let release = line.release(seq).ok_or("not_in_catalog")?;
        if release.state == ReleaseState::Withdrawn {
            return Err("withdrawn");
        }
        if !line.allows(Some(self.active), seq) {
            return Err("downgrade_refused");
        }
        let manifest = self.read(&release.manifest_target())?;
        let manifest = Manifest::parse(&manifest).map_err(|_| "bad_catalog")?;
        let weights = manifest.weights();
        let table = self.read(&weights.pieces_target)?;
        let table = PieceTable::parse(&table, weights.bytes, weights.piece_bytes);
        let table = table.map_err(|_| "piece_mismatch")?;
        let model = self.read(&weights.target)?;
        let is_right = |idx| {
            let range = table.range(idx).unwrap();
            table.is_piece(idx, &model[range.start as usize..range.end as usize])
        };
        match (0..table.n_pieces()).all(is_right) {
            true => Ok(()),
            false => Err("piece_mismatch"),
        }
    }

    fn read(&mut self, name: &TargetName) -> Result<Vec<u8>, &'static str> {
        let target = self.trust.target(name, now()).map_err(|_| "signature")?;
        let target = target.ok_or("not_in_catalog")?;
        let file = format!("targets/{}", name.file_name(&target.digest));
        let bytes = self.source.get(&file, target.bytes);
        let bytes = bytes
            .map_err(|_| "source_unreachable")?
            .ok_or("source_unreachable")?;
        let fetched = &self.shared.fetched_bytes;
        fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        match orinoco::ota::Digest::of(&bytes) == target.digest {
            true => Ok(bytes),
            false => Err("digest_mismatch"),
        }
    }

    fn tell(&self, state: &str, reason: Option<&str>) {
        let mut active = self.shared.active.lock().unwrap();
        active.insert(self.name.clone(), self.active);
        drop(active);
        let state = json!({
            "deployment": self.deployment, "state": state, "reason": reason, "group": "hall2",
            "active": {"line": "tiny", "release_seq": self.active},
        });
        let publish = Publish {
            topic: format!("orinoco/v1/{}/ota/state", self.name),
            payload: state.to_string().into_bytes().into(),
            at_least_once: true,
            retain: true,
            props: Props::default(),
            token: None,
        };
        self.link.try_publish(publish).unwrap();
    }
}

/// A release in waves, at the failures of which it stops, and the way back.
fn fleet_takes_a_good_release_stops_at_a_bad_one_and_comes_back(n_devices: usize) {
    let dir = tempfile::tempdir().unwrap();
    let repository = example::make(dir.path(), time::now()).unwrap();
    let mosquitto = Mosquitto::start();
    let names: Vec<String> = (0..n_devices).map(|n| format!("press-{n}")).collect();
    let within = |percent| {
        let mut chosen = names.clone();
        chosen.retain(|name| is_within(place(name, &line(), 2), percent));
        chosen
    };
    // The release is fine on the devices of the first wave, and not on a tenth of the second.
    let first = within(10);
    let second: Vec<String> = within(40)
        .into_iter()
        .filter(|name| !first.contains(name))
        .collect();
    let bad: Vec<String> = second
        .iter()
        .take(n_devices.div_ceil(25))
        .cloned()
        .collect();
    assert!(!first.is_empty() && bad.len() >= 2, "{first:?} {bad:?}");
    let shared = Arc::new(Shared {
        repo: dir.path().join("repo"),
        root: dir.path().join("repo/metadata/1.root.json"),
        folder: dir.path().join("devices"),
        port: mosquitto.port,
        bad: bad.clone(),
        fetched_bytes: AtomicU64::new(0),
        active: Mutex::default(),
    });
    fs::create_dir(&shared.folder).unwrap();
    let (_stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let devices = (names.clone(), Arc::clone(&shared));
    std::thread::spawn(move || {
        let (names, shared) = devices;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            for name in names {
                tokio::spawn(Device::run(name, Arc::clone(&shared)));
            }
            let _ = stopped.await;
        });
    });

    let reach = Reach {
        host: "127.0.0.1".into(),
        port: mosquitto.port,
        root: "orinoco".into(),
        user: None,
        ca_file: None,
    };
    let roll_out = |release_seq, waves: &[u8], now_s| {
        let rollout = Rollout {
            line: line(),
            release_seq,
            group: GroupName::new("hall2").unwrap(),
            plan: Plan {
                waves: waves.to_vec(),
                failures_milli_max: 20,
                finished_percent_min: 100,
                settle: Duration::ZERO,
            },
            when: "asap".into(),
            window: None,
            max_kbit_s: 0,
            devices_min: n_devices,
            limit: Duration::from_secs(120),
        };
        let began = Instant::now();
        let end = run(&reach, &rollout, now_s).unwrap();
        (end, began.elapsed())
    };
    let on = |seq: u64| {
        let active = shared.active.lock().unwrap();
        active.values().filter(|active| **active == seq).count()
    };

    let (end, stopped_after) = roll_out(2, &[10, 40, 100], 1000);
    let End::Stopped {
        failed,
        targeted,
        percent,
        reasons,
    } = end
    else {
        panic!("{end:?}");
    };
    let n_took = on(2);
    assert_eq!(percent, 40);
    // It stops at 2 %, although others of the wave are still at it.
    assert!(
        failed * 1000 >= targeted * 20 && failed <= bad.len(),
        "{failed} of {targeted}"
    );
    assert_eq!(reasons[0].0, "probe_golden");
    assert!(
        n_took >= first.len() && n_took <= within(40).len(),
        "{n_took}"
    );

    releases::withdraw(&repository, &line(), 2, Some(1)).unwrap();
    let keys = keys::in_folders(&[dir.path().join("keys")]).unwrap();
    sign(&repository, &keys, time::now(), Expiry::default()).unwrap();
    let (end, back_after) = roll_out(1, &[100], 2000);
    assert_eq!(
        end,
        End::Done {
            done: n_devices,
            targeted: n_devices
        }
    );
    assert_eq!(on(1), n_devices);

    // The mended release goes to all.
    let mut mended = orinoco_ota::intake::Intake::new(
        &dir.path().join("tiny-1.gguf"),
        "tiny-3".parse().unwrap(),
        line(),
    );
    mended.licence = Some("CC0-1.0".into());
    mended.piece_bytes = 1024;
    orinoco_ota::intake::add(&repository, &mended).unwrap();
    sign(&repository, &keys, time::now(), Expiry::default()).unwrap();
    let (end, all_after) = roll_out(3, &[10, 40, 100], 3000);
    assert_eq!(
        end,
        End::Done {
            done: n_devices,
            targeted: n_devices
        }
    );
    assert_eq!(on(3), n_devices);
    eprintln!(
        "{n_devices} devices: stopped at {percent} % with {failed} of {targeted} failed, {n_took} had it, after {:.1} s; \
         all back after {:.1} s; the mended release on all in three waves after {:.1} s; {} KiB from the mirror",
        stopped_after.as_secs_f64(),
        back_after.as_secs_f64(),
        all_after.as_secs_f64(),
        shared.fetched_bytes.load(Ordering::Relaxed) / 1024
    );
}

#[test]
fn forty_devices_take_a_release_in_waves_stop_at_two_percent_and_are_recalled() {
    fleet_takes_a_good_release_stops_at_a_bad_one_and_comes_back(40);
}

/// Slow: behind `ORINOCO_FULL`.
#[test]
fn three_hundred_devices_take_a_release_in_waves_stop_at_two_percent_and_are_recalled() {
    if std::env::var_os("ORINOCO_FULL").is_some() {
        fleet_takes_a_good_release_stops_at_a_bad_one_and_comes_back(300);
    }
}
