//! The program as a person runs it: what it prints, and how it exits.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn orinoco(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_orinoco"))
        .env_clear()
        .stdin(Stdio::null())
        .arg("--state-dir")
        .arg(dir)
        .args(args)
        .output()
        .expect("the program starts")
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("UTF-8")
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("UTF-8")
}

/// A GGUF file that the preflight lets pass: one tensor, one token.
fn tiny_gguf() -> Vec<u8> {
    let text = |bytes: &str| [&(bytes.len() as u64).to_le_bytes(), bytes.as_bytes()].concat();
    let key = |key: &str, value_type: u32, value: Vec<u8>| {
        [text(key), value_type.to_le_bytes().to_vec(), value].concat()
    };
    let mut file = [
        b"GGUF\x03\0\0\0".to_vec(),
        1_u64.to_le_bytes().to_vec(),
        5_u64.to_le_bytes().to_vec(),
        key("general.architecture", 8, text("llama")),
        key("tokenizer.ggml.model", 8, text("llama")),
        key("llama.context_length", 4, 512_u32.to_le_bytes().to_vec()),
        key("llama.block_count", 4, 1_u32.to_le_bytes().to_vec()),
        key(
            "tokenizer.ggml.tokens",
            9,
            [
                8_u32.to_le_bytes().to_vec(),
                1_u64.to_le_bytes().to_vec(),
                text("a"),
            ]
            .concat(),
        ),
        text("t"),
        1_u32.to_le_bytes().to_vec(),
        8_u64.to_le_bytes().to_vec(),
        0_u32.to_le_bytes().to_vec(),
        0_u64.to_le_bytes().to_vec(),
    ]
    .concat();
    file.resize(file.len().next_multiple_of(32) + 32, 0);
    file
}

#[test]
fn a_mistake_on_the_command_line_exits_64_and_help_0() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = orinoco(dir.path(), &["config", "shwo"]);
    assert_eq!(wrong.status.code(), Some(64));
    assert!(stderr(&wrong).contains("'show'"), "{}", stderr(&wrong));
    let help = orinoco(dir.path(), &["ask", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(stdout(&help).contains("EXAMPLES"));
}

#[test]
fn a_wrong_configuration_exits_78_with_every_problem() {
    let dir = tempfile::tempdir().unwrap();
    let output = orinoco(
        dir.path(),
        &[
            "config",
            "check",
            "--set",
            "mqtt.prot=1",
            "--set",
            "log.level=loud",
        ],
    );
    assert_eq!(output.status.code(), Some(78));
    let expected = "\
orinoco: the configuration has 2 problems
  --set log.level: log.level = \"loud\": expected one of off, error, warn, info, debug, trace, or target=level, separated by commas
  --set mqtt.prot: mqtt.prot: no such key; did you mean port?
";
    assert_eq!(stderr(&output), expected);
}

#[test]
fn a_set_without_a_value_or_a_section_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let output = orinoco(dir.path(), &["config", "check", "--set", "port=1"]);
    assert!(
        stderr(&output).contains("--set port: expected section.key=value"),
        "{}",
        stderr(&output)
    );
    let output = orinoco(dir.path(), &["config", "check", "--set", "mqtt.port"]);
    assert!(
        stderr(&output).contains("mqtt.port = \"\": expected an integer"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn show_says_what_is_in_force_and_where_it_was_set() {
    let dir = tempfile::tempdir().unwrap();
    let output = orinoco(
        dir.path(),
        &["config", "show", "--origin", "--set", "mqtt.port=1999"],
    );
    assert_eq!(output.status.code(), Some(0));
    let line = |start: &str| {
        stdout(&output)
            .lines()
            .find(|l| l.starts_with(start))
            .unwrap()
            .to_owned()
    };
    assert!(line("port = 1999").ends_with("# --set mqtt.port"));
    assert!(line("state_dir").ends_with("# --state-dir"));
    assert!(line("n_seq_max").ends_with("# default"));
}

#[test]
fn the_documented_defaults_are_a_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let documented = orinoco(dir.path(), &["config", "show", "--documented"]);
    let file = dir.path().join("config.toml");
    std::fs::write(&file, &documented.stdout).unwrap();
    let check = orinoco(
        dir.path(),
        &["config", "check", "--config", file.to_str().unwrap()],
    );
    assert_eq!(check.status.code(), Some(0), "{}", stderr(&check));
}

#[test]
fn a_model_is_let_in_listed_and_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("tiny.gguf");
    std::fs::write(&source, tiny_gguf()).unwrap();
    let add = ["models", "add", source.to_str().unwrap()];

    let added = orinoco(dir.path(), &add);
    assert_eq!(added.status.code(), Some(0), "{}", stderr(&added));
    assert!(
        stdout(&added).starts_with("tiny: llama F32, 8 parameters"),
        "{}",
        stdout(&added)
    );
    let again = orinoco(dir.path(), &add);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("--replace"), "{}", stderr(&again));

    let listed = orinoco(dir.path(), &["models", "list"]);
    let line = stdout(&listed).lines().nth(1).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[..4], ["*", "tiny", "llama", "F32"]);
    assert!(line.ends_with("local, unsigned"), "{line}");
    let json = orinoco(dir.path(), &["models", "list", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(
        (json[0]["name"].as_str(), json[0]["n_ctx_train"].as_u64()),
        (Some("tiny"), Some(512))
    );
}

#[test]
fn a_file_that_is_no_model_is_refused_with_65_and_a_broken_one_is_listed_as_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("cut.gguf");
    std::fs::write(&source, &tiny_gguf()[..100]).unwrap();
    let output = orinoco(dir.path(), &["models", "add", source.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(65));
    assert!(
        stderr(&output).contains("the copy is incomplete"),
        "{}",
        stderr(&output)
    );

    let models = dir.path().join("models");
    std::fs::create_dir(&models).unwrap();
    std::fs::copy(&source, models.join("cut.gguf")).unwrap();
    let listed = orinoco(dir.path(), &["models", "list"]);
    assert!(
        stdout(&listed).contains("refused: the file ends inside its header"),
        "{}",
        stdout(&listed)
    );
}

#[test]
fn users_are_added_listed_and_removed_and_only_a_made_password_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let made = orinoco(dir.path(), &["user", "add", "plc-3"]);
    assert_eq!(stdout(&made).trim().len(), 24, "{}", stderr(&made));
    let file = dir.path().join("password");
    std::fs::write(&file, "hunter2\n").unwrap();
    let file = file.to_str().unwrap();
    let add = || orinoco(dir.path(), &["user", "add", "hmi", "--password-file", file]);
    let mode = |mode| std::fs::set_permissions(file, Permissions::from_mode(mode)).unwrap();
    mode(0o644);
    let open = add();
    assert_eq!(open.status.code(), Some(1));
    assert!(
        stderr(&open).contains("others can read it"),
        "{}",
        stderr(&open)
    );
    mode(0o600);
    let given = add();
    assert_eq!((stdout(&given), given.status.code()), ("", Some(0)));
    assert_eq!(
        stdout(&orinoco(dir.path(), &["user", "list"])),
        "hmi    device\nplc-3  device\n"
    );
    assert_eq!(
        orinoco(dir.path(), &["user", "remove", "hmi"])
            .status
            .code(),
        Some(0)
    );
    assert_eq!(
        stdout(&orinoco(dir.path(), &["user", "list"])),
        "plc-3  device\n"
    );
    let reserved = orinoco(dir.path(), &["user", "add", "daemon"]);
    assert_eq!(reserved.status.code(), Some(1));
    assert!(
        stderr(&reserved).contains("reserved"),
        "{}",
        stderr(&reserved)
    );
}

