//! The cost of one subtask in elements and multiply-adds, and the cost model of the FCDCC paper.

use serde::Serialize;

use crate::coding::Code;
use crate::conv::ConvShape;
use crate::error::Result;
use crate::partition::{FilterPartition, InputPartition};
use crate::worker::SubtaskShape;

/// The cost of one subtask, in elements and multiply-adds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SubtaskCost {
    /// Elements of the l_A coded slabs.
    pub upload_elems: usize,
    /// Elements of the l_A l_B sub-results.
    pub download_elems: usize,
    /// Elements of the l_B coded filter banks, held by the worker.
    pub storage_elems: usize,
    /// Multiply-adds of all sub-results.
    pub macs: f64,
}

impl SubtaskCost {
    /// The cost of one subtask.
    #[must_use]
    pub fn of(shape: &SubtaskShape) -> Self {
        Self {
            upload_elems: shape.upload_elems(),
            download_elems: shape.download_elems(),
            storage_elems: shape.filter_elems(),
            macs: shape.sub_results() as f64 * shape.conv.macs(),
        }
    }
}

/// The shape of one subtask of `code` over `layer`.
///
/// # Errors
/// [`Error::InvalidParameter`](crate::Error::InvalidParameter) when the layer cannot be cut into the code's parts.
pub fn subtask_shape(layer: &ConvShape, code: &Code) -> Result<SubtaskShape> {
    let input = InputPartition::new(layer, code.k_a())?;
    let filters = FilterPartition::new(layer, code.k_b())?;
    Ok(SubtaskShape {
        conv: input.slab_conv(filters.bank_channels()),
        slabs: code.l_a(),
        banks: code.l_b(),
        plain: false,
    })
}

/// The paper's cost of a subtask (arXiv 2411.01579, section V): a price for the uploaded elements and one for the elements
/// of the filters. At a given recovery threshold the downloads and the computation do not depend on (k_A, k_B).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PaperCost {
    /// Price of an uploaded element.
    pub communication: f64,
    /// Price of an element of a coded filter.
    pub storage: f64,
}

impl Default for PaperCost {
    /// The paper's prices of Amazon S3, in dollars per gigabyte: 0.09 for transfers, 0.023 for storage.
    fn default() -> Self {
        Self { communication: 0.09, storage: 0.023 }
    }
}

impl PaperCost {
    /// U = lambda_comm * upload + lambda_store * storage.
    #[must_use]
    pub fn of(&self, cost: &SubtaskCost) -> f64 {
        self.communication * cost.upload_elems as f64 + self.storage * cost.storage_elems as f64
    }

    /// The k_A that minimizes U for `layer` at the threshold `delta`, over the real numbers:
    /// `sqrt(4 delta lambda_comm W s H' / (lambda_store O KH KW))`, W the padded row.
    #[must_use]
    pub fn optimal_k_a(&self, layer: &ConvShape, delta: usize) -> f64 {
        let axis = layer.split_axis();
        let row: usize = layer.padded()[axis + 1..].iter().product();
        let rows = (layer.stride[axis] * layer.output[axis]) as f64;
        let taps: usize = layer.kernel.iter().product();
        // Filters of a group have C/g channels while slabs have all C.
        let filters = (layer.out_channels / layer.groups * taps) as f64;
        (4.0 * delta as f64 * self.communication * row as f64 * rows / (self.storage * filters)).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coding::CodeKind;
    use crate::conv::ConvParams;

    #[test]
    fn the_papers_cost_is_convex_and_least_near_its_optimum() {
        let paper = PaperCost::default();
        let layer =
            ConvShape::new(&[1, 64, 224, 224], &[64, 64, 3, 3], &ConvParams::default().padding([1])).unwrap();
        let u: Vec<(usize, f64)> = [2, 4, 8, 16, 32]
            .into_iter()
            .map(|k_a| {
                let code = Code::new(CodeKind::Crme, k_a, 64 / k_a, 20).unwrap();
                (k_a, paper.of(&SubtaskCost::of(&subtask_shape(&layer, &code).unwrap())))
            })
            .collect();
        // Convex in k_A: the slope grows.
        for w in u.windows(3) {
            let slope = |a: (usize, f64), b: (usize, f64)| (b.1 - a.1) / (b.0 as f64 - a.0 as f64);
            assert!(slope(w[0], w[1]) < slope(w[1], w[2]), "{u:?}");
        }
        let best = u.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0 as f64;
        let optimum = paper.optimal_k_a(&layer, 16);
        assert!(optimum > 32.0 && best == 32.0, "{optimum} {u:?}");
        // A late layer: few pixels, many filters.
        let late = ConvShape::new(&[1, 512, 14, 14], &[512, 512, 3, 3], &ConvParams::default().padding([1]))
            .unwrap();
        let optimum = paper.optimal_k_a(&late, 16);
        assert!((2.0..4.0).contains(&optimum), "{optimum}");
    }
}
