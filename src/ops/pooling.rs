//! Maximum, sum and average over windows of planes.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use super::share::{Vectorized, share, vectorized};
use crate::array::Element;

/// Columns of the input of which the maxima or sums over the rows of a window are kept at a time.
const TILE: usize = 256;

/// The reduction over a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// The largest element; NaN are passed over.
    Max,
    /// The sum.
    Sum,
    /// The sum divided by the number of elements of the window.
    Average {
        /// Whether padding counts as elements.
        include_pad: bool,
    },
}

/// Pooling of planes `[height, width]`; one-dimensional data have height 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pooling {
    /// The reduction.
    pub kind: PoolKind,
    /// Height and width of an input plane.
    pub input: [usize; 2],
    /// Height and width of an output plane.
    pub output: [usize; 2],
    /// Height and width of the window, in taps.
    pub kernel: [usize; 2],
    /// Distance between windows.
    pub stride: [usize; 2],
    /// Distance between the taps of a window.
    pub dilation: [usize; 2],
    /// Rows above and columns left of the plane.
    pub pad_before: [usize; 2],
    /// Height and width of the plane with its padding. Taps beyond do not count as padding.
    pub padded: [usize; 2],
}

impl Pooling {
    /// Reduces each plane of `input` into the plane of the same index of `output`.
    pub fn run<T: Element>(&self, input: &[T], output: &mut [T]) {
        let (from, to) = (self.input[0] * self.input[1], self.output[0] * self.output[1]);
        share(output, to, self.kernel[0] + self.kernel[1], |first, planes| {
            for (index, plane) in planes.chunks_exact_mut(to.max(1)).enumerate() {
                self.plane(&input[(first + index) * from..][..from], plane);
            }
        });
    }

    fn plane<T: Element>(&self, input: &[T], output: &mut [T]) {
        let width = self.output[1];
        let extent = self.extent(1);
        for (y, row) in output.chunks_exact_mut(width.max(1)).enumerate() {
            if extent > TILE {
                for (x, value) in row.iter_mut().enumerate() {
                    *value = self.one(input, y, x);
                }
                continue;
            }
            let columns = (TILE - extent) / self.stride[1] + 1;
            for (index, columns_of_row) in row.chunks_mut(columns).enumerate() {
                vectorized(Tile { pooling: self, input, y, x: index * columns, output: columns_of_row });
            }
        }
    }

    /// Reach of a window on an axis.
    fn extent(&self, axis: usize) -> usize {
        (self.kernel[axis] - 1) * self.dilation[axis] + 1
    }

    /// The position in the input of a tap of a window, if it lies inside.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "it is compiled for each instruction set, which a call would lose"
    )]
    fn at(&self, axis: usize, window: usize, tap: usize) -> Option<usize> {
        let at =
            (window * self.stride[axis] + tap * self.dilation[axis]).checked_sub(self.pad_before[axis])?;
        (at < self.input[axis]).then_some(at)
    }

    /// The number of taps of a window that count for an average.
    fn counted(&self, axis: usize, window: usize, include_pad: bool) -> usize {
        let begin = window * self.stride[axis];
        let (before, input) = (self.pad_before[axis], self.input[axis]);
        let (low, high) = if include_pad { (0, self.padded[axis]) } else { (before, before + input) };
        if begin >= low && begin + self.extent(axis) <= high {
            return self.kernel[axis];
        }
        let taps = (0..self.kernel[axis]).map(|tap| begin + tap * self.dilation[axis]);
        taps.filter(|at| (low..high).contains(at)).count()
    }

    /// The value from which a window is reduced.
    fn start<T: Element>(&self) -> T {
        match self.kind {
            PoolKind::Max => T::LOWEST,
            PoolKind::Sum | PoolKind::Average { .. } => T::default(),
        }
    }

    /// One output by definition, for windows wider than a tile.
    fn one<T: Element>(&self, input: &[T], y: usize, x: usize) -> T {
        let mut value = self.start::<T>();
        for row in (0..self.kernel[0]).filter_map(|tap| self.at(0, y, tap)) {
            for column in (0..self.kernel[1]).filter_map(|tap| self.at(1, x, tap)) {
                let next = input[row * self.input[1] + column];
                value = match self.kind {
                    PoolKind::Max => larger(value, next),
                    _ => value + next,
                };
            }
        }
        self.divided(value, y, x)
    }

    fn divided<T: Element>(&self, sum: T, y: usize, x: usize) -> T {
        match self.kind {
            PoolKind::Average { include_pad } => {
                let count = self.counted(0, y, include_pad) * self.counted(1, x, include_pad);
                sum / T::from_f64(count as f64)
            }
            PoolKind::Max | PoolKind::Sum => sum,
        }
    }
}

#[inline(always)]
fn larger<T: Element>(a: T, b: T) -> T {
    if a < b { b } else { a }
}

/// Successive outputs of a row.
struct Tile<'a, T> {
    pooling: &'a Pooling,
    input: &'a [T],
    y: usize,
    /// The first column.
    x: usize,
    output: &'a mut [T],
}

impl<T: Element> Vectorized for Tile<'_, T> {
    #[inline(always)]
    fn run(self) {
        match self.pooling.kind {
            PoolKind::Max => self.reduce(larger),
            PoolKind::Sum | PoolKind::Average { .. } => self.reduce(|a, b| a + b),
        }
    }
}

