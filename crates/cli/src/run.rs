//! `fcdcc run`: runs a whole ONNX model with coded convolutions.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use fcdcc::array::DType;
use fcdcc::files::Output as Place;
use fcdcc::model::{
    AutoChoices, Forecast, GemmChoice, Model, ModelOptions, Output, PreparedModel, SegmentReport, Tensor,
    Widened,
};
use fcdcc::planner::Objective;
use fcdcc::{LayerReport, Pool, Report, Result};
use serde::Serialize;

use super::inputs::InputArgs;
use super::layers::Summary;
use super::ledger::Ledger;
use super::links::slower_than_here;
use super::metrics::{Metrics, MetricsArgs};
use super::options::{LayerArgs, Precision};
use super::progress::Bar;
use super::segments::{self, ObjectiveArgs};
use super::top::TopArgs;
use super::{Console, arrays, pool, print};

/// Run an ONNX model with every convolution coded over the workers.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    fcdcc run resnet50.onnx --input cat.jpg --preset imagenet --top 5 --softmax --labels imagenet.txt\n  \
    fcdcc run model.onnx --input x.npy --output y.npy --fault random:2:crash --compare --report r.json\n  \
    fcdcc run resnet50.onnx --input batch.npy --output y.npy --pool pool.toml --auto --objective throughput\n  \
    fcdcc run siamese.onnx --input left=a.npy --input right=b.npy --outputs results")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    inputs: InputArgs,
    /// Where the first output goes; - for standard output
    #[arg(long, help_heading = "Results", value_name = "Y.npy")]
    output: Option<PathBuf>,
    /// A folder that gets every output as NAME.npy; it is made if it is not there
    #[arg(long, help_heading = "Results", value_name = "DIR")]
    outputs: Option<PathBuf>,
    #[command(flatten)]
    top: TopArgs,
    /// Also compute the model on this machine, as its file has it and every convolution from its definition, and print
    /// the largest deviation
    #[arg(long, help_heading = "Results")]
    compare: bool,
    /// Fully connected layers (Gemm, MatMul) on the workers: auto (where it pays), on, off
    #[arg(long, help_heading = "Coding", value_name = "WHICH", default_value_t)]
    gemm: GemmChoice,
    /// Let the planner also choose, layer by layer, the number of subtasks, replication instead of the code, and what is
    /// left on the host because that is faster
    #[arg(long, help_heading = "Coding")]
    auto: bool,
    #[command(flatten, next_help_heading = "Coding")]
    objective: ObjectiveArgs,
    #[command(flatten, next_help_heading = "Coding")]
    layer: LayerArgs,
    #[command(flatten, next_help_heading = "Results")]
    metrics: MetricsArgs,
}

/// report.json of a model: the common part, and fields that only models have.
#[derive(Serialize)]
struct ModelReport {
    #[serde(flatten)]
    report: Report,
    model: String,
    /// What the file has in 16 bits and is computed in f32, or null.
    widened: Option<WidenedReport>,
    /// Time of the operators computed by the host.
    host_ms: f64,
    /// Time of encoding and installing filters, once.
    prepare_ms: f64,
    /// Fully connected layers left on the host.
    local_gemms: Vec<LocalGemm>,
    outputs: Vec<OutputReport>,
    /// Comparison with the uncoded run (--compare).
    compare: Option<Vec<Deviation>>,
    /// One entry for each segment of each run (--objective).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    segments: Vec<SegmentReport>,
}

#[derive(Serialize)]
struct WidenedReport {
    dtypes: Vec<&'static str>,
    tensors: usize,
    elems: u64,
}

impl From<Widened> for WidenedReport {
    fn from(widened: Widened) -> Self {
        Self { dtypes: widened.dtypes, tensors: widened.tensors, elems: widened.elems }
    }
}

#[derive(Serialize)]
struct LocalGemm {
    name: String,
    why: String,
}

#[derive(Serialize)]
struct OutputReport {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
}

/// Distance of a coded output from the uncoded one.
#[derive(Serialize)]
struct Deviation {
    output: String,
    relative_l2: f64,
    largest: f64,
}

