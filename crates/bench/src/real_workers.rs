//! Studies layers on real workers.
//!
//! Invariant: a run begins only after all workers of the previous run are idle, so that its stragglers cannot slow this one.

use std::sync::Arc;
use std::time::Duration;

use ndarray::{ArrayD, IxDyn};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::flags::with_flags;
use super::layers::NamedLayer;
use super::meter::{Meter, Work};
use super::methods::Method;
use super::runner::{Contestants, MethodRunner, Plan, Trial};
use fcdcc::array::Element;
use fcdcc::coding::error_bound;
use fcdcc::conv::{ConvShape, conv_uncoded};
use fcdcc::engine::{CodedConv, LayerOptions, LayerReport};
use fcdcc::error::{Error, ErrorKind, Result};
use fcdcc::scheduler::{Outcome, Pool};
use fcdcc::worker::{TaskFault, TaskFaults, Worker};

/// Maximum wait for the workers of the previous run to stop. They stop within one sub-result.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);

/// Makes this number of workers; called once for each method.
pub type Workers<'a> = &'a dyn Fn(usize) -> Result<Vec<Box<dyn Worker>>>;

/// A layer with input, filters and reference output.
pub struct LayerCase<T> {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: ConvShape,
    pub(super) input: ArrayD<T>,
    pub(super) weight: Arc<Vec<T>>,
    /// The reference output, computed in f64.
    truth: Vec<f64>,
}

impl<T: Element> LayerCase<T> {
    /// A case with uniformly distributed input and filters between -1 and 1.
    ///
    /// # Errors
    /// None for a valid shape.
    pub fn random(layer: &NamedLayer, seed: u64) -> Result<Self> {
        let shape = layer.shape.clone();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (input, weight): (Vec<T>, Vec<T>) =
            (numbers(shape.input_elems(), &mut rng), numbers(shape.weight_elems(), &mut rng));
        let wide = |values: &[T]| values.iter().map(|v| v.to_f64()).collect::<Vec<f64>>();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let truth = conv_uncoded(&shape, &wide(&input), &wide(&weight), None, threads, &|| false)?;
        let input = ArrayD::from_shape_vec(IxDyn(&shape.input_shape()), input)
            .expect("as many numbers as the input has elements");
        Ok(Self { name: layer.name.clone(), shape, input, weight: Arc::new(weight), truth })
    }

    /// Relative L2 error of an output, and its limit if the report promises `bound`.
    fn error(&self, output: &ArrayD<T>, bound: f64) -> [f64; 2] {
        let (mut error, mut norm) = (0.0, 0.0);
        for (got, want) in output.iter().zip(&self.truth) {
            error += (got.to_f64() - want).powi(2);
            norm += want * want;
        }
        // The reference has rounding errors too.
        [(error / norm).sqrt(), bound + error_bound(1.0, f64::EPSILON, self.shape.reduction())]
    }
}

pub(super) fn numbers<T: Element>(count: usize, rng: &mut impl Rng) -> Vec<T> {
    (0..count).map(|_| T::from_f64(rng.random::<f64>() * 2.0 - 1.0)).collect()
}

/// A pool of workers with scheduled faults and work counters.
pub(super) struct TestPool {
    pub(super) pool: Pool,
    fates: TaskFaults,
    meter: Meter,
}

impl TestPool {
    pub(super) fn new(workers: Vec<Box<dyn Worker>>, fates: &TaskFaults) -> Result<Self> {
        let meter = Meter::default();
        let pool = Pool::new(fates.wrap(meter.wrap(workers)))?;
        Ok(Self { pool, fates: fates.clone(), meter })
    }

    /// Calls `run` under these faults and waits until all workers are idle; returns also the work that was begun for it.
    pub(super) fn run<R>(&self, fates: &[TaskFault], run: impl FnOnce() -> R) -> (R, Work) {
        self.settle();
        self.fates.set(fates);
        self.meter.take();
        let result = run();
        self.settle();
        (result, self.meter.take())
    }

    fn settle(&self) {
        if !self.pool.wait_idle(SETTLE_LIMIT) {
            tracing::warn!("workers are still busy {SETTLE_LIMIT:?} after their run");
        }
    }
}

/// Runs one layer by one method.
struct LayerContestant<'a, T: Element> {
    case: &'a LayerCase<T>,
    arena: TestPool,
    options: LayerOptions,
    /// `None` only while the layer is prepared again.
    layer: Option<CodedConv<T>>,
}

