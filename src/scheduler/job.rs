//! One run of one layer: dispatch, gather, cancel the rest.
//!
//! Invariant: a run ends at its deadline at the latest, or as soon as its caller cancels it; no worker computes for it
//! afterwards.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::arrivals::{Arrival, Recorded};
use super::estimates::RunEstimates;
use super::fleet::Fleet;
use super::gather::{Action, Event, Gather};
use super::mailbox::{Mailbox, Taken};
use super::outcome::{Attempt, Decision, Outcome, RunOutcome, Traffic};
use super::policy::{Audit, OnShortfall, Policy};
use super::recovery::Recovery;
use super::slot::{Banks, InstallRequest, QueuedTask, Replies, Reply, ReplyKind};
use crate::array::{Buffers, Pooled, Values};
use crate::coding::Sketcher;
use crate::error::{Error, Message, Parameter};
use crate::ids::{SubtaskId, WorkerId};
use crate::worker::{CancelToken, FilterKey, PhaseClock, PhaseTimes, SharedSlabs, SubtaskShape};

/// Interval at which a run looks whether the machines that it waits for answer.
const WATCH: Duration = Duration::from_millis(100);

/// The coded filters of a layer, and the workers that hold them.
pub(crate) trait FilterHolders {
    /// Calls `dispatch` with every subtask and its worker, in order. Meanwhile no worker loses its filters, so that every
    /// task that is queued finds them.
    fn dispatch_all(&self, dispatch: &mut dyn FnMut(SubtaskId, WorkerId));

    /// Whether a worker holds the filters of a subtask, or they are on their way to it.
    fn holds(&self, subtask: SubtaskId, worker: WorkerId) -> bool;

    /// Coded filters for a worker that takes over a subtask; `None` if it holds them.
    fn take_over(&self, subtask: SubtaskId, worker: WorkerId) -> Option<Values>;
}

/// What all tasks of a run have in common.
pub(crate) struct JobLayer {
    /// The layer's number in filter keys.
    pub(crate) id: u64,
    pub(crate) shape: Arc<SubtaskShape>,
    /// Whether input and filters are finite, so that results must be finite too.
    pub(crate) finite: bool,
    /// Computes sketches; `None` without an audit.
    pub(crate) sketcher: Option<Arc<Sketcher>>,
}

/// The inputs of a run.
pub(crate) struct JobPlan<'a, F, R> {
    pub(crate) fleet: &'a F,
    pub(crate) layer: JobLayer,
    pub(crate) filters: &'a dyn FilterHolders,
    pub(crate) policy: Policy,
    pub(crate) estimates: RunEstimates,
    /// Coded slabs of each subtask.
    pub(crate) slabs: Vec<Arc<Pooled>>,
    /// Where buffers for results come from, and return to.
    pub(crate) buffers: Buffers,
    pub(crate) recovery: R,
    /// Ends the run with [`Error::Cancelled`].
    pub(crate) cancel: &'a CancelToken,
}

/// Cancels the job when its run ends, however it ends. Late replies are dropped once the job is dropped.
struct CancelOnDrop<'a, F: Fleet> {
    fleet: &'a F,
    /// One for each subtask, so that copies of a complete one stop while the run continues.
    tokens: Vec<CancelToken>,
}

impl<F: Fleet> Drop for CancelOnDrop<'_, F> {
    fn drop(&mut self) {
        for token in &self.tokens {
            self.fleet.cancel(token);
        }
    }
}

/// The identity of each subtask's slabs: the same for subtasks with the same slabs. Machines may drop their copies when the
/// run ends, however it ends.
struct ReleaseOnDrop(Vec<Arc<SharedSlabs>>);

impl ReleaseOnDrop {
    fn of(slabs: &[Arc<Pooled>]) -> Self {
        let mut all: Vec<Arc<SharedSlabs>> = Vec::with_capacity(slabs.len());
        for (at, own) in slabs.iter().enumerate() {
            // Either all subtasks share one buffer or each has its own.
            let same = slabs[..at].first().is_some_and(|first| Arc::ptr_eq(first, own));
            all.push(if same { Arc::clone(&all[0]) } else { Arc::new(SharedSlabs::new()) });
        }
        Self(all)
    }
}

