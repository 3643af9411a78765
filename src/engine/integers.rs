//! Layers whose outputs are integers: decoded in floating point, rounded to the exact sums.
//!
//! Relevant for quantised models. Inputs, filters and bias of such a layer are integers, so every output is one. If the
//! error of a decoded output is below a half, the nearest integer is the exact sum. [`Integers::limit`] is the windowwise
//! limit under which that holds for every output, whatever the input is.
//!
//! Errors count in absolute terms here: relative to the largest magnitude that the caller allows, not to the one in the
//! window. Mixing small windows with large ones therefore costs nothing, and slabs are not scaled.
//!
//! A decoded output that is farther from every integer than its error bound allows proves that a worker's result is wrong.
//!
//! Invariant: what [`Integers::round`] accepts is exact if the workers computed correctly.

use std::sync::atomic::{AtomicBool, Ordering};

use super::accuracy::typical_condition;
use super::common::{Common, LIE};
use crate::array::Element;
use crate::coding::{Clamp, Code, Rounding};
use crate::conv::ConvShape;
use crate::error::{Error, Result};
use crate::share::{share, threads};

/// Largest error of a decoded output before it is converted to its type. That conversion adds at most as much again,
/// because sums are at most `1 / (2 epsilon)`.
const LARGEST_ERROR: f64 = 0.25;

/// An output this far from an integer is wrong, whatever its bound is: errors of accepted outputs are below a half.
const FARTHEST: f64 = 0.45;

/// The condition number at which integers fit into a type is this many times the typical one, so that other responder
/// sets decode as well.
const HEADROOM: f64 = 4.0;

/// Outputs with fewer elements are rounded on the calling thread.
const SMALL: usize = 32 * 1024;

/// What the engine needs to know of a layer of integers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Integers {
    /// Largest magnitude of an input element.
    largest: f64,
    /// Largest magnitude of a sum of products: `largest` times the largest sum of magnitudes of a filter.
    sum: f64,
}

impl Integers {
    /// Checks a layer that [`LayerOptions::integers`](super::LayerOptions::integers) declares to be one of integers; `None`
    /// for other layers.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for a filter, bias or activation bound that is no integer, [`Error::Mismatch`] for sums
    /// that the type cannot hold exactly.
    pub(super) fn of<T: Element>(common: &Common<T>) -> Result<Option<Self>> {
        let Some(largest) = common.options.integers else { return Ok(None) };
        let bias = common.bias.as_deref().unwrap_or_default();
        for (what, values) in
            [("filter of a layer of integers", common.weight()), ("bias of a layer of integers", bias)]
        {
            if let Some(broken) = values.iter().map(|value| value.to_f64()).find(|value| !whole(*value)) {
                return Err(Error::invalid(what, broken, "give integers, or leave out the option"));
            }
        }
        if let Some(Clamp { low, high }) = common.options.clamp
            && [low, high].into_iter().any(|bound| bound.is_finite() && !whole(bound))
        {
            let help = "give integers or infinities, or leave out the option";
            return Err(Error::invalid(
                "activation of a layer of integers",
                format!("{low} to {high}"),
                help,
            ));
        }
        let filter = common.filters.sums.iter().copied().fold(0.0, f64::max);
        let own = Self { largest, sum: largest * filter };
        let (reached, most) = (own.sum + common.largest_bias, most::<T>());
        if reached > most {
            return Err(Error::mismatch(
                format!("largest sum of a layer of integers in {}", T::DTYPE.name()),
                reached,
                format!("at most {most}"),
                "use f64, or smaller filters",
            ));
        }
        Ok(Some(own))
    }

    /// The windowwise limit under which rounding gives exact sums.
    pub(super) fn limit(&self) -> f64 {
        // A layer of zeros has no error.
        if self.sum > 0.0 { LARGEST_ERROR / self.sum } else { f64::MAX }
    }

    /// Refuses an input that breaks the caller's promise: its decoded outputs would be rounded to wrong integers.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the largest magnitude or the first fraction.
    pub(super) fn check<T: Element>(&self, input: &[T], largest: f64) -> Result<()> {
        let expected = || format!("integers of magnitude at most {}", self.largest);
        let help = "declare the largest magnitude that inputs have, or leave out the option";
        if largest > self.largest {
            return Err(Error::mismatch("input of a layer of integers", largest, expected(), help));
        }
        match input.iter().map(|value| value.to_f64()).find(|value| !whole(*value)) {
            Some(broken) => Err(Error::mismatch("input of a layer of integers", broken, expected(), help)),
            None => Ok(()),
        }
    }

    /// Rounds a decoded `output` `[N, O, spatial...]` whose windowwise error bound is `windowwise`. Returns whether every
    /// element was as near to an integer as that bound allows; otherwise a result is wrong, and so may the output be.
    pub(super) fn round<T: Element>(
        &self,
        shape: &ConvShape,
        sums: &[f64],
        windowwise: f64,
        output: &mut [T],
    ) -> bool {
        let plane = shape.output_plane().max(1);
        let far = AtomicBool::new(false);
        let threads = if output.len() < SMALL { 1 } else { threads() };
        share(threads, output.chunks_mut(plane).enumerate(), |(channel, values)| {
            let bound = windowwise * self.largest * sums[channel % sums.len().max(1)];
            let mut near = true;
            for value in values {
                let own = value.to_f64();
                let integer = own.round();
                let allowed = (LIE * (bound + own.abs() * T::EPSILON)).min(FARTHEST);
                near &= (own - integer).abs() <= allowed;
                *value = T::from_f64(integer);
            }
            if !near {
                far.store(true, Ordering::Relaxed);
            }
        });
        !far.into_inner()
    }
}

/// The largest magnitude of a sum in `T`.
fn most<T: Element>() -> f64 {
    0.5 / T::EPSILON
}

fn whole(value: f64) -> bool {
    value.fract() == 0.0
}

/// Whether a layer of integers can be decoded in `T` for most sets of responders. `sum` is the
/// largest magnitude that a sum of products can have.
#[cfg_attr(not(feature = "onnx"), expect(dead_code, reason = "asked for the layers of models"))]
pub(crate) fn integers_fit<T: Element>(shape: &ConvShape, code: &Code, sum: f64) -> bool {
    let bound = Rounding::plain::<T>(shape.reduction()).windowwise(HEADROOM * typical_condition(code), 1.0);
    sum <= most::<T>() && bound * sum <= LARGEST_ERROR
}
