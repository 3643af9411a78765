//! The addresses of the protocol, and who may use them.
//!
//! Relevant if you want to know what a server answers to. Health and metrics need no token; everything else does where
//! tokens are configured.
//!
//! Invariant: every answer outside `/metrics` and health is JSON, errors included.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request as HttpRequest, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::infer::{Which, classify, infer, json_response};
use crate::registry::{Entry, State as ModelState};
use crate::served::{Fact, Served};

/// Longest body of a request about the repository.
const SMALL_BODY: usize = 1 << 16;

/// All routes.
pub(crate) fn routes(app: &Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/v2", get(server))
        .route("/v2/", get(server))
        .route("/v2/models/{model}", get(metadata))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/classify", post(classify))
        .route("/v2/models/{model}/versions/{version}", get(metadata))
        .route("/v2/models/{model}/versions/{version}/ready", get(model_ready))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}/classify", post(classify))
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{model}/load", post(load))
        .route("/v2/repository/models/{model}/unload", post(unload))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(app), authorised));
    Router::new()
        .route("/v2/health/live", get(|| async { StatusCode::OK }))
        .route("/v2/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .merge(guarded)
        .with_state(Arc::clone(app))
}

/// Refuses requests without a token, where there are tokens.
async fn authorised(State(app): State<Arc<App>>, request: HttpRequest, next: Next) -> Response {
    let header = request.headers().get(header::AUTHORIZATION);
    if let Some(tokens) = &app.tokens
        && !tokens.admit(header.map(header::HeaderValue::as_bytes))
    {
        let text = "this server needs a token: send the header Authorization: Bearer TOKEN";
        return ApiError::new(StatusCode::UNAUTHORIZED, text).into_response();
    }
    next.run(request).await
}

async fn unknown(request: HttpRequest) -> ApiError {
    ApiError::not_found(format!("there is nothing at {:?}", request.uri().path()))
}

async fn wrong_method(request: HttpRequest) -> ApiError {
    let (method, path) = (request.method(), request.uri().path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path:?} does not answer to {method}"))
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.ready().await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(why) => ApiError::unavailable(why).into_response(),
    }
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let waiting = app.dispatcher.waiting();
    let text = tokio::task::spawn_blocking(move || app.metrics.text(&app.source.metrics(), waiting));
    match text.await {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => ApiError::internal("the metrics could not be read").into_response(),
    }
}

async fn server() -> Response {
    let about = json!({
        "name": "fcdcc",
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": ["binary_tensor_data", "model_repository"],
    });
    json_response(StatusCode::OK, &about)
}

async fn metadata(State(app): State<Arc<App>>, Path(which): Path<Which>) -> Result<Response, ApiError> {
    let model = app.registry.find(&which.model, which.version.as_deref())?;
    Ok(json_response(StatusCode::OK, &described(&model, app.registry.versions(&which.model))))
}

fn described(model: &Served, versions: Vec<String>) -> Value {
    let facts = |facts: &[Fact]| -> Vec<Value> {
        let fact = |f: &Fact| json!({ "name": f.name, "datatype": f.datatype.name(), "shape": f.shape });
        facts.iter().map(fact).collect()
    };
    json!({
        "name": model.name,
        "versions": versions,
        "platform": "onnx_fcdcc",
        "inputs": facts(&model.inputs),
        "outputs": facts(&model.outputs),
    })
}

async fn model_ready(State(app): State<Arc<App>>, Path(which): Path<Which>) -> Result<StatusCode, ApiError> {
    app.registry.find(&which.model, which.version.as_deref())?;
    app.ready_pool().await.map_err(ApiError::unavailable)?;
    Ok(StatusCode::OK)
}

/// The JSON object of a small body; an empty body is an empty object.
async fn object(app: &App, body: Body) -> Result<Map<String, Value>, ApiError> {
    let bytes = match tokio::time::timeout(app.body_timeout, axum::body::to_bytes(body, SMALL_BODY)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => return Err(ApiError::too_large(SMALL_BODY)),
        Err(_) => return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    };
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(&bytes).map_err(|e| ApiError::bad(format!("the body is not a JSON object: {e}")))
}

/// Refuses parameters with content: models come from the server's own files.
fn no_parameters(object: &Map<String, Value>, known: &str) -> Result<(), ApiError> {
    let Some(Value::Object(parameters)) = object.get("parameters") else { return Ok(()) };
    match parameters.keys().find(|name| *name != known) {
        None => Ok(()),
        Some(other) => Err(ApiError::bad(format!("parameter {other} is not supported: leave it out"))),
    }
}

async fn index(State(app): State<Arc<App>>, body: Body) -> Result<Response, ApiError> {
    let asked = object(&app, body).await?;
    let only_ready = asked.get("ready").and_then(Value::as_bool).unwrap_or(false);
    let row = |entry: Entry| {
        let (state, reason) = match &entry.state {
            ModelState::Ready => ("READY", ""),
            ModelState::Loading => ("LOADING", ""),
            ModelState::Unavailable(why) => ("UNAVAILABLE", why.as_str()),
        };
        json!({
            "name": entry.name,
            "version": entry.version.to_string(),
            "state": state,
            "reason": reason,
        })
    };
    let rows = app.registry.index().into_iter().filter(|e| !only_ready || e.state == ModelState::Ready);
    Ok(json_response(StatusCode::OK, &rows.map(row).collect()))
}

async fn load(
    State(app): State<Arc<App>>,
    Path(which): Path<Which>,
    body: Body,
) -> Result<Response, ApiError> {
    no_parameters(&object(&app, body).await?, "")?;
    changed(app, which.model, |app, model| app.registry.load(model)).await
}

async fn unload(
    State(app): State<Arc<App>>,
    Path(which): Path<Which>,
    body: Body,
) -> Result<Response, ApiError> {
    no_parameters(&object(&app, body).await?, "unload_dependents")?;
    changed(app, which.model, |app, model| app.registry.unload(model)).await
}

/// Changes the registry on a thread that may block.
async fn changed(
    app: Arc<App>,
    model: String,
    change: fn(&App, &str) -> Result<(), ApiError>,
) -> Result<Response, ApiError> {
    let done = tokio::task::spawn_blocking(move || change(&app, &model)).await;
    done.map_err(|_| ApiError::internal("changing the model failed: a defect, please report it"))??;
    Ok(json_response(StatusCode::OK, &json!({})))
}
