//! The two element types, and buffers whose element type is known only at run time.

use std::fmt;

use super::exp;
use crate::error::{Error, Result, Value};

/// Element type of a computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
}

impl DType {
    /// Size of one element in bytes.
    #[must_use]
    pub fn size_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// `f32` or `f64`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<DType> for Value {
    fn from(dtype: DType) -> Self {
        dtype.name().into()
    }
}

mod sealed {
    pub trait Sealed: super::super::lanes::Lanes + super::super::gemm::Gemm {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// `f32` or `f64`; sealed, because workers and shaders exist only for these two.
pub trait Element:
    sealed::Sealed
    + Copy
    + Default
    + PartialOrd
    + Send
    + Sync
    + 'static
    + fmt::Debug
    + fmt::Display
    + bytemuck::Pod
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::AddAssign
{
    /// The run-time name of this type.
    const DTYPE: DType;
    /// Machine epsilon: the distance from 1 to the next larger value.
    const EPSILON: f64;
    /// The smallest positive normal number.
    const MIN_NORMAL: f64;
    /// One.
    const ONE: Self;
    /// The smallest finite value.
    const LOWEST: Self;

    /// Rounds to this type.
    fn from_f64(value: f64) -> Self;
    /// Widens (exact).
    fn to_f64(self) -> f64;
    /// Whether the value is neither NaN nor infinite.
    fn finite(self) -> bool;
    /// The magnitude.
    #[must_use]
    fn abs(self) -> Self;
    /// The square root.
    #[must_use]
    fn sqrt(self) -> Self;
    /// The power with an exponent.
    #[must_use]
    fn powf(self, exponent: Self) -> Self;
    /// e to the power of this.
    #[must_use]
    fn exp(self) -> Self;
    /// [`Element::exp`] minus 1, exact also where it is small. For values of at least 0.
    #[must_use]
    fn exp_m1(self) -> Self;
    /// The error function.
    #[must_use]
    fn erf(self) -> Self;
    /// Wraps a buffer of this type.
    fn wrap(values: Vec<Self>) -> Values;
    /// The elements of `values`, if it is of this type.
    fn unwrap(values: &Values) -> Option<&[Self]>;
    /// The buffer of `values`, if it is of this type.
    fn take(values: Values) -> Option<Vec<Self>>;
}

/// Machine epsilon of 16-bit floats (f16).
pub(crate) const HALF_EPSILON: f64 = 1.0 / 1024.0;

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    const EPSILON: f64 = f32::EPSILON as f64;
    const MIN_NORMAL: f64 = f32::MIN_POSITIVE as f64;
    const ONE: Self = 1.0;
    const LOWEST: Self = f32::MIN;

    #[expect(clippy::cast_possible_truncation, reason = "rounding is the purpose")]
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn finite(self) -> bool {
        self.is_finite()
    }
    fn abs(self) -> Self {
        self.abs()
    }
    #[inline]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    fn powf(self, exponent: Self) -> Self {
        self.powf(exponent)
    }
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "loops over it are compiled for each instruction set")]
    fn exp(self) -> Self {
        exp::exp(self)
    }
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "loops over it are compiled for each instruction set")]
    fn exp_m1(self) -> Self {
        exp::exp_m1(self)
    }
    fn erf(self) -> Self {
        libm::erff(self)
    }
    fn wrap(values: Vec<Self>) -> Values {
        Values::F32(values)
    }
    fn unwrap(values: &Values) -> Option<&[Self]> {
        match values {
            Values::F32(v) => Some(v),
            Values::F64(_) => None,
        }
    }
    fn take(values: Values) -> Option<Vec<Self>> {
        match values {
            Values::F32(v) => Some(v),
            Values::F64(_) => None,
        }
    }
}

impl Element for f64 {
    const DTYPE: DType = DType::F64;
    const EPSILON: f64 = f64::EPSILON;
    const MIN_NORMAL: f64 = f64::MIN_POSITIVE;
    const ONE: Self = 1.0;
    const LOWEST: Self = f64::MIN;

    fn from_f64(value: f64) -> Self {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn finite(self) -> bool {
        self.is_finite()
    }
    fn abs(self) -> Self {
        self.abs()
    }
    #[inline]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    fn powf(self, exponent: Self) -> Self {
        self.powf(exponent)
    }
    fn exp(self) -> Self {
        self.exp()
    }
    fn exp_m1(self) -> Self {
        self.exp_m1()
    }
    fn erf(self) -> Self {
        libm::erf(self)
    }
    fn wrap(values: Vec<Self>) -> Values {
        Values::F64(values)
    }
    fn unwrap(values: &Values) -> Option<&[Self]> {
        match values {
            Values::F64(v) => Some(v),
            Values::F32(_) => None,
        }
    }
    fn take(values: Values) -> Option<Vec<Self>> {
        match values {
            Values::F64(v) => Some(v),
            Values::F32(_) => None,
        }
    }
}

