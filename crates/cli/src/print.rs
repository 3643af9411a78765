//! Prints results on stdout: lines, JSON, and the table of one layer's workers.

use std::fmt::Display;
use std::io::Write;

use fcdcc::scheduler::State;
use fcdcc::{Completion, Error, LayerReport, Result};
use serde::Serialize;

/// Prints one line on stdout. A closed pipe (`| head`) is not a failure.
pub(crate) fn out(line: impl Display) -> Result<()> {
    match writeln!(std::io::stdout().lock(), "{line}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Prints a value as JSON on stdout.
pub(crate) fn out_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| failed(e.into()))?;
    out(text)
}

fn failed(error: std::io::Error) -> Error {
    Error::File { path: "stdout".to_owned(), cause: error.to_string(), input: false }
}

/// Prints the outcome of each worker in one layer, and the cost.
pub(crate) fn layer_table(report: &LayerReport) -> Result<()> {
    out(format_args!(
        "{}: code {} with n={}, recovery threshold {}, partitions {},{} on {} workers",
        report.name, report.code, report.n, report.recovery_threshold, report.k_a, report.k_b, report.backend
    ))?;
    let width = report.workers.iter().map(|w| w.worker.len()).max().unwrap_or(0).max(6);
    out(format_args!("  subtask  {:width$}  outcome    latency", "worker"))?;
    for row in &report.workers {
        let subtask = row.subtask.map_or_else(|| "-".to_owned(), |s| s.to_string());
        let outcome = format!("{:?}", row.outcome).to_lowercase();
        let latency = row.latency_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
        let state = match row.state {
            State::Healthy => String::new(),
            other => format!("  ({})", format!("{other:?}").to_lowercase()),
        };
        out(format_args!("  {subtask:>7}  {:width$}  {outcome:9}  {latency:>9}{state}", row.worker))?;
    }
    out(format_args!(
        "  encode {:.1} ms, wait {:.1} ms, decode {:.1} ms, total {:.1} ms; {} up, {} down",
        report.encode_ms,
        report.wait_ms,
        report.decode_ms,
        report.total_ms,
        bytes(report.bytes_up),
        bytes(report.bytes_down)
    ))?;
    let mut how = match report.completion {
        Completion::ExactLocally => "computed on this machine".to_owned(),
        Completion::ExactFiltersSplit => {
            "exact, with filters split since the input is of uneven size".to_owned()
        }
        Completion::ExactReplicated => "exact, replicated since the input is of uneven size".to_owned(),
        Completion::ExactPlain => "exact, with plain products since the input is of uneven size".to_owned(),
        Completion::ExactAfterRedispatch => {
            format!("exact after {} hedged and {} redispatched subtasks", report.hedged, report.redispatched)
        }
        other => other.name().to_owned(),
    };
    if !report.flagged.is_empty() {
        let flagged: Vec<String> = report.flagged.iter().map(ToString::to_string).collect();
        how = format!("{how}, without the wrong results of subtask {}", flagged.join(", "));
    }
    if report.recomputed > 0 {
        how = format!("{how}, {} outputs of outlying windows computed here", report.recomputed);
    }
    if let Some(floor) = report.audit_floor {
        how = format!("{how}, audited to {floor:.0e}");
    }
    out(format_args!(
        "  {how}: condition number {:.4}, error bound {:.1e}, windowwise {:.1e}",
        report.condition_number, report.error_bound, report.windowwise_bound
    ))
}

/// ‖got − want‖ / ‖want‖.
#[cfg(feature = "onnx")]
pub(crate) fn relative_l2(got: &[f64], want: &[f64]) -> f64 {
    let (error, norm) = got
        .iter()
        .zip(want)
        .fold((0.0, 0.0), |(error, norm), (g, w)| (error + (g - w).powi(2), norm + w * w));
    if error == 0.0 { 0.0 } else { (error / norm).sqrt() }
}

pub(crate) fn bytes(count: usize) -> String {
    match count {
        0..=9_999 => format!("{count} B"),
        10_000..=9_999_999 => format!("{:.1} kB", count as f64 / 1e3),
        _ => format!("{:.1} MB", count as f64 / 1e6),
    }
}