impl Drop for ReleaseOnDrop {
    fn drop(&mut self) {
        for shared in &self.0 {
            shared.release();
        }
    }
}

/// Dispatches every subtask to its worker and gathers until the layer decodes, must be computed locally, or fails.
pub(crate) fn run_job<F: Fleet, R: Recovery>(plan: JobPlan<'_, F, R>) -> RunOutcome<R> {
    let (fleet, filters, cancel) = (plan.fleet, plan.filters, plan.cancel);
    let mut run = Run::new(plan);
    let layer = run.layer.id;
    tracing::debug_span!("dispatch", layer).in_scope(|| {
        filters.dispatch_all(&mut |subtask, worker| run.dispatch(subtask, worker, false, false));
    });
    let _span = tracing::debug_span!("gather", layer).entered();
    // A closed mailbox wakes the run at once.
    let replies = Arc::clone(&run.replies);
    let _hook = cancel.on_cancel(move || replies.close());
    let end = loop {
        let event = match fleet.wait(&run.replies, run.next_wake()) {
            _ if cancel.is_cancelled() => break Decision::Failed(Error::Cancelled),
            Taken::Item(reply) => run.take(reply),
            Taken::Timeout | Taken::Closed => {
                run.suspect();
                Some(Event::Tick)
            }
        };
        if let Some(event) = event {
            run.gather.handle(run.elapsed(), event);
        }
        if let Some(end) = run.act() {
            break end;
        }
    };
    run.close(end)
}

struct Run<'a, F: Fleet, R> {
    fleet: &'a F,
    layer: JobLayer,
    filters: &'a dyn FilterHolders,
    policy: Policy,
    slabs: Vec<Arc<Pooled>>,
    buffers: Buffers,
    cancel: CancelOnDrop<'a, F>,
    /// After `cancel`, so that tasks are cancelled first.
    shared: ReleaseOnDrop,
    replies: Arc<Replies>,
    started: Instant,
    gather: Gather<R>,
    attempts: Vec<Attempt>,
    traffic: Traffic,
    /// Whether any worker may fall silent.
    watches: bool,
    /// The attempts whose machines did not answer, each of which the gathering was told.
    suspects: Vec<usize>,
}

impl<'a, F: Fleet, R: Recovery> Run<'a, F, R> {
    fn new(plan: JobPlan<'a, F, R>) -> Self {
        let JobPlan { fleet, layer, filters, policy, estimates, slabs, buffers, recovery, .. } = plan;
        let n = slabs.len();
        Self {
            cancel: CancelOnDrop { fleet, tokens: (0..n).map(|_| CancelToken::new()).collect() },
            replies: Arc::new(Mailbox::new()),
            started: fleet.now(),
            gather: Gather::new(policy, estimates, n, layer.shape.sub_results(), recovery),
            attempts: Vec::with_capacity(n),
            traffic: Traffic::default(),
            shared: ReleaseOnDrop::of(&slabs),
            watches: fleet.ids().any(|worker| fleet.can_fall_silent(worker)),
            suspects: Vec::new(),
            fleet,
            layer,
            filters,
            policy,
            slabs,
            buffers,
        }
    }

    fn elapsed(&self) -> Duration {
        self.fleet.now().saturating_duration_since(self.started)
    }

    /// When to look again, if no reply comes before.
    fn next_wake(&self) -> Instant {
        let wake = self.started + self.gather.next_wake();
        if self.watches { wake.min(self.fleet.now() + WATCH) } else { wake }
    }

    /// Tells the gathering, once for each attempt, that its machine does not answer.
    fn suspect(&mut self) {
        if !self.watches {
            return;
        }
        let now = self.elapsed();
        for (index, attempt) in self.attempts.iter().enumerate().filter(|(_, attempt)| !attempt.ended) {
            if self.fleet.is_silent(attempt.worker) && !self.suspects.contains(&index) {
                self.suspects.push(index);
                self.gather.handle(now, Event::Suspected { subtask: attempt.subtask });
            }
        }
    }

