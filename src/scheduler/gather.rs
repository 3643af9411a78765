//! The gather state machine: from sub-results and failures to one decision.
//!
//! Relevant if you want to change when a run stops waiting. There is no I/O and no clock: events come in with their times,
//! actions come out, and [`Gather::next_wake`] says when to send the next tick. Everything about the code is behind
//! [`Recovery`].
//!
//! Invariant: a run ends in exactly one of [`Action::Decode`], [`Action::Local`], [`Action::Refuse`] and
//! [`Action::Fail`], at the deadline at the latest.

use std::collections::VecDeque;
use std::time::Duration;

use super::arrivals::{Arrival, Arrivals, Recorded};
use super::estimates::RunEstimates;
use super::policy::{Audit, OnShortfall, Policy};
use super::recovery::{Recovery, Verdict};
use crate::ids::SubtaskId;

/// An event of a run other than an [`Arrival`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An attempt at a subtask ended without all its results; no more results will come from it.
    Failed {
        /// The subtask.
        subtask: SubtaskId,
    },
    /// The machine that an attempt at a subtask runs on does not answer at present; the attempt may still deliver.
    Suspected {
        /// The subtask.
        subtask: SubtaskId,
    },
    /// No worker was idle for a requested hedge.
    Declined {
        /// The subtask.
        subtask: SubtaskId,
    },
    /// A worker has become idle.
    Idle,
    /// Only time has passed.
    Tick,
}

/// What the caller must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Decode from the results in the [`Recovery`]; the run is over and all other work is to be cancelled.
    Decode,
    /// Give a copy of this subtask to the fastest idle worker. The caller sends [`Event::Declined`] if no worker is idle.
    Hedge {
        /// The subtask.
        subtask: SubtaskId,
        /// Set for the first round of hedges: use a worker only if it takes no core from attempts under way.
        spare: bool,
    },
    /// Give this subtask to another worker, idle or not. The caller sends [`Event::Failed`] if there is none.
    Redispatch(SubtaskId),
    /// Give this subtask to another worker for a result that is needed only for comparison. The caller sends
    /// [`Event::Failed`] if there is none.
    Spare(SubtaskId),
    /// Compute the layer locally; the run is over.
    Local,
    /// The results contradict each other and this cannot be resolved; the run is over.
    Refuse,
    /// Too few results can come; the run is over.
    Fail,
}

/// Without latencies of earlier runs, missing subtasks are overdue after this many times the time that half of the
/// subtasks took, or after an eighth of the deadline.
const OVERDUE: u32 = 3;
/// The least time to wait for a result to compare with: threads that wait for a core are not late yet.
const LEAST_WISH: Duration = Duration::from_millis(20);
/// The same where this machine can compute it: about what a message between threads takes.
const LEAST_WISH_BEFORE_OWN: Duration = Duration::from_micros(50);
/// The least time that a badly conditioned run waits for a better set: about what dispatching takes.
const LEAST_SETTLE: Duration = Duration::from_millis(2);
const OVERDUE_LEAST: Duration = Duration::from_millis(20);

/// The attempts at one subtask.
#[derive(Clone, Debug)]
struct Subtask {
    /// Attempts that may still deliver.
    outstanding: usize,
    /// How many of them are on machines that do not answer.
    suspected: usize,
    attempts: usize,
}

impl Subtask {
    /// Whether an attempt may still deliver on a machine that answers.
    fn answers(&self) -> bool {
        self.outstanding > self.suspected
    }
}

/// One run of one layer. Feed it events in the order in which they happen; it returns actions.
pub struct Gather<R> {
    policy: Policy,
    terms: RunEstimates,
    recovery: R,
    subtasks: Vec<Subtask>,
    arrivals: Arrivals,
    pending: VecDeque<Action>,
    hedge_at: Option<Duration>,
    parts_at: Option<Duration>,
    /// Number of rounds in which missing subtasks were hedged.
    hedges: usize,
    redispatched_stragglers: bool,
    /// Time since which the results have been decodable.
    decodable_since: Option<Duration>,
    /// End of the wait for a better set.
    settle_at: Option<Duration>,
    /// End of the wait for a result to compare with, fixed when that was first wanted.
    wish_until: Option<Duration>,
    /// Missing subtasks were redispatched for a better conditioned set.
    bettered: bool,
    over: bool,
}

