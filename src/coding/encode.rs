//! Encoding: coded slabs for every subtask of a run, coded filter banks for one subtask of a layer.

use std::borrow::Cow;

use rayon::prelude::*;

use super::code::Code;
use super::combine::{combine, nonzero};
use crate::array::Element;
use crate::conv::ConvShape;
use crate::partition::{FilterPartition, InputPartition};

/// Elements of one row block: k_A source blocks stay in cache while all subtasks' slabs are made from them.
const BLOCK: usize = 4096;

/// The coded slabs of all n subtasks, each `[l_A, N, C, slab spatial...]` in the buffer that is sent.
///
/// `input` is `[N, C, spatial...]` of `shape`; it is padded and extended in the same pass. Runs on all threads
/// of the current rayon pool. Cost: k_A multiply-adds for each coded element. `spare` holds buffers of earlier
/// calls to be used again, in any number and of any length: fresh memory costs more than the arithmetic.
pub fn encode_input<T: Element>(
    code: &Code,
    shape: &ConvShape,
    parts: &InputPartition,
    input: &[T],
    spare: Vec<Vec<T>>,
) -> Vec<Vec<T>> {
    let planes = shape.batch * shape.in_channels;
    let covered = if parts.is_in_place() {
        Cow::Borrowed(input)
    } else {
        let mut covered = vec![T::default(); planes * parts.covered_plane()];
        covered
            .par_chunks_mut(parts.covered_plane())
            .zip(input.par_chunks(shape.input_plane()))
            .for_each(|(to, from)| parts.cover(from, to));
        Cow::Owned(covered)
    };
    let pitch = covered.len() / planes;
    let slab = parts.slab_plane();
    let mut coded = spare;
    coded.resize_with(code.n(), Vec::new);
    for buffer in &mut coded {
        buffer.resize(code.l_a() * planes * slab, T::default());
    }

    // One job a block of one channel: it reads its k_A source blocks once and writes to every subtask.
    let blocks = slab.div_ceil(BLOCK);
    let mut jobs: Vec<Vec<(usize, usize, &mut [T])>> =
        (0..planes * blocks).map(|_| Vec::with_capacity(code.n() * code.l_a())).collect();
    for (subtask, buffer) in coded.iter_mut().enumerate() {
        for (at, rows) in buffer.chunks_mut(slab).enumerate() {
            let (p, plane) = (at / planes, at % planes);
            for (block, piece) in rows.chunks_mut(BLOCK).enumerate() {
                jobs[plane * blocks + block].push((subtask, p, piece));
            }
        }
    }
    jobs.into_par_iter().enumerate().for_each(|(job, pieces)| {
        let start = job / blocks * pitch + job % blocks * BLOCK;
        let mut terms = Vec::with_capacity(code.k_a());
        for (subtask, p, piece) in pieces {
            let coefficients = code.input_block(subtask);
            terms.clear();
            terms.extend(nonzero((0..code.k_a()).map(|a| {
                let from = start + a * parts.step_elems();
                (coefficients[a * code.l_a() + p], &covered[from..from + piece.len()])
            })));
            combine(piece, &terms);
        }
    });
    coded
}

/// The coded filter banks of one subtask, `[l_B, g * per_group, C/g, kernel...]`.
///
/// `banks` are the k_B plain banks of [`FilterPartition::split`].
#[must_use]
pub fn encode_filters<T: Element>(
    code: &Code,
    parts: &FilterPartition,
    banks: &[T],
    subtask: usize,
) -> Vec<T> {
    let bank = parts.bank_elems();
    let mut coded = vec![T::default(); code.l_b() * bank];
    let coefficients = code.filter_block(subtask);
    for (r, out) in coded.chunks_mut(bank).enumerate() {
        out.par_chunks_mut(BLOCK).enumerate().for_each(|(block, piece)| {
            let terms = nonzero((0..code.k_b()).map(|b| {
                let from = b * bank + block * BLOCK;
                (coefficients[b * code.l_b() + r], &banks[from..from + piece.len()])
            }));
            combine(piece, &terms.collect::<Vec<_>>());
        });
    }
    coded
}
