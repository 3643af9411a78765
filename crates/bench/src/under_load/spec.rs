//! The content of a load file: machines, links, faults, arrivals and methods, all fixed before anything is simulated.
//!
//! Invariant: a [`LoadSpec`] that has passed [`LoadSpec::check`] can be simulated, in bounded memory.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::faults::{Law, MachineFault, Span};
use crate::layers;
use fcdcc::error::{Error, Result};

/// Most machines.
const MOST_MACHINES: usize = 10_000;
/// Most requests of a run.
const MOST_REQUESTS: usize = 1_000_000;
/// Most runs of a point.
const MOST_RUNS: usize = 20;
/// Most cells along one axis of a map.
const MOST_CELLS: usize = 40;

/// A study under load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadSpec {
    /// What the study is about, in a few words.
    pub title: String,
    /// Seed of arrivals and faults.
    pub seed: u64,
    /// Networks, such as `vgg16`, or single layers of them.
    pub models: Vec<String>,
    /// Requests that count, in each run.
    pub requests: usize,
    /// Requests before them, which do not count.
    pub warmup: usize,
    /// Runs of each point, with seeds of their own.
    pub runs: usize,
    /// How requests arrive.
    pub arrivals: Arrivals,
    /// A file of arrival times in seconds, one a line, for [`Arrivals::Trace`]; it is stretched to the rate of each point.
    pub trace: Option<String>,
    /// Arrival rates as fractions of the capacity of one replica a machine without faults.
    pub loads: Vec<f64>,
    /// Arrival rates in requests a second, instead of `loads`.
    pub rates: Vec<f64>,
    /// The methods to compare.
    pub methods: Vec<LoadMethod>,
    /// Quantiles of recent times after which late work is sent a second time; every hedged method is run with each of
    /// them, and the best one counts.
    pub hedge: Vec<f64>,
    /// A late part is sent to at most this many machines, one after the other.
    pub most_copies: usize,
    /// How a machine, or a group of machines, is chosen.
    pub dispatch: Dispatch,
    /// A run in which more requests wait is given up as saturated.
    pub most_in_flight: usize,
    /// A run with more events is given up as unfinished.
    pub most_events: u64,
    /// The machines.
    pub machines: MachineSpec,
    /// The machine that receives requests.
    pub master: MasterSpec,
    /// How layers are divided.
    pub coding: CodingSpec,
    /// What happens to the machines; the master has no faults.
    #[serde(rename = "fault")]
    pub faults: Vec<MachineFault>,
    /// The map over two ratios.
    pub map: Option<MapSpec>,
    /// The times of the trace, in seconds from its beginning, ascending.
    #[serde(skip)]
    pub trace_times: Vec<f64>,
}

/// How requests arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrivals {
    /// Independently of each other.
    #[default]
    Poisson,
    /// In equal gaps.
    Constant,
    /// At the times of a file.
    Trace,
}

/// How a machine, or a group of machines, is chosen for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dispatch {
    /// In turns.
    RoundRobin,
    /// The one with the fewest unanswered tasks, in turns among equals.
    #[default]
    LeastQueue,
}

/// A way to serve requests for a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoadMethod {
    /// The master computes everything.
    Local,
    /// The whole model on one machine.
    Replicas,
    /// [`LoadMethod::Replicas`], and a second machine when the first is late; the first answer counts.
    ReplicasHedged,
    /// Two machines always; the first answer counts.
    ReplicasDouble,
    /// Each layer in as many parts as a group has machines, on any machines; all parts are needed.
    Uncoded,
    /// [`LoadMethod::Uncoded`], and copies of late parts on other machines.
    UncodedHedged,
    /// Each layer coded with CRME over a group; some of its subtasks may be missing.
    Crme,
    /// [`LoadMethod::Crme`], and copies of late subtasks on other machines of the group.
    CrmeHedged,
    /// Each layer as in [`LoadMethod::Crme`] or on the master, whichever is predicted to be faster.
    Planned,
}

impl LoadMethod {
    /// Every method, in the order of a table.
    pub const ALL: [Self; 9] = [
        Self::Local,
        Self::Replicas,
        Self::ReplicasHedged,
        Self::ReplicasDouble,
        Self::Uncoded,
        Self::UncodedHedged,
        Self::Crme,
        Self::CrmeHedged,
        Self::Planned,
    ];

    /// The name used in load files and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Replicas => "replicas",
            Self::ReplicasHedged => "replicas-hedged",
            Self::ReplicasDouble => "replicas-double",
            Self::Uncoded => "uncoded",
            Self::UncodedHedged => "uncoded-hedged",
            Self::Crme => "crme",
            Self::CrmeHedged => "crme-hedged",
            Self::Planned => "planned",
        }
    }

    /// Whether late work is sent a second time.
    #[must_use]
    pub fn hedges(self) -> bool {
        matches!(self, Self::ReplicasHedged | Self::UncodedHedged | Self::CrmeHedged)
    }

    /// Whether layers are coded.
    #[must_use]
    pub fn codes(self) -> bool {
        matches!(self, Self::Crme | Self::CrmeHedged | Self::Planned)
    }

    /// Whether layers are divided over several machines.
    pub(super) fn divides(self) -> bool {
        self.codes() || matches!(self, Self::Uncoded | Self::UncodedHedged)
    }
}

