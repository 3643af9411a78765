//! The plan of one convolution on a device: kernel, tiles, and a list of dispatches.
//!
//! Relevant if you want to change how convolutions run on devices. Pure functions of the shape and the [`Caps`] of the
//! device, so they are tested without a device.
//!
//! Invariant: no dispatch runs more than [`MAX_LOOP_ITERATIONS`](super::dispatch::MAX_LOOP_ITERATIONS) loop iterations
//! per thread, exceeds the adapter's grid, or indexes past 32 bits; each output element is written by exactly one
//! thread in each part of the reduction, the first part overwriting and the later ones adding.

use std::ops::Range;

use super::candidate::{Candidate, SPLIT_UNIT};
use super::device::Caps;
use super::dispatch::{Part, Step, block_channels, layer_params, parts, passes, patches, small};
use super::kernel::Kernel;
use super::params::Params;
use super::shaders::{PASS_THREADS, Stage, Variant};
use super::tile::{Window, depth};
use super::winograd;
use crate::array::DType;
use crate::conv::{AXES, ConvShape};
use crate::error::{Error, Result};

/// Bytes of an element stored in 16 bits.
const HALF_BYTES: u64 = 2;

/// Maximum number of elements of an array, so that rounding up to whole tiles stays inside 32 bits.
const MAX_ELEMS: usize = 1 << 31;

/// All properties of one convolution on one device that do not depend on data.
#[derive(Clone, Debug)]
pub struct ConvPlan {
    pub(super) variant: Variant,
    pub(super) shape: ConvShape,
    /// Bytes of one slab, one packed filter bank, one output.
    pub(super) slab_bytes: u64,
    pub(super) bank_bytes: u64,
    pub(super) output_bytes: u64,
    /// Parts of the reduction that are divided among workgroups.
    splits: usize,
    /// Bytes between the passes of one sub-result, if there are several: the input of the main pass, and its output.
    pub(super) transformed_bytes: u64,
    pub(super) sums_bytes: u64,
    /// The convolution of the main pass, if it differs from that of the layer: see [`winograd`].
    pub(super) products: Option<Box<Self>>,
    pub(super) steps: Vec<Step>,
    /// Ranges of `steps` that make one submission each.
    pub(super) submissions: Vec<Range<usize>>,
}

impl ConvPlan {
    /// Plans `shape` for a device, with `kernel` or the one [`Kernel::choose`] picks.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for a shape with padding (slabs include theirs); [`Error::Mismatch`], naming both
    /// numbers, when an array is larger than the device can bind; [`Error::Unavailable`] when the device does not
    /// support the kernel or the element type.
    pub fn new(shape: &ConvShape, dtype: DType, caps: &Caps, kernel: Option<Kernel>) -> Result<Self> {
        Self::of(shape, dtype, caps, Candidate::best(kernel, shape, caps, dtype))
    }

