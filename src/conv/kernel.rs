//! Convolution on the CPU: a path chosen for each shape, in scratch memory of one tile (a few megabytes for banks that
//! come one by one).
//!
//! [`ConvKernel`] is the plan of one shape and [`Scratch`] the memory it works in, kept apart so that one worker
//! serves many layers from one scratch. [`conv_local`] is the whole uncoded convolution in one call. Who
//! computes through workers only can skip this module.
//!
//! Invariant: after `Ok`, every output element was written from this call's inputs alone; after an error the
//! outputs hold nothing of use, and kernel and scratch are ready for the next call.

use rayon::prelude::*;

use super::direct;
use super::geometry::{Geometry, Segment};
use super::params::ConvShape;
use crate::array::{Element, Matrix, MatrixMut, check_elems, matmul_on};
use crate::error::{Error, Result};

/// Bytes of one packed tile: half of a 1 MiB L2 cache, the rest is for filters and the GEMM's own buffers.
const TILE_BYTES: usize = 512 << 10;
/// Terms of the sum in one tile; with [`TILE_BYTES`] this leaves columns enough to pay for reading the filters.
const TILE_TERMS: usize = 384;
/// Columns of a tile are a multiple of this where there are enough: whole vectors for the GEMM.
const COLUMN_STEP: usize = 64;
/// Groups with at most this many output channels are summed directly: a GEMM would be mostly packing (for one
/// channel the sums are twice as fast as packed tiles, from four on the tiles win).
const DIRECT_OUT: usize = 2;
/// Multiply-adds between two looks at `stop` where no tile divides the work: about a millisecond.
const PRODUCT_MACS: usize = 1 << 25;

/// Bytes of the largest im2col matrix that [`OneInput`] keeps from bank to bank. Below, reading it again costs nothing
/// against packing it again (5 to 40 %); larger ones have left the cache by then and cost more than packing.
const KEPT_BYTES: usize = 4 << 20;

/// How a [`ConvKernel`] computes its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvPath {
    /// One output point for each batch item: a product of the filters with the batch.
    Dense,
    /// A 1x1 kernel: a product of the filters with the input planes, in place.
    Pointwise,
    /// Few output channels in a group, depthwise above all: shifted planes are added up.
    Direct,
    /// Everything else: tiles of the im2col matrix are packed and multiplied.
    Tiled,
}

/// Memory a [`ConvKernel`] works in: the staged input of one batch item and a tile, or a few megabytes of tiles that
/// [`OneInput`] keeps. Grows to the largest shape it has served and stays.
#[derive(Clone, Debug, Default)]
pub struct Scratch<T> {
    staged: Vec<T>,
    tile: Vec<T>,
    segments: Vec<Segment>,
}

impl<T: Element> Scratch<T> {
    /// Scratch that holds nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self { staged: Vec::new(), tile: Vec::new(), segments: Vec::new() }
    }
}

/// The first `len` elements of a scratch buffer, which hold old values.
fn take<T: Element>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}

/// (group, first of a block) over every group and every block of `step` within `len`.
fn blocks(groups: usize, len: usize, step: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..groups).flat_map(move |group| (0..len).step_by(step).map(move |first| (group, first)))
}

/// The plan of one convolution shape on the CPU.
#[derive(Clone, Debug)]
pub struct ConvKernel {
    shape: ConvShape,
    geometry: Geometry,
    path: ConvPath,
}

/// What one call works on, checked.
struct Call<'a, 'b, T> {
    input: &'a [T],
    banks: &'a [&'a [T]],
    outputs: &'a mut [&'b mut [T]],
    threads: usize,
    keep: Keep,
    stop: &'a (dyn Fn() -> bool + Sync),
}

/// What becomes of the packed input in the scratch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    /// Nothing is kept: one tile after the other in the same place, which stays in the cache.
    Nothing,
    /// All tiles are kept if [`KEPT_BYTES`] hold them.
    Tiles,
    /// The same, and the call before, on the same input, has left them behind.
    Again,
}

/// One input that meets one filter bank after the other: what was packed for the first serves the next.
#[derive(Debug)]
pub struct OneInput<'a, T> {
    kernel: &'a ConvKernel,
    scratch: &'a mut Scratch<T>,
    input: &'a [T],
    threads: usize,
    keep: Keep,
}

