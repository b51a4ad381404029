//! What chat templates expect beyond Jinja: `raise_exception`, `strftime_now`, Python's `tojson`.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

pub(super) fn add_to(env: &mut Environment<'static>) {
    env.add_function(
        "raise_exception",
        |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    env.add_function("strftime_now", |format: String| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        strftime(&format, now.map_or(0, |now| now.as_secs()))
    });
    env.add_filter("tojson", tojson);
}

/// `{% generation %}` marks the assistant's part for training (a transformers extension); it prints
/// nothing.
pub(super) fn without_generation_tags(source: &str) -> String {
    if !source.contains("generation") {
        return source.to_owned();
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        // Behind the opening: in `{%}` both would share a character.
        let Some(length) = rest[start + 2..].find("%}").map(|at| at + 2) else {
            break;
        };
        let tag = &rest[start + 2..start + length];
        let name = tag.trim_matches(['-', '+']).trim();
        out.push_str(&rest[..start]);
        if matches!(name, "generation" | "endgeneration") {
            // Its whitespace control must stay.
            let (before, after) = (tag.starts_with('-'), tag.ends_with('-'));
            out.push_str(if before { "{#-" } else { "{#" });
            out.push_str(if after { "-#}" } else { "#}" });
        } else {
            out.push_str(&rest[start..start + length + 2]);
        }
        rest = &rest[start + length + 2..];
    }
    out.push_str(rest);
    out
}

/// As Python's `json.dumps(value, ensure_ascii=False, indent=…)`: spaces after `,` and `:`, and no
/// escaping for HTML, which Jinja's own filter does.
fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    // separators, sort_keys and ensure_ascii are accepted and change nothing that a model would notice.
    for name in ["ensure_ascii", "sort_keys", "separators"] {
        let _: Option<Value> = kwargs.get(name)?;
    }
    kwargs.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            write(
                value,
                &mut out,
                PrettyFormatter::with_indent(indent.as_bytes()),
            )
        }
        None => write(value, &mut out, Spaced),
    };
    written.map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))?;
    Ok(Value::from(String::from_utf8_lossy(&out).into_owned()))
}

fn write(value: &Value, out: &mut Vec<u8>, formatter: impl Formatter) -> serde_json::Result<()> {
    serde::Serialize::serialize(value, &mut Serializer::with_formatter(out, formatter))
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        to: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { to.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        to: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { to.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        to: &mut W,
    ) -> std::io::Result<()> {
        to.write_all(b": ")
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// The conversions that chat templates use, in UTC; others are printed as they stand.
fn strftime(format: &str, unix_s: u64) -> String {
    let days = unix_s / 86_400;
    let (year, month, day) = civil(days);
    let month_name = MONTHS[month - 1];
    let weekday = DAYS[(days % 7) as usize];
    let (hour, minute, second) = (unix_s / 3600 % 24, unix_s / 60 % 60, unix_s % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('H') => out.push_str(&format!("{hour:02}")),
            Some('M') => out.push_str(&format!("{minute:02}")),
            Some('S') => out.push_str(&format!("{second:02}")),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('%') | None => out.push('%'),
            Some(other) => out.extend(['%', other]),
        }
    }
    out
}

/// Year, month and day of a number of days since 1970-01-01 (Howard Hinnant's `civil_from_days`).
fn civil(days: u64) -> (u64, usize, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month as usize, day)
}

#[cfg(test)]
mod tests {
    use minijinja::value::Serde;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(strftime("%d %b %Y", 0), "01 Jan 1970");
        assert_eq!(
            strftime("%A, %d %B %Y %H:%M:%S", 1_709_210_096),
            "Thursday, 29 February 2024 12:34:56"
        );
        assert_eq!(strftime("%a %m/%y %% %q", 1_798_761_599), "Thu 12/26 % %q");
    }

    #[test]
    fn json_is_written_as_python_does() {
        let env = {
            let mut env = Environment::new();
            add_to(&mut env);
            env
        };
        let value = serde_json::json!({"a": [1, "<é>"], "b": null});
        let context = minijinja::context! { value => Value::from(Serde(&value)) };
        assert_eq!(
            env.render_str("{{ value | tojson }}", context.clone())
                .unwrap(),
            r#"{"a": [1, "<é>"], "b": null}"#
        );
        assert_eq!(
            env.render_str("{{ value.a | tojson(indent=2) }}", context)
                .unwrap(),
            "[\n  1,\n  \"<é>\"\n]"
        );
    }

    #[test]
    fn generation_tags_vanish() {
        assert_eq!(
            without_generation_tags("a{% generation %}b{%- endgeneration -%} c{% if x %}"),
            "a{##}b{#--#} c{% if x %}"
        );
    }
}
