//! Parameters of a convolution, and the validated shape of a convolution with its input and weight.

use crate::error::{Error, Message, Parameter, Result};

/// Spatial axes in canonical form: a convolution of rank 1 or 2 is one of rank 3 with *leading* axes of size 1,
/// so that the innermost axis is contiguous in every rank.
pub const AXES: usize = 3;

/// Maximum number of elements of any array of a layer, which keeps every later product and byte size inside `isize`.
const MAX_ELEMS: usize = isize::MAX as usize / 64;

/// Stride, padding, dilation and groups as given by the user.
///
/// `stride` and `dilation` are empty (all ones), one number for every axis, or one number for each axis; `padding` is
/// empty (zero), one number, one for each axis, or all begins and then all ends (ONNX `pads` order).
///
/// # Examples
///
/// ```
/// use fcdcc::{ConvParams, ConvShape};
///
/// // A 3x3 convolution that keeps the size of its input.
/// let params = ConvParams::default().padding([1]);
/// let shape = ConvShape::new(&[1, 3, 32, 32], &[8, 3, 3, 3], &params)?;
/// assert_eq!(shape.output_shape(), [1, 8, 32, 32]);
/// # Ok::<(), fcdcc::Error>(())
/// ```
///
/// One number for each axis; a depthwise convolution has as many groups as channels:
///
/// ```
/// use fcdcc::{ConvParams, ConvShape};
///
/// let params = ConvParams::default().stride([2, 1]).groups(8);
/// let shape = ConvShape::new(&[1, 8, 9, 9], &[8, 1, 3, 3], &params)?;
/// assert_eq!(shape.output_shape(), [1, 8, 4, 7]);
/// # Ok::<(), fcdcc::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvParams {
    /// Step of the window, at least 1.
    pub stride: Vec<usize>,
    /// Zeros added around the input.
    pub padding: Vec<usize>,
    /// Distance between kernel taps, at least 1.
    pub dilation: Vec<usize>,
    /// Number of independent channel groups; divides both channel counts.
    pub groups: usize,
}

impl Default for ConvParams {
    fn default() -> Self {
        Self { stride: Vec::new(), padding: Vec::new(), dilation: Vec::new(), groups: 1 }
    }
}

impl ConvParams {
    /// Sets the stride: one number, or one for each axis.
    #[must_use]
    pub fn stride(mut self, stride: impl Into<Vec<usize>>) -> Self {
        self.stride = stride.into();
        self
    }

    /// Sets the padding: one number, one for each axis, or begins then ends.
    #[must_use]
    pub fn padding(mut self, padding: impl Into<Vec<usize>>) -> Self {
        self.padding = padding.into();
        self
    }

    /// Sets the dilation: one number, or one for each axis.
    #[must_use]
    pub fn dilation(mut self, dilation: impl Into<Vec<usize>>) -> Self {
        self.dilation = dilation.into();
        self
    }

    /// Sets the number of groups.
    #[must_use]
    pub fn groups(mut self, groups: usize) -> Self {
        self.groups = groups;
        self
    }
}

/// A validated convolution in canonical form (see [`AXES`]): every size is known and every axis is at least 1.
///
/// # Examples
///
/// ```
/// use fcdcc::{ConvParams, ConvShape};
///
/// let shape = ConvShape::new(&[1, 16, 28, 28], &[32, 16, 3, 3], &ConvParams::default())?;
/// assert_eq!(shape.output_shape(), [1, 32, 26, 26]);
/// assert_eq!(shape.macs(), 32.0 * 26.0 * 26.0 * 16.0 * 9.0);
/// # Ok::<(), fcdcc::Error>(())
/// ```
///
/// Shapes that do not fit together are refused:
///
/// ```
/// use fcdcc::{ConvParams, ConvShape, Error};
///
/// let wrong = ConvShape::new(&[1, 16, 28, 28], &[32, 8, 3, 3], &ConvParams::default());
/// assert!(matches!(wrong, Err(Error::Mismatch { .. })));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
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
    /// Spatial size of the input, without padding.
    pub input: [usize; AXES],
    /// Spatial size of the kernel.
    pub kernel: [usize; AXES],
    /// Stride s.
    pub stride: [usize; AXES],
    /// Dilation d.
    pub dilation: [usize; AXES],
    /// Zeros before the first element of each axis.
    pub pad_begin: [usize; AXES],
    /// Zeros after the last element of each axis.
    pub pad_end: [usize; AXES],
    /// Spatial size of the output (H', W' and so on).
    pub output: [usize; AXES],
}

