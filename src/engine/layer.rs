//! A prepared coded convolution: validates the layer, chooses how each input is computed, and reports every run.

use std::borrow::Cow;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use ndarray::{ArrayD, ArrayViewD, IxDyn};

use super::accuracy::Assessment;
use super::common::{Common, Quality, RunInput, SharedWeight};
use super::fitness::{check_audit, check_condition};
use super::options::LayerOptions;
use super::placement::INSTALL_LIMIT;
use super::report::{Completion, LayerReport};
use super::rules::CACHED_DECODERS;
use super::variant::{Variant, VariantRun};
use crate::array::{Element, check_elems, first_non_finite, once, same, same_ref, sized};
use crate::coding::{Code, CodeKind, ParityCheckCache};
use crate::conv::ConvShape;
use crate::error::{Error, Result};
use crate::ids::WorkerId;
use crate::memory;
use crate::planner::{LayerMemory, choose_partitions, subtask_shape, unmixed_partitions};
use crate::scheduler::{Audit, Decision, Fleet, Pool};
use crate::sync::locked;
use crate::worker::{CancelToken, SubtaskShape};

/// Runs with uneven inputs that are computed on this machine before another code is tried again.
const RUNS_UNTIL_TRIED_AGAIN: u32 = 32;

/// A convolution whose coded filters are installed on the workers of a pool. It can run many times, and from several
/// threads at once.
///
/// # Examples
///
/// ```
/// use fcdcc::{CodedConv, ConvParams, CpuWorker, Pool};
/// use ndarray::ArrayD;
///
/// let pool = Pool::new(CpuWorker::fleet(6))?;
/// let (input, weight) = (ArrayD::<f32>::ones(vec![1, 2, 8, 8]), ArrayD::<f32>::ones(vec![4, 2, 3, 3]));
/// let params = ConvParams::default().padding([1]);
/// let layer = CodedConv::builder(&pool, input.shape(), weight.view()).params(params).tolerate(2).prepare()?;
///
/// let run = layer.run(input.view())?;
/// assert_eq!(run.output.shape(), [1, 4, 8, 8]);
/// assert!((run.output[[0, 0, 4, 4]] - 18.0).abs() < 1e-3);
/// # Ok::<(), fcdcc::Error>(())
/// ```
///
/// Repeated runs reuse the memory of the output:
///
/// ```
/// # use fcdcc::{CodedConv, CpuWorker, Pool};
/// # use ndarray::ArrayD;
/// # let pool = Pool::new(CpuWorker::fleet(6))?;
/// # let (input, weight) = (ArrayD::<f32>::ones(vec![1, 2, 8, 8]), ArrayD::<f32>::ones(vec![4, 2, 3, 3]));
/// let layer = CodedConv::builder(&pool, input.shape(), weight.view()).prepare()?;
/// let mut output = ArrayD::default(vec![]);
/// for _ in 0..3 {
///     let report = layer.run_into(input.view(), &mut output)?;
///     assert!(report.error_bound < 1e-3);
/// }
/// assert_eq!(output.shape(), [1, 4, 6, 6]);
/// # Ok::<(), fcdcc::Error>(())
/// ```
pub struct CodedConv<T: Element> {
    common: Common<T>,
    main: Variant<T>,
    /// The layer under another code, for inputs too uneven to be mixed.
    other: Mutex<Other<T>>,
    pool: Pool,
}

/// The layer under another code, created when it is first needed.
enum Other<T: Element> {
    NotTried,
    Ready(Arc<Variant<T>>),
    /// No other code could be prepared: the layer is computed on this machine, and preparing is tried again after this
    /// many runs.
    Impossible(u32),
}

/// Output and report of a run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Run<T> {
    /// The output `[N, O, spatial...]`, row-major.
    pub output: ArrayD<T>,
    /// Outcome and cost of every attempt.
    pub report: LayerReport,
}

/// The outcome of a run that began, with or without an output.
#[derive(Debug)]
#[non_exhaustive]
pub struct LayerOutcome<T> {
    /// The output `[N, O, spatial...]`, or the error.
    pub output: Result<ArrayD<T>>,
    /// Outcome and cost of every attempt; [`LayerReport::completion`] says how the run ended.
    pub report: LayerReport,
}

