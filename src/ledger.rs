//! One account in bytes of what the worker and the supervisor take, and whether something more fits.
//!
//! On a Jetson the processor and the GPU share one memory, and the kernel's own account of it has three
//! traps, which is why there is a ledger at all:
//!
//! - **GPU memory is in no RSS and in no control group.** Only MemAvailable sees it, and only after it is
//!   taken. So a load is planned: llama.cpp says what each buffer will have ([`need`]), and it is compared
//!   with MemAvailable less a reserve before a byte is taken ([`fit`]).
//! - **Mapped weights count as available.** A file that is mapped lies in the page cache, which
//!   MemAvailable counts as free to take; but each token reads all of it, and a board that gives it back
//!   reads it from disk at every token. Here mapped weights are taken, like any other; what running
//!   models have mapped is subtracted from MemAvailable ([`fit::Room::mapped_bytes`]).
//! - **Copied weights are in memory twice for a moment**, in the GPU's buffer and in the page cache. The
//!   cache is clean and unmapped, MemAvailable counts it as available, and so does this account: once.
//!
//! | question | answer |
//! |---|---|
//! | what would this model take | [`Need::of`] |
//! | does it fit, and what would | [`fit::check`], [`fit::Search`], [`fit::Refusal`] |
//! | how much a board has that is not here | [`boards`] |
//! | what is taken now, and what would ending the worker give back | [`Account`] |
//!
//! Pure: values in, values out. `worker` asks the planning worker and reads the board.

pub mod account;
pub mod boards;
pub mod fit;
pub mod need;
#[cfg(test)]
mod tests;

pub use account::{Account, Comparison, Kind, Readings, Taken};
pub use boards::{BOARDS, BoardMemory};
pub use fit::{Instead, Refusal, Room, Short};
pub use need::{Need, Rules};

/// Bytes for a person, in the unit of memory: `1.46 GiB`, `512 MiB`.
pub fn memory(bytes: u64) -> String {
    const MIB: f64 = (1 << 20) as f64;
    match bytes as f64 / MIB {
        mib if mib >= 1023.5 => format!("{:.2} GiB", mib / 1024.0),
        mib if mib >= 10.0 => format!("{mib:.0} MiB"),
        mib => format!("{mib:.1} MiB"),
    }
}
