//! Whether an answer has the expected outputs.
//!
//! Invariant: outputs of integers must be equal; those of floats may differ by the rounding of another responder set or
//! batch, and no more.

use bytes::Bytes;
use fcdcc::model::Tensor;
use fcdcc::{Error, Result};
use serde::Deserialize;

use super::message::Answer;
use crate::datatype::{Datatype, from_bytes};

/// The largest relative L2 distance of two results of one input. Rounding stays below 1e-5 with the defaults of the server.
pub(super) const TOLERANCE: f64 = 1e-4;

#[derive(Debug, Deserialize)]
struct Listed {
    model_version: String,
    outputs: Vec<ListedOutput>,
}

#[derive(Debug, Deserialize)]
struct ListedOutput {
    name: String,
    datatype: String,
    shape: Vec<usize>,
    parameters: Size,
}

#[derive(Debug, Deserialize)]
struct Size {
    binary_data_size: usize,
}

/// One output.
#[derive(Debug, PartialEq)]
struct Output {
    name: String,
    shape: Vec<usize>,
    exact: bool,
    values: Vec<f64>,
}

/// The outputs that every answer must have.
pub(super) struct Expected {
    outputs: Vec<Output>,
    /// The body of the first answer: many answers equal it to the bit.
    bytes: Bytes,
}

impl Expected {
    /// The outputs of `first`, whose first one must be `given` if there is one; and the version of the model.
    ///
    /// # Errors
    /// [`Error::Inexact`] where the answer differs from `given`, [`Error::Unavailable`] for one that is none of the protocol.
    pub(super) fn of(first: &Answer, given: Option<&Tensor>) -> Result<(Self, String)> {
        let bad = |cause: String| Error::Unavailable {
            what: format!("an answer of the protocol ({cause})"),
            help: "check that the address is that of a server of the Open Inference Protocol".into(),
        };
        let (version, mut outputs) = read(first).map_err(bad)?;
        if let (Some(given), Some(output)) = (given, outputs.first_mut()) {
            let expected = Output {
                name: output.name.clone(),
                shape: given.shape().to_vec(),
                exact: output.exact,
                values: given.to_f64(),
            };
            if expected.shape != output.shape {
                let help = "give the array that the model computes for these inputs";
                return Err(Error::mismatch("expected output", &expected.shape[..], &output.shape[..], help));
            }
            if off(&expected, output) > TOLERANCE {
                let what = format!("output {} of the first answer", output.name);
                let error = distance(&expected.values, &output.values);
                let help = "the server computes another result for these inputs".into();
                return Err(Error::Inexact { what, error, bound: TOLERANCE, help });
            }
            *output = expected;
        }
        Ok((Self { outputs, bytes: first.body.clone() }, version))
    }

    /// The largest relative L2 distance of the outputs of an answer from these; infinite where names, shapes or integers
    /// differ. Up to [`TOLERANCE`] they agree.
    pub(super) fn distance(&self, answer: &Answer) -> f64 {
        if answer.body == self.bytes {
            return 0.0;
        }
        let Ok((_, outputs)) = read(answer) else { return f64::INFINITY };
        if outputs.len() != self.outputs.len() {
            return f64::INFINITY;
        }
        self.outputs.iter().zip(&outputs).map(|(expected, output)| off(expected, output)).fold(0.0, f64::max)
    }
}

fn off(expected: &Output, output: &Output) -> f64 {
    if (&expected.name, &expected.shape) != (&output.name, &output.shape) {
        return f64::INFINITY;
    }
    if expected.values == output.values {
        return 0.0;
    }
    let off = distance(&expected.values, &output.values);
    // NaN does not agree with anything.
    if expected.exact || off.is_nan() { f64::INFINITY } else { off }
}

/// The L2 distance relative to the size of `expected`.
fn distance(expected: &[f64], got: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let off = norm(&mut expected.iter().zip(got).map(|(a, b)| a - b));
    if off == 0.0 { 0.0 } else { off / norm(&mut expected.iter().copied()).max(f64::MIN_POSITIVE) }
}

