//! The candidates of a layer: kernels and tiles worth trying on a device, most promising first.
//!
//! Pure functions of the shape. The order is an estimate; measuring may select another candidate of the list.

use std::fmt;

use super::device::Caps;
use super::kernel::{Kernel, TILED_SIDE};
use super::tile::{Tile, Window};
use super::winograd;
use crate::array::DType;
use crate::conv::ConvShape;

/// The unit of a split of the reduction, in steps: a multiple of every [`depth`](super::tile::depth).
pub(super) const SPLIT_UNIT: usize = 128;

/// Workgroups that keep a large GPU busy (some 130 multiprocessors). Smaller tiles would give more workgroups, but
/// fetch each element more often.
const BUSY_WORKGROUPS: usize = 96;
/// Number of workgroups that splitting a reduction aims for.
const SPLIT_WORKGROUPS: usize = 256;
/// Maximum number of splits of a reduction: the merging pass reads the partial sums of each output one after the other.
const MAX_SPLITS: usize = 32;
/// Maximum bytes of the partial sums of one sub-result for which writing and reading them again pays.
const MAX_SUMS_BYTES: u64 = 16 << 20;
/// The longest reduction that may be split.
const MAX_SPLIT_REDUCTION: usize = 1 << 18;

/// Cost of a load on software adapters, in vector multiply-adds: the best fit to seven tiles of `direct_subgroup` on
/// thirteen layers.
const LOAD: f64 = 20.0;
/// Number of `direct_subgroup` tiles to try.
const SUBGROUP_TILES: usize = 3;
/// Number of `patch.wgsl` tiles to try.
const PATCH_TILES: usize = 2;
/// Vector divisions for each patch, each as costly as a load.
const PATCH_DIVISIONS: u32 = 5;

/// Number of tiles to try for the products of Winograd's filtering.
const WINOGRAD_TILES: usize = 2;

/// A kernel and its tiles; displayed as a name that is unique among the candidates of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    pub(super) kernel: Kernel,
    pub(super) tile: Tile,
    /// Number of parts of the reduction, computed by different workgroups.
    pub(super) splits: u32,
    /// Whether the kernel multiplies transformed data: see [`winograd`].
    pub(super) winograd: bool,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, tile, splits, winograd } = self;
        let threads_y = if *kernel == Kernel::Tiled { TILED_SIDE } else { 1 };
        if *winograd {
            f.write_str("winograd, ")?;
        }
        if tile.rows > 0 {
            write!(f, "{kernel} patch {}x{}", tile.rows, tile.columns)?;
        } else {
            write!(f, "{kernel} {}x{}", tile.channels * threads_y, tile.columns * tile.workgroup_x)?;
        }
        if *splits > 1 { write!(f, " in {splits} splits") } else { Ok(()) }
    }
}

impl Candidate {
    /// The name without the number of splits, which similar layers share.
    #[must_use]
    pub fn way(self) -> String {
        let whole = Self { splits: 1, ..self };
        if self.splits > 1 { format!("{whole} split") } else { whole.to_string() }
    }

    /// The kernel.
    #[must_use]
    pub fn kernel(self) -> Kernel {
        self.kernel
    }

    /// The handful of candidates for `shape`, starting with the choice of [`Kernel::choose`]. The kernels for GPUs are
    /// not tried on software adapters.
    #[must_use]
    pub fn all(shape: &ConvShape, caps: &Caps, dtype: DType) -> Vec<Self> {
        let chosen = Kernel::choose(shape, caps, dtype);
        let order =
            [chosen, Kernel::Tiled, Kernel::DirectSubgroup, Kernel::Direct, Kernel::Single, Kernel::Naive];
        let mut list = Vec::new();
        for (turn, kernel) in order.into_iter().enumerate() {
            let able = kernel.runs_on(caps, dtype) && !(caps.software && kernel == Kernel::Tiled);
            if able {
                for candidate in Self::of(kernel, shape, caps, dtype) {
                    if !list.contains(&candidate) {
                        list.push(candidate);
                    }
                }
                if turn == 0 {
                    list.extend(Self::winograd(None, shape, caps, dtype));
                }
            }
        }
        list
    }

