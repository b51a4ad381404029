//! Both binaries as processes, over the inherited socket.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests; a skipped test says so"
)]

mod common;
#[path = "worker/sandbox.rs"]
mod sandbox;
#[path = "worker/states.rs"]
mod states;

use std::os::unix::process::ExitStatusExt;

use common::{GEMMA, SMOLLM, Worker, chat, job, real_spec, resumed};
use orinoco::frames::{Command, Event, Finish, JobKey, LoadSpec, Outline, PlanAsk};
use orinoco_engine::scripted;

const SIGABRT: i32 = 6;

/// A model file for the scripted worker, with this text.
fn file(text: &str) -> (tempfile::TempDir, LoadSpec) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, text).unwrap();
    let spec = LoadSpec {
        path,
        ..scripted::load_spec()
    };
    (dir, spec)
}

#[test]
fn a_scripted_job_goes_from_begin_to_end() {
    let (_dir, spec) = file("");
    let mut worker = Worker::scripted(&spec);
    assert_eq!(worker.loaded().chat_template, "gguf");
    let answer = worker.ask(chat(1, "hello there", 14));
    assert_eq!(answer.text, "hello there he");
    assert_eq!(answer.finish(), Finish::Length);
    worker.send(&Command::Drain);
    assert_eq!(worker.next(), None);
    assert!(worker.wait().success());
}

