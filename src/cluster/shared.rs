//! What a master's cluster, its keeper and its workers have in common.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::key_expr::Keys;
use super::link::Link;
use super::registry::{Claimed, MemberId, Registry};
use super::wire::{self, Answer, Call, MasterId, Request};
use crate::worker::CancelToken;

/// A cancelled token wakes nobody who waits for a change: it is looked at so often.
const NAP: Duration = Duration::from_millis(250);

/// What the cluster, its workers and its keeper have in common.
pub(super) struct Shared {
    pub(super) id: MasterId,
    pub(super) keys: Keys,
    pub(super) links: Vec<Link>,
    registry: Mutex<Registry>,
    changed: Condvar,
    tasks: AtomicU64,
    groups: AtomicU64,
}

impl Shared {
    pub(super) fn new(id: MasterId, keys: Keys, links: Vec<Link>) -> Self {
        Self {
            id,
            keys,
            links,
            registry: Mutex::default(),
            changed: Condvar::new(),
            tasks: AtomicU64::new(0),
            groups: AtomicU64::new(0),
        }
    }

    pub(super) fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Registry)) {
        change(&mut self.registry());
        self.changed.notify_all();
    }

    /// A number for a pool.
    pub(super) fn next_group(&self) -> u64 {
        self.groups.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn next_task(&self) -> u64 {
        self.tasks.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn call(&self, request: Request) -> Vec<u8> {
        wire::pack(&Call { from: self.id, request })
    }

    /// Says something that needs no answer; where that is not possible its machine is gone.
    pub(super) fn tell(&self, link: usize, key: &str, request: Request) {
        if let Err(error) = self.links[link].tell(key, self.call(request)) {
            tracing::debug!(%error, "not told");
        }
    }

    pub(super) fn release(&self, claimed: &Claimed) {
        self.change(|registry| registry.release(claimed));
    }

    pub(super) fn suspect(&self, id: &MemberId) {
        self.change(|registry| registry.suspect(id));
    }

    /// What `look` finds in the registry, as soon as it finds something; `None` when `end` comes or `cancel` is set first.
    pub(super) fn wait_for<R>(
        &self,
        end: Instant,
        cancel: Option<&CancelToken>,
        mut look: impl FnMut(&mut Registry) -> Option<R>,
    ) -> Option<R> {
        let mut registry = self.registry();
        loop {
            if let Some(found) = look(&mut registry) {
                return Some(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || cancel.is_some_and(CancelToken::is_cancelled) {
                return None;
            }
            let nap = left.min(NAP);
            registry = self.changed.wait_timeout(registry, nap).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A device for a seat, however long that takes; `None` when `cancel` is set first.
    pub(super) fn claim(&self, group: u64, machine: Option<&str>, cancel: &CancelToken) -> Option<Claimed> {
        loop {
            let end = Instant::now() + Duration::from_hours(1);
            let claimed = self.wait_for(end, Some(cancel), |registry| registry.claim(group, machine));
            if claimed.is_some() || cancel.is_cancelled() {
                return claimed;
            }
        }
    }
}

/// An unexpected answer in a few words.
pub(super) fn brief(answer: &Answer) -> String {
    match answer {
        Answer::Refused { text, .. } => text.clone(),
        other => format!("{other:?}").chars().take(60).collect(),
    }
}
