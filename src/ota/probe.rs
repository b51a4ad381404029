//! Whether a release shows that it works: what it is asked, and the verdict. Pure.
//!
//! | shown | a "no" with the reason |
//! |---|---|
//! | it does not load, or not in time | `probe_load` |
//! | a golden prompt is answered wrong, with nonsense, or not at all | `probe_golden` |
//! | the chat template does not render | `probe_template` |
//! | slower than its publisher promises for this board in this power mode | `probe_speed` |
//! | more memory than promised, or killed for it | `probe_memory` |
//! | it died: a crash of the parser, of a kernel, an abort | `probe_crash` |
//! | it said nothing for too long | `probe_timeout` |
//!
//! Answers are judged by a pattern, or a text by its likelihood: the bytes of an answer change with kernels and
//! the shape of batches. Speed is not judged on a hot board; the release is tried again when it has cooled.

use std::time::Duration;

use regex_lite::{Regex, RegexBuilder};

use super::manifest::{Golden, Health, SpeedFloor};
use super::reason::Reason;
use crate::frames::{BenchSpec, JobError};
use crate::worker::Cause;
use crate::worker::trial::{Answer, Ask, Shown, Then, Trial, TrialEnd};

/// Where a manifest names no limit for the load.
const LOAD_MAX: Duration = Duration::from_secs(600);
/// Longest silence while it is asked.
const STALL: Duration = Duration::from_secs(60);
/// Longest time for all that is asked.
const LIMIT: Duration = Duration::from_secs(600);
/// Every release must answer something, through its template.
const GREETING: &str = "Say hello.";
/// Tokens of that answer.
const GREETING_TOKENS: u32 = 4;
/// Largest compiled pattern, bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;
/// Memory may be this share above the promise: other kernels, another page size.
const MEMORY_MARGIN_PERCENT: u64 = 10;
/// What is measured: a prompt and an answer.
const SPEED: BenchSpec = BenchSpec {
    n_prompt: 128,
    n_gen: 32,
    n_parallel: 1,
};

/// A "no", and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct No {
    /// The word.
    pub reason: Reason,
    /// The same for people, with figures.
    pub detail: String,
}

/// What is promised, for one board in one power mode.
#[derive(Debug, Clone)]
pub struct Probe {
    health: Health,
    floor: Option<SpeedFloor>,
    patterns: Vec<Option<Regex>>,
}

impl Probe {
    /// `board` and `mode` choose the floor of speed.
    ///
    /// # Errors
    /// A pattern that is none.
    pub fn new(health: &Health, board: &str, mode: &str) -> Result<Self, No> {
        let pattern = |golden: &Golden| match golden {
            Golden::Likelihood { .. } => Ok(None),
            Golden::Match { must_match, .. } => RegexBuilder::new(must_match)
                .size_limit(PATTERN_BYTES_MAX)
                .build()
                .map(Some),
        };
        let patterns: Result<_, _> = health.golden.iter().map(pattern).collect();
        Ok(Self {
            floor: health.speed(board, mode).cloned(),
            health: health.clone(),
            patterns: patterns.map_err(|error| No {
                reason: Reason::BadCatalog,
                detail: format!("a pattern of a golden prompt: {error}"),
            })?,
        })
    }

    /// Whether its speed is judged, so that the board must not be hot.
    pub fn needs_cool(&self) -> bool {
        self.floor
            .as_ref()
            .is_some_and(|floor| floor.decode_min > 0 || floor.prefill_min > 0)
    }

    /// What the worker is asked.
    pub fn trial(&self) -> Trial {
        let greeting = Ask::Chat {
            prompt: GREETING.to_owned(),
            max_tokens: GREETING_TOKENS,
        };
        let ask = |golden: &Golden| match golden {
            Golden::Match {
                prompt, max_tokens, ..
            } => Ask::Chat {
                prompt: prompt.clone(),
                max_tokens: *max_tokens,
            },
            Golden::Likelihood { text, .. } => Ask::Score(text.clone()),
        };
        let own = self.clone();
        Trial {
            asks: std::iter::once(greeting)
                .chain(self.health.golden.iter().map(ask))
                .collect(),
            bench: self.needs_cool().then_some(SPEED),
            load_max: match self.health.load_ms_max {
                0 => LOAD_MAX,
                ms => Duration::from_millis(ms),
            },
            stall: STALL,
            limit: LIMIT,
            judge: Box::new(move |shown| own.judge(shown).is_ok()),
            then: Then::Serve,
        }
    }