    /// Plans `shape` for one of the candidates that [`Candidate::all`] and [`Candidate::of`] list for it.
    ///
    /// # Errors
    /// Those of [`Self::new`].
    pub fn of(shape: &ConvShape, dtype: DType, caps: &Caps, candidate: Candidate) -> Result<Self> {
        if shape.pad_begin != [0; AXES] || shape.pad_end != [0; AXES] {
            return Err(Error::invalid(
                "padding of a GPU convolution",
                format!("{:?} and {:?}", shape.pad_begin, shape.pad_end),
                "it must be zero: slabs carry their padding with them",
            ));
        }
        let Candidate { kernel, tile, splits, winograd } = candidate;
        if winograd {
            return Self::winograd(shape, dtype, caps, candidate);
        }
        if caps.half && dtype != DType::F32 {
            return Err(Error::Unavailable {
                what: format!("{dtype} arithmetic on slabs and filters that are kept in 16 bits"),
                help: "use f32, or leave storage at f32".into(),
            });
        }
        if !kernel.runs_on(caps, dtype) {
            return Err(Error::Unavailable {
                what: format!("kernel {kernel} in {dtype} on this adapter"),
                help: "use f32, or another adapter: `fcdcc devices` lists what each can do".into(),
            });
        }
        let group_out = shape.out_channels / shape.groups;
        let channel_blocks = group_out.div_ceil(block_channels(kernel, tile));
        let reduction = shape.weight_elems() / shape.out_channels;
        let window = if tile.rows > 0 { Window::of(shape) } else { None };
        // `patch.wgsl` binds both as quads.
        let slab_elems = shape.input_elems().next_multiple_of(if window.is_some() { 4 } else { 1 });
        let bank_elems = match kernel {
            Kernel::Single if window.is_some() => {
                let taps: usize = shape.kernel.iter().product();
                shape.weight_elems() / taps * taps.next_multiple_of(4)
            }
            Kernel::Naive | Kernel::Single => shape.weight_elems(),
            Kernel::Tiled => {
                shape.groups * reduction.next_multiple_of(depth(tile)) * group_out.next_multiple_of(4)
            }
            Kernel::Direct => shape.groups * channel_blocks * reduction * tile.channels as usize,
            Kernel::DirectSubgroup => {
                shape.groups * channel_blocks * reduction.next_multiple_of(2) * tile.channels as usize
            }
        };
        let full = dtype.size_bytes() as u64;
        let stored = if caps.half { HALF_BYTES } else { full };
        let bytes = |what: &str, elems: usize, each: u64| {
            // Buffers hold whole words.
            let bytes = (elems as u64 * each).next_multiple_of(4);
            let limit = caps.max_binding_bytes.min(MAX_ELEMS as u64 * each);
            if bytes <= limit {
                return Ok(bytes);
            }
            Err(Error::mismatch(
                format!("bytes of {what} on a GPU worker"),
                bytes,
                format!("at most {limit} (what the adapter can bind)"),
                "split the layer further (larger k_A for slabs and outputs, larger k_B for filters and outputs)",
            ))
        };
        let parts = parts(shape, kernel, tile);
        let mut plan = Self {
            variant: Variant {
                kernel,
                stage: Stage::Main,
                dtype,
                tile,
                window,
                adds: parts.len() > 1,
                half: caps.half,
            },
            shape: shape.clone(),
            slab_bytes: bytes("one coded slab", slab_elems, stored)?,
            bank_bytes: bytes("one packed coded filter bank", bank_elems, stored)?,
            output_bytes: bytes("one sub-result", shape.output_elems(), full)?,
            splits: splits as usize,
            transformed_bytes: 0,
            products: None,
            sums_bytes: match splits {
                0 | 1 => 0,
                _ => bytes("the sums of a split reduction", shape.output_elems() * splits as usize, full)?,
            },
            steps: Vec::new(),
            submissions: Vec::new(),
        };
        plan.fill_steps(caps, channel_blocks, parts)?;
        Ok(plan)
    }

    /// Plans the forward transformation, products and inverse transformation of a layer.
    fn winograd(shape: &ConvShape, dtype: DType, caps: &Caps, candidate: Candidate) -> Result<Self> {
        if caps.half || !shape.suits_filtering() {
            let help = "it is for 3 x 3 filters without strides and dilation, of 16 channels or more, kept in 32 bits";
            return Err(Error::invalid("layer for Winograd's minimal filtering", format!("{shape:?}"), help));
        }
        let inner = winograd::products(shape)?;
        let mut plan = Self::of(&inner, dtype, caps, Candidate { winograd: false, ..candidate })?;
        let products = Box::new(plan.clone());
        // These are at most as large as the arrays of the main pass, whose checks have passed.
        let bytes = |elems: usize| elems as u64 * dtype.size_bytes() as u64;
        (plan.transformed_bytes, plan.sums_bytes) = (plan.slab_bytes, plan.output_bytes);
        (plan.slab_bytes, plan.output_bytes) = (bytes(shape.input_elems()), bytes(shape.output_elems()));
        (plan.shape, plan.products) = (shape.clone(), Some(products));
        let base = layer_params(shape, 0, 0);
        let blocks = winograd::tiles(shape).div_ceil(PASS_THREADS as usize);
        let forward = passes(caps, Stage::Forward, small(blocks * shape.in_channels), base);
        for range in &mut plan.submissions {
            *range = range.start + forward.len()..range.end + forward.len();
        }
        plan.submissions[0].start = 0;
        plan.steps.splice(..0, forward);
        plan.finish(passes(caps, Stage::Inverse, small(blocks * shape.out_channels), base));
        Ok(plan)
    }

