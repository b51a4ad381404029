use super::*;

fn of_model(source: &str) -> TemplateSource {
    TemplateSource {
        source: Some(source.to_owned()),
        for_tools: None,
        bos: "<s>".to_owned(),
        eos: "</s>".to_owned(),
        add_bos: true,
    }
}

fn gguf(source: &str) -> ChatTemplate {
    let template = ChatTemplate::new(&of_model(source), None, |_| false).unwrap();
    assert_eq!(template.name(), "gguf");
    template
}

fn family(mark: &str) -> ChatTemplate {
    let none = TemplateSource {
        source: None,
        ..of_model("")
    };
    ChatTemplate::new(&none, None, |text| text == mark).unwrap()
}

const TALK: &str = r#"[
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"}
]"#;

#[test]
fn families_have_their_forms() {
    let cases = [
        (
            "<|im_start|>",
            "chatml",
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "<|start_header_id|>",
            "llama3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "<start_of_turn>",
            "gemma",
            "<s><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            "[INST]",
            "mistral",
            "<s>[INST] Be kind.\n\nHi [/INST] Hello</s>[INST] Bye [/INST]",
        ),
        (
            "none of them",
            "plain",
            "<s>System: Be kind.\nUser: Hi\nAssistant: Hello\nUser: Bye\nAssistant:",
        ),
    ];
    for (mark, name, wanted) in cases {
        let template = family(mark);
        assert_eq!(template.name(), name);
        assert_eq!(template.render(TALK, None).unwrap(), wanted, "{name}");
    }
}

#[test]
fn a_template_of_the_hub_renders_as_transformers_does() {
    // The constructs that published templates use, with their whitespace.
    let template = gguf(
        "{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'].strip() + '\\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- set ns = namespace(n=0) -%}
{{ bos_token }}
{% for message in rest %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate') }}
    {% endif %}
    {% set ns.n = ns.n + 1 %}
    {% generation %}
    {% if loop.first %}{{ first }}{% endif %}
    {{ message.role.upper() }}={{ message.content.split('|')[0] | trim }};
    {% endgeneration %}
{% endfor %}
{% if add_generation_prompt %}{{ 'n=' ~ ns.n }}{% endif %}",
    );
    let text = template.render(TALK, None).unwrap();
    assert_eq!(
        text,
        "<s>\nBe kind.\n    USER=Hi;\n    ASSISTANT=Hello;\n    USER=Bye;\nn=3"
    );
    let twice = r#"[{"role":"user","content":"a"},{"role":"user","content":"b"}]"#;
    let error = template.render(twice, None).unwrap_err();
    assert!(
        error.to_string().contains("roles must alternate"),
        "{error}"
    );
}

#[test]
fn tools_and_calls_reach_the_template_as_objects() {
    let template = gguf(
        "{# <tool_call> #}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}{% endfor %}",
    );
    let messages = r#"[
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": null, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{\"z\":1,\"a\":\"<é>\"}"}}]}
    ]"#;
    let text = template
        .render(messages, Some(r#"[{"type":"function"}]"#))
        .unwrap();
    assert_eq!(text, r#"[{"type": "function"}]abf({"z": 1, "a": "<é>"})"#);
}

#[test]
fn where_a_template_teaches_no_syntax_that_we_read_tools_are_told_in_words() {
    let template = gguf("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}");
    assert_eq!(template.tool_syntax(), ToolSyntax::Generic);
    let messages = r#"[
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "on"},
        {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "lamp", "arguments": "{\"on\":true}"}}]},
        {"role": "tool", "tool_call_id": "x", "content": "done"}
    ]"#;
    let tools = r#"[{"type": "function", "function": {"name": "lamp"}}]"#;
    let text = template.render(messages, Some(tools)).unwrap();
    let (told, rest) = text.split_once("<user>on").unwrap();
    assert!(
        told.starts_with("<system>Be kind.\n\nYou can call these functions:\n{\"name\":\"lamp\"}"),
        "{told}"
    );
    assert_eq!(
        rest,
        "<assistant>{\"tool_calls\":[{\"name\":\"lamp\",\"arguments\":{\"on\":true}}]}<user>Result of the function: done"
    );
    // Calls and results are rendered without tools, too.
    assert!(template.render(messages, None).unwrap().ends_with(rest));
}

