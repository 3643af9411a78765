//! Options shared by the commands that run coded layers.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use fcdcc::array::WireFormat;
use fcdcc::engine::WindowwiseLimit;
use fcdcc::worker::FaultSpec;
use fcdcc::{Audit, CodeKind, Error, LayerOptions, OnShortfall, Policy, Result};

use super::kept_rates::Calibrate;

/// Default of `--workers`.
const WORKERS: usize = 6;

/// Who computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// Real GPUs if there are any, else CPU workers with a notice
    #[default]
    Auto,
    /// GPU adapters, software ones included
    Gpu,
    /// Threads of this machine
    Cpu,
}

/// Arithmetic of the workers and type of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    /// 32-bit
    #[default]
    F32,
    /// 64-bit
    F64,
}

/// `--hedge`: a quantile, or `off`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Hedge(Option<f64>);

impl FromStr for Hedge {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "off" {
            return Ok(Self(None));
        }
        let quantile = text.parse().ok().filter(|q| (0.0..1.0).contains(q) && *q > 0.0);
        quantile.map(|q| Self(Some(q))).ok_or_else(|| {
            Error::invalid("hedging quantile", format!("{text:?}"), "give a number between 0 and 1, or off")
        })
    }
}

/// A switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    #[default]
    On,
    Off,
}

/// `--partitions KA,KB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Partitions(usize, usize);

impl FromStr for Partitions {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        match parts.as_slice() {
            [a, b] => match (a.parse(), b.parse()) {
                (Ok(a), Ok(b)) => Ok(Self(a, b)),
                _ => Err(Error::invalid("partitions", format!("{text:?}"), "give two numbers, such as 4,4")),
            },
            other => Err(Error::mismatch(
                "number of partitions",
                other.len(),
                "2 (k_A of the input, k_B of the filters)",
                "give them as KA,KB, such as 4,4",
            )),
        }
    }
}

/// `--max-windowwise`: a bound, `auto` or `off`.
pub(crate) fn windowwise(text: &str) -> Result<WindowwiseLimit> {
    match text {
        "auto" => Ok(WindowwiseLimit::Automatic),
        "off" => Ok(WindowwiseLimit::Off),
        number => number.parse().map(WindowwiseLimit::At).map_err(|_| {
            Error::invalid("windowwise limit", format!("{text:?}"), "give a number above zero, auto or off")
        }),
    }
}

/// A time such as `500ms` or `2s`.
pub(crate) fn duration(text: &str) -> Result<Duration> {
    humantime::parse_duration(text)
        .map_err(|e| Error::invalid("duration", format!("{text:?}"), format!("{e}; write it as 500ms or 2s")))
}

