//! Tracks the sub-results of one run: whether they decode, how well, and whether they contradict each other.
//!
//! It is the scheduler's [`Recovery`] for every code. Invariant: there is a decoder for every set that it accepts.

use std::sync::Arc;

use crate::coding::{
    AUDIT_TARGET, Basis, Code, Decoder, DecoderCache, ParityCheck, ParityCheckCache, Rounding, Sketch,
    SubResult, locate_errors,
};
use crate::error::Result;
use crate::ids::{SubtaskId, WorkerId};
use crate::scheduler::{Arrival, Arrivals, Audit, Recovery, Verdict};

/// Largest condition number at which parts of subtasks are used for decoding (f32 then keeps four digits). Whole subtasks
/// are decoded at any condition number.
const PARTIAL_CONDITION: f64 = 300.0;

/// Share of a sum's cancellation that adds to its rounding error beyond the usual bound. On a constant of 100 with
/// noise of 1 under filters that sum to zero (cancellation 100), f32 results contradict each other by about a tenth.
const CANCELLED: f64 = 0.25;

/// Up to this condition number a set that decodes is as good as one with a spare result.
const COMPARABLE_CONDITION: f64 = 30.0;

/// Maximum number of faulty workers searched for: all sets of up to this many workers are tried.
const MOST_LIARS: usize = 2;

/// What stays constant during a run.
pub(super) struct RecoveryContext<'a> {
    pub(super) code: &'a Code,
    pub(super) decoders: &'a DecoderCache,
    pub(super) checkers: &'a ParityCheckCache,
    /// Rounding of the workers' arithmetic.
    pub(super) rounding: Rounding,
    /// The audit of this run. [`Audit::Watch`] here means that this run waits for a spare result.
    pub(super) audit: Audit,
    pub(super) partial: bool,
    /// For an audit: expected squared norm of each sub-result, from its operands, by subtask and index.
    pub(super) energies: Vec<f64>,
}

/// The results of one run so far.
pub(super) struct DecodingTracker<'a> {
    scheme: RecoveryContext<'a>,
    /// Whether parts of subtasks may count, and their basis once they do.
    partial: bool,
    basis: Option<Basis>,
    /// Results that an audit compares beyond those that decode: the number wanted, and the number required.
    wished: usize,
    needed: usize,
    /// With [`Audit::Watch`]: the set that decoded before a spare result was waited for.
    first: Vec<SubtaskId>,
    /// The minimum number of complete subtasks for the next check, since fewer left the audit in doubt.
    doubted: usize,
    /// Cached [`Recovery::error`], until the next result arrives.
    error: Option<f64>,
    chosen: Option<Arc<Decoder>>,
    in_doubt: bool,
    faulty: Vec<WorkerId>,
    flagged: Vec<SubtaskId>,
    floor: Option<f64>,
}

impl<'a> DecodingTracker<'a> {
    pub(super) fn new(scheme: RecoveryContext<'a>) -> Self {
        let code = scheme.code;
        let wished = usize::from(scheme.audit != Audit::Off);
        let needed = if scheme.audit == Audit::Watch { 0 } else { wished };
        // An audit compares whole subtasks only, so parts must not count.
        let audited = matches!(scheme.audit, Audit::Detect | Audit::Correct);
        let partial = scheme.partial && !audited && code.sub_results() > 1;
        Self {
            basis: None,
            partial,
            wished,
            needed,
            first: Vec::new(),
            doubted: 0,
            error: None,
            chosen: None,
            in_doubt: false,
            faulty: Vec::new(),
            flagged: Vec::new(),
            floor: None,
            scheme,
        }
    }

    /// The decoder to use, set once a verdict accepted a set.
    pub(super) fn chosen(&self) -> Option<&Arc<Decoder>> {
        self.chosen.as_ref()
    }

    /// Subtasks whose results the audit rejected.
    pub(super) fn flagged(&self) -> &[SubtaskId] {
        &self.flagged
    }

    /// Records that the results decoded from were compared with one computed on this machine: the smallest relative error
    /// that this was certain to find, or `None` where they contradict each other.
    pub(super) fn compared_with_own(&mut self, floor: Option<f64>) {
        self.in_doubt = floor.is_none();
        self.floor = floor;
    }

