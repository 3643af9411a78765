//! The table of a model's layers: where each layer ran, which workers were not needed, and the cost.

use std::collections::BTreeMap;
use std::fmt::Write;

use fcdcc::scheduler::State;
use fcdcc::{Completion, LayerReport, Outcome, Result};

use super::print::{bytes, out};

/// Maximum number of straggling workers named in a row; if there are more, only their number is printed.
const MOST_NAMES: usize = 3;

/// Maximum number of values kept of a series; beyond it, every second value is dropped, repeatedly.
const MOST_VALUES: usize = 1024;

/// Summary of all runs of one model; its size does not grow with the number of runs.
#[derive(Default)]
pub(crate) struct Summary {
    runs: usize,
    layers: Vec<Row>,
    workers: BTreeMap<String, Work>,
    reports: usize,
    coded: usize,
    /// Largest error bound of a layer on the workers.
    pub(crate) bound: f64,
    /// Largest windowwise error bound of a layer on the workers.
    pub(crate) window: f64,
    /// Number of outputs of outlying windows that were computed on this machine.
    recomputed: usize,
}

/// Summary of all runs of one layer.
struct Row {
    name: String,
    why_local: Option<String>,
    code: String,
    fallback: bool,
    n: usize,
    recovery_threshold: usize,
    partitions: (usize, usize),
    condition: f64,
    /// The distinct ways in which its runs were completed.
    completions: Vec<Completion>,
    /// Workers that were not needed: how often, by outcome.
    stragglers: BTreeMap<String, BTreeMap<&'static str, usize>>,
    encode: Series,
    wait: Series,
    decode: Series,
    total: Series,
    bytes_up: usize,
    bytes_down: usize,
}

/// Summary of a worker's tasks.
struct Work {
    outcomes: BTreeMap<&'static str, usize>,
    latencies: Series,
    state: State,
}

/// A series of values: their sum, and an evenly spaced sample for the median.
#[derive(Default)]
struct Series {
    kept: Vec<f64>,
    /// The sample has every 2^`spacing`-th value.
    spacing: u32,
    seen: usize,
    sum: f64,
}

impl Series {
    fn add(&mut self, value: f64) {
        if self.seen.is_multiple_of(1 << self.spacing) {
            if self.kept.len() == MOST_VALUES {
                let mut index = 0;
                self.kept.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
                self.spacing += 1;
            }
            // Halving the sample drops this value if it was not at the new spacing.
            if self.seen.is_multiple_of(1 << self.spacing) {
                self.kept.push(value);
            }
        }
        self.seen += 1;
        self.sum += value;
    }

    fn median(&self) -> f64 {
        median(self.kept.clone())
    }
}

impl Row {
    fn of(report: &LayerReport) -> Self {
        Self {
            name: report.name.clone(),
            why_local: report.why_local.clone(),
            code: report.code.clone(),
            fallback: false,
            n: report.n,
            recovery_threshold: report.recovery_threshold,
            partitions: (report.k_a, report.k_b),
            condition: 0.0,
            completions: Vec::new(),
            stragglers: BTreeMap::new(),
            encode: Series::default(),
            wait: Series::default(),
            decode: Series::default(),
            total: Series::default(),
            bytes_up: 0,
            bytes_down: 0,
        }
    }

    fn add(&mut self, report: &LayerReport) {
        self.fallback |= report.fallback.is_some();
        self.condition = self.condition.max(report.condition_number);
        if !self.completions.contains(&report.completion) {
            self.completions.push(report.completion);
        }
        self.encode.add(report.encode_ms);
        self.wait.add(report.wait_ms);
        self.decode.add(report.decode_ms);
        self.total.add(report.total_ms);
        self.bytes_up += report.bytes_up;
        self.bytes_down += report.bytes_down;
        for worker in &report.workers {
            if !matches!(worker.outcome, Outcome::Used | Outcome::Idle) {
                let seen = entry(&mut self.stragglers, &worker.worker, BTreeMap::new);
                *seen.entry(outcome(worker.outcome)).or_default() += 1;
            }
        }
    }

    /// The workers that were not needed, each with its most frequent outcome.
    fn not_needed(&self) -> String {
        if self.stragglers.len() > MOST_NAMES {
            return format!("{} workers", self.stragglers.len());
        }
        let mut text = String::new();
        for (name, outcomes) in &self.stragglers {
            let most = outcomes.iter().max_by_key(|(_, count)| **count).map_or("", |(what, _)| *what);
            // Writing to a String cannot fail.
            let _ = write!(text, "{}{name} {most}", if text.is_empty() { "" } else { ", " });
        }
        text
    }
}

