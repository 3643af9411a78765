//! Answers over HTTP: JSON with outputs inside it or behind it, packed where the client accepts that.
//!
//! Relevant if you want to know what a client gets. An answer with at least one output as bytes has the header
//! `Inference-Header-Content-Length`, the form of a request with bytes.
//!
//! Invariant: the header gives the length of the JSON before packing, as clients unpack first.

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::answer::{Answer, Sent, Values};
use crate::datatype::{Flat, write_bytes};
use crate::error::ApiError;
use crate::packing::Packing;
use crate::strings::write_texts;

/// The header with the length of the JSON part.
pub(crate) const JSON_LENGTH: &str = "inference-header-content-length";
/// Answers up to this length are not packed: there is nothing to gain.
const NOT_PACKED: usize = 1024;

/// An encoded answer.
#[derive(Debug)]
pub(crate) struct Encoded {
    body: Vec<u8>,
    /// The length of the JSON if bytes follow.
    json_length: Option<usize>,
    packing: Option<Packing>,
}

#[derive(Serialize)]
struct WireAnswer<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Parameters<'a>>,
    outputs: Vec<WireOutput<'a>>,
}

#[derive(Serialize)]
struct Parameters<'a> {
    report: &'a str,
}

#[derive(Serialize)]
struct WireOutput<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: &'a [usize],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Size>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Data<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data<'a> {
    Numbers(Flat<'a>),
    Texts(&'a [String]),
}

#[derive(Serialize)]
struct Size {
    binary_data_size: usize,
}

/// Encodes an answer.
pub(crate) fn encode(answer: &Answer, packing: Option<Packing>) -> Result<Encoded, ApiError> {
    let version = answer.model.version.to_string();
    let mut bytes = Vec::new();
    let listed: Vec<WireOutput> = answer.outputs.iter().map(|output| listed(output, &mut bytes)).collect();
    let any_binary = answer.outputs.iter().any(|output| output.binary);
    let answer = WireAnswer {
        model_name: &answer.model.name,
        model_version: &version,
        id: answer.id.as_deref(),
        parameters: answer.report.as_deref().map(|report| Parameters { report }),
        outputs: listed,
    };
    let mut body = serde_json::to_vec(&answer).map_err(|e| ApiError::internal(e.to_string()))?;
    let json_length = any_binary.then_some(body.len());
    body.extend(bytes);
    let packing = packing.filter(|_| body.len() > NOT_PACKED);
    if let Some(packing) = packing {
        body = packing.pack(&body)?;
    }
    Ok(Encoded { body, json_length, packing })
}

/// One output; as bytes it goes to the end of `bytes`.
fn listed<'a>(output: &'a Sent, bytes: &mut Vec<u8>) -> WireOutput<'a> {
    let before = bytes.len();
    let data = match &output.values {
        Values::Numbers(_, tensor) if output.binary => {
            write_bytes(tensor, bytes);
            None
        }
        Values::Classes(_, texts) if output.binary => {
            write_texts(texts, bytes);
            None
        }
        Values::Numbers(_, tensor) => Some(Data::Numbers(Flat(tensor))),
        Values::Classes(_, texts) => Some(Data::Texts(texts)),
    };
    WireOutput {
        name: &output.name,
        datatype: output.values.datatype(),
        shape: output.values.shape(),
        parameters: output.binary.then(|| Size { binary_data_size: bytes.len() - before }),
        data,
    }
}

impl IntoResponse for Encoded {
    fn into_response(self) -> Response {
        let kind = if self.json_length.is_some() { "application/octet-stream" } else { "application/json" };
        let mut response = ([(header::CONTENT_TYPE, kind)], self.body).into_response();
        let headers = response.headers_mut();
        if let Some(length) = self.json_length {
            headers.insert(HeaderName::from_static(JSON_LENGTH), HeaderValue::from(length));
        }
        if let Some(packing) = self.packing {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(packing.name()));
        }
        response
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use ndarray::ArrayD;

    use super::*;
    use crate::datatype::Datatype;

    #[test]
    fn outputs_are_in_json_or_behind_it() {
        let numbers = |binary| Sent {
            name: "y".to_owned(),
            values: Values::Numbers(
                Datatype::Int32,
                ArrayD::from_shape_vec(vec![2], vec![1, 2]).unwrap().into(),
            ),
            binary,
        };
        let classes = |binary| Sent {
            name: "c".to_owned(),
            values: Values::Classes(vec![1], vec!["0.5:1:a".to_owned()]),
            binary,
        };
        let text = |sent: &Sent| {
            let mut bytes = Vec::new();
            (serde_json::to_string(&listed(sent, &mut bytes)).unwrap(), bytes)
        };
        let json = r#"{"name":"y","datatype":"INT32","shape":[2],"data":[1,2]}"#;
        assert_eq!(text(&numbers(false)), (json.to_owned(), vec![]));
        let (json, bytes) = text(&numbers(true));
        assert!(json.ends_with(r#""parameters":{"binary_data_size":8}}"#), "{json}");
        assert_eq!(bytes, [1, 0, 0, 0, 2, 0, 0, 0]);
        let json = r#"{"name":"c","datatype":"BYTES","shape":[1],"data":["0.5:1:a"]}"#;
        assert_eq!(text(&classes(false)), (json.to_owned(), vec![]));
        assert_eq!(text(&classes(true)).1, b"\x07\0\0\x000.5:1:a");
    }
}
