//! The gather state machine: from sub-results and failures to one decision.
//!
//! No I/O and no clock: events come in with their times, actions come out, and [`Gather::next_wake`] says when to
//! look again. What the code needs is behind [`Recovery`]. Who runs layers needs none of this.
//!
//! Invariant: a run ends in exactly one of [`Action::Decode`], [`Action::Local`], [`Action::Refuse`] and
//! [`Action::Fail`], at the deadline at the latest.

use std::collections::VecDeque;
use std::time::Duration;

use super::policy::{Audit, OnShortfall, Policy};

/// Something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A usable sub-result of a subtask arrived.
    SubResult {
        /// Which subtask.
        subtask: usize,
        /// Which of its sub-results.
        index: usize,
    },
    /// One attempt at a subtask ended without all its results, and no more will come from it.
    Failed {
        /// Which subtask.
        subtask: usize,
    },
    /// Nobody was idle for a hedge that was asked for.
    Declined {
        /// Which subtask.
        subtask: usize,
    },
    /// A worker has become idle.
    Idle,
    /// Nothing but time passed.
    Tick,
}

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Decode from what the [`Recovery`] holds; the run is over and the rest is to be cancelled.
    Decode,
    /// Hand a copy of this subtask to an idle worker, the fastest. The caller answers [`Event::Declined`] when
    /// nobody is idle.
    Hedge {
        /// Which subtask.
        subtask: usize,
        /// The first time round: only where that takes nothing from those who are still at work.
        spare: bool,
    },
    /// Hand this subtask to another worker, idle or not. The caller answers [`Event::Failed`] when it has none.
    Redispatch(usize),
    /// Hand this subtask to another worker for a result to compare with, which is not needed otherwise. The caller answers
    /// [`Event::Failed`] when it has none.
    Spare(usize),
    /// Compute the layer locally; the run is over.
    Local,
    /// What came contradicts itself beyond repair; the run is over.
    Refuse,
    /// Too few results can come; the run is over.
    Fail,
}

/// What a [`Recovery`] says of a set it could decode, on a second look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Decode.
    Accept,
    /// Something is wrong with it; more results may settle what. [`Recovery::error`] is infinite until more came.
    Doubt,
    /// Something is wrong with it and no further result would help.
    Refuse,
}

/// What the gathering must know of a code and its audit.
pub trait Recovery {
    /// A sub-result came, for the first time.
    fn arrived(&mut self, subtask: usize, index: usize);

    /// From now on parts of subtasks count. Asked for once, if at all.
    fn count_parts(&mut self) {}

    /// Predicted relative error of decoding from what came; infinite while it does not decode.
    fn error(&mut self) -> f64;

    /// [`Recovery::error`] if these subtasks were complete as well.
    fn error_with(&mut self, more: &[usize]) -> f64;

    /// Whether the complete subtasks and those of `also` are enough. Monotone: more never spoils it.
    fn suffices_with(&self, also: &dyn Fn(usize) -> bool) -> bool;

    /// Whether a subtask that is not complete would bring anything that is not there already: with copies of parts not
    /// every one does.
    fn wants(&self, _subtask: usize) -> bool {
        true
    }

    /// Looks at what came once more before it is decoded.
    fn judge(&mut self) -> Verdict {
        Verdict::Accept
    }

    /// Whether the last verdict was [`Verdict::Doubt`].
    fn in_doubt(&self) -> bool {
        false
    }

    /// Whether one more result is wished for, to compare with what would decode, though it is not needed.
    fn wishes(&self) -> bool {
        false
    }
}

/// What is known of a run before it begins.
#[derive(Clone, Debug, Default)]
pub struct RunEstimates {
    /// Predicted error below which nothing is worth waiting for.
    pub comfortable: f64,
    /// Predicted error above which a result would be refused.
    pub max_error: Option<f64>,
    /// From when on parts of subtasks count, if at all: before, complete ones are likely to come sooner than parts
    /// could be decoded.
    pub parts_at: Option<Duration>,
    /// When missing subtasks are overdue; `None` while there is no experience.
    pub hedge_at: Option<Duration>,
    /// When each subtask is expected to be complete, as far as known; may be shorter than n.
    pub expected: Vec<Option<Duration>>,
    /// How long computing the layer locally would take.
    pub local: Duration,
}

/// Without experience, missing subtasks are overdue after so many times the time half of the others took, or an eighth of
/// the deadline.
const OVERDUE: u32 = 3;
/// A result to compare with is waited for at least this long: threads that wait for a core are not late yet.
const LEAST_WISH: Duration = Duration::from_millis(20);
/// The least that a badly conditioned run waits for a better set: about what handing out takes.
const LEAST_SETTLE: Duration = Duration::from_millis(2);
const OVERDUE_LEAST: Duration = Duration::from_millis(20);

