//! A worker whose faults are set from outside, run by run.
//!
//! Relevant if you want to compare runs under the same faults, drawn by the caller, on real and simulated workers. For a
//! permanent fault use [`Fault`](super::Fault).
//!
//! Invariant: the [`TaskFault`] that a worker has when a task begins applies to the whole task, and the worker survives
//! every fault.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::faulty::{delayed, silent, slowed};
use super::{CancelToken, FilterKey, Order, Respawn, SubtaskShape, TaskFault, Worker, WorkerInfo};
use crate::array::Values;
use crate::error::{Error, Result};

/// The [`TaskFault`] of each worker of a pool, which may change between runs. Clones share one table.
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
        for (worker, fate) in board.iter_mut().enumerate() {
            *fate = fates.get(worker).copied().unwrap_or_default();
        }
    }

    /// The current fault of `worker`; none if `worker` is out of range.
    #[must_use]
    pub fn get(&self, worker: usize) -> TaskFault {
        self.lock().get(worker).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<TaskFault>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker with the faults of a [`TaskFaults`]; its [`info`](Worker::info) is that of the inner worker.
///
/// A crash is reported as a failed task ([`Error::WorkerFailed`]): the process is gone and its connection breaks, but it has
/// been restarted by the next run. A lost worker would instead be respawned in the background, at a time that no seed
/// determines. A pool does not count such a failure as a strike, so crashes do not quarantine a worker. Probes are answered
/// correctly, as by [`FaultyWorker`](super::FaultyWorker).
pub struct ScheduledFaultWorker {
    inner: Box<dyn Worker>,
    fates: TaskFaults,
    index: usize,
}

impl ScheduledFaultWorker {
    /// Wraps `inner`, to have the faults of worker `index`.
    #[must_use]
    pub fn new(inner: Box<dyn Worker>, fates: TaskFaults, index: usize) -> Self {
        Self { inner, fates, index }
    }

    /// Wraps all workers of a pool, in its order.
    #[must_use]
    pub fn wrap(workers: Vec<Box<dyn Worker>>, fates: &TaskFaults) -> Vec<Box<dyn Worker>> {
        let wrapped = workers
            .into_iter()
            .enumerate()
            .map(|(index, inner)| -> Box<dyn Worker> { Box::new(Self::new(inner, fates.clone(), index)) });
        wrapped.collect()
    }
}

impl Worker for ScheduledFaultWorker {
    fn info(&self) -> WorkerInfo {
        self.inner.info()
    }

    fn install(&mut self, key: FilterKey, shape: &SubtaskShape, banks: Values) -> Result<()> {
        self.inner.install(key, shape, banks)
    }

    fn remove(&mut self, key: FilterKey) {
        self.inner.remove(key);
    }

    fn execute(
        &mut self,
        key: FilterKey,
        slabs: &Values,
        order: Order<'_>,
        cancel: &CancelToken,
        emit: &mut dyn FnMut(usize, Values),
    ) -> Result<()> {
        let fate = if key.is_probe() { TaskFault::default() } else { self.fates.get(self.index) };
        if fate.crash {
            return Err(Error::WorkerFailed {
                worker: self.inner.info().name,
                cause: "injected crash".to_owned(),
            });
        }
        if fate.silent {
            return silent(cancel);
        }
        if !fate.delay.is_zero() {
            delayed(fate.delay, cancel)?;
        }
        match fate.factor() {
            1.0 => self.inner.execute(key, slabs, order, cancel, emit),
            factor => slowed(self.inner.as_mut(), factor, key, slabs, order, cancel, emit),
        }
    }

    fn recycle(&mut self, buffer: Values) {
        self.inner.recycle(buffer);
    }

    /// The inner worker's, with the same faults.
    fn respawn(&self) -> Option<Respawn> {
        let (inner, fates, index) = (self.inner.respawn()?, self.fates.clone(), self.index);
        Some(Arc::new(move |token| Ok(Box::new(Self::new(inner(token)?, fates.clone(), index)))))
    }

    fn unavailable_reason(&self) -> Option<String> {
        self.inner.unavailable_reason()
    }

    fn lose_device(&mut self) {
        self.inner.lose_device();
    }
}
