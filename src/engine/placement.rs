//! Placement of a layer's coded filters on workers, and moving them.
//!
//! Invariant: tasks are queued under the same lock under which filters are removed from a worker, so that no task
//! finds its filters gone.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;

use super::common::{Common, SharedWeight};
use super::holdings::{Holdings, TakeOver};
use crate::array::{DType, Element, Pooled, Values};
use crate::coding::{Code, encode_filters};
use crate::error::{Error, Result};
use crate::ids::{SubtaskId, WorkerId};
use crate::partition::FilterPartition;
use crate::scaling::FilterScales;
use crate::scheduler::{
    Audit, Banks, FilterHolders, FilterSource, Fleet, InstallRequest, Pool, assign, rebalance,
};
use crate::sync::locked;
use crate::worker::{FilterKey, SubtaskShape};

/// The least time that preparing waits for filters to be installed: enough for a GPU to compile its kernels.
pub(super) const INSTALL_LIMIT: Duration = Duration::from_mins(1);

/// Once enough workers to decode hold their filters, the others get this many times the time that took.
const INSTALL_PATIENCE: u32 = 3;

/// The coded filters of one layer and the workers that hold them.
pub(super) struct FilterPlacement<T: Element> {
    pub(super) pool: Pool,
    pub(super) id: u64,
    pub(super) code: Code,
    pub(super) subtask: Arc<SubtaskShape>,
    filters: FilterPartition,
    weight: SharedWeight<T>,
    scales: Arc<FilterScales>,
    placed: Mutex<Placed>,
    /// Whether a thread is moving subtasks.
    moving: AtomicBool,
    /// Sum of squares of each coded filter bank, by subtask and bank; set only for an audit.
    energies: OnceLock<Vec<f64>>,
    /// The layer whose coded filters are the same.
    same: Option<u64>,
}

/// How the filters of a layer are installed.
pub(super) struct Installation<'a, T: Element> {
    /// The time that is waited.
    pub(super) limit: Duration,
    /// A layer of the same pool with the same coded filters, which its workers share where they can.
    pub(super) same: Option<&'a FilterPlacement<T>>,
}

struct Placed {
    holdings: Holdings,
    /// The layer was dropped: filters sent from now on must be removed again.
    closed: bool,
}

impl<T: Element> FilterPlacement<T> {
    /// Assigns the subtasks to workers, sends them their filters, and waits for enough of them.
    ///
    /// # Errors
    /// The first worker's error when too few workers could take their filters.
    pub(super) fn new(
        pool: &Pool,
        id: u64,
        code: Code,
        subtask: SubtaskShape,
        filters: FilterPartition,
        common: &Common<T>,
        how: &Installation<'_, T>,
    ) -> Result<Arc<Self>> {
        let changes = pool.changes();
        let assignment = how.same.map_or_else(|| assign(code.n(), &pool.seats()), Self::assignment);
        let holdings = Holdings::new(assignment, changes);
        let placement = Arc::new(Self {
            pool: pool.clone(),
            id,
            code,
            subtask: Arc::new(subtask),
            filters,
            weight: Arc::clone(&common.weight),
            scales: Arc::clone(&common.filters),
            placed: Mutex::new(Placed { holdings, closed: false }),
            moving: AtomicBool::new(false),
            energies: how.same.map_or_else(OnceLock::new, |same| same.energies.clone()),
            same: how.same.map(|same| same.id),
        });
        let source: Arc<dyn FilterSource> = Arc::<Self>::clone(&placement);
        pool.register(id, Arc::downgrade(&source));
        let installed = placement.install(common.options.policy.audit != Audit::Off, how.limit);
        if installed.is_err() {
            placement.close();
        }
        installed.map(|()| placement)
    }

    /// The coded filters of a subtask, one bank after the other.
    pub(super) fn filters_of(&self, subtask: SubtaskId) -> Vec<T> {
        let (weight, factors) = ((*self.weight).as_ref(), &self.scales.factors);
        encode_filters(&self.code, &self.filters, weight, factors, subtask)
    }

    /// The worker of each subtask.
    pub(super) fn assignment(&self) -> Vec<WorkerId> {
        locked(&self.placed).holdings.assignment().to_vec()
    }

