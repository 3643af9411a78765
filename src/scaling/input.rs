//! Scans an input in one pass: whether it is finite, the size of its slabs, and the unevenness of its windows.

use std::ops::Range;

use super::magnitudes::{Extent, Extents, Magnitudes, extremes, largest, largest_scaled, typical};
use super::power::power_of_two;
use super::scan::{Found, InputScan, Room, ScanOptions, ScanRoom, ZeroRun};
use super::spread::{EVEN, Spread};
use super::windows::Windows;
use crate::array::{DType, Element, once, same_ref, sum_of_squares};
use crate::conv::ConvShape;
use crate::partition::InputPartition;
use crate::share::{share, threads};

/// Number of elements processed without a branch.
const CHUNK: usize = 64;

/// Inputs with fewer elements are scanned on the calling thread.
const SMALL: usize = 256 * 1024;

/// From this many images and groups on, each is scanned by one thread; otherwise threads share the rows of each.
const MANY: usize = 8;

/// Pieces into which many images and groups are divided for the threads.
const UNITS: usize = 32;

/// Number of windows of a slab that are sampled for its scale, where there are few slabs and where there are many.
const SAMPLED: [usize; 2] = [256, 64];

/// Slabs that are not mixed are scaled only if their size is outside `[1 / ROOM, ROOM]`: inside, products with filters of
/// a size near 1 are far from both ends of the range of f32.
const ROOM: f64 = (1_u64 << 40) as f64;

/// Floors above this are those of 16-bit formats.
const LEAST_HIDING: f64 = 1e-20;

/// No scale brings the largest element of a slab above this.
const MOST_ELEMENT: f64 = (1_u64 << 60) as f64;

/// A plan for scanning the inputs of one layer.
#[derive(Debug)]
pub struct ScanPlan {
    shape: ConvShape,
    options: ScanOptions,
    k_a: usize,
    /// Windows of one channel of a slab.
    part_plane: usize,
    /// Elements of one row of the split axis.
    row_elems: usize,
    windows: Windows,
    /// Ranges of input rows in which no slab begins or ends; together they cover all rows.
    bands: Vec<Range<usize>>,
    /// Parts of the bands that are short enough to be shared among threads.
    shared_bands: Vec<Range<usize>>,
    /// Number of windows of a slab that are sampled for its scale.
    sampled: usize,
    /// The rows of each slab.
    slab_rows: Vec<Range<usize>>,
    /// Elements of a slab of one group.
    slab_elems: usize,
}

impl ScanPlan {
    /// A plan for inputs of `shape`, partitioned into `parts`.
    #[must_use]
    pub fn new(shape: &ConvShape, parts: &InputPartition, options: ScanOptions) -> Self {
        let axis = shape.split_axis();
        let mut output = shape.output;
        output[axis] = parts.parts * parts.rows;
        let windows = Windows {
            input: shape.input,
            output,
            kernel: shape.kernel,
            stride: shape.stride,
            dilation: shape.dilation,
            pad: shape.pad_begin,
        };
        let (rows, pad) = (shape.input[axis], shape.pad_begin[axis]);
        let slab_rows: Vec<Range<usize>> = (0..parts.parts)
            .map(|a| {
                let start = (a * parts.step_rows).saturating_sub(pad).min(rows);
                let end = (a * parts.step_rows + parts.slab[axis]).saturating_sub(pad).min(rows);
                start..end.max(start)
            })
            .collect();
        let bands_between = |mut edges: Vec<usize>| -> Vec<Range<usize>> {
            edges.sort_unstable();
            edges.dedup();
            edges.windows(2).map(|edge| edge[0]..edge[1]).collect()
        };
        let ends = slab_rows.iter().flat_map(|rows| [rows.start, rows.end]);
        let edges: Vec<usize> = ends.chain([0, rows]).collect();
        let shared = edges.iter().copied().chain((0..=MANY).map(|i| rows * i / MANY)).collect();
        Self {
            options,
            k_a: parts.parts,
            part_plane: parts.rows * output[axis + 1..].iter().product::<usize>(),
            row_elems: shape.input[axis + 1..].iter().product(),
            windows,
            bands: bands_between(edges),
            shared_bands: bands_between(shared),
            sampled: SAMPLED[usize::from(shape.groups >= MANY)],
            slab_rows,
            slab_elems: shape.in_channels / shape.groups * parts.slab_plane(),
            shape: shape.clone(),
        }
    }

