//! One run of a part of a model on the workers that hold it: dispatch, wait, compare, cancel the rest.
//!
//! Invariant: a run ends at its deadline at the latest, or as soon as its caller cancels it; no worker computes for it
//! afterwards.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::fleet::Fleet;
use super::mailbox::{Mailbox, Taken};
use super::outcome::Outcome;
use super::part_task::{PartReplies, PartReply, PartReplyKind, QueuedPart};
use super::pool::Pool;
use super::replica_history::ReplicaHistory;
use super::replicas::{
    Comparison, Holder, PartDispatch, ReplicaAction, ReplicaContext, ReplicaEvent, ReplicaPolicy, Replicas,
};
use crate::array::{Element, Values};
use crate::error::{Error, Message, Parameter, Result};
use crate::ids::WorkerId;
use crate::sync::locked;
use crate::worker::{CancelToken, PartArray, PartKey, PartSignature};

/// Interval at which a run looks whether the machines that it waits for answer.
const WATCH: Duration = Duration::from_millis(100);

/// The inputs of a run.
pub(crate) struct PartJob<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) key: PartKey,
    pub(crate) signature: &'a Arc<PartSignature>,
    pub(crate) inputs: Arc<[Values]>,
    pub(crate) policy: ReplicaPolicy,
    pub(crate) comparison: Comparison,
    /// Largest difference between outputs that agree, relative to the largest magnitude of the output.
    pub(crate) tolerance: f64,
    pub(crate) history: &'a Mutex<ReplicaHistory>,
    /// Start of the clock of `history`.
    pub(crate) origin: Instant,
    pub(crate) cancel: &'a CancelToken,
}

/// What happened in one run of a part.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PartReport {
    /// Name of the worker whose outputs were used; `None` where there are none.
    pub worker: Option<String>,
    /// Whether another worker confirmed the outputs.
    pub confirmed: bool,
    /// Every worker that was asked, in order.
    pub attempts: Vec<PartAttempt>,
    /// Workers that were asked because another one took long.
    pub hedged: usize,
    /// Workers that were asked because another one failed or did not answer.
    pub redispatched: usize,
    /// Bytes of inputs that were sent to workers.
    pub bytes_up: usize,
    /// Bytes of outputs that arrived.
    pub bytes_down: usize,
    /// Time of the whole run, in milliseconds.
    pub total_ms: f64,
}

/// One worker that was asked to compute a part.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PartAttempt {
    /// The worker.
    pub worker: WorkerId,
    /// Its name.
    pub name: String,
    /// Why it was asked.
    pub why: PartDispatch,
    /// What became of it. Outputs that confirm those used are used too.
    pub outcome: Outcome,
    /// Cause of a failure, or what is wrong with its outputs.
    pub cause: Option<String>,
    /// Time from the start of the run to its dispatch, in milliseconds.
    pub since_ms: f64,
    /// Time from its dispatch to its answer, in milliseconds; `None` without one.
    pub latency_ms: Option<f64>,
}

/// Runs a part until one worker's outputs count, or none can come.
///
/// # Errors
/// [`Error::Cancelled`]; [`Error::Shortfall`] if no result came, [`Error::NonFiniteResults`] or [`Error::Corrupted`] if
/// none can be believed.
pub(crate) fn run_part_job(job: PartJob<'_>) -> (Result<Vec<Values>>, PartReport) {
    let started = Instant::now();
    let mut run = Run::new(job, started);
    let _span = tracing::debug_span!("part", part = run.job.key.0).entered();
    // A closed mailbox wakes the run at once.
    let replies = Arc::clone(&run.replies);
    let _hook = run.job.cancel.on_cancel(move || replies.close());
    let mut event = ReplicaEvent::Tick;
    let end = loop {
        if run.job.cancel.is_cancelled() {
            break Err(Error::Cancelled);
        }
        if let Some(end) = run.advance(event) {
            break end;
        }
        event = match run.replies.take(Some(run.next_wake())) {
            Taken::Item(reply) => run.take(reply),
            Taken::Timeout | Taken::Closed => run.suspect().unwrap_or(ReplicaEvent::Tick),
        };
    };
    run.close(end)
}

struct Run<'a> {
    job: PartJob<'a>,
    machine: Replicas,
    replies: Arc<PartReplies>,
    started: Instant,
    attempts: Vec<Attempt>,
    /// Whether any worker may fall silent.
    watches: bool,
    finite: bool,
}

struct Attempt {
    worker: WorkerId,
    why: PartDispatch,
    since: Instant,
    /// Tasks that preceded it in the queue of its worker.
    ahead: usize,
    cancel: CancelToken,
    latency: Option<Duration>,
    outputs: Option<Vec<Values>>,
    outcome: Option<Outcome>,
    cause: Option<String>,
    suspected: bool,
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.replies.close();
        self.attempts.iter().for_each(|attempt| attempt.cancel.cancel());
    }
}

