//! The addresses of the protocol, and who may use them.
//!
//! Relevant if you want to know what a server answers to. Health, metrics and the page, which holds no data, need no token;
//! everything else does where tokens are configured.
//!
//! Invariant: every answer outside `/metrics`, health and the page is JSON, errors included.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request as HttpRequest, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::describe::{self, Configuration};
use crate::error::ApiError;
use crate::infer::{Which, classify, infer, json_response};
use crate::origin::Origin;
use crate::page;
use crate::received;
use crate::registry::no_parameters;
use crate::served::Served;

/// Longest body of a request about the repository.
const SMALL_BODY: usize = 1 << 16;

/// All routes.
pub(crate) fn routes(app: &Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/v2", get(server))
        .route("/v2/", get(server))
        .route("/v2/models/{model}", get(metadata))
        .route("/v2/models/stats", get(all_statistics))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/config", get(configuration))
        .route("/v2/models/{model}/stats", get(statistics))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/classify", post(classify))
        .route("/v2/models/{model}/versions/{version}", get(metadata))
        .route("/v2/models/{model}/versions/{version}/ready", get(model_ready))
        .route("/v2/models/{model}/versions/{version}/config", get(configuration))
        .route("/v2/models/{model}/versions/{version}/stats", get(statistics))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}/classify", post(classify))
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{model}/load", post(load))
        .route("/v2/repository/models/{model}/unload", post(unload))
        .route("/v2/{extension}", any(unsupported))
        .route("/v2/{extension}/{*rest}", any(unsupported))
        .route("/v2/models/{model}/trace/setting", any(unsupported_of_model))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(app), authorised));
    Router::new()
        .route("/v2/health/live", get(|| async { StatusCode::OK }))
        .route("/v2/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/", get(|| async { page::response() }))
        .merge(guarded)
        .with_state(Arc::clone(app))
}

/// Refuses requests without a token, where there are tokens, and those that pages of other sites make a browser send. What
/// is no inference goes to the access log here.
async fn authorised(State(app): State<Arc<App>>, request: HttpRequest, next: Next) -> Response {
    let (origin, since) = (app.access.is_some().then(|| Origin::http(&request)), Instant::now());
    let header = request.headers().get(header::AUTHORIZATION);
    let response = if page::is_foreign(request.headers()) {
        let text = "a page of another site made this request: open the server's own page, or use a client without a browser";
        ApiError::new(StatusCode::FORBIDDEN, text).into_response()
    } else if !app.credentials.admit(header.map(header::HeaderValue::as_bytes)) {
        let text = "this server needs a token: send the header Authorization: Bearer TOKEN";
        ApiError::new(StatusCode::UNAUTHORIZED, text).into_response()
    } else if request.method() == Method::POST && is_inference(request.uri().path()) {
        // Its handler has more to say.
        return next.run(request).await;
    } else {
        next.run(request).await
    };
    if let Some(origin) = origin {
        app.log(&origin, response.status(), since);
    }
    response
}

/// Whether a path is that of `infer` or `classify`.
fn is_inference(path: &str) -> bool {
    let Some(rest) = path.strip_prefix("/v2/models/") else { return false };
    let parts: Vec<&str> = rest.split('/').collect();
    let ([_, last] | [_, "versions", _, last]) = parts[..] else { return false };
    !parts[0].is_empty() && matches!(last, "infer" | "classify")
}

/// Extensions of the protocol that clients may ask for, by the first part of their addresses, and what to do instead.
const UNSUPPORTED: [(&str, &str); 4] = [
    ("systemsharedmemory", "shared memory is not supported: send tensors in the request"),
    ("cudasharedmemory", "shared memory is not supported: send tensors in the request"),
    ("trace", "trace settings are not supported: set the log level when the server starts"),
    ("logging", "log settings are not supported: set the log level when the server starts"),
];

async fn unsupported(request: HttpRequest) -> ApiError {
    let part = request.uri().path().split('/').nth(2).unwrap_or_default();
    match UNSUPPORTED.iter().find(|(name, _)| *name == part) {
        Some((_, text)) => ApiError::new(StatusCode::NOT_IMPLEMENTED, *text),
        None => unknown(request).await,
    }
}

