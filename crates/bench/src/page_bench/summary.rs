//! The findings, and the tables over all layers and scenarios.
//!
//! Invariant: as in [the module](super).

use super::compared::{Compared, Outcome, Pair, interval, is_greater, with_interval};
use super::{count, listed, range, runs, scenarios, verdict};
use crate::format::{number, time};
use crate::page::{Block, Cell, Class, Section, Table};

pub(super) fn findings(all: &Compared<'_>) -> Section {
    let (id, heading) = ("summary".to_owned(), "What came out".to_owned());
    let found = all.report.findings.clone();
    let blocks = if found.is_empty() { Vec::new() } else { vec![Block::List(found)] };
    let Some(first) = all.others.first() else {
        let text = vec!["Fewer than two methods were measured: there is nothing to compare.".to_owned()];
        return Section { id, heading, text, blocks };
    };
    let coded = &all.coded;
    let everywhere: Vec<&Pair<'_>> = all.against(first);
    let total: usize = all.others.iter().map(|other| all.against(other).len()).sum();
    let text = vec![
        format!(
            "{coded} against {first}, over {} comparisons of a layer or model in a scenario: {}.",
            everywhere.len(),
            verdict(&everywhere)
        ),
        format!(
            "A ratio under 1 means that {coded} took less time. “Faster” and “slower” are said only where the 95 % interval \
             of the ratio excludes 1 and the ratio is more than 1 % away from it; of {total} such intervals, about {} would \
             exclude 1 by chance even if no method differed from another.",
            total.div_ceil(20)
        ),
    ];
    Section { id, heading, text, blocks }
}

pub(super) fn counts(all: &Compared<'_>) -> Section {
    let coded = &all.coded;
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
    let blocks = if all.pairs.is_empty() { Vec::new() } else { vec![Block::Table(table)] };
    Section {
        id: "counts".to_owned(),
        heading: "How often faster, how often slower".to_owned(),
        text: Vec::new(),
        blocks,
    }
}

/// The comparisons that the coded method lost, the worst first.
fn lost<'a, 'r>(all: &'a Compared<'r>) -> Vec<&'a Pair<'r>> {
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
    lost
}

/// One lost comparison in words.
fn loss(coded: &str, pair: &Pair<'_>) -> String {
    let place = format!("{}, {}", pair.study.name, pair.scenario.name);
    if pair.outcome() == Outcome::Failed {
        return format!("{place}: {coded} failed {}, {} none", runs(pair.one), pair.other.method);
    }
    format!(
        "{place}: {} times as long as {} {}, {} instead of {}",
        number(pair.ratio.value),
        pair.other.method,
        interval(&pair.ratio),
        time(pair.one.median.value),
        time(pair.other.median.value)
    )
}

pub(super) fn losses(all: &Compared<'_>) -> Section {
    let coded = &all.coded;
    let (id, heading) = ("losses".to_owned(), format!("Where {coded} loses"));
    let lost = lost(all);
    let Some(worst) = lost.first() else {
        let text = vec![format!(
            "Nowhere in this comparison was {coded} seen to be slower than another method, or to fail where another did \
             not. That is no proof that it never is: scenarios without stragglers, and layers so small that \
             encoding and decoding matter, are where to look."
        )];
        return Section { id, heading, text, blocks: Vec::new() };
    };
    let by_scenario = scenarios(all.report).into_iter().filter_map(|scenario| {
        let here = lost.iter().filter(|pair| pair.scenario.name == scenario).count();
        (here > 0).then(|| format!("“{scenario}” ({here})"))
    });
    let by_scenario: Vec<String> = by_scenario.collect();
    let comparisons: usize = all.others.iter().map(|other| all.against(other).len()).sum();
    let text = vec![format!(
        "In {} of {comparisons} comparisons {coded} was slower than another method, or failed where the other did not: \
         {}. The worst is {}.",
        lost.len(),
        listed(by_scenario.iter().map(String::as_str)),
        loss(coded, worst),
    )];
    let table = Block::Table(losses_table(&lost));
    let summary = format!("All {} in numbers", lost.len());
    let blocks =
        if lost.len() > 1 { vec![Block::Details { summary, blocks: vec![table] }] } else { Vec::new() };
    Section { id, heading, text, blocks }
}

fn losses_table(lost: &[&Pair<'_>]) -> Table {
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
    Table {
        caption: String::new(),
        head: head.map(str::to_owned).into(),
        rows: lost.iter().map(row).collect(),
    }
}

/// The overview table: a row for each layer and scenario, a column for each method.
pub(super) fn overview(all: &Compared<'_>) -> Section {
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
