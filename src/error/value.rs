//! The values that an error compares.

use std::fmt;

use super::message::{Message, Parameter};

/// A value found or expected: a number where it is one, so that programs can read it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// A count, an index or a size.
    Count(u64),
    /// Any other number.
    Real(f64),
    /// The sizes of the axes of an array.
    Shape(Box<[usize]>),
    /// Anything else, readable.
    Text(Message),
}

impl Value {
    /// The count, index or size, if it is one.
    #[must_use]
    pub fn as_usize(&self) -> Option<usize> {
        match self {
            Self::Count(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The number, if it is one.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Count(value) => Some(*value as f64),
            Self::Real(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn replace(&mut self, names: &dyn Fn(&Parameter) -> String) {
        if let Self::Text(text) = self {
            text.replace(names);
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(value) => value.fmt(f),
            Self::Real(value) => value.fmt(f),
            Self::Shape(sizes) => write!(f, "{sizes:?}"),
            Self::Text(text) => text.fmt(f),
        }
    }
}

impl From<i32> for Value {
    fn from(value: i32) -> Self {
        u64::try_from(value).map_or(Self::Real(value.into()), Self::Count)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Count(value.into())
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Count(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Count(value as u64)
    }
}

impl From<&usize> for Value {
    fn from(value: &usize) -> Self {
        (*value).into()
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl From<&[usize]> for Value {
    fn from(sizes: &[usize]) -> Self {
        Self::Shape(sizes.into())
    }
}

impl From<Message> for Value {
    fn from(text: Message) -> Self {
        Self::Text(text)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_numbers() {
        let shape = [1, 2].as_slice();
        for (value, text, number) in [
            (Value::from(3_usize), "3", Some(3.0)),
            (Value::from(-1), "-1", Some(-1.0)),
            (Value::from(0.5), "0.5", Some(0.5)),
            (Value::from(shape), "[1, 2]", None),
            (Value::from("four"), "four", None),
        ] {
            assert_eq!((value.to_string().as_str(), value.as_f64()), (text, number));
        }
        assert_eq!((Value::from(3).as_usize(), Value::from(-3).as_usize()), (Some(3), None));
    }
}
