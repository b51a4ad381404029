//! The life of a worker: Hello, then Load, sandbox, serve, exit; or Plan, sandbox, answer, exit; or Check,
//! sandbox, judge, exit. Shared by the product and the scripted binary.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};
use std::time::{Duration, Instant};

use orinoco::frames::codec::{read_frame, write_frame};
use orinoco::frames::{CheckSpec, Command, Event, Hello, LoadSpec, Loaded, PROTOCOL, Task};
use tracing_subscriber::EnvFilter;

use crate::archive::Archive;
use crate::model::{LoadError, Loader, Planner};
use crate::process::{
    Arguments, adopt, arguments, die_with_parent, hold_back, offer_to_oom_killer, take_output_file,
};
use crate::{archive, embed, grammar, pipe, run, sandbox};

/// Set when the supervisor is gone.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// At most this often is the supervisor told how far a load is.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

const SANDBOX_OFF: &str = "engine.sandbox = \"off\" runs without it, for debugging";

/// The `main` of a worker binary.
///
/// `make_loader` runs on this thread after the first command and before any other thread exists, so
/// it may set environment variables; it gets the flag that stops decodes.
pub fn main<L: Loader>(
    llama: &str,
    backends: Vec<String>,
    make_loader: impl FnOnce(&LoadSpec, &'static AtomicBool) -> Result<L, LoadError>,
) -> ExitCode {
    log_to_stderr();
    end_on_panic();
    let states = take_output_file();
    let hello = Hello {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        llama: llama.to_owned(),
        backends,
    };
    match arguments(std::env::args().skip(1)).and_then(|arguments| {
        if let Arguments::Serve(fd) = arguments {
            die_with_parent()?;
            return adopt(fd).map(Some);
        }
        Ok(None)
    }) {
        Ok(Some(stream)) => {
            offer_to_oom_killer();
            serve(stream, hello, states, make_loader)
        }
        Ok(None) => {
            tracing::info!(version = %hello.version, llama = %hello.llama, backends = ?hello.backends, "orinoco-engine");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!("failed to {error}");
            ExitCode::from(2)
        }
    }
}

fn serve<L: Loader>(
    mut stream: UnixStream,
    hello: Hello,
    states: Option<File>,
    make_loader: impl FnOnce(&LoadSpec, &'static AtomicBool) -> Result<L, LoadError>,
) -> ExitCode {
    let build = format!("orinoco {}, {}", hello.version, hello.llama);
    let first =
        write_frame(&mut stream, &Event::Hello(hello)).and_then(|()| read_frame(&mut stream));
    let order = match first {
        Ok(Some(Command::Load(spec))) => Order::Serve(spec),
        Ok(Some(Command::Plan(spec))) => Order::Plan(spec),
        Ok(Some(Command::Check(spec))) => return judge(stream, &spec),
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(_)) => {
            tracing::error!("the first command is neither Load, Plan nor Check");
            return ExitCode::FAILURE;
        }
        Err(error) => {
            tracing::error!(%error, "no first command");
            return ExitCode::FAILURE;
        }
    };
    // Nothing of the model was read yet, and no other thread exists.
    let sandbox = match sandbox::enter(order.load(), states.as_ref()) {
        Ok(sandbox) => sandbox,
        Err(error) => return refuse(stream, &format!("failed to {error}; {SANDBOX_OFF}")),
    };
    if let Err(error) = write_frame(&mut stream, &Event::Sandboxed(sandbox)) {
        tracing::error!(%error, "the supervisor is gone");
        return ExitCode::FAILURE;
    }
    let loader = make_loader(order.load(), &CLOSED);
    let pipe = match pipe::start(stream, &CLOSED) {
        Ok(pipe) => pipe,
        Err(error) => {
            tracing::error!(%error, "the socket's threads did not start");
            return ExitCode::FAILURE;
        }
    };
    let mut states = states;
    let served = loader.and_then(|mut loader| match &order {
        Order::Serve(spec) if spec.task == Task::Embed => {
            let mut progress = Progress::new(&pipe.events);
            loader.with_encoder(
                spec,
                &mut |fraction| progress.report(fraction),
                &mut |encoder, loaded| embed::run(encoder, loaded, &pipe.commands, &pipe.events),
            )
        }
        Order::Serve(spec) => {
            let mut ran = Ok(());
            let mut progress = Progress::new(&pipe.events);
            loader.with_model(
                spec,
                &mut |fraction| progress.report(fraction),
                &mut |decoder, draft, loaded| {
                    let archive =
                        (states.take()).and_then(|file| open(file, spec, &loaded, &build));
                    let (commands, events) = (&pipe.commands, &pipe.events);
                    ran = run::run(decoder, draft, spec, loaded, archive, commands, events);
                },
            )?;
            ran
        }
        Order::Plan(spec) => loader.with_outline(spec, &mut |planner| {
            answer(planner, &pipe.commands, &pipe.events);
        }),
    });
    if let Err(LoadError(message)) = served {
        tracing::error!(%message, "the model cannot be served");
        // Waits for room: nothing else is left to do. An error means that nobody wants to know.
        let _ = pipe.events.send(Event::LoadFailed { message });
    }
    drop(pipe.events);
    if pipe.writer.join().is_err() {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// What earlier workers left; `None`: this one leaves nothing either.
fn open(file: File, spec: &LoadSpec, loaded: &Loaded, build: &str) -> Option<Archive> {
    let bounds = spec.saved_states?;
    let archive =
        archive::owner(spec, loaded, build).and_then(|owner| Archive::start(file, owner, bounds));
    archive
        .inspect_err(|error| tracing::warn!(%error, "no saved states: nothing is kept on disk"))
        .ok()
}

/// Judges grammars: no model, no GPU, little memory.
fn judge(mut stream: UnixStream, spec: &CheckSpec) -> ExitCode {
    hold_back(spec.bytes);
    let sandbox = match sandbox::enter_to_check(spec) {
        Ok(sandbox) => sandbox,
        Err(error) => return refuse(stream, &format!("failed to {error}; {SANDBOX_OFF}")),
    };
    if write_frame(&mut stream, &Event::Sandboxed(sandbox)).is_err() {
        return ExitCode::FAILURE;
    }
    let pipe = match pipe::start(stream, &CLOSED) {
        Ok(pipe) => pipe,
        Err(error) => {
            tracing::error!(%error, "the socket's threads did not start");
            return ExitCode::FAILURE;
        }
    };
    grammar::check::serve(spec, &pipe.commands, &pipe.events);
    drop(pipe.events);
    match pipe.writer.join() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Says why nothing is loaded, and ends in order.
fn refuse(mut stream: UnixStream, message: &str) -> ExitCode {
    tracing::error!(message, "the model cannot be served");
    let event = Event::LoadFailed {
        message: message.to_owned(),
    };
    match write_frame(&mut stream, &event) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// What this worker is for.
enum Order {
    Serve(Box<LoadSpec>),
    Plan(Box<LoadSpec>),
}

impl Order {
    fn load(&self) -> &LoadSpec {
        match self {
            Self::Serve(spec) | Self::Plan(spec) => spec,
        }
    }
}

/// Answers what would be taken, until nobody asks any more. Waits for room in the events' channel: the
/// supervisor reads each answer before it asks again.
fn answer(planner: &mut dyn Planner, commands: &Receiver<Command>, events: &SyncSender<Event>) {
    let mut said = events.send(Event::Outline(Box::new(planner.outline())));
    while said.is_ok()
        && let Ok(command) = commands.recv()
    {
        said = match command {
            Command::Ask(ask) => {
                let plan = planner.plan(&ask).map(Box::new).map_err(|error| error.0);
                events.send(Event::Planned(plan))
            }
            Command::Probe(bytes) => events.send(Event::Probed(planner.probe(bytes))),
            Command::Ping(n) => events.send(Event::Pong(n)),
            Command::Drain => return,
            // It is not named: a job's prompt belongs in no log.
            _ => {
                tracing::warn!("a command that has no place in a planning worker is ignored");
                Ok(())
            }
        };
    }
}

struct Progress<'a> {
    events: &'a SyncSender<Event>,
    last: Option<Instant>,
}

impl<'a> Progress<'a> {
    fn new(events: &'a SyncSender<Event>) -> Self {
        Self { events, last: None }
    }

    /// Tells the supervisor; `false` when it is gone. A full channel drops the report: the next one
    /// says more.
    fn report(&mut self, fraction: f32) -> bool {
        if CLOSED.load(Ordering::Relaxed) {
            return false;
        }
        if fraction < 1.0
            && self
                .last
                .is_some_and(|last| last.elapsed() < PROGRESS_EVERY)
        {
            return true;
        }
        self.last = Some(Instant::now());
        let sent = self.events.try_send(Event::LoadProgress { fraction });
        !matches!(sent, Err(TrySendError::Disconnected(_)))
    }
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("ORINOCO_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // The supervisor reads this pipe; built without colours in any case.
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .init();
}

/// A panic in any thread is the death of the process, by a signal that the supervisor knows.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(%panic, "panic");
        std::process::abort();
    }));
}
