//! Arrays whose element type is known only at run time: the inputs and outputs of models.

use std::ops::Range;

use half::{bf16, f16};
use ndarray::{ArrayD, Axis};
use tract_onnx::prelude::{DatumType, IntoTensor, TractResult};
use tract_onnx::tract_core::internal::Tensor as TractTensor;

use super::guard::guarded;
use super::round::HalfType;
use crate::error::{Error, Result};

/// An array of one of the element types of model inputs and outputs.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Tensor {
    /// 16-bit floats of half precision. Models compute them in f32.
    F16(ArrayD<f16>),
    /// 16-bit floats with the range of f32. Models compute them in f32.
    BF16(ArrayD<bf16>),
    /// 32-bit floats.
    F32(ArrayD<f32>),
    /// 64-bit floats.
    F64(ArrayD<f64>),
    /// 16-bit signed integers.
    I16(ArrayD<i16>),
    /// 32-bit integers.
    I32(ArrayD<i32>),
    /// 64-bit integers: class indices, sizes.
    I64(ArrayD<i64>),
    /// 8-bit signed integers.
    I8(ArrayD<i8>),
    /// 8-bit unsigned integers.
    U8(ArrayD<u8>),
    /// 16-bit unsigned integers.
    U16(ArrayD<u16>),
    /// 32-bit unsigned integers.
    U32(ArrayD<u32>),
    /// 64-bit unsigned integers.
    U64(ArrayD<u64>),
    /// Booleans.
    Bool(ArrayD<bool>),
}

macro_rules! each {
    ($tensor:expr, $array:ident => $value:expr) => {
        match $tensor {
            Tensor::F16($array) => $value,
            Tensor::BF16($array) => $value,
            Tensor::F32($array) => $value,
            Tensor::F64($array) => $value,
            Tensor::I16($array) => $value,
            Tensor::I32($array) => $value,
            Tensor::I64($array) => $value,
            Tensor::I8($array) => $value,
            Tensor::U8($array) => $value,
            Tensor::U16($array) => $value,
            Tensor::U32($array) => $value,
            Tensor::U64($array) => $value,
            Tensor::Bool($array) => $value,
        }
    };
}

macro_rules! from_array {
    ($($element:ty => $variant:ident),*) => {
        $(impl From<ArrayD<$element>> for Tensor {
            fn from(array: ArrayD<$element>) -> Self {
                Self::$variant(array)
            }
        })*
    };
}

from_array!(f16 => F16, bf16 => BF16, f32 => F32, f64 => F64, bool => Bool);
from_array!(i8 => I8, i16 => I16, i32 => I32, i64 => I64, u8 => U8, u16 => U16, u32 => U32, u64 => U64);

