//! Nothing is loaded that does not fit, nor on a CPU beside a GPU; and both are said with their numbers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;

use orinoco::wire::error::Code;
use orinoco::wire::report::{Info, Mode, Models, State, Verdict};
use support::broker::Mosquitto;
use support::daemon::{Engine, Site, poll};
use support::requester::Client;

const LOCAL: &str = "local";
const MIB: u64 = 1 << 20;

/// The tree of a board, whose memory a test decides.
struct Board(tempfile::TempDir);

impl Board {
    fn with_memory(total_mib: u64, available_mib: u64) -> Self {
        let board = Self(tempfile::tempdir().unwrap());
        board.set_memory(total_mib, available_mib);
        board
    }

    fn set_memory(&self, total_mib: u64, available_mib: u64) {
        let (total, available) = (total_mib * 1024, available_mib * 1024);
        self.write(
            "proc/meminfo",
            &format!("MemTotal: {total} kB\nMemFree: 1 kB\nMemAvailable: {available} kB\n"),
        );
    }

    /// Replaced as a whole: a reader sees the old or the new.
    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A site with a board, quick to try again.
fn site(engine: Engine, board: &Board) -> Site {
    Site::with_own_broker(engine)
        .set(format!("paths.board_root={}", board.path().display()))
        .set("engine.restart_backoff_ms_min=20")
        .set("engine.restart_backoff_ms_max=100")
}

/// Models for the scripted engine: files that say what they would take.
fn scripted_models(files: &[(&str, u64)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, weights_mib) in files {
        let bytes = weights_mib * MIB;
        // Longer files are larger models.
        let padding = ".".repeat(*weights_mib as usize);
        let text = format!("!weights-bytes {bytes}\n{padding}\n");
        fs::write(dir.path().join(format!("{name}.gguf")), text).unwrap();
    }
    dir
}

/// A retained document, once `is_it` holds.
async fn document<T: serde::de::DeserializeOwned>(
    client: &mut Client,
    topic: &str,
    is_it: impl Fn(&T) -> bool,
) -> T {
    let read = |client: &Client| -> Option<T> {
        let document = serde_json::from_slice(client.documents.get(topic)?).ok()?;
        is_it(&document).then_some(document)
    };
    if read(client).is_none() {
        let what = format!("{topic} as expected");
        client
            .until(&what, |_, client| read(client).is_some())
            .await;
    }
    read(client).unwrap()
}

async fn no_model(client: &mut Client) -> State {
    document(client, "state", |state: &State| {
        state.mode == Mode::NoModel && !state.reasons.is_empty()
    })
    .await
}

async fn refused_with(client: &mut Client, id: &str) -> orinoco::wire::error::ApiError {
    client.ask("chat", id, "hello").await;
    client.until_ended(&[id.to_owned()]).await;
    let end = client.answers[id].end().unwrap();
    end.outcome.as_ref().unwrap_err().clone()
}

#[tokio::test]
async fn a_model_that_does_not_fit_is_refused_with_numbers_until_memory_is_there() {
    // 600 MiB of weights, 64 of KV cache, 36 of process: 700. Of 930, 674 may be taken.
    let board = Board::with_memory(8192, 930);
    let models = scripted_models(&[("large", 600), ("small", 100)]);
    let site = site(Engine::Scripted, &board)
        .set(format!("paths.models_dir={}", models.path().display()))
        .set("model.active=large")
        .set("model.n_ctx=65536")
        .set("memory.reserve_bytes=268435456");
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    let refused = no_model(&mut client).await;
    assert_eq!(
        refused.reasons,
        [
            "the engine was not started: large needs 700 MiB (weights 600 MiB, KV cache 64 MiB for n_ctx = 65536 of f16, \
          compute 0.0 MiB, process 36 MiB), but only 674 MiB may be taken: 930 MiB available less a reserve of 256 MiB; \
          n_ctx = 38912, kv_type_k = kv_type_v = \"q8_0\" with n_ctx = 65536 or the model small would fit"
        ]
    );
    let memory = refused.memory.unwrap();
    assert_eq!(memory.planned_bytes, 700 * MIB);
    assert_eq!(
        (memory.available_bytes, memory.taken_bytes),
        (930 * MIB, None)
    );
    let info = document(&mut client, "info", |info: &Info| info.no_model.is_some()).await;
    assert_eq!(info.no_model, Some(refused.reasons[0].clone()));

    // It would fit if others gave memory back, so a requester may come back.
    let error = refused_with(&mut client, "early").await;
    assert_eq!(error.code, Code::OutOfMemory);
    assert!(error.retry_after_ms.is_some() && error.message.contains("700 MiB"));

    board.set_memory(8192, 1000);
    client.until_mode(Mode::Serving).await;
    client.ask("chat", "late", "hello !tokens 5").await;
    client.until_ended(&["late".into()]).await;
    assert_eq!(client.text("late"), "hello");
    let served = document(&mut client, "state", |state: &State| {
        state.mode == Mode::Serving
    })
    .await;
    let memory = served.memory.unwrap();
    assert_eq!(
        (memory.planned_bytes, memory.reserve_bytes),
        (700 * MIB, 256 * MIB)
    );
    assert!(memory.taken_bytes.is_some() && served.reasons.is_empty());
    let info = document(&mut client, "info", |info: &Info| info.no_model.is_none()).await;
    assert!(info.engine.is_some());
}

#[tokio::test]
async fn what_never_fits_on_this_board_is_no_matter_of_waiting() {
    let board = Board::with_memory(2048, 1900);
    let models = scripted_models(&[("large", 1800)]);
    let site = site(Engine::Scripted, &board)
        .set(format!("paths.models_dir={}", models.path().display()))
        .set("model.active=large");
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    let refused = no_model(&mut client).await;
    assert!(
        refused.reasons[0].ends_with("nothing smaller was found that fits"),
        "{:?}",
        refused.reasons
    );
    let error = refused_with(&mut client, "r1").await;
    assert_eq!(error.code, Code::NoModel);
}

#[tokio::test]
async fn the_pool_is_the_largest_that_fits_and_a_dead_worker_is_replaced_by_what_fits_then() {
    // Beside the reserve, 100 MiB of weights and 36 of process: 5 MiB, which are 5120 cells.
    let board = Board::with_memory(8192, 256 + 141);
    let models = scripted_models(&[("small", 100)]);
    let site = site(Engine::Scripted, &board)
        .set(format!("paths.models_dir={}", models.path().display()))
        .set("model.active=small")
        .set("memory.reserve_bytes=268435456");
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    let n_ctx = async |client: &mut Client, wanted: u32| {
        document(client, "models", |models: &Models| {
            models.models[0].n_ctx_seq == Some(wanted)
        })
        .await;
    };
    n_ctx(&mut client, 5120).await;
    board.set_memory(8192, 256 + 139);
    poll(|| daemon.kill_worker().then_some(()));
    n_ctx(&mut client, 3072).await;
}

#[tokio::test]
async fn a_worker_that_died_is_replaced_without_another_plan() {
    let board = Board::with_memory(8192, 4096);
    let site = site(Engine::Scripted, &board).set("model.n_ctx=4096");
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    for kill in 1..=2 {
        client.until_mode(Mode::Serving).await;
        let starts = |log: &str| log.matches("worker started").count();
        poll(|| (starts(&site.log()) == kill).then_some(()));
        poll(|| daemon.kill_worker().then_some(()));
        poll(|| (starts(&site.log()) == kill + 1).then_some(()));
    }
    assert_eq!(site.log().matches("planning worker starts").count(), 1);
}

#[tokio::test]
async fn another_model_loads_beside_the_old_one_or_after_it_and_never_ends_it_in_vain() {
    let board = Board::with_memory(8192, 1500);
    let models = tempfile::tempdir().unwrap();
    for (name, weights_mib) in [
        ("first", 600),
        ("second", 500),
        ("third", 501),
        ("huge", 3000),
    ] {
        let text = format!("!weights-bytes {}\n!mapped\n", weights_mib * MIB);
        fs::write(models.path().join(format!("{name}.gguf")), text).unwrap();
    }
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted)
        .set(format!("paths.board_root={}", board.path().display()))
        .set(format!("paths.models_dir={}", models.path().display()))
        .set("model.active=first")
        .set("watchdog.enabled=false")
        .set("memory.reserve_bytes=268435456");
    let daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    client.until_mode(Mode::Serving).await;
    let order = async |client: &mut Client, model: &str| {
        let topic = format!("orinoco/v1/{}/set/model", site.node);
        let props = orinoco::link::Props::default();
        client.publish(topic, model.to_owned().into(), props).await;
    };
    let serves = async |client: &mut Client, model: &str| {
        document(client, "state", |state: &State| {
            state.mode == Mode::Serving && state.model.as_deref() == Some(model)
        })
        .await;
    };
    let n_after = || site.log().matches("memory does not hold both").count();

