//! The interface of a run to workers and time: a [`Pool`](super::Pool) in real time, or a simulation in virtual time.
//!
//! The choice of workers is made here, once for both. Invariant: a run sees a single clock, and none of its decisions
//! depends on another one.

use std::time::Instant;

use super::assign::Seat;
use super::mailbox::Taken;
use super::slot::{InstallRequest, QueuedTask, Replies, Reply};
use crate::ids::WorkerId;
use crate::worker::CancelToken;

/// Workers by index, and their clock.
pub(crate) trait Fleet {
    /// The present time.
    fn now(&self) -> Instant;

    /// The next reply; waits for one until `until`.
    fn wait(&self, replies: &Replies, until: Instant) -> Taken<Reply>;

    /// Queues a task. A worker that must not take it answers at once with a failure.
    fn execute(&self, worker: WorkerId, task: QueuedTask);

    /// Queues filters before the task that needs them. The task fails if they cannot be installed.
    fn equip(&self, worker: WorkerId, request: InstallRequest);

    /// Cancels the work of all holders of a clone of the token.
    fn cancel(&self, token: &CancelToken);

    /// Quarantines a worker that returned a wrong result.
    fn flag(&self, worker: WorkerId, cause: &str);

    /// Records an accepted result of a worker.
    fn accept(&self, worker: WorkerId);

    /// Records that a worker takes `ratio` times as long as the typical one.
    fn pace(&self, worker: WorkerId, ratio: f64);

    /// Number of workers, lost ones included.
    fn size(&self) -> usize;

    /// All workers, lost ones included.
    fn ids(&self) -> impl Iterator<Item = WorkerId> + use<Self> {
        (0..self.size()).map(WorkerId)
    }

    /// A worker's name in messages.
    fn name(&self, worker: WorkerId) -> &str;

    /// The worker's failure domain, as in [`Seat::domain`].
    fn domain(&self, worker: WorkerId) -> Vec<String>;

    /// Whether the worker is a thread of this machine, which shares cores with the others.
    fn is_thread_here(&self, worker: WorkerId) -> bool;

    /// Cores of this machine.
    fn cores(&self) -> usize;

    /// Tasks queued or running.
    fn load(&self, worker: WorkerId) -> usize;

    /// Multiply-adds per second; `None` before any were measured.
    fn rate(&self, worker: WorkerId) -> Option<f64>;

    /// [`Fleet::rate`], or without a measurement the `typical` speed, limited by attempts that were cut short.
    fn rate_or(&self, worker: WorkerId, typical: f64) -> f64;

    /// Whether the worker's health allows tasks.
    fn is_usable(&self, worker: WorkerId) -> bool;

    /// Whether the worker may fall silent: it is on another machine.
    fn can_fall_silent(&self, _: WorkerId) -> bool {
        false
    }

    /// Whether the worker's machine does not answer at present.
    fn is_silent(&self, _: WorkerId) -> bool {
        false
    }

    /// Whether the worker is much slower than the others.
    fn straggles(&self, worker: WorkerId) -> bool;

    /// Failure domains and relative speeds for an assignment. A worker that has not been measured gets an average speed.
    fn seats(&self) -> Vec<Seat> {
        let mut known: Vec<f64> = self.ids().filter_map(|worker| self.rate(worker)).collect();
        known.sort_by(f64::total_cmp);
        let typical = known.get(known.len() / 2).copied().unwrap_or(1.0);
        let seat = |worker: WorkerId| Seat {
            domain: self.domain(worker),
            speed: if self.is_usable(worker) { self.rate_or(worker, typical) } else { 0.0 },
        };
        self.ids().map(seat).collect()
    }

    /// The usable worker with the least load among those `admitted` whose machines answer; among equals the fastest.
    fn least_loaded(&self, admitted: impl Fn(WorkerId) -> bool) -> Option<WorkerId> {
        let answers = |worker: WorkerId| self.is_usable(worker) && !self.is_silent(worker);
        let usable = self.ids().filter(|worker| answers(*worker) && admitted(*worker));
        usable.min_by(|a, b| {
            let rate = |worker: WorkerId| self.rate(worker).unwrap_or(0.0);
            self.load(*a).cmp(&self.load(*b)).then_with(|| rate(*b).total_cmp(&rate(*a)))
        })
    }

    /// The fastest idle worker among those `admitted` that does not straggle. With `spare`, a thread of this machine
    /// qualifies only if fewer of them are busy than it has cores.
    fn fastest_idle(&self, spare: bool, admitted: impl Fn(WorkerId) -> bool) -> Option<WorkerId> {
        let at_work =
            || self.ids().filter(|worker| self.is_thread_here(*worker) && self.load(*worker) > 0).count();
        let full = spare && at_work() >= self.cores();
        self.least_loaded(|worker| {
            self.load(worker) == 0
                && !(full && self.is_thread_here(worker))
                && !self.straggles(worker)
                && admitted(worker)
        })
    }

    /// Whether this machine runs more worker threads than it has cores.
    fn is_crowded(&self) -> bool {
        self.ids().filter(|worker| self.is_thread_here(*worker)).count() > self.cores()
    }

    /// Records accepted results, and compares every worker's speed with the typical one.
    fn review(&self, accepted: impl Iterator<Item = WorkerId>) {
        accepted.for_each(|worker| self.accept(worker));
        let mut rates: Vec<f64> = self.ids().filter_map(|worker| self.rate(worker)).collect();
        if rates.len() < 2 {
            return;
        }
        let middle = rates.len() / 2;
        let typical = *rates.select_nth_unstable_by(middle, f64::total_cmp).1;
        for worker in self.ids() {
            if let Some(rate) = self.rate(worker) {
                self.pace(worker, typical / rate);
            }
        }
    }
}
