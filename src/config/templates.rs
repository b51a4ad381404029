//! `[template]`, `[template.var]` and `[templates.NAME]`: wordings for requests that bring what varies alone.

use config::ValueKind;

use super::node::check_name;
use super::reader::{Keys, Root, Section};
use crate::wire::request::template::{
    Kind, Line, TEMPLATES_MAX, Template, Templates, VARS_MAX, Var, Without,
};

/// Longest fixed text, bytes.
const TEXT_BYTES_MAX: usize = 64 << 10;
/// Longest line, bytes.
const LINE_BYTES_MAX: usize = 1024;

pub(super) fn read(root: &mut Root<'_>) -> Templates {
    let mut parent = root.copy("template");
    let mut var_parent = match parent.remove("var").map(|value| value.kind) {
        Some(ValueKind::Table(keys)) => keys.into_iter().collect(),
        _ => Keys::new(),
    };
    template(&mut root.own("template", &["var"]), &var_parent, false);
    var(&mut root.below("template", "var"), false);
    // Each has one of its own.
    var_parent.remove("name");

    let mut templates = Templates::default();
    for (n, named) in root.named("templates", check_name).into_iter().enumerate() {
        let mut section = root.heir(&named, &parent);
        let template = template(&mut section, &var_parent, true);
        if n >= TEMPLATES_MAX {
            section.flaw(format!("expected at most {TEMPLATES_MAX} templates"));
        }
        templates.0.insert(named.name, template);
    }
    templates
}

/// `is_named`: a template, not the keys that all of them inherit.
fn template(section: &mut Section<'_>, var_parent: &Keys, is_named: bool) -> Template {
    let template = Template {
        system: section.optional_text("system", TEXT_BYTES_MAX),
        user: section.text("user", TEXT_BYTES_MAX),
        vars: section.tables("vars", VARS_MAX, var_parent, |section| var(section, true)),
        max_tokens: Some(section.integer("max_tokens", 0..=1 << 20)).filter(|n| *n > 0),
        schema: section
            .checked("schema", |text| match text {
                "" => Ok(None),
                text => Template::checked_schema(text).map(Some),
            })
            .flatten(),
    };
    if !is_named {
        return template;
    }
    if template.user.trim().is_empty() && template.vars.is_empty() {
        section.flaw("expected text in user, or variables in vars: it would say nothing".into());
    }
    let mut names = Vec::from_iter(template.vars.iter().map(|var| var.name.as_str()));
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        let name = twice[0];
        section.flaw(format!("expected each variable once, found {name:?} twice"));
    }
    let system = template.system.as_deref().unwrap_or_default();
    for (key, text) in [("system", system), ("user", template.user.as_str())] {
        if let Some(name) = names.iter().find(|name| stands_in(text, name)) {
            section.flaw(format!(
                "expected fixed text in {key}, found a place for {name:?}: what varies stands behind, so that what \
                 is fixed is read once for all requests; put the words around the value into its line"
            ));
        }
    }
    template
}

/// Whether somebody meant a value to stand in `text`: `{name}`, `{{name}}`, `{{ name }}`, `${name}`.
fn stands_in(text: &str, name: &str) -> bool {
    let after = |part: &str| {
        let inner = part.trim_start_matches('{').trim_start();
        let rest = inner.strip_prefix(name).map(str::trim_start);
        rest.is_some_and(|rest| rest.starts_with('}'))
    };
    text.match_indices('{').any(|(at, _)| after(&text[at..]))
}

