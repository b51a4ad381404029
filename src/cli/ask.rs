//! `orinoco ask`: one question over MQTT, the answer as it comes.
//!
//! A client like any other: it follows the contract with [`Receiver`] and knows nothing of the daemon but
//! its address. What it adds is manners at a terminal: Ctrl-C cancels the job instead of leaving it
//! running, and control characters of the model do not reach the screen.

mod session;

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;

use super::target::{Reach, Target};
use super::{exit, output};
use crate::config::Config;
use crate::receive::Finished;
use crate::wire::error::ApiError;
use crate::wire::request::Priority;
use crate::wire::topic::Name;
use session::{Asked, End};

/// Longest prompt read from standard input, bytes. Nodes take less; they say how much.
const PROMPT_BYTES_MAX: u64 = 16 << 20;

/// Ask a model and print the answer as it comes
///
/// The answer goes to stdout, what it took to stderr. Ctrl-C cancels the request.
/// Exit codes: 0 answered, 1 refused or failed, 69 nobody answers, 130 cancelled.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  orinoco ask \"Why does pump 3 vibrate?\"
  orinoco ask --system \"Answer in one sentence.\" --max-tokens 60 \"What is MQTT?\"
  journalctl -u pump3 -n 50 | orinoco ask -
  orinoco ask --host broker.lan --node press-7 --user me --password-file me.password \"Hello\"
  orinoco ask --host broker.lan --port 8883 --node press-7 --ca-file ca.pem --user me --password-file - \"Hello\"
  orinoco ask --host broker.lan --port 8883 --node press-7 --ca-file ca.pem --user me --cert-file me.pem --key-file me.key \"Hello\"
  orinoco ask --host broker.lan --pool hall2 --user me --password-file me.password \"Hello\"
  orinoco ask --priority batch --deadline 60000 \"Summarise the shift.\"
  orinoco ask --session kitchen \"And how long does it take?\"
  orinoco ask --template alarm-text --var code=1734 --var celsius=81.2 --var \"note=it hums\"
  orinoco ask --json --temperature 0 --seed 1 \"Name a colour.\" | jq")]
pub(super) struct Args {
    /// The question; - reads it from standard input
    #[arg(required_unless_present = "template", conflicts_with = "template")]
    prompt: Option<String>,
    #[command(flatten)]
    reach: Reach,
    /// Pool to ask: one of its nodes answers
    #[arg(long, conflicts_with = "node")]
    pool: Option<String>,
    /// Model to answer [default: the one loaded]
    #[arg(long)]
    model: Option<String>,
    /// Most tokens of the answer [default: the node's]
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// 0: always the likeliest token [default: the node's]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Same seed, same settings: same choices [default: another each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// A wording that the node has, in the place of a question
    #[arg(long, value_name = "NAME")]
    template: Option<Name>,
    /// What varies in it: numbers, true and false as they are, all else as text; "1" in quotes is text too
    #[arg(long, value_name = "NAME=VALUE", requires = "template", conflicts_with = "prompt", value_parser = variable)]
    var: Vec<(Name, serde_json::Value)>,
    /// System message before the question
    #[arg(long, value_name = "TEXT", conflicts_with = "template")]
    system: Option<String>,
    /// Which request goes first: alarm, normal or batch, as far as the user may [default: the user's]
    #[arg(long, value_name = "CLASS")]
    priority: Option<Priority>,
    /// The answer is worthless after this time: refused at once where it cannot be met [default: the user's]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    deadline: Option<u64>,
    /// A later question with the same key takes this one's place [default: the user's]
    #[arg(long, value_name = "KEY")]
    keep_latest: Option<String>,
    /// Conversation to go on with: the node keeps it, and answers to all that was said
    #[arg(long, value_name = "NAME", conflicts_with = "pool")]
    session: Option<Name>,
    /// Forget the conversation first
    #[arg(long, requires = "session")]
    new: bool,
    /// Print each message as it came, one JSON object a line
    #[arg(long)]
    json: bool,
    /// Give up when the node has not accepted the request by then
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    accept_seconds: u64,
}