impl<R: Recovery> Gather<R> {
    /// A run of `n` subtasks of `sub_results` each, all dispatched at time zero.
    pub fn new(policy: Policy, terms: RunEstimates, n: usize, sub_results: usize, recovery: R) -> Self {
        let subtask = Subtask { outstanding: 1, suspected: 0, attempts: 1 };
        let hedge_at = policy.hedges().map(|_| terms.hedge_at.unwrap_or(policy.deadline / 8));
        Self {
            parts_at: terms.parts_at.filter(|_| policy.partial),
            policy,
            terms,
            recovery,
            subtasks: vec![subtask; n],
            arrivals: Arrivals::new(n, sub_results),
            pending: VecDeque::new(),
            hedge_at,
            hedges: 0,
            redispatched_stragglers: false,
            decodable_since: None,
            settle_at: None,
            wish_until: None,
            bettered: false,
            over: false,
        }
    }

    /// Records a sub-result that arrived at time `now` since the first dispatch, unless the run is over.
    pub fn deliver(&mut self, now: Duration, arrival: Arrival) -> Recorded {
        if self.over {
            return Recorded::Repeated;
        }
        let (subtask, index) = (arrival.subtask, arrival.index);
        let recorded = self.arrivals.record(arrival);
        if recorded == Recorded::First {
            self.recovery.arrived(&self.arrivals, subtask, index);
            let half = self.arrivals.complete().len() * 2 >= self.subtasks.len();
            let unknown = self.hedges == 0 && self.terms.hedge_at.is_none();
            if half && unknown && self.arrivals.is_complete(subtask) {
                self.hedge_at = self.hedge_at.map(|at| at.min((now * OVERDUE).max(OVERDUE_LEAST)));
            }
        }
        self.decide(now);
        recorded
    }

    /// Handles one event at time `now` since the first dispatch.
    pub fn handle(&mut self, now: Duration, event: Event) {
        if self.over {
            return;
        }
        match event {
            Event::Failed { subtask } => {
                if let Some(of) = self.subtasks.get_mut(subtask.0) {
                    of.outstanding = of.outstanding.saturating_sub(1);
                    of.suspected = of.suspected.min(of.outstanding);
                }
            }
            Event::Suspected { subtask } => {
                if let Some(of) = self.subtasks.get_mut(subtask.0) {
                    of.suspected = (of.suspected + 1).min(of.outstanding);
                }
            }
            Event::Declined { subtask } => {
                if let Some(of) = self.subtasks.get_mut(subtask.0) {
                    of.outstanding = of.outstanding.saturating_sub(1);
                    of.attempts = of.attempts.saturating_sub(1);
                }
            }
            Event::Idle if self.hedges > 0 && !self.recovery.error(&self.arrivals).is_finite() => {
                self.hedge();
            }
            Event::Idle | Event::Tick => {}
        }
        self.decide(now);
    }

    /// The oldest pending action. After an action that ends the run there are no more.
    pub fn next_action(&mut self) -> Option<Action> {
        self.pending.pop_front()
    }

    /// When to send an [`Event::Tick`] if nothing else happens before.
    #[must_use]
    pub fn next_wake(&self) -> Duration {
        // A run that could decode and waits for something better neither redispatches nor hedges. Waking for these would be
        // useless, and endless once their time is past.
        let decodable = self.decodable_since.is_some();
        let redispatch = self.policy.redispatch_at().filter(|_| !self.redispatched_stragglers && !decodable);
        let hedge = self.hedge_at.filter(|_| !decodable);
        let local = self.policy.local_at(self.terms.local);
        let parts = self.parts_at.filter(|_| !decodable);
        let rungs = [redispatch, hedge, parts, local, self.settle_at, Some(self.policy.deadline)];
        rungs.into_iter().flatten().min().unwrap_or(self.policy.deadline)
    }

