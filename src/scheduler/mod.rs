//! Who works on what, and when enough of it has come back.
//!
//! * [`Policy`]: deadline, hedging, partial work, patience, audit, and what to do when too few results can come.
//! * [`Gather`]: a state machine without I/O. Events with times go in, actions come out; it asks a [`Recovery`] what
//!   decodes and how well, and knows nothing of codes, devices or networks.
//! * [`assign()`], [`rebalance`]: which worker holds which subtask, by speed and failure domain.
//! * [`Health`], [`Speed`]: what is known of one worker, from its results and from the lack of them.
//! * [`Latencies`], [`Expected`]: how long subtasks take, to tell when one is overdue.
//! * [`Pool`]: threads and channels. Each worker is owned by one thread (`service`) that takes commands in order;
//!   `revive` brings lost ones back.
//! * `run_job`: one layer's run, which connects them. It knows its workers as a `Fleet`, and takes the time from that.
//! * [`SimulatedFleet`]: workers, links and cores in virtual time, for the same runs.
//!
//! Invariant: every task that was handed to a worker is answered (result, failure) or its job is over. Jobs have
//! channels of their own, so a late result of an old job cannot reach a new one.

mod assign;
mod fleet;
mod gather;
mod health;
mod job;
mod latency;
mod mailbox;
mod outcome;
mod policy;
mod pool;
mod processor_sharing;
mod revive;
mod service;
mod sim_worker;
mod simulated;
mod simulation;
mod slot;
mod speed;

pub use assign::{Seat, assign, rebalance};
pub(crate) use fleet::Fleet;
pub use gather::{Action, Event, Gather, Recovery, RunEstimates, Verdict};
pub use health::{Health, HealthOptions, State};
pub(crate) use job::{AuditRecord, JobPlan, run_job};
pub use latency::{Expected, Latencies};
pub use outcome::Outcome;
pub(crate) use outcome::{Decision, RunOutcome};
pub use policy::{Audit, OnShortfall, Policy};
pub use pool::{Pool, WorkerHealth};
pub use sim_worker::{Link, SimulatedWork, Usage};
pub use simulated::{SimulatedFleet, SimulatedHost, SimulatedWorker};
pub use slot::PoolOptions;
pub(crate) use slot::{FilterSource, InstallRequest};
pub use speed::Speed;
