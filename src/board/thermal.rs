//! Temperatures and cooling below `/sys/class/thermal`.
//!
//! ```text
//!     thermal_zone8/type            tj-thermal
//!     thermal_zone8/temp            58937          thousandths of a degree
//!     thermal_zone8/trip_point_0_{type,temp}
//!     cooling_device3/{type,cur_state,max_state}
//! ```
//!
//! Zones are told apart by type, never by number. A block without power (`cv0-thermal` on a Nano, the GPU of
//! an idle AGX) answers `EAGAIN`, or an impossible cold: its temperature is absent, not zero.
//! `tj-thermal` is the hottest junction, the one to act on.

use super::root::{Faults, Probe, Root};

const CLASS: &str = "/sys/class/thermal";

/// Most trip points of a zone.
const TRIPS_MAX: usize = 16;

/// Below this a sensor is off; -256 °C is what Tegra's firmware answers then.
const MILLICELSIUS_MIN: i32 = -100_000;

/// The zone of the hottest junction on Orin.
pub const JUNCTION: &str = "tj-thermal";

/// One zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// Its type, e.g. `gpu-thermal`.
    pub name: String,
    /// Thousandths of a degree Celsius; absent while the block has no power.
    pub millicelsius: Option<i32>,
    /// Where the kernel acts, as the board's device tree says.
    pub trips: Vec<Trip>,
}

impl Zone {
    /// Degrees Celsius.
    pub fn celsius(&self) -> Option<f32> {
        // Thousandths of sane temperatures are exact in an f32.
        self.millicelsius.map(|milli| milli as f32 / 1000.0)
    }
}

/// A temperature at which the kernel acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trip {
    /// `active` (fan), `passive` (slower clocks), `hot`, `critical` (power off).
    pub kind: String,
    /// Thousandths of a degree Celsius.
    pub millicelsius: i32,
}

/// Something that cools: a fan, or a limit on clocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cooling {
    /// Its type, e.g. `pwm-fan`, `cpufreq-cpu0`, `devfreq-17000000.gpu`.
    pub name: String,
    /// 0: does nothing.
    pub state: u64,
    /// At full power.
    pub state_max: u64,
}

impl Cooling {
    /// Whether clocks are being held down now, as told from a fan that turns.
    pub fn is_throttling(&self) -> bool {
        self.state > 0 && !self.name.contains("fan")
    }
}

/// All zones and cooling devices, found once and read again and again.
#[derive(Debug, Default)]
pub struct ThermalProbe {
    zones: Vec<(Zone, Probe)>,
    cooling: Vec<(Cooling, Probe)>,
}

impl ThermalProbe {
    /// Looks for them.
    pub fn find(root: &Root, faults: &mut Faults) -> Self {
        let zones = root
            .names(CLASS, "thermal_zone")
            .into_iter()
            .filter_map(|entry| {
                let dir = format!("{CLASS}/{entry}");
                let zone = Zone {
                    name: faults.note(root.line(&format!("{dir}/type")))?,
                    millicelsius: None,
                    trips: trips(root, &dir, faults),
                };
                Some((zone, Probe::new(root, format!("{dir}/temp"))))
            })
            .collect();
        let cooling = root
            .names(CLASS, "cooling_device")
            .into_iter()
            .filter_map(|entry| {
                let dir = format!("{CLASS}/{entry}");
                let state_max = root.number(&format!("{dir}/max_state"), 0..=u64::MAX);
                let cooling = Cooling {
                    name: faults.note(root.line(&format!("{dir}/type")))?,
                    state: 0,
                    state_max: faults.note(state_max)?,
                };
                Some((cooling, Probe::new(root, format!("{dir}/cur_state"))))
            })
            .collect();
        Self { zones, cooling }
    }

    /// Whether the board has no zones.
    pub fn is_empty(&self) -> bool {
        self.zones.is_empty()
    }

    /// All zones as they are now.
    pub fn zones(&mut self, faults: &mut Faults) -> Vec<Zone> {
        let read = |(zone, probe): &mut (Zone, Probe)| {
            let milli = faults.note(probe.number(i32::MIN..=i32::MAX));
            Zone {
                millicelsius: milli.filter(|milli| *milli > MILLICELSIUS_MIN),
                ..zone.clone()
            }
        };
        self.zones.iter_mut().map(read).collect()
    }

    /// All cooling devices that answer.
    pub fn cooling(&mut self, faults: &mut Faults) -> Vec<Cooling> {
        let read = |(cooling, probe): &mut (Cooling, Probe)| {
            Some(Cooling {
                state: faults.note(probe.number(0..=u64::MAX))?,
                ..cooling.clone()
            })
        };
        self.cooling.iter_mut().filter_map(read).collect()
    }
}

fn trips(root: &Root, dir: &str, faults: &mut Faults) -> Vec<Trip> {
    let mut trips = Vec::new();
    for n in 0..TRIPS_MAX {
        let Some(kind) = faults.note(root.line(&format!("{dir}/trip_point_{n}_type"))) else {
            break;
        };
        let milli = root.number(&format!("{dir}/trip_point_{n}_temp"), i32::MIN..=i32::MAX);
        // Trips that are switched off read as an impossible cold.
        let milli = faults.note(milli).filter(|milli| *milli > MILLICELSIUS_MIN);
        trips.extend(milli.map(|millicelsius| Trip { kind, millicelsius }));
    }
    trips
}

/// The hottest junction: the zone that says so, else the hottest of all.
pub fn junction_millicelsius(zones: &[Zone]) -> Option<i32> {
    let junction = zones.iter().find(|zone| zone.name == JUNCTION);
    junction
        .and_then(|zone| zone.millicelsius)
        .or_else(|| zones.iter().filter_map(|zone| zone.millicelsius).max())
}
