//! The answers of `run --top`: the largest values of the first output, for each item of the batch.

use std::path::{Path, PathBuf};

use clap::Args;
use fcdcc::files;
use fcdcc::model::Output;
use fcdcc::{Error, Result};
use serde::Serialize;

use super::Console;
use super::ledger::Ledger;
use super::print::{out, out_json};

/// What is printed of the first output.
#[derive(Args)]
#[command(next_help_heading = "Results")]
pub(crate) struct TopArgs {
    /// Print the K largest values of the first output for each item of the batch
    #[arg(long, value_name = "K")]
    top: Option<usize>,
    /// Names of the classes for --top, one a line [default: MODEL.labels.txt beside MODEL.onnx, if it is there]
    #[arg(long, value_name = "FILE", requires = "top")]
    labels: Option<PathBuf>,
    /// Print probabilities (the softmax of an item's values), for models that end in logits
    #[arg(long, requires = "top")]
    softmax: bool,
    /// Print the answers of --top as one JSON object, and no tables
    #[arg(long, requires = "top")]
    json: bool,
}

/// Names of the classes, and where they are from.
struct Labels {
    names: Vec<String>,
    path: PathBuf,
    /// Whether the user named the file.
    given: bool,
}

/// The JSON of `--json`.
#[derive(Serialize)]
struct Answers<'a> {
    schema: u32,
    command: &'static str,
    model: String,
    /// Name of the output that was read.
    output: &'a str,
    items: Vec<Item<'a>>,
}

/// The answer for one item of the batch.
#[derive(Serialize)]
struct Item<'a> {
    #[serde(rename = "item")]
    index: usize,
    /// The picture, or null.
    file: Option<&'a str>,
    /// The largest values, in falling order.
    top: Vec<Class<'a>>,
}

#[derive(Serialize)]
struct Class<'a> {
    #[serde(rename = "class")]
    index: usize,
    label: Option<&'a str>,
    /// The output's value.
    value: f64,
    /// Its softmax (--softmax), or null.
    probability: Option<f64>,
}

/// Checked options, with the labels.
pub(crate) struct Top {
    count: usize,
    labels: Option<Labels>,
    softmax: bool,
    json: bool,
}

impl TopArgs {
    /// Whether tables would stand beside the JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Checks the options, and enters the labels in `ledger`.
    pub(crate) fn check(&self, ledger: &mut Ledger) -> Result<()> {
        if self.top == Some(0) {
            return Err(Error::invalid("number of values (--top)", 0, "use at least one"));
        }
        self.labels.as_ref().map_or(Ok(()), |labels| ledger.input("--labels", labels))
    }

    /// Refuses to print beside an output on standard output.
    pub(crate) fn check_printed(&self, ledger: &Ledger) -> Result<()> {
        let what = if self.json { "--json" } else { "--top" };
        self.top.map_or(Ok(()), |_| ledger.printed(what))
    }

    /// Reads the labels for `model`; `None` without `--top`.
    pub(crate) fn plan(&self, model: &Path, ledger: &mut Ledger, console: Console) -> Result<Option<Top>> {
        let Some(count) = self.top else { return Ok(None) };
        let labels = match &self.labels {
            Some(path) => Some(Labels { names: read_labels(path)?, path: path.clone(), given: true }),
            None => beside(model, ledger, console)?,
        };
        Ok(Some(Top { count, labels, softmax: self.softmax, json: self.json }))
    }
}

/// The labels beside a model: `resnet50.labels.txt` beside `resnet50.onnx`.
fn beside(model: &Path, ledger: &mut Ledger, console: Console) -> Result<Option<Labels>> {
    let path = model.with_extension("labels.txt");
    if model.file_stem().is_none() || !path.is_file() {
        return Ok(None);
    }
    ledger.input("the labels beside the model", &path)?;
    match read_labels(&path) {
        Ok(names) => Ok(Some(Labels { names, path, given: false })),
        Err(error) => {
            console.notice(format_args!("notice: labels beside the model are not used: {error}"));
            Ok(None)
        }
    }
}

