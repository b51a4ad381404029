//! Both layers hold the thread that closes them, so each play has a thread of its own.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;

use landlock::ABI;
use nix::errno::Errno;
use nix::libc;

use super::calls::Needs;
use super::files::Allowed;
use super::*;
use crate::scripted::load_spec;

fn on_a_thread<T: Send>(play: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(play).join().unwrap())
}

fn errno<T>(result: io::Result<T>) -> Option<Errno> {
    result.err()?.raw_os_error().map(Errno::from_raw)
}

/// A number of no file: the call itself is judged before its arguments are looked at.
const NO_FILE: libc::c_long = 1_000_000;

#[expect(unsafe_code, reason = "calls that no library has a word for")]
fn call(number: libc::c_long, arguments: [libc::c_long; 4]) -> Option<Errno> {
    let [a, b, c, d] = arguments;
    // SAFETY: every pointer argument that the tests pass is NULL or no address at all, which the kernel
    // answers with an error.
    let result = unsafe { libc::syscall(number, a, b, c, d) };
    (result == -1).then(Errno::last)
}

fn filtered<T: Send>(needs: Needs, play: impl FnOnce() -> T + Send) -> T {
    on_a_thread(move || {
        for filter in calls::filters(std::process::id(), needs).unwrap() {
            seccompiler::apply_filter(&filter).unwrap();
        }
        play()
    })
}

#[test]
fn what_an_intruder_would_call_is_not_permitted() {
    filtered(Needs::default(), || {
        let own = libc::c_long::from(std::process::id());
        let cases = [
            ("socket", libc::SYS_socket, [2, 1, 0, 0]),
            ("unix socket", libc::SYS_socket, [1, 1, 0, 0]),
            ("socketpair", libc::SYS_socketpair, [1, 1, 0, 0]),
            ("execve", libc::SYS_execve, [0; 4]),
            ("execveat", libc::SYS_execveat, [NO_FILE, 0, 0, 0]),
            ("fork", libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0]),
            ("ptrace", libc::SYS_ptrace, [16, 1, 0, 0]),
            ("kill init", libc::SYS_kill, [1, 0, 0, 0]),
            ("kill all", libc::SYS_kill, [-1, 0, 0, 0]),
            ("kill the group", libc::SYS_kill, [0, 0, 0, 0]),
            ("tgkill init", libc::SYS_tgkill, [1, 1, 0, 0]),
            ("pidfd", libc::SYS_pidfd_open, [own, 0, 0, 0]),
            ("limits of init", libc::SYS_prlimit64, [1, 7, 0, 0]),
            ("read its memory", libc::SYS_process_vm_readv, [1, 0, 0, 0]),
            ("io_uring", libc::SYS_io_uring_setup, [1, 0, 0, 0]),
            ("bpf", libc::SYS_bpf, [0; 4]),
            ("perf", libc::SYS_perf_event_open, [0; 4]),
            ("userfaultfd", libc::SYS_userfaultfd, [0; 4]),
            ("keys", libc::SYS_keyctl, [0; 4]),
            ("namespaces", libc::SYS_unshare, [0x1000_0000, 0, 0, 0]),
            ("mount", libc::SYS_mount, [0; 4]),
            ("chroot", libc::SYS_chroot, [0; 4]),
            ("chmod", libc::SYS_fchmod, [NO_FILE, 0o777, 0, 0]),
            ("truncate", libc::SYS_truncate, [0; 4]),
            ("another filter", libc::SYS_seccomp, [0; 4]),
            ("be traced", libc::SYS_prctl, [0x5961_6d61, -1, 0, 0]),
            ("outlive its parent", libc::SYS_prctl, [1, 0, 0, 0]),
            ("owner", libc::SYS_fcntl, [0, libc::F_SETOWN.into(), 1, 0]),
            ("signal", libc::SYS_fcntl, [0, 10, 9, 0]),
            ("type", libc::SYS_ioctl, [0, 0x5412, 0, 0]),
            (
                "create",
                libc::SYS_openat,
                [-100, 0, libc::O_CREAT.into(), 0],
            ),
            (
                "empty",
                libc::SYS_openat,
                [-100, 0, libc::O_TRUNC.into(), 0],
            ),
            ("folder", libc::SYS_mkdirat, [-100, 0, 0, 0]),
            ("remove", libc::SYS_unlinkat, [-100, 0, 0, 0]),
        ];
        for (what, number, arguments) in cases {
            assert_eq!(call(number, arguments), Some(Errno::EPERM), "{what}");
        }
        // Unknown to the filter is as unknown to the kernel, so that libraries find another way.
        assert_eq!(call(libc::SYS_clone3, [0; 4]), Some(Errno::ENOSYS));
        assert_eq!(call(libc::SYS_openat2, [0; 4]), Some(Errno::ENOSYS));
        assert_eq!(call(100_000, [0; 4]), Some(Errno::ENOSYS));
    });
}

