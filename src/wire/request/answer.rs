//! What an answer has to be: `response_format`, `grammar`, `tools`, `tool_choice`.
//!
//! Shape and size are checked here, with the way to the key at fault. Whether a schema or grammar compiles,
//! and within the limits, is found out by a process that can be killed.

use super::{
    fields::{Fields, check_text, quoted},
    invalid,
    json::Value,
    keys,
};
use crate::frames::Constraint;
use crate::wire::error::{ApiError, Code};
use crate::wire::tools::{Choice, Function, Tools};

/// Most tools of a request.
pub(super) const TOOLS_MAX: usize = 64;
/// Largest schema, and largest grammar, bytes of text.
pub(super) const GRAMMAR_BYTES_MAX: usize = 64 << 10;
/// Longest `pattern` of a schema, bytes.
const PATTERN_BYTES_MAX: usize = 512;
/// Most patterns in a schema.
const PATTERNS_MAX: usize = 64;
/// Most schemas in one `allOf`: each is multiplied with the others.
const ALL_OF_MAX: usize = 16;

/// `response_format` or `grammar`, of which only one may say anything.
pub(super) fn constraint(fields: &Fields<'_>) -> Result<Option<Constraint>, ApiError> {
    let format = match fields.object(&keys::RESPONSE_FORMAT)? {
        Some(format) => response_format(&format)?,
        None => None,
    };
    let grammar = fields.text(&keys::GRAMMAR)?.filter(|text| !text.is_empty());
    match (format, grammar) {
        (Some(_), Some(_)) => Err(fields.error(
            "grammar",
            "is given beside response_format, expected one of them",
        )),
        (format, None) => Ok(format),
        (None, Some(text)) => Ok(Some(Constraint::Lark(text))),
    }
}

fn response_format(format: &Fields<'_>) -> Result<Option<Constraint>, ApiError> {
    let kind = format
        .word(&keys::FORMAT_TYPE)?
        .ok_or_else(|| format.error("type", "is missing, expected a string"))?;
    // Read also where the kind has no use for it, as the published schema does.
    let schema = match format.object(&keys::JSON_SCHEMA)? {
        None => None,
        Some(inner) => {
            let schema = inner
                .get(&keys::SCHEMA)
                .ok_or_else(|| inner.error("schema", "is missing, expected a JSON Schema"))?;
            Some(schema_text(schema, &inner.path_of("schema"))?)
        }
    };
    match (kind, schema) {
        ("json_object", _) => Ok(Some(Constraint::JsonSchema(
            r#"{"type":"object"}"#.to_owned(),
        ))),
        ("json_schema", None) => Err(format.error("json_schema", "is missing, expected an object")),
        ("json_schema", Some(text)) => Ok(Some(Constraint::JsonSchema(text))),
        _ => Ok(None),
    }
}

/// The tools that may be called, and those that a template is shown, as JSON text; none where
/// `tool_choice` is none.
pub(super) fn tools(fields: &Fields<'_>) -> Result<Option<(Tools, String)>, ApiError> {
    let items = fields.array(&keys::TOOLS)?.unwrap_or_default();
    let key = keys::TOOLS.name();
    if items.len() > TOOLS_MAX {
        let found = items.len();
        return Err(fields.error(
            key,
            format_args!("has {found} tools, at most {TOOLS_MAX} are allowed"),
        ));
    }
    let mut functions: Vec<Function> = Vec::with_capacity(items.len());
    let mut bytes = 0;
    for (at, item) in items.iter().enumerate() {
        let path = format!("{key}[{at}]");
        let Value::Object(object) = item else {
            let kind = item.kind();
            return Err(fields.error(&path, format_args!("is {kind}, expected an object")));
        };
        let function = function(&fields.inside(object, &path))?;
        if functions.iter().any(|known| known.name == function.name) {
            let path = format!("{path}.function.name");
            let name = quoted(&function.name);
            return Err(fields.error(&path, format_args!("is {name}, which another tool has")));
        }
        bytes += function.parameters.as_ref().map_or(0, String::len);
        functions.push(function);
    }
    if bytes > GRAMMAR_BYTES_MAX {
        return Err(fields.error(
            key,
            format_args!(
                "have schemas of {bytes} bytes, at most {GRAMMAR_BYTES_MAX} are allowed together"
            ),
        ));
    }
    let parallel = fields.boolean(&keys::PARALLEL)?;
    let choice = choice(fields, &functions)?;
    let Some(choice) = choice.filter(|_| !functions.is_empty()) else {
        return Ok(None);
    };
    let shown = serde_json::to_string(items).expect("maps with text keys always serialise");
    let tools = Tools {
        functions,
        choice,
        parallel,
    };
    Ok(Some((tools, shown)))
}

