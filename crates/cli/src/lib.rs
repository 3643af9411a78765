//! The `fcdcc` command, one file per subcommand. It parses and prints; the library `fcdcc` computes.
//!
//! Relevant if you build a program that carries the command, as the Python package does: [`command`] is the whole of it,
//! and [`embedded`] has what such a program needs besides. Not a stable interface: it belongs to the binary of this version.
//!
//! Invariant: [`command`] prints, and ends with an exit status; it neither panics nor ends the process.

mod arrays;
mod bench;
mod bench_layers;
mod bench_load;
mod bench_serve;
mod bench_table;
mod bench_workers;
#[cfg(feature = "cluster")]
mod cluster;
mod content;
mod conv;
#[cfg(feature = "onnx")]
mod decode;
#[cfg(feature = "onnx")]
mod demo;
mod devices;
pub mod embedded;
mod environment;
#[cfg(feature = "onnx")]
mod inputs;
#[cfg(feature = "onnx")]
mod inspect;
mod kept_rates;
#[cfg(feature = "onnx")]
mod layers;
mod ledger;
mod links;
#[cfg(any(feature = "cluster", feature = "onnx"))]
mod metrics;
mod network;
mod npy;
mod npy_header;
#[cfg(feature = "serve")]
mod open_files;
mod options;
#[cfg(feature = "onnx")]
mod picture;
mod plan;
mod plan_rows;
mod pool;
#[cfg(feature = "onnx")]
mod preset;
mod print;
mod progress;
#[cfg(feature = "onnx")]
mod raster;
mod rates;
#[cfg(feature = "onnx")]
mod run;
#[cfg(feature = "onnx")]
mod segments;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "serve")]
mod serve_options;
#[cfg(feature = "serve")]
mod signals;
mod stability;
mod threads;
#[cfg(feature = "onnx")]
mod top;
#[cfg(not(feature = "cluster"))]
mod without_cluster;
#[cfg(not(feature = "onnx"))]
mod without_onnx;
#[cfg(not(feature = "serve"))]
mod without_serve;
#[cfg(feature = "cluster")]
mod worker;
#[cfg(feature = "onnx")]
mod wrap;

use std::cell::RefCell;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};

use clap::error::ErrorKind as ClapKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use fcdcc::{Error, ErrorKind};
use fcdcc_bench::with_flags;
use ledger::Ledger;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
#[cfg(not(feature = "cluster"))]
use without_cluster::{self as cluster, self as worker, without_cluster};
#[cfg(not(feature = "onnx"))]
use without_onnx::{
    self as demo, self as inspect, self as run, Args as DemoArgs, Args as InspectArgs, Args as RunArgs,
};
#[cfg(not(feature = "serve"))]
use without_serve as serve;
#[cfg(feature = "onnx")]
use {demo::DemoArgs, inspect::InspectArgs, run::RunArgs};

/// Coded distributed convolution: exact CNN layers from unreliable workers.
#[derive(Parser)]
#[command(name = "fcdcc", version, propagate_version = true)]
#[command(
    after_help = "Exit status: 0 exact result, 1 internal failure, 2 bad usage or input (nothing written),\n\
    3 too few results after every fallback allowed, 4 a result was refused.\n\n\
    Example: fcdcc conv --input x.npy --weight w.npy --output y.npy --workers 6 --fault 0,3:crash"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// No progress, notices or tables; errors still come
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Trace what happens on stderr (-vv for more; RUST_LOG decides in detail)
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// How log lines look on stderr
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value_t)]
    log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Watch LeNet-5 read digits while workers straggle; needs no files
    Demo(DemoArgs),
    /// Run an ONNX model with every convolution coded over the workers
    Run(Box<RunArgs>),
    /// Show what an ONNX file holds, and every reason why it cannot run
    Inspect(InspectArgs),
    /// Compute one coded convolution (ONNX Conv) of .npy arrays
    Conv(Box<conv::ConvArgs>),
    /// Show how each layer of a model would be divided, and why
    Plan(Box<plan::PlanArgs>),
    /// Compare coded with uncoded, hedged and replicated execution under the same faults
    Bench(Box<bench::BenchArgs>),
    /// Condition numbers and errors of every code family
    Stability(Box<stability::StabilityArgs>),
    /// List the GPU adapters and what `--backend auto` would use
    Devices(devices::DevicesArgs),
    /// Serve ONNX models to other programs over HTTP
    Serve(Box<serve::ServeArgs>),
    /// Lend this machine's GPUs and cores to masters on other machines
    Worker(Box<worker::WorkerArgs>),
    /// List the machines of a cluster: devices, health, load, filters held
    Cluster(cluster::ClusterArgs),
}

/// Which messages a command prints besides its result.
#[derive(Clone, Copy)]
struct Console {
    quiet: bool,
    /// Whether tables are printed on standard output.
    tables: bool,
}

impl Console {
    fn new(quiet: bool) -> Self {
        Self { quiet, tables: !quiet }
    }

