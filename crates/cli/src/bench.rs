//! `fcdcc bench`: compares coded with uncoded, hedged and replicated execution under the same faults.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use fcdcc::coding::Code;
use fcdcc::engine::WindowwiseLimit;
use fcdcc::files::Output;
use fcdcc::planner::Rates;
use fcdcc::scheduler::Link;
use fcdcc::worker::WorkerInfo;
use fcdcc::{Audit, CodeKind, DType, Error, LayerOptions, Result, Worker};
use fcdcc_bench::layers::NamedLayer;
use fcdcc_bench::schema::{BenchReport, Environment};
use fcdcc_bench::{Comparison, Method, Plan, Progress, Scenario, SimulatedSetting, TrialFault, machine};

use super::bench_load::{self, UnderLoadArgs};
use super::bench_serve::{self, LoadArgs};
use super::bench_workers::{crew, notes};
use super::kept_rates::Measuring;
use super::ledger::Ledger;
use super::options::{LayerArgs, Precision, duration};
use super::progress::Bar;
use super::{Console, arrays, bench_layers, bench_table, pool, print, rates};

/// Compare coded execution with uncoded, hedged and replicated under the same faults, in turns.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    fcdcc bench --output report                          # some layers of four networks, every scenario\n  \
    fcdcc bench --layers vgg16 --trials 200 --delay 100ms --methods uncoded,replication,crme\n  \
    fcdcc bench --layers layers.toml --workers 12 --tolerate 3 --scenario random:3:crash \\\n      \
    --scenario 'all:delay=exp(20ms) 0:slow=4x' --scenario trace=delays.txt\n  \
    fcdcc bench --model resnet50.onnx --backend gpu --fault random:2:delay=50ms\n  \
    fcdcc bench --virtual --workers 200 --tolerate 20 --trials 1000 --layers vgg16/conv4_2\n  \
    fcdcc bench --load docs/choosing/office.toml --output load   # methods under load, in virtual time\n  \
    fcdcc bench --serve http://127.0.0.1:8000 --model lenet5 --rate 500 --duration 30s --output load")]
pub(crate) struct BenchArgs {
    /// Layers: networks (lenet5, alexnet, vgg16, resnet50), network/layer, or a TOML file of [[layer]] tables with
    /// name, input, weight, stride, padding, dilation, groups [default: one of each network]
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Comparison")]
    layers: Vec<String>,
    /// A whole model; its layers are divided by the planner. With --serve: the name of a model of the server
    #[cfg(feature = "onnx")]
    #[arg(long, value_name = "M.onnx", help_heading = "Comparison")]
    model: Option<PathBuf>,
    /// Its inputs, in order, as .npy arrays [default: random numbers]
    #[cfg(feature = "onnx")]
    #[arg(long, value_name = "X.npy", num_args = 1.., requires = "model", help_heading = "Comparison")]
    input: Vec<PathBuf>,
    /// Trials of each method in each scenario
    #[arg(long, value_name = "T", default_value_t = 20, help_heading = "Comparison")]
    trials: usize,
    /// Among uncoded, hedged, replication, mds, crme, chebyshev, vandermonde, khatri-rao; the first is what others are
    /// compared to, the last what is judged [default: uncoded,hedged,replication,mds and that of --code]
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Comparison")]
    methods: Vec<Method>,
    /// Faults between spaces that act together, such as "0:slow=3x all:delay=exp(5ms)", or none, or trace=FILE: a line a
    /// trial, a delay in ms a worker, x for a crash (may be repeated; with --fault, what that gives comes first)
    /// [default: a suite of delays, slowness and crashes]
    #[arg(long, value_name = "FAULTS", help_heading = "Comparison")]
    scenario: Vec<Scenario>,
    /// How late stragglers of the suite and around the break-even are [default: five uncoded runs, at least 20ms]
    #[arg(long, value_name = "DUR", value_parser = duration, help_heading = "Comparison")]
    delay: Option<Duration>,
    /// Do not look for the delay from which on coding wins
    #[arg(long, help_heading = "Comparison")]
    no_break_even: bool,
    /// Simulate the workers in virtual time: machines of one worker each, up to 10000 of them (--workers); nothing is
    /// computed but when what would be done
    #[arg(long = "virtual", conflicts_with_all = VIRTUAL_EXCLUDES, help_heading = "Virtual workers")]
    simulated: bool,
    /// Latency of the link to each simulated worker [default: 200us]
    #[arg(long, value_name = "DUR", value_parser = duration, help_heading = "Virtual workers")]
    link_latency: Option<Duration>,
    /// Megabits a second of the link to each simulated worker, each way [default: 1000]
    #[arg(long, value_name = "MBIT", allow_negative_numbers = true, help_heading = "Virtual workers")]
    bandwidth: Option<f64>,
    /// Billions of multiply-adds a second of a simulated worker [default: 30]
    #[arg(long, value_name = "G", allow_negative_numbers = true, help_heading = "Virtual workers")]
    mac_rate: Option<f64>,
    #[command(flatten, next_help_heading = "Methods under load")]
    under_load: UnderLoadArgs,
    #[command(flatten, next_help_heading = "Load on a server")]
    serve: LoadArgs,
    /// A folder for report.html and bench.json; it is made if it is not there
    #[arg(long, value_name = "DIR", help_heading = "Comparison")]
    output: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Workers and coding")]
    layer: LayerArgs,
    /// The code of method `custom`, which only other programs hand over.
    #[arg(skip)]
    pub(crate) own_code: Option<Arc<Code>>,
}