/// One value for each axis, from an empty slice, one number, or one for each axis, in the last `rank` canonical axes.
pub(super) fn per_axis(what: &str, given: &[usize], rank: usize, absent: usize) -> Result<[usize; AXES]> {
    let mut axes = [absent; AXES];
    let own = &mut axes[AXES - rank..];
    match given.len() {
        0 => {}
        1 => own.fill(given[0]),
        len if len == rank => own.copy_from_slice(given),
        len => {
            return Err(Error::mismatch(
                format!("number of {what} values"),
                len,
                format!("1 or {rank}"),
                format!("give one {what} for all axes or one for each of the {rank} spatial axes"),
            ));
        }
    }
    Ok(axes)
}

fn layout_help() -> Message {
    Message::from("check ")
        .and(Parameter::Groups)
        .and(" and the weight's layout [out, channels/groups, kernel...]")
}

pub(super) fn at_least_one(what: &str, axes: &[usize]) -> Result<()> {
    match axes.iter().position(|v| *v == 0) {
        Some(_) => Err(Error::invalid(what, 0, format!("{what} must be at least 1 on every axis"))),
        None => Ok(()),
    }
}

pub(super) fn elems(what: &str, sizes: &[usize]) -> Result<usize> {
    sizes
        .iter()
        .try_fold(1usize, |product, size| product.checked_mul(*size))
        .filter(|product| *product <= MAX_ELEMS)
        .ok_or_else(|| {
            Error::invalid(
                format!("number of elements of the {what}"),
                format!("{sizes:?}"),
                format!("at most {MAX_ELEMS} elements can be addressed"),
            )
        })
}

impl ConvShape {
    /// Checks that `input` `[N, C, spatial...]`, `weight` `[O, C/groups, kernel...]` and `params` describe a
    /// convolution and computes its output size,
    /// `floor((in + begin + end - dilation*(kernel-1) - 1) / stride) + 1` on every axis.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] or [`Error::Mismatch`], naming both numbers, for every combination that describes no
    /// convolution: wrong rank, an axis of size zero, channel counts that groups do not divide, a kernel longer than
    /// its padded input, sizes whose product cannot be addressed.
    pub fn new(input: &[usize], weight: &[usize], params: &ConvParams) -> Result<Self> {
        let rank = input.len().saturating_sub(2);
        if !(1..=AXES).contains(&rank) {
            return Err(Error::invalid(
                "rank of the input",
                format!("{} (shape {input:?})", input.len()),
                "give [batch, channels, spatial...] with 1, 2 or 3 spatial axes",
            ));
        }
        if weight.len() != input.len() {
            return Err(Error::mismatch(
                "rank of the weight",
                format!("{} (shape {weight:?})", weight.len()),
                format!("{} (input shape {input:?})", input.len()),
                "give [out, channels/groups, kernel...] with as many axes as the input",
            ));
        }
        for (what, shape) in [("input", input), ("weight", weight)] {
            if shape.contains(&0) {
                return Err(Error::invalid(
                    format!("shape of the {what}"),
                    shape,
                    "every axis must have at least one element",
                ));
            }
        }
        let (batch, in_channels, out_channels) = (input[0], input[1], weight[0]);
        let groups = params.groups;
        if groups == 0 || !in_channels.is_multiple_of(groups) || !out_channels.is_multiple_of(groups) {
            return Err(Error::invalid(
                "groups",
                groups,
                format!("it must divide both {in_channels} input and {out_channels} output channels"),
            ));
        }
        if weight[1] != in_channels / groups {
            return Err(Error::mismatch(
                "channels of the weight (its axis 1)",
                weight[1],
                format!("{} ({in_channels} input channels / {groups} groups)", in_channels / groups),
                layout_help(),
            ));
        }
        let stride = per_axis("stride", &params.stride, rank, 1)?;
        let dilation = per_axis("dilation", &params.dilation, rank, 1)?;
        at_least_one("stride", &stride)?;
        at_least_one("dilation", &dilation)?;
        let (pad_begin, pad_end) = if params.padding.len() == 2 * rank {
            (
                per_axis("padding", &params.padding[..rank], rank, 0)?,
                per_axis("padding", &params.padding[rank..], rank, 0)?,
            )
        } else if params.padding.len() <= 1 || params.padding.len() == rank {
            let both = per_axis("padding", &params.padding, rank, 0)?;
            (both, both)
        } else {
            return Err(Error::mismatch(
                "number of padding values",
                params.padding.len(),
                format!("1, {rank} or {}", 2 * rank),
                "give one padding, one an axis, or all begins and then all ends",
            ));
        };
        let mut shape = Self {
            rank,
            batch,
            in_channels,
            out_channels,
            groups,
            input: per_axis("input", &input[2..], rank, 1)?,
            kernel: per_axis("kernel", &weight[2..], rank, 1)?,
            stride,
            dilation,
            pad_begin,
            pad_end,
            output: [1; AXES],
        };
        for axis in 0..AXES {
            let overflow = || {
                Error::invalid(
                    "a spatial size",
                    format!("{input:?} with padding {:?}", params.padding),
                    "padded sizes and kernel extents must fit in memory",
                )
            };
            let padded = shape.input[axis]
                .checked_add(shape.pad_begin[axis])
                .and_then(|v| v.checked_add(shape.pad_end[axis]))
                .ok_or_else(overflow)?;
            let extent = (shape.kernel[axis] - 1)
                .checked_mul(shape.dilation[axis])
                .and_then(|v| v.checked_add(1))
                .ok_or_else(overflow)?;
            if extent > padded {
                return Err(Error::mismatch(
                    format!("extent of the dilated kernel on spatial axis {}", axis + rank - AXES),
                    extent,
                    format!("at most {padded} (the padded input)"),
                    "pad more, dilate less, or use a smaller kernel",
                ));
            }
            shape.output[axis] = (padded - extent) / shape.stride[axis] + 1;
        }
        elems("input", input)?;
        elems("weight", weight)?;
        elems("padded input", &[&[batch, in_channels][..], &shape.padded()].concat())?;
        elems("output", &[&[batch, out_channels][..], &shape.output].concat())?;
        Ok(shape)
    }

