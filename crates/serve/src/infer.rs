//! Handlers of `infer` and `classify` over HTTP: from a body to an answer.
//!
//! Relevant if you want to know how a body becomes a request: length, packing, JSON, bytes.
//!
//! Invariant: a body is read only for a model that is loaded, and within the limits of bytes and time.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request as HttpRequest, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::answer::largest;
use crate::app::App;
use crate::body;
use crate::cost::Cost;
use crate::error::ApiError;
use crate::handle::{Handling, SMALL, aside};
use crate::origin::Origin;
use crate::packing::Packing;
use crate::request::Priority;
use crate::response::{Encoded, JSON_LENGTH, encode};

/// The number of classes that `classify` answers with by default.
const TOP: usize = 5;
/// How far the sum of probabilities in f32 or 16 bits may be from one.
const SUM_OF_ONE: f64 = 1e-2;

/// Name and version in the path of a request.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Which {
    pub(crate) model: String,
    pub(crate) version: Option<String>,
}

/// `POST /v2/models/M[/versions/V]/infer`.
pub(crate) async fn infer(
    State(app): State<Arc<App>>,
    Path(which): Path<Which>,
    request: HttpRequest,
) -> Response {
    let mut handling = Handling::new(&app, Origin::http(&request), None);
    let outcome = inferred(&app, &mut handling, &which, request).await;
    ended(handling, outcome.map(IntoResponse::into_response))
}

fn ended(handling: Handling<'_>, outcome: Result<Response, ApiError>) -> Response {
    let response = outcome.unwrap_or_else(IntoResponse::into_response);
    handling.end(response.status());
    response
}

async fn inferred(
    app: &App,
    handling: &mut Handling<'_>,
    which: &Which,
    request: HttpRequest,
) -> Result<Encoded, ApiError> {
    let model = handling.find(&which.model, which.version.as_deref())?;
    let (parts, body) = request.into_parts();
    let json_length = json_length(&parts.headers)?;
    let answer_packing = Packing::accepted(&parts.headers);
    let body = read_body(app, &parts.headers, body).await?;
    let request = aside(body.len() > SMALL, move || body::parse(&body, json_length)).await??;
    let answer = handling.answer(&model, request).await?;
    let large = answer.outputs.iter().any(|output| output.values.len() > SMALL / 4);
    aside(large || answer_packing.is_some(), move || encode(&answer, answer_packing)).await?
}

/// Reads and unpacks the body of a request.
async fn read_body(app: &App, headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    let packing = Packing::of_body(headers)?;
    let announced = announced(headers)?;
    let (bytes, held) = app.body(announced, packing.is_some(), body).await?;
    let Some(packing) = packing else { return Ok(bytes) };
    let limit = app.max_body_bytes;
    aside(true, move || {
        let unpacked = packing.unpack(&bytes, limit);
        drop(held);
        unpacked.map(Bytes::from)
    })
    .await?
}

fn announced(headers: &HeaderMap) -> Result<Option<usize>, ApiError> {
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

/// `POST /v2/models/M[/versions/V]/classify?top=K&cost=true` with a picture as the body.
pub(crate) async fn classify(
    State(app): State<Arc<App>>,
    Path(which): Path<Which>,
    request: HttpRequest,
) -> Response {
    let mut handling = Handling::new(&app, Origin::http(&request), None);
    let outcome = classified(&app, &mut handling, &which, request).await;
    ended(handling, outcome.map(|answer| json_response(StatusCode::OK, &answer)))
}

async fn classified(
    app: &App,
    handling: &mut Handling<'_>,
    which: &Which,
    request: HttpRequest,
) -> Result<Value, ApiError> {
    let model = handling.find(&which.model, which.version.as_deref())?;
    let Some(pictures) = app.pictures.clone() else {
        return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "this server decodes no pictures"));
    };
    let asked = Asked::read(request.uri().query())?;
    let (parts, body) = request.into_parts();
    let body = read_body(app, &parts.headers, body).await?;
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
    let computed = handling.compute(&model, accepted, Priority::default(), None).await?;
    let scores = computed.outputs.first().map(|output| output.tensor.to_f64()).unwrap_or_default();
    let mut answer = json!({
        "model_name": model.name,
        "model_version": model.version.to_string(),
        "classes": classes(&scores, asked.top, &model.labels),
    });
    if asked.cost {
        answer["cost"] = serde_json::to_value(Cost::of(&computed.report, &computed.times))
            .map_err(|e| ApiError::internal(e.to_string()))?;
    }
    Ok(answer)
}

