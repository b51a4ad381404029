//! Judges answers with the crate jsonschema: a line `{"schema": …, "text": …}` each on standard input.

use std::io::BufRead as _;
use std::process::ExitCode;

use serde_json::Value;

fn main() -> ExitCode {
    let (mut good, mut bad) = (0, 0);
    for line in std::io::stdin().lock().lines() {
        let line: Value = serde_json::from_str(&line.expect("lines")).expect("JSON");
        let text = line["text"].as_str().expect("a text");
        let validator = jsonschema::options()
            .should_validate_formats(true)
            .build(&line["schema"])
            .expect("a schema");
        let is_right = serde_json::from_str::<Value>(text)
            .is_ok_and(|value| validator.is_valid(&value));
        if is_right {
            good += 1;
        } else {
            bad += 1;
            eprintln!("does not validate: {text}\n  under {}", line["schema"]);
        }
    }
    println!("{good} answers validate, {bad} do not");
    match (good, bad) {
        (1.., 0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
