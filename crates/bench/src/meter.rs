//! A worker that counts the work it begins, including work whose results are no longer needed.
//!
//! Invariant: every sub-result that is begun is counted exactly once, as a whole.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fcdcc::array::Values;
use fcdcc::error::{Error, Result};
use fcdcc::worker::{FilterKey, Intercept, Order, Task, Worker, intercept};

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
        workers.into_iter().map(|inner| self.around(inner).boxed()).collect()
    }

    /// Wraps `inner` and the worker that is respawned in its place.
    fn around(&self, inner: Box<dyn Worker>) -> Intercept {
        let installed = Arc::new(Mutex::new(Sizes::new()));
        let (removed, sizes) = (Arc::clone(&installed), Arc::clone(&installed));
        let (meter, again) = (self.clone(), self.clone());
        intercept(inner)
            .on_install(move |inner, key, shape, banks| {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a count of operations"
                )]
                let macs = shape.conv.macs() as u64;
                locked(&installed).insert(key, (shape.banks, shape.sub_results(), macs));
                inner.install(key, shape, banks)
            })
            .on_remove(move |inner, key| {
                locked(&removed).remove(&key);
                inner.remove(key);
            })
            .on_execute(move |inner, task, emit| {
                let sizes = locked(&sizes).get(&task.key).copied().unwrap_or((1, 1, 0));
                meter.execute(sizes, inner, task, emit)
            })
            .respawned(move |inner| again.around(inner).boxed())
    }

    /// Executes a task and counts the work it begins.
    fn execute(
        &self,
        (together, all, macs): (usize, usize, u64),
        inner: &mut dyn Worker,
        task: Task<'_>,
        emit: &mut dyn FnMut(usize, Values),
    ) -> Result<()> {
        let idle = task.cancel.is_cancelled();
        let mut done = 0_usize;
        let result = inner.execute(task, &mut |index, values| {
            done += 1;
            emit(index, values);
        });
        let (together, wanted) = match task.order {
            Order::All => (together, all),
            Order::Each(indices) => (1, indices.len()),
        };
        // The sub-results in progress at the cancellation were begun too.
        let cut_short = matches!(result, Err(Error::Cancelled)) && !idle;
        let begun = if cut_short { (done + together).min(wanted) } else { done };
        self.0.sub_results.fetch_add(begun as u64, Ordering::Relaxed);
        self.0.macs.fetch_add(begun as u64 * macs, Ordering::Relaxed);
        result
    }

    /// Returns the work begun since the last call.
    pub(super) fn take(&self) -> Work {
        Work {
            sub_results: self.0.sub_results.swap(0, Ordering::Relaxed) as f64,
            macs: self.0.macs.swap(0, Ordering::Relaxed) as f64,
        }
    }
}

/// By filters: sub-results that begin together, sub-results of a subtask, and multiply-adds of one sub-result.
type Sizes = HashMap<FilterKey, (usize, usize, u64)>;

fn locked(sizes: &Mutex<Sizes>) -> MutexGuard<'_, Sizes> {
    sizes.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fcdcc::SubtaskId;
    use fcdcc::conv::{ConvParams, ConvShape};
    use fcdcc::worker::{CancelToken, CpuWorker, SubtaskShape};

    #[test]
    fn what_is_begun_is_counted_and_probes_are_not() {
        let meter = Meter::default();
        let mut worker = meter.wrap(CpuWorker::fleet(1)).remove(0);
        let conv = ConvShape::new(&[1, 1, 4, 4], &[2, 1, 3, 3], &ConvParams::default()).unwrap();
        let shape = SubtaskShape { conv, slabs: 2, banks: 2, plain: false };
        let (macs, key) = (shape.conv.macs(), FilterKey { layer: 1, subtask: SubtaskId(0) });
        let slabs = Values::F32(vec![1.0; shape.upload_elems()]);
        for key in [key, FilterKey::PROBE] {
            worker.install(key, &shape, Values::F32(vec![1.0; shape.filter_elems()])).unwrap();
        }
        let mut run = |key, order: Order<'_>, cancel_after: usize| {
            let cancel = CancelToken::new();
            let mut seen = 0;
            let _ = worker.execute(Task::new(key, &slabs, &cancel).with_order(order), &mut |_, _| {
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
