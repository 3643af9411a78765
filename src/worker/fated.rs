//! A worker that fails as it is told to, run by run.
//!
//! For benchmarks that draw what befalls whom themselves and want the same of real and of simulated workers; a fault that
//! lasts is a [`Fault`](super::Fault). Who compares no runs can skip it.
//!
//! Invariant: a task has the fate that its worker has when the task begins, and the worker lives on after each.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::faulty::{delayed, silent, slowed};
use super::{CancelToken, Fate, FilterKey, Order, Recipe, SubtaskShape, Worker, WorkerInfo};
use crate::array::Values;
use crate::error::{Error, Result};

/// The [`Fate`] of each worker of a pool, to be changed between runs. Clones share one board.
#[derive(Clone, Debug, Default)]
pub struct Fates {
    board: Arc<Mutex<Vec<Fate>>>,
}

impl Fates {
    /// Nothing wrong with any of `workers` workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self { board: Arc::new(Mutex::new(vec![Fate::default(); workers])) }
    }

    /// From now on tasks begin with these; workers beyond them have nothing wrong.
    pub fn set(&self, fates: &[Fate]) {
        let mut board = self.lock();
        for (worker, fate) in board.iter_mut().enumerate() {
            *fate = fates.get(worker).copied().unwrap_or_default();
        }
    }

    /// The fate of `worker` at present; nothing wrong with one that is not on the board.
    #[must_use]
    pub fn get(&self, worker: usize) -> Fate {
        self.lock().get(worker).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Fate>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker that obeys a board of [`Fates`]; its [`info`](Worker::info) is the inner worker's.
///
/// A crash is the error of a failed task ([`Error::WorkerFailed`]): the process is gone and its connection breaks, but by
/// the next run it has been started again. A lost worker would be made anew in the background instead, at a time that no
/// seed fixes. A pool takes such a failure for no strike, so crashes quarantine nobody. Probes are answered properly, as
/// by [`FaultyWorker`](super::FaultyWorker).
pub struct FatedWorker {
    inner: Box<dyn Worker>,
    fates: Fates,
    index: usize,
}

impl FatedWorker {
    /// Wraps `inner`, to have the fates of worker `index`.
    #[must_use]
    pub fn new(inner: Box<dyn Worker>, fates: Fates, index: usize) -> Self {
        Self { inner, fates, index }
    }

    /// Wraps all workers of a pool, in its order.
    #[must_use]
    pub fn wrap(workers: Vec<Box<dyn Worker>>, fates: &Fates) -> Vec<Box<dyn Worker>> {
        let wrapped = workers
            .into_iter()
            .enumerate()
            .map(|(index, inner)| -> Box<dyn Worker> { Box::new(Self::new(inner, fates.clone(), index)) });
        wrapped.collect()
    }
}

impl Worker for FatedWorker {
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
        let fate = if key.is_probe() { Fate::default() } else { self.fates.get(self.index) };
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

    fn give_back(&mut self, buffer: Values) {
        self.inner.give_back(buffer);
    }

    /// The inner worker's, with the same fates.
    fn recipe(&self) -> Option<Recipe> {
        let (inner, fates, index) = (self.inner.recipe()?, self.fates.clone(), self.index);
        Some(Arc::new(move |token| Ok(Box::new(Self::new(inner(token)?, fates.clone(), index)))))
    }

    fn absent(&self) -> Option<String> {
        self.inner.absent()
    }

    fn lose_device(&mut self) {
        self.inner.lose_device();
    }
}
