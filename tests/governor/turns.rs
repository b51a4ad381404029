//! Requests name several models, and one serves at a time: each is answered by its own, in turn.

use orinoco::wire::report::Models;
use support::daemon::{Daemon, children_of};

use super::*;

/// A site with the models `home`, which is chosen, and `coder`, which is loaded in turn, with so many milliseconds
/// for a load.
fn two_models(port: u16, load_ms: u64) -> Site {
    let site = Site::with_broker_on(port, Engine::Scripted);
    let models = site.dir.path().join("models");
    std::fs::create_dir(&models).unwrap();
    for name in ["home", "coder", "spare"] {
        let hooks = format!("!load-ms {load_ms}\n");
        std::fs::write(models.join(format!("{name}.gguf")), hooks).unwrap();
    }
    site.set(format!("paths.models_dir={}", models.display()))
        .set("model.active=home")
        .set("model.in_turn=coder")
}

fn body(prompt: &str, more: &[(&str, serde_json::Value)]) -> String {
    let mut body = serde_json::json!({"messages": [{"role": "user", "content": prompt}]});
    for (key, value) in more {
        body[key] = value.clone();
    }
    body.to_string()
}

fn model_of(client: &Client, id: &str) -> String {
    let end = client.finals[id].first().expect("it has ended");
    let end: serde_json::Value = serde_json::from_slice(end).unwrap();
    end["model"].as_str().unwrap().to_owned()
}

fn numbers(n_tokens: usize) -> String {
    let all: String = (0..n_tokens).map(|n| format!("{n} ")).collect();
    all[..n_tokens].to_owned()
}

fn error_of(client: &Client, id: &str) -> orinoco::wire::error::ApiError {
    client.answers[id]
        .end()
        .unwrap()
        .outcome
        .clone()
        .unwrap_err()
}

#[tokio::test]
async fn each_request_is_answered_by_the_model_that_it_names() {
    let broker = Mosquitto::start().await;
    let site = two_models(broker.port(), 1000).set("models.coder.file=coder.gguf");
    let site = site.set("models.coder.aliases=code");
    let _daemon = site.start();
    let mut events = Client::watch(broker.port(), "orinoco/v1/n1/evt/switch").await;
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, "home").await;
    let coder = [("model", "code".into())];
    let asked = [
        ("a1", &[][..], "home"),
        ("a2", &coder, "coder"),
        ("a3", &[("model", "default".into())], "home"),
        ("a4", &[("model", "coder".into())], "coder"),
        ("a5", &[("model", "home".into())], "home"),
    ];
    for (id, more, _) in asked {
        client
            .ask("chat", id, &body("!count !tokens 9", more))
            .await;
    }
    let ids = asked.map(|(id, ..)| id.to_owned());
    client.until_ended(&ids).await;
    all_whole(&client, &ids);
    for (id, _, model) in asked {
        assert_eq!(model_of(&client, id), model, "{id}");
        assert_eq!(client.text(id), numbers(9));
    }
    // Who waits for a model that does not serve is told so.
    assert!(client.loading.contains("a2"), "{:?}", client.loading);
    assert!(!client.loading.contains("a1"));
    events
        .until("a turn is told", |_, client| {
            let mut events = client.events.iter();
            events.any(|event| {
                let event: serde_json::Value = serde_json::from_slice(event).unwrap();
                event["model"] == "coder" && event["served"] == true
            })
        })
        .await;
    // The next finds whoever serves, and is answered by its own all the same.
    for (id, more, model) in [("b1", &coder[..], "coder"), ("b2", &[][..], "home")] {
        client
            .ask("chat", id, &body("!count !tokens 9", more))
            .await;
        client.until_ended(&[id.to_owned()]).await;
        assert_eq!(model_of(&client, id), model, "{id}");
    }
}

#[tokio::test]
async fn a_model_that_is_here_and_not_in_turn_is_refused_with_the_key_that_would_allow_it() {
    let broker = Mosquitto::start().await;
    let site = two_models(broker.port(), 0);
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, "home").await;
    for model in ["spare", "nobody"] {
        let more = [("model", model.into())];
        client
            .ask("chat", model, &body("!count !tokens 3", &more))
            .await;
    }
    let ids = ["spare", "nobody"].map(str::to_owned);
    client.until_ended(&ids).await;
    let (spare, nobody) = (error_of(&client, "spare"), error_of(&client, "nobody"));
    assert_eq!(spare.code, Code::ModelNotFound);
    assert!(spare.message.contains("model.in_turn"), "{}", spare.message);
    assert_eq!(nobody.code, Code::ModelNotFound);
    assert!(nobody.message.contains("no model `nobody` here"));
    // Of what does not serve nobody can count the tokens now; who asks again finds it.
    let text = serde_json::json!({"prompt": "one two", "model": "coder"}).to_string();
    client.ask("tokenize", "t1", &text).await;
    client.until_ended(&["t1".to_owned()]).await;
    assert_eq!(error_of(&client, "t1").code, Code::ModelLoading);
    until_serving(&mut client, "coder").await;
    client.ask("tokenize", "t2", &text).await;
    client.until_ended(&["t2".to_owned()]).await;
    assert!(client.answers["t2"].end().unwrap().outcome.is_ok());
}

