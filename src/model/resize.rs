//! Resize to the nearest element, with exact positions.
//!
//! Positions are computed as fractions, because the nearest element changes at whole or half positions, where
//! floating-point rounding may select the neighbour. Interpolation has no such steps and is left to tract.

use tract_onnx::model::{ParsingContext, optional_inputs};
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::{DatumType, SpecialOps, TractResult};
use tract_onnx::tract_core::internal::{
    DatumTypeExt, DimLike, EvalContext, EvalOp, IntoTValue, IntoTensor, Op, OutletId, StaticName, TDim,
    TValue, TVec, Tensor, ToDim, TypedFact, TypedModel, TypedOp, args_1, as_op, bail, format_err,
    op_as_typed_op, op_out_of_plan, tvec,
};
use tract_onnx::tract_hir::infer::{InferenceOp, InferenceResult, Solver, TensorProxy};
use tract_onnx::tract_hir::internal::{Expansion, expand};

use super::check::{attribute, text};
use crate::memory;

/// The operator name given to nodes of this kind; it cannot occur in a file.
pub(super) const NAME: &str = "Resize to nearest";

/// The opset that left the choice of the nearest element to the implementation.
const UNSPECIFIED: i64 = 10;

/// Whether a Resize node is of this kind.
pub(super) fn takes(node: &NodeProto) -> bool {
    let is = |name: &str, default: &str, wanted: &str| text(node, name).unwrap_or(default) == wanted;
    is("mode", "nearest", "nearest")
        && Coordinates::parse(text(node, "coordinate_transformation_mode").unwrap_or("half_pixel")).is_some()
        && is("keep_aspect_ratio_policy", "stretch", "stretch")
}

/// The position in the input of an output element, by its middle or corner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coordinates {
    HalfPixel,
    PytorchHalfPixel,
    HalfPixelSymmetric,
    AlignCorners,
    Asymmetric,
    TfHalfPixelForNn,
}

impl Coordinates {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "half_pixel" => Self::HalfPixel,
            "pytorch_half_pixel" => Self::PytorchHalfPixel,
            "half_pixel_symmetric" => Self::HalfPixelSymmetric,
            "align_corners" => Self::AlignCorners,
            "asymmetric" => Self::Asymmetric,
            "tf_half_pixel_for_nn" => Self::TfHalfPixelForNn,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rounding {
    Floor,
    Ceil,
    PreferFloor,
    PreferCeil,
    /// Up if the output is smaller, down if it is larger, as implementations of opset 10 do.
    Shrinking,
}

impl Rounding {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "floor" => Self::Floor,
            "ceil" => Self::Ceil,
            "round_prefer_floor" => Self::PreferFloor,
            "round_prefer_ceil" => Self::PreferCeil,
            _ => return None,
        })
    }
}

/// A positive fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fraction {
    over: i128,
    under: i128,
}

impl Fraction {
    /// The fraction with the smallest terms whose nearest float is `value`: 3/5 for 0.6.
    fn meant_by(value: f32) -> Option<Self> {
        if !value.is_finite() || !(2e-6..=1e6).contains(&value) {
            return None;
        }
        let (below, above) = (f32::from_bits(value.to_bits() - 1), f32::from_bits(value.to_bits() + 1));
        let middle = |other: f32| f64::midpoint(f64::from(value), f64::from(other));
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the question")]
        let back = |of: &Self| (of.over as f64 / of.under as f64) as f32 == value;
        // If intermediate rounding gives another float, uses the exact value: a multiple of 2^-44, since it is above
        // 2^-20.
        #[expect(clippy::cast_possible_truncation, reason = "a whole number below 2^64")]
        let exact = || Self { over: (f64::from(value) * 2f64.powi(44)) as i128, under: 1 << 44 };
        let simplest = simplest_between(middle(below), middle(above), 40);
        Some(simplest.filter(back).unwrap_or_else(exact))
    }
}

/// The simplest fraction in the range, by continued fractions.
fn simplest_between(low: f64, high: f64, steps: usize) -> Option<Fraction> {
    let whole = low.floor();
    // Below 2^53, as the first term is below 2^21 and later terms are below 2^25.
    #[expect(clippy::cast_possible_truncation, reason = "small")]
    let term = whole as i128;
    if whole == low {
        return Some(Fraction { over: term, under: 1 });
    }
    if whole + 1.0 <= high {
        return Some(Fraction { over: term + 1, under: 1 });
    }
    let rest = simplest_between((high - whole).recip(), (low - whole).recip(), steps.checked_sub(1)?)?;
    Some(Fraction { over: term.checked_mul(rest.over)?.checked_add(rest.under)?, under: rest.over })
}