#[derive(Clone, Debug)]
struct Subtask {
    arrived: Vec<bool>,
    missing: usize,
    /// Attempts that may still deliver.
    outstanding: usize,
    attempts: usize,
}

impl Subtask {
    fn complete(&self) -> bool {
        self.missing == 0
    }
}

/// One run of one layer. Feed it events in the order they happened; it answers with actions.
pub struct Gather<R> {
    policy: Policy,
    terms: RunEstimates,
    recovery: R,
    subtasks: Vec<Subtask>,
    /// Complete subtasks in order of completion.
    complete: Vec<usize>,
    pending: VecDeque<Action>,
    hedge_at: Option<Duration>,
    parts_at: Option<Duration>,
    /// How often missing subtasks were hedged.
    hedges: usize,
    redispatched_stragglers: bool,
    /// When what came first decoded.
    decodable_since: Option<Duration>,
    /// Until when it waits for something better.
    settle_at: Option<Duration>,
    /// Until when it waits for a result to compare with, from when that was first wished for.
    wish_until: Option<Duration>,
    /// Missing subtasks were handed out again for a better conditioned set.
    bettered: bool,
    over: bool,
}

impl<R: Recovery> Gather<R> {
    /// A run of `n` subtasks of `sub_results` each, all just dispatched at time zero.
    pub fn new(policy: Policy, terms: RunEstimates, n: usize, sub_results: usize, recovery: R) -> Self {
        let subtask =
            Subtask { arrived: vec![false; sub_results], missing: sub_results, outstanding: 1, attempts: 1 };
        let hedge_at = policy.hedges().map(|_| terms.hedge_at.unwrap_or(policy.deadline / 8));
        Self {
            parts_at: terms.parts_at.filter(|_| policy.partial),
            policy,
            terms,
            recovery,
            subtasks: vec![subtask; n],
            complete: Vec::with_capacity(n),
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

    /// Takes one event at `now` (since the first dispatch).
    pub fn handle(&mut self, now: Duration, event: Event) {
        if self.over {
            return;
        }
        match event {
            Event::SubResult { subtask, index } => self.sub_result(now, subtask, index),
            Event::Failed { subtask } => {
                if let Some(of) = self.subtasks.get_mut(subtask) {
                    of.outstanding = of.outstanding.saturating_sub(1);
                }
            }
            Event::Declined { subtask } => {
                if let Some(of) = self.subtasks.get_mut(subtask) {
                    of.outstanding = of.outstanding.saturating_sub(1);
                    of.attempts = of.attempts.saturating_sub(1);
                }
            }
            Event::Idle if self.hedges > 0 && !self.recovery.error().is_finite() => self.hedge(),
            Event::Idle | Event::Tick => {}
        }
        self.decide(now);
    }

    /// The next thing to do, oldest first. After an action that ends the run there is nothing more.
    pub fn next_action(&mut self) -> Option<Action> {
        self.pending.pop_front()
    }

    /// When to send a [`Event::Tick`] if nothing else happens before.
    #[must_use]
    pub fn next_wake(&self) -> Duration {
        // While it could decode and waits for something better, these do nothing: waking for them would be in vain, and
        // once their time is past without end.
        let decodable = self.decodable_since.is_some();
        let redispatch = self.policy.redispatch_at().filter(|_| !self.redispatched_stragglers && !decodable);
        let hedge = self.hedge_at.filter(|_| !decodable);
        let local = self.policy.local_at(self.terms.local);
        let parts = self.parts_at.filter(|_| !decodable);
        let rungs = [redispatch, hedge, parts, local, self.settle_at, Some(self.policy.deadline)];
        rungs.into_iter().flatten().min().unwrap_or(self.policy.deadline)
    }

    /// Subtasks complete so far, in order of completion.
    #[must_use]
    pub fn complete(&self) -> &[usize] {
        &self.complete
    }

    /// Whether a subtask needs no further attempt.
    #[must_use]
    pub fn is_complete(&self, subtask: usize) -> bool {
        self.subtasks.get(subtask).is_some_and(Subtask::complete)
    }

    /// Sub-results of a subtask that have not come, in ascending order.
    #[must_use]
    pub fn missing(&self, subtask: usize) -> Vec<usize> {
        let arrived = self.subtasks.get(subtask).map_or(&[][..], |of| &of.arrived);
        (0..arrived.len()).filter(|index| !arrived[*index]).collect()
    }

    /// What it asks.
    pub fn recovery(&self) -> &R {
        &self.recovery
    }

    /// As [`Gather::recovery`], to tell it more.
    pub fn recovery_mut(&mut self) -> &mut R {
        &mut self.recovery
    }

    /// What it asked, with all it was told.
    pub fn into_recovery(self) -> R {
        self.recovery
    }

    fn sub_result(&mut self, now: Duration, subtask: usize, index: usize) {
        let Some(of) = self.subtasks.get_mut(subtask) else { return };
        let Some(slot) = of.arrived.get_mut(index) else { return };
        // Two attempts at one subtask may both deliver: the first counts.
        if std::mem::replace(slot, true) {
            return;
        }
        of.missing -= 1;
        let complete = of.complete();
        self.recovery.arrived(subtask, index);
        if complete {
            self.complete.push(subtask);
            let half = self.complete.len() * 2 >= self.subtasks.len();
            if half && self.hedges == 0 && self.terms.hedge_at.is_none() {
                self.hedge_at = self.hedge_at.map(|at| at.min((now * OVERDUE).max(OVERDUE_LEAST)));
            }
        }
    }

    fn decide(&mut self, now: Duration) {
        if self.parts_at.is_some_and(|at| now >= at) {
            self.parts_at = None;
            self.recovery.count_parts();
        }
        let error = self.recovery.error();
        if error.is_finite() {
            if self.good_enough(now, error) && !self.awaits_a_spare(now) && self.concludes() {
                return;
            }
        } else {
            self.decodable_since = None;
            self.settle_at = None;
        }
        if !self.recovery.error().is_finite() {
            self.replace_the_dead();
        }
        self.watch_the_clock(now);
    }

    /// Decodes or refuses; false when the audit wants to see more first.
    fn concludes(&mut self) -> bool {
        match self.recovery.judge() {
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

    /// Whether it waits for a result to compare with: as long again as it took until it could decode, or a moment, at most. Where none can
    /// come any more, one missing subtask is handed out again for it.
    fn awaits_a_spare(&mut self, now: Duration) -> bool {
        if !self.recovery.wishes() {
            return false;
        }
        let most = self.policy.deadline / 4 * 3;
        let until = *self.wish_until.get_or_insert((now * 2).max(now + LEAST_WISH).min(most));
        if now >= until {
            return false;
        }
        if !(0..self.subtasks.len()).any(|i| self.lives(i) && self.recovery.wants(i)) {
            let again = |i: &usize| self.subtasks[*i].attempts < Policy::MAX_ATTEMPTS;
            let next = self.missing_subtasks().into_iter().find(again);
            let Some(subtask) = next.filter(|_| self.policy.on_shortfall == OnShortfall::Redispatch) else {
                return false;
            };
            self.hand_out(&[subtask], Action::Spare);
        }
        self.settle_at = Some(until);
        true
    }

    fn lives(&self, subtask: usize) -> bool {
        let of = &self.subtasks[subtask];
        of.outstanding > 0 && !of.complete()
    }

    /// Whether what came is decoded now, at the predicted `error`, or something better is worth waiting for.
    fn good_enough(&mut self, now: Duration, error: f64) -> bool {
        let since = *self.decodable_since.get_or_insert(now);
        let refused = self.terms.max_error.is_some_and(|limit| error > limit);
        if error <= self.terms.comfortable && !refused {
            return true;
        }
        let coming: Vec<usize> = (0..self.subtasks.len()).filter(|i| self.lives(*i)).collect();
        if coming.is_empty() {
            // Too bad as it is: what failed may do better with another worker.
            return !(refused && self.replaces_for_a_better_set());
        }
        let until = if refused {
            // Too bad as it is. It is refused at once only if all that may still come would not help.
            if self.terms.max_error.is_some_and(|limit| self.recovery.error_with(&coming) > limit) {
                return !self.replaces_for_a_better_set();
            }
            // Computing the layer here is a way out: waiting much longer than that takes is in vain.
            let local = (since + self.terms.local.max(since)).max(LEAST_SETTLE);
            let last = self.policy.deadline / 4 * 3;
            if self.policy.on_shortfall == OnShortfall::Fail { last } else { last.min(local) }
        } else {
            let Some((next, at)) = self.next_arrival(now, &coming) else { return true };
            let digits = (error / self.recovery.error_with(&[next])).log10().max(0.0);
            let until = since + since.mul_f64((self.policy.patience * digits).clamp(0.0, 1e3));
            if at > until {
                return true;
            }
            until
        };
        self.settle_at = Some(until);
        now >= until
    }

    /// Hands out, once, the missing subtasks that would make the set good enough.
    fn replaces_for_a_better_set(&mut self) -> bool {
        let allowed = self.policy.on_shortfall == OnShortfall::Redispatch && !self.bettered;
        let Some(limit) = self.terms.max_error.filter(|_| allowed) else { return false };
        self.bettered = true;
        let mut chosen: Vec<usize> = (0..self.subtasks.len()).filter(|i| self.lives(*i)).collect();
        let mut again = Vec::new();
        for subtask in self.missing_subtasks() {
            let of = &self.subtasks[subtask];
            if of.outstanding > 0 || of.attempts >= Policy::MAX_ATTEMPTS {
                continue;
            }
            chosen.push(subtask);
            again.push(subtask);
            if self.recovery.error_with(&chosen) <= limit {
                self.hand_out(&again, Action::Redispatch);
                return true;
            }
        }
        false
    }

    /// The subtask expected next, and when. One that is overdue is expected after as long again.
    fn next_arrival(&self, now: Duration, coming: &[usize]) -> Option<(usize, Duration)> {
        let gap = now / u32::try_from(self.complete.len().max(1)).unwrap_or(u32::MAX);
        let expected = |subtask: usize| match self.terms.expected.get(subtask).copied().flatten() {
            Some(at) if at > now => at,
            Some(at) => now + now.saturating_sub(at),
            None => now + gap,
        };
        coming.iter().map(|i| (*i, expected(*i))).min_by_key(|(_, at)| *at)
    }

    /// When what lives can no longer be enough: redispatch, then local, then give up.
    fn replace_the_dead(&mut self) {
        let living = |i: usize| self.subtasks[i].outstanding > 0;
        if self.recovery.suffices_with(&living) {
            return;
        }
        if self.policy.on_shortfall == OnShortfall::Redispatch {
            let mut revived: Vec<usize> = Vec::new();
            for subtask in 0..self.subtasks.len() {
                let of = &self.subtasks[subtask];
                let spent = of.outstanding > 0 || of.attempts >= Policy::MAX_ATTEMPTS;
                if of.complete() || spent || !self.recovery.wants(subtask) {
                    continue;
                }
                revived.push(subtask);
                if self.recovery.suffices_with(&|i| self.subtasks[i].outstanding > 0 || revived.contains(&i))
                {
                    self.hand_out(&revived, Action::Redispatch);
                    return;
                }
            }
        }
        self.give_up();
    }

    /// The last rung there is.
    fn give_up(&mut self) {
        let last = match self.policy.on_shortfall {
            // What was found out about the workers' answers is not covered up, unless they are no longer needed.
            _ if self.recovery.in_doubt() && self.policy.audit != Audit::Watch => Action::Refuse,
            OnShortfall::Fail if self.recovery.in_doubt() => Action::Refuse,
            OnShortfall::Fail => Action::Fail,
            OnShortfall::Redispatch | OnShortfall::Local => Action::Local,
        };
        self.finish(last);
    }

    fn hand_out(&mut self, subtasks: &[usize], action: impl Fn(usize) -> Action) {
        for subtask in subtasks {
            let of = &mut self.subtasks[*subtask];
            of.outstanding += 1;
            of.attempts += 1;
            self.pending.push_back(action(*subtask));
        }
    }

    fn watch_the_clock(&mut self, now: Duration) {
        if self.over {
            return;
        }
        let decodable = self.recovery.error().is_finite();
        if now >= self.policy.deadline {
            if !(decodable && self.concludes()) {
                self.finish(if self.recovery.in_doubt() { Action::Refuse } else { Action::Fail });
            }
        } else if self.policy.local_at(self.terms.local).is_some_and(|at| now >= at) {
            if !(decodable && self.concludes()) {
                self.give_up();
            }
        } else if decodable {
            // It only waits for something better.
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

    /// Has copies made of missing subtasks until there are twice as many as would be enough: copies may be late too.
    fn hedge(&mut self) {
        let needed = self.enough_of().len();
        let mut missing = self.missing_subtasks();
        let copied = missing.iter().filter(|i| self.subtasks[**i].outstanding > 1).count();
        // One copy of each, until as long again has passed.
        missing.retain(|i| {
            let of = &self.subtasks[*i];
            of.outstanding <= self.hedges && of.attempts < Policy::MAX_ATTEMPTS
        });
        let more = if self.hedges > 1 { 2 * needed } else { (2 * needed).saturating_sub(copied) };
        missing.truncate(more);
        let spare = self.hedges == 1;
        self.hand_out(&missing, |subtask| Action::Hedge { subtask, spare });
    }

    /// Subtasks that are not complete and of use, those that have given least first.
    fn missing_subtasks(&self) -> Vec<usize> {
        let of_use = |i: &usize| !self.subtasks[*i].complete() && self.recovery.wants(*i);
        let mut missing: Vec<usize> = (0..self.subtasks.len()).filter(of_use).collect();
        missing.sort_by_key(|i| std::cmp::Reverse(self.subtasks[*i].missing));
        missing
    }

    /// Missing subtasks that would be enough and may be handed out once more.
    fn enough_of(&self) -> Vec<usize> {
        let mut chosen: Vec<usize> = Vec::new();
        for subtask in self.missing_subtasks() {
            if self.recovery.suffices_with(&|i| chosen.contains(&i)) {
                break;
            }
            if self.subtasks[subtask].attempts < Policy::MAX_ATTEMPTS {
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
