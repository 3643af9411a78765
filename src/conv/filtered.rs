//! Executes the plan of a [`ConvKernel`] that filters: transforms windows, multiplies, transforms back.
//!
//! Relevant if you want to change how 3 x 3 layers with many channels are computed; callers need only [`ConvKernel`]. The
//! transformations are in [`winograd`](super::winograd). Threads share rows of tiles or, where those are few, output
//! channels.
//!
//! Invariant: threads write to disjoint parts of the outputs, and each has its own part of the scratch.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use std::ops::Range;

use pulp::Simd;

use super::compute::{go_on, take};
use super::filters::Block;
use super::kernel::{Call, ConvKernel, Scratch};
use super::panels::{self, multiply};
use super::winograd::{Filtering, PRODUCTS, Pass, TILE, backward, forward, temporary_of};
use crate::array::Element;
use crate::error::Result;
use crate::share::try_share;

/// Bytes of the products that are transformed back at once.
const PRODUCTS_BYTES: usize = 256 << 10;

/// Rows of tiles of some output channels of a group, over one bank after the other.
struct Part<'a, T> {
    rows: Range<usize>,
    /// Blocks of filters, numbered over the banks.
    blocks: Range<usize>,
    /// The outputs of these rows, a slice a channel.
    outputs: Vec<&'a mut [T]>,
}