impl Tensor {
    /// Sizes of the axes.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        each!(self, array => array.shape())
    }

    /// Name of the element type: `f16`, `bf16`, `f32`, `f64`, `i8` to `i64`, `u8` to `u64` or `bool`.
    #[must_use]
    pub fn dtype(&self) -> &'static str {
        match self {
            Self::F16(_) => HalfType::F16.name(),
            Self::BF16(_) => HalfType::Bf16.name(),
            Self::F32(_) => "f32",
            Self::F64(_) => "f64",
            Self::I16(_) => "i16",
            Self::I32(_) => "i32",
            Self::I64(_) => "i64",
            Self::I8(_) => "i8",
            Self::U8(_) => "u8",
            Self::U16(_) => "u16",
            Self::U32(_) => "u32",
            Self::U64(_) => "u64",
            Self::Bool(_) => "bool",
        }
    }

    /// Splits along the first axis into pieces of `size`, of which the last may be smaller; one piece if there is no
    /// axis.
    #[must_use]
    pub fn chunks(&self, size: usize) -> Vec<Self> {
        each!(self, array => if array.ndim() == 0 {
            vec![self.clone()]
        } else {
            array.axis_chunks_iter(Axis(0), size.max(1)).map(|piece| piece.to_owned().into()).collect()
        })
    }

    /// The part with the indices `range` of `axis`; `None` where the array has no such part.
    ///
    /// # Examples
    ///
    /// ```
    /// use fcdcc::model::Tensor;
    ///
    /// let tensor = Tensor::from(ndarray::ArrayD::<f32>::ones(vec![2, 5]));
    /// assert_eq!(tensor.part(1, 3..5).map(|part| part.shape().to_vec()), Some(vec![2, 2]));
    /// assert_eq!(tensor.part(1, 3..6), None);
    /// ```
    #[must_use]
    pub fn part(&self, axis: usize, range: Range<usize>) -> Option<Self> {
        if self.shape().get(axis).is_none_or(|size| *size < range.end) || range.start > range.end {
            return None;
        }
        let range = ndarray::Slice::from(range);
        each!(self, array => Some(array.slice_axis(Axis(axis), range).to_owned().into()))
    }

    /// Concatenates pieces along the first axis, as [`Tensor::chunks`] split them; values without an axis become
    /// elements of a vector.
    ///
    /// # Errors
    /// Those of [`Tensor::concat_along`].
    pub fn concat(pieces: &[Self]) -> Result<Self> {
        Self::concat_along(pieces, 0)
    }

    /// Concatenates pieces along an axis; values without an axis become elements of a vector.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for no pieces, different element types, different sizes of the other axes, or an axis that
    /// does not exist.
    pub fn concat_along(pieces: &[Self], axis: usize) -> Result<Self> {
        let differ = |got: String, expected: String| {
            Error::mismatch(
                "piece of a batch",
                got,
                expected,
                "pieces must agree but for the axis of the batch",
            )
        };
        let Some(first) = pieces.first() else {
            return Err(differ("nothing".to_owned(), "at least one".to_owned()));
        };
        macro_rules! joined {
            ($variant:ident) => {{
                let mut all = Vec::with_capacity(pieces.len());
                for piece in pieces {
                    let Self::$variant(array) = piece else {
                        return Err(differ(piece.dtype().to_owned(), first.dtype().to_owned()));
                    };
                    let scalar = array.ndim() == 0;
                    all.push(if scalar { array.view().insert_axis(Axis(0)) } else { array.view() });
                }
                if all.iter().any(|piece| piece.ndim() <= axis) {
                    return Err(differ(
                        format!("{:?}", first.shape()),
                        format!("an array with an axis {axis}"),
                    ));
                }
                let joined = ndarray::concatenate(Axis(axis), &all);
                joined.map(Self::$variant).map_err(|_| {
                    let shapes = pieces.iter().map(|p| format!("{:?}", p.shape())).collect::<Vec<_>>();
                    differ(shapes.join(", "), format!("like {:?}", first.shape()))
                })
            }};
        }
        match first {
            Self::F16(_) => joined!(F16),
            Self::BF16(_) => joined!(BF16),
            Self::F32(_) => joined!(F32),
            Self::F64(_) => joined!(F64),
            Self::I16(_) => joined!(I16),
            Self::I32(_) => joined!(I32),
            Self::I64(_) => joined!(I64),
            Self::I8(_) => joined!(I8),
            Self::U8(_) => joined!(U8),
            Self::U16(_) => joined!(U16),
            Self::U32(_) => joined!(U32),
            Self::U64(_) => joined!(U64),
            Self::Bool(_) => joined!(Bool),
        }
    }

    /// The elements in row-major order as f64: exact except for integers beyond 2^53; booleans are 0 and 1.
    #[must_use]
    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Self::F16(a) => a.iter().map(|v| f64::from(*v)).collect(),
            Self::BF16(a) => a.iter().map(|v| f64::from(*v)).collect(),
            Self::F32(a) => a.iter().map(|v| f64::from(*v)).collect(),
            Self::F64(a) => a.iter().copied().collect(),
            Self::I16(a) => a.iter().map(|v| f64::from(*v)).collect(),
            Self::I32(a) => a.iter().map(|v| f64::from(*v)).collect(),
            Self::I64(a) => a.iter().map(|v| *v as f64).collect(),
            Self::I8(a) => a.iter().map(|v| f64::from(*v)).collect(),
            Self::U8(a) => a.iter().map(|v| f64::from(*v)).collect(),
            Self::U16(a) => a.iter().map(|v| f64::from(*v)).collect(),
            Self::U32(a) => a.iter().map(|v| f64::from(*v)).collect(),
            Self::U64(a) => a.iter().map(|v| *v as f64).collect(),
            Self::Bool(a) => a.iter().map(|v| f64::from(u8::from(*v))).collect(),
        }
    }

    /// Converts to a tract tensor of the element type `wanted`, see [`fitted`].
    pub(super) fn for_model(&self, name: &str, wanted: DatumType) -> Result<TractTensor> {
        fitted(self.to_tract(), self.dtype(), name, wanted)
    }

    /// A copy as a tensor of tract; 16-bit floats become f32.
    pub(super) fn to_tract(&self) -> TractTensor {
        match self {
            Self::F16(array) => array.mapv(f32::from).into_tensor(),
            Self::BF16(array) => array.mapv(f32::from).into_tensor(),
            Self::F32(array) => array.clone().into_tensor(),
            Self::F64(array) => array.clone().into_tensor(),
            Self::I16(array) => array.clone().into_tensor(),
            Self::I32(array) => array.clone().into_tensor(),
            Self::I64(array) => array.clone().into_tensor(),
            Self::I8(array) => array.clone().into_tensor(),
            Self::U8(array) => array.clone().into_tensor(),
            Self::U16(array) => array.clone().into_tensor(),
            Self::U32(array) => array.clone().into_tensor(),
            Self::U64(array) => array.clone().into_tensor(),
            Self::Bool(array) => array.clone().into_tensor(),
        }
    }

    /// f32 values rounded to a type of 16 bits, infinite beyond its range; other tensors unchanged.
    pub(super) fn narrowed(self, to: HalfType) -> Self {
        match (self, to) {
            (Self::F32(array), HalfType::F16) => Self::F16(array.mapv(f16::from_f32)),
            (Self::F32(array), HalfType::Bf16) => Self::BF16(array.mapv(bf16::from_f32)),
            (other, _) => other,
        }
    }

    /// The values of an input that the file has in 16 bits: rounded to these, in f32. Integers must be exact in them.
    pub(super) fn rounded(&self, name: &str, to: HalfType) -> Result<ArrayD<f32>> {
        let is_float = matches!(self, Self::F16(_) | Self::BF16(_) | Self::F32(_) | Self::F64(_));
        // Refuses integers that f64 does not hold.
        let wide = if is_float { None } else { Some(self.for_model(name, DatumType::F64)?) };
        let values =
            wide.map_or_else(|| Ok(self.to_f64()), |wide| Ok(Self::from_model(name, &wide)?.to_f64()))?;
        let mut rounded = Vec::with_capacity(values.len());
        for (index, value) in values.into_iter().enumerate() {
            let near = to.round(value);
            if (near.is_infinite() && value.is_finite()) || !(is_float || near == value) {
                return Err(Error::mismatch(
                    format!("element type of input {name}"),
                    format!("{} (with {value:e} at flat index {index})", self.dtype()),
                    format!("{to}, which reaches to {:e}, or f32 rounded to it", to.largest()),
                    "scale the data: that value does not exist in that type",
                ));
            }
            #[expect(clippy::cast_possible_truncation, reason = "f32 holds every value of 16 bits")]
            rounded.push(near as f32);
        }
        Ok(ArrayD::from_shape_vec(self.shape(), rounded).expect("one value for each element"))
    }

    /// Converts from a tract tensor.
    pub(super) fn from_model(name: &str, tensor: &TractTensor) -> Result<Self> {
        guarded(name, || {
            Ok(match tensor.datum_type() {
                DatumType::F64 => Self::F64(tensor.to_plain_array_view()?.to_owned()),
                DatumType::I16 => Self::I16(tensor.to_plain_array_view()?.to_owned()),
                DatumType::I32 => Self::I32(tensor.to_plain_array_view()?.to_owned()),
                DatumType::I64 => Self::I64(tensor.to_plain_array_view()?.to_owned()),
                DatumType::I8 => Self::I8(tensor.to_plain_array_view()?.to_owned()),
                DatumType::U8 => Self::U8(tensor.to_plain_array_view()?.to_owned()),
                DatumType::U16 => Self::U16(tensor.to_plain_array_view()?.to_owned()),
                DatumType::U32 => Self::U32(tensor.to_plain_array_view()?.to_owned()),
                DatumType::U64 => Self::U64(tensor.to_plain_array_view()?.to_owned()),
                DatumType::Bool => Self::Bool(tensor.to_plain_array_view()?.to_owned()),
                // tract's sizes fit into i64, half floats into f32.
                dt if dt.is_float() => Self::F32(tensor.cast_to::<f32>()?.to_plain_array_view()?.to_owned()),
                _ => Self::I64(tensor.cast_to::<i64>()?.to_plain_array_view()?.to_owned()),
            })
        })
    }
}