/// The entry under `name`; copies the text only for a new entry.
fn entry<'m, V>(map: &'m mut BTreeMap<String, V>, name: &str, new: impl FnOnce() -> V) -> &'m mut V {
    if !map.contains_key(name) {
        map.insert(name.to_owned(), new());
    }
    map.get_mut(name).expect("it was there, or was put there above")
}

impl Summary {
    /// Adds one run.
    pub(crate) fn add(&mut self, reports: &[LayerReport]) {
        if self.runs == 0 {
            self.layers = reports.iter().map(Row::of).collect();
        }
        self.runs += 1;
        for (row, report) in self.layers.iter_mut().zip(reports) {
            row.add(report);
        }
        for report in reports {
            self.reports += 1;
            if report.why_local.is_none() {
                self.coded += 1;
                self.bound = self.bound.max(report.error_bound);
                self.window = self.window.max(report.windowwise_bound);
                self.recomputed += report.recomputed;
            }
            for worker in &report.workers {
                let work = entry(&mut self.workers, &worker.worker, || Work {
                    outcomes: BTreeMap::new(),
                    latencies: Series::default(),
                    state: worker.state,
                });
                work.state = worker.state;
                *work.outcomes.entry(outcome(worker.outcome)).or_default() += 1;
                if let Some(latency) = worker.latency_ms.filter(|_| worker.outcome == Outcome::Used) {
                    work.latencies.add(latency);
                }
            }
        }
    }

    /// The number of runs.
    pub(crate) fn runs(&self) -> usize {
        self.runs
    }

    /// Whether any layer ran on the workers.
    pub(crate) fn any_coded(&self) -> bool {
        self.coded > 0
    }

    /// Largest condition number of all layers.
    pub(crate) fn condition(&self) -> f64 {
        self.layers.iter().map(|row| row.condition).fold(0.0, f64::max)
    }

    /// Prints a row for each layer, with median times over all runs.
    pub(crate) fn table(&self) -> Result<()> {
        if self.layers.is_empty() {
            return Ok(());
        }
        let name_width = self.layers.iter().map(|l| l.name.chars().count()).max().unwrap_or(0).clamp(5, 40);
        let late: Vec<String> = self.layers.iter().map(Row::not_needed).collect();
        let late_width = late.iter().map(|l| l.chars().count()).max().unwrap_or(0).clamp(10, 48);
        out(format_args!(
            "{:name_width$}  {:8} {:>5} {:>6}  {:late_width$} {:>8} {:>8} {:>8} {:>8}  {:>6}",
            "layer", "code", "n,d", "kA,kB", "not needed", "encode", "wait", "decode", "total", "cond"
        ))?;
        for (layer, late) in self.layers.iter().zip(&late) {
            let name = shortened(&layer.name, name_width);
            if let Some(why) = &layer.why_local {
                out(format_args!("{name:name_width$}  local: {why}"))?;
                continue;
            }
            let code = if layer.fallback { "fallback" } else { layer.code.as_str() };
            out(format_args!(
                "{name:name_width$}  {code:8} {:>5} {:>6}  {:late_width$} {:>8.2} {:>8.2} {:>8.2} {:>8.2}  {:>6.2}",
                format!("{},{}", layer.n, layer.recovery_threshold),
                format!("{},{}", layer.partitions.0, layer.partitions.1),
                shortened(late, late_width),
                layer.encode.median(),
                layer.wait.median(),
                layer.decode.median(),
                layer.total.median(),
                layer.condition,
            ))?;
        }
        if self.layers.iter().all(|layer| layer.why_local.is_some()) {
            return Ok(());
        }
        let medians = if self.runs > 1 { format!(", medians of {} runs", self.runs) } else { String::new() };
        out(format_args!(
            "{:name_width$}  n coded subtasks of which any d (delta) decode; times in ms{medians}; cond: condition number",
            "",
        ))
    }

    /// Prints the outcomes of each worker over all layers and runs.
    pub(crate) fn workers(&self) -> Result<()> {
        let width = self.workers.keys().map(|n| n.chars().count()).max().unwrap_or(0).clamp(6, 40);
        out(format_args!(
            "{:width$} {:>6} {:>6} {:>10} {:>7} {:>8}  median latency  state",
            "worker", "used", "late", "cancelled", "failed", "corrupt"
        ))?;
        for (name, Work { outcomes, latencies, state }) in &self.workers {
            let count = |what: &str| outcomes.get(what).copied().unwrap_or(0);
            let latency =
                if latencies.seen == 0 { "-".to_owned() } else { format!("{:.2} ms", latencies.median()) };
            out(format_args!(
                "{:width$} {:>6} {:>6} {:>10} {:>7} {:>8}  {latency:>14}  {}",
                shortened(name, width),
                count("used"),
                count("late"),
                count("cancelled"),
                count("failed"),
                count("corrupt"),
                format!("{state:?}").to_lowercase()
            ))?;
        }
        Ok(())
    }

