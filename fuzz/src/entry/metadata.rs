//! What a server, a mirror or a stick says is the metadata of the fleet: first byte which of the files it is, the
//! rest its bytes. The other files are genuine.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use orinoco::ota::TargetName;
use orinoco::ota::trust::{Client, MetadataSource, Place, SourceError, Trust, TrustedNow};

const ROOT: &[u8] = include_bytes!("../../../tests/ota/tiny/1.root.json");
const FILES: [(&str, &[u8]); 4] = [
    (
        "metadata/timestamp.json",
        include_bytes!("../../../tests/ota/tiny/timestamp.json"),
    ),
    (
        "metadata/2.snapshot.json",
        include_bytes!("../../../tests/ota/tiny/2.snapshot.json"),
    ),
    (
        "metadata/2.targets.json",
        include_bytes!("../../../tests/ota/tiny/2.targets.json"),
    ),
    // There is none: a device asks for it to see whether its keys were replaced.
    ("metadata/2.root.json", &[]),
];
/// When the files were signed, and a day.
const NOW_S: u64 = 1_795_305_600;

struct Source<'a> {
    file: &'static str,
    bytes: &'a [u8],
}

impl MetadataSource for Source<'_> {
    fn get(&mut self, file: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>, SourceError> {
        let genuine = FILES.iter().find(|(name, _)| *name == file);
        let bytes = match file == self.file {
            true => self.bytes,
            false => genuine.map_or(&[][..], |(_, bytes)| bytes),
        };
        if bytes.len() as u64 > limit_bytes {
            let file = file.to_owned();
            return Err(SourceError::TooLong { file, limit_bytes });
        }
        Ok((!bytes.is_empty()).then(|| bytes.to_vec()))
    }
}

/// A folder in memory, where there is one: each input begins with an empty one.
fn folder() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let shm = PathBuf::from("/dev/shm");
    let dir = if shm.is_dir() {
        shm
    } else {
        std::env::temp_dir()
    };
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    dir.join(format!("orinoco-fuzz-{}-{count}", std::process::id()))
}

/// Has a new device believe it. Whoever has no key gets nothing else believed than what was signed.
pub fn check(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else {
        return;
    };
    let (file, _) = FILES[usize::from(*which) % FILES.len()];
    let folder = folder();
    let place = Place {
        folder: folder.clone(),
        root: ROOT.to_vec(),
    };
    let mut client = Client::open(place).expect("an empty folder");
    let now = TrustedNow::exactly(NOW_S);
    let catalog = TargetName::catalog();
    match client.refresh(&mut Source { file, bytes }, now) {
        Ok(versions) => {
            assert_eq!((versions.root, versions.targets), (1, 2));
            let target = client.target(&catalog, now).expect("it is trusted");
            let digest = target.expect("it is signed").digest.to_string();
            let genuine = std::str::from_utf8(FILES[2].1).expect("JSON");
            assert!(genuine.contains(&digest), "{digest} was never signed");
        }
        Err(error) => {
            assert!(client.target(&catalog, now).is_err(), "{error}");
            assert!(error.to_string().len() < 8192, "a sentence, not the file");
        }
    }
    drop(client);
    let _ = std::fs::remove_dir_all(folder);
}
