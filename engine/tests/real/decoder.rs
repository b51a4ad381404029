//! Facts of the pinned llama.cpp that the engine builds on. When one of these fails after an upgrade,
//! the code that rests on it must change.

use orinoco::frames::{Backend, KvType, LoadSpec, Switch, Token};
use orinoco_engine::llama::context::{Context, ContextSpec};
use orinoco_engine::llama::model::Model;
use orinoco_engine::model::{DecodeError, Decoder, Row};

use super::common::{GEMMA, SMOLLM, real_spec};
use super::{NEVER_CLOSED, backend, with_decoder};

/// Decodes `tokens` onto `seq` from position `from`, in batches of at most 512; the row of the logits.
fn feed(decoder: &mut dyn Decoder, seq: u32, tokens: &[Token], from: usize) -> usize {
    let mut last = 0;
    for (i, chunk) in tokens.chunks(512).enumerate() {
        let rows = Vec::from_iter(chunk.iter().enumerate().map(|(j, token)| Row {
            seq,
            token: *token,
            pos: (from + i * 512 + j) as u32,
            wants_logits: i * 512 + j + 1 == tokens.len(),
        }));
        decoder.decode(&rows).unwrap();
        last = rows.len() - 1;
    }
    last
}

fn argmax(logits: &[f32]) -> Token {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|l| *l == best).unwrap() as Token
}

fn greedy(decoder: &mut dyn Decoder, seq: u32, prompt: &[Token], n: usize) -> Vec<Token> {
    let mut row = feed(decoder, seq, prompt, 0);
    let mut made = Vec::new();
    for i in 0..n {
        let token = argmax(decoder.logits(row));
        made.push(token);
        row = feed(decoder, seq, &[token], prompt.len() + i);
    }
    made
}

fn story(decoder: &dyn Decoder, n: usize) -> Vec<Token> {
    let text =
        "The river carried the boats past the old mill and the children waved. ".repeat(n / 8);
    let mut ids = decoder.tokenize(&text, true, false).unwrap();
    ids.truncate(n);
    assert_eq!(ids.len(), n);
    ids
}

