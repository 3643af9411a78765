//! The bytes of a body, as they arrive.
//!
//! A connection hands out each piece of a body as a view of its whole read buffer of some kilobytes. A client that sends a
//! body byte by byte would fill memory with such buffers, so pieces are copied.
//!
//! Invariant: what is held while a body arrives is at most twice what has arrived, and [`AT_ONCE`].

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use futures_util::StreamExt;

use crate::error::ApiError;

/// Most bytes for which there is room before they have arrived.
const AT_ONCE: usize = 1 << 20;

/// Reads a body of at most `limit` bytes; `announced` is the length that its head says.
///
/// # Errors
/// 413 for a longer one, 400 where the client ends it early.
pub(crate) async fn all(body: Body, announced: Option<usize>, limit: usize) -> Result<Bytes, ApiError> {
    let mut pieces = body.into_data_stream();
    let mut whole = Vec::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| ApiError::bad(format!("the body ended early: {error}")))?;
        let length = whole.len() + piece.len();
        if length > limit {
            return Err(ApiError::too_large(limit));
        }
        // The only piece of a body is no longer than what the head announces.
        if whole.is_empty() && announced == Some(length) {
            return Ok(piece);
        }
        if whole.is_empty() {
            whole.reserve(announced.unwrap_or(length).clamp(length, AT_ONCE.max(length)));
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.into())
}

/// The error for a body that did not come in time.
pub(crate) fn too_slow(limit: std::time::Duration) -> ApiError {
    ApiError::new(
        StatusCode::REQUEST_TIMEOUT,
        format!("the body did not come within {limit:?}: send it faster"),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn in_pieces(pieces: &[&'static [u8]]) -> Body {
        let pieces: Vec<Result<Bytes, Infallible>> =
            pieces.iter().map(|piece| Ok(Bytes::from_static(piece))).collect();
        Body::from_stream(futures_util::stream::iter(pieces))
    }

    fn read(pieces: &[&'static [u8]], announced: Option<usize>, limit: usize) -> Result<Bytes, ApiError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(all(in_pieces(pieces), announced, limit))
    }

    #[test]
    fn pieces_are_joined_and_limited() {
        for announced in [None, Some(6), Some(3), Some(1 << 40)] {
            let joined = read(&[b"ab", b"", b"cdef"], announced, 6).unwrap();
            assert_eq!(&joined[..], b"abcdef", "{announced:?}");
        }
        assert_eq!(read(&[], None, 0).unwrap().len(), 0);
        for pieces in [&[&b"abcdefg"[..]][..], &[b"abcdef", b"g"]] {
            assert_eq!(read(pieces, None, 6).unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
        }
    }

    #[test]
    fn a_small_piece_does_not_hold_a_large_buffer() {
        let buffer = Bytes::from(vec![7; 1 << 16]);
        let body = Body::from_stream(futures_util::stream::iter([
            Ok::<_, Infallible>(buffer.slice(..1)),
            Ok(buffer.slice(1..2)),
        ]));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let joined = runtime.block_on(all(body, Some(2), 10)).unwrap();
        assert_eq!(&joined[..], [7, 7]);
        assert!(buffer.try_into_mut().is_ok(), "the buffer is held");
    }
}
