//! A running server: its addresses, its limits, and its end.
//!
//! Relevant if you want to embed a server, or to know how it ends: [`Server::drain`] accepts no further connection, answers
//! every request that arrived, closes the connections of HTTP and gRPC, and ends the threads.
//!
//! Invariant: a client can hold a connection, but not a thread: connections live on one thread, whose work never blocks, and
//! are limited in number, size of headers, size of bodies and time.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use fcdcc::telemetry::Source;
use fcdcc::{Error, Result};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, watch};

use crate::access::AccessLog;
use crate::app::App;
use crate::config::ModelConfig;
use crate::connection::Accepting;
use crate::credentials::Credentials;
use crate::dispatch::Dispatcher;
use crate::grpc;
use crate::metrics::Metrics;
use crate::pictures::Pictures;
use crate::protocol::Protocol;
use crate::registry::{Registry, State};
use crate::routes::routes;
use crate::served::Engine;
use crate::spans::Spans;
use crate::tls::Tls;
use crate::tokens::Tokens;
use crate::traces::Traces;

/// Threads that parse, encode and load beside the connections.
const ASIDE: usize = 8;
/// How often the files of certificates and tokens are read.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// What a server serves, where, and within which limits.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Model files, and repositories of the form `NAME/VERSION/model.onnx`.
    pub sources: Vec<PathBuf>,
    /// The address of HTTP, such as `127.0.0.1:8000`; port 0 takes a free one.
    pub address: String,
    /// The address of gRPC, such as `127.0.0.1:8001`; none: no gRPC.
    pub grpc: Option<String>,
    /// TLS on both addresses.
    pub tls: Option<Tls>,
    /// How models without a `model.toml` are served.
    pub default: ModelConfig,
    /// Threads that compute: runs at one time.
    pub threads: usize,
    /// Most bytes of a body, unpacked, or of a message of gRPC.
    pub max_body_bytes: usize,
    /// Most bytes of all bodies that are being read at one time.
    pub max_bodies_bytes: usize,
    /// Most connections of each address at one time.
    pub max_connections: usize,
    /// The longest time for TLS and for the head of a request, also on an idle connection; in gRPC, for an answer to the
    /// question whether the client is there.
    pub head_timeout: Duration,
    /// The longest time for a body.
    pub body_timeout: Duration,
    /// The longest time that [`Server::drain`] waits for requests.
    pub drain_timeout: Duration,
    /// Tokens of clients; none: no client needs one.
    pub tokens: Option<Tokens>,
    /// A file to which requests are added, one JSON object a line; `-` is standard output.
    pub access_log: Option<PathBuf>,
    /// Where spans of requests go; needs feature `otlp`.
    pub traces: Option<Traces>,
    /// Allows an address beyond this machine without tokens and without TLS.
    pub insecure: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            address: "127.0.0.1:8000".to_owned(),
            grpc: None,
            tls: None,
            default: ModelConfig::default(),
            threads: 2,
            max_body_bytes: 64 << 20,
            max_bodies_bytes: 1 << 30,
            max_connections: 1024,
            head_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_mins(1),
            drain_timeout: Duration::from_secs(30),
            tokens: None,
            access_log: None,
            traces: None,
            insecure: false,
        }
    }
}

/// Connections that may wait to be accepted. One that finds the queue full tries again after a second.
const MOST_WAITING: i32 = 1024;

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
        self.traces.as_ref().map_or(Ok(()), Traces::check)?;
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

    /// Listens at an address, which is of this machine unless others are allowed.
    fn listen(&self, address: &str) -> Result<TcpListener> {
        let help = "give an address of this machine and a port, such as 127.0.0.1:8000";
        let found = address.to_socket_addrs();
        let found: Vec<SocketAddr> =
            found.map_err(|e| Error::invalid("address", format!("{address:?} ({e})"), help))?.collect();
        let open = found.iter().find(|address| !address.ip().is_loopback());
        if let Some(open) = open
            && self.tokens.is_none()
            && self.tls.is_none()
            && !self.insecure
        {
            let help = "give a file of tokens, or TLS, or allow it without (insecure): any machine that reaches the \
                address could use the models";
            return Err(Error::invalid(
                "address beyond this machine, without tokens and without TLS,",
                open.to_string(),
                help,
            ));
        }
        let failed = |cause| unavailable(address, &cause);
        let listener = TcpListener::bind(found.as_slice()).map_err(failed)?;
        // The system shortens the queue of new connections where it allows less.
        socket2::SockRef::from(&listener).listen(MOST_WAITING).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(listener)
    }

    /// What accepts the connections of a protocol.
    fn accepting(
        &self,
        protocol: Protocol,
        router: axum::Router,
        app: &App,
        stopped: &watch::Receiver<bool>,
    ) -> Accepting {
        Accepting {
            protocol,
            router,
            credentials: Arc::clone(&app.credentials),
            max_connections: self.max_connections,
            head_timeout: self.head_timeout,
            drain_timeout: self.drain_timeout,
            stopped: stopped.clone(),
        }
    }
}

fn unavailable(address: &str, cause: &std::io::Error) -> Error {
    Error::Unavailable {
        what: format!("the address {address} ({cause})"),
        help: "give an address of this machine and a free port, such as 127.0.0.1:8000".into(),
    }
}

