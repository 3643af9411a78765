//! Serves ONNX models on coded workers over HTTP, by the Open Inference Protocol v2.
//!
//! Relevant if you want to answer the requests of other programs: of `curl`, of a browser, or of a client library of the
//! protocol. [`Server::start`] listens, loads the models of files and repositories, and computes requests on a bounded number
//! of threads; [`Server::drain`] ends it without losing a request. docs/serving.md is the guide for users.
//!
//! The layers of this crate, from the wire to the pool: `server` (connections), `routes` and `infer` (handlers), `request`,
//! `response` and `datatype` (the protocol), `registry` (names become models), `dispatch` and `batch` (queues become runs),
//! `served` (a model and its prepared shapes).
//!
//! Invariant: no request causes a panic, blocks the thread of connections, or holds memory beyond the configured limits;
//! each is answered once, or withdrawn because its client is gone.

mod app;
mod batch;
mod config;
mod datatype;
mod dispatch;
mod error;
mod infer;
mod metrics;
mod registry;
mod request;
mod response;
mod routes;
mod served;
mod server;
mod tokens;

pub use app::Pictures;
pub use config::{Batching, ModelConfig};
pub use served::Engine;
pub use server::{Server, ServerOptions};
pub use tokens::Tokens;
