//! Schedules subtasks on workers, and decides when enough results have come back.
//!
//! * [`Policy`]: deadline, hedging, partial work, patience, audit, and what to do when too few results can come.
//! * [`Arrivals`]: the sub-results of a run that have arrived.
//! * [`Gather`]: a state machine without I/O. Events with times go in, actions come out. It asks a [`Recovery`] what
//!   decodes and how well, and does not depend on codes, devices or networks.
//! * [`assign()`], [`rebalance`]: which worker holds which subtask, by speed and failure domain.
//! * [`Health`], [`Speed`]: the state of one worker, estimated from its results, failures and delays.
//! * [`Latencies`], [`Expected`]: how long subtasks take, to tell when one is overdue.
//! * [`Pool`]: threads and channels. Each worker is owned by one thread (`service`) that takes commands in order
//!   and is supervised: lost workers are opened again, hung ones abandoned.
//! * `run_job`: one run of one layer, which connects all of these. It accesses workers and time through a `Fleet`.
//! * [`Replicas`], [`ReplicaHistory`]: which worker computes a part of a model that several hold, and when another one is
//!   asked too; pure rules. `part_job` carries them out on a pool.
//! * [`SimulatedFleet`]: workers, links and cores in virtual time, for the same runs.
//!
//! Invariant: every task given to a worker is answered (result or failure), or its job is over. Each job has its own
//! channel, so a late result of an old job cannot reach a new one.

mod arrivals;
mod assign;
mod estimates;
mod fleet;
mod gather;
mod health;
mod job;
mod latency;
mod mailbox;
mod message_faults;
mod outcome;
mod part_job;
mod part_task;
mod policy;
mod pool;
mod pool_parts;
mod processor_sharing;
mod recovery;
mod replica_history;
mod replicas;
mod service;
mod sim_worker;
mod simulated;
mod simulation;
mod slot;
mod speed;

pub use arrivals::{Arrival, Arrivals, Recorded};
pub use assign::{Seat, assign, rebalance};
pub use estimates::RunEstimates;
pub(crate) use fleet::Fleet;
pub use gather::{Action, Event, Gather};
pub use health::{Health, HealthOptions, State};
pub(crate) use job::{FilterHolders, JobLayer, JobPlan, run_job};
pub use latency::{Expected, Latencies};
pub use message_faults::{Direction, MessageFaults, Partition};
pub use outcome::Outcome;
pub(crate) use outcome::{Decision, RunOutcome};
pub use part_job::{PartAttempt, PartReport};
pub(crate) use part_job::{PartJob, run_part_job};
pub(crate) use part_task::PartInstalled;
pub use policy::{Audit, OnShortfall, Policy};
pub use pool::{FilterRefusals, Pool, WorkerHealth};
pub use recovery::{Recovery, Verdict};
pub use replica_history::ReplicaHistory;
pub use replicas::{
    Comparison, Holder, PartDispatch, ReplicaAction, ReplicaContext, ReplicaEvent, ReplicaPolicy, Replicas,
};
pub use sim_worker::{Link, SimulatedWork, Usage};
pub use simulated::{SimulatedFleet, SimulatedHost, SimulatedWorker};
pub use slot::PoolOptions;
pub(crate) use slot::{Banks, FilterSource, InstallRequest};
pub use speed::Speed;