#[tokio::test]
async fn an_alarm_for_another_model_ends_a_turn_and_the_streams_go_on_in_their_next() {
    let broker = Mosquitto::start().await;
    let site = two_models(broker.port(), 50)
        .set("model.turn_seconds=40")
        .set("users.plc4.priorities=alarm,normal,batch");
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, "home").await;
    let ids = ["s1", "s2"].map(str::to_owned);
    for id in &ids {
        // Ten seconds; an eighth of a turn is five.
        let prompt = "!count !tokens 500 !step 20";
        client.ask("chat", id, &body(prompt, &[])).await;
    }
    client.until_text("s1").await;
    let started = std::time::Instant::now();
    let alarm = [("model", "coder".into()), ("priority", "alarm".into())];
    client
        .ask("chat", "alarm", &body("!count !tokens 40 !step 20", &alarm))
        .await;
    client.until_ended(&["alarm".to_owned()]).await;
    let waited = started.elapsed();
    assert_eq!(model_of(&client, "alarm"), "coder");
    // An eighth of a turn and a load, not a turn.
    assert!(waited < Duration::from_secs(40), "{waited:?}");
    client.until_ended(&ids).await;
    all_whole(&client, &ids);
    for id in &ids {
        assert_eq!(client.text(id), numbers(500));
        assert_eq!(model_of(&client, id), "home");
        assert_eq!(client.pauses[id], ["turn"], "{id} was told");
    }
    assert!(
        client.loading.contains("alarm"),
        "it was told to wait for its model"
    );
}

#[tokio::test]
async fn a_turn_ends_for_who_waits_and_everybody_gets_one() {
    let broker = Mosquitto::start().await;
    let site = two_models(broker.port(), 20)
        .set("model.in_turn=all")
        .set("model.turn_seconds=1");
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, "home").await;
    let models = ["home", "coder", "spare"];
    let mut ids = Vec::new();
    for model in models {
        for n in 0..2 {
            let id = format!("{model}{n}");
            let more = [("model", model.into())];
            // Three seconds of work for each model.
            let prompt = "!count !tokens 200 !step 15";
            client.ask("chat", &id, &body(prompt, &more)).await;
            ids.push(id);
        }
    }
    client.until_ended(&ids).await;
    all_whole(&client, &ids);
    let mut resumed = 0;
    for id in &ids {
        assert_eq!(client.text(id), numbers(200), "{id}");
        assert!(id.starts_with(&model_of(&client, id)), "{id}");
        let end: serde_json::Value =
            serde_json::from_slice(client.finals[id].first().unwrap()).unwrap();
        resumed += end["orinoco"]["resumed"].as_u64().unwrap_or(0);
    }
    assert!(resumed >= 4, "they made room for one another: {resumed}");
}

#[tokio::test]
async fn who_cannot_be_in_time_behind_a_turn_is_refused_with_the_time() {
    let broker = Mosquitto::start().await;
    let site = two_models(broker.port(), 100).set("model.turn_seconds=60");
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, "home").await;
    let coder = ("model", serde_json::Value::from("coder"));
    // What each takes is known from now on.
    for (id, more) in [("k1", vec![]), ("k2", vec![coder.clone()]), ("k3", vec![])] {
        client
            .ask("chat", id, &body("!count !tokens 20 !step 20", &more))
            .await;
        client.until_ended(&[id.to_owned()]).await;
    }
    let long = [("max_tokens", 300.into()), ("ignore_eos", true.into())];
    client
        .ask("chat", "long", &body("!count !step 30", &long))
        .await;
    client.until_text("long").await;
    let late = [coder.clone(), ("deadline_ms", 2000.into())];
    client
        .ask("chat", "late", &body("!count !tokens 5", &late))
        .await;
    client.until_ended(&["late".to_owned()]).await;
    let error = error_of(&client, "late");
    assert_eq!(error.code, Code::DeadlineExceeded);
    assert!(
        error.message.contains("`coder` has its turn in about"),
        "{error:?}"
    );
    assert!(error.eta_ms.unwrap() > 2000);
    let early = [coder, ("deadline_ms", 600_000.into())];
    client
        .ask("chat", "early", &body("!count !tokens 5", &early))
        .await;
    client.until_accepted(&["early".to_owned()]).await;
    client.cancel("long").await;
    client.until_ended(&["early".to_owned()]).await;
    assert_eq!(model_of(&client, "early"), "coder");
}

