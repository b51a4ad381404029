//! What systemd is told about this process, sd_notify(3); the only home of the crate sd-notify.
//!
//! Owns the words on `NOTIFY_SOCKET` and the last status line. Never decides whether the process is well.
//! Started by a person there is no such socket, and every call does nothing. The children of a process do
//! not inherit the socket (`process::tie`): they are nobody that systemd asked.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

/// Longest status line, in bytes; systemd shows it in one line of `systemctl status`.
const STATUS_BYTES_MAX: usize = 300;

/// The way to systemd, if it started this process.
#[derive(Debug)]
pub struct Notifier {
    is_heard: bool,
    watchdog: Option<Duration>,
    /// As told last.
    status: String,
}

impl Notifier {
    /// From `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub fn from_environment() -> Self {
        Self {
            is_heard: std::env::var_os("NOTIFY_SOCKET").is_some_and(|path| !path.is_empty()),
            watchdog: sd_notify::watchdog_enabled(),
            status: String::new(),
        }
    }

    /// How often to look whether something is to be told: thrice in each interval of the watchdog, so that
    /// one late turn costs nothing, and every few seconds for the status. `None`: nobody listens.
    pub fn period(&self) -> Option<Duration> {
        const STATUS_PERIOD: Duration = Duration::from_secs(5);
        const SHORTEST: Duration = Duration::from_millis(20);
        let period = self.watchdog.map_or(STATUS_PERIOD, |interval| interval / 3);
        self.is_heard.then(|| period.clamp(SHORTEST, STATUS_PERIOD))
    }

    /// The service serves.
    pub fn ready(&mut self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// One line for `systemctl status`. The same line again is not sent.
    pub fn status(&mut self, line: &str) {
        let line = one_line(line);
        if line != self.status {
            self.tell(&[NotifyState::Status(&line)]);
            self.status = line;
        }
    }

    /// The process is well: the watchdog starts anew.
    pub fn well(&self) {
        if self.watchdog.is_some() {
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    /// The end has begun and takes at most `limit`, whatever `TimeoutStopSec` says.
    pub fn stopping(&mut self, limit: Duration) {
        let usec = u32::try_from(limit.as_micros()).unwrap_or(u32::MAX);
        self.tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(usec)]);
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if !self.is_heard {
            return;
        }
        if let Err(error) = sd_notify::notify(states) {
            // Its watchdog will say so; we have nobody else to complain to.
            debug!(%error, "systemd was not told");
        }
    }
}

/// A message to systemd has a line for each variable: a reason that holds a line break would be one more.
fn one_line(text: &str) -> String {
    let mut line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if line.len() > STATUS_BYTES_MAX {
        let mut cut = STATUS_BYTES_MAX - '…'.len_utf8();
        while !line.is_char_boundary(cut) {
            cut -= 1;
        }
        line.truncate(cut);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_cannot_say_anything_else_than_a_status() {
        assert_eq!(
            one_line("no model:\nMAINPID=1\r\n"),
            "no model: MAINPID=1  "
        );
    }

    #[test]
    fn a_long_status_is_cut_between_characters() {
        let line = one_line(&"ä".repeat(200));
        assert_eq!(line.len(), 299);
        assert!(line.ends_with("ä…"));
        assert_eq!(one_line("short"), "short");
    }

    #[test]
    fn a_process_that_systemd_did_not_start_says_nothing() {
        let notifier = Notifier {
            is_heard: false,
            watchdog: None,
            status: String::new(),
        };
        assert_eq!(notifier.period(), None);
    }

    #[test]
    fn the_watchdog_is_fed_thrice_in_its_interval() {
        let heard = |watchdog| Notifier {
            is_heard: true,
            watchdog,
            status: String::new(),
        };
        let period = |seconds| heard(Some(Duration::from_secs(seconds))).period();
        assert_eq!(period(3), Some(Duration::from_secs(1)));
        assert_eq!(period(600), Some(Duration::from_secs(5)));
        assert_eq!(heard(None).period(), Some(Duration::from_secs(5)));
    }
}
