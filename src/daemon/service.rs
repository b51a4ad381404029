//! The daemon as a service of systemd: ready, alive, stopping, and one line on how it goes.
//!
//! Alive is said by the daemon's own task and never by a thread: at each third of the watchdog's interval it
//! asks the dispatcher how it goes, and the answer, which only a loop that turns can give, is what feeds the
//! watchdog, if [`Vigil`] does not doubt the worker. So a hang anywhere on the way is a missing `WATCHDOG=1`.

use std::future::Future;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tracing::{error, info};

use super::vigil::Vigil;
use crate::dispatch::{Control, Overview};
use crate::notify::Notifier;
use crate::wire::report::Mode;
use crate::worker::Pulse;

/// Feeds systemd while something else goes on.
pub(super) struct Service {
    notifier: Notifier,
    ticks: Option<Interval>,
    dispatcher: mpsc::Sender<Control>,
    asked: Option<oneshot::Receiver<Overview>>,
    worker: watch::Receiver<Pulse>,
    vigil: Vigil,
    stage: Stage,
    is_doubted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The dispatcher has not answered yet.
    Starting,
    /// It has.
    Ready,
    /// What is left to do ends by this time, and nobody is there to be asked.
    Closing(Instant),
}

impl Service {
    pub(super) fn new(
        notifier: Notifier,
        dispatcher: mpsc::Sender<Control>,
        worker: watch::Receiver<Pulse>,
    ) -> Self {
        let ticks = notifier.period().map(|period| {
            let mut ticks = tokio::time::interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        Self {
            notifier,
            ticks,
            dispatcher,
            asked: None,
            worker,
            vigil: Vigil::default(),
            stage: Stage::Starting,
            is_doubted: false,
        }
    }

    /// Does the work and tells systemd meanwhile. Says ready at the dispatcher's first answer.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tick(&mut self.ticks) => self.ask(),
                Some(overview) = answer(&mut self.asked) => self.hear(&overview),
            }
        }
    }

    /// The end begins and takes at most `limit`.
    pub(super) fn stopping(&mut self, limit: Duration) {
        self.notifier.stopping(limit);
    }

    /// The dispatcher ends now; the rest takes at most `limit`.
    pub(super) fn closing(&mut self, limit: Duration) {
        self.stage = Stage::Closing(Instant::now() + limit);
        self.notifier.status("ending");
    }

    fn ask(&mut self) {
        if let Stage::Closing(end) = self.stage {
            if Instant::now() < end {
                self.notifier.well();
            }
            return;
        }
        // One question at a time: a dispatcher that does not answer is not asked again.
        if self.asked.is_none() {
            let (question, asked) = oneshot::channel();
            if self.dispatcher.try_send(Control::Tell(question)).is_ok() {
                self.asked = Some(asked);
            }
        }
    }

    fn hear(&mut self, overview: &Overview) {
        if self.stage == Stage::Starting {
            self.stage = Stage::Ready;
            self.notifier.ready();
        }
        self.notifier.status(&line(overview));
        let pulse = *self.worker.borrow();
        match self.vigil.judge(pulse, Instant::now().into_std()) {
            Ok(()) => {
                if std::mem::take(&mut self.is_doubted) {
                    info!("the worker moves again; systemd is told that we are well");
                }
                self.notifier.well();
            }
            Err(stuck) => {
                if !std::mem::replace(&mut self.is_doubted, true) {
                    error!(%stuck, "systemd is no longer told that we are well, and will start us again");
                }
            }
        }
    }
}

/// Never, when nobody listens.
async fn tick(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => {
            ticks.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// The answer to the question, if one was asked; `None` when nobody will answer.
async fn answer(asked: &mut Option<oneshot::Receiver<Overview>>) -> Option<Overview> {
    match asked {
        Some(receiver) => {
            let overview = receiver.await.ok();
            *asked = None;
            overview
        }
        None => std::future::pending().await,
    }
}

/// For `systemctl status`: the broker, the model, the jobs.
fn line(overview: &Overview) -> String {
    let broker = match overview.is_connected {
        true => "broker connected",
        false => "no broker",
    };
    let model = overview.model.as_deref().unwrap_or("a model");
    let engine = match (overview.mode, overview.load_progress) {
        (Mode::Starting, _) => "starting".to_owned(),
        (Mode::Loading, Some(fraction)) => format!("loading {model} ({:.0} %)", fraction * 100.0),
        (Mode::Loading, None) => format!("loading {model}"),
        (Mode::Serving, _) => format!("serving {model}"),
        (Mode::Restarting, _) => format!("starting the engine again for {model}"),
        (Mode::Idle, _) => format!("{model} unloaded until somebody asks"),
        (Mode::NoModel, _) => "no model".to_owned(),
        (Mode::Draining, _) => "draining".to_owned(),
    };
    let jobs = format!(
        "{} running, {} waiting",
        overview.n_running, overview.n_waiting
    );
    match &overview.reason {
        Some(reason) => format!("{broker}; {engine}; {jobs}; {reason}"),
        None => format!("{broker}; {engine}; {jobs}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overview() -> Overview {
        Overview {
            is_connected: true,
            mode: Mode::Serving,
            model: Some("smol".into()),
            load_progress: None,
            reason: None,
            n_running: 3,
            n_waiting: 12,
        }
    }

    #[test]
    fn the_status_line_names_broker_model_and_jobs() {
        assert_eq!(
            line(&overview()),
            "broker connected; serving smol; 3 running, 12 waiting"
        );
        let loading = Overview {
            is_connected: false,
            mode: Mode::Loading,
            load_progress: Some(0.426),
            n_running: 0,
            ..overview()
        };
        assert_eq!(
            line(&loading),
            "no broker; loading smol (43 %); 0 running, 12 waiting"
        );
        let none = Overview {
            mode: Mode::NoModel,
            model: None,
            reason: Some("the engine was killed".into()),
            ..overview()
        };
        assert_eq!(
            line(&none),
            "broker connected; no model; 3 running, 12 waiting; the engine was killed"
        );
    }
}