#[test]
fn a_user_is_what_it_was_added_for_unless_the_configuration_says_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let add = |args: &[&str]| orinoco(dir.path(), &[&["user", "add"], args].concat());
    assert_eq!(add(&["hmi", "--role", "operator"]).status.code(), Some(0));
    assert_eq!(add(&["hmi"]).status.code(), Some(0));
    assert_eq!(add(&["hall", "--role", "monitor"]).status.code(), Some(0));
    let list = |args: &[&str]| {
        let output = orinoco(dir.path(), &[&["user", "list"], args].concat());
        stdout(&output).to_owned()
    };
    assert_eq!(list(&[]), "hall  monitor\nhmi   operator\n");
    let set = ["--set", "users.hmi.role=device"];
    assert_eq!(list(&set), "hall  monitor\nhmi   device\n");
    let unknown = add(&["x", "--role", "root"]);
    assert_eq!(unknown.status.code(), Some(64));
    assert!(
        stderr(&unknown).contains("\"operator\""),
        "{}",
        stderr(&unknown)
    );
}

#[test]
fn the_files_for_mosquitto_that_are_shipped_are_those_that_acl_writes() {
    let dir = tempfile::tempdir().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/mosquitto");
    for (format, file) in [
        ("mosquitto", "orinoco.acl"),
        ("mosquitto-conf", "orinoco.conf"),
    ] {
        let written = orinoco(dir.path(), &["acl", "--format", format]);
        let expected = std::fs::read_to_string(shipped.join(file)).unwrap();
        let redo = "run `orinoco acl` and put what it writes there";
        assert_eq!(stdout(&written), expected, "{file} is another: {redo}");
    }
}

#[test]
fn acl_writes_for_this_root_daemon_and_these_users() {
    let dir = tempfile::tempdir().unwrap();
    orinoco(dir.path(), &["user", "add", "hall", "--role", "monitor"]);
    let acl = |format: &str, more: &[&str]| {
        let args = [
            &["acl", "--format", format, "--set", "node.root=site/a"],
            more,
        ]
        .concat();
        stdout(&orinoco(dir.path(), &args)).to_owned()
    };
    let own = acl("mosquitto", &["--set", "users.hmi.role=operator"]);
    for line in [
        "user daemon",
        "user hmi",
        "user hall",
        "topic write site/a/v1/+/set/#",
        "topic deny site/a/v1/+/req/hall/#",
        "pattern write site/a/v1/+/req/%u/#",
    ] {
        assert!(own.lines().any(|l| l == line), "{line} in:\n{own}");
    }
    // Accounts of the embedded broker are none of another's.
    let external = [
        "--set",
        "broker.mode=external",
        "--set",
        "mqtt.username=node-7",
    ];
    let other = acl("mqtt5", &external);
    assert!(other.contains("assign node-7 daemon\n"), "{other}");
    assert!(!other.contains("hall"), "{other}");
}

#[test]
fn completions_know_the_commands() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = orinoco(dir.path(), &["completions", shell]);
        assert!(stdout(&output).contains("models"), "{shell}");
    }
}
