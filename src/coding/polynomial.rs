//! Real polynomial codes: subtask i evaluates two matrix polynomials at its own point x_i. Their product has degree
//! k_A k_B - 1 and the parts as coefficients, so that any k_A k_B values determine them.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::generators::{Generators, Structure};

/// `A_i[a] = x_i^a`, `B_i[b] = x_i^(k_A b)` at n points equally spaced in [-1, 1] (arXiv 1705.10464).
///
/// With larger points the powers are numerically dependent: at 1, 2, ..., 20 the worst 16 have condition number 7e26.
pub(super) fn vandermonde(k_a: usize, k_b: usize, n: usize) -> (Structure, Generators) {
    // Computed from both ends symmetrically, so that opposite points are exactly opposite.
    let last = n.saturating_sub(1).max(1) as f64;
    dense(k_a, k_b, n, |i, power| {
        let point = (i as f64 - (n - 1 - i) as f64) / last;
        point.powf(power as f64)
    })
}

/// `A_i[a] = T_a(x_i)`, `B_i[b] = T_(k_A b)(x_i)` at the n Chebyshev nodes (arXiv 1903.08326), where T_0 is taken as
/// 1/sqrt(2), so that all have the same norm over the nodes and are orthogonal.
///
/// Their products are `(T_(k_A b + a) + T_|k_A b - a|) / 2`: k_A k_B independent polynomials of lower degree.
pub(super) fn chebyshev(k_a: usize, k_b: usize, n: usize) -> (Structure, Generators) {
    dense(k_a, k_b, n, |i, degree| {
        if degree == 0 {
            return FRAC_1_SQRT_2;
        }
        // T_m(cos t) = cos(m t), with the angle reduced in integers, because the cosine of a large argument would lose
        // digits.
        let quarters = degree * (2 * i + 1) % (4 * n);
        (PI * quarters as f64 / (2 * n) as f64).cos()
    })
}

/// Blocks of `basis(i, m)`: member m of a basis of polynomials at point i.
fn dense(k_a: usize, k_b: usize, n: usize, basis: impl Fn(usize, usize) -> f64) -> (Structure, Generators) {
    let side = |k: usize, step: usize| {
        let members = |i: usize| (0..k).map(move |m| (i, m * step));
        (0..n).flat_map(members).map(|(i, m)| basis(i, m)).collect()
    };
    let generators =
        Generators { n, l_a: 1, l_b: 1, input_blocks: side(k_a, 1), filter_blocks: side(k_b, k_a) };
    (Structure::Dense, generators)
}
