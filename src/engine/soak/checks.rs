//! What must hold at the end of any run of the soak test.

use std::sync::Arc;

use rand::RngExt;

use super::layer::distance;
use super::workers::{Nature, Observed};
use super::{EPSILON, Run, SLACK, require};
use crate::coding::{Decoder, Epilogue, Rounding, decode};
use crate::error::Error;
use crate::ids::{SubtaskId, WorkerId};
use crate::scheduler::{Arrival, Arrivals, Audit, Decision, OnShortfall, Policy, Recovery, RunOutcome};

impl Run<'_> {
    fn lied(&self, arrival: &Arrival) -> bool {
        matches!(self.natures[arrival.worker.0], Nature::Liar(_))
    }

    pub(super) fn check(
        &mut self,
        outcome: &mut RunOutcome<Observed<'_>>,
        truth: &[f64],
    ) -> Result<(), String> {
        let Policy { deadline, on_shortfall, audit, patience, .. } = self.setting.policy;
        require(outcome.wait <= deadline, "ends after its deadline")?;
        let impatient = patience == 0.0 && audit == Audit::Off && self.limit.is_none();
        if impatient && let Some(at) = outcome.recovery.decodable_at {
            require(at == outcome.wait, &format!("waits although it could decode at {at:?}"))?;
        }
        match &outcome.end {
            Decision::Decode => return self.check_output(outcome, truth),
            Decision::Local => {
                require(on_shortfall != OnShortfall::Fail, "computes locally though told to fail")?;
                self.tally.local += 1;
            }
            Decision::Failed(Error::Corrupted { .. }) => {
                require(audit != Audit::Off, "refuses without an audit")?;
                let way_out = audit == Audit::Watch && on_shortfall != OnShortfall::Fail;
                require(!way_out || outcome.wait == deadline, "refuses what it could compute locally")?;
                let lied = outcome.arrivals.in_order().any(|arrival| self.lied(arrival));
                require(lied, "refuses although no worker lied")?;
                self.tally.refused += 1;
            }
            Decision::Failed(Error::Shortfall { .. } | Error::NonFiniteResults { .. }) => {
                let told = on_shortfall == OnShortfall::Fail;
                require(told || outcome.wait == deadline, "fails for no reason")?;
                self.tally.failed += 1;
            }
            Decision::Failed(error) => return Err(format!("fails with {error}")),
        }
        Ok(())
    }

    /// Whether at least two workers returned each part, where subtasks are copies of parts.
    fn is_vouched_for(&self, arrivals: &Arrivals) -> bool {
        let code = &self.layer.code;
        (0..code.k_a() * code.k_b()).all(|part| {
            let copies = arrivals.complete().iter().filter(|i| code.part_of(**i) == Some(part));
            let workers: Vec<WorkerId> = copies.flat_map(|i| arrivals.of(*i)).map(|a| a.worker).collect();
            workers.iter().any(|worker| *worker != workers[0])
        })
    }

    /// The faulty workers among the compared results must be exactly those that the audit names.
    fn check_audit(&mut self, outcome: &RunOutcome<Observed<'_>>, lies: usize) -> Result<(), String> {
        let (code, arrivals) = (&self.layer.code, &outcome.arrivals);
        let (audit, tracker) = (self.setting.policy.audit, &outcome.recovery.tracker);
        let complete = arrivals.complete();
        let compared = if code.part_of(SubtaskId(0)).is_some() {
            self.is_vouched_for(arrivals)
        } else {
            complete.len() > code.recovery_threshold()
        };
        require(matches!(audit, Audit::Off | Audit::Watch) || compared, "audits without a spare")?;
        require(!tracker.audited() || compared, "calls it audited without a spare")?;
        require(audit != Audit::Off || !tracker.audited(), "calls it audited without an audit")?;
        if !tracker.audited() {
            return Ok(());
        }
        self.tally.audited += 1;
        let faulty = tracker.faulty();
        let all = complete.iter().flat_map(|subtask| arrivals.of(*subtask));
        let mut lied: Vec<WorkerId> = all.filter(|a| self.lied(a)).map(|a| a.worker).collect();
        lied.sort_unstable();
        lied.dedup();
        require(faulty == lied, &format!("names {faulty:?} where {lied:?} lied"))?;
        require(audit != Audit::Detect || faulty.is_empty(), "detects and yet goes on")?;
        require(lies == 0, "decodes from a lie")?;
        let mut wrong = complete.to_vec();
        wrong.retain(|subtask| arrivals.of(*subtask).any(|a| faulty.contains(&a.worker)));
        require(tracker.flagged() == wrong, "flags other subtasks than the liars'")
    }

    fn check_output(&mut self, outcome: &mut RunOutcome<Observed<'_>>, truth: &[f64]) -> Result<(), String> {
        let (layer, Policy { audit, partial, .. }) = (self.layer, self.setting.policy);
        let code = &layer.code;
        let predicted = outcome.recovery.tracker.error(&outcome.arrivals);
        let decoder = Arc::clone(outcome.recovery.tracker.chosen().ok_or("decodes from nothing")?);
        let used = outcome.recovery.used(&outcome.arrivals);
        let mut subtasks: Vec<SubtaskId> = used.iter().map(|(subtask, _)| *subtask).collect();
        subtasks.dedup();
        let from_parts = subtasks.iter().any(|subtask| !outcome.arrivals.is_complete(*subtask));
        require(used.len() >= code.k_a() * code.k_b(), "decodes from fewer than there are parts")?;
        let whole = code.determines(&|i| subtasks.contains(&i));
        require(from_parts && partial && audit == Audit::Off || whole, "decodes below the threshold")?;
        let taken: Vec<&Arrival> =
            used.iter().filter_map(|(subtask, index)| outcome.arrivals.get(*subtask, *index)).collect();
        require(taken.len() == used.len(), "decodes from what never came")?;
        let lies = taken.iter().filter(|arrival| self.lied(arrival)).count();
        self.check_audit(outcome, lies)?;

        let faulty = outcome.recovery.faulty().len();
        let bound = decoder.error_bound(EPSILON, layer.shape.reduction());
        // The prediction decided whether to wait, so it must hold, up to rounding. (A set that decoded before a spare result
        // was waited for is decoded without that result.)
        let without_spare =
            audit == Audit::Watch && bound <= Rounding::plain::<f32>(layer.shape.reduction()).normwise(30.0);
        let as_predicted = bound <= predicted * (1.0 + 1e-9);
        require(as_predicted || without_spare || faulty > 0, "predicts less than it gets")?;
        self.tally.digest(used.iter().flat_map(|(subtask, index)| [subtask.0 as u64, *index as u64]));
        self.tally.digest([bound.to_bits()]);
        self.tally.found += faulty;
        if self.limit.is_some_and(|limit| bound > limit) {
            return self.check_refusal(outcome, faulty);
        }
        let results =
            taken.iter().map(|arrival| arrival.values.as_slice::<f32>().unwrap().to_vec()).collect();
        self.check_error(&decoder, results, bound, lies > 0, truth)?;
        self.tally.decoded += 1;
        self.tally.over_bad_network += usize::from(self.setting.bad_network);
        self.tally.from_parts += usize::from(from_parts);
        self.tally.better_than_needed +=
            usize::from(subtasks.len() > code.recovery_threshold() && !from_parts);
        Ok(())
    }

    /// The layer would be refused: allowed only if waiting could not have helped.
    fn check_refusal(&mut self, outcome: &mut RunOutcome<Observed<'_>>, faulty: usize) -> Result<(), String> {
        let policy = self.setting.policy;
        let coming: Vec<SubtaskId> =
            outcome.attempts.iter().filter(|a| !a.ended).map(|a| a.subtask).collect();
        let hopeless = outcome.recovery.error_with(&outcome.arrivals, &coming) > self.layer.limit;
        // A run does not wait longer for a better set than computing the layer locally takes.
        let way_out = policy.on_shortfall != OnShortfall::Fail || policy.audit == Audit::Watch;
        let local = policy.local_at(self.estimates.local).unwrap_or(policy.deadline);
        let late = outcome.wait >= local.min(policy.deadline / 4 * 3);
        self.tally.over_the_limit += 1;
        require(
            hopeless || way_out || late || faulty > 0,
            "is refused for its error though better was to come",
        )
    }

    /// Decodes, and compares the error with its bound.
    fn check_error(
        &mut self,
        decoder: &Decoder,
        mut results: Vec<Vec<f32>>,
        bound: f64,
        lied: bool,
        truth: &[f64],
    ) -> Result<(), String> {
        let layer = self.layer;
        let output = |results: &[Vec<f32>]| {
            let mut output = vec![0.0_f32; layer.shape.output_elems()];
            let results: Vec<&[f32]> = results.iter().map(Vec::as_slice).collect();
            let epilogue = Epilogue::default();
            decode(decoder, &layer.tiling, &results, epilogue, &mut output).map_err(|e| e.to_string())?;
            Ok::<_, String>(distance(&output, truth))
        };
        let error = output(&results)?;
        let off = error > SLACK * bound;
        if lied {
            self.tally.tainted += 1;
            self.tally.visibly += usize::from(off);
            return Ok(());
        }
        require(!off, &format!("is off by {error:.1e} where {bound:.1e} was predicted"))?;
        // Negative control: one result scaled by 1.01 must exceed the bound.
        let at = self.rng.random_range(0..results.len());
        results[at].iter_mut().for_each(|value| *value *= 1.01);
        require(output(&results)? > SLACK * bound, "does not show a wrong result")?;
        self.tally.worst = self.tally.worst.max(error / bound);
        Ok(())
    }
}