fn read_labels(path: &Path) -> Result<Vec<String>> {
    let bad = |cause: String| Error::File { path: path.display().to_string(), cause, input: true };
    let text = files::read_text(path)?;
    let labels: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    if labels.is_empty() {
        return Err(bad("holds no label: write one a line".to_owned()));
    }
    Ok(labels)
}

impl Top {
    /// The lines, or the JSON text, for the first output. `pictures` are the files of the items.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for labels that the user named and of which there are more or fewer than classes.
    pub(crate) fn of(
        &self,
        model: &Path,
        output: &Output,
        pictures: &[String],
        console: Console,
    ) -> Result<Printed> {
        let values = output.tensor.to_f64();
        let batch = if output.tensor.shape().len() < 2 { 1 } else { output.tensor.shape()[0] };
        let classes = values.len() / batch.max(1);
        let labels = self.fitting(classes, &output.name, console)?;
        // Where items are not pictures one by one, none is named.
        let file = |item: usize| pictures.get(item).map(String::as_str).filter(|_| pictures.len() == batch);
        let items: Vec<Item<'_>> = values
            .chunks(classes.max(1))
            .enumerate()
            .map(|(item, scores)| Item { index: item, file: file(item), top: self.largest(scores, labels) })
            .collect();
        if self.json {
            let model = model.display().to_string();
            let answers = Answers { schema: 1, command: "run", model, output: &output.name, items };
            return serde_json::to_value(&answers).map(Printed::Json).map_err(|e| Error::File {
                path: "stdout".to_owned(),
                cause: e.to_string(),
                input: false,
            });
        }
        Ok(Printed::Lines(lines(&items, batch)))
    }

    /// The labels, if there is one for each class.
    fn fitting(&self, classes: usize, output: &str, console: Console) -> Result<Option<&[String]>> {
        let Some(labels) = &self.labels else { return Ok(None) };
        let (count, path) = (labels.names.len(), labels.path.display());
        if labels.given && count != classes {
            let expected = format!("{classes}, one for each value of output {output}");
            return Err(Error::mismatch(
                "number of labels",
                count,
                expected,
                "give the labels of this model",
            ));
        }
        if count != classes {
            console.notice(format_args!(
                "notice: {path} is not used: it has {count} labels where output {output} has {classes} values"
            ));
            return Ok(None);
        }
        if !labels.given {
            console.notice(format_args!("notice: labels are from {path}"));
        }
        Ok(Some(&labels.names))
    }

    fn largest<'a>(&self, scores: &[f64], labels: Option<&'a [String]>) -> Vec<Class<'a>> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        let probabilities = self.softmax.then(|| softmax(scores));
        let class = |class: usize| Class {
            index: class,
            label: labels.map(|labels| labels[class].as_str()),
            value: scores[class],
            probability: probabilities.as_ref().map(|all| all[class]),
        };
        order.into_iter().take(self.count).map(class).collect()
    }
}

/// What `--top` prints.
pub(crate) enum Printed {
    Lines(Vec<String>),
    Json(serde_json::Value),
}

impl Printed {
    pub(crate) fn print(&self) -> Result<()> {
        match self {
            Self::Lines(lines) => lines.iter().try_for_each(out),
            Self::Json(value) => out_json(value),
        }
    }
}

fn lines(items: &[Item<'_>], batch: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for Item { index, file, top } in items {
        if batch > 1 {
            lines.push(file.map_or_else(|| format!("item {index}"), |file| format!("item {index}  {file}")));
        }
        for (rank, class) in top.iter().enumerate() {
            let label = class.label.map_or_else(String::new, |label| format!("  {label}"));
            let value = class.probability.unwrap_or(class.value);
            lines.push(format!("{:>3}. {value:>12.6}  class {}{label}", rank + 1, class.index));
        }
    }
    lines
}

