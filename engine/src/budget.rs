//! Work that may hold so much memory for so long, and no more.
//!
//! A chat template of forty instructions can ask for a terabyte, and Rust answers an allocation that is
//! refused by ending the process. So such work has a thread of its own: when it asks for more than its
//! budget, or its time is over, that thread stops where it stands, inside the allocator, and never goes on;
//! whoever waits for it is told at once. What it holds stays taken until the process ends, which is why
//! callers bound how often that may happen.
//!
//! Work that allocates nothing cannot be stopped: it needs an end of its own. Work that allocates while it
//! holds a lock which others need must not be given here.

#![allow(
    unsafe_code,
    reason = "the allocator is the only place that sees every allocation; it passes all of them on"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// What one piece of work may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Bytes that it may hold at a time.
    pub bytes: usize,
    /// How long it may be waited for.
    pub time: Duration,
}

/// Why work was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// It asked for more memory than its budget.
    #[error("it needs more than {} MiB of memory", .0 >> 20)]
    Memory(usize),
    /// It took longer.
    #[error("it takes longer than {} ms", .0.as_millis())]
    Time(Duration),
}

/// Does `work` on a thread of its own, within `budget`.
///
/// # Errors
/// It was stopped; its thread and what it held are lost.
///
/// # Panics
/// When `work` panics.
pub fn within<T: Send + 'static>(
    budget: Budget,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Exceeded> {
    held_to(budget, work, |outcome| outcome.recv_timeout(budget.time))
}

/// As [`within`], where `spent` says how much of the time is used: what this process computed, say, so that
/// work is not given up because others kept the cores from it. No wait is longer than `wait_max`.
///
/// # Errors
/// As [`within`].
///
/// # Panics
/// As [`within`].
pub fn within_spent<T: Send + 'static>(
    budget: Budget,
    spent: impl Fn() -> Duration,
    wait_max: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Exceeded> {
    let (before, began) = (spent(), Instant::now());
    held_to(budget, work, |outcome| {
        loop {
            let is_left =
                spent().saturating_sub(before) < budget.time && began.elapsed() < wait_max;
            match outcome.recv_timeout(LOOK_EVERY) {
                Err(RecvTimeoutError::Timeout) if is_left => {}
                end => return end,
            }
        }
    })
}

/// How often [`within_spent`] looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

fn held_to<T: Send + 'static>(
    budget: Budget,
    work: impl FnOnce() -> T + Send + 'static,
    wait: impl FnOnce(&Receiver<Option<T>>) -> Result<Option<T>, RecvTimeoutError>,
) -> Result<T, Exceeded> {
    let (done, outcome) = sync_channel::<Option<T>>(1);
    let is_over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&is_over);
    let thread = std::thread::Builder::new()
        .name("budget".to_owned())
        .spawn(move || {
            watch(budget.bytes, stop, done.clone());
            let value = work();
            LEFT.set(None);
            // Nobody waits any more when the time is over.
            let _ = done.send(Some(value));
        });
    let Ok(thread) = thread else {
        return Err(Exceeded::Memory(budget.bytes)); // no room for its stack
    };
    match wait(&outcome) {
        Ok(Some(value)) => {
            let _ = thread.join(); // it has nothing left to do
            Ok(value)
        }
        Ok(None) => Err(Exceeded::Memory(budget.bytes)),
        Err(RecvTimeoutError::Timeout) => {
            is_over.store(true, Ordering::Relaxed);
            Err(Exceeded::Time(budget.time))
        }
        Err(RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("it sends before it ends"),
        },
    }
}

thread_local! {
    /// Bytes that this thread may still take; `None`: as many as it likes.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

struct Watch {
    is_over: Arc<AtomicBool>,
    tell: Box<dyn Fn()>,
}

/// From now on this thread is held to `bytes`.
fn watch<T: 'static>(bytes: usize, is_over: Arc<AtomicBool>, tell: SyncSender<Option<T>>) {
    let tell = Box::new(move || {
        let _ = tell.try_send(None); // there is room: this comes first and last
    });
    WATCH.set(Some(Watch { is_over, tell }));
    LEFT.set(Some(bytes));
}

/// Counts `bytes` against the budget of this thread, if it has one.
fn take(bytes: usize) {
    // A thread that is ending has none any more.
    let Ok(Some(left)) = LEFT.try_with(Cell::get) else {
        return;
    };
    let rest = left.checked_sub(bytes);
    let is_over = WATCH.try_with(|watch| match &*watch.borrow() {
        Some(watch) => watch.is_over.load(Ordering::Relaxed),
        None => false,
    });
    if rest.is_none() || is_over == Ok(true) {
        // A panic is being told, under a lock that all threads need for theirs.
        if std::thread::panicking() {
            return LEFT.set(None);
        }
        stop();
    }
    LEFT.set(rest);
}

fn give_back(bytes: usize) {
    let _ = LEFT.try_with(|left| left.set(left.get().map(|left| left.saturating_add(bytes))));
}

/// Says so and stays here. Neither unwinding nor an allocation that fails would be caught.
#[cold]
fn stop() -> ! {
    LEFT.set(None);
    if let Some(watch) = WATCH.take() {
        (watch.tell)();
    }
    loop {
        std::thread::park();
    }
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to `System` with the arguments it came with, after the count.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        give_back(layout.size());
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        match size.checked_sub(layout.size()) {
            Some(more) => take(more),
            None => give_back(layout.size() - size),
        }
        // SAFETY: the caller's contract is passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget {
        bytes: 1 << 20,
        time: Duration::from_secs(20),
    };

    #[test]
    fn work_within_its_budget_gives_its_value() {
        let sum = within(BUDGET, || {
            // More than the budget in all, never at a time.
            (0..100).map(|_| vec![1_u8; 100_000].len()).sum::<usize>()
        });
        assert_eq!(sum, Ok(10_000_000));
    }

    #[test]
    fn an_allocation_beyond_the_budget_is_told_and_nothing_ends() {
        let doubling = within(BUDGET, || {
            let mut text = "x".to_owned();
            for _ in 0..60 {
                text = format!("{text}{text}");
            }
            text.len()
        });
        assert_eq!(doubling, Err(Exceeded::Memory(1 << 20)));
        let growing = within(BUDGET, || {
            let mut all = Vec::new();
            loop {
                all.push(1_u64);
            }
        });
        assert_eq!(growing, Err::<(), _>(Exceeded::Memory(1 << 20)));
        assert_eq!(within(BUDGET, || 7), Ok(7));
    }

    #[test]
    fn work_that_takes_too_long_is_given_up_and_stopped_at_its_next_allocation() {
        static STEPS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let budget = Budget {
            time: Duration::from_millis(50),
            ..BUDGET
        };
        let endless = within(budget, || {
            loop {
                STEPS.fetch_add(vec![1_u8; 8].len(), Ordering::Relaxed);
            }
        });
        assert_eq!(endless, Err::<(), _>(Exceeded::Time(budget.time)));
        // It makes no further steps, once it has noticed.
        let mut before = STEPS.load(Ordering::Relaxed);
        loop {
            let _ = within(budget, || vec![0_u8; 1000].len());
            std::thread::yield_now();
            let now = STEPS.load(Ordering::Relaxed);
            if now == before {
                break;
            }
            before = now;
        }
    }

    #[test]
    fn a_panic_goes_on_where_it_was_waited_for() {
        let caught = std::panic::catch_unwind(|| within(BUDGET, || panic!("as it should")));
        assert!(caught.is_err());
    }
}
