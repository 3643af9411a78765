//! Whole models: fcdcc beside onnxruntime and tract on the CPU.
//!
//! Seven well-known networks with random weights run in every engine in turns; every result is compared with
//! onnxruntime's before it is timed. docs/performance.md, "Whole models", is the protocol.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use fcdcc_peers::child::{self, Process, Script, package};
use fcdcc_peers::machine;
use serde_json::json;

use crate::compare::{Network, Outcome, Plan, compare};
use crate::engines::{Kind, THRESHOLD, WORKERS};
use crate::report::{Report, Row};

mod compare;
mod engines;
mod report;
mod self_test;
mod serve;

/// The models that thresholds apply to.
const NETWORKS: [&str; 7] =
    ["squeezenet", "resnet50", "shufflenet", "inception_v1", "densenet121", "alexnet", "vgg19"];
/// A small model to try the comparison with; no threshold applies to it.
const SMALL: &str = "lenet";

const MAKER: Script = Script { name: "random weights", file: "random_weights.py", packages: "numpy, onnx" };

/// Most threads of an engine.
const MOST_THREADS: usize = 1024;
/// Most turns of each engine.
const MOST_ROUNDS: usize = 10_000;

/// Compares whole models in fcdcc with onnxruntime and tract on this machine.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only these models: squeezenet, resnet50, shufflenet, inception_v1, densenet121, alexnet, vgg19 [default: these
    /// seven], or lenet, a small one to which no threshold applies
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    models: Vec<String>,
    /// Turns of each engine on each model
    #[arg(long, value_name = "N", default_value_t = 15)]
    rounds: usize,
    /// Threads of every engine, and workers of the uncoded run [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Gives an engine up that does not answer for this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300.0)]
    limit: f64,
    /// No further model begins after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600.0)]
    deadline: f64,
    /// Where the models are made, 1 GB [default: target/models of this package]
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Writes everything measured into this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Prints Markdown tables
    #[arg(long)]
    markdown: bool,
    /// Exit status 1 when a threshold is missed
    #[arg(long)]
    check: bool,
    /// Checks the comparison itself: wrong results, missed thresholds and engines that hang must be noticed
    #[arg(long)]
    self_test: bool,
    /// Answers requests as the process of one engine
    #[arg(long, hide = true, value_name = "ENGINE")]
    serve: Option<Kind>,
}

impl Arguments {
    /// The names of the models, each once.
    fn models(&self) -> Result<Vec<String>> {
        let mut models: Vec<String> = Vec::new();
        for name in &self.models {
            let known = NETWORKS.contains(&name.as_str()) || name == SMALL;
            ensure!(known, "no model {name:?}: use {} or {SMALL}", NETWORKS.join(", "));
            if !models.contains(name) {
                models.push(name.clone());
            }
        }
        if models.is_empty() {
            models.extend(NETWORKS.map(str::to_owned));
        }
        Ok(models)
    }

    fn plan(&self) -> Result<Plan> {
        let threads = self.threads.unwrap_or_else(machine::cores);
        ensure!((1..=MOST_THREADS).contains(&threads), "--threads {threads}: use 1 to {MOST_THREADS}");
        ensure!((1..=MOST_ROUNDS).contains(&self.rounds), "--rounds {}: use 1 to {MOST_ROUNDS}", self.rounds);
        let limit = Duration::try_from_secs_f64(self.limit).context("--limit")?;
        Ok(Plan { rounds: self.rounds, threads, limit })
    }

