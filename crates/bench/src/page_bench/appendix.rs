//! The sections for all layers together: break-even points, cost of coding, conditioning, and a glossary.
//!
//! Invariant: as in [the module](super).

use super::compared::Compared;
use super::listed;
use crate::chart::{Chart, Kind, Mark, Series};
use crate::format::{number, percent, time};
use crate::page::{Block, Cell, Class, Section, Table};
use crate::schema::{BenchReport, ScenarioResult};

/// Encoding and decoding should use less than this share of a run's processor time.
const CODEC_SHARE: f64 = 0.05;

fn head<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).into()
}

pub(super) fn break_even(report: &BenchReport) -> Section {
    let mut rows = Vec::new();
    for study in report.studies.iter().filter(|study| !study.break_even.is_empty()) {
        rows.push(vec![Cell::from(study.name.as_str())]);
        for even in &study.break_even {
            let (from, class) = match even.delay_ms {
                Some(0.0) => ("always".to_owned(), Class::Best),
                Some(delay) => (time(delay), Class::Plain),
                None => ("never".to_owned(), Class::Worse),
            };
            let tried: Vec<String> = even.points.iter().map(|p| number(p[0])).collect();
            let tried = match &tried[..] {
                [first, .., last] => format!("{first} to {last} ms"),
                few => format!("{} ms", few.concat()),
            };
            rows.push(vec![
                Cell::from(even.against.as_str()),
                Cell::from(even.stragglers.to_string()),
                Cell::new(from, class),
                Cell::new(tried, Class::Muted),
            ]);
        }
    }
    let table = Table {
        caption: "The delay from which on the coded method's median is the lower one and stays so, interpolated between \
                  the delays that were tried. “Always” and “never” are said of these delays only."
            .to_owned(),
        head: head(["Against", "stragglers", "wins from", "delays tried"]),
        rows,
    };
    let blocks = if table.rows.is_empty() { Vec::new() } else { vec![Block::Table(table)] };
    Section {
        id: "break-even".to_owned(),
        heading: "From which delay on coding wins".to_owned(),
        text: Vec::new(),
        blocks,
    }
}

pub(super) fn codec(report: &BenchReport) -> Section {
    let heading = "What encoding and decoding cost".to_owned();
    let id = "codec".to_owned();
    if report.codec.is_empty() {
        return Section { id, heading, ..Section::default() };
    }
    let over: Vec<&str> =
        report.codec.iter().filter(|c| c.share() >= CODEC_SHARE).map(|c| c.name.as_str()).collect();
    let text = if over.is_empty() {
        "Encoding and decoding stay under 5 % of a run's processor time on every layer.".to_owned()
    } else {
        format!(
            "Encoding and decoding take 5 % of a run's processor time or more on {} of {} layers: {}.",
            over.len(),
            report.codec.len(),
            listed(over.iter().copied())
        )
    };
    let row = |cost: &crate::schema::CodecCost| {
        let class = if cost.share() < CODEC_SHARE { Class::Plain } else { Class::Worse };
        vec![
            Cell::from(cost.name.as_str()),
            Cell::from(number(cost.encode_cpu_ms)),
            Cell::from(number(cost.decode_cpu_ms)),
            Cell::from(number(cost.total_cpu_ms)),
            Cell::new(percent(cost.share()), class),
        ]
    };
    let table = Table {
        caption: "Milliseconds of processor time, measured apart; the whole run has every worker compute its subtask. \
                  Red: 5 % or more."
            .to_owned(),
        head: head(["Layer", "encode", "decode", "whole run", "share of encode and decode"]),
        rows: report.codec.iter().map(row).collect(),
    };
    let points = report.codec.iter().enumerate().map(|(i, cost)| (i as f64, 100.0 * cost.share()));
    let chart = Chart {
        title: "Share of encoding and decoding".to_owned(),
        y_label: "% of a run's processor time".to_owned(),
        y_log: true,
        series: vec![Series { points: points.collect(), kind: Kind::Markers, color: 4, ..Series::default() }],
        marks: vec![Mark::Horizontal { at: 100.0 * CODEC_SHARE, label: "5 %".to_owned() }],
        x_names: report.codec.iter().map(|cost| cost.name.replace(['/', '_'], " ")).collect(),
        ..Chart::default()
    };
    let mut blocks = vec![Block::Table(table)];
    // More names would not be readable under a picture.
    if (2..=12).contains(&report.codec.len()) {
        blocks.push(Block::Figure { svg: chart.svg(), caption: String::new() });
    }
    Section { id, heading, text: vec![text], blocks }
}