/// Calls `play` with a context made from `change`d parameters.
pub(super) fn with_context(
    name: &str,
    change: impl FnOnce(&mut ContextSpec),
    play: impl FnOnce(&mut Context<'_>),
) {
    let (_guard, _loader) = backend();
    let spec = real_spec(name);
    let model = Model::load(&spec, &mut |_| true).unwrap();
    let mut of = ContextSpec::of(&spec, model.n_ctx_train(), false).unwrap();
    change(&mut of);
    let mut context = Context::new(&model, &of, &NEVER_CLOSED).unwrap();
    play(&mut context);
}

#[test]
fn each_symbol_that_is_used_answers() {
    with_decoder(&real_spec(SMOLLM), |decoder, loaded| {
        assert_eq!(loaded.arch, "llama");
        assert!(loaded.description.contains("Q4_1"));
        assert_eq!(loaded.n_params, 134_515_008);
        assert_eq!((loaded.n_vocab, loaded.n_ctx_train), (49_152, 8192));
        assert_eq!((loaded.n_layers, loaded.n_layers_gpu), (31, 0));
        assert_eq!(
            loaded.n_graph_splits, 1,
            "read from the log line of this version"
        );
        assert!(loaded.size_bytes > 90_000_000);
        let weights: u64 = loaded.buffers.iter().map(|b| b.weights_bytes).sum();
        assert!(weights >= loaded.size_bytes);
        // 2048 cells, 30 layers, 3 heads of 64, keys and values of two bytes.
        let kv: u64 = loaded.buffers.iter().map(|b| b.kv_bytes).sum();
        assert_eq!(kv, 2048 * 30 * 3 * 64 * 2 * 2);
        let template = decoder.template();
        assert!(template.source.unwrap().contains("<|im_start|>"));
        assert_eq!(
            (template.bos.as_str(), template.eos.as_str()),
            ("<|im_start|>", "<|im_end|>")
        );
        let ids = decoder.tokenize("Hello<|im_end|>", false, true).unwrap();
        let plain = decoder.tokenize("Hello<|im_end|>", false, false).unwrap();
        assert_eq!(ids.len(), 2);
        assert!(plain.len() > 2);
        assert!(decoder.is_eog(ids[1]) && !decoder.is_eog(ids[0]));
        let mut bytes = Vec::new();
        decoder.piece(ids[0], &mut bytes);
        decoder.piece(ids[1], &mut bytes);
        assert_eq!(bytes, b"Hello", "control tokens stand for no text");
        assert_eq!(decoder.seq_pos_max(0), None);
        let row = feed(decoder, 0, &plain, 0);
        decoder.synchronize();
        assert!(decoder.logits(row).iter().all(|l| l.is_finite()));
        assert_eq!(
            (decoder.seq_pos_min(0), decoder.seq_pos_max(0)),
            (Some(0), Some(plain.len() as u32 - 1))
        );
        decoder.seq_cp(0, 1, 2);
        assert_eq!(decoder.seq_pos_max(1), Some(1));
        assert!(decoder.seq_rm(0, 1));
        assert_eq!(decoder.seq_pos_max(0), Some(0));
    });
}

#[test]
fn every_byte_of_a_text_survives_tokenizing() {
    for name in [SMOLLM, GEMMA] {
        with_decoder(&real_spec(name), |decoder, _| {
            for text in [
                "",
                "a",
                "  two  spaces\n\ttab",
                "é€𝄞 日本語 🦀",
                &"x".repeat(5000),
            ] {
                let ids = decoder.tokenize(text, false, false).unwrap();
                let mut bytes = Vec::new();
                ids.iter().for_each(|id| decoder.piece(*id, &mut bytes));
                assert_eq!(
                    String::from_utf8(bytes).unwrap().trim_start(),
                    text.trim_start(),
                    "{name}"
                );
            }
            assert!(!decoder.is_eog(-1));
            decoder.piece(i32::MAX, &mut Vec::new());
        });
    }
}

#[test]
fn a_saved_sequence_comes_back_and_goes_on_with_the_same_text() {
    for name in [SMOLLM, GEMMA] {
        with_decoder(&real_spec(name), |decoder, _| {
            let prompt = story(decoder, 120);
            let wanted = greedy(decoder, 0, &prompt, 16);
            decoder.seq_rm(0, 0);
            feed(decoder, 0, &prompt, 0);
            let state = decoder.state(0).expect("it can be copied");
            assert_eq!(state.len(), decoder.state_bytes(0));
            decoder.seq_rm(0, 0);
            assert_eq!(
                decoder.state_bytes(3),
                decoder.state_bytes(0),
                "{name}: both are empty"
            );
            let other = story(decoder, 200);
            feed(decoder, 0, &other[100..], 0);
            assert!(decoder.restore(2, &state));
            assert_eq!(decoder.seq_pos_max(2), Some(119));
            assert_eq!(decoder.seq_pos_min(2), Some(0));
            assert!(decoder.seq_rm(2, 119));
            let mut row = feed(decoder, 2, &prompt[119..], 119);
            let mut made = Vec::new();
            for i in 0..16 {
                made.push(argmax(decoder.logits(row)));
                row = feed(decoder, 2, &made[i..], 120 + i);
            }
            // The last prompt token was decoded alone here and in a batch there, which may round
            // differently; the first tokens still agree.
            assert_eq!(made[..4], wanted[..4], "{name}");
        });
    }
}

/// llama.cpp takes a rollback to where the window has gone without an error, and answers wrongly; that
/// `seq_pos_min` tells is what the loop's check rests on.
#[test]
fn a_rollback_behind_the_window_is_seen_in_seq_pos_min() {
    with_context(
        GEMMA,
        |of| {
            of.swa_full = false;
            (of.n_seq_max, of.n_ubatch) = (1, 128);
        },
        |context| {
            let n_swa = context.limits().n_swa;
            assert!(n_swa > 0, "Gemma 3 has sliding windows");
            let long = story(context, 1500);
            feed(context, 0, &long, 0);
            let min = context.seq_pos_min(0).unwrap();
            assert!(min > 0, "positions were let go");
            // The loop's rule: min + n_swa < n for a prefix of n tokens.
            assert!(
                min + n_swa >= 700,
                "a prefix of 700 tokens must not be reused"
            );
            assert!(context.seq_rm(0, 700), "llama.cpp itself does not refuse");
        },
    );
    with_context(
        GEMMA,
        |of| of.swa_full = true,
        |context| {
            let long = story(context, 1500);
            feed(context, 0, &long, 0);
            assert_eq!(context.seq_pos_min(0), Some(0));
        },
    );
}

#[test]
fn a_full_pool_is_told_and_changes_nothing() {
    with_context(
        SMOLLM,
        |of| of.n_ctx = 512,
        |context| {
            let long = story(context, 500);
            feed(context, 0, &long, 0);
            let rows = Vec::from_iter((0..40).map(|pos| Row {
                seq: 1,
                token: 5,
                pos,
                wants_logits: pos == 39,
            }));
            assert_eq!(context.decode(&rows), Err(DecodeError::NoCells));
            assert_eq!(context.seq_pos_max(1), None);
            assert_eq!(context.seq_pos_max(0), Some(499));
            context.seq_rm(0, 300);
            assert_eq!(context.decode(&rows), Ok(()));
        },
    );
}

#[test]
fn a_gap_in_the_positions_is_refused_by_llama_cpp() {
    with_decoder(&real_spec(SMOLLM), |decoder, _| {
        feed(decoder, 0, &[1, 2, 3], 0);
        let row = Row {
            seq: 0,
            token: 4,
            pos: 9,
            wants_logits: true,
        };
        assert_eq!(decoder.decode(&[row]), Err(DecodeError::Failed(-1)));
    });
}

#[test]
fn compute_buffers_hold_logits_of_the_slots_only() {
    with_decoder(&real_spec(GEMMA), |_, loaded| {
        let compute: u64 = loaded.buffers.iter().map(|b| b.compute_bytes).sum();
        // With llama.cpp's default for n_outputs_max it is over 500 MiB for this vocabulary.
        assert!(compute < 64 << 20, "{compute} bytes");
    });
}

#[test]
fn a_quantized_v_cache_without_flash_attention_is_refused_before_llama_cpp() {
    let spec = LoadSpec {
        kv_type_k: KvType::Q8_0,
        kv_type_v: KvType::Q8_0,
        flash_attn: Switch::Off,
        ..real_spec(SMOLLM)
    };
    let error = ContextSpec::of(&spec, 8192, false).unwrap_err();
    assert!(error.0.contains("needs flash attention"), "{error}");
    let auto = LoadSpec {
        flash_attn: Switch::Auto,
        ..spec
    };
    assert_eq!(
        ContextSpec::of(&auto, 8192, false).unwrap().flash_attn,
        Switch::On
    );
    with_decoder(&auto, |decoder, loaded| {
        let kv: u64 = loaded.buffers.iter().map(|b| b.kv_bytes).sum();
        assert!(kv < 2048 * 30 * 3 * 64 * 2 * 2 * 6 / 10);
        let prompt = story(decoder, 40);
        assert_eq!(greedy(decoder, 0, &prompt, 4).len(), 4);
    });
}

#[test]
fn settings_that_cannot_work_are_refused_with_the_bounds() {
    let base = real_spec(SMOLLM);
    for (spec, wanted) in [
        (
            LoadSpec {
                n_seq_max: 0,
                ..base.clone()
            },
            "n_seq_max is 0",
        ),
        (
            LoadSpec {
                n_seq_max: 500,
                ..base.clone()
            },
            "n_seq_max is 500",
        ),
        (
            LoadSpec {
                n_ubatch: 0,
                ..base.clone()
            },
            "n_ubatch 0",
        ),
        (
            LoadSpec {
                n_batch: 8,
                n_ubatch: 16,
                ..base.clone()
            },
            "n_batch is 8",
        ),
        (
            LoadSpec {
                n_batch: 2,
                n_ubatch: 2,
                ..base.clone()
            },
            "n_batch is 2",
        ),
    ] {
        let error = ContextSpec::of(&spec, 8192, false).unwrap_err();
        assert!(error.0.contains(wanted), "{error}");
    }
}

#[test]
fn a_load_stops_when_progress_says_so_and_damage_is_explained() {
    let (_guard, mut loader) = backend();
    let spec = real_spec(SMOLLM);
    let mut reports = 0;
    let Err(error) = Model::load(&spec, &mut |_| {
        reports += 1;
        false
    }) else {
        panic!("the load was to stop")
    };
    assert!(error.0.contains("went away"), "{error}");
    assert_eq!(reports, 1);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.gguf");
    let whole = std::fs::read(&spec.path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let cut = LoadSpec {
        path,
        backend: Backend::Cpu,
        ..spec
    };
    use orinoco_engine::model::Loader;
    let error = loader
        .with_model(&cut, &mut |_| true, &mut |_, _, _| panic!("half a model"))
        .unwrap_err();
    assert!(
        error.0.contains("cut.gguf") && error.0.contains("tensor"),
        "{error}"
    );
}

/// The bytes of a saved state come from a file. Its digest says that a worker wrote them; one that was taken over is a
/// worker too.
#[test]
fn a_state_that_a_stranger_wrote_is_refused_or_taken_and_nothing_dies() {
    for name in [SMOLLM, GEMMA] {
        with_decoder(&real_spec(name), |decoder, _| {
            let prompt = story(decoder, 40);
            let wanted = greedy(decoder, 0, &prompt, 4);
            decoder.seq_rm(0, 0);
            feed(decoder, 0, &prompt, 0);
            let state = decoder.state(0).unwrap();
            let mut taken = 0;
            // The head says how many cells there are, of which layers and types; then come their numbers.
            let places = (0..200).chain((200..state.len()).step_by(state.len() / 40));
            for (n, at) in places.enumerate() {
                for flip in [0x01, 0x80, 0xff] {
                    let mut hostile = state.clone();
                    hostile[at] ^= flip;
                    if n % 7 == 0 {
                        hostile.truncate(at);
                    }
                    taken += usize::from(decoder.restore(1, &hostile));
                    decoder.seq_rm(1, 0);
                }
            }
            assert!(!decoder.restore(1, &[]) && !decoder.restore(1, &[0xff; 4096]));
            decoder.seq_rm(1, 0);
            assert!(taken > 0, "numbers are numbers");
            // What others have is as it was.
            decoder.seq_rm(0, 0);
            assert_eq!(greedy(decoder, 0, &prompt, 4), wanted);
        });
    }
}
