//! `fcdcc plan`: shows how the planner divides a model's layers, and why.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use fcdcc::array::DType;
use fcdcc::planner::{LayerPlan, PlanOptions, Rates, Way, plan_layer};
use fcdcc::{ConvParams, ConvShape, Error, LayerOptions, Pool, Result};
use fcdcc_bench::convexity::Convexity;
use fcdcc_bench::layers::NamedLayer;
use fcdcc_bench::{machine, page_plan};
use serde::Serialize;

use super::kept_rates::Measuring;
use super::ledger::Ledger;
use super::links::slower_than_here;
use super::options::{LayerArgs, Precision};
use super::print::{bytes, out, out_json};
use super::progress::Bar;
use super::{Console, arrays, bench_layers, pool, rates};

/// Show how each layer would be divided, what that costs, and why.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    fcdcc plan resnet50.onnx --workers 12 --tolerate 3\n  \
    fcdcc plan --shape 1,64,56,56 --weight 128,64,3,3 --padding 1 --json\n  \
    fcdcc plan --layers vgg16 --workers 20 --tolerate 4 --measure --output plan")]
pub(crate) struct PlanArgs {
    /// An ONNX model
    #[arg(value_name = "MODEL.onnx", required_unless_present_any = ["shape", "layers"])]
    model: Option<PathBuf>,
    /// Known networks (lenet5, alexnet, vgg16, resnet50), single layers (vgg16/conv3_2) or a TOML file, with commas
    /// between several
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with_all = ["model", "shape"])]
    layers: Vec<String>,
    /// Without a model one layer: the shape of its input, batch,channels,spatial...; with one the shape of its input
    /// where the file leaves it open: [NAME=]SIZE,SIZE,... (may be repeated)
    #[arg(long, value_name = "SHAPE")]
    shape: Vec<String>,
    /// Shape of the layer's filters: out,channels/groups,kernel...
    #[arg(
        long,
        value_name = "O,C,KH,KW",
        value_delimiter = ',',
        requires = "shape",
        conflicts_with = "model"
    )]
    weight: Vec<usize>,
    /// Stride of the layer: one number or one an axis
    #[arg(long, value_name = "S", value_delimiter = ',', default_value = "1")]
    stride: Vec<usize>,
    /// Padding: one number, one an axis, or begins then ends
    #[arg(long, value_name = "P", value_delimiter = ',', default_value = "0")]
    padding: Vec<usize>,
    /// Dilation: one number or one an axis
    #[arg(long, value_name = "D", value_delimiter = ',', default_value = "1")]
    dilation: Vec<usize>,
    /// Groups
    #[arg(long, value_name = "G", default_value_t = 1)]
    groups: usize,
    /// Also choose the number of subtasks, replication, and what to leave on the host
    #[arg(long)]
    auto: bool,
    /// Also run every feasible pair (k_A, k_B) of every layer and compare
    #[arg(long, conflicts_with_all = ["model", "auto"])]
    measure: bool,
    /// Runs of each pair with --measure
    #[arg(long, value_name = "T", default_value_t = 9, requires = "measure")]
    trials: usize,
    /// Machine-readable output
    #[arg(long)]
    json: bool,
    /// A folder that gets plan.html (predicted, and with --measure measured, time of every pair) and plan.json
    #[arg(long, value_name = "DIR", conflicts_with = "model")]
    output: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Coding")]
    layer: LayerArgs,
}

