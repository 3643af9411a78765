//! State shared by a master's cluster, its membership monitor and its workers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::hello::{Refusals, RefusedBy};
use super::install_turns::InstallTurns;
use super::key_expr::Keys;
use super::link::{Link, Payload, TrafficClass};
use super::registry::{Claimed, MemberId, Registry};
use super::sharing::{Copy, Sharing};
use super::uplink::Uplink;
use super::wire::{self, Answer, Call, MasterId, Request};
use crate::worker::CancelToken;

/// Time limit of a request whose answer does not matter.
const UNANSWERED: Duration = Duration::from_secs(5);
/// Interval for checking the token while waiting for a change: cancelling it does not wake the waiting thread.
const NAP: Duration = Duration::from_millis(250);

/// State shared by the cluster, its workers and its membership monitor.
pub(super) struct Shared {
    pub(super) id: MasterId,
    pub(super) keys: Keys,
    pub(super) links: Vec<Link>,
    registry: Mutex<Registry>,
    changed: Condvar,
    /// Machines that this master does not take.
    pub(super) refusals: Refusals,
    /// What machines say to which this master connects.
    pub(super) refused_by: Vec<RefusedBy>,
    /// The slabs that machines hold for several tasks.
    pub(super) sharing: Sharing,
    /// The order in which slabs are sent.
    pub(super) uplink: Uplink,
    /// Who installs filters.
    pub(super) installs: InstallTurns,
    /// Slabs that machines may drop, for a thread that tells them.
    releases: Sender<Release>,
    tasks: AtomicU64,
    groups: AtomicU64,
}

/// Shared slabs that a machine may drop.
pub(super) struct Release {
    pub(super) link: usize,
    pub(super) key: String,
    pub(super) slabs: u64,
}

impl Shared {
    pub(super) fn new(id: MasterId, keys: Keys, links: Vec<Link>, releases: Sender<Release>) -> Self {
        Self {
            id,
            keys,
            links,
            registry: Mutex::default(),
            changed: Condvar::new(),
            refusals: Refusals::default(),
            refused_by: Vec::new(),
            sharing: Sharing::default(),
            uplink: Uplink::default(),
            installs: InstallTurns::default(),
            releases,
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

    /// A new group number, for a pool.
    pub(super) fn next_group(&self) -> u64 {
        self.groups.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn next_task(&self) -> u64 {
        self.tasks.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn call(&self, request: Request) -> Vec<u8> {
        wire::pack(&Call { from: self.id, request })
    }

    /// Forgets slabs whose run is over; the machine behind `link` is told under `key`, by another thread.
    pub(super) fn forget_slabs(&self, of: &Copy, link: usize, key: String) {
        self.sharing.forget(of);
        // The thread lives as long as this sender, where the system had one left. Otherwise the machine drops the slabs later.
        let _ = self.releases.send(Release { link, key, slabs: of.1 });
    }

    /// Publishes a request that needs no answer. A failure is only logged: the machine is then gone.
    pub(super) fn tell(&self, link: usize, key: &str, request: Request) {
        if let Err(error) = self.links[link].tell(key, self.call(request)) {
            tracing::debug!(%error, "not told");
        }
    }

    /// Sends a request whose answer does not matter, after the requests that were sent in the same class before. A failure is
    /// only logged: the machine is then gone.
    pub(super) fn ask_in_order(&self, link: usize, key: &str, request: Request, class: TrafficClass) {
        let asked =
            self.links[link].ask(key, self.call(request), Payload::empty(), class, UNANSWERED, |_| {});
        if let Err(error) = asked {
            tracing::debug!(%error, "not asked");
        }
    }

    pub(super) fn release(&self, claimed: &Claimed) {
        self.change(|registry| registry.release(claimed));
    }

    pub(super) fn suspect(&self, id: &MemberId) {
        self.change(|registry| registry.suspect(id));
    }

    /// Waits until `look` finds something in the registry; `None` when `end` comes or `cancel` is set first.
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

    /// Claims a device for a seat, waiting as long as necessary; `None` when `cancel` is set first.
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

/// A short description of an unexpected answer.
pub(super) fn brief(answer: &Answer) -> String {
    match answer {
        Answer::Refused { text, .. } => text.clone(),
        other => format!("{other:?}").chars().take(60).collect(),
    }
}