    /// Encodes the filters of every subtask and installs them on the assigned worker.
    fn install(self: &Arc<Self>, audited: bool, limit: Duration) -> Result<()> {
        let (reply, replies) = unbounded();
        let started = Instant::now();
        let assignment = self.assignment();
        // A worker that still installs an earlier layer's filters is known to be slow: do not wait for it again.
        let behind: Vec<bool> = self.pool.ids().map(|worker| self.pool.is_installing(worker)).collect();
        let mut energies = Vec::new();
        let audited = audited && self.energies.get().is_none_or(Vec::is_empty);
        let mut awaited = assignment.iter().filter(|worker| !behind[worker.0]).count();
        for (subtask, worker) in (0..).map(SubtaskId).zip(assignment) {
            let coded = if audited || self.same.is_none() { self.filters_of(subtask) } else { Vec::new() };
            if audited {
                energies.extend(coded.chunks(self.filters.bank_elems()).map(energy));
            }
            let banks = match self.same {
                Some(_) => Banks::Of(Arc::<Self>::clone(self)),
                None => Banks::Coded(T::wrap(coded)),
            };
            locked(&self.placed).holdings.send(worker, subtask);
            self.pool.install(worker, self.request(subtask, banks), &reply);
        }
        drop(reply);
        if audited {
            // Filters are installed once, so nothing but an empty list can be there.
            let _ = self.energies.set(energies);
        }
        let mut end = started + limit;
        let mut first_error = None;
        let mut installed = HashSet::new();
        let mut enough = false;
        while awaited > 0 || !enough {
            let Ok(answer) = replies.recv_deadline(end) else { break };
            awaited -= usize::from(!behind[answer.worker.0]);
            match answer.result {
                Ok(()) => {
                    installed.insert(answer.key.subtask);
                    if !enough && self.code.determines(&|i| installed.contains(&i)) {
                        enough = true;
                        let patience = (started.elapsed() * INSTALL_PATIENCE).max(Duration::from_secs(1));
                        end = end.min(Instant::now() + patience);
                    }
                }
                Err(error) => {
                    tracing::warn!(worker = self.pool.name(answer.worker), %error, "filters not installed");
                    if !matches!(error, Error::WorkerLost { .. }) {
                        self.pool.refused(answer.worker, self.id, &error);
                    }
                    locked(&self.placed).holdings.remove(answer.worker, answer.key.subtask);
                    first_error = first_error.or(Some(error));
                }
            }
        }
        // Workers lost earlier do not make preparing fail: the run's fallbacks may still make up for them.
        match first_error {
            Some(error) if installed.is_empty() && !matches!(error, Error::WorkerLost { .. }) => Err(error),
            _ => Ok(()),
        }
    }

    /// Expected squared norm of each sub-result, by subtask and index, from the sizes of its operands.
    pub(super) fn expected_energies(&self, slabs: &[Arc<Pooled>]) -> Vec<f64> {
        let (conv, banks) = (&self.subtask.conv, self.subtask.banks);
        let filters = self.energies.get().map_or(&[][..], Vec::as_slice);
        // Each output element is a sum of products of all elements of one filter with as many elements of the slab.
        let outputs = conv.output_elems() as f64 / conv.out_channels as f64;
        let mut expected = Vec::with_capacity(self.code.n() * self.subtask.sub_results());
        for (subtask, slabs) in slabs.iter().enumerate() {
            let Ok(values) = slabs.as_slice::<T>() else { continue };
            for slab in values.chunks(conv.input_elems()) {
                let mean = energy(slab) / slab.len().max(1) as f64;
                let of_bank = |r: usize| filters.get(subtask * banks + r).copied().unwrap_or(0.0);
                expected.extend((0..banks).map(|r| mean * of_bank(r) * outputs));
            }
        }
        expected
    }

    fn request(&self, subtask: SubtaskId, banks: Banks) -> InstallRequest {
        let key = FilterKey { layer: self.id, subtask };
        InstallRequest { key, shape: Arc::clone(&self.subtask), banks }
    }

