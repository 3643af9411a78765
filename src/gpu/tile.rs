//! How kernels are cut: tiles, and the windows that are unrolled.
//!
//! Pure data of a layer's shape. Only who changes a kernel needs this module.
//!
//! Invariant: what a window says is what every output of the layer sees.

use crate::array::DType;
use crate::conv::{AXES, ConvShape};

/// Tile sizes of a kernel: registers a thread, threads a workgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// Output channels a thread.
    pub(super) channels: u32,
    /// Columns a thread.
    pub(super) columns: u32,
    /// Rows of so many columns a thread in `patch.wgsl`; 0 elsewhere, where columns know no rows.
    pub(super) rows: u32,
    /// Threads along the columns; all threads of a workgroup except in `tiled`, which is 16 x 16.
    pub(super) workgroup_x: u32,
}

/// How the outputs of a layer see its slab, where that is simple enough for `patch.wgsl`. Along y and x.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Window {
    kernel: [u32; 2],
    stride: [u32; 2],
    /// Whether there is more than one input channel a group, and whether all of them make more than one run.
    channels: bool,
    long: bool,
}

impl Window {
    /// Taps and steps along an axis at most: what is unrolled has to be compiled.
    const MOST_TAPS: usize = 7;
    const MOST_STRIDE: usize = 2;

    /// That of `shape`, where it is simple enough.
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

    /// Taps of all rows.
    pub(super) fn taps(self) -> u32 {
        self.kernel[0] * self.kernel[1]
    }

    /// What a thread does for each input channel: loads, and other instructions on vectors.
    pub(super) fn work(self, tile: Tile) -> (u32, u32) {
        let counts = self.counts(tile, DType::F32);
        let count = |name| number(name, &counts);
        let shifts = count("IN_ROWS") * (count("ELEMS") + count("ELEMS_1"));
        let loads = count("IN_ROWS") * count("QUADS") + count("TAP_QUADS");
        (loads, 2 * (self.taps() * tile.rows * tile.columns + shifts))
    }

    /// What the text of `patch.wgsl` is repeated by.
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
            // Of the slab: rows, elements of each, and the quads that hold those wherever the first one lies.
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

/// Steps of K a tile of the `tiled` kernel holds: so many that each of its 256 threads fetches four steps of one column.
pub(super) fn depth(tile: Tile) -> usize {
    (64 / tile.columns) as usize
}

/// A count by its name, or the number it is.
pub(super) fn number(name: &str, known: &[(&str, u32)]) -> u32 {
    known
        .iter()
        .find(|(other, _)| *other == name)
        .map_or_else(|| name.parse().expect("a known name or a number"), |(_, number)| *number)
}
