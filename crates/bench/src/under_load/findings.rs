//! What a study under load found, as sentences.
//!
//! Invariant: a sentence says that coding wins or loses only where the runs agree on it.

use super::results::{Cell, LoadStudy, Map, MethodLatencies, ModelStudy, Point, SCHEMA, State, best};
use super::spec::{LoadMethod, LoadSpec};
use crate::format::{number, percent, rough, time};
use crate::schema::Environment;

impl LoadStudy {
    /// The study of `spec` with these results.
    #[must_use]
    pub fn new(setting: Environment, spec: LoadSpec, models: Vec<ModelStudy>, maps: Vec<Map>) -> Self {
        let mut findings: Vec<String> = Vec::new();
        for model in &models {
            for point in &model.points {
                findings.extend(found(model, point));
            }
            findings.extend(saturated(model));
        }
        findings.extend(maps.iter().map(over_map));
        Self { schema: SCHEMA, kind: "under-load".to_owned(), setting, spec, models, maps, findings }
    }
}

/// A method with the quantile at which it hedges.
#[must_use]
pub fn named(method: &MethodLatencies) -> String {
    match method.hedge {
        None => method.method.name().to_owned(),
        Some(quantile) => format!("{} at p{}", method.method.name(), number(quantile * 100.0)),
    }
}

/// Whether every run of `better` has a lower 99th percentile than every run of `worse`.
fn clearly(better: &MethodLatencies, worse: &MethodLatencies) -> bool {
    matches!((better.p99_of_runs, worse.p99_of_runs), (Some([_, high]), Some([low, _])) if high < low)
}

fn found(model: &ModelStudy, point: &Point) -> Option<String> {
    let coded = best(&point.methods, MethodLatencies::codes);
    let plain = best(&point.methods, |method| !method.codes());
    let at = format!("{} at {} of the capacity", model.model, percent(point.load));
    let (coded, plain) = match (coded, plain) {
        (Some(coded), Some(plain)) => (coded, plain),
        (Some(coded), None) => {
            return Some(format!("{at}: no method without coding keeps up; the best is {}.", named(coded)));
        }
        (None, Some(plain)) => {
            return Some(format!("{at}: no method with coding keeps up; the best is {}.", named(plain)));
        }
        (None, None) => return None,
    };
    let (with, without) = (coded.p99?, plain.p99?);
    let [with_text, without_text] = [with, without].map(time);
    let sentence = if !clearly(coded, plain) && !clearly(plain, coded) {
        format!(
            "no clear difference between {} ({with_text}) and {} ({without_text})",
            named(coded),
            named(plain)
        )
    } else if with < without {
        format!(
            "coding wins: {} has a 99th percentile of {with_text}, {} has {without_text}, {} times as much",
            named(coded),
            named(plain),
            rough(without / with)
        )
    } else {
        format!(
            "coding loses: {} has a 99th percentile of {with_text}, {} has {without_text}, {} times less",
            named(coded),
            named(plain),
            rough(with / without)
        )
    };
    let hedged = [LoadMethod::ReplicasHedged, LoadMethod::UncodedHedged].map(|method| {
        let other = point.methods.iter().find(|of| of.method == method)?.p99?;
        Some(other / with)
    });
    let beside = match hedged {
        [Some(replicas), Some(uncoded)] if replicas >= 1.5 && uncoded >= 1.5 => format!(
            " It beats hedged replicas {} times and hedged uncoded splitting {} times.",
            rough(replicas),
            rough(uncoded)
        ),
        _ => String::new(),
    };
    Some(format!("{at}: {sentence}.{beside}"))
}

/// From which load on each method is saturated.
fn saturated(model: &ModelStudy) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    for method in model.points.first()?.methods.iter().map(|of| of.method) {
        let state = |point: &&Point| {
            point.methods.iter().any(|of| of.method == method && of.state == State::Saturated)
        };
        let loads = model.points.iter().filter(state).map(|point| point.load);
        let least = loads.fold(f64::INFINITY, f64::min);
        if least.is_finite() {
            parts.push(format!("{} at {}", method.name(), percent(least)));
        }
    }
    (!parts.is_empty()).then(|| {
        format!("{}: the least load at which each method is saturated: {}.", model.model, parts.join(", "))
    })
}

/// Whether coding clearly wins in a cell, or clearly loses.
#[must_use]
pub fn verdict(cell: &Cell) -> Option<bool> {
    let coded = best(&cell.methods, MethodLatencies::codes);
    let plain = best(&cell.methods, |method| !method.codes());
    match (coded, plain) {
        (Some(coded), Some(plain)) if clearly(coded, plain) => Some(true),
        (Some(coded), Some(plain)) if clearly(plain, coded) => Some(false),
        (Some(_), Some(_)) | (None, None) => None,
        (coded, _) => Some(coded.is_some()),
    }
}

fn over_map(map: &Map) -> String {
    let wins = map.cells.iter().filter(|cell| verdict(cell) == Some(true)).count();
    let losses = map.cells.iter().filter(|cell| verdict(cell) == Some(false)).count();
    let gains = || map.cells.iter().filter_map(|cell| Some((cell.coding_gain?, cell)));
    let most = gains().max_by(|a, b| a.0.total_cmp(&b.0));
    let least = gains().min_by(|a, b| a.0.total_cmp(&b.0));
    let place = |(gain, cell): (f64, &Cell)| {
        format!(
            "{} at {} multiply-adds a byte and a delay of {} times the service time",
            rough(gain),
            number(cell.macs_per_byte),
            number(cell.delay_ratio)
        )
    };
    format!(
        "{}, map at {} of the capacity: coding clearly wins in {wins} of {} cells and clearly loses in {losses}. The least \
         99th percentile without coding over the least with coding is {} at most and {} at least.",
        map.model,
        percent(map.load),
        map.cells.len(),
        most.map_or_else(|| "unknown".to_owned(), place),
        least.map_or_else(|| "unknown".to_owned(), place)
    )
}
