//! A chat template from a model's file, and the messages of a stranger: divided by a zero byte.

use std::time::{Duration, Instant};

use crate::model::TemplateSource;
use crate::template::ChatTemplate;

/// Largest prompt that may come out.
const OUTPUT_BYTES_MAX: usize = 8 << 20;
/// Longest that a template may keep the worker's only thread, on a busy machine; that of the tests may stand still.
const TIME_MAX: Duration = Duration::from_secs(if cfg!(test) { 60 } else { 5 });

/// Compiles the template and renders a talk with it.
pub fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (source, content) = text.split_once('\0').unwrap_or((&text, "hello"));
    let start = Instant::now();
    let of_model = TemplateSource {
        source: Some(source.to_owned()),
        for_tools: None,
        bos: "<s>".to_owned(),
        eos: "</s>".to_owned(),
        add_bos: true,
    };
    // A file's template that does not work is replaced by a family's, so this never fails.
    let template = ChatTemplate::new(&of_model, None, |mark| mark == "<|im_start|>")
        .expect("a family stands in");
    let messages = serde_json::json!([
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": content},
        {"role": "assistant", "content": "Yes", "tool_calls": [
            {"function": {"name": "f", "arguments": content}}
        ]},
        {"role": "user", "content": content},
    ]);
    if let Ok(prompt) = template.render(&messages.to_string(), None) {
        assert!(prompt.len() <= OUTPUT_BYTES_MAX);
    }
    // Tools of a stranger, in the template's own words or in ours.
    let tools = serde_json::json!([{"type": "function", "function": {"name": "f", "description": content}}]);
    if let Ok(prompt) = template.render(&messages.to_string(), Some(&tools.to_string())) {
        assert!(prompt.len() <= OUTPUT_BYTES_MAX);
    }
    // The messages of a stranger under the family that most models have.
    let _ = template.render(content, Some(content));
    let took = start.elapsed();
    assert!(took < TIME_MAX, "{took:?}");
}
