//! Memory: what is left, and what would take it away.

use crate::board::swap::Swap;
use crate::doctor::{Facts, Finding};
use crate::ledger::memory as bytes;

/// Share of time stalled over a minute, in percent, from which somebody notices.
const STALLED_PERCENT: f32 = 5.0;

/// Share of memory that zram may hold before it is told.
const ZRAM_SHARE: u64 = 20;

pub(super) fn available(facts: &Facts) -> Finding {
    let memory = match &facts.memory {
        Ok(memory) => memory,
        Err(error) => {
            return Finding::fail(
                error.to_string(),
                "MemTotal and MemAvailable",
                "without them nothing is loaded: mount /proc, and leave ProcSubset= out of the unit",
            );
        }
    };
    let thresholds = facts.config.watchdog.thresholds(memory.total_bytes);
    let mut found = format!(
        "{} of {} available",
        bytes(memory.available_bytes),
        bytes(memory.total_bytes)
    );
    if let Some(cache) = memory.page_cache_bytes() {
        // CUDA's "free" counts it as used; we do not ask that.
        found += &format!(", {} of page cache counted in", bytes(cache));
    }
    let expected = |name: &str, at_least: u64| format!("at least {} ({name})", bytes(at_least));
    let remedy = "stop other programs, the desktop first (`sudo systemctl set-default multi-user.target`), or \
                  choose a smaller model or n_ctx";
    if memory.available_bytes < thresholds.kill_bytes {
        return Finding::fail(
            found,
            expected("watchdog.kill", thresholds.kill_bytes),
            remedy,
        );
    }
    if memory.available_bytes < thresholds.trim_bytes {
        return Finding::warn(
            found,
            expected("watchdog.trim", thresholds.trim_bytes),
            remedy,
        );
    }
    Finding::ok(found)
}

/// Page cache that has to be won back at each allocation makes a board slow while MemAvailable looks well.
pub(super) fn pressure(facts: &Facts) -> Finding {
    let Some(pressure) = &facts.pressure else {
        return Finding::skipped(
            "this kernel does not count memory pressure (L4T's does not; CONFIG_PSI)",
        );
    };
    let some = &pressure.some;
    let found = format!(
        "{:.1} % of the last 10 s and {:.1} % of the last minute lost waiting for memory",
        some.avg10_percent, some.avg60_percent
    );
    if some.avg10_percent.max(some.avg60_percent) < STALLED_PERCENT {
        return Finding::ok(found);
    }
    Finding::warn(
        found,
        format!("less than {STALLED_PERCENT:.0} %"),
        "something takes memory or reads large files now: `top`, swap, a smaller model",
    )
}

pub(super) fn cma(facts: &Facts) -> Finding {
    let Ok(memory) = &facts.memory else {
        return Finding::skipped("/proc/meminfo cannot be used");
    };
    match (memory.cma_total_bytes, memory.cma_free_bytes) {
        (Some(total), Some(free)) if total > 0 => Finding::ok(format!(
            "{} of {} of contiguous memory free; page cache borrows it, so 0 is usual and nothing to act on \
             unless a load fails (then boot with cma=950M)",
            bytes(free),
            bytes(total)
        )),
        _ => Finding::skipped("this kernel sets no contiguous memory aside"),
    }
}

pub(super) fn swap(facts: &Facts) -> Finding {
    let (zram, disk): (Vec<&Swap>, Vec<&Swap>) = facts.swaps.iter().partition(|s| s.is_zram());
    let sum = |swaps: &[&Swap], field: fn(&Swap) -> u64| -> u64 {
        swaps
            .iter()
            .map(|swap| field(swap))
            .fold(0, u64::saturating_add)
    };
    let used = |swap: &Swap| swap.used_bytes;
    if !disk.is_empty() {
        let names: Vec<&str> = disk.iter().map(|swap| swap.name.as_str()).collect();
        return Finding::warn(
            format!(
                "swap on disk: {}, {} of {} used",
                names.join(", "),
                bytes(sum(&disk, used)),
                bytes(sum(&disk, |swap| swap.size_bytes))
            ),
            "no swap on disk: GPU memory cannot be swapped out, so what goes there is everything else, at the \
             speed of the card, until the board seems frozen",
            "`sudo swapoff -a`, and take it out of /etc/fstab",
        );
    }
    if zram.is_empty() {
        return Finding::ok("no swap");
    }
    let used_bytes = sum(&zram, used);
    let size_bytes = sum(&zram, |swap| swap.size_bytes);
    let total_bytes = facts.memory.as_ref().map_or(0, |memory| memory.total_bytes);
    let found = format!(
        "zram: {} of {} used{}",
        bytes(used_bytes),
        bytes(size_bytes),
        match zram
            .iter()
            .filter_map(|swap| swap.memory_bytes)
            .sum::<u64>()
        {
            0 => String::new(),
            memory => format!(", which takes {} of memory", bytes(memory)),
        }
    );
    if total_bytes > 0 && used_bytes > total_bytes / 100 * ZRAM_SHARE {
        return Finding::warn(
            found,
            format!(
                "at most {ZRAM_SHARE} % of memory ({}) swapped out: zram lies in the same memory as the model",
                bytes(total_bytes / 100 * ZRAM_SHARE)
            ),
            "`sudo systemctl disable nvzramconfig` and reboot, or stop what was swapped out",
        );
    }
    Finding::ok(found)
}

pub(super) fn cgroup(facts: &Facts) -> Finding {
    let Some(group) = &facts.cgroup else {
        return Finding::skipped("this kernel shows no control group");
    };
    let total = facts
        .memory
        .as_ref()
        .map_or(u64::MAX, |memory| memory.total_bytes);
    let limit = [group.limit_bytes, group.high_bytes]
        .into_iter()
        .flatten()
        .min();
    match limit.filter(|limit| *limit < total) {
        Some(limit) => Finding::warn(
            format!(
                "{} may take {} of {}",
                group.name,
                bytes(limit),
                bytes(total)
            ),
            "no limit: GPU memory is not counted in it, and the kernel kills at it while there is room",
            "take MemoryMax= and MemoryHigh= out of the unit, or --memory out of the container's start",
        ),
        None => Finding::ok("no limit of a control group"),
    }
}

pub(super) fn watchdog(facts: &Facts) -> Finding {
    let watchdog = &facts.config.watchdog;
    if !watchdog.enabled {
        return Finding::warn(
            "watchdog.enabled = false",
            "the memory watchdog on: without it the kernel's OOM killer takes whatever it likes",
            "take watchdog.enabled out of the configuration",
        );
    }
    let Ok(memory) = &facts.memory else {
        return Finding::warn(
            "on, and /proc/meminfo cannot be used",
            "a memory watchdog that sees memory",
            "see memory.available",
        );
    };
    let steps = watchdog.thresholds(memory.total_bytes);
    Finding::ok(format!(
        "trims below {}, ends the worker below {}",
        bytes(steps.trim_bytes),
        bytes(steps.kill_bytes)
    ))
}
