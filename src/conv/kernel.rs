//! Convolution on the CPU: input planes are read where they lie, or from bands of them that were staged in the cache.
//!
//! [`ConvKernel`] is the plan of one shape, [`Filters`] are what it multiplies with and [`Scratch`] is the memory it works
//! in, kept apart so that one worker serves many layers from one scratch. [`conv_local`] is the whole uncoded convolution
//! in one call. Who computes through workers only can skip this module.
//!
//! Nothing is gathered into columns: a term of a sum is one weight times a contiguous run of a plane
//! ([`micro`](super::micro)). What is blocked is what stays near: a *band* of the staged planes in the L2 cache, within it
//! *strips* of points that meet one block of filters after the other, within these tiles in registers.
//!
//! Invariant: after `Ok`, every output element was written from this call's inputs alone; after an error the
//! outputs hold nothing of use, and kernel and scratch are ready for the next call.

use rayon::prelude::*;

use super::filters::{Block, Filters, Layout};
use super::geometry::{Band, Geometry};
use super::micro::{MOST_LANES, Sums, TILE_POINTS, sum};
use super::params::ConvShape;
use crate::array::{Element, Matrix, MatrixMut, check_elems, matmul_on};
use crate::error::{Error, Result};

/// Bytes of a staged band: half of a 1 MiB L2 cache, the rest is for filters and outputs.
const BAND_BYTES: usize = 512 << 10;
/// Bytes of the input that a strip reads for each block of filters.
const STRIP_BYTES: usize = 256 << 10;
/// Tiles of a strip: enough to pay for what is done once for all of them, and few enough that their sums, over all
/// channels of a block, stay in the innermost cache.
const LEAST_TILES: usize = 2;
const MOST_TILES: usize = 64;
/// Groups with at most so many output channels leave rows of stride 2 as they are.
const KEPT_ROWS: usize = 2;
/// Multiply-adds between two looks at `stop` where no strip divides the work: about a millisecond.
const PRODUCT_MACS: usize = 1 << 25;
/// Rows of a product of filters with a batch are a multiple of this where there are enough.
const ROW_STEP: usize = 64;

/// How a [`ConvKernel`] computes its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvPath {
    /// One output point for each batch item: a product of the filters with the batch.
    Dense,
    /// Unit stride without padding: the input planes themselves are read.
    InPlace,
    /// Everything else: bands of the planes are staged with their padding, the strides taken apart.
    Staged,
}

/// Memory a [`ConvKernel`] works in: a band of staged planes (half a megabyte, more where channels are many or rows long)
/// and a strip of sums, for each thread. Grows to the largest shape it has served and stays.
#[derive(Clone, Debug, Default)]
pub struct Scratch<T> {
    staged: Vec<T>,
    wide: Vec<T>,
}

impl<T: Element> Scratch<T> {
    /// Scratch that holds nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self { staged: Vec::new(), wide: Vec::new() }
    }
}

/// The first `len` elements of a scratch buffer, which hold old values.
fn take<T: Element>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}

/// `begin..end` in pieces of `step`; the last has at least [`MOST_LANES`] points where there are so many, and so one piece
/// may be longer by less than that.
fn pieces(begin: usize, end: usize, step: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut at = begin;
    std::iter::from_fn(move || {
        let from = at;
        at = if end - from < step + MOST_LANES { end } else { from + step };
        (from < end).then_some((from, at))
    })
}

/// The plan of one convolution shape on the CPU.
#[derive(Clone, Debug)]
pub struct ConvKernel {
    shape: ConvShape,
    geometry: Geometry,
    path: ConvPath,
    layout: Layout,
    /// Wide output points of a band, and rows that are staged for them.
    band_points: usize,
    band_rows: usize,
    strip_points: usize,
    /// Where each term lies in the band of a group.
    offsets: Vec<usize>,
}

/// What one call works on, checked.
struct Call<'a, 'b, T> {
    input: &'a [T],
    banks: &'a [&'a Filters<T>],
    outputs: &'a mut [&'b mut [T]],
    threads: usize,
    /// Whether the scratch holds this input, staged, from the call before.
    staged: bool,
    stop: &'a (dyn Fn() -> bool + Sync),
}

/// A few output channels of one bank.
struct Unit<'a, T> {
    filters: Block<'a, T>,
    output: &'a mut [T],
}

/// One input that meets one filter bank after the other: what was staged for the first serves the next, where all of it is
/// staged at once.
#[derive(Debug)]
pub struct OneInput<'a, T> {
    kernel: &'a ConvKernel,
    scratch: &'a mut Scratch<T>,
    input: &'a [T],
    threads: usize,
    staged: bool,
}

