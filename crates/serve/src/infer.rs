//! Handlers of `infer` and `classify`: from a body to an answer.
//!
//! Relevant if you want to know the order of events of a request: model, body, parsing, queue, run, answer.
//!
//! Invariant: a request is counted once, with the status that its client got, or 499 if the client went away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Path, Request as HttpRequest, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use fcdcc::model::Output;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::request::Request;
use crate::response::{self, Encoded, JSON_LENGTH};
use crate::served::{Accepted, Served};

/// Bodies and answers above this are parsed and encoded beside the threads of connections.
const SMALL: usize = 1 << 16;
/// The number of classes that `classify` answers with by default.
const TOP: usize = 5;

/// Name and version in the path of a request.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Which {
    pub(crate) model: String,
    pub(crate) version: Option<String>,
}

/// Counts a request when it is answered, or when its handler is dropped.
struct Counted<'a> {
    app: &'a App,
    model: Option<String>,
    status: StatusCode,
}

impl<'a> Counted<'a> {
    fn new(app: &'a App) -> Self {
        Self { app, model: None, status: ApiError::abandoned().status }
    }

    fn answer(mut self, outcome: Result<Response, ApiError>) -> Response {
        let response = outcome.unwrap_or_else(IntoResponse::into_response);
        self.status = response.status();
        response
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.app.metrics.answered(self.model.as_deref(), self.status.as_u16());
    }
}

/// `POST /v2/models/M[/versions/V]/infer`.
pub(crate) async fn infer(
    State(app): State<Arc<App>>,
    Path(which): Path<Which>,
    request: HttpRequest,
) -> Response {
    let mut counted = Counted::new(&app);
    let outcome = inferred(&app, &which, request, &mut counted.model).await;
    counted.answer(outcome.map(IntoResponse::into_response))
}

async fn inferred(
    app: &App,
    which: &Which,
    request: HttpRequest,
    label: &mut Option<String>,
) -> Result<Encoded, ApiError> {
    let arrived = Instant::now();
    let model = app.registry.find(&which.model, which.version.as_deref())?;
    *label = Some(model.name.clone());
    let (parts, body) = request.into_parts();
    let json_length = json_length(&parts.headers)?;
    let body = app.body(announced(&parts.headers)?, body).await?;
    let large = body.len() > SMALL;
    let mut request = aside(large, move || Request::parse(&body, json_length)).await??;
    let accepted = model.accept(&mut request)?;
    let outputs = computed(app, &model, accepted, arrived, request.timeout).await?;
    let large = outputs.iter().any(|output| output.tensor.shape().iter().product::<usize>() > SMALL / 4);
    aside(large, move || {
        let version = model.version.to_string();
        let of = (model.name.as_str(), version.as_str());
        response::encode(of, request.id.as_deref(), &outputs, &request.outputs, request.binary_outputs)
    })
    .await?
}

/// Queues a request and waits for its outputs.
async fn computed(
    app: &App,
    model: &Arc<Served>,
    accepted: Accepted,
    arrived: Instant,
    timeout: Option<Duration>,
) -> Result<Vec<Output>, ApiError> {
    let limit = timeout.map_or(model.config.timeout, |timeout| timeout.min(model.config.timeout));
    let mut ticket = app.dispatcher.submit(model, accepted)?;
    let left = limit.saturating_sub(arrived.elapsed());
    match tokio::time::timeout(left, &mut ticket.answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(ApiError::unavailable("the server ended before the request was computed")),
        // Dropping the ticket withdraws the request.
        Err(_) => Err(ApiError::late(limit)),
    }
}

/// Does `work` here, or on a thread where it may take long.
async fn aside<T: Send + 'static>(
    large: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    if !large {
        return Ok(work());
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ApiError::internal("reading the request failed: a defect, please report it"))
}

