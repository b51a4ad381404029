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

use orinoco::frames::{Command, Done, Event, Input, Job, JobKey, LoadSpec, Loaded, Token};
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
    let submits = jobs
        .iter()
        .map(|job| Command::Submit(Box::new(job.clone())));
    let told = run_commands(decoder, draft, spec, loaded, submits);
    let mut ends: Vec<Option<Done>> = vec![None; jobs.len()];
    let at = |job: JobKey| jobs.iter().position(|j| j.job == job).unwrap();
    let mut texts = vec![(Vec::new(), Vec::new(), String::new()); jobs.len()];
    for event in told {
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

/// The ids of inputs, as the loop makes them.
fn tokenized(
    decoder: &mut dyn Decoder,
    spec: &LoadSpec,
    loaded: &Loaded,
    inputs: &[Input],
) -> Vec<Vec<Token>> {
    let asked = (0..).map(JobKey).zip(inputs.iter().cloned());
    let asked = asked.map(|(job, input)| Command::Tokenize { job, input });
    let told = run_commands(decoder, None, spec, loaded, asked);
    let ids = told.into_iter().filter_map(|event| match event {
        Event::Tokenized { ids, .. } => Some(ids.unwrap()),
        _ => None,
    });
    ids.collect()
}

/// Gives a loop with a new cache these commands, and lets it end; what it told.
fn run_commands(
    decoder: &mut dyn Decoder,
    draft: Option<&mut dyn Decoder>,
    spec: &LoadSpec,
    loaded: &Loaded,
    asked: impl IntoIterator<Item = Command>,
) -> Receiver<Event> {
    let (commands, command_receiver) = sync_channel(64);
    let (events, told) = sync_channel(100_000);
    for command in asked.into_iter().chain([Command::Drain]) {
        commands.send(command).unwrap();
    }
    run_loop(decoder, draft, spec, loaded, &command_receiver, &events);
    told
}

/// Runs a loop with a new cache beside `teller`, who hears what it tells, and ends it.
fn run_beside<T: Send>(
    decoder: &mut dyn Decoder,
    spec: &LoadSpec,
    loaded: &Loaded,
    teller: impl FnOnce(SyncSender<Command>, Receiver<Event>) -> T + Send,
) -> T {
    let (commands, command_receiver) = sync_channel(64);
    let (events, told) = sync_channel(1000);
    std::thread::scope(|scope| {
        let teller = scope.spawn(move || teller(commands, told));
        run_loop(decoder, None, spec, loaded, &command_receiver, &events);
        teller.join().unwrap()
    })
}

fn run_loop(
    decoder: &mut dyn Decoder,
    draft: Option<&mut dyn Decoder>,
    spec: &LoadSpec,
    loaded: &Loaded,
    commands: &Receiver<Command>,
    events: &SyncSender<Event>,
) {
    orinoco_engine::run::run(decoder, draft, spec, loaded.clone(), None, commands, events).unwrap();
}
