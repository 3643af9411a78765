//! fcdcc's convolutions beside the best of their class: onnxruntime and tract on the CPU, burn and PyTorch on a GPU.
//!
//! Every engine's result is checked before it is timed; engines take turns in one run; rates stand beside the
//! machine's own ceilings, measured in the same run. docs/performance.md, "Against others", is the protocol.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use fcdcc_peers::child::{self, Script};
use fcdcc_peers::machine::{self, cores};
use regex_lite::Regex;
use serde_json::json;

use crate::ceilings::Ceilings;
use crate::engine::{Clock, Engine, Job, Span};
use crate::layers::Layer;
use crate::python::{ONNXRUNTIME, PythonEngine};
use crate::report::{Demand, Table};
use crate::rounds::{Limits, Outcome, compare};
use crate::verify::Data;

mod ceilings;
mod cpu;
mod engine;
#[cfg(feature = "gpu")]
mod gpu;
mod layers;
mod python;
mod report;
mod rounds;
mod self_test;
mod verify;
mod watchdog;

/// Whom we are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// CPU, through Python.
    Onnxruntime,
    /// CPU.
    Tract,
    /// GPU, through wgpu.
    Burn,
    /// NVIDIA GPUs, through Python.
    Torch,
}

/// Compares fcdcc's convolutions with those of others on this machine.
#[derive(Debug, Parser)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
struct Arguments {
    /// Only layers whose names match this regular expression
    #[arg(long, value_name = "REGEX", default_value = "")]
    layers: Regex,
    /// Only these peers: onnxruntime and tract on the CPU, burn and torch on a GPU [default: all]
    #[arg(long, value_name = "PEER", value_delimiter = ',')]
    engine: Vec<Peer>,
    /// Threads of each CPU comparison [default: 1 and all cores]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    threads: Vec<usize>,
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Seconds of rounds for each layer [default: 3, with --quick 0.5]
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// The clock of comparisons on one thread; all others use wall time
    #[arg(long, default_value = "wall")]
    clock: Clock,
    /// Keeps each of several threads to a processor of its own, for machines that do other things as well (Linux)
    #[arg(long)]
    pin: bool,
    /// Ends the run after this many seconds; what is measured by then is reported
    #[arg(long, value_name = "SECONDS", default_value_t = 3600.0)]
    deadline: f64,
    /// Writes everything measured into this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Prints Markdown tables
    #[arg(long)]
    markdown: bool,
    /// Exit status 1 when a threshold is missed
    #[arg(long)]
    check: bool,
    /// Checks the benchmark itself: wrong results, missed thresholds and engines that hang must be noticed
    #[arg(long)]
    self_test: bool,
}

impl Arguments {
    fn wants(&self, peer: Peer) -> bool {
        self.engine.is_empty() || self.engine.contains(&peer)
    }

    fn limits(&self) -> Result<Limits> {
        let default = if self.quick { 0.5 } else { 3.0 };
        let layer = Duration::try_from_secs_f64(self.seconds.unwrap_or(default)).context("--seconds")?;
        Ok(if self.quick {
            Limits { layer, turn: 5e-3, least: 3, most: 9 }
        } else {
            Limits { layer, turn: 20e-3, least: 5, most: 101 }
        })
    }
}

/// When the run has to end.
#[derive(Clone, Copy, Debug)]
struct Deadline(Instant);

