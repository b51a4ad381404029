//! `orinoco ask` as a person runs it: the real program, a real broker, and a node that follows a script.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;

use bytes::Bytes;
use orinoco::broker::{self, BrokerConfig, PortChoice};
use orinoco::frames::{Finish, Timings};
use orinoco::link::{self, Inbound, LinkConfig, Message, Props, Publish};
use orinoco::runtime_file::{Runtime, RuntimeFile};
use orinoco::wire::error::{ApiError, Code};
use orinoco::wire::reply::{Accepted, End, Form, Outgoing, Replier};
use orinoco::wire::topic::{Incoming, Name, Names, Op, RequestId};
use sha2::{Digest, Sha256};

/// What the node does with a message: the messages to send back.
type Script = Box<dyn FnMut(&Names, &Incoming, &Message) -> Vec<(String, Outgoing)> + Send>;

/// A broker and a node on it, both ended with the test.
struct Site {
    address: SocketAddr,
    state: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Site {
    fn new(script: Script) -> Self {
        let state = tempfile::tempdir().expect("a temporary directory");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (listens, listening) = mpsc::channel();
        let config = BrokerConfig {
            port: PortChoice::Exactly(0),
            users: Some(state.path().join("users.toml")),
            daemon_password: Some("secret".into()),
            ..BrokerConfig::new(state.path().join("broker"), "orinoco")
        };
        runtime.spawn(async move {
            let ready = move |address| listens.send(address).expect("the test waits");
            broker::serve(config, ready, std::future::pending())
                .await
                .expect("a broker");
        });
        let address = listening.recv().expect("the broker listens");
        let (is_up, up) = mpsc::channel();
        runtime.spawn(node(address, script, is_up));
        up.recv().expect("the node is connected");
        Self {
            address,
            state,
            _runtime: runtime,
        }
    }

    fn ask(&self, args: &[&str]) -> Command {
        let mut command = orinoco();
        command
            .args([
                "--state-dir",
                self.state.path().to_str().expect("a plain path"),
            ])
            .args(["ask", "--host", "127.0.0.1"])
            .args(["--port", &self.address.port().to_string()])
            .args(["--node", "n1"])
            .args(args);
        command
    }
}

/// The program, with none of this machine's configuration.
fn orinoco() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orinoco"));
    command.env_clear().stdin(Stdio::null());
    command
}

async fn node(address: SocketAddr, mut script: Script, is_up: mpsc::Sender<()>) {
    let names = Names::new("orinoco", Name::new("n1").expect("a name")).expect("a root");
    let id = broker::daemon_client_id("n1");
    let (link, mut inbox) = link::spawn(LinkConfig {
        credentials: Some(link::Credentials {
            user: orinoco::access::DAEMON.into(),
            password: "secret".into(),
        }),
        subscriptions: names.subscriptions(),
        ..LinkConfig::new("127.0.0.1", address.port(), id)
    });
    while let Some(inbound) = inbox.recv().await {
        match inbound {
            Inbound::Up { .. } => {
                let status = br#"{"state":"online","boot":"b","since_ms":1}"#;
                let status = publish(names.status(), Bytes::from_static(status), true);
                link.publish(status).await.expect("an open link");
                is_up.send(()).expect("the test waits");
            }
            Inbound::Message(message) => {
                let incoming = names
                    .parse(&message.topic)
                    .expect("a topic of the contract");
                for (topic, answer) in script(&names, &incoming, &message) {
                    link.publish(publish(topic, answer.payload, false))
                        .await
                        .expect("an open link");
                }
                link.try_ack(message.ack).expect("an open link");
            }
            _ => {}
        }
    }
}

fn publish(topic: String, payload: Bytes, retain: bool) -> Publish {
    Publish {
        topic,
        payload,
        at_least_once: true,
        retain,
        props: Props::default(),
        token: None,
    }
}

fn replier(id: &RequestId) -> Replier {
    Replier {
        form: Form::Chunks,
        op: Op::Chat,
        id: id.clone(),
        model: "tiny".into(),
        node: Name::new("n1").expect("a name"),
        created_s: 1,
        attempt: 1,
    }
}

fn end(finish: Finish, text: &str) -> End {
    End {
        finish,
        text: text.into(),
        timings: Timings {
            n_prompt: 9,
            n_output: 4,
            decode_ms: 20.0,
            ..Timings::default()
        },
        ttft_ms: 5.0,
        total_ms: 25.0,
        n_chunks: 1,
        resumed: 0,
        parts: Vec::new(),
        session: None,
        energy_j: None,
        logprobs: Vec::new(),
        include_text: false,
        text_sha256: Sha256::digest(text).into(),
        truncated: false,
        calls: Vec::new(),
    }
}

