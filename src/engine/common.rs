//! The parts of a layer that do not depend on its code: filters, bias, options, and its computation on this machine.
//!
//! Invariant: locally computed outputs are bounded and refused by the same rules as decoded ones.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::options::LayerOptions;
use crate::array::{Element, first_non_finite};
use crate::coding::{Clamp, Code, FILTERING, FILTERING_CPU, Rounding};
use crate::conv::{ConvPath, ConvShape, conv_uncoded_into};
use crate::error::{Error, Message, Parameter, Result};
use crate::scaling::{FilterScales, InputScan, ScanPlan, ScanRoom, power_of_two};
use crate::scheduler::Pool;
use crate::worker::{CancelToken, SubtaskShape, WorkerKind};

/// The plain filters `[O, C/groups, kernel...]`, row-major. A layer keeps them to encode them again or to compute locally.
/// Share them this way instead of copying them if the caller keeps them as well.
pub type SharedWeight<T> = Arc<dyn AsRef<[T]> + Send + Sync>;

/// See the module documentation.
pub(super) struct Common<T: Element> {
    pub(super) options: LayerOptions,
    pub(super) shape: ConvShape,
    pub(super) weight: SharedWeight<T>,
    pub(super) bias: Option<Vec<T>>,
    /// Largest magnitude of the bias.
    pub(super) largest_bias: f64,
    pub(super) filters: Arc<FilterScales>,
    /// `[g]`: the sum of the energies of a group's filters, each as it is when mixed with others.
    pub(super) group_weights: Vec<f64>,
    /// Whether weight and bias are free of NaN and infinity.
    pub(super) finite: bool,
    /// Predicted time to compute the layer on this machine.
    pub(super) local: Duration,
    pub(super) rooms: ScanRoom<T>,
}

/// Error bounds of an output.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quality {
    pub(super) condition: f64,
    /// Normwise error bound.
    pub(super) error_bound: f64,
    pub(super) windowwise: f64,
    /// The largest amplification of a decoded window.
    pub(super) amplification: f64,
    /// Number of outputs computed on this machine because their windows stand out.
    pub(super) recomputed: usize,
}

impl Quality {
    /// The quality of an output that was rounded to the integers that it must be.
    pub(super) fn exact(self) -> Self {
        Self { error_bound: 0.0, windowwise: 0.0, ..self }
    }
}

/// The input of a run, and what is known about it.
#[derive(Clone, Copy)]
pub(super) struct RunInput<'a, T: Element> {
    pub(super) common: &'a Common<T>,
    /// `[N, C, spatial...]`, row-major.
    pub(super) input: &'a [T],
    pub(super) scan: &'a InputScan,
    /// Windows whose amplification exceeds this are computed on this machine.
    pub(super) amplification: f64,
    /// Ends the run.
    pub(super) cancel: &'a CancelToken,
}

impl<T: Element> RunInput<'_, T> {
    /// Whether input, filters and bias are free of NaN and infinity.
    pub(super) fn finite(&self) -> bool {
        self.common.finite && self.scan.finite
    }
}

impl<T: Element> Common<T> {
    pub(super) fn new(
        shape: ConvShape,
        weight: SharedWeight<T>,
        bias: Option<Vec<T>>,
        mut options: LayerOptions,
    ) -> Self {
        if options.integers.is_some() {
            // Rounded outputs have no error to limit.
            options.max_error = None;
        }
        let filters = FilterScales::new((*weight).as_ref(), shape.reduction());
        let biases = bias.as_deref().unwrap_or_default();
        // A sum may overflow although no element is infinite.
        let finite =
            filters.sums.iter().all(|sum| sum.is_finite()) || first_non_finite((*weight).as_ref()).is_none();
        let finite = finite && first_non_finite(biases).is_none();
        Self {
            largest_bias: biases.iter().map(|b| b.to_f64().abs()).fold(0.0, f64::max),
            group_weights: group_weights(&shape, &filters),
            filters: Arc::new(filters),
            local: Duration::try_from_secs_f64(options.rates.local_s(&shape)).unwrap_or_default(),
            rooms: ScanRoom::default(),
            finite,
            options,
            shape,
            weight,
            bias,
        }
    }

    pub(super) fn weight(&self) -> &[T] {
        (*self.weight).as_ref()
    }

    /// Whether its filters are these, bit by bit.
    pub(super) fn has_weight(&self, weight: &[T]) -> bool {
        bytemuck::cast_slice::<T, u8>(self.weight()) == bytemuck::cast_slice::<T, u8>(weight)
    }

    /// Converts a sum of products to an output of `channel`: adds the bias and clamps.
    pub(super) fn finished(&self, channel: usize, sum: f64) -> T {
        let bias = self.bias.as_ref().map_or(0.0, |bias| bias[channel].to_f64());
        let value = T::from_f64(sum + bias);
        self.options.clamp.map_or(value, |clamp| clamp.of::<T>()(value))
    }

    /// Refuses an output whose error bound exceeds the caller's limit.
    pub(super) fn check(&self, quality: &Quality) -> Result<()> {
        let bound = quality.error_bound.max(quality.windowwise);
        match self.options.max_error {
            Some(tolerance) if bound > tolerance => {
                Err(Error::over_tolerance(bound, tolerance, quality.condition))
            }
            _ => Ok(()),
        }
    }

