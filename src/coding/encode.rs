//! Encoding: coded slabs for every subtask of a run, coded filter banks for one subtask of a layer.
//!
//! A run of columns of a channel is read from the input in place, padded and widened into a panel in the innermost
//! cache, and combined from there into the buffer of every subtask ([`microkernel`](super::microkernel)). The input is
//! read once and each buffer written once, without intermediate copies.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use rayon::prelude::*;

use super::code::Code;
use super::combine::{combine, nonzero};
use super::microkernel::{self, Target};
use super::panel::{LANES, Packed, Panel};
use super::work_split::Units;
use crate::array::{Element, once, same, sized};
use crate::conv::ConvShape;
use crate::ids::SubtaskId;
use crate::partition::{FilterPartition, InputPartition};

/// Elements of one block of coded filters.
const BLOCK: usize = 4096;

/// Encodings of fewer coded elements than this run on the calling thread.
const SMALL: usize = 256 * 1024;

/// The minimum number of columns of a unit.
const LEAST_COLUMNS: usize = 1024;

/// The coded slabs of all n subtasks, each `[l_A, N, C, slab spatial...]` in the buffer that is sent.
///
/// `input` is `[N, C, spatial...]` of `shape`; it is padded and extended in the same pass. Runs on all threads of the
/// current rayon pool, small inputs on the calling thread. Cost: k_A multiply-adds for each coded element. `spare`
/// holds buffers of earlier calls for reuse, in any number and of any length; allocating memory costs more than the
/// arithmetic.
pub fn encode_input<T: Element>(
    code: &Code,
    shape: &ConvShape,
    parts: &InputPartition,
    input: &[T],
    spare: Vec<Vec<T>>,
) -> Vec<Vec<T>> {
    encode_once(code.n(), code, shape, parts, (input, &[]), spare)
}

/// As [`encode_input`], with every slab first multiplied by its scale. Returns a single buffer where all subtasks have
/// the same slabs ([`Code::shares_slabs`]), as with k_A = 1, where only the filters are coded.
///
/// `scales` are `[N, g, k_A]` ([`InputScan::slab_scales`](crate::scaling::InputScan::slab_scales)), or empty: all 1.
///
/// # Panics
/// When the number of scales is neither 0 nor N g k_A.
pub fn encode_distinct<T: Element>(
    code: &Code,
    shape: &ConvShape,
    parts: &InputPartition,
    input: &[T],
    scales: &[f64],
    spare: Vec<Vec<T>>,
) -> Vec<Vec<T>> {
    let slabs = shape.batch * shape.groups * code.k_a();
    assert!(scales.is_empty() || scales.len() == slabs, "a scale for each slab of each image and group");
    let subtasks = if code.shares_slabs() { 1 } else { code.n() };
    encode_once(subtasks, code, shape, parts, (input, scales), spare)
}

/// [`encode_first`], compiled in this crate.
fn encode_once<T: Element>(
    subtasks: usize,
    code: &Code,
    shape: &ConvShape,
    parts: &InputPartition,
    (input, scales): (&[T], &[f64]),
    spare: Vec<Vec<T>>,
) -> Vec<Vec<T>> {
    once!(T as E; fn(
        subtasks: usize = subtasks,
        code: &Code = code,
        shape: &ConvShape = shape,
        parts: &InputPartition = parts,
        input: (&[E], &[f64]) = (bytemuck::cast_slice(input), scales),
        spare: Vec<Vec<E>> = same(spare),
    ) -> Vec<Vec<E>> {
        encode_first(subtasks, code, shape, parts, input, spare)
    }, same)
}

