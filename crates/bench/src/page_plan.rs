//! The page of `fcdcc plan`: the time of every feasible pair (k_A, k_B) as predicted, as measured, and by the paper's
//! cost.

use super::chart::{Chart, Kind, Mark, Series};
use super::convexity::{Convexity, Pair};
use super::format::{number, rough, time};
use super::page::{Block, Cell, Class, Page, Section, Table};
use super::schema::Environment;

/// A chosen pair counts as right if it takes at most this many times as long as the fastest.
const CLOSE: f64 = 1.1;
/// A prediction counts as good within this factor of the measured time.
const GOOD: f64 = 1.25;

/// Number of layers in the picture on the first screen; the sections have the others.
const SHOWN: usize = 4;

/// The page of these layers.
#[must_use]
pub fn page(setting: &Environment, layers: &[Convexity]) -> Page {
    let (first, others) = layers.split_at(layers.len().min(SHOWN));
    let mut sections = Vec::new();
    if !others.is_empty() {
        sections.push(Section {
            id: "layers".to_owned(),
            heading: "The other layers".to_owned(),
            text: Vec::new(),
            blocks: vec![Block::Figures(others.iter().map(|l| (chart(l).svg(), String::new())).collect())],
        });
    }
    sections.push(Section {
        id: "choice".to_owned(),
        heading: "What the planner chooses".to_owned(),
        text: Vec::new(),
        blocks: vec![Block::Table(choices(layers))],
    });
    sections.push(Section {
        id: "tables".to_owned(),
        heading: "Every pair in numbers".to_owned(),
        text: Vec::new(),
        blocks: layers.iter().map(details).collect(),
    });
    sections.push(Section {
        id: "again".to_owned(),
        heading: "How to run it again".to_owned(),
        text: Vec::new(),
        blocks: vec![Block::Code(setting.command.clone())],
    });
    Page {
        title: "How layers are divided".to_owned(),
        answer: answer(layers),
        picture: first.iter().map(|layer| Chart { end_labels: true, ..chart(layer) }).collect(),
        caption: "Lower is better. The ring marks the chosen pair. The paper's cost has no seconds: it is scaled to the time \
                  of the fastest pair, and k_A* is where its formula is least."
            .to_owned(),
        lead: vec![
            "A layer is cut into k_A slabs of its input and k_B banks of its filters, and coded so that any delta of n \
             subtasks suffice. Many pairs (k_A, k_B) have the same delta; the planner takes the one that it predicts \
             to be fastest, from rates measured on this machine."
                .to_owned(),
            "At one recovery threshold every pair computes and downloads the same. With k_A the uploads of a subtask fall \
             and its filters grow, so the paper's cost is convex in k_A. Times are those of the whole layer: encoding, \
             waiting, decoding; measured ones are medians."
                .to_owned(),
        ],
        facts: facts(setting),
        sections,
    }
}

