//! Sub-results that this machine computes, to check those of workers.
//!
//! Relevant if you want to change how audits end or how faulty workers are found. An audited run compares its results with
//! a spare one. Where none came in time, this machine computes one: that takes one part in delta of the layer, while a
//! late worker may take any time.
//!
//! Invariant: a result computed here is compared, never decoded from.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::common::{LIE, threads};
use super::options::LayerOptions;
use super::tracker::DecodingTracker;
use super::variant::Variant;
use crate::array::{Element, Pooled};
use crate::coding::{AUDIT_TARGET, ParityCheck, Sketch, SubResult};
use crate::conv::conv_uncoded;
use crate::ids::{SubtaskId, WorkerId};
use crate::scheduler::{Arrivals, Audit, Decision, Recovery, RunOutcome};

/// The most subtasks of which the one is chosen that shows errors best. Each takes a small QR.
const CANDIDATES: usize = 3;

/// The least time that a spare result may take here.
const LEAST_TIME: Duration = Duration::from_millis(20);

/// A subtask to compute here, and how it is compared.
struct Spare {
    subtask: SubtaskId,
    check: Arc<ParityCheck>,
    floor: f64,
}

impl<T: Element> Variant<T> {
    /// For an audited run: compares the results that decoding uses with a subtask computed here, unless they were compared
    /// already. It is
    /// given up after as long as the workers took, and the run then counts as not audited. Where the results contradict each
    /// other, the run ends with [`Decision::Local`].
    pub(super) fn compare_with_own(
        &self,
        options: &LayerOptions,
        audit: Audit,
        slabs: &[Arc<Pooled>],
        gathered: &mut RunOutcome<DecodingTracker<'_>>,
    ) {
        let recovery = &gathered.recovery;
        let examined = recovery.audited() || recovery.in_doubt() || !recovery.faulty().is_empty();
        let (Some(sketcher), Some(decoder)) = (self.sketcher.as_ref(), recovery.chosen().cloned()) else {
            return;
        };
        let asked = audit == Audit::Watch && options.computes_spares(self.code());
        if !asked || examined || !matches!(gathered.end, Decision::Decode) {
            return;
        }
        let (arrivals, used) = (&gathered.arrivals, decoder.inputs());
        let noise = recovery.noise(arrivals, used);
        let Some(spare) = self.best_spare(recovery, arrivals, used, noise) else { return };
        let (since, most) = (Instant::now(), gathered.wait.max(LEAST_TIME).min(gathered.left));
        let late = || since.elapsed() > most;
        let filters = self.placement.filters_of(spare.subtask);
        let mut sketches: Vec<Sketch> = Vec::with_capacity(spare.check.inputs().len());
        for of in spare.check.inputs() {
            let arrival = arrivals.get(of.subtask, self.code().index_of(*of));
            let sketch = match arrival.filter(|_| used.contains(of)) {
                Some(arrival) => match arrival.sketch.as_deref() {
                    Some(sketch) => Some(*sketch),
                    None => arrival.values.as_slice::<T>().ok().map(|values| sketcher.sketch(values)),
                },
                None => {
                    self.computed_here(slabs, &filters, *of, &late).map(|values| sketcher.sketch(&values))
                }
            };
            let Some(sketch) = sketch else { return };
            sketches.push(sketch);
        }
        let compared: Vec<&Sketch> = sketches.iter().collect();
        let consistent = spare.check.is_consistent(&compared, noise);
        gathered.recovery.compared_with_own(consistent.then_some(spare.floor));
        if !consistent {
            tracing::warn!("results contradict one computed on this machine");
            gathered.end = Decision::Local;
        }
    }