fn var(section: &mut Section<'_>, is_named: bool) -> Var {
    let name = section
        .checked("name", |name| match name {
            "" if !is_named => Ok(String::new()),
            name => check_name(name).map(|()| name.to_owned()),
        })
        .unwrap_or_default();
    let kind = section.choice("type", &Kind::ALL);
    let line = section.checked("line", |text| match text {
        "" => Ok(Line::named(&name)),
        text if text.len() > LINE_BYTES_MAX => Err(format!("at most {LINE_BYTES_MAX} bytes")),
        text => Line::new(text),
    });
    let bytes_max = section.integer("bytes_max", 1..=128 << 10);
    let is_required = section.boolean("required");
    let default = section.checked("default", |text| match text {
        "" => Ok(None),
        text if text.len() > bytes_max => Err(format!("at most bytes_max = {bytes_max} bytes")),
        text => kind.of_default(text).map(Some),
    });
    let without = match (is_required, default.flatten()) {
        (true, None) => Without::Refused,
        (false, None) => Without::NoLine,
        (false, Some(value)) => Without::Default(value),
        (true, Some(_)) => {
            section.flaw("expected required = false beside a default".into());
            Without::Refused
        }
    };
    Var {
        line: line.unwrap_or_else(|| Line::named(&name)),
        name,
        kind,
        bytes_max,
        without,
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Place, Sources, load};

    use super::*;

    fn read(text: &str) -> Result<Config, Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.toml");
        std::fs::write(&file, text).unwrap();
        let sources = Sources {
            place: Place::Path(file),
            ..Sources::defaults()
        };
        let shown = |problem: &crate::config::Problem| {
            let text = problem.to_string();
            text.split_once("t.toml: ")
                .map_or(text.clone(), |(_, rest)| rest.to_owned())
        };
        load(&sources).map_err(|error| error.problems.iter().map(shown).collect())
    }

    fn problem(text: &str) -> String {
        let problems = read(text).expect_err(text);
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.into_iter().next().unwrap()
    }

    const ALARM: &str = r#"
        [templates.alarm]
        system = "You explain alarms."
        user = "Explain {this} alarm."
        max_tokens = 60
        schema = '{"type": "object", "properties": {"b": {}, "a": {}}}'
        vars = [
            { name = "code", type = "integer" },
            { name = "celsius", type = "number", line = "Bearing: {} °C", default = "20", required = false },
            { name = "note", bytes_max = 9, required = false },
        ]
    "#;

    #[test]
    fn a_template_is_read_with_its_variables_in_their_order() {
        let config = read(ALARM).unwrap();
        let template = &config.templates.0["alarm"];
        assert_eq!(template.system.as_deref(), Some("You explain alarms."));
        assert_eq!(template.max_tokens, Some(60));
        // A model writes its keys in this order.
        let schema = r#"{"type":"object","properties":{"b":{},"a":{}}}"#;
        assert_eq!(template.schema.as_deref(), Some(schema));
        let found = template.vars.iter();
        let found = found.map(|var| (var.name.as_str(), var.kind, var.bytes_max, &var.without));
        let twenty = Without::Default("20".to_owned());
        let expected = [
            ("code", Kind::Integer, 256, &Without::Refused),
            ("celsius", Kind::Number, 256, &twenty),
            ("note", Kind::String, 9, &Without::NoLine),
        ];
        assert_eq!(Vec::from_iter(found), expected);
        assert_eq!(template.vars[1].line, Line::new("Bearing: {} °C").unwrap());
        assert_eq!(template.vars[2].line, Line::named("note"));
    }

    #[test]
    fn what_is_shown_is_read_again_as_the_same() {
        let config = read(ALARM).unwrap();
        let shown = config.to_toml(false);
        assert_eq!(read(&shown).unwrap().templates, config.templates);
    }

    #[test]
    fn each_mistake_is_told_with_what_to_do() {
        let with_var = |keys: &str| format!("[templates.a]\nvars = [{{ {keys} }}]");
        let cases = [
            (
                "[templates.a]\nmax_tokens = 5".to_owned(),
                "templates.a: expected text in user",
            ),
            (
                with_var("type = \"text\""),
                "templates.a.vars[0].name: this key is required",
            ),
            (
                with_var("name = \"a b\""),
                "templates.a.vars[0].name = \"a b\": expected",
            ),
            (
                with_var("name = \"x\", typ = \"text\""),
                "templates.a.vars[0].typ: no such key; did you mean type?",
            ),
            (
                with_var("name = \"x\", type = \"float\""),
                "templates.a.vars[0].type = \"float\": expected",
            ),
            (
                with_var("name = \"x\", line = \"x\""),
                "templates.a.vars[0].line = \"x\": expected one line of text with one {}",
            ),
            (
                with_var("name = \"x\", default = \"1\""),
                "templates.a.vars[0]: expected required = false beside a default",
            ),
            (
                with_var("name = \"x\", required = false, type = \"number\", default = \"much\""),
                "templates.a.vars[0].default = \"much\": expected a number",
            ),
            (
                with_var("name = \"x\", required = false, bytes_max = 2, default = \"abc\""),
                "templates.a.vars[0].default = \"abc\": expected at most bytes_max = 2 bytes",
            ),
            (
                "[templates.a]\nuser = \"Code: {{ x }}\"\nvars = [{ name = \"x\" }]".to_owned(),
                "templates.a: expected fixed text in user, found a place for \"x\"",
            ),
            (
                "[templates.a]\nvars = [{ name = \"x\" }, { name = \"x\" }]".to_owned(),
                "templates.a: expected each variable once, found \"x\" twice",
            ),
            (
                "[templates.a]\nuser = \"x\"\nvars = [1]".to_owned(),
                "templates.a.vars[0] = ",
            ),
            (
                "[templates.a]\nuser = \"x\"\nvars = \"x\"".to_owned(),
                "templates.a.vars = \"x\": expected a list",
            ),
            (
                "[templates.a]\nuser = \"x\"\nschema = \"{\"".to_owned(),
                "templates.a.schema = \"{\": expected a JSON Schema",
            ),
            (
                "[templates.\"a/b\"]\nuser = \"x\"".to_owned(),
                "templates.a/b: ",
            ),
        ];
        for (text, expected) in cases {
            let found = problem(&text);
            assert!(found.starts_with(expected), "{found:?} for {text}");
        }
    }

    #[test]
    fn only_a_declared_name_in_braces_is_a_place() {
        for (text, is_place) in [
            ("{x}", true),
            ("a ${x} b", true),
            ("{{ x }}", true),
            ("{\"x\": 1}", false),
            ("{}", false),
            ("x", false),
            ("{y}", false),
            ("{", false),
        ] {
            assert_eq!(stands_in(text, "x"), is_place, "{text}");
        }
    }

    #[test]
    fn there_are_bounds() {
        let many = |n: usize| -> String {
            (0..n)
                .map(|n| format!("[templates.t{n}]\nuser = \"x\"\n"))
                .collect()
        };
        assert_eq!(
            read(&many(TEMPLATES_MAX)).unwrap().templates.0.len(),
            TEMPLATES_MAX
        );
        assert!(problem(&many(TEMPLATES_MAX + 1)).contains("at most 32 templates"));
        let vars = (0..=VARS_MAX).map(|n| format!("{{ name = \"v{n}\" }}"));
        let vars = Vec::from_iter(vars).join(", ");
        assert!(
            problem(&format!("[templates.a]\nuser = \"x\"\nvars = [{vars}]"))
                .contains("at most 16 tables")
        );
    }
}
