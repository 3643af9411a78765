//! The report of a study under load: latency against load, what each method costs, and the map over two ratios.
//!
//! Invariant: every number on the page is one of the [`LoadStudy`].

use super::chart::{Chart, Grid, GridCell, Kind, Mark, Series};
use super::format::{bytes, number, percent, rough, time};
use super::page::{Block, Cell, Class, Page, Section, Table};
use super::under_load::{
    LoadMethod, LoadStudy, Map, MethodLatencies, ModelStudy, Point, State, best, named, verdict,
};

/// Colours of the methods in charts, and how their lines are drawn.
fn look(method: LoadMethod) -> (usize, Kind) {
    match method {
        LoadMethod::Local => (0, Kind::LineMarkers),
        LoadMethod::Replicas => (2, Kind::LineMarkers),
        LoadMethod::ReplicasHedged => (5, Kind::LineMarkers),
        LoadMethod::ReplicasDouble => (1, Kind::LineMarkers),
        LoadMethod::Uncoded => (7, Kind::LineMarkers),
        LoadMethod::UncodedHedged => (6, Kind::LineMarkers),
        LoadMethod::Crme => (3, Kind::LineMarkers),
        LoadMethod::CrmeHedged => (4, Kind::LineMarkers),
        LoadMethod::Planned => (4, Kind::Dashed),
    }
}

/// The study as a page.
#[must_use]
pub fn page(study: &LoadStudy) -> Page {
    let spec = &study.spec;
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let title = if spec.title.is_empty() { "Methods under load".to_owned() } else { spec.title.clone() };
    let mut sections = vec![section("findings", "What was found", vec![Block::List(study.findings.clone())])];
    for model in study.models.iter().filter(|model| !model.points.is_empty()) {
        sections.push(of_model(model));
    }
    sections.extend(study.maps.iter().map(|map| of_map(map, study)));
    sections.push(section("file", "The load file", vec![Block::Code(text_of(spec))]));
    let machines = &spec.machines;
    let picture: Vec<Chart> =
        study.models.iter().filter(|model| !model.points.is_empty()).take(4).map(p99).collect();
    Page {
        title,
        answer: study.findings.first().cloned().unwrap_or_default(),
        caption: if picture.is_empty() { String::new() } else { CAPTION.to_owned() },
        picture,
        lead: vec![LEAD.to_owned()],
        facts: vec![
            fact("Simulated", study.setting.date.clone()),
            fact(
                "Machines",
                format!(
                    "{} of {} G multiply-adds a second, on links of {} Mbit/s",
                    machines.count,
                    number(machines.mac_rate),
                    number(machines.link_mbit)
                ),
            ),
            fact(
                "Master",
                format!(
                    "{} cores of {} G multiply-adds a second, on a link of {} Mbit/s",
                    spec.master.cores,
                    number(spec.master.mac_rate),
                    number(spec.master.link_mbit)
                ),
            ),
            fact(
                "Groups",
                format!("{} machines, of which {} may be late", spec.coding.group, spec.coding.tolerate),
            ),
            fact(
                "Requests",
                format!(
                    "{} in each of {} runs, after {} for warming up",
                    spec.requests, spec.runs, spec.warmup
                ),
            ),
            fact("Seed", spec.seed.to_string()),
            fact("Command", study.setting.command.clone()),
        ],
        sections,
    }
}

const CAPTION: &str = "The 99th percentile of the time from arrival to answer against the arrival rate, as a share of what one \
     replica a machine could answer without faults. A line ends where its method is saturated.";
const LEAD: &str = "Simulated in virtual time. Requests arrive by a schedule, whatever the system does, and latencies count \
     from their arrival. All methods meet the same arrivals and the same faults. Hedged methods were run with every quantile \
     of the file, and the best one is shown.";

fn section(id: &str, heading: &str, blocks: Vec<Block>) -> Section {
    Section { id: id.to_owned(), heading: heading.to_owned(), text: Vec::new(), blocks }
}

/// The load file with all defaults, as JSON: the values matter, not the notation.
fn text_of(spec: &super::under_load::LoadSpec) -> String {
    serde_json::to_string_pretty(spec).unwrap_or_default()
}

