//! `fcdcc stability`: computes condition numbers and errors of every code family.

use std::path::PathBuf;

use clap::Args;
use fcdcc::array::DType;
use fcdcc::{CodeKind, Error, Result};
use fcdcc_bench::layers::resolve;
use fcdcc_bench::schema::{Conditions, Environment};
use fcdcc_bench::stability::{Options, run as study};
use fcdcc_bench::stability_record::{CodingError, StabilityReport};
use fcdcc_bench::{machine, page_stability};

use super::ledger::Ledger;
use super::options::Precision;
use super::print::{out, out_json};
use super::progress::Bar;
use super::{Console, arrays};

/// Condition numbers and errors of every code family over (n, delta).
#[derive(Args)]
#[command(after_help = "Without --n and --delta: the study of docs/stability.md, in a minute or so.\n\n\
    Examples:\n  \
    fcdcc stability --output stability\n  \
    fcdcc stability --n 20,24 --delta 16,20 --code crme,chebyshev\n  \
    fcdcc stability --n 12 --delta 9 --layers vgg16/conv3_2 --precision f32 --json")]
pub(crate) struct StabilityArgs {
    /// Numbers of subtasks, with commas between; with each --delta that is not above
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "delta")]
    n: Vec<usize>,
    /// Recovery thresholds, with commas between
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "n")]
    delta: Vec<usize>,
    /// Code families: crme, chebyshev, vandermonde, khatri-rao, replication, uncoded [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    code: Vec<CodeKind>,
    /// Random responder sets of each code where there are too many to look at all [default: 2000]
    #[arg(long, value_name = "K")]
    samples: Option<usize>,
    /// Look at all responder sets where there are no more than this [default: 20000]
    #[arg(long, value_name = "K")]
    limit: Option<usize>,
    /// Arithmetic of the convolutions [default: f32,f64]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST")]
    precision: Vec<Precision>,
    /// Convolutions to decode: networks (alexnet), single layers (vgg16/conv3_2) or none, with commas between
    /// [default: alexnet,vgg16/conv4_1]
    #[arg(long, value_name = "LAYERS")]
    layers: Option<String>,
    /// Seed of the samples and of input and filters
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Fewer sets, smaller layers: seconds
    #[arg(long)]
    quick: bool,
    /// Machine-readable output
    #[arg(long)]
    json: bool,
    /// A folder that gets stability.html and stability.json
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

impl StabilityArgs {
    fn options(&self) -> Result<Options> {
        let mut options = if self.quick { Options::quick(self.seed) } else { Options::paper(self.seed) };
        if !self.n.is_empty() {
            let pairs = self.n.iter().flat_map(|n| self.delta.iter().map(move |delta| (*n, *delta)));
            let cells: Vec<(usize, usize)> = pairs.filter(|(n, delta)| delta <= n).collect();
            if cells.is_empty() {
                let greatest = self.n.iter().max().copied().unwrap_or(0);
                let help = format!("delta can be at most n: give one up to {greatest}");
                return Err(Error::invalid("every --delta", "above every --n", help));
            }
            options = options.at(cells);
        }
        if !self.code.is_empty() {
            options.codes.clone_from(&self.code);
        }
        if !self.precision.is_empty() {
            let dtype = |precision: &Precision| match precision {
                Precision::F32 => DType::F32,
                Precision::F64 => DType::F64,
            };
            options.precisions = self.precision.iter().map(dtype).collect();
        }
        if let Some(layers) = &self.layers {
            options.layers = if layers == "none" { Vec::new() } else { resolve(layers)? };
        }
        options.sampling.samples = self.samples.unwrap_or(options.sampling.samples);
        options.sampling.limit = self.limit.unwrap_or(options.sampling.limit);
        once(&options.codes, "code")?;
        once(&options.precisions, "precision")?;
        once(&options.cells, "n and delta")?;
        options.check()?;
        Ok(options)
    }
}

/// Refuses duplicates, which are probably a mistake.
fn once<T: PartialEq + std::fmt::Debug>(values: &[T], what: &str) -> Result<()> {
    match (1..values.len()).find(|at| values[..*at].contains(&values[*at])) {
        Some(at) => Err(Error::invalid(
            format!("list of {what}"),
            format!("{:?} twice", values[at]),
            "name each once",
        )),
        None => Ok(()),
    }
}

