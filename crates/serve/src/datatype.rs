//! Element types of the protocol, and arrays as bytes and as JSON.
//!
//! Relevant if you want to know how the data of a tensor travel. Bytes are little-endian and row-major; JSON data are
//! numbers or booleans in row-major order, flat or nested.
//!
//! Invariant: a value that does not exist in its element type is refused, never changed; only floats are rounded.

use std::fmt;

use fcdcc::model::Tensor;
use half::{bf16, f16};
use ndarray::{ArrayD, IxDyn};
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::error::ApiError;

/// An element type of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
}

/// The name of a type in the protocol, its name in the library, and the bytes of an element.
const TYPES: [(Datatype, &str, &str, usize); 13] = [
    (Datatype::Bool, "BOOL", "bool", 1),
    (Datatype::Uint8, "UINT8", "u8", 1),
    (Datatype::Uint16, "UINT16", "u16", 2),
    (Datatype::Uint32, "UINT32", "u32", 4),
    (Datatype::Uint64, "UINT64", "u64", 8),
    (Datatype::Int8, "INT8", "i8", 1),
    (Datatype::Int16, "INT16", "i16", 2),
    (Datatype::Int32, "INT32", "i32", 4),
    (Datatype::Int64, "INT64", "i64", 8),
    (Datatype::Fp16, "FP16", "f16", 2),
    (Datatype::Bf16, "BF16", "bf16", 2),
    (Datatype::Fp32, "FP32", "f32", 4),
    (Datatype::Fp64, "FP64", "f64", 8),
];

impl Datatype {
    fn row(self) -> (&'static str, usize) {
        TYPES.iter().find(|row| row.0 == self).map_or(("", 1), |row| (row.1, row.3))
    }

    /// The name in the protocol, such as `FP32`.
    pub(crate) fn name(self) -> &'static str {
        self.row().0
    }

    /// Bytes of an element.
    pub(crate) fn size(self) -> usize {
        self.row().1
    }

    /// The type with this name of the protocol.
    pub(crate) fn named(name: &str) -> Option<Self> {
        TYPES.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// The type with this name of the library, such as `f32`.
    pub(crate) fn of_library(name: &str) -> Option<Self> {
        TYPES.iter().find(|row| row.2 == name).map(|row| row.0)
    }
}

/// Number of elements of a shape of a request, each size at least 1; an error names the tensor.
pub(crate) fn elements(name: &str, shape: &[usize]) -> Result<usize, ApiError> {
    if shape.contains(&0) {
        return Err(ApiError::bad(format!(
            "input {name} has shape {shape:?}: every size must be at least 1"
        )));
    }
    let product = shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
    product
        .filter(|count| count.checked_mul(8).is_some())
        .ok_or_else(|| ApiError::bad(format!("input {name} has shape {shape:?}, which no machine can hold")))
}

fn array<T>(name: &str, shape: &[usize], values: Vec<T>) -> Result<ArrayD<T>, ApiError> {
    let count = values.len();
    ArrayD::from_shape_vec(IxDyn(shape), values).map_err(|_| {
        ApiError::bad(format!(
            "input {name} has {count} elements where its shape {shape:?} needs another number"
        ))
    })
}

/// The array that `bytes` hold, in the type that the library has for it.
pub(crate) fn from_bytes(
    name: &str,
    datatype: Datatype,
    shape: &[usize],
    bytes: &[u8],
) -> Result<Tensor, ApiError> {
    let needed = elements(name, shape)?.saturating_mul(datatype.size());
    if bytes.len() != needed {
        let (got, of) = (bytes.len(), datatype.name());
        return Err(ApiError::bad(format!(
            "input {name} has {got} bytes where {needed} were expected for {of} {shape:?}: send exactly its elements"
        )));
    }
    macro_rules! numbers {
        ($element:ty, $size:literal, $convert:expr) => {{
            let (whole, _) = bytes.as_chunks::<$size>();
            array(name, shape, whole.iter().map(|raw| $convert(<$element>::from_le_bytes(*raw))).collect())?
                .into()
        }};
    }
    Ok(match datatype {
        Datatype::Bool => {
            if let Some(other) = bytes.iter().find(|byte| **byte > 1) {
                return Err(ApiError::bad(format!("input {name} has a BOOL of {other}: use 0 or 1")));
            }
            array(name, shape, bytes.iter().map(|byte| *byte == 1).collect())?.into()
        }
        Datatype::Uint8 => array(name, shape, bytes.to_vec())?.into(),
        Datatype::Int8 => numbers!(i8, 1, |v: i8| v),
        Datatype::Uint16 => numbers!(u16, 2, i64::from),
        Datatype::Uint32 => numbers!(u32, 4, i64::from),
        Datatype::Int16 => numbers!(i16, 2, i64::from),
        Datatype::Int32 => numbers!(i32, 4, |v: i32| v),
        Datatype::Int64 => numbers!(i64, 8, |v: i64| v),
        Datatype::Fp16 => numbers!(f16, 2, f16::to_f32),
        Datatype::Bf16 => numbers!(bf16, 2, bf16::to_f32),
        Datatype::Fp32 => numbers!(f32, 4, |v: f32| v),
        Datatype::Fp64 => numbers!(f64, 8, |v: f64| v),
        Datatype::Uint64 => {
            let (whole, _) = bytes.as_chunks::<8>();
            let values = whole.iter().map(|raw| i64::try_from(u64::from_le_bytes(*raw)));
            let values = values.collect::<Result<Vec<i64>, _>>();
            let values = values.map_err(|_| {
                ApiError::bad(format!("input {name} has a UINT64 above {}, the largest supported", i64::MAX))
            })?;
            array(name, shape, values)?.into()
        }
    })
}

