//! Which libraries the engine needs, which of them the loader would find, and what CUDA is installed.
//!
//! The loader's cache (`/etc/ld.so.cache`) is not read: it is made from `/etc/ld.so.conf`, which is. So a
//! tree of another board, whose cache is for another root, is judged as the board itself.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};
use object::{Endianness, ReadCache, ReadRef as _, elf};

use crate::board::Root;

/// The driver's library, which CUDA opens by this name.
pub const LIBCUDA: &str = "libcuda.so.1";

/// Where the loader looks without being told.
const DEFAULT_DIRS: &[&str] = &[
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];

/// Where NVIDIA puts its driver's library; the loader has to be told. L4T R36, and R35.
const DRIVER_DIRS: &[&str] = &[
    "/usr/lib/aarch64-linux-gnu/nvidia",
    "/usr/lib/aarch64-linux-gnu/tegra",
];

/// Largest file of loader paths, and most files that it may take in.
const CONF_BYTES_MAX: usize = 64 * 1024;
const CONFS_MAX: usize = 64;

/// Most libraries that a program is believed to need, and the most bytes of its list and of its names.
const NEEDED_MAX: usize = 256;
const LIST_BYTES_MAX: u64 = 1 << 20;

/// What is installed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Libraries {
    /// Every driver's library that the loader would find, the one that it takes first.
    pub libcuda: Vec<String>,
    /// One that it would not find.
    pub stray_libcuda: Option<String>,
    /// CUDA toolkits, as directories.
    pub toolkits: Vec<String>,
    /// The compiler of one of them.
    pub nvcc: Option<String>,
}

/// A program file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// On the board.
    pub path: String,
    /// What it is; `None`: it is not there; or why that cannot be told.
    pub header: Result<Option<Header>, String>,
}

/// Of an ELF file what matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// `aarch64`, `x86_64`, or a number.
    pub machine: String,
    /// Libraries, each with the path at which the loader would find it.
    pub needed: Vec<(String, Option<String>)>,
}

/// Reads what is installed. `extra_dirs`: of `LD_LIBRARY_PATH`.
pub fn read(root: &Root, extra_dirs: &[String]) -> Libraries {
    let dirs = search_dirs(root, extra_dirs);
    let found = |dirs: &[String]| -> Vec<String> {
        let paths = dirs.iter().map(|dir| format!("{dir}/{LIBCUDA}"));
        let mut seen: Vec<(Option<(u64, u64)>, String)> = Vec::new();
        for path in paths.filter(|path| root.exists(path)) {
            let identity = identity(root, &path);
            if !seen.iter().any(|(known, _)| *known == identity) {
                seen.push((identity, path));
            }
        }
        seen.into_iter().map(|(_, path)| path).collect()
    };
    let libcuda = found(&dirs);
    let elsewhere: Vec<String> = DRIVER_DIRS.iter().map(|dir| (*dir).to_owned()).collect();
    let toolkits: Vec<String> = (root.names("/usr/local", "cuda-").into_iter())
        // cuda-12 is a link to cuda-12.6.
        .filter(|name| name.contains('.'))
        .map(|name| format!("/usr/local/{name}"))
        .collect();
    let nvcc = (toolkits.iter().map(String::as_str))
        .chain(["/usr/local/cuda"])
        .map(|dir| format!("{dir}/bin/nvcc"))
        .find(|path| root.exists(path));
    Libraries {
        stray_libcuda: match libcuda.is_empty() {
            true => found(&elsewhere).into_iter().next(),
            false => None,
        },
        libcuda,
        toolkits,
        nvcc,
    }
}

/// Reads a program's header, and looks for its libraries as the loader would.
pub fn program(root: &Root, path: &str, extra_dirs: &[String]) -> Program {
    let file = root.resolve(path).and_then(File::open);
    let header = match file {
        Ok(file) => header(root, path, file, extra_dirs).map(Some),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.to_string()),
    };
    Program {
        path: path.to_owned(),
        header,
    }
}

