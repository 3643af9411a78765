//! Parts of models that several workers hold, each of which can compute them whole.
//!
//! Relevant if you want to run a part of a model on workers without a code: a [`ReplicatedPart`] asks one of the workers that
//! hold it, asks another one when the first takes long or fails, and uses the first answer. The rules are in
//! [`Replicas`](crate::scheduler::Replicas).
//!
//! Invariant: dropping a part removes it from every worker.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};

use super::watch::Watch;
use crate::array::Values;
use crate::error::{Error, Message, Parameter, Result};
use crate::ids::WorkerId;
use crate::scheduler::{
    Audit, Comparison, Fleet, PartInstalled, PartJob, PartReport, Pool, ReplicaHistory, ReplicaPolicy,
    run_part_job,
};
use crate::worker::{CancelToken, PartFile, PartKey, PartSignature};

/// Once enough workers hold a part, the others get this many times the time that took, and at least a second.
const INSTALL_PATIENCE: u32 = 3;

/// Largest difference between results that agree, where nothing travels in 16 bits: what other orders of summation cause.
const TOLERANCE: f64 = 1e-4;
/// How many roundings to 16 bits on the way add up, at most.
const ROUNDINGS: f64 = 8.0;

/// The number of the next part in this process.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Options of a [`ReplicatedPart`].
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicatedOptions {
    /// Number of workers that may fail: one more must hold the part.
    pub tolerate: usize,
    /// Maximum number of workers that hold it, on different machines first; `None`: all that take it.
    pub holders: Option<usize>,
    /// The rules of its runs.
    pub policy: ReplicaPolicy,
    /// Which runs are computed twice, to compare the results. [`Audit::Detect`] and [`Audit::Correct`]: all, and only results
    /// that another worker confirms count. [`Audit::Watch`]: the first, one in [`Audit::WATCH_EVERY`], and all for a while
    /// after a worker returned a wrong result; if no second result comes, the first counts. Where two contradict each other,
    /// a third worker decides.
    pub audit: Audit,
    /// Largest difference between results that agree, relative to the largest magnitude of the output. `None`: 1e-4, and more
    /// where results travel in 16 bits.
    pub audit_tolerance: Option<f64>,
    /// How long a worker is predicted to take; `None` where that is unknown.
    pub predicted: Option<Duration>,
    /// What enters and leaves the part, if that is known: workers that say otherwise do not hold it.
    pub signature: Option<PartSignature>,
    /// The longest wait for workers to take the part.
    pub install_limit: Duration,
}

impl Default for ReplicatedOptions {
    /// One worker may fail, all hold the part, one computes it and a second one where that takes long.
    fn default() -> Self {
        Self {
            tolerate: 1,
            holders: None,
            policy: ReplicaPolicy::default(),
            audit: Audit::default(),
            audit_tolerance: None,
            predicted: None,
            signature: None,
            install_limit: Duration::from_mins(1),
        }
    }
}

/// A part of a model on the workers of a pool. Threads may share it and run it at the same time.
pub struct ReplicatedPart {
    pool: Pool,
    key: PartKey,
    signature: Arc<PartSignature>,
    options: ReplicatedOptions,
    tolerance: f64,
    history: Mutex<ReplicaHistory>,
    origin: Instant,
    watch: Watch,
}

/// The outputs of one run of a part.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct PartRun {
    /// The outputs, in the order of the file.
    pub outputs: Vec<Values>,
    /// What happened.
    pub report: PartReport,
}