impl<T: Element> Tile<'_, T> {
    /// Reduces the rows of the windows first, then columns.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "it is compiled for each instruction set, which a call would lose"
    )]
    fn reduce(self, f: impl Fn(T, T) -> T) {
        let Self { pooling, input, y, x, output } = self;
        let (stride, width) = (pooling.stride[1], pooling.input[1]);
        let span = (output.len() - 1) * stride + pooling.extent(1);
        let mut columns = [pooling.start::<T>(); TILE];
        // The tile begins at this column of the padded plane, and covers these columns of the input.
        let begin = x * stride;
        let before = pooling.pad_before[1];
        let (low, high) =
            (begin.max(before).min(before + width), (begin + span).clamp(before, before + width));
        for row in (0..pooling.kernel[0]).filter_map(|tap| pooling.at(0, y, tap)) {
            if low < high {
                let row = &input[row * width + low - before..row * width + high - before];
                for (value, next) in columns[low - begin..high - begin].iter_mut().zip(row) {
                    *value = f(*value, *next);
                }
            }
        }
        output.fill(pooling.start::<T>());
        for tap in 0..pooling.kernel[1] {
            let columns = &columns[tap * pooling.dilation[1]..];
            match stride {
                1 => {
                    for (value, next) in output.iter_mut().zip(columns) {
                        *value = f(*value, *next);
                    }
                }
                2 => {
                    for (value, next) in output.iter_mut().zip(columns.chunks(2)) {
                        *value = f(*value, next[0]);
                    }
                }
                _ => {
                    for (value, next) in output.iter_mut().zip(columns.iter().step_by(stride)) {
                        *value = f(*value, *next);
                    }
                }
            }
        }
        if let PoolKind::Average { .. } = pooling.kind {
            for (index, value) in output.iter_mut().enumerate() {
                *value = pooling.divided(*value, y, x + index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const KINDS: [PoolKind; 4] = [
        PoolKind::Max,
        PoolKind::Sum,
        PoolKind::Average { include_pad: false },
        PoolKind::Average { include_pad: true },
    ];

    /// Pooling of a few planes with random sizes, within which every window meets the plane.
    fn random(rng: &mut ChaCha8Rng, kind: PoolKind, wide: bool) -> Pooling {
        let axis = |rng: &mut ChaCha8Rng, most: usize| {
            let kernel = rng.random_range(1..=if wide { 140 } else { 4 });
            let dilation = rng.random_range(1..=2usize);
            let extent = (kernel - 1) * dilation + 1;
            let input = rng.random_range(extent..extent + most);
            let stride = rng.random_range(1..=3);
            let before = rng.random_range(0..=(extent - 1) / 2);
            let after = rng.random_range(0..=(extent - 1) / 2);
            let padded = input + before + after;
            // The last window may reach beyond the padding, but begins inside of the plane.
            let rounded_up = (padded - extent).div_ceil(stride);
            let windows =
                if rounded_up * stride < before + input { rounded_up } else { (padded - extent) / stride };
            (input, windows + 1, kernel, stride, dilation, before, padded)
        };
        let (a, b) = (axis(rng, 6), axis(rng, if wide { 400 } else { 40 }));
        Pooling {
            kind,
            input: [a.0, b.0],
            output: [a.1, b.1],
            kernel: [a.2, b.2],
            stride: [a.3, b.3],
            dilation: [a.4, b.4],
            pad_before: [a.5, b.5],
            padded: [a.6, b.6],
        }
    }

    /// By definition, from the padded plane.
    fn expected(p: &Pooling, plane: &[f64], y: usize, x: usize) -> f64 {
        let (mut inside, mut counted) = (Vec::new(), 0);
        for ky in 0..p.kernel[0] {
            for kx in 0..p.kernel[1] {
                let (row, column) =
                    (y * p.stride[0] + ky * p.dilation[0], x * p.stride[1] + kx * p.dilation[1]);
                counted += usize::from(row < p.padded[0] && column < p.padded[1]);
                let in_plane = |at: usize, axis: usize| {
                    (p.pad_before[axis]..p.pad_before[axis] + p.input[axis]).contains(&at)
                };
                if in_plane(row, 0) && in_plane(column, 1) {
                    inside.push(plane[(row - p.pad_before[0]) * p.input[1] + column - p.pad_before[1]]);
                }
            }
        }
        let sum: f64 = inside.iter().sum();
        match p.kind {
            PoolKind::Max => inside.iter().copied().fold(f64::MIN, f64::max),
            PoolKind::Sum => sum,
            PoolKind::Average { include_pad: true } => sum / counted as f64,
            PoolKind::Average { include_pad: false } => sum / inside.len() as f64,
        }
    }

    #[test]
    fn windows_of_any_geometry_are_reduced_as_defined() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for round in 0..96 {
            let p = random(&mut rng, KINDS[round % 4], round % 12 == 0);
            let planes = 3;
            let plane = p.input[0] * p.input[1];
            let data: Vec<f64> = (0..planes * plane).map(|_| rng.random_range(-1.0..1.0)).collect();
            let single: Vec<f32> = data.iter().map(|v| f32::from_f64(*v)).collect();
            let outputs = p.output[0] * p.output[1];
            let mut got = vec![f64::NAN; planes * outputs];
            p.run(&data, &mut got);
            let mut got_single = vec![f32::NAN; planes * outputs];
            p.run(&single, &mut got_single);
            for (i, (got, single)) in got.iter().zip(&got_single).enumerate() {
                let (y, x) = (i % outputs / p.output[1], i % p.output[1]);
                let want = expected(&p, &data[i / outputs * plane..][..plane], y, x);
                assert!(
                    (got - want).abs() <= 1e-12 * want.abs().max(1.0) * 1e3,
                    "{p:?} at {y}, {x}: {got} {want}"
                );
                let near = 1e-4 * (1.0 + want.abs());
                assert!((f64::from(*single) - want).abs() < near, "{p:?} at {y}, {x}: {single} {want}");
            }
        }
    }
}
