//! Answers: JSON with outputs inside it or behind it.
//!
//! Relevant if you want to know what a client gets. An answer with at least one output as bytes has the header
//! `Inference-Header-Content-Length`, the form of a request with bytes.
//!
//! Invariant: outputs come in the order of the request, or in the order of the model where it asks for none.

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use fcdcc::model::Output;
use serde::Serialize;

use crate::datatype::{Datatype, Flat, write_bytes};
use crate::error::ApiError;
use crate::request::Wanted;

/// The header with the length of the JSON part.
pub(crate) const JSON_LENGTH: &str = "inference-header-content-length";

/// An encoded answer.
#[derive(Debug)]
pub(crate) struct Encoded {
    body: Vec<u8>,
    /// The length of the JSON if bytes follow.
    json_length: Option<usize>,
}

#[derive(Serialize)]
struct WireAnswer<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    outputs: Vec<WireOutput<'a>>,
}

#[derive(Serialize)]
struct WireOutput<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: &'a [usize],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Flat<'a>>,
}

#[derive(Serialize)]
struct Bytes {
    binary_data_size: usize,
}

/// Encodes the outputs that a request wants.
pub(crate) fn encode(
    (model_name, model_version): (&str, &str),
    id: Option<&str>,
    outputs: &[Output],
    wanted: &[Wanted],
    binary_outputs: bool,
) -> Result<Encoded, ApiError> {
    let mut bytes = Vec::new();
    let mut listed = Vec::new();
    let chosen: Vec<(&Output, bool)> = if wanted.is_empty() {
        outputs.iter().map(|output| (output, binary_outputs)).collect()
    } else {
        let find = |wanted: &Wanted| {
            let found = outputs.iter().find(|output| output.name == wanted.name);
            let found = found.ok_or_else(|| ApiError::bad(format!("there is no output {}", wanted.name)))?;
            Ok((found, wanted.binary.unwrap_or(binary_outputs)))
        };
        wanted.iter().map(find).collect::<Result<_, ApiError>>()?
    };
    for (output, binary) in chosen {
        let tensor = &output.tensor;
        let datatype = Datatype::of_library(tensor.dtype()).ok_or_else(|| {
            ApiError::internal(format!("output {} is of type {}", output.name, tensor.dtype()))
        })?;
        let before = bytes.len();
        if binary {
            write_bytes(tensor, &mut bytes);
        }
        listed.push(WireOutput {
            name: &output.name,
            datatype: datatype.name(),
            shape: tensor.shape(),
            parameters: binary.then(|| Bytes { binary_data_size: bytes.len() - before }),
            data: (!binary).then_some(Flat(tensor)),
        });
    }
    let any_binary = listed.iter().any(|output| output.parameters.is_some());
    let answer = WireAnswer { model_name, model_version, id, outputs: listed };
    let mut body = serde_json::to_vec(&answer).map_err(|e| ApiError::internal(e.to_string()))?;
    let json_length = any_binary.then_some(body.len());
    body.extend(bytes);
    Ok(Encoded { body, json_length })
}

impl Encoded {
    /// About how long it is.
    #[cfg(test)]
    pub(crate) fn parts(&self) -> (&[u8], Option<usize>) {
        (&self.body, self.json_length)
    }
}

impl IntoResponse for Encoded {
    fn into_response(self) -> Response {
        let kind = if self.json_length.is_some() { "application/octet-stream" } else { "application/json" };
        let mut response = ([(header::CONTENT_TYPE, kind)], self.body).into_response();
        if let Some(length) = self.json_length {
            response.headers_mut().insert(HeaderName::from_static(JSON_LENGTH), HeaderValue::from(length));
        }
        response
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use ndarray::ArrayD;

    use super::*;

    #[test]
    fn outputs_are_chosen_by_name_in_json_or_bytes() {
        let of = |name: &str, values: Vec<i32>| Output {
            name: name.to_owned(),
            tensor: ArrayD::from_shape_vec(vec![values.len()], values).unwrap().into(),
        };
        let outputs = [of("y", vec![1, 2]), of("z", vec![3])];
        let all = encode(("m", "1"), Some("7"), &outputs, &[], false).unwrap();
        let text = r#"{"model_name":"m","model_version":"1","id":"7","outputs":[{"name":"y","datatype":"INT32","shape":[2],"data":[1,2]},{"name":"z","datatype":"INT32","shape":[1],"data":[3]}]}"#;
        assert_eq!((std::str::from_utf8(all.parts().0).unwrap(), all.parts().1), (text, None));
        let wanted =
            [Wanted { name: "z".into(), binary: None }, Wanted { name: "y".into(), binary: Some(false) }];
        let mixed = encode(("m", "1"), None, &outputs, &wanted, true).unwrap();
        let (body, length) = mixed.parts();
        let (json, bytes) = body.split_at(length.unwrap());
        let json: serde_json::Value = serde_json::from_slice(json).unwrap();
        assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], 4);
        assert_eq!((&json["outputs"][1]["data"][1], bytes), (&serde_json::json!(2), &[3, 0, 0, 0][..]));
        let unknown = [Wanted { name: "w".into(), binary: None }];
        assert_eq!(encode(("m", "1"), None, &outputs, &unknown, true).unwrap_err().status, 400);
    }
}
