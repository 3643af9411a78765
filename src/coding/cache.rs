//! Caches of decoders and parity checks by responder set, so that each set is factored once.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use super::audit::ParityCheck;
use super::code::{Code, SubResult};
use super::decoder::Decoder;
use crate::error::Result;

/// Values by key, shared by all runs of a layer. Bounded: a full cache is cleared, since a steady pool has few
/// responder sets.
#[derive(Debug)]
struct Cache<K, V> {
    capacity: usize,
    values: Mutex<HashMap<K, Arc<V>>>,
}

impl<K: Eq + Hash, V> Cache<K, V> {
    fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), values: Mutex::new(HashMap::new()) }
    }

    /// The value of `key`; made if it is not cached.
    fn get<Q>(&self, key: &Q, make: impl FnOnce() -> Result<V>) -> Result<Arc<V>>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        if let Some(found) = self.lock().get(key) {
            return Ok(Arc::clone(found));
        }
        // Computed outside the lock: two runs may do the same work, but neither waits for the other.
        let value = Arc::new(make()?);
        let mut values = self.lock();
        if values.len() >= self.capacity {
            values.clear();
        }
        values.insert(key.to_owned(), Arc::clone(&value));
        Ok(value)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, Arc<V>>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Decoders of one code, shared by all runs of a layer.
#[derive(Debug)]
pub struct DecoderCache(Cache<Vec<usize>, Decoder>);

impl DecoderCache {
    /// A cache for up to `capacity` responder sets (at least one).
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self(Cache::new(capacity))
    }

    /// The decoder of whole `subtasks`. They are sorted first, so that a set has one decoder for any order of arrival.
    ///
    /// # Errors
    /// As [`Decoder::for_subtasks`].
    pub fn decoder(&self, code: &Code, subtasks: &[usize]) -> Result<Arc<Decoder>> {
        let mut key = subtasks.to_vec();
        key.sort_unstable();
        self.0.get(&key[..], || Decoder::for_subtasks(code, &key))
    }
}

/// Parity checks of one code, shared by all runs of a layer.
#[derive(Debug)]
pub struct ParityCheckCache(Cache<Vec<SubResult>, ParityCheck>);

impl ParityCheckCache {
    /// A cache for up to `capacity` sets of sub-results (at least one).
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self(Cache::new(capacity))
    }

    /// The parity check of `inputs`, in exactly this order. Sort the inputs first if the order does not matter.
    ///
    /// # Errors
    /// As [`ParityCheck::new`].
    pub fn checker(&self, code: &Code, inputs: &[SubResult]) -> Result<Arc<ParityCheck>> {
        self.0.get(inputs, || ParityCheck::new(code, inputs))
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
            assert!(cache.0.lock().len() <= 2);
        }
        assert!(cache.decoder(&code, &[0, 1, 2]).is_err());
    }

    #[test]
    fn sets_of_sub_results_are_told_apart_by_their_order() {
        let code = Code::new(CodeKind::Crme, 4, 4, 6).unwrap();
        let checkers = ParityCheckCache::new(3);
        let inputs = code.sub_results_of(&[0, 1, 2, 3, 4]);
        let mut turned = inputs.clone();
        turned.reverse();
        let checker = checkers.checker(&code, &inputs).unwrap();
        assert!(Arc::ptr_eq(&checker, &checkers.checker(&code, &inputs).unwrap()));
        assert_eq!(checkers.checker(&code, &turned).unwrap().inputs(), turned);
        assert!(checkers.checker(&code, &inputs[..16]).is_err());
        assert_eq!(checkers.0.lock().len(), 2);
    }
}