fn function(tool: &Fields<'_>) -> Result<Function, ApiError> {
    if tool.word(&keys::TOOL_TYPE)?.is_none() {
        return Err(tool.error("type", "is missing, expected \"function\""));
    }
    let function = tool
        .object(&keys::FUNCTION)?
        .ok_or_else(|| tool.error("function", "is missing, expected an object"))?;
    let name = function
        .name(&keys::FUNCTION_NAME)?
        .ok_or_else(|| function.error("name", "is missing, expected a string"))?;
    function.text(&keys::FUNCTION_DESCRIPTION)?;
    function.boolean(&keys::STRICT)?;
    let path = function.path_of("parameters");
    let parameters = match function.get(&keys::PARAMETERS) {
        None => None,
        Some(schema @ Value::Object(object)) => {
            if let Some(kind) = object.get("type")
                && *kind != Value::Text("object".to_owned())
            {
                return Err(function.error(
                    "parameters",
                    "is a schema of another type than object, which arguments are",
                ));
            }
            Some(schema_text(schema, &path)?)
        }
        Some(other) => {
            let kind = other.kind();
            return Err(function.error(
                "parameters",
                format_args!("is {kind}, expected a JSON Schema of an object"),
            ));
        }
    };
    Ok(Function { name, parameters })
}

/// `None`: no tool may be called.
fn choice(fields: &Fields<'_>, functions: &[Function]) -> Result<Option<Choice>, ApiError> {
    let key = keys::TOOL_CHOICE.name();
    let choice = match fields.get(&keys::TOOL_CHOICE) {
        None => return Ok(Some(Choice::Auto)),
        Some(Value::Text(word)) => match word.as_str() {
            "auto" => return Ok(Some(Choice::Auto)),
            "none" => return Ok(None),
            "required" => Choice::Required,
            other => {
                let found = quoted(other);
                return Err(fields.error(
                    key,
                    format_args!("is {found}, allowed are auto, none, required and an object that names a function"),
                ));
            }
        },
        Some(Value::Object(object)) => {
            let named = fields.inside(object, key);
            let function = named
                .object(&keys::FUNCTION)?
                .ok_or_else(|| named.error("function", "is missing, expected an object"))?;
            let name = function
                .name(&keys::FUNCTION_NAME)?
                .ok_or_else(|| function.error("name", "is missing, expected a string"))?;
            if functions.iter().all(|known| known.name != name) {
                let found = quoted(&name);
                return Err(function.error("name", format_args!("is {found}, which no tool has")));
            }
            Choice::Named(name)
        }
        Some(other) => {
            let kind = other.kind();
            return Err(fields.error(
                key,
                format_args!("is {kind}, expected a string or an object"),
            ));
        }
    };
    if functions.is_empty() {
        return Err(fields.error(key, "asks for a call, and there are no tools"));
    }
    Ok(Some(choice))
}

/// A schema as text, if it keeps its bounds.
pub(super) fn schema_text(schema: &Value, path: &str) -> Result<String, ApiError> {
    if !matches!(schema, Value::Object(_) | Value::Bool(_)) {
        let kind = schema.kind();
        return Err(at_fault(
            path,
            format_args!("is {kind}, expected a JSON Schema"),
        ));
    }
    let mut n_patterns = 0;
    walk(schema, path, &mut n_patterns)?;
    let text = serde_json::to_string(schema).expect("maps with text keys always serialise");
    if text.len() > GRAMMAR_BYTES_MAX {
        let found = text.len();
        return Err(at_fault(
            path,
            format_args!("has {found} bytes, at most {GRAMMAR_BYTES_MAX} are allowed"),
        ));
    }
    Ok(text)
}

