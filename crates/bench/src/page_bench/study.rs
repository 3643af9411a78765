//! The section of one layer or model under every scenario: charts first, tables on demand.
//!
//! Invariant: a method has the same colour in all charts.

use super::compared::{Compared, with_interval};
use super::verdict;
use crate::chart::{Bars, Chart, Kind, Mark, Series};
use crate::format::{bytes, number, percent, time};
use crate::page::{Block, Cell, Class, Section, Table};
use crate::schema::{BreakEven, Estimate, MethodResult, ScenarioResult, Study};
use maud::Markup;

/// Maximum number of steps drawn for a distribution, besides its last hundredth, which is drawn in full.
const STEPS: usize = 160;

pub(super) fn section(all: &Compared<'_>, index: usize) -> Section {
    let study = &all.report.studies[index];
    let mut text = vec![format!(
        "{}, {} multiply-adds, on {} workers; {} is to survive {} of them.",
        study.shape,
        number(study.macs),
        study.workers,
        all.coded,
        study.tolerate
    )];
    let mut blocks = Vec::new();
    if let Some(other) = all.others.first() {
        let pairs: Vec<_> =
            study.scenarios.iter().filter_map(|scenario| all.pair(study, scenario, other)).collect();
        if !pairs.is_empty() {
            text.push(format!(
                "{} against {other} in {} scenarios: {}.",
                all.coded,
                pairs.len(),
                verdict(&pairs)
            ));
        }
    }
    blocks.push(Block::Figures(vec![
        (by_scenario(all, study, "Median latency", |m| m.median).svg(), String::new()),
        (by_scenario(all, study, "Tail latency: 99th percentile", |m| m.p99).svg(), String::new()),
    ]));
    let tails = by_stragglers(all, study);
    if !tails.is_empty() {
        blocks.push(Block::Figures(tails));
    }
    let curves = break_even(all, study);
    if !curves.is_empty() {
        blocks.push(Block::Figures(curves));
    }
    let details = |summary: &str, blocks: Vec<Block>| Block::Details { summary: summary.to_owned(), blocks };
    blocks.push(details("Distributions of the latencies", vec![Block::Figures(distributions(all, study))]));
    blocks.push(details("Where the time goes", vec![where_time_goes(study)]));
    blocks.push(details("Work, bytes and accuracy", vec![Block::Table(costs(study))]));
    if !study.plans.is_empty() {
        blocks.push(details("How each method divides the layer", vec![Block::Table(plans(study))]));
    }
    Section { id: format!("study-{}", study.name), heading: study.name.clone(), text, blocks }
}

pub(super) fn by_scenario(
    all: &Compared<'_>,
    study: &Study,
    title: &str,
    statistic: impl Fn(&MethodResult) -> Estimate,
) -> Chart {
    let series = all.methods().map(|method| {
        let results = study.scenarios.iter().enumerate().filter_map(|(i, scenario)| {
            let result = scenario.methods.iter().find(|m| m.method == method)?;
            Some((i as f64, statistic(result)))
        });
        marked(all, method, Kind::Markers, results.collect())
    });
    Chart {
        title: title.to_owned(),
        y_label: "ms, with 95 % intervals".to_owned(),
        y_log: true,
        series: series.filter(|s| !s.points.is_empty()).collect(),
        x_names: study.scenarios.iter().map(|s| s.name.clone()).collect(),
        ..Chart::default()
    }
}

fn marked(all: &Compared<'_>, method: &str, kind: Kind, estimates: Vec<(f64, Estimate)>) -> Series {
    Series {
        label: method.to_owned(),
        points: estimates.iter().map(|(x, e)| (*x, e.value)).collect(),
        band: estimates.iter().map(|(x, e)| (*x, e.low, e.high)).collect(),
        kind,
        color: all.color(method),
    }
}

/// Scenarios that differ in the number of stragglers alone.
pub(super) struct Sweep<'a> {
    /// The delay of the stragglers.
    pub(super) delay: f64,
    /// By the number of stragglers, ascending.
    pub(super) scenarios: Vec<(usize, &'a ScenarioResult)>,
}

/// For each delay measured with several numbers of stragglers, its scenarios.
pub(super) fn sweeps(study: &Study) -> Vec<Sweep<'_>> {
    let mut delays: Vec<f64> = study.scenarios.iter().filter_map(|s| s.delay_ms).collect();
    delays.sort_by(f64::total_cmp);
    delays.dedup();
    let of = |delay: f64| {
        let mut scenarios: Vec<(usize, &ScenarioResult)> = Vec::new();
        for scenario in &study.scenarios {
            let Some(stragglers) = scenario.stragglers else { continue };
            let fits = stragglers == 0 || scenario.delay_ms == Some(delay);
            if fits && scenarios.iter().all(|(known, _)| *known != stragglers) {
                scenarios.push((stragglers, scenario));
            }
        }
        scenarios.sort_by_key(|(stragglers, _)| *stragglers);
        (scenarios.len() > 1).then_some(Sweep { delay, scenarios })
    };
    delays.into_iter().filter_map(of).collect()
}

