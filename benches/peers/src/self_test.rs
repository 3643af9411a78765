//! Does the benchmark refuse what it must refuse? Each check here has a side on which it has to fail.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fcdcc::conv::reference;
use serde_json::json;

use crate::ceilings::Ceilings;
use crate::cpu::{Ours, Tract};
use crate::engine::{Clock, Engine, Job, Span};
use crate::layers::{Layer, Set};
use crate::python::{ONNXRUNTIME, PythonEngine};
use crate::report::{Demand, Table};
use crate::rounds::{Limits, Outcome, compare};
use crate::verify::{Data, convolve};

/// Passes every call on to our kernels and spoils one element of what they give.
struct Spoiled(Ours);

impl Engine for Spoiled {
    fn name(&self) -> &'static str {
        "spoiled"
    }

    fn load(&mut self, job: &Job<'_>) -> Result<String> {
        self.0.load(job)
    }

    fn run(&mut self) -> Result<Vec<f32>> {
        let mut output = self.0.run()?;
        let last = output.last_mut().context("an output without elements")?;
        *last += 1.0;
        Ok(output)
    }

    fn time(&mut self, span: Span, calls: usize) -> Result<f64> {
        self.0.time(span, calls)
    }
}

fn small_layers() -> Result<Vec<Layer>> {
    Ok(vec![
        Layer::grouped(Set::Net, "small", [3, 8], 13, [3, 1, 1], 1)?,
        Layer::grouped(Set::Net, "small", [4, 6], 14, [7, 2, 3], 1)?,
        Layer::grouped(Set::Net, "small", [8, 4], 9, [1, 2, 0], 1)?,
        Layer::grouped(Set::Extra, "small", [6, 6], 10, [3, 2, 1], 6)?,
        Layer::grouped(Set::Extra, "small", [2, 3], 5, [5, 1, 0], 1)?,
    ])
}

/// The f64 convolution of this package against the definition, and the refusal of what is not it.
fn results() -> Result<()> {
    for layer in small_layers()? {
        let data = Data::new(&layer);
        let wide = |numbers: &[f32]| numbers.iter().copied().map(f64::from).collect::<Vec<_>>();
        let defined = reference(&layer.shape, &wide(&data.input), &wide(&data.weight), None)?;
        let fast = convolve(&layer.shape, &data.input, &data.weight);
        ensure!(fast.len() == defined.len());
        for (a, b) in fast.iter().zip(&defined) {
            ensure!((a - b).abs() <= 1e-12 * (1.0 + b.abs()), "{}: {a} is not {b}", layer.name);
        }
        let right: Vec<f32> = defined.iter().map(|&number| number as f32).collect();
        data.verify(&right)?;
        let wrongs: [(&str, fn(&mut Vec<f32>)); 4] = [
            ("one element off by a hundredth", |result| result[0] += 0.01 * norm(result)),
            ("NaN", |result| result[0] = f32::NAN),
            ("zeros", |result| result.fill(0.0)),
            ("short", |result| result.truncate(1)),
        ];
        for (what, spoil) in wrongs {
            let mut wrong = right.clone();
            spoil(&mut wrong);
            ensure!(data.verify(&wrong).is_err(), "{}: a wrong result ({what}) was accepted", layer.name);
        }
    }
    Ok(())
}

fn norm(numbers: &[f32]) -> f32 {
    numbers.iter().map(|number| number * number).sum::<f32>().sqrt()
}

/// The engines of this process on small layers: the right ones are timed, the wrong one is not.
fn engines() -> Result<()> {
    let limits = Limits { layer: Duration::ZERO, turn: 1e-4, least: 3, most: 3 };
    for layer in small_layers()? {
        let data = Data::new(&layer);
        for threads in [1, 2] {
            let job = Job { layer: &layer, data: &data, threads, pin: false, clock: Clock::Wall };
            let mut engines: Vec<Box<dyn Engine>> =
                vec![Box::<Ours>::default(), Box::<Tract>::default(), Box::new(Spoiled(Ours::default()))];
            let outcomes = compare(&mut engines, &job, &[Span::Whole], limits).swap_remove(0);
            for (outcome, engine) in outcomes.iter().zip(&engines) {
                match (outcome, engine.name()) {
                    (Outcome::Timed(timed), "fcdcc" | "tract") if timed.rounds.len() == 3 => {}
                    (Outcome::Missing(why), "spoiled") if why.starts_with("wrong result") => {}
                    (outcome, name) => bail!("{name} on {}: {outcome:?}", layer.name),
                }
            }
        }
    }
    Ok(())
}