    /// Candidates that run `shape` by Winograd's minimal filtering, if that suits it and fits the device. `kernel`
    /// computes the products; if `None`, [`Kernel::choose`] picks it.
    #[must_use]
    pub fn winograd(kernel: Option<Kernel>, shape: &ConvShape, caps: &Caps, dtype: DType) -> Vec<Self> {
        let suits = shape.suits_filtering() && !caps.half;
        let Some(inner) = winograd::products(shape).ok().filter(|_| suits) else {
            return Vec::new();
        };
        // Packed filters may have twice as many elements, in half-empty tiles.
        let most = inner.input_elems().max(inner.output_elems()).max(2 * inner.weight_elems());
        if most as u64 * dtype.size_bytes() as u64 > caps.max_binding_bytes {
            return Vec::new();
        }
        let kernel = kernel.unwrap_or_else(|| Kernel::choose(&inner, caps, dtype));
        // Sixteen times the groups give enough workgroups without splits.
        let whole = Self::of(kernel, &inner, caps, dtype).into_iter().filter(|c| c.splits == 1);
        whole.map(|candidate| Self { winograd: true, ..candidate }).take(WINOGRAD_TILES).collect()
    }

    /// The candidates that use `kernel`, at least one, with the one expected to be fastest first.
    #[must_use]
    pub fn of(kernel: Kernel, shape: &ConvShape, caps: &Caps, dtype: DType) -> Vec<Self> {
        let whole = |tile| Self { kernel, tile, splits: 1, winograd: false };
        match kernel {
            Kernel::Naive => vec![whole(Tile { channels: 1, columns: 1, rows: 0, workgroup_x: 64 })],
            Kernel::Single => {
                let workgroup_x = if caps.software { 8 } else { 64 };
                let general = Tile { channels: 1, columns: 8, rows: 0, workgroup_x };
                let mut tiles = patches(shape, caps, workgroup_x);
                tiles.insert(if caps.software { tiles.len() } else { 0 }, general);
                tiles.into_iter().map(whole).collect()
            }
            Kernel::Direct => vec![whole(Tile { channels: 8, columns: 4, rows: 0, workgroup_x: 8 })],
            Kernel::DirectSubgroup => subgroup_tiles(shape, caps).into_iter().map(whole).collect(),
            Kernel::Tiled => tiled(shape, caps, dtype),
        }
    }

    /// The candidate expected to be fastest for `kernel`, or for the choice of [`Kernel::choose`] if `None`.
    pub(super) fn best(kernel: Option<Kernel>, shape: &ConvShape, caps: &Caps, dtype: DType) -> Self {
        let kernel = kernel.unwrap_or_else(|| Kernel::choose(shape, caps, dtype));
        Self::of(kernel, shape, caps, dtype)[0]
    }
}

/// Tiles of `patch.wgsl`, best estimate first; empty if it cannot run the layer. A large patch shares each load among
/// many products but may extend beyond the edges; planes of common networks have widths that are multiples of 7 or 8.
/// Larger patches than these save little, and windows of 49 taps would take seconds to compile.
fn patches(shape: &ConvShape, caps: &Caps, workgroup_x: u32) -> Vec<Tile> {
    let Some(window) = Window::of(shape) else { return Vec::new() };
    let [_, h, w] = shape.output;
    let seconds = |tile: &Tile| {
        let high = h.div_ceil(tile.rows as usize) * shape.batch * shape.out_channels;
        let blocks = (high * w.div_ceil(tile.columns as usize)).div_ceil(workgroup_x as usize);
        let (loads, others) = window.work(*tile);
        let channels = (shape.in_channels / shape.groups) as f64;
        let stores = f64::from(tile.rows * tile.columns + PATCH_DIVISIONS);
        let vectors = channels * (LOAD * f64::from(loads) + f64::from(others)) + LOAD * stores;
        blocks.div_ceil(caps.threads.max(1)) as f64 * vectors
    };
    let sizes = [(4, 8), (4, 7), (2, 8), (2, 7), (4, 4), (2, 4), (1, 8), (1, 7), (1, 4), (1, 1)];
    let mut tiles: Vec<Tile> = sizes
        .map(|(rows, columns)| Tile { channels: 1, columns, rows, workgroup_x })
        .into_iter()
        // One quad for each thread, so that GPUs fetch the quads of neighbouring threads together.
        .filter(|tile| caps.software || tile.columns == 4)
        .collect();
    tiles.sort_by(|a, b| seconds(a).total_cmp(&seconds(b)));
    tiles.truncate(PATCH_TILES);
    tiles
}

