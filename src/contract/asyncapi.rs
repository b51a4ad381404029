//! The AsyncAPI 3 document: which topics there are, who sends what on them, and examples.
//!
//! Addresses come from [`Names`], bodies from [`super::schemas`], examples from `tests/wire/v1/`. What
//! stands here in words is what types do not know: the reason for a topic, QoS and RETAIN. A test
//! compares those with what a running daemon sends.

use serde_json::{Map, Value, json};

use super::schemas;
use crate::wire::{
    Name, Names, Op, PROTOCOL, RequestId, reply,
    topic::{ID_PATTERN, NAME_PATTERN, RESERVED},
};

const JSON: &str = "application/json";
const TEXT: &str = "text/plain";
const REQUEST_HEADERS: &str = "RequestHeaders";
const ANSWER_HEADERS: &str = "AnswerHeaders";

/// A body on a topic.
struct Message {
    name: &'static str,
    title: &'static str,
    summary: &'static str,
    content_type: &'static str,
    /// Name of the definition of its payload.
    schema: &'static str,
    /// Name of the definition of its user properties.
    headers: Option<&'static str>,
    /// Names, and payloads as JSON.
    examples: &'static [(&'static str, &'static str)],
}

macro_rules! pinned {
    ($($name:literal),*) => {
        &[$(($name, include_str!(concat!("../../tests/wire/v1/", $name, ".json")))),*]
    };
}

const MESSAGES: &[Message] = &[
    Message {
        name: "chatRequest",
        title: "Messages of a conversation",
        summary: "OpenAI's body for chat completions, with a few keys more.",
        content_type: JSON,
        schema: "ChatRequest",
        headers: Some(REQUEST_HEADERS),
        examples: pinned!("request_chat_small", "request_chat"),
    },
    Message {
        name: "completeRequest",
        title: "A prompt to continue",
        summary: "OpenAI's body for completions, with a few keys more.",
        content_type: JSON,
        schema: "CompleteRequest",
        headers: Some(REQUEST_HEADERS),
        examples: pinned!("request_complete"),
    },
    Message {
        name: "tokenizeRequest",
        title: "A prompt or messages to tokenize",
        summary: "Either prompt or messages.",
        content_type: JSON,
        schema: "TokenizeRequest",
        headers: None,
        examples: pinned!("request_tokenize"),
    },
    Message {
        name: "textRequest",
        title: "Plain text",
        summary: "For devices without JSON.",
        content_type: TEXT,
        schema: "TextRequest",
        headers: Some(REQUEST_HEADERS),
        examples: &[("text", "\"What is 2 bar in psi?\"")],
    },
    Message {
        name: "cancel",
        title: "Nothing",
        summary: "The topic says it all; a payload is ignored, leave it empty.",
        content_type: TEXT,
        schema: "Nothing",
        headers: None,
        examples: &[("empty", "\"\"")],
    },
    Message {
        name: "accepted",
        title: "Accepted",
        summary: "seq 0: the request is on the node's disk and will end with exactly one final, also after a power cut.",
        content_type: JSON,
        schema: "Response",
        headers: Some(ANSWER_HEADERS),
        examples: pinned!("accepted_chat", "accepted_complete"),
    },
    Message {
        name: "chunk",
        title: "Text of a stream",
        summary: "What came since the message before it.",
        content_type: JSON,
        schema: "Response",
        headers: Some(ANSWER_HEADERS),
        examples: pinned!("chunk_chat", "chunk_complete"),
    },
    Message {
        name: "final",
        title: "End of a stream",
        summary: "Why the answer ended, counts, times, and the SHA-256 of the whole text.",
        content_type: JSON,
        schema: "Response",
        headers: Some(ANSWER_HEADERS),
        examples: pinned!("final_chat", "final_chat_cancelled", "final_complete"),
    },
    Message {
        name: "whole",
        title: "Answer in one message",
        summary: "Where the request said \"stream\": false.",
        content_type: JSON,
        schema: "Response",
        headers: Some(ANSWER_HEADERS),
        examples: pinned!("whole_chat", "whole_complete"),
    },
    Message {
        name: "tokens",
        title: "Token ids",
        summary: "The one answer to op tokenize.",
        content_type: JSON,
        schema: "Tokens",
        headers: Some(ANSWER_HEADERS),
        examples: pinned!("tokens"),
    },
    Message {
        name: "failure",
        title: "Error",
        summary: "The final of a request that was refused or failed.",
        content_type: JSON,
        schema: "Failure",
        headers: Some(ANSWER_HEADERS),
        examples: pinned!("error_param", "error_retry"),
    },
    Message {
        name: "bareText",
        title: "Bare text",
        summary: "The one answer to op text; a piece of the answer to op text-stream, ended by an empty payload; or `!code message`, an error, which is the last message.",
        content_type: TEXT,
        schema: "BareText",
        headers: Some(ANSWER_HEADERS),
        examples: &[
            ("answer", "\"29 psi\""),
            ("end of a stream", "\"\""),
            ("error", "\"!no_model no model is installed, add one\""),
        ],
    },
    Message {
        name: "status",
        title: "Whether the node is there",
        summary: "Published at each start and change; offline is also the last will.",
        content_type: JSON,
        schema: "Status",
        headers: None,
        examples: pinned!("status_online", "status_draining", "status_offline"),
    },
    Message {
        name: "info",
        title: "What the node is",
        summary: "Version of the contract, limits, board, engine.",
        content_type: JSON,
        schema: "Info",
        headers: None,
        examples: pinned!("info_sandbox", "info_pools"),
    },
    Message {
        name: "models",
        title: "Which models there are",
        summary: "Names for the key model of requests.",
        content_type: JSON,
        schema: "Models",
        headers: None,
        examples: pinned!("models", "models_none"),
    },
    Message {
        name: "state",
        title: "What the node does now",
        summary: "Loading, serving, and why not.",
        content_type: JSON,
        schema: "State",
        headers: None,
        examples: pinned!(
            "state_serving",
            "state_loading",
            "state_no_model",
            "state_pools_away"
        ),
    },
];

