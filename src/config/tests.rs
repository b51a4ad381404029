use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::access::Role;
use crate::frames::{Backend, KvType, SandboxSpec, Switch};

fn defaults() -> Config {
    load(&Sources::defaults()).unwrap()
}

fn device<'c>(config: &'c Config, user: &str) -> &'c UserPolicy {
    config.users.policy(user, Role::Device)
}

fn problems(sources: &Sources) -> Vec<String> {
    match load(sources) {
        Ok(_) => Vec::new(),
        Err(e) => e.problems.iter().map(ToString::to_string).collect(),
    }
}

fn environment(variables: &[(&str, &str)]) -> Sources {
    let pairs = variables
        .iter()
        .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
    Sources {
        environment: pairs.collect(),
        ..Sources::defaults()
    }
}

/// Lines of `default.toml` that set a key, with the comment lines above them, by section.
fn documented() -> Vec<(String, String, bool)> {
    let mut section = String::new();
    let mut has_comment = false;
    let mut keys = Vec::new();
    for line in DEFAULT_TOML.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if line.starts_with('#') {
            has_comment = true;
        } else if line.is_empty() {
            has_comment = false;
        } else if let Some((key, rest)) = line.split_once(" = ") {
            keys.push((
                section.clone(),
                key.to_owned(),
                has_comment || rest.contains('#'),
            ));
        }
    }
    keys
}

#[test]
fn every_key_that_is_read_is_documented_and_every_documented_key_is_read() {
    let config = defaults();
    let read: Vec<_> = config
        .entries
        .iter()
        .filter(|e| !e.is_inherited)
        .map(|e| (e.section.clone(), e.key.to_owned()))
        .collect();
    let written: Vec<_> = documented().into_iter().map(|(s, k, _)| (s, k)).collect();
    assert_eq!(read, written, "same keys in the same order");
}

#[test]
fn every_documented_key_has_a_comment() {
    for (section, key, has_comment) in documented() {
        assert!(
            has_comment,
            "{section}.{key} has no comment above or beside it"
        );
    }
}