pub(super) fn run(args: Args, config: &Config) -> anyhow::Result<ExitCode> {
    let prompt = match args.prompt.as_deref() {
        Some("-") => from_stdin()?,
        Some(text) => text.to_owned(),
        None => String::new(),
    };
    let asked = Asked {
        target: Target::find(&args.reach, args.pool.as_deref(), config)?,
        body: body(&args, &prompt),
        forget: args.session.clone().filter(|_| args.new),
        accept_limit: Duration::from_secs(args.accept_seconds),
    };
    let mut page = Page {
        is_json: args.json,
        is_terminal: std::io::stdout().is_terminal(),
        at_line_start: true,
    };
    let runtime = super::runtime()?;
    let end = runtime.block_on(session::ask(asked, &mut page))?;
    page.end_line();
    Ok(match end {
        End::Answered { finished, ttft } => {
            if !args.json {
                output::say(&summary(&finished, ttft));
            }
            ExitCode::SUCCESS
        }
        End::Refused(error) => {
            output::complain(&Refusal(error));
            ExitCode::from(exit::FAILURE)
        }
        End::Unreachable(reason) => {
            output::say(&format!("orinoco: {reason}"));
            ExitCode::from(exit::UNAVAILABLE)
        }
        End::Cancelled => {
            output::say("cancelled");
            ExitCode::from(exit::INTERRUPTED)
        }
        End::ReaderGone => ExitCode::SUCCESS,
    })
}

fn from_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(PROMPT_BYTES_MAX)
        .read_to_string(&mut text)
        .context("failed to read the prompt from standard input")?;
    match text.trim_end() {
        "" => anyhow::bail!("standard input holds no prompt"),
        text => Ok(text.to_owned()),
    }
}

/// `celsius=81.2`: a number, true or false as JSON writes it, text in quotes or without.
fn variable(text: &str) -> Result<(Name, serde_json::Value), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    let name = Name::new(name).map_err(|error| error.to_string())?;
    let value = match serde_json::from_str(value) {
        Ok(scalar @ (serde_json::Value::Bool(_) | serde_json::Value::Number(_))) => scalar,
        Ok(serde_json::Value::String(text)) => text.into(),
        _ => value.into(),
    };
    Ok((name, value))
}

/// The request as OpenAI wrote it; what was not asked for is left to the node.
fn body(args: &Args, prompt: &str) -> Vec<u8> {
    let system = args
        .system
        .iter()
        .map(|text| json!({ "role": "system", "content": text }));
    let user = json!({ "role": "user", "content": prompt });
    let messages: Vec<_> = system.chain([user]).collect();
    let mut body = match &args.template {
        None => json!({ "messages": messages, "stream": true }),
        Some(template) => {
            let vars = args.var.iter();
            let vars = vars.map(|(name, value)| (name.to_string(), value.clone()));
            let vars: serde_json::Map<_, _> = vars.collect();
            json!({ "template": template, "vars": vars, "stream": true })
        }
    };
    let options = [
        ("model", args.model.as_ref().map(|model| json!(model))),
        ("max_tokens", args.max_tokens.map(|n| json!(n))),
        // As written: 0.7 and not the nearest f32 as f64.
        (
            "temperature",
            args.temperature
                .and_then(|t| t.to_string().parse().ok())
                .map(serde_json::Value::Number),
        ),
        ("seed", args.seed.map(|seed| json!(seed))),
        ("priority", args.priority.map(|class| json!(class))),
        ("deadline_ms", args.deadline.map(|ms| json!(ms))),
        (
            "keep_latest",
            args.keep_latest.as_ref().map(|key| json!(key)),
        ),
        ("session", args.session.as_ref().map(|name| json!(name))),
        (
            "session_history",
            args.session.as_ref().map(|_| json!(true)),
        ),
    ];
    for (key, value) in options {
        if let Some(value) = value {
            body[key] = value;
        }
    }
    body.to_string().into_bytes()
}

/// `ttft 58 ms, 176.2 tok/s, 31 + 128 tokens, stop, SmolLM2`
fn summary(finished: &Finished, ttft: Option<Duration>) -> String {
    let mut parts = Vec::new();
    if let Some(ttft) = ttft {
        parts.push(format!("ttft {} ms", ttft.as_millis()));
    }
    if let Some(rate) = finished.details.tok_s {
        parts.push(format!("{rate:.1} tok/s"));
    }
    if let Some(usage) = &finished.usage {
        let cached = match usage.prompt_tokens_details.cached_tokens {
            0 => String::new(),
            n => format!(" ({n} cached)"),
        };
        parts.push(format!(
            "{} prompt{cached} + {} answer tokens",
            usage.prompt_tokens, usage.completion_tokens
        ));
    }
    if let Some(n) = finished.details.resumed.filter(|n| *n > 0) {
        parts.push(format!("resumed {n} times"));
    }
    if let Some(session) = &finished.details.session {
        let dropped = match session.dropped_turns {
            0 => String::new(),
            n => format!(" ({n} older ones dropped)"),
        };
        parts.push(format!(
            "turn {} of {}{dropped}",
            session.turns, session.name
        ));
    }
    parts.extend([finished.finish_reason.clone(), finished.model.clone()]);
    harmless(&parts.join(", "))
}

