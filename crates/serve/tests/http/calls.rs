//! A client of gRPC; every wait is bounded.

use std::net::SocketAddr;

use bytes::Bytes;
use tonic::transport::{Channel, Endpoint};

use crate::client::LIMIT;
use crate::site::PIXELS;
use pb::grpc_inference_service_client::GrpcInferenceServiceClient;
use pb::infer_parameter::ParameterChoice;
use pb::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use pb::{InferParameter, ModelInferRequest, ModelInferResponse};

/// Messages and the client, from proto/inference.proto.
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    reason = "generated code"
)]
pub(crate) mod pb {
    tonic::include_proto!("inference");
}

pub(crate) type Client = GrpcInferenceServiceClient<Channel>;

/// Runs a future to its end, on this thread.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limited = async { tokio::time::timeout(LIMIT, future).await };
    runtime.block_on(limited).unwrap_or_else(|_| panic!("no end within {LIMIT:?}"))
}

/// Waits for something to become true, without holding the connection.
pub(crate) async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + LIMIT;
    while !is() {
        assert!(std::time::Instant::now() < end, "{what} did not happen within {LIMIT:?}");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

pub(crate) async fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

pub(crate) async fn client(address: SocketAddr) -> Client {
    Client::new(channel(address).await)
}

/// A request with its images as bytes.
pub(crate) fn request(images: &[f32]) -> ModelInferRequest {
    let bytes: Vec<u8> = images.iter().flat_map(|value| value.to_le_bytes()).collect();
    let count = i64::try_from(images.len() / PIXELS).unwrap();
    ModelInferRequest {
        model_name: "digits".to_owned(),
        inputs: vec![InferInputTensor {
            name: "image".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![count, 1, 32, 32],
            ..InferInputTensor::default()
        }],
        raw_input_contents: vec![Bytes::from(bytes)],
        ..ModelInferRequest::default()
    }
}

pub(crate) fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

/// An output with a parameter.
pub(crate) fn wanted(name: &str, key: &str, value: i64) -> InferRequestedOutputTensor {
    let value = parameter(ParameterChoice::Int64Param(value));
    InferRequestedOutputTensor { name: name.to_owned(), parameters: [(key.to_owned(), value)].into() }
}

/// The scores of an answer.
pub(crate) fn scores(answer: &ModelInferResponse) -> Vec<f32> {
    assert_eq!(answer.outputs[0].datatype, "FP32");
    let (whole, rest) = answer.raw_output_contents[0].as_chunks::<4>();
    assert!(rest.is_empty());
    whole.iter().map(|raw| f32::from_le_bytes(*raw)).collect()
}
