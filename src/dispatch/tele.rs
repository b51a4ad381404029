//! Telemetry: what the dispatcher counts, and publishing it beside what was read from the board.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::time::Instant;

use super::Dispatch;
use super::report::retained;
use crate::frames::OnDisk;
use crate::link::{Props, Publish};
use crate::telemetry::{Heard, Reading};
use crate::wire::request::Priority;
use crate::wire::telemetry::{QuantilesMs, TeleClass, TeleLlm, TeleQueue};

/// Longest time told apart from longer ones.
const LONGEST: Duration = Duration::from_secs(3600);
/// A reading that is this many intervals old is no news.
const EXPIRY_INTERVALS: u32 = 3;

/// Counts since the start, and times since the last publication.
pub(super) struct Meters {
    pub(super) n_accepted: u64,
    pub(super) n_refused: u64,
    pub(super) n_answered: u64,
    pub(super) n_failed: u64,
    pub(super) n_tokens: u64,
    pub(super) n_prompt: u64,
    pub(super) n_cached: u64,
    pub(super) n_guessed: u64,
    pub(super) n_right: u64,
    pub(super) n_deaths: u64,
    /// What the worker has on disk, with what all workers did there; `None`: nothing was ever saved.
    on_disk: Option<OnDisk>,
    /// What of it was done by those before.
    on_disk_before: OnDisk,
    /// Times that a stream made room for another.
    pub(super) n_parked: u64,
    n_tokens_before: u64,
    /// Time with at least one token a second or so, since the last publication.
    busy: Duration,
    last_step: Option<Instant>,
    ttft: Histogram<u64>,
    itl: Histogram<u64>,
    /// By class, in the order of [`Priority::ALL`].
    waits: [Histogram<u64>; 3],
    published: Instant,
}

impl Meters {
    pub(super) fn new() -> Self {
        let microseconds = || {
            let longest = LONGEST.as_micros() as u64;
            Histogram::new_with_bounds(1, longest, 2).expect("bounds and digits are in range")
        };
        Self {
            n_accepted: 0,
            n_refused: 0,
            n_answered: 0,
            n_failed: 0,
            n_tokens: 0,
            n_prompt: 0,
            n_cached: 0,
            n_guessed: 0,
            n_right: 0,
            n_deaths: 0,
            on_disk: None,
            on_disk_before: OnDisk::default(),
            n_parked: 0,
            n_tokens_before: 0,
            busy: Duration::ZERO,
            last_step: None,
            ttft: microseconds(),
            itl: microseconds(),
            waits: [microseconds(), microseconds(), microseconds()],
            published: Instant::now(),
        }
    }

    /// A step of the engine gave tokens.
    pub(super) fn step(&mut self, n_tokens: u64, now: Instant) {
        self.n_tokens += n_tokens;
        if let Some(last) = self.last_step.replace(now) {
            // A pause is not work; the rails' energy in it belongs to nobody.
            let gap = now - last;
            self.busy += if gap < Duration::from_secs(1) {
                gap
            } else {
                Duration::ZERO
            };
        }
    }

    /// What the worker has on disk, and what it did there since its start.
    pub(super) fn on_disk(&mut self, now: OnDisk) {
        let before = self.on_disk_before;
        self.on_disk = Some(OnDisk {
            written_bytes: before.written_bytes + now.written_bytes,
            n_restored: before.n_restored + now.n_restored,
            ..now
        });
    }

    /// Another worker begins to count anew.
    pub(super) fn on_next_worker(&mut self) {
        self.on_disk_before = self.on_disk.unwrap_or_default();
    }

    /// A request entered the engine for the first time.
    pub(super) fn entered(&mut self, class: Priority, after: Duration) {
        let classes = Priority::ALL.into_iter().zip(&mut self.waits);
        for (_, waits) in classes.filter(|(of, _)| *of == class) {
            waits.saturating_record(after.as_micros() as u64);
        }
    }

    pub(super) fn first_token(&mut self, after: Duration) {
        self.ttft.saturating_record(after.as_micros() as u64);
    }

    /// A piece of `n` tokens came so long after the one before; each took its part of that.
    pub(super) fn next_tokens(&mut self, n: usize, after: Duration) {
        let each = after.as_micros() as u64 / n.max(1) as u64;
        self.itl.saturating_record_n(each, n as u64);
    }
}

fn quantiles(times: &mut Histogram<u64>) -> Option<QuantilesMs> {
    if times.is_empty() {
        return None;
    }
    let ms = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
    let quantiles = QuantilesMs {
        p50: ms(0.5),
        p95: ms(0.95),
        p99: ms(0.99),
    };
    times.reset();
    Some(quantiles)
}

