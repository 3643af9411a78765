//! The HTTP endpoint for metrics and health checks.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::sync::oneshot;

use crate::error::{Error, Result};

/// Time limit of one answer.
const LIMIT: Duration = Duration::from_secs(10);

/// The data that an [`Exporter`] serves.
pub trait Source: Send + Sync + 'static {
    /// All metrics, in Prometheus' text format.
    fn metrics(&self) -> String;

    /// Checks that inference works by computing something; may take a few seconds.
    ///
    /// # Errors
    /// The reason why it does not work.
    fn ready(&self) -> Result<()>;
}

/// Serves metrics and health checks until it is dropped.
pub struct Exporter {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Exporter {
    /// Listens on `address`, such as `127.0.0.1:9464`; port 0 takes a free one.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where it cannot listen there.
    pub fn start(address: &str, source: Arc<dyn Source>) -> Result<Self> {
        let failed = |cause: std::io::Error| Error::Unavailable {
            what: format!("the metrics endpoint {address} ({cause})"),
            help: "give an address of this machine and a free port, such as 127.0.0.1:9464".into(),
        };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .build()
            .map_err(failed)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let app = Router::new()
            .route("/metrics", get(metrics))
            .route("/readyz", get(ready))
            .route("/healthz", get(|| async { "alive\n" }))
            .with_state(source);
        let thread = std::thread::Builder::new().name("fcdcc metrics".to_owned());
        let thread = thread
            .spawn(move || {
                runtime.block_on(async move {
                    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                    let serving = axum::serve(listener, app);
                    tokio::select! {
                        ended = serving => drop(ended),
                        // A sent message and a dropped sender mean the same.
                        _ = stopped => {}
                    }
                });
                // Does not wait for a readiness check in progress.
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Ok(Self { address: bound, stop: Some(stop), thread: Some(thread) })
    }

    /// The address where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        // The thread may have ended by itself.
        let _ = self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn metrics(State(source): State<Arc<dyn Source>>) -> impl IntoResponse {
    let text = tokio::task::spawn_blocking(move || source.metrics());
    match tokio::time::timeout(LIMIT, text).await {
        Ok(Ok(text)) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "no metrics within 10 s\n").into_response(),
    }
}

async fn ready(State(source): State<Arc<dyn Source>>) -> impl IntoResponse {
    let proof = tokio::task::spawn_blocking(move || source.ready());
    let no = |text: String| (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    match tokio::time::timeout(LIMIT, proof).await {
        Ok(Ok(Ok(()))) => "ready\n".into_response(),
        Ok(Ok(Err(error))) => no(format!("not ready: {error}\n")),
        Ok(Err(_)) => no("not ready: the check failed\n".to_owned()),
        Err(_) => no("not ready: the check took longer than 10 s\n".to_owned()),
    }
}
