//! The report of a load on a server: how long its users wait, and what a closed-loop client would have missed.
//!
//! Invariant: every number on the page is one of the [`LoadReport`].

use super::chart::{Chart, Kind, Series};
use super::format::{number, time};
use super::load::LoadReport;
use super::page::{Block, Cell, Page, Section, Table};

/// Points of a curve of quantiles.
const POINTS: usize = 200;

/// The report as a page.
#[must_use]
pub fn page(report: &LoadReport) -> Page {
    let (load, setting) = (&report.load, &report.setting);
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let answer = report.findings.get(1).or(report.findings.first()).cloned().unwrap_or_default();
    Page {
        title: format!("Load on model {} of {}", load.model, load.url),
        answer,
        picture: if report.latencies_ms.is_empty() { Vec::new() } else { vec![over_time(report)] },
        caption: "The latency of each request against its place in the order of arrival. Latencies count from the time at \
                  which a request arrived, whether or not a connection was free."
            .to_owned(),
        lead: vec![
            "Requests arrived by a schedule that was drawn before the first one, whatever the server did. A client that waits \
             for an answer before it sends the next request slows down with the server and misses its slow answers."
                .to_owned(),
        ],
        facts: vec![
            fact("Measured", setting.date.clone()),
            fact("Client", format!("{}, {}", setting.hardware, setting.system)),
            fact("Model", format!("{}, version {}", load.model, load.version)),
            fact("Inputs", load.inputs.clone()),
            fact("Arrivals", format!("{}, {} a second for {} s", load.arrivals, number(load.rate), number(load.seconds))),
            fact("Connections", format!("at most {}", load.connections)),
            fact("Longest time for an answer", time(load.limit_ms)),
            fact("Command", setting.command.clone()),
        ],
        sections: vec![
            section("findings", "What was found", vec![Block::List(report.findings.clone())]),
            section("latencies", "Latencies", vec![Block::Table(percentiles(report))]),
            section("outcomes", "Outcomes", vec![Block::Table(outcomes(report))]),
        ],
    }
}

fn section(id: &str, heading: &str, blocks: Vec<Block>) -> Section {
    Section { id: id.to_owned(), heading: heading.to_owned(), text: Vec::new(), blocks }
}

/// Latencies in the order of arrival; of many requests the greatest of each stretch.
fn over_time(report: &LoadReport) -> Chart {
    let stretch = report.latencies_ms.len().div_ceil(POINTS).max(1);
    let greatest = |(index, chunk): (usize, &[f64])| {
        ((index * stretch) as f64, chunk.iter().copied().fold(0.0, f64::max))
    };
    let points = report.latencies_ms.chunks(stretch).enumerate().map(greatest).collect();
    Chart {
        x_label: "requests in the order of arrival".to_owned(),
        y_label: "latency in ms".to_owned(),
        series: vec![Series { points, kind: Kind::Line, color: 1, ..Series::default() }],
        ..Chart::default()
    }
}

fn percentiles(report: &LoadReport) -> Table {
    let cell = |value: Option<f64>| Cell::from(value.map_or_else(|| "–".to_owned(), time));
    let rows = report.latency.rows().into_iter().zip(report.service.rows());
    Table {
        caption: "Of requests that were answered, and of those without an answer in time".to_owned(),
        head: ["", "from arrival", "from sending"].map(str::to_owned).into(),
        rows: rows
            .map(|((name, latency), (_, service))| vec![Cell::from(name), cell(latency), cell(service)])
            .collect(),
    }
}

fn outcomes(report: &LoadReport) -> Table {
    let of = &report.outcomes;
    let mut rows = vec![
        ("right".to_owned(), of.right),
        ("wrong".to_owned(), of.wrong),
        ("no answer in time".to_owned(), of.timed_out),
        ("no connection, or a lost one".to_owned(), of.broken),
    ];
    rows.extend(of.statuses.iter().map(|(status, count)| (format!("status {status}"), *count)));
    Table {
        caption: format!("{} requests", of.sent),
        head: ["outcome", "requests"].map(str::to_owned).into(),
        rows: rows
            .into_iter()
            .map(|(name, count)| vec![Cell::from(name), Cell::from(count.to_string())])
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Load, Outcomes, Times};
    use crate::machine;

    #[test]
    fn the_page_shows_every_outcome_and_percentile() {
        let load = Load {
            url: "http://h:1".to_owned(),
            model: "<m>".to_owned(),
            version: "2".to_owned(),
            inputs: "x [1]".to_owned(),
            arrivals: "poisson".to_owned(),
            rate: 10.0,
            seconds: 50.0,
            connections: 4,
            limit_ms: 1000.0,
        };
        let times: Vec<Times> = (0..500)
            .map(|i| Times { latency_ms: f64::from(i), service_ms: f64::from(i) / 2.0, counts: true })
            .collect();
        let outcomes =
            Outcomes { sent: 503, right: 499, wrong: 1, statuses: [(503, 3)].into(), ..Outcomes::default() };
        let setting = machine::setting("served", String::new(), String::new(), 1, 503);
        let report = LoadReport::new(setting, load, outcomes, &times, 50.0, 0.5);
        let page = page(&report);
        assert_eq!(page.picture[0].series[0].points.len(), 167);
        let html = page.html();
        for part in ["&lt;m&gt;", "status 503", "p99.9", "1 answers were wrong", "would have measured"] {
            assert!(html.contains(part), "{part}");
        }
        let none = LoadReport { latencies_ms: Vec::new(), ..report };
        assert!(page_of(&none).picture.is_empty());
    }

    fn page_of(report: &LoadReport) -> Page {
        page(report)
    }
}
