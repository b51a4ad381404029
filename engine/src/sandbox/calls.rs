//! seccomp: which system calls the worker may still make.
//!
//! Two filters. The first knows what a program needs that computes, loads libraries and drives a GPU;
//! every other call "is not implemented" (ENOSYS), which libraries take as an older kernel and work
//! around: `clone3` becomes `clone`, whose flags can be read here. The second refuses with EPERM what a
//! program that was taken over would try next. Where both have an answer, EPERM wins.
//!
//! Arguments behind pointers cannot be read by a filter; paths are the business of Landlock.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter_all_threads,
};

/// What a program needs that computes. Those with a condition in [`refused`] are here too.
const KNOWN: &[libc::c_long] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_get_mempolicy,
    libc::SYS_madvise,
    libc::SYS_mbind,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munlockall,
    libc::SYS_munmap,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pkey_mprotect,
    libc::SYS_set_mempolicy,
    // Threads and their scheduling.
    libc::SYS_clone,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getpriority,
    libc::SYS_gettid,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getattr,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setpriority,
    // Signals to itself.
    libc::SYS_kill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    // Time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getitimer,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_setitimer,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_times,
    // Files, device nodes and what is open already.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    // The one socket.
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    // Who and where it is.
    libc::SYS_capget,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_getuid,
    libc::SYS_personality,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    // The second filter.
    libc::SYS_seccomp,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// The older names of some of those, which aarch64 does not have.
#[cfg(target_arch = "x86_64")]
const KNOWN_HERE: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_alarm,
    libc::SYS_arch_prctl, // also asks for the tiles of AMX
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const KNOWN_HERE: &[libc::c_long] = &[];

/// Never, whatever the arguments.
const REFUSED: &[libc::c_long] = &[
    // The network, and services on this machine.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_listen,
    libc::SYS_setsockopt,
    libc::SYS_socket,
    libc::SYS_socketpair,
    // Programs and other processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_setns,
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_tkill,
    libc::SYS_unshare,
    // Ways around a filter or Landlock, and large parts of the kernel that nothing here needs.
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_fanotify_init,
    libc::SYS_io_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_request_key,
    libc::SYS_seccomp,
    libc::SYS_userfaultfd,
    // The system.
    libc::SYS_acct,
    libc::SYS_adjtimex,
    libc::SYS_capset,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_load,
    libc::SYS_mount,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_setdomainname,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_sethostname,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_settimeofday,
    libc::SYS_setuid,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    // Files, by names that Landlock of an older kernel, or any, does not look at.
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_linkat,
    libc::SYS_lremovexattr,
    libc::SYS_lsetxattr,
    libc::SYS_mknodat,
    libc::SYS_removexattr,
    libc::SYS_setxattr,
    libc::SYS_symlinkat,
    libc::SYS_truncate,
    libc::SYS_utimensat,
];

#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[libc::c_long] = &[
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_fork,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_lchown,
    libc::SYS_link,
    libc::SYS_mknod,
    libc::SYS_symlink,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[libc::c_long] = &[];

/// What a cache of compiled kernels takes: refused where nothing may be written.
const WRITING: &[libc::c_long] = &[libc::SYS_mkdirat, libc::SYS_renameat2, libc::SYS_unlinkat];
#[cfg(target_arch = "x86_64")]
const WRITING_HERE: &[libc::c_long] = &[
    libc::SYS_creat,
    libc::SYS_mkdir,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_rmdir,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const WRITING_HERE: &[libc::c_long] = &[libc::SYS_renameat];

/// Questions about itself and its threads, and the names of threads. Neither is somebody allowed to trace
/// it, nor does it stop ending with its parent.
const PRCTL: &[libc::c_int] = &[
    libc::PR_CAPBSET_READ,
    libc::PR_GET_DUMPABLE,
    libc::PR_GET_NAME,
    libc::PR_GET_NO_NEW_PRIVS,
    libc::PR_GET_PDEATHSIG,
    libc::PR_GET_SECCOMP,
    libc::PR_GET_THP_DISABLE,
    libc::PR_GET_TIMERSLACK,
    libc::PR_SET_NAME,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_SET_THP_DISABLE,
    libc::PR_SET_TIMERSLACK,
    libc::PR_SET_VMA,
];

/// Who gets the signals of a descriptor: without these nobody does. Not all are in libc.
const F_SETSIG: u64 = 10;
const F_SETOWN_EX: u64 = 15;
const FIOSETOWN: u64 = 0x8901;
const SIOCSPGRP: u64 = 0x8902;
/// Puts a letter into a terminal's input, as if it was typed.
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;

/// Refused, if one of the rules fits; without a rule, always.
type Refused = BTreeMap<i64, Vec<SeccompRule>>;

fn refused(pid: u32, may_write: bool) -> Result<Refused, Error> {
    let pid = u64::from(pid);
    let mut refused: Refused = REFUSED
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
    when(
        libc::SYS_fcntl,
        owners.into_iter().collect::<Result<_, Error>>()?,
    )?;
    let controls = [TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP];
    let controls = controls.map(|request| Ok(vec![is(1, request)?]));
    when(
        libc::SYS_ioctl,
        controls.into_iter().collect::<Result<_, Error>>()?,
    )?;
    if !may_write {
        for call in WRITING.iter().chain(WRITING_HERE) {
            when(*call, Vec::new())?;
        }
        for (call, flags) in OPEN {
            let creating = [
                libc::O_CREAT,
                libc::O_TRUNC,
                libc::O_TMPFILE & !libc::O_DIRECTORY,
            ];
            let creating = creating.map(|flag| Ok(vec![bits(*flags, flag as u64, flag as u64)?]));
            when(*call, creating.into_iter().collect::<Result<_, Error>>()?)?;
        }
    }
    Ok(refused)
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

/// Both filters, in the order in which they are installed: of two equal answers the later one's counts.
pub(super) fn filters(pid: u32, may_write: bool) -> Result<[BpfProgram; 2], Error> {
    let here = std::env::consts::ARCH.try_into()?;
    let errno = |errno: i32| SeccompAction::Errno(errno as u32);
    let mut known: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    known.extend(
        KNOWN
            .iter()
            .chain(KNOWN_HERE)
            .map(|call| (*call, Vec::new())),
    );
    if may_write {
        let writing = WRITING.iter().chain(WRITING_HERE);
        known.extend(writing.map(|call| (*call, Vec::new())));
    }
    let known = SeccompFilter::new(known, errno(libc::ENOSYS), SeccompAction::Allow, here)?;
    let refused = refused(pid, may_write)?;
    let refused = SeccompFilter::new(refused, SeccompAction::Allow, errno(libc::EPERM), here)?;
    Ok([known.try_into()?, refused.try_into()?])
}

/// Filters the calls of this process, whose id is `pid`; `false`: this kernel cannot.
pub(super) fn restrict(pid: u32, may_write: bool) -> Result<bool, Error> {
    for filter in filters(pid, may_write)? {
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
