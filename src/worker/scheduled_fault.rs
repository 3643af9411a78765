//! Workers whose faults are set from outside, run by run.
//!
//! Relevant if you want to compare runs under the same faults, drawn by the caller, on real and simulated workers. For a
//! permanent fault use [`Fault`](super::Fault).
//!
//! Invariant: the [`TaskFault`] that a worker has when a task begins applies to the whole task, and the worker survives
//! every fault.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::faulty::{PartCall, delayed, silent, slowed};
use super::{CancelToken, Intercept, TaskFault, Worker, intercept};
use crate::error::{Error, Result};
use crate::ids::WorkerId;

/// The [`TaskFault`] of each worker of a pool, which may change between runs. Clones share one table.
///
/// A crash is reported as a failed task ([`Error::WorkerFailed`]): the process is gone and its connection breaks, but it has
/// been restarted by the next run. A lost worker would instead be respawned in the background, at a time that no seed
/// determines. A pool does not count such a failure as a strike, so crashes do not quarantine a worker. Probes are answered
/// correctly, as by a [`faulty`](super::faulty()) worker.
#[derive(Clone, Debug, Default)]
pub struct TaskFaults {
    board: Arc<Mutex<Vec<TaskFault>>>,
}

impl TaskFaults {
    /// No fault for any of `workers` workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self { board: Arc::new(Mutex::new(vec![TaskFault::default(); workers])) }
    }

    /// Sets the faults of tasks that begin from now on; workers beyond the end of `fates` have none.
    pub fn set(&self, fates: &[TaskFault]) {
        let mut board = self.lock();
        for (index, fate) in board.iter_mut().enumerate() {
            *fate = fates.get(index).copied().unwrap_or_default();
        }
    }

    /// The current fault of `worker`; none if `worker` is out of range.
    #[must_use]
    pub fn get(&self, worker: WorkerId) -> TaskFault {
        self.lock().get(worker.0).copied().unwrap_or_default()
    }

    /// Wraps `inner`, to have the faults of `worker`. So does the worker that is respawned in its place.
    #[must_use]
    pub fn around(&self, inner: impl Into<Box<dyn Worker>>, worker: WorkerId) -> Intercept {
        let inner = inner.into();
        let (name, faults, again) = (inner.info().name, self.clone(), self.clone());
        let (name_of_part, faults_of_part) = (name.clone(), self.clone());
        intercept(inner)
            .on_execute(move |inner, task, emit| {
                let fault = faults.get(worker);
                before_work(&fault, &name, task.cancel)?;
                match fault.factor() {
                    1.0 => inner.execute(task, emit),
                    factor => slowed(inner, factor, task, emit),
                }
            })
            .on_run_part(move |inner, key, inputs, cancel| {
                let fault = faults_of_part.get(worker);
                before_work(&fault, &name_of_part, cancel)?;
                let call = PartCall { key, inputs, cancel };
                match fault.factor() {
                    1.0 => call.on(inner),
                    factor => call.slowed(inner, factor),
                }
            })
            .respawned(move |inner| again.around(inner, worker).boxed())
    }

    /// Wraps all workers of a pool, in its order.
    #[must_use]
    pub fn wrap(&self, workers: Vec<Box<dyn Worker>>) -> Vec<Box<dyn Worker>> {
        let workers = (0..).map(WorkerId).zip(workers);
        workers.map(|(worker, inner)| self.around(inner, worker).boxed()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<TaskFault>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a fault does before the work of a task, or instead of it.
fn before_work(fault: &TaskFault, worker: &str, cancel: &CancelToken) -> Result<()> {
    if fault.crash {
        return Err(Error::WorkerFailed { worker: worker.to_owned(), cause: "injected crash".to_owned() });
    }
    if fault.silent {
        return silent(cancel);
    }
    if fault.delay.is_zero() { Ok(()) } else { delayed(fault.delay, cancel) }
}
