//! Decoding: from the sub-results that came to the output, in one pass that also crops, merges, adds the bias
//! and clamps.
//!
//! Columns of the sub-results are combined in vector registers and go from there to their places in the output
//! ([`mix`](super::mix)): every sub-result is read once, every output element written once.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use super::decoder::{Decoder, Map};
use super::mix::{self, Target};
use super::panel::{LANES, Packed, PackedPairs, Panel, Sources};
use super::units::Units;
use crate::array::Element;
use crate::error::{Error, Result};
use crate::partition::OutputTiling;

/// Fewer multiply-adds than this are done on the calling thread.
const SMALL: usize = 512 * 1024;

/// The fewest columns of a unit.
const LEAST_COLUMNS: usize = 512;

/// From this condition number on, f32 results are decoded in f64: rounding the inverse to f32 would add about as
/// much error as the workers did. Below it the loss is under the workers' own rounding.
const WIDE_CONDITION: f64 = 16.0;

/// What happens to each decoded element on its way into the output.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a, T> {
    /// `[O]`, added to each output channel.
    pub bias: Option<&'a [T]>,
    /// Applied after the bias.
    pub clamp: Option<Clamp>,
}

/// The activation `min(max(x, low), high)`: ReLU and its bounded kin. It is not linear, so it comes after decoding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clamp {
    /// Smallest value let through.
    pub low: f64,
    /// Largest value let through; at least `low`.
    pub high: f64,
}

impl Clamp {
    /// `max(x, 0)`.
    pub const RELU: Self = Self { low: 0.0, high: f64::INFINITY };

    /// The function itself, in `T`. A NaN stays one.
    pub fn of<T: Element>(self) -> impl Fn(T) -> T + Copy + Send + Sync {
        let (low, high) = (T::from_f64(self.low), T::from_f64(self.high));
        move |x| {
            let x = if x < low { low } else { x };
            if x > high { high } else { x }
        }
    }
}

/// Decodes, merges, crops and finishes: `output` `[N, O, spatial...]` is overwritten.
///
/// `results` are the sub-results of [`Decoder::inputs`], in that order, each [`OutputTiling::part_elems`] long.
/// Runs on all threads of the current rayon pool, small layers on the calling thread, and allocates, beside a list of output
/// runs, a few dozen KiB of scratch a thread.
///
/// # Errors
/// [`Error::Mismatch`] when the number or length of the results, the output or the bias do not fit.
pub fn decode<T: Element>(
    decoder: &Decoder,
    tiling: &OutputTiling,
    results: &[&[T]],
    epilogue: Epilogue<'_, T>,
    output: &mut [T],
) -> Result<()> {
    let mend = "results and output must match the layer's plan";
    if results.len() != decoder.inputs().len() {
        return Err(Error::mismatch("number of sub-results", results.len(), decoder.inputs().len(), mend));
    }
    if let Some(wrong) = results.iter().find(|r| r.len() != tiling.part_elems()) {
        return Err(Error::mismatch("elements of a sub-result", wrong.len(), tiling.part_elems(), mend));
    }
    if output.len() != tiling.output_elems() {
        return Err(Error::mismatch("elements of the output", output.len(), tiling.output_elems(), mend));
    }
    if let Some(bias) = epilogue.bias
        && bias.len() != tiling.out_channels()
    {
        return Err(Error::mismatch("elements of the bias", bias.len(), tiling.out_channels(), mend));
    }
    if decoder.condition() >= WIDE_CONDITION {
        run::<T, f64>(decoder, tiling, results, epilogue, output);
    } else {
        run::<T, T>(decoder, tiling, results, epilogue, output);
    }
    Ok(())
}

/// Shares the output out, with arithmetic in `A` up to the rounding at the end.
fn run<T: Element, A: Element>(
    decoder: &Decoder,
    tiling: &OutputTiling,
    results: &[&[T]],
    epilogue: Epilogue<'_, T>,
    output: &mut [T],
) {
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
        bias: epilogue.bias,
        bounds: (A::from_f64(bounds.low), A::from_f64(bounds.high)),
        plain: epilogue.clamp.is_none() && epilogue.bias.is_none(),
        blocks,
        columns,
    };
    let arch = pulp::Arch::new();
    let decode = |(unit, runs): (usize, &mut [&mut [T]])| {
        arch.dispatch(Unit { job: &job, first: unit * together, runs });
    };
    shares.for_each(&mut runs, parts * together, decode);
}

/// What all units of a decoding have in common.
struct Job<'a, T, A> {
    map: JobMap<'a, A>,
    tiling: &'a OutputTiling,
    results: &'a [&'a [T]],
    bias: Option<&'a [T]>,
    bounds: (A, A),
    /// There is neither bias nor clamp.
    plain: bool,
    /// Blocks of a plane, and the columns of one.
    blocks: usize,
    columns: usize,
}

