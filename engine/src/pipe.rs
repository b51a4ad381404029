//! Frames over the inherited socket: one thread for each way, bounded channels to the loop.
//!
//! When the supervisor closes its end, the commands' sender goes (which ends the loop) and the
//! `closed` flag stops a running load or decode. When the commands' channel is full the reader waits,
//! and so does the supervisor; when the events' channel is full the loop keeps its text and joins it.

use std::io::{BufReader, BufWriter, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use orinoco::frames::codec::{FrameError, encode, read_frame};
use orinoco::frames::{Command, Event};

/// Commands read ahead of the loop.
const COMMANDS: usize = 64;
/// Events ahead of the socket. One is a step of all sequences, so this is seconds of text.
const EVENTS: usize = 64;

/// The loop's ends of the channels.
#[derive(Debug)]
pub struct Pipe {
    /// What the supervisor said. Disconnected when it is gone.
    pub commands: Receiver<Command>,
    /// What it is to hear.
    pub events: SyncSender<Event>,
    /// Ends once `events` is dropped and everything is written.
    pub writer: JoinHandle<()>,
}

/// Starts both threads. `closed` is set when the socket ends, in either direction.
pub fn start(stream: UnixStream, closed: &'static AtomicBool) -> std::io::Result<Pipe> {
    let (command_sender, commands) = sync_channel(COMMANDS);
    let (events, event_receiver) = sync_channel(EVENTS);
    let to_read = stream.try_clone()?;
    std::thread::Builder::new()
        .name("pipe-read".into())
        .spawn(move || {
            if let Err(error) = read(to_read, &command_sender) {
                tracing::error!(%error, "the supervisor's commands ended in an error");
            }
            closed.store(true, Ordering::Relaxed);
        })?;
    let writer = std::thread::Builder::new()
        .name("pipe-write".into())
        .spawn(move || {
            if let Err(error) = write(stream, &event_receiver) {
                tracing::warn!(%error, "events can no longer be sent");
                closed.store(true, Ordering::Relaxed);
            }
        })?;
    Ok(Pipe {
        commands,
        events,
        writer,
    })
}

fn read(stream: UnixStream, commands: &SyncSender<Command>) -> Result<(), FrameError> {
    let mut stream = BufReader::new(stream);
    while let Some(command) = read_frame(&mut stream)? {
        if commands.send(command).is_err() {
            break; // the loop is over
        }
    }
    Ok(())
}

fn write(stream: UnixStream, events: &Receiver<Event>) -> Result<(), FrameError> {
    let mut stream = BufWriter::with_capacity(64 << 10, stream);
    while let Ok(event) = events.recv() {
        stream.write_all(&encode(&event)?)?;
        for event in events.try_iter() {
            stream.write_all(&encode(&event)?)?;
        }
        stream.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use orinoco::frames::codec::write_frame;

    use super::*;

    #[test]
    fn frames_pass_both_ways_and_a_closed_socket_ends_the_commands() {
        static CLOSED: AtomicBool = AtomicBool::new(false);
        let (mut supervisor, worker) = UnixStream::pair().unwrap();
        let pipe = start(worker, &CLOSED).unwrap();
        write_frame(&mut supervisor, &Command::Ping(7)).unwrap();
        assert_eq!(pipe.commands.recv().unwrap(), Command::Ping(7));
        pipe.events.send(Event::Pong(7)).unwrap();
        assert_eq!(read_frame(&mut supervisor).unwrap(), Some(Event::Pong(7)));
        drop(supervisor);
        assert!(pipe.commands.recv().is_err());
        drop(pipe.events);
        pipe.writer.join().unwrap();
    }

    #[test]
    fn a_frame_that_does_not_decode_ends_the_commands() {
        static CLOSED: AtomicBool = AtomicBool::new(false);
        let (mut supervisor, worker) = UnixStream::pair().unwrap();
        let pipe = start(worker, &CLOSED).unwrap();
        supervisor.write_all(&[0xff; 8]).unwrap();
        assert!(pipe.commands.recv().is_err());
    }
}
