//! Arrays between numpy and the library.
//!
//! Arrays of the right type, aligned and in row-major order, are read where they lie ([`Borrowed`]). For the others, Python's
//! part of the package makes one that is (`fcdcc/_arrays.py`). Outputs are moved: numpy then owns the library's memory.
//!
//! Invariant: the library sees only arrays that are aligned and in row-major order; an array of an unsupported element type is
//! refused by name.

use fcdcc::model::{Tensor, TensorView, bf16, f16};
use fcdcc::{Element, Error};
use ndarray::{ArrayD, ArrayViewD};
use numpy::{
    IntoPyArray, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyString;

use super::errors;

/// The module of this package that knows the arrays of other libraries, and its functions.
const PYTHON: &str = "fcdcc._arrays";
static CONTIGUOUS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static NATIVE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static PLAIN: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static WITH_BFLOAT16: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// A numpy array that is read where it lies.
pub(crate) struct Borrowed<'py, T: numpy::Element>(PyReadonlyArrayDyn<'py, T>);

impl<'py, T: numpy::Element> Borrowed<'py, T> {
    /// The array, or a copy of it that is aligned and in row-major order.
    pub(crate) fn new(array: &Bound<'py, PyArrayDyn<T>>) -> PyResult<Self> {
        if array.is_c_contiguous() && array.is_aligned() {
            return Ok(Self(array.try_readonly()?));
        }
        let plain = PLAIN.import(array.py(), PYTHON, "plain")?.call1((array,))?;
        Ok(Self(plain.cast_into::<PyArrayDyn<T>>()?.try_readonly()?))
    }

    pub(crate) fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    /// The elements in row-major order.
    pub(crate) fn as_slice(&self) -> PyResult<&[T]> {
        Ok(self.0.as_slice()?)
    }

    pub(crate) fn view(&self) -> PyResult<ArrayViewD<'_, T>> {
        let view = ArrayViewD::from_shape(self.shape(), self.as_slice()?);
        view.map_err(|error| {
            PyRuntimeError::new_err(format!("an array of a shape that is not its own: {error}"))
        })
    }
}

/// Borrows a numpy array of `T`.
pub(crate) fn borrowed<'py, T: Element + numpy::Element>(
    array: &Bound<'py, PyAny>,
) -> PyResult<Borrowed<'py, T>> {
    match array.cast::<PyArrayDyn<T>>() {
        Ok(array) => Borrowed::new(array),
        Err(_) => Err(unsupported(array, T::DTYPE.name())),
    }
}

/// Borrows the input of a layer of `T`: an array of numpy or of another library, of any type of number.
pub(crate) fn of_layer<'py, T: Element + numpy::Element>(
    value: &Bound<'py, PyAny>,
) -> PyResult<Borrowed<'py, T>> {
    if let Ok(array) = value.cast::<PyArrayDyn<T>>() {
        return Borrowed::new(array);
    }
    let (py, dtype) = (value.py(), numpy::dtype::<T>(value.py()));
    borrowed(&CONTIGUOUS.import(py, PYTHON, "contiguous")?.call1((value, dtype, "input"))?)
}

/// One input of a model.
pub(crate) enum Given<'py> {
    F32(Borrowed<'py, f32>),
    F64(Borrowed<'py, f64>),
    Copied(Tensor),
}

impl<'py> Given<'py> {
    /// The input called `name` from an array of numpy or of another library.
    pub(crate) fn new(value: &Bound<'py, PyAny>, name: &Bound<'py, PyString>) -> PyResult<Self> {
        if let Some(given) = Self::of_numpy(value)? {
            return Ok(given);
        }
        let converted =
            NATIVE.import(value.py(), PYTHON, "native")?.call1((value, format!("input {name}")))?;
        let (array, holds_bf16): (Bound<'py, PyAny>, bool) = converted.extract()?;
        if holds_bf16 {
            let bits = Borrowed::new(array.cast::<PyArrayDyn<u16>>()?)?;
            return Ok(Self::Copied(Tensor::BF16(bits.view()?.mapv(bf16::from_bits))));
        }
        let help = "f16, bf16, f32, f64, i8 to i64, u8 to u64 or bool";
        Self::of_numpy(&array)?.ok_or_else(|| unsupported(&array, help))
    }

    /// A numpy array of a type that the library knows.
    fn of_numpy(value: &Bound<'py, PyAny>) -> PyResult<Option<Self>> {
        if let Ok(array) = value.cast::<PyArrayDyn<f32>>() {
            return Ok(Some(Self::F32(Borrowed::new(array)?)));
        }
        if let Ok(array) = value.cast::<PyArrayDyn<f64>>() {
            return Ok(Some(Self::F64(Borrowed::new(array)?)));
        }
        Ok(copied(value)?.map(Self::Copied))
    }

    /// The values, for a library that owns them.
    pub(crate) fn into_tensor(self) -> PyResult<Tensor> {
        Ok(match self {
            Self::F32(array) => array.view()?.to_owned().into(),
            Self::F64(array) => array.view()?.to_owned().into(),
            Self::Copied(tensor) => tensor,
        })
    }

    pub(crate) fn view(&self) -> PyResult<TensorView<'_>> {
        Ok(match self {
            Self::F32(array) => TensorView::F32(array.view()?),
            Self::F64(array) => TensorView::F64(array.view()?),
            Self::Copied(tensor) => tensor.into(),
        })
    }
}

/// The values of a numpy array that are no floats of 32 or 64 bits; `None` for an element type that the library does not know.
fn copied(array: &Bound<'_, PyAny>) -> PyResult<Option<Tensor>> {
    macro_rules! first {
        ($($element:ty),*) => {
            $(if let Ok(array) = array.cast::<PyArrayDyn<$element>>() {
                return Ok(Some(Borrowed::new(array)?.view()?.to_owned().into()));
            })*
        };
    }
    first!(i64, u8, f16, i32, bool, i8, i16, u16, u32, u64);
    Ok(None)
}

/// A numpy array that owns the values of a tensor.
pub(crate) fn array(py: Python<'_>, tensor: Tensor) -> PyResult<Bound<'_, PyAny>> {
    macro_rules! moved {
        ($($variant:ident),*) => {
            match tensor {
                Tensor::BF16(array) => {
                    let bits: ArrayD<u16> = array.mapv(bf16::to_bits);
                    WITH_BFLOAT16.import(py, PYTHON, "with_bfloat16")?.call1((bits.into_pyarray(py),))
                }
                $(Tensor::$variant(array) => Ok(array.into_pyarray(py).into_any()),)*
                other => Err(errors::raise(
                    py,
                    Error::invalid("element type of an output", other.dtype(), "numpy has no such type"),
                )),
            }
        };
    }
    moved!(F16, F32, F64, I16, I32, I64, I8, U8, U16, U32, U64, Bool)
}

fn unsupported(array: &Bound<'_, PyAny>, expected: &str) -> PyErr {
    let py = array.py();
    let got = match array.cast::<PyUntypedArray>() {
        Ok(array) => array.dtype().to_string(),
        Err(_) => array.get_type().to_string(),
    };
    let help = "convert it with numpy's astype";
    errors::raise(py, Error::mismatch("element type of an array", got, expected, help))
}
