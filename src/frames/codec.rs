//! Length-prefixed postcard: four bytes little-endian, then that many bytes.
//!
//! The other end is a process that may have been taken over by a hostile model, so the length is
//! checked before anything is allocated, and what cannot be decoded is an error that ends the link.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// Largest frame, in bytes. A 1 MiB prompt with its ids (5 bytes at most each) stays far below it.
pub const FRAME_BYTES_MAX: usize = 32 << 20;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The socket failed or was closed inside a frame.
    #[error("socketpair: {0}")]
    Io(#[from] io::Error),
    /// The announced length is out of bounds.
    #[error("frame of {found} bytes, at most {FRAME_BYTES_MAX} are allowed")]
    TooLarge {
        /// Announced length.
        found: usize,
    },
    /// The bytes are no value of the expected type.
    #[error("frame of {length} bytes does not decode: {reason}")]
    Malformed {
        /// Length of the frame.
        length: usize,
        /// postcard's reason.
        reason: postcard::Error,
    },
    /// The value cannot be encoded.
    #[error("frame does not encode: {0}")]
    Encode(postcard::Error),
}

/// One frame's bytes, prefix included.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let body = postcard::to_extend(value, vec![0; 4]).map_err(FrameError::Encode)?;
    let length = body.len() - 4;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge { found: length });
    }
    let mut frame = body;
    frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(frame)
}

/// Length of the frame body announced by a prefix, checked.
pub fn body_length(prefix: [u8; 4]) -> Result<usize, FrameError> {
    let found = u32::from_le_bytes(prefix) as usize;
    if found > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge { found });
    }
    Ok(found)
}

/// A value from a frame's body; every byte must be used.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    let malformed = |reason| FrameError::Malformed {
        length: body.len(),
        reason,
    };
    let (value, rest) = postcard::take_from_bytes(body).map_err(malformed)?;
    if !rest.is_empty() {
        return Err(malformed(postcard::Error::SerdeDeCustom));
    }
    Ok(value)
}

/// Writes one frame; blocks.
pub fn write_frame<T: Serialize>(to: &mut impl Write, value: &T) -> Result<(), FrameError> {
    to.write_all(&encode(value)?)?;
    Ok(())
}

/// Reads one frame; blocks. `None` is a clean end: the peer closed between two frames.
pub fn read_frame<T: DeserializeOwned>(from: &mut impl Read) -> Result<Option<T>, FrameError> {
    let mut prefix = [0; 4];
    match from.read_exact(&mut prefix[..1]) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    from.read_exact(&mut prefix[1..])?;
    let mut body = vec![0; body_length(prefix)?];
    from.read_exact(&mut body)?;
    decode(&body).map(Some)
}
