//! The inputs of a run, where they lie.
//!
//! Relevant if floats are in memory that something else owns: another library, another language, a file that is mapped.
//!
//! Invariant: floats of the type that a graph computes in, in row-major order, are read where they lie; everything else is
//! converted once.

use std::borrow::Cow;

use ndarray::ArrayViewD;
use tract_onnx::prelude::{Datum, DatumType, IntoTensor, TractResult};
use tract_onnx::tract_core::internal::{Tensor as TractTensor, format_err};

use super::guard::guarded;
use super::round::HalfType;
use super::tensor::{Tensor, fitted};
use crate::array::{DType, Values};
use crate::error::Result;

/// One input of a run: a [`Tensor`], or floats that lie in other memory.
///
/// # Examples
///
/// ```
/// # use fcdcc::{CancelToken, CpuWorker, Model, ModelOptions, Pool};
/// # let pool = Pool::new(CpuWorker::fleet(6))?;
/// # let model = Model::load("assets/digits/lenet5.onnx")?.with_input_shape("image", &[1, 1, 32, 32])?;
/// use fcdcc::model::TensorView;
/// use ndarray::ArrayViewD;
///
/// let prepared = model.prepare(&pool, &ModelOptions::default())?;
/// let elsewhere = [0.5f32; 32 * 32];
/// let image = ArrayViewD::from_shape(vec![1, 1, 32, 32], &elsewhere).unwrap();
/// let run = prepared.run_views(&[TensorView::F32(image)], &CancelToken::new(), &mut |_| {})?;
/// assert_eq!(run.outputs[0].tensor.shape(), [1, 10]);
/// # Ok::<(), fcdcc::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum TensorView<'a> {
    /// 32-bit floats.
    F32(ArrayViewD<'a, f32>),
    /// 64-bit floats.
    F64(ArrayViewD<'a, f64>),
    /// An array of any type.
    Tensor(&'a Tensor),
}

impl<'a> From<&'a Tensor> for TensorView<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        match tensor {
            Tensor::F32(array) => Self::F32(array.view()),
            Tensor::F64(array) => Self::F64(array.view()),
            other => Self::Tensor(other),
        }
    }
}

impl TensorView<'_> {
    /// Sizes of the axes.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::F32(array) => array.shape(),
            Self::F64(array) => array.shape(),
            Self::Tensor(tensor) => tensor.shape(),
        }
    }

    /// Name of the element type, see [`Tensor::dtype`].
    #[must_use]
    pub fn dtype(&self) -> &'static str {
        match self {
            Self::F32(_) => "f32",
            Self::F64(_) => "f64",
            Self::Tensor(tensor) => tensor.dtype(),
        }
    }

    fn to_tensor(&self) -> Cow<'_, Tensor> {
        match self {
            Self::F32(array) => Cow::Owned(array.to_owned().into()),
            Self::F64(array) => Cow::Owned(array.to_owned().into()),
            Self::Tensor(tensor) => Cow::Borrowed(tensor),
        }
    }

    fn to_tract(&self) -> TractTensor {
        match self {
            Self::F32(array) => array.to_owned().into_tensor(),
            Self::F64(array) => array.to_owned().into_tensor(),
            Self::Tensor(tensor) => tensor.to_tract(),
        }
    }
}