/// The input element for output element `x` of `out`, for an axis of `own` elements and `scale`.
fn source(
    x: usize,
    own: usize,
    out: usize,
    scale: Fraction,
    place: Coordinates,
    rounding: Rounding,
) -> usize {
    let wide = |value: usize| i128::try_from(value).unwrap_or(i128::MAX >> 64);
    let (x, own, out) = (wide(x), wide(own), wide(out));
    let Fraction { over, under } = scale;
    let middle = (2 * x + 1) * under;
    let (position, of) = match place {
        Coordinates::PytorchHalfPixel | Coordinates::AlignCorners if out <= 1 => (0, 1),
        Coordinates::HalfPixel | Coordinates::PytorchHalfPixel => (middle - over, 2 * over),
        Coordinates::HalfPixelSymmetric => (own * over - out * under + middle - over, 2 * over),
        Coordinates::AlignCorners => (x * (own - 1), out - 1),
        Coordinates::Asymmetric => (x * under, over),
        Coordinates::TfHalfPixelForNn => (middle, 2 * over),
    };
    let ceil = |position: i128, of: i128| -(-position).div_euclid(of);
    let at = match rounding {
        Rounding::Ceil => ceil(position, of),
        Rounding::PreferFloor => ceil(2 * position - of, 2 * of),
        Rounding::PreferCeil => (2 * position + of).div_euclid(2 * of),
        Rounding::Shrinking if over < under => ceil(position, of),
        Rounding::Floor | Rounding::Shrinking => position.div_euclid(of),
    };
    usize::try_from(at.clamp(0, own - 1)).unwrap_or(0)
}

/// A parsed Resize node; the first input is the data.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parsed {
    scales: Option<usize>,
    sizes: Option<usize>,
    axes: Option<Vec<i64>>,
    place: Coordinates,
    rounding: Rounding,
}

/// The parser for tract's operator register.
///
/// # Errors
/// For attributes without meaning.
pub(super) fn parse(
    ctx: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let unspecified = ctx.onnx_operator_set_version <= UNSPECIFIED;
    let mut inputs = optional_inputs(node).skip(if unspecified { 1 } else { 2 });
    let (scales, sizes) = (inputs.next().flatten(), inputs.next().flatten().filter(|_| !unspecified));
    if scales.is_none() && sizes.is_none() {
        bail!("it has neither scales nor sizes: give one of the two");
    }
    let (place, rounding) = if unspecified {
        // Upsample defines the rounding (`upsample`), Resize of opset 10 does not.
        let rounding = text(node, "nearest_mode").and_then(Rounding::parse);
        (Coordinates::Asymmetric, rounding.unwrap_or(Rounding::Shrinking))
    } else {
        let place = text(node, "coordinate_transformation_mode").unwrap_or("half_pixel");
        let rounding = text(node, "nearest_mode").unwrap_or("round_prefer_floor");
        (
            Coordinates::parse(place)
                .ok_or_else(|| format_err!("attribute coordinate_transformation_mode is {place}, which is not known"))?,
            Rounding::parse(rounding).ok_or_else(|| {
                format_err!("attribute nearest_mode is {rounding}: use floor, ceil, round_prefer_floor or round_prefer_ceil")
            })?,
        )
    };
    let axes = attribute(node, "axes").map(|a| a.ints.clone()).filter(|axes| !axes.is_empty());
    Ok((expand(Parsed { scales, sizes, axes, place, rounding }), vec![]))
}

