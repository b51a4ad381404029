//! The wire contract, version 1, byte for byte.
//!
//! Devices in the field were written against the files in `tests/wire/v1/`. They are never edited and
//! never removed, only added to: a test that fails here means that a device would break. One line
//! feed at the end of a file is not part of the message. When a key is added to a message, its new form
//! gets a file of its own, and the old file stays as something that clients must still be able to read.
//! Only what is refused for ever is pinned as refused.
//!
//! Both ways: what the node sends is compared with the file, and the file is read by the types that
//! clients use and written again; what the node accepts is read from the file.

#![expect(
    clippy::unwrap_used,
    reason = "a test may fail at once; clippy does not see helpers as tests"
)]

use std::{fs, path::PathBuf};

use orinoco::{
    frames::{
        Backend, BufferUse, Finish, Hello, Input, Loaded, Logprob, Sandbox, Timings, TokenLogprob,
    },
    ota::deploy::{
        self as ota,
        orders::{Desired, OtaCommand},
    },
    wire::{
        Accepted, ApiError, Code, End, Form, Incoming, Limits, Name, Names, Op, Outgoing, Priority,
        Replier, Request, RequestId, SamplingOverrides,
        reply::{Parked, Session, Vectors, body::Answer},
        report::{
            Engine, Hardware, Info, Memory, Mode, Model, ModelCommand, Models, PoolIntake,
            Presence, PressureEvent, Proof, State, Status, SwitchEvent, TemplateInfo, Verdict,
        },
        request::template::{Kind, Line, Template, Templates, Var, Without},
        request::{self, EmbedRequest, Encoding, Keeps},
        telemetry::{TeleGpu, TeleHost, TeleLlm, TeleQueue},
        tools::Part,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/wire/v1")
}

fn file(name: &str) -> String {
    let path = folder().join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    text.strip_suffix('\n').unwrap_or(&text).to_owned()
}

/// The node sends exactly the file, and a client that reads it loses nothing.
fn assert_sent(outgoing: &Outgoing, name: &str) {
    let sent = std::str::from_utf8(&outgoing.payload).unwrap();
    assert_eq!(sent, file(name), "{name}");
    assert_eq!(outgoing.content_type, "application/json");
    let written = match serde_json::from_str(sent).unwrap() {
        Answer::Failure(failure) => serde_json::to_string(&failure),
        Answer::Tokens(tokens) => serde_json::to_string(&tokens),
        Answer::Embeddings(embeddings) => serde_json::to_string(&embeddings),
        Answer::Response(response) => serde_json::to_string(&response),
    };
    assert_eq!(written.unwrap(), sent, "{name} as a client reads it");
}

/// The node publishes exactly the file, and a client that reads it has the same document.
fn assert_published<T>(document: &T, name: &str)
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    assert_eq!(
        serde_json::to_string(document).unwrap(),
        file(name),
        "{name}"
    );
    assert_eq!(
        &serde_json::from_str::<T>(&file(name)).unwrap(),
        document,
        "{name}"
    );
}

/// The file is read by the node's own type, which writes exactly the file again.
fn assert_document<T: Serialize + DeserializeOwned>(names: &[&str]) {
    for name in names {
        let document: T =
            serde_json::from_str(&file(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(serde_json::to_string(&document).unwrap(), file(name));
    }
}

fn node() -> Name {
    Name::new("press-7").unwrap()
}

fn replier(op: Op, form: Form) -> Replier {
    Replier {
        form,
        op,
        id: RequestId::new("01J9Z3").unwrap(),
        model: "smollm2-135m".to_owned(),
        node: node(),
        created_s: 1_790_000_000,
        attempt: 1,
    }
}

fn end(finish: Finish) -> End {
    End {
        finish,
        text: "Grüße\n\"7\"".to_owned(),
        timings: Timings {
            n_prompt: 31,
            n_cached: 24,
            n_output: 5,
            prefill_ms: 13.25,
            decode_ms: 20.0,
            ..Timings::default()
        },
        ttft_ms: 14.5,
        total_ms: 35.123_456,
        n_chunks: 2,
        resumed: 0,
        parts: Vec::new(),
        session: None,
        energy_j: None,
        logprobs: Vec::new(),
        include_text: false,
        text_sha256: std::array::from_fn(|at| at as u8),
        truncated: false,
        calls: Vec::new(),
    }
}

#[test]
fn every_file_is_pinned_by_a_test() {
    let tests = include_str!("wire_v1.rs");
    for entry in fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            tests.contains(&format!("\"{name}\"")),
            "{name} is pinned by no test"
        );
    }
}