/// A running server. Dropping it ends it as [`Server::drain`] does.
pub struct Server {
    address: SocketAddr,
    grpc: Option<SocketAddr>,
    app: Arc<App>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<usize>>,
    watch: Option<Watch>,
}

/// Looks after changed files until it is dropped.
struct Watch {
    end: mpsc::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(credentials: Arc<Credentials>) -> std::io::Result<Self> {
        let (end, ended) = mpsc::channel();
        let thread = std::thread::Builder::new().name("fcdcc files".to_owned()).spawn(move || {
            while ended.recv_timeout(LOOK_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                credentials.reload();
            }
        })?;
        Ok(Self { end, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The thread may have ended.
        let _ = self.end.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves the connections of both protocols on one thread, which ends with the number of those that were cut.
fn connections(
    runtime: Runtime,
    both: [(Accepting, Option<TcpListener>); 2],
    app: Arc<App>,
) -> std::io::Result<JoinHandle<usize>> {
    std::thread::Builder::new().name("fcdcc net".to_owned()).spawn(move || {
        let [http, grpc] = both.map(|(accepting, listener)| async move {
            match listener {
                Some(listener) => accepting.serve(listener).await,
                None => 0,
            }
        });
        let (cut, cut_grpc) = runtime.block_on(async { tokio::join!(http, grpc) });
        // The last spans leave over a connection of this runtime.
        let spans = async { tokio::task::spawn_blocking(move || app.spans.as_ref().map(Spans::end)).await };
        let _ = runtime.block_on(spans);
        // Loading a model may take long; its thread ends with the process.
        runtime.shutdown_background();
        cut + cut_grpc
    })
}

impl Server {
    /// Listens, then loads every model, one after the other; requests are answered meanwhile. `source` gives the metrics
    /// and the check of the pool, `pictures` decodes them for `classify`.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] and [`Error::Mismatch`] for options out of bounds, [`Error::File`] and [`Error::Io`] for
    /// sources without models and certificates that cannot be used, [`Error::Unavailable`] where it cannot listen. A model that cannot be loaded is no error
    /// here: [`Server::failures`] lists it.
    pub fn start(
        options: &ServerOptions,
        engine: &Engine,
        source: Arc<dyn Source>,
        pictures: Option<Arc<dyn Pictures>>,
    ) -> Result<Self> {
        options.check()?;
        let default = options.default.clone().checked()?;
        let registry = Registry::new(&options.sources, engine.clone(), default)?;
        let http = options.listen(&options.address)?;
        let grpc = options.grpc.as_deref().map(|address| options.listen(address)).transpose()?;
        let failed = |cause| unavailable(&options.address, &cause);
        let address = http.local_addr().map_err(failed)?;
        let grpc_address = grpc.as_ref().map(TcpListener::local_addr).transpose().map_err(failed)?;
        let credentials = Arc::new(Credentials::new(options.tls.as_ref(), options.tokens.as_ref())?);
        credentials.warn(SystemTime::now());
        let access = options.access_log.as_deref().map(AccessLog::open).transpose()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(ASIDE)
            .build()
            .map_err(failed)?;
        let spans = {
            let _inside = runtime.enter();
            options.traces.as_ref().map(Spans::new).transpose()?
        };
        let metrics = Arc::new(Metrics::new());
        let dispatcher = Dispatcher::start(options.threads, &metrics).map_err(failed)?;
        let app = Arc::new(App {
            registry,
            dispatcher,
            metrics,
            source,
            pictures,
            credentials,
            access,
            spans,
            max_body_bytes: options.max_body_bytes,
            body_timeout: options.body_timeout,
            draining: AtomicBool::new(false),
            bodies: App::room(options.max_bodies_bytes),
            checked: Mutex::default(),
        });
        let (stop, stopped) = watch::channel(false);
        let on_http = options.accepting(Protocol::Http, routes(&app), &app, &stopped);
        let on_grpc = options.accepting(Protocol::Grpc, grpc::routes(&app, &stopped)?, &app, &stopped);
        let both = [(on_http, Some(http)), (on_grpc, grpc)];
        let thread = Some(connections(runtime, both, Arc::clone(&app)).map_err(failed)?);
        let watch = Some(Watch::start(Arc::clone(&app.credentials)).map_err(failed)?);
        let server = Self { address, grpc: grpc_address, app, stop, thread, watch };
        for name in server.app.registry.names() {
            // The index and `failures` say why.
            let _ = server.app.registry.load(&name);
        }
        Ok(server)
    }

    /// The address where it listens for gRPC.
    #[must_use]
    pub fn grpc_address(&self) -> Option<SocketAddr> {
        self.grpc
    }

    /// The address where it listens for HTTP.
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

    /// Takes what the files of certificates and tokens hold now, and opens the access log again. Without a call the former
    /// happens every few seconds too. Connections keep what they began with.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with every reason where a file cannot be used; what it held before stays in force.
    pub fn reload(&self) -> Result<()> {
        let (_, mut refused) = self.app.credentials.reload();
        if let Some(Err(error)) = self.app.access.as_ref().map(AccessLog::reopen) {
            refused.push(format!("the access log cannot be opened: {error}"));
        }
        if refused.is_empty() {
            return Ok(());
        }
        Err(Error::Unavailable { what: "what changed on disk".to_owned(), help: refused.join("; ").into() })
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
        drop(self.watch.take());
        if let Some(access) = &self.app.access {
            access.end();
        }
        cut
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