impl<T: Element> LayerContestant<'_, T> {
    fn prepare(&mut self) -> Result<&CodedConv<T>> {
        if self.layer.is_none() {
            let (shape, weight) = (self.case.shape.clone(), Arc::clone(&self.case.weight));
            let weight: Arc<dyn AsRef<[T]> + Send + Sync> = weight;
            let pool = &self.arena.pool;
            self.layer = Some(CodedConv::prepare_shared(pool, shape, weight, None, self.options.clone())?);
        }
        Ok(self.layer.as_ref().expect("just prepared"))
    }
}

impl<T: Element> MethodRunner for LayerContestant<'_, T> {
    fn run(&mut self, fates: &[TaskFault], check: bool) -> Result<Trial> {
        self.prepare()?;
        let layer = self.layer.as_ref().expect("just prepared");
        let (attempted, work) = self.arena.run(fates, || layer.try_run(self.case.input.view()));
        let attempted = attempted?;
        let used = used(&attempted.report) * layer.subtask().conv.macs();
        let trial = Trial {
            macs: work.macs,
            wasted: if work.macs > 0.0 { (1.0 - used / work.macs).clamp(0.0, 1.0) } else { 0.0 },
            ..of_layers([&attempted.report])
        };
        Ok(match attempted.output {
            Err(error) => Trial { failure: Some(error.to_string()), ..trial },
            Ok(output) if check => {
                Trial { error: Some(self.case.error(&output, attempted.report.error_bound)), ..trial }
            }
            Ok(_) => trial,
        })
    }

    fn forget(&mut self) -> Result<()> {
        self.layer = None;
        self.prepare().map(drop)
    }
}

/// The number of sub-results that an output was decoded from.
pub(super) fn used(report: &LayerReport) -> f64 {
    let used = report.workers.iter().filter(|w| w.outcome == Outcome::Used);
    used.map(|w| w.sub_results as f64).sum()
}

/// The sums over the layers of one run.
pub(super) fn of_layers<'r>(reports: impl IntoIterator<Item = &'r LayerReport>) -> Trial {
    let mut trial = Trial::default();
    for report in reports {
        trial.latency_ms += report.total_ms;
        trial.encode_ms += report.encode_ms;
        trial.wait_ms += report.wait_ms;
        trial.decode_ms += report.decode_ms;
        trial.bytes_up += report.bytes_up as f64;
        trial.bytes_down += report.bytes_down as f64;
        trial.redispatched += report.redispatched as f64;
        trial.hedged += report.hedged as f64;
        trial.condition = trial.condition.max(report.condition_number);
    }
    trial
}

/// The methods that can run this layer, each with its own workers under shared fault schedules, and the reasons why
/// others are left out.
///
/// # Errors
/// [`Error::InvalidParameter`] if no coded method allows the partitions of `base`; the errors of making workers and of
/// preparing the layer.
pub fn layer_contestants<'a, T: Element>(
    case: &'a LayerCase<T>,
    methods: &[Method],
    plan: &Plan,
    base: &LayerOptions,
    workers: Workers<'_>,
) -> Result<(Contestants<'a>, Vec<String>)> {
    let fates = TaskFaults::new(plan.workers);
    let (mut contestants, mut left_out): (Contestants<'a>, Vec<String>) = (Vec::new(), Vec::new());
    for method in methods {
        let admit = || {
            let options = method.options::<T>(&case.shape, plan.workers, plan.tolerate, base)?;
            let own = method.plan::<T>(&case.shape, &options)?;
            let arena = TestPool::new(workers(plan.workers)?, &fates)?;
            let mut contestant = LayerContestant { case, arena, options, layer: None };
            contestant.prepare()?;
            Ok((own, contestant))
        };
        match admit() {
            Ok((own, contestant)) => contestants.push((own, Box::new(contestant))),
            Err(error) => left_out.push(without(&case.name, *method, error)?),
        }
    }
    Ok((contestants, left_out))
}

/// The reason why a method is missing from a study; errors that are neither the method's nor the layer's stay errors.
pub(super) fn without(study: &str, method: Method, error: Error) -> Result<String> {
    let fits_not = matches!(error, Error::InvalidParameter { .. } | Error::Mismatch { .. })
        || error.kind() == ErrorKind::Refused;
    if fits_not { Ok(format!("{study}: {method} is left out: {}.", with_flags(error))) } else { Err(error) }
}