    /// Dispatches a subtask to a worker. A `copy` computes the missing sub-results, last first, so that it meets the first
    /// attempt half-way.
    fn dispatch(&mut self, subtask: SubtaskId, worker: WorkerId, copy: bool, spare: bool) {
        self.traffic.bytes_up += self.slabs[subtask.0].size_bytes();
        let sub_results = self.layer.shape.sub_results();
        let rotated = |index: usize| (subtask.0 + index) % sub_results;
        let order: Option<Vec<usize>> = if copy {
            let missing = self.gather.arrivals().missing(subtask);
            Some((0..sub_results).rev().map(rotated).filter(|index| missing.contains(index)).collect())
        } else {
            self.policy.partial.then(|| (0..sub_results).map(rotated).collect())
        };
        let wanted = order.as_ref().map_or(sub_results, Vec::len);
        let attempt = self.attempts.len();
        let dispatched = self.fleet.now();
        let phases = Arc::new(PhaseClock::started(dispatched));
        self.attempts.push(Attempt {
            subtask,
            worker,
            // Preliminary; an attempt that has not ended becomes `Cancelled`.
            outcome: Outcome::Used,
            since: dispatched.saturating_duration_since(self.started),
            latency: None,
            phases: PhaseTimes::default(),
            clock: Arc::clone(&phases),
            arrived: 0,
            complete: false,
            spare,
            wanted,
            cause: None,
            dispatched,
            ended: false,
        });
        let task = QueuedTask {
            key: FilterKey { layer: self.layer.id, subtask },
            shape: Arc::clone(&self.layer.shape),
            slabs: Arc::clone(&self.slabs[subtask.0]),
            shared: Arc::clone(&self.shared.0[subtask.0]),
            order,
            finite: self.layer.finite,
            sketcher: self.layer.sketcher.clone(),
            cancel: self.cancel.tokens[subtask.0].clone(),
            attempt,
            replies: Arc::clone(&self.replies),
            buffers: self.buffers.clone(),
            phases,
        };
        self.fleet.execute(worker, task);
    }

    /// Carries out pending actions until there are none or the run is over.
    fn act(&mut self) -> Option<Decision> {
        while let Some(action) = self.gather.next_action() {
            match action {
                Action::Hedge { subtask, spare } => self.hand_out(subtask, Some(spare), true),
                Action::Redispatch(subtask) => self.hand_out(subtask, None, true),
                Action::Spare(subtask) => self.hand_out(subtask, None, false),
                Action::Decode => return Some(Decision::Decode),
                Action::Local => return Some(Decision::Local),
                Action::Refuse => return Some(Decision::Failed(self.contradiction())),
                Action::Fail => return Some(Decision::Failed(self.shortfall())),
            }
        }
        None
    }

    /// Gives a subtask to one more worker; with `hedge` only to an idle one (`Some(true)`: only if it takes no core from
    /// others). An attempt not `needed` to decode is not counted as redispatched.
    fn hand_out(&mut self, subtask: SubtaskId, hedge: Option<bool>, needed: bool) {
        // Never a worker that has tried this subtask or returned a corrupt result. Preferably none with a failure in this
        // run: a worker that is down fails at once and then looks idle again.
        let (mut barred, mut failed) = (vec![false; self.fleet.size()], vec![false; self.fleet.size()]);
        for attempt in &self.attempts {
            barred[attempt.worker.0] |= attempt.subtask == subtask || attempt.outcome == Outcome::Corrupt;
            failed[attempt.worker.0] |= attempt.outcome == Outcome::Failed;
        }
        let admitted = |w: WorkerId| !barred[w.0];
        let sound = |w: WorkerId| admitted(w) && !failed[w.0];
        let found = match hedge {
            // Encoding filters takes longer than most waits, so workers that hold them come first.
            Some(spare) => self
                .fleet
                .fastest_idle(spare, |w| sound(w) && self.filters.holds(subtask, w))
                .or_else(|| self.fleet.fastest_idle(spare, sound))
                .or_else(|| self.fleet.fastest_idle(spare, admitted)),
            None => self.fleet.least_loaded(sound).or_else(|| self.fleet.least_loaded(admitted)),
        };
        let hedge = hedge.is_some();
        let Some(worker) = found else {
            let event = if hedge { Event::Declined { subtask } } else { Event::Failed { subtask } };
            return self.gather.handle(self.elapsed(), event);
        };
        let how = if hedge { "hedged" } else { "redispatched" };
        tracing::info!(subtask = subtask.0, worker = self.fleet.name(worker), "{how}");
        if let Some(banks) = self.filters.take_over(subtask, worker) {
            let key = FilterKey { layer: self.layer.id, subtask };
            let request =
                InstallRequest { key, shape: Arc::clone(&self.layer.shape), banks: Banks::Coded(banks) };
            self.fleet.equip(worker, request);
        }
        if hedge {
            self.traffic.hedged += 1;
        } else {
            self.traffic.redispatched += usize::from(needed);
        }
        self.dispatch(subtask, worker, true, !needed);
    }

