//! Requests of messages of gRPC.
//!
//! Relevant if you want to know where the elements of an input may be: all inputs in `raw_input_contents`, or each in the
//! list of its `contents` that its datatype has.
//!
//! Invariant: a request that was decoded holds exactly the elements that its shapes announce.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};
use tonic::metadata::MetadataMap;

use super::pb::infer_parameter::ParameterChoice;
use super::pb::model_infer_request::InferInputTensor;
use super::pb::{InferParameter, InferTensorContents, ModelInferRequest};
use crate::datatype::{Datatype, Numbers};
use crate::error::ApiError;
use crate::request::{Content, Kind, Named, Request, Settings, Wanted, only};
use crate::strings::Strings;

/// The request that a message holds.
///
/// # Errors
/// 400, with what was sent and what was expected.
pub(super) fn decode(message: ModelInferRequest) -> Result<Request, ApiError> {
    let settings = Settings::read(&parameters(message.parameters))?;
    let (count, raw_count) = (message.inputs.len(), message.raw_input_contents.len());
    if raw_count != 0 && raw_count != count {
        return Err(ApiError::bad(format!(
            "{raw_count} raw_input_contents where {count} were expected, one an input: send all inputs raw or none"
        )));
    }
    let mut raw = message.raw_input_contents.into_iter();
    let inputs = message.inputs.into_iter().map(|input| read(input, raw.next()));
    let inputs = inputs.collect::<Result<_, _>>()?;
    let outputs = message.outputs.into_iter().map(|o| Wanted::read(o.name, &parameters(o.parameters)));
    let id = Some(message.id).filter(|id| !id.is_empty());
    Ok(Request { id, settings, inputs, outputs: outputs.collect::<Result<_, _>>()? })
}

/// Parameters as HTTP has them.
fn parameters(of: impl IntoIterator<Item = (String, InferParameter)>) -> Map<String, Value> {
    let value = |parameter: InferParameter| match parameter.parameter_choice {
        Some(ParameterChoice::BoolParam(value)) => value.into(),
        Some(ParameterChoice::Int64Param(value)) => value.into(),
        Some(ParameterChoice::StringParam(value)) => value.into(),
        Some(ParameterChoice::DoubleParam(value)) => value.into(),
        Some(ParameterChoice::Uint64Param(value)) => value.into(),
        None => Value::Null,
    };
    of.into_iter().map(|(name, parameter)| (name, value(parameter))).collect()
}

fn read(input: InferInputTensor, raw: Option<Bytes>) -> Result<Named, ApiError> {
    let name = input.name;
    only(&format!("input {name}"), &parameters(input.parameters), &[])?;
    let kind = Kind::named(&name, &input.datatype)?;
    let sizes = input.shape.iter().map(|size| usize::try_from(*size).ok()).collect::<Option<Vec<usize>>>();
    let shape = sizes.ok_or_else(|| {
        ApiError::bad(format!("input {name} has shape {:?}: every size must be at least 1", input.shape))
    })?;
    let content = match (raw, input.contents) {
        (Some(bytes), None) => Content::from_bytes(&name, kind, &shape, bytes)?,
        (Some(_), Some(_)) => {
            return Err(ApiError::bad(format!(
                "input {name} has both contents and raw_input_contents: send one"
            )));
        }
        (None, Some(contents)) => listed(&name, kind, &shape, contents)?,
        (None, None) => {
            return Err(ApiError::bad(format!("input {name} has neither contents nor raw_input_contents")));
        }
    };
    Ok(Named { name, content })
}

/// The elements in the list that the datatype has.
fn listed(
    name: &str,
    kind: Kind,
    shape: &[usize],
    contents: InferTensorContents,
) -> Result<Content, ApiError> {
    let lists = [
        ("bool_contents", contents.bool_contents.len()),
        ("int_contents", contents.int_contents.len()),
        ("int64_contents", contents.int64_contents.len()),
        ("uint_contents", contents.uint_contents.len()),
        ("uint64_contents", contents.uint64_contents.len()),
        ("fp32_contents", contents.fp32_contents.len()),
        ("fp64_contents", contents.fp64_contents.len()),
        ("bytes_contents", contents.bytes_contents.len()),
    ];
    let own = match &kind {
        Kind::Strings => "bytes_contents",
        Kind::Numbers(datatype) => list_of(name, *datatype)?,
    };
    if let Some((other, _)) = lists.iter().find(|(list, count)| *list != own && *count > 0) {
        return Err(ApiError::bad(format!("input {name} has {other} where {own} was expected")));
    }
    let datatype = match kind {
        Kind::Strings => return Ok(Content::Strings(Strings::new(name, shape, contents.bytes_contents)?)),
        Kind::Numbers(datatype) => datatype,
    };
    let numbers = match own {
        "bool_contents" => Numbers::Bools(contents.bool_contents),
        "int_contents" => Numbers::Ints(contents.int_contents.into_iter().map(i64::from).collect()),
        "int64_contents" => Numbers::Ints(contents.int64_contents),
        "uint_contents" => Numbers::Ints(contents.uint_contents.into_iter().map(i64::from).collect()),
        "uint64_contents" => {
            let values = contents.uint64_contents.into_iter().map(i64::try_from);
            Numbers::Ints(values.collect::<Result<_, _>>().map_err(|_| {
                ApiError::bad(format!("input {name} has a UINT64 above {}, the largest supported", i64::MAX))
            })?)
        }
        "fp32_contents" => Numbers::Floats(contents.fp32_contents.into_iter().map(f64::from).collect()),
        _ => Numbers::Floats(contents.fp64_contents),
    };
    Ok(Content::Numbers(datatype, numbers.tensor(name, datatype, shape)?))
}