    /// Canonical axis that APCP splits: the first spatial axis of the user's arrays.
    #[must_use]
    pub fn split_axis(&self) -> usize {
        AXES - self.rank
    }

    /// Spatial size of the input with its padding.
    #[must_use]
    pub fn padded(&self) -> [usize; AXES] {
        std::array::from_fn(|a| self.input[a] + self.pad_begin[a] + self.pad_end[a])
    }

    /// Length of the dilated kernel on one axis.
    #[must_use]
    pub fn kernel_extent(&self, axis: usize) -> usize {
        (self.kernel[axis] - 1) * self.dilation[axis] + 1
    }

    /// `[N, C, spatial...]`, without the canonical leading axes.
    #[must_use]
    pub fn input_shape(&self) -> Vec<usize> {
        self.seen(self.batch, self.in_channels, &self.input)
    }

    /// `[O, C/groups, kernel...]`.
    #[must_use]
    pub fn weight_shape(&self) -> Vec<usize> {
        self.seen(self.out_channels, self.in_channels / self.groups, &self.kernel)
    }

    /// `[N, O, spatial...]`.
    #[must_use]
    pub fn output_shape(&self) -> Vec<usize> {
        self.seen(self.batch, self.out_channels, &self.output)
    }

    fn seen(&self, first: usize, second: usize, axes: &[usize; AXES]) -> Vec<usize> {
        [&[first, second], &axes[self.split_axis()..]].concat()
    }

    /// Whether Winograd's minimal filtering F(2x2, 3x3) suits the layer: 3 x 3 kernel, no stride or dilation, enough
    /// channels and more than one tile.
    #[must_use]
    pub fn suits_filtering(&self) -> bool {
        /// With fewer channels of either side in a group, the transformation costs more than it saves.
        const LEAST_CHANNELS: usize = 16;
        let [depth, rows, columns] = self.output;
        self.kernel == [1, 3, 3]
            && self.stride[1..] == [1, 1]
            && self.dilation[1..] == [1, 1]
            && (depth, self.input[0]) == (1, 1)
            && (rows > 2 || columns > 2)
            && self.in_channels / self.groups >= LEAST_CHANNELS
            && self.out_channels / self.groups >= LEAST_CHANNELS
    }

    /// Elements of one input channel, without padding.
    #[must_use]
    pub fn input_plane(&self) -> usize {
        self.input.iter().product()
    }

    /// Elements of one output channel.
    #[must_use]
    pub fn output_plane(&self) -> usize {
        self.output.iter().product()
    }

    /// Elements of the input.
    #[must_use]
    pub fn input_elems(&self) -> usize {
        self.batch * self.in_channels * self.input_plane()
    }

    /// Elements of the weight.
    #[must_use]
    pub fn weight_elems(&self) -> usize {
        self.out_channels * self.reduction()
    }

    /// Elements of the output.
    #[must_use]
    pub fn output_elems(&self) -> usize {
        self.batch * self.out_channels * self.output_plane()
    }

