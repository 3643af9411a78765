//! One run of one layer: dispatch, gather, cancel the rest.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use serde::Serialize;

use super::gather::{Action, Event, Gather};
use super::policy::{OnShortfall, Policy};
use super::pool::{InstallRequest, Pool, Reply, ReplyKind, Task};
use crate::array::Values;
use crate::error::{Error, Result};
use crate::worker::{CancelToken, FilterKey, SubtaskShape};

/// What became of one attempt at a subtask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Its results went into the output.
    Used,
    /// It was complete, but after decoding had begun.
    Late,
    /// It was not complete when it was no longer needed.
    Cancelled,
    /// The worker was lost or reported a failure.
    Failed,
    /// It returned something that cannot be right.
    Corrupt,
    /// The worker had nothing to do.
    Idle,
}

/// One attempt at a subtask.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) subtask: usize,
    pub(crate) worker: usize,
    pub(crate) outcome: Outcome,
    /// From its dispatch to its last reply; `None` when there was none.
    pub(crate) latency: Option<Duration>,
    cause: Option<String>,
    dispatched: Instant,
    arrived: usize,
    /// No more is expected of it.
    ended: bool,
}

/// What a run needs to know; everything else is a value that travels.
pub(crate) struct JobPlan<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) layer: u64,
    pub(crate) shape: &'a Arc<SubtaskShape>,
    pub(crate) policy: Policy,
    /// delta, for the error text.
    pub(crate) needed: usize,
    /// Whether input and filters are finite, so that results must be.
    pub(crate) finite: bool,
    /// Coded slabs of each subtask.
    pub(crate) slabs: Vec<Arc<Values>>,
    /// The worker that holds the filters of each subtask.
    pub(crate) homes: &'a [usize],
    pub(crate) can_decode: &'a dyn Fn(&[usize]) -> bool,
    /// Coded filters of a subtask for a worker that does not hold them yet; `None` when it does.
    pub(crate) filters: &'a dyn Fn(usize, usize) -> Option<Values>,
}

/// The end of the gathering.
pub(crate) struct Gathered {
    /// Subtasks to decode from, sorted, or `None` when the layer is to be computed locally.
    pub(crate) decode: Option<Vec<usize>>,
    /// Sub-results by subtask, then by index.
    pub(crate) results: Vec<Vec<Option<Values>>>,
    pub(crate) attempts: Vec<Attempt>,
    /// From first dispatch to the decision.
    pub(crate) wait: Duration,
    /// What is left of the deadline.
    pub(crate) left: Duration,
    pub(crate) bytes_up: usize,
    pub(crate) bytes_down: usize,
    pub(crate) redispatched: usize,
    replies: Receiver<Reply>,
}

impl Gathered {
    /// Looks once more at who has answered meanwhile: complete attempts that were not needed become *late*.
    pub(crate) fn settle(&mut self) {
        while let Ok(reply) = self.replies.try_recv() {
            let attempt = &mut self.attempts[reply.attempt];
            if let (ReplyKind::Finished, Outcome::Cancelled) = (&reply.what, attempt.outcome) {
                attempt.outcome = Outcome::Late;
                attempt.latency = Some(reply.at.saturating_duration_since(attempt.dispatched));
            }
        }
    }
}

