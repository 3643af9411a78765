//! The table of a model's layers: where each ran, who was not needed, what it cost.

use std::collections::BTreeMap;
use std::fmt::Write;

use fcdcc::scheduler::State;
use fcdcc::{LayerReport, Outcome, Result};

use super::print::{bytes, out};

/// Straggling workers that are named in a row; of more only the number is said.
const MOST_NAMES: usize = 3;

/// Prints a row for each layer over several runs of one model: times are medians over the runs.
pub(crate) fn table(runs: &[Vec<LayerReport>]) -> Result<()> {
    let Some(first) = runs.first().filter(|layers| !layers.is_empty()) else { return Ok(()) };
    let width = |column: &dyn Fn(&LayerReport) -> usize, least: usize| {
        first.iter().map(column).max().unwrap_or(0).clamp(least, 40)
    };
    let name_width = width(&|l| l.name.chars().count(), 5);
    let late: Vec<String> = (0..first.len()).map(|layer| stragglers(runs, layer)).collect();
    let late_width = late.iter().map(|l| l.chars().count()).max().unwrap_or(0).clamp(10, 48);
    out(format_args!(
        "{:name_width$}  {:8} {:>5} {:>6}  {:late_width$} {:>8} {:>8} {:>8} {:>8}  {:>6}",
        "layer", "code", "n,d", "kA,kB", "not needed", "encode", "wait", "decode", "total", "cond"
    ))?;
    for (index, layer) in first.iter().enumerate() {
        let name = shortened(&layer.name, name_width);
        if let Some(why) = &layer.why_local {
            out(format_args!("{name:name_width$}  local: {why}"))?;
            continue;
        }
        let all: Vec<&LayerReport> = runs.iter().filter_map(|run| run.get(index)).collect();
        let time = |of: fn(&LayerReport) -> f64| median(all.iter().map(|l| of(l)).collect());
        let worst = all.iter().map(|l| l.condition_number).fold(0.0, f64::max);
        let code = if all.iter().any(|l| l.fallback.is_some()) { "fallback" } else { layer.code.as_str() };
        out(format_args!(
            "{name:name_width$}  {code:8} {:>5} {:>6}  {:late_width$} {:>8.2} {:>8.2} {:>8.2} {:>8.2}  {worst:>6.2}",
            format!("{},{}", layer.n, layer.recovery_threshold),
            format!("{},{}", layer.k_a, layer.k_b),
            shortened(&late[index], late_width),
            time(|l| l.encode_ms),
            time(|l| l.wait_ms),
            time(|l| l.decode_ms),
            time(|l| l.total_ms),
        ))?;
    }
    if first.iter().all(|layer| layer.why_local.is_some()) {
        return Ok(());
    }
    out(format_args!(
        "{:name_width$}  n coded subtasks of which any d (delta) decode; times in ms{}; cond: condition number",
        "",
        if runs.len() > 1 { format!(", medians of {} runs", runs.len()) } else { String::new() }
    ))
}

/// What each worker did over all layers and runs.
pub(crate) fn workers(runs: &[Vec<LayerReport>]) -> Result<()> {
    let mut by_name: BTreeMap<&str, (BTreeMap<&str, usize>, Vec<f64>, State)> = BTreeMap::new();
    for worker in runs.iter().flatten().flat_map(|layer| &layer.workers) {
        let (outcomes, latencies, state) =
            by_name.entry(&worker.worker).or_insert_with(|| (BTreeMap::new(), Vec::new(), worker.state));
        *state = worker.state;
        *outcomes.entry(outcome(worker.outcome)).or_default() += 1;
        if worker.outcome == Outcome::Used {
            latencies.extend(worker.latency_ms);
        }
    }
    let width = by_name.keys().map(|n| n.chars().count()).max().unwrap_or(0).clamp(6, 40);
    out(format_args!(
        "{:width$} {:>6} {:>6} {:>10} {:>7} {:>8}  median latency  state",
        "worker", "used", "late", "cancelled", "failed", "corrupt"
    ))?;
    for (name, (outcomes, latencies, state)) in by_name {
        let count = |what: &str| outcomes.get(what).copied().unwrap_or(0);
        let latency =
            if latencies.is_empty() { "-".to_owned() } else { format!("{:.2} ms", median(latencies)) };
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

/// The sums of one run in a line.
pub(crate) fn totals(layers: &[LayerReport], total_ms: f64, host_ms: f64) -> Result<()> {
    let sum = |of: fn(&LayerReport) -> f64| layers.iter().map(of).sum::<f64>();
    let coded = layers.iter().filter(|l| l.why_local.is_none()).count();
    out(format_args!(
        "{coded} of {} layers on the workers: encode {:.1} ms, wait {:.1} ms, decode {:.1} ms; the rest on the host \
         {host_ms:.1} ms; total {total_ms:.1} ms; {} up, {} down",
        layers.len(),
        sum(|l| l.encode_ms),
        sum(|l| l.wait_ms),
        sum(|l| l.decode_ms),
        bytes(layers.iter().map(|l| l.bytes_up).sum()),
        bytes(layers.iter().map(|l| l.bytes_down).sum()),
    ))
}

/// Who was not needed in a layer, and in which way most often.
fn stragglers(runs: &[Vec<LayerReport>], layer: usize) -> String {
    let mut seen: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for worker in runs.iter().filter_map(|run| run.get(layer)).flat_map(|l| &l.workers) {
        if !matches!(worker.outcome, Outcome::Used | Outcome::Idle) {
            *seen.entry(&worker.worker).or_default().entry(outcome(worker.outcome)).or_default() += 1;
        }
    }
    if seen.len() > MOST_NAMES {
        return format!("{} workers", seen.len());
    }
    let mut text = String::new();
    for (name, outcomes) in &seen {
        let most = outcomes.iter().max_by_key(|(_, count)| **count).map_or("", |(what, _)| *what);
        // Writing to a String cannot fail.
        let _ = write!(text, "{}{name} {most}", if text.is_empty() { "" } else { ", " });
    }
    text
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

/// At most `width` characters: the end of a long name tells more than its beginning.
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

    #[test]
    fn medians_and_short_names() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
        assert_eq!(median(Vec::new()), 0.0);
        assert_eq!(shortened("abcdefgh", 6), "..efgh");
        assert_eq!(shortened("äöü", 3), "äöü");
    }
}
