//! The convolution kernels, and the choice of one for a layer on a device.

use std::fmt;

use super::device::Caps;
use super::tile::Window;
use crate::array::DType;
use crate::conv::ConvShape;

/// Threads along each side of a workgroup of the `tiled` kernel.
pub(super) const TILED_SIDE: u32 = 16;

/// A convolution kernel; its name is also that of its file in `shaders/` and of its pipelines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// One thread for each output element: the readable baseline.
    Naive,
    /// Several columns of one channel for each thread: groups of few output channels, depthwise above all. If the plan
    /// knows the window, each thread computes a patch of rows and columns: `patch.wgsl`.
    Single,
    /// Register blocking without shared memory, weights as vec4: software adapters without subgroups.
    Direct,
    /// Register blocking with weights distributed over subgroups: software adapters.
    DirectSubgroup,
    /// Implicit GEMM in shared memory: real GPUs.
    Tiled,
}

impl Kernel {
    /// Every kernel.
    pub const ALL: [Self; 5] = [Self::Naive, Self::Single, Self::Direct, Self::DirectSubgroup, Self::Tiled];

    /// Whether the device can run this kernel on elements of `dtype`.
    #[must_use]
    pub fn runs_on(self, caps: &Caps, dtype: DType) -> bool {
        (dtype == DType::F32 || caps.f64)
            && match self {
                Self::Naive | Self::Single | Self::Direct => true,
                Self::DirectSubgroup => caps.subgroup_shuffle,
                Self::Tiled => caps.max_workgroup_invocations >= TILED_SIDE * TILED_SIDE,
            }
    }

    /// The kernel expected to be fastest for `shape` on a device.
    #[must_use]
    pub fn choose(shape: &ConvShape, caps: &Caps, dtype: DType) -> Self {
        let group_out = shape.out_channels / shape.groups;
        // Below this number, most of a block of channels would be padding. Patches are as fast as blocks that are not
        // full once windows have enough taps that each loaded element serves several.
        let patches = caps.software && Window::of(shape).is_some_and(|window| window.taps() >= 9);
        if group_out < if patches { 8 } else { 4 } {
            return Self::Single;
        }
        let order: &[Self] =
            if caps.software { &[Self::DirectSubgroup, Self::Direct] } else { &[Self::Tiled] };
        order.iter().copied().find(|k| k.runs_on(caps, dtype)).unwrap_or(Self::Single)
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Naive => "naive",
            Self::Single => "single",
            Self::Direct => "direct",
            Self::DirectSubgroup => "direct_subgroup",
            Self::Tiled => "tiled",
        })
    }
}
