//! The inner loop against naive sums.

use super::*;

struct Slices<A>(Vec<Vec<A>>);

impl<A> Sources<A> for Slices<A> {
    fn row(&self, row: usize) -> &[A] {
        &self.0[row]
    }
}

/// One call, compiled for the detected instruction set or for none.
struct Call<'a, 'o, A, T> {
    map: Result<&'a Packed<A>, &'a PackedPairs<A>>,
    sources: &'a Slices<A>,
    columns: usize,
    targets: &'a mut [Target<'o, T, A>],
    finish: Option<Finish<A>>,
}

impl<A: Element, T: Element> pulp::WithSimd for Call<'_, '_, A, T> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let Self { map, sources, columns, targets, finish } = self;
        match map {
            Ok(map) => combine(simd, map, sources, columns, targets, finish),
            Err(map) => combine_pairs(simd, map, sources, columns, targets, finish),
        }
    }
}

fn wave(i: usize) -> f64 {
    (i as f64 * 0.37).sin()
}

fn coefficient(row: usize, source: usize) -> f64 {
    ((row * 31 + source * 7) as f64).cos()
}

/// The coefficients of row `row` for the quadruple `i`.
fn quadruple(row: usize, i: usize) -> [f64; 4] {
    std::array::from_fn(|which| coefficient(row, 4 * i + which))
}

/// The value of a combination by its definition.
fn naive(sources: &[Vec<f64>], row: usize, column: usize, pairs: bool) -> f64 {
    if !pairs {
        return sources.iter().enumerate().map(|(s, of)| coefficient(row, s) * of[column]).sum();
    }
    let (mut u, mut v) = (0.0, 0.0);
    for (i, z) in sources.chunks(4).enumerate() {
        let c = quadruple(row / 2, i);
        let z = [0, 1, 2, 3].map(|which| z[which][column]);
        u += c[0] * (z[0] - z[3]) + c[1] * (z[1] + z[2]);
        v += c[2] * (z[0] + z[3]) + c[3] * (z[2] - z[1]);
    }
    if row.is_multiple_of(2) { u + v } else { v - u }
}

/// Compares with the naive sums for sizes around every limit and targets of several lengths; `spoil` is added to
/// one source.
fn check<A: Element, T: Element>(pairs: bool, tolerance: f64, spoil: f64) -> bool {
    let mut same = true;
    for (rows, inputs) in [(1, 4), (4, 8), (5, 12), (8, 16), (13, 4), (16, 20)] {
        for columns in [16, 17, 31, 33, 64, 65, 100, 131] {
            let at = |s: usize, c: usize| wave(s * 1000 + c);
            let exact: Vec<Vec<f64>> =
                (0..inputs).map(|s| (0..columns).map(|c| A::from_f64(at(s, c)).to_f64()).collect()).collect();
            let as_sources = |row: &Vec<f64>| row.iter().map(|v| A::from_f64(*v + spoil)).collect();
            let sources = Slices(exact.iter().map(as_sources).collect());
            let (packed, packed_pairs) =
                (Packed::new(rows, inputs, coefficient), PackedPairs::new(rows, inputs / 4, quadruple));
            let map = if pairs { Err(&packed_pairs) } else { Ok(&packed) };
            let count = if pairs { 2 * rows } else { rows };
            let bounds = Finish { low: A::from_f64(-0.5), high: A::from_f64(0.7), unit: A::from_f64(0.5) };
            for finish in [None, Some(bounds)] {
                let length = |row: usize| [columns, columns - 3, 5, 0][row % 4];
                let mut got: Vec<Vec<T>> = (0..count).map(|row| vec![T::ONE; length(row)]).collect();
                let mut targets: Vec<_> = got
                    .iter_mut()
                    .enumerate()
                    .map(|(row, to)| Target {
                        to,
                        scale: A::from_f64(if row % 3 == 0 { -1.0 } else { 1.0 }),
                        bias: A::from_f64(row as f64 * 0.1),
                    })
                    .collect();
                let targets = &mut targets[..];
                let call = Call { map, sources: &sources, columns, targets, finish };
                let squares = pulp::Arch::new().dispatch(call);
                let mut written = 0.0;
                for (row, got) in got.iter().enumerate() {
                    for (column, got) in got.iter().enumerate() {
                        let mut want = naive(&exact, row, column, pairs);
                        if finish.is_some() {
                            let scale = if row % 3 == 0 { -1.0 } else { 1.0 };
                            let whole = scale * want + row as f64 * 0.1;
                            written += (0.5 * whole).powi(2);
                            want = whole.clamp(-0.5, 0.7);
                        }
                        same &= (got.to_f64() - want).abs() <= tolerance;
                    }
                }
                // Squares of the written elements, each counted once.
                same &= if finish.is_some() {
                    (squares - written).abs() <= 1e-3 * written
                } else {
                    squares == 0.0
                };
            }
        }
    }
    same
}