/// The structure of plan.json.
#[derive(Serialize)]
struct PlanReport {
    schema: u32,
    command: &'static str,
    workers: usize,
    tolerate: usize,
    precision: &'static str,
    rates: Rates,
    layers: Vec<Row>,
    /// Every feasible pair of every layer; empty for models.
    pairs: Vec<Convexity>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    op: &'static str,
    /// In readable form: 1x64x56x56 * 128x64x3x3.
    shape: String,
    /// A code family, or `local`.
    code: String,
    n: usize,
    recovery_threshold: usize,
    k_a: usize,
    k_b: usize,
    upload_bytes: usize,
    download_bytes: usize,
    storage_bytes: usize,
    /// Multiply-adds of one subtask, or of a `local` layer.
    macs: f64,
    encode_ms: f64,
    wait_ms: f64,
    decode_ms: f64,
    predicted_ms: f64,
    local_ms: f64,
    host_bytes: f64,
    worker_bytes: f64,
    why: String,
    alternatives: Vec<Considered>,
}

#[derive(Serialize)]
struct Considered {
    way: String,
    predicted_ms: f64,
}

pub(crate) fn run(args: &PlanArgs, console: Console) -> Result<()> {
    let mut ledger = Ledger::default();
    if let Some(model) = &args.model {
        ledger.input("the model", model)?;
    }
    for path in bench_layers::files(&args.layers) {
        ledger.input("--layers", path)?;
    }
    let place = pool::files(&args.layer, &mut ledger)?;
    let folder = match &args.output {
        None => None,
        Some(folder) => Some((
            ledger.output_within("--output", folder, "plan.html")?,
            ledger.output_within("--output", folder, "plan.json")?,
        )),
    };
    if args.json {
        ledger.printed("--json")?;
    }
    let console = console.beside(&ledger);
    if args.trials == 0 {
        return Err(Error::invalid("number of runs (--trials)", 0, "use at least one"));
    }
    let options = args.layer.layer_options("")?;
    let dtype = match args.layer.precision.unwrap_or_default() {
        Precision::F32 => DType::F32,
        Precision::F64 => DType::F64,
    };
    // Unreadable files are refused before devices are opened.
    let subject = Subject::load(args)?;
    #[cfg(feature = "onnx")]
    if let Subject::Model(model) = &subject {
        enter(model, &mut ledger, console)?;
    }
    let mut workers = pool::workers(&args.layer, true, console)?;
    let measuring = Measuring { how: args.layer.calibrate, unknown: true };
    let measured = rates::of(&mut workers, dtype, options.tolerate, measuring, console)?;
    let count = workers.len();
    let own = workers.iter().map(|w| w.info()).collect::<Vec<_>>();
    if !args.measure {
        drop(workers);
        workers = Vec::new();
    }
    let planning = Planning { args, options: &options, rates: measured, workers: count, dtype };
    let (rows, mut pairs) = match &subject {
        #[cfg(feature = "onnx")]
        Subject::Model(model) => (planning.of_model(model)?, Vec::new()),
        Subject::Layers(layers) => planning.of_layers(layers)?,
    };
    if let (true, Subject::Layers(layers)) = (args.measure, &subject) {
        planning.measure(layers, &mut pairs, &Pool::new(workers)?, console)?;
    }
    let report = PlanReport {
        schema: 1,
        command: "plan",
        workers: count,
        tolerate: options.tolerate,
        precision: dtype.name(),
        rates: measured,
        layers: rows,
        pairs,
    };
    if let Some((html, json)) = folder {
        let trials = if args.measure { args.trials } else { 0 };
        let crew = format!("{count} x {}", own[0].device);
        let setting = machine::setting("real", crew, dtype.name().to_owned(), args.layer.seed, trials);
        let page = page_plan::page(&setting, &report.pairs).html();
        arrays::write_bytes(html, page.as_bytes())?;
        arrays::write_report(json, &report)?;
    }
    if let Some(place) = place {
        arrays::write_report(place, &report)?;
    }
    if args.json {
        return out_json(&report);
    }
    if !console.tables {
        return Ok(());
    }
    table(&report)?;
    for pairs in report.pairs.iter().filter(|_| args.measure) {
        measured_table(pairs)?;
    }
    Ok(())
}