/// Accepts, says the pieces, and ends with the digest of `whole`.
fn answering(pieces: &'static [&'static str], whole: &'static str) -> Script {
    Box::new(move |names, incoming, _| {
        let Incoming::Request { user, id, .. } = incoming else {
            return Vec::new();
        };
        let replier = replier(id);
        let mut answers = vec![
            replier
                .accepted(&Accepted {
                    queue: 0,
                    eta_ms: None,
                    loading: None,
                })
                .expect("chunks"),
        ];
        for (seq, piece) in (1..).zip(pieces) {
            answers.push(replier.piece(seq, piece).expect("chunks"));
        }
        answers.push(replier.end(pieces.len() as u64 + 1, &end(Finish::Stop, whole)));
        let topic = names.resp(user, id);
        answers
            .into_iter()
            .map(|answer| (topic.clone(), answer))
            .collect()
    })
}

fn refusing(error: ApiError) -> Script {
    Box::new(move |names, incoming, _| match incoming {
        Incoming::Request { user, id, .. } => {
            vec![(names.resp(user, id), replier(id).error(0, &error))]
        }
        Incoming::Cancel { .. } | Incoming::Forget { .. } => Vec::new(),
    })
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

fn finish(command: &mut Command) -> Output {
    command.output().expect("the program starts")
}

#[test]
fn an_answer_goes_to_stdout_and_what_it_took_to_stderr() {
    let site = Site::new(answering(&["Ori", "noco ü"], "Orinoco ü"));
    let output = finish(&mut site.ask(&["What river?"]));
    assert_eq!(text(&output.stdout), "Orinoco ü\n");
    let stderr = text(&output.stderr);
    assert!(stderr.starts_with("ttft "), "{stderr}");
    for part in [" tok/s, ", "9 prompt + 4 answer tokens", "stop, tiny"] {
        assert!(stderr.contains(part), "{part} in {stderr}");
    }
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn json_prints_each_message_as_it_came() {
    let site = Site::new(answering(&["a"], "a"));
    let output = finish(&mut site.ask(&["--json", "x"]));
    let lines: Vec<serde_json::Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let seqs: Vec<_> = lines.iter().map(|line| line["seq"].as_u64()).collect();
    assert_eq!(seqs, [Some(0), Some(1), Some(2)]);
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_prompt_from_stdin_reaches_the_node_whole() {
    let (heard, hears) = mpsc::channel();
    let mut answer = answering(&["ok"], "ok");
    let site = Site::new(Box::new(move |names, incoming, message| {
        heard.send(message.payload.clone()).unwrap();
        answer(names, incoming, message)
    }));
    let mut child = site
        .ask(&["--seed", "7", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"line 1\nline 2\n")
        .unwrap();
    assert!(child.wait().unwrap().success());
    let body: serde_json::Value = serde_json::from_slice(&hears.recv().unwrap()).unwrap();
    assert_eq!(body["messages"][0]["content"], "line 1\nline 2");
    assert_eq!(body["seed"], 7);
}

#[test]
fn a_conversation_is_forgotten_before_it_begins_anew() {
    let (heard, hears) = mpsc::channel();
    let mut answer = answering(&["ok"], "ok");
    let site = Site::new(Box::new(move |names, incoming, message| {
        heard.send(message.topic.clone()).unwrap();
        answer(names, incoming, message)
    }));
    finish(&mut site.ask(&["--session", "kitchen", "x"]));
    let asked = hears.recv().unwrap();
    assert!(asked.contains("/chat/"), "{asked}");
    finish(&mut site.ask(&["--session", "kitchen", "--new", "x"]));
    // What was not accepted for two seconds is sent again.
    let forgotten = hears.iter().find(|topic| *topic != asked).unwrap();
    assert!(forgotten.ends_with("/forget/kitchen"), "{forgotten}");
    assert!(hears.recv().unwrap().contains("/chat/"));
}

#[test]
fn a_refusal_is_a_failure_with_its_reason() {
    let site = Site::new(refusing(
        ApiError::new(Code::QueueFull, "1000 jobs wait").with_retry(2500),
    ));
    let output = finish(&mut site.ask(&["x"]));
    assert_eq!(text(&output.stdout), "");
    assert_eq!(
        text(&output.stderr),
        "orinoco: 429 queue_full: 1000 jobs wait (try again in 2.5 s)\n"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_text_that_is_not_what_the_node_sent_is_a_failure() {
    let site = Site::new(answering(&["true"], "false"));
    let output = finish(&mut site.ask(&["x"]));
    assert!(
        text(&output.stderr).contains("SHA-256"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn ctrl_c_cancels_the_job_on_the_node() {
    let (cancelled, cancels) = mpsc::channel();
    let site = Site::new(Box::new(move |names, incoming, _| match incoming {
        Incoming::Request { user, id, .. } => {
            let replier = replier(id);
            let topic = names.resp(user, id);
            vec![
                (
                    topic.clone(),
                    replier
                        .accepted(&Accepted {
                            queue: 0,
                            eta_ms: None,
                            loading: None,
                        })
                        .unwrap(),
                ),
                (topic, replier.piece(1, "On and\n").unwrap()),
            ]
        }
        Incoming::Cancel { user, id } => {
            cancelled.send(id.clone()).unwrap();
            let last = replier(id).end(2, &end(Finish::Cancelled, "On and\n"));
            vec![(names.resp(user, id), last)]
        }
        Incoming::Forget { .. } => Vec::new(),
    }));
    let mut child = site
        .ask(&["Go on."])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "On and\n");
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    cancels.recv().unwrap();
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    assert_eq!(stderr, "cancelled\n");
}

fn interrupt(child: &Child) {
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().expect("a process id"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("our own child");
}

#[test]
fn a_reader_that_has_had_enough_cancels_the_job() {
    let (cancelled, cancels) = mpsc::channel();
    let site = Site::new(Box::new(move |names, incoming, _| match incoming {
        Incoming::Request { user, id, .. } => {
            let replier = replier(id);
            let mut answers = vec![
                replier
                    .accepted(&Accepted {
                        queue: 0,
                        eta_ms: None,
                        loading: None,
                    })
                    .unwrap(),
            ];
            answers.extend((1..100).map(|seq| replier.piece(seq, "and on\n").unwrap()));
            answers
                .into_iter()
                .map(|answer| (names.resp(user, id), answer))
                .collect()
        }
        Incoming::Cancel { id, .. } => {
            cancelled.send(id.clone()).unwrap();
            Vec::new()
        }
        Incoming::Forget { .. } => Vec::new(),
    }));
    // Gone before the first word: a pipe would hold all of them.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = site.ask(&["Go on."]).stdout(writer).spawn().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    cancels.recv().unwrap();
}

#[test]
fn a_request_that_was_not_accepted_is_sent_again_with_the_same_id() {
    let mut first = None;
    let mut answer = answering(&["late"], "late");
    let site = Site::new(Box::new(move |names, incoming, message| match &first {
        None => {
            first = Some(message.topic.clone());
            Vec::new()
        }
        Some(topic) => {
            assert_eq!(*topic, message.topic);
            answer(names, incoming, message)
        }
    }));
    assert_eq!(text(&finish(&mut site.ask(&["x"])).stdout), "late\n");
}

#[test]
fn the_daemon_of_this_machine_is_found_by_its_runtime_file() {
    let site = Site::new(answering(&["here"], "here"));
    let runtime = Runtime {
        node: "n1".into(),
        root: "orinoco".into(),
        host: "127.0.0.1".into(),
        port: site.address.port(),
        own_broker: true,
        tls: None,
        pid: std::process::id(),
    };
    let _file = RuntimeFile::write(site.state.path(), &runtime).unwrap();
    let output = finish(
        orinoco()
            .arg("--state-dir")
            .arg(site.state.path())
            .args(["ask", "x"]),
    );
    assert_eq!(text(&output.stdout), "here\n", "{}", text(&output.stderr));
}

#[test]
fn nobody_there_is_said_with_the_address_and_how_it_was_found() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let dir = tempfile::tempdir().unwrap();
    let mut command = orinoco();
    command.arg("--state-dir").arg(dir.path()).args([
        "ask",
        "--port",
        &port,
        "--accept-seconds",
        "1",
        "x",
    ]);
    let output = finish(&mut command);
    let expected =
        format!("\norinoco: no broker at 127.0.0.1:{port} (from mqtt.host, as no daemon runs");
    assert!(
        text(&output.stderr).contains(&expected),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(69));
}

#[test]
fn a_node_that_the_broker_does_not_know_is_named() {
    let site = Site::new(answering(&[], ""));
    let port = site.address.port().to_string();
    let mut command = orinoco();
    command
        .arg("--state-dir")
        .arg(site.state.path())
        .args(["ask", "--host", "127.0.0.1", "--port", &port])
        .args(["--node", "n2", "--accept-seconds", "8", "x"]);
    let output = finish(&mut command);
    assert!(
        text(&output.stderr).contains("knows no node n2"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(69));
}
