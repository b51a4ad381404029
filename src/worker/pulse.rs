//! What the keeper is at, for whoever judges from outside whether it still gets anywhere.

use std::time::Duration;

use tokio::sync::watch;

/// What the keeper is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// A worker was started and loads a model.
    Loading,
    /// A worker serves, or is idle: it answers pings between two decodes.
    Serving,
    /// A worker is being ended, or has ended and is being buried.
    Ending,
    /// A dead worker is started again in a moment.
    Pausing,
    /// There is to be no worker.
    Resting,
}

/// One look at the keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulse {
    /// What it is at.
    pub doing: Doing,
    /// Rises with each frame of the worker, and whenever the keeper turns to something else.
    pub beat: u64,
    /// The keeper itself does something about it when nothing moves for this long; `None`: nothing need move.
    pub patience: Option<Duration>,
}

/// The keeper's end. Nobody waits for changes: readers look when they like.
#[derive(Debug, Clone)]
pub(super) struct Pulser(watch::Sender<Pulse>);

impl Pulser {
    pub(super) fn new() -> (Self, watch::Receiver<Pulse>) {
        let (pulser, pulse) = watch::channel(Pulse {
            doing: Doing::Resting,
            beat: 0,
            patience: None,
        });
        (Self(pulser), pulse)
    }

    /// Turns to something that is over, or moves on, within `patience`.
    pub(super) fn turn_to(&self, doing: Doing, patience: Option<Duration>) {
        self.0.send_modify(|pulse| {
            *pulse = Pulse {
                doing,
                beat: pulse.beat + 1,
                patience,
            }
        });
    }

    /// The worker was heard of.
    pub(super) fn beat(&self) {
        self.0.send_modify(|pulse| pulse.beat += 1);
    }
}
