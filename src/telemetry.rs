//! Reads the board for telemetry, every few seconds, on a thread of its own; while requests run also the
//! module's power, four times a second.
//!
//! Owns: the sensors and their pace. Never does: MQTT; what it read goes to `dispatch`, which publishes it
//! with its own numbers. Rails and temperatures come over slow buses and may take milliseconds, which is why
//! this is a thread; when nobody takes a reading it is dropped, since the next one replaces it.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use crate::board::power::PowerProbe;
use crate::board::pressure::PressureProbe;
use crate::board::sensors::{Sensors, Snapshot};
use crate::board::{Faults, Root, identity, memory, rails};
use crate::wire::telemetry::{TeleGpu, TeleHost};

/// Drivers that load late are looked for this often.
const FIND_EVERY: Duration = Duration::from_secs(60);

/// Power is read this often while requests run.
const POWER_EVERY: Duration = Duration::from_millis(250);

/// What the dispatcher gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// Everything, for publication.
    Board(Box<Reading>),
    /// The module's power; `None` where it cannot be read, now or ever.
    Power {
        /// Milliwatts.
        module_mw: Option<i64>,
    },
}

/// What is to be read.
#[derive(Debug, Clone, Copy)]
enum Turn {
    Board,
    Power,
}

/// What was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The board.
    pub host: TeleHost,
    /// Its GPU, if it has one of the kind that can be read.
    pub gpu: Option<TeleGpu>,
    /// Since the reading before.
    pub interval: Duration,
}

/// Starts reading; must be called in a runtime. It ends when the receiver is dropped. `busy` says whether
/// requests run.
pub fn spawn(
    root: Root,
    interval: Duration,
    mut busy: watch::Receiver<bool>,
) -> mpsc::Receiver<Heard> {
    let (sender, receiver) = mpsc::channel(1);
    // One turn may wait; a thread that is behind misses some.
    let (turns, turn_queue) = std::sync::mpsc::sync_channel(1);
    let (closed, thread_sender) = (sender.clone(), sender);
    let named = thread::Builder::new().name("telemetry".into());
    if let Err(error) = named.spawn(move || read(&root, interval, &turn_queue, &thread_sender)) {
        warn!(%error, "no telemetry: its thread does not start");
    }
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut power_ticks = tokio::time::interval(POWER_EVERY);
        power_ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let runs = *busy.borrow_and_update();
            let turn = tokio::select! {
                _ = ticks.tick() => Turn::Board,
                _ = power_ticks.tick(), if runs => Turn::Power,
                changed = busy.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    power_ticks.reset_immediately();
                    continue;
                }
                () = closed.closed() => return,
            };
            let _ = turns.try_send(turn);
        }
    });
    receiver
}

fn read(
    root: &Root,
    interval: Duration,
    turns: &std::sync::mpsc::Receiver<Turn>,
    sender: &mpsc::Sender<Heard>,
) {
    let mut faults = Faults::default();
    let mut sensors = Sensors::find(root, &mut faults);
    let mut stalls = PressureProbe::new(root);
    let mut power = PowerProbe::new(root, identity::read(root, &mut faults).module);
    for fault in faults.iter() {
        debug!(%fault, "sensor");
    }
    let mut since_find = Duration::ZERO;
    while let Ok(turn) = turns.recv() {
        if matches!(turn, Turn::Power) {
            let module_mw = sensors.module_milliwatts();
            let _ = sender.try_send(Heard::Power { module_mw });
            continue;
        }
        if since_find >= FIND_EVERY {
            sensors.find_missing(&mut Faults::default());
            since_find = Duration::ZERO;
        }
        let snapshot = sensors.read();
        let at_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64);
        let mut host = host_of(&snapshot, at_ms);
        if let Ok(memory) = memory::read(root) {
            host.memory_total_bytes = Some(memory.total_bytes);
            host.memory_available_bytes = Some(memory.available_bytes);
            host.swap_used_bytes = memory
                .swap_used_bytes()
                .filter(|_| memory.swap_total_bytes > Some(0));
            host.cma_free_bytes = memory
                .cma_free_bytes
                .filter(|_| memory.cma_total_bytes > Some(0));
        }
        if let Ok(Some(stalls)) = stalls.read() {
            host.memory_stall_some_percent = Some(stalls.some.avg10_percent);
            host.memory_stall_full_percent = stalls.full.map(|full| full.avg10_percent);
        }
        host.supervisor_rss_bytes = own_rss_bytes();
        host.power_mode = power
            .read(None)
            .effective_mode()
            .map(|mode| mode.name.clone());
        let gpu = snapshot.gpu.as_ref().map(|gpu| TeleGpu {
            at_ms,
            load_percent: gpu.load_permille.map(|permille| f32::from(permille) / 10.0),
            clock_mhz: gpu.hz.map(|hz| hz / 1_000_000),
            clock_max_mhz: gpu.hz_max.map(|hz| hz / 1_000_000),
        });
        // Full: the dispatcher has not taken the last one, and then this one is of no use either.
        let _ = sender.try_send(Heard::Board(Box::new(Reading {
            host,
            gpu,
            interval,
        })));
        since_find += interval;
    }
}

fn host_of(snapshot: &Snapshot, at_ms: u64) -> TeleHost {
    let zones = snapshot.zones.iter();
    let cooling = snapshot.cooling.iter().filter(|device| device.state > 0);
    let over_current = snapshot.over_current.as_ref();
    let counts = over_current.into_iter().flat_map(|counts| {
        [
            ("under_voltage", counts.under_voltage),
            ("average", counts.average),
            ("instantaneous", counts.instantaneous),
        ]
    });
    TeleHost {
        at_ms,
        temperatures_c: zones
            .filter_map(|zone| Some((zone.name.clone(), zone.celsius()?)))
            .collect(),
        rails_mw: snapshot
            .rails
            .iter()
            .filter_map(|rail| Some((rail.name.clone(), rail.milliwatts()?)))
            .collect(),
        module_mw: rails::module_milliwatts(&snapshot.rails),
        cooling_steps: cooling
            .map(|device| (device.name.clone(), device.state))
            .collect(),
        over_current_count: counts
            .filter_map(|(kind, count)| Some((kind.to_owned(), count?)))
            .collect(),
        fan_rpm: snapshot.fan.as_ref().and_then(|fan| fan.rpm),
        ..TeleHost::default()
    }
}

/// Resident bytes of this process, of this machine whatever the root.
fn own_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