/// An error final, for a person.
#[derive(Debug, thiserror::Error)]
#[error("{} {}: {}{}", .0.code.status(), .0.code, harmless(&.0.message), retry(.0))]
struct Refusal(ApiError);

fn retry(error: &ApiError) -> String {
    match error.retry_after_ms {
        Some(ms) => format!(" (try again in {:.1} s)", ms as f64 / 1000.0),
        None => String::new(),
    }
}

/// Where the answer is written.
struct Page {
    is_json: bool,
    is_terminal: bool,
    at_line_start: bool,
}

impl Page {
    /// The text of the answer; on a terminal without control characters.
    fn text(&mut self, text: &str) -> std::io::Result<()> {
        if self.is_json || text.is_empty() {
            return Ok(());
        }
        self.at_line_start = text.ends_with('\n');
        match self.is_terminal {
            true => self.write(harmless(text).as_bytes()),
            false => self.write(text.as_bytes()),
        }
    }

    /// A message as it came.
    fn message(&mut self, payload: &[u8]) -> std::io::Result<()> {
        match self.is_json {
            true => self.write(&[payload, b"\n"].concat()),
            false => Ok(()),
        }
    }

    /// The text so far is void.
    fn start_over(&mut self) {
        self.end_line();
        output::say("the node started again, or another one took over; the text above is void");
    }

    fn end_line(&mut self) {
        if !self.at_line_start {
            // If it cannot be written, the answer could not either, and that was reported.
            let _ = self.write(b"\n");
            self.at_line_start = true;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }
}

/// Text that can do nothing to a terminal but be read: a model can be talked into writing escape
/// sequences.
pub(super) fn harmless(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parsed(words: &[&str]) -> serde_json::Value {
        let args = Line::try_parse_from([&["ask"], words].concat())
            .unwrap()
            .args;
        serde_json::from_slice(&body(&args, "Hello")).unwrap()
    }

    #[test]
    fn what_was_not_asked_for_is_left_to_the_node() {
        let user = json!([{ "role": "user", "content": "Hello" }]);
        assert_eq!(parsed(&["-"]), json!({ "messages": user, "stream": true }));
    }

    #[test]
    fn every_option_reaches_the_body() {
        let words = [
            "--model",
            "m",
            "--max-tokens",
            "5",
            "--temperature",
            "0.7",
            "--seed",
            "18446744073709551615",
            "--system",
            "Be brief.",
            "--priority",
            "batch",
            "--deadline",
            "5000",
            "--keep-latest",
            "panel",
            "--session",
            "kitchen",
            "-",
        ];
        let expected = json!({
            "messages": [
                { "role": "system", "content": "Be brief." },
                { "role": "user", "content": "Hello" },
            ],
            "stream": true, "model": "m", "max_tokens": 5, "temperature": 0.7, "seed": u64::MAX,
            "priority": "batch", "deadline_ms": 5000, "keep_latest": "panel",
            "session": "kitchen", "session_history": true,
        });
        assert_eq!(parsed(&words), expected);
    }

    #[test]
    fn a_template_comes_with_what_varies_and_without_messages() {
        let vars = [
            "code=1734",
            "on=true",
            "note=it hums = loud",
            "batch=\"0017\"",
            "x=[1]",
        ];
        let vars = vars.iter().flat_map(|var| ["--var", *var]);
        let words = Vec::from_iter(["--template", "alarm-text"].into_iter().chain(vars));
        let vars = json!({
            "code": 1734, "on": true, "note": "it hums = loud", "batch": "0017", "x": "[1]",
        });
        let expected = json!({"template": "alarm-text", "vars": vars, "stream": true});
        assert_eq!(parsed(&words), expected);
        for wrong in [
            &["--template", "a", "hello"][..],
            &["--var", "a=1", "hello"],
            &["--template", "a", "--var", "a"],
            &[],
        ] {
            let line = Line::try_parse_from([&["ask"], wrong].concat());
            assert!(line.is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(
            harmless("a\u{1b}[2Jb\u{9b}31m\r\n\tc\u{7}"),
            "a\u{fffd}[2Jb\u{fffd}31m\u{fffd}\n\tc\u{fffd}"
        );
    }
}
