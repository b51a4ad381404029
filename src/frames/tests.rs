use std::io::Cursor;

use proptest::prelude::*;

use super::codec::*;
use super::*;

fn job_key() -> impl Strategy<Value = JobKey> {
    any::<u64>().prop_map(JobKey)
}

fn ids() -> impl Strategy<Value = Vec<Token>> {
    proptest::collection::vec(any::<Token>(), 0..40)
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        any::<String>().prop_map(Input::Text),
        (any::<String>(), any::<Option<String>>())
            .prop_map(|(messages, tools)| Input::Chat { messages, tools }),
    ]
}

fn finite() -> impl Strategy<Value = f32> {
    -1000.0_f32..1000.0
}

fn sampling() -> impl Strategy<Value = Sampling> {
    let shape = (finite(), any::<u32>(), finite(), finite());
    let penalties = (finite(), any::<u32>(), finite(), finite());
    let bias = prop_oneof![finite(), Just(f32::NEG_INFINITY)];
    let biases = proptest::collection::vec((any::<Token>(), bias), 0..5);
    (shape, penalties, any::<u64>(), biases).prop_map(
        |(
            (temperature, top_k, top_p, min_p),
            (repeat_penalty, repeat_last_n, frequency, presence),
            seed,
            logit_bias,
        )| Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            repeat_penalty,
            repeat_last_n,
            frequency_penalty: frequency,
            presence_penalty: presence,
            seed,
            logit_bias,
        },
    )
}

fn constraint() -> impl Strategy<Value = Constraint> {
    prop_oneof![
        any::<String>().prop_map(Constraint::JsonSchema),
        any::<String>().prop_map(Constraint::Lark),
        any::<(String, Vec<String>)>()
            .prop_map(|(lark, arguments)| Constraint::Calls { lark, arguments }),
    ]
}

fn leaves() -> impl Strategy<Value = Leaves> {
    prop_oneof![
        Just(Leaves::Usual),
        any::<u64>().prop_map(Leaves::Session),
        Just(Leaves::Pinned),
        Just(Leaves::Nothing),
    ]
}

fn job() -> impl Strategy<Value = Job> {
    let resume =
        (ids(), ids(), any::<u64>()).prop_map(|(prompt_ids, output_ids, text_bytes)| Resume {
            prompt_ids,
            output_ids,
            text_bytes,
        });
    let stop = proptest::collection::vec(any::<String>(), 0..4);
    let rest = (
        stop,
        any::<[u32; 2]>(),
        (any::<bool>(), proptest::option::of(constraint())),
        proptest::option::of(any::<u8>()),
        any::<u32>(),
        proptest::option::of(resume),
        proptest::option::of(
            (any::<String>(), any::<u32>()).prop_map(|(text, n_output)| Head { text, n_output }),
        ),
        (any::<(bool, bool)>(), any::<Vec<u32>>(), leaves()),
    );
    (job_key(), input(), sampling(), rest).prop_map(
        |(
            job,
            input,
            sampling,
            (
                stop,
                [max_tokens, min_tokens],
                (ignore_eos, constraint),
                logprobs,
                pace_ms,
                resume,
                head,
                class,
            ),
        )| Job {
            job,
            input,
            sampling,
            stop,
            max_tokens,
            min_tokens,
            ignore_eos,
            logprobs,
            constraint,
            pace_ms,
            resume,
            head,
            turns: class.1,
            leaves: class.2,
            urgent: class.0.0,
            yields: class.0.1,
        },
    )
}

fn kv_type() -> impl Strategy<Value = KvType> {
    prop_oneof![Just(KvType::F16), Just(KvType::Q8_0), Just(KvType::Q4_0)]
}

fn ask() -> impl Strategy<Value = PlanAsk> {
    (any::<[u32; 4]>(), kv_type(), kv_type()).prop_map(
        |([n_ctx, n_seq_max, n_batch, n_ubatch], kv_type_k, kv_type_v)| PlanAsk {
            n_ctx,
            n_seq_max,
            n_batch,
            n_ubatch,
            kv_type_k,
            kv_type_v,
            flash_attn: Switch::Auto,
        },
    )
}

fn plan() -> impl Strategy<Value = Plan> {
    let buffer = (any::<String>(), any::<bool>(), any::<[u64; 3]>()).prop_map(
        |(buffer, host, [weights_bytes, kv_bytes, compute_bytes])| BufferUse {
            buffer,
            host,
            weights_bytes,
            kv_bytes,
            compute_bytes,
        },
    );
    let buffers = proptest::collection::vec(buffer, 0..4);
    (ask(), buffers, any::<[u64; 2]>()).prop_map(|(ask, buffers, [mapped_bytes, process_bytes])| {
        Plan {
            ask,
            buffers,
            mapped_bytes,
            process_bytes,
        }
    })
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        job().prop_map(|job| Command::Submit(Box::new(job))),
        job_key().prop_map(Command::Cancel),
        job_key().prop_map(Command::Park),
        (job_key(), input()).prop_map(|(job, input)| Command::Tokenize { job, input }),
        any::<u64>().prop_map(Command::Ping),
        ask().prop_map(Command::Ask),
        any::<u64>().prop_map(Command::Probe),
        constraint().prop_map(Command::Compile),
        Just(Command::Drain),
        Just(Command::Trim),
        Just(Command::Grow),
        any::<u32>().prop_map(|limit_ms| Command::Save { limit_ms }),
        any::<u64>().prop_map(Command::Forget),
    ]
}

