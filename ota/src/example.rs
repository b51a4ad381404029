//! A whole repository in a second: keys made on the spot, two tiny models. For tests and for trying things out.

use std::path::Path;

use anyhow::Result;
use jiff::Timestamp as Time;
use orinoco::ota::pieces::PIECE_BYTES_MIN;
use orinoco::ota::{LineName, ModelId};

use crate::disk;
use crate::intake::{Intake, add};
use crate::keys;
use crate::repository::Repository;
use crate::root::{Ceremony, init};
use crate::sign::{Expiry, sign};

/// Makes `dir/repo` and `dir/keys`: line `tiny` with releases 1 and 2 of a few kilobytes, of which no engine can
/// make text, with pieces of 1 KiB.
///
/// # Errors
/// Something is there already, or cannot be written.
pub fn make(dir: &Path, now: Time) -> Result<Repository> {
    let keys_dir = dir.join("keys");
    let ceremony = Ceremony {
        now,
        ..Ceremony::default()
    };
    let repository = init(&dir.join("repo"), &keys_dir, ceremony)?;
    for n in 1..=2_u8 {
        let path = dir.join(format!("tiny-{n}.gguf"));
        disk::write_whole(&path, &tiny_gguf(n), 0o644)?;
        let id = ModelId::new(&format!("tiny-{n}"))?;
        let mut intake = Intake::new(&path, id, LineName::new("tiny")?);
        intake.licence = Some("CC0-1.0".into());
        intake.piece_bytes = PIECE_BYTES_MIN;
        intake.golden = vec![("Which letter comes after a?".into(), "b".into())];
        add(&repository, &intake)?;
    }
    let keys = keys::in_folders(&[keys_dir])?;
    sign(&repository, &keys, now, Expiry::default())?;
    Ok(repository)
}

/// A file that passes the preflight: three tokens, one tensor of 8 KiB filled with `fill`.
pub fn tiny_gguf(fill: u8) -> Vec<u8> {
    const U32: u32 = 4;
    const STRING: u32 = 8;
    const ARRAY: u32 = 9;
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let number = |n: u32| n.to_le_bytes().to_vec();
    let tokens: Vec<u8> = ["a", "b", "c"].into_iter().flat_map(text).collect();
    let tokens = [&number(STRING), &3_u64.to_le_bytes()[..], &tokens].concat();
    let keys = [
        ("general.architecture", STRING, text("llama")),
        ("general.name", STRING, text(&format!("Tiny {fill}"))),
        ("llama.context_length", U32, number(2048)),
        ("llama.block_count", U32, number(1)),
        ("tokenizer.ggml.model", STRING, text("llama")),
        ("tokenizer.ggml.tokens", ARRAY, tokens),
    ];
    let mut raw = b"GGUF".to_vec();
    raw.extend(number(3));
    raw.extend(1_u64.to_le_bytes());
    raw.extend((keys.len() as u64).to_le_bytes());
    for (key, kind, value) in keys {
        raw.extend(text(key));
        raw.extend(number(kind));
        raw.extend(value);
    }
    raw.extend(text("token_embd.weight"));
    raw.extend(number(1));
    raw.extend(2048_u64.to_le_bytes());
    raw.extend(number(0)); // F32
    raw.extend(0_u64.to_le_bytes());
    raw.resize(raw.len().next_multiple_of(32), 0);
    raw.resize(raw.len() + 4 * 2048, fill);
    raw
}