    /// The subtask of which nothing is used for decoding and whose results show errors of the others best.
    fn best_spare(
        &self,
        recovery: &DecodingTracker<'_>,
        arrivals: &Arrivals,
        used: &[SubResult],
        noise: f64,
    ) -> Option<Spare> {
        let code = self.code();
        let unused = |subtask: &SubtaskId| used.iter().all(|of| of.subtask != *subtask);
        let worker =
            |of: &SubResult| arrivals.get(of.subtask, code.index_of(*of)).map(|arrival| arrival.worker.0);
        // The group of this machine: no worker's.
        let own = usize::MAX;
        let mut best: Option<Spare> = None;
        for subtask in arrivals.subtasks().filter(unused).take(CANDIDATES) {
            let inputs = [used, &code.sub_results_of(&[subtask.0])].concat();
            let Ok(check) = recovery.checker(&inputs) else { continue };
            let groups: Vec<usize> = inputs
                .iter()
                .enumerate()
                .map(|(m, of)| if m < used.len() { worker(of).unwrap_or(own) } else { own })
                .collect();
            let floor = check.floor(&groups, noise);
            if best.as_ref().is_none_or(|best| floor < best.floor) {
                best = Some(Spare { subtask, check, floor });
            }
            if floor <= AUDIT_TARGET {
                break;
            }
        }
        best
    }

    /// After a contradiction that the audit could not resolve, or an output that cannot be right: recomputes results on this
    /// machine, as long as the deadline allows, to find the faulty workers.
    pub(super) fn find_faulty(
        &self,
        slabs: &[Arc<Pooled>],
        gathered: &mut RunOutcome<DecodingTracker<'_>>,
        since: Instant,
    ) {
        let shape = &self.placement.subtask;
        let rounding = self.rules.accuracy.rounding;
        let mut faulty: Vec<WorkerId> = Vec::new();
        let late = || since.elapsed() > gathered.left;
        for subtask in gathered.arrivals.subtasks() {
            if late() {
                break;
            }
            if gathered.arrivals.of(subtask).next().is_none() {
                continue;
            }
            let filters = self.placement.filters_of(subtask);
            for arrival in gathered.arrivals.of(subtask) {
                let Ok(got) = arrival.values.as_slice::<T>() else { continue };
                let of = self.code().sub_result(subtask, arrival.index);
                let Some([slab, bank]) = self.operands(slabs, &filters, of) else { continue };
                let Some(want) = self.computed_here(slabs, &filters, of, &late) else { continue };
                let square = |values: f64| values * values;
                let error: f64 = got.iter().zip(&want).map(|(a, b)| square(a.to_f64() - b.to_f64())).sum();
                let operands = |values: &[T]| values.iter().map(|v| square(v.to_f64())).sum::<f64>();
                // Sums of such products are about this large, even where they cancel in `want`.
                let mean = operands(slab) / slab.len().max(1) as f64;
                let outputs = got.len() as f64 / shape.conv.out_channels as f64;
                let size = operands(&want).max(mean * operands(bank) * outputs);
                if error.sqrt() > LIE * rounding.normwise(1.0) * size.sqrt() {
                    faulty.push(arrival.worker);
                }
            }
        }
        faulty.sort_unstable();
        faulty.dedup();
        self.flag(gathered, &faulty);
    }

    /// One sub-result, computed on this machine from its slab and bank. `filters` are the coded filters of its subtask. None
    /// once `late` holds.
    fn computed_here(
        &self,
        slabs: &[Arc<Pooled>],
        filters: &[T],
        of: SubResult,
        late: &(dyn Fn() -> bool + Sync),
    ) -> Option<Vec<T>> {
        let [slab, bank] = self.operands(slabs, filters, of)?;
        conv_uncoded(&self.placement.subtask.conv, slab, bank, None, threads(), late).ok()
    }

    /// The slab and the bank of a sub-result. `filters` are the coded filters of its subtask.
    fn operands<'a>(
        &self,
        slabs: &'a [Arc<Pooled>],
        filters: &'a [T],
        of: SubResult,
    ) -> Option<[&'a [T]; 2]> {
        let conv = &self.placement.subtask.conv;
        let inputs = slabs.get(of.subtask.0)?.as_slice::<T>().ok()?;
        let slab = inputs.chunks(conv.input_elems()).nth(of.slab)?;
        let bank = filters.chunks(conv.weight_elems()).nth(of.bank)?;
        Some([slab, bank])
    }
}
