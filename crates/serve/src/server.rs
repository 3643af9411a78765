//! A running server: its address, its connections, and its end.
//!
//! Relevant if you want to embed a server, or to know how it ends: [`Server::drain`] accepts no further connection, answers
//! every request that arrived, closes the connections and ends the threads.
//!
//! Invariant: a client can hold a connection, but not a thread: connections live on one thread, whose work never blocks, and
//! are limited in number, size of headers, size of bodies and time.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use fcdcc::telemetry::Source;
use fcdcc::{Error, Result};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::{Semaphore, watch};

use crate::app::{App, Pictures};
use crate::config::ModelConfig;
use crate::dispatch::Dispatcher;
use crate::metrics::Metrics;
use crate::registry::{Registry, State};
use crate::routes::routes;
use crate::served::Engine;
use crate::tokens::Tokens;

/// Most header lines of a request.
const MOST_HEADERS: usize = 64;
/// Most bytes of a request's head.
const MOST_HEAD_BYTES: usize = 64 << 10;
/// Threads that parse, encode and load beside the connections.
const ASIDE: usize = 8;
/// How long to wait before accepting again when the system refuses.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// What a server serves, where, and within which limits.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Model files, and repositories of the form `NAME/VERSION/model.onnx`.
    pub sources: Vec<PathBuf>,
    /// The address, such as `127.0.0.1:8000`; port 0 takes a free one.
    pub address: String,
    /// How models without a `model.toml` are served.
    pub default: ModelConfig,
    /// Threads that compute: runs at one time.
    pub threads: usize,
    /// Most bytes of a body.
    pub max_body_bytes: usize,
    /// Most bytes of all bodies that are being read at one time.
    pub max_bodies_bytes: usize,
    /// Most connections at one time.
    pub max_connections: usize,
    /// The longest time for the head of a request, also on an idle connection.
    pub head_timeout: Duration,
    /// The longest time for a body.
    pub body_timeout: Duration,
    /// The longest time that [`Server::drain`] waits for requests.
    pub drain_timeout: Duration,
    /// Tokens of clients; none: no client needs one.
    pub tokens: Option<Tokens>,
    /// Allows an address beyond this machine without tokens.
    pub insecure: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            address: "127.0.0.1:8000".to_owned(),
            default: ModelConfig::default(),
            threads: 2,
            max_body_bytes: 64 << 20,
            max_bodies_bytes: 1 << 30,
            max_connections: 1024,
            head_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_mins(1),
            drain_timeout: Duration::from_secs(30),
            tokens: None,
            insecure: false,
        }
    }
}

impl ServerOptions {
    fn check(&self) -> Result<()> {
        let rows = [
            ("number of threads", self.threads, 1024),
            ("number of connections", self.max_connections, 1 << 20),
            ("largest body", self.max_body_bytes, 1 << 40),
            ("bytes of all bodies", self.max_bodies_bytes, 1 << 50),
        ];
        for (what, value, most) in rows {
            if !(1..=most).contains(&value) {
                return Err(Error::invalid(what, value, format!("use 1 to {most}")));
            }
        }
        if self.max_bodies_bytes < self.max_body_bytes {
            let help = "all bodies together need at least the bytes of the largest";
            return Err(Error::mismatch(
                "bytes of all bodies",
                self.max_bodies_bytes,
                self.max_body_bytes,
                help,
            ));
        }
        Ok(())
    }

    /// The addresses to listen at, which are of this machine unless others are allowed.
    fn addresses(&self) -> Result<Vec<SocketAddr>> {
        let help = "give an address of this machine and a port, such as 127.0.0.1:8000";
        let found = self.address.to_socket_addrs();
        let found: Vec<SocketAddr> = found
            .map_err(|e| Error::invalid("address", format!("{:?} ({e})", self.address), help))?
            .collect();
        let open = found.iter().find(|address| !address.ip().is_loopback());
        if let Some(open) = open
            && self.tokens.is_none()
            && !self.insecure
        {
            let help = "give a file of tokens, or allow it without (insecure): any machine that reaches the address \
                could use the models";
            return Err(Error::invalid(
                "address beyond this machine, without tokens,",
                open.to_string(),
                help,
            ));
        }
        Ok(found)
    }
}

/// A running server. Dropping it ends it as [`Server::drain`] does.
pub struct Server {
    address: SocketAddr,
    app: Arc<App>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<usize>>,
}