/// `own`, which the caller calls `dtype`, as elements of the type `wanted` for the input `name`. Floats are rounded; all other
/// conversions must be lossless.
///
/// # Errors
/// [`Error::Mismatch`] for values that the type does not have.
pub(super) fn fitted(own: TractTensor, dtype: &str, name: &str, wanted: DatumType) -> Result<TractTensor> {
    if own.datum_type() == wanted {
        return Ok(own);
    }
    let floats = own.datum_type().is_float() && wanted.is_float();
    let cast = || -> TractResult<Option<TractTensor>> {
        let there = own.cast_to_dt(wanted)?.into_owned();
        let same = floats || *there.cast_to_dt(own.datum_type())? == own;
        Ok(same.then_some(there))
    };
    match guarded(name, cast) {
        Ok(Some(tensor)) => Ok(tensor),
        Ok(None) | Err(_) => Err(Error::mismatch(
            format!("element type of input {name}"),
            dtype,
            dtype_name(wanted),
            "convert the data: some of its values do not exist in that type",
        )),
    }
}

/// The user-visible name of an element type.
pub(super) fn dtype_name(dtype: DatumType) -> String {
    format!("{dtype:?}").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor<T: Clone>(values: &[T]) -> ArrayD<T> {
        ArrayD::from_shape_vec(vec![values.len()], values.to_vec()).unwrap()
    }

    #[test]
    fn batches_are_cut_and_put_together() {
        let whole = Tensor::from(ArrayD::from_shape_vec(vec![5, 2], (0..10).collect::<Vec<i64>>()).unwrap());
        let pieces = whole.chunks(2);
        assert_eq!(pieces.iter().map(|p| p.shape()[0]).collect::<Vec<_>>(), [2, 2, 1]);
        assert_eq!(Tensor::concat(&pieces).unwrap(), whole);
        let columns = Tensor::from(ndarray::array![[0i64, 1, 0, 1], [2, 3, 2, 3]].into_dyn());
        let square = Tensor::from(ndarray::array![[0i64, 1], [2, 3]].into_dyn());
        assert_eq!(Tensor::concat_along(&[square.clone(), square.clone()], 1).unwrap(), columns);
        let no_axis = Tensor::concat_along(&[square.clone(), square], 2).unwrap_err().to_string();
        assert!(no_axis.contains("[2, 2] where an array with an axis 2"), "{no_axis}");
        let scalar = Tensor::from(ArrayD::from_elem(vec![], 3.0f32));
        assert_eq!(scalar.chunks(4), std::slice::from_ref(&scalar));
        assert_eq!(Tensor::concat(&[scalar.clone(), scalar.clone()]).unwrap().shape(), [2]);
        for wrong in [vec![], vec![whole, scalar]] {
            assert!(matches!(Tensor::concat(&wrong), Err(Error::Mismatch { .. })));
        }
        let uneven = [Tensor::from(ArrayD::<u8>::zeros(vec![1, 2])), ArrayD::<u8>::zeros(vec![1, 3]).into()];
        assert!(Tensor::concat(&uneven).unwrap_err().to_string().contains("[1, 2], [1, 3]"));
    }

    #[test]
    fn values_survive_conversion_or_are_refused() {
        let labels = Tensor::from(tensor(&[0.0, 7.0, 255.0]));
        let bytes = labels.for_model("x", DatumType::U8).unwrap();
        assert_eq!(Tensor::from_model("x", &bytes).unwrap(), Tensor::U8(tensor(&[0, 7, 255])));
        for wrong in [0.5, 256.0, -1.0, f64::NAN] {
            let refused =
                Tensor::from(tensor(&[wrong])).for_model("x", DatumType::U8).unwrap_err().to_string();
            assert!(refused.contains("input x is f64 where u8"), "{refused}");
        }
        // Rounding between floats is allowed.
        let rounded = Tensor::from(tensor(&[0.1f64])).for_model("x", DatumType::F32).unwrap();
        assert_eq!(Tensor::from_model("x", &rounded).unwrap(), Tensor::F32(tensor(&[0.1f32])));
    }
}