#[test]
fn topics() {
    #[derive(Deserialize)]
    struct Topics {
        root: String,
        node: Name,
        user: Name,
        id: RequestId,
        subscriptions: Vec<String>,
        req: std::collections::BTreeMap<Op, String>,
        cancel: String,
        resp: String,
        status: String,
        info: String,
        models: String,
        state: String,
        refused: Vec<String>,
        response_topic_denied: Vec<String>,
    }
    let pinned: Topics = serde_json::from_str(&file("topics.json")).unwrap();
    let names = Names::new(&pinned.root, pinned.node).unwrap();
    let (user, id) = (pinned.user, pinned.id);
    assert_eq!(names.subscriptions(), pinned.subscriptions);
    assert_eq!(pinned.req.len(), Op::ALL.len());
    for (op, topic) in pinned.req {
        assert_eq!(names.req(&user, op, &id), topic);
        let (user, id) = (user.clone(), id.clone());
        assert_eq!(
            names.parse(&topic),
            Ok(Incoming::Request {
                user,
                op: Ok(op),
                id
            })
        );
    }
    assert_eq!(names.cancel(&user, &id), pinned.cancel);
    assert_eq!(names.resp(&user, &id), pinned.resp);
    assert!(names.resp_allowed(&user, &pinned.resp));
    assert_eq!(names.status(), pinned.status);
    assert_eq!(names.info(), pinned.info);
    assert_eq!(names.models(), pinned.models);
    assert_eq!(names.state(), pinned.state);
    for topic in pinned.refused {
        assert!(names.parse(&topic).is_err(), "{topic}");
    }
    for topic in pinned.response_topic_denied {
        assert!(!names.resp_allowed(&user, &topic), "{topic}");
    }
}

#[test]
fn topics_of_pools() {
    #[derive(Deserialize)]
    struct Topics {
        root: String,
        node: Name,
        pool: Name,
        user: Name,
        id: RequestId,
        subscriptions: Vec<String>,
        shared_subscriptions: Vec<String>,
        req: std::collections::BTreeMap<Op, String>,
        cancel: String,
        statuses: String,
        refused: Vec<String>,
    }
    let pinned: Topics = serde_json::from_str(&file("topics_pool.json")).unwrap();
    let pool = pinned.pool;
    let names = Names::new(&pinned.root, pinned.node).unwrap();
    let names = names.with_pools(vec![pool.clone()]).unwrap();
    let (user, id) = (pinned.user, pinned.id);
    assert_eq!(names.pool_cancels(), pinned.subscriptions);
    assert_eq!(names.pool_shares(), pinned.shared_subscriptions);
    assert_eq!(pinned.req.len(), Op::ALL.len());
    for (op, topic) in pinned.req {
        assert_eq!(names.pool_req(&pool, &user, op, &id), topic);
        let (user, id) = (user.clone(), id.clone());
        assert_eq!(
            names.parse(&topic),
            Ok(Incoming::Request {
                user,
                op: Ok(op),
                id
            })
        );
    }
    assert_eq!(names.pool_cancel(&pool, &user, &id), pinned.cancel);
    assert_eq!(
        names.parse(&pinned.cancel),
        Ok(Incoming::Cancel {
            user: user.clone(),
            id: id.clone()
        })
    );
    assert_eq!(names.statuses(), pinned.statuses);
    for topic in pinned.refused {
        assert!(names.parse(&topic).is_err(), "{topic}");
    }
}