impl ConvKernel {
    /// Computes one call by minimal filtering.
    pub(super) fn filtered<T: Element>(
        &self,
        plan: &Filtering,
        scratch: &mut Scratch<T>,
        call: Call<'_, '_, T>,
    ) -> Result<()> {
        let (shape, g) = (&self.shape, &self.geometry);
        let (banks, stop) = (call.banks, call.stop);
        let blocks = self.layout.blocks();
        let (item, group_elems) = (g.group_in() * g.input_plane, g.group_out() * g.output_plane);
        let (rows, channel_parts) = plan.shares(call.threads, blocks * banks.len());
        let whole = Pass {
            rows: 0..rows,
            columns: 0..plan.columns,
            input: [shape.input[1], shape.input[2]],
            output: [shape.output[1], shape.output[2]],
            pad: [shape.pad_begin[1], shape.pad_begin[2]],
        };
        let windows = PRODUCTS * g.group_in() * whole.pitch();
        let room = Room::of(&whole, blocks * banks.len(), self.layout.width());
        let staged = take(&mut scratch.staged, windows * call.threads);
        let wide = take(&mut scratch.wide, room.elems() * call.threads);
        let each = (blocks * banks.len()).div_ceil(channel_parts);
        for (index, input) in call.input.chunks_exact(item).enumerate() {
            let (n, group) = (index / g.groups, index % g.groups);
            let at = (n * g.groups + group) * group_elems;
            let mut parts = Vec::new();
            for from in (0..plan.tiles[0]).step_by(rows) {
                for first in (0..blocks * banks.len()).step_by(each) {
                    let blocks = first..(first + each).min(blocks * banks.len());
                    let rows = from..(from + rows).min(plan.tiles[0]);
                    parts.push(Part { rows, blocks, outputs: Vec::new() });
                }
            }
            let per_rows = parts.len().div_ceil(plan.tiles[0].div_ceil(rows));
            for (bank, output) in call.outputs.iter_mut().enumerate() {
                for (channel, plane) in output[at..][..group_elems].chunks_mut(g.output_plane).enumerate() {
                    let block = bank * blocks + channel / self.layout.width();
                    let pieces = plane.chunks_mut(TILE * rows * whole.output[1]);
                    for (parts, piece) in parts.chunks_mut(per_rows).zip(pieces) {
                        parts[block / each].outputs.push(piece);
                    }
                }
            }
            let memory = staged.chunks_mut(windows).zip(wide.chunks_mut(room.elems()));
            try_share(memory, parts.iter_mut(), |(staged, wide), part| {
                let block = |x: usize, index: usize| {
                    banks[index / blocks].block(x * g.groups + group, index % blocks)
                };
                for columns in (0..plan.tiles[1]).step_by(plan.columns) {
                    let columns = columns..(columns + plan.columns).min(plan.tiles[1]);
                    let pass = Pass { rows: part.rows.clone(), columns, ..whole.clone() };
                    go_on(stop)?;
                    if !call.staged {
                        forward(&pass, input, staged, wide);
                    }
                    self.products(&pass, &block, (staged, wide), &room, part, stop)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Multiplies the transformed windows of a pass with the filters of a part, and transforms the products back.
    fn products<'f, T: Element>(
        &self,
        pass: &Pass,
        block: &(impl Fn(usize, usize) -> Block<'f, T> + Sync),
        (windows, wide): (&[T], &mut [T]),
        room: &Room,
        part: &mut Part<'_, T>,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<()> {
        let (inputs, width) = (self.geometry.group_in(), self.layout.width());
        let mut outputs = part.outputs.iter_mut();
        let mut first = part.blocks.start;
        while first < part.blocks.end {
            go_on(stop)?;
            let count = room.blocks.min(part.blocks.end - first);
            let (products, temporary) = wide.split_at_mut(PRODUCTS * room.blocks * width * room.pitch);
            let pitch = pass.pitch();
            let block = |x: usize, index: usize| block(x, first + index);
            pulp::Arch::new().dispatch(Products {
                tiles: pass.tiles(),
                inputs,
                windows,
                blocks: count,
                width,
                block: &block,
                to: &mut *products,
                pitch,
            });
            for index in 0..count {
                for (channel, output) in (0..block(0, index).channels).zip(&mut outputs) {
                    let products = &products[(index * width + channel) * pitch..];
                    backward(pass, (products, count * width * pitch), temporary, output);
                }
            }
            first += count;
        }
        Ok(())
    }
}

/// The memory of a thread beside the transformed windows.
struct Room {
    /// Blocks of filters whose products are transformed back at once.
    blocks: usize,
    width: usize,
    pitch: usize,
    temporary: usize,
}

impl Room {
    fn of(pass: &Pass, blocks: usize, width: usize) -> Self {
        let pitch = pass.pitch();
        let most = PRODUCTS_BYTES / (PRODUCTS * pitch * width * size_of::<f32>());
        let temporary = temporary_of(pass);
        Self { blocks: most.clamp(1, blocks), width, pitch, temporary }
    }

    fn elems(&self) -> usize {
        PRODUCTS * self.blocks * self.width * self.pitch + self.temporary
    }
}

/// The products of the transformed windows of a pass with some blocks of filters.
struct Products<'a, T, F> {
    tiles: usize,
    inputs: usize,
    windows: &'a [T],
    blocks: usize,
    /// Channels of a block, with padding.
    width: usize,
    block: &'a F,
    /// `[16, blocks * width, pitch]`.
    to: &'a mut [T],
    pitch: usize,
}

impl<'f, T: Element, F: Fn(usize, usize) -> Block<'f, T>> pulp::WithSimd for Products<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 { self.all::<S, 8, 3>(simd) } else { self.all::<S, 6, 2>(simd) }
    }
}

impl<'f, T: Element, F: Fn(usize, usize) -> Block<'f, T>> Products<'_, T, F> {
    #[inline(always)]
    fn all<S: Simd, const W: usize, const N: usize>(self, simd: S) {
        let lanes = size_of::<T::Vector<S>>() / size_of::<T>();
        let (width, all) = (N * lanes, self.tiles.next_multiple_of(lanes));
        let run = panels::run(self.inputs);
        for x in 0..PRODUCTS {
            let windows = &self.windows[x * all * self.inputs..][..all * self.inputs];
            let products = &mut self.to[x * self.blocks * self.width * self.pitch..];
            let block = |index: usize| (self.block)(x, index);
            for first in (0..self.inputs).step_by(run) {
                let count = run.min(self.inputs - first);
                for at in (0..all).step_by(width) {
                    let points = (all - at).min(width);
                    let panel = (&windows[at * self.inputs + first * points..], points);
                    let (terms, to) = ((first, count), (self.pitch, first > 0));
                    multiply::<S, T, W, N>(simd, panel, terms, self.blocks, &block, &mut products[at..], to);
                }
            }
        }
    }
}
