//! Results as tables, JSON and checks.

use std::fmt::Write as _;

use fcdcc_peers::numbers::geometric_mean;
use serde_json::{Value, json};

use crate::ceilings::Ceilings;
use crate::layers::{Layer, Set};
use crate::rounds::Outcome;

/// What everything is compared with: the first engine of every table.
const OURS: usize = 0;

/// A rate of more than this many times the peak is a mistake of the measurement: no algorithm that keeps to
/// [`fcdcc_peers::numbers::TOLERANCE`] saves more multiplications than Winograd's F(4x4, 3x3).
const BEYOND: f64 = 4.0;

/// One layer's outcomes.
pub(crate) struct Row {
    pub(crate) layer: Layer,
    pub(crate) outcomes: Vec<Outcome>,
}

/// Outcomes of the same kind.
pub(crate) struct Table {
    pub(crate) title: String,
    /// For programs: where and how it was measured.
    pub(crate) key: Value,
    pub(crate) engines: Vec<String>,
    pub(crate) ceilings: Ceilings,
    pub(crate) rows: Vec<Row>,
    pub(crate) demands: Vec<Demand>,
}

/// What a ratio against a peer must be over the layers of the networks.
#[derive(Clone, Debug)]
pub(crate) struct Demand {
    pub(crate) peer: &'static str,
    pub(crate) mean: f64,
    pub(crate) least: Option<f64>,
}

/// The ratios against one peer over the layers of one set.
struct Ratios<'a>(Vec<(f64, &'a str)>);

impl Ratios<'_> {
    fn mean(&self) -> Option<f64> {
        geometric_mean(&self.0.iter().map(|(ratio, _)| *ratio).collect::<Vec<_>>())
    }

    fn least(&self) -> Option<(f64, &str)> {
        self.0.iter().copied().min_by(|a, b| a.0.total_cmp(&b.0))
    }
}

impl Table {
    /// Adds a layer's outcomes, without times that cannot be.
    pub(crate) fn push(&mut self, layer: &Layer, mut outcomes: Vec<Outcome>) {
        for outcome in &mut outcomes {
            let rate = outcome.seconds().map_or(0.0, |seconds| layer.flops() / seconds);
            if rate > BEYOND * self.ceilings.peak {
                let times = rate / self.ceilings.peak;
                *outcome = Outcome::Missing(format!("{times:.0} times the peak is no measurement"));
            }
        }
        self.rows.push(Row { layer: layer.clone(), outcomes });
    }

