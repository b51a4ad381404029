//! A JSON Schema of a stranger, for an answer and for the arguments of a tool.

use orinoco::frames::{Constraint, ToolSyntax};
use orinoco::wire::request::{self, Limits};
use orinoco::wire::tools::{self, Choice};
use orinoco::wire::topic::Op;

/// Puts it where schemas may stand; what is taken keeps its bounds and cannot leave its place in a grammar.
pub fn check(data: &[u8]) {
    let schema = String::from_utf8_lossy(data);
    let limits = Limits::default();
    let messages = r#""messages":[{"role":"user","content":"x"}]"#;
    let format = format!(
        r#"{{{messages},"response_format":{{"type":"json_schema","json_schema":{{"schema":{schema}}}}}}}"#
    );
    if let Ok(request) = request::parse(Op::Chat, format.as_bytes(), &limits)
        && let Some(Constraint::JsonSchema(text)) = request.constraint
    {
        assert!(text.len() <= 64 << 10);
        serde_json::from_str::<serde_json::Value>(&text).expect("a schema is JSON");
    }
    let tool = format!(
        r#"{{{messages},"tool_choice":"required","tools":[{{"type":"function","function":{{"name":"f","parameters":{schema}}}}}]}}"#
    );
    let Ok(request) = request::parse(Op::Chat, tool.as_bytes(), &limits) else {
        return;
    };
    let Some(tools) = request.tools else {
        return;
    };
    assert_eq!(tools.choice, Choice::Required);
    for syntax in [
        ToolSyntax::Hermes,
        ToolSyntax::Llama3,
        ToolSyntax::Mistral,
        ToolSyntax::Generic,
    ] {
        let Some(Constraint::Calls { lark, arguments }) = tools::call(&tools, syntax) else {
            panic!("a call that must be made has a grammar");
        };
        // A rule a line: nothing in a schema begins another.
        for (line, begin) in lark.lines().zip(["start: ", "one: ", "f0: "]) {
            assert!(line.starts_with(begin), "{line}");
        }
        assert_eq!(lark.lines().count(), 3, "{lark}");
        let [schema] = arguments.as_slice() else {
            panic!("one tool has one schema");
        };
        let schema: serde_json::Value = serde_json::from_str(schema).expect("a schema is JSON");
        assert!(schema.is_object() && !schema.to_string().contains('\n'));
    }
}
