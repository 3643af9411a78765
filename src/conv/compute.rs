//! Executes the plan of a [`ConvKernel`]: stages bands, computes strips, and divides work among threads.
//!
//! Relevant if you want to change how the CPU convolution runs; callers need only [`ConvKernel`].
//!
//! Invariant: threads write to disjoint parts of the outputs, and each has its own part of the scratch.

use super::filters::{Block, Filters};
use super::geometry::Band;
use super::kernel::{Call, ConvKernel, ConvPath, Scratch};
use super::micro::{MOST_LANES, Sums, TILE_POINTS, pieces, sum};
use super::panels::{self, Panels};
use crate::array::{Element, check_elems};
use crate::error::{Error, Result};
use crate::share::try_share;

/// Pieces of work for each thread, where a piece costs nothing besides: the cores are not equally fast at every moment.
pub(super) const PIECES_PER_THREAD: usize = 4;
/// Bytes of a cache line.
const LINE_BYTES: usize = 64;
/// Planes of which a strip is fetched before it is read: as many as make a tile read more lines than are on their way.
const LEAST_FETCHED: usize = 16;
/// Output points for each thread from which on threads share points.
const LEAST_SHARED_POINTS: usize = 192;

/// A few output channels of one bank.
struct Unit<'a, T> {
    filters: Block<'a, T>,
    output: &'a mut [T],
}

/// The output points `points.0..points.1` of all channels of a group, for one bank after the other.
struct Part<'a, T> {
    points: (usize, usize),
    outputs: Vec<&'a mut [T]>,
}

/// The first `len` elements of a scratch buffer, with arbitrary contents.
pub(super) fn take<T: Element>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}

pub(super) fn go_on(stop: &(dyn Fn() -> bool + Sync)) -> Result<()> {
    if stop() { Err(Error::Cancelled) } else { Ok(()) }
}

/// Reads one element of each cache line.
fn fetch<T: Element>(run: &[T]) {
    for value in run.iter().step_by(LINE_BYTES / size_of::<T>()) {
        std::hint::black_box(*value);
    }
}

impl ConvKernel {
    /// Runs one call on the number of threads that it specifies.
    pub(super) fn compute<T: Element>(
        &self,
        scratch: &mut Scratch<T>,
        mut call: Call<'_, '_, T>,
    ) -> Result<()> {
        check_elems("elements of the input", call.input.len(), self.shape.input_elems())?;
        check_elems("number of outputs", call.outputs.len(), call.banks.len())?;
        if let Some(other) = call.banks.iter().find(|bank| bank.layout() != self.layout) {
            let (got, expected) = (format!("{:?}", other.layout()), format!("{:?}", self.layout));
            let help = "pack filters with the kernel that runs them";
            return Err(Error::mismatch("layout of the packed weight", got, expected, help));
        }
        for output in call.outputs.iter() {
            check_elems("elements of the output", output.len(), self.shape.output_elems())?;
        }
        go_on(call.stop)?;
        if self.path == ConvPath::Dense {
            return self.dense(scratch, call);
        }
        if let Some(plan) = &self.depthwise {
            return self.planewise(plan, scratch, call);
        }
        if let Some(plan) = &self.filtering {
            return self.filtered(plan, scratch, call);
        }
        let g = &self.geometry;
        let (item, group_elems) = (g.in_channels * g.input_plane, g.group_out() * g.output_plane);
        for n in 0..g.batch {
            let input = &call.input[n * item..][..item];
            if call.threads > 1 && g.groups >= call.threads {
                self.share_groups(scratch, &mut call, n, input)?;
                continue;
            }
            if self.shares_points(call.threads) {
                self.share_points(scratch, &mut call, n, input)?;
                continue;
            }
            let staged = take(&mut scratch.staged, self.staged_of_group());
            let blocks = self.layout.blocks() * call.banks.len();
            let most = if call.threads > 1 {
                blocks.div_ceil(call.threads).max(self.layout.width())
            } else {
                blocks
            };
            let wide = take(&mut scratch.wide, self.sums(most) * call.threads);
            for group in 0..g.groups {
                let at = (n * g.groups + group) * group_elems;
                if call.threads > 1 {
                    self.share_channels(&mut call, (input, group), at, staged, wide)?;
                } else {
                    let outputs = &mut *call.outputs;
                    let held = call.staged;
                    self.group((input, group), call.banks, outputs, at, (staged, held), wide, call.stop)?;
                }
            }
        }
        Ok(())
    }

