//! Workers on other machines.
//!
//! Who runs everything on one machine can skip this. A machine lends its workers with a [`WorkerServer`]
//! (`fcdcc worker`); a master opens a [`Cluster`] and takes [workers](Cluster::workers) from it, which a
//! [`Pool`](crate::Pool) mixes with local ones: a [`RemoteWorker`] is a [`Worker`](crate::Worker) like any other.
//! [`survey`] lists who is there.
//!
//! Either side may listen. One that listens routes between those who connect, so a star of clients around a master, masters
//! around a machine, and a router between them all work. `link` and `session` are the seam to the engine beneath
//! ([zenoh]); [`wire`] is the protocol, on which everything else rests:
//!
//! * filters are named by their content and sent once, in chunks that are acknowledged, from where an earlier attempt ended;
//! * a task's slabs go with it, or before it in chunks; its sub-results come one by one, or are fetched in chunks;
//! * a cancellation overtakes everything else;
//! * everybody is asked every second who is there: a process that ends or falls silent, and filters that are gone, make a
//!   worker *lost*: the pool carries on without it, and its seat waits for whoever joins.
//!
//! Invariant: a request ends with an answer or with the loss of its worker, and a lost worker costs nobody but itself.
//!
//! [zenoh]: https://zenoh.io

#![allow(
    clippy::cast_possible_truncation,
    reason = "what travels is bounded by the limits of `wire`, and what is in memory by it"
)]

#[cfg(target_endian = "big")]
compile_error!(
    "elements travel as they lie in memory, which is little-endian: build without feature `cluster`"
);

mod budget;
mod call;
mod chunk_sizer;
mod endpoint;
mod key_expr;
mod link;
mod master;
mod registry;
mod remote;
mod serve;
mod session;
mod shared;
pub mod wire;

pub use endpoint::{DEFAULT_PORT, Endpoint, Security, Tls};
pub use link::RUNTIME_VARIABLE;
pub use master::{Cluster, ClusterOptions, Seats, survey};
pub use registry::Member;
pub use remote::RemoteWorker;
pub use serve::{ServeOptions, Traffic, WorkerServer};

/// A number that nobody can guess.
fn random() -> u64 {
    getrandom::u64().expect("every supported system has random numbers")
}