fn curves(model: &ModelStudy, value: impl Fn(&MethodLatencies) -> Option<f64>) -> Vec<Series> {
    let methods = model.points.first().map(|point| point.methods.as_slice()).unwrap_or_default();
    let series = methods.iter().enumerate().map(|(index, method)| {
        let at = |point: &Point| {
            let y = point.methods.get(index).and_then(&value).unwrap_or(f64::NAN);
            (point.load * 100.0, y)
        };
        let (color, kind) = look(method.method);
        let points = model.points.iter().map(at).collect();
        Series { label: method.method.name().to_owned(), points, kind, color, ..Series::default() }
    });
    series.collect()
}

fn p99(model: &ModelStudy) -> Chart {
    Chart {
        title: format!("{}: 99th percentile", model.model),
        x_label: "arrivals in % of the capacity of one replica a machine".to_owned(),
        y_label: "ms from arrival to answer".to_owned(),
        y_log: true,
        series: curves(model, |method| method.p99),
        marks: vec![Mark::Horizontal { at: model.service_ms, label: "one machine, idle".to_owned() }],
        ..Chart::default()
    }
}

fn of_model(model: &ModelStudy) -> Section {
    let median = Chart {
        title: "Median".to_owned(),
        y_label: "ms from arrival to answer".to_owned(),
        x_label: "arrivals in % of the capacity".to_owned(),
        y_log: true,
        series: curves(model, |method| method.p50),
        ..Chart::default()
    };
    let cost = Chart {
        title: "Processor seconds of machines and master".to_owned(),
        y_label: "seconds a request".to_owned(),
        x_label: "arrivals in % of the capacity".to_owned(),
        series: curves(model, |method| Some(method.usage.machine_s + method.usage.master_s)),
        ..Chart::default()
    };
    let about = format!(
        "{} multiply-adds a request. A machine without faults takes {}, the master {}. Load 100 % is {} requests a second.",
        number(model.macs),
        time(model.service_ms),
        time(model.local_ms),
        number(model.capacity)
    );
    let blocks = vec![
        Block::Text(about),
        Block::Figures(vec![(median.svg(), String::new()), (cost.svg(), String::new())]),
        Block::Table(latencies(model)),
        Block::Table(costs(model)),
    ];
    section(&model.model, &model.model, blocks)
}

fn heading(point: &Point) -> Vec<Cell> {
    vec![Cell::from(format!(
        "{} of the capacity, {} requests a second",
        percent(point.load),
        number(point.rate)
    ))]
}

fn latencies(model: &ModelStudy) -> Table {
    let mut rows = Vec::new();
    for point in &model.points {
        rows.push(heading(point));
        let least = best(&point.methods, |_| true).map(|method| method.method);
        for method in &point.methods {
            let cell = |value: Option<f64>| Cell::from(value.map_or_else(|| "–".to_owned(), time));
            let class = if least == Some(method.method) { Class::Best } else { Class::Plain };
            let p99 = method.p99.map_or_else(|| "–".to_owned(), time);
            let runs = method.p99_of_runs.map_or_else(String::new, |[low, high]| {
                if low == high { String::new() } else { format!("\n{} – {}", time(low), time(high)) }
            });
            let state = match method.state {
                State::Steady => Cell::from("steady"),
                State::Saturated => Cell::new(format!("saturated\n{}", method.reason), Class::Worse),
                State::Unfinished => Cell::new(format!("unfinished\n{}", method.reason), Class::Worse),
            };
            rows.push(vec![
                Cell::from(named(method)),
                cell(method.p50),
                cell(method.p90),
                Cell::new(format!("{p99}{runs}"), class),
                cell(method.p999),
                Cell::from(method.failed.to_string()),
                state,
            ]);
        }
    }
    Table {
        caption:
            "From arrival to answer; under the 99th percentile the least and the greatest of a single run"
                .to_owned(),
        head: ["", "p50", "p90", "p99", "p99.9", "failed", "state"].map(str::to_owned).into(),
        rows,
    }
}

fn costs(model: &ModelStudy) -> Table {
    let mut rows = Vec::new();
    for point in &model.points {
        rows.push(heading(point));
        for method in &point.methods {
            let usage = &method.usage;
            rows.push(vec![
                Cell::from(named(method)),
                Cell::from(number(method.throughput)),
                Cell::from(format!("{} s", number(usage.machine_s))),
                Cell::from(percent(usage.wasted)),
                Cell::from(format!("{} s", number(usage.master_s))),
                Cell::from(bytes(usage.bytes_out)),
                Cell::from(bytes(usage.bytes_in)),
                Cell::from(number(usage.hedged)),
                Cell::from(percent(usage.busiest_machine)),
                Cell::from(percent(usage.link_out.max(usage.link_in))),
                Cell::from(percent(usage.master)),
            ]);
        }
    }
    let head = [
        "",
        "answers a second",
        "machines",
        "wasted",
        "master",
        "bytes out",
        "bytes in",
        "sent twice",
        "busiest machine",
        "master's link",
        "master busy",
    ];
    Table { caption: "What a request costs".to_owned(), head: head.map(str::to_owned).into(), rows }
}

