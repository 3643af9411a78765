//! A worker that counts the work it begins, including work whose results are no longer needed.
//!
//! Invariant: every sub-result that is begun is counted exactly once, as a whole.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fcdcc::array::Values;
use fcdcc::error::{Error, Result};
use fcdcc::worker::{CancelToken, FilterKey, Order, Respawn, SubtaskShape, Worker, WorkerInfo};

/// Work begun by the workers of a pool since the last [`Meter::take`].
#[derive(Clone, Debug, Default)]
pub(super) struct Meter(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    sub_results: AtomicU64,
    /// Multiply-adds: below 2^53 for a thousand large layers.
    macs: AtomicU64,
}

/// Work begun on workers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Work {
    pub(super) sub_results: f64,
    pub(super) macs: f64,
}

impl Meter {
    /// Wraps every worker.
    pub(super) fn wrap(&self, workers: Vec<Box<dyn Worker>>) -> Vec<Box<dyn Worker>> {
        let wrap = |inner| -> Box<dyn Worker> { Box::new(Metered::new(inner, self.clone())) };
        workers.into_iter().map(wrap).collect()
    }

    /// Returns the work begun since the last call.
    pub(super) fn take(&self) -> Work {
        Work {
            sub_results: self.0.sub_results.swap(0, Ordering::Relaxed) as f64,
            macs: self.0.macs.swap(0, Ordering::Relaxed) as f64,
        }
    }
}

struct Metered {
    inner: Box<dyn Worker>,
    meter: Meter,
    /// By filters: sub-results that begin together, sub-results of a subtask, and multiply-adds of one sub-result.
    sizes: HashMap<FilterKey, (usize, usize, u64)>,
}

impl Metered {
    fn new(inner: Box<dyn Worker>, meter: Meter) -> Self {
        Self { inner, meter, sizes: HashMap::new() }
    }
}

impl Worker for Metered {
    fn info(&self) -> WorkerInfo {
        self.inner.info()
    }

    fn install(&mut self, key: FilterKey, shape: &SubtaskShape, banks: Values) -> Result<()> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of operations")]
        let macs = shape.conv.macs() as u64;
        self.sizes.insert(key, (shape.banks, shape.sub_results(), macs));
        self.inner.install(key, shape, banks)
    }

    fn remove(&mut self, key: FilterKey) {
        self.sizes.remove(&key);
        self.inner.remove(key);
    }

    fn recycle(&mut self, buffer: Values) {
        self.inner.recycle(buffer);
    }

    fn execute(
        &mut self,
        key: FilterKey,
        slabs: &Values,
        order: Order<'_>,
        cancel: &CancelToken,
        emit: &mut dyn FnMut(usize, Values),
    ) -> Result<()> {
        let idle = cancel.is_cancelled() || key.is_probe();
        let mut done = 0_usize;
        let result = self.inner.execute(key, slabs, order, cancel, &mut |index, values| {
            done += 1;
            emit(index, values);
        });
        let (together, all, macs) = self.sizes.get(&key).copied().unwrap_or((1, 1, 0));
        let (together, wanted) = match order {
            Order::All => (together, all),
            Order::Each(indices) => (1, indices.len()),
        };
        // The sub-results in progress at the cancellation were begun too.
        let cut_short = matches!(result, Err(Error::Cancelled)) && !idle;
        let begun = if cut_short { (done + together).min(wanted) } else { done };
        if !key.is_probe() {
            self.meter.0.sub_results.fetch_add(begun as u64, Ordering::Relaxed);
            self.meter.0.macs.fetch_add(begun as u64 * macs, Ordering::Relaxed);
        }
        result
    }

    fn respawn(&self) -> Option<Respawn> {
        let (inner, meter) = (self.inner.respawn()?, self.meter.clone());
        Some(Arc::new(move |token| Ok(Box::new(Self::new(inner(token)?, meter.clone())))))
    }

    fn unavailable_reason(&self) -> Option<String> {
        self.inner.unavailable_reason()
    }

    fn lose_device(&mut self) {
        self.inner.lose_device();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fcdcc::conv::{ConvParams, ConvShape};
    use fcdcc::worker::CpuWorker;

    #[test]
    fn what_is_begun_is_counted_and_probes_are_not() {
        let meter = Meter::default();
        let mut worker = meter.wrap(CpuWorker::fleet(1)).remove(0);
        let conv = ConvShape::new(&[1, 1, 4, 4], &[2, 1, 3, 3], &ConvParams::default()).unwrap();
        let shape = SubtaskShape { conv, slabs: 2, banks: 2, plain: false };
        let (macs, key) = (shape.conv.macs(), FilterKey { layer: 1, subtask: 0 });
        let slabs = Values::F32(vec![1.0; shape.upload_elems()]);
        for key in [key, FilterKey::PROBE] {
            worker.install(key, &shape, Values::F32(vec![1.0; shape.filter_elems()])).unwrap();
        }
        let mut run = |key, order: Order<'_>, cancel_after: usize| {
            let cancel = CancelToken::new();
            let mut seen = 0;
            let _ = worker.execute(key, &slabs, order, &cancel, &mut |_, _| {
                seen += 1;
                if seen == cancel_after {
                    cancel.cancel();
                }
            });
            meter.take()
        };
        assert_eq!(run(key, Order::All, 99), Work { sub_results: 4.0, macs: 4.0 * macs });
        assert_eq!(run(key, Order::Each(&[3, 1, 0]), 99).sub_results, 3.0);
        assert_eq!(run(FilterKey::PROBE, Order::All, 99), Work::default());
        // One sub-result arrived, the next was in progress.
        assert_eq!(run(key, Order::Each(&[3, 1, 0]), 1).sub_results, 2.0);
        assert_eq!(meter.take(), Work::default());
    }
}
