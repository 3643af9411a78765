//! Filters and offsets in the layouts of the kernels, which the shader files describe.
//!
//! Relevant if you want to change a kernel's layout. Pure functions of a plan.
//!
//! Invariant: padding is zero.

use super::dispatch::{axes, small};
use super::kernel::Kernel;
use super::plan::ConvPlan;
use super::tile::depth;
use crate::array::Element;
use crate::conv::transform_filters;

impl ConvPlan {
    /// Packs filters `[O, C/g, taps]` into the layout of the kernel, which its file describes.
    pub(super) fn pack<T: Element>(&self, filters: &[T]) -> Vec<T> {
        if let Some(products) = self.products.as_deref() {
            return products.pack(&transform_filters(filters));
        }
        let shape = &self.shape;
        let group_out = shape.out_channels / shape.groups;
        let reduction = shape.weight_elems() / shape.out_channels;
        if self.variant.window.is_some() {
            let taps: usize = shape.kernel.iter().product();
            let mut packed = Vec::with_capacity(filters.len() / taps * taps.next_multiple_of(4));
            for channel in filters.chunks_exact(taps) {
                packed.extend_from_slice(channel);
                packed.resize(packed.len().next_multiple_of(4), T::default());
            }
            return packed;
        }
        let block = match self.variant.kernel {
            Kernel::Naive | Kernel::Single => return filters.to_vec(),
            Kernel::Tiled => group_out.next_multiple_of(4),
            Kernel::Direct | Kernel::DirectSubgroup => self.variant.tile.channels as usize,
        };
        let blocks = group_out.div_ceil(block);
        let steps = match self.variant.kernel {
            Kernel::Tiled => reduction.next_multiple_of(depth(self.variant.tile)),
            Kernel::DirectSubgroup => reduction.next_multiple_of(2),
            _ => reduction,
        };
        let mut packed = vec![T::default(); shape.groups * blocks * steps * block];
        for (o, filter) in filters.chunks_exact(reduction).enumerate() {
            let (group, channel) = (o / group_out, o % group_out);
            let first = (group * blocks + channel / block) * steps * block + channel % block;
            for (k, weight) in filter.iter().enumerate() {
                packed[first + k * block] = *weight;
            }
        }
        packed
    }

    /// For the `tiled` kernel: the slab offset of each step of the reduction, relative to the first element of the
    /// window, padded like the filters.
    pub(super) fn offsets(&self) -> Vec<u32> {
        let shape = &self.products().shape;
        let (_, h, w) = axes(shape.input);
        let mut offsets = Vec::with_capacity(shape.weight_elems() / shape.out_channels);
        for c in 0..shape.in_channels / shape.groups {
            for kz in 0..shape.kernel[0] {
                for ky in 0..shape.kernel[1] {
                    for kx in 0..shape.kernel[2] {
                        let (z, y, x) =
                            (kz * shape.dilation[0], ky * shape.dilation[1], kx * shape.dilation[2]);
                        offsets.push(small(c * shape.input_plane() + (z * h + y) * w + x));
                    }
                }
            }
        }
        offsets.resize(offsets.len().next_multiple_of(depth(self.variant.tile)), 0);
        offsets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::ConvParams;
    use crate::gpu::plan::tests::plan;

    #[test]
    fn packing_puts_every_weight_where_its_kernel_reads_it() {
        let p = ConvParams::default().groups(2);
        let weights: Vec<f32> = (0..20).map(|w| w as f32).collect();
        let tiled = plan(&[1, 4, 1], &[10, 2, 1], p.clone(), Kernel::Tiled).unwrap().pack(&weights);
        // Two steps of five channels, padded to 32 of 8.
        assert_eq!(tiled.len(), 2 * 32 * 8);
        assert_eq!(tiled[..9], [0.0, 2.0, 4.0, 6.0, 8.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!(tiled[16..256], [0.0; 240]);
        assert_eq!(tiled[256..261], [10.0, 12.0, 14.0, 16.0, 18.0]);
        let direct = plan(&[1, 4, 1], &[10, 2, 1], p, Kernel::Direct).unwrap().pack(&weights);
        assert_eq!(direct.len(), 2 * 2 * 8);
        assert_eq!(direct[8..16], [1.0, 3.0, 5.0, 7.0, 9.0, 0.0, 0.0, 0.0]);
        // Each input channel's taps, padded to quads.
        let p = ConvParams::default().groups(2);
        let patch = plan(&[1, 4, 9], &[2, 2, 5], p, Kernel::Single).unwrap().pack(&weights);
        assert_eq!(patch.len(), 4 * 8);
        assert_eq!(patch[..10], [0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 5.0, 6.0]);
    }
}