/// A statistic against the number of stragglers, one line a method.
pub(super) fn against_stragglers(
    all: &Compared<'_>,
    sweep: &Sweep<'_>,
    title: String,
    statistic: impl Fn(&MethodResult) -> Estimate,
) -> Chart {
    let series = all.methods().map(|method| {
        let results = sweep.scenarios.iter().enumerate().filter_map(|(i, (_, scenario))| {
            let result = scenario.methods.iter().find(|m| m.method == method)?;
            Some((i as f64, statistic(result)))
        });
        marked(all, method, Kind::LineMarkers, results.collect())
    });
    Chart {
        title,
        x_label: "workers that straggle in a trial".to_owned(),
        y_label: "ms, with 95 % intervals".to_owned(),
        y_log: true,
        series: series.filter(|s| !s.points.is_empty()).collect(),
        x_names: sweep.scenarios.iter().map(|(stragglers, _)| stragglers.to_string()).collect(),
        ..Chart::default()
    }
}

/// Median and tail against the number of stragglers, for each delay measured with several numbers of stragglers.
fn by_stragglers(all: &Compared<'_>, study: &Study) -> Vec<(Markup, String)> {
    let statistics: [(&str, fn(&MethodResult) -> Estimate); 2] =
        [("Median", |m| m.median), ("99th percentile", |m| m.p99)];
    let mut figures = Vec::new();
    for sweep in sweeps(study) {
        for (name, statistic) in statistics {
            let title = format!("{name} against the number of stragglers, {} late", time(sweep.delay));
            figures.push((against_stragglers(all, &sweep, title, statistic).svg(), String::new()));
        }
    }
    figures
}

/// Medians against the delay, for each number of stragglers.
fn break_even(all: &Compared<'_>, study: &Study) -> Vec<(Markup, String)> {
    let mut numbers: Vec<usize> = study.break_even.iter().map(|b| b.stragglers).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let figure = |stragglers: usize| {
        let here: Vec<&BreakEven> = study.break_even.iter().filter(|b| b.stragglers == stragglers).collect();
        let line = |method: &str, points: Vec<(f64, f64)>| Series {
            label: method.to_owned(),
            points,
            kind: Kind::LineMarkers,
            band: Vec::new(),
            color: all.color(method),
        };
        let mut series: Vec<Series> = here
            .iter()
            .map(|b| line(&b.against, b.points.iter().map(|[delay, _, other]| (*delay, *other)).collect()))
            .collect();
        if let Some(first) = here.first() {
            series.push(line(
                &all.coded,
                first.points.iter().map(|[delay, coded, _]| (*delay, *coded)).collect(),
            ));
        }
        let crossings = here.iter().filter_map(|b| {
            let delay = b.delay_ms.filter(|delay| *delay > 0.0)?;
            Some(Mark::Vertical { at: delay, label: format!("{}: from {} on", b.against, time(delay)) })
        });
        let workers =
            if stragglers == 1 { "1 straggler".to_owned() } else { format!("{stragglers} stragglers") };
        let chart = Chart {
            title: format!("From which delay on does {} win, with {workers}?", all.coded),
            x_label: "delay of the stragglers in ms".to_owned(),
            y_label: "median latency in ms".to_owned(),
            series,
            marks: crossings.collect(),
            ..Chart::default()
        };
        (chart.svg(), "Vertical lines: where it begins to win against a method and stays ahead.".to_owned())
    };
    numbers.into_iter().map(figure).collect()
}

fn distributions(all: &Compared<'_>, study: &Study) -> Vec<(Markup, String)> {
    let latencies = || {
        let results = study.scenarios.iter().flat_map(|s| &s.methods);
        results.flat_map(|m| m.latencies_ms.iter().copied()).filter(|ms| ms.is_finite() && *ms > 0.0)
    };
    let (low, high) = latencies().fold((f64::INFINITY, 0.0_f64), |(l, h), ms| (l.min(ms), h.max(ms)));
    // All scenarios have the same axis, so that they can be compared.
    let x_range = (low < high).then_some((low / 1.1, high * 1.1));
    let figure = |scenario: &ScenarioResult| {
        let failed = scenario.methods.iter().filter(|m| m.failed > 0);
        let failed: Vec<String> = failed.map(|m| format!("{} failed {}", m.method, super::runs(m))).collect();
        let caption = if failed.is_empty() {
            String::new()
        } else {
            format!("{} runs; these count with the time they took to fail.", failed.join(", "))
        };
        let chart = Chart {
            title: scenario.name.clone(),
            x_label: "latency in ms, logarithmic".to_owned(),
            y_label: "share of runs that were done by then".to_owned(),
            x_log: true,
            x_range,
            y_range: Some((0.0, 1.02)),
            series: scenario.methods.iter().map(|m| distribution(m, all.color(&m.method))).collect(),
            marks: [(0.5, "median"), (0.99, "99 %")]
                .map(|(at, label)| Mark::Horizontal { at, label: label.to_owned() })
                .into(),
            ..Chart::default()
        };
        (chart.svg(), caption)
    };
    study.scenarios.iter().map(figure).collect()
}

