//! The transposed convolution (ONNX `ConvTranspose`), and its computation as one convolution.
//!
//! On every axis, input element x and kernel tap t add to the output at `stride * x + dilation * t - pad_begin`. Two taps
//! reach the same output elements exactly if they differ by a multiple of `stride / gcd(stride, dilation)`. The taps
//! therefore fall into classes, the *phases* of an axis. The outputs of one phase are a convolution with stride 1 of the
//! input with the taps of the phase in reverse order. [`Phases`] makes one convolution of all phases: kernels are
//! filled up with zeros to a common length, and each output channel becomes as many channels as there are phases.
//! The output is obtained by interleaving these channels ([`Interleave`]).
//!
//! Relevant if you want to know how a transposed convolution is coded: as the convolution of its phases.
//!
//! Invariant: [`TransposedShape::reference`] adds the products where the definition places them and shares no index
//! arithmetic with [`Phases`], so that each checks the other.

use std::ops::Range;

use rayon::prelude::*;

use super::params::{AXES, ConvParams, ConvShape, at_least_one, elems, per_axis};
use super::reference::points;
use crate::array::{Element, check_elems};
use crate::error::{Error, Result};
use crate::ops::{Interleave, PhaseRun};

/// A validated transposed convolution in canonical form (see [`AXES`]).
///
/// # Examples
///
/// ```
/// use fcdcc::ConvParams;
/// use fcdcc::conv::TransposedShape;
///
/// // Twice as many rows and columns, with kernels of 4 x 4.
/// let params = ConvParams::default().stride([2]).padding([1]);
/// let shape = TransposedShape::new(&[1, 8, 5, 6], &[8, 3, 4, 4], &params, &[10, 12])?;
/// assert_eq!(shape.output_shape(), [1, 3, 10, 12]);
/// let phases = shape.phases()?;
/// assert_eq!((phases.conv().out_channels, phases.conv().kernel), (4 * 3, [1, 2, 2]));
/// # Ok::<(), fcdcc::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TransposedShape {
    /// Number of spatial axes of the user's arrays: 1, 2 or 3.
    pub rank: usize,
    /// Batch size N.
    pub batch: usize,
    /// Input channels C.
    pub in_channels: usize,
    /// Output channels O.
    pub out_channels: usize,
    /// Groups g.
    pub groups: usize,
    /// Spatial size of the input.
    pub input: [usize; AXES],
    /// Spatial size of the kernel.
    pub kernel: [usize; AXES],
    /// Distance of the outputs of neighbouring inputs.
    pub stride: [usize; AXES],
    /// Distance of the outputs of neighbouring taps.
    pub dilation: [usize; AXES],
    /// Elements removed from the start of each axis.
    pub pad_begin: [usize; AXES],
    /// Spatial size of the output. Elements that no tap reaches hold the bias.
    pub output: [usize; AXES],
}

impl TransposedShape {
    /// Checks that `input` `[N, C, spatial...]`, `weight` `[C, O/groups, kernel...]`, `params` and the spatial size
    /// `output` describe a transposed convolution. Of the padding only the begins are used, since the size of the output
    /// determines the ends.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] or [`Error::Mismatch`], naming both numbers: wrong rank, an axis of size zero, groups
    /// that do not divide the channels, sizes that cannot be addressed.
    pub fn new(input: &[usize], weight: &[usize], params: &ConvParams, output: &[usize]) -> Result<Self> {
        let rank = input.len().saturating_sub(2);
        if !(1..=AXES).contains(&rank) {
            return Err(Error::invalid(
                "rank of the input",
                format!("{} (shape {input:?})", input.len()),
                "give [batch, channels, spatial...] with 1, 2 or 3 spatial axes",
            ));
        }
        if weight.len() != input.len() || output.len() != rank {
            return Err(Error::mismatch(
                "rank of the weight and of the output",
                format!("{} (shape {weight:?}) and {} (size {output:?})", weight.len(), output.len()),
                format!("{} and {rank} (input shape {input:?})", input.len()),
                "give [channels, out/groups, kernel...] with as many axes as the input",
            ));
        }
        for (what, shape) in [("input", input), ("weight", weight), ("output", output)] {
            if shape.contains(&0) {
                let help = "every axis must have at least one element";
                return Err(Error::invalid(format!("shape of the {what}"), shape, help));
            }
        }
        if weight[0] != input[1] {
            return Err(Error::mismatch(
                "channels of the weight (its axis 0)",
                weight[0],
                format!("{} (those of the input)", input[1]),
                "check the weight's layout [channels, out/groups, kernel...]",
            ));
        }
        let groups = params.groups;
        if groups == 0 || !input[1].is_multiple_of(groups) {
            let help = format!("it must divide the {} input channels", input[1]);
            return Err(Error::invalid("groups", groups, help));
        }
        let begins = if params.padding.len() == 2 * rank { &params.padding[..rank] } else { &params.padding };
        let shape = Self {
            rank,
            batch: input[0],
            in_channels: input[1],
            // Groups are at most the channels of the weight, whose product is checked below.
            out_channels: weight[1].saturating_mul(groups),
            groups,
            input: per_axis("input", &input[2..], rank, 1)?,
            kernel: per_axis("kernel", &weight[2..], rank, 1)?,
            stride: per_axis("stride", &params.stride, rank, 1)?,
            dilation: per_axis("dilation", &params.dilation, rank, 1)?,
            pad_begin: per_axis("padding", begins, rank, 0)?,
            output: per_axis("output", output, rank, 1)?,
        };
        at_least_one("stride", &shape.stride)?;
        at_least_one("dilation", &shape.dilation)?;
        elems("input", input)?;
        elems("weight", weight)?;
        elems("output", &[&[shape.batch, shape.out_channels][..], &shape.output].concat())?;
        for axis in 0..AXES {
            // The position of the last tap of the last input, before padding is removed.
            let steps = (shape.input[axis] - 1).checked_mul(shape.stride[axis]);
            let reach = (shape.kernel[axis] - 1).checked_mul(shape.dilation[axis]);
            let last =
                steps.zip(reach).and_then(|(a, b)| a.checked_add(b)?.checked_add(shape.pad_begin[axis]));
            if last.is_none_or(|last| last > isize::MAX as usize) {
                let got = format!("stride {}, dilation {}", shape.stride[axis], shape.dilation[axis]);
                return Err(Error::invalid("a spatial size", got, "positions of outputs must fit in memory"));
            }
        }
        Ok(shape)
    }

