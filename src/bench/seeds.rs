//! Drives `orinoco bench --seed-report`: what people do with an assistant, each case cold and with a kept prompt.
//!
//! The cases are those of a report of an Orin NX with 16 GB, Llama-3.2-3B-Instruct Q4_K_M and llama.cpp's server:
//! a greeting, an action by a tool, a coding question, and five questions at once, of some 660 prompt tokens and
//! 50 made. Its seconds stand beside ours; they compare where board and model are the same, and the report says
//! which these are. Answers end where the model ends them, at [`N_GEN_MAX`] tokens at the latest.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::client::{Client, Daemon, Stream};
use super::run::{hardware, median};
use super::{figure, tokens_per_second};
use crate::config::Config;

/// Most tokens of an answer; the old report made about 50.
const N_GEN_MAX: u32 = 50;

/// What the assistant of the old report was told, by its length: some 600 tokens before the question.
const SYSTEM: &str = "\
You are the assistant of a small plant that bottles water. You answer operators, technicians and the devices \
themselves, in plain words and in few of them. Say what you know, say where you know it from, and say so when you \
do not know. Never invent a reading, a part number or a date. Units are metric: bar, degrees Celsius, litres a \
minute, kilowatts. Times are local, written as hours and minutes.\n\
The plant has four lines. Line one fills half-litre bottles, line two fills bottles of one and a half litres, line \
three fills canisters of five litres, and line four is a spare that takes either of the small sizes. Each line has a \
rinser, a filler, a capper, a labeller and a packer, in this order, with a conveyor between them. The filler of each \
line is fed by two pumps, A and B, of which one runs and the other waits. A pump is changed when its bearing is \
warmer than eighty degrees for five minutes, or when it shakes more than seven millimetres a second. The tank before \
the fillers holds ten thousand litres; below two thousand the lines slow down, below eight hundred they stop.\n\
The air for the cappers comes from one compressor at six bar. Below five bar caps are loose, and the line that sees \
loose caps first is line three. The labellers take their data from the order that is active; a change of order takes \
six minutes, and its first twenty bottles are thrown away. The packers are robots; people stay outside of the yellow \
fence while the lamp is green. Who opens the gate stops the robot, and who closes it starts it again by the blue \
button beside the gate, after looking twice.\n\
The shifts change at six, at fourteen and at twenty-two. The foreman of the shift decides what is stopped; you may \
advise it, and you say why. Alarms come as red, amber or white. Red means that somebody may be hurt or that water may \
be spoiled: say first what to do at once. Amber means that a line will stop within the hour: say what to look at, the \
likeliest cause first. White is for the record only. The laboratory takes a sample from each line every two hours, and \
a line whose sample is late is not stopped, but named in the report of the shift.\n\
Spare parts are in the store behind line four: seals on shelf one, bearings on shelf two, belts on shelf three, valves \
on shelf four, sensors in the drawers below. What is taken is written on the shopping list, with how many, so that it \
is there again before the week is over. When you are asked to put something on the list, use the tool for it and say \
nothing else. When you are asked for code, write only the code, short and with names that say what is meant.";

/// One case, and what it took.
struct Kind {
    name: &'static str,
    /// Of the old report.
    theirs_s: f64,
    questions: &'static [&'static str],
    has_system: bool,
    has_tool: bool,
}

const KINDS: [Kind; 4] = [
    Kind {
        name: "greeting",
        theirs_s: 0.71,
        questions: &["Hello"],
        has_system: false,
        has_tool: false,
    },
    Kind {
        name: "tool call",
        theirs_s: 4.22,
        questions: &["Put two bearings on the shopping list."],
        has_system: true,
        has_tool: true,
    },
    Kind {
        name: "coding",
        theirs_s: 4.35,
        questions: &["Write a Python function that turns bar into pascal."],
        has_system: true,
        has_tool: false,
    },
    Kind {
        name: "five at once",
        theirs_s: 13.89,
        questions: &[
            "Which line fills canisters?",
            "When is a pump changed?",
            "What do I do before I press the blue button?",
            "Where are the belts?",
            "What does an amber alarm mean?",
        ],
        has_system: true,
        has_tool: false,
    },
];

/// What `orinoco bench --seed-report` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Seeds {
    /// Package version.
    pub version: String,
    /// Commit it was built from, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The model that answered.
    pub model: String,
    /// Board or processor, power mode and cores, for people.
    pub hardware: String,
    /// Runs of each figure; medians are shown.
    pub n_runs: usize,
    /// One for each case.
    pub cases: Vec<Case>,
}

