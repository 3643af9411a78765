//! The table of WGSL kernels and the text substitution that makes variants of them.
//!
//! Relevant if you want to change a kernel. WGSL has neither generics nor unrolling, and accumulators must be named
//! registers, since an array indexed by a loop variable spills to memory. So a kernel file may repeat text, with counts
//! fixed for each variant: `#[p:PIXELS, j:4] text` repeats one line, `#{p:PIXELS, j:4` ... `#}` a block; `${p}` is the
//! number, `${p*4+j}` is calculated from several. The text of a variant starts with the element types, the counts as
//! constants, and `common.wgsl`. Workgroup sizes are ordinary `override`s.
//!
//! Invariant: every variant that a plan can use parses and validates (tested with naga, without a device).

use std::fmt::Write as _;

use super::kernel::{Kernel, TILED_SIDE};
use super::tile::{F32_RUN, Tile, Window, number};
use crate::array::DType;

const COMMON: &str = include_str!("../../shaders/common.wgsl");
const MERGE: &str = include_str!("../../shaders/merge.wgsl");
const WINOGRAD_FORWARD: &str = include_str!("../../shaders/winograd_forward.wgsl");
const WINOGRAD_INVERSE: &str = include_str!("../../shaders/winograd_inverse.wgsl");
const PATCH: &str = include_str!("../../shaders/patch.wgsl");

/// The key of a compiled pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    pub(super) kernel: Kernel,
    pub(super) stage: Stage,
    pub(super) dtype: DType,
    pub(super) tile: Tile,
    /// The window that `patch.wgsl` unrolls.
    pub(super) window: Option<Window>,
    /// Whether dispatches may add to earlier contents of the output. If one part covers the whole reduction, the text
    /// that adds is not compiled, which on software adapters saves most of the compile time.
    pub(super) adds: bool,
    /// Whether slabs and filters are stored in 16 bits.
    pub(super) half: bool,
}

/// The pass of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// Transforms the slab, for [`winograd`](super::winograd).
    Forward,
    /// Convolves; the only pass of most layers.
    Main,
    /// Adds up the sums of a split reduction.
    Merge,
    /// Transforms products back.
    Inverse,
}

/// Threads of a workgroup of every pass except the main one.
pub(super) const PASS_THREADS: u32 = 64;

impl Kernel {
    fn source(self) -> &'static str {
        match self {
            Self::Naive => include_str!("../../shaders/naive.wgsl"),
            Self::Single => include_str!("../../shaders/single.wgsl"),
            Self::Direct => include_str!("../../shaders/direct.wgsl"),
            Self::DirectSubgroup => include_str!("../../shaders/direct_subgroup.wgsl"),
            Self::Tiled => include_str!("../../shaders/tiled.wgsl"),
        }
    }
}

/// All text that variants are made of.
pub(super) fn sources() -> String {
    let kernels = Kernel::ALL.map(Kernel::source);
    [&[COMMON, MERGE, PATCH, WINOGRAD_FORWARD, WINOGRAD_INVERSE], kernels.as_slice()].concat().concat()
}

impl Variant {
    /// The repetition counts of the kernel text.
    fn counts(self) -> Vec<(&'static str, u32)> {
        let Tile { channels, columns, .. } = self.tile;
        if self.stage != Stage::Main {
            return vec![];
        }
        let mut counts = match self.kernel {
            Kernel::Naive => vec![],
            Kernel::Single => match self.window {
                Some(window) => window.counts(self.tile, self.dtype),
                None => vec![("PIXELS", columns)],
            },
            Kernel::Direct => vec![("BLOCKS", channels / 4), ("PIXELS", columns)],
            Kernel::DirectSubgroup => {
                let width = (channels / 8).min(4);
                vec![
                    ("CHANNELS", channels),
                    ("PIXELS", columns),
                    // Blocks of eight lanes' weights, and weights per lane: in vectors of four or two, or single.
                    ("BLOCKS", channels / 8 / width),
                    ("WIDTH", width),
                    ("QUADS", width / 4),
                    ("PAIRS", width % 4 / 2),
                    ("ONES", width % 2),
                    ("VECTORS", 1 - width % 2),
                ]
            }
            Kernel::Tiled => {
                let (threads, depth) = (TILED_SIDE * TILED_SIDE, 64 / columns);
                let width = channels.min(4);
                vec![
                    ("ROWS", channels),
                    ("COLS", columns),
                    ("DEPTH", depth),
                    ("DEPTH_QUADS", depth / 4),
                    // Rows are vectors of four or two.
                    ("WIDTH", width),
                    ("QUADS", width / 4),
                    ("PAIRS", 1 - width / 4),
                    ("GROUPS", channels / width),
                    ("FILTER_LOADS", depth * TILED_SIDE * channels / width / threads),
                ]
            }
        };
        counts.push(("ADDS", u32::from(self.adds)));
        counts
    }