#[test]
fn a_chat_with_every_key_is_accepted() {
    let found = request::parse(
        Op::Chat,
        file("request_chat.json").as_bytes(),
        &Limits::default(),
    );
    let expected = Request {
        op: Op::Chat,
        model: Some("smollm2-135m".to_owned()),
        input: Input::Chat {
            messages: concat!(
                r#"[{"role":"system","content":"Answer in one line."},"#,
                r#"{"role":"user","content":"Is 7 bar too high?","name":"anna"},"#,
                r#"{"role":"assistant","content":"Yes."},"#,
                r#"{"role":"tool","content":"7.1 bar","tool_call_id":"p1"},"#,
                r#"{"role":"user","content":"Grüße\nund jetzt?"}]"#
            )
            .to_owned(),
            tools: None,
        },
        sampling: SamplingOverrides {
            temperature: Some(0.25),
            top_k: Some(40),
            top_p: Some(0.5),
            min_p: Some(0.125),
            repeat_penalty: Some(1.5),
            repeat_last_n: Some(64),
            frequency_penalty: Some(0.5),
            presence_penalty: Some(-0.5),
            seed: Some(42),
            logit_bias: vec![(7, 2.0), (15043, -100.0)],
        },
        stop: vec!["\n\n".to_owned(), "END".to_owned()],
        max_tokens: Some(128),
        min_tokens: 0,
        ignore_eos: false,
        logprobs: None,
        constraint: None,
        tools: None,
        stream: true,
        include_text: true,
        coalesce_ms: Some(0),
        priority: Some(Priority::Batch),
        deadline_ms: Some(30_000),
        keep_latest: Some("line-3".to_owned()),
        session: None,
        keeps: Keeps::No,
        template: None,
        filled: None,
    };
    assert_eq!(found, Ok(expected));
}

#[test]
fn a_conversation_is_named_and_forgotten() {
    let read = |name| request::parse(Op::Chat, file(name).as_bytes(), &Limits::default()).unwrap();
    let asked = read("request_chat_session.json");
    assert_eq!(asked.session.as_deref(), Some("kitchen"));
    assert_eq!(
        (asked.keeps, asked.conversation()),
        (Keeps::Yes, Some("kitchen"))
    );
    #[derive(Deserialize)]
    struct Forget {
        user: Name,
        session: Name,
        topic: String,
    }
    let Forget {
        user,
        session,
        topic,
    } = serde_json::from_str(&file("topic_forget.json")).unwrap();
    let names = Names::new("orinoco", node()).unwrap();
    assert_eq!(names.forget(&user, &session), topic);
    assert_eq!(names.parse(&topic), Ok(Incoming::Forget { user, session }));
}