/// One case. Of several requests at once, all together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// What was asked.
    pub name: String,
    /// Requests side by side.
    pub n_requests: usize,
    /// Nothing of the prompt was known.
    pub cold: Took,
    /// The prompt up to the question had been read before.
    pub kept: Took,
    /// Of the old report: an Orin NX 16 GB, Llama-3.2-3B-Instruct Q4_K_M, llama.cpp's server.
    pub theirs_s: f64,
}

/// What a case took, from publishing on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Took {
    /// Prompt tokens, of all requests.
    pub prompt_tokens: u64,
    /// Of these found in the cache.
    pub cached_tokens: u64,
    /// Tokens made.
    pub completion_tokens: u64,
    /// To the first text of the request that waited longest.
    pub first_token_ms: f64,
    /// To the last final.
    pub total_s: f64,
    /// Tokens made a second, from publishing on.
    pub tok_s: Option<f64>,
}

/// Asks all cases, the median of `n_runs` for each; `progress` is told what begins and the part that is done.
///
/// # Errors
/// The daemon does not start or serve, or an answer fails.
pub async fn run(
    config: &Config,
    n_runs: usize,
    mut progress: impl FnMut(&str, f64),
) -> anyhow::Result<Seeds> {
    progress("starting", 0.0);
    let mut daemon = Daemon::start(config)?;
    let mut client = daemon.client().await?;
    client.streams(1, 16, "warm up").await?;
    let mut asker = Asker {
        client: &mut client,
        n_beginnings: 0,
        model: String::new(),
    };
    let mut cases = Vec::new();
    for (n, kind) in KINDS.iter().enumerate() {
        let (mut cold, mut kept) = (Vec::new(), Vec::new());
        for run in 0..n_runs {
            let done = (n * n_runs + run) as f64 / (KINDS.len() * n_runs) as f64;
            progress(kind.name, done);
            // A beginning that was never read; then other questions after the same one.
            asker.n_beginnings += 1;
            cold.push(asker.ask(kind, "").await?);
            kept.push(asker.ask(kind, "Once more: ").await?);
        }
        cases.push(Case {
            name: kind.name.to_owned(),
            n_requests: kind.questions.len(),
            cold: middle(cold).context("no run")?,
            kept: middle(kept).context("no run")?,
            theirs_s: kind.theirs_s,
        });
    }
    let model = std::mem::take(&mut asker.model);
    drop(client);
    daemon.stop().await;
    progress("done", 1.0);
    Ok(Seeds {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: option_env!("ORINOCO_COMMIT").map(str::to_owned),
        model,
        hardware: hardware(config),
        n_runs,
        cases,
    })
}

struct Asker<'a> {
    client: &'a mut Client,
    n_beginnings: u64,
    model: String,
}

impl Asker<'_> {
    async fn ask(&mut self, kind: &Kind, before: &str) -> anyhow::Result<Took> {
        let body = |question: &&str| body(kind, self.n_beginnings, &format!("{before}{question}"));
        let bodies = kind.questions.iter().map(body).collect();
        let (asked, streams) = self.client.chats(bodies).await?;
        if let Some(stream) = streams.first() {
            self.model.clone_from(&stream.finished()?.model);
        }
        took(asked, &streams).with_context(|| format!("{} failed", kind.name))
    }
}

/// A chat of this kind. `n_beginning` stands where the prompt begins, so that it shares nothing with another's.
fn body(kind: &Kind, n_beginning: u64, question: &str) -> Value {
    let mut messages = Vec::new();
    let mut question = question.to_owned();
    match kind.has_system {
        true => messages.push(json!({
            "role": "system", "content": format!("Plant {n_beginning}. {SYSTEM}")
        })),
        false => question = format!("{question} {n_beginning}"),
    }
    messages.push(json!({"role": "user", "content": question}));
    let mut body = json!({"messages": messages, "max_tokens": N_GEN_MAX, "temperature": 0});
    if kind.has_tool {
        body["tools"] = json!([{"type": "function", "function": {
            "name": "add_to_shopping_list",
            "description": "Puts a part on the shopping list",
            "parameters": {
                "type": "object",
                "properties": {
                    "part": {"type": "string", "enum": ["seal", "bearing", "belt", "valve", "sensor"]},
                    "count": {"type": "integer", "minimum": 1, "maximum": 100},
                },
                "required": ["part", "count"],
                "additionalProperties": false,
            },
        }}]);
        body["tool_choice"] = json!("required");
    }
    body
}

