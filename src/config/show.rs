//! `config show`: the keys in force as TOML.

use super::Entry;

/// Sections in the order in which they were read, which is that of `default.toml`; in named tables only
/// what was set for them.
pub(super) fn to_toml(entries: &[Entry], origin: bool) -> String {
    let own = || entries.iter().filter(|e| !e.is_inherited);
    let width = own()
        .map(|e| e.key.len() + e.value.chars().count())
        .filter(|width| *width <= 60)
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    let mut section = "";
    for entry in own() {
        if entry.section != section {
            if !section.is_empty() {
                text.push('\n');
            }
            section = &entry.section;
            text.push_str(&format!("[{}]\n", header(section)));
        }
        text.push_str(&format!("{} = {}", entry.key, entry.value));
        if origin {
            let used = entry.key.len() + entry.value.chars().count();
            let gap = width.saturating_sub(used) + 2;
            text.push_str(&format!("{:gap$}# {}", "", entry.origin));
        }
        text.push('\n');
    }
    text
}

/// `users.a.b` is the user `a.b`, which TOML wants in quotes.
fn header(section: &str) -> String {
    let bare = |name: &str| {
        name.chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
    };
    match section.split_once('.') {
        Some((kind, name)) if !bare(name) => format!("{kind}.{}", toml::Value::String(name.into())),
        _ => section.to_owned(),
    }
}
