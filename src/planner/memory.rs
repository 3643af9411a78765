//! Memory that a coded layer takes on this machine, in bytes.
//!
//! Relevant if you want to know beforehand whether a layer fits. A layer keeps the buffers of its slabs and results for its
//! next run, so it holds the memory of its first run from then on.
//!
//! Invariant: a pure function of shapes; sums saturate instead of overflowing.

use crate::array::DType;
use crate::coding::Code;
use crate::conv::ConvShape;
use crate::worker::SubtaskShape;

/// Memory of one layer, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerMemory {
    /// Coded filters of the subtasks whose workers are threads of this process.
    pub filters: u64,
    /// Coded filters in transit to workers elsewhere, while the layer is prepared.
    pub filters_sent: u64,
    /// Coded slabs, kept from run to run.
    pub slabs: u64,
    /// Sub-results, kept from run to run.
    pub results: u64,
    /// The output of one run.
    pub output: u64,
}

impl LayerMemory {
    /// The memory of `layer` in `dtype`, coded by `code` into subtasks of shape `subtask`. `here`: the fraction of the
    /// workers that are threads of this process. `cores`: number of results computed at a time in addition to those that
    /// have arrived; the others are cancelled once enough have arrived.
    #[must_use]
    pub fn of(
        layer: &ConvShape,
        code: &Code,
        subtask: &SubtaskShape,
        dtype: DType,
        here: f64,
        cores: usize,
    ) -> Self {
        let bytes = |count: usize, elems: usize| {
            (count as u64).saturating_mul(elems as u64).saturating_mul(dtype.size_bytes() as u64)
        };
        let filters = bytes(code.n(), subtask.filter_elems());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of an estimate")]
        let held = (filters as f64 * here.clamp(0.0, 1.0)) as u64;
        Self {
            filters: held,
            filters_sent: filters.saturating_sub(held),
            // If only filters are coded all subtasks have the same slabs.
            slabs: bytes(if code.shares_slabs() { 1 } else { code.n() }, subtask.upload_elems()),
            results: bytes(code.n().min(code.recovery_threshold() + cores), subtask.download_elems()),
            output: bytes(1, layer.output_elems()),
        }
    }

    /// The maximum, if everything is held at once.
    #[must_use]
    pub fn total(&self) -> u64 {
        let run = self.slabs.saturating_add(self.results).saturating_add(self.output);
        self.filters.saturating_add(self.filters_sent.max(run))
    }

    /// The memory held between runs.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.filters.saturating_add(self.slabs).saturating_add(self.results)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::coding::CodeKind;
    use crate::conv::ConvParams;
    use crate::planner::subtask_shape;

    #[test]
    fn every_part_is_counted_once() {
        let params = ConvParams::default().padding([1]);
        let layer = ConvShape::new(&[1, 16, 32, 32], &[64, 16, 3, 3], &params).unwrap();
        let of = |k_a, k_b, dtype, here| {
            let code = Code::new(CodeKind::Crme, k_a, k_b, 6).unwrap();
            let subtask = subtask_shape(&layer, &code).unwrap();
            (LayerMemory::of(&layer, &code, &subtask, dtype, here, 2), subtask)
        };
        let (memory, subtask) = of(4, 4, DType::F32, 1.0);
        assert_eq!(memory.filters, 6 * 4 * subtask.filter_elems() as u64);
        assert_eq!(memory.filters_sent, 0);
        assert_eq!(memory.slabs, 6 * 4 * subtask.upload_elems() as u64);
        assert_eq!(memory.results, 6 * 4 * subtask.download_elems() as u64);
        assert_eq!(memory.output, 4 * 64 * 32 * 32);
        assert_eq!(memory.total(), memory.held() + memory.output);
        let (wide, _) = of(4, 4, DType::F64, 1.0);
        assert_eq!(wide.total(), 2 * memory.total());
        // If only filters are split the input is not duplicated.
        let (shared, subtask) = of(1, 8, DType::F32, 1.0);
        assert_eq!(shared.slabs, 4 * subtask.upload_elems() as u64);
        let code = Code::new(CodeKind::Crme, 4, 4, 6).unwrap();
        let few = LayerMemory::of(&layer, &code, &subtask, DType::F32, 1.0, 1);
        assert_eq!(
            few.results,
            5 * 4 * subtask.download_elems() as u64,
            "four decode, and one is on its way"
        );
        let (away, _) = of(4, 4, DType::F32, 0.0);
        assert_eq!((away.filters, away.filters_sent), (0, memory.filters));
    }

    #[test]
    fn impossible_sizes_saturate() {
        let huge = LayerMemory { filters: u64::MAX, output: 5, slabs: u64::MAX, ..LayerMemory::default() };
        assert_eq!((huge.total(), huge.held()), (u64::MAX, u64::MAX));
    }
}