const MIXED: &str = "elements of different kinds (numbers, booleans, strings) in one tensor";

/// The elements of JSON data, flattened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Numbers {
    Ints(Vec<i64>),
    /// Floats, and integers among them.
    Floats(Vec<f64>),
    Bools(Vec<bool>),
    /// The elements of a BYTES tensor.
    Texts(Vec<String>),
}

impl Numbers {
    fn len(&self) -> usize {
        match self {
            Self::Ints(values) => values.len(),
            Self::Floats(values) => values.len(),
            Self::Bools(values) => values.len(),
            Self::Texts(values) => values.len(),
        }
    }

    fn add_int(&mut self, value: i64) -> Result<(), &'static str> {
        match self {
            Self::Ints(values) => values.push(value),
            Self::Floats(values) => values.push(value as f64),
            Self::Bools(_) | Self::Texts(_) => return Err(MIXED),
        }
        Ok(())
    }

    fn add_float(&mut self, value: f64) -> Result<(), &'static str> {
        if let Self::Ints(values) = self {
            *self = Self::Floats(values.iter().map(|value| *value as f64).collect());
        }
        let Self::Floats(values) = self else { return Err(MIXED) };
        values.push(value);
        Ok(())
    }

    fn add_bool(&mut self, value: bool) -> Result<(), &'static str> {
        if matches!(self, Self::Ints(values) if values.is_empty()) {
            *self = Self::Bools(Vec::new());
        }
        let Self::Bools(values) = self else { return Err(MIXED) };
        values.push(value);
        Ok(())
    }

    fn add_text(&mut self, value: &str) -> Result<(), &'static str> {
        if matches!(self, Self::Ints(values) if values.is_empty()) {
            *self = Self::Texts(Vec::new());
        }
        let Self::Texts(values) = self else { return Err(MIXED) };
        values.push(value.to_owned());
        Ok(())
    }

    /// The array of this type and shape.
    pub(crate) fn tensor(self, name: &str, datatype: Datatype, shape: &[usize]) -> Result<Tensor, ApiError> {
        let (needed, got) = (elements(name, shape)?, self.len());
        if got != needed {
            return Err(ApiError::bad(format!(
                "input {name} has {got} elements where its shape {shape:?} needs {needed}: send exactly its elements"
            )));
        }
        match datatype {
            Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 => {
                #[expect(clippy::cast_possible_truncation, reason = "floats are rounded")]
                let values = self.floats(name, datatype)?.into_iter().map(|value| value as f32).collect();
                Ok(array::<f32>(name, shape, values)?.into())
            }
            Datatype::Fp64 => Ok(array(name, shape, self.floats(name, datatype)?)?.into()),
            Datatype::Bool => Ok(array(name, shape, self.bools(name)?)?.into()),
            Datatype::Uint8 => self.ints::<u8>(name, datatype, shape),
            Datatype::Int8 => self.ints::<i8>(name, datatype, shape),
            Datatype::Int32 => self.ints::<i32>(name, datatype, shape),
            Datatype::Int64 => self.ints::<i64>(name, datatype, shape),
            Datatype::Int16 => self.widened(name, datatype, shape, i64::from(i16::MIN), i64::from(i16::MAX)),
            Datatype::Uint16 => self.widened(name, datatype, shape, 0, i64::from(u16::MAX)),
            Datatype::Uint32 => self.widened(name, datatype, shape, 0, i64::from(u32::MAX)),
            Datatype::Uint64 => self.widened(name, datatype, shape, 0, i64::MAX),
        }
    }

    fn floats(self, name: &str, datatype: Datatype) -> Result<Vec<f64>, ApiError> {
        match self {
            Self::Floats(values) => Ok(values),
            Self::Ints(values) => Ok(values.into_iter().map(|value| value as f64).collect()),
            Self::Bools(_) => Err(unfit(name, "booleans", datatype)),
            Self::Texts(_) => Err(unfit(name, "strings", datatype)),
        }
    }

    fn bools(self, name: &str) -> Result<Vec<bool>, ApiError> {
        match self {
            Self::Bools(values) => Ok(values),
            Self::Ints(values) if values.iter().all(|value| matches!(value, 0 | 1)) => {
                Ok(values.into_iter().map(|value| value == 1).collect())
            }
            Self::Texts(_) => Err(unfit(name, "strings", Datatype::Bool)),
            _ => Err(unfit(name, "numbers", Datatype::Bool)),
        }
    }

    fn integers(self, name: &str, datatype: Datatype) -> Result<Vec<i64>, ApiError> {
        match self {
            Self::Ints(values) => Ok(values),
            Self::Floats(_) => Err(unfit(name, "fractions", datatype)),
            Self::Bools(_) => Err(unfit(name, "booleans", datatype)),
            Self::Texts(_) => Err(unfit(name, "strings", datatype)),
        }
    }

    fn ints<T: TryFrom<i64>>(
        self,
        name: &str,
        datatype: Datatype,
        shape: &[usize],
    ) -> Result<Tensor, ApiError>
    where
        Tensor: From<ArrayD<T>>,
    {
        let values = self.integers(name, datatype)?;
        let convert = |value: i64| T::try_from(value).map_err(|_| outside(name, value, datatype));
        let values = values.into_iter().map(convert).collect::<Result<Vec<T>, _>>()?;
        Ok(array(name, shape, values)?.into())
    }

    /// Integers of a type that the library carries as 64 bits.
    fn widened(
        self,
        name: &str,
        datatype: Datatype,
        shape: &[usize],
        least: i64,
        most: i64,
    ) -> Result<Tensor, ApiError> {
        let values = self.integers(name, datatype)?;
        if let Some(value) = values.iter().find(|value| !(least..=most).contains(*value)) {
            return Err(outside(name, *value, datatype));
        }
        Ok(array(name, shape, values)?.into())
    }
}