#[test]
fn the_commented_examples_are_valid_and_name_only_real_keys() {
    let mut example = String::new();
    let mut in_example = false;
    for line in DEFAULT_TOML.lines() {
        let code = line.strip_prefix("# ").filter(|_| line.starts_with('#'));
        in_example = code.is_some_and(|c| {
            in_example
                || c.starts_with("[models.")
                || c.starts_with("[profiles.")
                || c.starts_with("[templates.")
                || c.starts_with("[[templates.")
                || c.starts_with("[users.")
        });
        if let Some(code) = code.filter(|_| in_example) {
            example.push_str(code);
            example.push('\n');
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("example.toml");
    std::fs::write(&file, example).unwrap();
    let config = load(&Sources {
        place: Place::Path(file),
        ..Sources::defaults()
    })
    .unwrap();
    assert_eq!(config.models.get("small").n_ctx, 4096);
    assert_eq!(device(&config, "plc-3").ops, ["text"]);
    assert_eq!(config.templates.0["alarm-text"].vars.len(), 3);
}

#[test]
fn the_defaults_are_what_the_comments_promise() {
    let config = defaults();
    assert!(config.node.name.starts_with("node-"));
    assert_eq!(
        config.mqtt.client_id,
        format!("orinoco-{}", config.node.name)
    );
    assert_eq!(
        config.paths.models_dir,
        Path::new("/var/lib/orinoco/models")
    );
    assert_eq!(
        config.broker.storage_dir,
        Path::new("/var/lib/orinoco/broker")
    );
    assert_eq!(config.models.active, None);
    assert!(!device(&config, "anybody").allows_priority("alarm"));
    assert!(device(&config, "anybody").allows_op("chat"));
    let worker = config.engine.worker_program(Path::new("/usr/bin/orinoco"));
    assert_eq!(worker, Path::new("/usr/bin/orinoco-engine"));
}

#[test]
fn flags_win_over_the_environment_and_the_environment_over_the_defaults() {
    let sources = environment(&[
        ("ORINOCO__MQTT__PORT", "1884"),
        ("ORINOCO__MQTT__HOST", "broker.lan"),
    ])
    .set("mqtt.port", 1885);
    let config = load(&sources).unwrap();
    assert_eq!(
        (config.mqtt.host.as_str(), config.mqtt.port),
        ("broker.lan", 1885)
    );
    let origin = |key| {
        config
            .entries
            .iter()
            .find(|e| e.section == "mqtt" && e.key == key)
    };
    assert_eq!(
        origin("host").unwrap().origin,
        "environment variable ORINOCO__MQTT__HOST"
    );
    assert_eq!(origin("port").unwrap().origin, "--set mqtt.port");
    assert_eq!(origin("inflight_max").unwrap().origin, "default");
}

#[test]
fn text_from_flags_takes_the_type_of_its_key() {
    let config = load(
        &Sources::defaults()
            .set("broker.port_search", "false")
            .set("defaults.temperature", "0")
            .set("defaults.ops", "text, chat")
            .set("requests.payload_bytes_max", "100_000")
            .set("engine.backend", "cpu")
            .set("node.name", "1234"),
    )
    .unwrap();
    assert!(!config.broker.port_search);
    assert_eq!(device(&config, "anybody").sampling.temperature, 0.0);
    assert_eq!(device(&config, "anybody").ops, ["text", "chat"]);
    assert_eq!(config.requests.payload_bytes_max, 100_000);
    assert_eq!(config.engine.backend, Backend::Cpu);
    assert_eq!(config.node.name, "1234");
}

#[test]
fn all_problems_are_reported_at_once_with_origin_key_value_and_advice() {
    let sources = environment(&[
        ("ORINOCO__ENGINE__BACKEND", "gpu"),
        ("ORINOCO__MQTTT__PORT", "1"),
    ])
    .set("mqtt.prot", 1)
    .set("mqtt.keep_alive_seconds", 0)
    .set("mqtt.keep_alive", 20)
    .set("engine.temperature", 1)
    .set("log.level", "wran")
    .set("log.xyzzy", 1);
    let mut found = problems(&sources);
    found.sort();
    assert_eq!(
        found,
        [
            "--set engine.temperature: engine.temperature: no such key here; it belongs in [defaults]",
            "--set log.level: log.level = \"wran\": expected one of off, error, warn, info, debug, trace, or target=level, separated by commas",
            "--set log.xyzzy: log.xyzzy: no such key; [log] has level, format",
            "--set mqtt.keep_alive: mqtt.keep_alive: no such key; did you mean keep_alive_seconds?",
            "--set mqtt.keep_alive_seconds: mqtt.keep_alive_seconds = \"0\": expected an integer from 5 to 3600",
            "--set mqtt.prot: mqtt.prot: no such key; did you mean port?",
            "environment variable ORINOCO__ENGINE__BACKEND: engine.backend = \"gpu\": expected \"auto\" or \"cpu\"",
            "environment variable ORINOCO__MQTTT__PORT: mqttt: no such section; did you mean [mqtt]?",
        ]
    );
}

#[test]
fn the_sandbox_is_on_and_opened_by_absolute_paths_only() {
    let sandbox = |pairs: &[(&str, &str)]| {
        let sources = pairs
            .iter()
            .fold(Sources::defaults(), |all, (key, value)| all.set(key, value));
        load(&sources).unwrap().engine.sandbox
    };
    assert_eq!(sandbox(&[]), Some(SandboxSpec::default()));
    assert_eq!(sandbox(&[("engine.sandbox", "off")]), None);
    let more = SandboxSpec {
        read: vec!["/srv/cuda".into(), "/srv/tables".into()],
        write: Some("/var/cache/cuda".into()),
    };
    let set = [
        ("engine.sandbox_read", "/srv/cuda:/srv/tables"),
        ("engine.cuda_cache_dir", "/var/cache/cuda"),
    ];
    assert_eq!(sandbox(&set), Some(more));
    let found = problems(&Sources::defaults().set("engine.sandbox_read", "/srv:cuda"));
    assert_eq!(
        found,
        [
            "--set engine.sandbox_read: engine.sandbox_read = \"/srv:cuda\": expected absolute paths, joined by colons (\"cuda\" is none)"
        ]
    );
}

#[test]
fn a_password_in_the_wrong_place_is_refused_and_never_printed() {
    let found = problems(&environment(&[("ORINOCO__MQTT__PASSWORD", "hunter2")]));
    assert_eq!(
        found,
        [
            "environment variable ORINOCO__MQTT__PASSWORD: mqtt.password: no such key: passwords are read from files, use password_file"
        ]
    );
}

#[test]
fn contradictions_between_keys_are_named_at_the_key_to_change() {
    let contradictions = [
        (
            &[("mqtt.stall_seconds", "15")][..],
            "mqtt.stall_seconds",
            "keep_alive_seconds = 20",
        ),
        (
            &[("mqtt.backoff_ms_min", "50000")],
            "mqtt.backoff_ms_max",
            "backoff_ms_min = 50000",
        ),
        (
            &[("broker.mode", "external"), ("mqtt.password_file", "/x")],
            "mqtt.password_file",
            "username",
        ),
        (
            &[("model.n_ctx", "100"), ("model.n_ctx_seq", "200")],
            "model.n_ctx_seq",
            "n_ctx = 100",
        ),
        (&[("model.n_batch", "64")], "model.n_ubatch", "n_batch = 64"),
        (
            &[("model.kv_type_v", "q8_0"), ("model.flash_attn", "off")],
            "model.kv_type_v",
            "flash_attn",
        ),
        (
            &[("requests.payload_bytes_max", "300000")],
            "requests.payload_bytes_max",
            "packet_bytes_max",
        ),
        (
            &[("requests.queue_bytes_max", "70000")],
            "requests.queue_bytes_max",
            "payload_bytes_max = 131072",
        ),
        (
            &[("defaults.max_tokens", "9000")],
            "defaults.max_tokens",
            "max_tokens_max = 8192",
        ),
        (
            &[("engine.step_ms", "40000")],
            "engine.step_stall_seconds",
            "step_ms = 40000",
        ),
        (&[("paths.state_dir", "")], "paths.state_dir", "must write"),
    ];
    for (settings, key, needle) in contradictions {
        let sources = settings
            .iter()
            .fold(Sources::defaults(), |s, (key, value)| s.set(key, value));
        let error = load(&sources).unwrap_err();
        assert_eq!(error.problems.len(), 1, "{settings:?}: {error}");
        assert_eq!(error.problems[0].key, key);
        assert!(
            error.problems[0].advice.contains(needle),
            "{settings:?}: {error}"
        );
    }
}

/// Every integer key takes both ends of its range and nothing beyond, and never panics on the way.
#[test]
fn every_integer_key_is_bounded() {
    let integers: Vec<_> = defaults()
        .entries
        .into_iter()
        .filter(|e| e.value.parse::<i64>().is_ok())
        .map(|e| format!("{}.{}", e.section, e.key))
        .collect();
    assert!(integers.len() > 40, "{integers:?}");
    for key in integers {
        for outside in [i64::MIN, i64::MAX] {
            let error = load(&Sources::defaults().set(&key, outside)).unwrap_err();
            let problem = error.problems.iter().find(|p| p.key == key).unwrap();
            let range = problem
                .advice
                .strip_prefix("expected an integer from ")
                .unwrap();
            for end in range.split(" to ") {
                let ends = problems(&Sources::defaults().set(&key, end));
                assert!(
                    !ends.iter().any(|p| p.contains("expected an integer")),
                    "{ends:?}"
                );
            }
        }
    }
}

#[test]
fn users_and_models_inherit_key_by_key() {
    let config = load(
        &Sources::defaults()
            .set("defaults.max_tokens", 100)
            .set("users.plc-3.ops", "text")
            .set("model.n_ctx", 2048)
            .set("models.qwen2.5-3b.file", "qwen.gguf")
            .set("models.qwen2.5-3b.kv_type_k", "q8_0"),
    )
    .unwrap();
    let plc = device(&config, "plc-3");
    assert_eq!(
        (plc.max_tokens, plc.ops.as_slice()),
        (100, ["text"].as_slice())
    );
    assert_eq!(device(&config, "someone-else").max_tokens, 100);
    let qwen = config.models.get("qwen2.5-3b");
    assert_eq!(
        qwen.file.as_deref(),
        Some(Path::new("/var/lib/orinoco/models/qwen.gguf"))
    );
    assert_eq!((qwen.n_ctx, qwen.kv_type_k), (2048, KvType::Q8_0));
}

#[test]
fn a_user_takes_from_its_role_what_it_does_not_say_and_the_role_from_the_defaults() {
    let config = load(
        &Sources::defaults()
            .set("defaults.max_tokens", 100)
            .set("defaults.queue_jobs_max", 7)
            .set("roles.operator.max_tokens", 200)
            .set("roles.operator.running_jobs_max", 3)
            .set("users.hmi.role", "operator")
            .set("users.hmi.ops", "text")
            .set("users.plc.max_tokens", 50),
    )
    .unwrap();
    // A role in the configuration wins over that of the account.
    for account in Role::ALL {
        let hmi = config.users.policy("hmi", account);
        assert_eq!(
            (hmi.max_tokens, hmi.ops.as_slice()),
            (200, ["text"].as_slice())
        );
        assert_eq!(hmi.limits.running_jobs_max, Some(3));
        assert_eq!(hmi.limits.queue_jobs_max, 7);
    }
    // Without one, the account decides what the table inherits.
    let plc = |role| {
        let policy = config.users.policy("plc", role);
        (policy.max_tokens, policy.limits.running_jobs_max)
    };
    assert_eq!(plc(Role::Device), (50, None));
    assert_eq!(plc(Role::Operator), (50, Some(3)));
    assert!(config.users.policy("plc", Role::Monitor).ops.is_empty());
    assert_eq!(
        config.users.roles(),
        [("hmi".to_owned(), Role::Operator)].into()
    );
}

#[test]
fn nobody_may_claim_alarm_by_default_and_a_monitor_may_ask_nothing() {
    let config = defaults();
    for role in Role::ALL {
        assert!(
            !config.users.policy("x", role).allows_priority("alarm"),
            "{role}"
        );
    }
    assert!(config.users.policy("x", Role::Operator).allows_op("chat"));
    assert_eq!(
        config.users.policy("x", Role::Monitor).ops,
        Vec::<&str>::new()
    );
}

#[test]
fn an_unknown_role_is_refused_where_it_stands() {
    let found = problems(
        &Sources::defaults()
            .set("roles.admin.max_tokens", 1)
            .set("users.hmi.role", "root")
            .set("users.hmi.max_tokenz", 1),
    );
    let found = found.join("\n");
    for expected in [
        "roles.admin: no role \"admin\": expected",
        "users.hmi.role = \"root\": expected one of \"device\", \"monitor\", \"operator\"",
        "users.hmi.max_tokenz: no such key; did you mean max_tokens?",
    ] {
        assert!(found.contains(expected), "{expected} in:\n{found}");
    }
    assert_eq!(found.lines().count(), 3, "{found}");
}

#[test]
fn no_limit_is_written_as_zero() {
    let config = load(
        &Sources::defaults()
            .set("defaults.requests_per_minute_max", 0)
            .set("defaults.prompt_bytes_per_minute_max", 0),
    )
    .unwrap();
    let limits = device(&config, "x").limits;
    assert_eq!(limits.requests_per_minute_max, None);
    assert_eq!(limits.prompt_bytes_per_minute_max, None);
    assert_eq!(limits.running_jobs_max, None);
    assert_eq!(
        device(&defaults(), "x").limits.requests_per_minute_max,
        Some(600)
    );
}

#[test]
fn a_named_table_needs_a_good_name_a_model_its_file_and_a_profile_its_model() {
    let found = problems(
        &Sources::defaults()
            .set("models.small.n_ctx", 1)
            .set("profiles.slow.n_ctx", 1)
            .set("users.a/b.max_tokens", 1)
            .set("users.req.max_tokens", 1)
            .set("users.local.max_tokens", 1)
            .set("users.bob", 3),
    );
    let found = found.join("\n");
    for expected in [
        "models.small.file: this key is required",
        "profiles.slow.model: this key is required",
        "users.a/b: 1 to 64 of",
        "users.req: another name",
        "users.bob = \"3\": expected a table",
    ] {
        assert!(found.contains(expected), "{expected} in:\n{found}");
    }
    assert_eq!(found.lines().count(), 5, "{found}");
}

#[test]
fn a_bad_default_is_reported_once_and_not_again_for_each_heir() {
    let sources = Sources::defaults()
        .set("defaults.temperature", "warm")
        .set("users.a.max_tokens", 1)
        .set("users.b.max_tokens", 1);
    assert_eq!(problems(&sources).len(), 1);
}

#[test]
fn a_load_spec_carries_every_choice() {
    let config = load(
        &Sources::defaults()
            .set("model.n_ctx", 4096)
            .set("model.flash_attn", "on")
            .set("engine.n_seq_max", 4)
            .set("engine.cuda_graphs", "off")
            .set("engine.n_threads", 2),
    )
    .unwrap();
    let path = Path::new("/m/x.gguf");
    let spec = config.models.get("x").load_spec(&config.engine, "x", path);
    assert_eq!((spec.name.as_str(), spec.path.as_path()), ("x", path));
    assert_eq!((spec.n_ctx, spec.n_seq_max, spec.n_threads), (4096, 4, 2));
    assert_eq!(
        (spec.flash_attn, spec.cuda_graphs),
        (Switch::On, Switch::Off)
    );
    assert_eq!(
        (spec.step_ms, spec.step_tokens, spec.n_gpu_layers),
        (400, 256, -1)
    );
}

#[test]
fn what_show_prints_is_a_configuration_with_the_same_meaning() {
    let sources = Sources::defaults()
        .set("node.name", "press-7")
        .set("defaults.system_prompt", "Say \"no\".\nThen stop.\u{7f}")
        .set("users.plc-3.ops", "text")
        .set("models.qwen2.5-3b.file", "q.gguf");
    let config = load(&sources).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shown.toml");
    for origin in [false, true] {
        std::fs::write(&file, config.to_toml(origin)).unwrap();
        let again = load(&Sources {
            place: Place::Path(file.clone()),
            ..Sources::defaults()
        })
        .unwrap();
        let same = Config {
            entries: config.entries.clone(),
            ..again
        };
        assert_eq!(same, config);
    }
}

#[test]
fn durations_and_zero_keep_their_meaning() {
    let config = load(
        &Sources::defaults()
            .set("requests.coalesce_ms", 0)
            .set("engine.drain_seconds", 3),
    )
    .unwrap();
    assert_eq!(config.requests.coalesce, Duration::ZERO);
    assert_eq!(config.engine.drain, Duration::from_secs(3));
}

#[test]
fn names_of_boards_differ_and_do_not_show_the_machine_id() {
    let ids: BTreeSet<String> = (0..1000)
        .map(|i| node::name_from(&format!("{i:032x}")))
        .collect();
    assert_eq!(ids.len(), 1000);
    assert!(
        ids.iter()
            .all(|name| name.len() == 13 && !name.contains("00000000"))
    );
}

#[test]
fn a_misspelt_level_is_refused_instead_of_silencing_the_log() {
    for bad in [
        "",
        "wran",
        "INFO",
        "info,",
        "=info",
        "orinoco=",
        "a[b]=info",
        "info debug",
    ] {
        assert!(check_log_filter(bad).is_err(), "{bad:?}");
    }
    for good in ["info", "off", "info,orinoco::link=debug", "mqtt5=error"] {
        assert_eq!(check_log_filter(good), Ok(()), "{good:?}");
    }
}

mod random {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever text stands at whatever key, there is a configuration or a list of problems.
        #[test]
        fn any_text_at_any_key_is_a_value_or_a_problem(
            at in 0..1000_usize, value in "(-?[0-9]{1,25}|[0-9.eE+-]{1,8}|nan|inf|true|.{0,12})"
        ) {
            let entries = defaults().entries;
            let entry = &entries[at % entries.len()];
            let key = format!("{}.{}", entry.section, entry.key);
            if let Err(error) = load(&Sources::defaults().set(&key, &value)) {
                prop_assert!(!error.problems.is_empty());
            }
        }

        /// Files are written by hand and by tools; none may bring the daemon down by more than an error.
        #[test]
        fn any_key_path_is_accepted_or_refused(key in "[a-z\\[\\]0-9._-]{0,40}") {
            let _ = load(&Sources::defaults().set(&key, 1));
        }
    }
}

// TLS, and what systemd hands over.

fn tls(keys: &[(&str, &str)]) -> Sources {
    keys.iter()
        .fold(Sources::defaults(), |sources, (key, value)| {
            sources.set(&format!("mqtt.{key}"), value)
        })
}

#[test]
fn tls_takes_its_own_port_and_all_of_its_files() {
    let keys = [("tls", "on"), ("tls_ca_file", "/ca.pem")];
    let config = load(&tls(&keys)).unwrap();
    assert_eq!(config.mqtt.port, 8883);
    let expected = TlsConfig {
        ca_file: "/ca.pem".into(),
        identity: None,
        server_name: None,
    };
    assert_eq!(config.mqtt.tls, Some(expected));
    let more = [
        ("tls_cert_file", "/me.pem"),
        ("tls_key_file", "/me.key"),
        ("tls_server_name", "broker.lan"),
        ("port", "1884"),
    ];
    let config = load(&tls(&[&keys[..], &more].concat())).unwrap();
    let expected = TlsConfig {
        ca_file: "/ca.pem".into(),
        identity: Some(("/me.pem".into(), "/me.key".into())),
        server_name: Some("broker.lan".into()),
    };
    assert_eq!((config.mqtt.port, config.mqtt.tls), (1884, Some(expected)));
    assert_eq!((defaults().mqtt.port, defaults().mqtt.tls), (1883, None));
}

#[test]
fn tls_without_authorities_or_with_half_an_identity_is_refused() {
    let [problem] = &problems(&tls(&[("tls", "on")]))[..] else {
        panic!("one problem");
    };
    assert!(
        problem.contains("mqtt.tls_ca_file") && problem.contains("ca-certificates.crt"),
        "{problem}"
    );
    for (key, other) in [
        ("tls_cert_file", "tls_key_file"),
        ("tls_key_file", "tls_cert_file"),
    ] {
        let keys = [("tls", "on"), ("tls_ca_file", "/ca.pem"), (key, "/x")];
        let problems = problems(&tls(&keys));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].contains(&format!("mqtt.{key} = \"/x\": expected {other} beside it")),
            "{problems:?}"
        );
    }
}