/// The name of the list for a datatype.
fn list_of(name: &str, datatype: Datatype) -> Result<&'static str, ApiError> {
    Ok(match datatype {
        Datatype::Bool => "bool_contents",
        Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => "int_contents",
        Datatype::Int64 => "int64_contents",
        Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => "uint_contents",
        Datatype::Uint64 => "uint64_contents",
        Datatype::Fp32 => "fp32_contents",
        Datatype::Fp64 => "fp64_contents",
        Datatype::Fp16 | Datatype::Bf16 => {
            let own = datatype.name();
            return Err(ApiError::bad(format!(
                "input {name} is {own}, for which contents have no list: send raw_input_contents"
            )));
        }
    })
}

/// The time that the caller allows, from the metadata `grpc-timeout`.
///
/// # Errors
/// 400 for one that is not of the form of gRPC: at most 8 digits and a unit.
pub(super) fn timeout(metadata: &MetadataMap) -> Result<Option<Duration>, ApiError> {
    let Some(value) = metadata.get("grpc-timeout") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let parsed = text.split_at_checked(text.len().saturating_sub(1)).and_then(|(digits, unit)| {
        let number = digits.parse::<u64>().ok().filter(|_| digits.len() <= 8 && !digits.starts_with('+'))?;
        Some(match unit {
            "H" => Duration::from_hours(number),
            "M" => Duration::from_mins(number),
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => return None,
        })
    });
    parsed.map(Some).ok_or_else(|| {
        ApiError::bad(format!("grpc-timeout is {value:?}: use at most 8 digits and one of H, M, S, m, u, n"))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use fcdcc::model::Tensor;
    use ndarray::ArrayD;

    use super::*;

    fn input(datatype: &str, shape: &[i64], contents: Option<InferTensorContents>) -> InferInputTensor {
        InferInputTensor {
            name: "x".to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            contents,
            ..InferInputTensor::default()
        }
    }

    fn tensor(read: Result<Named, ApiError>) -> Result<Tensor, String> {
        match read.map_err(|e| e.message)?.content {
            Content::Numbers(_, tensor) => Ok(tensor),
            Content::Strings(strings) => Err(format!("{strings:?}")),
        }
    }

    #[test]
    fn elements_are_in_the_list_of_their_datatype_or_raw() {
        let none = InferTensorContents::default;
        let floats = InferTensorContents { fp32_contents: vec![1.5, -2.0], ..none() };
        let expected: Tensor = ArrayD::from_shape_vec(vec![2], vec![1.5f32, -2.0]).unwrap().into();
        assert_eq!(tensor(read(input("FP32", &[2], Some(floats.clone())), None)).unwrap(), expected);
        let raw = Bytes::from([1.5f32.to_le_bytes(), (-2.0f32).to_le_bytes()].concat());
        assert_eq!(tensor(read(input("FP32", &[2], None), Some(raw.clone()))).unwrap(), expected);
        let small = InferTensorContents { int_contents: vec![-3, 4], ..none() };
        let bytes: Tensor = ArrayD::from_shape_vec(vec![2], vec![-3i8, 4]).unwrap().into();
        assert_eq!(tensor(read(input("INT8", &[2], Some(small.clone())), None)).unwrap(), bytes);
        let huge = InferTensorContents { uint64_contents: vec![u64::MAX], ..none() };
        let rows = [
            (input("FP32", &[3], Some(floats.clone())), None, "2 elements where its shape [3] needs 3"),
            (input("FP32", &[2], Some(floats.clone())), Some(raw), "both contents and raw"),
            (input("FP32", &[2], None), None, "neither contents"),
            (input("FP32", &[-1], Some(floats.clone())), None, "shape [-1]"),
            (input("INT32", &[2], Some(floats)), None, "fp32_contents where int_contents"),
            (
                input("UINT8", &[2], Some(InferTensorContents { uint_contents: vec![256, 1], ..none() })),
                None,
                "256",
            ),
            (input("UINT64", &[1], Some(huge)), None, "UINT64 above"),
            (input("FP16", &[2], Some(none())), None, "FP16, for which contents have no list"),
            (input("FP8", &[2], Some(none())), None, "datatype \"FP8\""),
        ];
        for (input, raw, part) in rows {
            let error = tensor(read(input, raw)).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn raw_contents_are_for_all_inputs_or_none() {
        let message = ModelInferRequest {
            inputs: vec![input("FP32", &[1], None), input("FP32", &[1], None)],
            raw_input_contents: vec![Bytes::from_static(&[0; 4])],
            ..ModelInferRequest::default()
        };
        assert!(decode(message).unwrap_err().message.contains("1 raw_input_contents where 2"));
    }

    #[test]
    fn timeouts_have_the_form_of_the_transport() {
        let of = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            timeout(&metadata)
        };
        assert_eq!(of("250m").unwrap(), Some(Duration::from_millis(250)));
        assert_eq!(of("99999999H").unwrap(), Some(Duration::from_hours(99_999_999)));
        assert_eq!(timeout(&MetadataMap::new()).unwrap(), None);
        for bad in ["", "5", "m", "5s", "-1m", "+1m", "123456789m", "1.5S"] {
            assert_eq!(of(bad).unwrap_err().status, 400, "{bad}");
        }
    }
}
