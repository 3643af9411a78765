//! The findings of a stability study as sentences. The families are ranked by the data, whichever is best.

use super::findings::listed as list;
use super::format::{number, thousands};
use super::schema::Conditions;
use super::stability_record::{CodingError, StabilityReport, Sweep, USABLE};
use super::stats::median;

/// The n up to which every point of a sweep is usable in a given precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The last usable n; 0 if the first point is not usable.
    pub n: usize,
    /// Whether this is the end of the sweep.
    pub whole: bool,
}

/// A condition number as reports show it; beyond the limit of rounding, only as a bound.
#[must_use]
pub fn condition(value: f64) -> String {
    match value {
        value if value > 1e15 => ">10¹⁵".to_owned(),
        // Four digits if they are as easily read as three.
        value if (1e3..9999.5).contains(&value) => thousands(&format!("{value:.0}")),
        value => number(value),
    }
}

/// The n up to which the worst condition number times `epsilon` stays below [`USABLE`].
#[must_use]
pub fn reach(sweep: &Sweep, code: &str, epsilon: f64) -> Reach {
    let points: Vec<&Conditions> = sweep.points.iter().filter(|point| point.code == code).collect();
    let good = points.iter().take_while(|point| point.worst * epsilon <= USABLE).count();
    Reach { n: good.checked_sub(1).map_or(0, |last| points[last].n), whole: good == points.len() }
}

/// The codes of a sweep, in order.
#[must_use]
pub fn codes(sweep: &Sweep) -> Vec<&str> {
    let mut codes: Vec<&str> = sweep.points.iter().map(|point| &*point.code).collect();
    codes.dedup();
    codes
}

/// The main findings.
#[must_use]
pub fn findings(report: &StabilityReport) -> Vec<String> {
    let mut all = Vec::new();
    all.extend(worst_sets(report));
    all.extend(reaches(report));
    all.extend(errors(report));
    all.extend(bounds(report));
    all.extend(waiting(report));
    all.extend(hosts(report));
    all.extend(beaten(report));
    all.extend(beaten_in_the_median(report));
    all
}

/// The finding from the table that the paper's claim is about, or from the first table.
fn worst_sets(report: &StabilityReport) -> Option<String> {
    let table = report.tables.iter().find(|t| t.label == "n = 20, delta = 16").or(report.tables.first())?;
    let mixing = table.rows.iter().filter(|row| row.code != "replication" && row.code != "uncoded");
    let said: Vec<String> = mixing
        .map(|row| format!("{} with {} (median {})", condition(row.worst), row.code, condition(row.median)))
        .collect();
    let which = if table.rows.iter().all(|row| row.exhaustive) { "" } else { " seen" };
    (!said.is_empty()).then(|| {
        format!("{}: the worst responder set{which} has condition number {}.", table.label, list(&said))
    })
}

fn reaches(report: &StabilityReport) -> Option<String> {
    let sweep = report.sweep.last()?;
    let of = |epsilon: f64| {
        let each = codes(sweep).into_iter().map(|code| match reach(sweep, code, epsilon) {
            Reach { n: 0, .. } => format!("nowhere with {code}"),
            Reach { n, whole: true } => format!("at every n (up to {n}) with {code}"),
            Reach { n, .. } => format!("up to n = {n} with {code}"),
        });
        list(&each.collect::<Vec<_>>())
    };
    let (single, double) = (of(f32::EPSILON.into()), of(f64::EPSILON));
    Some(format!(
        "Where {} and the worst responders answer, three digits (condition number times machine epsilon below 0.001) are \
         left in f32 {single}; in f64 {double}.",
        sweep.label
    ))
}

/// The errors of every code: the least and the greatest mean squared error from its median responder set, and the
/// greatest from its worst one.
fn errors(report: &StabilityReport) -> Option<String> {
    let first = report.errors.first()?;
    let (n, delta) = (first.n, first.recovery_threshold);
    let here = || report.errors.iter().filter(|e| (e.n, e.recovery_threshold) == (n, delta));
    let mut codes: Vec<&str> = Vec::new();
    for error in here().filter(|e| e.set == "median") {
        if !codes.contains(&&*error.code) {
            codes.push(&error.code);
        }
    }
    let of_dtype = |dtype: &str| {
        let each = codes.iter().filter_map(|code| {
            let of = |set: &'static str| {
                here().filter(move |e| e.dtype == dtype && e.code == **code && e.set == set).map(|e| e.mse)
            };
            let (low, high) = (of("median").reduce(f64::min)?, of("median").reduce(f64::max)?);
            let worst = of("worst").fold(0.0, f64::max);
            Some(format!("{} to {} ({}) with {code}", number(low), number(high), number(worst)))
        });
        let each: Vec<String> = each.collect();
        (!each.is_empty()).then(|| format!("in {dtype} {}", list(&each)))
    };
    let parts: Vec<String> = ["f64", "f32"].into_iter().filter_map(of_dtype).collect();
    (!parts.is_empty()).then(|| {
        format!(
            "Convolutions decoded from the median responder set (in brackets: from the worst) at n = {n}, delta = {delta} \
             have mean squared errors {}.",
            parts.join("; ")
        )
    })
}