async fn unsupported_of_model() -> ApiError {
    ApiError::new(StatusCode::NOT_IMPLEMENTED, UNSUPPORTED[2].1)
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
    let text =
        tokio::task::spawn_blocking(move || app.metrics.text(&app.source.metrics(), waiting, app.scrape()));
    match text.await {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => ApiError::internal("the metrics could not be read").into_response(),
    }
}

async fn server() -> Response {
    json_response(StatusCode::OK, &describe::server())
}

async fn metadata(State(app): State<Arc<App>>, Path(which): Path<Which>) -> Result<Response, ApiError> {
    let model = app.registry.find(&which.model, which.version.as_deref())?;
    let described = describe::metadata(&model, &app.registry.versions(&which.model));
    Ok(json_response(StatusCode::OK, &described))
}

async fn configuration(State(app): State<Arc<App>>, Path(which): Path<Which>) -> Result<Response, ApiError> {
    let model = app.registry.find(&which.model, which.version.as_deref())?;
    Ok(json_response(StatusCode::OK, &Configuration::of(&model).json()))
}

async fn statistics(State(app): State<Arc<App>>, Path(which): Path<Which>) -> Result<Response, ApiError> {
    let models = app.registry.loaded(Some(&which.model), which.version.as_deref())?;
    Ok(statistics_of(&models))
}

async fn all_statistics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    Ok(statistics_of(&app.registry.loaded(None, None)?))
}

fn statistics_of(models: &[Arc<Served>]) -> Response {
    let rows: Vec<Value> = models.iter().map(|model| describe::statistics(model)).collect();
    json_response(StatusCode::OK, &json!({ "model_stats": rows }))
}

async fn model_ready(State(app): State<Arc<App>>, Path(which): Path<Which>) -> Result<StatusCode, ApiError> {
    app.registry.find(&which.model, which.version.as_deref())?;
    app.ready_pool().await.map_err(ApiError::unavailable)?;
    Ok(StatusCode::OK)
}

/// The JSON object of a small body; an empty body is an empty object.
async fn object(app: &App, body: Body) -> Result<Map<String, Value>, ApiError> {
    let bytes = tokio::time::timeout(app.body_timeout, received::all(body, None, SMALL_BODY)).await;
    let bytes = bytes.unwrap_or_else(|_| Err(received::too_slow(app.body_timeout)))?;
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(&bytes).map_err(|e| ApiError::bad(format!("the body is not a JSON object: {e}")))
}

fn parameters(object: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let parameters = object.get("parameters").and_then(Value::as_object);
    parameters.into_iter().flat_map(|parameters| parameters.keys().map(String::as_str))
}

async fn index(State(app): State<Arc<App>>, body: Body) -> Result<Response, ApiError> {
    let asked = object(&app, body).await?;
    let only_ready = asked.get("ready").and_then(Value::as_bool).unwrap_or(false);
    let rows = app.registry.listed(only_ready);
    Ok(json_response(StatusCode::OK, &rows.iter().map(describe::row).collect()))
}

async fn load(
    State(app): State<Arc<App>>,
    Path(which): Path<Which>,
    body: Body,
) -> Result<Response, ApiError> {
    no_parameters(parameters(&object(&app, body).await?), "")?;
    app.load(which.model).await?;
    Ok(json_response(StatusCode::OK, &json!({})))
}

async fn unload(
    State(app): State<Arc<App>>,
    Path(which): Path<Which>,
    body: Body,
) -> Result<Response, ApiError> {
    no_parameters(parameters(&object(&app, body).await?), "unload_dependents")?;
    app.unload(which.model).await?;
    Ok(json_response(StatusCode::OK, &json!({})))
}

#[cfg(test)]
mod tests {
    use super::is_inference;

    #[test]
    fn paths_of_inferences_are_known() {
        for path in ["/v2/models/m/infer", "/v2/models/m/classify", "/v2/models/m/versions/3/infer"] {
            assert!(is_inference(path), "{path}");
        }
        let others = [
            "/v2/models/infer",
            "/v2/models//infer",
            "/v2/models/m/infer/x",
            "/v2/models/m/versions/infer",
            "/infer",
        ];
        for path in others {
            assert!(!is_inference(path), "{path}");
        }
    }
}
