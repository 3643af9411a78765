//! The standard health check, `grpc.health.v1.Health`.
//!
//! Relevant if you want to probe a server as orchestrators do. A service is serving while every model is loaded and the pool
//! computes a known result, as for readiness over HTTP.
//!
//! Invariant: a watcher hears of the first state and of every change, and its stream ends with the server.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{Stream, unfold};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health as HealthService;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::app::App;

/// How often the state is looked at for those that watch it.
const EVERY: Duration = Duration::from_secs(5);
/// The names of what can be checked: the whole server, and its service.
const SERVICES: [&str; 2] = ["", "inference.GRPCInferenceService"];

/// The check.
pub(super) struct Health {
    app: Arc<App>,
    stop: watch::Receiver<bool>,
}

impl Health {
    pub(super) fn new(app: &Arc<App>, stop: &watch::Receiver<bool>) -> Self {
        Self { app: Arc::clone(app), stop: stop.clone() }
    }
}

async fn serving(app: &App) -> ServingStatus {
    match app.ready().await {
        Ok(()) => ServingStatus::Serving,
        Err(_) => ServingStatus::NotServing,
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}

/// What a watcher has heard.
struct Watcher {
    /// `None` for a service that is not there.
    app: Option<Arc<App>>,
    stop: watch::Receiver<bool>,
    heard: Option<ServingStatus>,
}

impl Watcher {
    /// The next state that differs; `None` when the server ends.
    async fn next(mut self) -> Option<(Result<HealthCheckResponse, Status>, Self)> {
        loop {
            let stopped = *self.stop.borrow_and_update();
            let now = match &self.app {
                Some(app) => serving(app).await,
                None => ServingStatus::ServiceUnknown,
            };
            if self.heard != Some(now) {
                self.heard = Some(now);
                return Some((Ok(response(now)), self));
            }
            if stopped {
                return None;
            }
            // A change and the time alike are a reason to look again; a sender that is gone is the end.
            if let Ok(Err(_)) = tokio::time::timeout(EVERY, self.stop.changed()).await {
                return None;
            }
        }
    }
}

#[tonic::async_trait]
impl HealthService for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if !SERVICES.contains(&service.as_str()) {
            return Err(Status::not_found(format!("there is no service {service:?}")));
        }
        Ok(Response::new(response(serving(&self.app).await)))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = SERVICES.contains(&request.into_inner().service.as_str());
        let app = known.then(|| Arc::clone(&self.app));
        let watcher = Watcher { app, stop: self.stop.clone(), heard: None };
        Ok(Response::new(Box::pin(unfold(watcher, Watcher::next))))
    }
}
