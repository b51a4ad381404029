//! JSON Schemas of bodies, from the types that write them and the keys that read them.

use std::collections::BTreeSet;

use schemars::{
    Schema, SchemaGenerator, generate::SchemaSettings, transform::transform_subschemas,
};
use serde_json::{Map, Value, json};

use crate::ota::deploy as ota;
use crate::ota::deploy::orders::{Desired, OtaCommand};
use crate::wire::{
    Limits, Op,
    reply::body::{Embeddings, Failure, Response, Tokens},
    report::{Info, ModelCommand, Models, PressureEvent, State, Status, SwitchEvent},
    request::schema::{json_body, text_body},
    telemetry::{TeleGpu, TeleHost, TeleLlm, TeleQueue},
};

/// Dialect of the schemas. They keep to the keywords that draft 7 has as well, for AsyncAPI's sake.
pub(super) const META_SCHEMA: &str = "https://json-schema.org/draft/2020-12/schema";

/// Definitions that are the body of a message, and not only a part of one.
pub(super) const PUBLISHED: &[&str] = &[
    "ChatRequest",
    "CompleteRequest",
    "TokenizeRequest",
    "EmbedRequest",
    "TextRequest",
    "Response",
    "Failure",
    "Tokens",
    "Embeddings",
    "Status",
    "Info",
    "Models",
    "State",
    "PressureEvent",
    "SwitchEvent",
    "ModelCommand",
    "OtaState",
    "OtaEvent",
    "OtaDesired",
    "OtaCommand",
    "TeleHost",
    "TeleGpu",
    "TeleLlm",
    "TeleQueue",
];

/// All definitions by name. They refer to one another as `#/$defs/NAME`.
pub(super) fn definitions() -> Map<String, Value> {
    let mut generator = SchemaSettings::draft2020_12()
        .for_serialize()
        .with_transform(plain)
        .into_generator();
    for add in [
        SchemaGenerator::subschema_for::<Response<'_>>,
        SchemaGenerator::subschema_for::<Failure<'_>>,
        SchemaGenerator::subschema_for::<Tokens<'_>>,
        SchemaGenerator::subschema_for::<Embeddings<'_>>,
        SchemaGenerator::subschema_for::<Status>,
        SchemaGenerator::subschema_for::<Info>,
        SchemaGenerator::subschema_for::<Models>,
        SchemaGenerator::subschema_for::<State>,
        SchemaGenerator::subschema_for::<PressureEvent>,
        SchemaGenerator::subschema_for::<SwitchEvent>,
        SchemaGenerator::subschema_for::<ModelCommand>,
        SchemaGenerator::subschema_for::<ota::State>,
        SchemaGenerator::subschema_for::<ota::Event>,
        SchemaGenerator::subschema_for::<Desired>,
        SchemaGenerator::subschema_for::<OtaCommand>,
        SchemaGenerator::subschema_for::<TeleHost>,
        SchemaGenerator::subschema_for::<TeleGpu>,
        SchemaGenerator::subschema_for::<TeleLlm>,
        SchemaGenerator::subschema_for::<TeleQueue>,
    ] {
        add(&mut generator);
    }
    let mut definitions = generator.take_definitions(true);
    let limits = Limits::default();
    for op in Op::ALL {
        if let Some(mut body) = json_body(op, &limits) {
            let name = match op {
                Op::Chat => "ChatRequest",
                Op::Complete => "CompleteRequest",
                Op::Embed => "EmbedRequest",
                _ => "TokenizeRequest",
            };
            body["description"] = format!(
                "JSON body of op {op}, under the default limits; info.limits has the node's own. Keys that \
                 are not here are ignored, a key given twice is refused. Lengths of texts count bytes."
            )
            .into();
            definitions.insert(name.to_owned(), body);
        }
    }
    let mut text = text_body(&limits);
    text["description"] = "Plain text, under the default limits: one message of a user, or the prompt. Op text and text-stream take nothing else; the other ops take it where the first character that is no white space is not {.".into();
    definitions.insert("TextRequest".to_owned(), text);
    definitions
}

/// One definition as a document of its own, with what it refers to.
pub(super) fn alone(name: &str, definitions: &Map<String, Value>) -> Value {
    let mut needed = BTreeSet::new();
    let mut open = vec![name.to_owned()];
    while let Some(next) = open.pop() {
        for part in references(&definitions[&next]) {
            if needed.insert(part.clone()) {
                open.push(part);
            }
        }
    }
    let mut document = definitions[name].clone();
    document["$schema"] = META_SCHEMA.into();
    document["$id"] = format!("urn:orinoco:v1:{}", super::file_name(name)).into();
    document["title"] = name.into();
    if !needed.is_empty() {
        let parts: Map<_, _> = needed
            .into_iter()
            .map(|part| (part.clone(), definitions[&part].clone()))
            .collect();
        document["$defs"] = parts.into();
    }
    document
}

const REFERENCE: &str = "#/$defs/";

/// The same with other places for the definitions.
pub(super) fn moved_to(place: &str, schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(|item| moved_to(place, item)),
        Value::Object(object) => {
            for (key, value) in object {
                match value {
                    Value::String(target) if key == "$ref" => {
                        *target = target.replace(REFERENCE, place);
                    }
                    value => moved_to(place, value),
                }
            }
        }
        _ => {}
    }
}

/// Names of the definitions that a schema refers to.
fn references(schema: &Value) -> Vec<String> {
    match schema {
        Value::Array(items) => items.iter().flat_map(references).collect(),
        Value::Object(object) => object
            .iter()
            .flat_map(|(key, value)| match value {
                Value::String(target) if key == "$ref" => target
                    .strip_prefix(REFERENCE)
                    .map(str::to_owned)
                    .into_iter()
                    .collect(),
                value => references(value),
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// What a type says, in the words of the wire: no Rust widths, no defaults of Rust's, and absent where
/// serde skips null.
fn plain(schema: &mut Schema) {
    schema.remove("format");
    schema.remove("default");
    let required: Vec<_> = match schema.get("required") {
        Some(Value::Array(names)) => names.clone(),
        _ => Vec::new(),
    };
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        for (name, property) in properties {
            if !required.contains(&json!(name)) {
                never_null(property);
            }
        }
    }
    transform_subschemas(&mut plain, schema);
}

/// A key that may be absent is absent rather than null.
fn never_null(property: &mut Value) {
    if let Some(Value::Array(types)) = property.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [only] = types.as_slice() {
            property["type"] = only.clone();
        }
    }
    if let Some(Value::Array(forms)) = property.get_mut("anyOf") {
        forms.retain(|form| form["type"] != "null");
        if let [Value::Object(only)] = forms.as_slice() {
            let only = only.clone();
            let property = property.as_object_mut().expect("it has a key");
            property.remove("anyOf");
            property.extend(only);
        }
    }
}
