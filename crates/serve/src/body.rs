//! Inference requests over HTTP: JSON with tensors inside it or behind it.
//!
//! Relevant if you want to know what a client may send. With the header `Inference-Header-Content-Length` the body is that
//! many bytes of JSON, followed by the bytes of every input with parameter `binary_data_size`, in order.
//!
//! Invariant: a request that was parsed holds exactly the elements that its shapes announce, and no byte of the body is
//! left over.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::datatype::Numbers;
use crate::error::ApiError;
use crate::request::{Content, Kind, Named, Request, Settings, Wanted, number, only};
use crate::strings::Strings;

#[derive(Deserialize)]
struct WireRequest {
    id: Option<String>,
    #[serde(default)]
    parameters: Map<String, Value>,
    inputs: Vec<WireInput>,
    #[serde(default)]
    outputs: Vec<WireOutput>,
}

#[derive(Deserialize)]
struct WireInput {
    name: String,
    shape: Vec<usize>,
    datatype: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    data: Option<Numbers>,
}

#[derive(Deserialize)]
struct WireOutput {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

/// Parses a body; `header` is the length of its JSON where bytes follow.
///
/// # Errors
/// 400, with what was sent and what was expected.
pub(crate) fn parse(body: &Bytes, header: Option<usize>) -> Result<Request, ApiError> {
    let length = header.unwrap_or(body.len());
    if length > body.len() {
        return Err(ApiError::bad(format!(
            "Inference-Header-Content-Length is {length} where the body has {} bytes: it counts the JSON alone",
            body.len()
        )));
    }
    let mut rest = body.slice(length..);
    let wire: WireRequest = serde_json::from_slice(&body[..length])
        .map_err(|e| ApiError::bad(format!("the body is not an inference request: {e}")))?;
    let settings = Settings::read(&wire.parameters)?;
    let mut inputs = Vec::with_capacity(wire.inputs.len());
    for input in wire.inputs {
        inputs.push(input.read(&mut rest)?);
    }
    if !rest.is_empty() {
        return Err(ApiError::bad(format!(
            "{} bytes follow the last input: binary_data_size of the inputs must add up to the rest of the body",
            rest.len()
        )));
    }
    let outputs = wire.outputs.into_iter().map(|output| Wanted::read(output.name, &output.parameters));
    Ok(Request { id: wire.id, settings, inputs, outputs: outputs.collect::<Result<_, _>>()? })
}

impl WireInput {
    fn read(self, rest: &mut Bytes) -> Result<Named, ApiError> {
        let name = self.name;
        only(&format!("input {name}"), &self.parameters, &["binary_data_size"])?;
        let kind = Kind::named(&name, &self.datatype)?;
        let content = match (self.data, number("binary_data_size", &self.parameters)?) {
            (Some(data), None) => match kind {
                Kind::Numbers(datatype) => {
                    Content::Numbers(datatype, data.tensor(&name, datatype, &self.shape)?)
                }
                Kind::Strings => Content::Strings(Strings::from_json(&name, &self.shape, data)?),
            },
            (None, Some(size)) => {
                let size = usize::try_from(size).ok().filter(|size| *size <= rest.len());
                let Some(size) = size else {
                    let size = &self.parameters["binary_data_size"];
                    return Err(ApiError::bad(format!(
                        "input {name} has binary_data_size {size} where {} bytes are left in the body",
                        rest.len()
                    )));
                };
                Content::from_bytes(&name, kind, &self.shape, rest.split_to(size))?
            }
            (Some(_), Some(_)) => {
                return Err(ApiError::bad(format!(
                    "input {name} has both data and binary_data_size: send one"
                )));
            }
            (None, None) => {
                return Err(ApiError::bad(format!("input {name} has neither data nor binary_data_size")));
            }
        };
        Ok(Named { name, content })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::time::Duration;

    use fcdcc::model::Tensor;
    use ndarray::ArrayD;

    use super::*;

    #[test]
    fn inputs_come_from_json_and_from_the_bytes_behind_it() {
        let json = br#"{"id":"7","parameters":{"timeout":1500,"binary_data_output":true},"inputs":[
            {"name":"a","shape":[2],"datatype":"FP32","parameters":{"binary_data_size":8}},
            {"name":"b","shape":[1,2],"datatype":"INT64","data":[[3,4]]},
            {"name":"c","shape":[1],"datatype":"UINT8","parameters":{"binary_data_size":1}}],
            "outputs":[{"name":"y","parameters":{"binary_data":false}},{"name":"z"}]}"#;
        let mut body = json.to_vec();
        body.extend([1.5f32.to_le_bytes(), 2f32.to_le_bytes()].concat());
        body.push(9);
        let parse = |body: &[u8], header| parse(&Bytes::copy_from_slice(body), header);
        let request = parse(&body, Some(json.len())).unwrap();
        let timeout = Some(Duration::from_micros(1500));
        assert_eq!((request.id.as_deref(), request.settings.timeout), (Some("7"), timeout));
        let tensor = |input: &Named| match &input.content {
            Content::Numbers(_, tensor) => tensor.clone(),
            Content::Strings(strings) => panic!("{strings:?}"),
        };
        let tensors: Vec<Tensor> = request.inputs.iter().map(tensor).collect();
        let array = |values: Vec<f32>| ArrayD::from_shape_vec(vec![values.len()], values).unwrap();
        assert_eq!(tensors[0], array(vec![1.5, 2.0]).into());
        assert_eq!(tensors[1].shape(), [1, 2]);
        assert_eq!(tensors[2], Tensor::U8(ArrayD::from_elem(vec![1], 9)));
        assert!(
            request.settings.binary_outputs
                && request.outputs[0].binary == Some(false)
                && request.outputs[1].binary.is_none()
        );
        // One byte more or less, and a JSON length beyond the body.
        body.push(0);
        assert!(parse(&body, Some(json.len())).unwrap_err().message.contains("1 bytes follow"));
        let short = parse(&body[..body.len() - 2], Some(json.len())).unwrap_err().message;
        assert!(short.contains("binary_data_size 1 where 0 bytes"), "{short}");
        assert!(parse(b"{}", Some(3)).unwrap_err().message.contains("is 3 where the body has 2"));
    }