#[test]
fn messages_of_another_shape_are_refused_by_name() {
    let template = family("<|im_start|>");
    for (messages, wanted) in [
        ("{}", "an array is expected"),
        ("[]", "at least one"),
        ("[5]", "messages[0]: an object"),
        (
            r#"[{"role":"user","content":"x"},{"content":"x"}]"#,
            "messages[1].role",
        ),
        (r#"[{"role":"user","content":7}]"#, "messages[0].content"),
        (
            r#"[{"role":"user","content":[{"type":"image_url"}]}]"#,
            "type text",
        ),
        ("[", "messages: EOF"),
    ] {
        let error = template.render(messages, None).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(template.render(&deep, None).is_err());
}

#[test]
fn a_template_that_does_not_work_is_replaced_by_a_family() {
    for broken in [
        "{% for %}",
        "{{ raise_exception('never') }}",
        "no messages at all",
        "{{ messages | unknown_filter }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        &"x".repeat(SOURCE_BYTES_MAX + 1),
    ] {
        let template = ChatTemplate::new(&of_model(broken), None, |_| false).unwrap();
        assert_eq!(template.name(), "plain");
    }
}

#[test]
fn the_operators_template_wins_and_its_faults_are_told() {
    let template = ChatTemplate::new(&of_model("{{ messages[0].content }}"), Some("mine"), |_| {
        false
    });
    let template = template.unwrap();
    assert_eq!(
        (
            template.name(),
            template.render(TALK, None).unwrap().as_str()
        ),
        ("operator", "mine")
    );
    let error = ChatTemplate::new(&of_model(""), Some("{% if %}"), |_| false)
        .err()
        .unwrap();
    assert!(
        error.to_string().starts_with("compile the chat template"),
        "{error}"
    );
}

#[test]
fn a_template_that_grows_without_end_is_stopped_and_given_up_after_a_few_times() {
    let doubling = "{% set ns = namespace(s=messages[0].content) %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}";
    let messages = r#"[{"role":"user","content":"x"}]"#;
    let template = ChatTemplate::new(&of_model(""), Some(doubling), |_| false).unwrap();
    for _ in 0..STOPS_MAX {
        let error = template.render(messages, None).unwrap_err().to_string();
        assert!(error.contains("more than 64 MiB"), "{error}");
    }
    let error = template.render(messages, None).unwrap_err().to_string();
    assert!(error.contains("not used any more"), "{error}");
    // That of a file is replaced by a family.
    let template = ChatTemplate::new(&of_model(doubling), None, |_| false).unwrap();
    assert_eq!(template.name(), "plain");
}

/// Half a minute of copying within the bound of memory, were it not for the time.
#[test]
fn a_template_that_copies_without_end_is_stopped() {
    let slow = "{% set s = 'xxxxxxxxxxxxxxxx' * 1000000 %}{% for i in range(50000) %}{% set t = s ~ i %}{% endfor %}{{ messages[0].content }}";
    let template = ChatTemplate::new(&of_model(""), Some(slow), |_| false).unwrap();
    let error = template
        .render(r#"[{"role":"user","content":"x"}]"#, None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("longer than 2000 ms"), "{error}");
}

#[test]
fn bombs_are_stopped() {
    let bombs = [
        "{% for i in range(100000) %}{% for j in range(100000) %}{{ j }}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
        "{% for i in range(100000) %}{{ 'xxxxxxxxxxxxxxxx' * 100000 }}{% endfor %}",
    ];
    let messages = r#"[{"role":"user","content":"x"}]"#;
    for bomb in bombs {
        let template = ChatTemplate::new(&of_model(""), Some(bomb), |_| false).unwrap();
        let error = template.render(messages, None).unwrap_err().to_string();
        // By what it does, after 16 ms on an idle core, and not by the clock.
        assert!(!error.contains("longer than"), "{bomb}: {error}");
    }
}

#[path = "../../../fuzz/src/entry/template.rs"]
#[allow(unreachable_pub, reason = "the fuzzers have it from a library")]
mod entry;

/// What the fuzzer began with and what it found: see scripts/fuzz.sh.
#[test]
fn every_template_of_the_corpus_keeps_its_bounds() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/template");
    let inputs = Vec::from_iter(std::fs::read_dir(dir).unwrap());
    assert!(!inputs.is_empty());
    for input in inputs {
        entry::check(&std::fs::read(input.unwrap().path()).unwrap());
    }
}

#[test]
fn an_opening_that_closes_itself_is_left_to_the_compiler() {
    for source in ["{%}generation", "generation{%", "{%}generation{% x %}{%}"] {
        assert_eq!(functions::without_generation_tags(source), source);
    }
}