    /// Records a reply and returns its event for the gathering.
    fn take(&mut self, reply: Reply) -> Option<Event> {
        let attempt = &mut self.attempts[reply.attempt];
        if attempt.ended {
            return matches!(reply.what, ReplyKind::Finished).then_some(Event::Idle);
        }
        attempt.replied(reply.at, reply.phases);
        let subtask = attempt.subtask;
        let mut end = |outcome, cause| {
            attempt.ended = true;
            attempt.outcome = outcome;
            attempt.cause = Some(cause);
            Some(Event::Failed { subtask })
        };
        match reply.what {
            // Another attempt was faster, and what the subtask lacked has arrived.
            ReplyKind::Failed(Error::Cancelled) if self.gather.arrivals().is_complete(subtask) => {
                attempt.ended = true;
                attempt.outcome = Outcome::Cancelled;
                Some(Event::Idle)
            }
            ReplyKind::SubResult { index, values, sketch } => {
                let bytes = values.size_bytes();
                let (worker, attempt_number) = (attempt.worker, reply.attempt);
                let arrival = Arrival { subtask, index, worker, attempt: attempt_number, values, sketch };
                let now = self.fleet.now().saturating_duration_since(self.started);
                if self.gather.deliver(now, arrival) == Recorded::Unknown {
                    return end(Outcome::Corrupt, format!("returned an unknown sub-result {index}"));
                }
                self.traffic.bytes_down += bytes;
                attempt.arrived += 1;
                // The last sub-result completes the attempt, whether or not its `Finished` has arrived.
                attempt.ended = attempt.arrived == attempt.wanted;
                attempt.complete = attempt.ended;
                let ended = attempt.ended;
                if self.gather.arrivals().is_complete(subtask) {
                    if self.attempts.len() > self.slabs.len() {
                        self.fleet.cancel(&self.cancel.tokens[subtask.0]);
                    }
                    return None;
                }
                // The attempt delivered everything it was asked for, but the subtask still lacks sub-results: a copy was
                // faster with some, and has not delivered the others.
                ended.then_some(Event::Failed { subtask })
            }
            ReplyKind::Finished => end(Outcome::Failed, "it stopped before its last sub-result".to_owned()),
            ReplyKind::Unusable { cause } => {
                tracing::warn!(
                    worker = self.fleet.name(attempt.worker),
                    subtask = subtask.0,
                    cause,
                    "corrupt result"
                );
                end(Outcome::Corrupt, cause)
            }
            ReplyKind::Failed(error) => end(Outcome::Failed, error.to_string()),
        }
    }

