//! Serves ONNX models on coded workers over HTTP and gRPC, by the Open Inference Protocol v2.
//!
//! Relevant if you want to answer the requests of other programs: of `curl`, of a browser, or of a client library of the
//! protocol. [`Server::start`] listens, loads the models of files and repositories, and computes requests on a bounded number
//! of threads; [`Server::drain`] ends it without losing a request. docs/serving.md is the guide for users.
//!
//! The layers of this crate, from the wire to the pool: `server`, `connection`, `tls`, `tokens` and `credentials` (addresses,
//! connections, and who may use them); `routes`,
//! `infer`, `body`, `response` and `packing` (HTTP); `grpc` and `codec` (gRPC); `handle`, `request` and `answer` (one request,
//! whichever protocol brought it), `datatype` and `strings` (its elements); `origin`, `access` and `spans` (where requests come from,
//! the log of them, and their spans); `describe`, `stats`, `cost` and `scrape` (what the server says of
//! its models and runs); `page` (the page for people); `registry` (names become models), `dispatch` and `batch` (queues become runs), `served` and `facts` (a model
//! and its prepared shapes). [`load`] is the other side: a client that measures a server.
//!
//! Invariant: no request causes a panic, blocks the thread of connections, or holds memory beyond the configured limits;
//! each is answered once, or withdrawn because its client is gone.

mod access;
mod answer;
mod app;
mod batch;
mod body;
mod codec;
mod config;
mod connection;
mod cost;
mod credentials;
mod datatype;
mod describe;
mod dispatch;
mod error;
mod facts;
mod grpc;
mod handle;
mod infer;
pub mod load;
mod metrics;
mod origin;
mod packing;
mod page;
mod pictures;
mod protocol;
mod received;
mod registry;
mod request;
mod response;
mod routes;
mod scrape;
mod served;
mod server;
#[cfg(feature = "otlp")]
mod spans;
#[cfg(not(feature = "otlp"))]
#[path = "without_spans.rs"]
mod spans;
mod stats;
mod strings;
mod tls;
mod tokens;
mod traces;

pub use config::{Batching, ModelConfig};
pub use pictures::Pictures;
pub use served::Engine;
pub use server::{Server, ServerOptions};
pub use tls::Tls;
pub use tokens::Tokens;
pub use traces::Traces;
