//! Limits of parts of models in messages.
//!
//! Invariant: the sizes of a signature that [`check_signature`] accepts can be added without overflow.

use super::MAX_OBJECT_BYTES;
use crate::worker::{PartArray, PartSignature};

/// Maximum number of inputs, and of outputs, of a part of a model.
pub const MAX_PART_ARRAYS: usize = 256;

/// Maximum number of axes of an input or output of a part.
pub const MAX_PART_AXES: usize = 16;

/// Checks that the inputs and outputs of a part can travel.
///
/// # Errors
/// What is beyond the limits, with the numbers.
pub fn check_signature(signature: &PartSignature) -> Result<(), String> {
    let PartSignature { inputs, outputs } = signature;
    if outputs.is_empty() || inputs.len().max(outputs.len()) > MAX_PART_ARRAYS {
        return Err(format!(
            "a part with {} inputs and {} outputs: use at most {MAX_PART_ARRAYS} of each, and at least one output",
            inputs.len(),
            outputs.len()
        ));
    }
    inputs.iter().chain(outputs).try_for_each(check_array)
}

fn check_array(array: &PartArray) -> Result<(), String> {
    let PartArray { dtype, shape } = array;
    if shape.len() > MAX_PART_AXES {
        return Err(format!("an array of a part with {} axes: use at most {MAX_PART_AXES}", shape.len()));
    }
    match array.size_bytes() {
        Some(bytes) if bytes > 0 && bytes as u64 <= MAX_OBJECT_BYTES => Ok(()),
        _ => Err(format!(
            "an array of a part of {dtype} in shape {shape:?}: at most {MAX_OBJECT_BYTES} bytes travel as one, and no empty array"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::DType;

    #[test]
    fn signatures_beyond_the_limits_are_refused() {
        let array = |shape: &[usize]| PartArray { dtype: DType::F64, shape: shape.to_vec() };
        let of = |inputs: usize, output: PartArray| PartSignature {
            inputs: vec![array(&[1]); inputs],
            outputs: vec![output],
        };
        for good in [of(0, array(&[])), of(MAX_PART_ARRAYS, array(&[2, 3])), of(1, array(&[1 << 31]))] {
            assert_eq!(check_signature(&good), Ok(()));
        }
        let bad = [
            of(MAX_PART_ARRAYS + 1, array(&[1])),
            of(1, array(&[0, 4])),
            of(1, array(&[(1 << 31) + 1])),
            of(1, array(&[usize::MAX, 2])),
            of(1, array(&[1; MAX_PART_AXES + 1])),
            PartSignature { inputs: vec![array(&[1])], outputs: vec![] },
        ];
        assert!(bad.iter().all(|bad| check_signature(bad).is_err()));
    }
}