    /// Terms of the sum of one output element: C/g times the elements of the kernel.
    #[must_use]
    pub fn reduction(&self) -> usize {
        self.in_channels / self.groups * self.kernel.iter().product::<usize>()
    }

    /// Multiply-adds of the whole convolution (as f64, since only rates are derived from it).
    #[must_use]
    pub fn macs(&self) -> f64 {
        self.output_elems() as f64 * self.reduction() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(input: &[usize], weight: &[usize], params: ConvParams) -> Result<ConvShape> {
        ConvShape::new(input, weight, &params)
    }

    #[test]
    fn output_sizes_of_known_layers() {
        let p = ConvParams::default;
        let cases: &[(&[usize], &[usize], ConvParams, &[usize])] = &[
            (&[1, 3, 227, 227], &[96, 3, 11, 11], p().stride([4]), &[1, 96, 55, 55]),
            (&[1, 64, 56, 56], &[64, 64, 3, 3], p().padding([1]), &[1, 64, 56, 56]),
            (&[2, 3, 224, 224], &[64, 3, 7, 7], p().stride([2]).padding([3]), &[2, 64, 112, 112]),
            (&[1, 8, 14, 14], &[8, 1, 3, 3], p().padding([1]).groups(8), &[1, 8, 14, 14]),
            (&[1, 1, 9], &[4, 1, 3], p().dilation([2]), &[1, 4, 5]),
            (&[1, 2, 5, 6, 7], &[3, 2, 2, 3, 4], p().stride([1, 2, 3]), &[1, 3, 4, 2, 2]),
            (&[1, 1, 5, 5], &[1, 1, 3, 3], p().padding([1, 0, 0, 2]), &[1, 1, 4, 5]),
            (&[1, 1, 4], &[1, 1, 3], p().padding([2, 0]), &[1, 1, 4]),
        ];
        for (input, weight, params, output) in cases {
            let got = shape(input, weight, params.clone()).unwrap();
            assert_eq!(got.output_shape(), *output, "{input:?} {weight:?}");
            assert_eq!(got.input_shape(), *input);
            assert_eq!(got.weight_shape(), *weight);
        }
    }

    #[test]
    fn every_impossible_combination_names_both_numbers() {
        let p = ConvParams::default;
        let cases: &[(&[usize], &[usize], ConvParams, &[&str])] = &[
            (&[3, 8], &[4, 3], p(), &["rank", "2"]),
            (&[1, 1, 2, 2, 2, 2], &[1, 1, 1, 1, 1, 1], p(), &["rank", "6"]),
            (&[1, 3, 8, 8], &[4, 3, 3], p(), &["3 (shape", "4 (input"]),
            (&[1, 3, 0, 8], &[4, 3, 3, 3], p(), &["[1, 3, 0, 8]", "at least one"]),
            (&[1, 3, 8, 8], &[0, 3, 3, 3], p(), &["weight", "[0, 3, 3, 3]"]),
            (&[0, 3, 8, 8], &[4, 3, 3, 3], p(), &["[0, 3, 8, 8]"]),
            (&[1, 3, 8, 8], &[4, 2, 3, 3], p(), &["is 2 where 3"]),
            (&[1, 4, 8, 8], &[4, 4, 3, 3], p().groups(3), &["groups is 3", "4 input"]),
            (&[1, 4, 8, 8], &[4, 4, 3, 3], p().groups(0), &["groups is 0"]),
            (&[1, 3, 8, 8], &[4, 3, 9, 3], p(), &["is 9 where at most 8"]),
            (&[1, 3, 8, 8], &[4, 3, 3, 3], p().dilation([4]), &["is 9 where at most 8"]),
            (&[1, 3, 8, 8], &[4, 3, 3, 3], p().stride([0]), &["stride is 0"]),
            (&[1, 3, 8, 8], &[4, 3, 3, 3], p().dilation([1, 0]), &["dilation is 0"]),
            (&[1, 3, 8, 8], &[4, 3, 3, 3], p().stride([1, 1, 1]), &["is 3 where 1 or 2"]),
            (&[1, 3, 8, 8], &[4, 3, 3, 3], p().padding([1, 1, 1]), &["is 3 where 1, 2 or 4"]),
            (&[1, 3, 8, 8], &[4, 3, 3, 3], p().padding([usize::MAX]), &["fit in memory"]),
            (&[1, 1 << 40, 1 << 30, 1], &[1, 1 << 40, 1, 1], p(), &["can be addressed"]),
        ];
        for (input, weight, params, words) in cases {
            let error = shape(input, weight, params.clone()).unwrap_err().to_string();
            for word in *words {
                assert!(error.contains(word), "{error:?} lacks {word:?}");
            }
        }
    }
}
