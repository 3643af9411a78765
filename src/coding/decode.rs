//! Decoding: from the sub-results that came to the output, in one pass that also crops, merges, adds the bias
//! and clamps.

use rayon::prelude::*;

use super::decoder::{Decoder, Map, Rotation};
use crate::array::{Element, Matrix, MatrixMut, matmul};
use crate::error::{Error, Result};
use crate::partition::{OutputTiling, TilingJob};

/// Scratch elements a thread may hold: a few hundred KiB, so that a block stays in the L2 cache.
const SCRATCH_ELEMS: usize = 64 * 1024;

/// From this condition number on, f32 results are decoded in f64: rounding the inverse to f32 would add about as
/// much error as the workers did. Below it the loss is under the workers' own rounding.
const WIDE_CONDITION: f64 = 16.0;

/// What happens to each decoded element on its way into the output.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a, T> {
    /// `[O]`, added to each output channel.
    pub bias: Option<&'a [T]>,
    /// Applied after the bias.
    pub clamp: Option<Clamp>,
}

/// The activation `min(max(x, low), high)`: ReLU and its bounded kin. It is not linear, so it comes after decoding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clamp {
    /// Smallest value let through.
    pub low: f64,
    /// Largest value let through; at least `low`.
    pub high: f64,
}

impl Clamp {
    /// `max(x, 0)`.
    pub const RELU: Self = Self { low: 0.0, high: f64::INFINITY };

    /// The function itself, in `T`. A NaN stays one.
    pub fn of<T: Element>(self) -> impl Fn(T) -> T + Copy + Send + Sync {
        let (low, high) = (T::from_f64(self.low), T::from_f64(self.high));
        move |x| {
            let x = if x < low { low } else { x };
            if x > high { high } else { x }
        }
    }
}

/// Decodes, merges, crops and finishes: `output` `[N, O, spatial...]` is overwritten.
///
/// `results` are the sub-results of [`Decoder::inputs`], in that order, each [`OutputTiling::part_elems`] long.
/// Runs on all threads of the current rayon pool and allocates, beside the list of output pieces, at most
/// 512 KiB of scratch a thread.
///
/// # Errors
/// [`Error::Mismatch`] when the number or length of the results, the output or the bias do not fit.
pub fn decode<T: Element>(
    decoder: &Decoder,
    tiling: &OutputTiling,
    results: &[&[T]],
    epilogue: Epilogue<'_, T>,
    output: &mut [T],
) -> Result<()> {
    let mend = "results and output must match the layer's plan";
    if results.len() != decoder.inputs().len() {
        return Err(Error::mismatch("number of sub-results", results.len(), decoder.inputs().len(), mend));
    }
    if let Some(wrong) = results.iter().find(|r| r.len() != tiling.part_elems()) {
        return Err(Error::mismatch("elements of a sub-result", wrong.len(), tiling.part_elems(), mend));
    }
    if output.len() != tiling.output_elems() {
        return Err(Error::mismatch("elements of the output", output.len(), tiling.output_elems(), mend));
    }
    if let Some(bias) = epilogue.bias
        && bias.len() != tiling.out_channels()
    {
        return Err(Error::mismatch("elements of the bias", bias.len(), tiling.out_channels(), mend));
    }
    match (decoder.condition() >= WIDE_CONDITION, epilogue.clamp) {
        (true, None) => run::<T, f64>(decoder, tiling, results, epilogue.bias, |v| v, output),
        (true, Some(c)) => run::<T, f64>(decoder, tiling, results, epilogue.bias, c.of(), output),
        (false, None) => run::<T, T>(decoder, tiling, results, epilogue.bias, |v| v, output),
        (false, Some(c)) => run::<T, T>(decoder, tiling, results, epilogue.bias, c.of(), output),
    }
    Ok(())
}

/// The block loop, with arithmetic in `A` up to the activation.
fn run<T: Element, A: Element>(
    decoder: &Decoder,
    tiling: &OutputTiling,
    results: &[&[T]],
    bias: Option<&[T]>,
    activation: impl Fn(A) -> A + Copy + Send + Sync,
    output: &mut [T],
) {
    let parts = tiling.k_a * tiling.k_b;
    let rows = match &decoder.map {
        Map::Select(_) => 1,
        Map::Real(_) => results.len() + parts,
        // P, u and, where both sides are split, Q, v.
        Map::Rotation(r) => (2 * r.responders + 2 * r.d_a * r.d_b) * if r.q.is_empty() { 1 } else { 2 },
    };
    let jobs = tiling.jobs(output, (SCRATCH_ELEMS / rows).clamp(64, 4096));
    let matrices: Vec<Vec<A>> = match &decoder.map {
        Map::Select(_) => Vec::new(),
        Map::Real(inverse) => vec![convert(inverse)],
        Map::Rotation(r) => vec![convert(&r.p), convert(&r.q)],
    };
    let k_b = tiling.k_b;
    jobs.into_par_iter().for_each_init(Vec::new, |scratch: &mut Vec<A>, job| {
        let bias_of = |channel: usize| bias.map_or(A::default(), |b| A::from_f64(b[channel].to_f64()));
        match &decoder.map {
            Map::Select(select) => {
                for piece in job.pieces {
                    let from = job.start + piece.column;
                    let source = &results[select[piece.part]][from..from + piece.output.len()];
                    // Nothing is added where there is no bias: the values stay what they are to the last bit.
                    let add = bias.map(|_| bias_of(piece.channel));
                    for (out, value) in piece.output.iter_mut().zip(source) {
                        let value = A::from_f64(value.to_f64());
                        *out = T::from_f64(activation(add.map_or(value, |add| value + add)).to_f64());
                    }
                }
            }
            Map::Real(_) => {
                let (inputs, cols) = (results.len(), job.columns);
                let (z, y) = split(scratch, inputs * cols, parts * cols);
                for (row, result) in z.chunks_mut(cols).zip(results) {
                    for (to, from) in row.iter_mut().zip(&result[job.start..]) {
                        *to = A::from_f64(from.to_f64());
                    }
                }
                matmul(
                    &mut MatrixMut::dense(y, parts, cols),
                    Matrix::dense(&matrices[0], parts, inputs),
                    Matrix::dense(z, inputs, cols),
                    false,
                );
                for piece in job.pieces {
                    let from = piece.part * cols + piece.column;
                    let add = bias_of(piece.channel);
                    for (out, value) in piece.output.iter_mut().zip(&y[from..]) {
                        *out = T::from_f64(activation(*value + add).to_f64());
                    }
                }
            }
            Map::Rotation(r) => {
                rotation_block(r, &matrices, results, scratch, job, k_b, (bias_of, activation));
            }
        }
    });
}

