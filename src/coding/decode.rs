//! Decoding: computes the output from the sub-results in one pass that also crops, merges, adds the bias and clamps.
//!
//! Columns of the sub-results are combined in vector registers and written to their places in the output
//! ([`microkernel`](super::microkernel)): every sub-result is read once and every output element written once.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use super::decoder::{Decoder, Map};
use super::microkernel::{self, Finish, Target};
use super::panel::{LANES, Packed, PackedPairs, Panel, Sources};
use super::work_split::Units;
use crate::array::{Element, once};
use crate::error::{Error, Result};
use crate::partition::OutputTiling;

/// Decodings of fewer multiply-adds than this run on the calling thread.
const SMALL: usize = 512 * 1024;

/// The minimum number of columns of a unit.
const LEAST_COLUMNS: usize = 512;

/// From this condition number on, f32 results are decoded in f64, because rounding the inverse to f32 would add about
/// as much error as the workers did. Below it the loss is smaller than the rounding of the workers.
const WIDE_CONDITION: f64 = 16.0;

/// The steps between a decoded element and the output: division by the scale of its slab, multiplication by the undo
/// factor of its filter, addition of the bias, clamp.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a, T> {
    /// `[N, g, k_A]`: the scales that the slabs were multiplied by
    /// ([`InputScan::slab_scales`](crate::scaling::InputScan::slab_scales)); empty: all 1.
    pub slab_scales: &'a [f64],
    /// `[O]`: factors that undo the scales of the filters ([`FilterScales::undo`](crate::scaling::FilterScales::undo));
    /// empty: all 1.
    pub filter_undo: &'a [f64],
    /// A power of two that brings the largest output, before the clamp, near or below 1. Squares are summed in this
    /// unit.
    pub unit: f64,
    /// `[O]`, added to the output channels.
    pub bias: Option<&'a [T]>,
    /// Applied after the bias.
    pub clamp: Option<Clamp>,
}

impl<T> Default for Epilogue<'_, T> {
    /// Leaves elements as they are.
    fn default() -> Self {
        Self { slab_scales: &[], filter_undo: &[], unit: 1.0, bias: None, clamp: None }
    }
}

/// The activation `min(max(x, low), high)`, such as ReLU and its bounded variants. It is not linear, so it is
/// applied after decoding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clamp {
    /// Lower bound.
    pub low: f64,
    /// Upper bound; at least `low`.
    pub high: f64,
}

impl Clamp {
    /// `max(x, 0)`.
    pub const RELU: Self = Self { low: 0.0, high: f64::INFINITY };

    /// The clamp as a function on `T`. NaN stays NaN.
    pub fn of<T: Element>(self) -> impl Fn(T) -> T + Copy + Send + Sync {
        let (low, high) = (T::from_f64(self.low), T::from_f64(self.high));
        move |x| {
            let x = if x < low { low } else { x };
            if x > high { high } else { x }
        }
    }
}

/// Decodes, merges, crops and applies the epilogue; overwrites `output`, `[N, O, spatial...]`.
///
/// `results` are the sub-results of [`Decoder::inputs`], in that order, each [`OutputTiling::part_elems`] long. Runs on
/// all threads of the current rayon pool, small layers on the calling thread. Allocates a list of output runs and a few
/// dozen KiB of scratch for each thread. Returns the L2 norm of the output before the clamp, which is not finite if an
/// element is not.
///
/// # Errors
/// [`Error::Mismatch`] when the number or length of the results, the output, the scales or the bias do not fit.
pub fn decode<T: Element>(
    decoder: &Decoder,
    tiling: &OutputTiling,
    results: &[&[T]],
    epilogue: Epilogue<'_, T>,
    output: &mut [T],
) -> Result<f64> {
    let Epilogue { slab_scales, filter_undo, unit, bias, clamp } = epilogue;
    let results = results.iter().copied();
    once!(T as E; fn(
        decoder: &Decoder = decoder,
        tiling: &OutputTiling = tiling,
        results: Vec<&[E]> = results.map(bytemuck::cast_slice).collect(),
        bias: Option<&[E]> = bias.map(bytemuck::cast_slice),
        scales: (&[f64], &[f64], f64) = (slab_scales, filter_undo, unit),
        clamp: Option<Clamp> = clamp,
        output: &mut [E] = bytemuck::cast_slice_mut(output),
    ) -> Result<f64> {
        let (slab_scales, filter_undo, unit) = scales;
        let epilogue = Epilogue { slab_scales, filter_undo, unit, bias, clamp };
        decode_here(decoder, tiling, &results, epilogue, output)
    }, std::convert::identity)
}

