//! Helpers of the tests of several packages: seeded data, error measures, responder sets, layers, clusters, commands.

#![allow(
    missing_docs,
    clippy::missing_errors_doc,
    clippy::must_use_candidate,
    clippy::new_without_default,
    clippy::return_self_not_must_use,
    clippy::unwrap_used,
    reason = "for tests alone: names that explain themselves, and a failed unwrap is a failed test"
)]

pub mod binary;
pub mod counting;
pub mod fleet;
pub mod folder;
pub mod layer;
pub mod oracle;
pub mod parts;
pub mod relay;
mod rows;
pub mod suites;
pub mod uneven;

pub use rows::every_row;

use fcdcc::SubtaskId;
use fcdcc::array::Element;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Seeded standard normal data (Box-Muller over a fixed stream).
pub fn normal<T: Element>(len: usize, seed: u64) -> Vec<T> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = move || (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    (0..len)
        .map(|_| {
            let (u, v) = (1.0 - uniform(), uniform());
            T::from_f64((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos())
        })
        .collect()
}

/// ‖got − want‖ / ‖want‖; infinite if there is a NaN or the lengths differ.
pub fn relative_l2<T: Element, U: Element>(got: &[T], want: &[U]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    let (mut error, mut norm) = (0.0, 0.0);
    for (g, w) in got.iter().zip(want) {
        error += (g.to_f64() - w.to_f64()).powi(2);
        norm += w.to_f64().powi(2);
    }
    let relative = (error / norm).sqrt();
    if error == 0.0 {
        0.0
    } else if relative.is_nan() {
        f64::INFINITY
    } else {
        relative
    }
}

/// Mean squared difference.
pub fn mean_squared_error<T: Element, U: Element>(got: &[T], want: &[U]) -> f64 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(g, w)| (g.to_f64() - w.to_f64()).powi(2)).sum::<f64>() / got.len() as f64
}

/// The subtasks with these numbers.
pub fn subtasks(numbers: &[usize]) -> Vec<SubtaskId> {
    numbers.iter().copied().map(SubtaskId).collect()
}

/// All subsets of `0..n` with `size` members, in lexicographic order.
pub fn subsets(n: usize, size: usize) -> Vec<Vec<usize>> {
    fn extend(from: usize, n: usize, size: usize, chosen: &mut Vec<usize>, all: &mut Vec<Vec<usize>>) {
        if chosen.len() == size {
            all.push(chosen.clone());
            return;
        }
        for next in from..n {
            chosen.push(next);
            extend(next + 1, n, size, chosen, all);
            chosen.pop();
        }
    }
    let mut all = Vec::new();
    extend(0, n, size, &mut Vec::new(), &mut all);
    all
}