impl<T: Element> CodedConv<T> {
    /// As [`CodedConv::builder`] and [`prepare`](super::CodedConvBuilder::prepare), but shares the filters with the caller
    /// instead of copying them.
    ///
    /// # Errors
    /// Those of [`prepare`](super::CodedConvBuilder::prepare).
    pub fn prepare_shared(
        pool: &Pool,
        shape: ConvShape,
        weight: SharedWeight<T>,
        bias: Option<Vec<T>>,
        options: LayerOptions,
    ) -> Result<Self> {
        Self::prepare_beside(pool, shape, weight, bias, options, None)
    }

    /// As [`CodedConv::prepare_shared`], for a layer that differs from `other` in the size of its input alone, such as one for
    /// another batch. If both have the same filters, code and pool, `other`'s filters are used on this machine, and by workers
    /// that can [share](crate::Worker::share) coded filters; the others get them once more. Dropping one of the layers leaves
    /// the other what it needs.
    ///
    /// # Errors
    /// Those of [`prepare`](super::CodedConvBuilder::prepare).
    pub fn prepare_beside(
        pool: &Pool,
        shape: ConvShape,
        weight: SharedWeight<T>,
        bias: Option<Vec<T>>,
        options: LayerOptions,
        other: Option<&Self>,
    ) -> Result<Self> {
        once!(T as E; fn(
            pool: &Pool = pool,
            shape: ConvShape = shape,
            weight: SharedWeight<E> = same(weight),
            bias: Option<Vec<E>> = same(bias),
            options: LayerOptions = options,
            other: Option<&CodedConv<E>> = other.map(same_ref),
        ) -> Result<CodedConv<E>> {
            CodedConv::new(pool, shape, weight, bias, options, other)
        }, |layer: Result<_>| layer.map(same))
    }

    /// [`CodedConv::prepare_shared`], in the crate that calls it.
    fn new(
        pool: &Pool,
        shape: ConvShape,
        mut weight: SharedWeight<T>,
        bias: Option<Vec<T>>,
        options: LayerOptions,
        other: Option<&Self>,
    ) -> Result<Self> {
        options.check()?;
        check_elems("elements of the weight", (*weight).as_ref().len(), shape.weight_elems())?;
        if let Some(bias) = &bias
            && bias.len() != shape.out_channels
        {
            return Err(Error::mismatch(
                "elements of the bias",
                bias.len(),
                shape.out_channels,
                "give one bias value for each output channel",
            ));
        }
        pool.check_dtype(T::DTYPE)?;
        let code = options.code_for(pool.len(), |n| {
            let rates = pool.shared(&options.rates);
            Ok(choose_partitions::<T>(&shape, options.code, n, options.tolerate, &rates)?.0)
        })?;
        check_condition(&code)?;
        let checkers = ParityCheckCache::new(CACHED_DECODERS);
        check_audit::<T>(&code, options.policy.audit, pool, &checkers, shape.reduction())?;
        let same = other.filter(|other| {
            other.pool.is_same(pool) && *other.code() == code && other.common.has_weight((*weight).as_ref())
        });
        if let Some(same) = same {
            weight = Arc::clone(&same.common.weight);
        }
        let common = Common::new(shape, weight, bias, options);
        let flaw = || {
            let bias = common.bias.as_deref().unwrap_or_default();
            non_finite("weight", common.weight()).or_else(|| non_finite("bias", bias))
        };
        let flaw = if common.finite { None } else { flaw() };
        refuse_unless_passed(&code, common.options.policy.audit, flaw)?;
        let subtask = subtask_shape(&common.shape, &code)?;
        let mut needed =
            LayerMemory::of(&common.shape, &code, &subtask, T::DTYPE, pool.share_here(), pool.cores());
        if same.is_some() {
            needed.filters = 0;
        }
        memory::require(&format!("layer {}", common.options.name), needed.total())?;
        let _span = tracing::info_span!("prepare", name = common.options.name).entered();
        let how = (INSTALL_LIMIT, same.map(|same| &same.main));
        let main = Variant::new(pool, &common, code, false, checkers, how)?;
        Ok(Self { common, main, other: Mutex::new(Other::NotTried), pool: pool.clone() })
    }