/// [`decode`], in the crate that calls it.
///
/// # Errors
/// Those of [`decode`].
pub(crate) fn decode_here<T: Element>(
    decoder: &Decoder,
    tiling: &OutputTiling,
    results: &[&[T]],
    epilogue: Epilogue<'_, T>,
    output: &mut [T],
) -> Result<f64> {
    let help = "results and output must match the layer's plan";
    if results.len() != decoder.inputs().len() {
        return Err(Error::mismatch("number of sub-results", results.len(), decoder.inputs().len(), help));
    }
    if let Some(wrong) = results.iter().find(|r| r.len() != tiling.part_elems()) {
        return Err(Error::mismatch("elements of a sub-result", wrong.len(), tiling.part_elems(), help));
    }
    if output.len() != tiling.output_elems() {
        return Err(Error::mismatch("elements of the output", output.len(), tiling.output_elems(), help));
    }
    if let Some(bias) = epilogue.bias
        && bias.len() != tiling.out_channels()
    {
        return Err(Error::mismatch("elements of the bias", bias.len(), tiling.out_channels(), help));
    }
    for (what, scales, expected) in [
        ("slab scales", epilogue.slab_scales, tiling.image_groups() * tiling.k_a),
        ("filter scales", epilogue.filter_undo, tiling.out_channels()),
    ] {
        if !(scales.is_empty() || scales.len() == expected) {
            return Err(Error::mismatch(format!("number of {what}"), scales.len(), expected, help));
        }
    }
    let squares = if decoder.condition() >= WIDE_CONDITION || !fits::<T>(&epilogue) {
        run::<T, f64>(decoder, tiling, results, epilogue, output)
    } else {
        run::<T, T>(decoder, tiling, results, epilogue, output)
    };
    Ok(squares.sqrt() / epilogue.unit)
}

/// Whether the products of scales, and the unit, are normal numbers of the element type.
fn fits<T: Element>(epilogue: &Epilogue<'_, T>) -> bool {
    let range = |values: &[f64]| {
        let used = values.iter().copied().filter(|v| *v != 0.0);
        used.fold((f64::INFINITY, 0.0_f64), |(least, most), v| (least.min(v), most.max(v)))
    };
    let (slabs, filters) = (range(epilogue.slab_scales), range(epilogue.filter_undo));
    let one = |(least, most): (f64, f64)| if most == 0.0 { (1.0, 1.0) } else { (least, most) };
    let (slabs, filters) = (one(slabs), one(filters));
    let (least, most) = (filters.0 / slabs.1, filters.1 / slabs.0);
    let normal = |v: f64| (T::MIN_NORMAL..=1.0 / T::MIN_NORMAL).contains(&v);
    normal(least) && normal(most) && normal(epilogue.unit)
}

/// Distributes the output over threads, with arithmetic in `A` up to the final rounding. Returns the sum of squares, in
/// the square of the unit.
fn run<T: Element, A: Element>(
    decoder: &Decoder,
    tiling: &OutputTiling,
    results: &[&[T]],
    epilogue: Epilogue<'_, T>,
    output: &mut [T],
) -> f64 {
    let (parts, planes, plane) = (tiling.k_a * tiling.k_b, tiling.part_planes(), tiling.part_plane());
    let terms = match &decoder.map {
        Map::Select(_) => 1,
        Map::Real(_) => results.len(),
        Map::Rotation(_) => results.len() / 2,
    };
    let shares = Units::new(planes, plane, LEAST_COLUMNS, output.len() * terms < SMALL);
    let Units { together, columns, .. } = shares;
    let blocks = plane.div_ceil(columns);
    let mut runs = tiling.runs(output, columns);
    let bounds = epilogue.clamp.unwrap_or(Clamp { low: f64::NEG_INFINITY, high: f64::INFINITY });
    let job = Job::<T, A> {
        map: match &decoder.map {
            Map::Select(select) => JobMap::Select(select),
            Map::Real(map) => JobMap::Real(map.convert()),
            Map::Rotation(r) => JobMap::Rotation(r.map.convert(), &r.parts),
        },
        tiling,
        results,
        epilogue,
        finish: Finish {
            low: A::from_f64(bounds.low),
            high: A::from_f64(bounds.high),
            unit: A::from_f64(epilogue.unit),
        },
        blocks,
        columns,
    };
    let arch = pulp::Arch::new();
    let decode = |(unit, runs): (usize, &mut [&mut [T]])| {
        arch.dispatch(Unit { job: &job, first: unit * together, runs })
    };
    shares.sum(&mut runs, parts * together, decode)
}