    /// The kernel of the main pass.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        self.variant.kernel
    }

    /// The variants that run, one for each stage.
    pub(super) fn variants(&self) -> Vec<Variant> {
        let pass = |stage| Variant::pass(stage, self.variant.dtype);
        if self.products.is_some() {
            vec![pass(Stage::Forward), self.variant, pass(Stage::Inverse)]
        } else if self.splits > 1 {
            vec![self.variant, pass(Stage::Merge)]
        } else {
            vec![self.variant]
        }
    }

    /// The convolution of the main pass.
    pub(super) fn products(&self) -> &Self {
        self.products.as_deref().unwrap_or(self)
    }

    /// Whether filters packed for `other` are those that this plan reads, given that both are the same filters.
    pub(super) fn reads_filters_of(&self, other: &Self) -> bool {
        let weights = |shape: &ConvShape| (shape.in_channels, shape.out_channels, shape.groups, shape.kernel);
        let layout = |plan: &Self| {
            let Variant { kernel, dtype, tile, half, .. } = plan.variant;
            let depth = if kernel == Kernel::Tiled { depth(tile) } else { 0 };
            let passes = (plan.products.is_some(), plan.variant.window.is_some());
            (kernel, dtype, half, tile.channels, depth, passes, plan.bank_bytes)
        };
        weights(&self.shape) == weights(&other.shape) && layout(self) == layout(other)
    }

    /// Multiply-adds of one sub-result, without those on padding of tiles.
    #[must_use]
    pub fn macs(&self) -> u64 {
        self.shape.output_elems() as u64 * (self.shape.weight_elems() / self.shape.out_channels) as u64
    }

    fn fill_steps(&mut self, caps: &Caps, channel_blocks: usize, parts: Vec<Part>) -> Result<()> {
        let (shape, tile) = (&self.shape, self.variant.tile);
        let block_columns = (tile.columns * tile.workgroup_x) as usize;
        let columns = shape.batch * shape.output.iter().product::<usize>();
        let column_blocks = columns.div_ceil(block_columns);
        let (block_columns, workgroups) = match self.variant.window {
            Some(_) => {
                (block_columns * tile.rows as usize, patches(shape, tile).div_ceil(tile.workgroup_x as usize))
            }
            None => (block_columns, column_blocks * channel_blocks * shape.groups * self.splits),
        };
        let workgroups_u32 = u32::try_from(workgroups).map_err(|_| {
            Error::mismatch(
                "workgroups of a GPU convolution",
                workgroups,
                u32::MAX,
                "split the layer further",
            )
        })?;
        let reduction = shape.weight_elems() / shape.out_channels;
        // Rounded to whole runs, so that splits begin at whole steps of the kernel for any tile.
        let split_steps = match self.splits {
            1 => reduction,
            splits => reduction.div_ceil(splits).next_multiple_of(SPLIT_UNIT),
        };
        let base = Params {
            splits: small(self.splits),
            split_steps: small(split_steps),
            outputs: small(shape.output_elems()),
            ..layer_params(shape, column_blocks, channel_blocks)
        };
        let block_outputs = (block_columns * block_channels(self.variant.kernel, tile)) as u64;
        let budget = caps.submission_macs.max(1);
        let mut spent = budget;
        for (index, part) in parts.into_iter().enumerate() {
            let workgroup_macs =
                block_outputs * (part.channels.len() * part.taps.len()).min(split_steps) as u64;
            let pieces = (workgroup_macs * workgroups as u64).div_ceil(budget).clamp(1, workgroups as u64);
            // At most the whole grid, so the narrowing below is exact.
            let piece = u32::try_from((workgroups as u64).div_ceil(pieces))
                .unwrap_or(workgroups_u32)
                .min(caps.max_workgroups_per_dimension.saturating_pow(2));
            let mut first = 0;
            while first < workgroups_u32 {
                let end = first.saturating_add(piece).min(workgroups_u32);
                let grid_x = (end - first).min(caps.max_workgroups_per_dimension);
                let params = Params {
                    first_workgroup: first,
                    end_workgroup: end,
                    grid_x,
                    channel_begin: small(part.channels.start),
                    channel_end: small(part.channels.end),
                    tap_begin: small(part.taps.start),
                    tap_end: small(part.taps.end),
                    accumulate: u32::from(index > 0),
                    ..base
                };
                let macs = workgroup_macs * u64::from(end - first);
                if macs > budget.saturating_sub(spent) {
                    self.submissions.push(self.steps.len()..self.steps.len());
                    spent = 0;
                }
                spent += macs;
                self.steps.push(Step {
                    stage: Stage::Main,
                    params,
                    grid: [grid_x, (end - first).div_ceil(grid_x)],
                });
                self.submissions.last_mut().expect("the first step opens a submission").end =
                    self.steps.len();
                first = end;
            }
        }
        if self.splits > 1 {
            let workgroups = base.outputs.div_ceil(PASS_THREADS);
            self.finish(passes(caps, Stage::Merge, workgroups, base));
        }
        Ok(())
    }

    /// Adds `steps` to the last submission, since they read only a few elements each.
    fn finish(&mut self, steps: Vec<Step>) {
        self.steps.extend(steps);
        self.submissions.last_mut().expect("a plan has steps").end = self.steps.len();
    }
}

