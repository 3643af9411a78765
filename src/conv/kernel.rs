//! Convolution on the CPU: input planes are read in place, or as bands staged in the cache.
//!
//! Relevant if you want to convolve on this machine without workers. [`ConvKernel`] is the plan of one shape,
//! [`Filters`] are the packed weights and [`Scratch`] is the working memory; they are separate so that one worker
//! serves many layers from one scratch. [`conv_uncoded`] is the whole uncoded convolution in one call.
//!
//! There is no im2col: a term of a sum is one weight times a contiguous run of a plane ([`micro`](super::micro)). With
//! many output channels, the runs of a few points are first copied side by side ([`panels`](super::panels)).
//! Blocking follows the caches: a *band* of the staged planes in the L2 cache, within it *strips* of points that are
//! multiplied with one block of filters after the other, and within these tiles in registers.
//!
//! Invariant: after `Ok`, every output element was written from the inputs of this call alone. After an error the
//! contents of the outputs are undefined, and kernel and scratch are ready for the next call.

use super::depthwise::Depthwise;
use super::filters::{Filters, Layout};
use super::geometry::Geometry;
use super::micro::{CHANNELS, MOST_LANES, TILE_POINTS, pieces};
use super::panels;
use super::params::ConvShape;
use super::winograd::{self, Filtering, PRODUCTS};
use crate::array::{Element, check_elems, once, same_mut, same_ref};
use crate::error::Result;

/// Bytes of a staged band: half of a 1 MiB L2 cache, which leaves the rest to filters and outputs.
const BAND_BYTES: usize = 512 << 10;
/// Bytes of the input that a strip reads for each block of filters.
const STRIP_BYTES: usize = 256 << 10;
/// Minimum number of tiles of a strip: enough to amortize the cost of a strip, and few enough that their sums, over all
/// channels of a block, stay in the innermost cache.
const LEAST_TILES: usize = 2;
const MOST_TILES: usize = 64;
/// Groups with at most this number of output channels keep rows of stride 2.
const KEPT_ROWS: usize = 2;

/// The path by which a [`ConvKernel`] computes its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvPath {
    /// One output point for each batch item: a product of the filters with the batch.
    Dense,
    /// Groups of one input channel under 3 x 3 filters of stride 1 or 2: input planes are read in place.
    Depthwise,
    /// Unit stride without padding: input planes are read in place.
    InPlace,
    /// Winograd's minimal filtering of 3 x 3 filters of stride 1, with many channels.
    Filtering,
    /// Everything else: bands of the planes are staged with their padding, separated by stride phase.
    Staged,
}

/// Working memory of a [`ConvKernel`]: for each thread a band of staged planes (half a megabyte, more with many
/// channels or long rows) and a strip of sums. Grows to the largest shape it has served and is never shrunk.
#[derive(Clone, Debug, Default)]
pub struct Scratch<T> {
    pub(super) staged: Vec<T>,
    pub(super) wide: Vec<T>,
}

impl<T: Element> Scratch<T> {
    /// Empty scratch.
    #[must_use]
    pub fn new() -> Self {
        Self { staged: Vec::new(), wide: Vec::new() }
    }
}

/// The plan of one convolution shape on the CPU.
#[derive(Clone, Debug)]
pub struct ConvKernel {
    pub(super) shape: ConvShape,
    pub(super) geometry: Geometry,
    pub(super) path: ConvPath,
    pub(super) depthwise: Option<Depthwise>,
    pub(super) filtering: Option<Filtering>,
    pub(super) layout: Layout,
    /// Wide output points of a band, and rows staged for them.
    pub(super) band_points: usize,
    pub(super) band_rows: usize,
    pub(super) strip_points: usize,
    /// The offset of each term in the band of a group.
    pub(super) offsets: Vec<usize>,
    /// Whether inputs are copied into panels.
    pub(super) packs: bool,
}

/// The checked operands of one call.
pub(super) struct Call<'a, 'b, T> {
    pub(super) input: &'a [T],
    pub(super) banks: &'a [&'a Filters<T>],
    pub(super) outputs: &'a mut [&'b mut [T]],
    pub(super) threads: usize,
    /// Whether the scratch still holds this input, staged by the previous call.
    pub(super) staged: bool,
    pub(super) stop: &'a (dyn Fn() -> bool + Sync),
}

