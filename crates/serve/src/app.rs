//! What the handlers of requests share: models, queues, limits, readiness.
//!
//! Relevant if you want to know when a server is ready: when every model is loaded and the pool has just computed a small
//! coded convolution whose result is known.
//!
//! Invariant: however many clients ask, one check of the pool runs at a time, and its result counts for some seconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use bytes::Bytes;
use fcdcc::telemetry::Source;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use crate::access::{AccessLog, Entry};
use crate::credentials::Credentials;
use crate::dispatch::Dispatcher;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::origin::Origin;
use crate::pictures::Pictures;
use crate::received;
use crate::registry::Registry;
use crate::scrape::Scrape;
use crate::spans::Spans;

/// How long a check of the pool counts.
const CHECK_COUNTS: Duration = Duration::from_secs(5);
/// How long a check of the pool may take.
const CHECK_LIMIT: Duration = Duration::from_secs(10);
/// The unit in which the bytes of bodies are limited.
const UNIT: usize = 1024;

/// The state of a server.
pub(crate) struct App {
    pub(crate) registry: Registry,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) pictures: Option<Arc<dyn Pictures>>,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) access: Option<AccessLog>,
    pub(crate) spans: Option<Spans>,
    pub(crate) max_body_bytes: usize,
    pub(crate) body_timeout: Duration,
    pub(crate) draining: AtomicBool,
    /// What [`App::room`] made: the memory that bodies still have.
    pub(crate) bodies: Arc<Semaphore>,
    /// The last check of the pool.
    pub(crate) checked: Mutex<Option<(Instant, Result<(), String>)>>,
}

impl App {
    /// A semaphore with a permit for each unit of `bytes`, the memory that all bodies may take together.
    pub(crate) fn room(bytes: usize) -> Arc<Semaphore> {
        Arc::new(Semaphore::new((bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS)))
    }

    /// Adds a request that is no inference to the access log, `since` its arrival.
    pub(crate) fn log(&self, origin: &Origin, status: StatusCode, since: Instant) {
        if let Some(access) = &self.access {
            let (status, time) = (status.as_u16(), since.elapsed());
            access.add(&Entry { origin, model: None, id: None, items: None, status, time, times: None });
        }
    }

    /// What is read for the metrics.
    pub(crate) fn scrape(&self) -> Scrape {
        Scrape {
            certificate_ends: self.credentials.ends(),
            credentials: self.credentials.counts(),
            lost_lines: self.access.as_ref().map(AccessLog::lost),
            // Without a name there is nothing to miss.
            ..Scrape::of(&self.registry.loaded(None, None).unwrap_or_default())
        }
    }

    /// Reads a body of `announced` bytes, or of unknown length, within the limits of bytes and time. A packed one counts as
    /// long as the longest, as long as the permit that comes with it is held.
    ///
    /// # Errors
    /// 413 for one that is too long, 408 for one that comes too slowly, 429 where other bodies fill the memory, 400 where
    /// the client ends it early.
    pub(crate) async fn body(
        &self,
        announced: Option<usize>,
        packed: bool,
        body: axum::body::Body,
    ) -> Result<(Bytes, OwnedSemaphorePermit), ApiError> {
        let limit = self.max_body_bytes;
        if announced.is_some_and(|length| length > limit) {
            return Err(ApiError::too_large(limit));
        }
        let held = self.hold(announced.filter(|_| !packed).unwrap_or(limit))?;
        match tokio::time::timeout(self.body_timeout, received::all(body, announced, limit)).await {
            Ok(read) => Ok((read?, held)),
            Err(_) => Err(received::too_slow(self.body_timeout)),
        }
    }

    /// Reserves memory for `bytes` of a body until the permit is dropped.
    ///
    /// # Errors
    /// 429 where other bodies fill it.
    pub(crate) fn hold(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let held = Arc::clone(&self.bodies).try_acquire_many_owned(units);
        held.map_err(|_| ApiError::busy("other requests fill the memory for bodies: try again later"))
    }

    /// Loads a model on a thread that may block.
    ///
    /// # Errors
    /// Those of [`Registry::load`].
    pub(crate) async fn load(self: &Arc<Self>, model: String) -> Result<(), ApiError> {
        self.change(move |registry| registry.load(&model)).await
    }

    /// Takes a model out of service.
    ///
    /// # Errors
    /// Those of [`Registry::unload`].
    pub(crate) async fn unload(self: &Arc<Self>, model: String) -> Result<(), ApiError> {
        self.change(move |registry| registry.unload(&model)).await
    }

    async fn change(
        self: &Arc<Self>,
        change: impl FnOnce(&Registry) -> Result<(), ApiError> + Send + 'static,
    ) -> Result<(), ApiError> {
        let app = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || change(&app.registry)).await;
        done.map_err(|_| ApiError::internal("changing the model failed: a defect, please report it"))?
    }

    /// Whether the server can compute now.
    ///
    /// # Errors
    /// Why it cannot.
    pub(crate) async fn ready(&self) -> Result<(), String> {
        if self.draining.load(Ordering::Acquire) {
            return Err("the server is being stopped".to_owned());
        }
        if let Some(why) = self.registry.unready() {
            return Err(why);
        }
        self.ready_pool().await
    }

    /// Whether the pool computes a known result.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) async fn ready_pool(&self) -> Result<(), String> {
        // Those that wait here get the result of the one before them.
        let mut checked = self.checked.lock().await;
        if let Some((when, result)) = &*checked
            && when.elapsed() < CHECK_COUNTS
        {
            return result.clone();
        }
        let source = Arc::clone(&self.source);
        let check = tokio::task::spawn_blocking(move || source.ready());
        let result = match tokio::time::timeout(CHECK_LIMIT, check).await {
            Ok(Ok(result)) => result.map_err(|error| format!("the pool does not compute: {error}")),
            Ok(Err(_)) => Err("the check of the pool failed".to_owned()),
            Err(_) => Err(format!("the check of the pool took longer than {CHECK_LIMIT:?}")),
        };
        *checked = Some((Instant::now(), result.clone()));
        result
    }
}
