//! Which tasks are wanted and which are not any more.
//!
//! A cancellation is more urgent than the task it ends and may overtake it: it is remembered until the task comes.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::wire::MasterId;
use crate::worker::CancelToken;

/// Cancellations that are remembered. Older ones belong to tasks that came and went.
const REMEMBERED: usize = 4096;

type Key = (MasterId, u64);

/// Shared by the callbacks and the devices of a worker process.
#[derive(Clone, Default)]
pub(super) struct Tasks {
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    running: HashMap<Key, CancelToken>,
    cancelled: VecDeque<Key>,
}

impl Tasks {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A task has come; `None` where it was cancelled before, or is there already.
    pub(super) fn begin(&self, key: Key) -> Option<CancelToken> {
        let mut table = self.lock();
        if table.cancelled.contains(&key) || table.running.contains_key(&key) {
            return None;
        }
        let token = CancelToken::new();
        table.running.insert(key, token.clone());
        Some(token)
    }

    /// It is over.
    pub(super) fn end(&self, key: Key) {
        self.lock().running.remove(&key);
    }

    pub(super) fn cancel(&self, key: Key) {
        let mut table = self.lock();
        if let Some(token) = table.running.get(&key).cloned() {
            drop(table);
            token.cancel();
            return;
        }
        table.cancelled.push_back(key);
        if table.cancelled.len() > REMEMBERED {
            table.cancelled.pop_front();
        }
    }

    /// Cancels everything of a master.
    pub(super) fn cancel_master(&self, master: MasterId) {
        let mut table = self.lock();
        table.cancelled.retain(|key| key.0 != master);
        let tokens: Vec<_> =
            table.running.iter().filter(|(key, _)| key.0 == master).map(|(_, token)| token.clone()).collect();
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
        let (tasks, one, two) = (Tasks::default(), MasterId(1), MasterId(2));
        tasks.cancel((one, 7));
        assert!(tasks.begin((one, 7)).is_none());
        let running = tasks.begin((two, 7)).expect("another master's task of that number");
        assert!(tasks.begin((two, 7)).is_none(), "sent twice");
        tasks.cancel_master(one);
        assert!(!running.is_cancelled());
        tasks.cancel((two, 7));
        assert!(running.is_cancelled());
        tasks.end((two, 7));
        for task in 0..=REMEMBERED as u64 {
            tasks.cancel((one, task));
        }
        assert!(tasks.begin((one, 0)).is_some() && tasks.begin((one, 1)).is_none());
    }
}
