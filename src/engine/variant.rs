//! A layer under one code: its filters on the workers, and its runs.
//!
//! Relevant if you want to change how a run is encoded, audited or decoded. A [`CodedConv`](super::CodedConv) has one
//! variant, and creates a second one under another code once its data were too uneven for the first.
//!
//! Invariant: a run returns an output together with error bounds that hold for it, or an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::accuracy::{Accuracy, typical_condition};
use super::common::{Common, Quality, RunInput, relative_to, rounding_of};
use super::integers::Integers;
use super::placement::{FilterPlacement, Installation};
use super::rules::RunRules;
use super::tracker::DecodingTracker;
use super::watch::Watch;
use crate::array::{Buffers, Element, Pooled, first_non_finite, sum_of_squares};
use crate::coding::{Code, Decoder, Epilogue, ParityCheckCache, Sketcher, decode_here, encode_distinct};
use crate::conv::outputs_at;
use crate::error::{Error, Result};
use crate::ids::WorkerId;
use crate::partition::{FilterPartition, InputPartition, OutputTiling};
use crate::planner::subtask_shape;
use crate::scaling::{InputScan, ScanOptions, ScanPlan};
use crate::scheduler::{
    Audit, Decision, Fleet, JobLayer, JobPlan, OnShortfall, Pool, Recovery, RunOutcome, run_job,
};
use crate::worker::SubtaskShape;

/// See the module documentation.
pub(super) struct Variant<T: Element> {
    pub(super) placement: Arc<FilterPlacement<T>>,
    pub(super) rules: RunRules,
    pub(super) scan: ScanPlan,
    slabs: InputPartition,
    tiling: OutputTiling,
    pub(super) sketcher: Option<Arc<Sketcher>>,
    watch: Watch,
    /// Buffers of slabs and results.
    buffers: Buffers,
    /// Set if outputs are integers.
    pub(super) integers: Option<Integers>,
}

/// A run under one code, with or without an output.
pub(super) struct VariantRun<'a> {
    /// The quality of the output, or the error.
    pub(super) output: Result<Quality>,
    pub(super) gathered: RunOutcome<DecodingTracker<'a>>,
    /// The decoder used, unless the layer was computed locally.
    pub(super) decoder: Option<Arc<Decoder>>,
    /// Time to pad, partition and encode; time to decode or to compute locally.
    pub(super) times: [Duration; 2],
}

