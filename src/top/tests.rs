//! Frames, compared whole with `tests/top/*.txt`, and documents that are none.

use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;

const NOW_MS: u64 = 1_790_000_010_000;

fn frame(view: &View, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| draw(view, NOW_MS, frame.area(), frame.buffer_mut()))
        .unwrap();
    let buffer = terminal.backend().buffer();
    let rows = buffer.content.chunks(usize::from(width));
    rows.map(|row| {
        let line: String = row.iter().map(|cell| cell.symbol()).collect();
        format!("{}\n", line.trim_end())
    })
    .collect()
}

fn assert_frame(view: &View, width: u16, height: u16, name: &str) {
    let found = frame(view, width, height);
    let file = format!("{}/tests/top/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("ORINOCO_BLESS").is_some() {
        std::fs::write(&file, &found).unwrap();
    }
    assert_eq!(found, std::fs::read_to_string(&file).unwrap(), "{name}");
}

fn serving() -> View {
    let mut view = View::new("press-7");
    for (rest, document) in [
        (
            "status",
            r#"{"state":"online","boot":"9f3c2a7d","since_ms":1789999000000}"#,
        ),
        ("info", include_str!("../../tests/wire/v1/info_proof.json")),
        (
            "state",
            include_str!("../../tests/wire/v1/state_memory.json"),
        ),
        (
            "tele/host",
            r#"{"at_ms":1790000008000,"memory_total_bytes":16416882688,"memory_available_bytes":9077678080,"swap_used_bytes":0,"memory_stall_some_percent":0.12,"supervisor_rss_bytes":14155776,"power_mode":"MODE_25W","temperatures_c":{"tj-thermal":51.5,"cpu-thermal":48.0},"rails_mw":{"VDD_IN":7400,"VDD_CPU_GPU_CV":2100},"module_mw":7400,"over_current_count":{"instantaneous":12},"fan_rpm":2400}"#,
        ),
        (
            "tele/gpu",
            r#"{"at_ms":1790000008000,"load_percent":87.5,"clock_mhz":918,"clock_max_mhz":918}"#,
        ),
        (
            "tele/queue",
            r#"{"at_ms":1790000008000,"waiting_count":2,"running_count":4,"body_bytes":1840,"oldest_wait_ms":310,"accepted_count":5120,"refused_count":14,"answered_count":5110,"failed_count":4}"#,
        ),
        (
            "evt/switch",
            r#"{"model":"smollm2-135m","at_ms":1790000000123,"served":true,"reason":"ordered"}"#,
        ),
        (
            "evt/pressure",
            r#"{"from":"trim","to":"park","at_ms":1790000004123,"available_bytes":314572800,"threshold_bytes":402653184,"action":"new requests are refused, batch jobs wait","relief_bytes":0,"returned_bytes":-1048576}"#,
        ),
    ] {
        view.hear(rest, document.trim().as_bytes());
    }
    for (n, tok_s) in [40.0, 120.0, 212.4, 180.0, 212.4].into_iter().enumerate() {
        let llm = format!(
            r#"{{"at_ms":{},"model":"smollm2-135m","streams_count":4,"tok_s":{tok_s},"tokens_count":81244,"prompt_tokens_count":20312,"cached_tokens_count":9120,"ttft_ms":{{"p50":78.8,"p95":140.2,"p99":310.5}},"itl_ms":{{"p50":18.4,"p95":22.0,"p99":61.7}},"energy_mj_tok":34.8,"engine_deaths_count":0}}"#,
            1_790_000_000_000_u64 + n as u64 * 1000
        );
        view.hear("tele/llm", llm.as_bytes());
    }
    view
}

#[test]
fn a_board_that_serves() {
    let view = serving();
    assert!(view.is_complete());
    assert_frame(&view, 100, 32, "serving");
}

#[test]
fn an_update_with_its_progress() {
    let mut view = serving();
    view.hear("ota/state", wire("ota_state_downloading").as_bytes());
    view.hear("evt/ota", wire("ota_event_step").as_bytes());
    assert_frame(&view, 100, 32, "update");
}