    // 1500 less 600 that are mapped less 256: 644, and 544 are needed.
    order(&mut client, "second").await;
    serves(&mut client, "second").await;
    assert_eq!(n_after(), 0);

    // 1200 less 500 less 256: 444. Without the old one it fits.
    board.set_memory(8192, 1200);
    order(&mut client, "third").await;
    serves(&mut client, "third").await;
    assert_eq!(n_after(), 1);

    // Alone it would not fit either: the old one serves on, in the same process.
    let worker = poll(|| daemon.child_named("orinoco-engine-scripted"));
    order(&mut client, "huge").await;
    client.ask("chat", "still", "hello !tokens 5").await;
    client.until_ended(&["still".into()]).await;
    poll(|| site.log().contains("huge needs 2.9").then_some(()));
    client.ask("chat", "again", "hello !tokens 5").await;
    client.until_ended(&["again".into()]).await;
    assert_eq!(client.text("again"), "hello");
    assert_eq!(daemon.child_named("orinoco-engine-scripted"), Some(worker));
}

fn fit(args: &[&str]) -> std::process::Output {
    let program = support::daemon::beside_orinoco("orinoco-engine");
    // Nothing of the machine's own configuration counts.
    let config = tempfile::tempdir().unwrap();
    fs::write(config.path().join("config.toml"), "").unwrap();
    std::process::Command::new(env!("CARGO_BIN_EXE_orinoco"))
        .args(["models", "fit", "--config"])
        .arg(config.path())
        .args([
            "--models-dir",
            support::daemon::models_dir().to_str().unwrap(),
        ])
        .args([
            "--set",
            &format!("engine.worker_path={}", program.display()),
        ])
        .args(["--set", "engine.backend=cpu", "--set", "engine.n_threads=1"])
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn models_fit_tells_what_every_model_takes_with_every_context() {
    let output = fit(&["--board", "orin-nano-8gb", "--json"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["total_bytes"], 7_802_736 * 1024_u64);
    let model = |name: &str| {
        let models = found["models"].as_array().unwrap().iter();
        models.clone().find(|model| model["name"] == name).unwrap()
    };
    let smol = model("SmolLM2-135M-Instruct.Q4_1");
    assert_eq!(smol["n_ctx_train"], 8192);
    let rows = smol["rows"].as_array().unwrap();
    let n_ctx: Vec<_> = rows
        .iter()
        .map(|row| row["n_ctx"].as_u64().unwrap())
        .collect();
    assert_eq!(
        n_ctx,
        [2048, 2048, 2048, 4096, 4096, 4096, 8192, 8192, 8192]
    );
    // 30 layers, 3 heads of 64, keys and values: two bytes each, or 34 for 32 of them.
    assert_eq!(rows[0]["kv_bytes"], 2048 * 30 * 3 * 64 * 2 * 2);
    assert_eq!(rows[1]["kv_bytes"], 2048 * 30 * 3 * 64 * 2 * 34 / 32);
    assert_eq!(rows[0]["weights_bytes"], 96_576_768);
    let other = rows[0]["other_bytes"].as_u64().unwrap();
    assert!(
        (419_430_400..600_000_000).contains(&other),
        "with the GPU's context: {other}"
    );
    assert!(rows.iter().all(|row| row["fits"] == true));
    let gemma = model("gemma-3-270m-q4_k_m");
    assert_eq!(gemma["n_ctx_max"]["f16"], 32_768);
    assert_eq!(gemma["rows"].as_array().unwrap().len(), 15);
}

#[test]
fn models_fit_says_what_would_fit_into_less() {
    let smol = "SmolLM2-135M-Instruct.Q4_1";
    // Weights of 92 MiB, a GPU's context of 100 and a process of some 55 leave about 50 for the rest.
    let output = fit(&[
        smol,
        "--mem",
        "400MiB",
        "--set",
        "memory.reserve_bytes=104857600",
        "--set",
        "memory.gpu_context_bytes=104857600",
    ]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(
        text.starts_with("300 MiB may be taken: 400 MiB available less a reserve of 100 MiB"),
        "{text}"
    );
    let line = |n_ctx: &str, kv_type: &str| {
        let found = text.lines().find(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(n_ctx) && words.next() == Some(kv_type)
        });
        found.unwrap().to_owned()
    };
    assert!(line("8192", "f16").ends_with("no"), "{text}");
    assert!(line("8192", "f16").contains("180 MiB"), "{text}");
    let largest = text.lines().last().unwrap();
    assert!(
        largest.starts_with("largest context that fits: ") && largest.contains("(q4_0)"),
        "{text}"
    );

    let nowhere = fit(&["--board", "toaster"]);
    assert!(!nowhere.status.success());
    let said = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    assert!(said.contains("orin-nano-8gb, orin-nx-8gb"), "{said}");
    let nobody = fit(&["nobody"]);
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("orinoco models list"));
}

#[tokio::test]
async fn beside_a_gpu_a_build_without_cuda_serves_only_when_the_cpu_is_asked_for() {
    let board = Board::with_memory(8192, 4096);
    board.write("dev/nvgpu/igpu0/ctrl", "");
    let strict = site(Engine::Scripted, &board).set("engine.backend=auto");
    let daemon = strict.start();
    let mut client = Client::connect(daemon.port, strict.node, LOCAL, None).await;
    let refused = no_model(&mut client).await;
    assert_eq!(
        refused.reasons,
        [
            "the engine is not proven to use the GPU: this machine has a GPU (/dev/nvgpu), but orinoco-engine was built \
          without CUDA: install the CUDA build, or set engine.backend = \"cpu\""
        ]
    );
    assert_eq!(refused_with(&mut client, "r1").await.code, Code::NoModel);
    drop(daemon);

    let asked = site(Engine::Scripted, &board).set("engine.backend=cpu");
    let daemon = asked.start();
    let mut client = Client::connect(daemon.port, asked.node, LOCAL, None).await;
    client.until_mode(Mode::Serving).await;
    let info = document(&mut client, "info", |info: &Info| info.engine.is_some()).await;
    let offload = info.engine.unwrap().offload.unwrap();
    assert_eq!(offload.proof.unwrap().verdict, Verdict::CpuChosen);
}

#[tokio::test]
async fn without_a_reading_of_memory_nothing_is_loaded() {
    let board = Board::with_memory(8192, 4096);
    board.write("proc/meminfo", "MemTotal: 8388608 kB\n");
    let site = site(Engine::Scripted, &board);
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    let refused = no_model(&mut client).await;
    assert!(
        refused.reasons[0].contains("how much memory is left is not known")
            && refused.reasons[0].contains("MemAvailable"),
        "{:?}",
        refused.reasons
    );
    board.set_memory(8192, 4096);
    client.until_mode(Mode::Serving).await;
}

#[tokio::test]
async fn a_model_that_cannot_even_be_planned_says_why() {
    let board = Board::with_memory(8192, 4096);
    for (text, said) in [
        ("!plan-fail the tensors are upside down", "upside down"),
        ("!plan-abort", "crashed with SIGABRT"),
    ] {
        let models = tempfile::tempdir().unwrap();
        fs::write(models.path().join("odd.gguf"), text).unwrap();
        let site = site(Engine::Scripted, &board)
            .set(format!("paths.models_dir={}", models.path().display()))
            .set("model.active=odd");
        let daemon = site.start();
        let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
        let refused = no_model(&mut client).await;
        assert!(refused.reasons[0].contains(said), "{:?}", refused.reasons);
        drop(daemon);
    }
}

#[tokio::test]
async fn a_real_load_takes_what_was_planned() {
    for engine in [Engine::Smol, Engine::Gemma] {
        let site = Site::with_own_broker(engine);
        let daemon = site.start();
        let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
        client.until_mode(Mode::Serving).await;
        let state = document(&mut client, "state", |s: &State| s.mode == Mode::Serving).await;
        let memory = state.memory.unwrap();
        let difference = memory.difference_bytes.unwrap();
        assert!(memory.planned_bytes > 200 * MIB);
        // Allowances for eight busy slots are not used yet; nothing beyond the plan is.
        assert!(
            (-64 * MIB as i64..=8 * MIB as i64).contains(&difference),
            "{memory:?}"
        );
        drop(daemon);
    }
}
