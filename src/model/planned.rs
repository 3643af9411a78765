//! Prepares a model in the segments that the planner chooses.
//!
//! Invariant: a model that can be prepared in one segment is prepared, also where no worker takes the parts meant for it.

use std::ops::Range;

use super::load::Model;
use super::options::{ModelOptions, Progress, SegmentChoice};
use super::parted::PartedModel;
use super::prepared::PreparedModel;
use crate::error::{Error, Result};
use crate::planner::Place;
use crate::scheduler::Pool;
use crate::worker::CancelToken;

impl Model {
    /// Prepares the model in the segments that the planner chooses.
    pub(super) fn prepare_segments(
        &self,
        pool: &Pool,
        options: &ModelOptions,
        choice: &SegmentChoice,
        cancel: &CancelToken,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PreparedModel> {
        let rates = pool.shared(&options.layer.rates);
        let (sections, plan, _) = self.plan_segments(pool.len(), &rates, options, choice)?;
        let segments: Vec<(Range<usize>, Place)> =
            plan.iter().map(|segment| (segment.plan.pieces.clone(), segment.plan.place)).collect();
        let own = ModelOptions { segments: None, ..options.clone() };
        let on = (pool, &own);
        match PartedModel::prepare_cancellable(self, &sections, &segments, on, cancel, observe) {
            Ok(parted) => Ok(parted.planned(plan)),
            // Workers that did not take their parts after all, or a part that is too large for a file.
            Err(error @ (Error::Unavailable { .. } | Error::Model { .. } | Error::Memory { .. }))
                if !choice.workers.is_empty() =>
            {
                tracing::warn!(model = self.name(), %error, "too few workers hold a segment: planned without them");
                let without = SegmentChoice { workers: Vec::new(), ..choice.clone() };
                self.prepare_segments(pool, options, &without, cancel, observe)
            }
            Err(error) => Err(error),
        }
    }
}
