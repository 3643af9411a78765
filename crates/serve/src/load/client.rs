//! One connection of a load: HTTP/1.1, kept open, made again when it breaks.
//!
//! Invariant: a request is sent at most once, unless the connection was closed before any byte of it was handled.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request as HttpRequest, header};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::message::{Answer, Request};
use super::target::Target;
use crate::response::JSON_LENGTH;

/// Longest answer.
const MOST_BYTES: usize = 1 << 30;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    TimedOut,
    Broken(String),
}

/// A connection, perhaps not made yet.
pub(super) struct Connection(Option<SendRequest<Body>>);

impl Connection {
    pub(super) fn new() -> Self {
        Self(None)
    }

    /// Sends a request and waits for its whole answer, both within `limit`.
    pub(super) async fn send(
        &mut self,
        target: &Target,
        request: &Request,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let outcome = timeout(limit, self.exchange(target, request)).await;
        let outcome = outcome.unwrap_or(Err(Failure::TimedOut));
        if outcome.is_err() {
            // An answer that comes later must not be taken for that of the next request.
            self.0 = None;
        }
        outcome
    }

    async fn exchange(&mut self, target: &Target, request: &Request) -> Result<Answer, Failure> {
        let reused = self.0.is_some();
        let sent = match self.attempt(target, request).await {
            // The server closed an idle connection before it read anything of this request.
            Err(Trouble { unsent: true, .. }) if reused => {
                self.0 = None;
                self.attempt(target, request).await
            }
            other => other,
        };
        sent.map_err(|trouble| Failure::Broken(trouble.cause))
    }

    async fn attempt(&mut self, target: &Target, request: &Request) -> Result<Answer, Trouble> {
        let sender = match &mut self.0 {
            Some(sender) => sender,
            None => self.0.insert(connect(target).await.map_err(|cause| Trouble { cause, unsent: false })?),
        };
        let unsent = |error: hyper::Error| Trouble { cause: error.to_string(), unsent: error.is_canceled() };
        if let Err(error) = sender.ready().await {
            return Err(Trouble { cause: error.to_string(), unsent: true });
        }
        let response = sender.send_request(request.http(target)).await.map_err(unsent)?;
        let (parts, body) = response.into_parts();
        let broken = |cause: axum::Error| Trouble { cause: cause.to_string(), unsent: false };
        let body = axum::body::to_bytes(Body::new(body), MOST_BYTES).await.map_err(broken)?;
        let json_length = parts.headers.get(JSON_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        if parts.headers.get(header::CONNECTION).is_some_and(|value| value == "close") {
            self.0 = None;
        }
        Ok(Answer { status: parts.status.as_u16(), json_length, body })
    }
}

/// Why an attempt failed.
struct Trouble {
    cause: String,
    /// Whether the server cannot have handled it.
    unsent: bool,
}

async fn connect(target: &Target) -> Result<SendRequest<Body>, String> {
    let stream = TcpStream::connect(target.address()).await.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    match target.tls() {
        None => agree(stream).await,
        Some((connector, name)) => {
            let stream = connector.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))?;
            agree(stream).await
        }
    }
}

async fn agree(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Body>, String> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        // Its errors are those of the requests.
        let _ = connection.await;
    });
    Ok(sender)
}

impl Request {
    fn http(&self, target: &Target) -> HttpRequest<Body> {
        let mut request = HttpRequest::new(Body::from(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.path.clone();
        let headers = request.headers_mut();
        headers.insert(header::HOST, target.host());
        headers.insert(header::CONTENT_LENGTH, self.body.len().into());
        if let Some(length) = self.json_length {
            headers.insert(JSON_LENGTH, length.into());
        }
        if let Some(token) = target.token() {
            headers.insert(header::AUTHORIZATION, token);
        }
        request
    }
}
