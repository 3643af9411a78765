//! The uniform block of all kernels, in the layout of the shaders.
//!
//! Matches the `Params` of `shaders/common.wgsl` field for field, which documents them; a test in `shaders.rs` compares
//! the offsets. Invariant: only 32-bit fields, so Rust and WGSL use the same layout.

use bytemuck::{Pod, Zeroable};

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct Params {
    pub(super) columns: u32,
    pub(super) out_plane: u32,
    pub(super) out_h: u32,
    pub(super) out_w: u32,
    pub(super) out_channels: u32,
    pub(super) group_out: u32,
    pub(super) in_channels: u32,
    pub(super) group_in: u32,
    pub(super) in_plane: u32,
    pub(super) in_row: u32,
    pub(super) in_slice: u32,
    pub(super) taps: u32,
    pub(super) kernel_h: u32,
    pub(super) kernel_w: u32,
    pub(super) stride_z: u32,
    pub(super) stride_y: u32,
    pub(super) stride_x: u32,
    pub(super) step_x: u32,
    pub(super) step_y: u32,
    pub(super) step_z: u32,
    pub(super) dilated_row: u32,
    pub(super) dilated_slice: u32,
    pub(super) column_blocks: u32,
    pub(super) channel_blocks: u32,
    pub(super) first_workgroup: u32,
    pub(super) end_workgroup: u32,
    pub(super) grid_x: u32,
    pub(super) channel_begin: u32,
    pub(super) channel_end: u32,
    pub(super) tap_begin: u32,
    pub(super) tap_end: u32,
    pub(super) accumulate: u32,
    pub(super) last_tap: u32,
    pub(super) splits: u32,
    pub(super) split_steps: u32,
    pub(super) outputs: u32,
}

/// Name and offset of every field, for comparison with the shaders in a test.
#[cfg(test)]
pub(super) fn offsets() -> Vec<(&'static str, usize)> {
    macro_rules! offsets {
        ($($field:ident),* $(,)?) => {{
            // Fails to compile when a field is missing here.
            let Params { $($field: _),* } = Params::default();
            vec![$((stringify!($field), std::mem::offset_of!(Params, $field))),*]
        }};
    }
    offsets!(
        columns,
        out_plane,
        out_h,
        out_w,
        out_channels,
        group_out,
        in_channels,
        group_in,
        in_plane,
        in_row,
        in_slice,
        taps,
        kernel_h,
        kernel_w,
        stride_z,
        stride_y,
        stride_x,
        step_x,
        step_y,
        step_z,
        dilated_row,
        dilated_slice,
        column_blocks,
        channel_blocks,
        first_workgroup,
        end_workgroup,
        grid_x,
        channel_begin,
        channel_end,
        tap_begin,
        tap_end,
        accumulate,
        last_tap,
        splits,
        split_steps,
        outputs,
    )
}
