//! Tracks which tasks are running or cancelled, and under which request each is answered.
//!
//! A cancellation is more urgent than the task it ends and may overtake it: it is remembered until the task arrives.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::link::Incoming;
use super::super::wire::MasterId;
use crate::worker::CancelToken;

/// Maximum number of cancellations remembered. Older ones belong to tasks that are over.
const REMEMBERED: usize = 4096;

type Key = (MasterId, u64);

/// Shared by the callbacks and the devices of a worker process. `Q`: the type of a request.
pub(super) struct Tasks<Q = Incoming> {
    table: Arc<Mutex<Table<Q>>>,
}

struct Table<Q> {
    running: HashMap<Key, Running<Q>>,
    cancelled: VecDeque<Key>,
}

struct Running<Q> {
    cancel: CancelToken,
    asker: Asker<Q>,
}

/// The request under which a task is answered at present.
pub(super) struct Asker<Q = Incoming>(Arc<Mutex<Arc<Q>>>);

impl<Q> Clone for Tasks<Q> {
    fn clone(&self) -> Self {
        Self { table: Arc::clone(&self.table) }
    }
}

impl<Q> Default for Tasks<Q> {
    fn default() -> Self {
        let table = Table { running: HashMap::new(), cancelled: VecDeque::new() };
        Self { table: Arc::new(Mutex::new(table)) }
    }
}

impl<Q> Clone for Asker<Q> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<Q> Asker<Q> {
    pub(super) fn current(&self) -> Arc<Q> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<Q> Tasks<Q> {
    fn lock(&self) -> MutexGuard<'_, Table<Q>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a task that arrived with `request`; `None` where it was cancelled before, or is running already.
    pub(super) fn begin(&self, key: Key, request: &Arc<Q>) -> Option<(CancelToken, Asker<Q>)> {
        let mut table = self.lock();
        if table.cancelled.contains(&key) || table.running.contains_key(&key) {
            return None;
        }
        let (cancel, asker) = (CancelToken::new(), Asker(Arc::new(Mutex::new(Arc::clone(request)))));
        table.running.insert(key, Running { cancel: cancel.clone(), asker: asker.clone() });
        Some((cancel, asker))
    }

    /// Answers a running task to `request` from now on; false if there is no such task.
    pub(super) fn renew(&self, key: Key, request: &Arc<Q>) -> bool {
        let asker = self.lock().running.get(&key).map(|running| running.asker.clone());
        let Some(Asker(current)) = asker else { return false };
        let request = Arc::clone(request);
        let before = std::mem::replace(&mut *current.lock().unwrap_or_else(PoisonError::into_inner), request);
        // Dropping a request tells its master that it is over, which may take a while, so this happens outside of the lock.
        drop(before);
        true
    }

    /// Removes a task that is over.
    pub(super) fn end(&self, key: Key) {
        self.lock().running.remove(&key);
    }

    pub(super) fn cancel(&self, key: Key) {
        let mut table = self.lock();
        if let Some(token) = table.running.get(&key).map(|running| running.cancel.clone()) {
            drop(table);
            token.cancel();
            return;
        }
        table.cancelled.push_back(key);
        if table.cancelled.len() > REMEMBERED {
            table.cancelled.pop_front();
        }
    }

    /// Cancels all tasks of a master.
    pub(super) fn cancel_master(&self, master: MasterId) {
        let mut table = self.lock();
        table.cancelled.retain(|key| key.0 != master);
        let own = table.running.iter().filter(|(key, _)| key.0 == master);
        let tokens: Vec<_> = own.map(|(_, running)| running.cancel.clone()).collect();
        drop(table);
        for token in tokens {
            token.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancelling_works_before_during_and_for_one_master_alone() {
        let (tasks, one, two) = (Tasks::<()>::default(), MasterId(1), MasterId(2));
        let request = Arc::new(());
        tasks.cancel((one, 7));
        assert!(tasks.begin((one, 7), &request).is_none());
        let (running, _) = tasks.begin((two, 7), &request).expect("another master's task of that number");
        assert!(tasks.begin((two, 7), &request).is_none(), "sent twice");
        tasks.cancel_master(one);
        assert!(!running.is_cancelled());
        tasks.cancel((two, 7));
        assert!(running.is_cancelled());
        tasks.end((two, 7));
        for task in 0..=REMEMBERED as u64 {
            tasks.cancel((one, task));
        }
        assert!(tasks.begin((one, 0), &request).is_some() && tasks.begin((one, 1), &request).is_none());
    }

    #[test]
    fn a_running_task_is_answered_to_the_newest_request_and_lets_the_others_end() {
        let (tasks, key) = (Tasks::<u8>::default(), (MasterId(1), 7));
        let (first, second, late) = (Arc::new(1), Arc::new(2), Arc::new(3));
        let (_, asker) = tasks.begin(key, &first).expect("a new task");
        assert!(!tasks.renew((MasterId(2), 7), &second), "another master's");
        assert_eq!(*asker.current(), 1);
        assert!(tasks.renew(key, &second));
        assert_eq!(*asker.current(), 2);
        assert_eq!(Arc::strong_count(&first), 1, "it is over when its last answer is sent");
        tasks.end(key);
        assert!(!tasks.renew(key, &late));
        assert_eq!((*asker.current(), Arc::strong_count(&late)), (2, 1), "the task is over");
    }
}