/// Version and outputs of an answer in JSON and bytes.
fn read(answer: &Answer) -> std::result::Result<(String, Vec<Output>), String> {
    let length = answer.json_length.filter(|length| *length <= answer.body.len());
    let length = length.ok_or("it has no tensors as bytes")?;
    let listed: Listed = serde_json::from_slice(&answer.body[..length]).map_err(|e| e.to_string())?;
    let mut rest = &answer.body[length..];
    let mut outputs = Vec::with_capacity(listed.outputs.len());
    for output in listed.outputs {
        let split = rest.split_at_checked(output.parameters.binary_data_size);
        let (bytes, after) = split.ok_or_else(|| format!("output {} is cut off", output.name))?;
        rest = after;
        let datatype = Datatype::named(&output.datatype);
        let datatype =
            datatype.ok_or_else(|| format!("output {} is of type {}", output.name, output.datatype))?;
        let tensor = from_bytes(&output.name, datatype, &output.shape, bytes).map_err(|e| e.message)?;
        let exact = !matches!(datatype, Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64);
        outputs.push(Output { name: output.name, shape: output.shape, exact, values: tensor.to_f64() });
    }
    Ok((listed.model_version, outputs))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use ndarray::ArrayD;

    use super::*;

    fn answer(datatype: &str, values: &[f32]) -> Answer {
        let bytes: Vec<u8> = match datatype {
            "FP32" => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            #[expect(clippy::cast_possible_truncation, reason = "small whole numbers")]
            _ => values.iter().flat_map(|value| (*value as i32).to_le_bytes()).collect(),
        };
        let json = format!(
            r#"{{"model_name":"m","model_version":"3","outputs":[{{"name":"y","datatype":"{datatype}","shape":[1,{}],
            "parameters":{{"binary_data_size":{}}}}}]}}"#,
            values.len(),
            bytes.len()
        );
        let body = [json.as_bytes(), &bytes].concat().into();
        Answer { status: 200, json_length: Some(json.len()), body }
    }

    #[test]
    fn rounding_is_allowed_for_floats_and_nothing_else() {
        let (expected, version) = Expected::of(&answer("FP32", &[1.0, 2.0, -3.0]), None).unwrap();
        assert_eq!(version, "3");
        let rows: [(&[f32], bool); 5] = [
            (&[1.0, 2.0, -3.0], true),
            (&[1.000_01, 2.0, -3.0], true),
            (&[1.01, 2.0, -3.0], false),
            (&[1.0, 2.0], false),
            (&[f32::NAN, 2.0, -3.0], false),
        ];
        for (values, agrees) in rows {
            let off = expected.distance(&answer("FP32", values));
            assert_eq!(off <= TOLERANCE, agrees, "{values:?}: {off}");
        }
        let (whole, _) = Expected::of(&answer("INT32", &[100_000.0, 1.0]), None).unwrap();
        assert_eq!(whole.distance(&answer("INT32", &[100_000.0, 1.0])), 0.0);
        assert!(whole.distance(&answer("INT32", &[100_001.0, 1.0])).is_infinite());
        let mut cut = answer("FP32", &[1.0, 2.0, -3.0]);
        cut.body.truncate(cut.body.len() - 1);
        assert!(expected.distance(&cut).is_infinite());
    }

    #[test]
    fn a_given_output_is_compared_with_the_first_answer() {
        let array =
            |values: Vec<f32>| Tensor::from(ArrayD::from_shape_vec(vec![1, values.len()], values).unwrap());
        let first = answer("FP32", &[1.0, 2.0]);
        let (expected, _) = Expected::of(&first, Some(&array(vec![1.0, 2.0]))).unwrap();
        assert_eq!(expected.distance(&first), 0.0);
        let other = Expected::of(&first, Some(&array(vec![1.0, 2.5]))).err().unwrap().to_string();
        assert!(other.contains("output y of the first answer"), "{other}");
        let shape = Expected::of(&first, Some(&array(vec![1.0]))).err().unwrap().to_string();
        assert!(shape.contains("[1, 1]") && shape.contains("[1, 2]"), "{shape}");
    }
}
