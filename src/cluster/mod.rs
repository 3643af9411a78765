//! Workers on other machines.
//!
//! Relevant if you want to use several machines. A machine lends its workers with a [`WorkerServer`]
//! (`fcdcc worker`); a master opens a [`Cluster`] and takes [workers](Cluster::workers) from it, which a
//! [`Pool`](crate::Pool) mixes with local ones: a [`RemoteWorker`] is a [`Worker`](crate::Worker) like any other.
//! [`survey`] lists the machines.
//!
//! Either side may listen. The listening side routes between its peers, so a star of clients around a master, masters
//! around a machine, and a router between them all work. `link` and `session` are the interface to the engine beneath
//! ([zenoh]); [`wire`] is the protocol, on which everything else rests:
//!
//! * filters are named by their content and sent once, in acknowledged chunks; an interrupted transfer resumes where it
//!   stopped;
//! * a task's slabs go with it, or before it in chunks; slabs that tasks of a run share are sent once to each machine,
//!   which keeps them until the run is over; sub-results come one by one, or are fetched in chunks;
//! * slabs and sub-results travel in full width, or as 16-bit numbers where the pool asks for that;
//! * a cancellation overtakes everything else;
//! * every worker process is queried four times a second. One that has not answered for a second is *suspected*: others compute its
//!   subtasks as well. A process that ends or is silent for four seconds, and filters that are gone, make a
//!   worker *lost*: the pool continues without it, and its seat waits for the next machine to join.
//!
//! Invariant: a request ends with an answer or with the loss of its worker, and a lost worker affects no other.
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
mod check;
mod chunk_sizer;
mod endpoint;
mod hello;
mod install_turns;
mod key_expr;
mod link;
mod master;
mod narrow;
mod rates;
mod registry;
mod remote;
mod remote_task;
mod serve;
mod session;
mod shared;
mod sharing;
mod solitude;
mod survey;
mod task_phases;
mod uplink;
mod width;
pub mod wire;

use crate::error::Error;

pub use check::{MachineCheck, MachineFacts};
pub use endpoint::{DEFAULT_PORT, Endpoint, Security, Tls};
pub use hello::Refused;
pub use link::RUNTIME_VARIABLE;
pub use master::{Cluster, ClusterOptions, Seats};
pub use rates::LinkSpeed;
pub use registry::Member;
pub use remote::RemoteWorker;
pub use serve::{ServeOptions, Traffic, WorkerServer};
pub use survey::survey;

/// The error where the system starts no further thread.
fn no_thread(error: std::io::Error) -> Error {
    Error::Unavailable { what: format!("a thread ({error})"), help: "the system is out of threads".into() }
}

/// A random number that cannot be guessed.
fn random() -> u64 {
    getrandom::u64().expect("every supported system has random numbers")
}