impl<T: Element> OneInput<'_, T> {
    /// Convolves the input with `bank` into `output` `[N, O, spatial...]`; see [`ConvKernel::run`].
    ///
    /// # Errors
    /// Those of [`ConvKernel::run`]; the next call is then as good as the first.
    pub fn run(
        &mut self,
        bank: &Filters<T>,
        output: &mut [T],
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<()> {
        // Until this call succeeds the scratch holds half of something.
        let staged = std::mem::replace(&mut self.staged, false);
        let (banks, outputs) = (&[bank], &mut [output]);
        let call = Call { input: self.input, banks, outputs, threads: self.threads, staged, stop };
        self.kernel.compute(self.scratch, call)?;
        self.staged = self.kernel.stages_at_once();
        Ok(())
    }
}

fn go_on(stop: &(dyn Fn() -> bool + Sync)) -> Result<()> {
    if stop() { Err(Error::Cancelled) } else { Ok(()) }
}

impl ConvKernel {
    /// Plans `shape`: chooses the path and lays out the memory; computes nothing.
    #[must_use]
    pub fn new(shape: &ConvShape) -> Self {
        let keep_rows = shape.out_channels / shape.groups <= KEPT_ROWS && shape.stride[2] == 2;
        let mut geometry = Geometry::new(shape, keep_rows);
        let wide = geometry.wide();
        // Fewer points than a vector has are computed with some beyond them, which only staged planes have.
        geometry.in_place &= wide >= MOST_LANES || geometry.output_plane == 1;
        let path = match () {
            () if geometry.output_plane == 1 => ConvPath::Dense,
            () if geometry.in_place => ConvPath::InPlace,
            () => ConvPath::Staged,
        };
        // By the size of f32; elements of f64 take as much again of the caches.
        let channel = geometry.group_in() * geometry.phases() * size_of::<f32>();
        let even = |most: usize| wide.div_ceil(wide.div_ceil(most)).next_multiple_of(TILE_POINTS);
        let (row, reach) = (geometry.band_elems(1) / geometry.phases(), geometry.reach());
        let band_points = match path {
            ConvPath::Staged => {
                // Rows at either end are staged twice: a band is several times as long as they are.
                let fits = (BAND_BYTES / channel).saturating_sub(reach + row);
                even(fits.max(4 * (reach + row)))
            }
            ConvPath::Dense | ConvPath::InPlace => wide,
        };
        let fits = (STRIP_BYTES / channel).saturating_sub(reach) / TILE_POINTS;
        let layout = Layout::new(shape, path != ConvPath::Dense);
        let most = MOST_TILES / layout.width().max(1);
        let strip_points = TILE_POINTS * fits.clamp(LEAST_TILES, most);
        let band_rows = geometry.band_rows(band_points + MOST_LANES);
        let offsets = if path == ConvPath::Dense { Vec::new() } else { geometry.offsets(band_rows) };
        Self { shape: shape.clone(), geometry, path, layout, band_points, band_rows, strip_points, offsets }
    }

    /// The shape this kernel was planned for.
    #[must_use]
    pub fn shape(&self) -> &ConvShape {
        &self.shape
    }

    /// How it is computed.
    #[must_use]
    pub fn path(&self) -> ConvPath {
        self.path
    }

    /// Packs a filter bank `[O, C/g, kernel...]`, row-major, for [`ConvKernel::run`].
    ///
    /// # Errors
    /// [`Error::Mismatch`] when it does not have the number of elements the shape requires.
    pub fn pack<T: Element>(&self, weights: &[T]) -> Result<Filters<T>> {
        check_elems("elements of the weight", weights.len(), self.shape.weight_elems())?;
        Ok(Filters::new(self.layout, weights))
    }

    /// Elements of the input that are staged for `banks` filter banks which come one by one ([`ConvKernel::one_input`]):
    /// what the cost of a call depends on beside its multiply-adds. Zero where the input is read in place.
    #[must_use]
    pub fn staged_elems(&self, banks: usize) -> usize {
        if self.path != ConvPath::Staged {
            return 0;
        }
        let g = &self.geometry;
        let bands = pieces(0, g.wide(), self.band_points).count();
        let all = g.batch * g.in_channels * g.band_elems(self.band_rows) * bands;
        if self.stages_at_once() { all } else { all * banks }
    }

    /// Output points computed for each channel, those between the rows of staged planes included.
    #[must_use]
    pub fn points(&self) -> usize {
        self.geometry.batch * if self.path == ConvPath::Dense { 1 } else { self.geometry.wide() }
    }

    /// Whether one band holds the whole staged input.
    fn stages_at_once(&self) -> bool {
        let g = &self.geometry;
        self.path == ConvPath::Staged && g.batch * g.groups == 1 && self.band_points >= g.wide()
    }