    /// The check of these sub-results.
    pub(super) fn checker(&self, inputs: &[SubResult]) -> Result<Arc<ParityCheck>> {
        self.scheme.checkers.checker(self.scheme.code, inputs)
    }

    /// Smallest relative error that the audit would have found, if all results were compared.
    pub(super) fn floor(&self) -> Option<f64> {
        self.floor.filter(|floor| floor.is_finite())
    }

    /// Whether all complete results were compared with each other.
    pub(super) fn audited(&self) -> bool {
        self.floor.is_some_and(|floor| floor < 1.0)
    }

    /// Whether more results arrived than needed to decode, and they were not compared.
    pub(super) fn has_unchecked_spares(&self, arrivals: &Arrivals) -> bool {
        let code = self.scheme.code;
        let decodes = match code.part_of(SubtaskId(0)) {
            None => code.recovery_threshold(),
            Some(_) => code.k_a() * code.k_b(),
        };
        self.scheme.audit == Audit::Off && arrivals.complete().len() > decodes
    }

    /// Compares the spare results that arrived anyway, by the sketches in `arrivals`. `energies` are as in
    /// [`RecoveryContext`]. Afterwards [`DecodingTracker::chosen`] uses no result found wrong, unless `in_doubt` holds.
    pub(super) fn check_spares(&mut self, arrivals: &Arrivals, energies: Vec<f64>) {
        self.scheme.energies = energies;
        self.scheme.audit = Audit::Watch;
        self.check(arrivals);
    }

