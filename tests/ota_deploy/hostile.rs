//! A chat template is a program, and this one was written by somebody who has stolen a key.

use super::*;

#[tokio::test]
async fn a_hostile_chat_template_fails_its_probe_and_the_model_that_serves_goes_on() {
    let mut publisher = Publisher::new();
    publisher.serve();
    let models = tempfile::tempdir().unwrap();
    std::fs::copy(models_dir().join(SMOL), models.path().join("own.gguf")).unwrap();
    let broker = Mosquitto::start().await;
    let site = publisher.provision(
        Site::with_broker_on(broker.port(), Engine::Smol)
            .set(format!("paths.models_dir={}", models.path().display()))
            .set("model.active=")
            .set("model.n_ctx=2048"),
    );
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    let mut watcher = Watcher::new(broker.port()).await;
    client.until_mode(Mode::Serving).await;
    let body = serde_json::json!({
        "messages": [{"role": "user", "content": "Tell a story about a ship."}],
        "max_tokens": 200, "ignore_eos": true, "seed": 7,
    });
    client.ask("chat", "through", &body.to_string()).await;
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
        publisher.release_as(SMOL, name, ["What is 2+2?", "4"], &manifest);
        let deployment = format!("d-{name}");
        desire(&mut client, seq, &deployment, seq).await;
        let state = watcher.until_over(&deployment).await;
        assert_eq!(
            (state.state, state.reason, active(&state)),
            (Some(Phase::RolledBack), Some(Reason::ProbeTemplate), None),
            "{name}: {state:?}\n{}",
            site.log()
        );
    }
    client.until_ended(&["through".into()]).await;
    assert_eq!(client.faults, Vec::<String>::new());
    let end: serde_json::Value =
        serde_json::from_slice(client.finals["through"].first().unwrap()).unwrap();
    assert_eq!(end["usage"]["completion_tokens"], 200);
}
