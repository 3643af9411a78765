//! A prepared coded convolution.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ndarray::{ArrayD, ArrayView1, ArrayViewD, IxDyn};

use super::experience::{About, Experience};
use super::fitness::{check_audit, check_condition};
use super::holdings::{Holdings, SharedWeight, locked};
use super::options::LayerOptions;
use super::report::{Completion, LayerReport};
use super::responses::{Responses, Scheme};
use crate::array::{Element, HALF_EPSILON, Values, check_elems, first_non_finite, sized};
use crate::coding::{
    CheckerCache, Clamp, Code, CodeKind, Decoder, DecoderCache, Epilogue, Sketcher, decode, encode_distinct,
    error_bound, storage_epsilon,
};
use crate::conv::{ConvParams, ConvShape, conv_local};
use crate::error::{Error, Result};
use crate::memory;
use crate::partition::{FilterPartition, InputPartition, OutputTiling};
use crate::planner::{LayerMemory, choose_partitions, subtask_shape};
use crate::scheduler::{Audit, End, Fleet, Gathered, JobPlan, OnShortfall, Pool, run_job};
use crate::worker::SubtaskShape;

/// Responder sets whose inverses a layer keeps.
pub(super) const CACHED_DECODERS: usize = 256;

/// A convolution whose coded filters lie on the workers of a pool. Reusable, and from several threads at once.
pub struct CodedConv<T: Element> {
    holdings: Arc<Holdings<T>>,
    options: LayerOptions,
    shape: ConvShape,
    slabs: InputPartition,
    tiling: OutputTiling,
    decoders: DecoderCache,
    checkers: CheckerCache,
    sketcher: Option<Arc<Sketcher>>,
    /// Slab buffers of earlier runs. A straggler may still read some of them.
    spare: Mutex<Vec<Arc<Values>>>,
    /// Result buffers of earlier runs.
    spent: Mutex<Vec<Values>>,
    experience: Mutex<Experience>,
    bias: Option<Vec<T>>,
    /// What computing it on this machine is predicted to take.
    local: Duration,
    /// Whether weight and bias are free of NaN and infinity.
    finite: bool,
    /// Of the results: the element type's, or more where workers keep operands in a narrower one.
    epsilon: f64,
}

/// What a run gives back.
#[derive(Clone, Debug)]
pub struct Run<T> {
    /// `[N, O, spatial...]`.
    pub output: ArrayD<T>,
    /// Who did what, and what it cost.
    pub report: LayerReport,
}

/// A run that began, whatever came of it.
#[derive(Debug)]
pub struct Attempted<T> {
    /// The output, or why there is none.
    pub output: Result<ArrayD<T>>,
    /// Who did what, and what it cost; [`LayerReport::completion`] says how it ended.
    pub report: LayerReport,
}

impl<T: Element> CodedConv<T> {
    /// Validates the layer, chooses its code, encodes its filters and installs them on the pool's workers.
    ///
    /// `input_shape` is `[N, C, spatial...]`, `weight` `[O, C/groups, kernel...]` with 1, 2 or 3 spatial axes,
    /// `bias` `[O]`. Subtasks are given to workers by measured speed, those of one failure domain far apart
    /// ([`assign`](crate::scheduler::assign())); with as many as workers and nothing measured yet, subtask i goes to
    /// worker i. Workers that fail to take their filters, or are much slower at it than the others, are stragglers
    /// from the start.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`], [`Error::Mismatch`] or [`Error::NonFinite`] for a layer that cannot be
    /// built, [`Error::Memory`] for one that does not fit into this machine, [`Error::Unavailable`] when a worker cannot compute in this type, and the first worker's error
    /// when too few could take their filters.
    pub fn prepare(
        pool: &Pool,
        input_shape: &[usize],
        weight: ArrayViewD<'_, T>,
        bias: Option<ArrayView1<'_, T>>,
        params: &ConvParams,
        options: LayerOptions,
    ) -> Result<Self> {
        let shape = ConvShape::new(input_shape, weight.shape(), params)?;
        let bias = bias.map(|b| b.to_vec());
        Self::prepare_shared(pool, shape, Arc::new(contiguous(&weight).into_owned()), bias, options)
    }