    /// Computes the whole layer into `output` on this machine, within the time `left`.
    ///
    /// The scan of the input is one by `plan`. `code` gives the numbers for the error if the time is not enough.
    pub(super) fn compute_locally(
        &self,
        run: &RunInput<'_, T>,
        plan: &ScanPlan,
        code: &Code,
        left: Duration,
        output: &mut [T],
    ) -> Result<Quality> {
        let RunInput { input, scan, cancel, .. } = *run;
        let started = Instant::now();
        let late = || started.elapsed() > left || cancel.is_cancelled();
        let bias = self.bias.as_deref();
        match conv_uncoded_into(&self.shape, input, self.weight(), bias, output, threads(), &late) {
            Ok(()) => {}
            Err(Error::Cancelled) if !cancel.is_cancelled() => return Err(self.too_late(code)),
            Err(other) => return Err(other),
        }
        let unit = self.unit(scan);
        let square = |value: &T| (value.to_f64() * unit).powi(2);
        let norm = output.iter().map(square).sum::<f64>().sqrt();
        if let Some(clamp) = self.options.clamp.map(Clamp::of) {
            for value in output.iter_mut() {
                *value = clamp(*value);
            }
        }
        if self.finite && scan.finite && !norm.is_finite() && first_non_finite(output).is_some() {
            return Err(Error::NonFiniteResults {
                count: 1,
                total: 1,
                dtype: T::DTYPE.name(),
                workers: "the local computation".to_owned(),
            });
        }
        let rounding = Rounding::plain::<T>(self.shape.reduction());
        let expected = plan.expected_norm(scan, &self.group_weights, unit, &[]);
        let quality = Quality {
            condition: 1.0,
            error_bound: relative_to(rounding.normwise(1.0), expected, norm)
                + rounding.underflow_of(output.len(), norm / unit),
            windowwise: rounding.windowwise(1.0, 1.0)
                + rounding.underflow(scan.smallest, self.filters.smallest_sum()),
            amplification: 1.0,
            recomputed: 0,
        };
        // Sums of integers within the range of the type are exact.
        let quality = if self.options.integers.is_some() { quality.exact() } else { quality };
        self.check(&quality).map(|()| quality)
    }

    fn too_late(&self, code: &Code) -> Error {
        Error::Shortfall {
            needed: code.recovery_threshold(),
            total: code.n(),
            arrived: 0,
            waited_ms: u64::try_from(self.options.policy.deadline.as_millis()).unwrap_or(u64::MAX),
            missing: "too few workers answered, and computing the layer locally took too long".to_owned(),
            help: Message::from("raise ")
                .and(Parameter::Deadline)
                .and(", or replace the workers that do not answer"),
        }
    }

    /// A power of two that brings outputs near or below 1.
    pub(super) fn unit(&self, scan: &InputScan) -> f64 {
        let slabs = scan.slab_scales.iter().map(|scale| 1.0 / scale).fold(0.0, f64::max);
        let slabs = if scan.slab_scales.is_empty() { scan.largest } else { slabs };
        let filters = self.filters.undo.iter().copied().fold(0.0, f64::max);
        power_of_two((slabs * filters).max(self.largest_bias), true)
    }
}

/// Converts `bound`, which is relative to the `expected` norm, to outputs of norm `norm`: larger where outputs cancel.
pub(super) fn relative_to(bound: f64, expected: f64, norm: f64) -> f64 {
    if expected <= norm || expected.is_nan() || norm.is_nan() {
        return bound;
    }
    let error = bound * expected;
    // The norm of the exact output may be smaller by the error.
    if error < norm { (error / (norm - error)).max(bound) } else { f64::MAX }
}

/// `[g]`: for each group, the sum over its filters of the square of the factor that undoes the filter's scale, times the
/// energy of the filter when mixed with others.
fn group_weights(shape: &ConvShape, filters: &FilterScales) -> Vec<f64> {
    let group_out = shape.out_channels / shape.groups;
    let of_group = |(energies, undo): (&[f64], &[f64])| {
        let mean = energies.iter().sum::<f64>() / group_out as f64;
        energies.iter().zip(undo).map(|(energy, undo)| energy.max(mean) * undo * undo).sum()
    };
    filters.energies.chunks(group_out).zip(filters.undo.chunks(group_out)).map(of_group).collect()
}

/// Rounding of the results of a layer on the workers of a pool.
pub(super) fn rounding_of<T: Element>(pool: &Pool, shape: &ConvShape, subtask: &SubtaskShape) -> Rounding {
    let rounding = Rounding::plain::<T>(shape.reduction());
    if subtask.plain {
        return rounding;
    }
    // A GPU worker chooses its own kernel, here or on another machine.
    let gpus = pool.workers().any(|info| info.kind != WorkerKind::Cpu);
    let filtering = match () {
        () if gpus && shape.suits_filtering() => FILTERING,
        () if subtask.cpu_kernel().path() == ConvPath::Filtering => FILTERING_CPU,
        () => 1.0,
    };
    let (half, wire) = (pool.keeps_half(), pool.wire().of(T::DTYPE));
    Rounding { half, wire, filtering, ..rounding }
}

/// A result whose error exceeds this many times its bound is wrong.
pub(super) const LIE: f64 = 8.0;

/// Number of threads for local computation.
pub(super) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_grow_where_outputs_cancel_and_never_shrink() {
        assert_eq!(relative_to(1e-6, 1.0, 1.0), 1e-6);
        assert_eq!(relative_to(1e-6, 1.0, 50.0), 1e-6);
        assert!((relative_to(1e-6, 1.0, 1e-3) / 1e-3 - 1.0).abs() < 0.01);
        assert_eq!(relative_to(1e-6, 1.0, 1e-7), f64::MAX);
        assert_eq!((relative_to(1e-6, 0.0, 0.0), relative_to(1e-6, f64::NAN, 1.0)), (1e-6, 1e-6));
    }
}
