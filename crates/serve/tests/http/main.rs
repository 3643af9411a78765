//! A server on the loopback address, with LeNet-5 on CPU workers, and clients on plain sockets, over TLS and over gRPC.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[cfg(target_os = "linux")]
mod abuse;
mod batching;
mod calls;
mod client;
/// The codec of the generated client.
mod codec {
    pub(crate) use tonic_prost::ProstCodec as Codec;
}
mod extensions;
mod grpc;
mod life;
mod load;
mod observed;
mod protocol;
mod refusals;
mod site;
#[cfg(feature = "otlp")]
mod spans;
mod tls;