#[test]
fn what_a_worker_does_all_day_still_works() {
    static RAN: AtomicUsize = AtomicUsize::new(0);
    filtered(Needs::default(), || {
        let threads = Vec::from_iter((0..4).map(|_| {
            std::thread::spawn(|| {
                RAN.fetch_add(vec![1_u8; 8 << 20].len(), Ordering::Relaxed);
            })
        }));
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(RAN.load(Ordering::Relaxed), 32 << 20);
        assert!(
            fs::read_to_string("/proc/thread-self/status")
                .unwrap()
                .contains("Seccomp:\t2")
        );
        assert!(nix::sys::signal::raise(nix::sys::signal::Signal::SIGCONT).is_ok());
        assert!(std::thread::available_parallelism().is_ok());
        std::thread::yield_now();
    });
}

#[test]
fn a_folder_for_the_cache_may_be_written_where_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str| errno(fs::write(dir.path().join(name), "x"));
    let needs = Needs {
        may_write: true,
        ..Needs::default()
    };
    filtered(needs, || assert_eq!(write("a"), None));
    filtered(Needs::default(), || {
        assert_eq!(write("b"), Some(Errno::EPERM));
    });
}

const GPU: Needs = Needs {
    gpu: true,
    may_write: false,
    states: None,
};

fn open(path: &str, flags: libc::c_int) -> Option<Errno> {
    let path = std::ffi::CString::new(path).unwrap();
    call(
        libc::SYS_openat,
        [
            libc::AT_FDCWD.into(),
            path.as_ptr() as libc::c_long,
            flags.into(),
            0o600,
        ],
    )
}

#[test]
fn a_gpus_driver_gets_a_socket_that_nobody_is_answered_at() {
    filtered(GPU, || {
        let (unix, inet) = (1, 2);
        let (stream, seqpacket) = (1, 5 | libc::c_long::from(libc::SOCK_CLOEXEC));
        assert_eq!(call(libc::SYS_socket, [unix, seqpacket, 0, 0]), None);
        // As the driver does before it binds: there is nothing to remove, and nothing is removed.
        assert_eq!(
            call(libc::SYS_unlinkat, [-100, 0, 0, 0]),
            Some(Errno::ENOENT)
        );
        #[cfg(target_arch = "x86_64")]
        assert_eq!(call(libc::SYS_unlink, [0; 4]), Some(Errno::ENOENT));
        // Of no file: the filter lets them through.
        for number in [libc::SYS_bind, libc::SYS_listen] {
            assert_eq!(call(number, [NO_FILE, 0, 0, 0]), Some(Errno::EBADF));
        }
        let pass_credentials = [NO_FILE, 1, 16, 0];
        assert_eq!(
            call(libc::SYS_setsockopt, pass_credentials),
            Some(Errno::EBADF)
        );
        for (what, number, arguments) in [
            ("unix stream", libc::SYS_socket, [unix, stream, 0, 0]),
            ("internet", libc::SYS_socket, [inet, seqpacket, 0, 0]),
            ("pair", libc::SYS_socketpair, [unix, seqpacket, 0, 0]),
            ("connect", libc::SYS_connect, [NO_FILE, 0, 0, 0]),
            ("accept", libc::SYS_accept, [NO_FILE, 0, 0, 0]),
            ("accept4", libc::SYS_accept4, [NO_FILE, 0, 0, 0]),
            ("another option", libc::SYS_setsockopt, [NO_FILE, 1, 7, 0]),
            ("another level", libc::SYS_setsockopt, [NO_FILE, 6, 16, 0]),
            ("rename", libc::SYS_renameat2, [-100, 0, -100, 0]),
            ("folder", libc::SYS_mkdirat, [-100, 0, 0, 0]),
        ] {
            assert_eq!(call(number, arguments), Some(Errno::EPERM), "{what}");
        }
    });
}

