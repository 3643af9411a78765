//! The page of a study of condition numbers and errors: stability.html.
//!
//! Invariant: the page is a pure function of the report; it does not mention parts that were not studied.

mod errors;

use super::chart::{Chart, Kind, Mark, Series};
use super::findings::listed;
use super::format::number;
use super::page::{Block, Cell, Class, Page, Section, Table};
use super::schema::Conditions;
use super::stability_findings::{Reach, codes, condition, reach};
use super::stability_record::{StabilityReport, Sweep, USABLE};

/// Colours by code family, the same in every picture.
const COLORS: [(&str, usize); 4] = [("crme", 1), ("chebyshev", 2), ("vandermonde", 3), ("khatri-rao", 4)];

fn color(code: &str) -> usize {
    COLORS.iter().find(|(name, _)| *name == code).map_or(0, |(_, color)| *color)
}

fn greek(text: &str) -> String {
    text.replace("n - delta", "n − δ").replace("delta", "δ")
}

fn epsilon(dtype: &str) -> f64 {
    if dtype == "f32" { f32::EPSILON.into() } else { f64::EPSILON }
}

/// The page.
#[must_use]
pub fn page(report: &StabilityReport) -> Page {
    let lead = [
        "How far can a code be used before it loses the digits of a result? A coded layer is computed by n subtasks, any δ of which give the output: the missing ones are worked out of those \
         that came by solving a linear system. Its condition number is the factor by which that solution may amplify rounding \
         errors, and it depends on the code and on which subtasks answered.",
        "Here are condition numbers of every code family over its responder sets, and what is left of real convolutions after \
         encoding, computing and decoding them. All families are compared at the same n and δ, where a subtask is a δ-th of \
         the layer with each of them; replication, whose subtasks are larger, only copies and has condition number 1.",
        "As a rule of thumb, relative error is condition number times machine epsilon (1.2×10⁻⁷ in f32, 2.2×10⁻¹⁶ in f64). \
         A code is called usable here while that leaves three digits.",
    ];
    let mut sections = vec![Section {
        id: "findings".to_owned(),
        heading: "What came out".to_owned(),
        blocks: vec![Block::List(report.findings.iter().map(|text| greek(text)).collect())],
        ..Section::default()
    }];
    sections.extend(sweeps(report));
    sections.extend(waiting(report));
    sections.extend(errors::section_of(report));
    sections.extend(stops(report));
    sections.push(tables(report));
    sections.extend(hosts(report));
    sections.extend(left_out(report));
    sections.push(reproduce(report));
    let picture: Vec<Chart> = report.sweep.iter().map(worst_cases).collect();
    Page {
        title: "Numerical stability of coded convolution".to_owned(),
        answer: answer(report),
        caption: if picture.is_empty() { String::new() } else { CAPTION.to_owned() },
        picture,
        lead: lead.map(str::to_owned).into(),
        facts: facts(report),
        sections,
    }
}

const CAPTION: &str = "The worst condition number seen, against the number of subtasks n; lower is better. Above a dashed line \
                       less than three digits are left in that arithmetic. Axes up are logarithmic; a line ends where \
                       some responders do not decode at all.";

/// One sentence: up to which n each code is usable in f32, the best first.
fn answer(report: &StabilityReport) -> String {
    let Some(sweep) = report.sweep.last() else {
        return report.findings.first().map_or_else(String::new, |text| greek(text));
    };
    // Codes that reach equally far, the furthest first.
    let mut groups: Vec<(Reach, Vec<&str>)> = Vec::new();
    for code in codes(sweep) {
        let to = reach(sweep, code, f32::EPSILON.into());
        match groups.iter_mut().find(|(known, _)| *known == to) {
            Some((_, codes)) => codes.push(code),
            None => groups.push((to, vec![code])),
        }
    }
    groups.sort_by_key(|(to, _)| std::cmp::Reverse(to.n));
    let each: Vec<String> = groups
        .into_iter()
        .map(|(to, codes)| match (to, codes.join(" or ")) {
            (Reach { n: 0, .. }, codes) => format!("nowhere with {codes}"),
            (Reach { n, whole: true }, codes) => format!("at every n up to {n} with {codes}"),
            (Reach { n, .. }, codes) => format!("up to n\u{a0}=\u{a0}{n} with {codes}"),
        })
        .collect();
    let rule = greek(&sweep.label).replace(' ', "\u{a0}");
    // Of sets that are too many to look at each, a worse one may exist.
    let seen = if sweep.points.iter().all(|point| point.exhaustive) { "" } else { " seen" };
    format!("With the worst responders{seen}, f32 keeps three digits {} ({rule}).", listed(&each))
}