fn announced(headers: &HeaderMap) -> Result<Option<usize>, ApiError> {
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING).filter(|value| *value != "identity") {
        let text = format!("Content-Encoding {encoding:?} is not supported: send the body as it is");
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
    }
    let Some(length) = headers.get(header::CONTENT_LENGTH) else { return Ok(None) };
    let length = length.to_str().ok().and_then(|text| text.parse().ok());
    length.map(Some).ok_or_else(|| ApiError::bad("Content-Length is not a number of bytes"))
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, ApiError> {
    let Some(value) = headers.get(JSON_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    length.map(Some).ok_or_else(|| {
        ApiError::bad(format!("Inference-Header-Content-Length is {value:?}: give the bytes of the JSON"))
    })
}

/// `POST /v2/models/M[/versions/V]/classify?top=K` with a picture as the body.
pub(crate) async fn classify(
    State(app): State<Arc<App>>,
    Path(which): Path<Which>,
    request: HttpRequest,
) -> Response {
    let mut counted = Counted::new(&app);
    let outcome = classified(&app, &which, request, &mut counted.model).await;
    counted.answer(outcome.map(|answer| json_response(StatusCode::OK, &answer)))
}

async fn classified(
    app: &App,
    which: &Which,
    request: HttpRequest,
    label: &mut Option<String>,
) -> Result<Value, ApiError> {
    let arrived = Instant::now();
    let model = app.registry.find(&which.model, which.version.as_deref())?;
    *label = Some(model.name.clone());
    let Some(pictures) = app.pictures.clone() else {
        return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "this server decodes no pictures"));
    };
    let top = top(request.uri().query())?;
    let (parts, body) = request.into_parts();
    let body = app.body(announced(&parts.headers)?, body).await?;
    let of = Arc::clone(&model);
    let tensor = aside(true, move || {
        let [input] = of.input_infos() else {
            let count = of.inputs.len();
            let text = format!("model {} has {count} inputs where pictures need a single one", of.name);
            return Err(ApiError::bad(text));
        };
        pictures.read(input, of.config.picture.as_ref(), body.to_vec()).map_err(ApiError::from)
    });
    let accepted = model.accept_tensors(vec![tensor.await??])?;
    let outputs = computed(app, &model, accepted, arrived, None).await?;
    let scores = outputs.first().map(|output| output.tensor.to_f64()).unwrap_or_default();
    Ok(json!({
        "model_name": model.name,
        "model_version": model.version.to_string(),
        "classes": classes(&scores, top, &model.labels),
    }))
}

/// `top=K` of a query.
fn top(query: Option<&str>) -> Result<usize, ApiError> {
    let mut top = TOP;
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let value = pair.strip_prefix("top=").and_then(|value| value.parse().ok()).filter(|top| *top > 0);
        top = value.ok_or_else(|| {
            ApiError::bad(format!("the query has {pair:?}: use top=K, a number above zero"))
        })?;
    }
    Ok(top)
}

/// The largest scores with their indices, and labels where there are any.
fn classes(scores: &[f64], top: usize, labels: &[String]) -> Vec<Value> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let class = |index: usize| match labels.get(index) {
        Some(label) => json!({ "index": index, "score": scores[index], "label": label }),
        None => json!({ "index": index, "score": scores[index] }),
    };
    order.into_iter().take(top).map(class).collect()
}

/// A JSON answer.
pub(crate) fn json_response(status: StatusCode, value: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn the_largest_scores_come_first_with_their_labels() {
        let labels = ["cat".to_owned(), "dog".to_owned()];
        let found = classes(&[0.5, 2.0, 1.0], 2, &labels);
        let expected = json!([{"index": 1, "score": 2.0, "label": "dog"}, {"index": 2, "score": 1.0}]);
        assert_eq!(Value::from(found), expected);
        assert_eq!((top(None).unwrap(), top(Some("top=3")).unwrap()), (TOP, 3));
        for bad in ["top=0", "top=x", "k=3"] {
            assert_eq!(top(Some(bad)).unwrap_err().status, 400, "{bad}");
        }
    }

    #[test]
    fn headers_that_change_the_meaning_of_a_body_are_read_or_refused() {
        let of = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
        };
        assert_eq!(announced(&of("content-length", "12")).unwrap(), Some(12));
        assert_eq!(announced(&of("content-encoding", "gzip")).unwrap_err().status, 415);
        assert_eq!(json_length(&of(JSON_LENGTH, " 7")).unwrap(), Some(7));
        assert_eq!(json_length(&of(JSON_LENGTH, "-7")).unwrap_err().status, 400);
    }
}
