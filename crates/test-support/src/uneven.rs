//! Layers of uneven data, and their errors by element.

use std::fmt::Write as _;

use fcdcc::array::{DType, Element};
use fcdcc::{ConvParams, ConvShape};
use rand::{Rng, RngExt};

use super::normal;

/// Kinds of data that are hard for coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Normal,
    /// Filters of very different magnitude.
    Channels,
    /// Rows of gradually increasing magnitude.
    SmoothRows,
    /// Rows of unordered magnitudes.
    Rows,
    /// A corner, or one pixel, of 1e7.
    Corner,
    Pixel,
    /// One large pixel in each row, each in another column.
    EachRow,
    /// One large pixel, and filters that only shift the picture.
    Shift,
    /// Input channels of different magnitude, pruned filters, one of them zero.
    Pruned,
    /// Zero rows at the bottom, as for a picture that does not fill its frame.
    ZeroRows,
}

impl Kind {
    pub const ALL: [Self; 10] = [
        Self::Normal,
        Self::Channels,
        Self::SmoothRows,
        Self::Rows,
        Self::Corner,
        Self::Pixel,
        Self::EachRow,
        Self::Shift,
        Self::Pruned,
        Self::ZeroRows,
    ];
}

/// A layer whose values can be represented in the intended element type.
#[derive(Clone)]
pub struct Wild {
    pub shape: ConvShape,
    pub params: ConvParams,
    pub input: Vec<f64>,
    pub weight: Vec<f64>,
    /// The bias; empty for none.
    pub bias: Vec<f64>,
    /// How the data was made.
    pub made: String,
}

impl std::fmt::Debug for Wild {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.made, self.shape)
    }
}

fn map(values: &mut [f64], mut change: impl FnMut(f64) -> f64) {
    for value in values {
        *value = change(*value);
    }
}

/// Rounds to f32.
fn single(values: &mut [f64]) {
    map(values, |value| f64::from(f32::from_f64(value)));
}

impl Wild {
    /// f32 data of one kind.
    pub fn of(kind: Kind, shape: ConvShape, params: ConvParams, seed: u64) -> Self {
        let mut input = normal::<f64>(shape.input_elems(), seed);
        let mut weight = normal::<f64>(shape.weight_elems(), seed + 1);
        let (plane, width, height) = (shape.input_plane(), shape.input[2], shape.input[1]);
        let size = normal::<f64>(256, seed + 2);
        let power = |i: usize, from: f64, to: f64| {
            // Uniform enough for a test.
            let part = (size[i % 256] * 1e3).rem_euclid(1.0);
            10.0_f64.powf(from + (to - from) * part)
        };
        let reduction = shape.reduction();
        let each = |input: &mut Vec<f64>, f: &dyn Fn(usize, usize, usize, f64) -> f64| {
            for (i, value) in input.iter_mut().enumerate() {
                let at = i % plane;
                *value = f(i / plane, at / width, at % width, *value);
            }
        };
        match kind {
            Kind::Normal => {}
            Kind::Channels => {
                for (o, filter) in weight.chunks_mut(reduction).enumerate() {
                    map(filter, |w| w * power(o, -3.0, 4.0));
                }
            }
            Kind::SmoothRows => {
                each(&mut input, &|_, r, _, v| {
                    v * 10.0_f64.powf(-4.0 + 8.0 * r as f64 / (height - 1) as f64)
                });
            }
            Kind::Rows => each(&mut input, &|_, r, _, v| v * power(r, -4.0, 4.0)),
            Kind::Corner => each(&mut input, &|_, r, c, v| if r < 3 && c < 3 { 1e7 } else { v }),
            Kind::Pixel | Kind::Shift => {
                each(&mut input, &|_, r, c, v| if r == 17 && c == 9 { 1e7 } else { v });
            }
            Kind::EachRow => each(&mut input, &|_, r, c, v| if c == r * 7 % width { 1e7 } else { v }),
            Kind::Pruned => each(&mut input, &|channel, _, _, v| v * power(channel, -4.0, 4.0)),
            Kind::ZeroRows => each(&mut input, &|_, r, _, v| if (10..22).contains(&r) { 0.0 } else { v }),
        }
        match kind {
            Kind::Shift => {
                for (o, filter) in weight.chunks_mut(reduction).enumerate() {
                    filter.fill(0.0);
                    filter[o * 11 % reduction] = 1.0;
                }
            }
            Kind::Pruned => {
                for (o, filter) in weight.chunks_mut(reduction).enumerate() {
                    for (i, w) in filter.iter_mut().enumerate() {
                        let kept = o != 3 && (i * 7 + o) % 10 == 0;
                        *w = if kept { *w * power(i / 9 + 40, -4.0, 4.0) } else { 0.0 };
                    }
                }
            }
            _ => {}
        }
        single(&mut input);
        single(&mut weight);
        Self { shape, params, input, weight, bias: Vec::new(), made: format!("{kind:?}") }
    }

