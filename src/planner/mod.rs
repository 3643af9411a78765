//! Choosing how a layer is divided: what it costs in seconds, and the cheapest way.
//!
//! [`SubtaskCost`] is exact arithmetic on shapes: what a subtask uploads, downloads, stores and computes. [`Work`] says
//! what a worker of ours has to do for it, [`Rates`] turn that into seconds, [`Rates::predict`] into the time of a
//! whole layer, and [`choose_partitions`] takes the cheapest (k_A, k_B). [`plan_layer`] also weighs other numbers of
//! subtasks, replication, and not coding at all, and says why. All these are pure functions; [`calibrate()`] measures
//! the rates on a worker and on this machine, in about a second. Who gives `partitions` explicitly can skip this
//! module.
//!
//! Invariant: of two ways of one layer, the one that is predicted to be faster is chosen, and predictions depend on
//! shapes and rates alone.

mod calibrate;
mod choose;
mod cost;
mod memory;
mod nnls;
mod plan;
mod rates;

pub use calibrate::{Calibration, calibrate, calibrate_host, calibrate_worker};
pub use choose::{choose_partitions, feasible_partitions, unmixed_partitions};
pub use cost::{PaperCost, SubtaskCost, subtask_shape};
pub use memory::LayerMemory;
pub use plan::{Alternative, LayerPlan, PlanOptions, Way, plan_layer};
pub use rates::{HostRates, Prediction, Rates, Work, WorkerRates};