impl ReplicatedPart {
    /// Installs a part on workers of the pool, and waits until enough hold it. A lost worker gets it when it is back, unless
    /// [`ReplicatedOptions::holders`] is set.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for options that cannot be used; [`Error::Unavailable`], with the name of every worker that
    /// did not take it and the reason, if fewer than `1 + tolerate` do.
    pub fn install(pool: &Pool, file: &PartFile, options: &ReplicatedOptions) -> Result<Self> {
        options.policy.check()?;
        let needed = options.tolerate.saturating_add(1);
        let most = options.holders.unwrap_or(pool.len()).min(pool.len());
        if most < needed {
            let help = format!("the part needs {needed} to tolerate the loss of {}", options.tolerate);
            return Err(Error::invalid(
                Message::about("number of workers that hold a part", Parameter::Tolerate),
                most,
                help,
            ));
        }
        let key = PartKey(NEXT.fetch_add(1, Ordering::Relaxed));
        let wires = pool.wire().epsilon() * ROUNDINGS;
        let installing = Installing { pool, key, file, options, needed };
        let signature = installing.all(most).inspect_err(|_| remove(pool, key))?;
        Ok(Self {
            pool: pool.clone(),
            key,
            signature: Arc::new(signature),
            tolerance: options.audit_tolerance.unwrap_or(TOLERANCE + wires),
            history: Mutex::new(ReplicaHistory::new(options.predicted)),
            origin: Instant::now(),
            watch: Watch::new(options.audit, pool.caught(), key.0),
            options: options.clone(),
        })
    }

    /// What enters and leaves the part.
    #[must_use]
    pub fn signature(&self) -> &PartSignature {
        &self.signature
    }

    /// The workers that hold it now, lost ones excluded.
    #[must_use]
    pub fn holders(&self) -> Vec<WorkerId> {
        self.pool.part_holders(self.key).iter().map(|holder| holder.worker).collect()
    }

    /// Computes the outputs from inputs in the order of the file, within `deadline` or the one of the
    /// [policy](ReplicaPolicy::deadline).
    ///
    /// # Errors
    /// [`Error::Mismatch`] for inputs that do not fit; [`Error::Cancelled`]; [`Error::Shortfall`], with every worker and the
    /// reason, if no result came in time or none can come; [`Error::NonFiniteResults`] and [`Error::Corrupted`] if results
    /// came and none can be believed. After the last three the caller may compute the part on this machine.
    pub fn run(
        &self,
        inputs: impl Into<Arc<[Values]>>,
        deadline: Option<Duration>,
        cancel: &CancelToken,
    ) -> Result<PartRun> {
        let (outputs, report) = self.run_reported(inputs, deadline, cancel)?;
        Ok(PartRun { outputs: outputs?, report })
    }

    /// As [`run`](Self::run), with a report of failed runs too.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for inputs that do not fit; all others are in the first part of the result.
    pub fn run_reported(
        &self,
        inputs: impl Into<Arc<[Values]>>,
        deadline: Option<Duration>,
        cancel: &CancelToken,
    ) -> Result<(Result<Vec<Values>>, PartReport)> {
        let inputs = inputs.into();
        self.signature.check_inputs(&inputs)?;
        let audit = self.watch.next(self.pool.caught());
        let comparison = match audit {
            Audit::Off => Comparison::Off,
            Audit::Watch => Comparison::Wish,
            Audit::Detect | Audit::Correct => Comparison::Required,
        };
        let policy = self.options.policy;
        let (result, report) = run_part_job(PartJob {
            pool: &self.pool,
            key: self.key,
            signature: &self.signature,
            inputs,
            policy: ReplicaPolicy { deadline: deadline.unwrap_or(policy.deadline), ..policy },
            comparison,
            tolerance: self.tolerance,
            history: &self.history,
            origin: self.origin,
            cancel,
        });
        if audit == Audit::Watch {
            self.watch.done(report.confirmed);
        }
        Ok((result, report))
    }
}

impl std::fmt::Debug for ReplicatedPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplicatedPart").field("key", &self.key.0).finish_non_exhaustive()
    }
}

impl Drop for ReplicatedPart {
    fn drop(&mut self) {
        remove(&self.pool, self.key);
    }
}

fn remove(pool: &Pool, key: PartKey) {
    pool.ids().for_each(|worker| pool.remove_part(worker, key));
}

