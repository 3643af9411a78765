//! A prepared coded convolution.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use ndarray::{ArrayD, ArrayView1, ArrayViewD, IxDyn};

use super::options::LayerOptions;
use super::report::{LayerReport, WorkerReport};
use crate::array::{Element, Values, check_elems, first_non_finite};
use crate::coding::{
    Clamp, Code, CodeKind, DecoderCache, Epilogue, decode, encode_filters, encode_input, error_bound,
};
use crate::conv::{ConvParams, ConvShape, conv_local};
use crate::error::{Error, Result};
use crate::partition::{FilterPartition, InputPartition, OutputTiling};
use crate::planner::{Rates, choose_partitions, subtask_shape};
use crate::scheduler::{Gathered, InstallRequest, JobPlan, Outcome, Pool, run_job};
use crate::worker::{FilterKey, SubtaskShape};

/// Responder sets whose inverses a layer keeps.
const CACHED_DECODERS: usize = 256;

/// What preparing waits for filters to be installed, at least: enough for a GPU to compile its kernels.
const INSTALL_LIMIT: Duration = Duration::from_mins(1);

/// Once enough workers to decode hold their filters, the others get this many times the time those took.
const INSTALL_PATIENCE: u32 = 3;

/// A convolution whose coded filters lie on the workers of a pool. Reusable, and from several threads at once.
pub struct CodedConv<T: Element> {
    pool: Pool,
    id: u64,
    options: LayerOptions,
    shape: ConvShape,
    code: Code,
    slabs: InputPartition,
    filters: FilterPartition,
    tiling: OutputTiling,
    subtask: Arc<SubtaskShape>,
    /// The worker that subtask i belongs to.
    homes: Vec<usize>,
    /// Which workers hold which subtask's filters.
    held: Mutex<HashSet<(usize, usize)>>,
    decoders: DecoderCache,
    /// Slab buffers of earlier runs that no worker holds any more.
    spare: Mutex<Vec<Vec<T>>>,
    weight: SharedWeight<T>,
    bias: Option<Vec<T>>,
    /// Whether weight and bias are free of NaN and infinity.
    finite: bool,
}

/// The plain filters `[O, C/groups, kernel...]`, row-major. A layer keeps them for what must be encoded again or
/// computed locally; whoever holds them as well shares them this way instead of having them copied.
pub type SharedWeight<T> = Arc<dyn AsRef<[T]> + Send + Sync>;

/// What a run gives back.
#[derive(Clone, Debug)]
pub struct Run<T> {
    /// `[N, O, spatial...]`.
    pub output: ArrayD<T>,
    /// Who did what, and what it cost.
    pub report: LayerReport,
}

impl<T: Element> CodedConv<T> {
    /// Validates the layer, chooses its code, encodes its filters and installs them on the pool's workers.
    ///
    /// `input_shape` is `[N, C, spatial...]`, `weight` `[O, C/groups, kernel...]` with 1, 2 or 3 spatial axes,
    /// `bias` `[O]`. Subtask i goes to worker i modulo the number of workers. Workers that fail to take their
    /// filters, or are much slower at it than the others, are stragglers from the start.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`], [`Error::Mismatch`] or [`Error::NonFinite`] for a layer that cannot be
    /// built, [`Error::Unavailable`] when a worker cannot compute in this type, and the first worker's error
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
        let (k_a, k_b) = match options.partitions {
            Some(pair) => pair,
            None => choose_partitions(&shape, options.code, n, options.tolerate, &Rates::default())?,
        };
        let code = Code::new(options.code, k_a, k_b, n)?;
        let slabs = InputPartition::new(&shape, k_a)?;
        let filters = FilterPartition::new(&shape, k_b)?;
        let flaw = non_finite("weight", (*weight).as_ref())
            .or_else(|| non_finite("bias", bias.as_deref().unwrap_or_default()));
        let finite = flaw.is_none();
        refuse_unless_uncoded(options.code, flaw)?;
        let layer = Self {
            pool: pool.clone(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            tiling: OutputTiling::new(&shape, &slabs, &filters),
            subtask: Arc::new(subtask_shape(&shape, &code)?),
            homes: (0..code.n()).map(|i| i % pool.len()).collect(),
            held: Mutex::new(HashSet::new()),
            decoders: DecoderCache::new(CACHED_DECODERS),
            spare: Mutex::new(Vec::new()),
            options,
            shape,
            code,
            slabs,
            filters,
            weight,
            bias,
            finite,
        };
        layer.install()?;
        Ok(layer)
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
        &self.code
    }

    /// What each subtask computes.
    #[must_use]
    pub fn subtask(&self) -> &SubtaskShape {
        &self.subtask
    }

