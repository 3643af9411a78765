//! Convolution on the CPU: input planes are read where they lie, or from bands of them that were staged in the cache.
//!
//! [`ConvKernel`] is the plan of one shape, [`Filters`] are what it multiplies with and [`Scratch`] is the memory it works
//! in, kept apart so that one worker serves many layers from one scratch. [`conv_uncoded`] is the whole uncoded convolution
//! in one call. Who computes through workers only can skip this module.
//!
//! Nothing is gathered into columns: a term of a sum is one weight times a contiguous run of a plane
//! ([`micro`](super::micro)). What is blocked is what stays near: a *band* of the staged planes in the L2 cache, within it
//! *strips* of points that meet one block of filters after the other, within these tiles in registers.
//!
//! Invariant: after `Ok`, every output element was written from this call's inputs alone; after an error the
//! outputs hold nothing of use, and kernel and scratch are ready for the next call.

use super::depthwise::Depthwise;
use super::filters::{Filters, Layout};
use super::geometry::Geometry;
use super::micro::{MOST_LANES, TILE_POINTS, pieces};
use super::params::ConvShape;
use crate::array::{Element, check_elems};
use crate::error::Result;

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

/// How a [`ConvKernel`] computes its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvPath {
    /// One output point for each batch item: a product of the filters with the batch.
    Dense,
    /// Groups of one input channel under 3 x 3 filters of stride 1 or 2: the input planes themselves are read.
    Depthwise,
    /// Unit stride without padding: the input planes themselves are read.
    InPlace,
    /// Everything else: bands of the planes are staged with their padding, the strides taken apart.
    Staged,
}

/// Memory a [`ConvKernel`] works in: a band of staged planes (half a megabyte, more where channels are many or rows long)
/// and a strip of sums, for each thread. Grows to the largest shape it has served and stays.
#[derive(Clone, Debug, Default)]
pub struct Scratch<T> {
    pub(super) staged: Vec<T>,
    pub(super) wide: Vec<T>,
}

impl<T: Element> Scratch<T> {
    /// Scratch that holds nothing yet.
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
    pub(super) layout: Layout,
    /// Wide output points of a band, and rows that are staged for them.
    pub(super) band_points: usize,
    pub(super) band_rows: usize,
    pub(super) strip_points: usize,
    /// Where each term lies in the band of a group.
    pub(super) offsets: Vec<usize>,
}

/// What one call works on, checked.
pub(super) struct Call<'a, 'b, T> {
    pub(super) input: &'a [T],
    pub(super) banks: &'a [&'a Filters<T>],
    pub(super) outputs: &'a mut [&'b mut [T]],
    pub(super) threads: usize,
    /// Whether the scratch holds this input, staged, from the call before.
    pub(super) staged: bool,
    pub(super) stop: &'a (dyn Fn() -> bool + Sync),
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

impl ConvKernel {
    /// Plans `shape`: chooses the path and lays out the memory; computes nothing.
    #[must_use]
    pub fn new(shape: &ConvShape) -> Self {
        let keep_rows = shape.out_channels / shape.groups <= KEPT_ROWS && shape.stride[2] == 2;
        let mut geometry = Geometry::new(shape, keep_rows);
        let wide = geometry.wide();
        // Fewer points than a vector has are computed with some beyond them, which only staged planes have.
        geometry.in_place &= wide >= MOST_LANES || geometry.output_plane == 1;
        let depthwise = Depthwise::new(shape);
        let path = match () {
            () if geometry.output_plane == 1 => ConvPath::Dense,
            () if depthwise.is_some() => ConvPath::Depthwise,
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
            ConvPath::Dense | ConvPath::Depthwise | ConvPath::InPlace => wide,
        };
        let fits = (STRIP_BYTES / channel).saturating_sub(reach) / TILE_POINTS;
        let layout = Layout::new(shape, matches!(path, ConvPath::InPlace | ConvPath::Staged));
        let most = MOST_TILES / layout.width().max(1);
        let strip_points = TILE_POINTS * fits.clamp(LEAST_TILES, most);
        let band_rows = geometry.band_rows(band_points + MOST_LANES);
        let offsets = if layout.width() == 0 { Vec::new() } else { geometry.offsets(band_rows) };
        Self {
            shape: shape.clone(),
            geometry,
            path,
            depthwise,
            layout,
            band_points,
            band_rows,
            strip_points,
            offsets,
        }
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
    /// [`Error::Mismatch`](crate::Error::Mismatch) when it does not have the number of elements the shape requires.
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
        let g = &self.geometry;
        let plane = match self.path {
            ConvPath::Dense => 1,
            ConvPath::Depthwise => g.output_plane,
            ConvPath::InPlace | ConvPath::Staged => g.wide(),
        };
        g.batch * plane
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
    /// [`Error::Mismatch`](crate::Error::Mismatch) when a slice does not have the number of elements the shape requires, banks and outputs differ
    /// in number, or a bank was packed for another shape; [`Error::Cancelled`](crate::Error::Cancelled) when `stop` returned true.
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
}

/// Computes a whole convolution on this machine: padding, groups and bias included, nothing coded.
///
/// `input` is `[N, C, spatial...]`, `weight` `[O, C/groups, kernel...]`, `bias` `[O]`, all row-major; the
/// result is `[N, O, spatial...]`. `threads` and `stop` are as in [`ConvKernel::run`].
///
/// # Errors
/// [`Error::Mismatch`](crate::Error::Mismatch) when a slice does not have the number of elements `shape` requires;
/// [`Error::Cancelled`](crate::Error::Cancelled) when `stop` returned true.
pub fn conv_uncoded<T: Element>(
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
