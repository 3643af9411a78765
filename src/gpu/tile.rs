//! Tile sizes of kernels, and the windows that are unrolled.
//!
//! Relevant if you want to change a kernel. Pure data of a layer's shape.
//!
//! Invariant: a window describes the inputs of every output of the layer.

use crate::array::DType;
use crate::conv::{AXES, ConvShape};

/// Tile sizes of a kernel: registers per thread, threads per workgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// Output channels per thread.
    pub(super) channels: u32,
    /// Columns per thread.
    pub(super) columns: u32,
    /// Rows of that many columns per thread in `patch.wgsl`; 0 for other kernels, whose columns are flattened pixels.
    pub(super) rows: u32,
    /// Threads along the columns; all threads of a workgroup except in `tiled`, which is 16 x 16.
    pub(super) workgroup_x: u32,
}

/// The window of each output, along y and x, for layers that `patch.wgsl` supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Window {
    kernel: [u32; 2],
    stride: [u32; 2],
    /// Whether a group has more than one input channel, and whether all of them make more than one run.
    channels: bool,
    long: bool,
}

impl Window {
    /// Maximum number of taps and maximum step along an axis, since unrolled code has to be compiled.
    const MOST_TAPS: usize = 7;
    const MOST_STRIDE: usize = 2;

    /// The window of `shape`; `None` if `patch.wgsl` does not support it.
    pub(super) fn of(shape: &ConvShape) -> Option<Self> {
        let mut window = [(1, 1); AXES];
        for (axis, (taps, step)) in window.iter_mut().enumerate() {
            *taps = shape.kernel[axis];
            // Steps that are never taken may be of any size.
            let dilation = if *taps == 1 { 1 } else { shape.dilation[axis] };
            *step = if shape.output[axis] == 1 { 1 } else { shape.stride[axis] };
            if *taps > Self::MOST_TAPS || *step > Self::MOST_STRIDE || dilation != 1 {
                return None;
            }
        }
        let [(1, _), y, x] = window else { return None };
        let few = |count: usize| u32::try_from(count).expect("at most MOST_TAPS");
        let group_in = shape.in_channels / shape.groups;
        (shape.output[0] == 1).then_some(Self {
            kernel: [y.0, x.0].map(few),
            stride: [y.1, x.1].map(few),
            channels: group_in > 1,
            long: group_in * y.0 * x.0 > F32_RUN as usize,
        })
    }

    /// Number of taps in all rows.
    pub(super) fn taps(self) -> u32 {
        self.kernel[0] * self.kernel[1]
    }

    /// Work of a thread for each input channel: loads, and other vector instructions.
    pub(super) fn work(self, tile: Tile) -> (u32, u32) {
        let counts = self.counts(tile, DType::F32);
        let count = |name| number(name, &counts);
        let shifts = count("IN_ROWS") * (count("ELEMS") + count("ELEMS_1"));
        let loads = count("IN_ROWS") * count("QUADS") + count("TAP_QUADS");
        (loads, 2 * (self.taps() * tile.rows * tile.columns + shifts))
    }

    /// The repetition counts of the text of `patch.wgsl`.
    pub(super) fn counts(self, tile: Tile, dtype: DType) -> Vec<(&'static str, u32)> {
        let Self { kernel: [kh, kw], stride: [stride_y, stride_x], channels, long } = self;
        let (rows, pixels) = (tile.rows, tile.columns);
        let elems = (pixels - 1) * stride_x + kw;
        vec![
            ("ROWS", rows),
            ("PIXELS", pixels),
            ("KH", kh),
            ("KW", kw),
            ("STRIDE_Y", stride_y),
            ("STRIDE_X", stride_x),
            ("TAP_QUADS", self.taps().div_ceil(4)),
            // The slab: rows, elements per row, and the quads that hold them for any position of the first element.
            ("IN_ROWS", (rows - 1) * stride_y + kh),
            ("ELEMS", elems),
            ("ELEMS_1", elems + 1),
            ("QUADS", (elems + 3).div_ceil(4)),
            ("LOOPS", u32::from(channels)),
            ("LONG", u32::from(long && dtype == DType::F32)),
            ("RUN_CHANNELS", F32_RUN / self.taps()),
        ]
    }
}

/// Terms that an f32 kernel sums before it adds them to a total (see `common.wgsl`).
pub(super) const F32_RUN: u32 = 128;

/// Steps of K in a tile of the `tiled` kernel, such that each of its 256 threads fetches four steps of one column.
pub(super) fn depth(tile: Tile) -> usize {
    (64 / tile.columns) as usize
}

/// A count by name, or a literal number.
pub(super) fn number(name: &str, known: &[(&str, u32)]) -> u32 {
    known
        .iter()
        .find(|(other, _)| *other == name)
        .map_or_else(|| name.parse().expect("a known name or a number"), |(_, number)| *number)
}