/// Cancels the job when its run ends, however it ends.
struct CancelOnDrop(CancelToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Dispatches every subtask and gathers until the layer decodes, must be computed locally, or fails.
///
/// # Errors
/// [`Error::Shortfall`] or, when workers answered but with results that cannot be right,
/// [`Error::NonFiniteResults`].
pub(crate) fn run_job(plan: JobPlan<'_>) -> Result<Gathered> {
    let (n, sub_results) = (plan.slabs.len(), plan.shape.sub_results());
    let (sender, replies) = unbounded();
    let token = CancelOnDrop(CancelToken::new());
    let mut run = Run {
        plan: &plan,
        token: &token.0,
        sender,
        started: Instant::now(),
        gather: Gather::new(plan.policy, n, sub_results, plan.can_decode),
        results: (0..n).map(|_| (0..sub_results).map(|_| None).collect()).collect(),
        attempts: Vec::with_capacity(n),
        bytes_up: 0,
        bytes_down: 0,
        redispatched: 0,
    };
    {
        let _span = tracing::debug_span!("dispatch", layer = plan.layer).entered();
        for subtask in 0..n {
            run.dispatch(subtask, plan.homes[subtask]);
        }
    }
    let _span = tracing::debug_span!("gather", layer = plan.layer).entered();
    loop {
        let event = match replies.recv_deadline(run.started + run.gather.next_wake()) {
            Ok(reply) => run.take(reply),
            // Disconnected cannot be while `run` holds a sender; time moves the machine to its end all the same.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Some(Event::Tick),
        };
        if let Some(event) = event {
            run.gather.handle(run.started.elapsed(), event);
        }
        while let Some(action) = run.gather.next_action() {
            let decode = match action {
                Action::Redispatch(subtask) => {
                    run.redispatch(subtask);
                    continue;
                }
                Action::Decode(set) => Some(set),
                Action::Local => None,
                Action::Fail => return Err(run.shortfall()),
            };
            let wait = run.started.elapsed();
            let Run { results, mut attempts, bytes_up, bytes_down, redispatched, .. } = run;
            for attempt in &mut attempts {
                let complete = attempt.ended && attempt.outcome == Outcome::Used;
                if attempt.outcome == Outcome::Used
                    && !(complete && decode.as_ref().is_some_and(|set| set.contains(&attempt.subtask)))
                {
                    attempt.outcome = if complete { Outcome::Late } else { Outcome::Cancelled };
                }
            }
            let left = plan.policy.deadline.saturating_sub(wait);
            return Ok(Gathered {
                decode,
                results,
                attempts,
                wait,
                left,
                bytes_up,
                bytes_down,
                redispatched,
                replies,
            });
        }
    }
}

struct Run<'a, F> {
    plan: &'a JobPlan<'a>,
    token: &'a CancelToken,
    sender: Sender<Reply>,
    started: Instant,
    gather: Gather<F>,
    results: Vec<Vec<Option<Values>>>,
    attempts: Vec<Attempt>,
    bytes_up: usize,
    bytes_down: usize,
    redispatched: usize,
}