pub(crate) fn run(args: &RunArgs, console: Console) -> Result<()> {
    let mut ledger = Ledger::default();
    let mut places = Places::plan(args, &mut ledger)?;
    let top = args.top.plan(&args.inputs.model, &mut ledger, console)?;
    let mut options = model_options(args)?;
    let model = args.inputs.model(&mut ledger)?;
    places.plan_each(args, model.outputs(), &mut ledger)?;
    let mut console = console.beside(&ledger);
    console.tables &= !args.top.is_json();
    let widened = model.widened();
    if let Some(widened) = &widened {
        console.notice(format_args!("{}: {widened}", model.name()));
    }
    let pictures = args.inputs.pictures(&model)?;
    let (model, batches) = args.inputs.read(model)?;
    let (model, batches) = InputArgs::fix(model, batches, console);
    // Checked before any work: outputs that cannot be concatenated would be useless.
    let axes = if batches.len() > 1 { model.batch_axes()? } else { Vec::new() };
    let pool;
    let (dtype, objective) = (options.precision.unwrap_or(DType::F32), args.objective.objective);
    (pool, options.layer.rates, options.segments) =
        pool::assemble_for(&args.layer, dtype, objective, console)?;
    let metrics = args.metrics.of_pool(&pool)?;
    options.layer.observer = metrics.as_ref().and_then(Metrics::observer);
    tell_slowdown(&model, &pool, &options, console)?;
    let started = Instant::now();
    let prepared = {
        let bar = Bar::new(console, "preparing");
        model.prepare_observed(&pool, &options, &mut |p| bar.step(p))?
    };
    pool::tell_refusals(&pool, console);
    let prepare_ms = started.elapsed().as_secs_f64() * 1e3;
    // The model's own copy of the weights is needed only for a comparison.
    let host = if args.compare { Some(model.on_host()?) } else { None };
    drop(model);
    let (mut runs, pieces) = Runs::of(&prepared, &batches, objective, places.report.is_some(), console)?;
    let outputs = joined(pieces, &axes)?;
    let compare = match host {
        None => None,
        Some(host) => {
            let uncoded = batches.iter().map(|inputs| host.run(inputs)).collect::<Result<Vec<_>>>()?;
            let uncoded = joined(uncoded, &axes)?;
            Some(deviations(&outputs, &uncoded))
        }
    };
    let answers = top.map(|top| top.of(&args.inputs.model, &outputs[0], &pictures, console)).transpose()?;
    let mut report = report(args, &prepared, &mut runs, &outputs, prepare_ms, compare);
    report.widened = widened.map(Into::into);
    places.write(&outputs, &report, console)?;
    if let Some(answers) = answers {
        answers.print()?;
    }
    if !console.tables {
        return Ok(());
    }
    summary(&report, &runs.summary, &outputs)
}

/// Prints a notice if other machines are predicted to make the model slower than this one alone.
fn tell_slowdown(model: &Model, pool: &Pool, options: &ModelOptions, console: Console) -> Result<()> {
    if options.layer.rates.network.is_none() {
        return Ok(());
    }
    let forecast = Forecast::of(&model.plan(pool.len(), &options.layer.rates, options)?);
    if let Some(text) = slower_than_here(forecast.planned_s, forecast.local_s) {
        console.notice(format_args!("notice: {text}"));
    }
    Ok(())
}

/// What is kept of all runs of the model.
#[derive(Default)]
struct Runs {
    summary: Summary,
    /// Reports of every layer of every run, if a report is requested.
    layers: Vec<LayerReport>,
    /// Reports of every segment of every run.
    segments: Vec<SegmentReport>,
    total: Duration,
    host: Duration,
}

