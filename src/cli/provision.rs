//! `orinoco provision`: makes a new board a member of a fleet.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use sha2::{Digest as _, Sha256};
use toml::{Table, Value};

use super::output;
use crate::config::{self, Config, Place, Sources};
use crate::ota::GroupName;
use crate::ota::stick::{self, DeviceKey};
use crate::ota::trust::{Client, root};
use crate::secret;

/// Make this board a member of a fleet: whom it believes, its group, its account
///
/// Run once as root on a new board, before the daemon starts. Compare what it prints of the root with the record
/// of the ceremony: from then on whoever holds those keys decides what runs here. Nothing is changed when
/// something does not fit.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  orinoco provision --root 1.root.json --group hall2 --source http://mirror.lan/fleet
  orinoco provision --root 1.root.json --source /run/orinoco/usb
  orinoco provision --root 1.root.json --mqtt-username board-7 --mqtt-password-file board-7.password")]
pub(super) struct Args {
    /// The root file of the fleet: metadata/1.root.json of its repository
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    /// Which releases are for this board
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Where updates come from, in order; may be given several times
    #[arg(long, value_name = "URL_OR_DIR")]
    source: Vec<String>,
    /// The board's account on the broker
    #[arg(long, value_name = "NAME", requires = "mqtt_password_file")]
    mqtt_username: Option<String>,
    /// Its password, on the first line of this file; - is standard input
    #[arg(long, value_name = "FILE", requires = "mqtt_username")]
    mqtt_password_file: Option<PathBuf>,
    /// Where the configuration lies
    #[arg(long, value_name = "DIR", default_value = "/etc/orinoco")]
    into: PathBuf,
    /// Believe this root anew: another one than until now, or the same after `floor_corrupt`. What the board knew
    /// of the versions of updates is forgotten
    #[arg(long)]
    replace_root: bool,
}

/// The part of the configuration that this command writes, and nobody else.
const DROP_IN: &str = "50-provision.toml";

pub(super) fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    let root = read_root(&args.root)?;
    let facts = root::inspect(&root).with_context(|| args.root.display().to_string())?;
    let group = args.group.as_deref().map(GroupName::new).transpose()?;
    let password = match &args.mqtt_password_file {
        Some(file) => Some(secret::password(file)?),
        None => None,
    };
    let root_file = args.into.join("root.json");
    if let Ok(present) = fs::read(&root_file) {
        ensure!(
            present == root || args.replace_root,
            "{} is another root already: whoever holds its keys decides what runs here; \
             --replace-root if that shall change",
            root_file.display()
        );
    }

    let drop_in_dir = args.into.join("config.d");
    fs::create_dir_all(&drop_in_dir).with_context(|| drop_in_dir.display().to_string())?;
    let drop_in = drop_in_dir.join(DROP_IN);
    let before = fs::read(&drop_in).ok();
    let text = settings(args, &root_file, group.as_ref()).to_string();
    let head = "# Written by `orinoco provision`; what you write into a later file wins.\n\n";
    replace(&drop_in, format!("{head}{text}").as_bytes(), 0o644)?;
    if let Err(error) = config::load(&Sources {
        place: Place::Path(args.into.clone()),
        ..Sources::defaults()
    }) {
        match before {
            Some(before) => replace(&drop_in, &before, 0o644)?,
            None => fs::remove_file(&drop_in)?,
        }
        bail!("nothing was changed, since the configuration would not be right: {error}");
    }
    if let Some(password) = password {
        let line = format!("{password}\n");
        replace(&args.into.join("mqtt.password"), line.as_bytes(), 0o600)?;
    }
    let ota_dir = config.paths.ota_dir();
    if args.replace_root {
        Client::forget(&ota_dir.join("trust")).context("is the daemon stopped?")?;
    }
    replace(&root_file, &root, 0o644)?;

    stick::make_dir(&ota_dir).with_context(|| ota_dir.display().to_string())?;
    let key = DeviceKey::load_or_make(&ota_dir.join("device.key"))?;
    output::say(&format!(
        "root {} of {} keys, {} of which sign the next one; expires {}\n\
         SHA-256 {}\n\
         written: {}, {}\n\
         key of this board, which signs its reports:",
        facts.version,
        facts.n_keys,
        facts.threshold,
        facts.expires,
        hex(&Sha256::digest(&root)),
        root_file.display(),
        drop_in.display(),
    ));
    output::answer(&key.public_pem())
}

fn read_root(path: &Path) -> anyhow::Result<Vec<u8>> {
    let found = fs::metadata(path).with_context(|| path.display().to_string())?;
    ensure!(
        found.len() <= crate::ota::trust::limit::ROOT_BYTES,
        "{}: {} bytes, a root has at most {}",
        path.display(),
        found.len(),
        crate::ota::trust::limit::ROOT_BYTES
    );
    fs::read(path).with_context(|| path.display().to_string())
}