    /// Number of windows of all images and groups.
    #[must_use]
    pub fn windows(&self) -> usize {
        self.shape.batch * self.shape.groups * self.shape.output_plane()
    }

    /// Scans `input` `[N, C, spatial...]`.
    #[must_use]
    pub fn scan<T: Element>(&self, input: &[T], room: &ScanRoom<T>) -> InputScan {
        once!(T as E; fn(
            plan: &ScanPlan = self,
            input: &[E] = bytemuck::cast_slice(input),
            room: &ScanRoom<E> = same_ref(room),
        ) -> InputScan {
            plan.scan_here(input, room)
        }, std::convert::identity)
    }

    /// [`ScanPlan::scan`], in the crate that calls it.
    fn scan_here<T: Element>(&self, input: &[T], room: &ScanRoom<T>) -> InputScan {
        let (groups, k_a) = (self.shape.batch * self.shape.groups, self.k_a);
        let (small, apart) = (input.len() < SMALL, groups >= MANY);
        let mut found: Vec<Found> = (0..groups).map(|_| Found::default()).collect();
        let (mut scales, mut energies) = (vec![1.0; groups * k_a], vec![0.0; groups * k_a]);
        let each = groups.div_ceil(UNITS).max(1);
        let slabs = scales.chunks_mut(each * k_a).zip(energies.chunks_mut(each * k_a));
        let pieces = found.chunks_mut(each).zip(slabs).enumerate();
        share(if apart && !small { threads() } else { 1 }, pieces, |(piece, (found, (scales, energies)))| {
            let mut own = room.take();
            let slabs = scales.chunks_mut(k_a).zip(energies.chunks_mut(k_a));
            for (group, (found, slabs)) in (piece * each..).zip(found.iter_mut().zip(slabs)) {
                *found = self.group(input, group, !apart && !small, &mut own, slabs);
            }
            room.keep(own);
        });
        let mut scan = InputScan { finite: true, smallest: f64::INFINITY, energies, ..InputScan::default() };
        if scales.iter().any(|scale| *scale != 1.0) {
            scan.slab_scales = scales;
        }
        scan.amplifications.reserve(groups);
        for (at, group) in found.into_iter().enumerate() {
            scan.finite &= group.finite;
            scan.largest = scan.largest.max(group.largest);
            scan.smallest = scan.smallest.min(group.smallest);
            scan.amplifications.push(group.spread.largest());
            scan.spread.merge(&group.spread);
            let runs = group.zeros.into_iter();
            scan.zeros.extend(runs.map(|(start, count)| ZeroRun { group: at, start, count }));
        }
        scan
    }

    /// Calls `visit` with the output position of every window of image and group `group` whose amplification exceeds
    /// `limit`. Returns the sum of squares of the largest magnitudes of all other windows, times `unit` squared.
    pub fn visit_uneven<T: Element>(
        &self,
        input: &[T],
        group: usize,
        limit: f64,
        room: &ScanRoom<T>,
        unit: f64,
        mut visit: impl FnMut(usize),
    ) -> f64 {
        let mut own = room.take();
        self.magnitudes(input, group, false, &mut own);
        self.window_maxima(&mut own);
        let mut scales = vec![1.0; self.k_a];
        self.scales(&mut own, &mut scales);
        let mut visited = Vec::new();
        self.compare(&mut own, &scales, limit, |at, ratio| {
            if ratio > limit {
                visit(at);
                visited.push(at);
            }
        });
        for at in visited {
            own.own[at] = T::default();
        }
        let squares = sum_of_squares(&own.own[..self.shape.output_plane()], unit);
        room.keep(own);
        squares
    }

    /// Whether windows must be compared with each other.
    fn compares(&self) -> bool {
        self.options.mixed || self.options.floor > f64::from(f32::MIN_POSITIVE)
    }