pub(super) fn conditions(report: &BenchReport) -> Section {
    let row = |c: &crate::schema::Conditions| {
        let sets = if c.exhaustive { format!("{}, all", c.sets) } else { format!("{}, drawn", c.sets) };
        let class = if c.worst.is_finite() { Class::Plain } else { Class::Worse };
        vec![
            Cell::from(c.code.as_str()),
            Cell::from(c.n.to_string()),
            Cell::from(c.recovery_threshold.to_string()),
            Cell::from(c.k_a.to_string()),
            Cell::from(c.k_b.to_string()),
            Cell::from(sets),
            Cell::from(number(c.median)),
            Cell::from(number(c.p90)),
            Cell::from(number(c.p99)),
            Cell::new(number(c.worst), class),
        ]
    };
    let table = Table {
        caption: "Over sets of δ responders out of n. ∞: a set that does not decode.".to_owned(),
        head: head(["Code", "n", "δ", "k_A", "k_B", "sets", "median", "p90", "p99", "worst seen"]),
        rows: report.conditions.iter().map(row).collect(),
    };
    let text = "By how much decoding can multiply rounding errors, for the codes and sizes in use: with arithmetic of 7 \
                digits, a condition number of 1000 leaves about 4.";
    if report.conditions.is_empty() {
        return Section { id: "conditions".to_owned(), ..Section::default() };
    }
    Section {
        id: "conditions".to_owned(),
        heading: "Condition numbers".to_owned(),
        text: vec![text.to_owned()],
        blocks: vec![Block::Table(table)],
    }
}

/// The description of a method that no plan describes.
fn about(method: &str) -> &'static str {
    match method {
        "uncoded" => "the layer is cut into as many parts as there are workers, and every part is needed",
        "replication" => "every part is computed by several workers, and the first result of each counts",
        "hedged" => "as uncoded, but parts that are late are handed to idle workers as well",
        "mds" => "parts are combined with a Vandermonde code: any δ of n results suffice",
        "crme" => {
            "parts are combined with a well-conditioned code of rotation matrices: any δ of n results suffice"
        }
        _ => "a method of this comparison",
    }
}

pub(super) fn methods(all: &Compared<'_>) -> Section {
    let sentence = |method: &str| {
        let plans = all.report.studies.iter().flat_map(|study| &study.plans);
        let said = plans.filter(|plan| plan.method == method).map(|plan| plan.about.as_str());
        let said = said.into_iter().find(|about| !about.is_empty()).unwrap_or_else(|| about(method));
        format!("{method}: {}.", said.trim_end_matches('.'))
    };
    let heading = "Methods and how to read their numbers".to_owned();
    let text = vec![
        "Latency is the time from handing in an input to having the output, encoding and decoding included. In each \
         trial all methods meet the same input and the same faults, in turns; their latencies are compared trial by \
         trial, and what is reported is the median of these ratios. Intervals hold 95 % of a thousand bootstrap \
         resamples of the trials: they say how surely these trials fix a number, not how another machine would do."
            .to_owned(),
    ];
    let blocks = vec![Block::List(all.methods().map(sentence).collect())];
    Section { id: "methods".to_owned(), heading, text, blocks }
}

fn what_happens(scenario: &ScenarioResult) -> String {
    let workers = |count: usize, verb: &str| {
        if count == 1 { format!("one worker {verb}s") } else { format!("{count} workers {verb}") }
    };
    match (scenario.stragglers, scenario.delay_ms) {
        _ if scenario.faults.is_empty() => {
            "no worker is late and nothing fails: what a method costs when it is not needed".to_owned()
        }
        (Some(0), _) => "no worker is made to straggle".to_owned(),
        (Some(count), Some(delay)) => {
            format!("in each trial {} {} late", workers(count, "answer"), time(delay))
        }
        (Some(count), None) => format!("in each trial {}", workers(count, "misbehave")),
        (None, Some(delay)) => {
            format!("a random number of workers, or all of them, answer {} late", time(delay))
        }
        (None, None) => "which workers misbehave, and how much, is random, or all do".to_owned(),
    }
}

pub(super) fn scenarios(report: &BenchReport) -> Section {
    let mut seen: Vec<&str> = Vec::new();
    let mut rows = Vec::new();
    for scenario in report.studies.iter().flat_map(|study| &study.scenarios) {
        if seen.contains(&scenario.name.as_str()) {
            continue;
        }
        seen.push(&scenario.name);
        rows.push(vec![
            Cell::from(scenario.name.as_str()),
            Cell::from(what_happens(scenario)),
            Cell::new(scenario.faults.join(" "), Class::Muted),
        ]);
    }
    let table = Table {
        caption: "The same faults for every method of a trial.".to_owned(),
        head: head(["Scenario", "what happens", "as on the command line"]),
        rows,
    };
    let blocks = if seen.is_empty() { Vec::new() } else { vec![Block::Table(table)] };
    Section { id: "scenarios".to_owned(), heading: "Scenarios".to_owned(), text: Vec::new(), blocks }
}

pub(super) fn again(report: &BenchReport) -> Section {
    let setting = &report.setting;
    Section {
        id: "again".to_owned(),
        heading: "How to run it again".to_owned(),
        text: vec![format!(
            "Seed {}, version {}, on {}. {}",
            setting.seed,
            setting.version,
            setting.hardware,
            if setting.mode == "virtual" {
                "In virtual time the same seed gives the same latencies on every machine."
            } else {
                "The seed repeats inputs and faults; times depend on the machine."
            }
        )],
        blocks: vec![Block::Code(setting.command.clone())],
    }
}
