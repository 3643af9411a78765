//! Random numbers shared by several modules.

use rand::{Rng, RngExt};

/// A standard normal number (Box and Muller), from two draws.
pub(crate) fn normal(rng: &mut impl Rng) -> f64 {
    // 1 - u lies in (0, 1], so the logarithm is finite.
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}
