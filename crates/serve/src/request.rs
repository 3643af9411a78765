//! Inference requests: JSON with tensors inside it or behind it.
//!
//! Relevant if you want to know what a client may send. With the header `Inference-Header-Content-Length` the body is that
//! many bytes of JSON, followed by the bytes of every input with parameter `binary_data_size`, in order.
//!
//! Invariant: a [`Request`] that was parsed holds exactly the elements that its shapes announce, and no byte of the body is
//! left over.

use std::time::Duration;

use fcdcc::model::Tensor;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::datatype::{self, Datatype, Numbers};
use crate::error::ApiError;

/// An inference request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) id: Option<String>,
    pub(crate) inputs: Vec<Named>,
    /// The outputs asked for; none for all.
    pub(crate) outputs: Vec<Wanted>,
    /// Whether outputs are bytes unless they say otherwise.
    pub(crate) binary_outputs: bool,
    /// The time that the client allows.
    pub(crate) timeout: Option<Duration>,
}

/// One input.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) datatype: Datatype,
    pub(crate) tensor: Tensor,
}

/// One requested output.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    /// Whether it is sent as bytes; `None` as the request says for all.
    pub(crate) binary: Option<bool>,
}

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

/// Parameters of a request that clients set without meaning to change the result, and those handled here.
const OF_REQUEST: [&str; 2] = ["binary_data_output", "timeout"];

impl Request {
    /// Parses a body; `header` is the length of its JSON where bytes follow.
    pub(crate) fn parse(body: &[u8], header: Option<usize>) -> Result<Self, ApiError> {
        let length = header.unwrap_or(body.len());
        let Some((json, mut rest)) = body.split_at_checked(length) else {
            return Err(ApiError::bad(format!(
                "Inference-Header-Content-Length is {length} where the body has {} bytes: it counts the JSON alone",
                body.len()
            )));
        };
        let wire: WireRequest = serde_json::from_slice(json)
            .map_err(|e| ApiError::bad(format!("the body is not an inference request: {e}")))?;
        only("the request", &wire.parameters, &OF_REQUEST)?;
        let timeout = number("timeout", &wire.parameters)?.filter(|micros| *micros > 0);
        let binary_outputs = switch("binary_data_output", &wire.parameters)?.unwrap_or(false);
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
        let outputs = wire.outputs.into_iter().map(WireOutput::read).collect::<Result<_, _>>()?;
        Ok(Self { id: wire.id, inputs, outputs, binary_outputs, timeout: timeout.map(Duration::from_micros) })
    }
}

impl WireInput {
    fn read(self, rest: &mut &[u8]) -> Result<Named, ApiError> {
        let name = self.name;
        only(&format!("input {name}"), &self.parameters, &["binary_data_size"])?;
        let Some(datatype) = Datatype::named(&self.datatype) else {
            let help = "use BOOL, FP16, FP32, FP64, or INT and UINT of 8, 16, 32 or 64 bits";
            return Err(ApiError::bad(format!("input {name} has datatype {:?}: {help}", self.datatype)));
        };
        let tensor = match (self.data, number("binary_data_size", &self.parameters)?) {
            (Some(data), None) => data.tensor(&name, datatype, &self.shape)?,
            (None, Some(size)) => {
                let part = usize::try_from(size).ok().and_then(|size| rest.split_at_checked(size));
                let Some((bytes, after)) = part else {
                    return Err(ApiError::bad(format!(
                        "input {name} has binary_data_size {size} where {} bytes are left in the body",
                        rest.len()
                    )));
                };
                *rest = after;
                datatype::from_bytes(&name, datatype, &self.shape, bytes)?
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
        Ok(Named { name, datatype, tensor })
    }
}

impl WireOutput {
    fn read(self) -> Result<Wanted, ApiError> {
        only(&format!("output {}", self.name), &self.parameters, &["binary_data"])?;
        let binary = switch("binary_data", &self.parameters)?;
        Ok(Wanted { name: self.name, binary })
    }
}

/// Refuses parameters that would be ignored.
fn only(of: &str, parameters: &Map<String, Value>, known: &[&str]) -> Result<(), ApiError> {
    match parameters.keys().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(other) => Err(ApiError::bad(format!(
            "{of} has parameter {other}, which is not supported: leave it out (supported: {})",
            known.join(", ")
        ))),
    }
}

/// A parameter that is a whole number; some clients send numbers as text.
fn number(name: &str, parameters: &Map<String, Value>) -> Result<Option<u64>, ApiError> {
    let Some(value) = parameters.get(name) else { return Ok(None) };
    let number = value.as_u64().or_else(|| value.as_str().and_then(|text| text.parse().ok()));
    number.map(Some).ok_or_else(|| ApiError::bad(format!("parameter {name} is {value}: give a whole number")))
}

fn switch(name: &str, parameters: &Map<String, Value>) -> Result<Option<bool>, ApiError> {
    let Some(value) = parameters.get(name) else { return Ok(None) };
    value
        .as_bool()
        .map(Some)
        .ok_or_else(|| ApiError::bad(format!("parameter {name} is {value}: give true or false")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
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
        let request = Request::parse(&body, Some(json.len())).unwrap();
        assert_eq!((request.id.as_deref(), request.timeout), (Some("7"), Some(Duration::from_micros(1500))));
        let tensors: Vec<&Tensor> = request.inputs.iter().map(|input| &input.tensor).collect();
        let array = |values: Vec<f32>| ArrayD::from_shape_vec(vec![values.len()], values).unwrap();
        assert_eq!(*tensors[0], array(vec![1.5, 2.0]).into());
        assert_eq!(tensors[1].shape(), [1, 2]);
        assert_eq!(*tensors[2], Tensor::U8(ArrayD::from_elem(vec![1], 9)));
        assert!(
            request.binary_outputs
                && request.outputs[0].binary == Some(false)
                && request.outputs[1].binary.is_none()
        );
        // One byte more or less, and a JSON length beyond the body.
        body.push(0);
        assert!(Request::parse(&body, Some(json.len())).unwrap_err().message.contains("1 bytes follow"));
        let short = Request::parse(&body[..body.len() - 2], Some(json.len())).unwrap_err().message;
        assert!(short.contains("binary_data_size 1 where 0 bytes"), "{short}");
        assert!(Request::parse(b"{}", Some(3)).unwrap_err().message.contains("is 3 where the body has 2"));
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
                "\"BYTES\"",
            ),
            (
                r#"{"inputs":[],"parameters":{"sequence_id":1}}"#.to_owned(),
                "sequence_id, which is not supported",
            ),
            (r#"{"inputs":[],"parameters":{"timeout":"soon"}}"#.to_owned(), "timeout"),
            (
                r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"classification":3}}]}"#.to_owned(),
                "classification",
            ),
        ];
        for (text, part) in rows {
            let error = Request::parse(text.as_bytes(), None).unwrap_err();
            assert!(error.status == 400 && error.message.contains(part), "{text}: {}", error.message);
        }
        // What is skipped may be nested at will; what is read may not.
        let nested = |before: &str, after: &str| {
            format!("{before}{}{}{after}", "[".repeat(50_000), "]".repeat(50_000)).into_bytes()
        };
        assert!(Request::parse(&nested(r#"{"inputs":[],"x":"#, "}"), None).is_ok());
        let deep = Request::parse(&nested(r#"{"parameters":{"x":"#, "}}"), None).unwrap_err().message;
        assert!(deep.contains("recursion limit"), "{deep}");
    }
}