impl<'a> Run<'a> {
    fn new(job: PartJob<'a>, started: Instant) -> Self {
        let finite = job.inputs.iter().all(|values| values.first_non_finite().is_none());
        let offset = started.saturating_duration_since(job.origin);
        locked(job.history).begin();
        Self {
            machine: Replicas::new(job.policy, job.comparison, finite, offset),
            replies: Arc::new(Mailbox::new()),
            started,
            attempts: Vec::new(),
            watches: job.pool.ids().any(|worker| job.pool.can_fall_silent(worker)),
            finite,
            job,
        }
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn next_wake(&self) -> Instant {
        let wake = self.machine.next_wake(self.elapsed(), &locked(self.job.history));
        let wake = self.started + wake.min(self.job.policy.deadline);
        if self.watches { wake.min(Instant::now() + WATCH) } else { wake }
    }

    /// The first attempt whose machine has fallen silent.
    fn suspect(&mut self) -> Option<ReplicaEvent> {
        let pool = self.job.pool;
        let silent = |a: &Attempt| a.outcome.is_none() && !a.suspected && pool.is_silent(a.worker);
        let attempt = self.attempts.iter().position(silent)?;
        self.attempts[attempt].suspected = true;
        Some(ReplicaEvent::Suspected { attempt })
    }

    /// Records a reply and returns its event.
    fn take(&mut self, reply: PartReply) -> ReplicaEvent {
        let index = reply.attempt;
        let attempt = &mut self.attempts[index];
        let latency = reply.at.saturating_duration_since(attempt.since);
        attempt.latency = Some(latency);
        let (outcome, cause) = match reply.what {
            PartReplyKind::Outputs { values, finite } => {
                locked(self.job.history).observe(attempt.worker, reply.busy, latency);
                // Preliminary: it may turn out not to be needed.
                attempt.outcome = Some(Outcome::Late);
                attempt.outputs = Some(values);
                return ReplicaEvent::Arrived { attempt: index, finite };
            }
            PartReplyKind::Unusable(error) => {
                self.job.pool.flag(attempt.worker, &error.to_string());
                (Outcome::Corrupt, error.to_string())
            }
            PartReplyKind::Failed(error) => (Outcome::Failed, error.to_string()),
        };
        tracing::info!(worker = self.job.pool.name(attempt.worker), cause, "part failed");
        attempt.outcome = Some(outcome);
        attempt.cause = Some(cause);
        let now = self.job.origin.elapsed();
        locked(self.job.history).failed(attempt.worker, now);
        ReplicaEvent::Failed { attempt: index }
    }

    /// Tells the state machine an event and carries out its actions; the end of the run if it is one.
    fn advance(&mut self, event: ReplicaEvent) -> Option<Result<Vec<Values>>> {
        let holders = self.job.pool.part_holders(self.job.key);
        let now = self.elapsed();
        // Comparing outputs takes a while, so the history stays free for other runs.
        let history = locked(self.job.history).clone();
        let actions = {
            let (attempts, tolerance) = (&self.attempts, self.job.tolerance);
            let agree = |a: usize, b: usize| match (&attempts[a].outputs, &attempts[b].outputs) {
                (Some(a), Some(b)) => difference(a, b) <= tolerance,
                _ => false,
            };
            let context = ReplicaContext { holders: &holders, history: &history, agree: &agree };
            self.machine.handle(now, event, context)
        };
        for action in actions {
            match action {
                ReplicaAction::Dispatch { worker, why } => self.dispatch(worker, why, &holders),
                ReplicaAction::Blame { attempt, by } => self.blame(attempt, by),
                ReplicaAction::Accept { attempt } => return Some(Ok(self.accept(attempt))),
                ReplicaAction::Refuse => return Some(Err(self.contradiction())),
                ReplicaAction::Fail => return Some(Err(self.shortfall(&holders))),
            }
        }
        None
    }

    fn dispatch(&mut self, worker: WorkerId, why: PartDispatch, holders: &[Holder]) {
        let pool = self.job.pool;
        if !matches!(why, PartDispatch::First | PartDispatch::Copy) {
            tracing::info!(part = self.job.key.0, worker = pool.name(worker), ?why, "one more worker");
        }
        let (attempt, cancel) = (self.attempts.len(), CancelToken::new());
        self.attempts.push(Attempt {
            worker,
            why,
            since: Instant::now(),
            ahead: holders.iter().find(|holder| holder.worker == worker).map_or(0, |holder| holder.load),
            cancel: cancel.clone(),
            latency: None,
            outputs: None,
            outcome: None,
            cause: None,
            suspected: false,
        });
        let part = QueuedPart {
            key: self.job.key,
            inputs: Arc::clone(&self.job.inputs),
            signature: Arc::clone(self.job.signature),
            cancel,
            attempt,
            replies: Arc::clone(&self.replies),
        };
        pool.run_part(worker, part);
    }

    /// Records that outputs are wrong, by those of another attempt.
    fn blame(&mut self, attempt: usize, by: usize) {
        let pool = self.job.pool;
        let (wrong, right) = (&self.attempts[attempt], &self.attempts[by]);
        let difference = match (&wrong.outputs, &right.outputs) {
            (Some(a), Some(b)) => difference(a, b),
            _ => f64::INFINITY,
        };
        let cause = format!(
            "its outputs of a part differ from those of {} by {difference:.3e} of their largest magnitude, at most {:.3e} expected",
            pool.name(right.worker),
            self.job.tolerance
        );
        pool.flag(wrong.worker, &cause);
        let wrong = &mut self.attempts[attempt];
        wrong.outcome = Some(Outcome::Corrupt);
        wrong.cause = Some(cause);
        wrong.outputs = None;
    }

    fn accept(&mut self, accepted: usize) -> Vec<Values> {
        let outputs = self.attempts[accepted].outputs.take().unwrap_or_default();
        for (index, attempt) in self.attempts.iter_mut().enumerate() {
            let confirms = attempt.outputs.as_ref().is_some_and(|own| {
                attempt.outcome == Some(Outcome::Late) && difference(own, &outputs) <= self.job.tolerance
            });
            if index == accepted || self.job.comparison != Comparison::Off && confirms {
                attempt.outcome = Some(Outcome::Used);
                self.job.pool.accept(attempt.worker);
            }
        }
        outputs
    }

    /// Ends the run: cancels what is under way, and records its outcome.
    fn close(mut self, end: Result<Vec<Values>>) -> (Result<Vec<Values>>, PartReport) {
        self.attempts.iter().for_each(|attempt| attempt.cancel.cancel());
        for reply in self.replies.drain() {
            let attempt = &mut self.attempts[reply.attempt];
            if matches!(reply.what, PartReplyKind::Outputs { .. }) && attempt.outcome.is_none() {
                let latency = reply.at.saturating_duration_since(attempt.since);
                attempt.latency = Some(latency);
                attempt.outcome = Some(Outcome::Late);
                locked(self.job.history).observe(attempt.worker, reply.busy, latency);
            }
        }
        if !matches!(end, Err(Error::Cancelled)) {
            for attempt in self.attempts.iter().filter(|attempt| attempt.outcome.is_none()) {
                let time = attempt.since.elapsed();
                locked(self.job.history).censored(attempt.worker, time, attempt.ahead);
            }
        }
        let report = self.report();
        (end, report)
    }

    fn report(&self) -> PartReport {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let pool = self.job.pool;
        let row = |attempt: &Attempt| PartAttempt {
            worker: attempt.worker,
            name: pool.name(attempt.worker).to_owned(),
            why: attempt.why,
            outcome: attempt.outcome.unwrap_or(Outcome::Cancelled),
            cause: attempt.cause.clone(),
            since_ms: ms(attempt.since.saturating_duration_since(self.started)),
            latency_ms: attempt.latency.map(ms),
        };
        let attempts: Vec<PartAttempt> = self.attempts.iter().map(row).collect();
        let count = |why| attempts.iter().filter(|attempt| attempt.why == why).count();
        let used = || attempts.iter().filter(|attempt| attempt.outcome == Outcome::Used);
        let delivered =
            attempts.iter().filter(|a| matches!(a.outcome, Outcome::Used | Outcome::Late | Outcome::Corrupt));
        let bytes: usize = self.job.inputs.iter().map(Values::size_bytes).sum();
        let each: usize = self.job.signature.outputs.iter().filter_map(PartArray::size_bytes).sum();
        // The outputs of the accepted attempt were taken out of it.
        let accepted = self.attempts.iter().find(|a| a.outcome == Some(Outcome::Used) && a.outputs.is_none());
        PartReport {
            worker: accepted.map(|attempt| pool.name(attempt.worker).to_owned()),
            confirmed: used().count() > 1,
            hedged: count(PartDispatch::Hedge),
            redispatched: count(PartDispatch::Redispatch),
            bytes_up: bytes * attempts.len(),
            bytes_down: each * delivered.count(),
            total_ms: ms(self.elapsed()),
            attempts,
        }
    }

    fn arrived(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|attempt| attempt.outputs.is_some())
    }

