//! Reads what the system knows about the time. Judging it is [`super::time`]'s.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::time::Facts;

/// There once systemd-timesyncd has set the clock since the start.
const SYNCED: &str = "run/systemd/timesync/synchronized";
/// Touched by systemd-timesyncd at each contact with a server and at shutdown; its time survives a power cut.
const SAVED: &str = "var/lib/systemd/timesync/clock";

/// The facts below a root folder, `/` on a board; what is missing there is no evidence.
pub fn facts(root: &Path) -> Facts {
    Facts {
        system_s: seconds(SystemTime::now()),
        synced: root.join(SYNCED).exists(),
        saved_s: root
            .join(SAVED)
            .metadata()
            .and_then(|saved| saved.modified())
            .map(seconds)
            .ok(),
        issued_s: None,
        noted_s: None,
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::time::Duration;

    #[test]
    fn clock_is_synchronised_when_the_time_service_says_so() {
        let root = tempfile::tempdir().unwrap();
        let before = facts(root.path());
        assert!(!before.synced && before.saved_s.is_none());
        for file in [SYNCED, SAVED] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let file = File::create(path).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(1_800_000_000))
                .unwrap();
        }
        let after = facts(root.path());
        assert!(after.synced);
        assert_eq!(after.saved_s, Some(1_800_000_000));
        assert!(after.system_s > 1_700_000_000);
    }
}