fn header(root: &Root, path: &str, file: File, extra_dirs: &[String]) -> Result<Header, String> {
    let (machine, needed, run_paths) = dynamic(file).map_err(|e| format!("no ELF program: {e}"))?;
    let origin = Path::new(path)
        .parent()
        .unwrap_or(Path::new("/"))
        .to_string_lossy();
    let run_paths = run_paths.iter().flat_map(|paths| paths.split(':'));
    let run_paths = run_paths
        .map(|dir| {
            dir.replace("${ORIGIN}", &origin)
                .replace("$ORIGIN", &origin)
        })
        .filter(|dir| dir.starts_with('/'));
    let mut dirs: Vec<String> = run_paths.collect();
    dirs.extend(search_dirs(root, extra_dirs));
    let at = |name: &str| {
        let mut paths = dirs.iter().map(|dir| format!("{dir}/{name}"));
        paths.find(|path| root.exists(path))
    };
    let is_library = |name: &String| !name.starts_with("ld-linux");
    let needed = needed.into_iter().filter(is_library);
    Ok(Header {
        machine,
        needed: needed.map(|name| (name.clone(), at(&name))).collect(),
    })
}

/// Machine, needed libraries and run paths.
fn dynamic(file: File) -> Result<(String, Vec<String>, Vec<String>), object::Error> {
    // The engine has hundreds of megabytes of GPU code: only what is asked for is read.
    let cache = ReadCache::new(file);
    let data = &cache;
    let header = elf::FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let machine = match header.e_machine(endian) {
        elf::EM_AARCH64 => "aarch64".to_owned(),
        elf::EM_X86_64 => "x86_64".to_owned(),
        other => format!("machine {other:?}"),
    };
    let segments = header.program_headers(endian, data)?;
    let mut entries = Vec::new();
    // A size out of a broken file is nothing to make room for.
    let is_sane = |bytes: u64| bytes <= LIST_BYTES_MAX;
    for segment in segments
        .iter()
        .filter(|s| is_sane(s.p_filesz(endian)) || s.p_type(endian) != elf::PT_DYNAMIC)
    {
        if let Some(dynamic) = segment.dynamic(endian, data)? {
            entries.extend_from_slice(dynamic);
            break;
        }
    }
    let value = |tag| {
        let mut all = entries.iter();
        let entry = all.find(|entry| entry.d_tag(endian) == tag);
        entry.map(|entry| entry.d_val(endian))
    };
    // The table of names is given as an address; a segment says where in the file that is.
    let strings = value(elf::DT_STRTAB)
        .zip(value(elf::DT_STRSZ))
        .and_then(|(address, size)| {
            let segment = segments.iter().find(|segment| {
                let start = segment.p_vaddr(endian);
                segment.p_type(endian) == elf::PT_LOAD
                    && (start..start.saturating_add(segment.p_filesz(endian))).contains(&address)
            })?;
            let offset = segment
                .p_offset(endian)
                .checked_add(address - segment.p_vaddr(endian))?;
            data.read_bytes_at(offset, Some(size).filter(|size| is_sane(*size))?)
                .ok()
        });
    let names = |wanted: &[_]| -> Vec<String> {
        let offsets = (entries.iter())
            .filter(|entry| wanted.contains(&entry.d_tag(endian)))
            .take(NEEDED_MAX);
        let texts = offsets.filter_map(|entry| {
            let at = usize::try_from(entry.d_val(endian)).ok()?;
            let text = strings?.get(at..)?.split(|byte| *byte == 0).next()?;
            Some(String::from_utf8_lossy(text).into_owned())
        });
        texts.collect()
    };
    Ok((
        machine,
        names(&[elf::DT_NEEDED]),
        names(&[elf::DT_RUNPATH, elf::DT_RPATH]),
    ))
}

