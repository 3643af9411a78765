//! Makes a pool of workers from options or a pool file. No other module names concrete workers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fcdcc::array::{DType, WireFormat};
use fcdcc::files::Output;
use fcdcc::planner::Rates;
use fcdcc::worker::{CpuWorker, FaultSpec, inject};
use fcdcc::{Error, Pool, Result, Worker, WorkerId};
use serde::Deserialize;

use super::kept_rates::{Calibrate, Measuring};
use super::ledger::Ledger;
use super::network::{Endpoints, TlsEntry};
use super::options::{Backend, LayerArgs};
use super::{Console, rates};

/// Maximum number of workers of one machine: each has a thread.
const MAX_WORKERS: usize = 4096;

/// A pool file: `[[worker]]` tables, one for each worker or group of equal workers, and `[cluster]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PoolFile {
    cluster: Option<ClusterEntry>,
    #[serde(default)]
    worker: Vec<WorkerEntry>,
}

/// `[cluster]`: how to reach other machines.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(not(feature = "cluster"), expect(dead_code, reason = "read to say what this binary lacks"))]
struct ClusterEntry {
    #[serde(default = "default_cluster")]
    name: String,
    #[serde(default)]
    listen: Endpoints,
    #[serde(default)]
    connect: Endpoints,
    /// How long to wait for machines before the first layer.
    #[serde(default = "default_wait", deserialize_with = "duration")]
    wait: Duration,
    tls: Option<TlsEntry>,
    #[serde(default)]
    insecure: bool,
    /// Machines that may join besides those named by workers.
    #[serde(default)]
    machines: Vec<String>,
    /// Common names of certificates that may list the cluster.
    #[serde(default = "default_viewers")]
    viewers: Vec<String>,
    /// Format of slabs and sub-results, for machines without one of their own.
    #[serde(default)]
    wire: WireFormat,
}

fn default_wait() -> Duration {
    Duration::from_secs(10)
}

pub(crate) fn default_cluster() -> String {
    "default".to_owned()
}

pub(crate) fn default_viewers() -> Vec<String> {
    vec!["operator".to_owned()]
}

/// Parses a duration such as `500ms`.
fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    super::options::duration(&text).map_err(serde::de::Error::custom)
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum WorkerEntry {
    /// Threads of this machine.
    Cpu {
        name: Option<String>,
        #[serde(default = "one")]
        count: usize,
        #[serde(default = "one")]
        threads: usize,
        fault: Option<String>,
    },
    /// Queues of a GPU adapter.
    Gpu {
        adapter: Option<toml::Value>,
        #[serde(default = "one")]
        queues: usize,
        #[serde(default)]
        storage: Storage,
        fault: Option<String>,
    },
    /// Devices of the named machine, or of any machine that joins.
    #[cfg_attr(not(feature = "cluster"), expect(dead_code, reason = "read to say what this binary lacks"))]
    Remote {
        name: Option<String>,
        /// By default all devices of a named machine, or one device of any machine.
        count: Option<usize>,
        /// Format of slabs and sub-results, instead of the cluster's.
        wire: Option<WireFormat>,
        fault: Option<String>,
    },
}

/// Storage type of slabs and filters on GPU workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Storage {
    /// 16 bits.
    F16,
    /// The type of the arithmetic.
    #[default]
    Full,
}

fn one() -> usize {
    1
}

/// The workers described by the options, without the faults of `--fault`. `measure`: whether to measure unknown properties
/// of the workers.
pub(crate) fn workers(args: &LayerArgs, measure: bool, console: Console) -> Result<Vec<Box<dyn Worker>>> {
    let measuring = Measuring { how: args.calibrate, unknown: measure };
    if let Some(path) = &args.pool {
        return from_file(path, args.seed, measuring, args.tolerated(), args.wire, console);
    }
    if let Some(wire) = args.wire {
        let help = "give a pool file with remote workers (--pool), or leave it out";
        return Err(Error::invalid("format on the wire (--wire)", wire.name(), help));
    }
    check_count(args.worker_count())?;
    from_backend(args.backend, args.adapter.as_deref(), args.worker_count(), measuring, console)
}