/// The coded slabs of the first `subtasks` subtasks.
fn encode_first<T: Element>(
    subtasks: usize,
    code: &Code,
    shape: &ConvShape,
    parts: &InputPartition,
    (input, scales): (&[T], &[f64]),
    spare: Vec<Vec<T>>,
) -> Vec<Vec<T>> {
    let (planes, slab) = (shape.batch * shape.in_channels, parts.slab_plane());
    let combinations = Combinations::new(subtasks, code, parts, shape.input_plane());
    let rows = combinations.rows.len();
    let mut coded = spare;
    coded.resize_with(subtasks, Vec::new);
    for buffer in &mut coded {
        *buffer = sized(std::mem::take(buffer), code.l_a() * planes * slab);
    }

    let shares = Units::new(planes, slab, LEAST_COLUMNS, rows * planes * slab < SMALL);
    let Units { together, columns, .. } = shares;
    let segments = slab.div_ceil(columns);
    let units = planes.div_ceil(together) * segments;
    let mut pieces: Vec<&mut [T]> = Vec::new();
    pieces.resize_with(units * rows, Default::default);
    for (row, buffer) in coded.iter_mut().flat_map(|buffer| buffer.chunks_mut(planes * slab)).enumerate() {
        for (group, channels) in buffer.chunks_mut(together * slab).enumerate() {
            // A piece of more than one channel holds whole channels.
            for (segment, piece) in channels.chunks_mut(together * columns).enumerate() {
                pieces[(group * segments + segment) * rows + row] = piece;
            }
        }
    }
    let arch = pulp::Arch::new();
    let encode = |(unit, pieces): (usize, &mut [&mut [T]])| {
        let (first, start) = (unit / segments * together, unit % segments * columns);
        let input = &input[first * shape.input_plane()..];
        let scales =
            Scales { all: scales, k_a: code.k_a(), first, channels: shape.in_channels / shape.groups };
        arch.dispatch(Unit { combinations: &combinations, scales, input, start, columns, pieces });
    };
    shares.for_each(&mut pieces, rows, encode);
    coded
}

/// The combinations of k_A runs of a channel that a call computes.
struct Combinations<'a> {
    parts: &'a InputPartition,
    input_plane: usize,
    /// By (subtask, p): the slab that is copied, where the coded slab is a copy. That needs no sums and no wider type.
    rows: Vec<Option<usize>>,
    /// The coefficients of the other rows.
    map: Packed<f64>,
}

impl<'a> Combinations<'a> {
    fn new(subtasks: usize, code: &Code, parts: &'a InputPartition, input_plane: usize) -> Self {
        let (k_a, l_a) = (code.k_a(), code.l_a());
        let coefficient = |row: usize, a: usize| code.input_block(SubtaskId(row / l_a))[a * l_a + row % l_a];
        let copied = |row: usize| {
            let mut terms = (0..k_a).filter(|a| coefficient(row, *a) != 0.0);
            let one = terms.next().filter(|a| coefficient(row, *a) == 1.0);
            one.filter(|_| terms.next().is_none())
        };
        let rows: Vec<Option<usize>> = (0..subtasks * l_a).map(copied).collect();
        let mixed: Vec<usize> = (0..rows.len()).filter(|row| rows[*row].is_none()).collect();
        let map = Packed::new(mixed.len(), k_a, |row, a| coefficient(mixed[row], a));
        Self { parts, input_plane, rows, map }
    }
}

/// The scales of the slabs, indexed by the channels of a unit.
#[derive(Clone, Copy)]
struct Scales<'a> {
    /// `[N, g, k_A]`, or empty.
    all: &'a [f64],
    k_a: usize,
    /// The first channel of the unit, counted over all images.
    first: usize,
    /// Channels of a group.
    channels: usize,
}

impl Scales<'_> {
    /// The scale of slab `a` for channel number `plane` of the unit.
    fn of(&self, plane: usize, a: usize) -> f64 {
        let group = (self.first + plane) / self.channels;
        self.all.get(group * self.k_a + a).copied().unwrap_or(1.0)
    }
}

/// Several whole channels, or `columns` columns of one from `start` on.
struct Unit<'a, 'o, 'b, T> {
    combinations: &'a Combinations<'a>,
    scales: Scales<'a>,
    /// Starts at the first channel.
    input: &'a [T],
    start: usize,
    columns: usize,
    /// The destination of each combination.
    pieces: &'b mut [&'o mut [T]],
}