impl<F: Fn(&[usize]) -> bool> Run<'_, F> {
    fn dispatch(&mut self, subtask: usize, worker: usize) {
        self.bytes_up += self.plan.slabs[subtask].size_bytes();
        let attempt = self.attempts.len();
        self.attempts.push(Attempt {
            subtask,
            worker,
            // Until something else is known; an attempt that has not ended becomes `Cancelled`.
            outcome: Outcome::Used,
            latency: None,
            cause: None,
            dispatched: Instant::now(),
            arrived: 0,
            ended: false,
        });
        let task = Task {
            key: FilterKey { layer: self.plan.layer, subtask },
            shape: Arc::clone(self.plan.shape),
            slabs: Arc::clone(&self.plan.slabs[subtask]),
            finite: self.plan.finite,
            cancel: self.token.clone(),
            attempt,
            replies: self.sender.clone(),
        };
        self.plan.pool.execute(worker, task);
    }

    fn redispatch(&mut self, subtask: usize) {
        let tried = |w: usize| self.attempts.iter().any(|a| a.subtask == subtask && a.worker == w);
        let corrupt = |w: usize| self.attempts.iter().any(|a| a.worker == w && a.outcome == Outcome::Corrupt);
        let Some(worker) = self.plan.pool.least_loaded(|w| !tried(w) && !corrupt(w)) else {
            self.gather.handle(self.started.elapsed(), Event::Failed { subtask });
            return;
        };
        tracing::info!(subtask, worker = self.plan.pool.name(worker), "redispatched");
        if let Some(banks) = (self.plan.filters)(subtask, worker) {
            let key = FilterKey { layer: self.plan.layer, subtask };
            let request = InstallRequest { key, shape: Arc::clone(self.plan.shape), banks };
            // Commands are served in order; a failed installation shows as a failed task.
            self.plan.pool.install(worker, request, &unbounded().0);
        }
        self.redispatched += 1;
        self.dispatch(subtask, worker);
    }

    /// Books a reply and says what it means to the gathering.
    fn take(&mut self, reply: Reply) -> Option<Event> {
        let attempt = &mut self.attempts[reply.attempt];
        if attempt.ended {
            return None;
        }
        attempt.latency = Some(reply.at.saturating_duration_since(attempt.dispatched));
        let subtask = attempt.subtask;
        let mut end = |outcome, cause| {
            attempt.ended = true;
            attempt.outcome = outcome;
            attempt.cause = Some(cause);
            Some(Event::Failed { subtask })
        };
        match reply.what {
            ReplyKind::SubResult { index, values } => {
                let Some(slot) = self.results[subtask].get_mut(index) else {
                    return end(Outcome::Corrupt, format!("returned an unknown sub-result {index}"));
                };
                self.bytes_down += values.size_bytes();
                attempt.arrived += 1;
                // The last one makes the attempt complete whether or not its `Finished` has come yet.
                attempt.ended = attempt.arrived == self.plan.shape.sub_results();
                if slot.is_none() {
                    *slot = Some(values);
                }
                Some(Event::SubResult { subtask, index })
            }
            ReplyKind::Finished => end(Outcome::Failed, "it stopped before its last sub-result".to_owned()),
            ReplyKind::Unusable { cause } => {
                tracing::warn!(
                    worker = self.plan.pool.name(attempt.worker),
                    subtask,
                    cause,
                    "corrupt result"
                );
                end(Outcome::Corrupt, cause)
            }
            ReplyKind::Failed(error) => end(Outcome::Failed, error.to_string()),
        }
    }

    /// Who is missing and why, as the error the caller gets.
    fn shortfall(&self) -> Error {
        let pool = self.plan.pool;
        let arrived = self.gather.complete().len();
        let corrupt: Vec<&Attempt> = self.attempts.iter().filter(|a| a.outcome == Outcome::Corrupt).collect();
        let failed =
            |subtask| self.attempts.iter().any(|a| a.subtask == subtask && a.outcome == Outcome::Failed);
        let honest = (0..self.plan.slabs.len()).filter(|subtask| !failed(*subtask)).count();
        // Without the failures alone there would be enough: what is wrong with this run is what came back.
        let in_time = self.started.elapsed() < self.plan.policy.deadline;
        if !corrupt.is_empty() && in_time && honest >= self.plan.needed {
            let mut names: Vec<&str> = corrupt.iter().map(|a| pool.name(a.worker)).collect();
            names.sort_unstable();
            names.dedup();
            return Error::NonFiniteResults {
                count: corrupt.len(),
                total: self.attempts.len(),
                dtype: self.plan.slabs[0].dtype().name(),
                workers: names.join(", "),
            };
        }
        let waited = self.started.elapsed();
        let mut missing = String::new();
        for attempt in &self.attempts {
            if self.gather.complete().contains(&attempt.subtask) {
                continue;
            }
            let why = match &attempt.cause {
                Some(cause) => cause.as_str(),
                None => "no answer yet",
            };
            let separator = if missing.is_empty() { "" } else { ", " };
            // Writing to a String cannot fail.
            let _ = write!(
                missing,
                "{separator}subtask {} on {} ({why})",
                attempt.subtask,
                pool.name(attempt.worker)
            );
        }
        let mut mend = String::new();
        if waited >= self.plan.policy.deadline {
            mend.push_str("raise --deadline, ");
        }
        if self.plan.policy.on_shortfall == OnShortfall::Fail {
            mend.push_str("allow --on-shortfall redispatch, ");
        }
        mend.push_str("add workers or lower the recovery threshold");
        Error::Shortfall {
            needed: self.plan.needed,
            total: self.plan.slabs.len(),
            arrived,
            waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            missing,
            mend,
        }
    }
}