/// The map as a picture: the best method of each cell, and what coding gains or loses.
#[must_use]
pub fn grid(map: &Map) -> Grid {
    let mut columns: Vec<f64> = map.cells.iter().map(|cell| cell.macs_per_byte).collect();
    columns.dedup();
    let first = columns.first().copied();
    // The first row ends where its first ratio comes again.
    let again = columns.iter().skip(1).position(|value| Some(*value) == first);
    columns.truncate(again.map_or(columns.len(), |at| at + 1));
    let width = columns.len().max(1);
    let rows = map.cells.iter().step_by(width).map(|cell| number(cell.delay_ratio)).collect();
    let mut present: Vec<LoadMethod> = map.cells.iter().filter_map(|cell| cell.best).collect();
    present.sort_by_key(|method| LoadMethod::ALL.iter().position(|other| other == method));
    present.dedup();
    let cell = |cell: &super::under_load::Cell| {
        let name = cell.best.and_then(|best| present.iter().position(|method| *method == best));
        let small = cell.coding_gain.map_or_else(String::new, |gain| {
            let sure = if verdict(cell).is_some() { "" } else { "~" };
            format!("{sure}×{}", rough(gain))
        });
        let gain = cell.coding_gain.unwrap_or(1.0);
        let strength = 0.25 + 0.5 * gain.max(1.0 / gain).ln().min(1.0);
        let text = cell.best.map_or("none steady", LoadMethod::name).to_owned();
        GridCell { name, strength, text, small }
    };
    Grid {
        title: String::new(),
        x_label: "multiply-adds a second of a machine over bytes a second of a link".to_owned(),
        y_label: "mean delay of a straggler over the time of the whole model on a machine".to_owned(),
        names: present.iter().map(|method| (method.name().to_owned(), look(*method).0)).collect(),
        columns: columns.into_iter().map(number).collect(),
        rows,
        cells: map.cells.iter().map(cell).collect(),
    }
}

fn of_map(map: &Map, study: &LoadStudy) -> Section {
    let caption = format!(
        "The method with the least 99th percentile at {} of the capacity. The number is the least 99th percentile without \
         coding over the least with coding: above 1 coding wins; with ~ the runs do not agree.",
        percent(map.load)
    );
    let mut text = vec![format!(
        "A request has {} multiply-adds for each byte of its input and output.",
        number(map.macs_per_byte_of_ends)
    )];
    if let Some(spec) = &study.spec.map {
        text.push(format!(
            "Stragglers: {:?}, {} of the time or of the tasks, {:?} law. The machines stay; all links change along a row.",
            spec.straggler,
            percent(spec.share),
            spec.tail
        ));
    }
    let blocks = vec![
        Block::Figure { svg: grid(map).svg(), caption },
        Block::Details { summary: "All cells".to_owned(), blocks: vec![Block::Table(cells(map))] },
    ];
    let heading = format!("{}: where coding pays", map.model);
    Section { id: format!("map-{}", map.model), heading, text, blocks }
}

fn cells(map: &Map) -> Table {
    let mut rows = Vec::new();
    for cell in &map.cells {
        rows.push(vec![Cell::from(format!(
            "{} multiply-adds a byte, delay {} times the service time",
            number(cell.macs_per_byte),
            number(cell.delay_ratio)
        ))]);
        for method in &cell.methods {
            let value = |value: Option<f64>| Cell::from(value.map_or_else(|| "–".to_owned(), time));
            let class = if cell.best == Some(method.method) { Class::Best } else { Class::Plain };
            let state = if method.state == State::Steady { String::new() } else { method.reason.clone() };
            rows.push(vec![
                Cell::from(named(method)),
                value(method.p50),
                Cell::new(method.p99.map_or_else(|| "–".to_owned(), time), class),
                Cell::from(state),
            ]);
        }
    }
    Table {
        caption: "All methods of every cell".to_owned(),
        head: ["", "p50", "p99", ""].map(str::to_owned).into(),
        rows,
    }
}