    /// Scans one image and group.
    fn group<T: Element>(
        &self,
        input: &[T],
        group: usize,
        shared: bool,
        room: &mut Room<T>,
        slabs: (&mut [f64], &mut [f64]),
    ) -> Found {
        let ScanOptions { mixed, always_scaled, floor } = self.options;
        // In 16 bits nearly all data have elements below the floor, so that the pass would be in vain.
        if !(mixed || always_scaled)
            && floor <= LEAST_HIDING
            && let Some(found) = self.ordinary(input, group, shared, room, (&mut *slabs.0, &mut *slabs.1))
        {
            return found;
        }
        self.magnitudes(input, group, shared, room);
        pulp::Arch::new().dispatch(|| self.compared(input, group, shared, room, slabs))
    }

    /// The scan of a group in which nothing is scaled and no window stands out, because every element is zero or of
    /// ordinary size; `None` where one is not.
    fn ordinary<T: Element>(
        &self,
        input: &[T],
        group: usize,
        shared: bool,
        room: &mut Room<T>,
        (scales, energies): (&mut [f64], &mut [f64]),
    ) -> Option<Found> {
        let (plane_elems, row_elems) = (self.shape.input_plane(), self.row_elems);
        let (channels, bands) = (self.channels(input, group), self.bands(shared));
        // All bands at once, or one by one for the threads.
        let each = if shared { 1 } else { bands.len() };
        let arch = pulp::Arch::new();
        room.bands.clear();
        room.bands.resize(bands.len(), 0.0);
        room.extents.clear();
        room.extents.resize(bands.len() / each, Extent::default());
        let pieces = bands.chunks(each).zip(room.bands.chunks_mut(each)).zip(&mut room.extents);
        share(if shared { threads() } else { 1 }, pieces, |((bands, squares), extent)| {
            *extent = arch.dispatch(Extents { channels, plane_elems, bands, row_elems, squares });
        });
        let largest = room.extents.iter().fold(0.0_f64, |largest, extent| largest.max(extent.largest));
        let smallest = room.extents.iter().fold(f64::INFINITY, |least, extent| least.min(extent.smallest));
        let finite = room.bands.iter().all(|squares| squares.is_finite());
        if !finite || !self.leaves_alone(largest, smallest) {
            return None;
        }
        scales.fill(1.0);
        // Squares of numbers of ordinary size are numbers of f64, so that no magnitudes are needed.
        self.energies::<T>(bands, &room.bands, &[], scales, energies);
        Some(Found { finite, largest, smallest, ..Found::default() })
    }

