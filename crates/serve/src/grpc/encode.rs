//! Answers and errors as messages of gRPC.
//!
//! Relevant if you want to know which code of gRPC an error has, and where the elements of an output are: in
//! `raw_output_contents`, whatever form the request had.
//!
//! Invariant: the code follows from the status of HTTP alone.

use axum::http::StatusCode;
use bytes::Bytes;
use tonic::{Code, Status};

use super::pb::infer_parameter::ParameterChoice;
use super::pb::model_infer_response::InferOutputTensor;
use super::pb::{InferParameter, ModelInferResponse};
use crate::answer::{Answer, Values};
use crate::datatype::write_bytes;
use crate::error::ApiError;
use crate::strings::write_texts;

/// The error in terms of gRPC.
pub(super) fn status(error: ApiError) -> Status {
    let code = match error.status {
        StatusCode::BAD_REQUEST => Code::InvalidArgument,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::NOT_IMPLEMENTED | StatusCode::METHOD_NOT_ALLOWED => Code::Unimplemented,
        // What the transport answers for a message beyond the limit.
        StatusCode::PAYLOAD_TOO_LARGE => Code::OutOfRange,
        StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => Code::DeadlineExceeded,
        StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
        other if other == ApiError::abandoned().status => Code::Cancelled,
        _ => Code::Internal,
    };
    Status::new(code, error.message)
}

/// The message of an answer.
pub(super) fn encode(answer: Answer) -> ModelInferResponse {
    let mut outputs = Vec::with_capacity(answer.outputs.len());
    let mut raw = Vec::with_capacity(answer.outputs.len());
    for output in answer.outputs {
        let mut bytes = Vec::new();
        match &output.values {
            Values::Numbers(_, tensor) => write_bytes(tensor, &mut bytes),
            Values::Classes(_, texts) => write_texts(texts, &mut bytes),
        }
        raw.push(Bytes::from(bytes));
        outputs.push(InferOutputTensor {
            datatype: output.values.datatype().to_owned(),
            // Sizes of arrays in memory.
            shape: output
                .values
                .shape()
                .iter()
                .map(|size| i64::try_from(*size).unwrap_or(i64::MAX))
                .collect(),
            name: output.name,
            ..InferOutputTensor::default()
        });
    }
    let parameter = |choice| InferParameter { parameter_choice: Some(choice) };
    let report = answer.report.map(|text| ("report", ParameterChoice::StringParam(text)));
    let last = answer.mark_final.then_some(("triton_final_response", ParameterChoice::BoolParam(true)));
    let parameters = report.into_iter().chain(last);
    ModelInferResponse {
        model_name: answer.model.name.clone(),
        model_version: answer.model.version.to_string(),
        id: answer.id.unwrap_or_default(),
        parameters: parameters.map(|(name, choice)| (name.to_owned(), parameter(choice))).collect(),
        outputs,
        raw_output_contents: raw,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_a_code() {
        let rows = [
            (ApiError::bad("x"), Code::InvalidArgument),
            (ApiError::not_found("x"), Code::NotFound),
            (ApiError::too_large(1), Code::OutOfRange),
            (ApiError::busy("x"), Code::ResourceExhausted),
            (ApiError::unavailable("x"), Code::Unavailable),
            (ApiError::late(std::time::Duration::from_secs(1)), Code::DeadlineExceeded),
            (ApiError::abandoned(), Code::Cancelled),
            (ApiError::internal("x"), Code::Internal),
            (ApiError::new(StatusCode::UNAUTHORIZED, "x"), Code::Unauthenticated),
            (ApiError::new(StatusCode::NOT_IMPLEMENTED, "x"), Code::Unimplemented),
        ];
        for (error, code) in rows {
            assert_eq!(status(error.clone()).code(), code, "{error:?}");
        }
    }
}