pub(crate) fn run(args: &StabilityArgs, console: Console) -> Result<()> {
    let mut ledger = Ledger::default();
    let folder = match &args.output {
        None => None,
        Some(folder) => Some((
            ledger.output_within("--output", folder, "stability.json")?,
            ledger.output_within("--output", folder, "stability.html")?,
        )),
    };
    if args.json {
        ledger.printed("--json")?;
    }
    let console = console.beside(&ledger);
    let options = args.options()?;
    let bar = Bar::new(console, "stability");
    let report = study(&options, setting(&options), &mut |done, of, what| bar.steps(done, of, what))?;
    drop(bar);
    if let Some((json, html)) = folder {
        arrays::write_report(json, &report)?;
        let page = page_stability::page(&report).html();
        arrays::write_bytes(html, page.as_bytes())?;
    }
    if args.json {
        return out_json(&report);
    }
    if !console.tables {
        return Ok(());
    }
    print(&report)
}

/// The report of a study; nothing is printed or written.
pub(crate) fn report(
    args: &StabilityArgs,
    observe: &mut dyn FnMut(usize, usize, &str),
) -> Result<StabilityReport> {
    let options = args.options()?;
    study(&options, setting(&options), observe)
}

fn setting(options: &Options) -> Environment {
    let workers = "none: every subtask is computed here".to_owned();
    let precision = options.precisions.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(", ");
    machine::setting("real", workers, precision, options.sampling.seed, options.sampling.samples)
}

fn print(report: &StabilityReport) -> Result<()> {
    for table in &report.tables {
        out(format_args!("Condition numbers, {}", table.label))?;
        out(format_args!(
            "  {:12} {:>7} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "code", "n,delta", "kA,kB", "sets", "median", "90 %", "99 %", "worst"
        ))?;
        for row in &table.rows {
            out(condition_row(row))?;
        }
        out("")?;
    }
    errors(report)?;
    for left in &report.left_out {
        out(format_args!("left out: {}: {}", left.what, left.reason))?;
    }
    for text in &report.findings {
        out(format_args!("- {text}"))?;
    }
    Ok(())
}

fn condition_row(row: &Conditions) -> String {
    let sets = if row.exhaustive { row.sets.to_string() } else { format!("~{}", row.sets) };
    format!(
        "  {:12} {:>7} {:>7} {sets:>9} {:>9} {:>9} {:>9} {:>9}",
        row.code,
        format!("{},{}", row.n, row.recovery_threshold),
        format!("{},{}", row.k_a, row.k_b),
        short(row.median),
        short(row.p90),
        short(row.p99),
        short(row.worst)
    )
}

/// Four digits, or an exponent.
fn short(value: f64) -> String {
    match value {
        value if value < 9.9995 => format!("{value:.3}"),
        value if value < 99.995 => format!("{value:.2}"),
        value if value < 9999.5 => format!("{value:.0}"),
        value if value.is_finite() => format!("{value:.2e}"),
        _ => "inf".to_owned(),
    }
}

fn errors(report: &StabilityReport) -> Result<()> {
    let mut last = None;
    let shown: Vec<&CodingError> =
        report.errors.iter().filter(|e| ["all", "median", "worst"].contains(&&*e.set)).collect();
    for error in shown {
        let heading = (error.n, error.recovery_threshold, &error.layer, &error.dtype);
        if last != Some(heading) {
            if last.is_some() {
                out("")?;
            }
            let (n, delta, layer, dtype) = heading;
            out(format_args!(
                "Errors of {layer} in {dtype}, n = {n}, delta = {delta}, against f64 without a code"
            ))?;
            out(format_args!(
                "  {:12} {:>7} {:>10} {:>9} {:>9} {:>11} {:>9}",
                "code", "kA,kB", "responders", "condition", "MSE", "relative L2", "bound"
            ))?;
            last = Some(heading);
        }
        out(format_args!(
            "  {:12} {:>7} {:>10} {:>9} {:>9.1e} {:>11.1e} {:>9.1e}",
            error.code,
            format!("{},{}", error.k_a, error.k_b),
            error.set,
            short(error.condition),
            error.mse,
            error.relative_l2,
            error.bound
        ))?;
    }
    if last.is_some() {
        out("")?;
    }
    Ok(())
}
