//! Arrays between numpy and the library.
//!
//! Inputs of models are copied once, since the library owns them; inputs and filters of single layers are borrowed where they
//! are contiguous. Outputs are moved: numpy then owns the library's memory.
//!
//! Invariant: an array of an unsupported element type is refused by name.

use fcdcc::model::{Tensor, bf16, f16};
use fcdcc::{Element, Error};
use ndarray::ArrayD;
use numpy::{
    IntoPyArray, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use super::errors;

/// A tensor with the values of a numpy array. `bf16`: the array holds the bits of bfloat16 numbers as `uint16`.
pub(crate) fn tensor(array: &Bound<'_, PyAny>, holds_bf16: bool) -> PyResult<Tensor> {
    if holds_bf16 {
        let bits = array.cast::<PyArrayDyn<u16>>()?.try_readonly()?;
        return Ok(Tensor::BF16(bits.as_array().mapv(bf16::from_bits)));
    }
    macro_rules! first {
        ($($element:ty),*) => {
            $(if let Ok(array) = array.cast::<PyArrayDyn<$element>>() {
                return Ok(array.try_readonly()?.as_array().to_owned().into());
            })*
        };
    }
    first!(f32, f64, i64, u8, f16, i32, bool, i8, i16, u16, u32, u64);
    Err(unsupported(array, "f16, bf16, f32, f64, i8 to i64, u8 to u64 or bool"))
}

/// A numpy array that owns the values of a tensor, and whether it holds the bits of bfloat16 numbers.
pub(crate) fn array(py: Python<'_>, tensor: Tensor) -> PyResult<(Py<PyAny>, bool)> {
    macro_rules! moved {
        ($($variant:ident),*) => {
            match tensor {
                Tensor::BF16(array) => {
                    let bits: ArrayD<u16> = array.mapv(bf16::to_bits);
                    Ok((bits.into_pyarray(py).into_any().unbind(), true))
                }
                $(Tensor::$variant(array) => Ok((array.into_pyarray(py).into_any().unbind(), false)),)*
                other => Err(errors::raise(
                    py,
                    Error::invalid("element type of an output", other.dtype(), "numpy has no such type"),
                )),
            }
        };
    }
    moved!(F16, F32, F64, I16, I32, I64, I8, U8, U16, U32, U64, Bool)
}

/// Borrows a numpy array of `T`.
pub(crate) fn borrowed<'py, T: Element + numpy::Element>(
    array: &Bound<'py, PyAny>,
) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
    match array.cast::<PyArrayDyn<T>>() {
        Ok(array) => Ok(array.try_readonly()?),
        Err(_) => Err(unsupported(array, T::DTYPE.name())),
    }
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
