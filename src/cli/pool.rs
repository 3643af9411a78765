//! From options or a pool file to a pool of workers. The only place that names concrete workers.

use std::path::Path;

use fcdcc::array::DType;
use fcdcc::planner::Rates;
use fcdcc::worker::{CpuWorker, FaultSpec, inject};
use fcdcc::{Error, Pool, Result, Worker};
use serde::Deserialize;

use super::Console;
use super::options::{Backend, LayerArgs};
use super::rates;

/// Most workers one machine is asked to hold: each has a thread.
const MAX_WORKERS: usize = 4096;

/// A pool file: `[[worker]]` tables, one for each worker or group of equal workers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PoolFile {
    #[serde(default)]
    worker: Vec<WorkerEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum WorkerEntry {
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
        fault: Option<String>,
    },
}

fn one() -> usize {
    1
}

/// The workers that the options describe, without the faults of `--fault`.
pub(crate) fn workers(args: &LayerArgs, console: Console) -> Result<Vec<Box<dyn Worker>>> {
    if let Some(path) = &args.pool {
        return from_file(path, args.seed);
    }
    check_count(args.worker_count())?;
    from_backend(args.backend, args.adapter.as_deref(), args.worker_count(), console)
}

/// The pool that the options describe, faults included, and the planner's rates of its workers. `measure`: whether to
/// measure rates that are not known.
pub(crate) fn assemble(
    args: &LayerArgs,
    dtype: DType,
    measure: bool,
    console: Console,
) -> Result<(Pool, Rates)> {
    let mut workers = workers(args, console)?;
    // Where the partitions are given there is nothing to choose.
    let measure = measure && args.partitions.is_none();
    let rates = rates::of(&mut workers, dtype, args.calibrate, measure, console)?;
    Ok((Pool::new(inject(workers, &args.fault, args.seed)?)?, rates))
}

/// `count` workers of a backend.
pub(crate) fn from_backend(
    backend: Backend,
    adapter: Option<&str>,
    count: usize,
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
            Ok(CpuWorker::fleet(count))
        }
        Backend::Gpu => gpu_workers(count, adapter),
        Backend::Auto if adapter.is_some() => gpu_workers(count, adapter),
        Backend::Auto => match super::devices::auto() {
            Ok(_) => gpu_workers(count, None),
            Err(why) => {
                console.notice(format_args!("notice: {why}; using CPU workers"));
                Ok(CpuWorker::fleet(count))
            }
        },
    }
}

fn check_count(count: usize) -> Result<()> {
    if (1..=MAX_WORKERS).contains(&count) {
        Ok(())
    } else {
        Err(Error::invalid("number of workers (--workers)", count, format!("use 1 to {MAX_WORKERS}")))
    }
}

#[cfg(feature = "gpu")]
fn gpu_workers(count: usize, adapter: Option<&str>) -> Result<Vec<Box<dyn Worker>>> {
    let selector = adapter.map(fcdcc::gpu::AdapterSelector::from);
    fcdcc::worker::GpuWorker::fleet(count, selector.as_ref())
}

#[cfg(not(feature = "gpu"))]
fn gpu_workers(_: usize, _: Option<&str>) -> Result<Vec<Box<dyn Worker>>> {
    Err(Error::Unavailable {
        what: "the GPU backend".to_owned(),
        mend: "this binary was built without it: build with feature `gpu`, or use --backend cpu".to_owned(),
    })
}

fn from_file(path: &Path, seed: u64) -> Result<Vec<Box<dyn Worker>>> {
    let bad = |cause: String| Error::File { path: path.display().to_string(), cause, input: true };
    let text = std::fs::read_to_string(path).map_err(|e| bad(format!("cannot be read: {e}")))?;
    let file: PoolFile = toml::from_str(&text).map_err(|e| {
        let line =
            text.bytes().take(e.span().map_or(0, |span| span.start)).filter(|b| *b == b'\n').count() + 1;
        bad(format!("is not a pool file, line {line}: {}", e.message()))
    })?;
    let mut workers: Vec<Box<dyn Worker>> = Vec::new();
    for entry in file.worker {
        let (group, fault) = match entry {
            WorkerEntry::Cpu { name, count, threads, fault } => {
                check_count(count)?;
                check_count(threads)?;
                let group = (0..count).map(|i| -> Box<dyn Worker> {
                    let index = workers.len() + i;
                    let name = match &name {
                        Some(name) if count == 1 => name.clone(),
                        Some(name) => format!("{name}-{i}"),
                        None => format!("cpu-{index}"),
                    };
                    Box::new(CpuWorker::new(name, threads))
                });
                (group.collect(), fault)
            }
            WorkerEntry::Gpu { adapter, queues, fault } => {
                check_count(queues)?;
                let adapter = match adapter {
                    None => None,
                    Some(toml::Value::String(name)) => Some(name),
                    Some(toml::Value::Integer(index)) => Some(index.to_string()),
                    Some(other) => {
                        return Err(bad(format!("adapter is {other}: give its number or part of its name")));
                    }
                };
                (gpu_workers(queues, adapter.as_deref())?, fault)
            }
        };
        let group = match fault {
            None => group,
            Some(kind) => inject(group, &[format!("all:{kind}").parse::<FaultSpec>()?], seed)?,
        };
        workers.extend(group);
        check_count(workers.len())?;
    }
    if workers.is_empty() {
        return Err(bad("describes no worker: add a [[worker]] table".to_owned()));
    }
    Ok(workers)
}
