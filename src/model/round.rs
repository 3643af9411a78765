//! The 16-bit float types of model files, and the operator that rounds to them.
//!
//! Models of 16-bit floats are computed in f32 ([`half`](super::half)). A Cast to 16 bits in the file rounds on purpose, so
//! it becomes a Cast to f32 and this operator. Relevant if you want to know to which values a model with a cast to
//! 16 bits rounds.
//!
//! Invariant: a value becomes the nearest value of the 16-bit type, of two equally near ones that with an even last bit,
//! and infinity beyond the range. It stays an f32.

use std::fmt;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::{NodeProto, tensor_proto};
use tract_onnx::prelude::{DatumType, TractResult};
use tract_onnx::tract_core::internal::{Tensor, format_err};
use tract_onnx::tract_core::ops::element_wise::ElementWiseMiniOp;
use tract_onnx::tract_hir::infer::InferenceOp;
use tract_onnx::tract_hir::internal::expand;
use tract_onnx::tract_hir::ops::element_wise::ElementWiseOp;

/// Elements rounded at once.
const CHUNK: usize = 512;

/// A float type of 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum HalfType {
    /// IEEE half precision: 11 significant bits, up to 65504.
    F16,
    /// The upper half of an f32: 8 significant bits, the range of f32.
    Bf16,
}

impl HalfType {
    /// The type of a number of ONNX's `TensorProto.DataType`.
    pub(super) fn of_onnx(number: i32) -> Option<Self> {
        match number {
            n if n == tensor_proto::DataType::Float16 as i32 => Some(Self::F16),
            n if n == tensor_proto::DataType::Bfloat16 as i32 => Some(Self::Bf16),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// The operator that rounds to this type; its name cannot occur in a file.
    pub(super) fn operator(self) -> &'static str {
        match self {
            Self::F16 => "Round to f16",
            Self::Bf16 => "Round to bf16",
        }
    }

    /// The nearest value of this type.
    pub(super) fn round(self, value: f64) -> f64 {
        match self {
            Self::F16 => f16::from_f64(value).to_f64(),
            Self::Bf16 => bf16::from_f64(value).to_f64(),
        }
    }

    /// The largest finite value.
    pub(super) fn largest(self) -> f64 {
        match self {
            Self::F16 => f16::MAX.to_f64(),
            Self::Bf16 => bf16::MAX.to_f64(),
        }
    }

    /// The value of 16 bits.
    pub(super) fn value(self, bits: u16) -> f32 {
        match self {
            Self::F16 => f16::from_bits(bits).to_f32(),
            Self::Bf16 => bf16::from_bits(bits).to_f32(),
        }
    }

    fn round_all(self, values: &mut [f32]) {
        for values in values.chunks_mut(CHUNK) {
            match self {
                Self::F16 => {
                    let mut narrow = [f16::ZERO; CHUNK];
                    let narrow = &mut narrow[..values.len()];
                    narrow.convert_from_f32_slice(values);
                    narrow.convert_to_f32_slice(values);
                }
                Self::Bf16 => {
                    let mut narrow = [bf16::ZERO; CHUNK];
                    let narrow = &mut narrow[..values.len()];
                    narrow.convert_from_f32_slice(values);
                    narrow.convert_to_f32_slice(values);
                }
            }
        }
    }
}

impl fmt::Display for HalfType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The operator on f32.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Round(HalfType);

impl ElementWiseMiniOp for Round {
    fn name(&self) -> String {
        self.0.operator().to_owned()
    }

    fn operating_datum_type(&self, _: DatumType) -> DatumType {
        DatumType::F32
    }

    fn eval_in_place(&self, tensor: &mut Tensor, _: Option<DatumType>) -> TractResult<()> {
        self.0.round_all(tensor.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?);
        Ok(())
    }
}

/// The parser of [`HalfType::operator`] for tract's operator register.
///
/// # Errors
/// For a node of another operator.
pub(super) fn parse(
    _: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let of = |half: &HalfType| half.operator() == node.op_type;
    let to = [HalfType::F16, HalfType::Bf16].into_iter().find(of);
    let to = to.ok_or_else(|| format_err!("operator {} does not round to 16 bits", node.op_type))?;
    Ok((expand(ElementWiseOp(Box::new(Round(to)))), vec![]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values around ties, at the end of the range, and below the smallest value.
    #[test]
    fn rounds_to_the_nearest_and_ties_to_even() {
        let ulp = 2f32.powi(-10);
        for (value, expected) in [
            (1.0 + 0.5 * ulp, 1.0),
            (1.0 + 0.51 * ulp, 1.0 + ulp),
            (1.0 + 1.5 * ulp, 1.0 + 2.0 * ulp),
            (65519.0, 65504.0),
            (65520.0, f32::INFINITY),
            (-1e9, f32::NEG_INFINITY),
            (2f32.powi(-25), 0.0),
            (1.1 * 2f32.powi(-25), 2f32.powi(-24)),
        ] {
            let mut values = vec![value; CHUNK + 3];
            HalfType::F16.round_all(&mut values);
            assert!(values.iter().all(|v| *v == expected), "{value} became {}", values[0]);
            assert_eq!(HalfType::F16.round(f64::from(value)), f64::from(expected));
        }
        let mut wide = [1.0 + 2f32.powi(-8), 1.0 + 1.1 * 2f32.powi(-8), 1e38, f32::NAN];
        HalfType::Bf16.round_all(&mut wide);
        assert_eq!(wide[..2], [1.0, 1.0 + 2f32.powi(-7)]);
        assert!((wide[2] / 1e38 - 1.0).abs() < 2f32.powi(-8) && wide[3].is_nan());
    }
}
