//! Reuses the buffers of slabs: allocating fresh memory takes longer than the network transfer.
//!
//! Invariant: the buffers kept here are bounded in number and size, whatever is sent.

use std::sync::{Arc, Mutex, PoisonError};

use crate::array::{DType, Values};

/// Maximum number and size of the buffers kept.
const MOST: usize = 32;
const MOST_BYTES: usize = 64 << 20;

/// Shared by the dispatcher, which fills buffers, and the devices, which return them.
#[derive(Clone, Default)]
pub(super) struct BufferPool {
    buffers: Arc<Mutex<Vec<Values>>>,
}

impl BufferPool {
    /// A buffer of `elems` elements with arbitrary content.
    pub(super) fn take(&self, dtype: DType, elems: usize) -> Values {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |buffer: &Values| buffer.dtype() == dtype && buffer.len() == elems;
        let found = buffers.iter().position(fits).map(|at| buffers.swap_remove(at));
        drop(buffers);
        found.unwrap_or_else(|| Values::zeros(dtype, elems))
    }

    /// Keeps a buffer; drops the oldest ones where there are too many.
    pub(super) fn give(&self, buffer: Values) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        buffers.push(buffer);
        let bytes = |buffers: &[Values]| buffers.iter().map(Values::size_bytes).sum::<usize>();
        while buffers.len() > MOST || bytes(&buffers) > MOST_BYTES {
            buffers.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_for_its_like_and_no_more_are_kept_than_may_be() {
        let spare = BufferPool::default();
        spare.give(Values::F32(vec![7.0; 4]));
        assert_eq!(spare.take(DType::F64, 4), Values::F64(vec![0.0; 4]));
        assert_eq!(spare.take(DType::F32, 4), Values::F32(vec![7.0; 4]));
        assert_eq!(spare.take(DType::F32, 4), Values::F32(vec![0.0; 4]));
        spare.give(Values::F32(vec![1.0; MOST_BYTES / 4 + 1]));
        assert_eq!(spare.take(DType::F32, MOST_BYTES / 4 + 1).first_non_finite(), None);
        for n in 1..=MOST + 1 {
            spare.give(Values::F32(vec![1.0; n]));
        }
        assert_eq!(spare.take(DType::F32, 1), Values::F32(vec![0.0]), "the oldest made room");
        assert_eq!(spare.take(DType::F32, 2), Values::F32(vec![1.0; 2]));
    }
}
