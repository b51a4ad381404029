//! Orders and requests: what each does to the record, and what is answered.

use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::look::want;
use super::{Book, Closed, Command, Deploy, Order, Policy, Taken, Told, World};
use crate::ota::name::{Digest, LineName};
use crate::ota::state::{Heard, Origin, Phase, Record, Want};
use crate::ota::stick::Request;
use crate::ota::waves;

/// A request that somebody left on the device is looked for this often.
const REQUEST_EVERY: Duration = Duration::from_secs(2);

impl<W: World> Deploy<W> {
    /// An order while nothing runs that it could disturb.
    pub(super) async fn obey(&mut self, order: Order) -> Result<(), Closed> {
        if let Command::Heard(event_seq) = order.command {
            self.book.heard(event_seq);
            return Ok(());
        }
        let answer = match order.command {
            Command::Check => {
                self.look().await;
                match &self.failed_check {
                    None => Ok(None),
                    Some(no) => Err(format!("{}: {}", no.reason, no.detail)),
                }
            }
            Command::Scrub => {
                self.scrub_at = Some(Instant::now());
                Ok(None)
            }
            Command::RollbackPolicy => self.take_policy_back().await.map(|()| None),
            command => obey(&mut self.book.record, &command, &self.policy),
        };
        self.book
            .answer(&self.parts.told, order.ticket, answer)
            .await;
        self.save().await;
        Ok(())
    }
}

/// An order while something runs that would lose what it has done. True: the record is another one, and what runs
/// has to end.
pub(super) async fn obey_meanwhile(
    book: &mut Book,
    told: &mpsc::Sender<Told>,
    policy: &Policy,
    order: Order,
) -> bool {
    if let Command::Heard(event_seq) = order.command {
        book.heard(event_seq);
        return false;
    }
    let before = book.record.clone();
    let answer = obey(&mut book.record, &order.command, policy);
    book.answer(told, order.ticket, answer).await;
    book.record != before
}

/// What a command does to the record.
pub(super) fn obey(record: &mut Record, command: &Command, policy: &Policy) -> Taken {
    let line_of = |line: &Option<LineName>, record: &Record| {
        let only = || {
            record
                .lines
                .keys()
                .next()
                .filter(|_| record.lines.len() == 1)
                .cloned()
        };
        let line = line.clone().or_else(|| record.first.clone()).or_else(only);
        line.ok_or_else(|| "no release is on the device: name a line".to_owned())
    };
    let n_so_far = record.last.as_ref().map_or(0, |_| 1);
    match command {
        Command::Want(want) => hear(record, want),
        Command::Fleet { want, percent } => {
            let place = |seq| waves::place(&policy.device, &want.line, seq);
            let is_turn = |seq| waves::is_within(place(seq), *percent);
            match want.release_seq.is_none_or(is_turn) {
                true => hear(record, want),
                // Heard again when it is opened to more. Nothing is noted: a download goes on undisturbed.
                false => Ok(None),
            }
        }
        Command::Update(line) => {
            let line = line_of(line, record)?;
            let id = format!("update-{line}-{:x}", fresh(record, n_so_far));
            let want = Want {
                release_seq: None,
                ..want(&id, &line, 0, Origin::Operator)
            };
            let deployment = want.deployment.clone();
            record.want(want);
            Ok(Some(deployment))
        }
        Command::Pause => match record.enter(Phase::Paused) {
            true => Ok(None),
            false => Err("nothing is being downloaded".to_owned()),
        },
        Command::Resume => {
            match record.phase() == Some(Phase::Paused) && record.enter(Phase::Downloading) {
                true => Ok(None),
                false => Err("nothing is paused".to_owned()),
            }
        }
        Command::Cancel => match record.cancel() {
            true => Ok(None),
            false => Err("nothing is under way that could be called off".to_owned()),
        },
        Command::Activate => match &mut record.deployment {
            Some(now) if now.phase.is_open() => {
                now.is_approved = true;
                Ok(None)
            }
            _ => Err("nothing waits to be put into service".to_owned()),
        },
        Command::Rollback(line) => {
            let line = line_of(line, record)?;
            if record.previous(&line).is_none() {
                return Err(format!("{line} has no release before the one in service"));
            }
            let id = format!("{:x}", fresh(record, n_so_far));
            let want = Want::rollback(&id, line, None);
            let deployment = want.deployment.clone();
            record.want(want);
            Ok(Some(deployment))
        }
        Command::Stop => {
            record.stayed_up(false);
            Ok(None)
        }
        Command::Heard(_) => Ok(None),
        Command::WorkerDied(model) => {
            record.worker_died(model);
            Ok(None)
        }
        Command::Check | Command::Scrub | Command::RollbackPolicy => {
            Err("another update is under way".to_owned())
        }
    }
}

fn hear(record: &mut Record, want: &Want) -> Taken {
    match record.want(want.clone()) {
        Heard::Begun | Heard::Queued | Heard::Same => Ok(Some(want.deployment.clone())),
        Heard::Old => Err("a newer wish of the fleet was heard before".to_owned()),
    }
}

/// A number that no deployment of this record had: commands by hand have no names of their own.
fn fresh(record: &Record, salt: u64) -> u64 {
    let text = serde_json::to_vec(&(record, salt)).unwrap_or_default();
    let digest = Digest::of(&text);
    u64::from_be_bytes(digest.0[..8].try_into().expect("a digest has 32 bytes"))
}

/// The next request that somebody leaves on the device. Taken in the moment of its return, so that one is not
/// lost with a future that is dropped.
pub(super) async fn request(dir: Option<&Path>) -> Request {
    let Some(dir) = dir else {
        return std::future::pending().await;
    };
    loop {
        match Request::take(dir) {
            Ok(Some(request)) => return request,
            Ok(None) => {}
            Err(error) => warn!(%error, "a request for an update could not be read"),
        }
        sleep(REQUEST_EVERY).await;
    }
}