/// Tiles of `direct_subgroup`, best estimate first. A large tile shares each load among many products, but may leave
/// more channels and columns empty (on 7 x 7 pixels, 47 of 96 columns or 15 of 64) and threads idle. Larger tiles than
/// these would save a tenth and take several seconds to compile.
fn subgroup_tiles(shape: &ConvShape, caps: &Caps) -> Vec<Tile> {
    let lanes = caps.subgroup_size.max(8);
    let group_out = shape.out_channels / shape.groups;
    let columns = shape.batch * shape.output.iter().product::<usize>();
    let seconds = |tile: &Tile| {
        let high = group_out.div_ceil(tile.channels as usize) * shape.groups;
        let blocks = high * columns.div_ceil((tile.columns * lanes) as usize);
        let products = f64::from(tile.channels * tile.columns);
        let loads = f64::from(tile.columns) + f64::from(tile.channels.div_ceil(32));
        // The number of workgroups that each thread of the adapter runs in sequence.
        blocks.div_ceil(caps.threads.max(1)) as f64 * (products + LOAD * loads)
    };
    let mut tiles: Vec<Tile> = [(64, 4), (32, 8), (32, 4), (16, 6), (16, 4), (8, 6), (8, 4)]
        .map(|(channels, columns)| Tile { channels, columns, rows: 0, workgroup_x: lanes })
        .to_vec();
    tiles.sort_by(|a, b| seconds(a).total_cmp(&seconds(b)));
    tiles.truncate(SUBGROUP_TILES);
    tiles
}

/// Candidates that use `tiled`. Considers the tiles not much higher than the layer: first the largest whose grid keeps
/// a GPU busy, then the smaller ones, then the larger ones, the largest also with its reduction split. If no grid does,
/// the largest tile that splits make busy enough comes first, then each tile unsplit.
fn tiled(shape: &ConvShape, caps: &Caps, dtype: DType) -> Vec<Candidate> {
    let group_out = shape.out_channels / shape.groups;
    let columns = shape.batch * shape.output.iter().product::<usize>();
    let side = TILED_SIDE as usize;
    let tiles: Vec<Tile> = [(8, 4), (4, 4), (2, 2)]
        .into_iter()
        .map(|(channels, columns)| Tile { channels, columns, rows: 0, workgroup_x: TILED_SIDE })
        .filter(|t| t.channels == 2 || 2 * group_out > t.channels as usize * side)
        // 128 x 64 elements of f64 exceed the shared memory of some adapters.
        .filter(|t| t.channels < 8 || dtype == DType::F32)
        .collect();
    let blocks = |t: &Tile| {
        let high = group_out.div_ceil(t.channels as usize * side);
        high * columns.div_ceil(t.columns as usize * side) * shape.groups
    };
    let whole = |tile: &Tile| Candidate { kernel: Kernel::Tiled, tile: *tile, splits: 1, winograd: false };
    let (busy, idle): (Vec<Tile>, Vec<Tile>) = tiles.iter().partition(|t| blocks(t) >= BUSY_WORKGROUPS);
    let split: Vec<Candidate> = idle
        .iter()
        .map(|tile| Candidate { splits: splits(shape, caps, dtype, blocks(tile)), ..whole(tile) })
        .filter(|c| c.splits > 1)
        .collect();
    let smallest_first = idle.iter().rev().map(whole);
    if let Some(first) = busy.first() {
        // One split of a larger tile is tried.
        let rest = busy[1..].iter().map(whole);
        let split = split.into_iter().take(1);
        return [whole(first)].into_iter().chain(rest).chain(split).chain(smallest_first).collect();
    }
    let enough = |c: &&Candidate| blocks(&c.tile) * c.splits as usize >= BUSY_WORKGROUPS;
    let first = split.iter().find(enough).or_else(|| split.last()).copied();
    let mut list: Vec<Candidate> = first.into_iter().collect();
    list.extend(split.into_iter().filter(|c| Some(*c) != first));
    list.extend(smallest_first);
    list
}