    /// The channels of one image and group.
    fn channels<'a, T>(&self, input: &'a [T], group: usize) -> &'a [T] {
        &input[group * self.group_elems()..][..self.group_elems()]
    }

    /// Ranges of input rows in which no slab begins or ends.
    fn bands(&self, shared: bool) -> &[Range<usize>] {
        if shared { &self.shared_bands } else { &self.bands }
    }

    /// The rest of the scan of a group whose magnitudes are in `room`.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
    fn compared<T: Element>(
        &self,
        input: &[T],
        group: usize,
        shared: bool,
        room: &mut Room<T>,
        (scales, energies): (&mut [f64], &mut [f64]),
    ) -> Found {
        let mut finite = room.bands.iter().all(|energy| energy.is_finite());
        if !finite && T::DTYPE == DType::F64 {
            // Squares of large numbers may overflow.
            finite = crate::array::first_non_finite(self.channels(input, group)).is_none();
        }
        let (largest, smallest) = extremes(&room.plane);
        let (mut spread, mut zeros) = (Spread::default(), Vec::new());
        if self.leaves_alone(largest, smallest) {
            scales.fill(1.0);
        } else {
            if self.compares() {
                self.window_maxima(room);
            }
            self.scales(room, scales);
            if self.compares() && finite {
                self.compare(room, scales, EVEN, |at, ratio| {
                    if ratio > 0.0 {
                        return spread.add(ratio);
                    }
                    match zeros.last_mut() {
                        Some((start, count)) if *start + *count == at => *count += 1,
                        _ => zeros.push((at, 1)),
                    }
                });
            }
        }
        self.energies(self.bands(shared), &room.bands, &room.plane, scales, energies);
        Found { finite, largest, smallest, spread, zeros }
    }

    /// Whether no slab is scaled and no window has an amplification above 1, because nothing is mixed and all magnitudes
    /// but zeros are ordinary.
    fn leaves_alone(&self, largest: f64, smallest: f64) -> bool {
        let ScanOptions { mixed, always_scaled, floor } = self.options;
        !(mixed || always_scaled) && largest <= ROOM && smallest >= floor.max(1.0 / ROOM)
    }

    /// Number of elements in the channels of one group.
    fn group_elems(&self) -> usize {
        self.shape.in_channels / self.shape.groups * self.shape.input_plane()
    }

    /// Writes the largest magnitude over the channels at every position to `room.plane`, and the sum of squares of each band,
    /// which is not finite if an element is not finite, to `room.bands`.
    fn magnitudes<T: Element>(&self, input: &[T], group: usize, shared: bool, room: &mut Room<T>) {
        let plane_elems = self.shape.input_plane();
        let (channels, bands) = (self.channels(input, group), self.bands(shared));
        room.plane.clear();
        room.plane.resize(plane_elems, T::default());
        room.bands.clear();
        room.bands.resize(bands.len(), 0.0);
        let arch = pulp::Arch::new();
        let look = |start: usize, most: &mut [T], energy: &mut f64| {
            *energy = arch.dispatch(Magnitudes { channels: &channels[start..], plane_elems, most });
        };
        let mut rest = &mut room.plane[..];
        let pieces = bands.iter().zip(&mut room.bands).map(|(band, energy)| {
            let piece = rest.split_off_mut(..band.len() * self.row_elems).unwrap_or_default();
            (band.start * self.row_elems, piece, energy)
        });
        if shared {
            let pieces: Vec<_> = pieces.collect();
            share(threads(), pieces.into_iter(), |(start, most, energy)| look(start, most, energy));
        } else {
            pieces.for_each(|(start, most, energy)| look(start, most, energy));
        }
    }

    fn window_maxima<T: Element>(&self, room: &mut Room<T>) {
        self.windows.maxima(&room.plane, &mut room.own, &mut room.scratch);
    }

    /// Writes the scale of each slab of the group whose magnitudes are in `room`.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
    fn scales<T: Element>(&self, room: &mut Room<T>, scales: &mut [f64]) {
        let single = T::DTYPE == DType::F32;
        let mut sample = std::mem::take(&mut room.sample);
        let mut slab = |a: usize| -> Option<f64> {
            let rows = &self.slab_rows[a];
            let element = largest(&room.plane[rows.start * self.row_elems..rows.end * self.row_elems]);
            let mut windows =
                || typical(&room.own[a * self.part_plane..][..self.part_plane], self.sampled, &mut sample);
            let window = if self.compares() { windows() } else { element };
            if window == 0.0 {
                return None;
            }
            let ordinary = (1.0 / ROOM..=ROOM).contains(&window);
            if ordinary && !self.options.mixed && !self.options.always_scaled {
                return Some(1.0);
            }
            let scale = power_of_two(window, single);
            let too_large = element * scale > MOST_ELEMENT;
            Some(if too_large { power_of_two(element / MOST_ELEMENT, single) } else { scale })
        };
        let mut most: Option<f64> = None;
        for (a, to) in scales.iter_mut().enumerate() {
            let scale = slab(a);
            most = scale.map_or(most, |scale| Some(most.map_or(scale, |most| most.max(scale))));
            *to = scale.unwrap_or(0.0);
        }
        // A slab of zeros decodes to rounding errors only: its scale makes them as small as those of the others.
        scales.iter_mut().filter(|scale| **scale == 0.0).for_each(|scale| *scale = most.unwrap_or(1.0));
        room.sample = sample;
    }

    /// Writes the mean square of an element of each scaled slab, from the sums of squares of bands. If a sum is out of range: an
    /// upper bound, the square of the slab's largest element, from the magnitudes in `plane`.
    #[inline(always)]
    fn energies<T: Element>(
        &self,
        bands: &[Range<usize>],
        squares: &[f64],
        plane: &[T],
        scales: &[f64],
        energies: &mut [f64],
    ) {
        /// Squares lose digits, or are lost, below this.
        const LEAST_SQUARES: f64 = f64::MIN_POSITIVE / f64::EPSILON;
        let of_slab = |(rows, scale): (&Range<usize>, &f64)| {
            let inside = |band: &Range<usize>| rows.start <= band.start && band.end <= rows.end;
            let sum: f64 = bands.iter().zip(squares).filter(|(band, _)| inside(band)).map(|(_, e)| e).sum();
            if (LEAST_SQUARES..=f64::MAX).contains(&sum) {
                return sum * scale * scale / self.slab_elems as f64;
            }
            let magnitudes = plane.get(rows.start * self.row_elems..rows.end * self.row_elems);
            (largest(magnitudes.unwrap_or_default()) * scale).powi(2)
        };
        for (energy, slab) in energies.iter_mut().zip(self.slab_rows.iter().zip(scales)) {
            *energy = of_slab(slab);
        }
    }

    /// The expected L2 norm of the outputs, times `unit`, if products have the expected size and random signs.
    /// `group_weights` `[g]` are the sums of the energies of the groups' filters. `known` gives, for some images and groups,
    /// an upper bound of the sum of squares of their outputs, times `unit` squared.
    #[must_use]
    pub fn expected_norm(
        &self,
        scan: &InputScan,
        group_weights: &[f64],
        unit: f64,
        known: &[(usize, f64)],
    ) -> f64 {
        let plane = self.shape.output_plane();
        let of_group = |(group, energies): (usize, &[f64])| {
            let mean = energies.iter().sum::<f64>() / self.k_a as f64;
            let of_slab = |(a, energy): (usize, &f64)| {
                let scale = scan.slab_scales.get(group * self.k_a + a).copied().unwrap_or(1.0);
                let outputs = self.part_plane.min(plane.saturating_sub(a * self.part_plane));
                energy.max(mean) * outputs as f64 * (unit / scale).powi(2)
            };
            let own: f64 = energies.iter().enumerate().map(of_slab).sum();
            let own = own * group_weights.get(group % self.shape.groups).copied().unwrap_or(0.0);
            known.iter().find(|(of, _)| *of == group).map_or(own, |(_, squares)| own.min(*squares))
        };
        scan.energies.chunks_exact(self.k_a).enumerate().map(of_group).sum::<f64>().sqrt()
    }

    /// Compares the windows at the same place of all slabs. Calls `found` with the output position and the amplification of
    /// every window whose amplification exceeds `limit` or that of all windows before, so that the largest is always found.
    /// An amplification of 0 stands for a window of zeros.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for each instruction set")]
    fn compare<T: Element>(
        &self,
        room: &mut Room<T>,
        scales: &[f64],
        limit: f64,
        mut found: impl FnMut(usize, f64),
    ) {
        let Room { own, most, .. } = room;
        let floor = T::from_f64(self.options.floor);
        let part = self.part_plane;
        // Below the floor of a 16-bit format, what a window of zeros is mixed with shows in its outputs, but not in `most`.
        let hidden = self.options.floor > LEAST_HIDING && self.options.mixed;
        if self.options.mixed {
            largest_scaled(own, scales, floor, part, most);
        }
        let (limit_t, mut best) = (T::from_f64(limit), T::ONE);
        for (a, scale) in scales.iter().enumerate() {
            if !self.options.mixed {
                largest_scaled(&own[a * part..], &scales[a..=a], floor, part, most);
            }
            let scale_t = T::from_f64(*scale);
            let windows = part.min(self.shape.output_plane().saturating_sub(a * part));
            let own = &own[a * part..][..windows];
            for (chunk, (own, most)) in own.chunks(CHUNK).zip(most.chunks(CHUNK)).enumerate() {
                let (mut uneven, mut better) = (false, false);
                for (own, most) in own.iter().zip(most) {
                    let scaled = *own * scale_t;
                    uneven |= *most > limit_t * scaled;
                    better |= *most > best * scaled;
                }
                if !(uneven || better) {
                    continue;
                }
                for (i, (own, most)) in own.iter().zip(most).enumerate() {
                    let (own, most) = (own.to_f64(), most.to_f64());
                    let at = a * part + chunk * CHUNK + i;
                    if own == 0.0 {
                        if most > self.options.floor || hidden {
                            found(at, 0.0);
                        }
                        continue;
                    }
                    let ratio = most / (own * scale);
                    if ratio > limit || ratio > best.to_f64() {
                        best = if ratio > best.to_f64() { T::from_f64(ratio.min(1e30)) } else { best };
                        found(at, ratio);
                    }
                }
            }
        }
    }
}