    /// Records the outcome of every attempt, and its effect on the worker's health.
    fn close(self, end: Decision) -> RunOutcome<R> {
        let (wait, now) = (self.elapsed(), self.fleet.now());
        let Self { fleet, policy, gather, mut attempts, traffic, replies, .. } = self;
        for attempt in &mut attempts {
            attempt.decided(now);
        }
        let (recovery, arrivals) = gather.into_parts();
        let mut used = vec![false; attempts.len()];
        if matches!(end, Decision::Decode) {
            for (subtask, index) in recovery.used(&arrivals) {
                if let Some(arrival) = arrivals.get(subtask, index) {
                    used[arrival.attempt] = true;
                }
            }
        }
        for (attempt, used) in attempts.iter_mut().zip(&used) {
            if recovery.faulty().contains(&attempt.worker) && attempt.arrived > 0 {
                attempt.outcome = Outcome::Corrupt;
                attempt.cause = Some("contradicts the other results".to_owned());
            }
            if attempt.outcome == Outcome::Used && !used {
                attempt.outcome = if attempt.complete { Outcome::Late } else { Outcome::Cancelled };
            }
        }
        if matches!(end, Decision::Decode) {
            // Finite results exist, so a rejected result is the worker's own fault and no overflow.
            for attempt in attempts.iter().filter(|a| a.outcome == Outcome::Corrupt) {
                fleet.flag(attempt.worker, attempt.cause.as_deref().unwrap_or("corrupt result"));
            }
        }
        fleet.review(attempts.iter().filter(|a| a.outcome == Outcome::Used).map(|a| a.worker));
        RunOutcome {
            end,
            recovery,
            arrivals,
            attempts,
            wait,
            left: policy.deadline.saturating_sub(wait),
            traffic,
            replies,
        }
    }

    /// The names of the workers of some attempts, each once.
    fn names<'b>(&self, attempts: impl Iterator<Item = &'b Attempt>) -> String {
        let mut names: Vec<&str> = attempts.map(|a| self.fleet.name(a.worker)).collect();
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    }

    /// The error for a contradiction that the audit cannot resolve.
    fn contradiction(&self) -> Error {
        Error::Corrupted {
            results: self.gather.arrivals().complete().len(),
            threshold: self.gather.recovery().needed(),
            workers: self.names(self.attempts.iter().filter(|a| a.arrived > 0)),
            help: match self.policy.audit {
                Audit::Detect => Message::from("use ")
                    .and(Parameter::Audit)
                    .and(" correct with two spare results for each liar, or replace workers"),
                _ => Message::from("more spare results (")
                    .and(Parameter::Subtasks)
                    .and(", ")
                    .and(Parameter::Tolerate)
                    .and(") would tell who: two for each liar"),
            },
        }
    }

    /// The error for too few results: which subtasks are missing, and why.
    fn shortfall(&self) -> Error {
        let (fleet, needed) = (self.fleet, self.gather.recovery().needed());
        let arrived = self.gather.arrivals().complete().len();
        let corrupt = || self.attempts.iter().filter(|a| a.outcome == Outcome::Corrupt);
        let failed =
            |subtask| self.attempts.iter().any(|a| a.subtask == subtask && a.outcome == Outcome::Failed);
        let honest = self.gather.arrivals().subtasks().filter(|subtask| !failed(*subtask)).count();
        // Without failures alone there would be enough results: what came back was corrupt.
        let in_time = self.elapsed() < self.policy.deadline;
        if corrupt().count() > 0 && in_time && honest >= needed {
            return Error::NonFiniteResults {
                count: corrupt().count(),
                total: self.attempts.len(),
                dtype: self.slabs[0].dtype().name(),
                workers: self.names(corrupt()),
            };
        }
        let waited = self.elapsed();
        let mut missing = String::new();
        for attempt in &self.attempts {
            if self.gather.arrivals().is_complete(attempt.subtask) {
                continue;
            }
            let why = match &attempt.cause {
                Some(cause) => cause.as_str(),
                None if waited < self.policy.deadline => "still at work",
                None => "no answer",
            };
            let separator = if missing.is_empty() { "" } else { ", " };
            // Writing to a String cannot fail.
            let _ = write!(
                missing,
                "{separator}subtask {} on {} ({why})",
                attempt.subtask,
                fleet.name(attempt.worker)
            );
        }
        let mut help = Message::default();
        if waited >= self.policy.deadline {
            help = help.and("raise ").and(Parameter::Deadline).and(", ");
        }
        if self.policy.on_shortfall == OnShortfall::Fail {
            help = help.and("allow ").and(Parameter::OnShortfall).and(" redispatch, ");
        }
        let help = help.and("add workers or lower the recovery threshold");
        Error::Shortfall {
            needed,
            total: self.slabs.len(),
            arrived,
            waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            missing,
            help,
        }
    }
}