/// Enters the files of a model in `ledger`, and says that it was widened.
#[cfg(feature = "onnx")]
fn enter(model: &fcdcc::Model, ledger: &mut Ledger, console: Console) -> Result<()> {
    for path in model.data_files() {
        ledger.input("the model's data", path)?;
    }
    if let Some(widened) = model.widened() {
        console.notice(format_args!("{}: {widened}", model.name()));
    }
    Ok(())
}

/// What to plan.
enum Subject {
    #[cfg(feature = "onnx")]
    Model(Box<fcdcc::Model>),
    Layers(Vec<NamedLayer>),
}

impl Subject {
    fn load(args: &PlanArgs) -> Result<Self> {
        if let Some(path) = &args.model {
            return Self::model(path, &args.shape);
        }
        if !args.layers.is_empty() {
            return bench_layers::chosen(&args.layers).map(Self::Layers);
        }
        let params = ConvParams {
            stride: args.stride.clone(),
            padding: args.padding.clone(),
            dilation: args.dilation.clone(),
            groups: args.groups,
        };
        let [input] = args.shape.as_slice() else {
            return Err(Error::mismatch(
                "number of shapes (--shape)",
                args.shape.len(),
                1,
                "give that of the layer's input",
            ));
        };
        let shape = ConvShape::new(&sizes(input, input)?, &args.weight, &params)?;
        Ok(Self::Layers(vec![NamedLayer { name: "layer".to_owned(), shape, count: 1 }]))
    }

    #[cfg(feature = "onnx")]
    fn model(path: &std::path::Path, shapes: &[String]) -> Result<Self> {
        let mut model = fcdcc::Model::load(path)?;
        for shape in shapes {
            let (name, sizes) = super::inputs::shape_of(shape, &model)?;
            model = model.with_input_shape(&name, &sizes)?;
        }
        Ok(Self::Model(Box::new(model)))
    }

    #[cfg(not(feature = "onnx"))]
    fn model(_: &std::path::Path, _: &[String]) -> Result<Self> {
        Err(Error::Unavailable {
            what: "reading ONNX models".to_owned(),
            help: "build with feature `onnx`, or use --layers or --shape".into(),
        })
    }
}

/// Parses sizes such as `1,3,224,224`; `whole` is the text that contains them, for errors.
fn sizes(text: &str, whole: &str) -> Result<Vec<usize>> {
    let sizes = text.split(',').map(|size| size.trim().parse()).collect::<Result<_, _>>();
    sizes.map_err(|_| Error::invalid("shape (--shape)", format!("{whole:?}"), "write it as 1,64,56,56"))
}

struct Planning<'a> {
    args: &'a PlanArgs,
    options: &'a LayerOptions,
    rates: Rates,
    workers: usize,
    dtype: DType,
}

