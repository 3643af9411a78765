//! A model as a chain of pieces, and the places in which they can be computed.
//!
//! Relevant if you want to plan segments of something else than a model of ONNX.
//!
//! Invariant: numbers alone; nothing here knows a file, a worker or a link.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::rates::Rates;
use super::work::WorkerRates;
use crate::error::{Error, Result};

/// What segments are chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// One request at a time, as early as possible.
    Latency,
    /// As many requests a second as possible, with many in flight.
    Throughput,
}

impl Objective {
    const NAMES: [(&'static str, Self); 2] = [("latency", Self::Latency), ("throughput", Self::Throughput)];
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES.iter().find(|(_, own)| own == self).map_or("", |(name, _)| name))
    }
}

impl FromStr for Objective {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, own)| *own);
        found.ok_or_else(|| Error::invalid("objective", format!("{text:?}"), "use latency or throughput"))
    }
}

/// Where a segment is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// On this machine.
    Host,
    /// Layer by layer, each coded over the workers where that is faster.
    Coded,
    /// Whole, by any one of several workers that hold it.
    Replicated,
}

impl Place {
    /// All places, those first that are preferred where predicted times are equal.
    pub const ALL: [Self; 3] = [Self::Host, Self::Coded, Self::Replicated];
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Coded => "coded",
            Self::Replicated => "replicated",
        })
    }
}

/// Predicted times of one piece.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// On this machine, seconds.
    pub local_s: f64,
    /// Layer by layer as planned, seconds.
    pub coded_s: f64,
    /// The part of `coded_s` in which this machine works: encoding, decoding, and layers that stay here.
    pub coded_here_s: f64,
    /// For each worker that takes parts, seconds for computing the piece.
    pub on_workers: Vec<f64>,
    /// Bytes that a worker needs to hold and to compute it.
    pub memory_bytes: u64,
}

/// The pieces of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chain {
    /// The pieces, in order.
    pub pieces: Vec<Piece>,
    /// Elements of what enters the first piece, of the values between pieces, and of what leaves the last one, in elements of
    /// the type that the rates are for; `None` for what workers cannot take.
    pub elems: Vec<Option<f64>>,
}

/// A worker that takes parts of models.
#[derive(Clone, Debug, PartialEq)]
pub struct PartWorker {
    /// Its machine. Parts are not placed on workers of this machine ([`LOCAL_HOST`](crate::worker::LOCAL_HOST)), whose cores
    /// the host uses itself.
    pub machine: String,
    /// Its rates, over its link.
    pub rates: WorkerRates,
    /// Bytes that it may use for parts, if that is known.
    pub memory_bytes: Option<u64>,
}

/// What segments are planned with.
#[derive(Clone, Debug)]
pub struct SegmentOptions {
    /// What they are chosen for.
    pub objective: Objective,
    /// Number of workers that may be late or lost: each replicated segment is held by at least one worker more, on as many
    /// machines, or by that many workers if all of them are on one machine.
    pub tolerate: usize,
    /// Rates of this machine, and of the links.
    pub rates: Rates,
    /// The workers that take parts.
    pub workers: Vec<PartWorker>,
}

/// Predicted times of a segment in one of the places.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SegmentAlternative {
    /// Where it would be computed.
    pub place: Place,
    /// Seconds of one request; `None` if it cannot be computed there.
    pub latency_s: Option<f64>,
    /// Seconds between two requests of many; `None` if it cannot be computed there.
    pub period_s: Option<f64>,
    /// Why it cannot be computed there.
    pub why_not: Option<String>,
}
