//! Real models: a fleet's first release, its successor with streams in flight where memory holds both and where it
//! does not, a release that fails its probe, and a chat template that somebody with a stolen key has written.

use orinoco::ota::Reason;
use orinoco::ota::deploy::State;
use orinoco::ota::state::Phase;
use orinoco::wire::report::Mode;

use super::setup::*;
use super::support::broker::Mosquitto;
use super::support::daemon::{Engine, GEMMA, SMOL, models_dir};

/// How long it may take, and a text that a model of English finds likely.
const HEALTH: &str = r#"{"load_ms_max":60000,"golden":[
    {"kind":"likelihood","text":"The sun rises in the east and sets in the west.","mean_nll_micro_max":4500000}]}"#;
/// SmolLM2 knows this one; of France's capital it is not sure.
const SUM: [&str; 2] = ["What is 2+2?", "4"];
const N_TOKENS: u32 = 600;

/// SmolLM2 as the first release of a board without a model, and Gemma-3 as its successor, published later.
async fn with_the_first_release(publisher: &mut Publisher) -> Device {
    let health: serde_json::Value = serde_json::from_str(HEALTH).unwrap();
    let manifest = serde_json::json!({
        "model": {"licence": "Apache-2.0"}, "health": health,
        "runtime": {"sampling_milli": {"temperature": 0}},
    });
    publisher.release_as(SMOL, "smol-1", SUM, &manifest);
    publisher.serve();
    let (broker, bare) = (
        Mosquitto::start().await,
        Start::empty(Engine::Smol, (8192, 4096)),
    );
    let mut device = Device::start(broker, publisher, bare, |site| site).await;
    let state = device.takes(1, "d-1", 1).await;
    assert_eq!(active(&state), Some((1, "smol-1")));
    device.client.until_mode(Mode::Serving).await;
    publisher.release(GEMMA, "gemma-2", ["Say hello.", "."], HEALTH);
    device
}

async fn tell_a_story(device: &mut Device, id: &str) {
    let body = serde_json::json!({
        "messages": [{"role": "user", "content": "Tell a story about a ship."}],
        "max_tokens": N_TOKENS, "ignore_eos": true, "seed": 7,
    });
    device.client.ask("chat", id, &body.to_string()).await;
    device.client.until_text(id).await;
}

async fn is_told_to_its_end(device: &mut Device, id: &str) {
    device.client.until_ended(&[id.to_owned()]).await;
    assert_eq!(device.client.faults, Vec::<String>::new());
    let end: serde_json::Value =
        serde_json::from_slice(device.client.finals[id].first().unwrap()).unwrap();
    assert_eq!(end["usage"]["completion_tokens"], N_TOKENS, "{id}: {end}");
}

/// The successor is fetched, which is told as it goes; then it is put into service with a story in flight.
async fn gemma_follows(device: &mut Device, story: &str) {
    let wish = serde_json::json!({
        "desired_seq": 2, "deployment": "d-2", "line": "assistant", "release_seq": 2, "when": "staged-only",
        // Its 253 MB take seven seconds, in which it is told every two.
        "max_kbit_s": 300_000,
    });
    device.wish(&wish).await;
    let is_progress = |state: &State| {
        let percent = state.update_percentage.unwrap_or(0);
        let has_pace = state.rate_kbit_s.is_some() && state.eta_s.is_some();
        state.state == Some(Phase::Downloading) && (1..100).contains(&percent) && has_pace
    };
    device.watcher.until("progress", is_progress).await;
    let waits = |state: &State| state.state == Some(Phase::Waiting);
    device.watcher.until("all of it", waits).await;

    tell_a_story(device, story).await;
    let answer = device.order("c-2", "activate").await;
    assert_eq!(answer["status"], "successful", "{answer}");
    let state = device.watcher.until_over("d-2").await;
    assert_eq!(
        (state.state, active(&state)),
        (Some(Phase::Committed), Some((2, "gemma-2"))),
        "{state:?}\n{}",
        device.site.log()
    );
    let detail = state.detail.unwrap();
    assert!(detail.contains("prompts answered"), "{detail}");
    is_told_to_its_end(device, story).await;
}

