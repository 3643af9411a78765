//! CPU workers whose tasks are handled by a test's script.
#![allow(unreachable_pub, reason = "a module of one test binary")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fcdcc::array::Values;
use fcdcc::worker::{CpuWorker, Intercept, Order, Task, intercept};
use fcdcc::{Result, Worker};

/// One call of `execute`.
pub struct Call<'a> {
    pub task: Task<'a>,
    /// Number of sub-results of the subtask.
    pub sub_results: usize,
    emit: &'a mut dyn FnMut(usize, Values),
}

impl Call<'_> {
    /// Computes the requested sub-results; each passes through `change`.
    pub fn answer_with(
        self,
        worker: &mut dyn Worker,
        mut change: impl FnMut(Values) -> Values,
    ) -> Result<()> {
        let Self { task, emit, .. } = self;
        worker.execute(task, &mut |index, values| emit(index, change(values)))
    }

    pub fn answer(self, worker: &mut dyn Worker) -> Result<()> {
        worker.execute(self.task, self.emit)
    }

    /// The requested indices, in order.
    pub fn wanted(&self) -> Vec<usize> {
        self.task.indices(self.sub_results)
    }

    /// Computes one sub-result.
    pub fn answer_one(&mut self, worker: &mut dyn Worker, index: usize) -> Result<()> {
        worker.execute(self.task.with_order(Order::Each(&[index])), self.emit)
    }
}

/// A CPU worker with a script for its tasks. It answers probes correctly and is not respawned.
pub fn worker(
    name: impl Into<String>,
    mut script: impl FnMut(&mut dyn Worker, Call<'_>) -> Result<()> + Send + 'static,
) -> Intercept {
    let installed = Arc::new(AtomicUsize::new(0));
    let sub_results = Arc::clone(&installed);
    intercept(CpuWorker::new(name, 1))
        .on_install(move |inner, key, shape, banks| {
            installed.store(shape.sub_results(), Ordering::SeqCst);
            inner.install(key, shape, banks)
        })
        .on_execute(move |inner, task, emit| {
            script(inner, Call { task, sub_results: sub_results.load(Ordering::SeqCst), emit })
        })
        .never_respawned()
}

/// For [`Intercept::respawned`]: counts the respawned workers and leaves them as they are.
pub fn counted(made: &Arc<AtomicUsize>) -> impl Fn(Box<dyn Worker>) -> Box<dyn Worker> + Send + Sync + use<> {
    let made = Arc::clone(made);
    move |worker| {
        made.fetch_add(1, Ordering::SeqCst);
        worker
    }
}
