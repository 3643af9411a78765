//! Results of whole models as tables, JSON and checks.

use std::fmt::Write as _;

use fcdcc_peers::numbers::geometric_mean;
use serde_json::{Value, json};

use crate::compare::{Outcome, Turn};
use crate::engines::{Kind, THRESHOLD, WORKERS};

/// Largest geometric mean of an uncoded run's time over onnxruntime's with as many threads.
const UNCODED_MEAN: f64 = 1.5;
/// Largest such ratio of a single model.
const UNCODED_MOST: f64 = 2.5;
/// Largest geometric mean of a coded run's processor time over n/delta times onnxruntime's on one thread.
const CODED_MEAN: f64 = 1.5;
/// Largest share of the master of [`SHARE_OF`] in onnxruntime's time on one thread.
const SHARE_MOST: f64 = 0.35;
const SHARE_OF: &str = "resnet50";

/// The outcomes of one model.
pub(crate) struct Row {
    pub(crate) model: String,
    pub(crate) convolutions: usize,
    /// Whether thresholds apply to it.
    pub(crate) judged: bool,
    /// In the order of [`Kind::ALL`].
    pub(crate) outcomes: Vec<Outcome>,
}

impl Row {
    fn of(&self, kind: Kind) -> &Outcome {
        &self.outcomes[kind.index()]
    }

    /// Milliseconds of a run.
    fn milliseconds(&self, kind: Kind) -> Option<f64> {
        Some(self.of(kind).median(|turn| Some(turn.wall))? * 1e3)
    }

    /// Time over onnxruntime's with as many threads.
    fn ratio(&self, kind: Kind) -> Option<f64> {
        let wall = |turn: &Turn| Some(turn.wall);
        self.of(kind).ratio(wall, self.of(Kind::Onnxruntime), wall)
    }

    /// Processor time over onnxruntime's on one thread.
    fn processor(&self, kind: Kind) -> Option<f64> {
        let processor = |turn: &Turn| turn.processor;
        self.of(kind).ratio(processor, self.of(Kind::Onnxruntime1), processor)
    }

    /// The coded run's encoding, decoding and host time over onnxruntime's time on one thread.
    fn share(&self) -> Option<f64> {
        self.of(Kind::Coded).ratio(|turn| turn.master, self.of(Kind::Onnxruntime1), |turn| Some(turn.wall))
    }

    fn peak_mib(&self, kind: Kind) -> Option<f64> {
        match self.of(kind) {
            Outcome::Missing(_) => None,
            Outcome::Timed(timed) => Some(timed.peak_bytes? as f64 / f64::from(1 << 20)),
        }
    }
}

/// All results.
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    /// Number of models that were asked for and that thresholds apply to.
    pub(crate) asked: usize,
}

/// A table: its title, what its columns are, and its lines.
struct Table {
    title: &'static str,
    header: Vec<String>,
    lines: Vec<Vec<String>>,
}

impl Table {
    fn text(&self, markdown: bool) -> String {
        let mut out = format!("\n{}{}\n\n", if markdown { "### " } else { "== " }, self.title);
        let lines: Vec<_> = std::iter::once(&self.header).chain(&self.lines).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
        let widths: Vec<_> = (0..self.header.len()).map(width).collect();
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
        out
    }
}

/// A number with three significant digits where it is small, or a dash.
fn cell(number: Option<f64>) -> String {
    number.map_or_else(
        || "-".to_owned(),
        |number| {
            let digits = if number < 10.0 { 2 } else { usize::from(number < 100.0) };
            format!("{number:.digits$}")
        },
    )
}

impl Report {
    /// Time: milliseconds, and the ratio to onnxruntime.
    fn times(&self) -> Table {
        let compared = [Kind::Tract, Kind::Coded, Kind::Uncoded, Kind::Local];
        let mut header = vec!["model".to_owned(), "Conv".to_owned()];
        header.extend([Kind::Onnxruntime, Kind::Onnxruntime1].map(|kind| kind.name().to_owned()));
        header.extend(compared.iter().flat_map(|kind| [kind.name().to_owned(), "ratio".to_owned()]));
        let line = |row: &Row| {
            let mut line = vec![row.model.clone(), row.convolutions.to_string()];
            line.extend([Kind::Onnxruntime, Kind::Onnxruntime1].map(|kind| cell(row.milliseconds(kind))));
            line.extend(
                compared.iter().flat_map(|&kind| [cell(row.milliseconds(kind)), cell(row.ratio(kind))]),
            );
            line
        };
        let title =
            "Milliseconds of a run; ratio: time over onnxruntime's with as many threads (below 1: faster)";
        Table { title, header, lines: self.rows.iter().map(line).collect() }
    }

    /// Processor time, the master's share, memory.
    fn costs(&self) -> Table {
        let timed = [Kind::Onnxruntime, Kind::Tract, Kind::Coded, Kind::Uncoded, Kind::Local];
        let mut header = vec!["model".to_owned()];
        header.extend(timed.iter().map(|kind| format!("{} CPU", kind.name())));
        header.extend(["master ms".to_owned(), "share".to_owned()]);
        header.extend(timed.iter().map(|kind| format!("{} MiB", kind.name())));
        let line = |row: &Row| {
            let mut line = vec![row.model.clone()];
            line.extend(timed.iter().map(|&kind| cell(row.processor(kind))));
            let master = row.of(Kind::Coded).median(|turn| turn.master);
            line.extend([cell(master.map(|seconds| seconds * 1e3)), cell(row.share())]);
            line.extend(timed.iter().map(|&kind| cell(row.peak_mib(kind))));
            line
        };
        let title = "Processor time over onnxruntime's on one thread; the coded run's encoding, decoding and host time, \
                     and its share of onnxruntime's time on one thread; peak resident memory while running";
        Table { title, header, lines: self.rows.iter().map(line).collect() }
    }