    /// Whether what it showed will do.
    ///
    /// # Errors
    /// The first thing that will not.
    pub fn judge(&self, shown: &Shown) -> Result<(), No> {
        let (greeting, answers) = match shown.answers.split_first() {
            Some((greeting, answers)) if answers.len() == self.health.golden.len() => {
                (greeting, answers)
            }
            _ => return no(Reason::ProbeGolden, "not every prompt was answered"),
        };
        said(greeting)?;
        let golden = self.health.golden.iter().zip(&self.patterns).zip(answers);
        for (number, ((golden, pattern), answer)) in (1..).zip(golden) {
            match (golden, pattern, answer) {
                (Golden::Match { must_match, .. }, Some(pattern), answer) => {
                    let text = said(answer)?;
                    if !pattern.is_match(text) {
                        let shown: String =
                            text.chars().filter(|c| !c.is_control()).take(80).collect();
                        return no(
                            Reason::ProbeGolden,
                            &format!(
                                "golden prompt {number}: {shown:?} has no match for {must_match:?}"
                            ),
                        );
                    }
                }
                (
                    Golden::Likelihood {
                        mean_nll_micro_max, ..
                    },
                    _,
                    Answer::Scored(scored),
                ) => {
                    let micro = scored.mean_nll * 1e6;
                    // What is no number is not below any limit.
                    let is_likely = micro <= *mean_nll_micro_max as f64;
                    if !is_likely {
                        return no(
                            Reason::ProbeGolden,
                            &format!(
                                "golden text {number}: {:.3} nats a token, at most {:.3} are right",
                                scored.mean_nll,
                                *mean_nll_micro_max as f64 / 1e6
                            ),
                        );
                    }
                }
                (_, _, Answer::Failed(error)) => return failed(error),
                _ => return no(Reason::ProbeGolden, "an answer to another question"),
            }
        }
        self.judge_speed(shown)?;
        self.judge_memory(shown)
    }

    fn judge_speed(&self, shown: &Shown) -> Result<(), No> {
        let Some(floor) = self.floor.as_ref().filter(|_| self.needs_cool()) else {
            return Ok(());
        };
        let Some(report) = shown.speed else {
            return no(Reason::ProbeSpeed, "its speed was not measured");
        };
        let milli_tok_s = |n: u32, ms: f64| f64::from(n) * 1e6 / ms;
        let rates = [
            (
                "reads",
                report.spec.n_prompt,
                report.prompt_ms,
                floor.prefill_min,
            ),
            ("makes", report.spec.n_gen, report.gen_ms, floor.decode_min),
        ];
        for (what, n, ms, min) in rates {
            let rate = milli_tok_s(n, ms);
            let is_fast = rate >= min as f64;
            if min > 0 && !is_fast {
                return no(
                    Reason::ProbeSpeed,
                    &format!(
                        "{what} {:.1} tokens a second, at least {:.1} were promised",
                        rate / 1e3,
                        min as f64 / 1e3
                    ),
                );
            }
        }
        Ok(())
    }

    fn judge_memory(&self, shown: &Shown) -> Result<(), No> {
        let promised = self.health.peak_mib_max;
        let allowed_mib = promised.saturating_add(promised * MEMORY_MARGIN_PERCENT / 100);
        let peak_mib = shown.peak_bytes.div_ceil(1 << 20);
        match promised == 0 || peak_mib <= allowed_mib {
            true => Ok(()),
            false => no(
                Reason::ProbeMemory,
                &format!("took {peak_mib} MiB, at most {promised} were promised"),
            ),
        }
    }

