//! The formats in which numbers travel between machines.
//!
//! Relevant if you want to halve the traffic to remote workers: slabs and sub-results of f32 layers may travel as 16-bit
//! numbers, while workers compute in f32. The conversions are in `cluster`, the error that they add in
//! [`Rounding`](crate::coding::Rounding).
//!
//! Invariant: a number of at least [`WireFormat::min_normal`] that fits into a format is off by at most half of its
//! [`WireFormat::epsilon`], relative to itself; a smaller number is off by at most that share of `min_normal`.

use std::fmt;
use std::str::FromStr;

use super::element::{DType, HALF_EPSILON};
use crate::error::{Error, Result};

/// Format of the elements of slabs and sub-results between a master and a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum WireFormat {
    /// The type that workers compute in: nothing is rounded. Written `f32`.
    #[default]
    #[serde(rename = "f32")]
    Full,
    /// IEEE 754 binary16: 11 significant bits, magnitudes from 6.1e-5 to 65504.
    #[serde(rename = "f16")]
    F16,
    /// The upper half of binary32: 8 significant bits, magnitudes as in f32.
    #[serde(rename = "bf16")]
    Bf16,
}

impl WireFormat {
    /// `f32`, `f16` or `bf16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// The format for elements of type `dtype`: only those of f32 travel in 16 bits.
    #[must_use]
    pub fn of(self, dtype: DType) -> Self {
        match dtype {
            DType::F32 => self,
            DType::F64 => Self::Full,
        }
    }

    /// Whether numbers are rounded to 16 bits.
    #[must_use]
    pub fn is_narrow(self) -> bool {
        self != Self::Full
    }

    /// Distance from 1 to the next larger number; 0 where nothing is rounded.
    #[must_use]
    pub fn epsilon(self) -> f64 {
        match self {
            Self::Full => 0.0,
            Self::F16 => HALF_EPSILON,
            Self::Bf16 => 1.0 / 128.0,
        }
    }

    /// The smallest magnitude that keeps all digits of the format; 0 where nothing is rounded.
    #[must_use]
    pub fn min_normal(self) -> f64 {
        match self {
            Self::Full => 0.0,
            Self::F16 => 1.0 / 16384.0,
            Self::Bf16 => f64::from(f32::MIN_POSITIVE),
        }
    }

    /// The format of the two that rounds more.
    #[must_use]
    pub fn coarser(self, other: Self) -> Self {
        if other.epsilon() > self.epsilon() { other } else { self }
    }
}

impl fmt::Display for WireFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WireFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = [Self::Full, Self::F16, Self::Bf16].into_iter().find(|format| format.name() == text);
        known.ok_or_else(|| Error::invalid("format on the wire", format!("{text:?}"), "use f32, f16 or bf16"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_the_coarser_format_wins() {
        for format in [WireFormat::Full, WireFormat::F16, WireFormat::Bf16] {
            assert_eq!(format.name().parse::<WireFormat>().ok(), Some(format));
            assert_eq!((format.of(DType::F32), format.of(DType::F64)), (format, WireFormat::Full));
            assert_eq!(format.coarser(WireFormat::Bf16), WireFormat::Bf16);
            assert_eq!(WireFormat::Full.coarser(format), format);
        }
        let error = "f8".parse::<WireFormat>().expect_err("no format").to_string();
        assert!(error.contains("\"f8\"") && error.contains("bf16"), "{error}");
    }
}
