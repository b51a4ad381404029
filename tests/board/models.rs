//! Which model serves in which mode: as shipped, and in a daemon.

use orinoco::board::memory;
use orinoco::config::{Sources, load, shipped_profiles};
use orinoco::selection::{self, candidates};
use orinoco::wire::report::{Info, Mode, Models};

use crate::reading::*;
use crate::support::board::Tree;
use crate::support::daemon::{Engine, Site};
use crate::support::requester::Client;

/// Model and sequences in each mode, with every model of the profiles at hand and all of it fitting.
fn choices(board: &str) -> Vec<String> {
    let tree = Tree::new(board);
    let profiles = shipped_profiles(board);
    let models = profiles
        .values()
        .map(|profile| profile.model.clone())
        .collect();
    let config = load(&Sources::defaults()).unwrap().power;
    let mut shown = Vec::new();
    for name in ranking(&tree) {
        tree.set_mode(&name);
        let site = selection::Site {
            caps: present(&tree).caps,
            mode: Some(&name),
            models: &models,
            n_seq_max: 8,
            fits: &|_| true,
            pinned: None,
            first: None,
        };
        let best = candidates(&config, &profiles, &[], &site).remove(0);
        shown.push(format!("{name}: {} x{}", best.model, best.n_seq_max));
    }
    shown
}

#[test]
fn shipped_profiles_give_every_mode_its_model() {
    assert_eq!(
        choices("orin-nano-8gb"),
        [
            "7W: Qwen3-1.7B-Q4_K_M x2",
            "15W: Qwen3-1.7B-Q4_K_M x4",
            "25W: Llama-3.2-3B-Instruct-Q4_K_M x4",
            "MAXN_SUPER: Llama-3.2-3B-Instruct-Q4_K_M x4",
        ]
    );
    assert_eq!(
        choices("orin-nx-16gb"),
        [
            "10W: Qwen3-1.7B-Q4_K_M x4",
            "15W: Qwen3-1.7B-Q4_K_M x4",
            "25W: Llama-3.2-3B-Instruct-Q4_K_M x2",
            "40W: Hermes-3-Llama-3.1-8B.Q4_K_M x4",
            "MAXN_SUPER: Hermes-3-Llama-3.1-8B.Q4_K_M x4",
        ]
    );
    assert_eq!(
        choices("agx-orin-64gb"),
        [
            "MODE_15W: Qwen3-1.7B-Q4_K_M x8",
            "MODE_30W: Llama-3.2-3B-Instruct-Q4_K_M x8",
            "MODE_50W: Hermes-3-Llama-3.1-8B.Q4_K_M x8",
            "MAXN: Hermes-3-Llama-3.1-8B.Q4_K_M x8",
        ]
    );
}

#[test]
fn shipped_profiles_fit_their_board() {
    // What the board has to give less what must stay free (7 % of memory, at least 512 MiB).
    for board in ["orin-nano-8gb", "agx-orin-64gb"] {
        let memory = memory::read(&Tree::new(board).root()).unwrap();
        let reserve = (memory.total_bytes / 100 * 7).max(512 << 20);
        for (name, profile) in shipped_profiles(board) {
            let needs = profile.memory_bytes.unwrap().value;
            assert!(needs + reserve <= memory.available_bytes, "{board} {name}");
        }
    }
}

/// The model that serves on an NX in this mode, where the operator's profiles name two.
async fn serving_in(mode: &str) -> String {
    let tree = Tree::new("orin-nx-16gb");
    tree.set_mode(mode);
    let site = Site::with_own_broker(Engine::Scripted)
        .set("model.active=")
        .set(format!("paths.board_root={}", tree.path("").display()))
        .set("profiles.fast.gpu_mhz_tpcs_min=3600")
        .set("profiles.fast.model=gemma-3-270m-q4_k_m")
        .set("profiles.slow.order=20")
        .set("profiles.slow.model=SmolLM2-135M-Instruct.Q4_1");
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, "local", None).await;
    client.until_mode(Mode::Serving).await;
    let active = |client: &Client| {
        let models: Models = serde_json::from_slice(client.documents.get("models")?).ok()?;
        models.active
    };
    client
        .until("info, and the model that serves", |_, client| {
            client.documents.contains_key("info") && active(client).is_some()
        })
        .await;
    let info: Info = serde_json::from_slice(&client.documents["info"]).unwrap();
    let board = info.hardware.board.unwrap();
    assert!(board.contains("Orin NX"), "{board}");
    assert_eq!(info.hardware.gpu.as_deref(), Some("Orin"));
    active(&client).unwrap()
}

#[tokio::test]
async fn a_daemon_starts_with_the_model_for_its_power_mode() {
    assert_eq!(serving_in("40W").await, "gemma-3-270m-q4_k_m");
    assert_eq!(serving_in("25W").await, "SmolLM2-135M-Instruct.Q4_1");
}