    /// Prints which layers were not completed by their code, and how many elements were computed on this machine.
    pub(crate) fn other_ways(&self) -> Result<()> {
        for (completion, how) in [
            (Completion::ExactFiltersSplit, "split their filters instead of the input"),
            (Completion::ExactReplicated, "were replicated"),
            (Completion::ExactPlain, "used operands of full width and plain products"),
        ] {
            let went = self.layers.iter().filter(|layer| layer.completions.contains(&completion));
            let names: Vec<&str> = went.map(|layer| layer.name.as_str()).collect();
            if !names.is_empty() {
                let names = names.join(", ");
                out(format_args!("since their data are of uneven size, layers {how}: {names}"))?;
            }
        }
        if self.recomputed > 0 {
            let count = self.recomputed;
            out(format_args!("{count} outputs of outlying windows were computed on this machine"))?;
        }
        Ok(())
    }

    /// Prints the sums over all runs in one line.
    pub(crate) fn totals(&self, total_ms: f64, host_ms: f64) -> Result<()> {
        let sum = |of: fn(&Row) -> f64| self.layers.iter().map(of).sum::<f64>();
        out(format_args!(
            "{} of {} layers on the workers: encode {:.1} ms, wait {:.1} ms, decode {:.1} ms; the rest on the host \
             {host_ms:.1} ms; total {total_ms:.1} ms; {} up, {} down",
            self.coded,
            self.reports,
            sum(|l| l.encode.sum),
            sum(|l| l.wait.sum),
            sum(|l| l.decode.sum),
            bytes(self.layers.iter().map(|l| l.bytes_up).sum()),
            bytes(self.layers.iter().map(|l| l.bytes_down).sum()),
        ))
    }
}

fn outcome(of: Outcome) -> &'static str {
    match of {
        Outcome::Used => "used",
        Outcome::Late => "late",
        Outcome::Cancelled => "cancelled",
        Outcome::Failed => "failed",
        Outcome::Corrupt => "corrupt",
        Outcome::Idle => "idle",
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// At most `width` characters of a name; keeps the end, which tells more than the beginning.
fn shortened(name: &str, width: usize) -> String {
    let count = name.chars().count();
    if count <= width {
        return name.to_owned();
    }
    let end: String = name.chars().skip(count - width + 2).collect();
    format!("..{end}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use fcdcc::SubtaskId;

    #[test]
    fn a_series_is_bounded_and_keeps_its_median() {
        let mut series = Series::default();
        for value in 0..100_000u32 {
            series.add(f64::from(value));
            assert!(series.kept.len() <= MOST_VALUES);
        }
        assert!(series.kept.len() >= MOST_VALUES / 2);
        assert!(series.kept.is_sorted(), "evenly spaced, in the order they came");
        assert!((series.median() - 5e4).abs() < 5e2, "{}", series.median());
        assert_eq!((series.seen, series.sum), (100_000, 99_999.0 * 5e4));
        let mut short = Series::default();
        for value in [3.0, 1.0, 2.0] {
            short.add(value);
        }
        assert_eq!(short.median(), 2.0);
    }

    #[test]
    fn a_summary_of_many_runs_holds_no_more_than_that_of_few() {
        let mut report = LayerReport::local("conv1", "Conv", "");
        report.why_local = None;
        let worker = |name: &str, outcome| {
            let mut row = fcdcc::engine::WorkerReport::new(name, outcome);
            (row.subtask, row.latency_ms, row.sub_results) = (Some(SubtaskId(0)), Some(1.0), 1);
            row
        };
        report.workers = vec![worker("a", Outcome::Used), worker("b", Outcome::Late)];
        let mut summary = Summary::default();
        for run in 0..5000 {
            report.wait_ms = f64::from(run);
            report.error_bound = 1e-6;
            summary.add(std::slice::from_ref(&report));
        }
        assert_eq!((summary.runs, summary.reports, summary.coded), (5000, 5000, 5000));
        assert_eq!((summary.layers.len(), summary.workers.len()), (1, 2));
        assert!(summary.layers[0].wait.kept.len() <= MOST_VALUES);
        assert_eq!(summary.layers[0].not_needed(), "b late");
        assert_eq!(summary.workers["b"].outcomes["late"], 5000);
        assert_eq!(summary.bound, 1e-6);
    }

    #[test]
    fn medians_and_short_names() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
        assert_eq!(median(Vec::new()), 0.0);
        assert_eq!(shortened("abcdefgh", 6), "..efgh");
        assert_eq!(shortened("äöü", 3), "äöü");
    }
}