impl Runs {
    /// Runs all batches; gives their outputs too. `all`: whether to keep the reports of all layers.
    fn of(
        prepared: &PreparedModel,
        batches: &[Vec<Tensor>],
        objective: Option<Objective>,
        all: bool,
        console: Console,
    ) -> Result<(Self, Vec<Vec<Output>>)> {
        let mut runs = Self::default();
        let mut pieces: Vec<Vec<Output>> = Vec::with_capacity(batches.len());
        let bar = Bar::new(console, "running");
        let (started, at_once) = (Instant::now(), objective == Some(Objective::Throughput));
        for run in segments::run_all(prepared, batches, at_once, &mut |p| bar.step(p))? {
            runs.summary.add(&run.layers);
            (runs.total, runs.host) = (runs.total + run.total, runs.host + run.host);
            runs.segments.extend(run.segments);
            // Keeps only what is requested of many runs.
            if all {
                runs.layers.extend(run.layers);
            }
            pieces.push(run.outputs);
        }
        if at_once {
            runs.total = started.elapsed();
        }
        Ok((runs, pieces))
    }
}

/// Concatenates the outputs of several runs, each along its batch axis.
fn joined(mut runs: Vec<Vec<Output>>, axes: &[usize]) -> Result<Vec<Output>> {
    if runs.len() <= 1 {
        return Ok(runs.pop().unwrap_or_default());
    }
    let mut outputs = Vec::new();
    // Begins with the last output, so that the pieces of each are dropped after they are concatenated.
    for axis in axes.iter().rev() {
        let Some(name) = runs.first().and_then(|run| run.last()).map(|output| output.name.clone()) else {
            break;
        };
        let pieces: Vec<Tensor> = runs.iter_mut().filter_map(Vec::pop).map(|output| output.tensor).collect();
        outputs.push(Output { name, tensor: Tensor::concat_along(&pieces, *axis)? });
    }
    outputs.reverse();
    Ok(outputs)
}

fn summary(report: &ModelReport, summary: &Summary, outputs: &[Output]) -> Result<()> {
    summary.table()?;
    if summary.any_coded() {
        print::out("")?;
        summary.workers()?;
        print::out("")?;
        if summary.runs() > 1 {
            print::out(format_args!("{} runs, one after the other, together:", summary.runs()))?;
        }
        summary.totals(report.report.total_ms, report.host_ms)?;
        let (bound, window) = (summary.bound, summary.window);
        print::out(format_args!(
            "exact in every layer to {bound:.1e} (relative L2) and in every element to {window:.1e} of its window (largest \
             bounds); prepared in {:.1} ms",
            report.prepare_ms
        ))?;
        summary.other_ways()?;
    } else {
        let total = report.report.total_ms;
        let where_ = if report.segments.is_empty() { ": everything ran on the host" } else { "" };
        print::out(format_args!("no layer was coded{where_}, in {total:.1} ms"))?;
    }
    segments::table(&report.segments)?;
    for gemm in &report.local_gemms {
        print::out(format_args!("  {} (fully connected) on the host: {}", gemm.name, gemm.why))?;
    }
    for output in outputs {
        let values = output.tensor.to_f64();
        let (low, high) =
            values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
        print::out(format_args!(
            "output {} {} {:?}, {low:.4} to {high:.4}",
            output.name,
            output.tensor.dtype(),
            output.tensor.shape()
        ))?;
    }
    for deviation in report.compare.iter().flatten() {
        print::out(format_args!(
            "  {} deviates from the uncoded run by {:.1e} (relative L2), {:.1e} at most in one element",
            deviation.output, deviation.relative_l2, deviation.largest
        ))?;
    }
    Ok(())
}

/// Where results are written.
struct Places {
    output: Option<Place>,
    /// One for each output of the model (--outputs).
    each: Vec<Place>,
    report: Option<Place>,
}

impl Places {
    /// Checks what can be checked before the model is read.
    fn plan(args: &RunArgs, ledger: &mut Ledger) -> Result<Self> {
        args.top.check(ledger)?;
        let output = args.output.as_ref().map(|path| ledger.output("--output", path)).transpose()?;
        let report = pool::files(&args.layer, ledger)?;
        if let Some(folder) = &args.outputs {
            Ledger::check_folder("--outputs", folder)?;
        }
        args.top.check_printed(ledger)?;
        Ok(Self { output, each: Vec::new(), report })
    }