    /// Checks after a run whether the assignment still fits the speeds and states of the workers, and moves subtasks in
    /// the background where it does not.
    pub(super) fn follow_the_speeds(self: &Arc<Self>) {
        let changes = self.pool.changes();
        {
            let mut placed = locked(&self.placed);
            placed.holdings.count_run();
            if !placed.holdings.check_due(changes) {
                return;
            }
        }
        let assignment = self.assignment();
        let Some(better) = rebalance(&assignment, &self.pool.seats()) else { return };
        if self.moving.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = Arc::clone(self);
        let mover = std::thread::Builder::new().name(format!("fcdcc move {}", self.id));
        let spawned = mover.spawn(move || {
            this.move_to(&assignment, &better);
            this.moving.store(false, Ordering::Release);
        });
        if spawned.is_err() {
            self.moving.store(false, Ordering::Release);
        }
    }

    fn move_to(&self, from: &[WorkerId], to: &[WorkerId]) {
        let homes = (0..).map(SubtaskId).zip(from.iter().zip(to));
        for (subtask, (old, new)) in homes.filter(|(_, (old, new))| old != new) {
            let fresh = {
                let mut placed = locked(&self.placed);
                if placed.closed {
                    return;
                }
                placed.holdings.begin_move(subtask, *new)
            };
            if fresh {
                let (reply, replies) = unbounded();
                let banks = Banks::Coded(self.coded_filters(subtask));
                self.pool.install(*new, self.request(subtask, banks), &reply);
                drop(reply);
                let installed = replies.recv_timeout(INSTALL_LIMIT).is_ok_and(|answer| answer.result.is_ok());
                let mut placed = locked(&self.placed);
                if !installed || placed.closed {
                    placed.holdings.remove(*new, subtask);
                    self.pool.remove(*new, FilterKey { layer: self.id, subtask });
                    continue;
                }
            }
            tracing::info!(
                subtask = subtask.0,
                from = self.pool.name(*old),
                to = self.pool.name(*new),
                "moved"
            );
            // Under the lock under which tasks are queued.
            let mut placed = locked(&self.placed);
            let old = placed.holdings.end_move(subtask, *new);
            self.pool.remove(old, FilterKey { layer: self.id, subtask });
        }
    }

    /// Frees the filters on every worker that holds some.
    pub(super) fn close(&self) {
        self.pool.unregister(self.id);
        let mut placed = locked(&self.placed);
        placed.closed = true;
        for (worker, subtask) in placed.holdings.drain() {
            self.pool.remove(worker, FilterKey { layer: self.id, subtask });
        }
    }
}

impl<T: Element> FilterHolders for FilterPlacement<T> {
    fn dispatch_all(&self, dispatch: &mut dyn FnMut(SubtaskId, WorkerId)) {
        // Commands already queued are served first: once the tasks are queued, subtasks may be moved again.
        let placed = locked(&self.placed);
        placed.holdings.homes().for_each(|(subtask, worker)| dispatch(subtask, worker));
    }

    fn holds(&self, subtask: SubtaskId, worker: WorkerId) -> bool {
        locked(&self.placed).holdings.holds(subtask, worker)
    }

    fn take_over(&self, subtask: SubtaskId, worker: WorkerId) -> Option<Values> {
        let mut placed = locked(&self.placed);
        let TakeOver::Send { evicted } = placed.holdings.take_over(subtask, worker) else { return None };
        if let Some((worker, subtask)) = evicted {
            self.pool.remove(worker, FilterKey { layer: self.id, subtask });
        }
        drop(placed);
        Some(self.coded_filters(subtask))
    }
}

impl<T: Element> FilterSource for FilterPlacement<T> {
    fn dtype(&self) -> DType {
        T::DTYPE
    }

    fn same_filters(&self) -> Option<u64> {
        self.same
    }

    fn coded_filters(&self, subtask: SubtaskId) -> Values {
        T::wrap(self.filters_of(subtask))
    }
}

/// Sum of squares, computed as independent sums that fill the vector units.
fn energy<T: Element>(values: &[T]) -> f64 {
    let mut sums = [0.0; 32];
    let chunks = values.chunks_exact(sums.len());
    let rest: f64 = chunks.remainder().iter().map(|v| v.to_f64() * v.to_f64()).sum();
    for chunk in chunks {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *sum += v.to_f64() * v.to_f64();
        }
    }
    sums.iter().sum::<f64>() + rest
}
