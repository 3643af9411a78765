//! Inputs, the difference of results, medians and means.

use anyhow::{Result, ensure};

/// Largest relative L2 error of a result that may be timed: f32 rounding stays well below, a wrong tap does not.
pub const TOLERANCE: f64 = 1e-4;

/// Numbers that look normally distributed (sums of four uniform ones, variance 1), the same at every call.
#[must_use]
pub fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut uniform = || {
        // The generator splitmix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(|_| (uniform() + uniform() + uniform() + uniform()) * 3_f32.sqrt()).collect()
}

/// The relative L2 error of a result against what is expected.
///
/// # Errors
/// When it is not within [`TOLERANCE`], not finite, or not of the right length.
pub fn difference<E: Copy + Into<f64>>(got: &[f32], expected: &[E]) -> Result<f64> {
    ensure!(got.len() == expected.len(), "{} elements instead of {}", got.len(), expected.len());
    let (mut wrong, mut norm) = (0.0, 0.0);
    for (&got, &expected) in got.iter().zip(expected) {
        let expected = expected.into();
        wrong += (f64::from(got) - expected).powi(2);
        norm += expected.powi(2);
    }
    let error = (wrong / norm).sqrt();
    // A NaN is not within the tolerance either.
    ensure!(error <= TOLERANCE, "wrong result: relative L2 error {error:.1e} exceeds {TOLERANCE:.0e}");
    Ok(error)
}

/// The median; NaN of nothing.
#[must_use]
pub fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[middle],
        _ => sorted[middle - 1].midpoint(sorted[middle]),
    }
}

/// The geometric mean; `None` of nothing.
#[must_use]
pub fn geometric_mean(numbers: &[f64]) -> Option<f64> {
    let logs: f64 = numbers.iter().map(|number| number.ln()).sum();
    (!numbers.is_empty()).then(|| (logs / numbers.len() as f64).exp())
}
