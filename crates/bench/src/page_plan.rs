//! The page of `fcdcc plan`: the time of every feasible pair (k_A, k_B) as predicted, as measured, and by the paper's
//! cost.

use super::chart::{Chart, Kind, Mark, Series};
use super::convexity::{Convexity, Pair};
use super::format::{number, time};
use super::page::{Block, Cell, Class, Page, Section, Table};
use super::schema::Environment;

/// A chosen pair counts as right if it takes at most this many times as long as the fastest.
const CLOSE: f64 = 1.1;
/// A prediction counts as good within this factor of the measured time.
const GOOD: f64 = 1.25;

/// The page of these layers.
#[must_use]
pub fn page(setting: &Environment, layers: &[Convexity]) -> Page {
    let measured = layers.iter().any(|layer| layer.regret().is_some());
    let mut sections = vec![summary(layers, measured)];
    sections.push(Section {
        id: "layers".to_owned(),
        heading: "Every pair of every layer".to_owned(),
        text: vec![format!(
            "At one recovery threshold every pair computes and downloads the same. With k_A the uploads of a subtask \
             fall and its filters grow, so the paper's cost is convex in k_A and least near the dashed line. The \
             predicted time{} is that of the whole layer: encoding, waiting, decoding.",
            if measured { " and the measured one (median)" } else { "" }
        )],
        blocks: vec![Block::Figures(layers.iter().map(figure).collect())],
    });
    sections.push(Section {
        id: "tables".to_owned(),
        heading: "The figures".to_owned(),
        text: Vec::new(),
        blocks: vec![Block::Details {
            summary: "Every pair in numbers".to_owned(),
            blocks: layers.iter().map(|layer| Block::Table(table(layer))).collect(),
        }],
    });
    sections.push(Section {
        id: "again".to_owned(),
        heading: "Run it again".to_owned(),
        text: Vec::new(),
        blocks: vec![Block::Code(setting.command.clone())],
    });
    Page {
        title: "How layers are divided".to_owned(),
        lead: vec![
            "A layer is cut into k_A slabs of its input and k_B banks of its filters, and coded so that any delta of n \
             subtasks suffice. Many pairs (k_A, k_B) have the same delta; the planner takes the one that it predicts \
             to be fastest, from rates measured on this machine."
                .to_owned(),
        ],
        facts: vec![
            ("Hardware".to_owned(), setting.hardware.clone()),
            ("System".to_owned(), setting.system.clone()),
            ("Workers".to_owned(), setting.workers.clone()),
            ("Precision".to_owned(), setting.precision.clone()),
            ("Trials of each pair".to_owned(), setting.trials.to_string()),
            ("Seed".to_owned(), setting.seed.to_string()),
            ("Date".to_owned(), setting.date.clone()),
            ("fcdcc".to_owned(), setting.version.clone()),
        ],
        sections,
    }
}

fn summary(layers: &[Convexity], measured: bool) -> Section {
    let mut section = Section {
        id: "choice".to_owned(),
        heading: "What the planner chooses".to_owned(),
        ..Section::default()
    };
    let mut head = vec!["Layer", "n, delta", "chosen k_A,k_B", "predicted", "paper's k_A*"];
    if measured {
        let of = layers.iter().filter(|l| l.regret().is_some()).count();
        let right = layers.iter().filter(|l| l.regret().is_some_and(|r| r <= CLOSE)).count();
        let good =
            layers.iter().filter(|l| l.accuracy().is_some_and(|a| (1.0 / GOOD..=GOOD).contains(&a))).count();
        section.text.push(format!(
            "In {right} of {of} layers the chosen pair takes at most {CLOSE} times as long as the fastest measured \
             one; in {good} of {of} its time was predicted within a factor of {GOOD}."
        ));
        head.extend(["measured", "predicted / measured", "fastest pair", "chosen / fastest"]);
    }
    let rows = layers.iter().map(|layer| {
        let pair = |(a, b): (usize, usize)| format!("{a},{b}");
        let chosen = layer.choice();
        let mut row: Vec<Cell> = vec![
            layer.layer.as_str().into(),
            format!("{}, {}", layer.n, layer.recovery_threshold).into(),
            pair(layer.chosen).into(),
            chosen.map_or_else(String::new, |p| time(p.predicted_ms)).into(),
            number(layer.paper_k_a).into(),
        ];
        if measured {
            let best = fastest(layer);
            let class = |good: bool| if good { Class::Best } else { Class::Worse };
            let (accuracy, regret) =
                (layer.accuracy().unwrap_or(f64::NAN), layer.regret().unwrap_or(f64::NAN));
            row.push(chosen.and_then(|p| p.measured_ms).map_or_else(String::new, time).into());
            row.push(Cell::new(number(accuracy), class((1.0 / GOOD..=GOOD).contains(&accuracy))));
            row.push(best.map_or_else(String::new, |p| pair((p.k_a, p.k_b))).into());
            row.push(Cell::new(number(regret), class(regret <= CLOSE)));
        }
        row
    });
    section.blocks.push(Block::Table(Table {
        caption: String::new(),
        head: head.into_iter().map(str::to_owned).collect(),
        rows: rows.collect(),
    }));
    section
}