    #[test]
    fn what_would_be_ignored_or_is_malformed_is_refused() {
        let input =
            |rest: &str| format!(r#"{{"inputs":[{{"name":"x","shape":[1],"datatype":"FP32"{rest}}}]}}"#);
        let rows = [
            ("{".to_owned(), "not an inference request"),
            ("{}".to_owned(), "missing field `inputs`"),
            ("[]".to_owned(), "not an inference request"),
            (input(""), "neither data"),
            (input(r#","data":[1],"parameters":{"binary_data_size":4}"#), "both data"),
            (
                input(r#","parameters":{"shared_memory_region":"r"}"#),
                "shared_memory_region, which is not supported",
            ),
            (input(r#","parameters":{"binary_data_size":-4}"#), "whole number"),
            (
                r#"{"inputs":[{"name":"x","shape":[-1],"datatype":"FP32","data":[1]}]}"#.to_owned(),
                "invalid value",
            ),
            (
                r#"{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":[1]}]}"#.to_owned(),
                "no strings where BYTES",
            ),
            (
                r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP8","data":[1]}]}"#.to_owned(),
                "datatype \"FP8\"",
            ),
            (
                r#"{"inputs":[],"parameters":{"sequence_id":1}}"#.to_owned(),
                "sequence_id, which is not supported",
            ),
            (r#"{"inputs":[],"parameters":{"timeout":"soon"}}"#.to_owned(), "timeout"),
            (
                r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"classification":-3}}]}"#.to_owned(),
                "classification is -3",
            ),
        ];
        for (text, part) in rows {
            let error = parse(&Bytes::from(text.clone()), None).unwrap_err();
            assert!(error.status == 400 && error.message.contains(part), "{text}: {}", error.message);
        }
        // What is skipped may be nested at will; what is read may not.
        let nested = |before: &str, after: &str| {
            format!("{before}{}{}{after}", "[".repeat(50_000), "]".repeat(50_000)).into_bytes()
        };
        assert!(parse(&nested(r#"{"inputs":[],"x":"#, "}").into(), None).is_ok());
        let deep = parse(&nested(r#"{"parameters":{"x":"#, "}}").into(), None).unwrap_err().message;
        assert!(deep.contains("recursion limit"), "{deep}");
    }
}