/// Somebody who names certificates believes that the connection is encrypted.
#[test]
fn files_of_tls_without_tls_are_refused() {
    for (key, value) in [
        ("tls_ca_file", "/x"),
        ("tls_cert_file", "/x"),
        ("tls_key_file", "/x"),
        ("tls_server_name", "x"),
    ] {
        let problems = problems(&tls(&[(key, value)]));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].contains("expected tls = \"on\""),
            "{problems:?}"
        );
    }
}

#[test]
fn credentials_of_systemd_are_taken_where_the_configuration_names_no_file() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["mqtt.password", "mqtt.ca.pem", "mqtt.cert.pem"] {
        std::fs::write(dir.path().join(name), "x").unwrap();
    }
    let path = |name: &str| dir.path().join(name);
    let handed = path("").display().to_string();
    let sources = environment(&[("CREDENTIALS_DIRECTORY", &handed)])
        .set("mqtt.username", "daemon")
        .set("mqtt.tls", "on")
        .set("mqtt.tls_cert_file", "/named.pem")
        .set("mqtt.tls_key_file", "/named.key");
    let config = load(&sources).unwrap();
    assert_eq!(config.mqtt.password_file, Some(path("mqtt.password")));
    let tls = config.mqtt.tls.as_ref().unwrap();
    assert_eq!(tls.ca_file, path("mqtt.ca.pem"));
    // What is named wins over what is handed over.
    let named = ("/named.pem".into(), "/named.key".into());
    assert_eq!(tls.identity, Some(named));
    let shown = config.to_toml(true);
    let line = shown.lines().find(|line| line.starts_with("tls_ca_file"));
    assert!(
        line.unwrap().ends_with("# systemd credential mqtt.ca.pem"),
        "{shown}"
    );
    // A password that nobody is to give is a mistake, wherever it comes from.
    let sources = environment(&[("CREDENTIALS_DIRECTORY", &handed)])
        .set("broker.mode", "external")
        .set("mqtt.tls", "on");
    let problems = problems(&sources);
    let password = "systemd credential mqtt.password: mqtt.password_file";
    assert!(
        problems.iter().any(|problem| problem.starts_with(password)),
        "{problems:?}"
    );
}

