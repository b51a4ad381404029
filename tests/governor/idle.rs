//! A model that nobody asks, and who asks next.

use super::*;

#[tokio::test]
async fn an_idle_model_is_unloaded_and_the_next_prompt_waits_for_it() {
    let broker = Mosquitto::start().await;
    let site =
        Site::with_broker_on(broker.port(), Engine::Scripted).set("engine.idle_unload_seconds=1");
    let daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    let body = serde_json::json!({"messages": [{"role": "user", "content": "Say five words."}], "max_tokens": 5});
    for round in ["r1", "r2"] {
        client.until_mode(Mode::Idle).await;
        assert_eq!(
            daemon.child_named("orinoco-engine"),
            None,
            "its memory is free"
        );
        assert_eq!(
            state(&client).unwrap().model.as_deref(),
            Some(SMOL),
            "it is known what will serve"
        );
        let ids = [round.to_owned()];
        client.ask("chat", round, &body.to_string()).await;
        client.until_ended(&ids).await;
        all_whole(&client, &ids);
    }
    // What needs a model at once is told to come again, and finds it.
    client.until_mode(Mode::Idle).await;
    let text = serde_json::json!({"prompt": "one two"}).to_string();
    client.ask("tokenize", "t1", &text).await;
    client.until_mode(Mode::Serving).await;
    // It would be idle again after a second, which a busy machine may take to ask: a stream keeps it.
    client
        .ask("chat", "keeps", "!count !tokens 400 !step 20")
        .await;
    client.until_text("keeps").await;
    client.ask("tokenize", "t2", &text).await;
    client
        .until_ended(&["t1".to_owned(), "t2".to_owned()])
        .await;
    let refused = client.answers["t1"].end().unwrap().outcome.clone();
    assert_eq!(refused.unwrap_err().code, Code::ModelLoading);
    assert!(client.answers["t2"].end().unwrap().outcome.is_ok());
}
