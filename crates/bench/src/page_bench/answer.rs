//! The first screen: the tail of the latencies against the number of late workers, in one sentence and one picture.
//!
//! Invariant: as in [the module](super).

use super::compared::{Compared, Pair};
use super::study::{Sweep, against_stragglers, by_scenario, sweeps};
use super::verdict;
use crate::chart::Chart;
use crate::format::{rough, time};
use crate::schema::Study;

/// Number of layers in the picture; the sections have the others.
const SHOWN: usize = 4;

/// The delay that was tried with most numbers of stragglers.
fn main_sweep(study: &Study) -> Option<Sweep<'_>> {
    sweeps(study).into_iter().max_by_key(|sweep| sweep.scenarios.len())
}

/// The tail of each layer, a chart each, and what to know about them.
pub(super) fn picture(all: &Compared<'_>) -> (Vec<Chart>, String) {
    let studies = all.report.studies.iter().filter(|study| !study.scenarios.is_empty());
    let chart = |study: &Study| match main_sweep(study) {
        Some(sweep) => Chart {
            x_label: format!("workers that answer {} late", time(sweep.delay)),
            y_label: "99th percentile of the latency, ms".to_owned(),
            end_labels: true,
            ..against_stragglers(all, &sweep, study.name.clone(), |m| m.p99)
        },
        None => Chart {
            y_label: "99th percentile of the latency, ms".to_owned(),
            ..by_scenario(all, study, &study.name, |m| m.p99)
        },
    };
    let charts: Vec<Chart> = studies.clone().take(SHOWN).map(chart).collect();
    let more = studies.count() - charts.len();
    let others = match more {
        0 => String::new(),
        more => format!(" The sections below have the other {more} as well."),
    };
    let few = match all.report.setting.trials {
        trials if trials < 100 => {
            format!(" With {trials} trials a 99th percentile is in effect the slowest run.")
        }
        _ => String::new(),
    };
    let caption =
        format!("Lower is better; the axes are logarithmic, and whiskers are 95 % intervals.{few}{others}");
    if charts.is_empty() { (charts, String::new()) } else { (charts, caption) }
}

/// Two methods with as many workers late as the coded one tolerates, and with none late.
struct Tails<'a> {
    stragglers: usize,
    workers: usize,
    late: &'a Pair<'a>,
    calm: Option<&'a Pair<'a>>,
    lowest: bool,
}

fn tails<'a>(all: &'a Compared<'_>, study: &Study, first: &str) -> Option<Tails<'a>> {
    let sweep = main_sweep(study)?;
    let tolerated = |(stragglers, _): &&(usize, _)| (1..=study.tolerate).contains(stragglers);
    let &(stragglers, late) = sweep.scenarios.iter().rfind(tolerated)?;
    let calm = sweep.scenarios.iter().find(|(stragglers, _)| *stragglers == 0);
    let pair = all.pair(study, late, first)?;
    let lowest = late.methods.iter().all(|m| m.p99.value >= pair.one.p99.value);
    Some(Tails {
        stragglers,
        workers: study.workers,
        late: pair,
        calm: calm.and_then(|(_, calm)| all.pair(study, calm, first)),
        lowest,
    })
}

/// Whether the 99th percentiles of a pair can be compared.
fn is_comparable(pair: &Pair<'_>) -> bool {
    let ratio = pair.one.p99.value / pair.other.p99.value;
    pair.one.failed == 0 && pair.other.failed == 0 && ratio.is_finite()
}

/// `3.90 ms against 22.8 ms`, or the range of the ratios: `0.17 to 0.52 times that of uncoded`.
fn compared(pairs: &[&Pair<'_>], first: &str) -> String {
    if let [pair] = pairs {
        return format!("{} against {}", time(pair.one.p99.value), time(pair.other.p99.value));
    }
    let ratios = || pairs.iter().map(|pair| pair.one.p99.value / pair.other.p99.value);
    let (low, high) = (ratios().fold(f64::INFINITY, f64::min), ratios().fold(0.0, f64::max));
    format!("{} to {} times that of {first}", rough(low), rough(high))
}

/// The answer of the report.
pub(super) fn sentence(all: &Compared<'_>) -> String {
    let Some(first) = all.others.first() else { return String::new() };
    let coded = &all.coded;
    let found = all.report.studies.iter().filter_map(|study| tails(all, study, first));
    let found: Vec<Tails<'_>> = found.filter(|tails| is_comparable(tails.late)).collect();
    let Some(one) = found.first() else {
        let told = verdict(&all.against(first));
        return if told.is_empty() { String::new() } else { format!("{coded} against {first}: {told}.") };
    };
    let late: Vec<&Pair<'_>> = found.iter().map(|tails| tails.late).collect();
    let calm = found.iter().filter_map(|tails| tails.calm).filter(|pair| is_comparable(pair));
    let calm: Vec<&Pair<'_>> = calm.collect();
    let same = found.iter().all(|t| (t.stragglers, t.workers) == (one.stragglers, one.workers));
    let when = if same {
        format!("{} of {} workers", one.stragglers, one.workers)
    } else {
        "as many workers as it tolerates".to_owned()
    };
    let rank = match (found.len(), found.iter().filter(|tails| tails.lowest).count()) {
        (1, 1) => format!(" of {first} and is the lowest of all methods"),
        (1, _) => format!(" of {first}"),
        (all, lowest) if all == lowest => " and the lowest of all methods everywhere".to_owned(),
        (all, lowest) => format!(" and the lowest of all methods on {lowest} of {all}"),
    };
    let otherwise = match &calm[..] {
        [] => String::new(),
        calm => format!("; with none late it is {}", compared(calm, first)),
    };
    format!(
        "With {when} late, the 99th percentile of {coded} is {}{rank}{otherwise}.",
        compared(&late, first)
    )
}