    fn arrival<'b>(&self, arrivals: &'b Arrivals, of: SubResult) -> Option<&'b Arrival> {
        arrivals.get(of.subtask, self.scheme.code.index_of(of))
    }

    fn energy_of(&self, of: SubResult) -> f64 {
        let code = self.scheme.code;
        self.scheme
            .energies
            .get(of.subtask.0 * code.sub_results() + code.index_of(of))
            .copied()
            .unwrap_or(0.0)
    }

    /// Number of workers that confirm a part, where whole subtasks are copies. Two copies from one worker do not check each
    /// other: it makes the same mistake in both. Subtasks that `holds` names before they are complete are assumed to come
    /// from different workers.
    fn witnesses(&self, arrivals: &Arrivals, part: usize, holds: &dyn Fn(SubtaskId) -> bool) -> usize {
        let parts = self.scheme.code.k_a() * self.scheme.code.k_b();
        let (mut workers, mut to_come) = (Vec::new(), 0);
        for subtask in arrivals.subtasks().skip(part).step_by(parts).filter(|i| holds(*i)) {
            match arrivals.get(subtask, 0) {
                Some(arrival) if !workers.contains(&arrival.worker) => workers.push(arrival.worker),
                Some(_) => {}
                None => to_come += 1,
            }
        }
        workers.len() + to_come
    }

    /// Whether the subtasks that `holds` names are enough to decode from and, for an audit, to compare.
    fn enough(&self, arrivals: &Arrivals, holds: &dyn Fn(SubtaskId) -> bool) -> bool {
        let code = self.scheme.code;
        let count = arrivals.subtasks().filter(|i| holds(*i)).count();
        if count < self.doubted {
            return false;
        }
        match code.part_of(SubtaskId(0)) {
            None => count >= code.recovery_threshold() + self.needed,
            Some(_) => self.vouch(arrivals, holds, self.needed),
        }
    }

    /// Where whole subtasks are copies of parts: whether more than `spare` workers confirm every part by those that `holds`
    /// names.
    fn vouch(&self, arrivals: &Arrivals, holds: &dyn Fn(SubtaskId) -> bool, spare: usize) -> bool {
        let code = self.scheme.code;
        (0..code.k_a() * code.k_b()).all(|part| self.witnesses(arrivals, part, holds) > spare)
    }

    /// Whether there are enough complete subtasks to compare.
    fn comparable(&self, arrivals: &Arrivals) -> bool {
        let code = self.scheme.code;
        match code.part_of(SubtaskId(0)) {
            None => arrivals.complete().len() > code.recovery_threshold(),
            Some(_) => self.vouch(arrivals, &|i| arrivals.is_complete(i), 1),
        }
    }

    fn bound(&self, condition: f64) -> f64 {
        self.scheme.rounding.normwise(condition)
    }

    /// Predicted error of decoding whole subtasks.
    fn whole(&self, subtasks: &[SubtaskId]) -> f64 {
        let decoder = self.scheme.decoders.decoder(self.scheme.code, &rows(subtasks));
        decoder.map_or(f64::INFINITY, |decoder| self.bound(decoder.condition()))
    }

    fn of_basis(&self, basis: &Basis) -> f64 {
        let condition = basis.condition();
        // The estimate is more than half of the true condition number. The prediction must hold for the decoder: otherwise a
        // run that could have waited would be refused for its error.
        if condition <= PARTIAL_CONDITION { self.bound(2.0 * condition) } else { f64::INFINITY }
    }

    /// Relative rounding error of a sub-result. Rounding is relative to the terms of a sum. Where the terms cancel (filters
    /// that sum to zero on nearly constant data), the error is large beside the result without being a contradiction. The
    /// usual bound has room for some of that.
    pub(super) fn noise(&self, arrivals: &Arrivals, inputs: &[SubResult]) -> f64 {
        let expected: f64 = inputs.iter().map(|of| self.energy_of(*of)).sum();
        let sketches = inputs.iter().filter_map(|of| self.arrival(arrivals, *of)?.sketch.as_deref());
        let found: f64 = sketches.flat_map(|sketch| sketch.0).map(|v| v * v).sum();
        let cancelled = if found > 0.0 { (expected / found).sqrt() } else { 1.0 };
        self.bound(1.0) * (cancelled * CANCELLED).max(1.0)
    }

    /// The smallest error that an audit of the complete subtasks is certain to find.
    fn audit_floor(&self, arrivals: &Arrivals) -> f64 {
        let code = self.scheme.code;
        let inputs = code.sub_results_of(&rows(arrivals.complete()));
        let groups: Vec<usize> = inputs
            .iter()
            .map(|of| self.arrival(arrivals, *of).map_or(0, |arrival| arrival.worker.0))
            .collect();
        let checker = self.scheme.checkers.checker(code, &inputs);
        checker.map_or(f64::INFINITY, |checker| checker.floor(&groups, self.noise(arrivals, &inputs)))
    }

    fn choose(&mut self, subtasks: &[SubtaskId]) -> bool {
        self.chosen = self.scheme.decoders.decoder(self.scheme.code, &rows(subtasks)).ok();
        self.chosen.is_some()
    }

    /// Compares the complete subtasks; `None` where that is impossible, or where [`Audit::Detect`] found a contradiction.
    fn examine(&self, arrivals: &Arrivals) -> Option<Finding> {
        let code = self.scheme.code;
        let inputs = code.sub_results_of(&rows(arrivals.complete()));
        let compared = inputs.iter().map(|of| {
            let arrival = self.arrival(arrivals, *of)?;
            Some((arrival.worker.0, arrival.sketch.as_deref()?))
        });
        let (groups, sketches): (Vec<usize>, Vec<&Sketch>) =
            compared.collect::<Option<Vec<_>>>()?.into_iter().unzip();
        let noise = self.noise(arrivals, &inputs);
        let checker = self.scheme.checkers.checker(code, &inputs).ok()?;
        if checker.is_consistent(&sketches, noise) {
            return Some(Finding::Consistent { floor: checker.floor(&groups, noise) });
        }
        tracing::warn!(residual = checker.residual(&sketches, noise), "results contradict each other");
        if self.scheme.audit == Audit::Detect {
            return None;
        }
        let faulty = locate_errors(code, &inputs, &groups, &sketches, noise, MOST_LIARS).unwrap_or_default();
        let faulty: Vec<WorkerId> = faulty.into_iter().map(WorkerId).collect();
        let wrong = |subtask: &SubtaskId| {
            inputs
                .iter()
                .zip(&groups)
                .any(|(of, worker)| of.subtask == *subtask && faulty.contains(&WorkerId(*worker)))
        };
        let (flagged, honest) = arrivals.complete().iter().partition(|subtask| wrong(subtask));
        Some(if faulty.is_empty() { Finding::Unclear } else { Finding::Liars { faulty, flagged, honest } })
    }

    fn check(&mut self, arrivals: &Arrivals) -> Verdict {
        self.in_doubt = true;
        match self.examine(arrivals) {
            None if self.scheme.audit == Audit::Watch => return self.accept_unchecked(arrivals),
            None => return Verdict::Refuse,
            Some(Finding::Consistent { floor }) => {
                let set = self.to_decode(arrivals);
                if self.choose(&set) {
                    (self.in_doubt, self.floor) = (false, Some(floor));
                    return Verdict::Accept;
                }
            }
            Some(Finding::Liars { faulty, flagged, honest }) => {
                // The remaining copies must still confirm each other.
                let copies = self.scheme.code.part_of(SubtaskId(0)).is_some();
                let vouched = !copies || self.vouch(arrivals, &|i| honest.contains(&i), self.wished);
                if vouched && self.choose(&honest) {
                    (self.in_doubt, self.floor) = (false, Some(AUDIT_TARGET));
                    (self.faulty, self.flagged) = (faulty, flagged);
                    return Verdict::Accept;
                }
            }
            Some(Finding::Unclear) => {}
        }
        // Wait for one more result: it may resolve the doubt.
        self.doubted = arrivals.complete().len() + 1;
        Verdict::Doubt
    }

    /// The subtasks to decode from when all agree: those that came before a spare one was waited for, unless they are
    /// conditioned much worse.
    fn to_decode(&self, arrivals: &Arrivals) -> Vec<SubtaskId> {
        let decodes = !self.first.is_empty() && self.doubted == 0;
        if decodes
            && self.whole(&self.first)
                <= self.bound(COMPARABLE_CONDITION).max(self.whole(arrivals.complete()))
        {
            return self.first.clone();
        }
        arrivals.complete().to_vec()
    }

    /// Decodes from complete subtasks without comparing them.
    fn accept_unchecked(&mut self, arrivals: &Arrivals) -> Verdict {
        self.in_doubt = false;
        if self.choose(arrivals.complete()) { Verdict::Accept } else { Verdict::Doubt }
    }
}