#[cfg(feature = "onnx")]
const VIRTUAL_EXCLUDES: [&str; 4] = ["model", "pool", "backend", "adapter"];
#[cfg(not(feature = "onnx"))]
const VIRTUAL_EXCLUDES: [&str; 3] = ["pool", "backend", "adapter"];

/// Maximum number of simulated workers.
const MAX_SIMULATED: usize = 10_000;

pub(crate) fn run(args: &BenchArgs, console: Console) -> Result<()> {
    if let Some(url) = &args.serve.url {
        return served(url, args, console);
    }
    if let Some(file) = &args.under_load.load {
        return bench_load::run(file, args.output.as_deref(), args.layer.report.as_deref(), console);
    }
    let mut ledger = Ledger::default();
    let places = Places::plan(args, &mut ledger)?;
    let console = console.beside(&ledger);
    let layers = layers(args)?;
    let bar = Bar::new(console, if args.simulated { "simulating" } else { "measuring" });
    let mut observe = |progress: Progress<'_>| show(&bar, console, !args.simulated, progress);
    let report = compare(args, &layers, &mut ledger, console, &mut observe)?;
    drop(bar);
    places.write(&report)?;
    if console.tables { table(&report) } else { Ok(()) }
}

/// A load on a server instead of a comparison.
fn served(url: &str, args: &BenchArgs, console: Console) -> Result<()> {
    #[cfg(feature = "onnx")]
    let (model, inputs) = (args.model.as_deref(), args.input.as_slice());
    #[cfg(not(feature = "onnx"))]
    let (model, inputs) = (None, [].as_slice());
    let (output, report, seed) = (args.output.as_deref(), args.layer.report.as_deref(), args.layer.seed);
    bench_serve::run(&args.serve, &bench_serve::Request { url, model, inputs, output, report, seed }, console)
}

