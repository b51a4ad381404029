//! The grammar of an answer that has to be a call, in the syntax of the model that is to make it.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Choice, Function, Tools};
use crate::frames::{Constraint, ToolSyntax};

/// Most calls that one answer may be made to have.
pub const CALLS_MAX: usize = 8;

/// What the answer has to be; `None` where it may be anything.
pub fn call(tools: &Tools, syntax: ToolSyntax) -> Option<Constraint> {
    let (functions, is_named): (Vec<&Function>, bool) = match &tools.choice {
        Choice::Auto => return None,
        Choice::Required => (tools.functions.iter().collect(), false),
        Choice::Named(name) => {
            let named = tools.functions.iter().filter(|f| f.name == *name);
            (named.collect(), true)
        }
    };
    let has_parallel = match syntax {
        ToolSyntax::Hermes | ToolSyntax::Mistral => tools.parallel.unwrap_or(true),
        ToolSyntax::Llama3 => false,
        ToolSyntax::Generic => tools.parallel.unwrap_or(false),
    };
    let n_more = match has_parallel && !is_named {
        true => CALLS_MAX - 1,
        false => 0,
    };
    let more = |between: &str| match n_more {
        0 => String::new(),
        n => format!(" ({} one){{0,{n}}}", quoted(between)),
    };
    let (start, arguments) = match syntax {
        ToolSyntax::Hermes => {
            let (open, close) = (quoted("<tool_call>\n"), quoted("\n</tool_call>"));
            let again = match n_more {
                0 => String::new(),
                n => format!(" ({} one {close}){{0,{n}}}", quoted("\n<tool_call>\n")),
            };
            (format!("{open} one {close}{again}"), "arguments")
        }
        ToolSyntax::Llama3 => ("one".to_owned(), "parameters"),
        ToolSyntax::Mistral => {
            let open = quoted("[TOOL_CALLS][");
            (format!("{open} one{} \"]\"", more(", ")), "arguments")
        }
        ToolSyntax::Generic => {
            let open = quoted("{\"tool_calls\": [");
            (format!("{open} one{} \"]}}\"", more(", ")), "arguments")
        }
    };
    let names = Vec::from_iter((0..functions.len()).map(|n| format!("f{n}")));
    let mut lark = format!("start: {start}\none: {}\n", names.join(" | "));
    for (n, function) in functions.iter().enumerate() {
        let head = quoted(&format!(
            "{{\"name\": \"{}\", \"{arguments}\": ",
            function.name
        ));
        // Writing to a String does not fail.
        let _ = writeln!(lark, "f{n}: {head} a{n} \"}}\"");
    }
    let schema = |function: &&Function| parameters(function).to_string();
    Some(Constraint::Calls {
        lark,
        arguments: functions.iter().map(schema).collect(),
    })
}

/// The schema of each tool's arguments, in the order of the tools: to be judged before any is used.
pub fn schemas(tools: &Tools) -> Vec<Constraint> {
    let of_one = |function: &Function| Constraint::JsonSchema(parameters(function).to_string());
    tools.functions.iter().map(of_one).collect()
}

/// A string of Lark, whose escapes are those of JSON.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn parameters(function: &Function) -> Value {
    let text = function.parameters.as_deref().unwrap_or("{}");
    let mut schema: Value = serde_json::from_str(text).unwrap_or_else(|_| json!({}));
    if let Some(object) = schema.as_object_mut()
        && !object.contains_key("type")
    {
        object.insert("type".to_owned(), json!("object"));
    }
    schema
}