    /// The sub-results that have arrived.
    #[must_use]
    pub fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    /// The recovery.
    pub fn recovery(&self) -> &R {
        &self.recovery
    }

    /// The recovery and the sub-results, once the run is over.
    pub fn into_parts(self) -> (R, Arrivals) {
        (self.recovery, self.arrivals)
    }

    fn decide(&mut self, now: Duration) {
        if self.parts_at.is_some_and(|at| now >= at) {
            self.parts_at = None;
            self.recovery.count_parts(&self.arrivals);
        }
        let error = self.recovery.error(&self.arrivals);
        if error.is_finite() {
            if self.good_enough(now, error) && !self.awaits_a_spare(now) && self.concludes() {
                return;
            }
        } else {
            self.decodable_since = None;
            self.settle_at = None;
        }
        if !self.recovery.error(&self.arrivals).is_finite() {
            self.replace_the_dead();
        }
        self.watch_the_clock(now);
    }

    /// Decodes or refuses; false when the audit needs more results first.
    fn concludes(&mut self) -> bool {
        match self.recovery.judge(&self.arrivals) {
            Verdict::Accept => self.finish(Action::Decode),
            Verdict::Refuse => self.finish(Action::Refuse),
            Verdict::Doubt => {
                self.decodable_since = None;
                self.settle_at = None;
                return false;
            }
        }
        true
    }

    /// Whether to wait for a result to compare with. Where this machine can compute one, the wait takes as long as that
    /// would, so that both together take at most twice the better of them. Elsewhere it ends at twice the time at which the
    /// results became decodable, and lasts at least [`LEAST_WISH`]; if no such result can come any more, one missing subtask
    /// is redispatched for it.
    fn awaits_a_spare(&mut self, now: Duration) -> bool {
        if !self.recovery.wishes(&self.arrivals) {
            return false;
        }
        let most = self.policy.deadline / 4 * 3;
        let longest = (now * 2).max(now + LEAST_WISH).min(most);
        let until = match self.terms.spare {
            Some(own) => longest.min(now + own.max(LEAST_WISH_BEFORE_OWN)),
            None => longest,
        };
        let until = *self.wish_until.get_or_insert(until);
        if now >= until {
            return false;
        }
        if !self.arrivals.subtasks().any(|i| self.lives(i) && self.recovery.wants(&self.arrivals, i)) {
            let again = |i: &SubtaskId| self.subtasks[i.0].attempts < Policy::MAX_ATTEMPTS;
            let next = self.missing_subtasks().into_iter().find(again);
            let asks = self.policy.on_shortfall == OnShortfall::Redispatch && self.terms.spare.is_none();
            let Some(subtask) = next.filter(|_| asks) else { return false };
            self.hand_out(&[subtask], Action::Spare);
        }
        self.settle_at = Some(until);
        true
    }

    fn lives(&self, subtask: SubtaskId) -> bool {
        let of = &self.subtasks[subtask.0];
        of.outstanding > 0 && !self.arrivals.is_complete(subtask)
    }