    pub(crate) fn text(&self, markdown: bool) -> String {
        let mut out = self.times().text(markdown) + &self.costs().text(markdown) + "\n";
        let bullet = if markdown { "- " } else { "  " };
        for line in self.summary().into_iter().chain(self.reasons()) {
            let _ = writeln!(out, "{bullet}{line}");
        }
        out
    }

    /// A figure of every judged model that has it.
    fn figures(&self, figure: impl Fn(&Row) -> Option<f64>) -> Vec<(f64, &str)> {
        let judged = self.rows.iter().filter(|row| row.judged);
        judged.filter_map(|row| Some((figure(row)?, row.model.as_str()))).collect()
    }

    fn mean(&self, figure: impl Fn(&Row) -> Option<f64>) -> Option<f64> {
        geometric_mean(&self.figures(figure).iter().map(|(number, _)| *number).collect::<Vec<_>>())
    }

    fn summary(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for kind in [Kind::Tract, Kind::Coded, Kind::Uncoded, Kind::Local] {
            let figures = (self.mean(|row| row.ratio(kind)), self.mean(|row| row.processor(kind)));
            if let (Some(time), Some(processor)) = figures {
                let count = self.figures(|row| row.ratio(kind)).len();
                lines.push(format!(
                    "{} ({count} models): {time:.2} times onnxruntime's time, {processor:.2} times its processor time on \
                     one thread (geometric means)",
                    kind.name()
                ));
            }
        }
        let timed = self.rows.iter().flat_map(|row| &row.outcomes).filter_map(|outcome| match outcome {
            Outcome::Missing(_) => None,
            Outcome::Timed(timed) => Some(timed.error),
        });
        let worst = timed.fold(0.0, f64::max);
        lines
            .push(format!("every result compared with onnxruntime's; largest relative L2 error {worst:.1e}"));
        lines
    }

    /// Why an engine has no result.
    fn reasons(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for row in &self.rows {
            for (kind, outcome) in Kind::ALL.iter().zip(&row.outcomes) {
                if let Outcome::Missing(why) = outcome {
                    lines.push(format!("no result of {} on {}: {why}", kind.name(), row.model));
                }
            }
        }
        lines
    }

    pub(crate) fn json(&self) -> Value {
        let engine = |row: &Row, kind: Kind| match row.of(kind) {
            Outcome::Missing(why) => json!({ "missing": why }),
            Outcome::Timed(timed) => json!({
                "note": timed.note,
                "error": timed.error,
                "milliseconds": row.milliseconds(kind),
                "to_onnxruntime": row.ratio(kind),
                "processor_to_one_thread": row.processor(kind),
                "peak_bytes": timed.peak_bytes,
                "wall_seconds": timed.turns.iter().map(|turn| turn.wall).collect::<Vec<_>>(),
                "processor_seconds": timed.turns.iter().map(|turn| turn.processor).collect::<Vec<_>>(),
                "master_seconds": timed.turns.iter().map(|turn| turn.master).collect::<Vec<_>>(),
            }),
        };
        let rows = self.rows.iter().map(|row| {
            let engines = Kind::ALL.iter().map(|&kind| (kind.name().to_owned(), engine(row, kind)));
            json!({
                "model": row.model,
                "convolutions": row.convolutions,
                "judged": row.judged,
                "master_share": row.share(),
                "engines": engines.collect::<serde_json::Map<_, _>>(),
            })
        });
        let checks = self.checks().into_iter().map(|(what, ok)| json!({ "what": what, "ok": ok }));
        json!({ "models": rows.collect::<Vec<_>>(), "checks": checks.collect::<Vec<_>>() })
    }

    /// Each threshold, and whether it is met. A judged model without a figure fails; tract may lack results.
    pub(crate) fn checks(&self) -> Vec<(String, bool)> {
        let work = WORKERS as f64 / THRESHOLD as f64;
        let coded = |row: &Row| Some(row.processor(Kind::Coded)? / work);
        let uncoded = |row: &Row| row.ratio(Kind::Uncoded);
        let complete = |row: &Row| uncoded(row).and(coded(row)).and(row.share()).and(row.ratio(Kind::Local));
        let mut checks = Vec::new();
        if self.asked == 0 {
            return checks;
        }
        let measured = self.figures(complete).len();
        checks.push((format!("{measured} of {} models measured", self.asked), measured == self.asked));
        let mut at_most = |what: &str, number: Option<f64>, most: f64| {
            let text = number.map_or_else(|| "not measured".to_owned(), |number| format!("{number:.2}"));
            checks.push((
                format!("{what}: {text}, at most {most:.2}"),
                number.is_some_and(|number| number <= most),
            ));
        };
        at_most("uncoded time over onnxruntime's, geometric mean", self.mean(uncoded), UNCODED_MEAN);
        let largest = self.figures(uncoded).into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
        let name = largest.map_or("none", |(_, name)| name);
        at_most(
            &format!("uncoded time over onnxruntime's, largest ({name})"),
            largest.map(|(number, _)| number),
            UNCODED_MOST,
        );
        let what =
            format!("coded processor time over {work:.2} x onnxruntime's on one thread, geometric mean");
        at_most(&what, self.mean(coded), CODED_MEAN);
        if let Some(row) = self.rows.iter().find(|row| row.model == SHARE_OF) {
            at_most(
                &format!("master's share of {SHARE_OF} in onnxruntime's time on one thread"),
                row.share(),
                SHARE_MOST,
            );
        }
        checks
    }
}