/// Who sends on a topic.
#[derive(PartialEq)]
enum Sender {
    /// Requesters; the node receives.
    Requester,
    Node,
}

/// A topic and what happens on it.
struct Topic {
    name: &'static str,
    /// With `{parameters}`.
    address: String,
    sender: Sender,
    retained: bool,
    title: String,
    description: String,
    messages: &'static [&'static str],
    /// Messages on the response topic that answer; none for topics without an answer.
    replies: &'static [&'static str],
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
];

/// Stand for parameters in addresses, as no fixed level has capital letters.
const PLACEHOLDERS: [(&str, &str); 5] = [
    ("ROOT", "{root}"),
    ("NODE", "{node}"),
    ("POOL", "{pool}"),
    ("USER", "{user}"),
    ("ID", "{id}"),
];
const WELL_FORMED: &str = "placeholders are names";

fn topics() -> Vec<Topic> {
    let name = |text| Name::new(text).expect(WELL_FORMED);
    let names = Names::new("ROOT", name("NODE")).expect(WELL_FORMED);
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
        Topic {
            name: "resp",
            address: address(names.resp(&user, &id)),
            sender: Sender::Node,
            retained: false,
            title: "Answers".to_owned(),
            description: "What is sent depends on the request: see the replies of the operations. A Response \
                          Topic of MQTT 5 may name another topic below the requester's own."
                .to_owned(),
            messages: &["accepted", "chunk", "final", "whole", "tokens", "failure", "bareText"],
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
    ]);
    topics
}

pub(super) fn document() -> Value {
    let topics = topics();
    json!({
        "asyncapi": "3.0.0",
        "id": "urn:orinoco:v1",
        "info": {
            "title": "Orinoco",
            "version": PROTOCOL,
            "description": "An offline LLM appliance: prompts in over MQTT, streamed tokens out. Works with \
                            MQTT 3.1.1 and QoS 1; MQTT 5 adds comfort and no function. docs/protocol.md tells \
                            the same to a reader, with the rules for retries, order and duplicates.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            "contact": {"name": "Orinoco", "url": env!("CARGO_PKG_REPOSITORY")},
            "externalDocs": {
                "description": "The contract for a programmer",
                "url": concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/protocol.md"),
            },
            "tags": [{"name": "mqtt"}, {"name": "llm"}],
        },
        "defaultContentType": JSON,
        "servers": {"site": {
            "host": "{host}:{port}",
            "protocol": "mqtt",
            "protocolVersion": "5.0",
            "description": "The broker of the site, or the one that a node brings; 3.1.1 does as well.",
            "variables": {
                "host": {"description": "Where the broker listens.", "default": "localhost"},
                "port": {"description": "The broker's port.", "default": "1883"},
            },
            "security": [{"$ref": "#/components/securitySchemes/password"}],
        }},
        "channels": named(&topics, channel),
        "operations": named(&topics, operation),
        "components": {
            "schemas": definitions(),
            "messages": MESSAGES.iter().map(|m| (m.name.to_owned(), message(m))).collect::<Map<_, _>>(),
            "parameters": parameters(),
            "securitySchemes": {"password": {
                "type": "userPassword",
                "description": "The user's name is part of the topics, and the broker holds it to the \
                                credentials. On loopback, until the first user is added, clients without \
                                credentials are the user local.",
            }},
        },
    })
}

fn named(topics: &[Topic], of: fn(&Topic) -> Value) -> Map<String, Value> {
    let entry = |topic: &Topic| (topic.name.to_owned(), of(topic));
    topics.iter().map(entry).collect()
}

fn definitions() -> Value {
    let mut definitions = Value::Object(schemas::definitions());
    definitions[REQUEST_HEADERS] = request_headers();
    definitions[ANSWER_HEADERS] = answer_headers();
    definitions["BareText"] = json!({
        "type": "string",
        "description": "UTF-8. An error where it starts with ! followed by a code and a space.",
    });
    definitions["Nothing"] = json!({
        "type": "string", "maxLength": 0, "description": "An empty payload.",
    });
    schemas::moved_to("#/components/schemas/", &mut definitions);
    definitions
}

