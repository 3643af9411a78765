//! What is sent and what comes back.
//!
//! Invariant: both hold whole bodies.

use axum::http::{Method, Uri};
use bytes::Bytes;

/// What is sent.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: Uri,
    pub(super) json_length: Option<usize>,
    pub(super) body: Bytes,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// The length of the JSON, if tensors follow it.
    pub(super) json_length: Option<usize>,
    pub(super) body: Bytes,
}

impl Answer {
    /// The beginning of the body as text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).chars().take(300).collect()
    }
}