/// One input for filter banks that arrive one by one. If all of the input is staged at once, later banks reuse it.
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
    /// Those of [`ConvKernel::run`], after which further calls are valid.
    pub fn run(
        &mut self,
        bank: &Filters<T>,
        output: &mut [T],
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<()> {
        let staged = &mut self.staged;
        once!(T as E; fn(
            kernel: &ConvKernel = self.kernel,
            scratch: &mut Scratch<E> = same_mut(self.scratch),
            input: &[E] = bytemuck::cast_slice(self.input),
            threads: usize = self.threads,
            staged: &mut bool = staged,
            bank: &Filters<E> = same_ref(bank),
            output: &mut [E] = bytemuck::cast_slice_mut(output),
            stop: &(dyn Fn() -> bool + Sync) = stop,
        ) -> Result<()> {
            let mut one = OneInput { kernel, scratch, input, threads, staged: *staged };
            let result = one.run_here(bank, output, stop);
            *staged = one.staged;
            result
        }, std::convert::identity)
    }

    /// [`OneInput::run`], in the crate that calls it.
    fn run_here(
        &mut self,
        bank: &Filters<T>,
        output: &mut [T],
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<()> {
        // Until this call succeeds, the contents of the scratch are incomplete.
        let staged = std::mem::replace(&mut self.staged, false);
        let (banks, outputs) = (&[bank], &mut [output]);
        let call = Call { input: self.input, banks, outputs, threads: self.threads, staged, stop };
        self.kernel.compute(self.scratch, call)?;
        self.staged = self.kernel.holds_input(self.threads);
        Ok(())
    }
}

impl ConvKernel {
    /// Plans `shape`: chooses the path and the memory layout; computes nothing.
    #[must_use]
    pub fn new(shape: &ConvShape) -> Self {
        let keep_rows = shape.out_channels / shape.groups <= KEPT_ROWS && shape.stride[2] == 2;
        let mut geometry = Geometry::new(shape, keep_rows);
        let wide = geometry.wide();
        // Fewer points than a vector holds are computed with some beyond them, which only staged planes provide.
        geometry.in_place &= wide >= MOST_LANES || geometry.output_plane == 1;
        let depthwise = Depthwise::new(shape);
        let path = match () {
            () if geometry.output_plane == 1 => ConvPath::Dense,
            () if depthwise.is_some() => ConvPath::Depthwise,
            () if geometry.in_place => ConvPath::InPlace,
            () => ConvPath::Staged,
        };
        // Sized for f32; f64 takes twice as much cache.
        let channel = geometry.group_in() * geometry.phases() * size_of::<f32>();
        let even = |most: usize| wide.div_ceil(wide.div_ceil(most)).next_multiple_of(TILE_POINTS);
        let (row, reach) = (geometry.band_elems(1) / geometry.phases(), geometry.reach());
        let band_points = match path {
            ConvPath::Staged => {
                // Rows at either end are staged twice, so a band is several times as long as they are.
                let fits = (BAND_BYTES / channel).saturating_sub(reach + row);
                even(fits.max(4 * (reach + row)))
            }
            ConvPath::Dense | ConvPath::Depthwise | ConvPath::Filtering | ConvPath::InPlace => wide,
        };
        let fits = (STRIP_BYTES / channel).saturating_sub(reach) / TILE_POINTS;
        let staged = matches!(path, ConvPath::InPlace | ConvPath::Staged);
        let group_out = geometry.group_out();
        let packs = staged
            && panels::pay(group_out, geometry.group_in(), geometry.reduction(), geometry.is_compact())
            && geometry.axes[2].step == 1;
        let (width, run) = match () {
            () if packs => (panels::channels(), panels::run(geometry.reduction())),
            () if staged => (CHANNELS.min(group_out.next_power_of_two()), geometry.reduction()),
            () => (0, geometry.reduction()),
        };
        let layout = Layout::new(shape, width, run);
        let strip_points = if packs {
            panels::strip(group_out, geometry.reduction(), geometry.output_plane)
        } else {
            TILE_POINTS * fits.clamp(LEAST_TILES, MOST_TILES / width.max(1))
        };
        let band_rows = geometry.band_rows(band_points + MOST_LANES);
        let offsets = if layout.width() == 0 { Vec::new() } else { geometry.offsets(band_rows) };
        Self {
            shape: shape.clone(),
            geometry,
            path,
            depthwise,
            filtering: None,
            layout,
            band_points,
            band_rows,
            strip_points,
            offsets,
            packs,
        }
    }

    /// As [`Self::new`], but layers that Winograd's minimal filtering pays for are computed by it. It takes less than half
    /// of the multiply-adds and rounds up to twice as much. An infinity in the window of an output makes it NaN.
    #[must_use]
    pub fn with_filtering(shape: &ConvShape) -> Self {
        let mut kernel = Self::new(shape);
        let Some(filtering) = Filtering::new(shape).filter(|_| kernel.path != ConvPath::Dense) else {
            return kernel;
        };
        let run = panels::run(shape.in_channels / shape.groups);
        kernel.layout = Layout::of_products(shape, PRODUCTS, panels::channels(), run);
        kernel.path = ConvPath::Filtering;
        kernel.filtering = Some(filtering);
        kernel
    }

    /// The shape this kernel was planned for.
    #[must_use]
    pub fn shape(&self) -> &ConvShape {
        &self.shape
    }

    /// The path that it takes.
    #[must_use]
    pub fn path(&self) -> ConvPath {
        self.path
    }

    /// Whether filters that `other` packed can be used by this kernel too.
    #[must_use]
    pub fn reads_filters_of(&self, other: &Self) -> bool {
        self.layout == other.layout && self.filtering.is_some() == other.filtering.is_some()
    }

    /// Packs a filter bank `[O, C/g, kernel...]`, row-major, for [`ConvKernel::run`].
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) when the number of weights does not match the shape.
    pub fn pack<T: Element>(&self, weights: &[T]) -> Result<Filters<T>> {
        check_elems("elements of the weight", weights.len(), self.shape.weight_elems())?;
        if self.filtering.is_some() {
            return Ok(Filters::new(self.layout, &winograd::transform_filters(weights)));
        }
        Ok(Filters::new(self.layout, weights))
    }

    /// Input elements that are staged for `banks` filter banks which arrive one by one ([`ConvKernel::one_input`]).
    /// With the multiply-adds they determine the cost of a call. Zero if the input is read in place.
    #[must_use]
    pub fn staged_elems(&self, banks: usize) -> usize {
        let g = &self.geometry;
        if let Some(filtering) = &self.filtering {
            let all = g.batch * g.in_channels * filtering.points() * PRODUCTS / 4;
            return if self.holds_input(1) { all } else { all * banks };
        }
        if self.path != ConvPath::Staged {
            return 0;
        }
        let bands = pieces(0, g.wide(), self.band_points).count();
        let all = g.batch * g.in_channels * g.band_elems(self.band_rows) * bands;
        if self.stages_at_once() { all } else { all * banks }
    }

    /// Output points computed for each channel, including those between the rows of staged planes.
    #[must_use]
    pub fn points(&self) -> usize {
        let g = &self.geometry;
        let plane = match self.path {
            ConvPath::Dense => 1,
            ConvPath::Depthwise => g.output_plane,
            ConvPath::Filtering => self.filtering.as_ref().map_or(g.wide(), Filtering::points),
            ConvPath::InPlace | ConvPath::Staged => g.wide(),
        };
        g.batch * plane
    }

    /// Multiply-adds of a call: those of the definition, including the points between the rows of staged planes, or the
    /// products of minimal filtering.
    #[must_use]
    pub fn macs(&self) -> f64 {
        let g = &self.geometry;
        let share = self.points() as f64 / (g.batch * g.output_plane) as f64;
        self.shape.macs() * share * self.saving()
    }

    /// Elements of the second operand of the products of a call, each time it is read.
    #[must_use]
    pub fn columns(&self) -> f64 {
        let g = &self.geometry;
        (g.reduction() * g.groups * self.points()) as f64 * self.saving()
    }

    /// Elements of the packed filters of a bank, without padding.
    #[must_use]
    pub fn filter_elems(&self) -> usize {
        let elems = self.shape.weight_elems();
        if self.filtering.is_some() { elems / 9 * PRODUCTS } else { elems }
    }

    /// Products of an output point relative to those of the definition.
    fn saving(&self) -> f64 {
        if self.filtering.is_some() { PRODUCTS as f64 / 36.0 } else { 1.0 }
    }

    /// Whether the scratch holds all that is derived from the input after a call.
    fn holds_input(&self, threads: usize) -> bool {
        let one = self.geometry.batch * self.geometry.groups == 1;
        match &self.filtering {
            Some(filtering) => one && threads == 1 && filtering.holds(),
            None => self.stages_at_once(),
        }
    }

    /// Whether one band holds the whole staged input.
    fn stages_at_once(&self) -> bool {
        let g = &self.geometry;
        self.path == ConvPath::Staged && g.batch * g.groups == 1 && self.band_points >= g.wide()
    }

    /// Convolves one `input` `[N, C, spatial...]` with each of `banks` ([`ConvKernel::pack`]) into the output of the
    /// same index `[N, O, spatial...]`, all row-major. The banks share the staged input, so one call with several banks
    /// costs less than several calls. Previous contents of the outputs are ignored. The bits of the result depend
    /// neither on the number of banks nor on `threads`.
    ///
    /// With `threads` > 1 the work is spread over that many threads of the current rayon pool; one thread allocates
    /// nothing once the scratch has grown. `stop` is checked between strips, a fraction of a millisecond apart.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) when the length of a slice does not match the shape, the numbers of
    /// banks and outputs differ, or a bank was packed for another shape; [`Error::Cancelled`](crate::Error::Cancelled)
    /// when `stop` returned true.
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

    /// Prepares `input` for filter banks that arrive one by one, each with its own call. `threads` is as in
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
}