/// Number of parts of the reduction that makes a grid of `blocks` workgroups keep a GPU busy. Limited so that each part
/// has at least two runs and the sums stay small; 1 if nothing remains to split.
fn splits(shape: &ConvShape, caps: &Caps, dtype: DType, blocks: usize) -> u32 {
    let reduction = shape.weight_elems() / shape.out_channels;
    let bytes = (shape.output_elems() as u64).saturating_mul(dtype.size_bytes() as u64).max(1);
    let by_bytes = usize::try_from(caps.max_binding_bytes.min(MAX_SUMS_BYTES) / bytes).unwrap_or(MAX_SPLITS);
    // Longer reductions already have several parts in the plan.
    if reduction > MAX_SPLIT_REDUCTION {
        return 1;
    }
    let wanted = SPLIT_WORKGROUPS.div_ceil(blocks.max(1));
    let most = wanted.min(reduction / (2 * SPLIT_UNIT)).min(by_bytes).clamp(1, MAX_SPLITS);
    // Rounded to whole units, so that no part is empty.
    let steps = reduction.div_ceil(most).next_multiple_of(SPLIT_UNIT);
    u32::try_from(reduction.div_ceil(steps)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::ConvParams;
    use crate::gpu::plan::tests::caps;

    fn names(input: &[usize], weight: &[usize], dtype: DType) -> Vec<String> {
        let shape = ConvShape::new(input, weight, &ConvParams::default()).unwrap();
        let gpu = Caps { software: false, subgroup_shuffle: false, ..caps() };
        let all = Candidate::all(&shape, &gpu, dtype);
        assert_eq!(all[0].kernel, Kernel::choose(&shape, &gpu, dtype));
        let software = Candidate::all(&shape, &caps(), dtype);
        assert!(software.iter().all(|c| c.kernel != Kernel::Tiled));
        all.iter().map(ToString::to_string).filter(|n| n.starts_with("tiled")).collect()
    }

    #[test]
    fn the_grid_decides_the_tile_and_the_splits() {
        let large = names(&[1, 128, 226, 226], &[256, 128, 3, 3], DType::F32);
        assert_eq!(large, ["tiled 128x64", "tiled 64x64", "tiled 32x32"]);
        let middle = names(&[1, 128, 58, 58], &[128, 128, 3, 3], DType::F32);
        assert_eq!(middle, ["tiled 64x64", "tiled 32x32", "tiled 128x64 in 3 splits", "tiled 128x64"]);
        assert_eq!(names(&[1, 128, 226, 226], &[256, 128, 3, 3], DType::F64)[0], "tiled 64x64");
        assert_eq!(names(&[1, 16, 226, 226], &[16, 16, 3, 3], DType::F32)[0], "tiled 32x32");
        // 4 or 8 workgroups of 16 or 32 K for each of 18 or so units.
        let small = names(&[1, 512, 9, 9], &[512, 512, 3, 3], DType::F32);
        assert_eq!(small[0], "tiled 64x64 in 18 splits");
        assert!(small.contains(&"tiled 32x32".to_owned()), "{small:?}");
        // Nothing to split.
        assert_eq!(names(&[1, 8, 9, 9], &[64, 8, 3, 3], DType::F32)[0], "tiled 32x32");
    }

    #[test]
    fn the_layer_decides_the_tile_of_the_subgroup_kernel() {
        let first = |channels: usize, side: usize, threads: usize| {
            let shape =
                ConvShape::new(&[1, 16, side, side], &[channels, 16, 1, 1], &ConvParams::default()).unwrap();
            let caps = Caps { threads, ..caps() };
            Candidate::of(Kernel::DirectSubgroup, &shape, &caps, DType::F32)[0].to_string()
        };
        assert_eq!([first(512, 56, 2), first(64, 14, 2)], ["direct_subgroup 64x32"; 2]);
        assert_eq!([first(32, 56, 2), first(16, 56, 2)], ["direct_subgroup 32x64", "direct_subgroup 16x48"]);
        // Few channels and few columns: the tile is no larger than needed.
        assert_eq!(first(8, 56, 2), "direct_subgroup 8x48");
        assert_eq!(first(32, 5, 1), "direct_subgroup 32x32");
        // Smaller blocks are preferred over idle threads.
        assert_eq!(first(32, 5, 2), "direct_subgroup 16x32");
        assert_eq!(first(64, 7, 16), "direct_subgroup 8x32");
    }

    #[test]
    fn the_layer_decides_the_patch() {
        let names = |side: usize, kernel: usize, params: ConvParams, software: bool| {
            let shape =
                ConvShape::new(&[1, 9, side, side], &[18, 1, kernel, kernel], &params.groups(9)).unwrap();
            let caps = Caps { software, ..caps() };
            assert_eq!(Kernel::choose(&shape, &caps, DType::F32), Kernel::Single);
            let list = Candidate::of(Kernel::Single, &shape, &caps, DType::F32);
            list.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let p = ConvParams::default;
        assert_eq!(names(58, 3, p(), true), ["single patch 4x7", "single patch 4x8", "single 1x64"]);
        assert_eq!(names(66, 3, p(), true)[0], "single patch 4x8");
        assert_eq!(names(57, 3, p().stride([2]), true)[0], "single patch 4x7");
        // One output in each plane.
        assert_eq!(names(7, 7, p(), true)[0], "single patch 1x1");
        assert_eq!(names(58, 3, p(), false), ["single 1x512", "single patch 4x4", "single patch 2x4"]);
        // Windows that patches do not support.
        for (kernel, params) in [(3, p().dilation([2])), (3, p().stride([3])), (8, p())] {
            assert_eq!(names(58, kernel, params, true), ["single 1x64"]);
        }
        // Supported if such steps are never taken.
        assert_eq!(names(3, 3, p().stride([3]), true)[0], "single patch 1x1");
        assert_eq!(names(8, 1, p().dilation([3]), true)[0], "single patch 2x8");
    }

    #[test]
    fn patches_stand_in_for_blocks_of_channels_that_are_not_full() {
        let chosen = |group_out: usize, kernel: usize, dilation: usize, software: bool| {
            let params = ConvParams::default().groups(2).dilation([dilation]);
            let weight = [2 * group_out, 3, kernel, kernel];
            let shape = ConvShape::new(&[1, 6, 20, 20], &weight, &params).unwrap();
            Kernel::choose(&shape, &Caps { software, ..caps() }, DType::F32)
        };
        assert_eq!([chosen(4, 3, 1, true), chosen(7, 3, 1, true)], [Kernel::Single; 2]);
        let full = [chosen(8, 3, 1, true), chosen(4, 3, 2, true), chosen(4, 1, 1, true)];
        assert_eq!(full, [Kernel::DirectSubgroup; 3]);
        assert_eq!([chosen(4, 3, 1, false), chosen(3, 3, 1, false)], [Kernel::Tiled, Kernel::Single]);
    }

    #[test]
    fn no_split_is_empty_and_sums_stay_small() {
        for channels in [29, 57, 100, 512, 3000, 30_000] {
            for outputs in [4, 64, 600] {
                let shape =
                    ConvShape::new(&[1, channels, 9, 9], &[outputs, channels, 3, 3], &ConvParams::default())
                        .unwrap();
                for candidate in Candidate::of(Kernel::Tiled, &shape, &caps(), DType::F32) {
                    let (splits, reduction) = (candidate.splits as usize, channels * 9);
                    let steps = reduction.div_ceil(splits).next_multiple_of(SPLIT_UNIT);
                    assert!(splits == 1 || (splits - 1) * steps < reduction, "{candidate}");
                    assert!(splits == 1 || splits * shape.output_elems() * 4 <= 16 << 20);
                }
            }
        }
    }
}
