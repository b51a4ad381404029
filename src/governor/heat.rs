//! Reads temperatures, cooling devices and over-current counters, once a second, on a thread of its own:
//! on a Jetson they come over slow buses.

use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{debug, warn};

use crate::board::thermal::{self, ThermalProbe};
use crate::board::throttle::OverCurrentProbe;
use crate::board::{Faults, Root};
use crate::selection::HeatReading;

/// Time between two readings; steps of heat are ten times as long.
const EVERY: Duration = Duration::from_secs(1);
/// Drivers that load late are looked for this often.
const FIND_EVERY: Duration = Duration::from_secs(60);

/// Starts reading. It ends when the receiver is dropped.
pub fn watch_heat(root: Root) -> watch::Receiver<HeatReading> {
    let (sender, receiver) = watch::channel(HeatReading::default());
    let named = thread::Builder::new().name("heat".into());
    if let Err(error) = named.spawn(move || read(&root, &sender)) {
        warn!(%error, "heat is not watched: its thread does not start");
    }
    receiver
}

fn read(root: &Root, sender: &watch::Sender<HeatReading>) {
    let mut probes = Probes::default();
    let mut looked_at: Option<Instant> = None;
    while !sender.is_closed() {
        if looked_at.is_none_or(|at| at.elapsed() >= FIND_EVERY) {
            probes.find_missing(root);
            looked_at = Some(Instant::now());
        }
        sender.send_replace(probes.read());
        // Nobody unparks it.
        thread::park_timeout(EVERY);
    }
}

#[derive(Default)]
struct Probes {
    thermal: ThermalProbe,
    over_current: Option<OverCurrentProbe>,
}

impl Probes {
    fn find_missing(&mut self, root: &Root) {
        let mut faults = Faults::default();
        if self.thermal.is_empty() {
            self.thermal = ThermalProbe::find(root, &mut faults);
        }
        if self.over_current.is_none() {
            self.over_current = OverCurrentProbe::find(root, &mut faults);
        }
        for fault in faults.iter() {
            debug!(%fault, "sensor");
        }
    }

    fn read(&mut self) -> HeatReading {
        // What cannot be read now is absent, and says neither hot nor cool.
        let mut faults = Faults::default();
        let zones = self.thermal.zones(&mut faults);
        let cooling = self.thermal.cooling(&mut faults);
        HeatReading {
            celsius: thermal::junction_millicelsius(&zones).map(|milli| milli as f32 / 1000.0),
            is_throttling: cooling.iter().any(thermal::Cooling::is_throttling),
            over_current: (self.over_current.as_mut()).map(|probe| probe.read(&mut faults)),
        }
    }
}