#[test]
fn a_gpus_driver_opens_as_fopen_does_to_write_and_in_no_other_way_that_makes_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let path = path.to_str().unwrap();
    filtered(GPU, || {
        let (create, empty) = (libc::O_CREAT, libc::O_TRUNC);
        for flags in [
            create,
            empty,
            libc::O_WRONLY | create,
            libc::O_WRONLY | empty,
            libc::O_RDWR | create | empty,
            libc::O_RDONLY | create | empty,
            libc::O_ACCMODE | create | empty,
            libc::O_WRONLY | create | libc::O_EXCL,
            libc::O_WRONLY | libc::O_TMPFILE,
        ] {
            assert_eq!(open(path, flags), Some(Errno::EPERM), "{flags:o}");
        }
        // Which file is for Landlock to say.
        let fopen_w = libc::O_WRONLY | create | empty;
        assert_eq!(open(path, fopen_w), None);
        assert_eq!(open(path, fopen_w | libc::O_CLOEXEC), None);
    });
}

/// A place with a model, a library, and something that is nobody's business.
fn place() -> (tempfile::TempDir, LoadSpec) {
    let dir = tempfile::tempdir().unwrap();
    for name in ["model.gguf", "secret", "other.gguf"] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    fs::create_dir(dir.path().join("cache")).unwrap();
    let mut spec = load_spec();
    spec.path = dir.path().join("model.gguf");
    (dir, spec)
}

/// Runs `play` under the rules of `abi`; `None` where this kernel has no Landlock.
fn ruled<T: Send>(allowed: &Allowed, abi: ABI, play: impl FnOnce() -> T + Send) -> Option<T> {
    on_a_thread(move || match files::restrict(allowed, abi).unwrap() {
        Ok(_) => {
            privileges::give_away().unwrap();
            Some(play())
        }
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        Err(missing) => {
            eprintln!("SKIPPED the rules for files: {missing}");
            None
        }
    })
}

