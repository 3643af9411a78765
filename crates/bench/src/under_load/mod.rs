//! Methods under load: many requests at once, on simulated machines, from light load to saturation.
//!
//! Relevant if you want to know whether coding, replicas or one machine suit your machines. [`LoadSpec`] is the content of
//! a load file, [`study`] runs it, [`LoadStudy`] is the result. The
//! other parts of this crate run one request at a time; here requests arrive by themselves, wait for machines, links and the
//! master, and latencies count from their arrival. Everything happens in virtual time, and equal files give equal results.
//!
//! Invariant: all methods meet the same arrivals and the same faults, and seconds of work are those of the planner.

mod faults;
mod findings;
mod results;
mod sim;
mod spec;
mod study;
mod timeline;
mod work;

pub use faults::{Each, Law, MachineFault, Span};
pub use findings::{named, verdict};
pub use results::{
    Cell, LoadStudy, Map, MethodLatencies, ModelStudy, Point, SCHEMA, State, Usage, best, coding_gain,
};
pub use spec::{
    Arrivals, CodingSpec, Dispatch, LoadMethod, LoadSpec, MachineSpec, MapSpec, MasterSpec, Straggler, Tail,
};
pub use study::{parse_trace, study};
