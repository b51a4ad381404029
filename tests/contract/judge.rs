//! Whether a message is what the published documents say.

use boon::{Compiler, Draft, SchemaIndex, Schemas};
use serde_json::Value;

/// Schemas of one kind, ready to judge.
pub(crate) struct Judge {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Judge {
    /// A schema, or one inside of it: `pointer` is a JSON pointer, empty for the whole.
    pub(crate) fn of(document: &Value, pointer: &str) -> Self {
        Self::with_draft(Draft::V2020_12, document, pointer)
    }

    /// As a reader of an older dialect takes it: AsyncAPI 3 is built on draft 7.
    pub(crate) fn of_draft_7(document: &Value, pointer: &str) -> Self {
        Self::with_draft(Draft::V7, document, pointer)
    }

    fn with_draft(draft: Draft, document: &Value, pointer: &str) -> Self {
        let mut schemas = Schemas::new();
        let mut compiler = Compiler::new();
        compiler.set_default_draft(draft);
        let place = "http://judge/document";
        compiler
            .add_resource(place, document.clone())
            .expect("a document is JSON");
        let index = compiler
            .compile(&format!("{place}#{pointer}"), &mut schemas)
            .unwrap_or_else(|error| panic!("{pointer} is no valid schema: {error:#}"));
        Self { schemas, index }
    }

    pub(crate) fn is_right(&self, message: &Value) -> bool {
        self.schemas.validate(message, self.index).is_ok()
    }

    /// Panics with what is wrong.
    pub(crate) fn assert_right(&self, message: &Value, what: &str) {
        if let Err(error) = self.schemas.validate(message, self.index) {
            panic!("{what} is not what its schema says: {error:#}\n{message:#}");
        }
    }
}

/// The schemas with all keys forbidden that they do not name: clients skip such keys, the node of this
/// version sends none.
pub(crate) fn strict(schema: &Value) -> Value {
    let mut schema = schema.clone();
    forbid_others(&mut schema);
    schema
}

fn forbid_others(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(forbid_others),
        Value::Object(object) => {
            // Conditions name some keys of an object that is described elsewhere.
            let parts = object.iter_mut().filter(|(key, _)| *key != "allOf");
            parts.for_each(|(_, part)| forbid_others(part));
            // Maps have keys of the board's own.
            if object.get("type").is_some_and(|kind| kind == "object")
                && !object.contains_key("additionalProperties")
            {
                object.insert("additionalProperties".to_owned(), false.into());
            }
        }
        _ => {}
    }
}