/// The worst condition numbers of a sweep, one line a code.
fn worst_cases(sweep: &Sweep) -> Chart {
    let line = |code: &str| {
        let points = sweep.points.iter().filter(|point| point.code == code);
        Series {
            label: code.to_owned(),
            points: points.map(|point| (point.n as f64, point.worst)).collect(),
            color: color(code),
            ..Series::default()
        }
    };
    Chart {
        title: greek(&sweep.label),
        y_label: "worst condition number".to_owned(),
        end_labels: true,
        series: codes(sweep).into_iter().map(line).collect(),
        ..sweep_axes(sweep)
    }
}

/// The axes that all pictures of a sweep have.
fn sweep_axes(sweep: &Sweep) -> Chart {
    let places = || sweep.points.iter().map(|point| point.n as f64);
    let (least, most) = (places().fold(f64::INFINITY, f64::min), places().fold(0.0, f64::max));
    Chart {
        title: greek(&sweep.label),
        x_label: "number of subtasks n".to_owned(),
        x_range: Some((least, most)),
        y_log: true,
        y_range: Some((1.0, 1e17)),
        marks: limits(),
        ..Chart::default()
    }
}

fn facts(report: &StabilityReport) -> Vec<(String, String)> {
    let setting = &report.setting;
    [
        ("Machine", format!("{}, {}", setting.hardware, setting.system)),
        ("Date", setting.date.clone()),
        ("Version", format!("fcdcc {}", setting.version)),
        ("Arithmetic", setting.precision.clone()),
        ("Seed", setting.seed.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn section(id: &str, heading: &str, text: &[&str], blocks: Vec<Block>) -> Section {
    let text = text.iter().map(|text| (*text).to_owned()).collect();
    Section { id: id.to_owned(), heading: heading.to_owned(), text, blocks }
}

fn head(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Up to which n each code is usable.
fn stops(report: &StabilityReport) -> Option<Section> {
    let codes = codes(report.sweep.first()?);
    let mut rows = Vec::new();
    for dtype in ["f32", "f64"] {
        for sweep in &report.sweep {
            let reaches: Vec<Reach> = codes.iter().map(|code| reach(sweep, code, epsilon(dtype))).collect();
            let most = reaches.iter().map(|reach| reach.n).max().unwrap_or(0);
            let cell = |reach: &Reach| {
                let class = match reach.n {
                    0 => Class::Muted,
                    n if n == most => Class::Best,
                    _ => Class::Plain,
                };
                match reach {
                    Reach { n: 0, .. } => Cell::new("–", class),
                    Reach { n, whole: true } => Cell::new(format!("≥{n}"), class),
                    Reach { n, .. } => Cell::new(n.to_string(), class),
                }
            };
            let first = Cell::from(format!("{dtype}, {}", greek(&sweep.label)));
            rows.push(std::iter::once(first).chain(reaches.iter().map(cell)).collect());
        }
    }
    let table = Table {
        caption: "Largest n up to which every worst case is usable (≥: the sweep ends there)".to_owned(),
        head: head(&[&["arithmetic, stragglers"], &codes[..]].concat()),
        rows,
    };
    let limit = |dtype| number(USABLE / epsilon(dtype));
    let text = format!(
        "Three digits are left while the condition number is below {} in f32 and {} in f64. These figures are for the worst \
         responders; most sets are far better, as the medians further down show, so a code can be used beyond if bad sets are \
         refused (--max-error) or one more result is waited for (--patience).",
        limit("f32"),
        limit("f64")
    );
    Some(section("stops", "Where each code stops", &[&text], vec![Block::Table(table)]))
}

fn tables(report: &StabilityReport) -> Section {
    let mut blocks = Vec::new();
    for table in &report.tables {
        let rival = |row: &&Conditions| row.code != "replication" && row.code != "uncoded";
        let by_code = table.rows.iter().any(|row| row.code != "crme");
        let best = table.rows.iter().filter(rival).map(|row| row.worst).fold(f64::INFINITY, f64::min);
        let row = |row: &Conditions| {
            let first = if by_code { row.code.clone() } else { format!("n = {}", row.n) };
            let worst = if by_code && row.worst == best {
                Class::Best
            } else if by_code && row.worst * f64::from(f32::EPSILON) > USABLE {
                Class::Worse
            } else {
                Class::Plain
            };
            let sets = format!("{}{}", if row.exhaustive { "" } else { "~" }, row.sets);
            vec![
                Cell::from(first),
                Cell::from(format!("{}, {}", row.k_a, row.k_b)),
                Cell::from(row.recovery_threshold.to_string()),
                Cell::new(sets, Class::Muted),
                Cell::from(condition(row.median)),
                Cell::from(condition(row.p90)),
                Cell::from(condition(row.p99)),
                Cell::new(condition(row.worst), worst),
                Cell::from(times(row.worst, f32::EPSILON.into())),
                Cell::from(times(row.worst, f64::EPSILON)),
            ]
        };
        let names = [
            if by_code { "code" } else { "subtasks" },
            "k_A, k_B",
            "δ",
            "sets",
            "median",
            "90 %",
            "99 %",
            "worst",
            "worst × ε (f32)",
            "worst × ε (f64)",
        ];
        blocks.push(Block::Table(Table {
            caption: greek(&table.label),
            head: head(&names),
            rows: table.rows.iter().map(row).collect(),
        }));
    }
    section(
        "conditions",
        "Condition numbers",
        &[
            "Over the sets of exactly δ responders (of replication: of as many as always suffice). Where there are too many to \
           look at each (~), quantiles are of a random sample, and the worst is the worst seen in it and among sets known to be \
           bad: runs of neighbouring subtasks missing, every second one missing, and the like. The best worst case of a table \
           is green; those that leave less than three digits of f32 are red.",
        ],
        blocks,
    )
}

fn times(condition: f64, epsilon: f64) -> String {
    if condition > 1e15 { format!(">{}", number(1e15 * epsilon)) } else { number(condition * epsilon) }
}

fn limits() -> Vec<Mark> {
    ["f32", "f64"]
        .map(|dtype| Mark::Horizontal { at: USABLE / epsilon(dtype), label: format!("limit of {dtype}") })
        .into()
}

fn sweeps(report: &StabilityReport) -> Option<Section> {
    let figure = |sweep: &Sweep| {
        let mut series = Vec::new();
        for code in codes(sweep) {
            let line = |of: fn(&Conditions) -> f64| {
                let points = sweep.points.iter().filter(|point| point.code == code);
                points.map(|point| (point.n as f64, of(point))).collect()
            };
            let (color, worst, middle) = (color(code), line(|c| c.worst), line(|c| c.median));
            series.push(Series { label: code.to_owned(), points: worst, color, ..Series::default() });
            series.push(Series { points: middle, kind: Kind::Dashed, color, ..Series::default() });
        }
        let chart = Chart {
            y_label: "condition number: worst seen (solid), median (dashed)".to_owned(),
            series,
            ..sweep_axes(sweep)
        };
        (chart.svg(), String::new())
    };
    let figures: Vec<_> = report.sweep.iter().map(figure).collect();
    (!figures.is_empty()).then(|| {
        section(
            "sweep",
            "Worst and median against the number of subtasks",
            &["With a fixed number of stragglers, and with a fifth of the subtasks. Above 10¹⁵ the computed condition numbers \
               are themselves lost to rounding. CRME takes an odd number of roots: with an even n it is as if one more were \
               always missing, which is what its steps are, and why an odd n is the better choice. Khatri-Rao codes are random, \
               one draw for each n, and bad sets of theirs follow no pattern: a sample shows little of their worst."],
            vec![Block::Figures(figures)],
        )
    })
}

fn waiting(report: &StabilityReport) -> Option<Section> {
    let first = &report.responders.first()?.conditions;
    let mut names: Vec<&str> = Vec::new();
    for point in &report.responders {
        if !names.contains(&&*point.conditions.code) {
            names.push(&point.conditions.code);
        }
    }
    let mut series = Vec::new();
    for &code in &names {
        let line = |of: fn(&Conditions) -> f64| {
            let points = report.responders.iter().filter(|point| point.conditions.code == code);
            points.map(|point| (point.responders as f64, of(&point.conditions))).collect()
        };
        let (color, worst, middle) = (color(code), line(|c| c.worst), line(|c| c.median));
        let kind = Kind::LineMarkers;
        series.push(Series { label: code.to_owned(), points: worst, kind, color, ..Series::default() });
        series.push(Series { points: middle, kind: Kind::Dashed, color, ..Series::default() });
    }
    let chart = Chart {
        title: format!("n = {}, δ = {}", first.n, first.recovery_threshold),
        x_label: "subtasks that have answered".to_owned(),
        y_label: "condition number: worst seen (solid), median (dashed)".to_owned(),
        y_log: true,
        series,
        marks: limits(),
        ..Chart::default()
    };
    let mut rows = Vec::new();
    for at in first.recovery_threshold..=first.n {
        let cells = names.iter().map(|code| {
            let wanted = report.responders.iter().find(|p| p.responders == at && p.conditions.code == **code);
            let text = wanted.map(|p| {
                format!("{}\nmedian {}", condition(p.conditions.worst), condition(p.conditions.median))
            });
            Cell::from(text.unwrap_or_default())
        });
        rows.push(std::iter::once(Cell::from(at.to_string())).chain(cells).collect());
    }
    let table = Table {
        caption: "Worst condition number seen".to_owned(),
        head: head(&[&["answered"], &names[..]].concat()),
        rows,
    };
    Some(section(
        "waiting",
        "Waiting for more",
        &[
            "δ responders suffice, but least squares over more of them is better conditioned: a run waits for one more where \
           the set at hand is bad and the next result is not far.",
        ],
        vec![
            Block::Figure { svg: chart.svg(), caption: String::new() },
            Block::Details { summary: "The same as numbers".to_owned(), blocks: vec![Block::Table(table)] },
        ],
    ))
}

fn hosts(report: &StabilityReport) -> Option<Section> {
    let first = report.hosts.first()?;
    let row = |host: &super::stability_record::HostLoss| {
        let better = |own: f64, other: f64| if own < other { Class::Best } else { Class::Plain };
        vec![
            Cell::from(&*host.code),
            Cell::new(condition(host.adjacent), better(host.adjacent, host.interleaved)),
            Cell::new(condition(host.interleaved), better(host.interleaved, host.adjacent)),
        ]
    };
    let table = Table {
        caption: format!(
            "Worst condition number after the loss of one of {} hosts (n\u{a0}=\u{a0}{})",
            first.hosts, first.n
        ),
        head: head(&["code", "neighbours on one host", "interleaved"]),
        rows: report.hosts.iter().map(row).collect(),
    };
    let each = first.n / first.hosts;
    let text = format!(
        "A host that is lost takes all its subtasks with it. Neighbouring roots are the bad case of rotation codes, so host h \
         should hold subtasks h, h + {0}, h + {1} and so on ({each} each), which is how runs assign them.",
        first.hosts,
        2 * first.hosts
    );
    Some(section("hosts", "Losing a host", &[&text], vec![Block::Table(table)]))
}

fn left_out(report: &StabilityReport) -> Option<Section> {
    let said = report.left_out.iter().map(|out| greek(&format!("{}: {}", out.what, out.reason)));
    let said: Vec<String> = said.collect();
    (!said.is_empty()).then(|| section("left-out", "Left out", &[], vec![Block::List(said)]))
}

fn reproduce(report: &StabilityReport) -> Section {
    let text = format!(
        "Every figure depends on the command and its seed alone (errors also on the order in which the processor's vector \
         units add); computed on {} on {}, up to {} random sets a code.",
        report.setting.hardware, report.setting.date, report.setting.trials
    );
    section("reproduce", "Reproduce", &[&text], vec![Block::Code(command(report))])
}

/// The command line, with the program's path reduced to its name.
fn command(report: &StabilityReport) -> String {
    let command = &report.setting.command;
    match command.split_once(' ') {
        Some((program, rest)) => format!("{} {rest}", program.rsplit(['/', '\\']).next().unwrap_or(program)),
        None => command.clone(),
    }
}

#[cfg(test)]
mod tests;
