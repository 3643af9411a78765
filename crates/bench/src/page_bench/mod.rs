//! The report of a comparison: which methods are faster in which scenario, by how much and how surely, and where coding
//! loses.
//!
//! Invariant: every statement follows from the numbers of the [`BenchReport`]; a difference counts only if the interval of
//! its paired ratio excludes 1.

mod appendix;
mod compared;
mod study;

use super::format::{number, time};
use super::page::{Block, Cell, Class, Page, Section, Table};
use super::schema::BenchReport;
use compared::{Compared, Outcome, Pair, interval, inverse, is_greater, with_interval};

/// Maximum number of losses described one by one; a table shows more.
const TOLD: usize = 6;

/// The report as a page.
#[must_use]
pub fn page(report: &BenchReport) -> Page {
    let all = Compared::new(report);
    let setting = &report.setting;
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let mut sections = vec![headline(&all), losses(&all), overview(&all)];
    sections.extend(report.studies.iter().enumerate().map(|(i, _)| study::section(&all, i)));
    sections.extend([
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
    Page {
        title: "Coded convolution on unreliable workers: a comparison".to_owned(),
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

fn headline(all: &Compared<'_>) -> Section {
    let Some(first) = all.others.first() else {
        return Section {
            id: "summary".to_owned(),
            heading: "In short".to_owned(),
            text: vec!["Fewer than two methods were measured: there is nothing to compare.".to_owned()],
            blocks: vec![Block::List(all.report.findings.clone())],
        };
    };
    let coded = &all.coded;
    let everywhere: Vec<&Pair<'_>> = all.against(first);
    let mut text = vec![format!(
        "{coded} against {first}, over {} comparisons of a layer or model in a scenario: {}. A ratio under 1 means that \
         {coded} took less time. “Faster” and “slower” are said only where the 95 % interval of the ratio excludes 1 and \
         the ratio is more than 1 % away from it.",
        everywhere.len(),
        verdict(&everywhere)
    )];
    let sentences = scenarios(all.report).into_iter().filter_map(|scenario| {
        let parts = all.others.iter().filter_map(|other| {
            let pairs = all.within(scenario, other);
            (!pairs.is_empty()).then(|| format!("against {other} {}", verdict(&pairs)))
        });
        let parts: Vec<String> = parts.collect();
        (!parts.is_empty()).then(|| format!("{scenario}: {}.", parts.join("; ")))
    });
    let sentences = sentences.collect();
    let mut rows = Vec::new();
    for other in &all.others {
        rows.push(vec![Cell::from(format!("{coded} against {other}"))]);
        for scenario in scenarios(all.report) {
            let pairs = all.within(scenario, other);
            if pairs.is_empty() {
                continue;
            }
            let number_of = |count: usize, class| match count {
                0 => Cell::new("0", Class::Muted),
                some => Cell::new(some.to_string(), class),
            };
            let tails = |lower: bool| {
                pairs.iter().filter(|p| if lower { p.lower_tail() } else { p.higher_tail() }).count()
            };
            rows.push(vec![
                Cell::from(scenario),
                number_of(count(&pairs, Outcome::Faster), Class::Best),
                number_of(count(&pairs, Outcome::Same), Class::Plain),
                number_of(count(&pairs, Outcome::Slower), Class::Worse),
                number_of(count(&pairs, Outcome::OtherFailed), Class::Best),
                number_of(count(&pairs, Outcome::Failed), Class::Worse),
                Cell::from(range(&pairs)),
                number_of(tails(true), Class::Best),
                number_of(tails(false), Class::Worse),
            ]);
        }
    }
    let total: usize = all.others.iter().map(|other| all.against(other).len()).sum();
    text.push(format!(
        "Of {total} intervals, about {} would exclude 1 by chance even if no method differed from another: single narrow \
         results prove little, rows of them do.",
        total.div_ceil(20)
    ));
    let head = [
        "Scenario",
        "faster",
        "no difference",
        "slower",
        "only other failed",
        "only it failed",
        "ratios",
        "p99 lower",
        "p99 higher",
    ];
    let table = Table {
        caption: format!(
            "On how many layers or models {coded} was faster or slower in the median, how the ratios range over them, \
             and on how many its 99th percentile is lower or higher, intervals apart."
        ),
        head: head.map(str::to_owned).into(),
        rows,
    };
    let mut blocks = Vec::new();
    if !all.report.findings.is_empty() {
        blocks.push(Block::List(all.report.findings.clone()));
    }
    blocks.push(Block::Table(table));
    blocks.push(Block::Details {
        summary: "The same in sentences, scenario by scenario".to_owned(),
        blocks: vec![Block::List(sentences)],
    });
    Section { id: "summary".to_owned(), heading: "In short".to_owned(), text, blocks }
}

fn losses(all: &Compared<'_>) -> Section {
    let coded = &all.coded;
    let mut lost: Vec<&Pair<'_>> = all
        .others
        .iter()
        .flat_map(|other| all.against(other))
        .filter(|pair| matches!(pair.outcome(), Outcome::Slower | Outcome::Failed))
        .collect();
    lost.sort_by(|a, b| {
        let failed = |p: &Pair<'_>| p.outcome() == Outcome::Failed;
        failed(b).cmp(&failed(a)).then(b.ratio.value.total_cmp(&a.ratio.value))
    });
    let heading = format!("Where {coded} loses");
    if lost.is_empty() {
        let text = vec![format!(
            "Nowhere in this comparison was {coded} seen to be slower than another method, or to fail where another did \
             not. That is no proof that it never is: scenarios without stragglers, and layers so small that \
             encoding and decoding matter, are where to look."
        )];
        return Section { id: "losses".to_owned(), heading, text, blocks: Vec::new() };
    }
    let sentence = |pair: &&Pair<'_>| {
        let place = format!("{}, {}", pair.study.name, pair.scenario.name);
        if pair.outcome() == Outcome::Failed {
            return format!("{place}: {coded} failed {}, {} none.", runs(pair.one), pair.other.method);
        }
        format!(
            "{place}: {} times as long as {} {}, {} instead of {}.",
            number(pair.ratio.value),
            pair.other.method,
            interval(&pair.ratio),
            time(pair.one.median.value),
            time(pair.other.median.value)
        )
    };
    let by_scenario = scenarios(all.report).into_iter().filter_map(|scenario| {
        let here = lost.iter().filter(|pair| pair.scenario.name == scenario).count();
        (here > 0).then(|| format!("“{scenario}” ({here})"))
    });
    let by_scenario: Vec<String> = by_scenario.collect();
    let comparisons: usize = all.others.iter().map(|other| all.against(other).len()).sum();
    let text = vec![format!(
        "In {} of {comparisons} comparisons {coded} was slower than another method, or failed where the other did not: \
         {}. {}:",
        lost.len(),
        listed(by_scenario.iter().map(String::as_str)),
        if lost.len() > TOLD { "The worst" } else { "These" },
    )];
    let mut blocks = vec![Block::List(lost.iter().take(TOLD).map(sentence).collect())];
    if lost.len() > TOLD {
        let row = |pair: &&Pair<'_>| {
            let failed = pair.outcome() == Outcome::Failed;
            vec![
                Cell::from(pair.study.name.as_str()),
                Cell::from(pair.scenario.name.as_str()),
                Cell::from(pair.other.method.as_str()),
                Cell::from(if failed {
                    format!("{} failed", runs(pair.one))
                } else {
                    with_interval(&pair.ratio)
                }),
                Cell::from(number(pair.one.median.value)),
                Cell::from(number(pair.other.median.value)),
            ]
        };
        let head = ["Layer or model", "scenario", "against", "ratio", "its median, ms", "the other's, ms"];
        let table = Table {
            caption: String::new(),
            head: head.map(str::to_owned).into(),
            rows: lost.iter().map(row).collect(),
        };
        blocks.push(Block::Details {
            summary: format!("All {}", lost.len()),
            blocks: vec![Block::Table(table)],
        });
    }
    Section { id: "losses".to_owned(), heading, text, blocks }
}

/// The overview table: a row for each layer and scenario, a column for each method.
fn overview(all: &Compared<'_>) -> Section {
    let methods: Vec<&str> = all.methods().collect();
    let first = methods.first().copied().unwrap_or_default();
    let mut rows = Vec::new();
    for (i, study) in all.report.studies.iter().enumerate() {
        rows.push(vec![Cell::from(format!("{}: {}", study.name, study.shape))]);
        for (j, scenario) in study.scenarios.iter().enumerate() {
            let cell = |method: &&str| {
                let Some(result) = scenario.methods.iter().find(|m| m.method == *method) else {
                    return Cell::new("", Class::Muted);
                };
                let under = if result.failed > 0 {
                    format!("{} runs failed", runs(result))
                } else if result.method != first {
                    with_interval(&result.to_first)
                } else {
                    String::new()
                };
                let text = format!("{} · {}\n{under}", number(result.median.value), number(result.p99.value));
                let class = if all.is_best(i, j, method) {
                    Class::Best
                } else if result.failed > 0 || is_greater(&result.to_first) {
                    Class::Worse
                } else {
                    Class::Plain
                };
                Cell { text, class }
            };
            rows.push(
                std::iter::once(Cell::from(scenario.name.as_str())).chain(methods.iter().map(cell)).collect(),
            );
        }
    }
    let table = Table {
        caption: format!(
            "Median · 99th percentile in milliseconds; under them the median over trials of the ratio to {first}, \
             with its 95 % interval. Marked green: the lowest median, and those not seen to differ from it. Red: slower \
             than {first}, or failed."
        ),
        head: std::iter::once("Scenario").chain(methods.iter().copied()).map(str::to_owned).collect(),
        rows,
    };
    let few = all.report.setting.trials < 100;
    let text = if few {
        vec![format!(
            "With {} trials, a 99th percentile is in effect the greatest latency that was seen: read it with its \
             interval, which is in the charts below.",
            all.report.setting.trials
        )]
    } else {
        Vec::new()
    };
    let blocks = if all.report.studies.is_empty() { Vec::new() } else { vec![Block::Table(table)] };
    Section { id: "overview".to_owned(), heading: "All latencies".to_owned(), text, blocks }
}

#[cfg(test)]
mod tests;