    /// Computes the layer for `input` `[N, C, spatial...]`, of the shape it was prepared for.
    ///
    /// # Errors
    /// [`Error::Mismatch`] or [`Error::NonFinite`] for an unfit input, [`Error::Shortfall`] when too few results
    /// came after every fallback allowed, [`Error::ErrorBound`] or [`Error::NonFiniteResults`] when a result
    /// was refused.
    pub fn run(&self, input: ArrayViewD<'_, T>) -> Result<Run<T>> {
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
        refuse_unless_uncoded(self.code.kind(), flaw)?;
        let slabs: Vec<Arc<Values>> = tracing::debug_span!("encode").in_scope(|| {
            let spare = std::mem::take(&mut *locked(&self.spare));
            let coded = encode_input(&self.code, &self.shape, &self.slabs, &input, spare);
            coded.into_iter().map(|slabs| Arc::new(T::wrap(slabs))).collect()
        });
        let encode = started.elapsed();
        let mut gathered = run_job(JobPlan {
            pool: &self.pool,
            layer: self.id,
            shape: &self.subtask,
            policy: self.options.policy(),
            finite,
            needed: self.code.recovery_threshold(),
            slabs: slabs.clone(),
            homes: &self.homes,
            can_decode: &|set| set.len() >= self.code.recovery_threshold(),
            filters: &|subtask, worker| self.filters_for(subtask, worker),
        })?;
        let decoding = Instant::now();
        let (output, condition, bound) = match &gathered.decode {
            Some(set) => tracing::debug_span!("decode").in_scope(|| self.decode(set, &gathered))?,
            None => self.compute_locally(&input, finite, &gathered)?,
        };
        let decode = decoding.elapsed();
        gathered.settle();
        // A straggler may still read its slabs; those buffers are left to it.
        let free = slabs.into_iter().filter_map(Arc::into_inner).filter_map(T::take);
        let mut spare = locked(&self.spare);
        spare.extend(free);
        spare.truncate(self.code.n());
        drop(spare);
        let output = ArrayD::from_shape_vec(IxDyn(&self.shape.output_shape()), output)
            .expect("the decoder fills exactly the output's elements");
        let report = self.report(&gathered, [condition, bound], [encode, decode, started.elapsed()]);
        Ok(Run { output, report })
    }

    /// Encodes and installs the filters of every subtask on its home worker.
    fn install(&self) -> Result<()> {
        let _span = tracing::info_span!("prepare", name = self.options.name).entered();
        let banks = self.filters.split((*self.weight).as_ref());
        let (reply, replies) = unbounded();
        let started = Instant::now();
        // A worker that is still busy with an earlier layer's filters has shown that it is slow: nobody waits for
        // it again.
        let behind: Vec<bool> = (0..self.pool.len()).map(|w| self.pool.is_installing(w)).collect();
        let mut awaited = self.homes.iter().filter(|worker| !behind[**worker]).count();
        for (subtask, worker) in self.homes.iter().enumerate() {
            let coded = T::wrap(encode_filters(&self.code, &self.filters, &banks, subtask));
            let key = FilterKey { layer: self.id, subtask };
            let request = InstallRequest { key, shape: Arc::clone(&self.subtask), banks: coded };
            self.pool.install(*worker, request, &reply);
        }
        drop(reply);
        let mut end = started + INSTALL_LIMIT;
        let mut first_error = None;
        let mut installed = 0;
        while awaited > 0 || installed < self.code.recovery_threshold() {
            let Ok(answer) = replies.recv_deadline(end) else { break };
            awaited -= usize::from(!behind[answer.worker]);
            match answer.result {
                Ok(()) => {
                    locked(&self.held).insert((answer.worker, answer.key.subtask));
                    installed += 1;
                    if installed == self.code.recovery_threshold() {
                        let patience = (started.elapsed() * INSTALL_PATIENCE).max(Duration::from_secs(1));
                        end = end.min(Instant::now() + patience);
                    }
                }
                Err(error) => {
                    tracing::warn!(worker = self.pool.name(answer.worker), %error, "filters not installed");
                    first_error = first_error.or(Some(error));
                }
            }
        }
        // Workers lost before are no reason to refuse: the run's fallbacks may still make up for them.
        match first_error {
            Some(error) if installed == 0 && !matches!(error, Error::WorkerLost { .. }) => Err(error),
            _ => Ok(()),
        }
    }

    /// Coded filters for a worker that takes a subtask over, unless it holds them.
    fn filters_for(&self, subtask: usize, worker: usize) -> Option<Values> {
        locked(&self.held).insert((worker, subtask)).then(|| {
            T::wrap(encode_filters(
                &self.code,
                &self.filters,
                &self.filters.split((*self.weight).as_ref()),
                subtask,
            ))
        })
    }

