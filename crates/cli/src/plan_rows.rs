//! The layers of a plan: their rows in plan.json and in the table.

use std::time::Duration;

use fcdcc::ConvShape;
use fcdcc::Result;
use fcdcc::array::DType;
use fcdcc::planner::{LayerPlan, Rates, Way};
use fcdcc_bench::convexity::Convexity;
use serde::Serialize;

use super::links::slower_than_here;
use super::print::{bytes, out};

#[derive(Serialize)]
pub(crate) struct Row {
    name: String,
    op: &'static str,
    /// In readable form: 1x64x56x56 * 128x64x3x3.
    shape: String,
    /// A code family, or `local`.
    code: String,
    n: usize,
    recovery_threshold: usize,
    k_a: usize,
    k_b: usize,
    upload_bytes: usize,
    download_bytes: usize,
    storage_bytes: usize,
    /// Multiply-adds of one subtask, or of a `local` layer.
    macs: f64,
    encode_ms: f64,
    wait_ms: f64,
    decode_ms: f64,
    predicted_ms: f64,
    local_ms: f64,
    host_bytes: f64,
    worker_bytes: f64,
    why: String,
    alternatives: Vec<Considered>,
}

#[derive(Serialize)]
struct Considered {
    way: String,
    predicted_ms: f64,
}

impl Row {
    pub(crate) fn of(
        name: String,
        op: &'static str,
        shape: &ConvShape,
        plan: &LayerPlan,
        dtype: DType,
    ) -> Self {
        let size = dtype.size_bytes();
        let join = |sizes: Vec<usize>| sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join("x");
        let mut row = Self::host(name, op, plan.why.clone());
        row.shape = format!("{} * {}", join(shape.input_shape()), join(shape.weight_shape()));
        row.local_ms = plan.local_s * 1e3;
        row.predicted_ms = plan.total_s() * 1e3;
        row.macs = shape.macs();
        let considered = |a: &fcdcc::planner::Alternative| Considered {
            way: a.way.to_string(),
            predicted_ms: a.total_s * 1e3,
        };
        row.alternatives = plan.alternatives.iter().map(considered).collect();
        if let Way::Coded { code, n, recovery_threshold, k_a, k_b } = plan.way {
            row.code = code.to_string();
            (row.n, row.recovery_threshold, row.k_a, row.k_b) = (n, recovery_threshold, k_a, k_b);
        }
        if let Some(cost) = plan.cost {
            row.macs = cost.macs;
            row.upload_bytes = cost.upload_elems * size;
            row.download_bytes = cost.download_elems * size;
            row.storage_bytes = cost.storage_elems * size;
        }
        if let Some(p) = plan.prediction {
            (row.encode_ms, row.wait_ms, row.decode_ms) =
                (p.encode_s * 1e3, p.wait_s * 1e3, p.decode_s * 1e3);
            (row.host_bytes, row.worker_bytes) = (p.host_bytes, p.worker_bytes);
        }
        row
    }

    pub(crate) fn host(name: String, op: &'static str, why: String) -> Self {
        Self {
            name,
            op,
            shape: String::new(),
            code: "local".to_owned(),
            n: 0,
            recovery_threshold: 0,
            k_a: 0,
            k_b: 0,
            upload_bytes: 0,
            download_bytes: 0,
            storage_bytes: 0,
            macs: 0.0,
            encode_ms: 0.0,
            wait_ms: 0.0,
            decode_ms: 0.0,
            predicted_ms: 0.0,
            local_ms: 0.0,
            host_bytes: 0.0,
            worker_bytes: 0.0,
            why,
            alternatives: Vec::new(),
        }
    }
}

/// Prints the plan of each layer.
pub(crate) fn table(layers: &[Row], rates: &Rates) -> Result<()> {
    let width = layers.iter().map(|l| l.name.chars().count()).max().unwrap_or(0).clamp(5, 32);
    out(format_args!(
        "{:width$}  {:11} {:>6} {:>6} {:>9} {:>9} {:>9} {:>8} {:>9} {:>8}  why",
        "layer", "code", "n,d", "kA,kB", "upload", "download", "storage", "MMAC", "predicted", "local"
    ))?;
    for l in layers {
        let name: String = l.name.chars().take(width).collect();
        if l.code == "local" && l.shape.is_empty() {
            out(format_args!("{name:width$}  local: {}", l.why))?;
            continue;
        }
        let pair = |a: usize, b: usize| if a + b == 0 { "-".to_owned() } else { format!("{a},{b}") };
        out(format_args!(
            "{name:width$}  {:11} {:>6} {:>6} {:>9} {:>9} {:>9} {:>8.1} {:>6.2} ms {:>5.1} ms  {}",
            l.code,
            pair(l.n, l.recovery_threshold),
            pair(l.k_a, l.k_b),
            bytes(l.upload_bytes),
            bytes(l.download_bytes),
            bytes(l.storage_bytes),
            l.macs / 1e6,
            l.predicted_ms,
            l.local_ms,
            l.why
        ))?;
    }
    let coded = || layers.iter().filter(|l| l.code != "local");
    let total = Duration::from_secs_f64(layers.iter().map(|l| l.predicted_ms).sum::<f64>() / 1e3);
    let held: usize = coded().map(|l| l.storage_bytes).sum();
    out(format_args!(
        "{:width$}  {} of {} layers on the workers; {:.2} ms predicted in all with nobody late",
        "",
        coded().count(),
        layers.len(),
        total.as_secs_f64() * 1e3
    ))?;
    let local_s = layers.iter().map(|l| l.local_ms).sum::<f64>() / 1e3;
    let slower = rates.network.and_then(|_| slower_than_here(total.as_secs_f64(), local_s));
    if let Some(text) = slower {
        out(format_args!("{:width$}  {text}", ""))?;
    }
    out(format_args!(
        "{:width$}  upload, download, storage and MMAC (million multiply-adds) are of one subtask; filters of one subtask \
         in all layers: {}",
        "",
        bytes(held)
    ))
}

/// Prints every pair of a layer, predicted and measured.
pub(crate) fn measured_table(pairs: &Convexity) -> Result<()> {
    out("")?;
    out(format_args!(
        "{}: {} n={} delta={}; the paper's optimum: k_A = {:.1}",
        pairs.layer, pairs.code, pairs.n, pairs.recovery_threshold, pairs.paper_k_a
    ))?;
    out("  kA,kB   predicted    measured   ratio")?;
    for pair in &pairs.pairs {
        let measured = pair.measured_ms.unwrap_or(f64::NAN);
        let chosen = if (pair.k_a, pair.k_b) == pairs.chosen { "  chosen" } else { "" };
        out(format_args!(
            "  {:>6} {:>8.2} ms {:>8.2} ms {:>7.2}{chosen}",
            format!("{},{}", pair.k_a, pair.k_b),
            pair.predicted_ms,
            measured,
            pair.predicted_ms / measured
        ))?;
    }
    let (regret, accuracy) = (pairs.regret().unwrap_or(f64::NAN), pairs.accuracy().unwrap_or(f64::NAN));
    out(format_args!(
        "  the chosen pair takes {regret:.2} times as long as the fastest; predicted {accuracy:.2} of what it took"
    ))
}