impl<T: Element> OneInput<'_, T> {
    /// Convolves the input with `bank` `[O, C/g, kernel...]` into `output` `[N, O, spatial...]`; see
    /// [`ConvKernel::run`].
    ///
    /// # Errors
    /// Those of [`ConvKernel::run`]; the next call is then as good as the first.
    pub fn run(&mut self, bank: &[T], output: &mut [T], stop: &(dyn Fn() -> bool + Sync)) -> Result<()> {
        // Until this call succeeds the scratch holds half of something.
        let keep = std::mem::replace(&mut self.keep, Keep::Tiles);
        let (banks, outputs) = (&[bank], &mut [output]);
        let call = Call { input: self.input, banks, outputs, threads: self.threads, keep, stop };
        self.kernel.compute(self.scratch, call)?;
        self.keep = Keep::Again;
        Ok(())
    }
}

impl<T> Call<'_, '_, T> {
    fn go_on(&self) -> Result<()> {
        if (self.stop)() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

impl ConvKernel {
    /// Plans `shape`: chooses the path and lays out the memory; computes nothing.
    #[must_use]
    pub fn new(shape: &ConvShape) -> Self {
        let geometry = Geometry::new(shape);
        let path = if geometry.output_plane == 1 {
            ConvPath::Dense
        } else if geometry.group_out() <= DIRECT_OUT {
            ConvPath::Direct
        } else if geometry.offsets.len() == 1 {
            ConvPath::Pointwise
        } else {
            ConvPath::Tiled
        };
        Self { shape: shape.clone(), geometry, path }
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

    /// Elements of the input that are packed for `banks` filter banks which come one by one ([`ConvKernel::one_input`]):
    /// what the cost of a call depends on beside its multiply-adds. Zero on paths that pack nothing.
    #[must_use]
    pub fn packed_elems<T: Element>(&self, banks: usize) -> usize {
        if self.path != ConvPath::Tiled {
            return 0;
        }
        let all = self.tiles_elems();
        if all * size_of::<T>() > KEPT_BYTES { all * banks } else { all }
    }

    /// Elements of the whole im2col matrix.
    fn tiles_elems(&self) -> usize {
        let g = &self.geometry;
        g.reduction() * g.output_plane * g.groups * g.batch
    }

    /// Convolves one `input` `[N, C, spatial...]` with each of `banks` `[O, C/g, kernel...]` into the output of
    /// the same index `[N, O, spatial...]`, all row-major. The banks share every packed tile, so several cost
    /// less than as many calls. Outputs may hold anything before.
    ///
    /// With `threads` > 1 the work is spread over that many threads of the current rayon pool. `stop` is asked
    /// between tiles, a millisecond or so apart.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when a slice does not have the number of elements the shape requires or banks and
    /// outputs differ in number; [`Error::Cancelled`] when `stop` returned true.
    pub fn run<T: Element>(
        &self,
        scratch: &mut Scratch<T>,
        input: &[T],
        banks: &[&[T]],
        outputs: &mut [&mut [T]],
        threads: usize,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<()> {
        let threads = threads.max(1);
        self.compute(scratch, Call { input, banks, outputs, threads, keep: Keep::Nothing, stop })
    }

    /// Prepares `input` for filter banks that come one by one, each with a call of its own: what is packed for the
    /// first is kept for the others where a few megabytes hold it. `threads` is as in [`ConvKernel::run`].
    #[must_use]
    pub fn one_input<'a, T: Element>(
        &'a self,
        scratch: &'a mut Scratch<T>,
        input: &'a [T],
        threads: usize,
    ) -> OneInput<'a, T> {
        OneInput { kernel: self, scratch, input, threads: threads.max(1), keep: Keep::Tiles }
    }

    fn compute<T: Element>(&self, scratch: &mut Scratch<T>, call: Call<'_, '_, T>) -> Result<()> {
        check_elems("elements of the input", call.input.len(), self.shape.input_elems())?;
        check_elems("number of outputs", call.outputs.len(), call.banks.len())?;
        for bank in call.banks {
            check_elems("elements of the weight", bank.len(), self.shape.weight_elems())?;
        }
        for output in call.outputs.iter() {
            check_elems("elements of the output", output.len(), self.shape.output_elems())?;
        }
        match self.path {
            ConvPath::Dense => self.dense(scratch, call),
            ConvPath::Pointwise => self.pointwise(scratch, call),
            ConvPath::Direct => self.direct(scratch, call),
            ConvPath::Tiled => self.tiled(scratch, call),
        }
    }

    /// The staged planes of batch items: the input itself where it lies right, and what `held` says to be in `staged`
    /// already.
    fn stage<'s, T: Element>(
        &self,
        staged: &'s mut Vec<T>,
        input: &'s [T],
        threads: usize,
        held: bool,
    ) -> &'s [T] {
        let g = &self.geometry;
        if g.in_place {
            return input;
        }
        let staged = take(staged, input.len() / g.input_plane * g.plane);
        if !held {
            g.stage(input, staged, threads);
        }
        staged
    }

