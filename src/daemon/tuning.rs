//! The fleet's settings in force: judged by the very reader of the configuration, laid between the defaults and
//! the device's own files, and handed to those who can take them while they run.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::settings;
use crate::config::{self, Config, Sources};
use crate::dispatch::Control;
use crate::governor::Update;
use crate::ota::deploy::site::Tuning;
use crate::ota::policy::Settings;

/// Judges settings and puts them in force.
pub(super) struct Tuner {
    /// As the daemon was started.
    sources: Sources,
    /// With what the parts run that take nothing while they run.
    started: Arc<Config>,
    /// In force.
    config: watch::Sender<Arc<Config>>,
}

/// The configuration with settings of the fleet below the device's own.
///
/// # Errors
/// All that is wrong, a sentence.
pub(super) fn load_with(sources: &Sources, settings: Option<&Settings>) -> Result<Config, String> {
    let mut sources = sources.clone();
    sources.fleet = settings.cloned();
    config::load(&sources).map_err(|error| error.to_string())
}

impl Tuner {
    pub(super) fn new(
        sources: Sources,
        started: Arc<Config>,
    ) -> (Self, watch::Receiver<Arc<Config>>) {
        let (config, tuned) = watch::channel(Arc::clone(&started));
        let tuner = Self {
            sources,
            started,
            config,
        };
        (tuner, tuned)
    }
}

impl Tuning for Tuner {
    fn judge(&self, settings: &Settings) -> Result<(), String> {
        // What is wrong without them is none of their faults.
        load_with(&self.sources, None).map_err(|why| format!("this device's own: {why}"))?;
        load_with(&self.sources, Some(settings)).map(|_| ())
    }

    fn apply(&mut self, settings: Option<&Settings>) -> Vec<String> {
        match load_with(&self.sources, settings) {
            Ok(config) => {
                let waiting = waiting(&self.started, &config);
                self.config.send_replace(Arc::new(config));
                waiting
            }
            Err(why) => {
                warn!(why, "the fleet's settings are not in force");
                Vec::new()
            }
        }
    }
}

/// Keys that differ and are read at the start alone.
fn waiting(started: &Config, now: &Config) -> Vec<String> {
    let is_live = |section: &str, key: &str| match section {
        "power" => key != "choose",
        "watchdog" => key != "enabled",
        // The store has opened its file for them.
        "requests" => key != "retention_seconds",
        section => section.starts_with("profiles."),
    };
    let differs = |entry: &&config::Entry| {
        let same =
            |other: &&config::Entry| other.section == entry.section && other.key == entry.key;
        let before = started.entries.iter().find(same);
        before.is_none_or(|before| before.value != entry.value)
    };
    let entries = now.entries.iter().filter(|entry| !entry.is_inherited);
    entries
        .filter(|entry| !is_live(&entry.section, entry.key))
        .filter(differs)
        .map(|entry| format!("{}.{}", entry.section, entry.key))
        .collect()
}

/// Hands on what changes, until the daemon ends.
pub(super) async fn hand_on(
    mut tuned: watch::Receiver<Arc<Config>>,
    governor: mpsc::Sender<Update>,
    dispatcher: mpsc::Sender<Control>,
) {
    while tuned.changed().await.is_ok() {
        let config = Arc::clone(&tuned.borrow_and_update());
        let to_governor = Update::Tuned(Box::new(settings::tuned(&config)));
        let to_dispatcher = Control::Tune(Box::new(settings::tuning(&config)));
        // Their ends are the daemon's.
        let _ = governor.send(to_governor).await;
        let _ = dispatcher.send(to_dispatcher).await;
    }
}