/// What the query of a classification asks for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    /// The number of classes.
    top: usize,
    /// Whether the answer says what it cost.
    cost: bool,
}

impl Asked {
    fn read(query: Option<&str>) -> Result<Self, ApiError> {
        let mut asked = Self { top: TOP, cost: false };
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("top", value)) if value.parse().is_ok_and(|top: usize| top > 0) => {
                    asked.top = value.parse().unwrap_or(TOP);
                }
                Some(("cost", value)) if value.parse::<bool>().is_ok() => asked.cost = value == "true",
                _ => {
                    return Err(ApiError::bad(format!(
                        "the query has {pair:?}: use top=K, a number above zero, and cost=true or cost=false"
                    )));
                }
            }
        }
        Ok(asked)
    }
}

/// The largest scores with their indices and probabilities, and labels where there are any.
fn classes(scores: &[f64], top: usize, labels: &[String]) -> Vec<Value> {
    let probabilities = probabilities(scores);
    let class = |index: usize| {
        let mut class =
            json!({ "index": index, "score": scores[index], "probability": probabilities[index] });
        if let Some(label) = labels.get(index) {
            class["label"] = json!(label);
        }
        class
    };
    largest(scores, top).into_iter().map(class).collect()
}

/// The softmax of scores; scores that are probabilities already stay as they are, since many models end with a softmax.
fn probabilities(scores: &[f64]) -> Vec<f64> {
    let sum: f64 = scores.iter().sum();
    if scores.iter().all(|score| (0.0..=1.0).contains(score)) && (sum - 1.0).abs() < SUM_OF_ONE {
        return scores.to_vec();
    }
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
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
        let of = |class: &Value| (class["index"].as_u64(), class["score"].as_f64(), class["label"].clone());
        let rows = [(Some(1), Some(2.0), json!("dog")), (Some(2), Some(1.0), Value::Null)];
        assert_eq!(found.iter().map(of).collect::<Vec<_>>(), rows);
        // exp(2) / (exp(0.5) + exp(2) + exp(1))
        assert!((found[0]["probability"].as_f64().unwrap() - 0.628_532).abs() < 1e-5, "{found:?}");
    }

    #[test]
    fn probabilities_add_up_to_one_and_are_not_made_twice() {
        let of = probabilities(&[1000.0, 999.0, -1000.0]);
        assert!((of.iter().sum::<f64>() - 1.0).abs() < 1e-12 && of[0] > 0.7 && of[2] == 0.0, "{of:?}");
        assert_eq!(probabilities(&[0.25, 0.75]), [0.25, 0.75]);
        assert_ne!(probabilities(&[0.25, 0.25]), [0.25, 0.25]);
        assert!(probabilities(&[]).is_empty());
    }

    #[test]
    fn queries_of_classifications_are_read_or_refused() {
        assert_eq!(Asked::read(None).unwrap(), Asked { top: TOP, cost: false });
        assert_eq!(Asked::read(Some("top=3&cost=true")).unwrap(), Asked { top: 3, cost: true });
        for bad in ["top=0", "top=x", "k=3", "cost=1", "top"] {
            assert_eq!(Asked::read(Some(bad)).unwrap_err().status, 400, "{bad}");
        }
    }

    #[test]
    fn headers_that_change_the_meaning_of_a_body_are_read_or_refused() {
        let of = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
        };
        assert_eq!(announced(&of("content-length", "12")).unwrap(), Some(12));
        assert_eq!(announced(&of("content-length", "x")).unwrap_err().status, 400);
        assert_eq!(json_length(&of(JSON_LENGTH, " 7")).unwrap(), Some(7));
        assert_eq!(json_length(&of(JSON_LENGTH, "-7")).unwrap_err().status, 400);
    }
}
