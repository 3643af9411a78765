//! The state machine of one run of a part of a model that several workers hold: from answers and failures to one decision.
//!
//! Relevant if you want to change which worker computes a part, when another one is asked too, or which results are believed.
//! There is no I/O and no clock: events come in with their times, actions come out, and [`Replicas::next_wake`] says when to
//! send the next tick.
//!
//! Invariant: a run ends in exactly one of [`ReplicaAction::Accept`], [`ReplicaAction::Refuse`] and [`ReplicaAction::Fail`],
//! at the deadline at the latest. No worker is asked twice.

use std::time::Duration;

use serde::Serialize;

use super::replica_history::ReplicaHistory;
use crate::error::{Error, Message, Parameter, Result};
use crate::ids::WorkerId;

/// The least time to wait for a result to compare with.
const LEAST_WISH: Duration = Duration::from_millis(20);
/// The shortest and longest pause before it is looked again whether a worker is idle for an overdue attempt.
const LOOK: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(50)];

/// The rules of the runs of one part. All times count from the first dispatch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReplicaPolicy {
    /// Time at which the run fails if there is no result. Workers that have not answered at half of it are given up in
    /// favour of others.
    pub deadline: Duration,
    /// Number of workers that compute the part from the start.
    pub copies: usize,
    /// Maximum number of workers that compute it at the same time, not counting those that do not answer any more.
    pub max_copies: usize,
    /// The quantile of the times of earlier runs after which one more worker gets a copy; `None`: never.
    pub hedge: Option<f64>,
}

impl Default for ReplicaPolicy {
    /// 30 s, one copy, a second one after 95 % of the times of earlier runs.
    fn default() -> Self {
        Self { deadline: Duration::from_secs(30), copies: 1, max_copies: 2, hedge: Some(0.95) }
    }
}

impl ReplicaPolicy {
    /// Checks the values that no run can use.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] with the value.
    pub fn check(&self) -> Result<()> {
        if self.deadline.is_zero() {
            let what = Message::about("deadline", Parameter::Deadline);
            return Err(Error::invalid(what, 0, "give a time above zero, such as 500ms or 2s"));
        }
        if self.copies == 0 {
            return Err(Error::invalid("copies of a part at once", 0, "use at least one"));
        }
        if self.max_copies < self.copies {
            let help = format!("{} start at once: allow at least as many", self.copies);
            return Err(Error::invalid("maximum number of copies of a part", self.max_copies, help));
        }
        match self.hedge.filter(|quantile| !(*quantile > 0.0 && *quantile < 1.0)) {
            None => Ok(()),
            Some(quantile) => {
                let what = Message::about("hedging quantile", Parameter::Hedge);
                Err(Error::invalid(what, quantile, "give a number between 0 and 1, or off"))
            }
        }
    }
}

/// Which results of a run are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// The first result counts.
    Off,
    /// Two results are compared, if a second one comes in about the time of the first.
    Wish,
    /// Only a result that another worker confirms counts.
    Required,
}

/// A worker that holds the part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its index.
    pub worker: WorkerId,
    /// A number for its machine.
    pub machine: u64,
    /// Tasks queued or running.
    pub load: usize,
    /// Whether it may get work and its machine answers.
    pub answers: bool,
    /// Whether it is idle, and takes no core from others.
    pub spare: bool,
}

/// Why a worker is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PartDispatch {
    /// It is the first.
    First,
    /// The run starts with several copies.
    Copy,
    /// Another worker takes longer than most runs.
    Hedge,
    /// Another worker failed, or does not answer.
    Redispatch,
    /// Its result is to be compared with another one.
    Check,
}

/// An event of a run. Attempts are numbered in the order of [`ReplicaAction::Dispatch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaEvent {
    /// The outputs of an attempt arrived; they have the right sizes.
    Arrived {
        /// The attempt.
        attempt: usize,
        /// Whether all elements are finite.
        finite: bool,
    },
    /// An attempt ended without outputs that can be used.
    Failed {
        /// The attempt.
        attempt: usize,
    },
    /// The machine of an attempt does not answer at present; the attempt may still deliver.
    Suspected {
        /// The attempt.
        attempt: usize,
    },
    /// The run begins, or time has passed.
    Tick,
}

