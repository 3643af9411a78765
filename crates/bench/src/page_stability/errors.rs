//! The section on errors of decoded convolutions.
//!
//! Invariant: as in [the module](super).

use super::{color, epsilon, head, section};
use crate::chart::{Chart, Kind, Series};
use crate::format::number;
use crate::page::{Block, Cell, Class, Section, Table};
use crate::stability_record::{CodingError, StabilityReport};
use crate::stats::{median, quantile};

/// Errors of one (n, delta) in one precision.
struct Group<'a> {
    n: usize,
    delta: usize,
    dtype: &'a str,
    errors: Vec<&'a CodingError>,
}

fn groups(report: &StabilityReport) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for error in &report.errors {
        let (n, delta, dtype) = (error.n, error.recovery_threshold, &*error.dtype);
        match groups.iter_mut().find(|g| (g.n, g.delta, g.dtype) == (n, delta, dtype)) {
            Some(group) => group.errors.push(error),
            None => groups.push(Group { n, delta, dtype, errors: vec![error] }),
        }
    }
    groups
}

fn distinct<'a>(values: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

impl Group<'_> {
    fn name(&self) -> String {
        format!("n = {}, δ = {}, {}", self.n, self.delta, self.dtype)
    }

    fn of<'s>(&'s self, layer: &str, code: &str, set: &str) -> impl Iterator<Item = &'s CodingError> {
        let wanted = |e: &&&CodingError| e.layer == layer && e.code == code && e.set == set;
        self.errors.iter().filter(wanted).copied().collect::<Vec<_>>().into_iter()
    }

    fn chart(&self) -> Chart {
        let conditions = self.errors.iter().map(|e| e.condition).filter(|c| c.is_finite());
        let most = conditions.fold(10.0, f64::max);
        let rule = [1.0, most].map(|c| (c, c * epsilon(self.dtype))).into();
        let mut series =
            vec![Series { label: "condition × ε".to_owned(), points: rule, ..Series::default() }];
        for code in distinct(self.errors.iter().map(|e| &*e.code)) {
            let points = self.errors.iter().filter(|e| e.code == code).map(|e| (e.condition, e.relative_l2));
            let (points, kind) = (points.collect(), Kind::Markers);
            series.push(Series {
                label: code.to_owned(),
                points,
                kind,
                color: color(code),
                ..Series::default()
            });
        }
        Chart {
            title: self.name(),
            x_label: "condition number of the responder set".to_owned(),
            y_label: "relative L2 error of the layer".to_owned(),
            x_log: true,
            y_log: true,
            series,
            ..Chart::default()
        }
    }

    fn table(&self) -> Table {
        let codes = distinct(self.errors.iter().map(|e| &*e.code));
        let row = |layer: &&str| {
            let median = |code: &str| self.of(layer, code, "median").next();
            let best =
                codes.iter().filter_map(|code| median(code)).map(|e| e.mse).fold(f64::INFINITY, f64::min);
            let cell = |code: &&str| match (median(code), self.of(layer, code, "worst").next()) {
                (Some(middle), Some(worst)) => {
                    let class = if middle.mse == best { Class::Best } else { Class::Plain };
                    Cell::new(format!("{}\nworst {}", number(middle.mse), number(worst.mse)), class)
                }
                _ => match self.of(layer, code, "all").next() {
                    Some(plain) => Cell::new(number(plain.mse), Class::Muted),
                    None => Cell::new("–", Class::Muted),
                },
            };
            std::iter::once(Cell::from(*layer)).chain(codes.iter().map(cell)).collect()
        };
        Table {
            caption: format!("Mean squared error, {}: median responder set, below it the worst", self.name()),
            head: head(&[&["layer"], &codes[..]].concat()),
            rows: distinct(self.errors.iter().map(|e| &*e.layer)).iter().map(row).collect(),
        }
    }

    fn details(&self) -> Table {
        let mut rows = Vec::new();
        for layer in distinct(self.errors.iter().map(|e| &*e.layer)) {
            rows.push(vec![Cell::from(layer)]);
            for code in distinct(self.errors.iter().map(|e| &*e.code)) {
                for set in ["all", "median", "worst"] {
                    rows.extend(self.of(layer, code, set).map(|e| {
                        let figures = [e.condition, e.mse, e.relative_l2, e.bound].map(number);
                        detail(code, e, set.to_owned(), figures)
                    }));
                }
                let random: Vec<&CodingError> = self.of(layer, code, "random").collect();
                let Some(first) = random.first() else { continue };
                let figures = [
                    |e: &CodingError| e.condition,
                    |e: &CodingError| e.mse,
                    |e: &CodingError| e.relative_l2,
                    |e: &CodingError| e.bound,
                ]
                .map(|of| {
                    let mut values: Vec<f64> = random.iter().map(|e| of(e)).collect();
                    values.sort_by(f64::total_cmp);
                    format!("{}\nup to {}", number(median(&values)), number(quantile(&values, 1.0)))
                });
                rows.push(detail(code, first, format!("{} random ones", random.len()), figures));
            }
        }
        let names = ["code", "k_A, k_B", "responders", "condition", "MSE", "relative L2", "bound"];
        Table { caption: String::new(), head: head(&names), rows }
    }
}

fn detail(code: &str, of: &CodingError, set: String, figures: [String; 4]) -> Vec<Cell> {
    let first = [code.to_owned(), format!("{}, {}", of.k_a, of.k_b), set];
    first.into_iter().chain(figures).map(Cell::from).collect()
}

pub(super) fn section_of(report: &StabilityReport) -> Option<Section> {
    let groups = groups(report);
    if groups.is_empty() {
        return None;
    }
    let mut blocks = vec![Block::Figures(groups.iter().map(|g| (g.chart().svg(), String::new())).collect())];
    for group in &groups {
        blocks.push(Block::Table(group.table()));
    }
    for group in &groups {
        let summary = format!("Every figure of {}", group.name());
        blocks.push(Block::Details { summary, blocks: vec![Block::Table(group.details())] });
    }
    Some(section(
        "errors",
        "Errors of convolutions",
        &[
            "Unit-normal input and filters are encoded, all n subtasks computed with the CPU kernel that workers use, and the \
             output decoded from the responder sets whose condition number is the median and the worst one of the tables \
             above, and from random ones. Errors are against the uncoded convolution of the same numbers in f64. An output of \
             such a layer has a variance of about the number of terms of its sums, which is what mean squared errors compare \
             with; relative errors need no such scale.",
            "Each point of a picture is one decoded layer. The column “uncoded” is the same convolution in f32 without a code: \
             the rounding that no code can avoid.",
        ],
        blocks,
    ))
}