/// One call of [`finish_one`].
struct One<'a, A> {
    source: &'a [A],
    to: &'a mut [A],
    finish: Finish<A>,
}

impl<A: Element> pulp::WithSimd for One<'_, A> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let Self { source, to, finish } = self;
        let target = Target { to, scale: A::from_f64(2.0), bias: A::from_f64(0.25) };
        finish_one(simd, source, target, finish)
    }
}

/// Whether one source is finished element by element, where `spoil` is added to the last one.
fn finishes<A: Element>(columns: usize, spoil: f64) -> bool {
    let source: Vec<A> = (0..columns).map(|c| A::from_f64(wave(c))).collect();
    let mut to = vec![A::ONE; columns];
    let finish = Finish { low: A::from_f64(-0.5), high: A::from_f64(1.5), unit: A::from_f64(0.5) };
    let squares = pulp::Arch::new().dispatch(One { source: &source, to: &mut to, finish });
    let mut written = 0.0;
    let same = to.iter().zip(&source).enumerate().all(|(at, (to, source))| {
        let spoil = if at + 1 == columns { spoil } else { 0.0 };
        let whole = 2.0 * source.to_f64() + 0.25 + spoil;
        written += (0.5 * whole).powi(2);
        (to.to_f64() - whole.clamp(-0.5, 1.5)).abs() < 1e-6
    });
    same && (squares - written).abs() <= 1e-5 * written
}

#[test]
fn one_source_is_finished_element_by_element() {
    for columns in [16, 17, 31, 32, 63, 64, 65, 80, 131] {
        assert!(finishes::<f32>(columns, 0.0) && finishes::<f64>(columns, 0.0), "{columns}");
    }
    // Negative control.
    assert!(!finishes::<f32>(65, 1e-3));
}

#[test]
fn combinations_are_the_naive_sums_whatever_the_type_and_the_size() {
    for pairs in [false, true] {
        assert!(check::<f32, f32>(pairs, 2e-5, 0.0));
        assert!(check::<f64, f64>(pairs, 1e-13, 0.0));
        assert!(check::<f64, f32>(pairs, 1e-6, 0.0));
        // Negative control.
        assert!(!check::<f64, f64>(pairs, 1e-13, 1e-9));
    }
}

#[test]
fn every_instruction_set_and_every_cut_give_the_same_columns() {
    let sources = Slices((0..8).map(|s| (0..200).map(|c| wave(s * 300 + c)).collect()).collect());
    let packed = Packed::<f64>::new(6, 8, coefficient);
    let run = |from: usize, columns: usize| {
        let cut = Slices(sources.0.iter().map(|row: &Vec<f64>| row[from..from + columns].to_vec()).collect());
        let mut got = vec![vec![0.0_f64; columns]; 6];
        let mut targets: Vec<_> = got.iter_mut().map(|to| Target { to, scale: 1.0, bias: 0.0 }).collect();
        let targets = &mut targets[..];
        pulp::Arch::new().dispatch(Call { map: Ok(&packed), sources: &cut, columns, targets, finish: None });
        got
    };
    let whole = run(0, 200);
    for (from, columns) in [(0, 16), (1, 17), (60, 90), (184, 16)] {
        for (row, got) in run(from, columns).iter().enumerate() {
            assert_eq!(got[..], whole[row][from..from + columns]);
        }
    }
    let mut plain = vec![vec![0.0_f64; 200]; 6];
    let mut targets: Vec<_> = plain.iter_mut().map(|to| Target { to, scale: 1.0, bias: 0.0 }).collect();
    let targets = &mut targets[..];
    let call = Call { map: Ok(&packed), sources: &sources, columns: 200, targets, finish: None };
    pulp::WithSimd::with_simd(call, pulp::Scalar);
    // Without a fused multiply-add each term is rounded once more.
    let close = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-14;
    assert!(plain.iter().flatten().zip(whole.iter().flatten()).all(close));
}

#[test]
fn a_nan_passes_the_bounds_and_stays_in_its_column() {
    let mut rows = vec![vec![1.0_f32; 40]; 4];
    rows[2][33] = f32::NAN;
    let sources = Slices(rows);
    let packed = Packed::<f32>::new(3, 4, |_, _| 1.0);
    let mut got = vec![vec![0.0_f32; 40]; 3];
    let mut targets: Vec<_> = got.iter_mut().map(|to| Target { to, scale: 1.0, bias: 0.5 }).collect();
    let bounds = Finish { low: 0.0, high: 4.0, unit: 1.0 };
    let (targets, finish) = (&mut targets[..], Some(bounds));
    pulp::Arch::new().dispatch(Call { map: Ok(&packed), sources: &sources, columns: 40, targets, finish });
    for row in got {
        assert!(row.iter().enumerate().all(|(c, v)| if c == 33 { v.is_nan() } else { *v == 4.0 }));
    }
}