/// What `SetCredential=mqtt.password:\n` gives to a service whose file is missing.
#[test]
fn a_credential_without_text_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let handed = dir.path().display().to_string();
    let sources = environment(&[("CREDENTIALS_DIRECTORY", &handed)]).set("broker.mode", "external");
    for blank in ["", "\n", " \r\n"] {
        std::fs::write(dir.path().join("mqtt.password"), blank).unwrap();
        let config = load(&sources).unwrap();
        assert_eq!(config.mqtt.password_file, None, "{blank:?}");
    }
}

/// One unit file serves every broker.mode.
#[test]
fn a_password_is_handed_over_in_vain_where_the_daemon_has_one_for_its_own_broker() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mqtt.password");
    std::fs::write(&file, "x").unwrap();
    let handed = dir.path().display().to_string();
    for mode in ["child", "unit"] {
        let sources = environment(&[("CREDENTIALS_DIRECTORY", &handed)]).set("broker.mode", mode);
        let config = load(&sources).unwrap();
        assert_eq!(config.mqtt.password_file.as_ref(), Some(&file), "{mode}");
    }
}

#[test]
fn sources_of_updates_keep_their_order_and_hold_no_password() {
    let listed = ["/run/orinoco/usb", "http://b.lan/fleet", "http://a.lan"];
    let config = load(&Sources::defaults().set("ota.fetch.sources", listed.join(","))).unwrap();
    assert_eq!(config.ota.fetch.sources, listed);
    for wrong in [
        "ftp://a",
        "http://",
        "http://ann:secret@a/",
        "relative",
        "http://a/?b",
    ] {
        let error = load(&Sources::defaults().set("ota.fetch.sources", wrong)).unwrap_err();
        assert_eq!(error.problems[0].key, "ota.fetch.sources", "{wrong}");
    }
}

#[test]
fn an_https_source_needs_authorities() {
    let https = Sources::defaults().set("ota.fetch.sources", "https://a.lan");
    let error = load(&https).unwrap_err();
    assert_eq!(error.problems[0].key, "ota.fetch.ca_file");
    let config = load(&https.set("ota.fetch.ca_file", "/ca.pem")).unwrap();
    assert_eq!(
        config.ota.fetch.ca_file.as_deref(),
        Some(Path::new("/ca.pem"))
    );
}