/// The workers that a pool file describes, their faults included, for other programs; nothing is printed.
pub(crate) fn of_file(path: &Path, seed: u64, tolerate: usize) -> Result<Vec<Box<dyn Worker>>> {
    let measuring = Measuring { how: Calibrate::Auto, unknown: true };
    from_file(path, seed, measuring, tolerate, None, Console::new(true))
}

/// The pool described by the options, faults included, and the planner's rates of its workers. `measure`: whether to
/// measure unknown properties of the workers.
pub(crate) fn assemble(
    args: &LayerArgs,
    dtype: DType,
    measure: bool,
    console: Console,
) -> Result<(Pool, Rates)> {
    let mut workers = workers(args, measure, console)?;
    // With given partitions there is nothing to plan.
    let unknown = measure && args.partitions.is_none();
    let measuring = Measuring { how: args.calibrate, unknown };
    let rates = rates::of(&mut workers, dtype, args.tolerated(), measuring, console)?;
    Ok((start(inject(workers, &args.fault, args.seed)?, console)?, rates))
}

/// As [`assemble`], with what the planner needs to place parts of models on the workers, if it is to
/// (`objective`).
#[cfg(feature = "onnx")]
pub(crate) fn assemble_for(
    args: &LayerArgs,
    dtype: DType,
    objective: Option<fcdcc::planner::Objective>,
    console: Console,
) -> Result<(Pool, Rates, Option<fcdcc::model::SegmentChoice>)> {
    let Some(objective) = objective else {
        let (pool, rates) = assemble(args, dtype, true, console)?;
        return Ok((pool, rates, None));
    };
    let mut workers = workers(args, true, console)?;
    let (rates, choice) = super::segments::choice(&mut workers, args, dtype, objective, console)?;
    Ok((start(inject(workers, &args.fault, args.seed)?, console)?, rates, Some(choice)))
}

/// `count` workers of one thread of this machine each.
fn threads(count: usize) -> Vec<Box<dyn Worker>> {
    (0..count).map(|index| -> Box<dyn Worker> { Box::new(thread(format!("cpu-{index}"), 1)) }).collect()
}

/// A worker of this machine, which takes parts of models where this binary reads models.
fn thread(name: String, threads: usize) -> CpuWorker {
    let worker = CpuWorker::new(name, threads);
    #[cfg(feature = "onnx")]
    let worker = worker.with_parts(std::sync::Arc::new(fcdcc::model::OnnxParts));
    worker
}

/// Prints a notice for each worker that has no room for the filters of some layers.
pub(crate) fn tell_refusals(pool: &Pool, console: Console) {
    for refusals in pool.refusals() {
        let layers =
            if refusals.layers == 1 { "1 layer".to_owned() } else { format!("{} layers", refusals.layers) };
        console.notice(format_args!(
            "notice: others compute what {} should of {layers}: {}",
            refusals.worker, refusals.cause
        ));
    }
}

/// A pool of `workers`; prints a notice if some of them got no thread.
pub(crate) fn start(workers: Vec<Box<dyn Worker>>, console: Console) -> Result<Pool> {
    let pool = Pool::new(workers)?;
    let lost: Vec<String> = (0..pool.len()).map(WorkerId).filter_map(|worker| pool.lost(worker)).collect();
    if let Some(cause) = lost.iter().find(|cause| cause.contains("no thread")) {
        let (there, all) = (pool.len() - lost.len(), pool.len());
        console.notice(format_args!("notice: {there} of {all} workers do the work: {cause}"));
    }
    Ok(pool)
}

/// `count` workers of a backend.
pub(crate) fn from_backend(
    backend: Backend,
    adapter: Option<&str>,
    count: usize,
    measuring: Measuring,
    console: Console,
) -> Result<Vec<Box<dyn Worker>>> {
    match backend {
        Backend::Cpu => {
            if let Some(adapter) = adapter {
                return Err(Error::invalid(
                    "adapter",
                    format!("{adapter:?}"),
                    "--backend cpu uses no adapter",
                ));
            }
            Ok(threads(count))
        }
        Backend::Gpu => gpu_workers(count, adapter, Storage::Full, measuring),
        Backend::Auto if adapter.is_some() => gpu_workers(count, adapter, Storage::Full, measuring),
        Backend::Auto => match super::devices::auto() {
            Ok(_) => gpu_workers(count, None, Storage::Full, measuring),
            Err(why) => {
                console.notice(format_args!("notice: {why}; using CPU workers"));
                Ok(threads(count))
            }
        },
    }
}

