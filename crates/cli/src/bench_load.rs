//! `fcdcc bench --load`: methods under load in virtual time, as a load file describes them.

use std::path::{Path, PathBuf};

use clap::Args;
use fcdcc::files::Output;
use fcdcc::{Error, Result};
use fcdcc_bench::format::{bytes, number, percent, time};
use fcdcc_bench::under_load::{Arrivals, LoadSpec, LoadStudy, Map, MethodLatencies, ModelStudy, State};
use fcdcc_bench::under_load::{named, parse_trace, study, verdict};
use fcdcc_bench::{machine, page_under_load};

use super::ledger::Ledger;
use super::network::read_toml;
use super::progress::Bar;
use super::{Console, arrays, print};

/// What `--load` excludes: the file says all of it.
#[cfg(feature = "onnx")]
const EXCLUDES: [&str; 11] = [
    "layers",
    "methods",
    "scenario",
    "delay",
    "pool",
    "fault",
    "workers",
    "tolerate",
    "partitions",
    "model",
    "input",
];
#[cfg(not(feature = "onnx"))]
const EXCLUDES: [&str; 9] =
    ["layers", "methods", "scenario", "delay", "pool", "fault", "workers", "tolerate", "partitions"];

/// Options of a study under load.
#[derive(Args, Clone, Debug)]
pub(crate) struct UnderLoadArgs {
    /// Compare replicas, hedged replicas, uncoded splitting and coding while requests arrive by a schedule, from light load
    /// to saturation, in virtual time: a TOML file of machines, links, faults, arrivals and methods (docs/choosing.md)
    #[arg(long, value_name = "FILE.toml", conflicts_with_all = EXCLUDES)]
    pub(crate) load: Option<PathBuf>,
}

/// Where results are written: report.html and bench.json of a folder, and a report.
struct Places {
    folder: Option<(Output, Output)>,
    report: Option<Output>,
}

pub(crate) fn run(file: &Path, output: Option<&Path>, report: Option<&Path>, console: Console) -> Result<()> {
    let mut ledger = Ledger::default();
    ledger.input("--load", file)?;
    let spec = read(file, &mut ledger)?;
    let folder = match output {
        None => None,
        Some(folder) => Some((
            ledger.output_within("--output", folder, "report.html")?,
            ledger.output_within("--output", folder, "bench.json")?,
        )),
    };
    let report = report.map(|path| ledger.output("--report", path)).transpose()?;
    let places = Places { folder, report };
    let console = console.beside(&ledger);
    let bar = Bar::new(console, "simulating");
    let (models, maps) = study(&spec, &|done, total| bar.steps(done, total, "runs"))?;
    drop(bar);
    let workers = format!("{} x simulated machine", spec.machines.count);
    let precision = format!("{} bytes an element", spec.coding.element_bytes);
    let setting = machine::setting("virtual", workers, precision, spec.seed, spec.runs);
    let found = LoadStudy::new(setting, spec, models, maps);
    if let Some((html, json)) = places.folder {
        arrays::write_bytes(html, page_under_load::page(&found).html().as_bytes())?;
        arrays::write_report(json, &found)?;
    }
    if let Some(place) = places.report {
        arrays::write_report(place, &found)?;
    }
    if console.tables { table(&found) } else { Ok(()) }
}

/// The load file, checked, with its trace.
fn read(file: &Path, ledger: &mut Ledger) -> Result<LoadSpec> {
    let bad = |cause: String| Error::File { path: file.display().to_string(), cause, input: true };
    let mut spec: LoadSpec = read_toml(file, "a load file")?;
    spec.check().map_err(|error| bad(error.to_string()))?;
    if let (Arrivals::Trace, Some(name)) = (spec.arrivals, &spec.trace) {
        // Beside the load file, unless the path is absolute.
        let path = file.parent().unwrap_or(Path::new("")).join(name);
        ledger.input("trace of --load", &path)?;
        let text = fcdcc::files::read_text(&path)?;
        spec.trace_times = parse_trace(&path.display().to_string(), &text)?;
    }
    Ok(spec)
}

fn table(found: &LoadStudy) -> Result<()> {
    for model in &found.models {
        one(model)?;
    }
    for map in &found.maps {
        cells(map)?;
    }
    for sentence in &found.findings {
        print::out(format_args!("- {sentence}"))?;
    }
    Ok(())
}

fn one(model: &ModelStudy) -> Result<()> {
    print::out(format_args!(
        "{}: {} G multiply-adds; a machine takes {}, the master {}; replicas without faults answer {} requests a second at \
         most",
        model.model,
        number(model.macs / 1e9),
        time(model.service_ms),
        time(model.local_ms),
        number(model.capacity)
    ))?;
    for point in &model.points {
        print::out(format_args!(
            "  {} of the capacity, {} requests a second\n    {:22} {:>10} {:>10} {:>10} {:>10} {:>9} {:>9} {:>6} {:>6}",
            percent(point.load),
            number(point.rate),
            "method",
            "p50",
            "p90",
            "p99",
            "p99.9",
            "cpu s",
            "bytes",
            "busy",
            "link"
        ))?;
        for method in &point.methods {
            row(method)?;
        }
    }
    print::out("")
}

fn row(method: &MethodLatencies) -> Result<()> {
    let usage = &method.usage;
    let text = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), time);
    let note = match method.state {
        State::Steady if method.failed > 0 => format!("  {} failed", method.failed),
        State::Steady => String::new(),
        State::Saturated => format!("  saturated: {}", method.reason),
        State::Unfinished => format!("  unfinished: {}", method.reason),
    };
    print::out(format_args!(
        "    {:22} {:>10} {:>10} {:>10} {:>10} {:>9} {:>9} {:>6} {:>6}{note}",
        named(method),
        text(method.p50),
        text(method.p90),
        text(method.p99),
        text(method.p999),
        number(usage.machine_s + usage.master_s),
        bytes(usage.bytes_out + usage.bytes_in),
        percent(usage.busiest_machine.max(usage.master)),
        percent(usage.link_out.max(usage.link_in))
    ))
}

fn cells(map: &Map) -> Result<()> {
    print::out(format_args!(
        "{}, map at {} of the capacity: the method with the least p99, and the least p99 without coding over the least with \
         it (~ where runs do not agree)",
        map.model,
        percent(map.load)
    ))?;
    print::out(format_args!("  {:>12} {:>12}  {:16} {:>8}", "macs a byte", "delay ratio", "best", "coding"))?;
    for cell in &map.cells {
        let gain = cell.coding_gain.map_or_else(|| "-".to_owned(), |gain| format!("{gain:.2}"));
        let sure = if verdict(cell).is_some() { "" } else { "~" };
        print::out(format_args!(
            "  {:>12} {:>12}  {:16} {:>8}",
            number(cell.macs_per_byte),
            number(cell.delay_ratio),
            cell.best.map_or("none is steady", |method| method.name()),
            format!("{sure}{gain}")
        ))?;
    }
    print::out("")
}
