//! A worker that fails as it is told to, run by run.
//!
//! For benchmarks that draw what befalls whom themselves and want the same of real and of simulated workers; a fault that
//! lasts is a [`Fault`](super::Fault). Who compares no runs can skip it.
//!
//! Invariant: a task has the fate that its worker has when the task begins, and the worker lives on after each.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::faulty::{delayed, silent, slowed};
use super::{CancelToken, FilterKey, Order, Respawn, SubtaskShape, TaskFault, Worker, WorkerInfo};
use crate::array::Values;
use crate::error::{Error, Result};

/// The [`TaskFault`] of each worker of a pool, to be changed between runs. Clones share one board.
#[derive(Clone, Debug, Default)]
pub struct TaskFaults {
    board: Arc<Mutex<Vec<TaskFault>>>,
}

impl TaskFaults {
    /// Nothing wrong with any of `workers` workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self { board: Arc::new(Mutex::new(vec![TaskFault::default(); workers])) }
    }

    /// From now on tasks begin with these; workers beyond them have nothing wrong.
    pub fn set(&self, fates: &[TaskFault]) {
        let mut board = self.lock();
        for (worker, fate) in board.iter_mut().enumerate() {
            *fate = fates.get(worker).copied().unwrap_or_default();
        }
    }

    /// The fate of `worker` at present; nothing wrong with one that is not on the board.
    #[must_use]
    pub fn get(&self, worker: usize) -> TaskFault {
        self.lock().get(worker).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<TaskFault>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker that obeys a board of [`TaskFaults`]; its [`info`](Worker::info) is the inner worker's.
///
/// A crash is the error of a failed task ([`Error::WorkerFailed`]): the process is gone and its connection breaks, but by
/// the next run it has been started again. A lost worker would be made anew in the background instead, at a time that no
/// seed fixes. A pool takes such a failure for no strike, so crashes quarantine nobody. Probes are answered properly, as
/// by [`FaultyWorker`](super::FaultyWorker).
pub struct ScheduledFaultWorker {
    inner: Box<dyn Worker>,
    fates: TaskFaults,
    index: usize,
}

impl ScheduledFaultWorker {
    /// Wraps `inner`, to have the fates of worker `index`.
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

    /// The inner worker's, with the same fates.
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
