//! The paths of a [`ConvKernel`] without strips: planes of depthwise layers, and products of filters with a batch.
//!
//! Relevant if you want to change how these layers are computed; callers need only [`ConvKernel`].
//!
//! Invariant: threads write to disjoint parts of the outputs, and each has its own part of the scratch.

use super::compute::{PIECES_PER_THREAD, go_on, take};
use super::depthwise::{Depthwise, Planes};
use super::kernel::{Call, ConvKernel, Scratch};
use crate::array::{Element, Matrix, MatrixMut, matmul_on};
use crate::error::Result;
use crate::share::try_share;

/// Multiply-adds between two checks of `stop` where no strip divides the work: about a millisecond.
const PRODUCT_MACS: usize = 1 << 25;
/// Rows of a product of filters with a batch are a multiple of this if there are enough.
const ROW_STEP: usize = 64;
/// Output elements of planes between two checks of `stop`: some tens of microseconds.
const PLANES_ELEMS: usize = 1 << 17;

impl ConvKernel {
    /// Computes planes one after the other; each thread takes some of them.
    pub(super) fn planewise<T: Element>(
        &self,
        plan: &Depthwise,
        scratch: &mut Scratch<T>,
        call: Call<'_, '_, T>,
    ) -> Result<()> {
        let g = &self.geometry;
        let (item, out_item) = (g.in_channels * g.input_plane, g.out_channels * g.output_plane);
        let (plane, row) = plan.with_margins();
        let spares = take(&mut scratch.staged, plane * call.threads);
        let inside = take(&mut scratch.wide, row);
        plan.mark(inside);
        let inside = &*inside;
        let per_task = g.out_channels.div_ceil(call.threads * PIECES_PER_THREAD);
        let at_once = (PLANES_ELEMS / g.output_plane).clamp(1, per_task);
        for (bank, output) in call.banks.iter().zip(call.outputs.iter_mut()) {
            for (input, output) in call.input.chunks_exact(item).zip(output.chunks_exact_mut(out_item)) {
                let pieces = output.chunks_mut(at_once * g.output_plane).enumerate();
                try_share(spares.chunks_mut(plane), pieces, |spare, (index, output)| {
                    go_on(call.stop)?;
                    let first = index * at_once;
                    Planes { plan, input, filters: bank, inside, spare, first, output }.compute();
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// Multiplies the filters with the batch, where each channel has one output point.
    pub(super) fn dense<T: Element>(&self, scratch: &mut Scratch<T>, call: Call<'_, '_, T>) -> Result<()> {
        let g = &self.geometry;
        let (terms, group_out) = (g.reduction(), g.group_out());
        // With one output point the staged taps are dense, so a column of the product is a batch item.
        let staged = if g.in_place {
            call.input
        } else {
            let staged = take(&mut scratch.staged, call.input.len() / g.input_plane * g.plane);
            g.stage(call.input, staged, g.band(0), self.band_rows, call.threads);
            staged
        };
        let rows = (PRODUCT_MACS / (terms * g.batch)).max(ROW_STEP);
        for group in 0..g.groups {
            for first in (0..group_out).step_by(rows) {
                let count = rows.min(group_out - first);
                let channel = group * group_out + first;
                let columns =
                    Matrix::new(&staged[group * terms..], terms, g.batch, 1, g.in_channels * g.plane);
                for (bank, output) in call.banks.iter().zip(call.outputs.iter_mut()) {
                    go_on(call.stop)?;
                    let filters = Matrix::dense(&bank.plain()[channel * terms..], count, terms);
                    let output = &mut output[channel..];
                    let mut output = MatrixMut::new(output, count, g.batch, 1, g.out_channels);
                    matmul_on(&mut output, filters, columns, false, call.threads);
                }
            }
        }
        Ok(())
    }
}