    /// A pass other than the main one, which is the same for all kernels.
    pub(super) fn pass(stage: Stage, dtype: DType) -> Self {
        let tile = Tile { channels: 1, columns: 1, rows: 0, workgroup_x: PASS_THREADS };
        Self { kernel: Kernel::Naive, stage, dtype, tile, window: None, adds: false, half: false }
    }

    /// The label of the pipeline, such as `naive_f32`.
    pub(super) fn label(self) -> String {
        let name = match self.stage {
            Stage::Main => self.kernel.to_string(),
            Stage::Forward => "winograd_forward".to_owned(),
            Stage::Merge => "merge".to_owned(),
            Stage::Inverse => "winograd_inverse".to_owned(),
        };
        format!("{name}_{}{}", self.dtype, if self.half { "_f16" } else { "" })
    }

    /// Number of arrays that it reads.
    pub(super) fn inputs(self) -> u32 {
        match (self.stage, self.kernel) {
            (Stage::Main, Kernel::Tiled) => 3,
            (Stage::Main, _) => 2,
            (Stage::Forward | Stage::Merge | Stage::Inverse, _) => 1,
        }
    }

    /// The pipeline constants to set.
    pub(super) fn overrides(self) -> Vec<(&'static str, f64)> {
        match (self.stage, self.kernel) {
            (Stage::Main, Kernel::Tiled) => vec![],
            _ => vec![("workgroup_x", f64::from(self.tile.workgroup_x))],
        }
    }

    /// The complete WGSL text of this variant.
    pub(super) fn wgsl(self) -> String {
        let counts = self.counts();
        let run = match self.dtype {
            DType::F32 => F32_RUN,
            DType::F64 => u32::MAX,
        };
        let dtype = self.dtype;
        let mut text = if self.half {
            format!("enable f16;\nalias Elem = {dtype};\nalias Stored = f16;\n")
        } else {
            format!("alias Elem = {dtype};\nalias Stored = {dtype};\n")
        };
        let _ = writeln!(text, "const RUN = {run}u;");
        for (name, count) in &counts {
            let _ = writeln!(text, "const {name} = {count}u;");
        }
        text.push_str(COMMON);
        let source = match self.stage {
            Stage::Main if self.window.is_some() => PATCH,
            Stage::Main => self.kernel.source(),
            Stage::Forward => WINOGRAD_FORWARD,
            Stage::Merge => MERGE,
            Stage::Inverse => WINOGRAD_INVERSE,
        };
        let lines: Vec<&str> = source.lines().collect();
        expand(&lines, &counts, &[], &mut text);
        text
    }
}

/// Writes `lines` with all repetitions unrolled; `bound` holds the numbers of the enclosing loops.
fn expand(lines: &[&str], counts: &[(&str, u32)], bound: &[(&str, u32)], text: &mut String) {
    let mut rest = lines;
    while let Some((line, following)) = rest.split_first() {
        rest = following;
        let trimmed = line.trim_start();
        if let Some((loops, body)) = trimmed.strip_prefix("#[").and_then(|l| l.split_once(']')) {
            repeat(loops, &[body.trim_start()], counts, bound, text);
        } else if let Some(loops) = trimmed.strip_prefix("#{") {
            let mut depth = 1;
            let end = following
                .iter()
                .position(|l| {
                    let l = l.trim_start();
                    depth += i32::from(l.starts_with("#{")) - i32::from(l.starts_with("#}"));
                    depth == 0
                })
                .expect("the shader files close every block, as the tests of this module check");
            repeat(loops, &following[..end], counts, bound, text);
            rest = &following[end + 1..];
        } else {
            let mut pieces = line.split("${");
            text.push_str(pieces.next().unwrap_or_default());
            for piece in pieces {
                let (sum, after) = piece.split_once('}').expect("every number is closed");
                let _ = write!(text, "{}{after}", calculate(sum, &[bound, counts].concat()));
            }
            text.push('\n');
        }
    }
}