    /// A random layer: odd shapes, scales by row, column, channel and filter, outliers, zeros, tiny and huge numbers.
    pub fn random(dtype: DType, random: &mut impl Rng) -> Self {
        let pick = |random: &mut dyn Rng, from: usize, to: usize| random.random_range(from..=to);
        let groups = [1, 1, 1, 2, 4][pick(random, 0, 4)];
        let depthwise = random.random_bool(0.15);
        let (group_in, group_out) =
            if depthwise { (1, 1) } else { (pick(random, 1, 9), pick(random, 1, 10)) };
        let groups = if depthwise { pick(random, 1, 9) } else { groups };
        let rank = [1, 2, 2, 2, 2, 3][pick(random, 0, 5)];
        let kernel: Vec<usize> = (0..rank).map(|_| pick(random, 1, 3)).collect();
        let side = if rank == 3 { 8 } else { 26 };
        let spatial: Vec<usize> = (0..rank).map(|_| pick(random, 3, side)).collect();
        let params = ConvParams::default()
            .groups(groups)
            .stride([pick(random, 1, 2)])
            .padding(vec![pick(random, 0, 1); rank])
            .dilation([1]);
        let input = [&[pick(random, 1, 2), groups * group_in][..], &spatial].concat();
        let weight = [&[groups * group_out, group_in][..], &kernel].concat();
        let shape = ConvShape::new(&input, &weight, &params).unwrap();
        let seed = random.next_u64() >> 1;
        let (mut x, mut k) =
            (normal::<f64>(shape.input_elems(), seed), normal::<f64>(shape.weight_elems(), seed + 1));
        let (plane, width) = (shape.input_plane(), shape.input[2]);
        let most = if dtype == DType::F32 { 30.0 } else { 120.0 };
        let mut made = String::new();
        let scales = |random: &mut dyn Rng, count: usize| -> Vec<f64> {
            let reach = [2.0, 4.0, 8.0][pick(random, 0, 2)];
            (0..count).map(|_| 10.0_f64.powf(reach * (2.0 * random.random::<f64>() - 1.0))).collect()
        };
        for _ in 0..pick(random, 0, 3) {
            let what = pick(random, 0, 11);
            let _ = write!(made, "{what} ");
            match what {
                0 => {
                    let by = scales(random, plane / width);
                    x.iter_mut().enumerate().for_each(|(i, v)| *v *= by[i % plane / width]);
                }
                1 => {
                    let by = scales(random, width);
                    x.iter_mut().enumerate().for_each(|(i, v)| *v *= by[i % width]);
                }
                2 => {
                    let by = scales(random, x.len() / plane);
                    x.iter_mut().enumerate().for_each(|(i, v)| *v *= by[i / plane]);
                }
                3 | 4 => {
                    let by = scales(random, shape.out_channels);
                    let reduction = shape.reduction();
                    k.iter_mut().enumerate().for_each(|(i, v)| *v *= by[i / reduction]);
                }
                5 => {
                    for _ in 0..pick(random, 1, 3) {
                        let at = pick(random, 0, x.len() - 1);
                        x[at] = 10.0_f64.powf(most * random.random::<f64>() * 0.5);
                    }
                }
                6 => {
                    for row in 0..x.len() / width {
                        let at = row * width + pick(random, 0, width - 1);
                        x[at] *= 1e7;
                    }
                }
                7 => {
                    let reduction = shape.reduction();
                    for (o, filter) in k.chunks_mut(reduction).enumerate() {
                        filter.fill(0.0);
                        filter[o * 11 % reduction] = 1.0;
                    }
                }
                8 => map(&mut k, |v| if random.random_bool(0.8) { 0.0 } else { v }),
                9 => {
                    let (from, count) = (pick(random, 0, x.len() - 1), pick(random, 1, 5 * width));
                    let to = (from + count).min(x.len());
                    x[from..to].fill(0.0);
                }
                10 => {
                    let by = 10.0_f64.powf(most * (2.0 * random.random::<f64>() - 1.0));
                    map(&mut x, |v| v * by);
                    let _ = write!(made, "({by:.0e}) ");
                }
                _ => {
                    // As after ReLU, and all of one sign.
                    map(&mut x, |v| v.max(0.0));
                    if random.random_bool(0.5) {
                        map(&mut k, f64::abs);
                    }
                }
            }
        }
        if dtype == DType::F32 {
            // Keeps large sums within the range of the type.
            let limit = 1e33;
            map(&mut x, |v| v.clamp(-limit, limit));
            single(&mut x);
            single(&mut k);
        }
        let bias =
            if random.random_bool(0.3) { normal::<f64>(shape.out_channels, seed + 3) } else { Vec::new() };
        let mut bias = bias;
        if dtype == DType::F32 {
            single(&mut bias);
        }
        Self { shape, params, input: x, weight: k, bias, made }
    }

