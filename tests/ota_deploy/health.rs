//! What happens to a device after an update: settings of the fleet, and releases that do not stay up.

use orinoco::ota::Reason;
use orinoco::ota::deploy::State;
use orinoco::ota::deploy::report::PolicyState;
use orinoco::ota::state::Phase;
use orinoco::wire::report::Info;

use super::setup::*;
use super::support::daemon::{GEMMA, SMOL};
use super::support::requester::Client;

fn policy(state: &State) -> PolicyState {
    state.policy.clone().unwrap_or_default()
}

/// The code of the error that a body of 400 bytes ends with; none where it is answered.
async fn asks_at_length(client: &mut Client, id: &str) -> Option<String> {
    let body = serde_json::json!({
        "messages": [{"role": "user", "content": format!("hi !tokens 2 {}", "x".repeat(400))}],
    });
    client.ask("chat", id, &body.to_string()).await;
    client.until_ended(&[id.to_owned()]).await;
    let end: serde_json::Value = serde_json::from_slice(client.finals[id].first()?).unwrap();
    end["error"]["code"].as_str().map(str::to_owned)
}

async fn until_policy(client: &mut Client, seq: Option<u64>) {
    let told = |_: bool, client: &Client| {
        let info = client.documents.get("info");
        let info = info.and_then(|bytes| serde_json::from_slice::<Info>(bytes).ok());
        info.is_some_and(|info| info.policy_seq == seq)
    };
    client.until("info with the policy", told).await;
}

#[tokio::test]
async fn settings_of_the_fleet_are_judged_applied_kept_and_taken_back() {
    let publisher = Publisher::with_releases(&[(SMOL, "smol-1")]);
    let mut device = Device::of(&publisher).await;
    device.takes(1, "d-1", 1).await;
    publisher.policy(
        "policy_seq = 1\n[profiles.hall]\norder = 1\nmodel = 'assistant'\nn_seq_max = 1\n[power]\nsettle_ms = 0\n\
         [requests]\npayload_bytes_max = 300\n[memory]\ngpu_context_bytes = 1048576\n",
    );
    assert_eq!(asks_at_length(&mut device.client, "before").await, None);

    assert_eq!(device.order("c1", "check").await["status"], "successful");
    let state = device
        .watcher
        .until("policy 1", |state| policy(state).policy_seq == Some(1))
        .await;
    assert_eq!(policy(&state).at_next_start, ["memory.gpu_context_bytes"]);
    until_policy(&mut device.client, Some(1)).await;
    let limit = asks_at_length(&mut device.client, "limited").await;
    assert_eq!(limit.as_deref(), Some("payload_too_large"));
    // It names the line, whichever release serves.
    let by_profile = |_: bool, client: &Client| {
        node(client).is_some_and(|state| {
            let profile = state.power.and_then(|power| power.profile);
            let (profile, model) = (profile.as_deref(), state.model.as_deref());
            (profile, model) == (Some("hall"), Some("smol-1"))
        })
    };
    device.client.until("the fleet's profile", by_profile).await;

    // A key that the configuration does not know is one too many.
    publisher.policy("policy_seq = 2\n[requests]\nqueue_jobs_maxx = 1\n");
    device.order("c2", "check").await;
    let state = device
        .watcher
        .until("the refusal", |state| policy(state).refused_seq == Some(2))
        .await;
    let refused = policy(&state);
    assert_eq!(
        (refused.policy_seq, refused.reason),
        (Some(1), Some(Reason::BadCatalog))
    );
    assert!(refused.detail.unwrap().contains("queue_jobs_maxx"));

    // It is there after a power cut, from the first request on.
    device.daemon.power_cut();
    device.daemon = device.site.start();
    let limit = asks_at_length(&mut device.client, "again").await;
    assert_eq!(limit.as_deref(), Some("payload_too_large"));
    until_policy(&mut device.client, Some(1)).await;

    let back = device.order("c3", "rollback-policy").await;
    assert_eq!(back["status"], "successful", "{back}");
    until_policy(&mut device.client, None).await;
    assert_eq!(asks_at_length(&mut device.client, "after").await, None);
    let none = device.order("c4", "rollback-policy").await;
    assert_eq!(none["status"], "failed", "{none}");
}

#[tokio::test]
async fn a_release_whose_worker_dies_again_and_again_after_the_commit_is_taken_back() {
    let publisher = Publisher::with_releases(&[(SMOL, "smol-1"), (GEMMA, "gemma-2")]);
    let mut device = Device::of(&publisher).await;
    for (seq, id) in [(1, "d-1"), (2, "d-2")] {
        device.takes(seq, id, seq).await;
    }
    // Each of them is known as poison after two deaths; four are more than one request's.
    for id in ["first", "second"] {
        device
            .client
            .ask("chat", id, "hi !abort at 2 !tokens 5")
            .await;
        device.client.until_ended(&[id.into()]).await;
    }
    let state = device
        .watcher
        .until("the way back", |state| {
            state.state == Some(Phase::RolledBack)
        })
        .await;
    assert_eq!(state.reason, Some(Reason::CrashLoop), "{state:?}");
    assert_eq!(active(&state), Some((1, "smol-1")));
    device.until_serves("smol-1").await;
    device.ask("chat", "fine", "here !tokens 4").await;
    assert_eq!(device.client.text("fine"), "here");
}
