//! One request from its arrival to its answer, whichever protocol brought it.
//!
//! Relevant if you want to know the order of events: model, inputs, queue, run, outputs. A protocol decodes a request, calls
//! [`Handling::answer`], and encodes what it gets.
//!
//! Invariant: a request is counted once, with the status that its client got, or 499 if the client went away. Statuses are
//! those of HTTP for every protocol.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;

use crate::access::Entry;
use crate::answer::{Answer, Computed};
use crate::app::App;
use crate::cost::RunTimes;
use crate::error::ApiError;
use crate::origin::Origin;
use crate::request::{Content, Priority, Request};
use crate::served::{Accepted, Served};

/// Bodies and answers above this, in bytes, are parsed and encoded beside the threads of connections.
pub(crate) const SMALL: usize = 1 << 16;

/// A request that is being answered; counted when it ends, or when its handler is dropped.
pub(crate) struct Handling<'a> {
    app: &'a App,
    origin: Origin,
    model: Option<Arc<Served>>,
    arrived: Instant,
    /// The time that the transport allows from the arrival on.
    allowed: Option<Duration>,
    status: StatusCode,
    /// What the client calls it.
    id: Option<String>,
    items: Option<usize>,
    times: Option<RunTimes>,
}

impl<'a> Handling<'a> {
    /// A request that arrived now.
    pub(crate) fn new(app: &'a App, origin: Origin, allowed: Option<Duration>) -> Self {
        let status = ApiError::abandoned().status;
        let (id, items, times) = (None, None, None);
        Self { app, origin, model: None, arrived: Instant::now(), allowed, status, id, items, times }
    }

    /// The model that a request names; without a version the newest one that is loaded.
    ///
    /// # Errors
    /// 404 for one that is not there, 503 for one that is not loaded.
    pub(crate) fn find(&mut self, name: &str, version: Option<&str>) -> Result<Arc<Served>, ApiError> {
        let model = self.app.registry.find(name, version)?;
        self.model = Some(Arc::clone(&model));
        Ok(model)
    }

    /// Computes a request.
    ///
    /// # Errors
    /// 400 for inputs that do not fit the model, and those of [`Handling::compute`].
    pub(crate) async fn answer(&mut self, model: &Arc<Served>, request: Request) -> Result<Answer, ApiError> {
        model.check_outputs(&request)?;
        let Request { id, settings, inputs, outputs: wanted } = request;
        self.id.clone_from(&id);
        let any_pictures = inputs.iter().any(|input| matches!(input.content, Content::Strings(_)));
        let (of, pictures) = (Arc::clone(model), self.app.pictures.clone());
        let accepted = aside(any_pictures, move || of.accept(inputs, pictures.as_deref())).await??;
        let computed = self.compute(model, accepted, settings.priority, settings.timeout).await?;
        let elements = |computed: &Computed| {
            computed.outputs.iter().map(|o| o.tensor.shape().iter().product::<usize>()).sum::<usize>()
        };
        let large = elements(&computed) > SMALL / 4;
        let model = Arc::clone(model);
        aside(large, move || Answer::of(model, id, &settings, &wanted, computed)).await?
    }

    /// Queues inputs and waits for their outputs.
    ///
    /// # Errors
    /// 429 for a full queue, 503 where the server ends or too few workers answer, 504 when the time of the request is over,
    /// and what the run gives.
    pub(crate) async fn compute(
        &mut self,
        model: &Arc<Served>,
        accepted: Accepted,
        priority: Priority,
        timeout: Option<Duration>,
    ) -> Result<Computed, ApiError> {
        let limits = [timeout, self.allowed].into_iter().flatten();
        let limit = limits.fold(model.config.timeout, Duration::min);
        self.items = Some(accepted.items);
        let mut ticket = self.app.dispatcher.submit(model, accepted, priority)?;
        let left = limit.saturating_sub(self.arrived.elapsed());
        match tokio::time::timeout(left, &mut ticket.answer).await {
            Ok(Ok(answer)) => {
                self.times = answer.as_ref().ok().map(|computed| computed.times);
                answer
            }
            Ok(Err(_)) => Err(ApiError::unavailable("the server ended before the request was computed")),
            // Dropping the ticket withdraws the request.
            Err(_) => Err(ApiError::late(limit)),
        }
    }

    /// Ends the request with the status that its client gets.
    pub(crate) fn end(mut self, status: StatusCode) {
        self.status = status;
    }
}

impl Drop for Handling<'_> {
    fn drop(&mut self) {
        let name = self.model.as_deref().map(|model| model.name.as_str());
        self.app.metrics.answered(name, self.status.as_u16(), self.arrived.elapsed());
        if let Some(model) = &self.model {
            model.stats.answered(self.status == StatusCode::OK, self.arrived.elapsed());
        }
        let entry = Entry {
            origin: &self.origin,
            model: self.model.as_deref().map(|model| (model.name.as_str(), model.version)),
            id: self.id.as_deref(),
            items: self.items,
            status: self.status.as_u16(),
            time: self.arrived.elapsed(),
            times: self.times,
        };
        if let Some(access) = &self.app.access {
            access.add(&entry);
        }
        if let Some(spans) = &self.app.spans {
            spans.add(&entry);
        }
    }
}

/// Does `work` here, or on a thread where it may take long.
///
/// # Errors
/// 500 where it panics there.
pub(crate) async fn aside<T: Send + 'static>(
    large: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    if !large {
        return Ok(work());
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ApiError::internal("reading the request failed: a defect, please report it"))
}
