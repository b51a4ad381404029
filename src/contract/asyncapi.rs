//! The AsyncAPI 3 document, put together from [`super::topics`], [`super::messages`] and
//! [`super::schemas`]. A test holds a running daemon against it.

use serde_json::{Map, Value, json};

use super::messages::{ANSWER_HEADERS, JSON, MESSAGES, Message, REQUEST_HEADERS, TEXT};
use super::schemas;
use super::topics::{PLACEHOLDERS, Sender, Topic, topics};
use crate::wire::{
    PROTOCOL, reply,
    topic::{ID_PATTERN, NAME_PATTERN, RESERVED},
};

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
        "servers": {
            "site": server("mqtt", "1883", &["password"]),
            "siteWithTls": server("secure-mqtt", "8883", &["password", "certificate"]),
        },
        "channels": named(&topics, channel),
        "operations": named(&topics, operation),
        "components": {
            "schemas": definitions(),
            "messages": MESSAGES.iter().map(|m| (m.name.to_owned(), message(m))).collect::<Map<_, _>>(),
            "parameters": parameters(),
            "securitySchemes": {
                "password": {
                    "type": "userPassword",
                    "description": "The user's name is part of the topics, and the broker holds it to the \
                                    credentials. On loopback, until the first user is added, clients without \
                                    credentials are the user local.",
                },
                "certificate": {
                    "type": "X509",
                    "description": "Where the broker takes the user's name from the client's certificate.",
                },
            },
        },
    })
}

fn server(protocol: &str, port: &str, security: &[&str]) -> Value {
    let security: Vec<_> = security
        .iter()
        .map(|scheme| json!({"$ref": format!("#/components/securitySchemes/{scheme}")}))
        .collect();
    json!({
        "host": "{host}:{port}",
        "protocol": protocol,
        "protocolVersion": "5.0",
        "description": "The broker of the site, or the one that a node brings; 3.1.1 does as well.",
        "variables": {
            "host": {"description": "Where the broker listens.", "default": "localhost"},
            "port": {"description": "The broker's port.", "default": port},
        },
        "security": security,
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
        "session": {"description": "Name of a conversation, as the user's requests have it in session; shaped as a user's.", "examples": ["kitchen"]},
        "pool": {"description": "Name of a pool, shaped as a node's; info.pools of its members has it.", "examples": ["hall2"]},
        "fleet": {"description": "Group of devices that are updated together; ota.group of each.", "examples": ["hall2"]},
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

/// Three times the default `telemetry.interval_seconds`.
const TELEMETRY_EXPIRY_SECONDS: u32 = 15;
/// Events are of interest for an hour.
const EVENT_EXPIRY_SECONDS: u32 = 3600;

fn operation(topic: &Topic) -> Value {
    let on = |channel: &str, messages: &[&str]| -> Vec<Value> {
        let target = |name| json!({"$ref": format!("#/channels/{channel}/messages/{name}")});
        messages.iter().map(target).collect()
    };
    let is_answer = topic.name == "resp";
    let is_telemetry = topic.address.contains("/tele/");
    let qos = u8::from(!is_telemetry);
    let mut mqtt = json!({"qos": qos, "retain": topic.retained, "bindingVersion": "0.2.0"});
    if is_telemetry {
        mqtt["messageExpiryInterval"] = TELEMETRY_EXPIRY_SECONDS.into();
    } else if topic.address.contains("/evt/") {
        mqtt["messageExpiryInterval"] = EVENT_EXPIRY_SECONDS.into();
    }
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