/// Subtasks as rows of the code's generator matrices.
fn rows(subtasks: &[SubtaskId]) -> Vec<usize> {
    subtasks.iter().map(|subtask| subtask.0).collect()
}

/// The result of comparing the complete subtasks.
enum Finding {
    Consistent {
        floor: f64,
    },
    Liars {
        faulty: Vec<WorkerId>,
        flagged: Vec<SubtaskId>,
        honest: Vec<SubtaskId>,
    },
    /// They contradict each other, and several explanations are equally good.
    Unclear,
}

impl Recovery for DecodingTracker<'_> {
    fn arrived(&mut self, _: &Arrivals, subtask: SubtaskId, index: usize) {
        let code = self.scheme.code;
        self.error = None;
        if let Some(basis) = &mut self.basis {
            basis.add(code.recovery_column(code.sub_result(subtask, index)));
        }
    }

    fn count_parts(&mut self, arrivals: &Arrivals) {
        if self.partial {
            let code = self.scheme.code;
            let mut basis = Basis::new(code.k_a() * code.k_b());
            for arrival in arrivals.in_order() {
                basis.add(code.recovery_column(code.sub_result(arrival.subtask, arrival.index)));
            }
            self.basis = Some(basis);
            self.error = None;
        }
    }

    fn error(&mut self, arrivals: &Arrivals) -> f64 {
        if let Some(error) = self.error {
            return error;
        }
        let error = if self.enough(arrivals, &|i| arrivals.is_complete(i)) {
            // Where even all results together cannot reach the target, the report gives the error that they can detect.
            let awaited = arrivals.complete().len() < arrivals.n();
            if self.needed > 0 && awaited && self.audit_floor(arrivals) > AUDIT_TARGET {
                f64::INFINITY
            } else {
                if self.scheme.audit == Audit::Watch && self.first.is_empty() {
                    self.first = arrivals.complete().to_vec();
                }
                self.whole(arrivals.complete())
            }
        } else {
            // While whole subtasks are in doubt, parts are too.
            let basis = self.basis.as_ref().filter(|_| self.doubted == 0);
            basis.map_or(f64::INFINITY, |basis| self.of_basis(basis))
        };
        self.error = Some(error);
        error
    }

    fn error_with(&mut self, arrivals: &Arrivals, more: &[SubtaskId]) -> f64 {
        let mut union = arrivals.complete().to_vec();
        union.extend(more);
        union.sort_unstable();
        union.dedup();
        if self.scheme.code.determines(&|i| union.binary_search(&i).is_ok()) {
            return self.whole(&union);
        }
        let Some(basis) = &self.basis else { return f64::INFINITY };
        let mut basis = basis.clone();
        let code = self.scheme.code;
        let coming =
            code.sub_results_of(&rows(more)).into_iter().filter(|of| self.arrival(arrivals, *of).is_none());
        for of in coming {
            basis.add(code.recovery_column(of));
        }
        self.of_basis(&basis)
    }

    fn suffices_with(&self, arrivals: &Arrivals, also: &dyn Fn(SubtaskId) -> bool) -> bool {
        let complete = |i: SubtaskId| arrivals.is_complete(i);
        let more = || arrivals.subtasks().any(|i| !complete(i) && also(i));
        // Where nothing more comes, the results at hand must do; an audit may decide otherwise.
        self.enough(arrivals, &|i| complete(i) || also(i))
            && (self.error.is_some_and(f64::is_finite) || more())
    }

    fn wants(&self, arrivals: &Arrivals, subtask: SubtaskId) -> bool {
        let witnesses = |part| self.witnesses(arrivals, part, &|i| arrivals.is_complete(i));
        let part = self.scheme.code.part_of(subtask);
        self.doubted > 0 || part.is_none_or(|part| witnesses(part) <= self.wished)
    }

    fn judge(&mut self, arrivals: &Arrivals) -> Verdict {
        let watched = self.scheme.audit == Audit::Watch && self.doubted == 0;
        if self.scheme.audit != Audit::Off && (!watched || self.comparable(arrivals)) {
            let verdict = self.check(arrivals);
            if verdict == Verdict::Doubt {
                self.error = Some(f64::INFINITY);
            }
            return verdict;
        }
        let found = if self.enough(arrivals, &|i| arrivals.is_complete(i)) {
            self.choose(arrivals.complete())
        } else {
            // Such a set rarely occurs twice: its decoder is not cached.
            let code = self.scheme.code;
            let arrived: Vec<_> =
                arrivals.in_order().map(|arrival| code.sub_result(arrival.subtask, arrival.index)).collect();
            self.chosen = Decoder::generic(code, &arrived).ok().map(Arc::new);
            self.chosen.is_some()
        };
        if found {
            return Verdict::Accept;
        }
        // The estimate was too optimistic: from here on only whole subtasks count.
        self.basis = None;
        self.error = Some(f64::INFINITY);
        Verdict::Doubt
    }

    fn in_doubt(&self) -> bool {
        self.in_doubt
    }

    fn wishes(&self, arrivals: &Arrivals) -> bool {
        // Also where parts of subtasks are enough to decode: otherwise workers that advance in step are never compared.
        let watches = self.scheme.audit == Audit::Watch && self.doubted == 0;
        watches && !(self.comparable(arrivals) && self.audit_floor(arrivals) <= AUDIT_TARGET)
    }

    fn used(&self, _: &Arrivals) -> Vec<(SubtaskId, usize)> {
        let inputs = self.chosen.iter().flat_map(|decoder| decoder.inputs());
        inputs.map(|of| (of.subtask, self.scheme.code.index_of(*of))).collect()
    }

    fn faulty(&self) -> &[WorkerId] {
        &self.faulty
    }

    fn needed(&self) -> usize {
        (self.scheme.code.recovery_threshold() + self.needed).max(self.doubted)
    }
}
