//! The protocol over gRPC: `inference.GRPCInferenceService`, the standard health check, and reflection.
//!
//! Relevant if you want to know what the gRPC address answers to. `service` has the methods, `decode` and `encode` make
//! requests and answers of messages, `gate` lets them in, `health` is the standard check. Everything between a request and
//! its answer is that of HTTP.
//!
//! Invariant: every call is answered with a status of gRPC, errors of the transport included.

mod decode;
mod encode;
mod gate;
mod health;
mod service;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use tokio::sync::watch;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;

use crate::app::App;
use gate::Gate;
use health::Health;
use pb::grpc_inference_service_server::GrpcInferenceServiceServer;
use service::Service;

/// Messages and the service, from proto/inference.proto.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    reason = "generated code"
)]
pub(crate) mod pb {
    tonic::include_proto!("inference");

    /// The descriptor of this package.
    pub(crate) const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inference.bin"));
}

/// All services; streams end when `stop` says so.
///
/// # Errors
/// Where the descriptors are damaged, which would be a defect.
pub(crate) fn routes(app: &Arc<App>, stop: &watch::Receiver<bool>) -> fcdcc::Result<Router> {
    let packings = [CompressionEncoding::Gzip, CompressionEncoding::Deflate];
    let mut service = GrpcInferenceServiceServer::new(Service::new(app))
        .max_decoding_message_size(app.max_body_bytes)
        .max_encoding_message_size(usize::MAX);
    for packing in packings {
        service = service.accept_compressed(packing).send_compressed(packing);
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let damaged = |e: tonic_reflection::server::Error| fcdcc::Error::Unavailable {
        what: format!("reflection over gRPC ({e})"),
        help: "report this".into(),
    };
    let health = tonic_health::pb::health_server::HealthServer::new(Health::new(app, stop));
    let routes = Routes::new(service)
        .add_service(health)
        .add_service(reflection().build_v1().map_err(damaged)?)
        .add_service(reflection().build_v1alpha().map_err(damaged)?);
    let gate = Gate::new(app, stop);
    Ok(routes.prepare().into_axum_router().layer(from_fn_with_state(gate, gate::enter)))
}