fn took(asked: Instant, streams: &[Stream]) -> anyhow::Result<Took> {
    let mut took = Took::default();
    let (mut first, mut last) = (Duration::ZERO, Duration::ZERO);
    for stream in streams {
        let finished = stream.finished()?;
        let usage = finished.usage.as_ref().context("a final without usage")?;
        took.prompt_tokens += usage.prompt_tokens;
        took.cached_tokens += usage.prompt_tokens_details.cached_tokens;
        took.completion_tokens += usage.completion_tokens;
        let Some((began, ended)) = stream.times() else {
            bail!("an answer has no end")
        };
        first = first.max(began - asked);
        last = last.max(ended - asked);
    }
    took.first_token_ms = figure(first.as_secs_f64() * 1e3).unwrap_or_default();
    took.total_s = figure(last.as_secs_f64()).unwrap_or_default();
    took.tok_s = tokens_per_second(took.completion_tokens, last);
    Ok(took)
}

/// Of each time its median; the counts are those of the run in the middle.
fn middle(mut runs: Vec<Took>) -> Option<Took> {
    runs.sort_by(|a, b| a.total_s.total_cmp(&b.total_s));
    let first_token_ms = median(runs.iter().map(|took| took.first_token_ms).collect())?;
    let middle = *runs.get(runs.len() / 2)?;
    Some(Took {
        first_token_ms,
        ..middle
    })
}

impl fmt::Display for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            version,
            model,
            hardware,
            n_runs,
            ..
        } = self;
        writeln!(
            f,
            "orinoco {version}, {model}, {hardware}; medians of {n_runs}"
        )?;
        writeln!(
            f,
            "{:<13} {:>7} {:>6} {:>13} {:>8} {:>9} {:>15} {:>8} {:>9}",
            "CASE",
            "PROMPT",
            "MADE",
            "FIRST TOKEN",
            "WHOLE",
            "TOK/S",
            "KEPT: FIRST",
            "WHOLE",
            "REPORTED"
        )?;
        for case in &self.cases {
            let (cold, kept) = (&case.cold, &case.kept);
            let rate = cold
                .tok_s
                .map_or_else(|| "-".into(), |rate| format!("{rate:.1}"));
            writeln!(
                f,
                "{:<13} {:>7} {:>6} {:>10.0} ms {:>6.2} s {:>9} {:>12.0} ms {:>6.2} s {:>7.2} s",
                case.name,
                cold.prompt_tokens,
                cold.completion_tokens,
                cold.first_token_ms,
                cold.total_s,
                rate,
                kept.first_token_ms,
                kept.total_s,
                case.theirs_s
            )?;
        }
        writeln!(
            f,
            "KEPT: other questions after a beginning that was read before. REPORTED: an Orin NX 16 GB, Llama-3.2-3B\n\
             Q4_K_M, llama.cpp's server; it compares with the same model on the same board only."
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn took(total_s: f64, first_token_ms: f64, completion_tokens: u64) -> Took {
        Took {
            total_s,
            first_token_ms,
            completion_tokens,
            ..Took::default()
        }
    }

    #[test]
    fn the_middle_run_speaks_for_all_and_first_tokens_have_a_median_of_their_own() {
        let runs = vec![took(3.0, 10.0, 3), took(1.0, 30.0, 1), took(2.0, 20.0, 2)];
        assert_eq!(middle(runs), Some(took(2.0, 20.0, 2)));
        assert_eq!(middle(Vec::new()), None);
    }

    #[test]
    fn two_beginnings_share_nothing_and_two_questions_share_the_beginning() {
        for kind in &KINDS {
            let text = |n, question| body(kind, n, question)["messages"].to_string();
            let shared =
                |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
            let (one, other, again) = (
                text(1, "Hello"),
                text(2, "Hello"),
                text(1, "Once more: Hello"),
            );
            assert!(shared(&one, &other) < 60, "{}", kind.name);
            if kind.has_system {
                assert!(shared(&one, &again) > SYSTEM.len(), "{}", kind.name);
            }
        }
    }

    #[test]
    fn a_report_reads_in_lines_of_110_columns_and_comes_back_from_json() {
        let case = Case {
            name: "five at once".into(),
            n_requests: 5,
            cold: took(123.456, 98_765.4, 250),
            kept: took(12.3, 45.6, 250),
            theirs_s: 13.89,
        };
        let seeds = Seeds {
            version: "0.1.0".into(),
            commit: None,
            model: "llama-3.2-3b".into(),
            hardware: "Jetson Orin NX, 8 cores".into(),
            n_runs: 3,
            cases: vec![case],
        };
        let text = seeds.to_string();
        assert!(
            text.lines().all(|line| line.chars().count() <= 110),
            "{text}"
        );
        assert!(text.contains("98765 ms"), "{text}");
        let json = serde_json::to_string(&seeds).unwrap();
        assert_eq!(serde_json::from_str::<Seeds>(&json).unwrap(), seeds);
    }
}
