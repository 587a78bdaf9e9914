//! Frames: a length, then one [postcard](https://postcard.jamesmunns.com/wire-format) value.
//!
//! ```text
//! u32 little endian: length of the body, at most MAX_FRAME    body: postcard
//! ```
//!
//! The length is checked before anything is allocated, so a hostile peer can make its reader hold one frame and
//! no more.

use serde::{Serialize, de::DeserializeOwned};

/// The largest body of a frame, in bytes. Larger things (files, long outputs) travel in pieces.
pub const MAX_FRAME: usize = 4 * 1024 * 1024;

/// The length of a frame's header, in bytes.
pub const HEADER: usize = 4;

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The header promises more than [`MAX_FRAME`] bytes.
    #[error("a frame of {length} bytes is longer than the limit of {MAX_FRAME}")]
    TooLong {
        /// The promised length, in bytes.
        length: usize,
    },
    /// The body is not one value of the expected type, or has bytes after it.
    #[error("a frame's body is malformed")]
    Malformed,
}

/// Encodes `message` as one frame, header included.
///
/// # Errors
/// [`FrameError::TooLong`] when the body would be over [`MAX_FRAME`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut out = postcard::to_extend(message, vec![0_u8; HEADER]).map_err(|_| FrameError::Malformed)?;
    let length = out.len() - HEADER;
    let header = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME).ok_or(FrameError::TooLong { length })?;
    out[..HEADER].copy_from_slice(&header.to_le_bytes());
    Ok(out)
}

/// Reads a frame's header: the length of the body that follows, in bytes.
///
/// # Errors
/// [`FrameError::TooLong`] when it is over [`MAX_FRAME`].
pub fn body_length(header: [u8; HEADER]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(header) as usize;
    if length > MAX_FRAME { Err(FrameError::TooLong { length }) } else { Ok(length) }
}

/// Decodes the body of a frame.
///
/// # Errors
/// [`FrameError::Malformed`] when it is not exactly one `T`.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(FrameError::Malformed),
    }
}

/// Takes one whole frame from the front of `buffer`, when it is all there: the message and the bytes it used.
///
/// # Errors
/// As [`body_length`] and [`decode`].
pub fn take<T: DeserializeOwned>(buffer: &[u8]) -> Result<Option<(T, usize)>, FrameError> {
    let Some((header, rest)) = buffer.split_first_chunk::<HEADER>() else { return Ok(None) };
    let length = body_length(*header)?;
    match rest.get(..length) {
        Some(body) => Ok(Some((decode(body)?, HEADER + length))),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_the_way_there_and_back() {
        let bytes = encode(&("hello", 7_u32)).unwrap();
        let (message, used): ((String, u32), usize) = take(&bytes).unwrap().unwrap();
        assert_eq!((message, used), (("hello".to_owned(), 7), bytes.len()));
    }

    #[test]
    fn half_a_frame_is_waited_for() {
        let bytes = encode(&"hello").unwrap();
        for end in 0..bytes.len() {
            assert!(take::<String>(&bytes[..end]).unwrap().is_none(), "{end} bytes are not a frame");
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_body_is_read() {
        let header = u32::try_from(MAX_FRAME + 1).unwrap().to_le_bytes();
        assert!(matches!(take::<String>(&header), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn bytes_after_the_value_are_refused() {
        let mut bytes = encode(&7_u8).unwrap();
        bytes.push(0);
        bytes[0] += 1;
        assert!(matches!(take::<u8>(&bytes), Err(FrameError::Malformed)));
    }
}