impl Dispatch {
    pub(super) fn on_telemetry(&mut self, heard: Heard) {
        let module_mw = match &heard {
            Heard::Board(reading) => reading.host.module_mw,
            Heard::Power { module_mw } => *module_mw,
        };
        let now = Instant::now();
        self.energy.advance(now, self.queue.running());
        self.energy.sampled(module_mw, now);
        if let Heard::Board(reading) = heard {
            self.node.sensed(&reading);
            self.publish_telemetry(*reading);
        }
    }

    /// Publishes all telemetry of this moment.
    fn publish_telemetry(&mut self, reading: Reading) {
        let at_ms = self.clock.now_ms();
        let expiry = reading.interval * EXPIRY_INTERVALS;
        let now = Instant::now();
        let meters = &mut self.meters;
        let seconds = (now - meters.published).as_secs_f64().max(1e-3);
        meters.published = now;
        let made = meters.n_tokens - meters.n_tokens_before;
        meters.n_tokens_before = meters.n_tokens;
        let busy_seconds = std::mem::take(&mut meters.busy).as_secs_f64();
        // mW times seconds are mJ.
        let energy = reading.host.module_mw.filter(|_| made > 0);
        let llm = TeleLlm {
            at_ms,
            model: self.node.serving().map(|(_, model)| model),
            streams_count: self.queue.running() as u64,
            tok_s: (made as f64 / seconds * 10.0).round() / 10.0,
            tokens_count: meters.n_tokens,
            prompt_tokens_count: meters.n_prompt,
            cached_tokens_count: meters.n_cached,
            guessed_tokens_count: (meters.n_guessed > 0).then_some(meters.n_guessed),
            guessed_right_count: (meters.n_guessed > 0).then_some(meters.n_right),
            saved_states_count: meters.on_disk.map(|now| u64::from(now.n_states)),
            saved_states_bytes: meters.on_disk.map(|now| now.bytes),
            saved_written_bytes: meters.on_disk.map(|now| now.written_bytes),
            saved_restored_tokens_count: meters.on_disk.map(|now| now.n_restored),
            ttft_ms: quantiles(&mut meters.ttft),
            itl_ms: quantiles(&mut meters.itl),
            energy_mj_tok: energy
                .map(|mw| (mw as f64 * busy_seconds / made as f64 * 10.0).round() / 10.0),
            turns_count: self.settings.has_turns().then_some(self.turns.n_turns),
            engine_deaths_count: meters.n_deaths,
        };
        let waiting = self
            .jobs
            .values()
            .filter(|job| self.queue.is_waiting(job.key));
        let oldest = waiting.map(|job| job.arrived).min();
        let queue = TeleQueue {
            at_ms,
            waiting_count: self.queue.waiting() as u64,
            running_count: self.queue.running() as u64,
            body_bytes: self.queued_bytes as u64,
            oldest_wait_ms: oldest.map(|arrived| (now - arrived).as_millis() as u64),
            accepted_count: self.meters.n_accepted,
            refused_count: self.meters.n_refused,
            answered_count: self.meters.n_answered,
            failed_count: self.meters.n_failed,
            parked_count: Some(self.meters.n_parked),
            classes: Some(self.classes()),
        };
        self.tell("host", &reading.host, expiry);
        if let Some(gpu) = &reading.gpu {
            self.tell("gpu", gpu, expiry);
        }
        self.tell("llm", &llm, expiry);
        self.tell("queue", &queue, expiry);
    }

    fn classes(&mut self) -> BTreeMap<String, TeleClass> {
        let jobs = &self.jobs;
        let running_in = |class| {
            let running = jobs.values().filter(|job| self.queue.is_running(job.key));
            running.filter(|job| job.priority() == class).count() as u64
        };
        let classes = Priority::ALL.into_iter().zip(&mut self.meters.waits);
        let told = classes.map(|(class, waits)| {
            let numbers = TeleClass {
                waiting_count: self.queue.waiting_in(class) as u64,
                running_count: running_in(class),
                wait_ms: quantiles(waits),
            };
            (class.as_str().to_owned(), numbers)
        });
        told.collect()
    }

    /// Numbers are worth one try: the next ones come soon.
    fn tell<T: Serialize>(&mut self, kind: &str, numbers: &T, expiry: Duration) {
        let document = retained(self.settings.names.tele(kind), numbers);
        let _ = self.link.try_publish(Publish {
            at_least_once: false,
            props: Props {
                message_expiry_s: Some(expiry.as_secs().max(1) as u32),
                ..document.props
            },
            ..document
        });
    }
}