/// The report of a comparison; nothing is printed or written.
pub(crate) fn report(args: &BenchArgs, observe: &mut dyn FnMut(Progress<'_>)) -> Result<BenchReport> {
    compare(args, &layers(args)?, &mut Ledger::default(), Console::new(true), observe)
}

fn compare(
    args: &BenchArgs,
    layers: &[NamedLayer],
    ledger: &mut Ledger,
    console: Console,
    observe: &mut dyn FnMut(Progress<'_>),
) -> Result<BenchReport> {
    // Invalid options are refused before anything is measured.
    check(args)?;
    if args.simulated {
        return simulated(args, layers, observe);
    }
    #[cfg(feature = "onnx")]
    let model = args.model.as_deref().map(|path| load(path, args, ledger)).transpose()?;
    #[cfg(not(feature = "onnx"))]
    let _ = ledger;
    let factory = Factory::new(&args.layer, console)?;
    let mut comparison = comparison(args, factory.infos.len(), &factory.rates)?;
    let workers = |_| factory.make();
    for layer in layers {
        match dtype(&args.layer) {
            DType::F32 => comparison.layer::<f32>(layer, &workers, observe)?,
            DType::F64 => comparison.layer::<f64>(layer, &workers, observe)?,
        };
    }
    #[cfg(feature = "onnx")]
    if let Some((model, inputs)) = &model {
        let precision = args.layer.precision.map(|_| dtype(&args.layer));
        comparison.model(model, inputs, precision, &workers, observe)?;
    }
    Ok(comparison.report(setting(args, "real", crew(&factory.infos)), notes(&factory.infos)))
}

fn simulated(
    args: &BenchArgs,
    layers: &[NamedLayer],
    observe: &mut dyn FnMut(Progress<'_>),
) -> Result<BenchReport> {
    let workers = args.layer.worker_count();
    let mut rates = Rates::default();
    let (mac_rate, bandwidth) = (args.mac_rate.unwrap_or(30.0), args.bandwidth.unwrap_or(1000.0));
    let latency = args.link_latency.unwrap_or(Duration::from_micros(200));
    rates.worker.mac_s = 1e-9 / mac_rate;
    let bytes_s = bandwidth * 1e6 / 8.0;
    let link = Link { latency, up_bytes_s: bytes_s, down_bytes_s: bytes_s };
    let own = SimulatedSetting { link, rates };
    // The planner's rates include the link, as the runs do.
    let element_s = dtype(&args.layer).size_bytes() as f64 / bytes_s;
    let mut seen = rates;
    seen.worker.call_s += 2.0 * latency.as_secs_f64();
    seen.worker.upload_s += element_s;
    seen.worker.download_s += element_s;
    let mut comparison = comparison(args, workers, &seen)?;
    for layer in layers {
        match dtype(&args.layer) {
            DType::F32 => comparison.simulated_layer::<f32>(layer, &own, observe)?,
            DType::F64 => comparison.simulated_layer::<f64>(layer, &own, observe)?,
        };
    }
    let crew = format!(
        "{workers} x simulated machine ({mac_rate} G multiply-adds/s, {bandwidth} Mbit/s, {})",
        humantime::format_duration(latency)
    );
    let note = "Workers and links are simulated: the scheduler is the real one, times are those of a cost model, no numbers \
                were computed and none compared.";
    Ok(comparison.report(setting(args, "virtual", crew), vec![note.to_owned()]))
}

/// Shows progress and, in real time, the estimated duration.
fn show(bar: &Bar, console: Console, real: bool, progress: Progress<'_>) {
    match progress {
        Progress::Begins { study, estimate } if real => {
            let seconds = estimate.as_secs_f64().ceil();
            bar.suspend(|| console.notice(format_args!("{study}: up to {seconds:.0} s")));
        }
        Progress::Begins { .. } => {}
        Progress::Step { study, scenario, done, total } => {
            bar.steps(done, total, &format!("{study}: {scenario}"));
        }
    }
}

/// Where results are written.
struct Places {
    /// report.html and bench.json.
    folder: Option<(Output, Output)>,
    report: Option<Output>,
}

impl Places {
    fn plan(args: &BenchArgs, ledger: &mut Ledger) -> Result<Self> {
        for path in bench_layers::files(&args.layers) {
            ledger.input("--layers", path)?;
        }
        for fault in args.scenario.iter().flat_map(|scenario| &scenario.faults) {
            if let TrialFault::Trace(trace) = fault {
                ledger.input("--scenario", trace.path().as_ref())?;
            }
        }
        #[cfg(feature = "onnx")]
        {
            for path in &args.input {
                ledger.input("--input", path)?;
            }
            if let Some(path) = &args.model {
                ledger.input("--model", path)?;
            }
        }
        let report = pool::files(&args.layer, ledger)?;
        let folder = match &args.output {
            None => None,
            Some(folder) => Some((
                ledger.output_within("--output", folder, "report.html")?,
                ledger.output_within("--output", folder, "bench.json")?,
            )),
        };
        Ok(Self { folder, report })
    }

    fn write(self, report: &BenchReport) -> Result<()> {
        if let Some((html, json)) = self.folder {
            let page = fcdcc_bench::page_bench::page(report).html();
            arrays::write_bytes(html, page.as_bytes())?;
            arrays::write_report(json, report)?;
        }
        match self.report {
            None => Ok(()),
            Some(place) => arrays::write_report(place, report),
        }
    }
}

fn layers(args: &BenchArgs) -> Result<Vec<NamedLayer>> {
    #[cfg(feature = "onnx")]
    if args.model.is_some() && args.layers.is_empty() {
        return Ok(Vec::new());
    }
    if args.layers.is_empty() {
        let names: Vec<String> = bench_layers::DEFAULT.split(',').map(str::to_owned).collect();
        return bench_layers::chosen(&names);
    }
    bench_layers::chosen(&args.layers)
}

#[cfg(feature = "onnx")]
fn load(
    path: &std::path::Path,
    args: &BenchArgs,
    ledger: &mut Ledger,
) -> Result<(fcdcc::Model, Vec<fcdcc::model::Tensor>)> {
    let mut model = fcdcc::Model::load(path)?;
    for path in model.data_files() {
        ledger.input("the model's data", path)?;
    }
    if args.input.is_empty() {
        return fcdcc_bench::random_inputs(model, args.layer.seed);
    }
    if args.input.len() != model.inputs().len() {
        return Err(Error::mismatch(
            "number of inputs (--input)",
            args.input.len(),
            model.inputs().len(),
            "give one .npy array for each input of the model",
        ));
    }
    let read = |(path, info): (&PathBuf, &fcdcc::model::InputInfo)| {
        arrays::read_tensor(arrays::Source::open(path, &[info.name.as_str()])?)
    };
    let inputs = args.input.iter().zip(model.inputs()).map(read).collect::<Result<Vec<_>>>()?;
    for (info, input) in model.inputs().to_vec().iter().zip(&inputs) {
        if info.fixed_shape().as_deref() != Some(input.shape()) {
            model = model.with_input_shape(&info.name, input.shape())?;
        }
    }
    Ok((model, inputs))
}

/// Checks everything that can be checked without workers.
fn check(args: &BenchArgs) -> Result<()> {
    args.layer.layer_options("")?;
    if args.trials == 0 {
        return Err(Error::invalid("number of trials (--trials)", 0, "use at least one"));
    }
    if args.delay == Some(Duration::ZERO) {
        return Err(Error::invalid("delay (--delay)", 0, "give a time above zero, such as 50ms"));
    }
    if args.simulated {
        if !(1..=MAX_SIMULATED).contains(&args.layer.worker_count()) {
            let help = format!("use 1 to {MAX_SIMULATED}");
            return Err(Error::invalid("number of workers (--workers)", args.layer.worker_count(), help));
        }
        for (what, value) in
            [("link's speed (--bandwidth)", args.bandwidth), ("worker's speed (--mac-rate)", args.mac_rate)]
        {
            if value.is_some_and(|value| !(value.is_finite() && value > 0.0)) {
                let value = value.unwrap_or_default();
                return Err(Error::invalid(what, value, "give a number above zero"));
            }
        }
        if args.layer.audit.is_some_and(|audit| audit != Audit::Off) {
            let help = "simulated workers compute no numbers to compare: use off";
            let audit = args.layer.audit.unwrap_or_default();
            return Err(Error::invalid("audit (--audit)", audit.to_string(), help));
        }
    }
    let alone = [
        ("--link-latency", args.link_latency.is_some()),
        ("--bandwidth", args.bandwidth.is_some()),
        ("--mac-rate", args.mac_rate.is_some()),
    ];
    if let Some((option, _)) = alone.iter().find(|(_, given)| *given && !args.simulated) {
        return Err(Error::invalid("option of simulated workers", *option, "give --virtual as well"));
    }
    if args.layer.pool.is_none() {
        // Checks everything that a pool file does not decide.
        comparison(args, args.layer.worker_count(), &Rates::default())?;
    }
    Ok(())
}

fn comparison(args: &BenchArgs, workers: usize, rates: &Rates) -> Result<Comparison> {
    let options = args.layer.layer_options("")?;
    // Methods run as requested: no automatic change of the computation, and no waiting for spare results.
    let base = LayerOptions {
        rates: *rates,
        max_windowwise: args.layer.max_windowwise.unwrap_or(WindowwiseLimit::Off),
        max_error: options.max_error.or(Some(1.0)),
        own_code: args.own_code.clone(),
        ..options
    }
    .audit(args.layer.audit.unwrap_or(Audit::Off));
    if base.tolerate >= workers {
        return Err(Error::invalid(
            "stragglers to tolerate (--tolerate)",
            base.tolerate,
            format!("it must be below the number of workers, {workers}"),
        ));
    }
    let mut scenarios = args.scenario.clone();
    if !args.layer.fault.is_empty() {
        scenarios.insert(0, Scenario::new(args.layer.fault.clone())?);
    }
    scenarios.iter().try_for_each(|scenario| scenario.check(workers))?;
    let methods = methods(args)?;
    if let Some((k_a, k_b)) = base.partitions {
        let named = |method: &&Method| method.is_ours() && **method != Method::Custom;
        for method in methods.iter().filter(named) {
            Code::new(method.code(), k_a, k_b, workers)?;
        }
    }
    let plan = Plan {
        workers,
        tolerate: base.tolerate,
        trials: args.trials,
        seed: args.layer.seed,
        scenarios: (!scenarios.is_empty()).then_some(scenarios),
        delay: args.delay,
        break_even: !args.no_break_even && base.tolerate > 0,
    };
    Ok(Comparison::new(plan, methods, base))
}

fn methods(args: &BenchArgs) -> Result<Vec<Method>> {
    let mut methods = args.methods.clone();
    if methods.is_empty() {
        methods = vec![Method::Uncoded, Method::Hedged, Method::Replication, Method::Mds];
        let judged = Method::of(args.layer.code);
        methods.retain(|method| *method != judged);
        methods.push(judged);
    } else if args.layer.code != CodeKind::default() {
        let help = "leave --code out, and put the method to be judged last in --methods";
        return Err(Error::invalid("code (--code) beside --methods", args.layer.code.to_string(), help));
    }
    if methods.contains(&Method::Custom) && args.own_code.is_none() {
        let help = "it is for programs that hand over a code of their own: name a code family";
        return Err(Error::invalid("method (--methods)", Method::Custom.name(), help));
    }
    for (index, method) in methods.iter().enumerate() {
        if methods[..index].contains(method) {
            return Err(Error::invalid("method (--methods)", method.to_string(), "name each method once"));
        }
    }
    Ok(methods)
}

/// Makes the workers of one method after the other. Faults are not included: they belong to the scenarios.
struct Factory<'a> {
    args: &'a LayerArgs,
    /// Properties of the first workers made.
    infos: Vec<WorkerInfo>,
    /// The planner's rates.
    rates: Rates,
}

impl<'a> Factory<'a> {
    fn new(args: &'a LayerArgs, console: Console) -> Result<Self> {
        let mut workers = pool::workers(args, true, console)?;
        if args.pool.is_some()
            && let Some(asked) = args.workers.filter(|asked| *asked != workers.len())
        {
            return Err(Error::mismatch(
                "number of workers (--workers)",
                asked,
                format!("{}, as in the pool file", workers.len()),
                "bench gives each worker one subtask: leave --workers out, or change the file",
            ));
        }
        let dtype = dtype(args);
        let measuring = Measuring { how: args.calibrate, unknown: true };
        let rates = rates::of(&mut workers, dtype, args.tolerated(), measuring, console)?;
        Ok(Self { args, infos: workers.iter().map(|worker| worker.info()).collect(), rates })
    }

    fn make(&self) -> Result<Vec<Box<dyn Worker>>> {
        // Notices about the backend were printed for the first workers.
        pool::workers(self.args, true, Console::new(true))
    }
}

fn dtype(args: &LayerArgs) -> DType {
    match args.precision.unwrap_or_default() {
        Precision::F32 => DType::F32,
        Precision::F64 => DType::F64,
    }
}

fn setting(args: &BenchArgs, mode: &str, workers: String) -> Environment {
    let precision = dtype(&args.layer).name().to_owned();
    machine::setting(mode, workers, precision, args.layer.seed, args.trials)
}

fn table(report: &BenchReport) -> Result<()> {
    for study in &report.studies {
        bench_table::one(study)?;
    }
    for cost in &report.codec {
        print::out(format_args!(
            "{}: encoding {:.2} ms and decoding {:.2} ms of processor time, {:.1} % of a run in which all workers compute",
            cost.name,
            cost.encode_cpu_ms,
            cost.decode_cpu_ms,
            cost.share() * 100.0
        ))?;
    }
    print::out("")?;
    for sentence in &report.findings {
        print::out(format_args!("- {sentence}"))?;
    }
    Ok(())
}