    /// As [`CodedConv::prepare`], for filters that stay the caller's too.
    ///
    /// # Errors
    /// Those of [`CodedConv::prepare`].
    pub fn prepare_shared(
        pool: &Pool,
        shape: ConvShape,
        weight: SharedWeight<T>,
        bias: Option<Vec<T>>,
        options: LayerOptions,
    ) -> Result<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
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
        let n = options.subtasks.unwrap_or(pool.len());
        let (k_a, k_b) = if let Some(pair) = options.partitions {
            pair
        } else {
            let rates = pool.shared(&options.rates);
            choose_partitions::<T>(&shape, options.code, n, options.tolerate, &rates)?.0
        };
        let code = Code::new(options.code, k_a, k_b, n)?;
        check_condition(&code)?;
        let slabs = InputPartition::new(&shape, k_a)?;
        let filters = FilterPartition::new(&shape, k_b)?;
        let checkers = CheckerCache::new(CACHED_DECODERS);
        let epsilon = if pool.keeps_half() {
            storage_epsilon(T::EPSILON, HALF_EPSILON, shape.reduction())
        } else {
            T::EPSILON
        };
        let noise = error_bound(1.0, epsilon, shape.reduction());
        check_audit(&code, options.audit, pool, &checkers, noise)?;
        let flaw = non_finite("weight", (*weight).as_ref())
            .or_else(|| non_finite("bias", bias.as_deref().unwrap_or_default()));
        let finite = flaw.is_none();
        refuse_unless_passed(options.code, options.audit, flaw)?;
        let subtask = subtask_shape(&shape, &code)?;
        let needed = LayerMemory::of(&shape, &code, &subtask, T::DTYPE, pool.share_here(), pool.cores());
        memory::require(&format!("layer {}", options.name), needed.total())?;
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let _span = tracing::info_span!("prepare", name = options.name).entered();
        let sketcher = || Arc::new(Sketcher::new(subtask.conv.output_elems(), options.seed ^ id));
        Ok(Self {
            sketcher: (options.audit != Audit::Off).then(sketcher),
            tiling: OutputTiling::new(&shape, &slabs, &filters),
            experience: Mutex::new(Experience::new(code.n())),
            holdings: Holdings::new(pool, id, code, subtask, filters, weight, options.audit != Audit::Off)?,
            decoders: DecoderCache::new(CACHED_DECODERS),
            checkers,
            spare: Mutex::new(Vec::new()),
            spent: Mutex::new(Vec::new()),
            local: Duration::try_from_secs_f64(options.rates.local_s(&shape)).unwrap_or_default(),
            options,
            shape,
            slabs,
            bias,
            finite,
            epsilon,
        })
    }

    /// The layer's name in reports.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// The validated convolution.
    #[must_use]
    pub fn shape(&self) -> &ConvShape {
        &self.shape
    }

    /// The code in use.
    #[must_use]
    pub fn code(&self) -> &Code {
        &self.holdings.code
    }

    /// What each subtask computes.
    #[must_use]
    pub fn subtask(&self) -> &SubtaskShape {
        &self.holdings.subtask
    }

    /// The worker of each subtask at present, by its position in the pool.
    #[must_use]
    pub fn homes(&self) -> Vec<usize> {
        self.holdings.homes().clone()
    }

    /// Computes the layer for `input` `[N, C, spatial...]`, of the shape it was prepared for.
    ///
    /// # Errors
    /// [`Error::Mismatch`] or [`Error::NonFinite`] for an unfit input, [`Error::Shortfall`] when too few results
    /// came after every fallback allowed, [`Error::ErrorBound`], [`Error::NonFiniteResults`] or [`Error::Corrupted`]
    /// when a result was refused.
    pub fn run(&self, input: ArrayViewD<'_, T>) -> Result<Run<T>> {
        let Attempted { output, report } = self.attempt(input)?;
        Ok(Run { output: output?, report })
    }

    /// As [`CodedConv::run`], with the output written over `output`, whose memory is used again where it has room for it: a
    /// layer that runs again and again needs none that is fresh. Any array will do. After an error it holds no elements.
    ///
    /// # Errors
    /// Those of [`CodedConv::run`].
    pub fn run_into(&self, input: ArrayViewD<'_, T>, output: &mut ArrayD<T>) -> Result<LayerReport> {
        let old = std::mem::replace(output, ArrayD::default(IxDyn(&[0])));
        let Attempted { output: new, report } = self.attempt_in(input, old.into_raw_vec_and_offset().0)?;
        *output = new?;
        Ok(report)
    }

    /// As [`CodedConv::run`], with a report also of a run that gave no output.
    ///
    /// # Errors
    /// [`Error::Mismatch`] or [`Error::NonFinite`] for an unfit input; then nothing was begun.
    pub fn attempt(&self, input: ArrayViewD<'_, T>) -> Result<Attempted<T>> {
        self.attempt_in(input, Vec::new())
    }

    /// As [`CodedConv::attempt`], with the output in `room` if it fits.
    fn attempt_in(&self, input: ArrayViewD<'_, T>, room: Vec<T>) -> Result<Attempted<T>> {
        let _span = tracing::info_span!("layer", name = self.options.name).entered();
        let started = Instant::now();
        if input.shape() != self.shape.input_shape() {
            return Err(Error::mismatch(
                "shape of the input",
                format!("{:?}", input.shape()),
                format!("{:?}", self.shape.input_shape()),
                "prepare the layer for the shape it is to run on",
            ));
        }
        let input = contiguous(&input);
        let flaw = non_finite("input", &input);
        let finite = self.finite && flaw.is_none();
        refuse_unless_passed(self.code().kind(), self.options.audit, flaw)?;
        let slabs: Vec<Arc<Values>> = tracing::debug_span!("encode").in_scope(|| {
            let spare = self.spare_slabs();
            let coded = encode_distinct(self.code(), &self.shape, &self.slabs, &input, spare);
            let coded: Vec<_> = coded.into_iter().map(|slabs| Arc::new(T::wrap(slabs))).collect();
            // Those of all subtasks may be one and the same.
            coded.iter().cycle().take(self.code().n()).cloned().collect()
        });
        let encode = started.elapsed();
        let terms = locked(&self.experience).terms(&self.about());
        let plan = JobPlan {
            fleet: &self.holdings.pool,
            layer: self.holdings.id,
            shape: &self.holdings.subtask,
            policy: self.options.policy(),
            terms,
            finite,
            slabs: slabs.clone(),
            spent: std::mem::take(&mut *locked(&self.spent)),
            sketcher: self.sketcher.clone(),
            recovery: Responses::new(self.scheme(&slabs)),
            filters: &|subtask, worker| self.holdings.filters_for(subtask, worker),
            holds: &|subtask, worker| self.holdings.holds(subtask, worker),
        };
        let mut gathered = run_job(plan, self.holdings.homes());
        let decoding = Instant::now();
        let chosen = gathered.recovery.chosen().cloned();
        let end = std::mem::replace(&mut gathered.end, End::Decode);
        let decoded = match (end, &chosen) {
            (End::Failed(error), _) => Err(error),
            (End::Decode, Some(decoder)) => {
                tracing::debug_span!("decode").in_scope(|| self.decode(decoder, &gathered, room))
            }
            // The gathering ends with `Decode` only after a verdict that chose a decoder.
            (End::Local | End::Decode, _) => {
                gathered.end = End::Local;
                self.compute_locally(&input, finite, &gathered)
            }
        };
        let decode = decoding.elapsed();
        gathered.settle();
        locked(&self.experience).learn(self.code().n(), &gathered);
        self.keep_slabs(slabs);
        // Subtasks move where they may be handed to others at all.
        if self.options.on_shortfall == OnShortfall::Redispatch {
            self.holdings.follow_the_speeds();
        }
        let local = matches!(gathered.end, End::Local);
        let completion = Completion::of(&decoded, local, gathered.redispatched + gathered.hedged > 0);
        let quality = decoded.as_ref().map_or([0.0; 2], |(_, condition, bound)| [*condition, *bound]);
        let output = decoded.map(|(output, ..)| {
            ArrayD::from_shape_vec(IxDyn(&self.shape.output_shape()), output)
                .expect("the decoder fills exactly the output's elements")
        });
        let code = self.code();
        let report = LayerReport {
            code: code.kind().to_string(),
            n: code.n(),
            recovery_threshold: code.recovery_threshold(),
            k_a: code.k_a(),
            k_b: code.k_b(),
            completion,
            ..LayerReport::of(
                &self.options.name,
                &self.holdings.pool,
                &gathered,
                chosen.filter(|_| !local).as_deref(),
                quality,
                [encode, decode, started.elapsed()],
            )
        };
        if let Some(observer) = &self.options.observer {
            observer.observe(&report);
        }
        let mut spent = locked(&self.spent);
        spent.extend(gathered.into_buffers());
        spent.truncate(self.code().n() * self.holdings.subtask.sub_results());
        drop(spent);
        Ok(Attempted { output, report })
    }

    /// Slab buffers that nobody reads any more.
    fn spare_slabs(&self) -> Vec<Vec<T>> {
        let mut spare = locked(&self.spare);
        let (free, read) = spare.drain(..).partition(|slabs| Arc::strong_count(slabs) == 1);
        *spare = read;
        drop(spare);
        let free: Vec<Arc<Values>> = free;
        free.into_iter().filter_map(Arc::into_inner).filter_map(T::take).collect()
    }

    /// Keeps the slabs of a run, those of stragglers too: at most as many as two runs need.
    fn keep_slabs(&self, slabs: Vec<Arc<Values>>) {
        let mut spare = locked(&self.spare);
        for slabs in slabs {
            // Those of all subtasks may be one and the same.
            if !spare.iter().any(|kept| Arc::ptr_eq(kept, &slabs)) {
                spare.push(slabs);
            }
        }
        let surplus = spare.len().saturating_sub(2 * self.code().n());
        spare.drain(..surplus);
    }

    fn scheme(&self, slabs: &[Arc<Values>]) -> Scheme<'_> {
        Scheme {
            code: self.code(),
            decoders: &self.decoders,
            checkers: &self.checkers,
            epsilon: self.epsilon,
            reduction: self.shape.reduction(),
            audit: self.options.audit,
            partial: self.options.partial,
            energies: match self.options.audit {
                Audit::Off => Vec::new(),
                Audit::Detect | Audit::Correct => self.holdings.expected_energies(slabs),
            },
        }
    }

    /// What the experience of this layer is asked about.
    fn about(&self) -> About<'_> {
        About {
            options: &self.options,
            code: self.code(),
            shape: &self.shape,
            epsilon: self.epsilon,
            crowded: self.holdings.pool.is_crowded(),
            local: self.local,
        }
    }

    fn decode(
        &self,
        decoder: &Decoder,
        gathered: &Gathered<Responses<'_>>,
        room: Vec<T>,
    ) -> Result<(Vec<T>, f64, f64)> {
        let (condition, bound) =
            (decoder.condition(), decoder.error_bound(self.epsilon, self.shape.reduction()));
        if let Some(tolerance) = self.options.max_error
            && bound > tolerance
        {
            return Err(Error::ErrorBound { bound, tolerance, condition });
        }
        let results = decoder.inputs().iter().map(|of| {
            let values = &gathered.results[of.subtask][of.slab * self.code().l_b() + of.bank];
            values.as_ref().expect("a decoder takes what has arrived").as_slice::<T>()
        });
        let results = results.collect::<Result<Vec<&[T]>>>()?;
        let mut output = sized(room, self.shape.output_elems());
        let epilogue = Epilogue { bias: self.bias.as_deref(), clamp: self.options.clamp };
        decode(decoder, &self.tiling, &results, epilogue, &mut output)?;
        Ok((output, condition, bound))
    }

    /// The last rung: the whole layer on this thread, within what is left of the deadline.
    fn compute_locally(
        &self,
        input: &[T],
        finite: bool,
        gathered: &Gathered<Responses<'_>>,
    ) -> Result<(Vec<T>, f64, f64)> {
        tracing::warn!("too few results: computing the layer locally");
        let started = Instant::now();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let late = || started.elapsed() > gathered.left;
        let weight = self.holdings.weight();
        let output = conv_local(&self.shape, input, weight, self.bias.as_deref(), threads, &late);
        match output {
            Ok(mut output) => {
                let bound = error_bound(1.0, T::EPSILON, self.shape.reduction());
                if finite && first_non_finite(&output).is_some() {
                    return Err(Error::NonFiniteResults {
                        count: 1,
                        total: 1,
                        dtype: T::DTYPE.name(),
                        workers: "the local computation".to_owned(),
                    });
                }
                if let Some(clamp) = self.options.clamp.map(Clamp::of) {
                    for value in &mut output {
                        *value = clamp(*value);
                    }
                }
                Ok((output, 1.0, bound))
            }
            Err(Error::Cancelled) => Err(Error::Shortfall {
                needed: self.code().recovery_threshold(),
                total: self.code().n(),
                arrived: 0,
                waited_ms: u64::try_from(self.options.deadline.as_millis()).unwrap_or(u64::MAX),
                missing: "too few workers answered, and computing the layer locally took too long".to_owned(),
                mend: "raise --deadline, or replace the workers that do not answer".to_owned(),
            }),
            Err(other) => Err(other),
        }
    }
}

impl<T: Element> Drop for CodedConv<T> {
    /// Frees the filters on every worker that was given some.
    fn drop(&mut self) {
        self.holdings.close();
    }
}

/// The error that names the first NaN or infinity, if there is one.
fn non_finite<T: Element>(what: &'static str, values: &[T]) -> Option<Error> {
    first_non_finite(values).map(|(index, value)| Error::NonFinite { what, value, index })
}

/// A coded sum would spread a NaN over the whole output; where nothing is mixed it stays where it belongs, unless copies
/// are to be compared.
fn refuse_unless_passed(code: CodeKind, audit: Audit, flaw: Option<Error>) -> Result<()> {
    match flaw {
        Some(error) if code.mixes() || audit != Audit::Off => Err(error),
        _ => Ok(()),
    }
}

/// The elements in row-major order, borrowed where they already lie so.
fn contiguous<'a, T: Element>(array: &'a ArrayViewD<'_, T>) -> Cow<'a, [T]> {
    match array.as_slice() {
        Some(slice) => Cow::Borrowed(slice),
        None => Cow::Owned(array.iter().copied().collect()),
    }
}