/// The data shared by all units of one decoding.
struct Job<'a, T, A> {
    map: JobMap<'a, A>,
    tiling: &'a OutputTiling,
    results: &'a [&'a [T]],
    epilogue: Epilogue<'a, T>,
    finish: Finish<A>,
    /// Blocks of a plane, and the columns of one block.
    blocks: usize,
    columns: usize,
}

/// [`Map`] converted to the arithmetic type.
enum JobMap<'a, A> {
    Select(&'a [usize]),
    Real(Packed<A>),
    Rotation(PackedPairs<A>, &'a [(usize, usize, f64)]),
}

/// Some (plane, block) pairs of the parts, from number `first` on, and for each of them the output runs of all parts.
struct Unit<'a, 'o, 'b, T, A> {
    job: &'a Job<'a, T, A>,
    first: usize,
    runs: &'b mut [&'o mut [T]],
}

impl<T: Element, A: Element> pulp::WithSimd for Unit<'_, '_, '_, T, A> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) -> f64 {
        let Self { job, first, runs } = self;
        let (tiling, results) = (job.tiling, job.results);
        let (parts, plane_elems) = (tiling.k_a * tiling.k_b, tiling.part_plane());
        // Sub-results already in the arithmetic type are read in place.
        let direct = A::DTYPE == T::DTYPE && job.columns >= LANES;
        let rows = if direct || matches!(job.map, JobMap::Select(_)) { 0 } else { results.len() };
        let mut panel = Panel::new(rows, job.columns);
        let (mut targets, mut ends) = (Vec::with_capacity(parts), Vec::with_capacity(parts));
        let mut squares = 0.0;
        for (at, runs) in runs.chunks_mut(parts).enumerate() {
            let (plane, start) = ((first + at) / job.blocks, (first + at) % job.blocks * job.columns);
            let (from, length) = (plane * plane_elems + start, job.columns.min(plane_elems - start));
            ends.clear();
            ends.extend((0..parts).map(|part| job.ending(plane, part)));
            if let JobMap::Select(select) = &job.map {
                for (part, (to, input)) in runs.iter_mut().zip(*select).enumerate() {
                    let source = &results[*input][from..from + to.len()];
                    squares += copy(simd, source, to, ends[part], job.finish);
                }
                continue;
            }
            let direct = direct && length >= LANES;
            let room = if direct { length } else { panel.room().max(LANES) };
            if !direct && rows == 0 {
                // The last columns of a plane, fewer than a vector.
                panel = Panel::new(results.len(), LANES);
            }
            for begin in (0..length).step_by(room) {
                let count = room.min(length - begin);
                targets.clear();
                match &job.map {
                    JobMap::Rotation(_, pairs) => {
                        for (plus, minus, sign) in *pairs {
                            targets.push(aim(runs, *plus, count, 1.0, &ends));
                            targets.push(aim(runs, *minus, count, *sign, &ends));
                        }
                    }
                    _ => targets.extend((0..parts).map(|part| aim(runs, part, count, 1.0, &ends))),
                }
                if direct {
                    let sources = Direct { results, from: from + begin, count };
                    squares += job.combine(simd, &sources, count, &mut targets);
                } else {
                    panel.set_columns(count);
                    for (row, result) in results.iter().enumerate() {
                        microkernel::convert(&result[from + begin..][..count], panel.row_mut(row, count));
                    }
                    squares += job.combine(simd, &panel, count.max(LANES), &mut targets);
                }
            }
        }
        squares
    }
}

