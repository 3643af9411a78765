//! Decoders by responder set: inverting happens once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::code::Code;
use super::decoder::Decoder;
use crate::error::Result;

/// Decoders of one code, shared by all runs of a layer. Bounded: past its capacity it starts afresh, since the
/// responder sets of a steady pool are few.
#[derive(Debug)]
pub struct DecoderCache {
    capacity: usize,
    decoders: Mutex<HashMap<Vec<usize>, Arc<Decoder>>>,
}

impl DecoderCache {
    /// A cache for up to `capacity` responder sets (at least one).
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), decoders: Mutex::new(HashMap::new()) }
    }

    /// The decoder of whole `subtasks`, which are sorted first: a set has one decoder however it arrived.
    ///
    /// # Errors
    /// As [`Decoder::for_subtasks`].
    pub fn decoder(&self, code: &Code, subtasks: &[usize]) -> Result<Arc<Decoder>> {
        let mut key = subtasks.to_vec();
        key.sort_unstable();
        if let Some(found) = self.lock().get(&key) {
            return Ok(Arc::clone(found));
        }
        // Computed outside the lock: another run may do the same work, none waits for it.
        let decoder = Arc::new(Decoder::for_subtasks(code, &key)?);
        let mut decoders = self.lock();
        if decoders.len() >= self.capacity {
            decoders.clear();
        }
        decoders.insert(key, Arc::clone(&decoder));
        Ok(decoder)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Vec<usize>, Arc<Decoder>>> {
        self.decoders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coding::CodeKind;

    #[test]
    fn a_set_is_inverted_once_in_whatever_order_it_arrives_and_the_cache_stays_bounded() {
        let code = Code::new(CodeKind::Crme, 4, 4, 6).unwrap();
        let cache = DecoderCache::new(2);
        let first = cache.decoder(&code, &[0, 1, 2, 3]).unwrap();
        assert!(Arc::ptr_eq(&first, &cache.decoder(&code, &[3, 1, 0, 2]).unwrap()));
        for other in [[0, 1, 2, 4], [0, 1, 2, 5], [1, 2, 3, 4]] {
            cache.decoder(&code, &other).unwrap();
            assert!(cache.lock().len() <= 2);
        }
        assert!(cache.decoder(&code, &[0, 1, 2]).is_err());
    }
}