#[test]
fn a_worker_that_crashed_is_resumed_by_another_without_a_gap() {
    let (_dir, spec) = file("");
    let mut first = Worker::scripted(&spec);
    first.loaded();
    let asked = chat(1, "!count !step 20 !crash at 40", 100);
    first.send(&Command::Submit(Box::new(asked.clone())));
    let (mut prompt, mut ids, mut text) = (Vec::new(), Vec::new(), String::new());
    while let Some(event) = first.next() {
        match event {
            Event::Started { prompt_ids, .. } => prompt = prompt_ids,
            Event::Step { pieces, .. } => {
                ids.extend(&pieces[0].ids);
                text.push_str(&pieces[0].text);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(first.wait().signal(), Some(SIGABRT));
    assert!(!ids.is_empty() && ids.len() < 40, "{} ids", ids.len());
    let mut second = Worker::scripted(&spec);
    second.loaded();
    let rest = second.ask(resumed(asked, &prompt, &ids, text.len()));
    let wanted = Vec::from_iter((0..50).map(|n| n.to_string())).join(" ");
    assert_eq!(text + &rest.text, wanted[..100]);
    assert_eq!(rest.done.unwrap().timings.n_output, 100);
}

#[test]
fn closing_the_socket_ends_the_worker() {
    let (_dir, spec) = file("");
    let mut worker = Worker::scripted(&spec);
    worker.loaded();
    worker.send(&Command::Submit(Box::new(chat(1, "!step 5", 1000))));
    worker.next();
    worker.socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(worker.wait().success());
}

#[test]
fn a_load_that_fails_says_why_and_exits_0() {
    let (_dir, spec) = file("!load-fail the tensors are upside down");
    let mut worker = Worker::scripted(&spec);
    let Some(Event::LoadFailed { message }) = worker.next() else {
        panic!("LoadFailed was expected")
    };
    assert!(message.contains("upside down"), "{message}");
    assert_eq!(worker.next(), None);
    assert!(worker.wait().success());
}

#[test]
fn a_slow_load_reports_progress_and_stops_when_the_socket_closes() {
    let (_dir, spec) = file("!load-ms 60000");
    let mut worker = Worker::scripted(&spec);
    assert!(matches!(worker.next(), Some(Event::LoadProgress { .. })));
    assert!(matches!(worker.next(), Some(Event::LoadProgress { .. })));
    worker.socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(worker.wait().success());
}

/// A worker that plans loads of `spec`, and what it says of the model.
fn planner(spec: &LoadSpec) -> (Worker, Box<Outline>) {
    let mut worker = Worker::spawn(env!("CARGO_BIN_EXE_orinoco-engine"));
    worker.first(&Command::Plan(Box::new(spec.clone())));
    let Some(Event::Outline(outline)) = worker.next() else {
        panic!("Outline was expected")
    };
    (worker, outline)
}

#[test]
fn a_worker_that_plans_answers_until_its_socket_closes() {
    let spec = real_spec(SMOLLM);
    let (mut worker, outline) = planner(&spec);
    assert!(outline.description.contains("Q4_1"));
    let mut kv = Vec::new();
    for n_ctx in [1024, 8192] {
        let ask = PlanAsk {
            n_ctx,
            ..PlanAsk::of(&spec)
        };
        worker.send(&Command::Ask(ask));
        let Some(Event::Planned(Ok(plan))) = worker.next() else {
            panic!("a plan was expected")
        };
        assert_eq!(plan.ask.n_ctx, n_ctx);
        kv.push(plan.buffers.iter().map(|b| b.kv_bytes).sum::<u64>());
    }
    assert_eq!(kv[1], 8 * kv[0]);
    worker.send(&Command::Ask(PlanAsk {
        n_seq_max: 0,
        ..PlanAsk::of(&spec)
    }));
    let Some(Event::Planned(Err(reason))) = worker.next() else {
        panic!("a refusal was expected")
    };
    assert!(reason.contains("n_seq_max is 0"), "{reason}");
    // A job has no place here and ends nothing.
    worker.send(&Command::Submit(Box::new(job(1, "hello", 4))));
    worker.send(&Command::Probe(1 << 20));
    assert_eq!(worker.next(), Some(Event::Probed(true)));
    worker.socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(worker.wait().success());
}

/// In a process of its own, as the number is the whole process's.
#[test]
fn a_plans_process_holds_vocabulary_and_graphs_and_no_weights() {
    let spec = real_spec(GEMMA);
    let (mut worker, outline) = planner(&spec);
    worker.send(&Command::Ask(PlanAsk::of(&spec)));
    let Some(Event::Planned(Ok(plan))) = worker.next() else {
        panic!("a plan was expected")
    };
    let process_bytes = plan.process_bytes;
    assert!(process_bytes > 10 << 20, "{process_bytes}");
    assert!(
        process_bytes < outline.size_bytes / 2,
        "{process_bytes} of a model of {}",
        outline.size_bytes
    );
}

#[test]
fn a_plan_of_a_file_that_is_no_model_says_why() {
    let (_dir, spec) = file("not a model at all, but long enough for a header");
    let mut worker = Worker::spawn(env!("CARGO_BIN_EXE_orinoco-engine"));
    worker.first(&Command::Plan(Box::new(spec)));
    let Some(Event::LoadFailed { message }) = worker.next() else {
        panic!("LoadFailed was expected")
    };
    assert!(message.contains("GGUF"), "{message}");
    assert!(worker.wait().success());
}

#[test]
fn a_real_model_answers_over_the_socket() {
    for (name, family) in [(SMOLLM, "gguf"), (GEMMA, "gemma")] {
        let (mut worker, loaded) = Worker::real(&real_spec(name));
        assert_eq!(loaded.chat_template, family, "{name}");
        assert!(loaded.n_vocab > 40_000 && loaded.n_layers > 10 && loaded.n_graph_splits >= 1);
        assert!(loaded.buffers.iter().any(|b| b.weights_bytes > 1 << 20));
        assert!(loaded.buffers.iter().any(|b| b.kv_bytes > 1 << 20));
        let answer = worker.ask(chat(1, "What is 2+2?", 24));
        assert!(
            answer.text.contains('4') || name == GEMMA,
            "{}",
            answer.text
        );
        assert!(!answer.ids.is_empty());
        worker.send(&Command::Ping(3));
        assert_eq!(worker.next(), Some(Event::Pong(3)));
        worker.send(&Command::Tokenize {
            job: JobKey(9),
            input: job(9, "hello", 0).input,
        });
        let Some(Event::Tokenized { ids, .. }) = worker.next() else {
            panic!()
        };
        assert!(!ids.unwrap().is_empty());
    }
}

#[test]
fn a_file_that_is_no_model_is_a_failed_load() {
    let (_dir, spec) = file("this is not a model, whatever its name says");
    let mut worker = Worker::spawn(env!("CARGO_BIN_EXE_orinoco-engine"));
    worker.load(&spec);
    let Some(Event::LoadFailed { message }) = worker.next() else {
        panic!("LoadFailed was expected")
    };
    assert!(message.contains("begins with \"this\""), "{message}");
    assert!(worker.wait().success());
}