/// A message as the daemon is held to by `tests/wire_v1.rs`.
fn wire(name: &str) -> String {
    let file = format!("{}/tests/wire/v1/{name}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(file).unwrap()
}

/// The row of the box "update".
fn update_row(view: &View) -> String {
    let frame = frame(view, 140, 32);
    let mut rows = frame.lines().skip_while(|row| !row.contains(" update "));
    rows.nth(1).unwrap().trim_matches('│').trim().to_owned()
}

#[test]
fn each_state_of_an_update_is_told_in_a_row() {
    for (name, row) in [
        ("none", "none so far"),
        (
            "probing",
            "probing  assistant 12  in service qwen3-4b  newer qwen3-4b-v2",
        ),
        (
            "committed",
            "committed  assistant 12  in service qwen3-4b-v2 (on probation)",
        ),
        (
            "rolled_back",
            "rolled back  assistant 12  in service qwen3-4b  newer qwen3-4b-v2  golden prompt 1: \"Rome\" has no match for \"(?i)paris\"",
        ),
        (
            "unreachable",
            "none so far  in service qwen3-4b  http://mirror:8080: connection refused",
        ),
    ] {
        let mut view = serving();
        view.hear("ota/state", wire(&format!("ota_state_{name}")).as_bytes());
        assert_eq!(update_row(&view), row, "{name}");
    }
}

#[test]
fn classes_are_told_with_the_first_served_first() {
    let mut view = serving();
    view.hear("tele/queue", br#"{"at_ms":1790000008000,"waiting_count":3,"running_count":4,"body_bytes":1840,"oldest_wait_ms":310,"accepted_count":5120,"refused_count":14,"answered_count":5110,"failed_count":4,"parked_count":3,"classes":{"alarm":{"waiting_count":0,"running_count":1,"wait_ms":{"p50":1.2,"p95":20.1,"p99":20.1}},"batch":{"waiting_count":0,"running_count":0},"later\u001b[2J":{"waiting_count":1,"running_count":0},"normal":{"waiting_count":2,"running_count":3,"wait_ms":{"p50":310.5,"p95":890.2,"p99":1104.0}}}}"#);
    let frame = frame(&view, 140, 34);
    let mut rows = frame.lines().skip_while(|row| !row.contains(" classes "));
    assert_eq!(
        rows.nth(1).unwrap().trim_matches('│').trim(),
        "alarm 1 running, waited 20 ms   normal 3 running, 2 waiting, waited 890 ms   batch -   later\u{fffd}[2J 1 waiting   parked 3"
    );
}

#[test]
fn steps_of_an_update_are_events_with_their_reason() {
    let mut view = serving();
    view.hear("evt/ota", wire("ota_event").as_bytes());
    let frame = frame(&view, 120, 32);
    assert!(
        frame.contains("assistant 12 rolled back: golden prompt 1"),
        "{frame}"
    );
}

#[test]
fn a_state_of_a_later_version_is_shown_by_its_name() {
    let mut view = serving();
    view.hear(
        "ota/state",
        br#"{"state":"thawing","line":"x","eta_s":"soon","lines":7}"#,
    );
    assert_eq!(update_row(&view), "thawing  x");
}

#[test]
fn a_node_without_a_model_says_why() {
    let mut view = View::new("n1");
    view.hear(
        "status",
        br#"{"state":"online","boot":"1","since_ms":1790000000000}"#,
    );
    view.hear(
        "state",
        include_bytes!("../../tests/wire/v1/state_memory_refused.json"),
    );
    view.hear("tele/host", br#"{"at_ms":1790000008000,"memory_total_bytes":8000000000,"memory_available_bytes":1000000000}"#);
    assert_frame(&view, 80, 24, "no_model");
}

#[test]
fn a_node_that_was_never_heard_of() {
    let mut view = View::new("n9");
    view.down = Some("connection refused".into());
    assert_frame(&view, 80, 24, "nothing");
}

#[test]
fn control_characters_of_a_document_never_reach_the_terminal() {
    let mut view = serving();
    view.hear(
        "evt/switch",
        br#"{"model":"a\u001b[2J\u0007","at_ms":1,"served":false,"reason":"x\ny"}"#,
    );
    view.hear("ota/state", br#"{"state":"\u001b]0;x\u0007"}"#);
    assert!(
        !frame(&view, 100, 40)
            .chars()
            .any(|c| c.is_control() && c != '\n')
    );
}

proptest! {
    #[test]
    fn any_bytes_on_any_topic_make_a_frame_of_any_size(
        heard in proptest::collection::vec((0_usize..10, proptest::collection::vec(any::<u8>(), 0..80)), 0..8),
        width in 1_u16..140,
        height in 1_u16..50,
        total in any::<u64>(),
        available in any::<u64>(),
    ) {
        let topics = ["status", "info", "state", "tele/host", "tele/gpu", "tele/llm", "tele/queue", "ota/state", "evt/switch", "evt/x"];
        let mut view = serving();
        let host = format!(r#"{{"at_ms":1,"memory_total_bytes":{total},"memory_available_bytes":{available}}}"#);
        view.hear("tele/host", host.as_bytes());
        for (topic, payload) in heard {
            view.hear(topics[topic], &payload);
        }
        frame(&view, width, height);
    }
}