/// Every variant that a plan can use.
#[cfg(test)]
pub(super) fn every_variant() -> Vec<Variant> {
    let caps = tests::caps();
    let mut variants = Vec::new();
    for stage in [Stage::Forward, Stage::Merge, Stage::Inverse] {
        variants.extend([DType::F32, DType::F64].map(|dtype| Variant::pass(stage, dtype)));
    }
    for kernel in Kernel::ALL {
        for dtype in [DType::F32, DType::F64] {
            let pointwise = [(8, 1), (16, 9), (64, 1), (128, 200)].map(|(o, side)| ([o, 1, 1], side, 1));
            let windows = [([1, 1, 3], 58, 2), ([1, 1, 5], 60, 1), ([1, 2, 7], 62, 2), ([1, 20, 3], 9, 1)];
            for ([outputs, inputs, taps], side, stride) in pointwise.into_iter().chain(windows) {
                let shape = ConvShape::new(
                    &[1, inputs, side, side],
                    &[outputs, inputs, taps, taps],
                    &crate::conv::ConvParams::default().stride([stride]),
                )
                .expect("a valid shape");
                for Candidate { kernel, tile, .. } in Candidate::of(kernel, &shape, &caps, dtype) {
                    let window = if tile.rows > 0 { Window::of(&shape) } else { None };
                    for (adds, half) in [(false, false), (true, false), (false, dtype == DType::F32)] {
                        let variant = Variant { kernel, stage: Stage::Main, dtype, tile, window, adds, half };
                        if !variants.contains(&variant) {
                            variants.push(variant);
                        }
                    }
                }
            }
        }
    }
    variants
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::conv::ConvParams;

    pub(in crate::gpu) fn caps() -> Caps {
        Caps {
            software: true,
            f64: true,
            f16: true,
            half: false,
            subgroup_shuffle: true,
            subgroup_size: 8,
            threads: 2,
            mappable: true,
            max_binding_bytes: 128 << 20,
            max_workgroups_per_dimension: 65_535,
            max_workgroup_invocations: 1024,
            submission_macs: 200_000_000,
        }
    }

    pub(in crate::gpu) fn plan(
        input: &[usize],
        weight: &[usize],
        params: ConvParams,
        kernel: Kernel,
    ) -> Result<ConvPlan> {
        let shape = ConvShape::new(input, weight, &params).unwrap();
        ConvPlan::new(&shape, DType::F32, &caps(), Some(kernel))
    }

    #[test]
    fn dispatches_cover_the_grid_once_per_part_and_respect_the_limits() {
        let p = ConvParams::default();
        let cases = [
            plan(&[1, 64, 58, 58], &[64, 64, 3, 3], p.clone(), Kernel::Naive).unwrap(),
            plan(&[1, 1, 300, 20_000], &[1, 1, 1, 1], p.clone(), Kernel::Naive).unwrap(),
            plan(&[2, 20_000, 3, 3], &[17, 20_000, 3, 3], p.clone(), Kernel::DirectSubgroup).unwrap(),
            plan(&[1, 512, 60, 60], &[512, 512, 3, 3], p.clone(), Kernel::Tiled).unwrap(),
            plan(&[1, 512, 9, 9], &[512, 512, 3, 3], p.clone(), Kernel::Tiled).unwrap(),
            plan(&[3, 70, 58, 61], &[140, 1, 3, 3], p.groups(70), Kernel::Single).unwrap(),
            plan(&[1, 20_000, 3, 3], &[3, 20_000, 3, 3], ConvParams::default(), Kernel::Single).unwrap(),
        ];
        for plan in cases {
            let mut next = 0;
            let mut part = (0, 0);
            let split = plan.splits > 1;
            assert_eq!(split, plan.sums_bytes > 0);
            assert_eq!(split, plan.steps.last().unwrap().stage == Stage::Merge);
            for step in &plan.steps {
                let s = step.params;
                if step.stage == Stage::Merge {
                    assert!(split && plan.steps.len() > 1);
                    assert!(s.end_workgroup * PASS_THREADS >= s.outputs && s.splits > 1);
                    continue;
                }
                // The splits of K cover everything, and none begins inside a step.
                assert!(s.splits * s.split_steps >= s.tap_end - s.tap_begin || !split);
                assert!(!split || (s.split_steps as usize).is_multiple_of(SPLIT_UNIT));
                assert!(step.grid.iter().all(|n| (1..=65_535).contains(n)));
                assert!(step.grid[0] * step.grid[1] >= s.end_workgroup - s.first_workgroup);
                if s.first_workgroup == 0 {
                    part = (s.channel_begin, s.tap_begin);
                    next = 0;
                }
                assert_eq!((s.channel_begin, s.tap_begin), part);
                assert_eq!(s.accumulate != 0, part != (0, 0));
                assert_eq!(s.first_workgroup, next);
                next = s.end_workgroup;
            }
            assert_eq!(plan.submissions.first().unwrap().start, 0);
            assert_eq!(plan.submissions.last().unwrap().end, plan.steps.len());
            assert!(plan.submissions.windows(2).all(|w| w[0].end == w[1].start && !w[0].is_empty()));
        }
    }

    #[test]
    fn filters_serve_other_sizes_and_no_other_layout() {
        let caps = caps();
        let shape = |input: &[usize], outputs| {
            ConvShape::new(input, &[outputs, 32, 3, 3], &ConvParams::default()).unwrap()
        };
        let (small, large) = (shape(&[1, 32, 20, 20], 32), shape(&[3, 32, 41, 30], 32));
        let mut plans = Vec::new();
        for kernel in Kernel::ALL.into_iter().filter(|kernel| *kernel != Kernel::Single) {
            for candidate in Candidate::of(kernel, &small, &caps, DType::F32) {
                let one = ConvPlan::of(&small, DType::F32, &caps, candidate).unwrap();
                let two = ConvPlan::of(&large, DType::F32, &caps, candidate).unwrap();
                assert!(two.reads_filters_of(&one) && one.reads_filters_of(&two), "{candidate:?}");
                let more = ConvPlan::of(&shape(&[1, 32, 20, 20], 64), DType::F32, &caps, candidate).unwrap();
                assert!(!more.reads_filters_of(&one), "{candidate:?}");
                let wide = ConvPlan::of(&large, DType::F64, &caps, candidate).unwrap();
                assert!(!wide.reads_filters_of(&one), "{candidate:?}");
                plans.push(one);
            }
        }
        // What may be shared is packed in the same way.
        let filters: Vec<f32> = (0..small.weight_elems()).map(|at| at as f32).collect();
        for (one, two) in plans.iter().flat_map(|one| plans.iter().map(move |two| (one, two))) {
            let same = one.pack(&filters) == two.pack(&filters);
            assert!(same || !one.reads_filters_of(two), "{:?}, {:?}", one.variant, two.variant);
        }
    }

    #[test]
    fn refusals_name_both_numbers() {
        let p = ConvParams::default;
        let big = plan(&[1, 1, 40_000, 1000], &[4, 1, 1, 1], p(), Kernel::Naive).unwrap_err().to_string();
        assert!(big.contains("160000000") && big.contains("134217728"), "{big}");
        let padded = plan(&[1, 1, 4, 4], &[1, 1, 3, 3], p().padding([1]), Kernel::Naive);
        assert!(matches!(padded, Err(Error::InvalidParameter { .. })));
        let shape = ConvShape::new(&[1, 1, 4], &[1, 1, 3], &p()).unwrap();
        let without = Caps { f64: false, ..caps() };
        let f64 = ConvPlan::new(&shape, DType::F64, &without, None);
        assert!(matches!(f64, Err(Error::Unavailable { .. })));
    }

    #[test]
    fn parameters_of_axes_with_one_position_may_be_huge() {
        let p = ConvParams::default().stride([1 << 40, 1]).dilation([1 << 40, 1]);
        let plan = plan(&[1, 1, 1, 4], &[1, 1, 1, 2], p, Kernel::Naive).unwrap();
        assert_eq!(plan.steps[0].params.stride_y, 1);
        let plan = ConvPlan::new(&plan.shape, DType::F32, &caps(), Some(Kernel::Tiled)).unwrap();
        assert_eq!(plan.offsets()[..4], [0, 1, 0, 0]);
        assert_eq!(plan.offsets().len(), 32);
    }
}