#[test]
fn a_request_may_name_a_wording_of_the_nodes_and_bring_what_varies() {
    let var = |name: &str, kind| Var {
        name: name.to_owned(),
        kind,
        bytes_max: 40,
        without: Without::Refused,
        line: Line::named(name),
    };
    let vars = [
        var("code", Kind::Integer),
        var("celsius", Kind::Number),
        var("note", Kind::String),
    ];
    let template = Template {
        system: None,
        user: "Explain this alarm.".to_owned(),
        vars: vars.to_vec(),
        max_tokens: None,
        schema: None,
    };
    let templates = Templates([("alarm-text".to_owned(), template)].into());
    let body = file("request_chat_template.json");
    let mut asked = request::parse(Op::Chat, body.as_bytes(), &Limits::default()).unwrap();
    asked.fill(&templates).unwrap();
    let said = r"Explain this alarm.\n\ncode: 1734\ncelsius: 81.2\nnote: it hums";
    let input = Input::Chat {
        messages: format!(r#"[{{"role":"user","content":"{said}"}}]"#),
        tools: None,
    };
    assert_eq!((asked.input, asked.max_tokens), (input, Some(40)));
}

#[test]
fn a_request_may_ask_for_probabilities_and_a_least_length() {
    let read = |name| request::parse(Op::Chat, file(name).as_bytes(), &Limits::default()).unwrap();
    let asked = read("request_chat_logprobs.json");
    assert_eq!((asked.min_tokens, asked.logprobs), (8, Some(5)));
}

#[test]
fn a_chunk_tells_the_probabilities_of_its_tokens() {
    let token = |bytes: &[u8], logprob| TokenLogprob {
        bytes: bytes.to_vec(),
        logprob,
    };
    let logprobs = [
        Logprob {
            chosen: token("Gr".as_bytes(), -0.25),
            top: vec![token("Gr".as_bytes(), -0.25), token(b"Hi", -1.5)],
        },
        Logprob {
            chosen: token(&[0xc3], f32::NEG_INFINITY),
            top: Vec::new(),
        },
    ];
    let chat = replier(Op::Chat, Form::Chunks).piece_with(1, "Gr", &logprobs);
    assert_sent(&chat.unwrap(), "chunk_chat_logprobs.json");
}

#[test]
fn the_smallest_bodies_are_accepted() {
    let read = |op, name| request::parse(op, file(name).as_bytes(), &Limits::default()).unwrap();
    let chat = read(Op::Chat, "request_chat_small.json");
    let messages = r#"[{"role":"user","content":"hi"}]"#.to_owned();
    assert_eq!(
        chat.input,
        Input::Chat {
            messages,
            tools: None
        }
    );
    assert!(chat.stream);
    let complete = read(Op::Complete, "request_complete.json");
    assert_eq!(complete.input, Input::Text("Once upon".to_owned()));
    assert_eq!((complete.stream, complete.max_tokens), (false, Some(16)));
    let tokenize = read(Op::Tokenize, "request_tokenize.json");
    assert_eq!(tokenize.input, Input::Text("Once upon".to_owned()));
}

#[test]
fn refused_bodies_name_code_and_param() {
    #[derive(Deserialize)]
    struct Case {
        op: Op,
        body: String,
        code: Code,
        param: Option<String>,
    }
    let cases: Vec<Case> = serde_json::from_str(&file("requests_refused.json")).unwrap();
    assert!(!cases.is_empty());
    for Case {
        op,
        body,
        code,
        param,
    } in cases
    {
        let error = request::parse(op, body.as_bytes(), &Limits::default()).unwrap_err();
        assert_eq!((error.code, error.param), (code, param), "{body}");
    }
}

#[test]
fn accepted() {
    let accepted = |op, form| {
        replier(op, form)
            .accepted(&Accepted {
                queue: 2,
                eta_ms: None,
                loading: None,
            })
            .unwrap()
    };
    assert_sent(&accepted(Op::Chat, Form::Chunks), "accepted_chat.json");
    assert_sent(&accepted(Op::Chat, Form::Whole), "accepted_chat.json");
    assert_sent(
        &accepted(Op::Complete, Form::Chunks),
        "accepted_complete.json",
    );
    let place = |queue, eta_ms| Accepted {
        queue,
        eta_ms: Some(eta_ms),
        loading: None,
    };
    let chat = replier(Op::Chat, Form::Chunks);
    assert_sent(
        &chat.accepted(&place(2, 4200)).unwrap(),
        "accepted_eta.json",
    );
    assert_sent(&chat.moved(1, &place(1, 2100)).unwrap(), "chunk_moved.json");
    let pause = Parked::for_alarm(std::time::Duration::from_millis(900));
    assert_sent(&chat.parked(2, &pause).unwrap(), "chunk_parked_alarm.json");
    let pause = Parked::for_share(std::time::Duration::from_millis(400));
    assert_sent(&chat.parked(2, &pause).unwrap(), "chunk_parked_share.json");
    let text = "the answer would come in about 5200 ms, and is worthless after 3000 ms";
    let late = ApiError::new(Code::DeadlineExceeded, text).with_param("deadline_ms");
    let late = late.with_retry(2200).with_eta(5200);
    assert_sent(&chat.error(0, &late), "error_eta.json");
}

#[test]
fn chunks() {
    let chunk = |op| replier(op, Form::Chunks).piece(1, "Grüße\n\"7\"").unwrap();
    assert_sent(&chunk(Op::Chat), "chunk_chat.json");
    assert_sent(&chunk(Op::Complete), "chunk_complete.json");
}

#[test]
fn finals_of_streams() {
    let last = |op, end: &End| replier(op, Form::Chunks).end(3, end);
    assert_sent(&last(Op::Chat, &end(Finish::Stop)), "final_chat.json");
    assert_sent(
        &last(Op::Complete, &end(Finish::Length)),
        "final_complete.json",
    );
    let with_text = End {
        include_text: true,
        resumed: 1,
        ..end(Finish::Cancelled)
    };
    assert_sent(&last(Op::Chat, &with_text), "final_chat_cancelled.json");
    let kept = End {
        session: Some(Session {
            name: "kitchen".to_owned(),
            turns: 9,
            dropped_turns: 4,
            left_out_turns: 4,
        }),
        ..end(Finish::Stop)
    };
    assert_sent(&last(Op::Chat, &kept), "final_chat_session.json");
}

#[test]
fn whole_answers() {
    let whole = |op| replier(op, Form::Whole).end(1, &end(Finish::Stop));
    assert_sent(&whole(Op::Chat), "whole_chat.json");
    assert_sent(&whole(Op::Complete), "whole_complete.json");
}

#[test]
fn calls_of_tools() {
    let stream = replier(Op::Chat, Form::Chunks);
    let call = |name: &str| Part::Call {
        name: name.to_owned(),
    };
    let arguments = |text: &str| Part::Arguments(text.to_owned());
    let first = [
        Part::Content("I see.".to_owned()),
        call("set_lamp"),
        arguments("{\"room\": \"ha"),
    ];
    assert_sent(&stream.calls_piece(1, 0, &first), "chunk_chat_call.json");
    let second = [arguments("ll\"}"), call("get_time"), arguments("{}")];
    assert_sent(
        &stream.calls_piece(2, 1, &second),
        "chunk_chat_call_more.json",
    );
    let end = End {
        text: String::new(),
        calls: [("set_lamp", "{\"room\": \"hall\"}"), ("get_time", "{}")]
            .map(|(name, arguments)| (name.to_owned(), arguments.to_owned()))
            .to_vec(),
        ..end(Finish::Stop)
    };
    assert_sent(&stream.end(3, &end), "final_chat_calls.json");
    let whole = replier(Op::Chat, Form::Whole).end(1, &end);
    assert_sent(&whole, "whole_chat_calls.json");
}

#[test]
fn tokens() {
    let tokens = replier(Op::Tokenize, Form::Whole).tokens(&[1, 15043, 29871]);
    assert_sent(&tokens, "tokens.json");
}

#[test]
fn embeddings() {
    let replier = Replier {
        model: "minilm".to_owned(),
        ..replier(Op::Embed, Form::Whole)
    };
    let mut vectors = Vectors {
        n_dims: 2,
        values: vec![0.6, 0.8, 1.0, 0.0],
        dimensions: None,
        encoding: Encoding::Float,
        n_tokens: 11,
        truncated: false,
    };
    assert_sent(&replier.vectors(&vectors), "embeddings.json");
    (vectors.encoding, vectors.truncated) = (Encoding::Base64, true);
    assert_sent(&replier.vectors(&vectors), "embeddings_base64.json");
    let body = file("request_embed.json");
    let found = request::parse_embed(body.as_bytes(), &Limits::default());
    let expected = EmbedRequest {
        model: Some("minilm".to_owned()),
        texts: vec!["Pump 3 vibrates".to_owned(), "Belt is loose".to_owned()],
        dimensions: Some(2),
        encoding: Encoding::Float,
        truncate: true,
    };
    assert_eq!(found, Ok(expected));
}

#[test]
fn errors() {
    let again = Replier {
        attempt: 2,
        ..replier(Op::Chat, Form::Chunks)
    };
    let full = ApiError::new(Code::QueueFull, "32 jobs wait, at most 32 are allowed");
    assert_sent(&again.error(0, &full.with_retry(1500)), "error_retry.json");
    let invalid = ApiError::new(Code::InvalidRequest, "temperature is 3, allowed are 0 to 2");
    let invalid = invalid.with_param("temperature");
    assert_sent(
        &replier(Op::Chat, Form::Chunks).error(0, &invalid),
        "error_param.json",
    );
}

#[test]
fn bare_forms() {
    #[derive(Debug, PartialEq, Deserialize)]
    struct Bare {
        text: Vec<String>,
        text_error: Vec<String>,
        text_stream: Vec<String>,
        text_stream_error: Vec<String>,
    }
    let (text, stream) = (
        replier(Op::Text, Form::Text),
        replier(Op::TextStream, Form::TextStream),
    );
    let error = ApiError::new(Code::NoModel, "no model is installed,\nadd one");
    let payloads = |messages: Vec<Outgoing>| -> Vec<String> {
        let payload = |message: Outgoing| String::from_utf8(message.payload.to_vec()).unwrap();
        messages.into_iter().map(payload).collect()
    };
    let sent = Bare {
        text: payloads(vec![text.end(0, &end(Finish::Stop))]),
        text_error: payloads(vec![text.error(0, &error)]),
        text_stream: payloads(vec![
            stream.piece(0, "Grüße\n").unwrap(),
            stream.piece(1, "\"7\"").unwrap(),
            stream.end(2, &end(Finish::Stop)),
        ]),
        text_stream_error: payloads(vec![
            stream.piece(0, "Grüße\n").unwrap(),
            stream.end(1, &end(Finish::Cancelled)),
        ]),
    };
    assert_eq!(
        sent,
        serde_json::from_str::<Bare>(&file("bare.json")).unwrap()
    );
}

#[test]
fn codes_keep_their_status_and_type() {
    #[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
    struct Row {
        code: Code,
        status: u16,
        r#type: String,
    }
    let mut ours: Vec<Row> = Code::ALL
        .iter()
        .map(|&code| Row {
            code,
            status: code.status(),
            r#type: code.kind().to_owned(),
        })
        .collect();
    let pinned = ["error_codes.json", "error_codes_1_1.json"];
    let pinned = pinned.map(|name| serde_json::from_str::<Vec<Row>>(&file(name)).unwrap());
    let mut pinned = pinned.into_iter().flatten().collect::<Vec<_>>();
    ours.sort();
    pinned.sort();
    assert_eq!(ours, pinned);
    for code in Code::ALL {
        assert_eq!(serde_json::to_string(code).unwrap(), format!("\"{code}\""));
    }
}

#[test]
fn status() {
    let status = |state| Status {
        state,
        boot: "9f3c2a7d".to_owned(),
        since_ms: 1_790_000_000_123,
    };
    assert_published(&status(Presence::Online), "status_online.json");
    assert_published(&status(Presence::Draining), "status_draining.json");
    assert_published(&status(Presence::Offline), "status_offline.json");
}

fn loaded() -> Loaded {
    Loaded {
        name: "smollm2-135m".to_owned(),
        arch: "llama".to_owned(),
        description: "llama 135M Q4_1".to_owned(),
        n_params: 134_515_008,
        size_bytes: 98_304_000,
        n_vocab: 49_152,
        n_dims: 0,
        n_ctx_train: 8192,
        n_ctx: 8192,
        n_ctx_seq: 4096,
        n_seq_max: 8,
        chat_template: "gguf".to_owned(),
        tool_syntax: Default::default(),
        n_layers: 31,
        n_layers_gpu: 31,
        n_graph_splits: 2,
        buffers: vec![BufferUse {
            buffer: "CUDA0".to_owned(),
            host: false,
            weights_bytes: 98_304_000,
            kv_bytes: 188_743_680,
            compute_bytes: 20_971_520,
        }],
        devices: vec![],
        input_bytes: 0,
        canary: None,
        load_ms: 412,
    }
}

#[test]
fn info() {
    // The default when these were pinned.
    let limits = Limits {
        payload_bytes: 256 << 10,
        ..Limits::default()
    };
    let board = Hardware {
        board: Some("NVIDIA Jetson Orin NX".to_owned()),
        arch: "aarch64".to_owned(),
        n_cores: 8,
        memory_bytes: Some(16_036_249_600),
        gpu: Some("Orin".to_owned()),
    };
    let hello = Hello {
        protocol: 1,
        version: "0.1.0".to_owned(),
        llama: "llama-cpp-sys-2 0.1.161".to_owned(),
        backends: vec!["CPU".to_owned(), "CUDA".to_owned()],
    };
    let info = |sandbox: Option<&Sandbox>| Info {
        engine: Some(Engine::of(
            &hello,
            sandbox,
            Some((Backend::Auto, &loaded())),
        )),
        // The version when these were pinned.
        protocol: "1.0".to_owned(),
        ..Info::new(&node(), "0.1.0", limits.clone(), board.clone())
    };
    assert_published(&info(None), "info.json");
    let whole = Sandbox {
        landlock_abi: Some(1),
        seccomp: true,
        no_new_privs: true,
        gaps: vec![],
    };
    assert_published(&info(Some(&whole)), "info_sandbox.json");
    let half = Sandbox {
        landlock_abi: None,
        gaps: vec!["this kernel has no Landlock".to_owned()],
        ..whole
    };
    assert_published(&info(Some(&half)), "info_sandbox_partial.json");
    let mut proven = info(Some(&whole));
    let offload = proven.engine.as_mut().and_then(|e| e.offload.as_mut());
    offload.unwrap().proof = Some(Proof {
        verdict: Verdict::Gpu,
        canary_tok_s: Some(27.5),
        roofline_tok_s: Some(34.25),
    });
    assert_published(&proven, "info_proof.json");
    let refused = Info {
        engine: None,
        no_model: Some("the engine was not started: it needs 3.78 GiB".to_owned()),
        ..info(None)
    };
    assert_published(&refused, "info_no_model.json");
    let bare = Hardware {
        arch: "x86_64".to_owned(),
        n_cores: 2,
        ..Hardware::default()
    };
    let small = Info {
        protocol: "1.0".to_owned(),
        ..Info::new(&node(), "0.1.0", limits.clone(), bare)
    };
    assert_published(&small, "info_small.json");
    let in_pools = Info {
        pools: vec!["hall2".to_owned(), "site".to_owned()],
        ..small
    };
    assert_published(&in_pools, "info_pools.json");
    let var = |name: &str, kind, bytes_max, without| Var {
        name: name.to_owned(),
        kind,
        bytes_max,
        without,
        line: Line::named(name),
    };
    let of = |vars: Vec<Var>| Template {
        system: None,
        user: "Say it.".to_owned(),
        vars,
        max_tokens: None,
        schema: None,
    };
    let alarm = of(vec![
        var("code", Kind::Integer, 256, Without::Refused),
        var("note", Kind::Text, 200, Without::NoLine),
    ]);
    let named = [("alarm-text", alarm), ("shift-report", of(Vec::new()))];
    let named = named.map(|(name, template)| (name.to_owned(), template));
    let with_templates = Info {
        protocol: "1.1".to_owned(),
        pools: Vec::new(),
        templates: TemplateInfo::all(&Templates(named.into())),
        ..in_pools
    };
    assert_published(&with_templates, "info_templates.json");
}

#[test]
fn models() {
    let other = Model {
        name: "qwen3-4b".to_owned(),
        ..Model::default()
    };
    let models = Models {
        active: Some("smollm2-135m".to_owned()),
        models: vec![Model::of(&loaded()), other],
    };
    assert_published(&models, "models.json");
    assert_published(&Models::default(), "models_none.json");
}

#[test]
fn state() {
    let state = State {
        mode: Mode::Serving,
        model: Some("smollm2-135m".to_owned()),
        reasons: Vec::new(),
        load_progress: None,
        since_ms: 1_790_000_000_123,
        pressure: None,
        pools: None,
        memory: None,
        power: None,
    };
    assert_published(&state, "state_serving.json");
    let intake = |taking, reasons| State {
        pools: Some(PoolIntake { taking, reasons }),
        ..state.clone()
    };
    assert_published(&intake(true, Vec::new()), "state_pools.json");
    let full = "8 requests wait: it leaves its pools at 8 and returns at 4";
    assert_published(
        &intake(false, vec![full.to_owned()]),
        "state_pools_away.json",
    );
    let memory = Memory {
        planned_bytes: 4_060_086_272,
        weights_bytes: 2_306_867_200,
        kv_bytes: 939_524_096,
        compute_bytes: 289_406_976,
        gpu_context_bytes: 419_430_400,
        process_bytes: 104_857_600,
        taken_bytes: Some(4_021_288_960),
        difference_bytes: Some(-38_797_312),
        available_bytes: 6_395_490_304,
        available_after_bytes: Some(2_374_201_344),
        reserve_bytes: 805_306_368,
        resting_bytes: None,
        embedding_bytes: None,
    };
    let loaded = State {
        memory: Some(memory),
        ..state.clone()
    };
    assert_published(&loaded, "state_memory.json");
    let refused = State {
        mode: Mode::NoModel,
        reasons: vec!["the engine was not started: it needs 3.78 GiB".to_owned()],
        memory: Some(Memory {
            taken_bytes: None,
            difference_bytes: None,
            available_after_bytes: None,
            ..memory
        }),
        ..state.clone()
    };
    assert_published(&refused, "state_memory_refused.json");
    let loading = State {
        mode: Mode::Loading,
        load_progress: Some(0.5),
        ..state.clone()
    };
    assert_published(&loading, "state_loading.json");
    let none = State {
        mode: Mode::NoModel,
        model: None,
        reasons: vec!["no model is installed".to_owned()],
        ..state
    };
    assert_published(&none, "state_no_model.json");
}

#[test]
fn telemetry() {
    assert_document::<TeleHost>(&["tele_host.json", "tele_host_pc.json"]);
    assert_document::<TeleGpu>(&["tele_gpu.json"]);
    assert_document::<TeleLlm>(&["tele_llm.json", "tele_llm_idle.json"]);
    assert_document::<TeleQueue>(&["tele_queue.json", "tele_queue_classes.json"]);
}

#[test]
fn events_and_orders() {
    assert_document::<PressureEvent>(&["pressure_event.json"]);
    assert_document::<SwitchEvent>(&["switch_event.json"]);
    assert_document::<ModelCommand>(&["model_command.json", "model_command_failed.json"]);
}

#[test]
fn updates() {
    assert_document::<ota::State>(&[
        "ota_state_none.json",
        "ota_state_downloading.json",
        "ota_state_probing.json",
        "ota_state_committed.json",
        "ota_state_rolled_back.json",
        "ota_state_unreachable.json",
    ]);
    assert_document::<ota::Event>(&["ota_event.json", "ota_event_step.json"]);
    assert_document::<Desired>(&["ota_desired.json", "ota_desired_best.json"]);
    assert_document::<OtaCommand>(&[
        "ota_command.json",
        "ota_command_best.json",
        "ota_command_rollback.json",
        "ota_command_taken.json",
        "ota_command_failed.json",
    ]);
}