fn error() -> impl Strategy<Value = JobError> {
    prop_oneof![
        (any::<u32>(), any::<u32>()).prop_map(|(n_prompt, n_ctx_seq)| JobError::TooLong {
            n_prompt,
            n_ctx_seq
        }),
        any::<String>().prop_map(JobError::Template),
        any::<String>().prop_map(JobError::Decode),
        any::<String>().prop_map(JobError::Constraint),
    ]
}

fn sandbox() -> impl Strategy<Value = Sandbox> {
    let gaps = proptest::collection::vec(any::<String>(), 0..3);
    (any::<Option<u32>>(), any::<bool>(), any::<bool>(), gaps).prop_map(
        |(landlock_abi, seccomp, no_new_privs, gaps)| Sandbox {
            landlock_abi,
            seccomp,
            no_new_privs,
            gaps,
        },
    )
}

fn logprobs() -> impl Strategy<Value = Vec<Logprob>> {
    let token = || {
        (any::<Vec<u8>>(), -100.0_f32..0.0)
            .prop_map(|(bytes, logprob)| TokenLogprob { bytes, logprob })
    };
    let logprob = (token(), proptest::collection::vec(token(), 0..4))
        .prop_map(|(chosen, top)| Logprob { chosen, top });
    proptest::collection::vec(logprob, 0..4)
}

fn event() -> impl Strategy<Value = Event> {
    let piece =
        (job_key(), ids(), logprobs(), any::<String>()).prop_map(|(job, ids, logprobs, text)| {
            Piece {
                job,
                ids,
                logprobs,
                text,
            }
        });
    let end = prop_oneof![
        Just(Ok(Finish::Stop)),
        Just(Ok(Finish::Length)),
        Just(Ok(Finish::Cancelled)),
        error().prop_map(Err),
    ];
    let timings = (any::<u32>(), 0.0..1e9).prop_map(|(n, ms)| Timings {
        n_prompt: n,
        prefill_ms: ms,
        ..Timings::default()
    });
    let done = (job_key(), end, ids(), logprobs(), any::<String>(), timings).prop_map(
        |(job, end, ids, logprobs, text, timings)| Done {
            job,
            end,
            ids,
            logprobs,
            text,
            timings,
        },
    );
    let parked =
        (job_key(), ids(), logprobs(), any::<String>()).prop_map(|(job, ids, logprobs, text)| {
            Parked {
                job,
                ids,
                logprobs,
                text,
                timings: Timings::default(),
            }
        });
    prop_oneof![
        (0.0_f32..=1.0).prop_map(|fraction| Event::LoadProgress { fraction }),
        sandbox().prop_map(Event::Sandboxed),
        any::<String>().prop_map(|message| Event::LoadFailed { message }),
        (job_key(), ids(), any::<[u32; 2]>()).prop_map(
            |(job, prompt_ids, [n_cached, n_left_out])| Event::Started {
                job,
                prompt_ids,
                n_cached,
                n_left_out
            }
        ),
        (any::<u64>(), proptest::collection::vec(piece, 0..9))
            .prop_map(|(step, pieces)| Event::Step { step, pieces }),
        done.prop_map(|done| Event::Done(Box::new(done))),
        parked.prop_map(|parked| Event::Parked(Box::new(parked))),
        (job_key(), ids()).prop_map(|(job, ids)| Event::Tokenized { job, ids: Ok(ids) }),
        (job_key(), error(), any::<u32>()).prop_map(|(job, error, index)| Event::Embedded {
            job,
            outcome: Box::new(Err(TextError { index, error })),
        }),
        (
            job_key(),
            proptest::collection::vec(-1.0_f32..1.0, 0..9),
            any::<[u32; 3]>()
        )
            .prop_map(
                |(job, vectors, [n_dims, n_tokens, n_truncated])| Event::Embedded {
                    job,
                    outcome: Box::new(Ok(Embedded {
                        n_dims,
                        vectors,
                        n_tokens,
                        n_truncated,
                    })),
                }
            ),
        any::<u64>().prop_map(Event::Pong),
        any::<u64>().prop_map(|bytes| Event::Cached { bytes }),
        Just(Event::Saved),
        (any::<u32>(), any::<[u64; 3]>()).prop_map(
            |(n_states, [bytes, written_bytes, n_restored])| Event::OnDisk(OnDisk {
                n_states,
                bytes,
                written_bytes,
                n_restored,
            })
        ),
        plan().prop_map(|plan| Event::Planned(Ok(Box::new(plan)))),
        any::<String>().prop_map(|reason| Event::Planned(Err(reason))),
        any::<bool>().prop_map(Event::Probed),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(commands in proptest::collection::vec(command(), 0..6), events in proptest::collection::vec(event(), 0..6)) {
        let (mut down, mut up) = (Vec::new(), Vec::new());
        for command in &commands {
            write_frame(&mut down, command).unwrap();
        }
        for event in &events {
            write_frame(&mut up, event).unwrap();
        }
        let (mut down, mut up) = (Cursor::new(down), Cursor::new(up));
        for command in commands {
            prop_assert_eq!(read_frame(&mut down).unwrap(), Some(command));
        }
        for event in events {
            prop_assert_eq!(read_frame(&mut up).unwrap(), Some(event));
        }
        prop_assert_eq!(read_frame::<Command>(&mut down).unwrap(), None);
        prop_assert_eq!(read_frame::<Event>(&mut up).unwrap(), None);
    }

    /// Bytes of a hostile peer: an error or a value, never a panic, never more memory than bytes came.
    #[test]
    fn hostile_bytes_end_in_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode::<Event>(&bytes);
        let _ = decode::<Command>(&bytes);
        let mut stream = Cursor::new(&bytes);
        while let Ok(Some(_)) = read_frame::<Event>(&mut stream) {}
    }

    #[test]
    fn a_damaged_frame_is_never_read_as_longer_than_it_is(event in event(), at: prop::sample::Index, to: u8, cut: prop::sample::Index) {
        let mut frame = encode(&event).unwrap();
        let length = frame.len();
        let cut = cut.index(length);
        prop_assert!(cut == 0 || read_frame::<Event>(&mut Cursor::new(&frame[..cut])).is_err());
        frame[4 + at.index(length - 4)] = to;
        // A damaged frame may still be some event; one byte more is then one too many. (Where it was cut
        // short, inside a number, that byte may complete it.)
        if decode::<Event>(&frame[4..]).is_ok() {
            frame.push(0);
            prop_assert!(decode::<Event>(&frame[4..]).is_err(), "every byte must be used");
        }
    }
}

