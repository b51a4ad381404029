//! Lets the library ask, and a [`MetadataSource`] answer, without a runtime between them.
//!
//! The library awaits each file. Here the future of a file notes what it wants and is pending; [`drive`] sees
//! that, fetches it, notes the answer and polls again. So a refresh is a plain function, the source may be
//! borrowed and may block, and nothing is spawned.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use sigstore_tuf::Repository;
use sigstore_tuf::transport::FetchFuture;

use super::{MetadataSource, SourceError};

/// A file that the library waits for.
struct Wanted {
    file: String,
    limit_bytes: u64,
}

#[derive(Default)]
struct Slot {
    wanted: Option<Wanted>,
    answer: Option<sigstore_tuf::Result<Option<Vec<u8>>>>,
}

/// The library's side. The lock is never contended: both sides are the same thread, and it is there only
/// because the library asks for `Sync`.
#[derive(Clone, Default)]
pub(super) struct Exchange(Arc<Mutex<Slot>>);

impl Exchange {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Repository for Exchange {
    fn fetch_metadata<'a>(&'a self, name: &'a str, max_length: u64) -> FetchFuture<'a> {
        Box::pin(Fetch {
            exchange: self,
            wanted: Some(Wanted {
                file: format!("metadata/{name}"),
                limit_bytes: max_length,
            }),
        })
    }

    /// Never asked: targets are read by [`super::read_target`] or fetched piece by piece.
    fn fetch_target<'a>(&'a self, path: &'a str, _max_length: u64) -> FetchFuture<'a> {
        let error = sigstore_tuf::Error::transport(format!("{path} is fetched elsewhere"));
        Box::pin(std::future::ready(Err(error)))
    }
}

/// One file under way.
struct Fetch<'a> {
    exchange: &'a Exchange,
    wanted: Option<Wanted>,
}

impl Future for Fetch<'_> {
    type Output = sigstore_tuf::Result<Option<Vec<u8>>>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        let exchange = self.exchange;
        let mut slot = exchange.slot();
        if let Some(wanted) = self.wanted.take() {
            slot.wanted = Some(wanted);
            return Poll::Pending;
        }
        match slot.answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        }
    }
}

/// Runs what the library does, with answers of a source. The second value is the source's own error, if it had
/// one: the library keeps only its text.
pub(super) fn drive<T>(
    exchange: &Exchange,
    source: &mut dyn MetadataSource,
    work: impl Future<Output = T>,
) -> (Option<T>, Option<SourceError>) {
    let mut work = pin!(work);
    let mut failure = None;
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(done) = work.as_mut().poll(&mut context) {
            return (Some(done), failure);
        }
        // Pending without a wish would be pending for ever.
        let Some(Wanted { file, limit_bytes }) = exchange.slot().wanted.take() else {
            return (None, failure);
        };
        let answer = match source.get(&file, limit_bytes) {
            Ok(Some(bytes)) if bytes.len() as u64 > limit_bytes => {
                Err(SourceError::TooLong { file, limit_bytes })
            }
            answer => answer,
        };
        exchange.slot().answer = Some(answer.map_err(|error| {
            let text = error.to_string();
            failure = Some(error);
            sigstore_tuf::Error::transport(text)
        }));
    }
}