/// A flat buffer of either element type, sent between scheduler and workers.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// 32-bit elements.
    F32(Vec<f32>),
    /// 64-bit elements.
    F64(Vec<f64>),
}

impl Values {
    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F64(_) => DType::F64,
        }
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
        }
    }

    /// Number of elements that fit into its memory.
    pub(super) fn capacity(&self) -> usize {
        match self {
            Self::F32(v) => v.capacity(),
            Self::F64(v) => v.capacity(),
        }
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.len() * self.dtype().size_bytes()
    }

    /// The elements as native-endian bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::F32(v) => bytemuck::cast_slice(v),
            Self::F64(v) => bytemuck::cast_slice(v),
        }
    }

    /// `elems` zeros.
    #[cfg(any(feature = "cluster", feature = "onnx"))]
    pub(crate) fn zeros(dtype: DType, elems: usize) -> Self {
        match dtype {
            DType::F32 => Self::F32(vec![0.0; elems]),
            DType::F64 => Self::F64(vec![0.0; elems]),
        }
    }

    /// The elements as native-endian bytes, for writing.
    #[cfg(feature = "cluster")]
    pub(crate) fn as_bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::F32(v) => bytemuck::cast_slice_mut(v),
            Self::F64(v) => bytemuck::cast_slice_mut(v),
        }
    }

    /// The elements as a slice of `T`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the buffer holds the other type.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        T::unwrap(self).ok_or_else(|| {
            Error::mismatch("element type", self.dtype(), T::DTYPE, "convert the data before handing it over")
        })
    }

    /// Position and value of the first NaN or infinity.
    #[must_use]
    pub fn first_non_finite(&self) -> Option<(usize, f64)> {
        match self {
            Self::F32(v) => first_non_finite(v),
            Self::F64(v) => first_non_finite(v),
        }
    }
}

/// A buffer of `len` elements of arbitrary value, reusing `room` if its capacity suffices.
pub(crate) fn sized<T: Element>(mut room: Vec<T>, len: usize) -> Vec<T> {
    if room.capacity() < len {
        // The system provides zeroed memory, which is not written twice.
        return vec![T::default(); len];
    }
    room.resize(len, T::default());
    room
}

/// [`Error::Mismatch`] with both numbers and a help for a buffer of the wrong length.
pub(crate) fn check_elems(what: &str, got: usize, expected: usize) -> Result<()> {
    if got == expected {
        Ok(())
    } else {
        Err(Error::mismatch(what, got, expected, "the buffer must match the shape it is for"))
    }
}

/// Checks that all `indices` are below the number of `results`, the sub-results of a subtask.
pub(crate) fn check_indices(indices: &[usize], results: usize) -> Result<()> {
    match indices.iter().find(|index| **index >= results) {
        None => Ok(()),
        Some(index) => Err(Error::invalid(
            "index of a sub-result",
            index,
            format!("there are {results}, counted from 0: name one of those"),
        )),
    }
}

/// Position and value of the first NaN or infinity of a slice.
///
/// Scans blocks without branches first, so a clean buffer costs one pass at memory speed.
#[must_use]
pub fn first_non_finite<T: Element>(values: &[T]) -> Option<(usize, f64)> {
    let block = pulp::Arch::new().dispatch(UncleanBlock(values))?;
    let rest = &values[block * BLOCK..];
    let at = rest.iter().position(|v| !v.finite())?;
    Some((block * BLOCK + at, rest[at].to_f64()))
}

/// Elements that are checked without a branch.
const BLOCK: usize = 1024;

/// Finds the first block with a value that is not finite.
struct UncleanBlock<'a, T>(&'a [T]);

impl<T: Element> pulp::WithSimd for UncleanBlock<'_, T> {
    type Output = Option<usize>;

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Option<usize> {
        for (block, chunk) in self.0.chunks(BLOCK).enumerate() {
            let mut clean = true;
            for value in chunk {
                clean &= value.finite();
            }
            if !clean {
                return Some(block);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_non_finite_value_across_block_borders() {
        for at in [0, 1, 1023, 1024, 2500] {
            for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let mut v = vec![1.0_f64; 3000];
                v[at] = bad;
                let (index, value) = first_non_finite(&v).expect("planted");
                assert_eq!(index, at);
                assert!(!value.is_finite());
            }
        }
        assert_eq!(first_non_finite(&vec![f32::MAX; 3000]), None);
        assert_eq!(first_non_finite::<f32>(&[]), None);
    }

    #[test]
    fn a_buffer_opens_only_as_its_own_type() {
        let v = Values::F32(vec![1.0, 2.0]);
        assert_eq!(v.as_slice::<f32>().unwrap(), &[1.0, 2.0]);
        assert!(v.as_slice::<f64>().unwrap_err().to_string().contains("f32 where f64"));
        assert_eq!((v.len(), v.size_bytes()), (2, 8));
    }
}
