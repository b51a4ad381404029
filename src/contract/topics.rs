//! The topics, and what happens on each. Their addresses come from [`Names`].

use crate::wire::{Name, Names, Op, RequestId};

/// Who sends on a topic.
#[derive(PartialEq)]
pub(super) enum Sender {
    /// Requesters; the node receives.
    Requester,
    Node,
}

/// A topic and what happens on it.
pub(super) struct Topic {
    pub(super) name: &'static str,
    /// With `{parameters}`.
    pub(super) address: String,
    pub(super) sender: Sender,
    pub(super) retained: bool,
    pub(super) title: String,
    pub(super) description: String,
    pub(super) messages: &'static [&'static str],
    /// Messages on the response topic that answer; none for topics without an answer.
    pub(super) replies: &'static [&'static str],
}

/// A question, to a node or to a pool.
struct Question {
    op: Op,
    name: &'static str,
    name_in_pool: &'static str,
    title: &'static str,
    description: &'static str,
    messages: &'static [&'static str],
    replies: &'static [&'static str],
}

const STREAMED_OR_NOT: &[&str] = &["accepted", "chunk", "final", "whole", "failure", "bareText"];

const QUESTIONS: &[Question] = &[
    Question {
        op: Op::Chat,
        name: "chat",
        name_in_pool: "poolChat",
        title: "Ask for an answer in a conversation",
        description: "JSON with messages, or plain text as one message of a user. Answered by accepted, chunks \
                      and a final; with \"stream\": false by accepted and one answer; with the user property \
                      accept: text/plain as op text-stream or text is.",
        messages: &["chatRequest", "textRequest"],
        replies: STREAMED_OR_NOT,
    },
    Question {
        op: Op::Complete,
        name: "complete",
        name_in_pool: "poolComplete",
        title: "Ask for the continuation of a text",
        description: "JSON with a prompt, or plain text as the prompt, without a chat template. Answered as op \
                      chat is.",
        messages: &["completeRequest", "textRequest"],
        replies: STREAMED_OR_NOT,
    },
    Question {
        op: Op::Text,
        name: "text",
        name_in_pool: "poolText",
        title: "Ask with bare text, for one message of bare text",
        description: "For the smallest devices. The answer is cut to info.limits.text_bytes, at a character.",
        messages: &["textRequest"],
        replies: &["bareText"],
    },
    Question {
        op: Op::TextStream,
        name: "textStream",
        name_in_pool: "poolTextStream",
        title: "Ask with bare text, for pieces of bare text",
        description: "Pieces as they are made, then an empty payload.",
        messages: &["textRequest"],
        replies: &["bareText"],
    },
    Question {
        op: Op::Tokenize,
        name: "tokenize",
        name_in_pool: "poolTokenize",
        title: "Ask for token ids",
        description: "JSON with a prompt or messages, or plain text as the prompt. Nothing is stored; one answer.",
        messages: &["tokenizeRequest", "textRequest"],
        replies: &["tokens", "failure"],
    },
    Question {
        op: Op::Embed,
        name: "embed",
        name_in_pool: "poolEmbed",
        title: "Ask for vectors",
        description: "JSON with one text or many, or plain text as the one text. Nothing is stored; one answer. Needs embeddings.model on the node.",
        messages: &["embedRequest", "textRequest"],
        replies: &["embeddings", "failure"],
    },
];

/// Stand for parameters in addresses, as no fixed level has capital letters.
pub(super) const PLACEHOLDERS: [(&str, &str); 7] = [
    ("FLEET", "{fleet}"),
    ("ROOT", "{root}"),
    ("NODE", "{node}"),
    ("POOL", "{pool}"),
    ("USER", "{user}"),
    ("SESSION", "{session}"),
    ("ID", "{id}"),
];
const WELL_FORMED: &str = "placeholders are names";

