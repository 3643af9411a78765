//! Shared by the GPU suites: data that is exact in both types, tolerances, and trials for machines without an adapter.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use fcdcc::Error;
use fcdcc::array::{DType, Values};
use fcdcc::conv::{ConvParams, ConvShape};
use fcdcc::gpu::{ConvEngine, GpuDevice, adapters, select};
use libtest_mimic::{Failed, Trial};

pub(crate) type Outcome = Result<(), Failed>;

/// Relative L2 error that rounding may cause. Each sum of K products, rounded at every step, is off by a random walk
/// of about sqrt(K) * eps/2 relative to the root of the sum of squares, which for random data is the sum's own size;
/// K reaches 73,728 here: 270 * 6e-8 = 1.6e-5 in the worst case, and most cases stay near 1e-6. A wrong element in
/// the largest output compared (34,848 elements) moves the error by at least 5e-3.
pub(crate) const TOLERANCE_F32: f64 = 2e-5;
/// The same with eps = 2.2e-16 (270 * 1.1e-16 = 3e-14), with room for the rounding of the reference.
pub(crate) const TOLERANCE_F64: f64 = 1e-12;

pub(crate) fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => TOLERANCE_F32,
        DType::F64 => TOLERANCE_F64,
    }
}

/// Uniform in [-1, 1), the same on every machine, exact in f32.
pub(crate) fn random(elems: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..elems)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 41) as f64 / f64::from(1 << 22) - 1.0
        })
        .collect()
}

#[expect(clippy::cast_possible_truncation, reason = "the numbers are exact in f32")]
pub(crate) fn values(numbers: &[f64], dtype: DType) -> Values {
    match dtype {
        DType::F32 => Values::F32(numbers.iter().map(|n| *n as f32).collect()),
        DType::F64 => Values::F64(numbers.to_vec()),
    }
}

pub(crate) fn widened(values: &Values) -> Vec<f64> {
    match values {
        Values::F32(v) => v.iter().copied().map(f64::from).collect(),
        Values::F64(v) => v.clone(),
    }
}

pub(crate) fn shape(input: &[usize], weight: &[usize], params: &ConvParams) -> ConvShape {
    ConvShape::new(input, weight, params).unwrap()
}

/// An engine on the preferred adapter.
pub(crate) fn engine() -> Result<ConvEngine, Error> {
    Ok(ConvEngine::new(GpuDevice::open(&select(None)?[0], "test")?))
}

/// The trials of `tests` in a suite. Without an adapter all are shown as ignored, or fail with `CI=true`; the tests in
/// `unable` exceed the limits of the adapter.
pub(crate) fn trials(
    suite: &str,
    tests: Vec<(String, Box<dyn FnOnce() -> Outcome + Send>)>,
    unable: &[String],
) -> Vec<Trial> {
    let present = !adapters().is_empty();
    let required = std::env::var("CI").is_ok_and(|v| v == "true");
    tests
        .into_iter()
        .map(|(name, test)| {
            let ignored = (!present && !required) || unable.contains(&name);
            let trial = Trial::test(format!("{suite}::{name}"), move || {
                if present { test() } else { Err("there is no GPU adapter, and CI=true requires one".into()) }
            });
            // Marked when the tests are listed, so that every runner shows them as ignored.
            trial.with_ignored_flag(ignored)
        })
        .collect()
}