struct Installing<'a> {
    pool: &'a Pool,
    key: PartKey,
    file: &'a PartFile,
    options: &'a ReplicatedOptions,
    needed: usize,
}

impl Installing<'_> {
    /// Installs the part on at most `most` workers; others take the place of those that refuse it.
    fn all(&self, most: usize) -> Result<PartSignature> {
        let started = Instant::now();
        let mut next = self.order().into_iter();
        let (reply, replies) = unbounded();
        let mut awaited: Vec<WorkerId> = Vec::new();
        next.by_ref().take(most).for_each(|worker| self.ask(worker, &reply, &mut awaited));
        let mut end = started + self.options.install_limit;
        let mut signature = self.options.signature.clone();
        let (mut holding, mut refused) = (0, Vec::new());
        while !awaited.is_empty() {
            let Ok(PartInstalled { worker, result }) = replies.recv_deadline(end) else { break };
            awaited.retain(|other| *other != worker);
            match result.and_then(|own| self.compared(worker, own, &mut signature)) {
                Ok(()) => {
                    holding += 1;
                    if holding == self.needed {
                        let patience = (started.elapsed() * INSTALL_PATIENCE).max(Duration::from_secs(1));
                        end = end.min(Instant::now() + patience);
                    }
                }
                Err(error) => {
                    if self.options.holders.is_some() {
                        self.pool.remove_part(worker, self.key);
                    }
                    refused.push((worker, error.to_string()));
                    if let Some(other) = next.next() {
                        self.ask(other, &reply, &mut awaited);
                    }
                }
            }
        }
        match signature {
            Some(signature) if holding >= self.needed => Ok(signature),
            _ => Err(self.too_few(holding, &refused, &awaited)),
        }
    }

    fn ask(&self, worker: WorkerId, reply: &Sender<PartInstalled>, awaited: &mut Vec<WorkerId>) {
        awaited.push(worker);
        self.pool.install_part(worker, self.key, self.file, reply);
    }

    /// All workers: usable ones first, in turns from each machine.
    fn order(&self) -> Vec<WorkerId> {
        let mut on_machine: HashMap<u64, usize> = HashMap::new();
        let rank = |worker: WorkerId| {
            let count = on_machine.entry(self.pool.machine_of(worker)).or_default();
            *count += 1;
            (self.pool.lost(worker).is_some(), *count, worker)
        };
        let mut ranked: Vec<_> = self.pool.ids().map(rank).collect();
        ranked.sort_unstable();
        ranked.into_iter().map(|(_, _, worker)| worker).collect()
    }

    /// Compares what a worker says of the part with what is known.
    fn compared(
        &self,
        worker: WorkerId,
        own: PartSignature,
        known: &mut Option<PartSignature>,
    ) -> Result<()> {
        let known = known.get_or_insert_with(|| own.clone());
        if own == *known {
            return Ok(());
        }
        self.pool.remove_part(worker, self.key);
        let cause =
            format!("it reads other inputs and outputs in the file: {own:?} where {known:?} was expected");
        Err(Error::WorkerFailed { worker: self.pool.name(worker).to_owned(), cause })
    }

    /// The error for too few workers that hold the part.
    fn too_few(&self, holding: usize, refused: &[(WorkerId, String)], awaited: &[WorkerId]) -> Error {
        let mut help = String::new();
        for (_, cause) in refused {
            // Writing to a String cannot fail.
            let _ = write!(help, "{cause}; ");
        }
        for worker in awaited {
            let limit = self.options.install_limit;
            let _ = write!(help, "worker {} did not take it within {limit:?}; ", self.pool.name(*worker));
        }
        Error::Unavailable {
            what: format!("a part of a model on {} workers ({holding} hold it)", self.needed),
            help: Message::from(help)
                .and("use workers that take parts of models, or lower ")
                .and(Parameter::Tolerate),
        }
    }
}