fn fastest(layer: &Convexity) -> Option<&Pair> {
    let measured = layer.pairs.iter().filter(|pair| pair.measured_ms.is_some());
    measured.min_by(|a, b| a.measured_ms.unwrap_or(0.0).total_cmp(&b.measured_ms.unwrap_or(0.0)))
}

fn figure(layer: &Convexity) -> (String, String) {
    let at = |pair: &Pair| pair.k_a as f64;
    let line = |label: &str, color, kind, of: &dyn Fn(&Pair) -> Option<f64>| Series {
        label: label.to_owned(),
        points: layer.pairs.iter().filter_map(|pair| Some((at(pair), of(pair)?))).collect(),
        kind,
        color,
        ..Series::default()
    };
    // The paper's cost has no seconds: it is scaled to the measured (else predicted) time where it is least.
    let reference = |pair: &Pair| pair.measured_ms.unwrap_or(pair.predicted_ms);
    let least = layer.pairs.iter().map(|p| p.paper_cost).fold(f64::INFINITY, f64::min);
    let scale = layer.pairs.iter().map(reference).fold(f64::INFINITY, f64::min) / least;
    let mut series = vec![
        line("paper's cost (scaled)", 0, Kind::Dashed, &|p| Some(p.paper_cost * scale)),
        line("predicted", 1, Kind::LineMarkers, &|p| Some(p.predicted_ms)),
    ];
    if layer.regret().is_some() {
        series.push(line("measured", 2, Kind::LineMarkers, &|p| p.measured_ms));
    }
    let greatest = layer.pairs.iter().map(|p| p.predicted_ms.max(reference(p))).fold(0.0, f64::max);
    let mut marks = Vec::new();
    let ends = (layer.pairs.first().map_or(1.0, at), layer.pairs.last().map_or(1.0, at));
    if (ends.0..=ends.1).contains(&layer.paper_k_a) {
        marks.push(Mark::Vertical { at: layer.paper_k_a, label: "k_A*".to_owned() });
    }
    if let Some(choice) = layer.choice() {
        let label = format!("chosen {},{}", choice.k_a, choice.k_b);
        marks.push(Mark::Point { at: (at(choice), reference(choice)), label });
    }
    let chart = Chart {
        title: layer.layer.clone(),
        x_label: "k_A (input partitions)".to_owned(),
        y_label: "time of the layer, ms".to_owned(),
        x_log: true,
        // The paper's curve may leave the picture: only its shape matters.
        y_range: Some((0.0, greatest * 1.3)),
        series,
        marks,
        ..Chart::default()
    };
    (chart.svg(), format!("n = {}, delta = {}, {}", layer.n, layer.recovery_threshold, layer.code))
}

fn table(layer: &Convexity) -> Table {
    let rows = layer.pairs.iter().map(|pair| {
        let class = if (pair.k_a, pair.k_b) == layer.chosen { Class::Best } else { Class::Plain };
        vec![
            Cell::new(format!("{},{}", pair.k_a, pair.k_b), class),
            time(pair.predicted_ms).into(),
            pair.measured_ms.map_or_else(|| "–".to_owned(), time).into(),
            number(pair.upload_elems as f64).into(),
            number(pair.storage_elems as f64).into(),
            number(pair.paper_cost).into(),
        ]
    });
    Table {
        caption: layer.layer.clone(),
        head: ["k_A,k_B", "predicted", "measured", "upload, elements", "filters, elements", "paper's cost"]
            .map(str::to_owned)
            .to_vec(),
        rows: rows.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::resolve;
    use fcdcc::coding::CodeKind;
    use fcdcc::planner::Rates;

    #[test]
    fn the_page_names_layers_choices_and_what_was_measured() {
        let layer = &resolve("vgg16/conv3_2").unwrap()[0];
        let mut pairs = Convexity::predict::<f32>(layer, CodeKind::Crme, 20, 4, &Rates::default()).unwrap();
        let setting = Environment {
            version: "0".to_owned(),
            command: "fcdcc plan <x>".to_owned(),
            date: String::new(),
            hardware: "a machine".to_owned(),
            system: String::new(),
            mode: "real".to_owned(),
            workers: String::new(),
            precision: "f32".to_owned(),
            seed: 0,
            trials: 0,
        };
        let html = page(&setting, std::slice::from_ref(&pairs)).html();
        let chosen = format!("{},{}", pairs.chosen.0, pairs.chosen.1);
        for text in ["vgg16/conv3_2", &chosen, "fcdcc plan &lt;x&gt;", "<svg"] {
            assert!(html.contains(text), "{text}");
        }
        assert!(!html.contains("chosen / fastest"));
        let count = pairs.pairs.len();
        for (i, pair) in pairs.pairs.iter_mut().enumerate() {
            pair.measured_ms = Some(pair.predicted_ms * if i + 1 == count { 0.5 } else { 2.0 });
        }
        let html = page(&setting, &[pairs]).html();
        assert!(html.contains("chosen / fastest") && html.contains("In 0 of 1 layers"), "not measured");
    }
}