/// Computes a whole uncoded convolution on this machine, with padding, groups and bias.
///
/// `input` is `[N, C, spatial...]`, `weight` `[O, C/groups, kernel...]`, `bias` `[O]`, all row-major; the
/// result is `[N, O, spatial...]`. `threads` and `stop` are as in [`ConvKernel::run`].
///
/// # Errors
/// [`Error::Mismatch`](crate::Error::Mismatch) when the length of a slice does not match `shape`;
/// [`Error::Cancelled`](crate::Error::Cancelled) when `stop` returned true.
pub fn conv_uncoded<T: Element>(
    shape: &ConvShape,
    input: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    threads: usize,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Vec<T>> {
    let mut output = vec![T::default(); shape.output_elems()];
    conv_uncoded_into(shape, input, weight, bias, &mut output, threads, stop)?;
    Ok(output)
}

/// As [`conv_uncoded`], into `output`.
///
/// # Errors
/// Those of [`conv_uncoded`].
pub fn conv_uncoded_into<T: Element>(
    shape: &ConvShape,
    input: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    output: &mut [T],
    threads: usize,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<()> {
    once!(T as E; fn(
        shape: &ConvShape = shape,
        input: &[E] = bytemuck::cast_slice(input),
        weight: &[E] = bytemuck::cast_slice(weight),
        bias: Option<&[E]> = bias.map(bytemuck::cast_slice),
        output: &mut [E] = bytemuck::cast_slice_mut(output),
        threads: usize = threads,
        stop: &(dyn Fn() -> bool + Sync) = stop,
    ) -> Result<()> {
        conv_here(shape, input, weight, bias, output, threads, stop)
    }, std::convert::identity)
}

/// [`conv_uncoded_into`], in the crate that calls it.
fn conv_here<T: Element>(
    shape: &ConvShape,
    input: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    output: &mut [T],
    threads: usize,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<()> {
    if let Some(bias) = bias {
        check_elems("elements of the bias", bias.len(), shape.out_channels)?;
    }
    let kernel = ConvKernel::new(shape);
    kernel.run(&mut Scratch::new(), input, &[&kernel.pack(weight)?], &mut [&mut *output], threads, stop)?;
    if let Some(bias) = bias {
        for (plane, bias) in output.chunks_mut(shape.output_plane()).zip(bias.iter().cycle()) {
            for value in plane {
                *value += *bias;
            }
        }
    }
    Ok(())
}