    /// The verdict on a trial that ended; `None`: it says nothing about the release.
    pub fn verdict(&self, end: &TrialEnd) -> Option<Result<(), No>> {
        let cause = match end {
            TrialEnd::Passed(_) => return Some(Ok(())),
            TrialEnd::Unfit(shown) => {
                let no = self.judge(shown).err().unwrap_or(No {
                    reason: Reason::ProbeGolden,
                    detail: "judged twice with two verdicts".to_owned(),
                });
                return Some(Err(no));
            }
            TrialEnd::Ended(cause) => cause,
        };
        let reason = match cause {
            Cause::LoadFailed(_) | Cause::Unproven(_) => Reason::ProbeLoad,
            Cause::NoRoom(_) => Reason::IncompatibleMemory,
            Cause::Crashed(_) | Cause::Exited(_) | Cause::Protocol(_) | Cause::Unfit => {
                Reason::ProbeCrash
            }
            // By nobody of us: by the kernel, for want of memory.
            Cause::Killed(_) => Reason::ProbeMemory,
            Cause::Stalled(_) => Reason::ProbeTimeout,
            Cause::Spawn(_)
            | Cause::NoReading(_)
            | Cause::Switched
            | Cause::Idle
            | Cause::Rested(_) => {
                return None;
            }
        };
        Some(no(reason, &format!("the engine {cause}")))
    }
}

/// The text of an answer.
fn said(answer: &Answer) -> Result<&str, No> {
    match answer {
        Answer::Text { text, .. } if text.contains('\u{fffd}') => {
            no(Reason::ProbeGolden, "an answer that is no text")
        }
        Answer::Text { text, .. } => Ok(text),
        Answer::Failed(error) => failed(error),
        Answer::Scored(_) => no(Reason::ProbeGolden, "an answer to another question"),
    }
}

fn failed<T>(error: &JobError) -> Result<T, No> {
    match error {
        JobError::Template(why) => no(Reason::ProbeTemplate, why),
        JobError::TooLong {
            n_prompt,
            n_ctx_seq,
        } => no(
            Reason::ProbeGolden,
            &format!("a golden prompt of {n_prompt} tokens, {n_ctx_seq} fit"),
        ),
        JobError::Input(why) | JobError::Decode(why) | JobError::Constraint(why) => {
            no(Reason::ProbeGolden, why)
        }
    }
}