impl<T: Element> pulp::WithSimd for Unit<'_, '_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self { combinations, scales, input, start, columns, pieces } = self;
        let Combinations { parts, input_plane, rows, map } = combinations;
        let as_they_are = map.rows() == 0 && scales.all.is_empty();
        if parts.is_in_place() && parts.slab_plane() == *input_plane && as_they_are {
            // Channels are contiguous on both sides.
            for piece in pieces {
                piece.copy_from_slice(&input[start..start + piece.len()]);
            }
            return;
        }
        let mut panel = Panel::new(map.sources(), if map.rows() == 0 { 0 } else { columns });
        let mut mixed: Vec<&mut [T]> = Vec::with_capacity(map.rows());
        let mut targets = Vec::with_capacity(map.rows());
        // The first copy of each slab, which later copies are made from.
        let mut first: Vec<Option<&[T]>> = Vec::with_capacity(map.sources());
        for (at_plane, plane) in input.chunks_exact(*input_plane).enumerate() {
            let length = pieces.first().map_or(0, |piece| piece.len().min(columns));
            if length == 0 {
                return;
            }
            mixed.clear();
            first.clear();
            first.resize(map.sources(), None);
            for (piece, copied) in pieces.iter_mut().zip(rows) {
                let (run, rest) = std::mem::take(piece).split_at_mut(length);
                *piece = rest;
                match copied.map(|a| (a, first[a])) {
                    None => mixed.push(run),
                    Some((_, Some(same))) => run.copy_from_slice(same),
                    Some((a, None)) => {
                        let scale = scales.of(at_plane, a);
                        parts.read(plane, a * parts.step_elems() + start, scale, run);
                        first[a] = Some(run);
                    }
                }
            }
            if mixed.is_empty() {
                continue;
            }
            for at in (0..length).step_by(panel.room()) {
                let count = panel.room().min(length - at);
                panel.set_columns(count);
                for a in 0..map.sources() {
                    let from = a * parts.step_elems() + start + at;
                    parts.read(plane, from, scales.of(at_plane, a), panel.row_mut(a, count));
                }
                targets.clear();
                for run in &mut mixed {
                    let (to, rest) = std::mem::take(run).split_at_mut(count);
                    *run = rest;
                    targets.push(Target { to, scale: 1.0, bias: 0.0 });
                }
                microkernel::combine(simd, map, &panel, count.max(LANES), &mut targets, None);
            }
        }
    }
}

/// The coded filter banks of one subtask, `[l_B, g * per_group, C/g, kernel...]`.
///
/// `weight` is `[O, C/g, kernel...]`; each filter is first multiplied by its factor. `factors` are `[O]`
/// ([`FilterScales::factors`](crate::scaling::FilterScales::factors)), or empty: all 1.
///
/// # Panics
/// When the number of factors is neither 0 nor the number of filters.
#[must_use]
pub fn encode_filters<T: Element>(
    code: &Code,
    parts: &FilterPartition,
    weight: &[T],
    factors: &[f64],
    subtask: SubtaskId,
) -> Vec<T> {
    once!(T as E; fn(
        code: &Code = code,
        parts: &FilterPartition = parts,
        weight: &[E] = bytemuck::cast_slice(weight),
        factors: &[f64] = factors,
        subtask: SubtaskId = subtask,
    ) -> Vec<E> {
        encode_banks(code, parts, weight, factors, subtask)
    }, same)
}

/// [`encode_filters`], in the crate that calls it.
fn encode_banks<T: Element>(
    code: &Code,
    parts: &FilterPartition,
    weight: &[T],
    factors: &[f64],
    subtask: SubtaskId,
) -> Vec<T> {
    let (bank, elems) = (parts.bank_elems(), parts.filter_elems());
    assert!(factors.is_empty() || factors.len() * elems == weight.len(), "a factor for each filter");
    let mut coded = vec![T::default(); code.l_b() * bank];
    let coefficients = code.filter_block(subtask);
    let together = BLOCK.div_ceil(elems);
    for (r, out) in coded.chunks_mut(bank).enumerate() {
        out.par_chunks_mut(together * elems).enumerate().for_each(|(block, filters)| {
            let mut terms = Vec::with_capacity(code.k_b());
            for (at, filter) in filters.chunks_exact_mut(elems).enumerate() {
                terms.clear();
                terms.extend(nonzero((0..code.k_b()).filter_map(|b| {
                    let channel = parts.channel(b, block * together + at)?;
                    let factor = factors.get(channel).copied().unwrap_or(1.0);
                    let coefficient = coefficients[b * code.l_b() + r] * factor;
                    Some((coefficient, &weight[channel * elems..][..elems]))
                })));
                combine(filter, &terms);
            }
        });
    }
    coded
}