    /// Plans the files of --outputs, which are named after the model's outputs.
    fn plan_each(&mut self, args: &RunArgs, names: &[String], ledger: &mut Ledger) -> Result<()> {
        let Some(folder) = &args.outputs else { return Ok(()) };
        let names = file_names(names);
        let place = |name: &String| ledger.output_within("--outputs", folder, &format!("{name}.npy"));
        self.each = names.iter().map(place).collect::<Result<_>>()?;
        Ok(())
    }

    fn write(self, outputs: &[Output], report: &ModelReport, console: Console) -> Result<()> {
        let written = if self.each.is_empty() { usize::from(self.output.is_some()) } else { outputs.len() };
        for output in outputs.iter().take(written) {
            if matches!(output.tensor, Tensor::BF16(_)) {
                let name = &output.name;
                console.notice(format_args!(
                    "output {name} is bf16, which .npy files do not have: written as f32"
                ));
            }
        }
        if let Some(place) = self.output {
            arrays::write_tensor(place, &outputs[0].tensor)?;
        }
        for (place, output) in self.each.into_iter().zip(outputs) {
            arrays::write_tensor(place, &output.tensor)?;
        }
        match self.report {
            None => Ok(()),
            Some(place) => arrays::write_report(place, report),
        }
    }
}

fn model_options(args: &RunArgs) -> Result<ModelOptions> {
    Ok(ModelOptions {
        layer: args.layer.layer_options("")?,
        gemm: args.gemm,
        precision: args.layer.precision.map(|p| match p {
            Precision::F32 => DType::F32,
            Precision::F64 => DType::F64,
        }),
        freedom: if args.auto { AutoChoices::ALL } else { AutoChoices::default() },
        segments: None,
    })
}

/// Distinct file names for the outputs, made from their names.
fn file_names(outputs: &[String]) -> Vec<String> {
    let plain = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let mut names: Vec<String> = Vec::with_capacity(outputs.len());
    for (index, output) in outputs.iter().enumerate() {
        let name: String = output.chars().map(plain).collect();
        let name = name.trim_start_matches('.').to_owned();
        let taken = name.is_empty() || names.contains(&name);
        names.push(if taken { format!("{name}_{index}") } else { name });
    }
    names
}

fn deviations(coded: &[Output], uncoded: &[Output]) -> Vec<Deviation> {
    let pairs = coded.iter().zip(uncoded);
    pairs.map(|(coded, uncoded)| deviation(&coded.name, &coded.tensor, &uncoded.tensor)).collect()
}

fn deviation(name: &str, coded: &Tensor, uncoded: &Tensor) -> Deviation {
    let (got, want) = (coded.to_f64(), uncoded.to_f64());
    Deviation {
        output: name.to_owned(),
        relative_l2: print::relative_l2(&got, &want),
        largest: got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max),
    }
}

fn report(
    args: &RunArgs,
    prepared: &PreparedModel,
    runs: &mut Runs,
    outputs: &[Output],
    prepare_ms: f64,
    compare: Option<Vec<Deviation>>,
) -> ModelReport {
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let gemms = prepared.local_layers().filter(|(_, op, _)| *op == "Gemm");
    ModelReport {
        report: Report::new("run", ms(runs.total), std::mem::take(&mut runs.layers)),
        model: args.inputs.model.display().to_string(),
        widened: None,
        host_ms: ms(runs.host),
        prepare_ms,
        local_gemms: gemms
            .map(|(name, _, why)| LocalGemm { name: name.to_owned(), why: why.to_owned() })
            .collect(),
        outputs: outputs
            .iter()
            .map(|o| OutputReport {
                name: o.name.clone(),
                dtype: o.tensor.dtype(),
                shape: o.tensor.shape().to_vec(),
            })
            .collect(),
        compare,
        segments: std::mem::take(&mut runs.segments),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn given(files: &[&str]) -> Vec<String> {
        files.iter().map(|f| (*f).to_owned()).collect()
    }

    #[test]
    fn outputs_get_file_names_of_their_own() {
        let names = file_names(&given(&["a/b:0", "a_b_0", "..", "softmax"]));
        assert_eq!(names, ["a_b_0", "a_b_0_1", "_2", "softmax"]);
    }
}
