//! Conversion of numbers to the 16-bit storage of a device.
//!
//! Invariant: a finite number stays finite or is rejected.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::error::{Error, Result};

/// Rounds `values` to 16 bits, into `room`, which then holds whole 32-bit words. `what` names the values in the error.
///
/// # Errors
/// [`Error::Mismatch`] when a finite number is too large for 16 bits.
pub(super) fn narrow(what: &str, values: &[f32], room: &mut Vec<f16>) -> Result<()> {
    room.clear();
    room.resize(values.len().next_multiple_of(2), f16::ZERO);
    let rounded = &mut room[..values.len()];
    rounded.convert_from_f32_slice(values);
    let beyond =
        values.iter().zip(rounded).position(|(value, rounded)| value.is_finite() && !rounded.is_finite());
    beyond.map_or(Ok(()), |at| {
        Err(Error::mismatch(
            format!("number {at} of {what}"),
            format!("{:e}", values[at]),
            format!("at most {} (f16 storage)", f16::MAX),
            "leave storage at f32, or scale the layer",
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_and_those_beyond_refused() {
        let mut room = vec![f16::ONE; 7];
        narrow("x", &[1.0, -0.1, 65_504.0, 1e-9, 3.0], &mut room).unwrap();
        assert_eq!(room.len(), 6);
        assert_eq!([room[0], room[2], room[3], room[5]], [f16::ONE, f16::MAX, f16::ZERO, f16::ZERO]);
        assert!((room[1].to_f32() + 0.1).abs() < 1e-4 && room[1].to_f32() != -0.1);
        // NaN and infinity stay what they are.
        narrow("x", &[f32::NAN, f32::NEG_INFINITY], &mut room).unwrap();
        assert!(room[0].is_nan() && room[1] == f16::NEG_INFINITY);
        // 65,519 rounds down; 65,520 is the first number that does not.
        assert!(narrow("x", &[65_519.0], &mut room).is_ok());
        let error = narrow("the slabs", &[0.0, -65_520.0], &mut room).unwrap_err().to_string();
        assert!(error.contains("number 1 of the slabs") && error.contains("-6.552e4"), "{error}");
        assert!(error.contains("65504"), "{error}");
    }
}