    /// For each output, in order: its value from products and sums in twice the precision of f64 (rounded to f64 once), and
    /// the measure of its error: the largest magnitude in its window times the sum of magnitudes of its filter.
    pub fn exact(&self) -> Vec<(f64, f64)> {
        let shape = &self.shape;
        let (group_in, group_out) = (shape.in_channels / shape.groups, shape.out_channels / shape.groups);
        let (reduction, taps) = (shape.reduction(), shape.kernel.iter().product::<usize>());
        let mut outputs = Vec::with_capacity(shape.output_elems());
        for n in 0..shape.batch {
            for o in 0..shape.out_channels {
                let filter = &self.weight[o * reduction..(o + 1) * reduction];
                let sum: f64 = filter.iter().map(|w| w.abs()).sum();
                let channels = n * shape.in_channels + o / group_out * group_in;
                for at in 0..shape.output_plane() {
                    let inner = [shape.output[1] * shape.output[2], shape.output[2], 1];
                    let position = [at / inner[0], at / inner[1] % shape.output[1], at % shape.output[2]];
                    let (mut largest, mut high, mut low) = (0.0_f64, 0.0_f64, 0.0_f64);
                    for tap in 0..taps {
                        let under = [
                            tap / (shape.kernel[1] * shape.kernel[2]),
                            tap / shape.kernel[2] % shape.kernel[1],
                            tap % shape.kernel[2],
                        ];
                        let axis = |a: usize| {
                            let at = position[a] * shape.stride[a] + under[a] * shape.dilation[a];
                            at.checked_sub(shape.pad_begin[a]).filter(|at| *at < shape.input[a])
                        };
                        let (Some(z), Some(y), Some(x)) = (axis(0), axis(1), axis(2)) else { continue };
                        let offset = (z * shape.input[1] + y) * shape.input[2] + x;
                        for c in 0..group_in {
                            let x = self.input[(channels + c) * shape.input_plane() + offset];
                            largest = largest.max(x.abs());
                            let (product, rest) = product(x, filter[c * taps + tap]);
                            let (total, lost) = total(high, product);
                            (high, low) = (total, low + lost + rest);
                        }
                    }
                    let bias = self.bias.get(o).copied().unwrap_or(0.0);
                    let (value, lost) = total(high, bias);
                    outputs.push((value + (low + lost), largest * sum));
                }
            }
        }
        outputs
    }
}

/// The rounded product of x and y, and its rounding error.
fn product(x: f64, y: f64) -> (f64, f64) {
    let rounded = x * y;
    (rounded, x.mul_add(y, -rounded))
}

/// The rounded sum of x and y, and its rounding error.
fn total(x: f64, y: f64) -> (f64, f64) {
    let rounded = x + y;
    let part = rounded - x;
    (rounded, (x - (rounded - part)) + (y - part))
}

/// The largest windowwise error, and the relative L2 error.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    pub windowwise: f64,
    pub normwise: f64,
}

/// The errors of `got`. The windowwise error excludes the rounding of each output itself to `T`, because a bias may be
/// larger than the sum it is added to. If nothing is multiplied, any error is infinite.
pub fn measure<T: Element>(wild: &Wild, got: &[f64]) -> Measured {
    let want = wild.exact();
    assert_eq!(got.len(), want.len());
    let (mut windowwise, mut error, mut norm) = (0.0_f64, 0.0, 0.0);
    let largest = want.iter().fold(f64::MIN_POSITIVE, |most, (value, _)| most.max(value.abs()));
    for (got, (want, size)) in got.iter().zip(want) {
        let off = (got - want).abs();
        error += (off / largest).powi(2);
        norm += (want / largest).powi(2);
        // The exact value is rounded to f64 as well.
        let roundings = if T::DTYPE == DType::F64 { 1.0 } else { 0.5 };
        let counted = (off - T::EPSILON * roundings * want.abs()).max(0.0);
        if counted > 0.0 {
            windowwise = windowwise.max(if size > 0.0 { counted / size } else { f64::INFINITY });
        }
    }
    Measured { windowwise, normwise: if error == 0.0 { 0.0 } else { (error / norm).sqrt() } }
}
