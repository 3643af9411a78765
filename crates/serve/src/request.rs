//! An inference request, as both protocols read it, and its parameters.
//!
//! Relevant if you want to know which parameters a request, an input or an output may have. `body` reads requests from HTTP,
//! `grpc` from gRPC; both make a [`Request`], and nothing behind them knows where it came from.
//!
//! Invariant: a parameter is heeded or refused by its name, never ignored.

use std::time::Duration;

use bytes::Bytes;
use fcdcc::model::Tensor;
use serde_json::{Map, Value};

use crate::datatype::{self, Datatype};
use crate::error::ApiError;
use crate::strings::{BYTES, Strings};

/// An inference request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) id: Option<String>,
    pub(crate) settings: Settings,
    pub(crate) inputs: Vec<Named>,
    /// The outputs asked for; none for all.
    pub(crate) outputs: Vec<Wanted>,
}

/// One input.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) content: Content,
}

/// The elements of an input.
#[derive(Debug)]
pub(crate) enum Content {
    Numbers(Datatype, Tensor),
    /// Encoded pictures.
    Strings(Strings),
}

/// The datatype of an input as a client names it.
pub(crate) enum Kind {
    Numbers(Datatype),
    Strings,
}

/// One requested output.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    /// Whether it is sent as bytes; `None` as the request says for all.
    pub(crate) binary: Option<bool>,
    /// The number of largest elements wanted instead of the elements themselves.
    pub(crate) classes: Option<usize>,
}

/// The parameters of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The time that the client allows.
    pub(crate) timeout: Option<Duration>,
    /// The place in the queue: 1 first, [`u64::MAX`] for a request without.
    pub(crate) priority: Priority,
    /// Whether outputs are bytes unless they say otherwise.
    pub(crate) binary_outputs: bool,
    /// Whether the answer holds the coding report of its run.
    pub(crate) report: bool,
    /// Whether an answer in a stream says that it is the last one of its request.
    pub(crate) mark_final: bool,
}

/// The order of requests in a queue: smaller ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Priority(pub(crate) u64);

impl Default for Priority {
    fn default() -> Self {
        Self(u64::MAX)
    }
}

/// The parameters of a request that have a meaning here.
const OF_REQUEST: [&str; 5] =
    ["binary_data_output", "priority", "report", "timeout", "triton_enable_empty_final_response"];

impl Settings {
    /// Reads the parameters of a request.
    ///
    /// # Errors
    /// 400 for one that has no meaning here, or a value of another type.
    pub(crate) fn read(parameters: &Map<String, Value>) -> Result<Self, ApiError> {
        only("the request", parameters, &OF_REQUEST)?;
        let is = |name| switch(name, parameters).map(|value| value.unwrap_or(false));
        let timeout = number("timeout", parameters)?.filter(|micros| *micros > 0);
        let priority = number("priority", parameters)?.filter(|priority| *priority > 0);
        Ok(Self {
            timeout: timeout.map(Duration::from_micros),
            priority: priority.map_or_else(Priority::default, Priority),
            binary_outputs: is("binary_data_output")?,
            report: is("report")?,
            mark_final: is("triton_enable_empty_final_response")?,
        })
    }
}

impl Wanted {
    /// An output with its parameters.
    ///
    /// # Errors
    /// 400 for a parameter that has no meaning here, or a value of another type.
    pub(crate) fn read(name: String, parameters: &Map<String, Value>) -> Result<Self, ApiError> {
        only(&format!("output {name}"), parameters, &["binary_data", "classification"])?;
        let binary = switch("binary_data", parameters)?;
        let classes = number("classification", parameters)?.filter(|count| *count > 0);
        let classes = classes.map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        Ok(Self { name, binary, classes })
    }
}

impl Content {
    /// An input of bytes in the order of memory.
    ///
    /// # Errors
    /// 400 where they do not fit the shape.
    pub(crate) fn from_bytes(
        name: &str,
        kind: Kind,
        shape: &[usize],
        bytes: Bytes,
    ) -> Result<Self, ApiError> {
        match kind {
            Kind::Numbers(datatype) => {
                Ok(Self::Numbers(datatype, datatype::from_bytes(name, datatype, shape, &bytes)?))
            }
            Kind::Strings => Strings::from_bytes(name, shape, bytes).map(Self::Strings),
        }
    }
}

impl Kind {
    /// The datatype with this name.
    ///
    /// # Errors
    /// 400 where there is none; `input` has it.
    pub(crate) fn named(input: &str, name: &str) -> Result<Self, ApiError> {
        if name == BYTES {
            return Ok(Self::Strings);
        }
        Datatype::named(name).map(Self::Numbers).ok_or_else(|| {
            let help = "use BOOL, FP16, BF16, FP32, FP64, INT and UINT of 8, 16, 32 or 64 bits, or BYTES";
            ApiError::bad(format!("input {input} has datatype {name:?}: {help}"))
        })
    }
}

/// Refuses parameters that would be ignored.
pub(crate) fn only(of: &str, parameters: &Map<String, Value>, known: &[&str]) -> Result<(), ApiError> {
    match parameters.keys().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(other) => Err(ApiError::bad(format!(
            "{of} has parameter {other}, which is not supported: leave it out (supported: {})",
            known.join(", ")
        ))),
    }
}

/// A parameter that is a whole number; some clients send numbers as text.
pub(crate) fn number(name: &str, parameters: &Map<String, Value>) -> Result<Option<u64>, ApiError> {
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
    use serde_json::json;

    use super::*;

    #[test]
    fn parameters_are_heeded_or_refused() {
        let read = |value: Value| Settings::read(value.as_object().unwrap());
        let all = read(json!({"timeout": "1500", "priority": 2, "report": true, "binary_data_output": true}));
        let expected = Settings {
            timeout: Some(Duration::from_micros(1500)),
            priority: Priority(2),
            binary_outputs: true,
            report: true,
            mark_final: false,
        };
        assert_eq!(all.unwrap(), expected);
        assert_eq!(read(json!({"timeout": 0, "priority": 0})).unwrap(), Settings::default());
        assert!(Priority(1) < Priority(2) && Priority(2) < Priority::default());
        for (value, part) in [
            (json!({"sequence_id": 1}), "sequence_id, which is not supported"),
            (json!({"priority": -1}), "priority is -1"),
            (json!({"report": "yes"}), "report is \"yes\""),
        ] {
            let error = read(value).unwrap_err().message;
            assert!(error.contains(part), "{error}");
        }
        let wanted = |value: Value| Wanted::read("y".to_owned(), value.as_object().unwrap());
        assert_eq!(wanted(json!({"classification": 3})).unwrap().classes, Some(3));
        assert_eq!(wanted(json!({"binary_data": true})).unwrap().binary, Some(true));
        assert!(wanted(json!({"shared_memory_region": "r"})).unwrap_err().message.contains("shared_memory"));
    }
}