    /// The console of a command: without tables if an output is written to standard output.
    fn beside(self, ledger: &Ledger) -> Self {
        Self { tables: self.tables && !ledger.takes_standard_output(), ..self }
    }

    /// Prints a line of progress or a notice on stderr.
    fn notice(self, text: impl std::fmt::Display) {
        if !self.quiet {
            say(text);
        }
    }
}

/// Sets the environment variables that libraries read and the process lacks. For the start of a process: no other thread may
/// exist.
pub fn prepare_environment() {
    environment::prepare();
}

/// Parses the arguments, of which the first is the name of the program, runs the command, and returns the exit status. An
/// error is one line on stderr. Runs once in a process: it starts the log and the threads that use all cores.
pub fn command(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let status = parse_and_run(arguments);
    // The runtime of a program in another language does not flush the standard output of this one.
    let _ = std::io::stdout().flush();
    status
}

fn parse_and_run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let matches = Cli::command().try_get_matches_from(arguments);
    let cli = match matches.and_then(|m| Cli::from_arg_matches(&m)) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    start_log(&cli);
    report_panics();
    let console = Console::new(cli.quiet);
    let result = std::panic::catch_unwind(move || {
        threads::start()?;
        match cli.command {
            Command::Demo(args) => demo::run(&args, console),
            Command::Run(args) => run::run(&args, console),
            Command::Inspect(args) => inspect::run(&args, console),
            Command::Conv(args) => conv::run(&args, console),
            Command::Plan(args) => plan::run(&args, console),
            Command::Bench(args) => bench::run(&args, console),
            Command::Stability(args) => stability::run(&args, console),
            Command::Devices(args) => devices::run(&args),
            Command::Serve(args) => serve::run(&args, console),
            #[cfg(feature = "cluster")]
            Command::Worker(args) => worker::run(&args, console),
            #[cfg(not(feature = "cluster"))]
            Command::Worker(args) => worker::run(&args),
            Command::Cluster(args) => cluster::run(&args),
        }
    });
    match result {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => {
            let error = with_flags(error);
            say(format_args!("error: {}", one_line(&error.to_string())));
            status(&error)
        }
        Err(_) => {
            say(format_args!("error: a defect, {}: please report it", PANIC.take()));
            1
        }
    }
}

thread_local! {
    /// The message of the last panic on this thread.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Suppresses the output of panics. An uncaught panic on the main thread is a defect of this program and becomes an
/// ordinary error line; on a worker's thread it is the loss of that worker, and in the ONNX library it is an unusable file.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let text = one_line(&panic.to_string());
        tracing::error!("{text}");
        PANIC.with(|last| last.replace(text));
    }));
}

/// Prints one line on stderr; if that is closed, the line is lost.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

fn status(error: &Error) -> u8 {
    match error.kind() {
        ErrorKind::Internal => 1,
        ErrorKind::BadInput => 2,
        ErrorKind::Shortfall => 3,
        ErrorKind::Refused => 4,
    }
}

/// Prints clap's message as one line, for exit status 2; prints help and version unchanged, for exit status 0.
fn usage(error: &clap::Error) -> u8 {
    if matches!(error.kind(), ClapKind::DisplayHelp | ClapKind::DisplayVersion) {
        // A closed stdout (`fcdcc --help | head -1`) is not a failure.
        let _ = error.print();
        return 0;
    }
    say(format_args!("{}: see fcdcc --help", usage_line(error)));
    2
}

/// Clap's message as one line.
fn usage_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let said: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    if said.is_empty() || matches!(error.kind(), ClapKind::DisplayHelpOnMissingArgumentOrSubcommand) {
        "error: no command given".to_owned()
    } else {
        said.join(" ")
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a server logs: also why spans could not be exported.
const SERVE_LEVELS: &str =
    "fcdcc_serve=info,fcdcc::model::shapes=info,opentelemetry_sdk=warn,opentelemetry-otlp=warn";

fn start_log(cli: &Cli) {
    // Off by default: log lines of libraries would surround the single line of an error.
    let default = match cli.verbose {
        // A worker runs for weeks, so by default it logs which masters connect and disconnect.
        0 if matches!(cli.command, Command::Worker(_)) && !cli.quiet => "fcdcc=info",
        // Models that are loaded, prepared for further shapes, or refused.
        0 if matches!(cli.command, Command::Serve(_)) && !cli.quiet => SERVE_LEVELS,
        0 => "off",
        1 => "fcdcc=info",
        2 => "fcdcc=debug",
        _ => "debug",
    };
    let named = std::env::var("RUST_LOG").ok().and_then(|levels| levels.parse::<Targets>().ok());
    let levels = named.unwrap_or_else(|| default.parse().expect("the defaults are levels"));
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    let log = match cli.log_format {
        LogFormat::Text => log.boxed(),
        LogFormat::Json => log.json().boxed(),
    };
    tracing_subscriber::registry().with(log.with_filter(levels)).init();
}