impl Parsed {
    /// Sizes of the output, and the scale of each axis that changes. `scales` are used if they have elements.
    fn resized(
        &self,
        input: &[TDim],
        scales: Option<&Tensor>,
        sizes: Option<&Tensor>,
    ) -> TractResult<Vec<(TDim, Option<Fraction>)>> {
        let rank = i64::try_from(input.len())?;
        let axes: Vec<i64> = match &self.axes {
            None => (0..rank).collect(),
            Some(axes) => axes.iter().map(|axis| if *axis < 0 { axis + rank } else { *axis }).collect(),
        };
        let mut resized: Vec<_> = input.iter().map(|dim| (dim.clone(), None)).collect();
        let scales = scales.filter(|scales| scales.len() > 0);
        let count = scales.or(sizes).map_or(0, Tensor::len);
        if count != axes.len() {
            bail!(
                "it has {count} scales or sizes where {} axes are to be resized: give one for each",
                axes.len()
            );
        }
        for (slot, axis) in axes.iter().enumerate() {
            let Some(place) = usize::try_from(*axis).ok().and_then(|axis| resized.get_mut(axis)) else {
                bail!("attribute axes names axis {axis} of {rank}");
            };
            let known =
                || place.0.to_usize().map_err(|_| format_err!("the size of axis {axis} depends on data"));
            if let Some(scales) = scales {
                let scale = scales.cast_to::<f32>()?.try_as_plain_ram()?.as_slice::<f32>()?[slot];
                if scale == 1.0 {
                    continue;
                }
                let own = known()?;
                let Some(fraction) = Fraction::meant_by(scale) else {
                    bail!("scale {scale} of axis {axis} has no meaning")
                };
                // Rounded as in other engines, so that sizes agree.
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "positive, and sizes are small"
                )]
                let size = (own as f32 * scale) as usize;
                *place = (size.to_dim(), Some(fraction));
            } else if let Some(sizes) = sizes {
                let sizes = sizes.cast_to::<i64>()?;
                let size = sizes.try_as_plain_ram()?.as_slice::<i64>()?[slot];
                let own = known()?;
                if i64::try_from(own)? == size {
                    continue;
                }
                if size < 1 {
                    bail!("size {size} of axis {axis} is less than 1");
                }
                *place =
                    (size.to_dim(), Some(Fraction { over: i128::from(size), under: i128::try_from(own)? }));
            }
        }
        Ok(resized)
    }
}

impl Expansion for Parsed {
    fn name(&self) -> StaticName {
        "Resize".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        solver.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        solver.equals(&inputs[0].rank, &outputs[0].rank)?;
        let sized = move |solver: &mut Solver<'r>,
                          shape: TVec<TDim>,
                          scales: Option<&Tensor>,
                          sizes: Option<&Tensor>| {
            for (axis, (dim, _)) in self.resized(&shape, scales, sizes)?.into_iter().enumerate() {
                solver.equals(&outputs[0].shape[axis], dim)?;
            }
            Ok(())
        };
        let by_sizes = move |solver: &mut Solver<'r>| match self.sizes {
            None => Ok(()),
            Some(sizes) => {
                solver.given_2(&inputs[0].shape, &inputs[sizes].value, move |solver, shape, sizes| {
                    sized(solver, shape, None, Some(&sizes))
                })
            }
        };
        match self.scales {
            None => by_sizes(solver),
            Some(scales) => {
                solver.given_2(&inputs[0].shape, &inputs[scales].value, move |solver, shape, scales| {
                    if scales.len() == 0 {
                        by_sizes(solver)
                    } else {
                        sized(solver, shape, Some(&scales), None)
                    }
                })
            }
        }
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let fact = model.outlet_fact(inputs[0])?;
        let constant = |slot: Option<usize>| match slot {
            None => Ok(None),
            Some(slot) => match &model.outlet_fact(inputs[slot])?.konst {
                None => bail!("Resize node {prefix}: its scales or sizes depend on data: make them constant"),
                known => Ok(known.clone()),
            },
        };
        let (scales, sizes) = (constant(self.scales)?, constant(self.sizes)?);
        let resized = self
            .resized(&fact.shape.to_tvec(), scales.as_deref(), sizes.as_deref())
            .map_err(|e| format_err!("Resize node {prefix}: {e}"))?;
        let same = resized.iter().zip(fact.shape.iter()).all(|((new, _), own)| new == own);
        let mut sources = Vec::with_capacity(resized.len());
        for (axis, (size, scale)) in resized.into_iter().enumerate() {
            let Some(scale) = scale.filter(|_| !same) else {
                sources.push(None);
                continue;
            };
            let (own, out) = (fact.shape[axis].to_usize()?, size.to_usize()?);
            if own == 0 || out == 0 {
                bail!("Resize node {prefix}: axis {axis} goes from {own} to {out}: it has no output");
            }
            // A small file can ask for any size.
            let table = (out as u64).saturating_mul(size_of::<usize>() as u64);
            memory::require_all(&format!("Resize node {prefix} to {out} elements on axis {axis}"), table)?;
            sources.push(Some(
                (0..out).map(|x| source(x, own, out, scale, self.place, self.rounding)).collect(),
            ));
        }
        let op = Nearest { sources };
        model.wire_node(prefix, op, &inputs[..1])
    }
}

/// Copies elements: for each axis the source indices, or `None` if the axis is unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Nearest {
    sources: Vec<Option<Vec<usize>>>,
}

impl Nearest {
    /// Whether an axis is unchanged.
    pub(super) fn keeps(&self, axis: usize) -> bool {
        self.sources.get(axis).is_some_and(Option::is_none)
    }
}