    fn folder(&self) -> PathBuf {
        self.folder.clone().unwrap_or_else(|| package().join("target/models"))
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = if let Some(kind) = arguments.serve {
        serve::serve(kind).map(|()| true)
    } else if arguments.self_test {
        Ok(self_test::run(&arguments.folder()))
    } else {
        run(&arguments)
    };
    child::kill_all();
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Compares and reports; `false` when thresholds were to be checked and one is missed.
fn run(arguments: &Arguments) -> Result<bool> {
    let (models, plan) = (arguments.models()?, arguments.plan()?);
    let deadline = Duration::try_from_secs_f64(arguments.deadline).context("--deadline")?;
    let begin = Instant::now();
    let mut maker = Process::python(MAKER)?;
    let about = [
        maker.ask(&json!({ "command": "about" }), &[], plan.limit)?.note(),
        compare::start(Kind::Onnxruntime, 1)?.ask(&json!({ "command": "about" }), &[], plan.limit)?.note(),
    ];
    let environment = environment(&plan, &about);
    for line in &environment {
        println!("{line}");
    }

    let judged = |name: &str| NETWORKS.contains(&name);
    let asked = models.iter().filter(|name| judged(name)).count();
    let mut report = Report { rows: Vec::new(), asked };
    for (index, name) in models.iter().enumerate() {
        if begin.elapsed() > deadline {
            println!("incomplete: the deadline of {} s has passed", arguments.deadline);
            break;
        }
        let network = make(&mut maker, name, &arguments.folder(), plan.limit)?;
        let outcomes = compare(&network, &plan);
        progress(&format!("{}/{} {name}", index + 1, models.len()), &outcomes);
        let convolutions = network.convolutions;
        report.rows.push(Row { model: name.clone(), convolutions, judged: judged(name), outcomes });
    }
    println!("{}", report.text(arguments.markdown));
    if let Some(file) = &arguments.json {
        let mut all = report.json();
        all["environment"] = json!(environment);
        all["threads"] = plan.threads.into();
        all["rounds"] = plan.rounds.into();
        std::fs::write(file, serde_json::to_vec_pretty(&all)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    let checks = report.checks();
    for (what, ok) in &checks {
        println!("{} {what}", if *ok { "ok     " } else { "MISSED " });
    }
    Ok(!arguments.check || (!checks.is_empty() && checks.iter().all(|(_, ok)| *ok)))
}

/// Makes a model, or finds it made before.
fn make(maker: &mut Process, name: &str, folder: &Path, limit: Duration) -> Result<Network> {
    let request = json!({ "command": "make", "name": name, "directory": folder });
    let answer = maker.ask(&request, &[], limit).with_context(|| format!("cannot make {name}"))?;
    let network = Network {
        path: answer.field("path")?,
        shape: answer.field("shape")?,
        convolutions: answer.field("convolutions")?,
    };
    let elements = network.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    ensure!(
        elements.is_some_and(|elements| (1..=1 << 26).contains(&elements)),
        "{name} has an input of shape {:?}",
        network.shape
    );
    Ok(network)
}

fn progress(what: &str, outcomes: &[Outcome]) {
    let engines = Kind::ALL.iter().zip(outcomes).map(|(kind, outcome)| match outcome {
        Outcome::Missing(why) => format!("{}: {why}", kind.name()),
        Outcome::Timed(timed) => {
            let seconds = outcome.median(|turn| Some(turn.wall)).unwrap_or(f64::NAN);
            format!("{} {:.1} ms ({}, error {:.0e})", kind.name(), seconds * 1e3, timed.note, timed.error)
        }
    });
    eprintln!("{what}: {}", engines.collect::<Vec<_>>().join("; "));
}

/// What every figure depends on, a line each.
fn environment(plan: &Plan, about: &[String]) -> Vec<String> {
    let date = humantime::format_rfc3339_seconds(SystemTime::now());
    let build = if cfg!(debug_assertions) { ", a debug build: its times mean nothing" } else { "" };
    let (caches, vectors) = (machine::caches().join(", "), machine::vectors());
    let system = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
    vec![
        format!("{date}, fcdcc {}{build}", commit().unwrap_or_else(|| "of an unknown commit".to_owned())),
        format!("{}; {caches}; {vectors}; {system}", machine::describe()),
        format!(
            "tract {}, {}",
            locked_version("tract-core").unwrap_or("of an unknown version"),
            about.join(", ")
        ),
        format!(
            "f32, batch 1; threads of each engine: {}; coded: {WORKERS} workers of one thread, any {THRESHOLD} suffice; \
             turns of each engine: {}",
            plan.threads, plan.rounds
        ),
    ]
}

/// The commit of the checkout, and whether files differ from it.
fn commit() -> Option<String> {
    let mut git = std::process::Command::new("git");
    let git = git.arg("-C").arg(package()).args(["describe", "--always", "--dirty"]);
    let output = git.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

/// The version of a package that this program was built with.
fn locked_version(name: &str) -> Option<&'static str> {
    let (_, entry) =
        include_str!("../../Cargo.lock").split_once(&format!("name = \"{name}\"\nversion = \""))?;
    entry.split('"').next()
}