/// The machines, all alike but for their faults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineSpec {
    /// Their number.
    pub count: usize,
    /// Billions of multiply-adds a second. Everything else that a machine does is scaled with it, from the planner's
    /// default rates, which belong to 30.
    pub mac_rate: f64,
    /// Megabits a second of the link of each machine, in each direction.
    pub link_mbit: f64,
    /// Time of a message on its way, beside the time for its bytes.
    pub latency: Span,
    /// Time that each task takes beside its work.
    pub task_overhead: Span,
}

/// The machine that receives requests, encodes, decodes, and computes what lies between the layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MasterSpec {
    /// Billions of multiply-adds a second of each core.
    pub mac_rate: f64,
    /// Cores, which work together on one thing at a time.
    pub cores: usize,
    /// Megabits a second of its link, in each direction, which all messages share.
    pub link_mbit: f64,
}

/// How layers are divided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CodingSpec {
    /// Machines that compute the layers of one request: the subtasks of a coded layer, and the parts of an uncoded one.
    pub group: usize,
    /// Subtasks of a coded layer that may be missing.
    pub tolerate: usize,
    /// Bytes of an element on the link: 4, or 2 for 16-bit messages.
    pub element_bytes: usize,
}

/// A map: the least 99th percentile over two ratios.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MapSpec {
    /// The load of every cell, as a fraction of the capacity of one replica a machine.
    pub load: f64,
    /// Multiply-adds a second of a machine over bytes a second of a link. The machine stays, all links change.
    pub macs_per_byte: Vec<f64>,
    /// Mean delay of a straggler over the time in which a machine computes the whole model; 0 for no stragglers.
    pub delay_ratio: Vec<f64>,
    /// What a straggler is.
    pub straggler: Straggler,
    /// Share of the time in which a machine stands still, or share of tasks that are late.
    pub share: f64,
    /// The law of the delays.
    pub tail: Tail,
    /// Requests that count in each run of a cell.
    pub requests: usize,
}

/// What a straggler of a map is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Straggler {
    /// A machine that stands still for a while, whatever it has to do.
    #[default]
    Pause,
    /// A task that begins late, whether it is a whole model or a part of a layer.
    Delay,
}

/// The law of the delays of a map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tail {
    /// Always the mean.
    Constant,
    /// Exponential.
    #[default]
    Exp,
    /// Pareto with shape 1.5.
    Pareto,
}

impl Tail {
    /// The law with this mean.
    pub(super) fn law(self, mean: Duration) -> Law {
        match self {
            Self::Constant => Law::Constant(mean),
            Self::Exp => Law::Exponential(mean),
            // The mean of a Pareto law with shape 1.5 is three times its least value.
            Self::Pareto => Law::Pareto { least: mean / 3, shape: 1.5 },
        }
    }
}

impl Default for LoadSpec {
    fn default() -> Self {
        Self {
            title: String::new(),
            seed: 1,
            models: vec!["vgg16".to_owned()],
            requests: 4000,
            warmup: 400,
            runs: 3,
            arrivals: Arrivals::default(),
            trace: None,
            loads: Vec::new(),
            rates: Vec::new(),
            methods: LoadMethod::ALL.to_vec(),
            hedge: vec![0.5, 0.9, 0.95],
            most_copies: 3,
            dispatch: Dispatch::default(),
            most_in_flight: 1000,
            most_events: 50_000_000,
            machines: MachineSpec::default(),
            master: MasterSpec::default(),
            coding: CodingSpec::default(),
            faults: Vec::new(),
            map: None,
            trace_times: Vec::new(),
        }
    }
}

impl Default for MachineSpec {
    fn default() -> Self {
        Self {
            count: 8,
            mac_rate: 30.0,
            link_mbit: 1000.0,
            latency: Span(Duration::from_micros(200)),
            task_overhead: Span(Duration::from_micros(20)),
        }
    }
}

impl Default for MasterSpec {
    fn default() -> Self {
        Self { mac_rate: 30.0, cores: 2, link_mbit: 1000.0 }
    }
}

impl Default for CodingSpec {
    fn default() -> Self {
        Self { group: 8, tolerate: 2, element_bytes: 4 }
    }
}

impl Default for MapSpec {
    fn default() -> Self {
        Self {
            load: 0.2,
            macs_per_byte: vec![15.0, 60.0, 240.0, 960.0, 3840.0],
            delay_ratio: vec![0.0, 0.25, 1.0, 4.0],
            straggler: Straggler::default(),
            share: 0.05,
            tail: Tail::default(),
            requests: 2000,
        }
    }
}

/// An error about `key`, whose value is `got`.
fn bad(key: &str, got: impl ToString, help: impl Into<String>) -> Error {
    Error::invalid(format!("`{key}` of the load file"), got.to_string(), help.into())
}