    /// Shape of the output, `[N, O, spatial...]`.
    #[must_use]
    pub fn output_shape(&self) -> Vec<usize> {
        [&[self.batch, self.out_channels][..], &self.output[AXES - self.rank..]].concat()
    }

    /// Computes the output by definition, with sums in f64. `input` is `[N, C, spatial...]`, `weight`
    /// `[C, O/groups, kernel...]`, `bias` `[O]`; the result is `[N, O, spatial...]`, all row-major.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the length of a slice does not match the shape.
    pub fn reference<T: Element>(&self, input: &[T], weight: &[T], bias: &[T]) -> Result<Vec<T>> {
        let (from, taps, plane) = (
            self.input.iter().product::<usize>(),
            self.kernel.iter().product::<usize>(),
            self.output.iter().product::<usize>(),
        );
        let (group_in, group_out) = (self.in_channels / self.groups, self.out_channels / self.groups);
        check_elems("elements of the input", input.len(), self.batch * self.in_channels * from)?;
        check_elems("elements of the weight", weight.len(), self.in_channels * group_out * taps)?;
        check_elems("elements of the bias", bias.len(), self.out_channels)?;
        let mut output = vec![T::default(); self.batch * self.out_channels * plane];
        output.par_chunks_mut(plane).enumerate().for_each(|(index, output)| {
            let (n, o) = (index / self.out_channels, index % self.out_channels);
            let mut sums = vec![bias[o].to_f64(); plane];
            for c in o / group_out * group_in..(o / group_out + 1) * group_in {
                let input = &input[(n * self.in_channels + c) * from..][..from];
                let weight = &weight[(c * group_out + o % group_out) * taps..][..taps];
                for (x, value) in points(self.input).zip(input) {
                    for (t, tap) in points(self.kernel).zip(weight) {
                        if let Some(y) = self.reached(x, t) {
                            sums[y] += value.to_f64() * tap.to_f64();
                        }
                    }
                }
            }
            for (value, sum) in output.iter_mut().zip(sums) {
                *value = T::from_f64(sum);
            }
        });
        Ok(output)
    }

    /// The index in an output plane to which input element `x` and tap `t` add, if it is inside.
    fn reached(&self, x: [usize; AXES], t: [usize; AXES]) -> Option<usize> {
        (0..AXES).try_fold(0, |index, axis| {
            let at = x[axis] * self.stride[axis] + t[axis] * self.dilation[axis];
            let at = at.checked_sub(self.pad_begin[axis]).filter(|at| *at < self.output[axis])?;
            Some(index * self.output[axis] + at)
        })
    }

    /// The convolution of all phases.
    ///
    /// # Errors
    /// Those of [`ConvShape::new`]: sizes that cannot be addressed, since zeros are added to kernels and input.
    pub fn phases(&self) -> Result<Phases> {
        let axes: [Axis; AXES] = std::array::from_fn(|axis| Axis::of(self, axis));
        let own = |value: fn(&Axis) -> usize| axes[AXES - self.rank..].iter().map(value);
        let count: usize = axes.iter().map(|axis| axis.phases).product();
        let input = [&[self.batch, self.in_channels][..], &self.input[AXES - self.rank..]].concat();
        let filters = [self.out_channels * count, self.in_channels / self.groups];
        let weight: Vec<usize> = filters.into_iter().chain(own(|axis| axis.taps)).collect();
        let params = ConvParams {
            stride: Vec::new(),
            dilation: own(|axis| axis.dilation).collect(),
            padding: own(|axis| axis.begin).chain(own(|axis| axis.end)).collect(),
            groups: self.groups,
        };
        let conv = ConvShape::new(&input, &weight, &params)?;
        Ok(Phases { of: self.clone(), conv, axes, count })
    }

