use std::f64::consts::TAU;

use super::*;

/// Numbers without structure between -0.5 and 0.5.
fn irregular(row: usize, column: usize) -> f64 {
    ((row * 41 + column * 17 + row * column + 1) as f64 * 12.9898).sin() * 0.5
}

fn fourier(size: usize) -> Dense<Complex64> {
    let angle = |row: usize, column: usize| -TAU * ((row * column) % size) as f64 / size as f64;
    Dense::from_fn(size, size, |row, column| {
        Complex64::from_polar((size as f64).powf(-0.5), angle(row, column))
    })
}

fn near(found: f64, expected: f64, tolerance: f64) -> bool {
    (found / expected - 1.0).abs() < tolerance
}

/// The largest difference to the unit matrix.
fn off_identity<T: Scalar>(matrix: &Dense<T>) -> f64 {
    let unit = |row, column| if row == column { T::ONE } else { T::ZERO };
    let at = (0..matrix.columns).flat_map(|column| (0..matrix.rows).map(move |row| (row, column)));
    at.map(|(row, column)| (matrix[(row, column)] - unit(row, column)).magnitude()).fold(0.0, f64::max)
}

fn adjoint<T: Scalar>(matrix: &Dense<T>) -> Dense<T> {
    Dense::from_fn(matrix.columns, matrix.rows, |row, column| matrix[(column, row)].conj())
}

#[test]
fn condition_numbers_that_are_known() {
    // Of Hilbert matrices, from exact arithmetic; the tolerance is the condition number times a rounding.
    for (size, known) in [(2, 19.281_470_067_903_97), (3, 524.056_777_586_06), (8, 1.525_757_553_8e10)] {
        let hilbert = Dense::from_fn(size, size, |row, column| 1.0 / (row + column + 1) as f64);
        let tolerance = 1e-10 + known * f64::EPSILON;
        assert!(near(hilbert.condition(), known, tolerance), "{size}: {:e}", hilbert.condition());
        // Another entry: the comparison can fail.
        let mut other = hilbert;
        other[(0, 0)] *= 1.01;
        assert!(!near(other.condition(), known, tolerance));
    }
    assert!((fourier(12).condition() - 1.0).abs() < 1e-14);
    // Known singular values between two unitary matrices; all magnitudes of entries that a double can hold.
    for size in [1, 2, 5, 13, 40] {
        for (ratio, unit) in [(1.5, 1.0), (10.0, 1e-200), (1.5, 1e250), (2.0, f64::MIN_POSITIVE)] {
            let values = |at: usize| 3.0 * f64::powi(ratio, i32::try_from(at % 8).unwrap());
            let known = values((size - 1).min(7)) / values(0);
            let left = fourier(size);
            let scaled =
                Dense::from_fn(size, size, |row, column| left[(row, column)] * (values(column) * unit));
            // Subnormal numbers have few digits.
            let tolerance = if unit == f64::MIN_POSITIVE { 1e-3 } else { 1e-13 * known };
            let product = if unit < 1.0 { scaled } else { scaled.times(&left) };
            assert!(near(product.condition(), known, tolerance), "{size} {ratio}: {:e}", product.condition());
        }
    }
}

#[test]
fn what_has_no_inverse_has_a_condition_number_beyond_all_digits() {
    let of = |at: &dyn Fn(usize, usize) -> f64| Dense::from_fn(7, 5, at).condition();
    assert!(of(&irregular) < 1e3);
    let dependent = |row, column| {
        if column == 4 { irregular(row, 0) - irregular(row, 3) } else { irregular(row, column) }
    };
    assert!(of(&dependent) > 1e15);
    assert!(of(&|row, column| if column == 2 { 0.0 } else { irregular(row, column) }) > 1e15);
    assert_eq!(of(&|_, _| 0.0), f64::INFINITY);
    for broken in [f64::NAN, f64::INFINITY] {
        let at = |row, column| if (row, column) == (6, 4) { broken } else { irregular(row, column) };
        assert_eq!(of(&at), f64::INFINITY);
    }
}

#[test]
fn pseudo_inverses_satisfy_the_conditions_of_penrose() {
    fn check<T: Scalar>(matrix: &Dense<T>) {
        let tolerance = 1e-14 * matrix.condition();
        let off = |inverse: &Dense<T>| {
            let projection = matrix.times(inverse);
            let sides = Dense::from_fn(matrix.rows, matrix.rows, |row, column| {
                projection[(row, column)] - projection[(column, row)].conj()
            });
            let symmetric = sides.values.iter().map(|value| value.magnitude()).fold(0.0, f64::max);
            off_identity(&inverse.times(matrix)).max(symmetric)
        };
        let mut inverse = matrix.pseudo_inverse();
        assert!(off(&inverse) < tolerance, "{} x {}: {:e}", matrix.rows, matrix.columns, off(&inverse));
        inverse[(0, matrix.rows - 1)] = inverse[(0, matrix.rows - 1)].scaled(1.001);
        assert!(off(&inverse) > tolerance, "the control must fail");
    }
    for (rows, columns) in [(1, 1), (3, 2), (8, 8), (20, 16), (37, 33)] {
        check(&Dense::from_fn(rows, columns, irregular));
        check(&Dense::from_fn(rows, columns, |row, column| {
            Complex64::new(irregular(row, column), irregular(column, row + 50))
        }));
    }
}

#[test]
fn complements_are_orthonormal_and_orthogonal_to_the_matrix() {
    for (rows, columns) in [(2, 1), (9, 4), (20, 16), (40, 39)] {
        for dependent in [false, true] {
            let at = |row, column| irregular(row, if dependent { column / 2 } else { column });
            let mut matrix = Dense::from_fn(rows, columns, at);
            let complement = matrix.clone().complement();
            assert_eq!((complement.rows(), complement.columns()), (rows, rows - columns));
            assert!(off_identity(&adjoint(&complement).times(&complement)) < 1e-14);
            let seen = |matrix: &Dense<f64>| {
                let product = adjoint(&complement).times(matrix);
                product.values.iter().map(|value| value.abs()).fold(0.0, f64::max)
            };
            assert!(seen(&matrix) < 1e-14, "{rows} x {columns}");
            let heaviest =
                (0..rows).max_by(|a, b| complement[(*a, 0)].abs().total_cmp(&complement[(*b, 0)].abs()));
            matrix[(heaviest.unwrap(), 0)] += 1e-3;
            assert!(seen(&matrix) > 1e-6, "the control must fail");
        }
    }
}