/// MQTT 5 user properties of requests.
fn request_headers() -> Value {
    json!({
        "type": "object",
        "description": "User properties of MQTT 5, all optional.",
        "properties": {
            "accept": {
                "type": "string",
                "description": "application/json, or text/plain: chat and complete answer in bare text.",
                "examples": [JSON, TEXT],
            },
        },
    })
}

/// MQTT 5 user properties of answers.
fn answer_headers() -> Value {
    json!({
        "type": "object",
        "description": "User properties of MQTT 5.",
        "required": ["seq", "node"],
        "properties": {
            "seq": {"type": "string", "pattern": "^[0-9]+$", "description": "As in the JSON."},
            "node": {"type": "string", "pattern": NAME_PATTERN, "description": "Who answers."},
            "status": {
                "type": "string",
                "pattern": "^[2-5][0-9][0-9]$",
                "description": "202 on accepted; on the final 200, 499 where the answer was called off, or \
                                the status of the error.",
            },
            "final": {"type": "string", "const": "1", "description": "On the last message only."},
        },
    })
}

fn parameters() -> Value {
    let reserved = RESERVED.join(" ");
    json!({
        "root": {"description": "Root of all topics; the node's configuration has it.", "default": "orinoco"},
        "node": {
            "description": format!("Name of the node, {NAME_PATTERN}, none of: {reserved}."),
            "examples": ["press-7"],
        },
        "pool": {"description": "Name of a pool, shaped as a node's; info.pools of its members has it.", "examples": ["hall2"]},
        "user": {
            "description": format!("Name that the requester gives to the broker, {NAME_PATTERN}. The broker \
                                    lets nobody use another's. local is who has no credentials, on loopback."),
            "examples": ["plc4", "local"],
        },
        "id": {
            "description": format!("Chosen by the requester, {ID_PATTERN}, new for each question: a ULID or \
                                    UUID, no counter that starts again after a reset."),
            "examples": ["01J9Z3"],
        },
    })
}

fn channel(topic: &Topic) -> Value {
    let messages: Map<_, _> = topic
        .messages
        .iter()
        .map(|name| {
            let target = format!("#/components/messages/{name}");
            ((*name).to_owned(), json!({"$ref": target}))
        })
        .collect();
    let parameters: Map<_, _> = PLACEHOLDERS
        .iter()
        .filter(|(_, parameter)| topic.address.contains(parameter))
        .map(|(_, parameter)| {
            let name = parameter.trim_matches(['{', '}']);
            let target = format!("#/components/parameters/{name}");
            (name.to_owned(), json!({"$ref": target}))
        })
        .collect();
    json!({
        "address": topic.address,
        "title": topic.title,
        "description": topic.description,
        "messages": messages,
        "parameters": parameters,
    })
}

fn operation(topic: &Topic) -> Value {
    let on = |channel: &str, messages: &[&str]| -> Vec<Value> {
        let target = |name| json!({"$ref": format!("#/channels/{channel}/messages/{name}")});
        messages.iter().map(target).collect()
    };
    let is_answer = topic.name == "resp";
    let mut mqtt = json!({"qos": 1, "retain": topic.retained, "bindingVersion": "0.2.0"});
    if is_answer {
        mqtt["messageExpiryInterval"] = reply::EXPIRY_SECONDS.into();
    }
    let mut operation = json!({
        "action": match topic.sender { Sender::Requester => "receive", Sender::Node => "send" },
        "channel": {"$ref": format!("#/channels/{}", topic.name)},
        "title": topic.title,
        "description": topic.description,
        "messages": on(topic.name, topic.messages),
        "bindings": {"mqtt": mqtt},
    });
    if !topic.replies.is_empty() {
        operation["reply"] = json!({
            "channel": {"$ref": "#/channels/resp"},
            "messages": on("resp", topic.replies),
        });
    }
    operation
}

fn message(message: &Message) -> Value {
    let examples: Vec<_> = message
        .examples
        .iter()
        .map(|(name, text)| {
            let payload: Value = serde_json::from_str(text).expect("pinned examples are JSON");
            json!({"name": name, "payload": payload})
        })
        .collect();
    let definition = |name| json!({"$ref": format!("#/components/schemas/{name}")});
    let mut mqtt = json!({"contentType": message.content_type, "payloadFormatIndicator": 1, "bindingVersion": "0.2.0"});
    let mut object = json!({
        "name": message.name,
        "title": message.title,
        "summary": message.summary,
        "contentType": message.content_type,
        "payload": definition(message.schema),
        "examples": examples,
    });
    if let Some(headers) = message.headers {
        object["headers"] = definition(headers);
        mqtt["correlationData"] = json!({
            "type": "string",
            "description": "Any bytes, chosen by the requester; each message of the answer has the request's.",
        });
    }
    if message.headers == Some(REQUEST_HEADERS) {
        mqtt["responseTopic"] = json!({
            "type": "string",
            "description": "Honoured inside the requester's own response topics only.",
        });
    }
    object["bindings"] = json!({"mqtt": mqtt});
    object
}