    fn names<'b>(&self, attempts: impl Iterator<Item = &'b Attempt>) -> String {
        attempts.map(|attempt| self.job.pool.name(attempt.worker)).collect::<Vec<_>>().join(", ")
    }

    /// The error for results of which no two agree.
    fn contradiction(&self) -> Error {
        let help =
            "a third worker that holds the part would tell which are wrong; or compute it on this machine";
        Error::Corrupted {
            results: self.arrived().count(),
            threshold: 2,
            workers: self.names(self.arrived()),
            help: help.into(),
        }
    }

    /// The error for too few results: which workers failed, and why.
    fn shortfall(&self, holders: &[Holder]) -> Error {
        let waited = self.elapsed();
        let arrived = self.arrived().count();
        if self.finite && arrived > 0 && self.job.comparison == Comparison::Off {
            return Error::NonFiniteResults {
                count: arrived,
                total: self.attempts.len(),
                dtype: self.job.signature.outputs.first().map_or("f32", |output| output.dtype.name()),
                workers: self.names(self.arrived()),
            };
        }
        let mut missing = String::new();
        let mut note = |name: &str, why: &str| {
            let separator = if missing.is_empty() { "" } else { ", " };
            // Writing to a String cannot fail.
            let _ = write!(missing, "{separator}{name} ({why})");
        };
        for attempt in self.attempts.iter().filter(|attempt| attempt.outputs.is_none()) {
            note(self.job.pool.name(attempt.worker), attempt.cause.as_deref().unwrap_or("no answer"));
        }
        let asked = |holder: &&Holder| self.attempts.iter().any(|a| a.worker == holder.worker);
        for holder in holders.iter().filter(|holder| !asked(holder)) {
            let health = self.job.pool.health(holder.worker);
            let cause = health.and_then(|health| health.cause);
            note(self.job.pool.name(holder.worker), cause.as_deref().unwrap_or("does not answer"));
        }
        let help = if waited >= self.job.policy.deadline {
            Message::from("raise ").and(Parameter::Deadline).and(", or let more workers hold the part")
        } else {
            Message::from("let more workers hold the part")
        };
        Error::Shortfall {
            needed: if self.job.comparison == Comparison::Required { 2 } else { 1 },
            total: holders.len(),
            arrived,
            waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            missing,
            help,
        }
    }
}