/// Streams for both models, after whatever happens to the daemon or its worker.
async fn both_end_after(happens: impl AsyncFnOnce(&Site, Daemon) -> Daemon) {
    let broker = Mosquitto::start().await;
    let site = two_models(broker.port(), 50).set("model.turn_seconds=2");
    let daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, "home").await;
    let coder = [("model", "coder".into())];
    let ids = ["h1", "c1", "h2", "c2"].map(str::to_owned);
    for id in &ids {
        let more = if id.starts_with('c') { &coder[..] } else { &[] };
        let prompt = "!count !tokens 150 !step 15";
        client.ask("chat", id, &body(prompt, more)).await;
    }
    client.until_accepted(&ids).await;
    client.until_text("c1").await;
    let _daemon = happens(&site, daemon).await;
    client.until_ended(&ids).await;
    assert_eq!(client.faults, Vec::<String>::new());
    for id in &ids {
        assert_eq!(client.finals[id].len(), 1, "{id} has one final");
        assert_eq!(client.text(id), numbers(150), "{id}");
        let model = if id.starts_with('c') { "coder" } else { "home" };
        assert_eq!(model_of(&client, id), model, "{id}");
    }
}

#[tokio::test]
async fn a_power_cut_while_both_models_are_waited_for_costs_no_answer() {
    both_end_after(async |site, daemon| {
        daemon.power_cut();
        site.start()
    })
    .await;
}

#[tokio::test]
async fn a_guest_that_is_killed_comes_back_and_nobody_loses_an_answer() {
    both_end_after(async |_, daemon| {
        // Whichever serves, and whichever rests.
        for pid in workers(&daemon) {
            let pid = nix::unistd::Pid::from_raw(pid);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        daemon
    })
    .await;
}

/// All worker processes of the daemon.
fn workers(daemon: &Daemon) -> Vec<i32> {
    let is_worker = |pid: &i32| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.starts_with("orinoco-engine")
    };
    let mut workers = Vec::from_iter(children_of(daemon.pid()).into_iter().filter(is_worker));
    workers.sort_unstable();
    workers
}

/// The models that are in memory.
fn loaded(client: &Client) -> Vec<String> {
    let Some(bytes) = client.documents.get("models") else {
        return Vec::new();
    };
    let models: Models = serde_json::from_slice(bytes).unwrap();
    let loaded = models.models.into_iter().filter(|model| model.loaded);
    loaded.map(|model| model.name).collect()
}

async fn until_loaded(client: &mut Client, names: &[&str]) {
    client
        .until("the models in memory", |_, client| loaded(client) == names)
        .await;
}

async fn ask_each(client: &mut Client, round: &str, models: &[&str]) {
    for model in models {
        let id = format!("{round}-{model}");
        let more = [("model", (*model).into())];
        client
            .ask("chat", &id, &body("!count !tokens 5", &more))
            .await;
        client.until_ended(std::slice::from_ref(&id)).await;
        assert_eq!(model_of(client, &id), *model, "{id}");
    }
}

#[tokio::test]
async fn a_model_stays_loaded_after_its_turn_until_its_memory_is_needed() {
    let root = tempfile::tempdir().unwrap();
    let meminfo = Meminfo::new(root.path());
    meminfo.available(6000);
    let broker = Mosquitto::start().await;
    let site = two_models(broker.port(), 20)
        .set(format!("paths.board_root={}", root.path().display()))
        .set("model.in_turn=all")
        .set("model.resident_max=1");
    let site = quick_watchdog(site);
    let daemon = site.start();
    let mut client = Client::connect(broker.port(), "n1", "plc4", None).await;
    until_serving(&mut client, "home").await;
    ask_each(&mut client, "r1", &["coder"]).await;
    until_loaded(&mut client, &["coder", "home"]).await;
    let both = workers(&daemon);
    assert_eq!(both.len(), 2);
    ask_each(&mut client, "r2", &["home", "coder"]).await;
    ask_each(&mut client, "r2b", &["home"]).await;
    assert_eq!(workers(&daemon), both, "nothing was loaded again");
    client
        .until("what they take is told", |_, client| {
            let memory = state(client).and_then(|state| state.memory);
            memory.is_some_and(|memory| memory.resting_bytes.is_some())
        })
        .await;

    // More than may rest: the one that has rested longest goes.
    ask_each(&mut client, "r3", &["spare"]).await;
    until_loaded(&mut client, &["home", "spare"]).await;

    // One that dies while it rests is forgotten, and loaded when it is asked.
    let rests = both
        .iter()
        .find(|pid| workers(&daemon).contains(pid))
        .unwrap();
    let pid = nix::unistd::Pid::from_raw(*rests);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    until_loaded(&mut client, &["spare"]).await;
    ask_each(&mut client, "r4", &["home"]).await;
    until_loaded(&mut client, &["home", "spare"]).await;

    // The first step of the ladder ends it, and the one that serves goes on.
    meminfo.available(700);
    until_loaded(&mut client, &["home"]).await;
    assert_eq!(workers(&daemon).len(), 1);
    ask_each(&mut client, "r5", &["home"]).await;
    // Turns are still taken, and nobody rests.
    ask_each(&mut client, "r6", &["coder"]).await;
    until_loaded(&mut client, &["coder"]).await;
}

