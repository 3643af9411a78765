//! CPU workers whose tasks are handled by a test's script.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test binary uses its own part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fcdcc::array::Values;
use fcdcc::worker::{CpuWorker, FilterKey, Order, Respawn, SubtaskShape, WorkerInfo};
use fcdcc::{CancelToken, Result, Worker};

/// One call of `execute`.
pub struct Call<'a> {
    key: FilterKey,
    slabs: &'a Values,
    pub order: Order<'a>,
    pub cancel: &'a CancelToken,
    /// Number of sub-results of the subtask.
    pub sub_results: usize,
    emit: &'a mut dyn FnMut(usize, Values),
}

impl Call<'_> {
    /// Computes the requested sub-results; each passes through `change`.
    pub fn answer_with(self, worker: &mut CpuWorker, mut change: impl FnMut(Values) -> Values) -> Result<()> {
        let Self { key, slabs, order, cancel, emit, .. } = self;
        worker.execute(key, slabs, order, cancel, &mut |index, values| emit(index, change(values)))
    }

    pub fn answer(self, worker: &mut CpuWorker) -> Result<()> {
        self.answer_with(worker, |values| values)
    }

    /// The requested indices, in order.
    pub fn wanted(&self) -> Vec<usize> {
        match self.order {
            Order::All => (0..self.sub_results).collect(),
            Order::Each(indices) => indices.to_vec(),
        }
    }

    /// Computes one sub-result.
    pub fn answer_one(&mut self, worker: &mut CpuWorker, index: usize) -> Result<()> {
        worker.execute(self.key, self.slabs, Order::Each(&[index]), self.cancel, self.emit)
    }
}

type Script = dyn FnMut(&mut CpuWorker, Call<'_>) -> Result<()> + Send;

/// A CPU worker with a script for its tasks; it answers probes correctly.
pub struct Scripted {
    inner: CpuWorker,
    host: Option<String>,
    sub_results: usize,
    script: Box<Script>,
    /// Counts the respawns. A respawned worker is a plain CPU worker.
    made: Option<Arc<AtomicUsize>>,
}

impl Scripted {
    pub fn new(
        name: impl Into<String>,
        script: impl FnMut(&mut CpuWorker, Call<'_>) -> Result<()> + Send + 'static,
    ) -> Self {
        let inner = CpuWorker::new(name, 1);
        Self { inner, host: None, sub_results: 0, script: Box::new(script), made: None }
    }

    pub fn on_host(mut self, host: impl Into<String>) -> Self {
        self.host = Some(host.into());
        self
    }

    pub fn comes_back(mut self, made: &Arc<AtomicUsize>) -> Self {
        self.made = Some(Arc::clone(made));
        self
    }

    pub fn boxed(self) -> Box<dyn Worker> {
        Box::new(self)
    }
}

impl Worker for Scripted {
    fn info(&self) -> WorkerInfo {
        let mut info = self.inner.info();
        info.host = self.host.clone().unwrap_or(info.host);
        info
    }
    fn install(&mut self, key: FilterKey, shape: &SubtaskShape, banks: Values) -> Result<()> {
        if !key.is_probe() {
            self.sub_results = shape.sub_results();
        }
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
        if key.is_probe() {
            return self.inner.execute(key, slabs, order, cancel, emit);
        }
        let call = Call { key, slabs, order, cancel, sub_results: self.sub_results, emit };
        (self.script)(&mut self.inner, call)
    }
    fn respawn(&self) -> Option<Respawn> {
        let (made, again) = (Arc::clone(self.made.as_ref()?), self.inner.respawn()?);
        Some(Arc::new(move |token| {
            let worker = again(token);
            made.fetch_add(1, Ordering::SeqCst);
            worker
        }))
    }
}