impl Server {
    /// Listens, then loads every model, one after the other; requests are answered meanwhile. `source` gives the metrics
    /// and the check of the pool, `pictures` decodes them for `classify`.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] and [`Error::Mismatch`] for options out of bounds, [`Error::File`] and [`Error::Io`] for
    /// sources without models, [`Error::Unavailable`] where it cannot listen. A model that cannot be loaded is no error
    /// here: [`Server::failures`] lists it.
    pub fn start(
        options: &ServerOptions,
        engine: &Engine,
        source: Arc<dyn Source>,
        pictures: Option<Arc<dyn Pictures>>,
    ) -> Result<Self> {
        options.check()?;
        let failed = |cause: std::io::Error| Error::Unavailable {
            what: format!("the address {} ({cause})", options.address),
            help: "give an address of this machine and a free port, such as 127.0.0.1:8000".into(),
        };
        let addresses = options.addresses()?;
        let default = options.default.clone().checked()?;
        let registry = Registry::new(&options.sources, engine.clone(), default)?;
        let listener = TcpListener::bind(addresses.as_slice()).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let metrics = Arc::new(Metrics::new());
        let dispatcher = Dispatcher::start(options.threads, &metrics).map_err(failed)?;
        let limits = (options.max_body_bytes, options.max_bodies_bytes);
        let tokens = options.tokens.clone();
        let app =
            App::new(registry, dispatcher, metrics, source, pictures, tokens, limits, options.body_timeout);
        let app = Arc::new(app);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(ASIDE)
            .build()
            .map_err(failed)?;
        let (stop, stopped) = watch::channel(false);
        let accepting = Accepting {
            router: routes(&app),
            connections: Arc::new(Semaphore::new(options.max_connections)),
            max_connections: options.max_connections,
            head_timeout: options.head_timeout,
            drain_timeout: options.drain_timeout,
            stopped,
        };
        let thread = std::thread::Builder::new().name("fcdcc http".to_owned());
        let thread = thread.spawn(move || {
            let cut = runtime.block_on(accepting.serve(listener));
            // Loading a model may take long; its thread ends with the process.
            runtime.shutdown_background();
            cut
        });
        let server = Self { address, app, stop, thread: Some(thread.map_err(failed)?) };
        for name in server.app.registry.names() {
            // The index and `failures` say why.
            let _ = server.app.registry.load(&name);
        }
        Ok(server)
    }

    /// The address where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Name, version and reason of every model that is not loaded.
    #[must_use]
    pub fn failures(&self) -> Vec<(String, u64, String)> {
        let failed = self.app.registry.index().into_iter().filter_map(|entry| match entry.state {
            State::Unavailable(why) => Some((entry.name, entry.version, why)),
            State::Loading | State::Ready => None,
        });
        failed.collect()
    }

    /// Names and versions of the models that are loaded.
    #[must_use]
    pub fn loaded(&self) -> Vec<(String, u64)> {
        let rows = self.app.registry.index().into_iter().filter(|entry| entry.state == State::Ready);
        rows.map(|entry| (entry.name, entry.version)).collect()
    }

    /// Ends the server: accepts no further connection, answers the requests that arrived, and ends. Returns the number of
    /// connections that were cut because their requests took longer than [`ServerOptions::drain_timeout`].
    #[must_use]
    pub fn drain(mut self) -> usize {
        self.end()
    }

    fn end(&mut self) -> usize {
        self.app.draining.store(true, Ordering::Release);
        // The receiver may have ended by itself.
        let _ = self.stop.send(true);
        let cut = self.thread.take().map_or(0, |thread| thread.join().unwrap_or_default());
        self.app.dispatcher.stop();
        cut
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Accepts connections until it is stopped.
struct Accepting {
    router: Router,
    connections: Arc<Semaphore>,
    max_connections: usize,
    head_timeout: Duration,
    drain_timeout: Duration,
    stopped: watch::Receiver<bool>,
}

impl Accepting {
    /// Serves; the number of connections that were cut at the end.
    async fn serve(self, listener: TcpListener) -> usize {
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return 0 };
        let mut stop = self.stopped.clone();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                accepted = self.accept(&listener) => accepted,
            };
            if let Some((stream, permit)) = accepted {
                tokio::spawn(connection(
                    stream,
                    permit,
                    self.router.clone(),
                    self.head_timeout,
                    self.stopped.clone(),
                ));
            }
        }
        // Connections that the system accepted before the end.
        while let Ok(Some((stream, permit))) =
            tokio::time::timeout(Duration::ZERO, self.accept(&listener)).await
        {
            tokio::spawn(connection(
                stream,
                permit,
                self.router.clone(),
                self.head_timeout,
                self.stopped.clone(),
            ));
        }
        drop(listener);
        let all = u32::try_from(self.max_connections).unwrap_or(u32::MAX);
        let end = Instant::now() + self.drain_timeout;
        let closed = self.connections.acquire_many(all);
        match tokio::time::timeout_at(end.into(), closed).await {
            Ok(_) => 0,
            Err(_) => self.max_connections - self.connections.available_permits(),
        }
    }

    /// The next connection, once there may be one more.
    async fn accept(
        &self,
        listener: &tokio::net::TcpListener,
    ) -> Option<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
        let permit = Arc::clone(&self.connections).acquire_owned().await.ok()?;
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
}

/// Ends when the server is told to stop, or is gone.
async fn stopped(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Serves one connection until it closes; after the server was stopped, until its request is answered.
async fn connection(
    stream: tokio::net::TcpStream,
    permit: tokio::sync::OwnedSemaphorePermit,
    router: Router,
    head_timeout: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_headers(MOST_HEADERS)
        .max_buf_size(MOST_HEAD_BYTES);
    let mut serving = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stopped(&mut stop) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a connection ended: {error}");
    }
    drop(permit);
}
