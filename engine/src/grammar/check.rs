//! Judges grammars in a process of its own, which holds nothing else and can be killed.
//!
//! Each compilation has a budget of memory and time; where one is exceeded, or a schema is at fault, the
//! innermost subschema that fails in the same way is looked for in what is left of the time. The vocabulary
//! here is the 256 bytes: what a compilation costs does not depend on it.

use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use orinoco::frames::{CheckSpec, Command, Constraint, Event, Refused};
use serde_json::Value;

use super::schema::{ARRAYS, OBJECTS, ONE};
use super::{Compiler, Vocabulary};
use crate::budget::{Budget, Exceeded, within_spent};
use crate::process::cpu_time;

/// So many times longer than its share of the time may work be waited for, where others have the cores.
const STARVED: u32 = 8;
/// Subschemas tried while the place is looked for.
const TRIES_MAX: usize = 4096;

/// Answers until nobody asks any more, or a limit was exceeded: what a stopped compilation holds stays taken.
pub fn serve(spec: &CheckSpec, commands: &Receiver<Command>, events: &SyncSender<Event>) {
    while let Ok(command) = commands.recv() {
        let event = match command {
            Command::Compile(constraint) => Event::Compiled(check(spec, &constraint)),
            Command::Ping(n) => Event::Pong(n),
            Command::Drain => return,
            _ => {
                tracing::warn!("a command that has no place in a checking worker is ignored");
                continue;
            }
        };
        let is_spent = matches!(&event, Event::Compiled(Err(refused)) if refused.exceeded);
        if events.send(event).is_err() || is_spent {
            return;
        }
    }
}

/// Compiles once, within the limits.
pub fn check(spec: &CheckSpec, constraint: &Constraint) -> Result<(), Refused> {
    let total = Duration::from_millis(spec.time_ms.into());
    let until = cpu_time() + total;
    let bytes = usize::try_from(spec.bytes).unwrap_or(usize::MAX);
    // Half for the whole, the rest for the place at fault.
    let budget = Budget {
        bytes,
        time: total / 2,
    };
    let Err(fault) = compile(budget, constraint) else {
        return Ok(());
    };
    let exceeded = matches!(fault, Fault::Exceeded(_));
    let mut place = Vec::new();
    if let Constraint::JsonSchema(text) = constraint
        && let Ok(schema) = serde_json::from_str::<Value>(text)
    {
        let mut n_tries = 0;
        place = innermost(&schema, &mut |part| {
            n_tries += 1;
            let left = until.saturating_sub(cpu_time());
            if n_tries > TRIES_MAX || left.is_zero() {
                return false;
            }
            let budget = Budget {
                bytes: bytes / 4,
                time: (left / 4).max(Duration::from_millis(5)),
            };
            let part = Constraint::JsonSchema(part.to_string());
            compile(budget, &part).is_err_and(|found| found.is_like(&fault))
        });
    }
    Err(Refused {
        place,
        reason: fault.to_string(),
        exceeded,
    })
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Exceeded(Exceeded),
}

impl Fault {
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exceeded(_), Self::Exceeded(_)) => true,
            (one, other) => one == other,
        }
    }
}

fn compile(budget: Budget, constraint: &Constraint) -> Result<(), Fault> {
    let constraint = constraint.clone();
    let wait_max = budget.time * STARVED;
    let compiled = within_spent(budget, cpu_time, wait_max, move || -> Result<(), String> {
        let compiler = Compiler::new(Vocabulary::of_bytes())?;
        let mut matcher = compiler.compile(&constraint)?;
        // The first mask builds the lexer's first states.
        let mask = matcher.compute_mask();
        mask.map(|_| ()).map_err(|error| super::first_line(&error))
    });
    compiled.map_err(Fault::Exceeded)?.map_err(Fault::Refused)
}

/// The innermost subschema that `fails`, as keys and indices from the root.
fn innermost(schema: &Value, fails: &mut impl FnMut(&Value) -> bool) -> Vec<String> {
    let mut place = Vec::new();
    let mut at = schema;
    'deeper: loop {
        for (steps, part) in parts(at) {
            if fails(&alone(part, schema)) {
                place.extend(steps);
                at = part;
                continue 'deeper;
            }
        }
        return place;
    }
}

/// The subschemas right below, with the way to each.
fn parts(schema: &Value) -> Vec<(Vec<String>, &Value)> {
    let mut parts = Vec::new();
    let Value::Object(object) = schema else {
        return parts;
    };
    for (key, value) in object {
        let name = key.as_str();
        match value {
            Value::Object(below) if OBJECTS.contains(&name) => {
                let steps = |inner: &String| vec![key.clone(), inner.clone()];
                parts.extend(below.iter().map(|(inner, part)| (steps(inner), part)));
            }
            Value::Array(below) if ARRAYS.contains(&name) => {
                let steps = |at: usize| vec![key.clone(), at.to_string()];
                parts.extend(below.iter().enumerate().map(|(at, part)| (steps(at), part)));
            }
            Value::Object(_) if ONE.contains(&name) => parts.push((vec![key.clone()], value)),
            _ => {}
        }
    }
    parts
}

/// A subschema as a schema: with the definitions that it may refer to.
fn alone(part: &Value, root: &Value) -> Value {
    let mut part = part.clone();
    if let Value::Object(object) = &mut part {
        for key in ["$defs", "definitions"] {
            if let Some(definitions) = root.get(key)
                && !object.contains_key(key)
            {
                object.insert(key.to_owned(), definitions.clone());
            }
        }
    }
    part
}