impl<T: Element> Variant<T> {
    /// Encodes the filters and installs them on the pool's workers within a time limit. They are shared with those of `same`,
    /// a variant of the same code and filters, if the arithmetic is the same. `plain` workers keep operands in full width and compute
    /// every output from its own window alone.
    ///
    /// # Errors
    /// As [`CodedConvBuilder::prepare`](super::CodedConvBuilder::prepare).
    pub(super) fn new(
        pool: &Pool,
        common: &Common<T>,
        code: Code,
        plain: bool,
        checkers: ParityCheckCache,
        (limit, same): (Duration, Option<&Self>),
    ) -> Result<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let (shape, options) = (&common.shape, &common.options);
        let slabs = InputPartition::new(shape, code.k_a())?;
        let filters = FilterPartition::new(shape, code.k_b())?;
        let integers = Integers::of(common)?;
        // Sums of integers are exact in any order; transformed ones are not.
        let plain = plain || integers.is_some();
        let subtask = SubtaskShape { plain, ..subtask_shape(shape, &code)? };
        let same = same.map(|same| &*same.placement).filter(|same| same.subtask.has_filters_of(&subtask));
        let rounding = rounding_of::<T>(pool, shape, &subtask);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let sketcher = || Arc::new(Sketcher::new(subtask.conv.output_elems(), options.seed ^ id));
        let mixes = code.kind().mixes();
        let scan = ScanOptions {
            // Errors of integers are absolute: it does not matter what a window is mixed with.
            mixed: mixes && code.k_a() > 1 && integers.is_none(),
            always_scaled: rounding.needs_scaling(),
            floor: rounding.floor(),
        };
        let scan = ScanPlan::new(shape, &slabs, scan);
        let accuracy = Accuracy {
            rounding,
            limit: match integers {
                // Rounding removes the errors that the options limit.
                Some(integers) => Some(integers.limit()),
                None => Accuracy::limit(options.max_windowwise, options.max_error, T::DTYPE, &rounding),
            },
            typical_condition: typical_condition(&code),
            windows: scan.windows(),
            window_macs: (shape.reduction() * (shape.out_channels / shape.groups)) as f64,
        };
        // The slabs of two runs, since stragglers still read those of the last, and the results of one.
        let most = code.n() * (2 + subtask.sub_results());
        let buffers = Buffers::new(most, usize::MAX);
        Ok(Self {
            sketcher: (options.policy.audit != Audit::Off).then(sketcher),
            watch: Watch::new(options.policy.audit, pool.caught(), id),
            tiling: OutputTiling::new(shape, &slabs, &filters),
            rules: RunRules::new(code.clone(), accuracy, checkers),
            placement: FilterPlacement::new(
                pool,
                id,
                code,
                subtask,
                filters,
                common,
                &Installation { limit, same },
            )?,
            buffers,
            scan,
            slabs,
            integers,
        })
    }

    pub(super) fn code(&self) -> &Code {
        &self.rules.code
    }

    /// Computes the layer into `to`, `[N, O, spatial...]`, whose content is arbitrary after an error.
    pub(super) fn run(&self, run: &RunInput<'_, T>, to: &mut [T]) -> VariantRun<'_> {
        let RunInput { common, input, scan, amplification, cancel } = *run;
        let started = Instant::now();
        let slabs = tracing::debug_span!("encode").in_scope(|| self.encode(common, input, scan));
        let encode = started.elapsed();
        let audit = self.watch.next(self.placement.pool.caught());
        let energies = match audit {
            Audit::Off => Vec::new(),
            Audit::Watch | Audit::Detect | Audit::Correct => self.placement.expected_energies(&slabs),
        };
        let (options, pool) = (&common.options, &self.placement.pool);
        let mut gathered = run_job(JobPlan {
            fleet: pool,
            layer: JobLayer {
                id: self.placement.id,
                shape: Arc::clone(&self.placement.subtask),
                finite: run.finite(),
                sketcher: self.sketcher.clone().filter(|_| audit != Audit::Off),
            },
            filters: &*self.placement,
            policy: options.policy,
            estimates: self.rules.estimates(options, amplification, pool.is_crowded(), common.local),
            slabs: slabs.clone(),
            buffers: self.buffers.clone(),
            recovery: DecodingTracker::new(self.rules.recovery(options, audit, energies)),
            cancel,
        });
        let decoding = Instant::now();
        if matches!(gathered.end, Decision::Decode) && common.options.policy.audit == Audit::Watch {
            self.check_spares(&slabs, &mut gathered);
            self.compare_with_own(options, audit, &slabs, &mut gathered);
        }
        let mut decoder = gathered.recovery.chosen().cloned();
        let end = std::mem::replace(&mut gathered.end, Decision::Decode);
        let output = match (end, &decoder) {
            (Decision::Failed(error), _) => Err(error),
            (Decision::Decode, Some(decoder)) => {
                tracing::debug_span!("decode").in_scope(|| self.decode(run, decoder, &gathered, to))
            }
            // A run ends with `Decode` only after a verdict that chose a decoder.
            (Decision::Local | Decision::Decode, _) => {
                tracing::warn!("too few results: computing the layer locally");
                Ok(Decoded::Imprecise)
            }
        };
        let doubted = gathered.recovery.in_doubt() || matches!(output, Ok(Decoded::Wrong));
        let output = match output {
            Ok(Decoded::Well(quality)) => Ok(quality),
            Ok(Decoded::Imprecise | Decoded::Wrong) => {
                (gathered.end, decoder) = (Decision::Local, None);
                common.compute_locally(run, &self.scan, self.code(), gathered.left, to)
            }
            Err(error) => Err(error),
        };
        if doubted && matches!(gathered.end, Decision::Local) {
            self.find_faulty(&slabs, &mut gathered, decoding);
        }
        if audit == Audit::Watch {
            let local = matches!(gathered.end, Decision::Local);
            self.watch.done(local || gathered.recovery.audited() || !gathered.recovery.faulty().is_empty());
        }
        let decode = decoding.elapsed();
        self.rules.learn(&mut gathered);
        // Subtasks are moved only where the policy allows other workers to take them over.
        if common.options.policy.on_shortfall == OnShortfall::Redispatch {
            self.placement.follow_the_speeds();
        }
        VariantRun { output, gathered, decoder, times: [encode, decode] }
    }

    fn encode(&self, common: &Common<T>, input: &[T], scan: &InputScan) -> Vec<Arc<Pooled>> {
        let distinct = if self.code().shares_slabs() { 1 } else { self.code().n() };
        let elems = self.placement.subtask.upload_elems();
        let room = (0..distinct).map(|_| self.buffers.take(elems)).collect();
        let coded = encode_distinct(self.code(), &common.shape, &self.slabs, input, &scan.slab_scales, room);
        let coded: Vec<_> =
            coded.into_iter().map(|slabs| Arc::new(self.buffers.adopt(T::wrap(slabs)))).collect();
        // All subtasks may share the same slabs.
        coded.iter().cycle().take(self.code().n()).cloned().collect()
    }

    /// Compares spare results that arrived although no audit waited for them.
    fn check_spares(&self, slabs: &[Arc<Pooled>], gathered: &mut RunOutcome<DecodingTracker<'_>>) {
        let unchecked = gathered.recovery.has_unchecked_spares(&gathered.arrivals);
        let Some(sketcher) = self.sketcher.as_ref().filter(|_| unchecked) else { return };
        for subtask in gathered.arrivals.complete().to_vec() {
            for index in 0..self.code().sub_results() {
                let Some(arrival) = gathered.arrivals.get_mut(subtask, index) else { continue };
                arrival.sketch = arrival.values.as_slice::<T>().ok().map(|v| Box::new(sketcher.sketch(v)));
            }
        }
        let RunOutcome { recovery, arrivals, .. } = gathered;
        recovery.check_spares(arrivals, self.placement.expected_energies(slabs));
        if gathered.recovery.in_doubt() {
            gathered.end = Decision::Local;
        }
        let faulty: Vec<WorkerId> = gathered.recovery.faulty().to_vec();
        self.flag(gathered, &faulty);
    }

    /// Quarantines workers whose results are wrong.
    pub(super) fn flag(&self, gathered: &mut RunOutcome<DecodingTracker<'_>>, workers: &[WorkerId]) {
        for worker in workers {
            self.placement.pool.flag(*worker, "contradicts the other results");
            gathered.blame(*worker, "contradicts the other results");
        }
    }

    /// Decodes and applies bias and activation.
    fn decode(
        &self,
        run: &RunInput<'_, T>,
        decoder: &Decoder,
        gathered: &RunOutcome<DecodingTracker<'_>>,
        output: &mut [T],
    ) -> Result<Decoded> {
        let RunInput { common, scan, amplification, .. } = *run;
        let finite = run.finite();
        let (condition, rounding) = (decoder.condition(), self.rules.accuracy.rounding);
        let amplification = scan.spread.largest().min(amplification);
        let windowwise = rounding.windowwise(condition, amplification);
        if self.rules.accuracy.limit.is_some_and(|limit| windowwise > limit) {
            tracing::warn!(
                condition,
                windowwise,
                "decoding would lose too many digits: computing the layer locally"
            );
            return Ok(Decoded::Imprecise);
        }
        let results = decoder.inputs().iter().map(|of| {
            let arrival = gathered.arrivals.get(of.subtask, self.code().index_of(*of));
            arrival.expect("a decoder takes what has arrived").values.as_slice::<T>()
        });
        let results = results.collect::<Result<Vec<&[T]>>>()?;
        let unit = common.unit(scan);
        let epilogue = Epilogue {
            slab_scales: &scan.slab_scales,
            filter_undo: &common.filters.undo,
            unit,
            bias: common.bias.as_deref(),
            clamp: common.options.clamp,
        };
        let norm = decode_here(decoder, &self.tiling, &results, epilogue, output)?;
        let repaired =
            if finite { self.repair(run, amplification, unit, output) } else { Repaired::default() };
        // No element is larger than the norm, so only a norm beyond the type's range calls for a search. Every result is
        // finite: then it is the output that exceeds the range of its type.
        let fits = T::from_f64(norm).finite() && repaired.outputs == 0;
        if finite && !fits && first_non_finite(output).is_some() {
            return Err(overflow::<T>(gathered, &self.placement.pool));
        }
        let quality = self.quality(run, condition, &repaired, norm, output);
        if let Some(integers) = &self.integers {
            let near = integers.round(&common.shape, &common.filters.sums, quality.windowwise, output);
            if !near {
                tracing::warn!("an output is no integer, so a result is wrong: computing the layer locally");
            }
            return Ok(if near { Decoded::Well(quality.exact()) } else { Decoded::Wrong });
        }
        match common.check(&quality) {
            Ok(()) => Ok(Decoded::Well(quality)),
            // Computing locally has a smaller error.
            Err(_) if condition * amplification > 1.0 || rounding.is_narrow() || rounding.filtering > 1.0 => {
                Ok(Decoded::Imprecise)
            }
            Err(error) => Err(error),
        }
    }

    /// The error bounds of a decoded `output`, whose norm was `norm` before outputs were repaired.
    fn quality(
        &self,
        run: &RunInput<'_, T>,
        condition: f64,
        repaired: &Repaired,
        norm: f64,
        output: &[T],
    ) -> Quality {
        let RunInput { common, scan, amplification, .. } = *run;
        let (rounding, unit) = (self.rules.accuracy.rounding, common.unit(scan));
        let amplification = scan.spread.largest().min(amplification);
        let normwise = rounding.normwise(condition);
        let windowwise = rounding.windowwise(condition, amplification);
        let (mut norm, mut known) = (norm, Vec::new());
        if repaired.outputs > 0 {
            // Outlying windows were overwritten, and their errors with them. All others are within the windowwise bound.
            norm = sum_of_squares(output, unit).sqrt() / unit;
            let squares = |(group, windows): &(usize, f64)| {
                let group_out = common.shape.out_channels / common.shape.groups;
                let sums = &common.filters.sums[group % common.shape.groups * group_out..][..group_out];
                let sums: f64 = sums.iter().map(|sum| sum * sum).sum();
                (*group, (windowwise / normwise).powi(2) * windows * sums)
            };
            known.extend(repaired.others.iter().map(squares));
        }
        let expected = self.scan.expected_norm(scan, &common.group_weights, unit, &known) / unit;
        Quality {
            condition,
            error_bound: relative_to(normwise, expected, norm) + rounding.underflow_of(output.len(), norm),
            windowwise: windowwise + rounding.underflow(scan.smallest, common.filters.smallest_sum()),
            amplification,
            recomputed: repaired.outputs,
        }
    }

    /// Overwrites outputs that decoding does not give exactly: the bias where a window is all zeros, sums of products where
    /// a window stands out.
    fn repair(&self, run: &RunInput<'_, T>, amplification: f64, unit: f64, output: &mut [T]) -> Repaired {
        let RunInput { common, input, scan, .. } = *run;
        let shape = &common.shape;
        let (group_out, plane) = (shape.out_channels / shape.groups, shape.output_plane());
        for run in &scan.zeros {
            let (image, group) = (run.group / shape.groups, run.group % shape.groups);
            for channel in group * group_out..(group + 1) * group_out {
                let first = (image * shape.out_channels + channel) * plane + run.start;
                output[first..first + run.count].fill(common.finished(channel, 0.0));
            }
        }
        let groups: Vec<usize> = scan.uneven(amplification).collect();
        if groups.is_empty() {
            return Repaired::default();
        }
        let (positions, others): (Vec<Vec<(usize, usize)>>, Vec<(usize, f64)>) = groups
            .into_par_iter()
            .map(|group| {
                let mut found = Vec::new();
                let visit = |at| found.push((group, at));
                let rooms = &common.rooms;
                let squares = self.scan.visit_uneven(input, group, amplification, rooms, unit, visit);
                (found, (group, squares))
            })
            .unzip();
        let positions = positions.concat();
        let weight = common.weight();
        let outputs: Vec<(usize, T)> = positions
            .par_iter()
            .flat_map_iter(|(group, at)| {
                let (mut window, mut values) = (Vec::new(), Vec::with_capacity(group_out));
                outputs_at(shape, input, weight, *group, *at, &mut window, |channel, place, value| {
                    values.push((place, common.finished(channel, value)));
                });
                values
            })
            .collect();
        for (place, value) in &outputs {
            output[*place] = *value;
        }
        Repaired { outputs: outputs.len(), others }
    }
}

/// The outcome of decoding.
enum Decoded {
    Well(Quality),
    /// The error may exceed the limit, and computing locally is better.
    Imprecise,
    /// An output is not what any correct results decode to.
    Wrong,
}

/// Outputs computed on this machine beside decoding.
#[derive(Debug, Default)]
struct Repaired {
    /// Number of outputs whose windows stand out.
    outputs: usize,
    /// For each image and group with such windows: the sum of squares of the largest magnitudes of all other windows, times
    /// the unit squared.
    others: Vec<(usize, f64)>,
}

fn overflow<T: Element>(gathered: &RunOutcome<DecodingTracker<'_>>, pool: &Pool) -> Error {
    let mut names: Vec<&str> =
        gathered.attempts.iter().filter(|a| a.arrived > 0).map(|a| pool.name(a.worker)).collect();
    names.sort_unstable();
    names.dedup();
    Error::NonFiniteResults { count: 1, total: 1, dtype: T::DTYPE.name(), workers: names.join(", ") }
}

impl<T: Element> Drop for Variant<T> {
    /// Frees the filters on every worker that holds some.
    fn drop(&mut self) {
        self.placement.close();
    }
}