#[test]
fn a_length_beyond_the_bound_is_refused_before_anything_is_allocated() {
    let mut stream = Cursor::new(((FRAME_BYTES_MAX as u32) + 1).to_le_bytes());
    let error = read_frame::<Event>(&mut stream).unwrap_err();
    assert!(matches!(error, FrameError::TooLarge { found } if found == FRAME_BYTES_MAX + 1));
    let too_large = Event::LoadFailed {
        message: "x".repeat(FRAME_BYTES_MAX),
    };
    assert!(matches!(
        encode(&too_large),
        Err(FrameError::TooLarge { .. })
    ));
}

/// A short body may announce a long list; postcard must not believe it.
#[test]
fn an_announced_list_is_not_allocated_before_it_is_there() {
    // Event::Started { job: 1, prompt_ids: 2^40 ids … }
    let mut body = vec![5, 1];
    body.extend([0x80, 0x80, 0x80, 0x80, 0x80, 0x20]);
    assert!(decode::<Event>(&body).is_err());
}

#[test]
fn a_load_and_its_answer_pass_whole() {
    let spec = LoadSpec {
        name: "m".into(),
        path: "/models/m.gguf".into(),
        task: Task::Embed,
        n_ctx_auto_max: 8192,
        n_ctx: 4096,
        n_ctx_seq: 2048,
        n_seq_max: 8,
        n_batch: 512,
        n_ubatch: 512,
        step_ms: 400,
        step_tokens: 256,
        speculation: Speculation::Auto,
        draft_tokens: 4,
        n_threads: 0,
        n_threads_batch: 2,
        n_gpu_layers: -1,
        backend: Backend::Auto,
        kv_type_k: KvType::Q8_0,
        kv_type_v: KvType::F16,
        flash_attn: Switch::On,
        mmap: Switch::Auto,
        cuda_graphs: Switch::Off,
        chat_template: Some("{{ x }}".into()),
        canary_tokens: 0,
        prefix_cache_bytes: 1 << 27,
        saved_states: Some(SavedStates {
            bytes_max: 1 << 28,
            reserve_bytes: 1 << 30,
            age_seconds_max: 86_400,
            quiet_ms: 10_000,
        }),
        draft: None,
        sandbox: Some(SandboxSpec {
            read: vec!["/srv/cuda".into()],
            write: Some("/var/cache/cuda".into()),
        }),
    };
    let command = Command::Load(Box::new(spec));
    assert_eq!(
        decode::<Command>(&encode(&command).unwrap()[4..]).unwrap(),
        command
    );
    let report = Event::Bench(BenchReport {
        spec: BenchSpec {
            n_prompt: 512,
            n_gen: 128,
            n_parallel: 8,
        },
        prompt_ms: 1.5,
        gen_ms: 2.5,
    });
    assert_eq!(
        decode::<Event>(&encode(&report).unwrap()[4..]).unwrap(),
        report
    );
}