    /// The numbers u of outputs of a phase, below `most`, whose position `stride * u + dilation * phase - pad_begin` is in
    /// the output.
    fn numbers(&self, axis: usize, phase: usize, most: usize) -> Range<usize> {
        // Positions fit `isize`, so products of two of these fit.
        let wide = |value: usize| i128::try_from(value).unwrap_or(i128::MAX >> 64);
        let shift = wide(self.dilation[axis]) * wide(phase) - wide(self.pad_begin[axis]);
        // The first number whose position is at least `at`.
        let first = |at: i128| {
            let number = -((shift - at).div_euclid(wide(self.stride[axis])));
            usize::try_from(number.clamp(0, wide(most))).unwrap_or(most)
        };
        first(0)..first(wide(self.output[axis]))
    }
}

/// The phases of one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Axis {
    phases: usize,
    /// Distance between taps of the same phase.
    period: usize,
    /// Most taps of a phase.
    taps: usize,
    dilation: usize,
    /// Zeros before and after the input.
    begin: usize,
    end: usize,
    /// The number of the first output of every phase.
    first: usize,
}

impl Axis {
    fn of(shape: &TransposedShape, axis: usize) -> Self {
        let common = gcd(shape.stride[axis], shape.dilation[axis]);
        let (period, dilation) = (shape.stride[axis] / common, shape.dilation[axis] / common);
        let (phases, taps) = (period.min(shape.kernel[axis]), shape.kernel[axis].div_ceil(period));
        let reach = (taps - 1) * dilation;
        let all = (0..phases).map(|phase| shape.numbers(axis, phase, shape.input[axis] + reach));
        let (low, high) = all
            .filter(|numbers| !numbers.is_empty())
            .fold((usize::MAX, 1), |(low, high), numbers| (low.min(numbers.start), high.max(numbers.end)));
        // Where no tap reaches the output, a single number is computed and not used.
        let low = low.min(high - 1);
        Self {
            phases,
            period,
            taps,
            dilation,
            begin: reach.saturating_sub(low),
            end: high.saturating_sub(shape.input[axis]),
            first: low.min(reach),
        }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A transposed convolution as one convolution whose output channel `o * count + p` is phase `p` of channel `o`. The
/// phases of several axes are numbered row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phases {
    of: TransposedShape,
    conv: ConvShape,
    axes: [Axis; AXES],
    count: usize,
}

impl Phases {
    /// The convolution, `[N, C, spatial...]` to `[N, O * count, spatial...]`.
    #[must_use]
    pub fn conv(&self) -> &ConvShape {
        &self.conv
    }

    /// The number of phases of every output channel.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The index in the weight `[C, O/groups, kernel...]` of term `term` (row-major in `[C/groups, kernel...]`) of filter
    /// `filter` of the convolution; `None` for a zero that fills up a kernel.
    #[must_use]
    pub fn source(&self, filter: usize, term: usize) -> Option<usize> {
        let of = &self.of;
        let (group_in, group_out) = (of.in_channels / of.groups, of.out_channels / of.groups);
        let (o, mut phase, mut term) = (filter / self.count, filter % self.count, term);
        let (mut tap, mut distance) = (0, 1);
        for (axis, kernel) in self.axes.iter().zip(of.kernel).rev() {
            let at = phase % axis.phases + (axis.taps - 1 - term % axis.taps) * axis.period;
            if at >= kernel {
                return None;
            }
            tap += at * distance;
            (phase, term, distance) = (phase / axis.phases, term / axis.taps, distance * kernel);
        }
        let c = o / group_out * group_in + term;
        Some((c * group_out + o % group_out) * distance + tap)
    }

    /// The outputs of each phase that are in the output, along an axis.
    #[must_use]
    pub fn runs(&self, axis: usize) -> Vec<PhaseRun> {
        let (of, Axis { phases, first, .. }) = (&self.of, self.axes[axis]);
        let run = |phase: usize| {
            let numbers = of.numbers(axis, phase, first + self.conv.output[axis]);
            // Every phase begins at the first number or later.
            let from = numbers.start.checked_sub(first)?;
            let count = numbers.len();
            let at = (numbers.start.checked_mul(of.stride[axis])?)
                .checked_add(phase.checked_mul(of.dilation[axis])?)?
                .checked_sub(of.pad_begin[axis])?;
            (count > 0).then_some(PhaseRun { phase, from, to: at, step: of.stride[axis], count })
        };
        (0..phases).filter_map(run).collect()
    }

    /// What makes the output of that of the convolution.
    #[must_use]
    pub fn interleave(&self) -> Interleave {
        let runs = std::array::from_fn(|axis| self.runs(axis));
        Interleave::new(self.axes.map(|axis| axis.phases), self.conv.output, self.of.output, runs)
    }
}

#[cfg(test)]
mod tests;