    /// Whether to decode now, at the predicted `error`, instead of waiting for something better.
    fn good_enough(&mut self, now: Duration, error: f64) -> bool {
        let since = *self.decodable_since.get_or_insert(now);
        let refused = self.terms.max_error.is_some_and(|limit| error > limit);
        if error <= self.terms.comfortable && !refused {
            return true;
        }
        let coming: Vec<SubtaskId> = self.arrivals.subtasks().filter(|i| self.lives(*i)).collect();
        if coming.is_empty() {
            // The set is not good enough: another worker may complete a failed subtask.
            return !(refused && self.replaces_for_a_better_set());
        }
        let until = if refused {
            // The set is not good enough. It is refused at once only if no result still to come would help.
            if self
                .terms
                .max_error
                .is_some_and(|limit| self.recovery.error_with(&self.arrivals, &coming) > limit)
            {
                return !self.replaces_for_a_better_set();
            }
            // Computing locally is a fallback: do not wait much longer than that takes.
            let local = (since + self.terms.local.max(since)).max(LEAST_SETTLE);
            let last = self.policy.deadline / 4 * 3;
            if self.policy.on_shortfall == OnShortfall::Fail { last } else { last.min(local) }
        } else {
            let Some((next, at)) = self.next_arrival(now, &coming) else { return true };
            let digits = (error / self.recovery.error_with(&self.arrivals, &[next])).log10().max(0.0);
            let until = since + since.mul_f64((self.policy.patience * digits).clamp(0.0, 1e3));
            if at > until {
                return true;
            }
            until
        };
        self.settle_at = Some(until);
        now >= until
    }

    /// Redispatches, once, the missing subtasks that would make the set good enough.
    fn replaces_for_a_better_set(&mut self) -> bool {
        let allowed = self.policy.on_shortfall == OnShortfall::Redispatch && !self.bettered;
        let Some(limit) = self.terms.max_error.filter(|_| allowed) else { return false };
        self.bettered = true;
        let mut chosen: Vec<SubtaskId> = self.arrivals.subtasks().filter(|i| self.lives(*i)).collect();
        let mut again = Vec::new();
        for subtask in self.missing_subtasks() {
            let of = &self.subtasks[subtask.0];
            if of.outstanding > 0 || of.attempts >= Policy::MAX_ATTEMPTS {
                continue;
            }
            chosen.push(subtask);
            again.push(subtask);
            if self.recovery.error_with(&self.arrivals, &chosen) <= limit {
                self.hand_out(&again, Action::Redispatch);
                return true;
            }
        }
        false
    }

    /// The subtask expected next, and its time. An overdue subtask is expected to take again as long as it is late.
    fn next_arrival(&self, now: Duration, coming: &[SubtaskId]) -> Option<(SubtaskId, Duration)> {
        let gap = now / u32::try_from(self.arrivals.complete().len().max(1)).unwrap_or(u32::MAX);
        let expected = |subtask: SubtaskId| match self.terms.expected.get(subtask.0).copied().flatten() {
            Some(at) if at > now => at,
            Some(at) => now + now.saturating_sub(at),
            None => now + gap,
        };
        coming.iter().map(|i| (*i, expected(*i))).min_by_key(|(_, at)| *at)
    }

    /// Where the results that may still come are not enough: redispatches, else computes locally or gives up. Results of
    /// machines that do not answer are not counted on, but waited for where nothing else is left.
    fn replace_the_dead(&mut self) {
        let living = |i: SubtaskId| self.subtasks[i.0].answers();
        if self.recovery.suffices_with(&self.arrivals, &living) {
            return;
        }
        if self.policy.on_shortfall == OnShortfall::Redispatch {
            let mut revived: Vec<SubtaskId> = Vec::new();
            for subtask in self.arrivals.subtasks() {
                let of = &self.subtasks[subtask.0];
                let spent = of.answers() || of.attempts >= Policy::MAX_ATTEMPTS;
                if self.arrivals.is_complete(subtask)
                    || spent
                    || !self.recovery.wants(&self.arrivals, subtask)
                {
                    continue;
                }
                revived.push(subtask);
                let counted = |i: SubtaskId| self.subtasks[i.0].answers() || revived.contains(&i);
                if self.recovery.suffices_with(&self.arrivals, &counted) {
                    self.hand_out(&revived, Action::Redispatch);
                    return;
                }
            }
        }
        if !self.recovery.suffices_with(&self.arrivals, &|i| self.subtasks[i.0].outstanding > 0) {
            self.give_up();
        }
    }

