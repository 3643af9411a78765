//! Engines that take turns on one model.
//!
//! Each engine is a process. It loads the model, is compared with onnxruntime, is warmed up, and then timed in rounds: in
//! every round each engine runs for about the same time, in an order that rotates, while the others are idle. Ratios are
//! made within a round, so that what slows the machine down for longer than a round slows both sides.
//!
//! Invariant: an engine whose result is not onnxruntime's is not timed, and no model is timed on which another input
//! would pass for the right one.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::ValueEnum;
use fcdcc_peers::child::{Process, Script};
use fcdcc_peers::numbers::{TOLERANCE, difference, median, random};
use serde::Deserialize;
use serde_json::json;

use crate::engines::Kind;

/// Seconds of one turn, as nearly as whole runs allow.
const TURN: f64 = 0.1;
/// Most runs of one turn.
const RUNS: f64 = 50.0;

const ONNXRUNTIME: Script =
    Script { name: "onnxruntime", file: "onnxruntime_model.py", packages: "numpy, onnxruntime" };

/// How models are compared.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Turns of each engine.
    pub(crate) rounds: usize,
    /// Threads of each engine, except onnxruntime with one.
    pub(crate) threads: usize,
    /// Longest wait for an answer of an engine.
    pub(crate) limit: Duration,
}

/// A model file with an input of a fixed shape.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Network {
    pub(crate) path: PathBuf,
    pub(crate) shape: Vec<usize>,
    /// Number of Conv nodes.
    pub(crate) convolutions: usize,
}

/// One turn of an engine; times per run, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// The median of the turn's runs.
    pub(crate) wall: f64,
    /// Of all threads of the process, until they are idle again; `None` where the system does not tell.
    pub(crate) processor: Option<f64>,
    /// Encoding, decoding, and everything between coded layers; fcdcc only.
    pub(crate) master: Option<f64>,
}

/// What became of an engine on a model.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// It has no result: why.
    Missing(String),
    Timed(Timed),
}

#[derive(Clone, Debug)]
pub(crate) struct Timed {
    /// What the engine says about how it computes.
    pub(crate) note: String,
    /// Relative L2 error against onnxruntime with several threads.
    pub(crate) error: f64,
    pub(crate) turns: Vec<Turn>,
    /// Largest resident memory while running.
    pub(crate) peak_bytes: Option<u64>,
}

impl Outcome {
    fn turns(&self) -> &[Turn] {
        match self {
            Self::Missing(_) => &[],
            Self::Timed(timed) => &timed.turns,
        }
    }

    /// The median of `what` over the turns; `None` when a turn lacks it.
    pub(crate) fn median(&self, what: impl Fn(&Turn) -> Option<f64>) -> Option<f64> {
        let numbers: Option<Vec<_>> = self.turns().iter().map(what).collect();
        numbers.filter(|numbers| !numbers.is_empty()).map(|numbers| median(&numbers))
    }

    /// The median over the rounds of `what` of this engine over `unit` of another.
    pub(crate) fn ratio(
        &self,
        what: impl Fn(&Turn) -> Option<f64>,
        other: &Self,
        unit: impl Fn(&Turn) -> Option<f64>,
    ) -> Option<f64> {
        if self.turns().len() != other.turns().len() {
            return None;
        }
        let pairs = self.turns().iter().zip(other.turns());
        let ratios: Option<Vec<_>> = pairs.map(|(a, b)| Some(what(a)? / unit(b)?)).collect();
        ratios.filter(|ratios| !ratios.is_empty()).map(|ratios| median(&ratios))
    }
}

/// Compares all engines on a model: their outcomes in the order of [`Kind::ALL`].
pub(crate) fn compare(network: &Network, plan: &Plan) -> Vec<Outcome> {
    let mut engines: Vec<_> = Kind::ALL.iter().map(|&kind| Contestant::load(kind, network, plan)).collect();
    let expected = match reference(&mut engines, plan.limit) {
        Ok(expected) => expected,
        Err(error) => {
            // What onnxruntime lacks stands at its own place; nothing can be said of the others.
            let missing = |engine: &Result<Contestant>| match engine {
                Ok(_) => Outcome::Missing(format!("nothing to compare with: {error:#}")),
                Err(own) => Outcome::Missing(format!("{own:#}")),
            };
            return engines.iter().map(missing).collect();
        }
    };
    for engine in &mut engines {
        *engine =
            std::mem::replace(engine, Err(anyhow!("moved"))).and_then(|engine| engine.verify(&expected));
    }
    for _ in 0..2 {
        for engine in &mut engines {
            attempt(engine, |engine| engine.warm_up(plan.limit));
        }
    }
    for round in 0..plan.rounds {
        let count = engines.len();
        for place in 0..count {
            attempt(&mut engines[(place + round) % count], |engine| engine.take(plan.limit));
        }
    }
    engines
        .into_iter()
        .map(|engine| match engine.and_then(|engine| engine.finish(plan.limit)) {
            Ok(timed) => Outcome::Timed(timed),
            Err(error) => Outcome::Missing(format!("{error:#}")),
        })
        .collect()
}