    /// Convolves one `input` `[N, C, spatial...]` with each of `banks` ([`ConvKernel::pack`]) into the output of the same
    /// index `[N, O, spatial...]`, all row-major. The banks share what is staged, so several cost less than as many calls.
    /// Outputs may hold anything before. The bits of the result depend neither on the number of banks nor on `threads`.
    ///
    /// With `threads` > 1 the work is spread over that many threads of the current rayon pool; on one thread nothing is
    /// allocated once the scratch has grown. `stop` is asked between strips, a fraction of a millisecond apart.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when a slice does not have the number of elements the shape requires, banks and outputs differ
    /// in number, or a bank was packed for another shape; [`Error::Cancelled`] when `stop` returned true.
    pub fn run<T: Element>(
        &self,
        scratch: &mut Scratch<T>,
        input: &[T],
        banks: &[&Filters<T>],
        outputs: &mut [&mut [T]],
        threads: usize,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<()> {
        let threads = threads.max(1);
        self.compute(scratch, Call { input, banks, outputs, threads, staged: false, stop })
    }

    /// Prepares `input` for filter banks that come one by one, each with a call of its own. `threads` is as in
    /// [`ConvKernel::run`].
    #[must_use]
    pub fn one_input<'a, T: Element>(
        &'a self,
        scratch: &'a mut Scratch<T>,
        input: &'a [T],
        threads: usize,
    ) -> OneInput<'a, T> {
        OneInput { kernel: self, scratch, input, threads: threads.max(1), staged: false }
    }

    fn compute<T: Element>(&self, scratch: &mut Scratch<T>, mut call: Call<'_, '_, T>) -> Result<()> {
        check_elems("elements of the input", call.input.len(), self.shape.input_elems())?;
        check_elems("number of outputs", call.outputs.len(), call.banks.len())?;
        if let Some(other) = call.banks.iter().find(|bank| bank.layout() != self.layout) {
            let (got, expected) = (format!("{:?}", other.layout()), format!("{:?}", self.layout));
            let mend = "pack filters with the kernel that runs them";
            return Err(Error::mismatch("layout of the packed weight", got, expected, mend));
        }
        for output in call.outputs.iter() {
            check_elems("elements of the output", output.len(), self.shape.output_elems())?;
        }
        go_on(call.stop)?;
        if self.path == ConvPath::Dense {
            return self.dense(scratch, call);
        }
        let g = &self.geometry;
        let item = g.in_channels * g.input_plane;
        for n in 0..g.batch {
            let input = &call.input[n * item..][..item];
            if call.threads > 1 && g.groups >= call.threads {
                self.groups_in_parallel(scratch, &mut call, n, input)?;
            } else {
                self.groups_in_turn(scratch, &mut call, n, input)?;
            }
        }
        Ok(())
    }

    fn dense<T: Element>(&self, scratch: &mut Scratch<T>, call: Call<'_, '_, T>) -> Result<()> {
        let g = &self.geometry;
        let (terms, group_out) = (g.reduction(), g.group_out());
        // With one output point the staged taps are dense, so a column of the product is a batch item.
        let staged = if g.in_place {
            call.input
        } else {
            let staged = take(&mut scratch.staged, call.input.len() / g.input_plane * g.plane);
            g.stage(call.input, staged, g.band(0, 1), self.band_rows, call.threads);
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

    /// Elements that are staged of one group, with room for a vector that goes beyond them.
    fn staged_of_group(&self) -> usize {
        let g = &self.geometry;
        if g.in_place { 0 } else { g.group_in() * g.band_elems(self.band_rows) + MOST_LANES }
    }

    /// Elements between the channels of a strip's sums.
    fn pitch(&self) -> usize {
        (self.strip_points + MOST_LANES).min(self.geometry.wide()).next_multiple_of(MOST_LANES)
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

    /// Group after group and band after band; threads share the output channels of a group.
    fn groups_in_turn<T: Element>(
        &self,
        scratch: &mut Scratch<T>,
        call: &mut Call<'_, '_, T>,
        n: usize,
        input: &[T],
    ) -> Result<()> {
        let g = &self.geometry;
        let group_elems = g.group_out() * g.output_plane;
        let block_elems = self.layout.width() * g.output_plane;
        let sums = self.layout.width() * self.pitch();
        let staged = take(&mut scratch.staged, self.staged_of_group());
        let wide = take(&mut scratch.wide, sums * call.threads);
        for group in 0..g.groups {
            let at = (n * g.groups + group) * group_elems;
            for (begin, end) in pieces(0, g.wide(), self.band_points) {
                let band = g.band(begin, end);
                let planes = self.planes(input, group, band, staged, (call.staged, call.threads));
                let strips = || pieces(begin, end, self.strip_points);
                if call.threads > 1 {
                    let (stop, threads) = (call.stop, call.threads);
                    let mut units = self.units(call, group, at);
                    let per_task = units.len().div_ceil(threads).max(1);
                    let tasks = units.par_chunks_mut(per_task).zip(wide.par_chunks_mut(sums));
                    tasks.try_for_each(|(units, wide)| {
                        strips().try_for_each(|strip| {
                            units
                                .iter_mut()
                                .try_for_each(|unit| self.unit(planes, band, strip, unit, wide, stop))
                        })
                    })?;
                    continue;
                }
                for strip in strips() {
                    for (bank, output) in call.banks.iter().zip(call.outputs.iter_mut()) {
                        let blocks = output[at..at + group_elems].chunks_mut(block_elems).enumerate();
                        for (block, output) in blocks {
                            let mut unit = Unit { filters: bank.block(group, block), output };
                            self.unit(planes, band, strip, &mut unit, wide, call.stop)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The blocks of all banks of a group, whose outputs begin at `at`; parts of blocks where threads outnumber them.
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

    /// For groups at least as many as threads: each thread has some of them, and stages their planes for itself.
    fn groups_in_parallel<T: Element>(
        &self,
        scratch: &mut Scratch<T>,
        call: &mut Call<'_, '_, T>,
        n: usize,
        input: &[T],
    ) -> Result<()> {
        let g = &self.geometry;
        let group_elems = g.group_out() * g.output_plane;
        let block_elems = self.layout.width() * g.output_plane;
        let (elems, sums) = (self.staged_of_group().max(1), self.layout.width() * self.pitch());
        let staged = take(&mut scratch.staged, elems * call.threads);
        let wide = take(&mut scratch.wide, sums * call.threads);
        let per_task = g.groups.div_ceil(call.threads);
        let (stop, banks) = (call.stop, call.banks);
        for (bank, output) in banks.iter().zip(call.outputs.iter_mut()) {
            let output = &mut output[n * g.groups * group_elems..][..g.groups * group_elems];
            let tasks = output.par_chunks_mut(per_task * group_elems).zip(staged.par_chunks_mut(elems));
            tasks.zip(wide.par_chunks_mut(sums)).enumerate().try_for_each(
                |(task, ((outputs, staged), wide))| {
                    for (index, output) in outputs.chunks_mut(group_elems).enumerate() {
                        let group = task * per_task + index;
                        for (begin, end) in pieces(0, g.wide(), self.band_points) {
                            let band = g.band(begin, end);
                            let planes = self.planes(input, group, band, staged, (false, 1));
                            for strip in pieces(begin, end, self.strip_points) {
                                for (block, output) in output.chunks_mut(block_elems).enumerate() {
                                    let mut unit = Unit { filters: bank.block(group, block), output };
                                    self.unit(planes, band, strip, &mut unit, wide, stop)?;
                                }
                            }
                        }
                    }
                    Ok(())
                },
            )?;
        }
        Ok(())
    }

    /// One strip of a few output channels.
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
        let Block { weights, width, channels } = unit.filters;
        let source = &planes[band.origin + begin - band.begin..];
        let (offsets, points) = (&self.offsets[..], end - begin);
        // Where nothing lies between rows the sums need no second place; but there is no room beyond the last one.
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
}

/// Computes a whole convolution on this machine: padding, groups and bias included, nothing coded.
///
/// `input` is `[N, C, spatial...]`, `weight` `[O, C/groups, kernel...]`, `bias` `[O]`, all row-major; the
/// result is `[N, O, spatial...]`. `threads` and `stop` are as in [`ConvKernel::run`].
///
/// # Errors
/// [`Error::Mismatch`] when a slice does not have the number of elements `shape` requires;
/// [`Error::Cancelled`] when `stop` returned true.
pub fn conv_local<T: Element>(
    shape: &ConvShape,
    input: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    threads: usize,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Vec<T>> {
    if let Some(bias) = bias {
        check_elems("elements of the bias", bias.len(), shape.out_channels)?;
    }
    let mut output = vec![T::default(); shape.output_elems()];
    let kernel = ConvKernel::new(shape);
    kernel.run(&mut Scratch::new(), input, &[&kernel.pack(weight)?], &mut [&mut output], threads, stop)?;
    if let Some(bias) = bias {
        for (plane, bias) in output.chunks_mut(shape.output_plane()).zip(bias.iter().cycle()) {
            for value in plane {
                *value += *bias;
            }
        }
    }
    Ok(output)
}