#[tokio::test]
async fn a_load_that_does_not_fit_ends_the_model_that_has_rested_longest() {
    let root = tempfile::tempdir().unwrap();
    Meminfo::new(root.path()).available(2600);
    let broker = Mosquitto::start().await;
    let site = two_models(broker.port(), 20)
        .set(format!("paths.board_root={}", root.path().display()))
        .set("memory.reserve_bytes=1048576")
        .set("watchdog.enabled=false")
        .set("model.n_ctx=2048")
        .set("model.in_turn=all");
    for name in ["home", "coder", "spare"] {
        let file = site.dir.path().join(format!("models/{name}.gguf"));
        std::fs::write(file, format!("!weights-bytes {}\n", 1000_u64 << 20)).unwrap();
    }
    let daemon = site.start();
    let mut client = Client::connect(broker.port(), "n1", "plc4", None).await;
    // Each worker takes its part of the board, and gives it back when it ends.
    let board = async {
        loop {
            let taken = 1000 * workers(&daemon).len() as u64;
            Meminfo(root.path()).available(2600_u64.saturating_sub(taken).max(50));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let play = async {
        until_serving(&mut client, "home").await;
        ask_each(&mut client, "r1", &["coder"]).await;
        until_loaded(&mut client, &["coder", "home"]).await;
        ask_each(&mut client, "r2", &["spare"]).await;
        until_loaded(&mut client, &["coder", "spare"]).await;
        ask_each(&mut client, "r3", &["coder", "home"]).await;
        until_loaded(&mut client, &["coder", "home"]).await;
    };
    tokio::select! {
        () = board => {}
        () = play => {}
    }
}

/// One story by each of two real models, alone or both at once, with turns of a second; the texts.
async fn stories(at_once: bool) -> Vec<String> {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Smol)
        .set("model.n_ctx=2048")
        .set("model.in_turn=all")
        .set("model.turn_seconds=1");
    let daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, SMOL).await;
    let ids = ["s", "g"].map(str::to_owned);
    // Loaded once, so that its next turn begins when that of the other ends.
    let more = [("model", GEMMA.into()), ("max_tokens", 1.into())];
    client.ask("chat", "warm", &body("Hello.", &more)).await;
    client.until_ended(&["warm".to_owned()]).await;
    // More than a turn of the first, and little of the larger one, for slow machines.
    for (id, (model, n_tokens)) in ids.iter().zip([(SMOL, 300), (GEMMA, 40)]) {
        let body = serde_json::json!({
            "messages": [{"role": "user", "content": "Tell a long story about the sea."}],
            "model": model, "max_tokens": n_tokens, "ignore_eos": true, "seed": 7,
        });
        client.ask("chat", id, &body.to_string()).await;
        if !at_once {
            client.until_ended(std::slice::from_ref(id)).await;
        }
    }
    for id in &ids {
        client.until_ended(std::slice::from_ref(id)).await;
    }
    all_whole(&client, &ids);
    assert_eq!(model_of(&client, "s"), SMOL);
    assert_eq!(model_of(&client, "g"), GEMMA);
    if at_once {
        let n_pauses = client.pauses.values().map(Vec::len).sum::<usize>();
        assert!(
            n_pauses >= 1,
            "they made room for one another: {:?}",
            client.pauses
        );
        assert_eq!(workers(&daemon).len(), 2, "both stay loaded");
    }
    Vec::from_iter(ids.iter().map(|id| client.text(id).to_owned()))
}

#[tokio::test]
async fn two_real_models_take_turns_and_each_tells_the_story_that_it_tells_alone() {
    let alone = stories(false).await;
    assert_eq!(stories(true).await, alone);
}