/// Where the loader looks, in its order.
fn search_dirs(root: &Root, extra_dirs: &[String]) -> Vec<String> {
    let mut dirs = extra_dirs.to_vec();
    let mut open = vec!["/etc/ld.so.conf".to_owned()];
    let mut n_read = 0;
    while let Some(path) = open.pop() {
        n_read += 1;
        let Ok(Some(bytes)) = root.bytes(&path, CONF_BYTES_MAX) else {
            continue;
        };
        for line in String::from_utf8_lossy(&bytes).lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            match line.strip_prefix("include ") {
                Some(pattern) if n_read < CONFS_MAX => open.extend(included(root, pattern.trim())),
                Some(_) => {}
                None if line.starts_with('/') => dirs.push(line.to_owned()),
                None => {}
            }
        }
    }
    dirs.extend(DEFAULT_DIRS.iter().map(|dir| (*dir).to_owned()));
    dirs
}

/// `/etc/ld.so.conf.d/*.conf`, the last name first, as they are taken from the end.
fn included(root: &Root, pattern: &str) -> Vec<String> {
    let (dir, name) = pattern.rsplit_once('/').unwrap_or(("/etc", pattern));
    let (start, end) = name.split_once('*').unwrap_or((name, ""));
    let mut names = root.names(dir, start);
    names.retain(|name| name.ends_with(end));
    names.sort();
    names.truncate(CONFS_MAX);
    names
        .iter()
        .rev()
        .map(|name| format!("{dir}/{name}"))
        .collect()
}

/// One file may be reached by several names, through links and mounts.
fn identity(root: &Root, path: &str) -> Option<(u64, u64)> {
    let meta = root.resolve(path).ok()?.metadata().ok()?;
    Some((meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    /// This test's own program, which is one.
    fn own() -> Vec<u8> {
        let mut bytes = fs::read(std::env::current_exe().unwrap()).unwrap();
        // What is asked for lies at both ends; the middle is only long.
        bytes.truncate(1 << 16);
        bytes
    }

    fn read_bytes(bytes: &[u8]) -> Program {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("program"), bytes).unwrap();
        program(&Root::new(dir.path()), "/program", &[])
    }

    #[test]
    fn our_own_program_needs_the_c_library() {
        let path = std::env::current_exe().unwrap();
        let program = program(&Root::live(), path.to_str().unwrap(), &[]);
        let header = program.header.unwrap().unwrap();
        assert_eq!(header.machine, std::env::consts::ARCH);
        let libc = header.needed.iter().find(|(name, _)| name == "libc.so.6");
        assert!(libc.unwrap().1.is_some(), "{header:?}");
    }

    #[test]
    fn directories_of_the_loader_are_taken_in_its_order() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "etc/ld.so.conf",
            "include /etc/ld.so.conf.d/*.conf\n/last # not least\nno/path\n",
        );
        write("etc/ld.so.conf.d/b.conf", "/b\ninclude /etc/ld.so.conf\n");
        write("etc/ld.so.conf.d/a.conf", "# none\n/a\n");
        write("etc/ld.so.conf.d/c.txt", "/c\n");
        let dirs = search_dirs(&Root::new(dir.path()), &["/first".into()]);
        assert_eq!(dirs[0], "/first");
        let at = |name: &str| dirs.iter().position(|dir| dir == name).unwrap();
        assert!(at("/a") < at("/b"), "{dirs:?}");
        assert!(!dirs.contains(&"/c".into()) && !dirs.contains(&"no/path".into()));
        assert!(dirs.len() < 1000, "a circle of includes ends");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(read_bytes(&bytes).header.is_err());
        }

        /// Broken where it hurts: in the headers, whose sizes and places everything follows.
        #[test]
        fn no_change_of_a_program_makes_the_reader_panic(
            changes in prop::collection::vec((0_usize..2048, any::<u8>()), 1..16),
        ) {
            let mut bytes = own();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            // Whatever it says, it says so.
            let _ = read_bytes(&bytes).header;
        }
    }
}