fn within(key: &str, value: usize, low: usize, high: usize) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(bad(key, value, format!("use {low} to {high}")))
}

fn between(key: &str, value: f64, low: f64, high: f64) -> Result<()> {
    if value >= low && value <= high {
        return Ok(());
    }
    Err(bad(key, value, format!("use a number from {low} to {high}")))
}

impl LoadSpec {
    /// Checks every key.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] that names the key, its value and what to do.
    pub fn check(&self) -> Result<()> {
        self.check_sizes()?;
        self.check_lists()?;
        for fault in &self.faults {
            fault.check()?;
        }
        let machines = &self.machines;
        between("machines.mac_rate", machines.mac_rate, 0.01, 1e6)?;
        between("machines.link_mbit", machines.link_mbit, 1e-3, 1e9)?;
        between("machines.latency", machines.latency.seconds(), 0.0, 10.0)?;
        between("machines.task_overhead", machines.task_overhead.seconds(), 0.0, 10.0)?;
        between("master.mac_rate", self.master.mac_rate, 0.01, 1e6)?;
        between("master.link_mbit", self.master.link_mbit, 1e-3, 1e9)?;
        match self.arrivals {
            Arrivals::Trace if self.trace.is_none() => {
                Err(bad("trace", "missing", "name a file of arrival times in seconds, one a line"))
            }
            Arrivals::Poisson | Arrivals::Constant if self.trace.is_some() => {
                Err(bad("arrivals", "not trace", "write arrivals = \"trace\", or leave trace out"))
            }
            _ => self.map.as_ref().map_or(Ok(()), MapSpec::check),
        }
    }

    fn check_sizes(&self) -> Result<()> {
        within("requests", self.requests, 1, MOST_REQUESTS)?;
        within("warmup", self.warmup, 0, MOST_REQUESTS)?;
        within("runs", self.runs, 1, MOST_RUNS)?;
        within("most_copies", self.most_copies, 2, 16)?;
        within("most_in_flight", self.most_in_flight, 1, 100_000)?;
        if !(1..=1_000_000_000).contains(&self.most_events) {
            return Err(bad("most_events", self.most_events, "use 1 to 1000000000"));
        }
        within("machines.count", self.machines.count, 1, MOST_MACHINES)?;
        within("master.cores", self.master.cores, 1, 1024)?;
        within("coding.element_bytes", self.coding.element_bytes, 1, 8)?;
        if self.methods.iter().any(|method| method.divides()) {
            within("coding.group", self.coding.group, 1, self.machines.count.min(200))?;
            within("coding.tolerate", self.coding.tolerate, 0, self.coding.group.saturating_sub(1))?;
        }
        Ok(())
    }

    fn check_lists(&self) -> Result<()> {
        if self.models.is_empty() {
            return Err(bad("models", "empty", format!("name networks: {}", layers::networks().join(", "))));
        }
        for (index, model) in self.models.iter().enumerate() {
            layers::resolve(model)?;
            if self.models[..index].contains(model) {
                return Err(bad("models", model, "name each model once"));
            }
        }
        match (self.loads.is_empty(), self.rates.is_empty()) {
            (true, true) if self.map.is_none() => {
                let help = "give fractions of the capacity, such as [0.1, 0.5, 0.9], or requests a second as `rates`";
                return Err(bad("loads", "empty", help));
            }
            (false, false) => return Err(bad("rates", "given beside `loads`", "give one of them")),
            _ => {}
        }
        for load in &self.loads {
            between("loads", *load, 1e-4, 10.0)?;
        }
        for rate in &self.rates {
            between("rates", *rate, 1e-6, 1e6)?;
        }
        if self.methods.is_empty() {
            let names: Vec<&str> = LoadMethod::ALL.iter().map(|method| method.name()).collect();
            return Err(bad("methods", "empty", format!("name some of {}", names.join(", "))));
        }
        for (index, method) in self.methods.iter().enumerate() {
            if self.methods[..index].contains(method) {
                return Err(bad("methods", method.name(), "name each method once"));
            }
        }
        if self.hedge.is_empty() && self.methods.iter().any(|method| method.hedges()) {
            return Err(bad("hedge", "empty", "give quantiles, such as [0.5, 0.9, 0.95]"));
        }
        self.hedge.iter().try_for_each(|quantile| between("hedge", *quantile, 0.01, 0.999))
    }
}

impl MapSpec {
    fn check(&self) -> Result<()> {
        between("map.load", self.load, 1e-4, 1.0)?;
        between("map.share", self.share, 1e-4, 0.9)?;
        within("map.requests", self.requests, 1, MOST_REQUESTS)?;
        for (key, values, low, high) in [
            ("map.macs_per_byte", &self.macs_per_byte, 1e-3, 1e9),
            ("map.delay_ratio", &self.delay_ratio, 0.0, 1e4),
        ] {
            within(key, values.len(), 1, MOST_CELLS)
                .map_err(|_| bad(key, format!("a list of {}", values.len()), "give 1 to 40 numbers"))?;
            values.iter().try_for_each(|value| between(key, *value, low, high))?;
        }
        Ok(())
    }
}