impl Planning<'_> {
    fn n(&self) -> usize {
        self.options.subtasks.unwrap_or(self.workers)
    }

    #[cfg(feature = "onnx")]
    fn of_model(&self, model: &fcdcc::Model) -> Result<Vec<Row>> {
        use fcdcc::model::{AutoChoices, ModelOptions};
        let options = ModelOptions {
            layer: LayerOptions { name: "layer".to_owned(), ..self.options.clone() },
            precision: self.args.layer.precision.map(|_| self.dtype),
            freedom: if self.args.auto { AutoChoices::ALL } else { AutoChoices::default() },
            ..ModelOptions::default()
        };
        let planned = model.plan(self.workers, &self.rates, &options)?;
        Ok(planned
            .into_iter()
            .map(|layer| match layer.plan {
                Ok((shape, plan)) => Row::of(layer.name, layer.op, &shape, &plan, self.dtype),
                Err(why) => Row::host(layer.name, layer.op, why),
            })
            .collect())
    }

    fn of_layers(&self, layers: &[NamedLayer]) -> Result<(Vec<Row>, Vec<Convexity>)> {
        let choice = PlanOptions {
            subtasks: (!self.args.auto).then_some(self.n()),
            code: (!self.args.auto).then_some(self.options.code),
            partitions: self.options.partitions,
            local_if_faster: self.args.auto,
            rates: self.rates,
            ..PlanOptions::new(self.workers, self.options.tolerate)
        };
        choice.check()?;
        let mut rows = Vec::with_capacity(layers.len());
        let mut pairs = Vec::with_capacity(layers.len());
        for layer in layers {
            let plan = match self.dtype {
                DType::F32 => plan_layer::<f32>(&layer.shape, &choice)?,
                DType::F64 => plan_layer::<f64>(&layer.shape, &choice)?,
            };
            rows.push(Row::of(layer.name.clone(), "Conv", &layer.shape, &plan, self.dtype));
            let (code, n, tolerate) = (self.options.code, self.n(), self.options.tolerate);
            pairs.push(match self.dtype {
                DType::F32 => Convexity::predict::<f32>(layer, code, n, tolerate, &self.rates)?,
                DType::F64 => Convexity::predict::<f64>(layer, code, n, tolerate, &self.rates)?,
            });
        }
        Ok((rows, pairs))
    }

    fn measure(
        &self,
        layers: &[NamedLayer],
        pairs: &mut [Convexity],
        pool: &Pool,
        console: Console,
    ) -> Result<()> {
        let bar = Bar::new(console, "measuring");
        for (at, (layer, pairs)) in layers.iter().zip(pairs.iter_mut()).enumerate() {
            let (trials, seed) = (self.args.trials, self.args.layer.seed);
            let mut observe = |done: usize, of: usize| {
                bar.steps(at * (of + 1) + done, layers.len() * (of + 1), &layer.name);
            };
            match self.dtype {
                DType::F32 => pairs.measure::<f32>(layer, pool, trials, seed, &mut observe)?,
                DType::F64 => pairs.measure::<f64>(layer, pool, trials, seed, &mut observe)?,
            }
        }
        Ok(())
    }
}

impl Row {
    fn of(name: String, op: &'static str, shape: &ConvShape, plan: &LayerPlan, dtype: DType) -> Self {
        let size = dtype.size_bytes();
        let join = |sizes: Vec<usize>| sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join("x");
        let mut row = Self::host(name, op, plan.why.clone());
        row.shape = format!("{} * {}", join(shape.input_shape()), join(shape.weight_shape()));
        row.local_ms = plan.local_s * 1e3;
        row.predicted_ms = plan.total_s() * 1e3;
        row.macs = shape.macs();
        let considered = |a: &fcdcc::planner::Alternative| Considered {
            way: a.way.to_string(),
            predicted_ms: a.total_s * 1e3,
        };
        row.alternatives = plan.alternatives.iter().map(considered).collect();
        if let Way::Coded { code, n, recovery_threshold, k_a, k_b } = plan.way {
            row.code = code.to_string();
            (row.n, row.recovery_threshold, row.k_a, row.k_b) = (n, recovery_threshold, k_a, k_b);
        }
        if let Some(cost) = plan.cost {
            row.macs = cost.macs;
            row.upload_bytes = cost.upload_elems * size;
            row.download_bytes = cost.download_elems * size;
            row.storage_bytes = cost.storage_elems * size;
        }
        if let Some(p) = plan.prediction {
            (row.encode_ms, row.wait_ms, row.decode_ms) =
                (p.encode_s * 1e3, p.wait_s * 1e3, p.decode_s * 1e3);
            (row.host_bytes, row.worker_bytes) = (p.host_bytes, p.worker_bytes);
        }
        row
    }