/// What the caller must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaAction {
    /// Let this worker compute the part, as the next attempt.
    Dispatch {
        /// The worker.
        worker: WorkerId,
        /// Why.
        why: PartDispatch,
    },
    /// This attempt's outputs are wrong. The run goes on.
    Blame {
        /// The attempt.
        attempt: usize,
        /// The attempt that it is compared with.
        by: usize,
    },
    /// These outputs count; the run is over.
    Accept {
        /// Their attempt.
        attempt: usize,
    },
    /// The results contradict each other, and no worker is left to decide; the run is over.
    Refuse,
    /// No result can come any more, or none has come in time; the run is over.
    Fail,
}

/// What the machine is told with each event.
#[derive(Clone, Copy)]
pub struct ReplicaContext<'a> {
    /// The workers that hold the part.
    pub holders: &'a [Holder],
    /// What is known of the part.
    pub history: &'a ReplicaHistory,
    /// Whether the outputs of two attempts that arrived agree.
    pub agree: &'a dyn Fn(usize, usize) -> bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Running,
    Arrived { finite: bool },
    Ended,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    worker: WorkerId,
    machine: u64,
    since: Duration,
    stage: Stage,
    /// Given up in favour of others; it may still deliver.
    given_up: bool,
    hedged: bool,
}

/// One run. Feed it events in the order in which they happen; it returns actions.
pub struct Replicas {
    policy: ReplicaPolicy,
    comparison: Comparison,
    /// Whether outputs must be finite, since the inputs are.
    finite: bool,
    /// Start of the run on the clock of the history.
    started: Duration,
    attempts: Vec<Attempt>,
    /// Attempts that arrived, in their order.
    arrived: Vec<usize>,
    /// The workers that had not answered at half of the deadline were given up.
    halved: bool,
    /// End of the wait for a result to compare with.
    wish_until: Option<Duration>,
    over: bool,
}

impl Replicas {
    /// A run that begins at `started` on the clock of the [history](ReplicaHistory). `finite`: whether its inputs are.
    #[must_use]
    pub fn new(policy: ReplicaPolicy, comparison: Comparison, finite: bool, started: Duration) -> Self {
        Self {
            policy,
            comparison,
            finite,
            started,
            attempts: Vec::new(),
            arrived: Vec::new(),
            halved: false,
            wish_until: None,
            over: false,
        }
    }

    /// Handles one event at time `now` since the start of the run. Actions are to be carried out in order.
    pub fn handle(
        &mut self,
        now: Duration,
        event: ReplicaEvent,
        context: ReplicaContext<'_>,
    ) -> Vec<ReplicaAction> {
        let mut actions = Vec::new();
        if self.over {
            return actions;
        }
        match event {
            ReplicaEvent::Arrived { attempt, finite } => {
                if self.attempts.get(attempt).is_some_and(|of| of.stage == Stage::Running) {
                    self.attempts[attempt].stage = Stage::Arrived { finite };
                    self.arrived.push(attempt);
                }
            }
            ReplicaEvent::Failed { attempt } => {
                if let Some(of) = self.attempts.get_mut(attempt) {
                    of.stage = Stage::Ended;
                }
                self.arrived.retain(|other| *other != attempt);
            }
            ReplicaEvent::Suspected { attempt } => {
                if let Some(of) = self.attempts.get_mut(attempt) {
                    of.given_up = true;
                }
            }
            ReplicaEvent::Tick => {}
        }
        self.decide(now, context, &mut actions);
        actions
    }