impl Op for Nearest {
    fn name(&self) -> StaticName {
        "Resize".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Nearest {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut data = args_1!(inputs).into_tensor();
        if data.datum_type() == DatumType::String || data.rank() != self.sources.len() {
            bail!("Resize of {data:?} along {} axes", self.sources.len());
        }
        for (axis, sources) in self.sources.iter().enumerate() {
            let Some(sources) = sources else { continue };
            let own = data.shape()[axis];
            let run = data.shape()[axis + 1..].iter().product::<usize>() * data.datum_type().size_of();
            let mut shape: TVec<usize> = data.shape().into();
            shape[axis] = sources.len();
            let mut output = Tensor::zero_dt(data.datum_type(), &shape)?;
            let from = data.try_as_plain_ram()?;
            let mut to = output.try_as_plain_ram_mut()?;
            if run > 0 && sources.iter().all(|source| *source < own) {
                let blocks = from.as_bytes().chunks_exact(own * run);
                for (block, to) in blocks.zip(to.as_bytes_mut().chunks_exact_mut(sources.len() * run)) {
                    for (source, to) in sources.iter().zip(to.chunks_exact_mut(run)) {
                        to.copy_from_slice(&block[source * run..][..run]);
                    }
                }
            }
            data = output;
        }
        Ok(tvec!(data.into_tvalue()))
    }
}

impl TypedOp for Nearest {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let [data] = inputs else { bail!("Resize has one input, not {}", inputs.len()) };
        let size = |(axis, dim): (usize, &TDim)| match self.sources.get(axis) {
            Some(Some(sources)) => sources.len().to_dim(),
            _ => dim.clone(),
        };
        let shape: TVec<TDim> = data.shape.iter().enumerate().map(size).collect();
        Ok(tvec!(data.datum_type.fact(&*shape)))
    }

    as_op!();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fraction(over: i128, under: i128) -> Fraction {
        Fraction { over, under }
    }

    #[test]
    fn floats_stand_for_fractions() {
        for (value, over, under) in
            [(0.6f32, 3, 5), (2.0, 2, 1), (1.0 / 3.0, 1, 3), (0.7, 7, 10), (13.0 / 7.0, 13, 7), (0.25, 1, 4)]
        {
            assert_eq!(Fraction::meant_by(value), Some(fraction(over, under)), "{value}");
        }
        for nonsense in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-30] {
            assert_eq!(Fraction::meant_by(nonsense), None);
        }
        // Every float is recovered from its fraction.
        let mut value = 0.01f32;
        while value < 50.0 {
            assert!(Fraction::meant_by(value).is_some(), "{value}");
            value *= 1.001_37;
        }
    }

    #[test]
    fn positions_are_exact() {
        let all = |own: usize, out: usize, place, rounding| -> Vec<usize> {
            let scale = fraction(i128::try_from(out).unwrap(), i128::try_from(own).unwrap());
            (0..out).map(|x| source(x, own, out, scale, place, rounding)).collect()
        };
        // 13 to 7 with aligned corners: every other element, exactly.
        let even = [0, 2, 4, 6, 8, 10, 12];
        assert_eq!(all(13, 7, Coordinates::AlignCorners, Rounding::Floor), even);
        assert_eq!(all(13, 7, Coordinates::AlignCorners, Rounding::Ceil), even);
        // The middle of seven elements is the fourth.
        assert_eq!(all(7, 1, Coordinates::HalfPixel, Rounding::Floor), [3]);
        assert_eq!(all(7, 1, Coordinates::PytorchHalfPixel, Rounding::Floor), [0]);
        // Half way between two elements the rounding mode decides.
        assert_eq!(all(4, 2, Coordinates::HalfPixel, Rounding::PreferFloor), [0, 2]);
        assert_eq!(all(4, 2, Coordinates::HalfPixel, Rounding::PreferCeil), [1, 3]);
        assert_eq!(all(2, 6, Coordinates::Asymmetric, Rounding::Shrinking), [0, 0, 0, 1, 1, 1]);
        assert_eq!(all(6, 4, Coordinates::Asymmetric, Rounding::Shrinking), [0, 2, 3, 5]);
        assert_eq!(all(3, 5, Coordinates::TfHalfPixelForNn, Rounding::Floor), [0, 0, 1, 2, 2]);
        assert_eq!(
            all(5, 10, Coordinates::HalfPixelSymmetric, Rounding::Floor),
            [0, 0, 0, 1, 1, 2, 2, 3, 3, 4]
        );
    }
}