fn settings(args: &Args, root_file: &Path, group: Option<&GroupName>) -> Table {
    let text = |text: &str| Value::String(text.to_owned());
    let mut ota = Table::new();
    ota.insert("root_file".into(), text(&root_file.to_string_lossy()));
    if let Some(group) = group {
        ota.insert("group".into(), text(group.as_str()));
    }
    if !args.source.is_empty() {
        let sources = args.source.iter().map(|source| text(source)).collect();
        let mut fetch = Table::new();
        fetch.insert("sources".into(), Value::Array(sources));
        ota.insert("fetch".into(), Value::Table(fetch));
    }
    let mut settings = Table::new();
    if let Some(name) = &args.mqtt_username {
        let mut mqtt = Table::new();
        mqtt.insert("username".into(), text(name));
        let file = args.into.join("mqtt.password");
        mqtt.insert("password_file".into(), text(&file.to_string_lossy()));
        settings.insert("mqtt".into(), Value::Table(mqtt));
    }
    settings.insert("ota".into(), Value::Table(ota));
    settings
}

/// The old content or the new one is there afterwards.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let _ = fs::remove_file(&new);
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().with_context(|| format!("write {}", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const ROOT: &[u8] = include_bytes!("../../tests/ota/1.root.json");

    struct Board {
        dir: tempfile::TempDir,
        config: Config,
    }

    impl Board {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("state")).unwrap();
            fs::write(dir.path().join("1.root.json"), ROOT).unwrap();
            let state = dir.path().join("state");
            let mut config = config::load(&Sources::defaults()).unwrap();
            config.paths.state_dir = state;
            Self { dir, config }
        }

        fn args(&self) -> Args {
            Args {
                root: self.dir.path().join("1.root.json"),
                group: Some("hall2".into()),
                source: vec!["http://mirror.lan/fleet".into(), "/run/orinoco/usb".into()],
                mqtt_username: None,
                mqtt_password_file: None,
                into: self.dir.path().join("etc"),
                replace_root: false,
            }
        }

        fn loaded(&self) -> Config {
            let place = Place::Path(self.dir.path().join("etc"));
            config::load(&Sources {
                place,
                ..Sources::defaults()
            })
            .unwrap()
        }
    }

    #[test]
    fn a_new_board_knows_whom_to_believe_its_group_its_sources_and_its_account() {
        let board = Board::new();
        let secret = board.dir.path().join("secret");
        fs::write(&secret, "topsecret\n").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let args = Args {
            mqtt_username: Some("board-7".into()),
            mqtt_password_file: Some(secret),
            ..board.args()
        };
        run(&args, &board.config).unwrap();
        let loaded = board.loaded();
        assert_eq!(loaded.ota.root_file, board.dir.path().join("etc/root.json"));
        assert_eq!(loaded.ota.group.as_deref(), Some("hall2"));
        assert_eq!(loaded.ota.fetch.sources, args.source);
        assert_eq!(loaded.mqtt.username.as_deref(), Some("board-7"));
        let password = loaded.mqtt.password_file.unwrap();
        assert_eq!(secret::password(&password).unwrap(), "topsecret");
        assert_eq!(fs::read(loaded.ota.root_file).unwrap(), ROOT);
        assert!(board.dir.path().join("state/ota/device.key").exists());
        // Once more is no harm, and the key stays.
        let key = fs::read(board.dir.path().join("state/ota/device.key")).unwrap();
        run(&args, &board.config).unwrap();
        assert_eq!(
            fs::read(board.dir.path().join("state/ota/device.key")).unwrap(),
            key
        );
    }

    #[test]
    fn another_root_takes_the_place_of_the_first_only_when_that_is_said() {
        let board = Board::new();
        fs::create_dir(board.dir.path().join("etc")).unwrap();
        let present = board.dir.path().join("etc/root.json");
        fs::write(&present, "of somebody else").unwrap();
        let floor = board.config.paths.ota_dir().join("trust/floor.a");
        fs::create_dir_all(floor.parent().unwrap()).unwrap();
        fs::write(&floor, "of another fleet").unwrap();
        let refused = run(&board.args(), &board.config).unwrap_err().to_string();
        assert!(refused.contains("--replace-root"), "{refused}");
        assert_eq!(fs::read(&present).unwrap(), b"of somebody else");
        assert!(floor.exists());
        let args = Args {
            replace_root: true,
            ..board.args()
        };
        run(&args, &board.config).unwrap();
        assert_eq!(fs::read(&present).unwrap(), ROOT);
        assert!(!floor.exists(), "its versions are not ours");
    }

    #[test]
    fn a_root_that_is_none_and_a_source_that_is_none_change_nothing() {
        let board = Board::new();
        let forged = board.dir.path().join("forged.json");
        let mut bytes = ROOT.to_vec();
        let digit = bytes.iter().rposition(u8::is_ascii_digit).unwrap();
        bytes[digit] = if bytes[digit] == b'0' { b'1' } else { b'0' };
        fs::write(&forged, bytes).unwrap();
        for args in [
            Args {
                root: forged,
                ..board.args()
            },
            Args {
                source: vec!["ftp://mirror".into()],
                ..board.args()
            },
            Args {
                group: Some("Hall 2".into()),
                ..board.args()
            },
        ] {
            run(&args, &board.config).unwrap_err();
            assert!(!board.dir.path().join("etc/root.json").exists());
            assert!(!board.dir.path().join("etc/config.d").join(DROP_IN).exists());
        }
    }
}
