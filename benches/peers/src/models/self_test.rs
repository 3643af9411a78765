//! Does the comparison of models refuse what it must refuse? Each check here has a side on which it has to fail.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use fcdcc_peers::child::Process;
use fcdcc_peers::numbers::{difference, random};
use serde_json::{Value, json};

use crate::compare::{Outcome, Plan, Timed, Turn, compare, start};
use crate::engines::{Kind, THRESHOLD, WORKERS};
use crate::report::{Report, Row};
use crate::{MAKER, NETWORKS, SMALL, make};

/// Longest wait for an engine here.
const LIMIT: Duration = Duration::from_mins(2);

/// Fails with `what` unless a request failed.
fn refused<T>(result: &Result<T>, what: &str) -> Result<()> {
    ensure!(result.is_err(), "{what}");
    Ok(())
}

/// A request without fields.
fn command(name: &str) -> Value {
    json!({ "command": name })
}

/// Right results pass, wrong ones do not.
fn results() -> Result<()> {
    let right = random(1000, 3);
    ensure!(difference(&right, &right)? <= 0.0, "equal results differ");
    let norm = right.iter().map(|number| number * number).sum::<f32>().sqrt();
    let wrongs: [(&str, &dyn Fn(&mut Vec<f32>)); 5] = [
        ("one element off by a thousandth of the norm", &|result| result[7] += norm / 1000.0),
        ("NaN", &|result| result[7] = f32::NAN),
        ("infinity", &|result| result[7] = f32::INFINITY),
        ("zeros", &|result| result.fill(0.0)),
        ("short", &|result| result.truncate(999)),
    ];
    for (what, spoil) in wrongs {
        let mut wrong = right.clone();
        spoil(&mut wrong);
        refused(&difference(&wrong, &right), &format!("a wrong result ({what}) was accepted"))?;
    }
    let zeros = vec![0.0_f32; 1000];
    refused(&difference(&zeros, &zeros), "results without any content were compared")
}

/// The figures of an engine in [`thresholds`], relative to onnxruntime with one thread.
#[derive(Clone, Copy)]
struct Made {
    uncoded: f64,
    coded_processor: f64,
    master: f64,
}

fn outcome(wall: f64, processor: f64, master: Option<f64>) -> Outcome {
    let turns = vec![Turn { wall, processor: Some(processor), master }; 3];
    Outcome::Timed(Timed { note: String::new(), error: 0.0, turns, peak_bytes: None })
}

fn report(figures: impl Fn(&str) -> Made) -> Report {
    let row = |name: &str| {
        let Made { uncoded, coded_processor, master } = figures(name);
        // onnxruntime takes 1 s on one thread and 0.5 s on two.
        let outcomes = vec![
            outcome(0.5, 1.0, None),
            outcome(1.0, 1.0, None),
            Outcome::Missing("not here".to_owned()),
            outcome(1.0, coded_processor, Some(master)),
            outcome(0.5 * uncoded, 1.0, Some(0.1)),
            outcome(0.5, 1.0, Some(0.5)),
        ];
        Row { model: name.to_owned(), convolutions: 1, judged: true, outcomes }
    };
    Report { rows: NETWORKS.iter().map(|name| row(name)).collect(), asked: NETWORKS.len() }
}

