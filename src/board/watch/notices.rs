//! inotify on the directory of the status file, or on the nearest directory above it that exists.
//!
//! One watch at a time. Each call of [`Notices::arm`] moves it to where it belongs now: the directory may
//! be made, removed or replaced at any time. Every event counts, whatever it is about, since looking costs
//! less than telling them apart. Where inotify is not to be had, nothing is ever noticed, and the caller's
//! polling does the work.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::net::unix::pipe::Receiver;
use tracing::debug;

use crate::board::nvpmodel::STATUS_DIR;
use crate::board::root::Root;

/// Attempts to place the watch while directories appear and vanish; polling covers the rest.
const ARM_ATTEMPTS: usize = 8;

/// What may change the status: it is written, replaced, removed, or its directory is.
const EVENTS: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);

#[derive(Debug)]
pub(super) struct Notices(Option<Armed>);

#[derive(Debug)]
struct Armed {
    root: Root,
    inotify: Inotify,
    /// The same instance as tokio waits for it. It is no pipe, but read like one.
    events: Receiver,
    watched: Option<WatchDescriptor>,
}

impl Notices {
    pub(super) fn none() -> Self {
        Self(None)
    }

    pub(super) fn new(root: &Root) -> Self {
        match Armed::new(root) {
            Ok(armed) => Self(Some(armed)),
            Err(e) => {
                // The limit of instances for each user is low on some systems.
                debug!(
                    error = &e as &dyn std::error::Error,
                    "no inotify, polling alone"
                );
                Self(None)
            }
        }
    }

    /// Puts the watch on the nearest directory that exists.
    pub(super) fn arm(&mut self) {
        if let Some(armed) = &mut self.0 {
            armed.arm();
        }
    }

    /// Waits until something happened that may have changed the status; forever without inotify.
    pub(super) async fn wait(&mut self) {
        if let Some(armed) = &mut self.0
            && armed.wait().await.is_ok()
        {
            return;
        }
        // Nothing more comes from here; polling goes on.
        self.0 = None;
        std::future::pending().await
    }
}

impl Armed {
    fn new(root: &Root) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let events = Receiver::from_owned_fd_unchecked(inotify.as_fd().try_clone_to_owned()?)?;
        Ok(Self {
            root: root.clone(),
            inotify,
            events,
            watched: None,
        })
    }

    fn arm(&mut self) {
        for _ in 0..ARM_ATTEMPTS {
            let dir = nearest(&self.root);
            let Ok(descriptor) = self.inotify.add_watch(&dir, EVENTS) else {
                // It vanished meanwhile, or may not be watched.
                continue;
            };
            if let Some(old) = self.watched.replace(descriptor)
                && old != descriptor
            {
                // An error means that it went with its directory.
                let _ = self.inotify.rm_watch(old);
            }
            // What was made before the watch stood would never be noticed.
            if nearest(&self.root) == dir {
                return;
            }
        }
    }

    async fn wait(&mut self) -> io::Result<()> {
        self.events.readable().await?;
        let mut buffer = [0; 4096];
        loop {
            match self.events.try_read(&mut buffer) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }
}

/// The deepest existing directory on the way to the status file.
fn nearest(root: &Root) -> PathBuf {
    Path::new(STATUS_DIR)
        .ancestors()
        .filter_map(|dir| root.resolve(dir.to_str()?).ok())
        .find(|dir| dir.is_dir())
        .unwrap_or_else(|| PathBuf::from("/"))
}