/// The empirical distribution function, from 0 on.
fn distribution(result: &MethodResult, color: usize) -> Series {
    let mut sorted: Vec<f64> = result.latencies_ms.iter().copied().filter(|ms| !ms.is_nan()).collect();
    sorted.sort_by(f64::total_cmp);
    let len = sorted.len();
    let every = len.div_ceil(STEPS).max(1);
    let tail = len - len / 100;
    let ranks = (0..len).filter(|rank| rank % every == 0 || *rank >= tail || rank + 1 == len);
    let points = ranks.map(|rank| (sorted[rank], (rank + 1) as f64 / len as f64));
    let start = sorted.first().map(|least| (*least, 0.0));
    Series {
        label: result.method.clone(),
        points: start.into_iter().chain(points).collect(),
        kind: Kind::Steps,
        band: Vec::new(),
        color,
    }
}

fn where_time_goes(study: &Study) -> Block {
    let bar = |m: &MethodResult| (m.method.clone(), vec![m.encode_ms, m.wait_ms, m.decode_ms]);
    let group = |s: &ScenarioResult| (s.name.clone(), s.methods.iter().map(bar).collect());
    let bars = Bars {
        title: String::new(),
        y_label: "ms; medians, each by itself".to_owned(),
        parts: ["encode the input", "wait for workers", "decode the output"].map(str::to_owned).into(),
        groups: study.scenarios.iter().map(group).collect(),
    };
    Block::Figure {
        svg: bars.svg(),
        caption: "Medians of the three parts of a run, which need not add up to the median of the whole."
            .to_owned(),
    }
}

fn costs(study: &Study) -> Table {
    let mut rows = Vec::new();
    for scenario in &study.scenarios {
        rows.push(vec![Cell::from(scenario.name.as_str())]);
        for m in &scenario.methods {
            let zero = |value: f64| {
                if value == 0.0 { Cell::new("0", Class::Muted) } else { Cell::from(number(value)) }
            };
            let failed = if m.failed > 0 {
                Cell::new(super::runs(m), Class::Worse)
            } else {
                Cell::new("0", Class::Muted)
            };
            rows.push(vec![
                Cell::from(m.method.as_str()),
                Cell::from(format!("×{}", number(m.work))),
                Cell::from(percent(m.wasted)),
                Cell::from(bytes(m.bytes_up)),
                Cell::from(bytes(m.bytes_down)),
                zero(m.redispatched),
                zero(m.hedged),
                failed,
                Cell::from(m.max_error.map_or("–".to_owned(), number)),
                Cell::from(number(m.condition)),
            ]);
        }
    }
    let head = [
        "Method",
        "work",
        "of it unused",
        "sent",
        "received",
        "handed out again",
        "copied to idle workers",
        "failed",
        "relative error",
        "condition",
    ];
    Table {
        caption: "Work: multiply-adds begun on workers over those of the layer. Unused: the share of it whose results \
                  were not needed. Work, bytes, and subtasks handed out again or copied are means of a run; the \
                  error is the greatest (L2, against the uncoded reference), the condition number the median."
            .to_owned(),
        head: head.map(str::to_owned).into(),
        rows,
    }
}

fn plans(study: &Study) -> Table {
    let quiet = study.scenarios.iter().find(|s| s.stragglers == Some(0) || s.faults.is_empty());
    let row = |plan: &crate::schema::MethodPlan| {
        let measured = quiet.and_then(|s| s.methods.iter().find(|m| m.method == plan.method));
        vec![
            Cell::from(format!("{}\n{}", plan.method, plan.about)),
            Cell::from(plan.code.as_str()),
            Cell::from(plan.n.to_string()),
            Cell::from(plan.recovery_threshold.to_string()),
            Cell::from(plan.tolerated.to_string()),
            Cell::from(plan.k_a.to_string()),
            Cell::from(plan.k_b.to_string()),
            Cell::from(format!("×{}", number(plan.work))),
            Cell::from(bytes(plan.upload_bytes)),
            Cell::from(bytes(plan.download_bytes)),
            Cell::from(bytes(plan.filter_bytes)),
            Cell::from(plan.predicted_ms.map_or("–".to_owned(), number)),
            Cell::from(measured.map_or("–".to_owned(), |m| with_interval(&m.median).replacen(' ', "\n", 1))),
        ]
    };
    let head = [
        "Method",
        "code",
        "subtasks n",
        "needed δ",
        "may be missing",
        "k_A",
        "k_B",
        "work",
        "upload",
        "download",
        "filters of a subtask",
        "predicted ms",
        "measured ms",
    ];
    Table {
        caption: format!(
            "k_A and k_B: parts that input and filters are cut into. Predicted: the planner, for a run with no worker late. \
             Measured: the median in “{}”.",
            quiet.map_or("no such scenario", |s| s.name.as_str())
        ),
        head: head.map(str::to_owned).into(),
        rows: study.plans.iter().map(row).collect(),
    }
}
