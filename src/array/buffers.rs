//! Buffers that come back by themselves, to be used again.
//!
//! Fresh memory costs more than some layers: the system zeroes each page when it is first touched. A [`Buffers`] keeps what
//! is no longer needed; a [`Pooled`] returns its buffer when it is dropped, wherever that happens: after decoding, in the
//! queue of a straggler, or with a result that came too late.
//!
//! Invariant: the buffers kept are bounded in number and bytes; all others are freed.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::element::{DType, Element, Values, sized};

/// Free buffers, shared by all clones. The default keeps none.
#[derive(Clone, Debug, Default)]
pub struct Buffers {
    kept: Arc<Mutex<Vec<Values>>>,
    most: usize,
    most_bytes: usize,
}

/// A buffer that returns to its [`Buffers`] when it is dropped.
#[derive(Debug)]
pub struct Pooled {
    values: Values,
    home: Buffers,
}

impl Buffers {
    /// Keeps at most `most` buffers of together at most `most_bytes`; the oldest make room.
    #[must_use]
    pub fn new(most: usize, most_bytes: usize) -> Self {
        Self { kept: Arc::default(), most, most_bytes }
    }

    /// A buffer of `elems` elements of arbitrary value: one of that length if there is one, else the smallest that is
    /// large enough, else a new one.
    #[must_use]
    pub fn take<T: Element>(&self, elems: usize) -> Vec<T> {
        let mut kept = self.kept();
        let mut best: Option<(usize, usize)> = None;
        for (at, values) in kept.iter().enumerate() {
            if values.dtype() != T::DTYPE {
                continue;
            }
            let capacity = values.capacity();
            if values.len() == elems {
                best = Some((at, capacity));
                break;
            }
            if capacity >= elems && best.is_none_or(|(_, least)| capacity < least) {
                best = Some((at, capacity));
            }
        }
        let found = best.map(|(at, _)| kept.swap_remove(at));
        drop(kept);
        sized(found.and_then(T::take).unwrap_or_default(), elems)
    }

    /// [`Buffers::take`] for an element type that is known only at run time.
    #[must_use]
    pub fn take_values(&self, dtype: DType, elems: usize) -> Values {
        match dtype {
            DType::F32 => Values::F32(self.take(elems)),
            DType::F64 => Values::F64(self.take(elems)),
        }
    }

    /// Makes `values` return here when they are dropped, wherever they come from.
    #[must_use]
    pub fn adopt(&self, values: Values) -> Pooled {
        Pooled { values, home: self.clone() }
    }

    fn keep(&self, values: Values) {
        if values.capacity() == 0 {
            return;
        }
        let mut kept = self.kept();
        kept.push(values);
        let bytes = |kept: &[Values]| {
            kept.iter().map(|values| values.capacity() * values.dtype().size_bytes()).sum::<usize>()
        };
        while kept.len() > self.most || bytes(&kept) > self.most_bytes {
            kept.remove(0);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Values>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pooled {
    /// Values that are freed when they are dropped.
    #[must_use]
    pub fn unpooled(values: Values) -> Self {
        Buffers::default().adopt(values)
    }
}

impl Deref for Pooled {
    type Target = Values;

    fn deref(&self) -> &Values {
        &self.values
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut Values {
        &mut self.values
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.home.keep(std::mem::replace(&mut self.values, Values::F32(Vec::new())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_comes_back_for_its_like() {
        let buffers = Buffers::new(4, 1 << 20);
        drop(buffers.clone().adopt(Values::F32(vec![7.0; 8])));
        assert_eq!(buffers.take::<f64>(8), [0.0; 8], "of the other type");
        assert_eq!(buffers.take::<f32>(9), [0.0; 9], "too small");
        assert_eq!(buffers.take::<f32>(3), [7.0; 3], "large enough");
        assert_eq!(buffers.take::<f32>(3), [0.0; 3], "it was taken");
        for len in [16, 4, 5] {
            drop(buffers.adopt(Values::F64(vec![len as f64; len])));
        }
        assert_eq!(buffers.take_values(DType::F64, 5), Values::F64(vec![5.0; 5]), "the same length");
        assert_eq!(buffers.take_values(DType::F64, 3), Values::F64(vec![4.0; 3]), "the smallest that fits");
    }

    #[test]
    fn the_oldest_make_room_and_nothing_too_large_is_kept() {
        let buffers = Buffers::new(2, 64);
        for len in 1..=3 {
            drop(buffers.adopt(Values::F32(vec![1.0; len])));
        }
        assert_eq!(buffers.kept().len(), 2);
        assert_eq!(buffers.take::<f32>(2), [1.0; 2]);
        drop(buffers.adopt(Values::F32(vec![1.0; 17])));
        assert_eq!(buffers.kept().len(), 0);
        drop(Pooled::unpooled(Values::F32(vec![1.0; 4])));
        drop(buffers.adopt(Values::F32(Vec::new())));
        assert_eq!(buffers.kept().len(), 0);
        // Negative control: a buffer within both limits is kept.
        drop(buffers.adopt(Values::F32(vec![1.0; 16])));
        assert_eq!(buffers.kept().len(), 1);
    }
}