/// The value of a sum of products of names and numbers, such as `p*STRIDE+1`.
fn calculate(sum: &str, known: &[(&str, u32)]) -> u32 {
    let value = |name: &str| number(name.trim(), known);
    sum.split('+').map(|product| product.split('*').map(value).product::<u32>()).sum()
}

/// Writes `lines` once for each combination of the loops `a:COUNT, b:8`, the first varying slowest.
fn repeat(loops: &str, lines: &[&str], counts: &[(&str, u32)], bound: &[(&str, u32)], text: &mut String) {
    let (first, inner) = loops.split_once(',').map_or((loops, None), |(first, inner)| (first, Some(inner)));
    let (name, count) = first.trim().split_once(':').expect("loops are written name:COUNT");
    for number in 0..number(count.trim(), counts) {
        let bound = [bound, &[(name.trim(), number)]].concat();
        match inner {
            Some(inner) => repeat(inner, lines, counts, &bound, text),
            None => expand(lines, counts, &bound, text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::params;
    use crate::gpu::plan::every_variant;

    fn parse(variant: Variant) -> naga::Module {
        let wgsl = variant.wgsl();
        naga::front::wgsl::parse_str(&wgsl)
            .unwrap_or_else(|e| panic!("{}: {}", variant.label(), e.emit_to_string(&wgsl)))
    }

    fn validate(module: &naga::Module) -> Result<(), String> {
        let capabilities = naga::valid::Capabilities::FLOAT64
            | naga::valid::Capabilities::SUBGROUP
            | naga::valid::Capabilities::SHADER_FLOAT16;
        naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities)
            .validate(module)
            .map(drop)
            .map_err(|e| format!("{e:?}"))
    }

    #[test]
    fn every_variant_parses_and_validates() {
        for variant in every_variant() {
            if let Err(error) = validate(&parse(variant)) {
                panic!("{variant:?}: {error}");
            }
        }
    }

    #[test]
    fn the_validation_notices_a_broken_kernel() {
        let naive = every_variant().into_iter().find(|v| v.stage == Stage::Main).unwrap();
        let wgsl = naive.wgsl().replace("sum = fma(", "sum = f32(1u) + ivec(");
        assert!(naga::front::wgsl::parse_str(&wgsl).is_err());
    }

    #[test]
    fn the_uniform_block_is_laid_out_alike_in_rust_and_wgsl() {
        for variant in every_variant() {
            let module = parse(variant);
            let uniform = module
                .global_variables
                .iter()
                .find(|(_, v)| v.space == naga::AddressSpace::Uniform)
                .map(|(_, v)| v)
                .unwrap();
            assert_eq!(uniform.binding, Some(naga::ResourceBinding { group: 0, binding: 0 }));
            let naga::TypeInner::Struct { members, span } = &module.types[uniform.ty].inner else {
                panic!("the uniform is a struct")
            };
            let wgsl: Vec<(&str, usize)> =
                members.iter().map(|m| (m.name.as_deref().unwrap(), m.offset as usize)).collect();
            assert_eq!(wgsl, params::offsets());
            assert_eq!(*span as usize, size_of::<params::Params>());
        }
    }

    #[test]
    fn repetitions_nest_and_count() {
        let mut text = String::new();
        let lines = ["#{a:2", "<${a}", "#[b:N, c:1] ${a}${b}${c}", "#}", "end"];
        expand(&lines, &[("N", 2)], &[], &mut text);
        assert_eq!(text, "<0\n000\n010\n<1\n100\n110\nend\n");
        text.clear();
        expand(&["#[b:2] ${b*3+N*b+1} ${b}."], &[("N", 2)], &[], &mut text);
        assert_eq!(text, "1 0.\n6 1.\n");
    }
}
