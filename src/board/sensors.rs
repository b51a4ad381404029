//! All sensors of a board together: found once, read as one snapshot.
//!
//! A snapshot takes some milliseconds on a Jetson, since rails and temperatures come over slow buses; it
//! belongs on a thread that may wait, at the pace of telemetry. The watchdog's own readings,
//! [`super::memory::MemoryProbe`] and [`super::pressure::PressureProbe`], take microseconds.

use super::fan::{Fan, FanProbe};
use super::gpu::{Gpu, GpuNode, GpuProbe};
use super::rails::{self, Rail, RailsProbe};
use super::root::{Faults, Root};
use super::thermal::{Cooling, ThermalProbe, Zone};
use super::throttle::{OverCurrent, OverCurrentProbe};

/// What the sensors say now. What the board does not have is absent or empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The integrated GPU.
    pub gpu: Option<Gpu>,
    /// Thermal zones.
    pub zones: Vec<Zone>,
    /// Cooling devices.
    pub cooling: Vec<Cooling>,
    /// Power rails.
    pub rails: Vec<Rail>,
    /// Over-current counters.
    pub over_current: Option<OverCurrent>,
    /// The fan.
    pub fan: Option<Fan>,
    /// Files that were there and could not be used.
    pub faults: Faults,
}

/// Reads snapshots.
#[derive(Debug)]
pub struct Sensors {
    root: Root,
    gpu: Option<GpuProbe>,
    thermal: ThermalProbe,
    rails: RailsProbe,
    over_current: Option<OverCurrentProbe>,
    fan: Option<FanProbe>,
}

impl Sensors {
    /// Looks for everything; drivers that load later are found by [`Sensors::find_missing`].
    pub fn find(root: &Root, faults: &mut Faults) -> Self {
        let mut sensors = Self {
            root: root.clone(),
            gpu: None,
            thermal: ThermalProbe::default(),
            rails: RailsProbe::default(),
            over_current: None,
            fan: None,
        };
        sensors.find_missing(faults);
        sensors
    }

    /// Looks again for what was not there: on a Jetson the GPU's node appears seconds after boot. Some
    /// dozens of files; to be called rarely.
    pub fn find_missing(&mut self, faults: &mut Faults) {
        let root = &self.root;
        if self.gpu.is_none() {
            self.gpu = GpuNode::find(root, faults).map(|node| GpuProbe::new(root, &node));
        }
        if self.thermal.is_empty() {
            self.thermal = ThermalProbe::find(root, faults);
        }
        if self.rails.is_empty() {
            self.rails = RailsProbe::find(root, faults);
        }
        if self.over_current.is_none() {
            self.over_current = OverCurrentProbe::find(root, faults);
        }
        if self.fan.is_none() {
            self.fan = FanProbe::find(root, faults);
        }
    }

    /// Power of the module as it is now, mW: see [`rails::module_milliwatts`].
    pub fn module_milliwatts(&mut self) -> Option<i64> {
        rails::module_milliwatts(&self.rails.read(&mut Faults::default()))
    }

    /// Everything as it is now.
    pub fn read(&mut self) -> Snapshot {
        let mut faults = Faults::default();
        Snapshot {
            gpu: self.gpu.as_mut().map(|probe| probe.read(&mut faults)),
            zones: self.thermal.zones(&mut faults),
            cooling: self.thermal.cooling(&mut faults),
            rails: self.rails.read(&mut faults),
            over_current: self.over_current.as_mut().map(|p| p.read(&mut faults)),
            fan: self.fan.as_mut().map(|probe| probe.read(&mut faults)),
            faults,
        }
    }
}