/// Bounds what is known to be dear to compile. Depth and number of values are bounded already.
fn walk(value: &Value, path: &str, n_patterns: &mut usize) -> Result<(), ApiError> {
    match value {
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                walk(item, &format!("{path}.{at}"), n_patterns)?;
            }
        }
        Value::Object(object) => {
            for (key, value) in object.iter() {
                let path = format!("{path}.{key}");
                no_nul(key, &path)?;
                bound(key, value, &path, n_patterns)?;
                walk(value, &path, n_patterns)?;
            }
        }
        Value::Text(text) => {
            no_nul(text, path)?;
        }
        _ => {}
    }
    Ok(())
}

fn no_nul(text: &str, path: &str) -> Result<(), ApiError> {
    let path = shown(path);
    check_text(text, &path).map_err(|error| error.with_param(path))
}

fn bound(key: &str, value: &Value, path: &str, n_patterns: &mut usize) -> Result<(), ApiError> {
    match (key, value) {
        ("pattern", Value::Text(pattern)) => {
            *n_patterns += 1;
            let found = pattern.len();
            if found > PATTERN_BYTES_MAX {
                return Err(at_fault(
                    path,
                    format_args!("has {found} bytes, at most {PATTERN_BYTES_MAX} are allowed"),
                ));
            }
        }
        ("patternProperties", Value::Object(patterns)) => *n_patterns += patterns.len(),
        ("allOf", Value::Array(schemas)) if schemas.len() > ALL_OF_MAX => {
            let found = schemas.len();
            return Err(at_fault(
                path,
                format_args!("has {found} schemas, at most {ALL_OF_MAX} are allowed"),
            ));
        }
        ("$ref", Value::Text(target)) if !target.starts_with('#') => {
            let found = quoted(target);
            return Err(at_fault(
                path,
                format_args!("is {found}, only references inside the schema are followed: #/…"),
            ));
        }
        _ => {}
    }
    if *n_patterns > PATTERNS_MAX {
        return Err(at_fault(
            path,
            format_args!("is one pattern more than the {PATTERNS_MAX} allowed"),
        ));
    }
    Ok(())
}

fn at_fault(path: &str, found: std::fmt::Arguments<'_>) -> ApiError {
    let path = shown(path);
    invalid(format!("{path} {found}")).with_param(path)
}

/// A way into a schema, short enough for an error: keys may be as long as a payload.
fn shown(path: &str) -> std::borrow::Cow<'_, str> {
    match path.char_indices().nth(256) {
        Some((end, _)) => format!("{}…", &path[..end]).into(),
        None => path.into(),
    }
}

/// What cannot be together, since the answer would not be what one of them says.
pub(super) fn check_together(
    constraint: Option<&Constraint>,
    tools: Option<&Tools>,
    has_stop: bool,
    ignore_eos: bool,
) -> Result<(), ApiError> {
    let must_call = tools.is_some_and(|tools| tools.choice != Choice::Auto);
    let what = match (constraint, must_call) {
        (Some(Constraint::JsonSchema(_)), _) => "response_format",
        (Some(Constraint::Lark(_) | Constraint::Calls { .. }), _) => "grammar",
        (None, true) => "tool_choice",
        (None, false) => return Ok(()),
    };
    if constraint.is_some() && tools.is_some() {
        return Err(ApiError::new(
            Code::NotSupported,
            format!("{what} and tools in one request are not supported by this version: leave one out, or set tool_choice to \"none\""),
        )
        .with_param(what));
    }
    if has_stop {
        let text =
            format!("stop is given beside {what}: it could cut the answer before it is whole");
        return Err(invalid(text).with_param("stop"));
    }
    if ignore_eos {
        let text = format!("ignore_eos is given beside {what}, whose end is the end of the answer");
        return Err(invalid(text).with_param("ignore_eos"));
    }
    Ok(())
}
