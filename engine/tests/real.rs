//! The loop with real models, in this process: the engine's promises against llama.cpp itself.
//!
//! One process has one backend, so the tests of this file share it and take turns.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests; shares are reported"
)]

mod common;
#[path = "real/decoder.rs"]
mod decoder;
#[path = "real/encoder.rs"]
mod encoder;
#[path = "real/mask_speed.rs"]
mod mask_speed;
#[path = "real/plan.rs"]
mod plan;
#[path = "real/samplers.rs"]
mod samplers;
#[path = "real/streams.rs"]
mod streams;
#[path = "real/structured.rs"]
mod structured;

use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use orinoco::frames::{Command, Done, Event, Job, JobKey, LoadSpec, Loaded};
use orinoco_engine::llama::LlamaLoader;
use orinoco_engine::model::{Decoder, Loader};

static NEVER_CLOSED: AtomicBool = AtomicBool::new(false);
static BACKEND: Mutex<()> = Mutex::new(());

/// The only backend, for as long as the guard lives.
fn backend() -> (MutexGuard<'static, ()>, LlamaLoader) {
    let guard = BACKEND.lock().unwrap_or_else(PoisonError::into_inner);
    (guard, LlamaLoader::new(&NEVER_CLOSED).unwrap())
}

/// Calls `play` with the model's decoder.
fn with_decoder(spec: &LoadSpec, play: impl FnOnce(&mut dyn Decoder, Loaded)) {
    let (_guard, mut loader) = backend();
    let mut play = Some(play);
    loader
        .with_model(spec, &mut |_| true, &mut |decoder, _, loaded| {
            play.take().unwrap()(decoder, loaded);
        })
        .unwrap();
    assert!(play.is_none());
}

/// Submits `jobs` at once to a loop with a new cache; their ends, in order.
fn run_jobs(
    decoder: &mut dyn Decoder,
    spec: &LoadSpec,
    loaded: &Loaded,
    jobs: &[Job],
) -> Vec<Done> {
    run_drafted_jobs(decoder, None, spec, loaded, jobs)
}

/// As [`run_jobs`], with a draft model.
fn run_drafted_jobs(
    decoder: &mut dyn Decoder,
    draft: Option<&mut dyn Decoder>,
    spec: &LoadSpec,
    loaded: &Loaded,
    jobs: &[Job],
) -> Vec<Done> {
    let (commands, command_receiver): (SyncSender<Command>, Receiver<Command>) = sync_channel(64);
    let (events, event_receiver) = sync_channel(100_000);
    for job in jobs {
        commands
            .send(Command::Submit(Box::new(job.clone())))
            .unwrap();
    }
    commands.send(Command::Drain).unwrap();
    let loaded = loaded.clone();
    orinoco_engine::run::run(decoder, draft, spec, loaded, &command_receiver, &events).unwrap();
    drop(events);
    let mut ends: Vec<Option<Done>> = vec![None; jobs.len()];
    let at = |job: JobKey| jobs.iter().position(|j| j.job == job).unwrap();
    let mut texts = vec![(Vec::new(), Vec::new(), String::new()); jobs.len()];
    for event in event_receiver {
        match event {
            Event::Step { pieces, .. } => {
                for piece in pieces {
                    let (ids, logprobs, text) = &mut texts[at(piece.job)];
                    ids.extend(piece.ids);
                    logprobs.extend(piece.logprobs);
                    text.push_str(&piece.text);
                }
            }
            Event::Done(mut done) => {
                let i = at(done.job);
                let (mut ids, mut logprobs, mut text) = std::mem::take(&mut texts[i]);
                ids.append(&mut done.ids);
                logprobs.append(&mut done.logprobs);
                text.push_str(&done.text);
                (done.ids, done.logprobs, done.text) = (ids, logprobs, text);
                assert!(ends[i].replace(*done).is_none(), "one Done a job");
            }
            _ => {}
        }
    }
    // A loop ends with its cache as it was; the next one begins with an empty account of it.
    for seq in 0..decoder.limits().n_seq_max {
        decoder.seq_rm(seq, 0);
    }
    Vec::from_iter(ends.into_iter().map(|end| end.expect("one Done a job")))
}
