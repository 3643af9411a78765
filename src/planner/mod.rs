//! Chooses how a layer is divided, by predicted time.
//!
//! Relevant if you want the crate to choose `partitions`, or to know why it chose them. [`SubtaskCost`] is exact arithmetic
//! on shapes: the elements that a subtask uploads, downloads and stores, and its multiply-adds. [`Work`] lists what a worker
//! of this crate does for a subtask, [`Rates`] turn that into seconds, [`Rates::predict`] into the time of a whole layer,
//! and [`choose_partitions`] takes the fastest (k_A, k_B). [`plan_layer`] also considers other numbers of subtasks,
//! replication, and no coding at all, and explains its choice. All these are pure functions; [`calibrate()`] measures the
//! rates on a worker and on this machine, in about a second; [`calibrate_link`] and [`calibrate_network`] measure the links
//! to other machines.
//!
//! Invariant: of two ways to compute a layer, the one with the shorter predicted time is chosen, and predictions depend on
//! shapes and rates alone.

mod calibrate;
mod chain;
mod choose;
mod cost;
mod links;
mod load;
mod memory;
mod network;
mod nnls;
mod plan;
mod rates;
mod segments;
mod work;

pub use calibrate::{Calibration, calibrate, calibrate_host, calibrate_worker};
pub use chain::{Chain, Objective, PartWorker, Piece, Place, SegmentAlternative, SegmentOptions};
pub use choose::{choose_partitions, feasible_partitions, unmixed_partitions};
pub use cost::{PaperCost, SubtaskCost, subtask_shape};
pub use links::{calibrate_link, calibrate_network, links_agree};
pub use memory::LayerMemory;
pub use network::{LinkRates, Network};
pub use plan::{Alternative, LayerPlan, PlanOptions, Way, plan_layer};
pub use rates::{HostRates, Prediction, Rates};
pub use segments::{ChainPlan, SegmentPlan, plan_segments};
pub use work::{Work, WorkerRates};