pub(super) fn topics() -> Vec<Topic> {
    let name = |text| Name::new(text).expect(WELL_FORMED);
    let names = Names::new("ROOT", name("NODE")).expect(WELL_FORMED);
    let names = names.with_fleet(name("FLEET"));
    let (pool, user) = (name("POOL"), name("USER"));
    let id = RequestId::new("ID").expect(WELL_FORMED);
    let address = |topic: String| {
        PLACEHOLDERS.iter().fold(topic, |topic, (word, parameter)| {
            topic.replace(word, parameter)
        })
    };
    let to_node = |question: &Question| Topic {
        name: question.name,
        address: address(names.req(&user, question.op, &id)),
        sender: Sender::Requester,
        retained: false,
        title: question.title.to_owned(),
        description: question.description.to_owned(),
        messages: question.messages,
        replies: question.replies,
    };
    let to_pool = |question: &Question| Topic {
        name: question.name_in_pool,
        address: address(names.pool_req(&pool, &user, question.op, &id)),
        title: format!("{}, of a pool", question.title),
        description: format!(
            "{} The broker hands it to one member; orinoco.node of the answer says to which. Repeats and the \
             cancel go to that node.",
            question.description
        ),
        ..to_node(question)
    };
    let cancel = |name, topic, title: &str, description: &str| Topic {
        name,
        address: address(topic),
        sender: Sender::Requester,
        retained: false,
        title: title.to_owned(),
        description: description.to_owned(),
        messages: &["cancel"],
        replies: &[],
    };
    let report = |name, topic, title: &str, description: &str, messages| Topic {
        name,
        address: address(topic),
        sender: Sender::Node,
        retained: true,
        title: title.to_owned(),
        description: description.to_owned(),
        messages,
        replies: &[],
    };
    let mut topics: Vec<_> = QUESTIONS.iter().map(to_node).collect();
    topics.extend(QUESTIONS.iter().map(to_pool));
    topics.extend([
        cancel(
            "cancel",
            names.cancel(&user, &id),
            "Call a request off",
            "The answer of that request ends: with finish_reason cancelled when it had begun. A request that \
             is unknown or over is left alone, and nothing is said.",
        ),
        cancel(
            "poolCancel",
            names.pool_cancel(&pool, &user, &id),
            "Call a request to a pool off",
            "For a request of which no node is known yet; every member hears it.",
        ),
        cancel(
            "forget",
            names.forget(&user, &name("SESSION")),
            "Forget a conversation",
            "What the node keeps of that conversation of the user is deleted, and what is being answered in it \
             leaves nothing. Acknowledged when that is on disk; nothing is said. An unknown one is no error.",
        ),
        Topic {
            name: "resp",
            address: address(names.resp(&user, &id)),
            sender: Sender::Node,
            retained: false,
            title: "Answers".to_owned(),
            description: "What is sent depends on the request: see the replies of the operations. A Response \
                          Topic of MQTT 5 may name another topic below the requester's own."
                .to_owned(),
            messages: &["accepted", "chunk", "final", "whole", "tokens", "embeddings", "failure", "bareText"],
            replies: &[],
        },
        report(
            "status",
            names.status(),
            "Whether the node is there",
            "Published at each start, when it begins to drain, at an orderly end, and by the broker as last \
             will when the node is gone without a word.",
            &["status"],
        ),
        report(
            "info",
            names.info(),
            "What the node is",
            "Published at each start and when the engine changes.",
            &["info"],
        ),
        report(
            "models",
            names.models(),
            "Which models there are",
            "Published at each start and when the active model changes.",
            &["models"],
        ),
        report(
            "state",
            names.state(),
            "What the node does now",
            "Published at each change of mode, and while a model is loaded.",
            &["state"],
        ),
        Topic {
            retained: false,
            ..report(
                "pressureEvent",
                names.event("pressure"),
                "A step of the memory watchdog",
                "Told when the step had time to work.",
                &["pressureEvent"],
            )
        },
        Topic {
            retained: false,
            ..report(
                "switchEvent",
                names.event("switch"),
                "Another model",
                "Told when a model that was ordered serves, or could not.",
                &["switchEvent"],
            )
        },
        report(
            "otaState",
            names.ota_state(),
            "Updates: what runs and what is under way",
            "Of a node with a root of trust. Published at each step and, in a download, every two seconds.",
            &["otaState"],
        ),
        Topic {
            retained: false,
            ..report(
                "otaEvent",
                names.event("ota"),
                "Updates: a step",
                "Told at each step of a deployment.",
                &["otaEvent"],
            )
        },
        Topic {
            name: "otaDesired",
            address: address(names.desired().expect("a fleet was named")),
            sender: Sender::Requester,
            retained: true,
            title: "Updates: what a fleet is to run".to_owned(),
            description: "For operators: one of the signed releases, for all nodes of a group. desired_seq rises \
                          with each wish."
                .to_owned(),
            messages: &["otaDesired"],
            replies: &[],
        },
        Topic {
            name: "otaCommand",
            address: address(names.command("ota", id.as_str())),
            sender: Sender::Requester,
            retained: true,
            title: "Updates: order one node, and hear what became of it".to_owned(),
            description: "For operators, who write init; the node writes successful when it has taken the order, \
                          or failed. What comes of it is told by its state."
                .to_owned(),
            messages: &["otaCommand"],
            replies: &[],
        },
        Topic {
            name: "setUpdate",
            address: address(names.set("update")),
            sender: Sender::Requester,
            retained: false,
            title: "Updates: one word".to_owned(),
            description: "For operators and for Home Assistant: install, check, cancel or rollback.".to_owned(),
            messages: &["updateWord"],
            replies: &[],
        },
        Topic {
            name: "setModel",
            address: address(names.set("model")),
            sender: Sender::Requester,
            retained: false,
            title: "Choose the model".to_owned(),
            description: "For operators: the name of the model that is to serve.".to_owned(),
            messages: &["modelName"],
            replies: &[],
        },
        Topic {
            name: "setCancel",
            address: address(names.set("cancel")),
            sender: Sender::Requester,
            retained: false,
            title: "Call off all requests".to_owned(),
            description: "For operators: the word all ends every request that waits or runs.".to_owned(),
            messages: &["allRequests"],
            replies: &[],
        },
        Topic {
            name: "modelCommand",
            address: address(names.command("model", id.as_str())),
            sender: Sender::Requester,
            retained: true,
            title: "Choose the model, and hear what became of it".to_owned(),
            description: "For operators, who write init; the node writes executing, then successful or failed, \
                          to the same topic. Cleared by whoever asked, with an empty retained message."
                .to_owned(),
            messages: &["modelCommand"],
            replies: &[],
        },
    ]);
    let numbers = [
        ("teleHost", "host", "Numbers of the board"),
        ("teleGpu", "gpu", "Numbers of its GPU"),
        ("teleLlm", "llm", "Numbers of the model and its streams"),
        ("teleQueue", "queue", "Numbers of the requests"),
    ];
    topics.extend(numbers.map(|(name, kind, title)| {
        let description = "Every telemetry.interval_seconds.";
        let messages = TELEMETRY
            .iter()
            .find(|messages| messages[0] == name)
            .expect("each has its message");
        report(name, names.tele(kind), title, description, messages)
    }));
    topics
}

/// The one message of each topic of numbers.
const TELEMETRY: &[&[&str]] = &[&["teleHost"], &["teleGpu"], &["teleLlm"], &["teleQueue"]];