/// Thresholds are met just below and missed just above; what was not measured is missed.
fn thresholds() -> Result<()> {
    let work = WORKERS as f64 / THRESHOLD as f64;
    let good = Made { uncoded: 1.49, coded_processor: 1.49 * work, master: 0.34 };
    let missed = |report: &Report| report.checks().iter().filter(|(_, ok)| !ok).count();
    ensure!(missed(&report(|_| good)) == 0, "good figures miss a threshold: {:?}", report(|_| good).checks());
    ensure!(report(|_| good).checks().len() == 5, "not every threshold was checked");
    let one = |change: &dyn Fn(&mut Made), only: &str| {
        let mut bad = good;
        change(&mut bad);
        report(|name| if only.is_empty() || name == only { bad } else { good })
    };
    let cases: [(&str, Report); 4] = [
        ("a mean of 1.51 of uncoded runs", one(&|made| made.uncoded = 1.51, "")),
        ("a coded processor time of 1.51", one(&|made| made.coded_processor = 1.51 * work, "")),
        ("a master's share of 0.36", one(&|made| made.master = 0.36, "resnet50")),
        ("an engine without a result", {
            let mut report = report(|_| good);
            report.rows[2].outcomes[Kind::Coded.index()] = Outcome::Missing("failed".to_owned());
            report
        }),
    ];
    for (what, report) in cases {
        ensure!(
            missed(&report) == 1,
            "{what} misses {} thresholds instead of 1: {:?}",
            missed(&report),
            report.checks()
        );
    }
    let slow = report(|name| {
        let uncoded = if name == "alexnet" { 2.51 } else { 1.0 };
        Made { uncoded, ..good }
    });
    ensure!(missed(&slow) == 1, "an uncoded run of 2.51 on one model is accepted");
    ensure!(missed(&one(&|made| made.master = 0.36, "vgg19")) == 0, "the share of another model is judged");
    let nothing = Report { rows: Vec::new(), asked: NETWORKS.len() };
    ensure!(missed(&nothing) > 0, "a report without models is accepted");
    Ok(())
}

/// An engine that hangs is given up in time, one that fails answers why and goes on.
fn processes() -> Result<()> {
    let mut engine = start(Kind::Local, 1)?;
    let unknown = engine.ask(&command("nonsense"), &[], LIMIT);
    refused(&unknown, "nonsense was answered")?;
    ensure!(
        engine.ask(&command("about"), &[], LIMIT)?.note() == Kind::Local.name(),
        "another engine answers"
    );
    refused(&engine.ask(&command("run"), &[], LIMIT), "a result without a model")?;
    let missing =
        json!({ "command": "load", "path": "/nowhere/model.onnx", "input": [1, 1, 2, 2], "threads": 1 });
    refused(&engine.ask(&missing, &[&[0.0; 4]], LIMIT), "a missing file was loaded")?;
    let begin = Instant::now();
    refused(&engine.ask(&command("hang"), &[], Duration::from_millis(300)), "an engine that sleeps answers")?;
    ensure!(begin.elapsed() < Duration::from_secs(10), "the deadline of a request was not kept");
    refused(&engine.ask(&command("about"), &[], LIMIT), "an engine that was given up answers")
}

/// Every engine on a small model: all agree and are timed; none is on an input of another shape.
fn small_model(folder: &Path) -> Result<()> {
    let mut maker = Process::python(MAKER)?;
    refused(&make(&mut maker, "nonsense", folder, LIMIT), "a model that does not exist was made")?;
    let mut network = make(&mut maker, SMALL, folder, LIMIT)?;
    let plan = Plan { rounds: 2, threads: 2, limit: LIMIT };
    for (kind, outcome) in Kind::ALL.iter().zip(compare(&network, &plan)) {
        match outcome {
            Outcome::Timed(timed) => ensure!(timed.turns.len() == 2, "{}: not two turns", kind.name()),
            Outcome::Missing(why) => bail!("{} has no result: {why}", kind.name()),
        }
    }
    network.shape = vec![1, 1, 4, 4];
    for (kind, outcome) in Kind::ALL.iter().zip(compare(&network, &plan)) {
        ensure!(matches!(outcome, Outcome::Missing(_)), "{} takes an input of another shape", kind.name());
    }
    Ok(())
}

/// Runs every check and prints a line for each; `false` when one failed.
pub(crate) fn run(folder: &Path) -> bool {
    let mut passed = true;
    let mut show = |what: &str, result: Result<()>| match result {
        Ok(()) => println!("ok       {what}"),
        Err(error) => {
            println!("FAILED   {what}: {error:#}");
            passed = false;
        }
    };
    show("wrong results are refused", results());
    show("thresholds are met and missed", thresholds());
    show("engines that hang or fail", processes());
    if let Err(why) = Process::python(MAKER).and_then(|_| start(Kind::Onnxruntime, 1)) {
        println!("skipped  every engine on a small model: {why:#}");
    } else {
        show("every engine on a small model", small_model(folder));
    }
    passed
}