    fn host(name: String, op: &'static str, why: String) -> Self {
        Self {
            name,
            op,
            shape: String::new(),
            code: "local".to_owned(),
            n: 0,
            recovery_threshold: 0,
            k_a: 0,
            k_b: 0,
            upload_bytes: 0,
            download_bytes: 0,
            storage_bytes: 0,
            macs: 0.0,
            encode_ms: 0.0,
            wait_ms: 0.0,
            decode_ms: 0.0,
            predicted_ms: 0.0,
            local_ms: 0.0,
            host_bytes: 0.0,
            worker_bytes: 0.0,
            why,
            alternatives: Vec::new(),
        }
    }
}

fn table(report: &PlanReport) -> Result<()> {
    let width = report.layers.iter().map(|l| l.name.chars().count()).max().unwrap_or(0).clamp(5, 32);
    out(format_args!(
        "{:width$}  {:11} {:>6} {:>6} {:>9} {:>9} {:>9} {:>8} {:>9} {:>8}  why",
        "layer", "code", "n,d", "kA,kB", "upload", "download", "storage", "MMAC", "predicted", "local"
    ))?;
    for l in &report.layers {
        let name: String = l.name.chars().take(width).collect();
        if l.code == "local" && l.shape.is_empty() {
            out(format_args!("{name:width$}  local: {}", l.why))?;
            continue;
        }
        let pair = |a: usize, b: usize| if a + b == 0 { "-".to_owned() } else { format!("{a},{b}") };
        out(format_args!(
            "{name:width$}  {:11} {:>6} {:>6} {:>9} {:>9} {:>9} {:>8.1} {:>6.2} ms {:>5.1} ms  {}",
            l.code,
            pair(l.n, l.recovery_threshold),
            pair(l.k_a, l.k_b),
            bytes(l.upload_bytes),
            bytes(l.download_bytes),
            bytes(l.storage_bytes),
            l.macs / 1e6,
            l.predicted_ms,
            l.local_ms,
            l.why
        ))?;
    }
    let coded = || report.layers.iter().filter(|l| l.code != "local");
    let total = Duration::from_secs_f64(report.layers.iter().map(|l| l.predicted_ms).sum::<f64>() / 1e3);
    let held: usize = coded().map(|l| l.storage_bytes).sum();
    out(format_args!(
        "{:width$}  {} of {} layers on the workers; {:.2} ms predicted in all with nobody late",
        "",
        coded().count(),
        report.layers.len(),
        total.as_secs_f64() * 1e3
    ))?;
    let local_s = report.layers.iter().map(|l| l.local_ms).sum::<f64>() / 1e3;
    let slower = report.rates.network.and_then(|_| slower_than_here(total.as_secs_f64(), local_s));
    if let Some(text) = slower {
        out(format_args!("{:width$}  {text}", ""))?;
    }
    out(format_args!(
        "{:width$}  upload, download, storage and MMAC (million multiply-adds) are of one subtask; filters of one subtask \
         in all layers: {}",
        "",
        bytes(held)
    ))
}

fn measured_table(pairs: &Convexity) -> Result<()> {
    out("")?;
    out(format_args!(
        "{}: {} n={} delta={}; the paper's optimum: k_A = {:.1}",
        pairs.layer, pairs.code, pairs.n, pairs.recovery_threshold, pairs.paper_k_a
    ))?;
    out("  kA,kB   predicted    measured   ratio")?;
    for pair in &pairs.pairs {
        let measured = pair.measured_ms.unwrap_or(f64::NAN);
        let chosen = if (pair.k_a, pair.k_b) == pairs.chosen { "  chosen" } else { "" };
        out(format_args!(
            "  {:>6} {:>8.2} ms {:>8.2} ms {:>7.2}{chosen}",
            format!("{},{}", pair.k_a, pair.k_b),
            pair.predicted_ms,
            measured,
            pair.predicted_ms / measured
        ))?;
    }
    let (regret, accuracy) = (pairs.regret().unwrap_or(f64::NAN), pairs.accuracy().unwrap_or(f64::NAN));
    out(format_args!(
        "  the chosen pair takes {regret:.2} times as long as the fastest; predicted {accuracy:.2} of what it took"
    ))
}