    fn ratios(&self, peer: usize, set: Set) -> Ratios<'_> {
        let rows = self.rows.iter().filter(|row| row.layer.set == set);
        let ratio = |row: &Row| row.outcomes[OURS].ratio(&row.outcomes[peer]);
        Ratios(rows.filter_map(|row| Some((ratio(row)?, row.layer.name.as_str()))).collect())
    }

    /// The share of the attainable rate that an engine reaches on a layer.
    fn share(&self, row: &Row, engine: usize) -> Option<f64> {
        Some(row.layer.flops() / row.outcomes[engine].seconds()? / self.ceilings.bound(&row.layer))
    }

    fn header(&self) -> Vec<String> {
        let mut header = ["layer", "GFLOP", "FLOP/byte", "bound"].map(str::to_owned).to_vec();
        header.extend([self.engines[OURS].clone(), "of bound".to_owned()]);
        for engine in &self.engines[OURS + 1..] {
            header.extend([engine.clone(), "ratio".to_owned()]);
        }
        header
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let (layer, bound) = (&row.layer, self.ceilings.bound(&row.layer));
        let rate =
            |engine: usize| row.outcomes[engine].seconds().map(|seconds| layer.flops() / seconds / 1e9);
        let text = |number: Option<f64>, digits: usize| {
            number.map_or_else(|| "-".to_owned(), |number| format!("{number:.digits$}"))
        };
        let mut cells = vec![
            layer.name.clone(),
            format!("{:.4}", layer.flops() / 1e9),
            format!("{:.1}", layer.intensity()),
            format!("{:.0}", bound / 1e9),
            text(rate(OURS), 1),
            text(self.share(row, OURS), 2),
        ];
        for engine in OURS + 1..self.engines.len() {
            cells.push(text(rate(engine), 1));
            cells.push(text(row.outcomes[OURS].ratio(&row.outcomes[engine]), 2));
        }
        cells
    }

    /// The table as text; `markdown` with bars, else in columns.
    pub(crate) fn text(&self, markdown: bool) -> String {
        let mut out = String::new();
        let mark = if markdown { "### " } else { "== " };
        let _ = writeln!(out, "\n{mark}{}\n", self.title);
        let _ = writeln!(out, "{}\n", self.ceilings_text());
        let mut lines = vec![self.header()];
        lines.extend(self.rows.iter().map(|row| self.cells(row)));
        let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
        let widths: Vec<_> = (0..lines[0].len()).map(width).collect();
        for (number, line) in lines.iter().enumerate() {
            let padded = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            let padded: Vec<_> = padded.collect();
            if markdown {
                let _ = writeln!(out, "| {} |", padded.join(" | "));
                if number == 0 {
                    let _ = writeln!(out, "|{}", "---|".repeat(line.len()));
                }
            } else {
                let _ = writeln!(out, "{}", padded.join("  "));
            }
        }
        let bullet = if markdown { "- " } else { "  " };
        out.push('\n');
        for line in self.summary() {
            let _ = writeln!(out, "{bullet}{line}");
        }
        for reason in self.reasons() {
            let _ = writeln!(out, "{bullet}{reason}");
        }
        out
    }

    fn ceilings_text(&self) -> String {
        let bandwidths = self.ceilings.bandwidth.iter().map(|(set, rate)| {
            let size =
                if *set < 1 << 20 { format!("{} KiB", set >> 10) } else { format!("{} MiB", set >> 20) };
            format!("{:.0} GB/s in {size}", rate / 1e9)
        });
        let bandwidths = bandwidths.collect::<Vec<_>>().join(", ");
        format!("Rates in GFLOP/s. Ceilings: {:.0} GFLOP/s; {bandwidths}.", self.ceilings.peak / 1e9)
    }

    /// Means and minima against each peer, and our share of the bound in each class of layers.
    fn summary(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.rows.is_empty() {
            return lines;
        }
        for (peer, name) in self.engines.iter().enumerate().skip(OURS + 1) {
            for (set, what) in [(Set::Net, "VGG-16 and ResNet-50"), (Set::Extra, "depthwise and LeNet-5")] {
                let ratios = self.ratios(peer, set);
                if let (Some(mean), Some((least, layer))) = (ratios.mean(), ratios.least()) {
                    let count = ratios.0.len();
                    lines.push(format!(
                        "against {name}, {what} ({count} layers): geometric mean {mean:.2}, least {least:.2} ({layer})"
                    ));
                }
            }
        }
        let mut classes: Vec<(&str, Vec<f64>)> = Vec::new();
        for row in &self.rows {
            let (class, Some(share)) = (row.layer.class(), self.share(row, OURS)) else { continue };
            match classes.iter_mut().find(|(name, _)| *name == class) {
                Some((_, shares)) => shares.push(share),
                None => classes.push((class, vec![share])),
            }
        }
        let shares: Vec<_> = classes
            .iter()
            .filter_map(|(class, shares)| Some(format!("{class} {:.2}", geometric_mean(shares)?)))
            .collect();
        lines.push(format!("share of the bound, geometric means: {}", shares.join(", ")));
        let errors = self.rows.iter().flat_map(|row| &row.outcomes).filter_map(|outcome| match outcome {
            Outcome::Timed(timed) => Some(timed.error),
            Outcome::Missing(_) => None,
        });
        let worst = errors.fold(0.0, f64::max);
        lines.push(format!("every result checked against f64; largest relative L2 error {worst:.1e}"));
        lines
    }

    /// Why an engine has no result, each reason once.
    fn reasons(&self) -> Vec<String> {
        let mut reasons: Vec<(String, usize)> = Vec::new();
        for row in &self.rows {
            for (outcome, engine) in row.outcomes.iter().zip(&self.engines) {
                let Outcome::Missing(why) = outcome else { continue };
                let reason = format!("{engine}: {why}");
                match reasons.iter_mut().find(|(known, _)| *known == reason) {
                    Some((_, count)) => *count += 1,
                    None => reasons.push((reason, 1)),
                }
            }
        }
        let text = |(reason, count)| format!("no result on {count} layers, {reason}");
        reasons.into_iter().map(text).collect()
    }

    pub(crate) fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let engines: serde_json::Map<_, _> = (0..self.engines.len())
                .map(|engine| {
                    let value = match &row.outcomes[engine] {
                        Outcome::Missing(why) => json!({ "missing": why }),
                        Outcome::Timed(timed) => json!({
                            "error": timed.error,
                            "note": timed.note,
                            "ours_to_this": row.outcomes[OURS].ratio(&row.outcomes[engine]),
                            "seconds": row.outcomes[engine].seconds(),
                            "rounds": timed.rounds,
                            "share_of_bound": self.share(row, engine),
                        }),
                    };
                    (self.engines[engine].clone(), value)
                })
                .collect();
            json!({
                "layer": row.layer.name,
                "flop": row.layer.flops(),
                "bytes": row.layer.bytes(),
                "bound_flops": self.ceilings.bound(&row.layer),
                "engines": engines,
            })
        });
        json!({
            "measured": self.key,
            "peak_flops": self.ceilings.peak,
            "bandwidth": self.ceilings.bandwidth,
            "layers": rows.collect::<Vec<_>>(),
            "checks": self.checks().iter().map(|(what, ok)| json!({ "what": what, "ok": ok })).collect::<Vec<_>>(),
        })
    }

    /// Each demand, and whether it is met; a peer without results fails, and so do layers of ours without.
    pub(crate) fn checks(&self) -> Vec<(String, bool)> {
        let mut checks = Vec::new();
        for demand in &self.demands {
            let Some(peer) = self.engines.iter().position(|name| name == demand.peer) else { continue };
            let ratios = self.ratios(peer, Set::Net);
            let asked = self.rows.iter().filter(|row| row.layer.set == Set::Net).count();
            let what = format!("{} against {}", self.title, demand.peer);
            if asked == 0 {
                continue;
            }
            checks.push((
                format!("{what}: {} of {asked} layers measured", ratios.0.len()),
                ratios.0.len() == asked,
            ));
            if let Some(mean) = ratios.mean() {
                let ok = mean >= demand.mean;
                checks.push((format!("{what}: geometric mean {mean:.2}, at least {:.2}", demand.mean), ok));
            }
            if let (Some((least, layer)), Some(floor)) = (ratios.least(), demand.least) {
                checks.push((
                    format!("{what}: least {least:.2} ({layer}), at least {floor:.2}"),
                    least >= floor,
                ));
            }
        }
        checks
    }
}
