//! Connections: accepting them, TLS, HTTP/1.1 for HTTP and HTTP/2 for gRPC, and their end.
//!
//! Relevant if you want to know how long a client may take for what, and what becomes of its connection when the server
//! ends.
//!
//! Invariant: connections are limited in number, and one whose client is silent is closed. When the server ends, a
//! connection lives until its requests are answered.

use std::io;
use std::net::TcpListener;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::codegen::Service;

use crate::credentials::Credentials;
use crate::origin::Peer;
use crate::protocol::Protocol;

/// Most header lines of a request.
const MOST_HEADERS: usize = 64;
/// Most bytes of a request's head.
const MOST_HEAD_BYTES: u32 = 64 << 10;
/// Most calls of one connection of gRPC at one time.
const MOST_CALLS: u32 = 128;
/// Bytes of a call, and of all calls of a connection, that a client may send before they are read.
const CALL_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// How often a connection of gRPC is asked whether its client is there: twice within the time for which it may be silent.
const ASKED: u32 = 2;
/// How long to wait before accepting again when the system refuses.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Accepts connections until it is stopped.
pub(crate) struct Accepting {
    pub(crate) protocol: Protocol,
    pub(crate) router: Router,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) max_connections: usize,
    pub(crate) head_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) stopped: watch::Receiver<bool>,
}

impl Accepting {
    /// Serves; the number of connections that were cut at the end.
    pub(crate) async fn serve(self, listener: TcpListener) -> usize {
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return 0 };
        let connections = Arc::new(Semaphore::new(self.max_connections));
        let mut stop = self.stopped.clone();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                accepted = accept(&listener, &connections) => accepted,
            };
            if let Some((stream, permit)) = accepted {
                tokio::spawn(self.connection(stream, permit));
            }
        }
        // Connections that the system accepted before the end.
        while let Ok(Some((stream, permit))) =
            tokio::time::timeout(Duration::ZERO, accept(&listener, &connections)).await
        {
            tokio::spawn(self.connection(stream, permit));
        }
        drop(listener);
        let all = u32::try_from(self.max_connections).unwrap_or(u32::MAX);
        let end = Instant::now() + self.drain_timeout;
        let closed = connections.acquire_many(all);
        match tokio::time::timeout_at(end.into(), closed).await {
            Ok(_) => 0,
            Err(_) => self.max_connections - connections.available_permits(),
        }
    }

    /// Serves one connection until it closes; after the server was stopped, until its requests are answered.
    fn connection(
        &self,
        stream: TcpStream,
        permit: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (protocol, router) = (self.protocol, self.router.clone());
        // As the files are now: a connection keeps what it began with.
        let tls = self.credentials.acceptor(protocol);
        let (head_timeout, stop) = (self.head_timeout, self.stopped.clone());
        let peer = stream.peer_addr().ok().map(Peer);
        async move {
            let ended = match tls {
                None => serve(protocol, stream, (router, peer), head_timeout, stop).await,
                Some(tls) => match agree(&tls, stream, head_timeout, stop.clone()).await {
                    Ok(stream) => serve(protocol, stream, (router, peer), head_timeout, stop).await,
                    Err(cause) => Err(format!("TLS: {cause}")),
                },
            };
            if let Err(error) = ended {
                tracing::debug!("a connection ended: {error}");
            }
            drop(permit);
        }
    }
}

/// The next connection, once there may be one more.
async fn accept(
    listener: &tokio::net::TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // Answers are written as a whole.
            let _ = stream.set_nodelay(true);
            Some((stream, permit))
        }
        Err(error) => {
            tracing::warn!("no connection accepted: {error}");
            tokio::time::sleep(ACCEPT_AGAIN).await;
            None
        }
    }
}

/// Ends when the server is told to stop, or is gone.
async fn stopped(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Agrees on TLS, unless the server is stopped before that: then no request has arrived.
async fn agree(
    tls: &TlsAcceptor,
    stream: TcpStream,
    limit: Duration,
    mut stop: watch::Receiver<bool>,
) -> Result<TlsStream<TcpStream>, String> {
    tokio::select! {
        agreed = tokio::time::timeout(limit, tls.accept(stream)) => match agreed {
            Ok(agreed) => agreed.map_err(|error| error.to_string()),
            Err(_) => Err(format!("not agreed on within {limit:?}")),
        },
        () = stopped(&mut stop) => Err("the server ends".to_owned()),
    }
}

/// Serves one connection.
async fn serve(
    protocol: Protocol,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    (router, peer): (Router, Option<Peer>),
    head_timeout: Duration,
    mut stop: watch::Receiver<bool>,
) -> Result<(), String> {
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        router.clone().call(request)
    });
    // The two have no trait in common.
    macro_rules! until_stopped {
        ($serving:expr) => {{
            let mut serving = pin!($serving);
            let ended = tokio::select! {
                ended = serving.as_mut() => ended,
                () = stopped(&mut stop) => {
                    serving.as_mut().graceful_shutdown();
                    serving.await
                }
            };
            ended.map_err(|error| error.to_string())
        }};
    }
    match protocol {
        Protocol::Http => {
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new())
                .header_read_timeout(head_timeout)
                .max_headers(MOST_HEADERS)
                .max_buf_size(MOST_HEAD_BYTES as usize);
            until_stopped!(http.serve_connection(TokioIo::new(stream), service))
        }
        Protocol::Grpc => {
            let mut http = http2::Builder::new(TokioExecutor::new());
            http.timer(TokioTimer::new())
                .max_concurrent_streams(MOST_CALLS)
                .max_header_list_size(MOST_HEAD_BYTES)
                .initial_stream_window_size(CALL_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .keep_alive_interval(head_timeout / (ASKED + 1))
                .keep_alive_timeout(head_timeout);
            until_stopped!(http.serve_connection(TokioIo::new(Impatient::new(stream, head_timeout)), service))
        }
    }
}

/// A stream that fails when nothing was read for some time. A client of HTTP/2 that is there answers when it is asked, so
/// only one that is gone, or never spoke HTTP/2, is silent.
struct Impatient<S> {
    stream: S,
    limit: Duration,
    silence: Pin<Box<Sleep>>,
}

impl<S> Impatient<S> {
    fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, silence: Box::pin(tokio::time::sleep(limit)) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if read.is_ready() {
            this.silence.as_mut().reset(tokio::time::Instant::now() + this.limit);
            return read;
        }
        this.silence
            .as_mut()
            .poll(context)
            .map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, format!("silent for {:?}", this.limit))))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