/// The largest difference between two lists of outputs, relative to the largest magnitude of the output; infinite where one
/// of two elements is not finite, or sizes differ.
fn difference(a: &[Values], b: &[Values]) -> f64 {
    fn of<T: Element>(a: &[T], b: &[T]) -> f64 {
        let (mut largest, mut apart) = (0.0_f64, 0.0_f64);
        for (a, b) in a.iter().zip(b) {
            let (a, b) = (a.to_f64(), b.to_f64());
            if a == b || a.is_nan() && b.is_nan() {
                if a.is_finite() {
                    largest = largest.max(a.abs());
                }
                continue;
            }
            if !(a.is_finite() && b.is_finite()) {
                return f64::INFINITY;
            }
            largest = largest.max(a.abs()).max(b.abs());
            apart = apart.max((a - b).abs());
        }
        if apart == 0.0 { 0.0 } else { apart / largest }
    }
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let pair = |(a, b): (&Values, &Values)| match (a, b) {
        (Values::F32(a), Values::F32(b)) if a.len() == b.len() => of(a, b),
        (Values::F64(a), Values::F64(b)) if a.len() == b.len() => of(a, b),
        _ => f64::INFINITY,
    };
    a.iter().zip(b).map(pair).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_relative_to_the_largest_magnitude_and_infinite_where_one_is_not_finite() {
        let of = |values: &[f32]| vec![Values::F32(values.to_vec())];
        assert_eq!(difference(&of(&[4.0, 1.0]), &of(&[4.0, 1.0])), 0.0);
        assert_eq!(difference(&of(&[4.0, 1.0]), &of(&[4.0, 2.0])), 0.25);
        assert_eq!(difference(&of(&[f32::NAN, f32::INFINITY]), &of(&[f32::NAN, f32::INFINITY])), 0.0);
        assert_eq!(difference(&of(&[f32::NAN]), &of(&[1.0])), f64::INFINITY);
        assert_eq!(difference(&of(&[f32::INFINITY]), &of(&[f32::NEG_INFINITY])), f64::INFINITY);
        assert_eq!(difference(&of(&[1.0]), &of(&[1.0, 2.0])), f64::INFINITY);
        assert_eq!(difference(&of(&[1.0]), &[]), f64::INFINITY);
        assert_eq!(difference(&of(&[1.0]), &[Values::F64(vec![1.0])]), f64::INFINITY);
    }
}