    /// When to send a [`ReplicaEvent::Tick`] if nothing else happens before.
    #[must_use]
    pub fn next_wake(&self, now: Duration, history: &ReplicaHistory) -> Duration {
        // Once two results contradict each other, only a third one helps.
        let wish = self.wish_until.filter(|_| self.arrived.len() == 1);
        let mut wake = self.policy.deadline.min(wish.unwrap_or(Duration::MAX));
        if !self.halved {
            wake = wake.min(self.policy.deadline / 2);
        }
        let Some(after) = self.overdue_after(history) else { return wake };
        if self.live() >= self.most() {
            return wake;
        }
        for attempt in self.attempts.iter().filter(|attempt| attempt.stage == Stage::Running) {
            if attempt.hedged || attempt.given_up {
                continue;
            }
            let due = attempt.since + after;
            // No worker was idle: look again soon.
            wake = wake.min(if due > now { due } else { now + (after / 8).clamp(LOOK[0], LOOK[1]) });
        }
        wake
    }

    /// Whether the run compares results.
    fn compares(&self) -> bool {
        self.comparison != Comparison::Off || self.arrived.iter().any(|attempt| self.is_doubtful(*attempt))
    }

    /// Whether outputs that arrived hold a NaN or infinity although the inputs hold none.
    fn is_doubtful(&self, attempt: usize) -> bool {
        self.finite && self.attempts[attempt].stage == Stage::Arrived { finite: false }
    }