    /// The staged planes of batch item `n`. Those of the last item are there still when a call works on the same input
    /// again.
    fn stage_item<'s, T: Element>(
        &self,
        staged: &'s mut Vec<T>,
        call: &Call<'s, '_, T>,
        n: usize,
    ) -> &'s [T] {
        let g = &self.geometry;
        let item = g.in_channels * g.input_plane;
        let held = call.keep == Keep::Again && g.batch == 1;
        self.stage(staged, &call.input[n * item..][..item], call.threads, held)
    }

    fn dense<T: Element>(&self, scratch: &mut Scratch<T>, call: Call<'_, '_, T>) -> Result<()> {
        let g = &self.geometry;
        let (terms, group_out) = (g.reduction(), g.group_out());
        call.go_on()?;
        // With one output point the staged taps are dense, so a column of the product is a batch item.
        let staged = self.stage(&mut scratch.staged, call.input, call.threads, call.keep == Keep::Again);
        let rows = (PRODUCT_MACS / (terms * g.batch)).max(COLUMN_STEP);
        for (group, first) in blocks(g.groups, group_out, rows) {
            let count = rows.min(group_out - first);
            let channel = group * group_out + first;
            let columns = Matrix::new(&staged[group * terms..], terms, g.batch, 1, g.in_channels * g.plane);
            for bank in 0..call.banks.len() {
                call.go_on()?;
                let filters = Matrix::dense(&call.banks[bank][channel * terms..], count, terms);
                let output = &mut call.outputs[bank][channel..];
                let mut output = MatrixMut::new(output, count, g.batch, 1, g.out_channels);
                matmul_on(&mut output, filters, columns, false, call.threads);
            }
        }
        Ok(())
    }

    fn pointwise<T: Element>(&self, scratch: &mut Scratch<T>, call: Call<'_, '_, T>) -> Result<()> {
        let g = &self.geometry;
        let (terms, group_out, plane) = (g.reduction(), g.group_out(), g.output_plane);
        let cols = (PRODUCT_MACS / (terms * group_out)).next_multiple_of(COLUMN_STEP).max(COLUMN_STEP);
        for n in 0..g.batch {
            call.go_on()?;
            let staged = self.stage_item(&mut scratch.staged, &call, n);
            for (group, first) in blocks(g.groups, plane, cols) {
                let count = cols.min(plane - first);
                let columns = Matrix::new(&staged[group * terms * plane + first..], terms, count, plane, 1);
                for bank in 0..call.banks.len() {
                    call.go_on()?;
                    let filters =
                        Matrix::dense(&call.banks[bank][group * group_out * terms..], group_out, terms);
                    let at = (n * g.out_channels + group * group_out) * plane + first;
                    let output = &mut call.outputs[bank][at..];
                    let mut output = MatrixMut::new(output, group_out, count, plane, 1);
                    matmul_on(&mut output, filters, columns, false, call.threads);
                }
            }
        }
        Ok(())
    }

    fn direct<T: Element>(&self, scratch: &mut Scratch<T>, call: Call<'_, '_, T>) -> Result<()> {
        let g = &self.geometry;
        let (terms, plane) = (g.reduction(), g.output_plane);
        let wide = g.wide();
        let wides = take(&mut scratch.tile, wide * call.threads);
        for n in 0..g.batch {
            call.go_on()?;
            let staged = self.stage_item(&mut scratch.staged, &call, n);
            let group_elems = g.group_in() * g.plane;
            let stop = call.stop;
            let one = |bank: &[T], o: usize, wide: &mut [T], output: &mut [T]| {
                if stop() {
                    return Err(Error::Cancelled);
                }
                let group = &staged[o / g.group_out() * group_elems..][..group_elems];
                direct::channel(g, group, &bank[o * terms..][..terms], wide, output);
                Ok(())
            };
            for (bank, output) in call.banks.iter().zip(call.outputs.iter_mut()) {
                let output = &mut output[n * g.out_channels * plane..][..g.out_channels * plane];
                let per_task = g.out_channels.div_ceil(call.threads);
                let task = |(index, (output, wide)): (usize, (&mut [T], &mut [T]))| {
                    let mut channels = output.chunks_mut(plane).enumerate();
                    channels.try_for_each(|(o, to)| one(bank, index * per_task + o, wide, to))
                };
                if call.threads > 1 {
                    let tasks = output.par_chunks_mut(per_task * plane).zip(wides.par_chunks_mut(wide));
                    tasks.enumerate().try_for_each(task)?;
                } else {
                    task((0, (output, wides)))?;
                }
            }
        }
        Ok(())
    }

    fn tiled<T: Element>(&self, scratch: &mut Scratch<T>, call: Call<'_, '_, T>) -> Result<()> {
        let g = &self.geometry;
        let (terms, group_out, plane) = (g.reduction(), g.group_out(), g.output_plane);
        let (tile_terms, tile_cols) = self.tile::<T>();
        let all = self.tiles_elems();
        let keep = if all * size_of::<T>() > KEPT_BYTES { Keep::Nothing } else { call.keep };
        let kept = if keep == Keep::Nothing { tile_terms * tile_cols } else { all };
        let tiles = take(&mut scratch.tile, kept);
        let mut next = 0;
        for n in 0..g.batch {
            call.go_on()?;
            let staged = self.stage_item(&mut scratch.staged, &call, n);
            for (group, first) in blocks(g.groups, plane, tile_cols) {
                let cols = tile_cols.min(plane - first);
                g.segments(first, cols, &mut scratch.segments);
                let channels = &staged[group * g.group_in() * g.plane..][..g.group_in() * g.plane];
                for from in (0..terms).step_by(tile_terms) {
                    let count = tile_terms.min(terms - from);
                    let tile = &mut tiles[next..][..count * cols];
                    if keep != Keep::Nothing {
                        next += tile.len();
                    }
                    let segments = &scratch.segments[..];
                    let pack = |(k, row): (usize, &mut [T])| g.pack_row(channels, from + k, segments, row);
                    if keep == Keep::Again {
                        // It is there.
                    } else if call.threads > 1 {
                        tile.par_chunks_mut(cols).enumerate().for_each(pack);
                    } else {
                        tile.chunks_mut(cols).enumerate().for_each(pack);
                    }
                    let packed = Matrix::dense(tile, count, cols);
                    for bank in 0..call.banks.len() {
                        call.go_on()?;
                        let filters = &call.banks[bank][group * group_out * terms + from..];
                        let filters = Matrix::new(filters, group_out, count, terms, 1);
                        let at = (n * g.out_channels + group * group_out) * plane + first;
                        let output = &mut call.outputs[bank][at..];
                        let mut output = MatrixMut::new(output, group_out, cols, plane, 1);
                        matmul_on(&mut output, filters, packed, from > 0, call.threads);
                    }
                }
            }
        }
        Ok(())
    }

    /// Terms and columns of a tile: as even as possible, within [`TILE_BYTES`].
    fn tile<T: Element>(&self) -> (usize, usize) {
        let even = |total: usize, most: usize| total.div_ceil(total.div_ceil(most));
        let (terms, plane) = (self.geometry.reduction(), self.geometry.output_plane);
        let tile_terms = even(terms, TILE_TERMS);
        let most =
            (TILE_BYTES / T::DTYPE.size_bytes() / tile_terms / COLUMN_STEP * COLUMN_STEP).max(COLUMN_STEP);
        let cols = even(plane, most).next_multiple_of(COLUMN_STEP);
        (tile_terms, cols.min(plane))
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
    kernel.run(&mut Scratch::new(), input, &[weight], &mut [&mut output], threads, stop)?;
    if let Some(bias) = bias {
        for (plane, bias) in output.chunks_mut(shape.output_plane()).zip(bias.iter().cycle()) {
            for value in plane {
                *value += *bias;
            }
        }
    }
    Ok(output)
}