    /// Ends the run with its last fallback.
    fn give_up(&mut self) {
        let last = match self.policy.on_shortfall {
            // A contradiction is reported, unless the workers' results are no longer needed.
            _ if self.recovery.in_doubt() && self.policy.audit != Audit::Watch => Action::Refuse,
            OnShortfall::Fail if self.recovery.in_doubt() => Action::Refuse,
            OnShortfall::Fail => Action::Fail,
            OnShortfall::Redispatch | OnShortfall::Local => Action::Local,
        };
        self.finish(last);
    }

    fn hand_out(&mut self, subtasks: &[SubtaskId], action: impl Fn(SubtaskId) -> Action) {
        for subtask in subtasks {
            let of = &mut self.subtasks[subtask.0];
            of.outstanding += 1;
            of.attempts += 1;
            self.pending.push_back(action(*subtask));
        }
    }

    fn watch_the_clock(&mut self, now: Duration) {
        if self.over {
            return;
        }
        let decodable = self.recovery.error(&self.arrivals).is_finite();
        if now >= self.policy.deadline {
            if !(decodable && self.concludes()) {
                self.finish(if self.recovery.in_doubt() { Action::Refuse } else { Action::Fail });
            }
        } else if self.policy.local_at(self.terms.local).is_some_and(|at| now >= at) {
            if !(decodable && self.concludes()) {
                self.give_up();
            }
        } else if decodable {
            // The run only waits for something better.
        } else if !self.redispatched_stragglers && self.policy.redispatch_at().is_some_and(|at| now >= at) {
            self.redispatched_stragglers = true;
            let again = self.enough_of();
            self.hand_out(&again, Action::Redispatch);
        } else if self.hedge_at.is_some_and(|at| now >= at) {
            self.hedges += 1;
            self.hedge_at = Some(now * 2);
            self.hedge();
        }
    }

    /// Requests copies of missing subtasks, twice as many as would be enough: copies may be late too.
    fn hedge(&mut self) {
        let needed = self.enough_of().len();
        let mut missing = self.missing_subtasks();
        let copied = missing.iter().filter(|i| self.subtasks[i.0].outstanding > 1).count();
        // One copy of each subtask in each round; the interval between rounds doubles.
        missing.retain(|i| {
            let of = &self.subtasks[i.0];
            of.outstanding <= self.hedges && of.attempts < Policy::MAX_ATTEMPTS
        });
        let more = if self.hedges > 1 { 2 * needed } else { (2 * needed).saturating_sub(copied) };
        missing.truncate(more);
        let spare = self.hedges == 1;
        self.hand_out(&missing, |subtask| Action::Hedge { subtask, spare });
    }

    /// Incomplete subtasks that would be of use, those with the most missing sub-results first.
    fn missing_subtasks(&self) -> Vec<SubtaskId> {
        let of_use =
            |i: &SubtaskId| !self.arrivals.is_complete(*i) && self.recovery.wants(&self.arrivals, *i);
        let mut missing: Vec<SubtaskId> = self.arrivals.subtasks().filter(of_use).collect();
        missing.sort_by_key(|i| std::cmp::Reverse(self.arrivals.count_missing(*i)));
        missing
    }

    /// Missing subtasks that would be enough and may be dispatched once more.
    fn enough_of(&self) -> Vec<SubtaskId> {
        let mut chosen: Vec<SubtaskId> = Vec::new();
        for subtask in self.missing_subtasks() {
            if self.recovery.suffices_with(&self.arrivals, &|i| chosen.contains(&i)) {
                break;
            }
            if self.subtasks[subtask.0].attempts < Policy::MAX_ATTEMPTS {
                chosen.push(subtask);
            }
        }
        chosen
    }

    fn finish(&mut self, action: Action) {
        self.over = true;
        self.pending.clear();
        self.pending.push_back(action);
    }
}

#[cfg(test)]
mod tests;