fn facts(setting: &Environment) -> Vec<(String, String)> {
    [
        ("Hardware", setting.hardware.clone()),
        ("System", setting.system.clone()),
        ("Workers", setting.workers.clone()),
        ("Precision", setting.precision.clone()),
        ("Trials of each pair", setting.trials.to_string()),
        ("Seed", setting.seed.to_string()),
        ("Date", setting.date.clone()),
        ("fcdcc", setting.version.clone()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn is_measured(layers: &[Convexity]) -> bool {
    layers.iter().any(|layer| layer.regret().is_some())
}

fn is_good(accuracy: f64) -> bool {
    (1.0 / GOOD..=GOOD).contains(&accuracy)
}

/// One sentence on the chosen pairs: against the measurements if there are any, else against the slowest pair.
fn answer(layers: &[Convexity]) -> String {
    if is_measured(layers) {
        let of = layers.iter().filter(|l| l.regret().is_some()).count();
        let right = layers.iter().filter(|l| l.regret().is_some_and(|r| r <= CLOSE)).count();
        let good = layers.iter().filter(|l| l.accuracy().is_some_and(is_good)).count();
        return format!(
            "In {right} of {of} layers the chosen pair takes at most {CLOSE} times as long as the fastest measured \
             one; in {good} of {of} its time was predicted within a factor of {GOOD}."
        );
    }
    let slowest = |layer: &Convexity| {
        let most = layer.pairs.iter().map(|pair| pair.predicted_ms).fold(0.0, f64::max);
        Some(most / layer.choice()?.predicted_ms)
    };
    match layers {
        [] => String::new(),
        [layer] => {
            let (k_a, k_b) = layer.chosen;
            let time = layer.choice().map_or_else(String::new, |pair| time(pair.predicted_ms));
            let times = rough(slowest(layer).unwrap_or(1.0));
            format!(
                "For {} the planner chooses k_A = {k_a}, k_B = {k_b} and predicts {time}; the slowest pair would take {times} \
                 times as long.",
                layer.layer
            )
        }
        all => {
            let factors = || all.iter().filter_map(slowest);
            let (low, high) = (factors().fold(f64::INFINITY, f64::min), factors().fold(1.0, f64::max));
            format!(
                "The pair matters: over these {} layers the slowest pair is predicted to take {} to {} times as long as the \
                 chosen one.",
                all.len(),
                rough(low),
                rough(high)
            )
        }
    }
}

fn choices(layers: &[Convexity]) -> Table {
    let measured = is_measured(layers);
    let mut head = vec!["Layer", "n, delta", "chosen k_A,k_B", "predicted", "paper's k_A*"];
    if measured {
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
            row.push(Cell::new(number(accuracy), class(is_good(accuracy))));
            row.push(best.map_or_else(String::new, |p| pair((p.k_a, p.k_b))).into());
            row.push(Cell::new(number(regret), class(regret <= CLOSE)));
        }
        row
    });
    Table {
        caption: String::new(),
        head: head.into_iter().map(str::to_owned).collect(),
        rows: rows.collect(),
    }
}

fn fastest(layer: &Convexity) -> Option<&Pair> {
    let measured = layer.pairs.iter().filter(|pair| pair.measured_ms.is_some());
    measured.min_by(|a, b| a.measured_ms.unwrap_or(0.0).total_cmp(&b.measured_ms.unwrap_or(0.0)))
}

/// Where `k_a` is among the pairs, whose places are 0, 1, 2 and so on; interpolated on a logarithmic scale.
fn place(pairs: &[Pair], k_a: f64) -> Option<f64> {
    let log = |pair: &Pair| (pair.k_a as f64).ln();
    let within = |pair: &[Pair]| log(&pair[0]) <= k_a.ln() && k_a.ln() <= log(&pair[1]);
    let at = pairs.windows(2).position(within)?;
    let (low, high) = (log(&pairs[at]), log(&pairs[at + 1]));
    Some(at as f64 + if high > low { (k_a.ln() - low) / (high - low) } else { 0.0 })
}

/// The time of every pair.
fn chart(layer: &Convexity) -> Chart {
    let line = |label: &str, color, kind, of: &dyn Fn(&Pair) -> Option<f64>| Series {
        label: label.to_owned(),
        points: layer.pairs.iter().enumerate().filter_map(|(i, pair)| Some((i as f64, of(pair)?))).collect(),
        kind,
        color,
        ..Series::default()
    };
    let reference = |pair: &Pair| pair.measured_ms.unwrap_or(pair.predicted_ms);
    let least = layer.pairs.iter().map(|p| p.paper_cost).fold(f64::INFINITY, f64::min);
    let scale = layer.pairs.iter().map(reference).fold(f64::INFINITY, f64::min) / least;
    let mut series = vec![
        line("paper's cost", 0, Kind::Dashed, &|p| Some(p.paper_cost * scale)),
        line("predicted", 5, Kind::LineMarkers, &|p| Some(p.predicted_ms)),
    ];
    if layer.regret().is_some() {
        series.push(line("measured", 4, Kind::LineMarkers, &|p| p.measured_ms));
    }
    let greatest = layer.pairs.iter().map(|p| p.predicted_ms.max(reference(p))).fold(0.0, f64::max);
    let mut marks = Vec::new();
    if let Some(at) = place(&layer.pairs, layer.paper_k_a) {
        marks.push(Mark::Vertical { at, label: "k_A*".to_owned() });
    }
    let chosen = layer.pairs.iter().position(|pair| (pair.k_a, pair.k_b) == layer.chosen);
    if let Some(i) = chosen {
        let pair = &layer.pairs[i];
        let label = format!("chosen: {},{}", pair.k_a, pair.k_b);
        marks.push(Mark::Point { at: (i as f64, reference(pair)), label });
    }
    Chart {
        title: format!(
            "{} ({}, n = {}, delta = {})",
            layer.layer, layer.code, layer.n, layer.recovery_threshold
        ),
        x_label: "input and filter partitions k_A,k_B".to_owned(),
        y_label: "time of the layer, ms".to_owned(),
        // The paper's curve may leave the picture: only its shape matters.
        y_range: Some((0.0, greatest * 1.2)),
        series,
        marks,
        x_names: layer.pairs.iter().map(|pair| format!("{},{}", pair.k_a, pair.k_b)).collect(),
        ..Chart::default()
    }
}

fn details(layer: &Convexity) -> Block {
    Block::Details { summary: layer.layer.clone(), blocks: vec![Block::Table(table(layer))] }
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
        caption: String::new(),
        head: ["k_A,k_B", "predicted", "measured", "upload, elements", "filters, elements", "paper's cost"]
            .map(str::to_owned)
            .to_vec(),
        rows: rows.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Five pairs with delta = 16, the middle one chosen.
    fn layer() -> Convexity {
        let pair = |(k_a, predicted_ms): (usize, f64)| Pair {
            k_a,
            k_b: 64 / k_a,
            predicted_ms,
            measured_ms: None,
            upload_elems: 100 / k_a,
            storage_elems: 10 * k_a,
            paper_cost: predicted_ms + 1.0,
        };
        Convexity {
            layer: "vgg16/conv3_2".to_owned(),
            code: "crme".to_owned(),
            n: 20,
            recovery_threshold: 16,
            pairs: [(2, 9.0), (4, 5.0), (8, 4.0), (16, 6.0), (32, 12.0)].map(pair).into(),
            paper_k_a: 5.66,
            chosen: (8, 8),
        }
    }

    #[test]
    fn the_page_names_layers_choices_and_what_was_measured() {
        let mut pairs = layer();
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
        let told = "chooses k_A = 8, k_B = 8 and predicts 4.00 ms; the slowest pair would take 3.0 times";
        for text in ["vgg16/conv3_2", &chosen, "fcdcc plan &lt;x&gt;", "<svg", told] {
            assert!(html.contains(text), "{text}");
        }
        // Half way between 4 and 8 on a logarithmic scale; nothing beyond the pairs.
        let at = place(&pairs.pairs, 32_f64.sqrt()).unwrap();
        assert!((at - 1.5).abs() < 1e-9 && place(&pairs.pairs, 64.0).is_none(), "{at}");
        assert!(!html.contains("chosen / fastest"));
        let count = pairs.pairs.len();
        for (i, pair) in pairs.pairs.iter_mut().enumerate() {
            pair.measured_ms = Some(pair.predicted_ms * if i + 1 == count { 0.5 } else { 2.0 });
        }
        let html = page(&setting, &[pairs]).html();
        assert!(html.contains("chosen / fastest") && html.contains("In 0 of 1 layers"), "not measured");
    }
}