/// Thresholds are met by a fast engine and missed by a slow one and by a missing one; times that cannot be are refused.
fn thresholds() -> Result<()> {
    let layer = small_layers()?.swap_remove(0);
    let timed = |seconds: f64| {
        Outcome::Timed(crate::rounds::Timed { note: String::new(), error: 0.0, rounds: vec![seconds; 3] })
    };
    let empty = || Table {
        title: "self-test".to_owned(),
        key: json!({}),
        engines: vec!["fcdcc".to_owned(), "peer".to_owned()],
        ceilings: Ceilings { peak: 1e9, bandwidth: vec![(1 << 20, 1e9)] },
        rows: Vec::new(),
        demands: vec![Demand { peer: "peer", mean: 0.8, least: Some(0.5) }],
    };
    let table = |ours| {
        let mut table = empty();
        table.push(&layer, vec![ours, timed(1.0)]);
        table
    };
    let met = |ours| table(ours).checks().iter().all(|(_, ok)| *ok);
    ensure!(met(timed(1.2)), "a ratio of 0.83 does not meet 0.8");
    ensure!(!met(timed(1.3)), "a ratio of 0.77 meets 0.8");
    ensure!(!met(Outcome::Missing("none".to_owned())), "nothing measured meets a threshold");
    let rate = |seconds| table(timed(seconds)).rows[0].outcomes[0].seconds();
    let at_peak = layer.flops() / 1e9;
    ensure!(rate(at_peak / 2.0).is_some(), "twice the peak is refused");
    ensure!(rate(at_peak / 5.0).is_none(), "five times the peak is accepted");
    Ok(())
}

/// A child that does not answer is given up at the deadline and is gone then.
fn deadline() -> Result<()> {
    let mut child = PythonEngine::start(ONNXRUNTIME)?;
    let begin = Instant::now();
    let answer = child.ask(&json!({ "command": "hang" }), &[], Duration::from_millis(300));
    ensure!(answer.is_err(), "a child that sleeps has answered");
    ensure!(begin.elapsed() < Duration::from_secs(10), "the deadline of a request was not kept");
    ensure!(child.run().is_err(), "a child that was given up answers");
    Ok(())
}

/// onnxruntime's result on small layers, and its refusal of an impossible request.
fn onnxruntime() -> Result<()> {
    let mut child = PythonEngine::start(ONNXRUNTIME)?;
    for layer in small_layers()? {
        let data = Data::new(&layer);
        for threads in [1, 2] {
            let job = Job { layer: &layer, data: &data, threads, pin: false, clock: Clock::Wall };
            crate::rounds::prepare(&mut child, &job)?;
        }
        let wrong = Data { expected: data.expected.iter().map(|number| number * 1.001).collect(), ..data };
        ensure!(wrong.verify(&child.run()?).is_err(), "{}: a wrong result was accepted", layer.name);
    }
    let limit = Duration::from_secs(10);
    ensure!(child.ask(&json!({ "command": "nonsense" }), &[], limit).is_err(), "nonsense was answered");
    Ok(())
}

/// Runs every check and prints a line for each; `false` when one failed.
pub(crate) fn run() -> bool {
    let checks: [(&str, fn() -> Result<()>); 5] = [
        ("results against the definition; wrong ones are refused", results),
        ("our kernels and tract; a spoiled engine is refused", engines),
        ("thresholds are met and missed; impossible times are refused", thresholds),
        ("onnxruntime", onnxruntime),
        ("an engine that hangs is given up", deadline),
    ];
    let python = PythonEngine::start(ONNXRUNTIME).map(drop);
    let mut passed = true;
    for (index, (what, check)) in checks.into_iter().enumerate() {
        if let (Err(why), true) = (&python, index >= 3) {
            println!("skipped  {what}: {why:#}");
            continue;
        }
        match check() {
            Ok(()) => println!("ok       {what}"),
            Err(error) => {
                println!("FAILED   {what}: {error:#}");
                passed = false;
            }
        }
    }
    passed
}
