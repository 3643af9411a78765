//! Fits rates to timings by non-negative least squares.

/// Maximum number of sweeps over all unknowns; a few unknowns converge within a few hundred.
const SWEEPS: usize = 20_000;

/// The x >= 0 that minimizes the sum of squared *relative* errors of `sum_j rows[i][j] x[j]` against `times[i]`.
///
/// Errors are relative since times span three decades and all of them matter equally. The method is coordinate descent:
/// every step is the exact minimum along one unknown, clamped at zero.
pub(super) fn fit<const N: usize>(rows: &[[f64; N]], times: &[f64]) -> [f64; N] {
    // Each unknown is scaled by the norm of its column, so that one tolerance suits all.
    let scale: [f64; N] = std::array::from_fn(|j| {
        let square: f64 = rows.iter().zip(times).map(|(row, t)| (row[j] / t).powi(2)).sum();
        square.sqrt()
    });
    let a = |i: usize, j: usize| if scale[j] > 0.0 { rows[i][j] / times[i] / scale[j] } else { 0.0 };
    let mut x = [0.0; N];
    let mut residual = vec![1.0; rows.len()];
    for _ in 0..SWEEPS {
        let mut moved = 0.0_f64;
        for j in 0..N {
            let gradient: f64 = (0..rows.len()).map(|i| a(i, j) * residual[i]).sum();
            let to = if scale[j] > 0.0 { (x[j] + gradient).max(0.0) } else { 0.0 };
            let step = to - x[j];
            if step != 0.0 {
                for (i, r) in residual.iter_mut().enumerate() {
                    *r -= a(i, j) * step;
                }
                x[j] = to;
                moved = moved.max(step.abs());
            }
        }
        if moved < 1e-12 {
            break;
        }
    }
    std::array::from_fn(|j| if scale[j] > 0.0 { x[j] / scale[j] } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_rates_are_found_again_and_none_is_negative() {
        let truth = [3e-5, 2e-10, 0.0, 5e-9];
        let mut state = 7_u64;
        let mut next = |most: f64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 40) as f64 / f64::from(1 << 24)) * most
        };
        let rows: Vec<[f64; 4]> = (0..12).map(|_| [1.0, next(1e6), next(1e5), next(1e4)]).collect();
        let times: Vec<f64> = rows.iter().map(|r| r.iter().zip(&truth).map(|(a, x)| a * x).sum()).collect();
        let found = fit(&rows, &times);
        for (f, t) in found.iter().zip(&truth) {
            assert!((f - t).abs() <= 1e-6 * t.max(1e-12) + 1e-13, "{found:?}");
        }
        // Times too short by a constant would need a negative constant term.
        let wrong: Vec<f64> = rows.iter().map(|r| (r[1] * 1e-9 - 1e-5).max(1e-6)).collect();
        assert!(fit(&rows, &wrong).iter().all(|x| *x >= 0.0));
        // Work that never occurs gets no rate.
        let rows: Vec<[f64; 2]> = (1..5).map(|i| [f64::from(i), 0.0]).collect();
        assert_eq!(fit(&rows, &[2.0, 4.0, 6.0, 8.0])[1], 0.0);
    }
}