/// `exp(s) / sum(exp(s))`. The largest score is subtracted first, so that none overflows.
fn softmax(scores: &[f64]) -> Vec<f64> {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use ndarray::ArrayD;

    use super::*;

    const QUIET: Console = Console { quiet: true, tables: false };

    fn top(count: usize, names: Option<(&[&str], bool)>) -> Top {
        let labels = names.map(|(names, given)| Labels {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            path: "l.txt".into(),
            given,
        });
        Top { count, labels, softmax: false, json: false }
    }

    /// Two items of three classes.
    fn output() -> Output {
        let scores = ArrayD::from_shape_vec(vec![2, 3, 1], vec![0.1f32, 0.7, 0.2, 3.0, -1.0, 5.0]).unwrap();
        Output { name: "y".to_owned(), tensor: scores.into() }
    }

    fn lines_of(top: &Top, pictures: &[&str]) -> Result<Vec<String>> {
        let pictures: Vec<String> = pictures.iter().map(|name| (*name).to_owned()).collect();
        match top.of(Path::new("m.onnx"), &output(), &pictures, QUIET)? {
            Printed::Lines(lines) => Ok(lines),
            Printed::Json(value) => Ok(vec![value.to_string()]),
        }
    }

    #[test]
    fn the_largest_values_come_first_and_labels_must_fit() {
        let names = ["cat", "dog", "owl"];
        let lines = lines_of(&top(2, Some((&names, true))), &[]).unwrap();
        assert_eq!(lines.len(), 6);
        assert!(lines[1].contains("0.7") && lines[1].ends_with("dog") && lines[4].ends_with("class 2  owl"));
        let few = lines_of(&top(2, Some((&names[..2], true))), &[]).unwrap_err().to_string();
        assert!(few.contains("is 2 where 3"), "{few}");
        // Labels that were not asked for do not end a run.
        let few = lines_of(&top(2, Some((&names[..2], false))), &[]).unwrap();
        assert!(few[1].ends_with("class 1"), "{few:?}");
    }

    #[test]
    fn pictures_are_named_where_each_is_an_item() {
        let named = lines_of(&top(1, None), &["a.png", "b.png"]).unwrap();
        assert_eq!((named[0].as_str(), named[2].as_str()), ("item 0  a.png", "item 1  b.png"));
        let unnamed = lines_of(&top(1, None), &["a.png"]).unwrap();
        assert_eq!((unnamed[0].as_str(), unnamed[2].as_str()), ("item 0", "item 1"));
    }

    #[test]
    fn a_softmax_of_large_values_is_finite_and_sums_to_one() {
        let got = softmax(&[1000.0, 1000.0 + 2f64.ln(), f64::NEG_INFINITY]);
        assert!((got[0] - 1.0 / 3.0).abs() < 1e-12 && (got[1] - 2.0 / 3.0).abs() < 1e-12 && got[2] == 0.0);
        let lines = lines_of(&Top { softmax: true, ..top(3, None) }, &[]).unwrap();
        let sum: f64 =
            lines[1..4].iter().map(|l| l.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{lines:?}");
    }

    #[test]
    fn json_has_value_probability_label_and_file() {
        let top = Top { softmax: true, json: true, ..top(1, Some((&["a", "b", "c"], true))) };
        let text = lines_of(&top, &["a.png", "b.png"]).unwrap().remove(0);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let item = &json["items"][1];
        assert_eq!((&item["file"], &item["top"][0]["label"]), (&"b.png".into(), &"c".into()));
        assert_eq!((&item["top"][0]["class"], &item["top"][0]["value"]), (&2.into(), &5.0.into()));
        let probability = item["top"][0]["probability"].as_f64().unwrap();
        let by_hand = 1.0 / (1.0 + (-2f64).exp() + (-6f64).exp());
        assert!((probability - by_hand).abs() < 1e-7, "{probability}");
    }
}
