//! What a run needs of workers and of time: a [`Pool`](super::Pool) in real time, or a simulation in its own.
//!
//! Who gets what is decided here, once for both. Invariant: whoever asks sees one time; nothing that a run decides
//! depends on another clock.

use std::time::Instant;

use super::assign::Seat;
use super::mailbox::Taken;
use super::slot::{InstallRequest, Replies, Reply, Task};
use crate::worker::CancelToken;

/// Workers by index, and their clock.
pub(crate) trait Fleet {
    /// The time.
    fn now(&self) -> Instant;

    /// The next reply; waits for one `until` then.
    fn wait(&self, replies: &Replies, until: Instant) -> Taken<Reply>;

    /// Queues a task. A worker that must not take it answers with a failure at once.
    fn execute(&self, worker: usize, task: Task);

    /// Queues filters before the task that needs them, which fails where they cannot be installed.
    fn equip(&self, worker: usize, request: InstallRequest);

    /// Ends the work of everybody who holds a clone of the token.
    fn cancel(&self, token: &CancelToken);

    /// Keeps work from a worker that was caught with a wrong answer.
    fn flag(&self, worker: usize, cause: &str);

    /// Books a good answer.
    fn accept(&self, worker: usize);

    /// Books that a worker takes `ratio` times as long as the typical one.
    fn pace(&self, worker: usize, ratio: f64);

    /// Number of workers, lost ones included.
    fn size(&self) -> usize;

    /// A worker's name in messages.
    fn name(&self, worker: usize) -> &str;

    /// What it fails together with, as [`Seat::domain`].
    fn domain(&self, worker: usize) -> Vec<String>;

    /// Whether it is a thread of this machine, which shares cores with the others.
    fn is_thread_here(&self, worker: usize) -> bool;

    /// Cores of this machine.
    fn cores(&self) -> usize;

    /// Tasks queued or running.
    fn load(&self, worker: usize) -> usize;

    /// Multiply-adds a second; `None` before any were seen.
    fn rate(&self, worker: usize) -> Option<f64>;

    /// [`Fleet::rate`], or without one the `typical` speed as far as attempts that were cut short allow.
    fn rate_or(&self, worker: usize, typical: f64) -> f64;

    /// Whether its health lets it have tasks.
    fn is_usable(&self, worker: usize) -> bool;

    /// Whether it is much slower than the others.
    fn straggles(&self, worker: usize) -> bool;

    /// Failure domains and relative speeds for an assignment. A worker that has not been measured is taken for an
    /// average one.
    fn seats(&self) -> Vec<Seat> {
        let mut known: Vec<f64> = (0..self.size()).filter_map(|worker| self.rate(worker)).collect();
        known.sort_by(f64::total_cmp);
        let typical = known.get(known.len() / 2).copied().unwrap_or(1.0);
        let seat = |worker: usize| Seat {
            domain: self.domain(worker),
            speed: if self.is_usable(worker) { self.rate_or(worker, typical) } else { 0.0 },
        };
        (0..self.size()).map(seat).collect()
    }

    /// The usable worker with the least to do among those `admitted`, of equals the fastest.
    fn least_loaded(&self, admitted: impl Fn(usize) -> bool) -> Option<usize> {
        let usable = (0..self.size()).filter(|worker| self.is_usable(*worker) && admitted(*worker));
        usable.min_by(|a, b| {
            let rate = |worker: usize| self.rate(worker).unwrap_or(0.0);
            self.load(*a).cmp(&self.load(*b)).then_with(|| rate(*b).total_cmp(&rate(*a)))
        })
    }

    /// The fastest idle worker among those `admitted` that does not straggle; with `spare`, a thread of this machine
    /// only if fewer of them are at work than it has cores.
    fn fastest_idle(&self, spare: bool, admitted: impl Fn(usize) -> bool) -> Option<usize> {
        let at_work = || {
            (0..self.size()).filter(|worker| self.is_thread_here(*worker) && self.load(*worker) > 0).count()
        };
        let full = spare && at_work() >= self.cores();
        self.least_loaded(|worker| {
            self.load(worker) == 0
                && !(full && self.is_thread_here(worker))
                && !self.straggles(worker)
                && admitted(worker)
        })
    }

    /// Whether more threads of this machine are workers than it has cores.
    fn is_crowded(&self) -> bool {
        (0..self.size()).filter(|worker| self.is_thread_here(*worker)).count() > self.cores()
    }

    /// Books good answers, and compares every worker's speed with the typical one.
    fn review(&self, accepted: impl Iterator<Item = usize>) {
        accepted.for_each(|worker| self.accept(worker));
        let mut rates: Vec<f64> = (0..self.size()).filter_map(|worker| self.rate(worker)).collect();
        if rates.len() < 2 {
            return;
        }
        let middle = rates.len() / 2;
        let typical = *rates.select_nth_unstable_by(middle, f64::total_cmp).1;
        for worker in 0..self.size() {
            if let Some(rate) = self.rate(worker) {
                self.pace(worker, typical / rate);
            }
        }
    }
}