/// Calls an engine that has not failed yet. One that fails has failed for good.
fn attempt(engine: &mut Result<Contestant>, step: impl FnOnce(&mut Contestant) -> Result<()>) {
    if let Ok(working) = engine
        && let Err(error) = step(working)
    {
        *engine = Err(error);
    }
}

/// onnxruntime's result, after it was shown that the comparison refuses its result of another input.
fn reference(engines: &mut [Result<Contestant>], limit: Duration) -> Result<Vec<f32>> {
    let engine = engines[Kind::Onnxruntime.index()].as_mut().map_err(|error| anyhow!("{error:#}"))?;
    let expected = engine.outputs.first().context("no outputs")?.clone();
    ensure!(expected.iter().all(|number| number.is_finite()), "onnxruntime's result is not finite");
    let other = outputs(&mut engine.process, "run_reversed", limit)?.swap_remove(0);
    ensure!(
        other.len() == expected.len() && difference(&other, &expected).is_err(),
        "the input in reverse gives the same result within {TOLERANCE:.0e}, so the comparison shows nothing"
    );
    Ok(expected)
}

/// An engine that has loaded a model and run it once.
struct Contestant {
    process: Process,
    note: String,
    outputs: Vec<Vec<f32>>,
    error: f64,
    /// Runs of one turn.
    runs: usize,
    turns: Vec<Turn>,
}

impl Contestant {
    fn load(kind: Kind, network: &Network, plan: &Plan) -> Result<Self> {
        let mut process = start(kind, plan.threads)?;
        let threads = if kind == Kind::Onnxruntime1 { 1 } else { plan.threads };
        let request =
            json!({ "command": "load", "path": network.path, "input": network.shape, "threads": threads });
        let input = random(network.shape.iter().product(), 1);
        let note = process.ask(&request, &[&input], plan.limit)?.note();
        let outputs = outputs(&mut process, "run", plan.limit)?;
        Ok(Self { process, note, outputs, error: f64::NAN, runs: 1, turns: Vec::new() })
    }

    /// Lets only engines through whose first output is `expected`. Others may be functions of it that exaggerate
    /// differences, such as a Softmax of large logits.
    fn verify(mut self, expected: &[f32]) -> Result<Self> {
        let output = self.outputs.first().context("no outputs")?;
        self.error = difference(output, expected)?;
        self.outputs = Vec::new();
        Ok(self)
    }

    /// Runs for a turn, and chooses how many runs the next one has.
    fn warm_up(&mut self, limit: Duration) -> Result<()> {
        let turn = self.time(limit)?;
        self.runs = (TURN / turn.wall).clamp(1.0, RUNS) as usize;
        Ok(())
    }

    fn take(&mut self, limit: Duration) -> Result<()> {
        let turn = self.time(limit)?;
        self.turns.push(turn);
        Ok(())
    }

    fn time(&mut self, limit: Duration) -> Result<Turn> {
        let answer = self.process.ask(&json!({ "command": "time", "calls": self.runs }), &[], limit)?;
        let wall: Vec<f64> = answer.field("wall")?;
        ensure!(wall.len() == self.runs, "{} times of {} runs", wall.len(), self.runs);
        let master: Vec<f64> = answer.field("master").unwrap_or_default();
        Ok(Turn {
            wall: median(&wall),
            processor: answer.field("processor")?,
            master: (!master.is_empty()).then(|| median(&master)),
        })
    }

    fn finish(mut self, limit: Duration) -> Result<Timed> {
        let peak_bytes = self.process.ask(&json!({ "command": "peak" }), &[], limit)?.field("peak_bytes")?;
        Ok(Timed { note: self.note, error: self.error, turns: self.turns, peak_bytes })
    }
}

/// Asks for the outputs of a run.
fn outputs(process: &mut Process, command: &str, limit: Duration) -> Result<Vec<Vec<f32>>> {
    let answer = process.ask(&json!({ "command": command }), &[], limit)?;
    let (lengths, numbers) = (answer.field::<Vec<usize>>("lengths")?, answer.floats());
    let total = lengths.iter().try_fold(0usize, |sum, length| sum.checked_add(*length));
    ensure!(total == Some(numbers.len()), "{} numbers in outputs of {lengths:?}", numbers.len());
    ensure!(!lengths.is_empty(), "no outputs");
    let mut rest = numbers.as_slice();
    let mut outputs = Vec::new();
    for length in lengths {
        let (output, after) = rest.split_at(length);
        outputs.push(output.to_vec());
        rest = after;
    }
    Ok(outputs)
}

/// Starts the process of an engine.
pub(crate) fn start(kind: Kind, threads: usize) -> Result<Process> {
    if matches!(kind, Kind::Onnxruntime | Kind::Onnxruntime1) {
        return Process::python(ONNXRUNTIME);
    }
    let program = std::env::current_exe().context("the path of this program")?;
    let value = kind.to_possible_value().context("an engine without a name")?;
    let mut command = Command::new(program);
    // The cores that fcdcc shares loops among.
    command.arg("--serve").arg(value.get_name()).env("RAYON_NUM_THREADS", threads.to_string());
    Process::start(&mut command)
}
