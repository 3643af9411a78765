//! `fcdcc plan`: shows how the planner divides a model's layers, and why.

use std::path::PathBuf;

use clap::Args;
use fcdcc::array::DType;
use fcdcc::planner::{PlanOptions, Rates, plan_layer};
use fcdcc::{ConvParams, ConvShape, Error, LayerOptions, Pool, Result, Worker};
use fcdcc_bench::convexity::Convexity;
use fcdcc_bench::layers::NamedLayer;
use fcdcc_bench::{machine, page_plan};
use serde::Serialize;

use super::kept_rates::Measuring;
use super::ledger::Ledger;
use super::options::{LayerArgs, Precision};
use super::plan_rows::{Row, measured_table, table};
use super::print::out_json;
use super::progress::Bar;
use super::{Console, arrays, bench_layers, pool, rates};

/// Show how each layer would be divided, what that costs, and why.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    fcdcc plan resnet50.onnx --workers 12 --tolerate 3\n  \
    fcdcc plan resnet50.onnx --pool pool.toml --auto --objective latency\n  \
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
    #[cfg(feature = "onnx")]
    #[command(flatten)]
    objective: super::segments::ObjectiveArgs,
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
    /// The segments of a model (--objective).
    #[cfg(feature = "onnx")]
    #[serde(skip_serializing_if = "Option::is_none")]
    segments: Option<super::segments::SegmentsPlan>,
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
    #[cfg(feature = "onnx")]
    let (measured, choice) = args.measured(&mut workers, dtype, options.tolerate, console)?;
    #[cfg(not(feature = "onnx"))]
    let measured = args.measured(&mut workers, dtype, options.tolerate, console)?;
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
        #[cfg(feature = "onnx")]
        segments: planning.segments(&subject, choice.as_ref())?,
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
    table(&report.layers, &report.rates)?;
    #[cfg(feature = "onnx")]
    report.segments.iter().try_for_each(super::segments::SegmentsPlan::table)?;
    for pairs in report.pairs.iter().filter(|_| args.measure) {
        measured_table(pairs)?;
    }
    Ok(())
}

impl PlanArgs {
    fn measuring(&self) -> Measuring {
        Measuring { how: self.layer.calibrate, unknown: true }
    }

    /// The rates of the workers, and those of them that take parts of models if segments are to be planned.
    #[cfg(feature = "onnx")]
    fn measured(
        &self,
        workers: &mut [Box<dyn Worker>],
        dtype: DType,
        tolerate: usize,
        console: Console,
    ) -> Result<(Rates, Option<fcdcc::model::SegmentChoice>)> {
        let Some(objective) = self.objective.objective else {
            return Ok((rates::of(workers, dtype, tolerate, self.measuring(), console)?, None));
        };
        let (rates, choice) = super::segments::choice(workers, &self.layer, dtype, objective, console)?;
        Ok((rates, Some(choice)))
    }

    #[cfg(not(feature = "onnx"))]
    fn measured(
        &self,
        workers: &mut [Box<dyn Worker>],
        dtype: DType,
        tolerate: usize,
        console: Console,
    ) -> Result<Rates> {
        rates::of(workers, dtype, tolerate, self.measuring(), console)
    }
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
    fn model_options(&self) -> fcdcc::ModelOptions {
        use fcdcc::model::AutoChoices;
        fcdcc::ModelOptions {
            layer: LayerOptions { name: "layer".to_owned(), ..self.options.clone() },
            precision: self.args.layer.precision.map(|_| self.dtype),
            freedom: if self.args.auto { AutoChoices::ALL } else { AutoChoices::default() },
            ..fcdcc::ModelOptions::default()
        }
    }

    /// The segments of a model, if they are to be planned.
    #[cfg(feature = "onnx")]
    fn segments(
        &self,
        subject: &Subject,
        choice: Option<&fcdcc::model::SegmentChoice>,
    ) -> Result<Option<super::segments::SegmentsPlan>> {
        let (Subject::Model(model), Some(choice)) = (subject, choice) else { return Ok(None) };
        let options = self.model_options();
        super::segments::SegmentsPlan::plan(model, self.workers, &self.rates, &options, choice).map(Some)
    }

    #[cfg(feature = "onnx")]
    fn of_model(&self, model: &fcdcc::Model) -> Result<Vec<Row>> {
        let options = self.model_options();
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