fn unfit(name: &str, what: &str, datatype: Datatype) -> ApiError {
    ApiError::bad(format!("input {name} has {what} where {} was announced", datatype.name()))
}

fn outside(name: &str, value: i64, datatype: Datatype) -> ApiError {
    ApiError::bad(format!("input {name} has {value}, which is outside {}", datatype.name()))
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut numbers = Self::Ints(Vec::new());
        Nested(&mut numbers).deserialize(deserializer)?;
        Ok(numbers)
    }
}

/// Appends a number, or an array of any depth that the parser allows, to flat numbers.
struct Nested<'a>(&'a mut Numbers);

impl<'de> DeserializeSeed<'de> for Nested<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Nested<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("numbers, booleans or strings, flat or nested")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.0.add_bool(value).map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.0.add_int(value).map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        match i64::try_from(value) {
            Ok(value) => self.0.add_int(value).map_err(E::custom),
            Err(_) => self.0.add_float(value as f64).map_err(E::custom),
        }
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.0.add_float(value).map_err(E::custom)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        self.0.add_text(value).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Nested(self.0))?.is_some() {}
        Ok(())
    }
}

/// The elements of an array as flat JSON; a float that is not finite becomes `null`.
pub(crate) struct Flat<'a>(pub(crate) &'a Tensor);

impl Serialize for Flat<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Tensor::F16(array) => serializer.collect_seq(array.iter().map(|value| value.to_f32())),
            Tensor::BF16(array) => serializer.collect_seq(array.iter().map(|value| value.to_f32())),
            Tensor::F32(array) => serializer.collect_seq(array.iter()),
            Tensor::F64(array) => serializer.collect_seq(array.iter()),
            Tensor::I16(array) => serializer.collect_seq(array.iter()),
            Tensor::I32(array) => serializer.collect_seq(array.iter()),
            Tensor::I64(array) => serializer.collect_seq(array.iter()),
            Tensor::I8(array) => serializer.collect_seq(array.iter()),
            Tensor::U8(array) => serializer.collect_seq(array.iter()),
            Tensor::U16(array) => serializer.collect_seq(array.iter()),
            Tensor::U32(array) => serializer.collect_seq(array.iter()),
            Tensor::U64(array) => serializer.collect_seq(array.iter()),
            Tensor::Bool(array) => serializer.collect_seq(array.iter()),
            _ => Err(serde::ser::Error::custom("an element type without a JSON form")),
        }
    }
}

/// Appends the elements of an array as bytes.
pub(crate) fn write_bytes(tensor: &Tensor, to: &mut Vec<u8>) {
    if let Tensor::Bool(array) = tensor {
        return to.extend(array.iter().map(|value| u8::from(*value)));
    }
    macro_rules! raw {
        ($array:expr) => {
            $array.iter().for_each(|value| to.extend_from_slice(&value.to_le_bytes()))
        };
    }
    match tensor {
        Tensor::F16(array) => raw!(array),
        Tensor::BF16(array) => raw!(array),
        Tensor::F32(array) => raw!(array),
        Tensor::F64(array) => raw!(array),
        Tensor::I16(array) => raw!(array),
        Tensor::I32(array) => raw!(array),
        Tensor::I64(array) => raw!(array),
        Tensor::I8(array) => raw!(array),
        Tensor::U8(array) => raw!(array),
        Tensor::U16(array) => raw!(array),
        Tensor::U32(array) => raw!(array),
        Tensor::U64(array) => raw!(array),
        _ => {}
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#[path = "datatype_tests.rs"]
mod tests;