pub(crate) fn check_count(count: usize) -> Result<()> {
    if (1..=MAX_WORKERS).contains(&count) {
        Ok(())
    } else {
        Err(Error::invalid("number of workers (--workers)", count, format!("use 1 to {MAX_WORKERS}")))
    }
}

#[cfg(feature = "gpu")]
fn gpu_workers(
    count: usize,
    adapter: Option<&str>,
    storage: Storage,
    measuring: Measuring,
) -> Result<Vec<Box<dyn Worker>>> {
    use fcdcc::worker::{GpuOptions, GpuWorker};
    let adapter = adapter.map(fcdcc::gpu::AdapterSelector::from);
    let tuner = fcdcc::gpu::Tuner::new(measuring.tune());
    let half_storage = storage == Storage::F16;
    GpuWorker::fleet_with(count, &GpuOptions { adapter, tuner, half_storage, ..GpuOptions::default() })
}

#[cfg(not(feature = "gpu"))]
fn gpu_workers(_: usize, _: Option<&str>, _: Storage, _: Measuring) -> Result<Vec<Box<dyn Worker>>> {
    Err(Error::Unavailable {
        what: "the GPU backend".to_owned(),
        help: "this binary was built without it: build with feature `gpu`, or use --backend cpu".into(),
    })
}

/// Enters the pool file and the files that it names in `ledger`, and plans the report's file.
pub(crate) fn files(args: &LayerArgs, ledger: &mut Ledger) -> Result<Option<Output>> {
    if let Some(path) = &args.pool {
        ledger.input("--pool", path)?;
        for path in named(path) {
            ledger.input("the pool's certificates", &path)?;
        }
    }
    args.report.as_ref().map(|path| ledger.output("--report", path)).transpose()
}

/// The files named by a pool file. A pool file that is not a regular file can be read only once, so it is skipped here.
fn named(path: &Path) -> Vec<PathBuf> {
    let regular = path.metadata().is_ok_and(|about| about.is_file());
    // Errors in the file are reported when it is opened.
    let file = regular.then(|| super::network::read_toml::<PoolFile>(path, "a pool file").ok()).flatten();
    let tls = file.and_then(|file| file.cluster).and_then(|cluster| cluster.tls);
    tls.map_or_else(Vec::new, |tls| tls.files(path).to_vec())
}

/// The workers of a pool file, without waiting for machines as long as at most `spare` workers are missing. `wire` replaces
/// the formats in the file.
fn from_file(
    path: &Path,
    seed: u64,
    measuring: Measuring,
    spare: usize,
    wire: Option<WireFormat>,
    console: Console,
) -> Result<Vec<Box<dyn Worker>>> {
    let file: PoolFile = super::network::read_toml(path, "a pool file")?;
    let bad =
        |cause: &str| Error::File { path: path.display().to_string(), cause: cause.to_owned(), input: true };
    let remote = file.worker.iter().any(|entry| matches!(entry, WorkerEntry::Remote { .. }));
    if remote != file.cluster.is_some() {
        return Err(bad(if remote {
            "has remote workers and no [cluster]: say there where to listen or connect"
        } else {
            "has a [cluster] and no [[worker]] of kind \"remote\""
        }));
    }
    if let Some(wire) = wire.filter(|_| !remote) {
        let help = "it is for workers of kind \"remote\", and the pool has none: leave it out";
        return Err(Error::invalid("format on the wire (--wire)", wire.name(), help));
    }
    let mut remotes = file
        .cluster
        .map(|cluster| Remotes::open(&cluster, path, &file.worker, spare, wire, console))
        .transpose()?;
    let mut workers: Vec<Box<dyn Worker>> = Vec::new();
    for entry in &file.worker {
        let group = match (entry, &mut remotes) {
            (WorkerEntry::Remote { .. }, Some(remotes)) => remotes.next_group(),
            _ => entry.open(workers.len(), path, measuring)?,
        };
        workers.extend(entry.injected(group, seed)?);
        check_count(workers.len())?;
    }
    if workers.is_empty() {
        return Err(bad("describes no worker: add a [[worker]] table"));
    }
    if let Some(remotes) = &remotes
        && workers.iter().all(|worker| worker.unavailable_reason().is_some())
    {
        return Err(remotes.none_joined());
    }
    if let Some(remotes) = remotes {
        remotes.name_missing();
    }
    Ok(workers)
}

