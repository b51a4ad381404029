//! Memory from `/proc/meminfo`, which the watchdog reads many times a second.
//!
//! ```text
//!     MemTotal:       16032112 kB
//!     MemAvailable:    8864920 kB
//!     NvMapMemUsed:    1894208 kB      kernels 4.9 and 5.10 of L4T only
//! ```
//!
//! `MemAvailable` counts the page cache that can be given back, and on a Jetson the GPU draws on the same
//! memory, so it is the figure that decides; `MemFree` (and CUDA's "free", which is close to it) reads low
//! after a model file was read (proc_meminfo(5)). Lines that are not used are skipped.

use super::root::{Probe, ReadError, Root};
use super::text::{ParseError, lines, n_lines, word_number, words};

const MEMINFO: &str = "/proc/meminfo";

/// A reading, in bytes. Total and available are always there, the rest where the kernel says it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemInfo {
    /// All memory that the kernel manages; on a Jetson less than the module's label by what firmware keeps.
    pub total_bytes: u64,
    /// What programs may still take without swapping: at most the total.
    pub available_bytes: u64,
    /// Used for nothing at all.
    pub free_bytes: Option<u64>,
    /// Block device cache.
    pub buffers_bytes: Option<u64>,
    /// File cache, shared memory counted in.
    pub cached_bytes: Option<u64>,
    /// Shared memory and tmpfs, which cannot be dropped.
    pub shmem_bytes: Option<u64>,
    /// Kernel caches that can be dropped.
    pub slab_reclaimable_bytes: Option<u64>,
    /// All swap; zero where there is none.
    pub swap_total_bytes: Option<u64>,
    /// Unused swap. Never to be added to what is available: GPU memory cannot be swapped out.
    pub swap_free_bytes: Option<u64>,
    /// The area for contiguous allocations.
    pub cma_total_bytes: Option<u64>,
    /// What is left of it. Often zero on a healthy Jetson, as the page cache borrows it.
    pub cma_free_bytes: Option<u64>,
    /// GPU allocations, on kernels 4.9 and 5.10 of L4T.
    pub nvmap_used_bytes: Option<u64>,
    /// Left for GPU allocations, on the same kernels.
    pub nvmap_free_bytes: Option<u64>,
}

impl MemInfo {
    /// File cache that the kernel gives back under pressure: buffers and cached less shared memory.
    pub fn page_cache_bytes(&self) -> Option<u64> {
        let cached = self
            .cached_bytes?
            .saturating_add(self.buffers_bytes.unwrap_or(0));
        Some(cached.saturating_sub(self.shmem_bytes.unwrap_or(0)))
    }

    /// Swap in use.
    pub fn swap_used_bytes(&self) -> Option<u64> {
        Some(self.swap_total_bytes?.saturating_sub(self.swap_free_bytes?))
    }
}

/// Parses `/proc/meminfo`.
///
/// # Errors
/// No MemTotal or MemAvailable, a value that is no number of kB, more available than there is: a file cut
/// short is never taken for a board without memory.
pub fn parse(bytes: &[u8]) -> Result<MemInfo, ParseError> {
    let mut info = MemInfo::default();
    let (mut total, mut available) = (None, None);
    for (number, line) in lines(bytes) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let field = match &line[..colon] {
            b"MemTotal" => &mut total,
            b"MemAvailable" => &mut available,
            b"MemFree" => &mut info.free_bytes,
            b"Buffers" => &mut info.buffers_bytes,
            b"Cached" => &mut info.cached_bytes,
            b"Shmem" => &mut info.shmem_bytes,
            b"SReclaimable" => &mut info.slab_reclaimable_bytes,
            b"SwapTotal" => &mut info.swap_total_bytes,
            b"SwapFree" => &mut info.swap_free_bytes,
            b"CmaTotal" => &mut info.cma_total_bytes,
            b"CmaFree" => &mut info.cma_free_bytes,
            b"NvMapMemUsed" => &mut info.nvmap_used_bytes,
            b"NvMapMemFree" => &mut info.nvmap_free_bytes,
            _ => continue,
        };
        *field = Some(kib(number, line, &line[colon + 1..])?);
    }
    let at_end = |what| ParseError::at_end(n_lines(bytes), what);
    info.total_bytes = total.ok_or_else(|| at_end("a line `MemTotal: N kB`"))?;
    info.available_bytes = available.ok_or_else(|| at_end("a line `MemAvailable: N kB`"))?;
    if info.available_bytes > info.total_bytes || info.total_bytes == 0 {
        let found = format!("MemAvailable {} bytes", info.available_bytes);
        let total = info.total_bytes;
        return Err(ParseError::new(
            1,
            found.as_bytes(),
            format!("at most MemTotal, {total} bytes, and that more than 0"),
        ));
    }
    Ok(info)
}

/// `8864920 kB` in bytes.
fn kib(number: usize, line: &[u8], value: &[u8]) -> Result<u64, ParseError> {
    let mut parts = words(value);
    let (Some(count), Some(b"kB"), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(ParseError::new(number, line, "a number and kB"));
    };
    // At most what still fits when the kB become bytes.
    word_number::<u64>(number, count, &(0..=u64::MAX / 1024)).map(|kib| kib * 1024)
}

/// Reads `/proc/meminfo` cheaply: on the live root one `pread` into a kept buffer.
#[derive(Debug)]
pub struct MemoryProbe(Probe);

impl MemoryProbe {
    /// Nothing is opened yet.
    pub fn new(root: &Root) -> Self {
        Self(Probe::new(root, MEMINFO))
    }

    /// The memory now.
    ///
    /// # Errors
    /// As [`parse`]; also when there is no such file, for without it nobody can say anything.
    pub fn read(&mut self) -> Result<MemInfo, ReadError> {
        self.0
            .parse(parse)?
            .ok_or_else(|| ReadError::missing(MEMINFO))
    }
}

/// Reads `/proc/meminfo` once.
///
/// # Errors
/// As [`MemoryProbe::read`].
pub fn read(root: &Root) -> Result<MemInfo, ReadError> {
    MemoryProbe::new(root).read()
}