fn bounds(report: &StabilityReport) -> Option<String> {
    let decoded: Vec<&CodingError> =
        report.errors.iter().filter(|e| e.code != "uncoded" && e.relative_l2.is_finite()).collect();
    let over = decoded.iter().filter(|e| e.relative_l2 > e.bound).count();
    let room: Vec<f64> = decoded.iter().map(|e| e.bound / e.relative_l2).filter(|r| r.is_finite()).collect();
    (!decoded.is_empty()).then(|| {
        let kept = match over {
            0 => format!("All {} decoded outputs stay below", decoded.len()),
            over => format!("{over} of {} decoded outputs exceed", decoded.len()),
        };
        format!(
            "{kept} the error bound that a run reports; the bound is {} times the error in the median.",
            number(median(&room))
        )
    })
}

fn waiting(report: &StabilityReport) -> Option<String> {
    let crme: Vec<_> = report.responders.iter().filter(|w| w.conditions.code == "crme").collect();
    let [first, rest @ ..] = crme.as_slice() else { return None };
    let steps: Vec<String> =
        rest.iter().map(|w| format!("{} with {}", condition(w.conditions.worst), w.responders)).collect();
    (!steps.is_empty()).then(|| {
        format!(
            "Waiting for more than delta = {} of n = {} pays with crme: the worst condition number seen falls from {} to {}.",
            first.conditions.recovery_threshold,
            first.conditions.n,
            condition(first.conditions.worst),
            list(&steps)
        )
    })
}

fn hosts(report: &StabilityReport) -> Option<String> {
    let crme = report.hosts.iter().find(|host| host.code == "crme")?;
    Some(format!(
        "Losing one of {} hosts gives crme condition number {} where each holds neighbouring subtasks and {} where they are \
         interleaved.",
        crme.hosts,
        condition(crme.adjacent),
        condition(crme.interleaved)
    ))
}

/// Cases where another code has a better worst case than CRME.
fn beaten(report: &StabilityReport) -> Option<String> {
    let mut better = Vec::new();
    for table in &report.tables {
        let Some(crme) = table.rows.iter().find(|row| row.code == "crme") else { continue };
        let others = table.rows.iter().filter(|row| row.worst < crme.worst);
        let others = others.filter(|row| !["crme", "replication", "uncoded"].contains(&&*row.code));
        better.extend(others.map(|row| {
            let seen = if row.exhaustive { "" } else { ", in a sample, which shows little of what is rare" };
            let (other, crme) = (condition(row.worst), condition(crme.worst));
            format!("{} at {} ({other} against {crme}{seen})", row.code, table.label)
        }));
    }
    (!better.is_empty()).then(|| format!("The worst case of crme is beaten by {}.", list(&better)))
}

/// Cases where another code decodes its median set with less error than CRME.
fn beaten_in_the_median(report: &StabilityReport) -> Option<String> {
    let medians = || report.errors.iter().filter(|e| e.set == "median");
    let mut better: Vec<String> = Vec::new();
    for crme in medians().filter(|e| e.code == "crme") {
        let place = |e: &CodingError| (e.n, e.recovery_threshold, e.layer.clone(), e.dtype.clone());
        for other in medians().filter(|e| place(e) == place(crme) && e.mse < crme.mse) {
            let text = format!("{} at n = {}, delta = {}", other.code, crme.n, crme.recovery_threshold);
            if !better.contains(&text) {
                better.push(text);
            }
        }
    }
    (!better.is_empty()).then(|| {
        format!(
            "Decoded from the median responder set, some layer has a smaller error with {} than with crme.",
            list(&better)
        )
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn point(code: &str, n: usize, worst: f64) -> Conditions {
        Conditions {
            code: code.to_owned(),
            n,
            recovery_threshold: n - 1,
            k_a: 1,
            k_b: n - 1,
            sets: n,
            exhaustive: true,
            median: worst,
            p90: worst,
            p99: worst,
            worst,
        }
    }

    #[test]
    fn a_code_reaches_as_far_as_all_points_before_are_usable() {
        let points = [("a", 5, 2.0), ("a", 6, 9e3), ("a", 7, 3.0), ("b", 5, f64::INFINITY)];
        let points = points.into_iter().map(|(code, n, worst)| point(code, n, worst)).collect();
        let sweep = Sweep { label: String::new(), points };
        let single = f64::from(f32::EPSILON);
        assert_eq!(reach(&sweep, "a", single), Reach { n: 5, whole: false });
        assert_eq!(reach(&sweep, "a", f64::EPSILON), Reach { n: 7, whole: true });
        assert_eq!(reach(&sweep, "b", f64::EPSILON), Reach { n: 0, whole: false });
        assert_eq!(codes(&sweep), ["a", "b"]);
        assert_eq!((&*condition(1551.2), &*condition(f64::INFINITY)), ("1\u{202f}551", ">10¹⁵"));
        assert_eq!(list(&["a", "b", "c"].map(str::to_owned)), "a, b and c");
    }
}
