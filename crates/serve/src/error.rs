//! The error of a request: an HTTP status and one sentence.
//!
//! Relevant if you want to know which status a failure has: [`ApiError`]'s constructors and its conversion from the
//! library's error are the only places that choose one.
//!
//! Invariant: the body of every error is `{"error": "..."}`.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use fcdcc::{Error, ErrorKind};

/// Status of a request whose client is gone; no client sees it, but counters and logs do.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Why a request has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 400: the request itself is wrong.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404: there is no such model, version or page.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 413: the body is longer than allowed.
    pub(crate) fn too_large(limit: usize) -> Self {
        let help = "send fewer items at once, or raise the limit of the server";
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {limit} bytes: {help}"))
    }

    /// 429: the server has as much to do as it accepts.
    pub(crate) fn busy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, message)
    }

    /// 503: it cannot be computed now.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// 504: there is no result within the time of the request.
    pub(crate) fn late(limit: std::time::Duration) -> Self {
        let help = "give it more time, or send fewer requests at once";
        Self::new(StatusCode::GATEWAY_TIMEOUT, format!("no result within {limit:?}: {help}"))
    }

    /// 499: the client did not wait for the result.
    pub(crate) fn abandoned() -> Self {
        let status = StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or(StatusCode::BAD_REQUEST);
        Self::new(status, "the client did not wait for the result")
    }

    /// 500: a defect on this side.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        if matches!(error, Error::Cancelled) {
            return Self::abandoned();
        }
        let status = status(&error);
        Self::new(status, error.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

fn status(error: &Error) -> StatusCode {
    match error {
        Error::Layer { source, .. } => status(source),
        Error::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        Error::Unavailable { .. } | Error::Memory { .. } => StatusCode::SERVICE_UNAVAILABLE,
        other => match other.kind() {
            ErrorKind::BadInput => StatusCode::BAD_REQUEST,
            // Workers may come back.
            ErrorKind::Shortfall => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Internal | ErrorKind::Refused => StatusCode::INTERNAL_SERVER_ERROR,
        },
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": self.message }).to_string();
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = header::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_library_have_a_status_by_their_kind() {
        let rows = [
            (Error::mismatch("shape", 1, 2, "agree"), 400),
            (Error::Layer { layer: "c".into(), source: Box::new(Error::Cancelled) }, 500),
            (Error::Cancelled, 499),
            (Error::Unavailable { what: "gpu".into(), help: "none".into() }, 503),
            (
                Error::Timeout {
                    what: "x".into(),
                    limit: std::time::Duration::from_secs(1),
                    help: "wait".into(),
                },
                504,
            ),
            (Error::WorkerLost { worker: "w".into(), cause: "gone".into() }, 500),
        ];
        for (error, status) in rows {
            let text = error.to_string();
            assert_eq!(ApiError::from(error).status.as_u16(), status, "{text}");
        }
    }
}
