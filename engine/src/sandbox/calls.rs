//! seccomp: which system calls the worker may still make.
//!
//! Two filters, and a third for a GPU. The first knows what a program needs that computes, loads libraries and drives a GPU;
//! every other call "is not implemented" (ENOSYS), which libraries take as an older kernel and work
//! around: `clone3` becomes `clone`, whose flags can be read here. The second refuses with EPERM what a
//! program that was taken over would try next. Where both have an answer, EPERM wins. The third stands between
//! them: removing a file finds none, which the driver of a GPU takes as an answer, and EPERM not.
//!
//! Arguments behind pointers cannot be read by a filter; paths are the business of Landlock.

mod lists;

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter_all_threads,
};

use self::lists::{
    DRIVER, KNOWN, KNOWN_HERE, PRCTL, REFUSED, REFUSED_HERE, REMOVING, REMOVING_HERE, WRITING,
    WRITING_HERE,
};

/// Who gets the signals of a descriptor: without these nobody does. Not all are in libc.
const F_SETSIG: u64 = 10;
const F_SETOWN_EX: u64 = 15;
const FIOSETOWN: u64 = 0x8901;
const SIOCSPGRP: u64 = 0x8902;
/// Of the argument `type` of `socket`; above it are flags.
const SOCK_TYPE_MASK: u64 = 0xf;
/// Puts a letter into a terminal's input, as if it was typed.
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;

/// What a worker does beyond computing on a CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// It drives a GPU.
    pub(super) gpu: bool,
    /// It has a folder to write.
    pub(super) may_write: bool,
    /// It has a file to write.
    pub(super) states: Option<States>,
}

/// The open file that may be written, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct States {
    pub(super) fd: u64,
    /// Its length, at most.
    pub(super) bytes_max: u64,
    /// Bytes written by one call, at most.
    pub(super) piece_bytes: u64,
}

/// By call: it fits if one of the rules does; without a rule, always.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn refused(pid: u32, needs: Needs) -> Result<Rules, Error> {
    let pid = u64::from(pid);
    let mut refused: Rules = REFUSED
        .iter()
        .chain(REFUSED_HERE)
        .map(|call| (*call, Vec::new()))
        .collect();
    let mut when = |call: libc::c_long, rules: Vec<Vec<SeccompCondition>>| -> Result<(), Error> {
        let rules = rules.into_iter().map(SeccompRule::new);
        let rules = rules.collect::<Result<Vec<_>, _>>()?;
        refused.insert(call, rules);
        Ok(())
    };
    // A new process, or a thread in namespaces of its own; only threads pass.
    let thread = libc::CLONE_THREAD as u64;
    when(libc::SYS_clone, vec![vec![bits(0, thread, 0)?]])?;
    // Signals to anybody else.
    when(libc::SYS_kill, vec![vec![not(0, pid)?]])?;
    when(libc::SYS_tgkill, vec![vec![not(0, pid)?]])?;
    // Limits of anybody else.
    when(libc::SYS_prlimit64, vec![vec![not(0, 0)?, not(0, pid)?]])?;
    // Anything but the question.
    when(libc::SYS_personality, vec![vec![not(0, 0xffff_ffff)?]])?;
    let known = PRCTL.iter().map(|option| not(0, *option as u64));
    when(libc::SYS_prctl, vec![known.collect::<Result<_, _>>()?])?;
    let owners = [libc::F_SETOWN as u64, F_SETSIG, F_SETOWN_EX];
    let owners = owners.map(|command| Ok(vec![is(1, command)?]));
    let mut controls_of_files = owners.into_iter().collect::<Result<Vec<_>, Error>>()?;
    if let Some(states) = needs.states {
        for (call, rules) in bounded(states)? {
            when(call, rules)?;
        }
        for copy in [libc::F_DUPFD as u64, libc::F_DUPFD_CLOEXEC as u64] {
            controls_of_files.push(vec![is(0, states.fd)?, is(1, copy)?]);
        }
    }
    when(libc::SYS_fcntl, controls_of_files)?;
    let controls = [TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP];
    let controls = controls.map(|request| Ok(vec![is(1, request)?]));
    when(
        libc::SYS_ioctl,
        controls.into_iter().collect::<Result<_, Error>>()?,
    )?;
    if needs.gpu {
        // Of a unix socket that keeps messages apart, and of nothing else.
        let (unix, seqpacket) = (libc::AF_UNIX as u64, libc::SOCK_SEQPACKET as u64);
        let mut others = vec![vec![not(0, unix)?]];
        for kind in (0..=SOCK_TYPE_MASK).filter(|kind| *kind != seqpacket) {
            others.push(vec![bits(1, SOCK_TYPE_MASK, kind)?]);
        }
        when(libc::SYS_socket, others)?;
        let (socket, credentials) = (libc::SOL_SOCKET as u64, libc::SO_PASSCRED as u64);
        let others = vec![vec![not(1, socket)?], vec![not(2, credentials)?]];
        when(libc::SYS_setsockopt, others)?;
    }
    if !needs.may_write {
        for call in WRITING.iter().chain(WRITING_HERE) {
            when(*call, Vec::new())?;
        }
        for (call, flags) in OPEN {
            when(*call, making(*flags, needs)?)?;
        }
    }
    if needs.gpu {
        let passed = [libc::SYS_bind, libc::SYS_listen];
        let passed = passed.iter().chain(REMOVING).chain(REMOVING_HERE);
        for call in passed {
            refused.remove(call);
        }
    }
    Ok(refused)
}

/// A call, and when it is refused: where all conditions of one list hold.
type Bound = (libc::c_long, Vec<Vec<SeccompCondition>>);