#[test]
fn the_file_of_saved_states_is_written_within_its_length_and_nothing_else_is() {
    use orinoco::kv_file::Medium;
    use std::os::fd::AsRawFd as _;
    let (dir, spec) = place();
    let path = dir.path().join("kv");
    let file = fs::File::create_new(&path).unwrap();
    let other = fs::File::create_new(dir.path().join("open before")).unwrap();
    let (fd, bytes_max) = (file.as_raw_fd(), 1 << 20);
    for gpu in [false, true] {
        let needs = Needs {
            gpu,
            may_write: false,
            states: Some(calls::States {
                fd: fd as u64,
                bytes_max,
                piece_bytes: 4096,
            }),
        };
        let allowed = Allowed::of(&spec, &Default::default());
        // Landlock first, as the worker does, and where there is none the filter by itself.
        on_a_thread(|| {
            let has_landlock = files::restrict(&allowed, files::ABI_USED).unwrap().is_ok();
            privileges::give_away().unwrap();
            for filter in calls::filters(std::process::id(), needs).unwrap() {
                seccompiler::apply_filter(&filter).unwrap();
            }
            // All that the thread for it does.
            file.lock().unwrap();
            file.write_at(0, &[7; 4096]).unwrap();
            file.write_at(bytes_max, &[7; 100]).unwrap();
            file.sync().unwrap();
            file.clear(0, 100).unwrap();
            file.set_len(200).unwrap();
            assert!(file.metadata().unwrap().len() == 200 && file.free_bytes().unwrap() > 0);
            Medium::unlock(&file);
            // And what one that was taken over would.
            let fd = libc::c_long::from(fd);
            let far = bytes_max as libc::c_long + 1;
            let duplicate = libc::F_DUPFD.into();
            for (what, number, arguments) in [
                ("beyond its length", libc::SYS_pwrite64, [fd, 0, 1, far]),
                ("much at once", libc::SYS_pwrite64, [fd, 0, 4097, 0]),
                ("where it stands", libc::SYS_write, [fd, 0, 1, 0]),
                ("by pieces", libc::SYS_writev, [fd, 0, 1, 0]),
                ("by pieces there", libc::SYS_pwritev, [fd, 0, 1, 0]),
                ("make it long", libc::SYS_ftruncate, [fd, far, 0, 0]),
                ("take room", libc::SYS_fallocate, [fd, 0, 0, far]),
                ("another name", libc::SYS_dup, [fd, 0, 0, 0]),
                ("a chosen one", libc::SYS_dup3, [fd, 900, 0, 0]),
                ("a free one", libc::SYS_fcntl, [fd, duplicate, 100, 0]),
            ] {
                assert_eq!(call(number, arguments), Some(Errno::EPERM), "{what}");
            }
            // Nor anew, by its name or by what /proc says of it.
            for path in [path.clone(), format!("/proc/self/fd/{fd}").into()] {
                let anew = fs::File::options().write(true).open(path);
                assert!(!has_landlock || errno(anew) == Some(Errno::EACCES));
            }
            // Other descriptors are not its business.
            Medium::write_at(&other, far as u64, b"x").unwrap();
        });
    }
}

#[test]
fn only_the_model_and_the_system_can_be_read() {
    let (dir, spec) = place();
    let at = |name: &str| dir.path().join(name);
    // By the oldest rules, as on L4T, and by the newest.
    for abi in [ABI::V1, files::ABI_USED] {
        let allowed = Allowed::of(&spec, &Default::default());
        ruled(&allowed, abi, || {
            assert_eq!(fs::read(&spec.path).unwrap(), b"model.gguf");
            assert!(fs::read("/proc/cpuinfo").is_ok() && fs::read("/proc/self/maps").is_ok());
            assert!(fs::read_dir("/sys/devices/system/cpu").is_ok());
            assert!(fs::write("/dev/null", "x").is_ok());
            for path in ["secret", "other.gguf"].map(at) {
                assert_eq!(errno(fs::read(&path)), Some(Errno::EACCES), "{path:?}");
                assert_eq!(errno(fs::write(&path, "x")), Some(Errno::EACCES));
                assert_eq!(errno(fs::remove_file(&path)), Some(Errno::EACCES));
            }
            for path in ["/etc/passwd", "/proc/1/environ", "/proc/1/mem"] {
                assert!(fs::read(path).is_err(), "{path}");
            }
            assert_eq!(errno(fs::read_dir(dir.path())), Some(Errno::EACCES));
            assert_eq!(errno(fs::write(&spec.path, "x")), Some(Errno::EACCES));
            assert_eq!(errno(fs::create_dir(at("new"))), Some(Errno::EACCES));
        });
    }
}

#[test]
fn a_model_replaced_under_its_name_is_not_opened() {
    let (dir, spec) = place();
    let allowed = Allowed::of(&spec, &Default::default());
    let (closed, is_closed) = sync_channel(0);
    let (replaced, is_replaced) = sync_channel(0);
    let path = &spec.path;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let rules = files::restrict(&allowed, files::ABI_USED).unwrap();
            closed.send(()).unwrap();
            is_replaced.recv().unwrap();
            if rules.is_ok() {
                assert_eq!(errno(fs::read(path)), Some(Errno::EACCES));
            }
        });
        is_closed.recv().unwrap();
        fs::rename(dir.path().join("other.gguf"), path).unwrap();
        replaced.send(()).unwrap();
    });
}