impl Deadline {
    fn passed(self) -> bool {
        Instant::now() > self.0
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    watchdog::start();
    let status = if arguments.self_test {
        if self_test::run() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    } else {
        run(&arguments).unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        })
    };
    child::kill_all();
    status
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(!arguments.threads.contains(&0), "--threads 0 computes nothing");
    let no_gpu = |peer: &Peer| matches!(peer, Peer::Burn | Peer::Torch) && !cfg!(feature = "gpu");
    ensure!(!arguments.engine.iter().any(no_gpu), "built without the feature gpu, which burn and torch need");
    ensure!(cfg!(unix) || arguments.clock == Clock::Wall, "--clock cpu needs a Unix system");
    let deadline = Duration::try_from_secs_f64(arguments.deadline).context("--deadline")?;
    let deadline = Deadline(Instant::now() + deadline);
    let mut layers = layers::all()?;
    layers.retain(|layer| arguments.layers.is_match(&layer.name));
    ensure!(!layers.is_empty(), "no layer matches --layers {}", arguments.layers);

    println!("{}", machine::describe());
    let mut tables = Vec::new();
    if arguments.wants(Peer::Onnxruntime) || arguments.wants(Peer::Tract) {
        tables.extend(on_cpu(arguments, &layers, deadline)?);
    }
    #[cfg(feature = "gpu")]
    if arguments.wants(Peer::Burn) || arguments.wants(Peer::Torch) {
        tables.extend(gpu::tables(arguments, &layers, deadline)?);
    }
    for table in &tables {
        println!("{}", table.text(arguments.markdown));
    }
    let complete = tables.iter().all(|table| table.rows.len() == layers.len());
    if let Some(file) = &arguments.json {
        let tables: Vec<_> = tables.iter().map(Table::json).collect();
        let all = json!({ "machine": machine::describe(), "complete": complete, "tables": tables });
        std::fs::write(file, serde_json::to_vec_pretty(&all)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if !complete {
        println!("incomplete: the deadline of {} s has passed", arguments.deadline);
    }
    let checks: Vec<_> = tables.iter().flat_map(Table::checks).collect();
    for (what, ok) in &checks {
        println!("{} {what}", if *ok { "ok     " } else { "MISSED " });
    }
    let met = complete && !checks.is_empty() && checks.iter().all(|(_, ok)| *ok);
    Ok(if arguments.check && !met { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A Python engine, or why there is none.
fn python_engine(script: Script) -> Box<dyn Engine> {
    match PythonEngine::start(script) {
        Ok(engine) => {
            eprintln!("{}", engine.about());
            Box::new(engine)
        }
        Err(error) => {
            eprintln!("{}: {error:#}", script.name);
            Box::new(Absent { name: script.name, why: format!("{error:#}") })
        }
    }
}

/// Stands for an engine that this machine lacks.
struct Absent {
    name: &'static str,
    why: String,
}

impl Engine for Absent {
    fn name(&self) -> &'static str {
        self.name
    }

    fn load(&mut self, _: &Job<'_>) -> Result<String> {
        anyhow::bail!("{}", self.why)
    }

    fn run(&mut self) -> Result<Vec<f32>> {
        anyhow::bail!("{}", self.why)
    }

    fn time(&mut self, _: Span, _: usize) -> Result<f64> {
        anyhow::bail!("{}", self.why)
    }
}

/// Compares on the CPU: a table for each number of threads.
fn on_cpu(arguments: &Arguments, layers: &[Layer], deadline: Deadline) -> Result<Vec<Table>> {
    let mut counts = arguments.threads.clone();
    if counts.is_empty() {
        counts = vec![1, cores()];
        counts.dedup();
    }
    let mut engines: Vec<Box<dyn Engine>> = vec![Box::<cpu::Ours>::default()];
    if arguments.wants(Peer::Onnxruntime) {
        engines.push(python_engine(ONNXRUNTIME));
    }
    if arguments.wants(Peer::Tract) {
        engines.push(Box::<cpu::Tract>::default());
    }
    let clock = |threads| if threads == 1 { arguments.clock } else { Clock::Wall };
    let mut tables: Vec<_> = counts
        .iter()
        .map(|&threads| {
            eprintln!("ceilings of {threads} threads");
            let clock = clock(threads);
            let processor_time = if clock == Clock::Cpu { ", processor time" } else { "" };
            let pinned = if arguments.pin && threads > 1 { ", pinned" } else { "" };
            Table {
                title: format!("CPU, threads: {threads}{processor_time}{pinned}"),
                key: json!({ "on": "cpu", "threads": threads, "clock": clock.name(), "pin": arguments.pin }),
                engines: engines.iter().map(|engine| engine.name().to_owned()).collect(),
                ceilings: watchdog::within("measuring ceilings", Duration::from_mins(2), || {
                    Ceilings::measure(threads, clock)
                }),
                rows: Vec::new(),
                demands: vec![Demand {
                    peer: ONNXRUNTIME.name,
                    mean: 0.8,
                    least: (threads == 1).then_some(0.5),
                }],
            }
        })
        .collect();
    let limits = arguments.limits()?;
    for (index, layer) in layers.iter().enumerate() {
        if deadline.passed() {
            break;
        }
        let data = Data::new(layer);
        for (table, &threads) in tables.iter_mut().zip(&counts) {
            let job = Job { layer, data: &data, threads, pin: arguments.pin, clock: clock(threads) };
            let outcomes = compare(&mut engines, &job, &[Span::Whole], limits).swap_remove(0);
            progress(index, layers, &table.title, &outcomes);
            table.push(layer, outcomes);
        }
    }
    Ok(tables)
}

fn progress(index: usize, layers: &[Layer], title: &str, outcomes: &[Outcome]) {
    let layer = &layers[index];
    let rates: Vec<_> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Timed(timed) => {
                let rate = outcome.seconds().map_or(0.0, |seconds| layer.flops() / seconds / 1e9);
                format!(
                    "{rate:.1} in {} rounds ({}, error {:.0e})",
                    timed.rounds.len(),
                    timed.note,
                    timed.error
                )
            }
            Outcome::Missing(why) => why.clone(),
        })
        .collect();
    eprintln!("{}/{} {}, {title}: {}", index + 1, layers.len(), layer.name, rates.join("; "));
}