    fn running(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|attempt| attempt.stage == Stage::Running)
    }

    /// Attempts under way that are not given up.
    fn live(&self) -> usize {
        self.running().filter(|attempt| !attempt.given_up).count()
    }

    /// Maximum number of attempts under way.
    fn most(&self) -> usize {
        self.policy.max_copies.max(if self.compares() { 2 } else { 1 })
    }

    fn overdue_after(&self, history: &ReplicaHistory) -> Option<Duration> {
        self.policy.hedge.and_then(|quantile| history.overdue_after(quantile))
    }

    fn decide(&mut self, now: Duration, context: ReplicaContext<'_>, actions: &mut Vec<ReplicaAction>) {
        if let Some(end) = self.judge(now, context, actions) {
            return self.finish(end, actions);
        }
        if now >= self.policy.deadline {
            return self.finish(self.end_without_more(), actions);
        }
        if now >= self.policy.deadline / 2 && !self.halved {
            self.halved = true;
            self.attempts.iter_mut().for_each(|attempt| attempt.given_up = true);
        }
        self.supply(now, context, actions);
        if self.running().next().is_none() {
            return self.finish(self.end_without_more(), actions);
        }
        self.hedge(now, context, actions);
    }

    fn finish(&mut self, end: ReplicaAction, actions: &mut Vec<ReplicaAction>) {
        self.over = true;
        actions.push(end);
    }

    /// The end of the run if the results that arrived suffice for one.
    fn judge(
        &mut self,
        now: Duration,
        context: ReplicaContext<'_>,
        actions: &mut Vec<ReplicaAction>,
    ) -> Option<ReplicaAction> {
        let clean = self.arrived.iter().copied().find(|attempt| !self.is_doubtful(*attempt));
        if let Some(clean) = clean {
            // A NaN where another worker has none is an error of its worker.
            let doubtful: Vec<usize> =
                self.arrived.iter().copied().filter(|attempt| self.is_doubtful(*attempt)).collect();
            self.blame(&doubtful, clean, actions);
        }
        let first = *self.arrived.first()?;
        if !self.compares() {
            return Some(ReplicaAction::Accept { attempt: first });
        }
        let pairs = || {
            self.arrived.iter().enumerate().flat_map(|(at, a)| self.arrived[..at].iter().map(|b| (*b, *a)))
        };
        if let Some((attempt, _)) = pairs().find(|(a, b)| (context.agree)(*a, *b)) {
            let others: Vec<usize> = self.arrived.clone();
            let wrong: Vec<usize> = others
                .into_iter()
                .filter(|other| *other != attempt && !(context.agree)(attempt, *other))
                .collect();
            self.blame(&wrong, attempt, actions);
            return Some(ReplicaAction::Accept { attempt });
        }
        match self.arrived.len() {
            1 if self.comparison == Comparison::Wish && !self.is_doubtful(first) => {
                let most = self.policy.deadline / 4 * 3;
                let until = *self.wish_until.get_or_insert((now * 2).max(now + LEAST_WISH).min(most));
                (now >= until).then_some(ReplicaAction::Accept { attempt: first })
            }
            1 | 2 => None,
            _ => Some(self.end_without_more()),
        }
    }

    fn blame(&mut self, attempts: &[usize], by: usize, actions: &mut Vec<ReplicaAction>) {
        for attempt in attempts {
            self.attempts[*attempt].stage = Stage::Ended;
            self.arrived.retain(|other| other != attempt);
            actions.push(ReplicaAction::Blame { attempt: *attempt, by });
        }
    }

    /// The end of a run to which nothing more can come.
    fn end_without_more(&self) -> ReplicaAction {
        match self.arrived[..] {
            [attempt] if self.comparison == Comparison::Wish && !self.is_doubtful(attempt) => {
                ReplicaAction::Accept { attempt }
            }
            [] | [_] => ReplicaAction::Fail,
            [_, _, ..] => ReplicaAction::Refuse,
        }
    }

    /// Asks more workers until as many results can come as are wanted.
    fn supply(&mut self, now: Duration, context: ReplicaContext<'_>, actions: &mut Vec<ReplicaAction>) {
        let begins = self.attempts.is_empty();
        let compared = if self.compares() { (self.arrived.len() + 1).clamp(2, 3) } else { 1 };
        let wanted = if begins { compared.max(self.policy.copies) } else { compared };
        while self.arrived.len() + self.live() < wanted {
            let why = match self.attempts.len() {
                0 => PartDispatch::First,
                asked if begins && asked < self.policy.copies => PartDispatch::Copy,
                _ if begins || !self.arrived.is_empty() => PartDispatch::Check,
                _ => PartDispatch::Redispatch,
            };
            if !self.ask(now, why, false, context, actions) {
                return;
            }
        }
    }

    /// Asks one more worker for each attempt that takes too long: an idle one, or any after twice the time.
    fn hedge(&mut self, now: Duration, context: ReplicaContext<'_>, actions: &mut Vec<ReplicaAction>) {
        let Some(after) = self.overdue_after(context.history) else { return };
        for index in 0..self.attempts.len() {
            let attempt = self.attempts[index];
            let waited = now.saturating_sub(attempt.since);
            let due = attempt.stage == Stage::Running && !attempt.given_up && !attempt.hedged;
            if !due || waited < after || self.live() >= self.most() {
                continue;
            }
            let idle_only = waited < after * 2;
            if self.ask(now, PartDispatch::Hedge, idle_only, context, actions) {
                self.attempts[index].hedged = true;
            }
        }
    }

    /// Lets the worker compute the part that will probably be done first; false if there is none.
    fn ask(
        &mut self,
        now: Duration,
        why: PartDispatch,
        idle_only: bool,
        context: ReplicaContext<'_>,
        actions: &mut Vec<ReplicaAction>,
    ) -> bool {
        let clock = self.started.saturating_add(now);
        let asked = |holder: &Holder| self.attempts.iter().any(|attempt| attempt.worker == holder.worker);
        let machine_asked = |holder: &Holder| self.attempts.iter().any(|a| a.machine == holder.machine);
        let rank = |holder: &Holder| {
            let finish = context.history.expected(holder.worker) * (holder.load as f64 + 1.0);
            (context.history.pauses(holder.worker, clock), machine_asked(holder), finish)
        };
        let admitted = |holder: &&Holder| holder.answers && !asked(holder) && (holder.spare || !idle_only);
        let ranked = context.holders.iter().filter(admitted).map(|holder| (rank(holder), *holder));
        let best = ranked.min_by(|((a, b, c), _), ((d, e, f), _)| (a, b).cmp(&(d, e)).then(c.total_cmp(f)));
        let Some((_, Holder { worker, machine, .. })) = best else { return false };
        let stage = Stage::Running;
        self.attempts.push(Attempt { worker, machine, since: now, stage, given_up: false, hedged: false });
        actions.push(ReplicaAction::Dispatch { worker, why });
        true
    }
}
