//! Templates for files that bring none, as Jinja texts, chosen by the vocabulary's control tokens.

/// Jinja drops a newline at the very end of a template, so the last one is printed.
/// Name, the control token by which the family is known, Jinja text.
const FAMILIES: &[(&str, &str, &str)] = &[
    (
        "chatml",
        "<|im_start|>",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\n' }}",
    ),
    (
        "llama3",
        "<|start_header_id|>",
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n{{ '\n' }}",
    ),
    (
        "gemma",
        "<start_of_turn>",
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}<start_of_turn>model{{ '\n' }}",
    ),
    (
        "mistral",
        "[INST]",
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}",
    ),
];

/// For vocabularies without any of those tokens.
const PLAIN: &str = "{{ bos_token }}{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n{% endfor %}Assistant:";

/// The first family whose mark is a token.
pub(super) fn fitting(is_token: impl Fn(&str) -> bool) -> (&'static str, &'static str) {
    FAMILIES
        .iter()
        .find(|(_, mark, _)| is_token(mark))
        .map_or(("plain", PLAIN), |(name, _, source)| (name, source))
}
