//! Who may call a method, and how much memory and time the messages of a call may take.
//!
//! Relevant if you want to know what happens to a call before its method. Health and readiness need no token; everything
//! else does where tokens are configured.
//!
//! Invariant: what a client sends counts against the same memory as bodies over HTTP, and a call other than a stream sends
//! it within the same time.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Sleep;
use tonic::{Code, Status};

use super::encode::status;
use super::service::PATH;
use crate::app::App;
use crate::origin::{Origin, Peer};

/// Methods that need no token: what probes call.
const OPEN: [&str; 3] = [
    "/grpc.health.v1.Health/",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
];
/// Methods whose clients may take any time between two messages.
const STREAMS: [&str; 2] = ["/inference.GRPCInferenceService/ModelStreamInfer", "/grpc.reflection."];
/// Methods whose messages go to the access log one by one.
const INFERENCES: [&str; 2] = ["/ModelInfer", "/ModelStreamInfer"];
/// Methods of the protocol that this server lacks, and what to do instead.
const UNSUPPORTED: [(&str, &str); 4] = [
    ("SystemSharedMemory", "shared memory is not supported: send tensors in the request"),
    ("CudaSharedMemory", "shared memory is not supported: send tensors in the request"),
    ("TraceSetting", "trace settings are not supported: set the log level when the server starts"),
    ("LogSettings", "log settings are not supported: set the log level when the server starts"),
];

/// What the gate needs to know.
#[derive(Clone)]
pub(super) struct Gate {
    app: Arc<App>,
    stop: watch::Receiver<bool>,
}

impl Gate {
    pub(super) fn new(app: &Arc<App>, stop: &watch::Receiver<bool>) -> Self {
        Self { app: Arc::clone(app), stop: stop.clone() }
    }
}

/// Passes a call on, with its messages metered, or refuses it.
pub(super) async fn enter(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let client = request.extensions().get::<Peer>().map(|peer| peer.0);
    let (app, since) = (Arc::clone(&gate.app), Instant::now());
    let quiet = OPEN.iter().any(|start| path.starts_with(start));
    let response = admitted(gate, request, next).await;
    // The methods of inference log every message, unless they were not called.
    let of_messages = INFERENCES.iter().any(|method| path.ends_with(method));
    let refused = grpc_status(&response);
    if app.access.is_some() && !quiet && (!of_messages || refused == StatusCode::UNAUTHORIZED) {
        app.log(&Origin::grpc(&path, client, None), refused, since);
    }
    response
}

/// The status of HTTP that stands for the status of a call, where that is known before its messages.
fn grpc_status(response: &Response) -> StatusCode {
    let code = response.headers().get("grpc-status").and_then(|value| value.to_str().ok()?.parse().ok());
    match Code::from_i32(code.unwrap_or_default()) {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

async fn admitted(gate: Gate, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let begins = |all: &[&str]| all.iter().any(|start| path.starts_with(start));
    let header = request.headers().get(header::AUTHORIZATION);
    if !begins(&OPEN) && !gate.app.credentials.admit(header.map(header::HeaderValue::as_bytes)) {
        let text = "this server needs a token: send the metadata authorization: Bearer TOKEN";
        return Status::unauthenticated(text).into_http();
    }
    let method = path.strip_prefix(PATH).unwrap_or_default();
    if let Some((_, text)) = UNSUPPORTED.iter().find(|(start, _)| method.starts_with(start)) {
        return Status::unimplemented(*text).into_http();
    }
    let limit = gate.app.body_timeout;
    let pace = if begins(&STREAMS) {
        let mut stop = gate.stop.clone();
        Pace::Stream(Box::pin(async move {
            let _ = stop.wait_for(|stopped| *stopped).await;
        }))
    } else {
        Pace::Call(Box::pin(tokio::time::sleep(limit)), limit)
    };
    let app = Arc::clone(&gate.app);
    next.run(request.map(|body| Body::new(Metered { body, app, held: None, bytes: 0, pace, ended: false })))
        .await
}

/// When a client must have sent its messages.
enum Pace {
    /// Within this time.
    Call(Pin<Box<Sleep>>, Duration),
    /// Before this future ends, which is when the server is stopped.
    Stream(Pin<Box<dyn Future<Output = ()> + Send>>),
}

/// The messages of a call. It holds memory for as many bytes as came, but no more than for the longest message: those of a
/// stream are decoded one after the other.
struct Metered {
    body: Body,
    app: Arc<App>,
    held: Option<OwnedSemaphorePermit>,
    bytes: usize,
    pace: Pace,
    ended: bool,
}

impl Metered {
    fn hold(&mut self, more: usize) -> Result<(), Status> {
        let more = more.min(self.app.max_body_bytes.saturating_sub(self.bytes));
        if more > 0 {
            let permit = self.app.hold(more).map_err(status)?;
            match &mut self.held {
                Some(held) => held.merge(permit),
                None => self.held = Some(permit),
            }
            self.bytes += more;
        }
        Ok(())
    }
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref()
                    && let Err(status) = this.hold(data.len())
                {
                    return Poll::Ready(Some(Err(status)));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                Poll::Ready(Some(Err(Status::cancelled(format!("the call ended early: {error}")))))
            }
            Poll::Ready(None) => Poll::Ready(None),
            // Only what has not arrived is late.
            Poll::Pending => match &mut this.pace {
                Pace::Call(sleep, limit) => sleep.as_mut().poll(context).map(|()| {
                    let text = format!("the message did not come within {limit:?}: send it faster");
                    Some(Err(Status::deadline_exceeded(text)))
                }),
                Pace::Stream(stopped) => stopped.as_mut().poll(context).map(|()| {
                    this.ended = true;
                    None
                }),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