#[tokio::test]
async fn a_guest_that_cannot_be_loaded_is_said_so_and_the_model_that_is_chosen_goes_on() {
    let broker = Mosquitto::start().await;
    let site = two_models(broker.port(), 0);
    let coder = site.dir.path().join("models/coder.gguf");
    std::fs::write(coder, "!load-fail it is of another age\n").unwrap();
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, "home").await;
    let more = [("model", "coder".into())];
    for id in ["c1", "c2"] {
        client
            .ask("chat", id, &body("!count !tokens 5", &more))
            .await;
        client.until_ended(&[id.to_owned()]).await;
        let error = error_of(&client, id);
        assert_eq!(error.code, Code::NoModel);
        assert!(error.message.contains("it is of another age"), "{error:?}");
        assert!(error.retry_after_ms.is_some());
    }
    answered(&mut client, "h1").await;
    assert_eq!(model_of(&client, "h1"), "home");
}

#[tokio::test]
async fn memory_goes_before_turns_and_an_operator_before_both() {
    let root = tempfile::tempdir().unwrap();
    let meminfo = Meminfo::new(root.path());
    meminfo.available(6000);
    let broker = Mosquitto::start().await;
    let site =
        two_models(broker.port(), 20).set(format!("paths.board_root={}", root.path().display()));
    let site = quick_watchdog(site).set("model.turn_seconds=5");
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, "home").await;
    let coder = [("model", "coder".into())];
    let prompt = "!count !tokens 300 !step 12";
    client.ask("chat", "c1", &body(prompt, &coder)).await;
    client.until_text("c1").await;
    client.ask("chat", "h1", &body(prompt, &[])).await;
    client.until_accepted(&["h1".to_owned()]).await;

    meminfo.available(300);
    until_level(&mut client, Level::Shrink).await;
    // What serves for want of memory is for all that name nobody.
    client.until_text("h1").await;
    meminfo.available(6000);
    until_level(&mut client, Level::Ok).await;
    let ids = ["c1", "h1"].map(str::to_owned);
    client.until_ended(&ids).await;
    all_whole(&client, &ids);
    for id in &ids {
        assert_eq!(client.text(id), numbers(300));
    }
    assert_eq!(model_of(&client, "c1"), "coder");

    // An order is for a model that serves those who name none; a guest has its turn afterwards as before.
    client.ask("chat", "c2", &body(prompt, &coder)).await;
    client.until_text("c2").await;
    set_model(&mut client, site.node, "spare").await;
    until_serving(&mut client, "spare").await;
    client
        .ask("chat", "s1", &body("!count !tokens 5", &[]))
        .await;
    let ids = ["c2", "s1"].map(str::to_owned);
    client.until_ended(&ids).await;
    all_whole(&client, &ids);
    assert_eq!(model_of(&client, "c2"), "coder");
    assert_eq!(model_of(&client, "s1"), "spare");
}

/// Milliseconds from the request to the first text, of the model that serves and of the one that does not; the
/// median of so many.
async fn first_text_ms(resident_max: usize, n_rounds: usize) -> (u128, u128) {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Smol)
        .set("model.n_ctx=2048")
        .set("model.in_turn=all")
        .set(format!("model.resident_max={resident_max}"));
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, SMOL).await;
    let (mut same, mut other) = (Vec::new(), Vec::new());
    for round in 0..2 * n_rounds + 2 {
        let model = if (round / 2) % 2 == 0 { SMOL } else { GEMMA };
        let id = format!("m{round}");
        let more = [("model", model.into()), ("max_tokens", 4.into())];
        let asked = std::time::Instant::now();
        client.ask("chat", &id, &body("Say hello.", &more)).await;
        client.until_text(&id).await;
        let ms = asked.elapsed().as_millis();
        client.until_ended(std::slice::from_ref(&id)).await;
        // The first of each model also warms it up.
        if round >= 4 {
            if round % 2 == 0 {
                &mut other
            } else {
                &mut same
            }
            .push(ms);
        }
    }
    let median = |mut times: Vec<u128>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    (median(same), median(other))
}

#[tokio::test]
#[ignore = "a measurement; run alone: cargo test --release --test governor -- --ignored --nocapture first_text"]
#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
async fn how_long_the_first_text_takes_when_another_model_serves() {
    let (same, cold) = first_text_ms(0, 10).await;
    let (_, resident) = first_text_ms(1, 10).await;
    println!(
        "first text: model serves {same} ms, model rests {resident} ms, model is loaded {cold} ms"
    );
    assert!(resident <= cold);
}