/// The workers of this machine described by the entries of the file at `path`.
#[cfg(feature = "cluster")]
pub(crate) fn local_workers(
    entries: &[WorkerEntry],
    path: &Path,
    measuring: Measuring,
) -> Result<Vec<Box<dyn Worker>>> {
    let mut workers: Vec<Box<dyn Worker>> = Vec::new();
    for entry in entries {
        let group = entry.open(workers.len(), path, measuring)?;
        workers.extend(entry.injected(group, 0)?);
        check_count(workers.len())?;
    }
    Ok(workers)
}

impl WorkerEntry {
    /// Makes the workers of this entry; `from` is the pool's number of the first one.
    fn open(&self, from: usize, path: &Path, measuring: Measuring) -> Result<Vec<Box<dyn Worker>>> {
        let bad = |cause: String| Error::File { path: path.display().to_string(), cause, input: true };
        match self {
            Self::Cpu { name, count, threads, .. } => {
                check_count(*count)?;
                check_count(*threads)?;
                let group = (0..*count).map(|i| -> Box<dyn Worker> {
                    let index = from + i;
                    let name = match name {
                        Some(name) if *count == 1 => name.clone(),
                        Some(name) => format!("{name}-{i}"),
                        None => format!("cpu-{index}"),
                    };
                    Box::new(thread(name, *threads))
                });
                Ok(group.collect())
            }
            Self::Gpu { adapter, queues, storage, .. } => {
                check_count(*queues)?;
                let adapter = match adapter {
                    None => None,
                    Some(toml::Value::String(name)) => Some(name.clone()),
                    Some(toml::Value::Integer(index)) => Some(index.to_string()),
                    Some(other) => {
                        return Err(bad(format!("adapter is {other}: give its number or part of its name")));
                    }
                };
                gpu_workers(*queues, adapter.as_deref(), *storage, measuring)
            }
            Self::Remote { .. } => {
                Err(bad("has a worker of kind \"remote\": a machine lends its own workers only".to_owned()))
            }
        }
    }

    /// Wraps `group` in the entry's fault.
    fn injected(&self, group: Vec<Box<dyn Worker>>, seed: u64) -> Result<Vec<Box<dyn Worker>>> {
        match self {
            Self::Cpu { fault, .. } | Self::Gpu { fault, .. } | Self::Remote { fault, .. } => match fault {
                None => Ok(group),
                Some(kind) => inject(group, &[format!("all:{kind}").parse::<FaultSpec>()?], seed),
            },
        }
    }
}

#[cfg(feature = "cluster")]
use self::with_cluster::Remotes;
#[cfg(all(feature = "cluster", feature = "metrics", feature = "onnx"))]
pub(crate) use self::with_cluster::clusters;
#[cfg(feature = "cluster")]
pub(crate) use self::with_cluster::{Checked, check};
#[cfg(not(feature = "cluster"))]
use self::without_cluster::Remotes;

#[cfg(feature = "cluster")]
mod with_cluster;

#[cfg(not(feature = "cluster"))]
mod without_cluster {
    use std::convert::Infallible;

    use super::{ClusterEntry, Console, Error, Path, Result, WireFormat, Worker, WorkerEntry};

    /// Never exists in this build.
    pub(super) struct Remotes(Infallible);

    impl Remotes {
        pub(super) fn open(
            _: &ClusterEntry,
            _: &Path,
            _: &[WorkerEntry],
            _: usize,
            _: Option<WireFormat>,
            _: Console,
        ) -> Result<Self> {
            Err(super::super::without_cluster())
        }

        pub(super) fn next_group(&mut self) -> Vec<Box<dyn Worker>> {
            match self.0 {}
        }

        pub(super) fn name_missing(&self) {
            match self.0 {}
        }

        pub(super) fn none_joined(&self) -> Error {
            match self.0 {}
        }
    }
}
