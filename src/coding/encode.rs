//! Encoding: coded slabs for every subtask of a run, coded filter banks for one subtask of a layer.

use std::borrow::Cow;

use rayon::prelude::*;

use super::code::Code;
use super::combine::{combine, nonzero};
use crate::array::Element;
use crate::conv::ConvShape;
use crate::partition::{FilterPartition, InputPartition};

/// Elements of one block of coded filters, and of coded slabs where planes are too few to go by.
const BLOCK: usize = 4096;

/// Sources of one block, as f64, for all subtasks' combinations: they stay in the innermost cache.
const WIDE_ELEMS: usize = 4096;
const LEAST_WIDE: usize = 64;

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
    encode_first(code.n(), code, shape, parts, input, spare)
}

/// As [`encode_input`], with one buffer for all subtasks where they have the same slabs ([`Code::shares_slabs`]), as with
/// k_A = 1: then nothing is coded but the filters.
pub fn encode_distinct<T: Element>(
    code: &Code,
    shape: &ConvShape,
    parts: &InputPartition,
    input: &[T],
    spare: Vec<Vec<T>>,
) -> Vec<Vec<T>> {
    encode_first(if code.shares_slabs() { 1 } else { code.n() }, code, shape, parts, input, spare)
}

/// The coded slabs of the first `subtasks` subtasks.
fn encode_first<T: Element>(
    subtasks: usize,
    code: &Code,
    shape: &ConvShape,
    parts: &InputPartition,
    input: &[T],
    spare: Vec<Vec<T>>,
) -> Vec<Vec<T>> {
    let planes = shape.batch * shape.in_channels;
    // With planes enough for every thread each is padded in the cache, where it is read from at once.
    let by_plane = planes >= 2 * rayon::current_num_threads();
    let pad_each = by_plane && !parts.is_in_place();
    let covered = if parts.is_in_place() || by_plane {
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
    coded.resize_with(subtasks, Vec::new);
    for buffer in &mut coded {
        buffer.resize(code.l_a() * planes * slab, T::default());
    }

    // One job a plane, or a part of one: it reads its k_A sources once and writes to every subtask.
    let length = if by_plane { slab } else { BLOCK };
    let segments = slab.div_ceil(length);
    let mut jobs: Vec<Vec<(usize, usize, &mut [T])>> =
        (0..planes * segments).map(|_| Vec::with_capacity(subtasks * code.l_a())).collect();
    for (subtask, buffer) in coded.iter_mut().enumerate() {
        for (at, rows) in buffer.chunks_mut(slab).enumerate() {
            let (p, plane) = (at / planes, at % planes);
            for (segment, piece) in rows.chunks_mut(length).enumerate() {
                jobs[plane * segments + segment].push((subtask, p, piece));
            }
        }
    }
    let sources = Sources { code, step: parts.step_elems() };
    jobs.into_par_iter().enumerate().for_each_init(
        || (Vec::new(), Vec::new()),
        |(padded, wide), (job, pieces)| {
            let (plane, start) = (job / segments, job % segments * length);
            let whole = &covered[plane * pitch..][..pitch];
            if pad_each {
                padded.resize(parts.covered_plane(), T::default());
                parts.cover(whole, padded);
                sources.combine(&padded[start..], wide, pieces);
            } else {
                sources.combine(&whole[start..], wide, pieces);
            }
        },
    );
    coded
}

/// k_A runs of one plane, `step` elements apart, and the combinations of them that are wanted.
struct Sources<'a> {
    code: &'a Code,
    step: usize,
}

impl Sources<'_> {
    /// Writes to each of `pieces` (subtask, p, elements), which are equally long, its combination of the runs that begin
    /// with `from`. `wide` is room to work in.
    fn combine<T: Element>(
        &self,
        from: &[T],
        wide: &mut Vec<f64>,
        mut pieces: Vec<(usize, usize, &mut [T])>,
    ) {
        let (k_a, l_a) = (self.code.k_a(), self.code.l_a());
        let length = pieces.first().map_or(0, |(.., piece)| piece.len());
        let coefficient = |subtask: usize, p: usize, a: usize| self.code.input_block(subtask)[a * l_a + p];
        let copied = |subtask: usize, p: usize| {
            let mut terms = (0..k_a).filter(|a| coefficient(subtask, p, *a) != 0.0);
            let one = terms.next().filter(|a| coefficient(subtask, p, *a) == 1.0);
            one.filter(|_| terms.next().is_none())
        };
        // What is merely copied needs no sums, and no wider numbers.
        pieces.retain_mut(|(subtask, p, piece)| match copied(*subtask, *p) {
            Some(a) => {
                piece.copy_from_slice(&from[a * self.step..][..length]);
                false
            }
            None => true,
        });
        if pieces.is_empty() {
            return;
        }
        // Widened once for all combinations; as short as fits the cache.
        let block = (WIDE_ELEMS / k_a).max(LEAST_WIDE);
        for start in (0..length).step_by(block) {
            let count = block.min(length - start);
            wide.clear();
            for a in 0..k_a {
                wide.extend(from[a * self.step + start..][..count].iter().map(|v| v.to_f64()));
            }
            let mut terms = Vec::with_capacity(k_a);
            for (subtask, p, piece) in &mut pieces {
                let rows = wide.chunks_exact(count).enumerate();
                terms.clear();
                terms.extend(nonzero(rows.map(|(a, row)| (coefficient(*subtask, *p, a), row))));
                combine(&mut piece[start..start + count], &terms);
            }
        }
    }
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