/// One block of the complex fast path.
fn rotation_block<T: Element, A: Element>(
    r: &Rotation,
    matrices: &[Vec<A>],
    results: &[&[T]],
    scratch: &mut Vec<A>,
    job: TilingJob<'_, T>,
    k_b: usize,
    (bias, activation): (impl Fn(usize) -> A, impl Fn(A) -> A),
) {
    let (m, delta, cols) = (r.responders, r.d_a * r.d_b, job.columns);
    let both = !r.q.is_empty();
    let (sums, solved) = (2 * m * cols, 2 * delta * cols);
    let systems = if both { 2 } else { 1 };
    let (sum, solution) = split(scratch, systems * sums, systems * solved);
    for i in 0..m {
        let z = |p: usize, bank: usize| &results[(i * r.l_a + p) * r.l_b + bank][job.start..job.start + cols];
        if both {
            let (z00, z01, z10, z11) = (z(0, 0), z(0, 1), z(1, 0), z(1, 1));
            let (p, q) = sum.split_at_mut(sums);
            let (p_re, p_im) = p.split_at_mut(m * cols);
            let (q_re, q_im) = q.split_at_mut(m * cols);
            let rows = i * cols..(i + 1) * cols;
            let (p_re, p_im) = (&mut p_re[rows.clone()], &mut p_im[rows.clone()]);
            let (q_re, q_im) = (&mut q_re[rows.clone()], &mut q_im[rows]);
            let wide = |v: T| A::from_f64(v.to_f64());
            for c in 0..cols {
                let (a, b, d, e) = (wide(z00[c]), wide(z01[c]), wide(z10[c]), wide(z11[c]));
                p_re[c] = a - e;
                p_im[c] = b + d;
                q_re[c] = a + e;
                q_im[c] = d - b;
            }
        } else {
            // One side is unsplit: P = Z0 + i Z1 over the two sub-results of the split one.
            let (re, im) = (z(0, 0), if r.l_a == 2 { z(1, 0) } else { z(0, 1) });
            for c in 0..cols {
                sum[i * cols + c] = A::from_f64(re[c].to_f64());
                sum[(m + i) * cols + c] = A::from_f64(im[c].to_f64());
            }
        }
    }
    for system in 0..systems {
        matmul(
            &mut MatrixMut::dense(&mut solution[system * solved..(system + 1) * solved], 2 * delta, cols),
            Matrix::dense(&matrices[system], 2 * delta, 2 * m),
            Matrix::dense(&sum[system * sums..(system + 1) * sums], 2 * m, cols),
            false,
        );
    }
    let (u, v) = solution.split_at(solved);
    let half = A::from_f64(0.5);
    let write = |out: &mut [T], x: &[A], y: &[A], add: A, combine: fn(A, A) -> A| {
        for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
            *out = T::from_f64(activation(combine(*x, *y) * half + add).to_f64());
        }
    };
    for piece in job.pieces {
        let (a, b, add) = (piece.part / k_b, piece.part % k_b, bias(piece.channel));
        let imaginary = |row: usize| (delta + row) * cols + piece.column;
        let real = |row: usize| row * cols + piece.column;
        if both {
            let (j, l) = (a / 2, b / 2);
            let (uu, vv) = (j + r.d_a * l, j + r.d_a * (r.d_b - 1 - l));
            match (a % 2, b % 2) {
                (0, 0) => write(piece.output, &u[real(uu)..], &v[real(vv)..], add, |u, v| u + v),
                (1, 1) => write(piece.output, &v[real(vv)..], &u[real(uu)..], add, |v, u| v - u),
                (0, _) => write(piece.output, &u[imaginary(uu)..], &v[imaginary(vv)..], add, |u, v| u - v),
                _ => write(piece.output, &u[imaginary(uu)..], &v[imaginary(vv)..], add, |u, v| u + v),
            }
        } else {
            let part = if r.l_a == 2 { a } else { b };
            let from = if part % 2 == 0 { real(part / 2) } else { imaginary(part / 2) };
            for (out, value) in piece.output.iter_mut().zip(&u[from..]) {
                *out = T::from_f64(activation(*value + add).to_f64());
            }
        }
    }
}

fn convert<A: Element>(matrix: &[f64]) -> Vec<A> {
    matrix.iter().map(|v| A::from_f64(*v)).collect()
}

/// Two disjoint scratch areas, grown when needed and kept between blocks.
fn split<A: Element>(scratch: &mut Vec<A>, first: usize, second: usize) -> (&mut [A], &mut [A]) {
    if scratch.len() < first + second {
        scratch.resize(first + second, A::default());
    }
    let (a, b) = scratch.split_at_mut(first);
    (a, &mut b[..second])
}