/// An input as the graph takes it: the caller's memory where type and order fit, or a converted copy.
pub(super) enum Given<'a> {
    F32(ArrayViewD<'a, f32>),
    F64(ArrayViewD<'a, f64>),
    Converted(TractTensor),
}

impl<'a> Given<'a> {
    /// `view` for the input `name` of elements `wanted`. Errors are those of [`fitted`].
    pub(super) fn new(view: TensorView<'a>, name: &str, wanted: DatumType) -> Result<Self> {
        Ok(match (view, wanted) {
            (TensorView::F32(array), DatumType::F32) if array.is_standard_layout() => Self::F32(array),
            (TensorView::F64(array), DatumType::F64) if array.is_standard_layout() => Self::F64(array),
            (view, _) => Self::Converted(fitted(view.to_tract(), view.dtype(), name, wanted)?),
        })
    }

    /// `view` for the input `name` that the file has in 16 bits and the graph in f32: floats are rounded to these 16 bits.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for values beyond the range of the type, and integers that it does not
    /// have.
    pub(super) fn rounded(view: &TensorView<'_>, name: &str, to: HalfType) -> Result<Self> {
        Ok(Self::Converted(view.to_tensor().rounded(name, to)?.into_tensor()))
    }

    /// The elements in row-major order.
    pub(super) fn as_slice<T: Datum + bytemuck::Pod>(&self) -> TractResult<&[T]> {
        let same = match self {
            Self::Converted(tensor) => return tensor.try_as_plain_ram()?.as_slice::<T>(),
            Self::F32(array) if T::datum_type() == DatumType::F32 => {
                array.as_slice().map(bytemuck::cast_slice)
            }
            Self::F64(array) if T::datum_type() == DatumType::F64 => {
                array.as_slice().map(bytemuck::cast_slice)
            }
            Self::F32(_) | Self::F64(_) => None,
        };
        same.ok_or_else(|| format_err!("an input of another type"))
    }

    /// A copy of the elements, which have this type.
    pub(super) fn to_values(&self, dtype: DType) -> Result<Values> {
        guarded("an input", || {
            Ok(match dtype {
                DType::F32 => Values::F32(self.as_slice::<f32>()?.to_vec()),
                DType::F64 => Values::F64(self.as_slice::<f64>()?.to_vec()),
            })
        })
    }

    /// A tensor of tract.
    pub(super) fn into_tensor(self) -> TractTensor {
        match self {
            Self::Converted(tensor) => tensor,
            Self::F32(array) => array.to_owned().into_tensor(),
            Self::F64(array) => array.to_owned().into_tensor(),
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{ArrayD, IxDyn, ShapeBuilder, StrideShape};

    use super::*;

    fn at(given: &Given<'_>) -> *const f32 {
        given.as_slice::<f32>().unwrap().as_ptr()
    }

    #[test]
    fn floats_are_read_where_they_lie_and_others_are_converted_once() {
        let values: Vec<f32> = (0..6u8).map(f32::from).collect();
        let view = |shape: StrideShape<IxDyn>| ArrayViewD::from_shape(shape, &values).unwrap();
        let given = Given::new(TensorView::F32(view(IxDyn(&[2, 3]).into())), "x", DatumType::F32).unwrap();
        assert_eq!(at(&given), values.as_ptr());
        assert!(given.as_slice::<f64>().is_err(), "elements of another type");
        assert_eq!(given.into_tensor().try_as_plain_ram().unwrap().as_slice::<f32>().unwrap(), values);
        // In another order, in another type.
        let turned = view(IxDyn(&[2, 3]).f().into());
        let given = Given::new(TensorView::F32(turned), "x", DatumType::F32).unwrap();
        assert_eq!(given.as_slice::<f32>().unwrap(), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
        let given = Given::new(TensorView::F32(view(IxDyn(&[6]).into())), "x", DatumType::F64).unwrap();
        assert_eq!(given.as_slice::<f64>().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let whole = Tensor::from(ArrayD::from_shape_vec(vec![6], vec![1u8; 6]).unwrap());
        let given = Given::new(TensorView::from(&whole), "x", DatumType::U8).unwrap();
        assert_eq!(given.as_slice::<u8>().unwrap(), [1; 6]);
    }

    #[test]
    fn tensors_of_floats_are_views_of_their_memory() {
        let tensor = Tensor::from(ArrayD::<f32>::ones(vec![2, 2]));
        let Tensor::F32(array) = &tensor else { panic!("it was made of f32") };
        let view = TensorView::from(&tensor);
        assert_eq!((view.shape(), view.dtype()), ([2, 2].as_slice(), "f32"));
        assert_eq!(at(&Given::new(view, "x", DatumType::F32).unwrap()), array.as_ptr());
    }
}