#[tokio::test]
async fn a_real_model_follows_another_beside_it_and_no_stream_pauses_then_one_fails_its_prompt() {
    let mut publisher = Publisher::new();
    let mut device = with_the_first_release(&mut publisher).await;
    // Its publisher means it to be asked without chance, and a request that says otherwise is heard.
    let (one, two) = (
        with_seed(&mut device, 1, "").await,
        with_seed(&mut device, 2, "").await,
    );
    assert_eq!(one, two);
    let hot = r#","temperature":2"#;
    let (one, two) = (
        with_seed(&mut device, 1, hot).await,
        with_seed(&mut device, 2, hot).await,
    );
    assert_ne!(one, two);
    let heard = overhear(device.broker.port()).await;
    // Gemma takes 378 MiB: 4096 less 92 that SmolLM2 has mapped less 256 are more.
    gemma_follows(&mut device, "beside").await;

    publisher.release(
        SMOL,
        "smol-3",
        ["What is the capital of France?", "xyzzy"],
        HEALTH,
    );
    tell_a_story(&mut device, "through").await;
    let state = device.deploy(3, "d-3", 3).await;
    assert_eq!(
        (state.state, state.reason),
        (Some(Phase::RolledBack), Some(Reason::ProbeGolden)),
        "{state:?}"
    );
    assert!(state.detail.as_deref().unwrap().contains("xyzzy"));
    assert_eq!(active(&state), Some((2, "gemma-2")));
    is_told_to_its_end(&mut device, "through").await;

    device
        .ask("complete", "over", r#"{"prompt":"bye","max_tokens":2}"#)
        .await;
    let heard = heard.await.unwrap();
    assert!(!heard.iter().any(Said::is_parked), "nobody was parked");
    let is_trial = |said: &Said| matches!(said.phase(), Some(Phase::Switching | Phase::Probing));
    let tried = heard.iter().skip_while(|said| !is_trial(said));
    let tried = tried.take_while(|said| said.phase().is_none() || is_trial(said));
    let n_meanwhile = tried.filter(|said| said.id == "beside").count();
    assert!(n_meanwhile > 0, "text came while the successor was tried");
}

/// What it says with this seed, and with this much more of a request.
async fn with_seed(device: &mut Device, seed: u32, more: &str) -> String {
    let id = format!("seed-{seed}-{}", more.len());
    let body = format!(r#"{{"prompt":"Once upon a time","max_tokens":24,"seed":{seed}{more}}}"#);
    device.ask("complete", &id, &body).await;
    device.client.text(&id).to_owned()
}

#[tokio::test]
async fn a_real_model_follows_another_after_it_and_streams_are_parked_with_an_eta_and_go_on() {
    let mut publisher = Publisher::new();
    let mut device = with_the_first_release(&mut publisher).await;
    // 680 less 92 that are mapped less 256: 332 MiB, and 378 are needed. After SmolLM2 there are 424.
    device.board.set_memory(8192, 680);
    let heard = overhear(device.broker.port()).await;
    gemma_follows(&mut device, "waits").await;
    device
        .ask("complete", "over", r#"{"prompt":"bye","max_tokens":2}"#)
        .await;
    told_once_that_it_waits(&heard.await.unwrap());
}

#[tokio::test]
async fn a_hostile_chat_template_fails_its_probe_and_the_model_that_serves_goes_on() {
    let mut publisher = Publisher::new();
    publisher.serve();
    let with_smol = Start {
        own: Some(std::fs::read(models_dir().join(SMOL)).unwrap()),
        ..Start::empty(Engine::Smol, (8192, 4096))
    };
    let broker = Mosquitto::start().await;
    let mut device = Device::start(broker, &publisher, with_smol, |site| site).await;
    tell_a_story(&mut device, "through").await;
    let hostile = [
        (
            "loops",
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        ),
        (
            "floods",
            "{% for a in range(9999) %}{{ 'x' * 100000 }}{% endfor %}",
        ),
        ("raises", "{{ raise_exception('no') }}"),
    ];
    for (seq, (name, template)) in (1..).zip(hostile) {
        let manifest = serde_json::json!({
            "model": {"licence": "Apache-2.0"}, "runtime": {"chat_template": template},
        });
        publisher.release_as(SMOL, name, SUM, &manifest);
        let state = device.deploy(seq, &format!("d-{name}"), seq).await;
        assert_eq!(
            (state.state, state.reason, active(&state)),
            (Some(Phase::RolledBack), Some(Reason::ProbeTemplate), None),
            "{name}: {state:?}\n{}",
            device.site.log()
        );
    }
    is_told_to_its_end(&mut device, "through").await;
}