    /// The layer's name in reports.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.common.options.name
    }

    /// The validated convolution.
    #[must_use]
    pub fn shape(&self) -> &ConvShape {
        &self.common.shape
    }

    /// The code in use.
    #[must_use]
    pub fn code(&self) -> &Code {
        self.main.code()
    }

    /// What each subtask computes.
    #[must_use]
    pub fn subtask(&self) -> &SubtaskShape {
        &self.main.placement.subtask
    }

    /// The worker currently assigned to each subtask.
    #[must_use]
    pub fn assignment(&self) -> Vec<WorkerId> {
        self.main.placement.assignment()
    }

    /// Computes the layer for `input` `[N, C, spatial...]`, which must have the shape that the layer was prepared for.
    ///
    /// # Errors
    /// [`Error::Mismatch`] or [`Error::NonFinite`] for an invalid input; [`Error::Shortfall`] when too few results
    /// came after every allowed fallback; [`Error::ErrorBound`], [`Error::NonFiniteResults`] or [`Error::Corrupted`]
    /// when a result was refused.
    pub fn run(&self, input: ArrayViewD<'_, T>) -> Result<Run<T>> {
        let LayerOutcome { output, report } = self.try_run(input)?;
        Ok(Run { output: output?, report })
    }

    /// As [`CodedConv::run`], but overwrites `output` and reuses its memory where it is large enough, so that repeated runs
    /// allocate no output. `output` may have any shape. After an error it is empty.
    ///
    /// # Errors
    /// Those of [`CodedConv::run`].
    pub fn run_into(&self, input: ArrayViewD<'_, T>, output: &mut ArrayD<T>) -> Result<LayerReport> {
        let old = std::mem::replace(output, ArrayD::default(IxDyn(&[0])));
        let mut values = sized(old.into_raw_vec_and_offset().0, self.common.shape.output_elems());
        let report = self.run_slices(&self.accept(&input)?, &mut values, &CancelToken::new())?;
        *output = self.shaped(values);
        Ok(report)
    }

    /// As [`CodedConv::run`], but returns the report also for a run without output.
    ///
    /// # Errors
    /// [`Error::Mismatch`] or [`Error::NonFinite`] for an invalid input, before anything is dispatched.
    pub fn try_run(&self, input: ArrayViewD<'_, T>) -> Result<LayerOutcome<T>> {
        self.try_run_new(&input, &CancelToken::new())
    }

    /// As [`CodedConv::run`], but ends with [`Error::Cancelled`] as soon as `cancel` is cancelled, from any thread. Workers
    /// then stop within one sub-result; the layer stays ready for the next run.
    ///
    /// # Errors
    /// Those of [`CodedConv::run`], and [`Error::Cancelled`].
    pub fn run_cancellable(&self, input: ArrayViewD<'_, T>, cancel: &CancelToken) -> Result<Run<T>> {
        let LayerOutcome { output, report } = self.try_run_new(&input, cancel)?;
        Ok(Run { output: output?, report })
    }

    /// As [`CodedConv::run_cancellable`], from and into slices in the order of [`CodedConv::run`]. After an error the
    /// content of `output` is arbitrary.
    ///
    /// # Errors
    /// Those of [`CodedConv::run_cancellable`], and [`Error::Mismatch`] for slices of the wrong length.
    pub fn run_slices(&self, input: &[T], output: &mut [T], cancel: &CancelToken) -> Result<LayerReport> {
        let shape = &self.common.shape;
        check_elems("elements of the input", input.len(), shape.input_elems())?;
        check_elems("elements of the output", output.len(), shape.output_elems())?;
        let (ended, report) = self.try_run_in(input, output, cancel)?;
        ended.map(|()| report)
    }

    /// As [`CodedConv::try_run`], into a new array.
    fn try_run_new(&self, input: &ArrayViewD<'_, T>, cancel: &CancelToken) -> Result<LayerOutcome<T>> {
        let mut output = vec![T::default(); self.common.shape.output_elems()];
        let (ended, report) = self.try_run_in(&self.accept(input)?, &mut output, cancel)?;
        Ok(LayerOutcome { output: ended.map(|()| self.shaped(output)), report })
    }

    /// The elements of an input of the right shape in row-major order, borrowed where they are stored so already.
    fn accept<'a>(&self, input: &'a ArrayViewD<'_, T>) -> Result<Cow<'a, [T]>> {
        let expected = self.common.shape.input_shape();
        if input.shape() != expected {
            return Err(Error::mismatch(
                "shape of the input",
                format!("{:?}", input.shape()),
                format!("{expected:?}"),
                "prepare the layer for the shape it is to run on",
            ));
        }
        Ok(match input.as_slice() {
            Some(slice) => Cow::Borrowed(slice),
            None => Cow::Owned(input.iter().copied().collect()),
        })
    }

    fn shaped(&self, output: Vec<T>) -> ArrayD<T> {
        ArrayD::from_shape_vec(IxDyn(&self.common.shape.output_shape()), output)
            .expect("it has as many elements as the output")
    }

    /// Computes the layer into `output`, and says how the run ended. The lengths have been checked.
    fn try_run_in(
        &self,
        input: &[T],
        output: &mut [T],
        cancel: &CancelToken,
    ) -> Result<(Result<()>, LayerReport)> {
        once!(T as E; fn(
            layer: &CodedConv<E> = same_ref(self),
            input: &[E] = bytemuck::cast_slice(input),
            output: &mut [E] = bytemuck::cast_slice_mut(output),
            cancel: &CancelToken = cancel,
        ) -> Result<(Result<()>, LayerReport)> {
            layer.compute(input, output, cancel)
        }, std::convert::identity)
    }

    /// [`CodedConv::try_run_in`], in the crate that calls it.
    fn compute(
        &self,
        input: &[T],
        output: &mut [T],
        cancel: &CancelToken,
    ) -> Result<(Result<()>, LayerReport)> {
        let (common, main) = (&self.common, &self.main);
        let _span = tracing::info_span!("layer", name = common.options.name).entered();
        let started = Instant::now();
        let scan = main.scan.scan(input, &common.rooms);
        let flaw = if scan.finite { None } else { non_finite("input", input) };
        refuse_unless_passed(main.code(), common.options.policy.audit, flaw)?;
        if let Some(integers) = &main.integers {
            integers.check(input, scan.largest)?;
        }
        let assessment = if scan.finite && common.finite {
            main.rules.accuracy.assess(&scan.spread)
        } else if main.rules.accuracy.rounding.filtering > 1.0 {
            // Transformed windows turn an infinity into NaN.
            Assessment::Uneven
        } else {
            // NaN and infinity pass through: nothing is mixed.
            Assessment::Decode { amplification: f64::INFINITY }
        };
        if let Assessment::Decode { amplification } = assessment {
            let run = main.run(&RunInput { common, input, scan: &scan, amplification, cancel }, output);
            return Ok(self.attempted(main, run, None, started));
        }
        if let Some(other) = self.other() {
            let scan = other.scan.scan(input, &common.rooms);
            if let Assessment::Decode { amplification } = other.rules.accuracy.assess(&scan.spread) {
                let way = Completion::by(main.code(), other.code());
                let run = RunInput { common, input, scan: &scan, amplification, cancel };
                let run = other.run(&run, output);
                return Ok(self.attempted(&other, run, Some(way), started));
            }
        }
        tracing::info!(amplification = scan.spread.largest(), "uneven data: computing the layer locally");
        let deadline = common.options.policy.deadline;
        let run = RunInput { common, input, scan: &scan, amplification: f64::INFINITY, cancel };
        let ended = common.compute_locally(&run, &main.scan, main.code(), deadline, output);
        let report = LayerReport {
            completion: Completion::of(&ended, true, false),
            ..LayerReport::without_workers(&common.options.name, &self.pool, started.elapsed())
        };
        Ok(self.finished(main, ended, report))
    }

    /// The outcome of a run on workers. `way` is its completion where it ran under another code than the layer's first.
    fn attempted(
        &self,
        variant: &Variant<T>,
        run: VariantRun<'_>,
        way: Option<Completion>,
        started: Instant,
    ) -> (Result<()>, LayerReport) {
        let VariantRun { output, gathered, decoder, times } = run;
        let local = matches!(gathered.end, Decision::Local);
        let completion = Completion::of(&output, local, gathered.traffic.repeated());
        let completion = way.filter(|_| output.is_ok() && !local).unwrap_or(completion);
        let report = LayerReport {
            completion,
            ..LayerReport::of(
                &self.common.options.name,
                &self.pool,
                &gathered,
                decoder.filter(|_| !local).as_deref(),
                [times[0], times[1], started.elapsed()],
            )
        };
        drop(gathered);
        self.finished(variant, output, report)
    }

    /// Completes the report and passes it to the observer.
    fn finished(
        &self,
        variant: &Variant<T>,
        ended: Result<Quality>,
        report: LayerReport,
    ) -> (Result<()>, LayerReport) {
        let quality = ended.as_ref().map_or(Quality::default(), |quality| *quality);
        let (code, wire) = (variant.code(), variant.rules.accuracy.rounding.wire);
        let report = LayerReport {
            wire: Some(if wire.is_narrow() { wire.name() } else { T::DTYPE.name() }.to_owned()),
            code: code.kind().to_string(),
            n: code.n(),
            recovery_threshold: code.recovery_threshold(),
            k_a: code.k_a(),
            k_b: code.k_b(),
            condition_number: quality.condition,
            error_bound: quality.error_bound,
            windowwise_bound: quality.windowwise,
            amplification: quality.amplification,
            recomputed: quality.recomputed,
            ..report
        };
        if let Some(observer) = &self.common.options.observer {
            observer.observe(&report);
        }
        (ended.map(drop), report)
    }

    /// The layer under a code that does not mix inputs, created when it is first needed.
    fn other(&self) -> Option<Arc<Variant<T>>> {
        let mut other = locked(&self.other);
        match &mut *other {
            Other::Ready(variant) => return Some(Arc::clone(variant)),
            Other::Impossible(runs) if *runs > 0 => {
                *runs -= 1;
                return None;
            }
            Other::Impossible(_) | Other::NotTried => {}
        }
        let made = self.make_other().map(Arc::new);
        *other = match &made {
            Some(variant) => Other::Ready(Arc::clone(variant)),
            None => Other::Impossible(RUNS_UNTIL_TRIED_AGAIN),
        };
        made
    }

    fn make_other(&self) -> Option<Variant<T>> {
        let (common, main) = (&self.common, self.main.code());
        let shape = &common.shape;
        let mixes = main.kind().mixes() && main.k_a() > 1;
        let code = if mixes {
            // A code of the caller's own says nothing about other partitions.
            let family = if main.kind() == CodeKind::Custom { CodeKind::Crme } else { main.kind() };
            let (kind, (k_a, k_b)) = unmixed_partitions(shape, family, main.n(), main.tolerated())?;
            Code::new(kind, k_a, k_b, main.n()).ok()?
        } else {
            // The code is not the cause: the workers' kernels mix elements, or their storage shortens them.
            main.clone()
        };
        let checkers = ParityCheckCache::new(CACHED_DECODERS);
        check_audit::<T>(&code, common.options.policy.audit, &self.pool, &checkers, shape.reduction())
            .ok()?;
        let (kind, k_a, k_b) = (code.kind(), code.k_a(), code.k_b());
        tracing::info!(layer = common.options.name, code = %kind, k_a, k_b, "uneven data: coding the layer another way");
        let limit = INSTALL_LIMIT.min(common.options.policy.deadline / 2);
        match Variant::new(&self.pool, common, code, true, checkers, (limit, None)) {
            Ok(variant) => variant.rules.accuracy.is_met_by_even_data().then_some(variant),
            Err(error) => {
                tracing::warn!(%error, "no other way to code the layer");
                None
            }
        }
    }
}

/// The error that names the first NaN or infinity, if there is one.
fn non_finite<T: Element>(what: &'static str, values: &[T]) -> Option<Error> {
    first_non_finite(values).map(|(index, value)| Error::NonFinite { what, value, index })
}

/// Refuses a NaN or infinity that coding would spread over the whole output. Where nothing is mixed it affects only its
/// own outputs and is passed through, unless copies are to be compared.
fn refuse_unless_passed(code: &Code, audit: Audit, flaw: Option<Error>) -> Result<()> {
    let compared = matches!(audit, Audit::Detect | Audit::Correct);
    match flaw {
        Some(error) if code.kind().mixes() || compared => Err(error),
        _ => Ok(()),
    }
}
