//! What a worker that was taken over may write into the socketpair, and what a supervisor may.

use std::io::Cursor;

use orinoco::frames::codec::{decode, encode, read_frame};
use orinoco::frames::{Command, Event};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads the bytes as one frame's body and as a stream of frames, both ways.
pub fn check(data: &[u8]) {
    one::<Event>(data);
    one::<Command>(data);
    stream::<Event>(data);
    stream::<Command>(data);
}

/// What was read can be written, and is then read as the same. (Bytes are compared, as NaN differs from
/// itself; numbers have longer spellings than ours, so the first bytes may differ.)
fn one<T: Serialize + DeserializeOwned>(body: &[u8]) {
    let Ok(value) = decode::<T>(body) else {
        return;
    };
    let frame = encode(&value).expect("it was decoded from less");
    let again: T = decode(&frame[4..]).expect("we wrote it");
    assert_eq!(encode(&again).expect("as before"), frame);
}

fn stream<T: DeserializeOwned>(data: &[u8]) {
    let mut stream = Cursor::new(data);
    while let Ok(Some(_)) = read_frame::<T>(&mut stream) {}
}
