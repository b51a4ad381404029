use super::*;
use crate::models::gguf::tests::writer::Gguf;
use crate::models::{Catalogue, Record};

/// A source file, and a directory for models that does not exist yet.
struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            root: tempfile::tempdir().unwrap(),
        };
        let (mut file, file_bytes) = Gguf::good().bytes();
        file.resize(file_bytes as usize, 7);
        std::fs::write(place.source(), file).unwrap();
        place
    }

    fn source(&self) -> PathBuf {
        self.root.path().join("source.gguf")
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("var/models")
    }

    fn add(&self, on_existing: OnExisting) -> Result<Added, AddError> {
        add(&self.source(), &self.dir(), "tiny", on_existing, |_| {})
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir()).unwrap();
        let mut files: Vec<String> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        files
    }
}

const COMPLETE: [&str; 3] = [LOCK, "tiny.gguf", "tiny.gguf.json"];

#[test]
fn a_good_file_is_copied_recorded_and_listed_as_local() {
    let place = Place::new();
    let mut heard = 0;
    let added = add(
        &place.source(),
        &place.dir(),
        "tiny",
        OnExisting::Refuse,
        |n| heard = n,
    )
    .unwrap();
    let bytes = std::fs::read(place.source()).unwrap();
    assert_eq!(std::fs::read(&added.path).unwrap(), bytes);
    assert_eq!(heard, bytes.len() as u64);
    let sha256: String = Sha256::digest(&bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let record = Record {
        origin: "local".into(),
        signed: false,
        sha256,
        file_bytes: bytes.len() as u64,
    };
    assert_eq!(added.record, record);
    assert_eq!(place.files(), COMPLETE);

    let config = crate::config::load(&crate::config::Sources::defaults()).unwrap();
    let catalogue = Catalogue::read(&config.models, &place.dir()).unwrap();
    assert_eq!(catalogue.get("tiny").unwrap().record, Some(record));
}

#[test]
fn a_model_that_is_there_stays_unless_it_is_to_be_replaced() {
    let place = Place::new();
    place.add(OnExisting::Refuse).unwrap();
    assert!(matches!(
        place.add(OnExisting::Refuse),
        Err(AddError::Exists { .. })
    ));
    place.add(OnExisting::Replace).unwrap();
    assert_eq!(place.files(), COMPLETE);
}

#[test]
fn a_file_that_is_no_model_changes_nothing() {
    let place = Place::new();
    std::fs::write(place.source(), b"GGUF but no more").unwrap();
    assert!(matches!(
        place.add(OnExisting::Refuse),
        Err(AddError::Gguf(_))
    ));
    assert!(!place.dir().exists());
}

#[test]
fn a_source_that_is_cut_or_grows_while_it_is_copied_is_not_let_in() {
    for change in [-1_i64, 1] {
        let place = Place::new();
        let source = place.source();
        // Large enough for several pieces, so that the change comes in the middle.
        let length = 3 * PIECE_BYTES as u64;
        let resize = |length| {
            OpenOptions::new()
                .write(true)
                .open(&source)
                .unwrap()
                .set_len(length)
                .unwrap()
        };
        resize(length);
        let mut once = Some(());
        let result = add(&source, &place.dir(), "tiny", OnExisting::Refuse, |_| {
            if once.take().is_some() {
                resize(length.strict_add_signed(change));
            }
        });
        assert!(
            matches!(result, Err(AddError::Changed { .. })),
            "{result:?}"
        );
        assert_eq!(place.files(), [LOCK]);
    }
}

#[test]
fn what_a_power_cut_left_behind_is_cleared() {
    let place = Place::new();
    std::fs::create_dir_all(place.dir()).unwrap();
    std::fs::write(place.dir().join(".tiny.gguf.part"), b"half").unwrap();
    place.add(OnExisting::Refuse).unwrap();
    assert_eq!(place.files(), COMPLETE);
}

#[test]
fn two_at_a_time_do_not_meet() {
    let place = Place::new();
    std::fs::create_dir_all(place.dir()).unwrap();
    let held = lock(&place.dir()).unwrap();
    assert!(matches!(
        place.add(OnExisting::Refuse),
        Err(AddError::Busy { .. })
    ));
    drop(held);
    place.add(OnExisting::Refuse).unwrap();
}

#[test]
fn a_model_larger_than_the_disk_is_refused_before_anything_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let error = check_room(dir.path(), u64::MAX / 2).unwrap_err();
    assert!(matches!(error, AddError::NoRoom { .. }), "{error}");
    check_room(dir.path(), 1).unwrap();
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let place = Place::new();
    let error = add(
        &place.source(),
        Path::new("/proc/models"),
        "tiny",
        OnExisting::Refuse,
        |_| {},
    );
    assert!(error.unwrap_err().to_string().starts_with("/proc/models: "));
}