/// Options of every command that runs coded layers.
#[derive(Args, Clone, Debug)]
pub(crate) struct LayerArgs {
    /// Coded subtasks n, one worker each unless a pool file says otherwise [default: 6]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<usize>,
    /// Parts of the input and of the filters (crme: each 1 or even) [default: the cheapest that survive --tolerate]
    #[arg(long, value_name = "KA,KB")]
    pub(crate) partitions: Option<Partitions>,
    /// Stragglers to survive, n minus the recovery threshold [default: 2]
    #[arg(long, value_name = "G")]
    pub(crate) tolerate: Option<usize>,
    /// Code family: crme, chebyshev, vandermonde, khatri-rao, replication, uncoded
    #[arg(long, value_name = "NAME", default_value = "crme")]
    pub(crate) code: CodeKind,
    /// Who computes
    #[arg(long, value_enum, default_value_t)]
    pub(crate) backend: Backend,
    /// GPU adapter: its number or part of its name (see `fcdcc devices`)
    #[arg(long, value_name = "ADAPTER")]
    pub(crate) adapter: Option<String>,
    /// Workers one by one, from a TOML file, instead of --backend
    #[arg(long, value_name = "FILE.toml", conflicts_with_all = ["backend", "adapter"])]
    pub(crate) pool: Option<PathBuf>,
    /// Format in which slabs and results travel to and from the pool's remote workers: f32, f16 or bf16 [default: the pool
    /// file's, or f32]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) wire: Option<WireFormat>,
    /// Arithmetic of the workers [default: f32; run: the model's own]
    #[arg(long, value_enum)]
    pub(crate) precision: Option<Precision>,
    /// Inject a fault, WORKERS:KIND, such as 0,3:delay=300ms or random:2:crash (may be repeated)
    #[arg(long, value_name = "SPEC")]
    pub(crate) fault: Vec<FaultSpec>,
    /// Time a coded layer may take from its dispatch, such as 500ms
    #[arg(long, value_name = "DUR", default_value = "30s", value_parser = duration)]
    pub(crate) deadline: Duration,
    /// When too few results can come: fail, redispatch (then local), local
    #[arg(long, value_name = "WHAT", default_value = "redispatch")]
    pub(crate) on_shortfall: OnShortfall,
    /// Give idle workers copies of subtasks that take longer than this quantile of their like, or off
    #[arg(long, value_name = "Q", default_value = "0.5")]
    pub(crate) hedge: Hedge,
    /// Decode from parts of subtasks too
    #[arg(long, value_enum, value_name = "SWITCH", default_value_t)]
    pub(crate) partial_work: Switch,
    /// Wait for one more result where that improves a badly conditioned set: this fraction of the time spent for each
    /// decimal digit
    #[arg(long, value_name = "F", default_value_t = 0.1, allow_negative_numbers = true)]
    pub(crate) patience: f64,
    /// Use spare results as checksums: off, watch (the first run of a layer and one in 32 wait for one, briefly), detect
    /// (every run; refuse what contradicts itself), correct (every run; leave out the workers that are wrong, which takes two
    /// for each) [default: watch; bench: off]
    #[arg(long, value_name = "HOW")]
    pub(crate) audit: Option<Audit>,
    /// Refuse a result whose error bound, relative L2 or windowwise, exceeds R, however it is computed [default: none]
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub(crate) max_error: Option<f64>,
    /// Windowwise error bound above which a layer takes another way by itself, or off [default: auto, which is 1e-4 in f32,
    /// 1e-12 in f64; bench: off]
    #[arg(long, value_name = "R", value_parser = windowwise, allow_negative_numbers = true)]
    pub(crate) max_windowwise: Option<WindowwiseLimit>,
    /// Seed of everything random
    #[arg(long, value_name = "S", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) seed: u64,
    /// Where the planner's rates and the choice of GPU kernels come from
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    pub(crate) calibrate: Calibrate,
    /// Write a machine-readable report; - for standard output
    #[arg(long, value_name = "FILE.json")]
    pub(crate) report: Option<PathBuf>,
}

impl LayerArgs {
    /// The number of workers to make without a pool file.
    pub(crate) fn worker_count(&self) -> usize {
        self.workers.unwrap_or(WORKERS)
    }

    /// The number of workers that may be late.
    pub(crate) fn tolerated(&self) -> usize {
        self.tolerate.unwrap_or(LayerOptions::default().tolerate)
    }

    /// The options for the library.
    pub(crate) fn layer_options(&self, name: &str) -> Result<LayerOptions> {
        if self.workers == Some(0) {
            return Err(Error::invalid("number of workers (--workers)", 0, "use at least one"));
        }
        let defaults = LayerOptions::default();
        Ok(LayerOptions {
            own_code: None,
            name: name.to_owned(),
            code: self.code,
            subtasks: self.workers,
            tolerate: self.tolerate.unwrap_or(defaults.tolerate),
            partitions: self.partitions.map(|Partitions(a, b)| (a, b)),
            rates: defaults.rates,
            policy: Policy {
                deadline: self.deadline,
                on_shortfall: self.on_shortfall,
                hedge: self.hedge.0,
                partial: self.partial_work == Switch::On,
                patience: self.patience,
                audit: self.audit.unwrap_or(defaults.policy.audit),
            },
            seed: self.seed,
            max_error: self.max_error,
            max_windowwise: self.max_windowwise.unwrap_or_default(),
            clamp: None,
            integers: None,
            observer: None,
        })
    }
}
