//! Who works on what, and when enough of it has come back.
//!
//! * [`gather`](Gather): a state machine without I/O. Events with times go in, actions come out; it counts
//!   sub-results and asks a *can these decode?* question, and knows nothing of codes, devices or networks.
//! * [`Policy`]: deadline and what to do when too few results can come.
//! * [`Pool`]: threads and channels. Each worker is owned by one thread that takes commands in order.
//! * `run_job`: one layer's run, which connects the three.
//! * [`assign()`], [`rebalance`]: which worker holds which subtask, by speed and failure domain.
//! * [`Health`], [`Speed`]: what is known of one worker, from its results and from the lack of them.
//! * [`Latencies`], [`Expected`]: how long subtasks take, to tell when one is overdue.
//!
//! Invariant: every task that was handed to a worker is answered (result, failure) or its job is over. Jobs have
//! channels of their own, so a late result of an old job cannot reach a new one.

mod assign;
mod gather;
mod health;
mod job;
mod latency;
mod policy;
mod pool;

pub use assign::{Seat, assign, makespan, rebalance};
pub use gather::{Action, Event, Gather};
pub use health::{Health, HealthOptions, Speed, State};
pub use job::Outcome;
pub(crate) use job::{Gathered, JobPlan, run_job};
pub use latency::{Expected, Latencies};
pub use policy::{OnShortfall, Policy};
pub(crate) use pool::InstallRequest;
pub use pool::Pool;