/// [`Map`] in the type that is computed in.
enum JobMap<'a, A> {
    Select(&'a [usize]),
    Real(Packed<A>),
    Rotation(PackedPairs<A>, &'a [(usize, usize, f64)]),
}

/// Some (plane, block) of the parts, from number `first` on, and for each of them the runs of all parts.
struct Unit<'a, 'o, 'b, T, A> {
    job: &'a Job<'a, T, A>,
    first: usize,
    runs: &'b mut [&'o mut [T]],
}

impl<T: Element, A: Element> pulp::WithSimd for Unit<'_, '_, '_, T, A> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self { job, first, runs } = self;
        let (tiling, results) = (job.tiling, job.results);
        let (parts, plane_elems) = (tiling.k_a * tiling.k_b, tiling.part_plane());
        // What is in the type that is computed in is read where it lies.
        let direct = A::DTYPE == T::DTYPE && job.columns >= LANES;
        let rows = if direct || matches!(job.map, JobMap::Select(_)) { 0 } else { results.len() };
        let mut panel = Panel::new(rows, job.columns);
        let (mut targets, mut biases) = (Vec::with_capacity(parts), Vec::with_capacity(tiling.k_b));
        for (at, runs) in runs.chunks_mut(parts).enumerate() {
            let (plane, start) = ((first + at) / job.blocks, (first + at) % job.blocks * job.columns);
            let (from, length) = (plane * plane_elems + start, job.columns.min(plane_elems - start));
            biases.clear();
            biases.extend((0..tiling.k_b).map(|b| match (job.bias, tiling.channel(plane, b)) {
                (Some(bias), Some(channel)) => A::from_f64(bias[channel].to_f64()),
                // Adding this changes nothing, not even the sign of a zero.
                _ => A::from_f64(-0.0),
            }));
            if let JobMap::Select(select) = &job.map {
                for (part, (to, input)) in runs.iter_mut().zip(*select).enumerate() {
                    let source = &results[*input][from..from + to.len()];
                    copy(source, to, biases[part % tiling.k_b], job);
                }
                continue;
            }
            let direct = direct && length >= LANES;
            let room = if direct { length } else { panel.room().max(LANES) };
            if !direct && rows == 0 {
                // The last columns of a plane, fewer than a vector has.
                panel = Panel::new(results.len(), LANES);
            }
            for begin in (0..length).step_by(room) {
                let count = room.min(length - begin);
                targets.clear();
                match &job.map {
                    JobMap::Rotation(_, pairs) => {
                        for (plus, minus, sign) in *pairs {
                            targets.push(aim(runs, *plus, count, 1.0, &biases));
                            targets.push(aim(runs, *minus, count, *sign, &biases));
                        }
                    }
                    _ => targets.extend((0..parts).map(|part| aim(runs, part, count, 1.0, &biases))),
                }
                if direct {
                    let sources = Direct { results, from: from + begin, count };
                    job.combine(simd, &sources, count, &mut targets);
                } else {
                    panel.set_columns(count);
                    for (row, result) in results.iter().enumerate() {
                        mix::convert(&result[from + begin..][..count], panel.row_mut(row, count));
                    }
                    job.combine(simd, &panel, count.max(LANES), &mut targets);
                }
            }
        }
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
    ) {
        match &self.map {
            JobMap::Select(_) => {}
            JobMap::Real(map) => mix::combine(simd, map, sources, columns, targets, Some(self.bounds)),
            JobMap::Rotation(map, _) => {
                mix::combine_pairs(simd, map, sources, columns, targets, Some(self.bounds));
            }
        }
    }
}

/// Sub-results as they came.
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

/// The first `count` elements of run `part` as a target; the run goes on behind them.
#[inline(always)]
fn aim<'o, T, A: Element>(
    runs: &mut [&'o mut [T]],
    part: usize,
    count: usize,
    scale: f64,
    biases: &[A],
) -> Target<'o, T, A> {
    let run = std::mem::take(&mut runs[part]);
    let (to, rest) = run.split_at_mut(count.min(run.len()));
    runs[part] = rest;
    Target { to, scale: A::from_f64(scale), bias: biases[part % biases.len()] }
}

/// `to = from`, finished.
#[inline(always)]
fn copy<T: Element, A: Element>(from: &[T], to: &mut [T], bias: A, job: &Job<'_, T, A>) {
    if job.plain {
        return to.copy_from_slice(from);
    }
    let (low, high) = job.bounds;
    for (to, from) in to.iter_mut().zip(from) {
        let value = A::from_f64(from.to_f64()) + bias;
        let value = if value < low { low } else { value };
        *to = T::from_f64(if value > high { high } else { value }.to_f64());
    }
}