#[test]
fn the_operator_opens_more_files_and_one_folder_to_write() {
    let (dir, spec) = place();
    let rules = orinoco::frames::SandboxSpec {
        read: vec![dir.path().join("secret")],
        write: Some(dir.path().join("cache")),
    };
    let allowed = Allowed::of(&spec, &rules);
    ruled(&allowed, files::ABI_USED, || {
        assert_eq!(fs::read(dir.path().join("secret")).unwrap(), b"secret");
        let file = dir.path().join("cache/kernel");
        fs::write(&file, "x").unwrap();
        fs::rename(&file, dir.path().join("cache/other")).unwrap();
        assert!(fs::read(dir.path().join("other.gguf")).is_err());
    });
}

#[test]
fn the_gpu_is_closed_to_a_worker_for_the_cpu() {
    let (_dir, mut spec) = place();
    spec.backend = orinoco::frames::Backend::Cpu;
    let allowed = Allowed::of(&spec, &Default::default());
    assert!(allowed.nodes.contains(Path::new("/dev/null")));
    assert!(
        !allowed
            .nodes
            .iter()
            .any(|node| node.starts_with("/dev/nvidia0"))
    );
    // Nobody is given a whole system by a strange environment.
    assert!(!allowed.list.contains(Path::new("/")) && !allowed.read.contains(Path::new("/")));
}

#[test]
fn a_gpus_driver_names_its_threads_and_writes_no_other_file() {
    let (dir, spec) = place();
    let mut allowed = Allowed::of(&spec, &Default::default());
    let plain = allowed.clone();
    allowed.open_gpu(vec!["/dev/null".into()]);
    for abi in [ABI::V1, files::ABI_USED] {
        // Named from outside, as the driver does with threads that it has just started.
        let name = |allowed: &Allowed| {
            ruled(allowed, abi, || {
                let (say, told) = sync_channel(0);
                let (end, ended) = sync_channel::<()>(0);
                let thread = std::thread::spawn(move || {
                    say.send(nix::unistd::gettid()).unwrap();
                    let _ = ended.recv();
                });
                let comm = format!("/proc/self/task/{}/comm", told.recv().unwrap());
                let written = fs::write(&comm, "cuda-thread");
                let read = fs::read_to_string(&comm).unwrap();
                drop(end);
                thread.join().unwrap();
                written.map(|()| read)
            })
        };
        if let Some(named) = name(&allowed) {
            assert_eq!(named.unwrap(), "cuda-thread\n");
        }
        if let Some(named) = name(&plain) {
            assert_eq!(errno(named), Some(Errno::EACCES));
        }
        ruled(&allowed, abi, || {
            for path in [dir.path().join("new"), dir.path().join("secret")] {
                assert_eq!(errno(fs::write(&path, "x")), Some(Errno::EACCES));
            }
            for path in ["/proc/self/oom_score_adj", "/proc/1/comm"] {
                assert!(errno(fs::write(path, "0")).is_some(), "{path}");
            }
        });
    }
    assert!(fs::read(dir.path().join("secret")).unwrap() == b"secret");
}

#[test]
fn root_keeps_nothing_but_reading() {
    use caps::{CapSet, Capability, read};
    on_a_thread(|| {
        privileges::give_away().unwrap();
        for set in [CapSet::Effective, CapSet::Permitted] {
            let kept = read(None, set).unwrap();
            assert!(
                kept.iter().all(|c| *c == Capability::CAP_DAC_READ_SEARCH),
                "{kept:?}"
            );
        }
        assert!(read(None, CapSet::Inheritable).unwrap().is_empty());
        assert!(privileges::are_final());
    });
}