fn no<T>(reason: Reason, detail: &str) -> Result<T, No> {
    Err(No {
        reason,
        detail: detail.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{BenchReport, Finish, Scored};

    fn health() -> Health {
        serde_json::from_value(serde_json::json!({
            "load_ms_max": 5000, "peak_mib_max": 100,
            "speed_milli_tok_s": [
                {"board": "orin-nx-16gb", "mode": "25W", "decode_min": 20_000, "prefill_min": 100_000}
            ],
            "golden": [
                {"kind": "match", "prompt": "Capital of France?", "must_match": "(?i)\\bparis\\b", "max_tokens": 8},
                {"kind": "likelihood", "text": "The sky is blue.", "mean_nll_micro_max": 2_500_000}
            ]
        }))
        .unwrap()
    }

    fn text(text: &str) -> Answer {
        Answer::Text {
            text: text.into(),
            finish: Finish::Stop,
        }
    }

    fn scored(mean_nll: f64) -> Answer {
        Answer::Scored(Scored {
            n_tokens: 5,
            mean_nll,
        })
    }

    /// As promised.
    fn shown() -> Shown {
        Shown {
            load: Duration::from_secs(1),
            answers: vec![text("Hello"), text("It is Paris."), scored(2.1)],
            speed: Some(BenchReport {
                spec: SPEED,
                prompt_ms: 1000.0,
                gen_ms: 1000.0,
            }),
            peak_bytes: 100 << 20,
        }
    }

    fn reason(shown: &Shown) -> Option<Reason> {
        let probe = Probe::new(&health(), "orin-nx-16gb", "25W").unwrap();
        probe.judge(shown).err().map(|no| no.reason)
    }

    fn with(change: impl FnOnce(&mut Shown)) -> Shown {
        let mut shown = shown();
        change(&mut shown);
        shown
    }

    #[test]
    fn what_keeps_its_promises_passes() {
        assert_eq!(reason(&shown()), None);
    }

    #[test]
    fn each_broken_promise_is_a_no_with_its_own_reason() {
        let cases = [
            (
                with(|s| s.answers[1] = text("It is Rome.")),
                Reason::ProbeGolden,
            ),
            (
                with(|s| s.answers[1] = text("\u{fffd}\u{fffd}")),
                Reason::ProbeGolden,
            ),
            (with(|s| s.answers[2] = scored(2.6)), Reason::ProbeGolden),
            (
                with(|s| s.answers[2] = scored(f64::INFINITY)),
                Reason::ProbeGolden,
            ),
            (
                with(|s| s.answers[2] = scored(f64::NAN)),
                Reason::ProbeGolden,
            ),
            (with(|s| s.answers.truncate(2)), Reason::ProbeGolden),
            (
                with(|s| s.answers[0] = Answer::Failed(JobError::Template("no".into()))),
                Reason::ProbeTemplate,
            ),
            (
                with(|s| s.answers[1] = Answer::Failed(JobError::Decode("NaN".into()))),
                Reason::ProbeGolden,
            ),
            (
                with(|s| s.speed.as_mut().unwrap().gen_ms = 1700.0),
                Reason::ProbeSpeed,
            ),
            (
                with(|s| s.speed.as_mut().unwrap().prompt_ms = 1300.0),
                Reason::ProbeSpeed,
            ),
            (
                with(|s| s.speed.as_mut().unwrap().gen_ms = f64::NAN),
                Reason::ProbeSpeed,
            ),
            (with(|s| s.speed = None), Reason::ProbeSpeed),
            (with(|s| s.peak_bytes = 111 << 20), Reason::ProbeMemory),
        ];
        for (shown, expected) in cases {
            assert_eq!(reason(&shown), Some(expected), "{shown:?}");
        }
    }

    #[test]
    fn speed_is_judged_on_the_board_and_in_the_mode_that_it_was_promised_for() {
        let slow = with(|s| s.speed = None);
        for (board, mode) in [("orin-nano-8gb", "25W"), ("orin-nx-16gb", "10W")] {
            let probe = Probe::new(&health(), board, mode).unwrap();
            assert!(!probe.needs_cool());
            assert_eq!(probe.judge(&slow), Ok(()));
            assert_eq!(probe.trial().bench, None);
        }
    }

    #[test]
    fn death_silence_and_want_of_memory_are_ordinary_answers() {
        let probe = Probe::new(&health(), "", "").unwrap();
        let reason = |cause| {
            let verdict = probe.verdict(&TrialEnd::Ended(cause));
            verdict.map(|verdict| verdict.unwrap_err().reason)
        };
        assert_eq!(reason(Cause::Crashed(11)), Some(Reason::ProbeCrash));
        assert_eq!(reason(Cause::Killed(9)), Some(Reason::ProbeMemory));
        assert_eq!(
            reason(Cause::Stalled(Duration::from_secs(60))),
            Some(Reason::ProbeTimeout)
        );
        assert_eq!(
            reason(Cause::LoadFailed("unknown tensor".into())),
            Some(Reason::ProbeLoad)
        );
        assert_eq!(reason(Cause::Switched), None, "no word about the release");
    }

    #[test]
    fn a_pattern_that_is_none_or_too_large_is_refused() {
        for pattern in ["(", "(a{1000}){1000}"] {
            let mut health = health();
            health.golden[0] = Golden::Match {
                prompt: "x".into(),
                must_match: pattern.into(),
                max_tokens: 1,
            };
            let no = Probe::new(&health, "", "").unwrap_err();
            assert_eq!(no.reason, Reason::BadCatalog);
        }
    }
}