impl<T: Element, A: Element> Job<'_, T, A> {
    #[inline(always)]
    fn combine<S: pulp::Simd>(
        &self,
        simd: S,
        sources: &impl Sources<A>,
        columns: usize,
        targets: &mut [Target<'_, T, A>],
    ) -> f64 {
        match &self.map {
            JobMap::Select(_) => 0.0,
            JobMap::Real(map) => {
                microkernel::combine(simd, map, sources, columns, targets, Some(self.finish))
            }
            JobMap::Rotation(map, _) => {
                microkernel::combine_pairs(simd, map, sources, columns, targets, Some(self.finish))
            }
        }
    }

    /// The scale and bias of plane `plane` of part `part`.
    #[inline(always)]
    fn ending(&self, plane: usize, part: usize) -> Ending<A> {
        let (tiling, epilogue) = (self.tiling, &self.epilogue);
        let (a, b) = (part / tiling.k_b, part % tiling.k_b);
        // Adding -0.0 changes nothing, not even the sign of a zero.
        let nothing = -0.0;
        let Some(channel) = tiling.channel(plane, b) else {
            return Ending { scale: 0.0, bias: A::from_f64(nothing) };
        };
        let slab = epilogue.slab_scales.get(tiling.group(plane) * tiling.k_a + a).copied().unwrap_or(1.0);
        let filter = epilogue.filter_undo.get(channel).copied().unwrap_or(1.0);
        let bias = epilogue.bias.map_or(nothing, |bias| bias[channel].to_f64());
        Ending { scale: filter / slab, bias: A::from_f64(bias) }
    }
}

/// The factor and the addend of one decoded plane of a part.
#[derive(Clone, Copy)]
struct Ending<A> {
    scale: f64,
    bias: A,
}

/// Sub-results read in place.
struct Direct<'a, T> {
    results: &'a [&'a [T]],
    from: usize,
    count: usize,
}

impl<T: Element, A: Element> Sources<A> for Direct<'_, T> {
    #[inline(always)]
    fn row(&self, row: usize) -> &[A] {
        bytemuck::cast_slice(&self.results[row][self.from..self.from + self.count])
    }
}

/// The first `count` elements of run `part` as a target; advances the run behind them.
#[inline(always)]
fn aim<'o, T, A: Element>(
    runs: &mut [&'o mut [T]],
    part: usize,
    count: usize,
    sign: f64,
    ends: &[Ending<A>],
) -> Target<'o, T, A> {
    let run = std::mem::take(&mut runs[part]);
    let (to, rest) = run.split_at_mut(count.min(run.len()));
    runs[part] = rest;
    let Ending { scale, bias } = ends[part];
    // Cropped elements must not count in the norm.
    let (scale, bias) = if to.is_empty() { (0.0, A::default()) } else { (sign * scale, bias) };
    Target { to, scale: A::from_f64(scale), bias }
}

/// `to = from` with the epilogue applied; returns the sum of squares before the clamp.
#[inline(always)]
fn copy<S: pulp::Simd, T: Element, A: Element>(
    simd: S,
    from: &[T],
    to: &mut [T],
    end: Ending<A>,
    finish: Finish<A>,
) -> f64 {
    let scale = A::from_f64(end.scale);
    if A::DTYPE == T::DTYPE && from.len() >= LANES {
        let target = Target { to, scale, bias: end.bias };
        return microkernel::finish_one(simd, bytemuck::cast_slice(from), target, finish);
    }
    let unit = finish.unit.to_f64();
    let one = |(to, from): (&mut T, &T)| {
        let value = A::from_f64(from.to_f64()) * scale + end.bias;
        let sized = value.to_f64() * unit;
        let value = if value < finish.low { finish.low } else { value };
        *to = T::from_f64(if value > finish.high { finish.high } else { value }.to_f64());
        sized * sized
    };
    to.iter_mut().zip(from).map(one).sum()
}
