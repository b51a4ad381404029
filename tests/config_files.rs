//! Configuration from real files: what is read, in which order, and what a bad file costs.

use std::fs;
use std::path::Path;

use orinoco::config::{Config, Place, Sources, load};

struct Etc(tempfile::TempDir);

impl Etc {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("config.d")).expect("a fresh directory");
        for (name, text) in files {
            fs::write(dir.path().join(name), text).expect("a fresh file");
        }
        Self(dir)
    }

    fn load(&self) -> Result<Config, String> {
        load_from(self.0.path())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

fn load_from(path: &Path) -> Result<Config, String> {
    let sources = Sources {
        place: Place::Path(path.to_owned()),
        ..Sources::defaults()
    };
    load(&sources).map_err(|e| e.to_string())
}

#[test]
fn drop_ins_overlay_the_main_file_in_the_order_of_their_names() {
    let etc = Etc::new(&[
        ("config.toml", "[mqtt]\nhost = \"a\"\nport = 1\n"),
        ("config.d/20-late.toml", "[mqtt]\nport = 3\n"),
        (
            "config.d/10-early.toml",
            "[mqtt]\nport = 2\nkeep_alive_seconds = 10\n",
        ),
        ("config.d/30-backup.toml~", "[mqtt]\nport = 4\n"),
    ]);
    let config = etc.load().unwrap();
    assert_eq!((config.mqtt.host.as_str(), config.mqtt.port), ("a", 3));
    let shown = config.to_toml(true);
    let host = format!("# {}", etc.path("config.toml"));
    let port = format!("# {}", etc.path("config.d/20-late.toml"));
    assert!(
        shown
            .lines()
            .any(|l| l.starts_with("host = \"a\"") && l.ends_with(&host)),
        "{shown}"
    );
    assert!(
        shown
            .lines()
            .any(|l| l.starts_with("port = 3") && l.ends_with(&port)),
        "{shown}"
    );
}

#[test]
fn problems_of_all_files_are_reported_together() {
    let etc = Etc::new(&[
        (
            "config.toml",
            "[mqtt]\nport = \"1883\"\nhosst = \"a\"\n[webui]\nport = 1\n",
        ),
        ("config.d/10.toml", "[broker\n"),
        ("config.d/20.toml", "log = 5\n[engine.n_seq_max]\nx = 1\n"),
    ]);
    let error = etc.load().unwrap_err();
    let (main, ten, twenty) = (
        etc.path("config.toml"),
        etc.path("config.d/10.toml"),
        etc.path("config.d/20.toml"),
    );
    for expected in [
        "the configuration has 6 problems".to_owned(),
        format!("{main}: mqtt.port = \"1883\": expected an integer from 0 to 65535"),
        format!("{main}: mqtt.hosst: no such key; did you mean host?"),
        format!("{main}: webui: no such section; there are "),
        format!("{ten}: TOML parse error at line 1"),
        format!("{twenty}: log = 5: expected a section: [log] with keys below it"),
        "engine.n_seq_max = a table: expected an integer from 1 to 64".to_owned(),
    ] {
        assert!(error.contains(&expected), "{expected}\nin {error}");
    }
}

#[test]
fn a_place_that_was_named_must_hold_a_configuration() {
    let etc = Etc::new(&[]);
    assert!(
        etc.load()
            .unwrap_err()
            .contains("no config.toml and no config.d/*.toml here")
    );
    let missing = etc.0.path().join("nowhere.toml");
    let error = load_from(&missing).unwrap_err();
    assert!(error.contains("nowhere.toml: No such file"), "{error}");
}

#[test]
fn a_file_that_is_too_large_or_no_file_is_refused_without_reading_it_all() {
    let etc = Etc::new(&[("config.toml", &"# x\n".repeat(70_000))]);
    assert!(etc.load().unwrap_err().contains("larger than 262144 bytes"));
    let error = load_from(Path::new("/dev/zero")).unwrap_err();
    assert!(error.contains("not a regular file"), "{error}");
}

#[test]
fn text_that_is_not_utf8_or_deeply_nested_is_a_problem_of_its_file() {
    let etc = Etc::new(&[(
        "config.d/deep.toml",
        &format!("[mqtt]\nport = {}", "[".repeat(100_000)),
    )]);
    fs::write(
        etc.0.path().join("config.d/latin1.toml"),
        b"[node]\nname = \"K\xfcche\"\n",
    )
    .unwrap();
    let error = etc.load().unwrap_err();
    assert!(error.contains("deep.toml: "), "{error}");
    assert!(
        error.contains("latin1.toml: stream did not contain valid UTF-8"),
        "{error}"
    );
}

#[test]
fn relative_paths_stand_on_the_command_line_only() {
    let etc = Etc::new(&[("config.toml", "[paths]\nmodels_dir = \"models\"\n")]);
    let error = etc.load().unwrap_err();
    assert!(
        error.contains("paths.models_dir = \"models\": expected an absolute path"),
        "{error}"
    );
    let config = load(&Sources {
        working_dir: "/srv".into(),
        ..Sources::defaults().set("paths.models_dir", "models")
    })
    .unwrap();
    assert_eq!(config.paths.models_dir, Path::new("/srv/models"));
}

#[test]
fn a_chat_template_is_read_with_the_configuration_and_bounded() {
    let etc = Etc::new(&[
        ("chat.jinja", "{{ messages }}"),
        ("huge.jinja", &"x".repeat(300_000)),
    ]);
    let load = |name: &str| {
        let file = etc.path(name);
        load(&Sources::defaults().set("model.chat_template_file", file)).map_err(|e| e.to_string())
    };
    assert_eq!(
        load("chat.jinja")
            .unwrap()
            .models
            .default
            .chat_template
            .as_deref(),
        Some("{{ messages }}")
    );
    assert!(
        load("huge.jinja")
            .unwrap_err()
            .contains("larger than 262144 bytes")
    );
    assert!(load("none.jinja").unwrap_err().contains("No such file"));
}
