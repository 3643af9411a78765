//! The structure of `bench.json` of a study under load.
//!
//! Plain data. Times are in milliseconds unless a name says otherwise, sizes in bytes.

use serde::{Deserialize, Serialize};

use super::spec::{LoadMethod, LoadSpec};
use crate::schema::Environment;

/// The version of [`LoadStudy`].
pub const SCHEMA: u32 = 1;

/// A study under load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadStudy {
    /// [`SCHEMA`].
    pub schema: u32,
    /// `under-load`.
    pub kind: String,
    /// When and how it was made; the machine named here ran the simulation and is not part of it.
    pub setting: Environment,
    /// The load file, with all defaults.
    pub spec: LoadSpec,
    /// Latency against load, by model.
    pub models: Vec<ModelStudy>,
    /// Maps, by model.
    pub maps: Vec<Map>,
    /// The main findings as sentences.
    pub findings: Vec<String>,
}

/// One model under every load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelStudy {
    /// Its name.
    pub model: String,
    /// Multiply-adds of a request.
    pub macs: f64,
    /// Time of a machine without faults for the whole model.
    pub service_ms: f64,
    /// Time of the master for the whole model.
    pub local_ms: f64,
    /// Requests a second that one replica a machine could answer at most, without faults.
    pub capacity: f64,
    /// The loads, in the order of the file.
    pub points: Vec<Point>,
}

/// All methods at one load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Arrivals over [`ModelStudy::capacity`].
    pub load: f64,
    /// Requests a second.
    pub rate: f64,
    /// The methods, in the order of the file.
    pub methods: Vec<MethodLatencies>,
}

/// How the runs of a method ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The queue did not grow: percentiles mean something.
    Steady,
    /// Requests arrived faster than they were answered: latencies would grow without end, and none are reported.
    Saturated,
    /// The limit of events was reached first; nothing is known.
    Unfinished,
}

/// One method at one load. Percentiles are `null` where the method is not steady, and where fewer than five requests lie
/// beyond them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MethodLatencies {
    /// The method.
    pub method: LoadMethod,
    /// The quantile of recent times after which it hedges: the one with the least 99th percentile of those tried.
    pub hedge: Option<f64>,
    /// Layers that are coded.
    pub coded_layers: usize,
    /// How its runs ended.
    pub state: State,
    /// Why it is not steady; empty if it is.
    pub reason: String,
    /// Requests that count, and those of them that failed; failed requests count as infinitely late.
    pub requests: usize,
    /// Requests without an answer because too many machines were lost.
    pub failed: usize,
    /// Mean from arrival to answer.
    pub mean: Option<f64>,
    /// Median.
    pub p50: Option<f64>,
    /// 90th percentile.
    pub p90: Option<f64>,
    /// 99th percentile of all runs together.
    pub p99: Option<f64>,
    /// Least and greatest 99th percentile of a single run.
    pub p99_of_runs: Option<[f64; 2]>,
    /// 99.9th percentile.
    pub p999: Option<f64>,
    /// Answers a second, up to the last event.
    pub throughput: f64,
    /// What a request costs.
    pub usage: Usage,
}

/// What a request costs in the mean, and the share of the time in which things were busy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor seconds of machines, at full speed: the measure of energy.
    pub machine_s: f64,
    /// Seconds of the master.
    pub master_s: f64,
    /// Share of the machines' seconds whose answers were not used.
    pub wasted: f64,
    /// Bytes that the master sent.
    pub bytes_out: f64,
    /// Bytes that it received.
    pub bytes_in: f64,
    /// Late parts that were sent a second time.
    pub hedged: f64,
    /// Parts that were sent again because their machine was lost.
    pub redispatched: f64,
    /// The busiest machine.
    pub busiest_machine: f64,
    /// The master's link, out and in.
    pub link_out: f64,
    /// In.
    pub link_in: f64,
    /// The master.
    pub master: f64,
}

/// The best method over two ratios, at one load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Map {
    /// The model.
    pub model: String,
    /// Arrivals over the capacity of one replica a machine.
    pub load: f64,
    /// Multiply-adds of a request over the bytes of its input and output: far below, links do not matter to replicas.
    pub macs_per_byte_of_ends: f64,
    /// Row by row: for each delay ratio, every ratio of rate and link.
    pub cells: Vec<Cell>,
}

/// One cell of a [`Map`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Multiply-adds a second of a machine over bytes a second of a link.
    pub macs_per_byte: f64,
    /// Mean delay of a straggler over the time of the whole model on a machine.
    pub delay_ratio: f64,
    /// The method with the least 99th percentile; `null` if none is steady.
    pub best: Option<LoadMethod>,
    /// The least 99th percentile without coding over the least with coding: above 1 coding wins. `null` if one is missing.
    pub coding_gain: Option<f64>,
    /// All methods.
    pub methods: Vec<MethodLatencies>,
}

impl MethodLatencies {
    /// Whether it codes at least one layer.
    #[must_use]
    pub fn codes(&self) -> bool {
        self.coded_layers > 0
    }
}

/// The method with the least 99th percentile among those that pass `which`.
#[must_use]
pub fn best(
    methods: &[MethodLatencies],
    which: impl Fn(&MethodLatencies) -> bool,
) -> Option<&MethodLatencies> {
    let steady = methods.iter().filter(|method| method.p99.is_some() && which(method));
    steady.min_by(|a, b| a.p99.unwrap_or(f64::INFINITY).total_cmp(&b.p99.unwrap_or(f64::INFINITY)))
}

/// The least 99th percentile without coding over the least with coding.
#[must_use]
pub fn coding_gain(methods: &[MethodLatencies]) -> Option<f64> {
    let coded = best(methods, MethodLatencies::codes)?.p99?;
    let plain = best(methods, |method| !method.codes())?.p99?;
    Some(plain / coded)
}