/// A file that is open keeps its rights inside the sandbox. So it is written where the filter sees where, and within
/// its length: by pwrite64 alone, since other calls write where the descriptor stands, or say it behind a pointer;
/// and there is no other descriptor of it, which no rule would fit.
fn bounded(states: States) -> Result<Vec<Bound>, Error> {
    let States {
        fd,
        bytes_max,
        piece_bytes,
    } = states;
    let others = [
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_pwritev,
        libc::SYS_pwritev2,
        libc::SYS_dup,
        libc::SYS_dup3,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_dup2,
    ];
    let mut rules = Vec::new();
    for call in others {
        rules.push((call, vec![vec![is(0, fd)?]]));
    }
    let beyond = |argument, most| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Gt, most)
    };
    let too_long = vec![is(0, fd)?, beyond(2, piece_bytes)?];
    // The last piece begins within the length.
    let too_far = vec![is(0, fd)?, beyond(3, bytes_max)?];
    rules.push((libc::SYS_pwrite64, vec![too_long, too_far]));
    let too_far = vec![is(0, fd)?, beyond(1, bytes_max)?];
    rules.push((libc::SYS_ftruncate, vec![too_far]));
    let hole = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u64;
    rules.push((libc::SYS_fallocate, vec![vec![is(0, fd)?, not(1, hole)?]]));
    Ok(rules)
}

/// When opening a file is refused: when it would be made or emptied.
///
/// A GPU's driver names its threads, and does so by `fopen("/proc/self/task/TID/comm", "w")`; CUDA is "not
/// supported on this OS" where that fails. So a worker with a GPU may open as `fopen(…, "w")` does, and
/// Landlock says which files: this needs the right to write, and to make where there is none, which it
/// knows from its first version on. Emptying a file while opening it to read is not among what that
/// version sees.
fn making(flags: u8, needs: Needs) -> Result<Vec<Vec<SeccompCondition>>, Error> {
    let (create, empty) = (libc::O_CREAT as u64, libc::O_TRUNC as u64);
    let nameless = (libc::O_TMPFILE & !libc::O_DIRECTORY) as u64;
    let mut rules = vec![vec![bits(flags, nameless, nameless)?]];
    if !needs.gpu {
        rules.push(vec![bits(flags, create, create)?]);
        rules.push(vec![bits(flags, empty, empty)?]);
        return Ok(rules);
    }
    let both = create | empty;
    rules.push(vec![bits(flags, both, create)?]);
    rules.push(vec![bits(flags, both, empty)?]);
    let (mode, write) = (libc::O_ACCMODE as u64, libc::O_WRONLY as u64);
    for other in (0..=mode).filter(|other| *other != write) {
        rules.push(vec![bits(flags, both | mode, both | other)?]);
    }
    Ok(rules)
}

/// Calls that open files, and which of their arguments has the flags.
#[cfg(target_arch = "x86_64")]
const OPEN: &[(libc::c_long, u8)] = &[(libc::SYS_openat, 2), (libc::SYS_open, 1)];
#[cfg(not(target_arch = "x86_64"))]
const OPEN: &[(libc::c_long, u8)] = &[(libc::SYS_openat, 2)];

/// The kernel looks at the lower 32 bits of all arguments that are judged here.
fn condition(argument: u8, how: SeccompCmpOp, value: u64) -> Result<SeccompCondition, Error> {
    Ok(SeccompCondition::new(
        argument,
        SeccompCmpArgLen::Dword,
        how,
        value,
    )?)
}

fn is(argument: u8, value: u64) -> Result<SeccompCondition, Error> {
    condition(argument, SeccompCmpOp::Eq, value)
}

fn not(argument: u8, value: u64) -> Result<SeccompCondition, Error> {
    condition(argument, SeccompCmpOp::Ne, value)
}

fn bits(argument: u8, mask: u64, value: u64) -> Result<SeccompCondition, Error> {
    condition(argument, SeccompCmpOp::MaskedEq(mask), value)
}

/// The filters, in the order in which they are installed: of two equal answers the later one's counts.
pub(super) fn filters(pid: u32, needs: Needs) -> Result<Vec<BpfProgram>, Error> {
    let here = std::env::consts::ARCH.try_into()?;
    let errno = |errno: i32| SeccompAction::Errno(errno as u32);
    let always = |calls: &mut dyn Iterator<Item = &libc::c_long>| -> Rules {
        calls.map(|call| (*call, Vec::new())).collect()
    };
    let mut known = always(&mut KNOWN.iter().chain(KNOWN_HERE));
    if needs.gpu {
        known.append(&mut always(&mut DRIVER.iter()));
    }
    if needs.may_write {
        known.append(&mut always(&mut WRITING.iter().chain(WRITING_HERE)));
    }
    let known = SeccompFilter::new(known, errno(libc::ENOSYS), SeccompAction::Allow, here)?;
    let mut filters = vec![known.try_into()?];
    if needs.gpu && !needs.may_write {
        let absent = always(&mut REMOVING.iter().chain(REMOVING_HERE));
        let absent = SeccompFilter::new(absent, SeccompAction::Allow, errno(libc::ENOENT), here)?;
        filters.push(absent.try_into()?);
    }
    let refused = refused(pid, needs)?;
    let refused = SeccompFilter::new(refused, SeccompAction::Allow, errno(libc::EPERM), here)?;
    filters.push(refused.try_into()?);
    Ok(filters)
}

/// Filters the calls of this process, whose id is `pid`; `false`: this kernel cannot.
pub(super) fn restrict(pid: u32, needs: Needs) -> Result<bool, Error> {
    for filter in filters(pid, needs)? {
        match apply_filter_all_threads(&filter) {
            Ok(()) => {}
            // Kernels without CONFIG_SECCOMP_FILTER; nothing else about these calls can be invalid.
            Err(Error::Seccomp(error))
                if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) =>
            {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
