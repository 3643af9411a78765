//! The devices of a machine that need the same filters are given them one after the other.
//!
//! Filters that all subtasks share, as with k_B = 1, are the same for every device. A machine assembles filters under their
//! content, so that two devices whose chunks arrive at the same time would disturb each other. The first one sends them, and the
//! machine copies them for the next ones.
//!
//! Invariant: a turn ends when it is dropped, and its end wakes all calls that wait for it.

use std::collections::HashMap;
use std::sync::Mutex;

use super::registry::MemberId;
use super::sharing::Waker;
use super::wire::ContentId;
use crate::sync::locked;

type Filters = (MemberId, ContentId);

/// See the module documentation.
#[derive(Default)]
pub(super) struct InstallTurns {
    /// Filters that are being installed, with the wakers of the calls that wait.
    busy: Mutex<HashMap<Filters, Vec<Waker>>>,
}

/// The right to install filters on a machine.
pub(super) struct InstallTurn<'a> {
    turns: &'a InstallTurns,
    filters: Filters,
}

impl InstallTurns {
    /// The turn, if no other call has it. Otherwise `waker` makes what is called when it ends.
    pub(super) fn take(
        &self,
        machine: &MemberId,
        content: ContentId,
        waker: impl FnOnce() -> Waker,
    ) -> Option<InstallTurn<'_>> {
        let filters = (machine.clone(), content);
        let mut busy = locked(&self.busy);
        if let Some(waiting) = busy.get_mut(&filters) {
            waiting.push(waker());
            return None;
        }
        busy.insert(filters.clone(), Vec::new());
        Some(InstallTurn { turns: self, filters })
    }
}

impl Drop for InstallTurn<'_> {
    fn drop(&mut self) {
        let waiting = locked(&self.turns.busy).remove(&self.filters);
        for wake in waiting.into_iter().flatten() {
            wake();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use crossbeam_channel::unbounded;

    use super::*;

    #[test]
    fn one_installs_at_a_time_and_its_end_wakes_the_others() {
        let turns = InstallTurns::default();
        let (sender, woken) = unbounded();
        let (alpha, beta) = (("alpha".to_owned(), 1), ("beta".to_owned(), 1));
        let [content, other] = [ContentId([1; 32]), ContentId([2; 32])];
        let waker = || -> Waker {
            let sender = sender.clone();
            Box::new(move || sender.send(()).unwrap())
        };
        let first = turns.take(&alpha, content, waker).unwrap();
        assert!(turns.take(&alpha, content, waker).is_none());
        assert!(turns.take(&alpha, content, waker).is_none());
        assert!(turns.take(&beta, content, waker).is_some() && turns.take(&alpha, other, waker).is_some());
        assert!(woken.is_empty());
        drop(first);
        assert_eq!(woken.len(), 2);
        assert!(turns.take(&alpha, content, waker).is_some());
        assert!(locked(&turns.busy).is_empty());
    }
}