    fn decode(&self, set: &[usize], gathered: &Gathered) -> Result<(Vec<T>, f64, f64)> {
        let decoder = self.decoders.decoder(&self.code, set)?;
        let (condition, bound) =
            (decoder.condition(), decoder.error_bound(T::EPSILON, self.shape.reduction()));
        if let Some(tolerance) = self.options.max_error
            && bound > tolerance
        {
            return Err(Error::ErrorBound { bound, tolerance, condition });
        }
        let results = decoder.inputs().iter().map(|of| {
            let values = &gathered.results[of.subtask][of.slab * self.code.l_b() + of.bank];
            values.as_ref().expect("a complete subtask has every sub-result").as_slice::<T>()
        });
        let results = results.collect::<Result<Vec<&[T]>>>()?;
        let mut output = vec![T::default(); self.shape.output_elems()];
        let epilogue = Epilogue { bias: self.bias.as_deref(), clamp: self.options.clamp };
        decode(&decoder, &self.tiling, &results, epilogue, &mut output)?;
        Ok((output, condition, bound))
    }

    /// The last rung: the whole layer on this thread, within what is left of the deadline.
    fn compute_locally(&self, input: &[T], finite: bool, gathered: &Gathered) -> Result<(Vec<T>, f64, f64)> {
        tracing::warn!("too few results: computing the layer locally");
        let started = Instant::now();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let late = || started.elapsed() > gathered.left;
        let weight = (*self.weight).as_ref();
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
                needed: self.code.recovery_threshold(),
                total: self.code.n(),
                arrived: 0,
                waited_ms: u64::try_from(self.options.deadline.as_millis()).unwrap_or(u64::MAX),
                missing: "too few workers answered, and computing the layer locally took too long".to_owned(),
                mend: "raise --deadline, or replace the workers that do not answer".to_owned(),
            }),
            Err(other) => Err(other),
        }
    }

    fn report(&self, gathered: &Gathered, quality: [f64; 2], times: [Duration; 3]) -> LayerReport {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let mut workers: Vec<WorkerReport> = gathered
            .attempts
            .iter()
            .map(|a| WorkerReport {
                subtask: Some(a.subtask),
                worker: self.pool.name(a.worker).to_owned(),
                outcome: a.outcome,
                latency_ms: a.latency.map(ms),
            })
            .collect();
        let idle = (0..self.pool.len()).filter(|w| gathered.attempts.iter().all(|a| a.worker != *w));
        workers.extend(idle.map(|w| WorkerReport {
            subtask: None,
            worker: self.pool.name(w).to_owned(),
            outcome: Outcome::Idle,
            latency_ms: None,
        }));
        let mut flagged: Vec<usize> =
            gathered.attempts.iter().filter(|a| a.outcome == Outcome::Corrupt).map(|a| a.subtask).collect();
        flagged.sort_unstable();
        flagged.dedup();
        LayerReport {
            name: self.options.name.clone(),
            op: "Conv".to_owned(),
            why_local: None,
            code: self.code.kind().to_string(),
            n: self.code.n(),
            recovery_threshold: self.code.recovery_threshold(),
            k_a: self.code.k_a(),
            k_b: self.code.k_b(),
            backend: self.pool.backend().to_owned(),
            workers,
            used: gathered.decode.clone().unwrap_or_default(),
            fallback: gathered.decode.is_none().then(|| "local".to_owned()),
            condition_number: quality[0],
            error_bound: quality[1],
            encode_ms: ms(times[0]),
            wait_ms: ms(gathered.wait),
            decode_ms: ms(times[1]),
            total_ms: ms(times[2]),
            bytes_up: gathered.bytes_up,
            bytes_down: gathered.bytes_down,
            redispatched: gathered.redispatched,
            flagged,
        }
    }
}

impl<T: Element> Drop for CodedConv<T> {
    /// Frees the filters on every worker that was given some.
    fn drop(&mut self) {
        let mut placed: HashSet<(usize, usize)> = locked(&self.held).clone();
        placed.extend(self.homes.iter().enumerate().map(|(subtask, worker)| (*worker, subtask)));
        for (worker, subtask) in placed {
            self.pool.remove(worker, FilterKey { layer: self.id, subtask });
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The error that names the first NaN or infinity, if there is one.
fn non_finite<T: Element>(what: &'static str, values: &[T]) -> Option<Error> {
    first_non_finite(values).map(|(index, value)| Error::NonFinite { what, value, index })
}

/// A coded sum would spread a NaN over the whole output; an uncoded layer leaves it where it belongs.
fn refuse_unless_uncoded(code: CodeKind, flaw: Option<Error>) -> Result<()> {
    match flaw {
        Some(error) if code != CodeKind::Uncoded => Err(error),
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
