//! The engines that are computed by this program: fcdcc in three ways, and tract.
//!
//! Each runs in a process of its own (`serve.rs`), so that its processor time and memory are those of the process.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use fcdcc::model::{ModelRun, Tensor};
use fcdcc::planner::{HostRates, Rates};
use fcdcc::{CodeKind, CpuWorker, LayerOptions, Model, ModelOptions, Pool, PreparedModel};
use ndarray::ArrayD;
use serde::Deserialize;
use tract_core::internal::{Tensor as TractTensor, TypedSimplePlan, tvec};
use tract_core::prelude::{IntoRunnable, TValue};
use tract_linalg::multithread::{Executor, multithread_tract_scope};
use tract_onnx::prelude::{Framework, InferenceModelExt};

/// Workers of a coded run, n.
pub(crate) const WORKERS: usize = 6;
/// Results of these that suffice, delta.
pub(crate) const THRESHOLD: usize = 4;
/// Longest wait for workers to end what they had begun when a run ended.
const IDLE: Duration = Duration::from_mins(1);

/// An engine of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// onnxruntime with as many threads as the others: what they are compared with.
    Onnxruntime,
    /// onnxruntime with one thread.
    Onnxruntime1,
    Tract,
    /// Six workers of one thread, any four of which suffice.
    Coded,
    /// A worker of one thread for each thread, all of which are needed.
    Uncoded,
    /// Every layer on the calling machine.
    Local,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] =
        [Self::Onnxruntime, Self::Onnxruntime1, Self::Tract, Self::Coded, Self::Uncoded, Self::Local];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Onnxruntime => "onnxruntime",
            Self::Onnxruntime1 => "onnxruntime, 1 thread",
            Self::Tract => "tract",
            Self::Coded => "coded",
            Self::Uncoded => "uncoded",
            Self::Local => "local",
        }
    }

    /// The place in [`Kind::ALL`].
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// What to make ready.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Request {
    /// The file.
    pub(crate) path: PathBuf,
    /// The shape of its only input.
    pub(crate) input: Vec<usize>,
    pub(crate) threads: usize,
}

/// A model that is ready to run on an input that it has.
pub(crate) trait Network {
    /// What is worth knowing about how it is computed.
    fn note(&self) -> String;

    /// Runs once: the outputs.
    fn run(&self) -> Result<Vec<Vec<f32>>>;

    /// Runs once and drops the outputs: the seconds that the master spent on its own work, where there is a master.
    fn call(&self) -> Result<Option<f64>>;

    /// Waits until no thread works for the last run any more.
    fn settle(&self) -> Result<()> {
        Ok(())
    }
}

/// Makes a model ready.
pub(crate) fn load(kind: Kind, request: &Request, input: Vec<f32>) -> Result<Box<dyn Network>> {
    ensure!(request.threads > 0, "0 threads compute nothing");
    let input = ArrayD::from_shape_vec(request.input.clone(), input).context("the input")?;
    Ok(match kind {
        Kind::Onnxruntime | Kind::Onnxruntime1 => bail!("{} is no engine of this program", kind.name()),
        Kind::Tract => Box::new(Tract::new(request, &input)?),
        Kind::Coded | Kind::Uncoded | Kind::Local => Box::new(Ours::new(kind, request, input)?),
    })
}

/// fcdcc.
struct Ours {
    pool: Pool,
    model: PreparedModel,
    input: [Tensor; 1],
}

/// The options of a model in each of the three ways, and the number of workers.
fn options(kind: Kind, threads: usize) -> (ModelOptions, usize) {
    let (layer, workers) = match kind {
        Kind::Coded => (LayerOptions::default().tolerate(WORKERS - THRESHOLD), WORKERS),
        _ => (LayerOptions::default().code(CodeKind::Uncoded).tolerate(0), threads),
    };
    let mut options = ModelOptions { layer, ..ModelOptions::default() };
    if kind == Kind::Local {
        // Of two places the planner takes the faster one; a year for every dispatch leaves one.
        let rates = Rates::default();
        options.layer.rates = Rates { host: HostRates { layer_s: 3e7, ..rates.host }, ..rates };
        options.freedom.local = true;
    }
    (options, workers)
}

impl Ours {
    fn new(kind: Kind, request: &Request, input: ArrayD<f32>) -> Result<Self> {
        let (options, workers) = options(kind, request.threads);
        let pool = Pool::new(CpuWorker::fleet(workers))?;
        let model = Model::load(&request.path)?.prepare(&pool, &options)?;
        let coded = model.coded_layers();
        ensure!(
            (coded == 0) == (kind == Kind::Local),
            "{coded} layers are on workers in a {} run",
            kind.name()
        );
        Ok(Self { pool, model, input: [input.into()] })
    }

    fn compute(&self) -> Result<ModelRun> {
        Ok(self.model.run(&self.input)?)
    }
}

impl Network for Ours {
    fn note(&self) -> String {
        let local = self.model.local_layers().count();
        format!("{} workers, {} layers on them, {local} here", self.pool.len(), self.model.coded_layers())
    }

    fn run(&self) -> Result<Vec<Vec<f32>>> {
        let outputs = self.compute()?.outputs.into_iter();
        let numbers = outputs.map(|output| match output.tensor {
            Tensor::F32(array) => Ok(array.iter().copied().collect()),
            other => bail!("output {} is of type {}", output.name, other.dtype()),
        });
        numbers.collect()
    }

    fn call(&self) -> Result<Option<f64>> {
        let run = self.compute()?;
        let codec: f64 = run.layers.iter().map(|layer| layer.encode_ms + layer.decode_ms).sum();
        Ok(Some(run.host.as_secs_f64() + codec / 1e3))
    }

    fn settle(&self) -> Result<()> {
        ensure!(self.pool.wait_idle(IDLE), "workers are not idle {IDLE:?} after a run");
        Ok(())
    }
}

/// tract, with its optimised graph.
struct Tract {
    plan: Arc<TypedSimplePlan>,
    input: TValue,
    executor: Executor,
}

impl Tract {
    fn new(request: &Request, input: &ArrayD<f32>) -> Result<Self> {
        let model = tract_onnx::onnx().model_for_path(&request.path)?;
        let plan = model.into_optimized()?.into_runnable()?;
        let numbers: Vec<f32> = input.iter().copied().collect();
        let input = TractTensor::from_shape(input.shape(), &numbers)?.into();
        let executor = if request.threads == 1 {
            Executor::SingleThread
        } else {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(request.threads).build()?;
            Executor::MultiThread(Arc::new(pool))
        };
        Ok(Self { plan, input, executor })
    }

    fn compute(&self) -> Result<Vec<TValue>> {
        let outputs =
            multithread_tract_scope(self.executor.clone(), || self.plan.run(tvec![self.input.clone()]));
        Ok(outputs?.into_iter().collect())
    }
}

impl Network for Tract {
    fn note(&self) -> String {
        format!("{} nodes", self.plan.model().nodes().len())
    }

    fn run(&self) -> Result<Vec<Vec<f32>>> {
        let numbers = |value: &TValue| Ok(value.to_plain_array_view::<f32>()?.iter().copied().collect());
        self.compute()?.iter().map(numbers).collect()
    }

    fn call(&self) -> Result<Option<f64>> {
        std::hint::black_box(self.compute()?);
        Ok(None)
    }
}
