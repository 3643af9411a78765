//! The report of a comparison: which methods are faster in which scenario, by how much and how surely, and where coding
//! loses.
//!
//! Invariant: every statement follows from the numbers of the [`BenchReport`]; a difference counts only if the interval of
//! its paired ratio excludes 1.

mod answer;
mod appendix;
mod compared;
mod study;
mod summary;

use super::format::number;
use super::page::Page;
use super::schema::BenchReport;
use compared::{Compared, Outcome, Pair, inverse, with_interval};

/// The report as a page.
#[must_use]
pub fn page(report: &BenchReport) -> Page {
    let all = Compared::new(report);
    let setting = &report.setting;
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let mut sections = vec![summary::findings(&all), summary::losses(&all)];
    sections.extend(report.studies.iter().enumerate().map(|(i, _)| study::section(&all, i)));
    sections.extend([
        summary::counts(&all),
        summary::overview(&all),
        appendix::break_even(report),
        appendix::codec(report),
        appendix::conditions(report),
        appendix::methods(&all),
        appendix::scenarios(report),
        appendix::again(report),
    ]);
    let others = listed(all.others.iter().map(String::as_str));
    let virtually = if setting.mode == "virtual" {
        "Workers are simulated in virtual time: latencies follow from the model of the workers, not from a clock. \
         They are driven by the same scheduler as real ones."
    } else {
        "Times were measured on real workers. Faults are injected: a straggler is a worker that is made to answer \
         late."
    };
    let (picture, caption) = answer::picture(&all);
    Page {
        title: "What late workers cost: coded convolution compared".to_owned(),
        answer: answer::sentence(&all),
        picture,
        caption,
        lead: vec![
            format!(
                "How long does a convolution take when some of the workers that compute it are late or fail, and \
                 does coding ({}) help against {others}? Every method had the same inputs, the same number of \
                 workers and the same faults, trial by trial.",
                all.coded
            ),
            virtually.to_owned(),
        ],
        facts: vec![
            fact("Measured", setting.date.clone()),
            fact("Hardware", setting.hardware.clone()),
            fact("System", setting.system.clone()),
            fact("Workers", format!("{} ({} time)", setting.workers, setting.mode)),
            fact("Arithmetic", setting.precision.clone()),
            fact("Trials", format!("{} of each method in each scenario", setting.trials)),
            fact("Seed", setting.seed.to_string()),
            fact("Version", format!("fcdcc {}", setting.version)),
        ],
        sections: sections.into_iter().filter(|s| !s.blocks.is_empty() || !s.text.is_empty()).collect(),
    }
}

/// `a, b and c`.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    match &names[..] {
        [] => "nothing else".to_owned(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// Names of scenarios, each once, in order.
fn scenarios(report: &BenchReport) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for scenario in report.studies.iter().flat_map(|study| &study.scenarios) {
        if !names.contains(&scenario.name.as_str()) {
            names.push(&scenario.name);
        }
    }
    names
}

fn count(pairs: &[&Pair<'_>], outcome: Outcome) -> usize {
    pairs.iter().filter(|pair| pair.outcome() == outcome).count()
}

/// Least and greatest ratio: `0.31 to 0.72`.
fn range(pairs: &[&Pair<'_>]) -> String {
    let finished = pairs.iter().filter(|p| p.one.failed == 0 && p.other.failed == 0).map(|p| p.ratio.value);
    let (low, high) = finished
        .filter(|ratio| !ratio.is_nan())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), ratio| (l.min(ratio), h.max(ratio)));
    if low > high {
        "–".to_owned()
    } else if number(low) == number(high) {
        number(low)
    } else {
        format!("{} to {}", number(low), number(high))
    }
}

/// A sentence on one scenario: `faster on 3 of 4, no difference seen on 1`.
fn verdict(pairs: &[&Pair<'_>]) -> String {
    if let [pair] = pairs {
        return match pair.outcome() {
            Outcome::Faster => format!("faster by a factor of {}", with_interval(&inverse(&pair.ratio))),
            Outcome::Slower => format!("slower by a factor of {}", with_interval(&pair.ratio)),
            Outcome::Same => format!("no difference seen, at a ratio of {}", with_interval(&pair.ratio)),
            Outcome::OtherFailed => {
                format!("finished every run, where {} failed {}", pair.other.method, runs(pair.other))
            }
            Outcome::Failed => format!("failed {}, where {} failed none", runs(pair.one), pair.other.method),
        };
    }
    let parts = [
        (Outcome::Faster, "faster on"),
        (Outcome::Slower, "slower on"),
        (Outcome::Same, "no difference seen on"),
        (Outcome::OtherFailed, "alone in finishing every run on"),
        (Outcome::Failed, "failed runs on"),
    ]
    .into_iter()
    .filter(|(outcome, _)| count(pairs, *outcome) > 0)
    .map(|(outcome, words)| format!("{words} {} of {}", count(pairs, outcome), pairs.len()));
    let parts: Vec<String> = parts.collect();
    let range = range(pairs);
    let times = if range == "–" { String::new() } else { format!(" (ratios {range})") };
    parts.join(", ") + &times
}

fn runs(result: &super::schema::MethodResult) -> String {
    format!("{} of {}", result.failed, result.latencies_ms.len().max(result.failed))
}

#[cfg(test)]
mod tests;
