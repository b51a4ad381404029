//! The fan, where the carrier board has one.

use super::hwmon;
use super::root::{Faults, Probe, Root};

/// The fan now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fan {
    /// Drive, 0 to 255.
    pub pwm: Option<u8>,
    /// Turns a minute.
    pub rpm: Option<u32>,
}

/// Reads the fan again and again.
#[derive(Debug)]
pub struct FanProbe {
    pwm: Option<Probe>,
    rpm: Option<Probe>,
}

impl FanProbe {
    /// Looks for the fan; `None` on boards without one.
    pub fn find(root: &Root, faults: &mut Faults) -> Option<Self> {
        let mut probe = |chip: &str, files: &[&str]| {
            let chip = hwmon::chips(root, &[chip], faults).into_iter().next()?;
            let file = files
                .iter()
                .map(|file| format!("{chip}/{file}"))
                .find(|path| root.exists(path))?;
            Some(Probe::new(root, file))
        };
        let pwm = probe("pwmfan", &["pwm1"]);
        // L4T's driver says `rpm`, the kernel's own `fan1_input`.
        let rpm = probe("pwm_tach", &["rpm", "fan1_input"]);
        (pwm.is_some() || rpm.is_some()).then_some(Self { pwm, rpm })
    }

    /// The fan now.
    pub fn read(&mut self, faults: &mut Faults) -> Fan {
        let pwm = self.pwm.as_mut();
        let rpm = self.rpm.as_mut();
        Fan {
            pwm: pwm.and_then(|probe| faults.note(probe.number(0..=u8::MAX))),
            rpm: rpm.and_then(|probe| faults.note(probe.number(0..=1_000_000))),
        }
    }
}