    /// Computes one group on this thread; its channels start at offset `at` in each output.
    #[expect(clippy::too_many_arguments, reason = "parts of a call and of the scratch, lent out apart")]
    fn group<T: Element>(
        &self,
        (input, group): (&[T], usize),
        banks: &[&Filters<T>],
        outputs: &mut [&mut [T]],
        at: usize,
        (staged, held): (&mut [T], bool),
        wide: &mut [T],
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<()> {
        let g = &self.geometry;
        let (group_elems, block_elems) =
            (g.group_out() * g.output_plane, self.layout.width() * g.output_plane);
        if self.packs {
            let outputs =
                outputs.iter_mut().flat_map(|output| output[at..at + group_elems].chunks_mut(g.output_plane));
            let mut part = Part { points: (0, g.output_plane), outputs: outputs.collect() };
            return self.part((input, group), banks, &mut part, (staged, held), wide, stop);
        }
        for (begin, end) in pieces(0, g.wide(), self.band_points) {
            let band = g.band(begin);
            let planes = self.planes(input, group, band, staged, (held, 1));
            for strip in pieces(begin, end, self.strip_points) {
                self.fetch(planes, strip);
                for (bank, output) in banks.iter().zip(outputs.iter_mut()) {
                    let blocks = output[at..at + group_elems].chunks_mut(block_elems).enumerate();
                    for (block, output) in blocks {
                        let mut unit = Unit { filters: bank.block(group, block), output };
                        self.unit(planes, band, strip, &mut unit, wide, stop)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads one element of each cache line of a strip of planes that are read in place: line by line, which processors
    /// fetch ahead. Tiles read a few lines of one plane after the other.
    fn fetch<T: Element>(&self, planes: &[T], (begin, end): (usize, usize)) {
        let g = &self.geometry;
        if g.in_place && g.group_in() >= LEAST_FETCHED {
            let end = (end + g.reach()).min(g.input_plane);
            planes.chunks_exact(g.input_plane).for_each(|plane| fetch(&plane[begin..end]));
        }
    }

    /// Whether threads share the output points of a group, because there are enough of them. Each thread copies the panels
    /// of its own points; where threads share channels, each copies all panels.
    fn shares_points(&self, threads: usize) -> bool {
        self.packs && threads > 1 && self.geometry.output_plane >= threads * LEAST_SHARED_POINTS
    }

    /// Computes one image with the output points of each group divided among the threads.
    fn share_points<T: Element>(
        &self,
        scratch: &mut Scratch<T>,
        call: &mut Call<'_, '_, T>,
        n: usize,
        input: &[T],
    ) -> Result<()> {
        let (g, banks, stop) = (&self.geometry, call.banks, call.stop);
        let group_elems = g.group_out() * g.output_plane;
        let (elems, sums) = (self.staged_of_group().max(1), self.sums(self.layout.blocks() * banks.len()));
        let parts = (g.output_plane / LEAST_SHARED_POINTS).min(call.threads * PIECES_PER_THREAD).max(1);
        let each = g.output_plane.div_ceil(parts).next_multiple_of(TILE_POINTS);
        let staged = take(&mut scratch.staged, elems * call.threads);
        let wide = take(&mut scratch.wide, sums * call.threads);
        for group in 0..g.groups {
            let at = (n * g.groups + group) * group_elems;
            let mut parts: Vec<Part<'_, T>> = (0..g.output_plane)
                .step_by(each)
                .map(|from| Part { points: (from, g.output_plane.min(from + each)), outputs: Vec::new() })
                .collect();
            for output in call.outputs.iter_mut() {
                for plane in output[at..at + group_elems].chunks_mut(g.output_plane) {
                    for (part, piece) in parts.iter_mut().zip(plane.chunks_mut(each)) {
                        part.outputs.push(piece);
                    }
                }
            }
            let memory = staged.chunks_mut(elems).zip(wide.chunks_mut(sums));
            try_share(memory, parts.iter_mut(), |(staged, wide), part| {
                self.part((input, group), banks, part, (staged, false), wide, stop)
            })?;
        }
        Ok(())
    }

    /// Computes some output points of all channels of a group in panels, on this thread.
    fn part<T: Element>(
        &self,
        (input, group): (&[T], usize),
        banks: &[&Filters<T>],
        part: &mut Part<'_, T>,
        (staged, held): (&mut [T], bool),
        wide: &mut [T],
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<()> {
        let g = &self.geometry;
        let blocks = self.layout.blocks();
        let block = |index: usize| banks[index / blocks].block(group, index % blocks);
        let (first, last) = part.points;
        for (begin, end) in pieces(g.wide_of(first), g.wide_of(last - 1) + 1, self.band_points) {
            let band = g.band(begin);
            let planes = self.planes(input, group, band, staged, (held, 1));
            for (from, to) in self.strips(begin, end) {
                self.panels((planes, band), (from, to), blocks * banks.len(), block, wide, stop)?;
                let sums = wide[panels::ELEMS..].chunks(self.packed_pitch());
                // The channels of a block that has fewer than others are followed by padding.
                let (width, group_out) = (self.layout.width(), g.group_out());
                let sums = sums.enumerate().filter(|(at, _)| at % (blocks * width) < group_out);
                for (output, (_, sums)) in part.outputs.iter_mut().zip(sums) {
                    output[from - first..to - first].copy_from_slice(&sums[..to - from]);
                }
            }
        }
        Ok(())
    }

    /// Computes one group with its output channels divided among the threads, which stage it together.
    fn share_channels<T: Element>(
        &self,
        call: &mut Call<'_, '_, T>,
        (input, group): (&[T], usize),
        at: usize,
        staged: &mut [T],
        wide: &mut [T],
    ) -> Result<()> {
        let (held, threads, stop) = (call.staged, call.threads, call.stop);
        for (begin, end) in pieces(0, self.geometry.wide(), self.band_points) {
            let band = self.geometry.band(begin);
            let planes = self.planes(input, group, band, staged, (held, threads));
            let mut units = self.units(call, group, at);
            let per_task = units.len().div_ceil(threads).max(1);
            let sums = self.sums(per_task);
            try_share(wide.chunks_mut(sums), units.chunks_mut(per_task), |wide, units| {
                if self.packs {
                    return self.strips(begin, end).try_for_each(|strip| {
                        let block = |index: usize| units[index].filters;
                        self.panels((planes, band), strip, units.len(), block, wide, stop)?;
                        let written = units.iter_mut().enumerate();
                        written.for_each(|(index, unit)| self.write(wide, index, strip, unit.output));
                        Ok(())
                    });
                }
                pieces(begin, end, self.strip_points).try_for_each(|strip| {
                    self.fetch(planes, strip);
                    units.iter_mut().try_for_each(|unit| self.unit(planes, band, strip, unit, wide, stop))
                })
            })?;
        }
        Ok(())
    }

    /// Computes at least as many groups as threads: each thread takes some groups and stages their planes separately.
    fn share_groups<T: Element>(
        &self,
        scratch: &mut Scratch<T>,
        call: &mut Call<'_, '_, T>,
        n: usize,
        input: &[T],
    ) -> Result<()> {
        let g = &self.geometry;
        let group_elems = g.group_out() * g.output_plane;
        let (elems, sums) = (self.staged_of_group().max(1), self.sums(self.layout.blocks()));
        let staged = take(&mut scratch.staged, elems * call.threads);
        let wide = take(&mut scratch.wide, sums * call.threads);
        let per_task = g.groups.div_ceil(call.threads * PIECES_PER_THREAD);
        let stop = call.stop;
        for (bank, output) in call.banks.iter().zip(call.outputs.iter_mut()) {
            let output = &mut output[n * g.groups * group_elems..][..g.groups * group_elems];
            let memory = staged.chunks_mut(elems).zip(wide.chunks_mut(sums));
            let pieces = output.chunks_mut(per_task * group_elems).enumerate();
            try_share(memory, pieces, |(staged, wide), (piece, output)| {
                for index in 0..output.len() / group_elems {
                    let (at, group) = (index * group_elems, piece * per_task + index);
                    let (banks, outputs) = (&[*bank], &mut [&mut *output]);
                    self.group((input, group), banks, outputs, at, (&mut **staged, false), wide, stop)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The blocks of all banks of a group, whose outputs begin at `at`. Blocks are split if threads outnumber them.
    fn units<'u, T: Element>(
        &self,
        call: &'u mut Call<'_, '_, T>,
        group: usize,
        at: usize,
    ) -> Vec<Unit<'u, T>> {
        let g = &self.geometry;
        let width = self.layout.width();
        let whole = self.layout.blocks() * call.banks.len();
        let mut step = width;
        while step > 1 && whole * (width / step) < call.threads {
            step /= 2;
        }
        let channels =
            call.outputs.iter_mut().map(|output| &mut output[at..][..g.group_out() * g.output_plane]);
        call.banks
            .iter()
            .zip(channels)
            .flat_map(|(bank, output)| {
                output.chunks_mut(step * g.output_plane).enumerate().map(move |(index, output)| {
                    let (block, first) = (index * step / width, index * step % width);
                    Unit { filters: bank.block(group, block).part(first, step), output }
                })
            })
            .collect()
    }

    /// Computes one strip of a few output channels.
    fn unit<T: Element>(
        &self,
        planes: &[T],
        band: Band,
        (begin, end): (usize, usize),
        unit: &mut Unit<'_, T>,
        wide: &mut [T],
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<()> {
        go_on(stop)?;
        let g = &self.geometry;
        let Block { first, channels, .. } = unit.filters;
        let (width, terms) = (self.layout.width(), self.offsets.len());
        let weights = &unit.filters.run(0, terms)[first..];
        let source = &planes[begin - band.start..];
        let (offsets, points) = (&self.offsets[..], end - begin);
        // A compact output takes the sums directly, but has no room beyond its last point.
        if g.is_compact() && points >= MOST_LANES {
            let (output, pitch) = (&mut unit.output[begin..], g.output_plane);
            sum(Sums { source, offsets, weights, width, channels, points, output, pitch }, false);
            return Ok(());
        }
        let pitch = self.pitch();
        sum(Sums { source, offsets, weights, width, channels, points, output: wide, pitch }, !g.in_place);
        g.crop(wide, pitch, begin, points, unit.output);
        Ok(())
    }

    /// Staged elements of one group, with room for a vector that reaches beyond them.
    fn staged_of_group(&self) -> usize {
        let g = &self.geometry;
        if g.in_place { 0 } else { g.group_in() * g.band_elems(self.band_rows) + MOST_LANES }
    }

    /// Elements between the channels of the sums of a strip.
    fn pitch(&self) -> usize {
        (self.strip_points + MOST_LANES).min(self.geometry.wide()).next_multiple_of(MOST_LANES)
    }

    /// Elements of the sums of a strip; in panels, over `blocks` blocks of filters, with the panel.
    fn sums(&self, blocks: usize) -> usize {
        if self.packs {
            panels::ELEMS + blocks * self.layout.width() * self.packed_pitch()
        } else {
            self.layout.width() * self.pitch()
        }
    }

    /// Elements between the channels of the sums of a strip in panels: the last one reaches beyond the strip.
    fn packed_pitch(&self) -> usize {
        self.strip_points + TILE_POINTS
    }

    /// The strips of output points of the wide points `begin..end`.
    fn strips(&self, begin: usize, end: usize) -> impl Iterator<Item = (usize, usize)> {
        let (begin, end) = (self.geometry.points_before(begin), self.geometry.points_before(end));
        (begin..end).step_by(self.strip_points).map(move |from| (from, end.min(from + self.strip_points)))
    }

    /// Computes the sums of a strip of output points for `blocks` blocks of filters.
    fn panels<'f, T: Element>(
        &self,
        (planes, band): (&[T], Band),
        points: (usize, usize),
        blocks: usize,
        block: impl Fn(usize) -> Block<'f, T>,
        wide: &mut [T],
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<()> {
        let (panel, sums) = wide.split_at_mut(panels::ELEMS);
        let run = panels::run(self.offsets.len());
        for (index, offsets) in self.offsets.chunks(run).enumerate() {
            go_on(stop)?;
            // With one tap, every term reads a run of its own.
            if self.geometry.in_place && self.geometry.reach() == 0 {
                for offset in offsets {
                    fetch(&planes[offset + points.0..offset + points.1]);
                }
            }
            pulp::Arch::new().dispatch(Panels {
                geometry: &self.geometry,
                source: planes,
                start: band.start,
                offsets,
                first: index * run,
                points,
                blocks,
                block: &block,
                panel: &mut *panel,
                sums: &mut *sums,
                pitch: self.packed_pitch(),
            });
        }
        Ok(())
    }

    /// Writes the sums of block `index` to its outputs.
    fn write<T: Element>(&self, wide: &[T], index: usize, (begin, end): (usize, usize), output: &mut [T]) {
        let pitch = self.packed_pitch();
        let sums = &wide[panels::ELEMS + index * self.layout.width() * pitch..];
        for (sums, plane) in sums.chunks(pitch).zip(output.chunks_mut(self.geometry.output_plane)) {
            plane[begin..end].copy_from_slice(&sums[..end - begin]);
        }
    }

    /// The planes of group `group`: its input, or a band of it staged in `staged`.
    fn planes<'s, T: Element>(
        &self,
        input: &'s [T],
        group: usize,
        band: Band,
        staged: &'s mut [T],
        (held, threads): (bool, usize),
    ) -> &'s [T] {
        let g = &self.geometry;
        let elems = g.group_in() * g.input_plane;
        let input = &input[group * elems..][..elems];
        if g.in_place {
            return input;
        }
        if !held {
            let bands = staged.len() - MOST_LANES;
            g.stage(input, &mut staged[..bands], band, self.band_rows, threads);
        }
        staged
    }
}
