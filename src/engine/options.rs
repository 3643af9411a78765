//! What a caller may choose about a coded layer.

use std::time::Duration;

use crate::coding::{Clamp, CodeKind};
use crate::error::{Error, Result};
use crate::scheduler::{OnShortfall, Policy};

/// Options of a coded layer; the defaults are those of the command line.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerOptions {
    /// Name in reports.
    pub name: String,
    /// Code family.
    pub code: CodeKind,
    /// n, coded subtasks; by default one for each worker of the pool.
    pub subtasks: Option<usize>,
    /// gamma, stragglers to survive when the planner chooses the partitions.
    pub tolerate: usize,
    /// (k_A, k_B); by default the planner's choice for `tolerate`.
    pub partitions: Option<(usize, usize)>,
    /// Time from first dispatch to a result.
    pub deadline: Duration,
    /// What to do when fewer results than needed can come.
    pub on_shortfall: OnShortfall,
    /// Largest acceptable error bound (relative L2).
    pub max_error: Option<f64>,
    /// Activation applied to the output, after the bias.
    pub clamp: Option<Clamp>,
}

impl Default for LayerOptions {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            name: "conv".to_owned(),
            code: CodeKind::Crme,
            subtasks: None,
            tolerate: 2,
            partitions: None,
            deadline: policy.deadline,
            on_shortfall: policy.on_shortfall,
            max_error: None,
            clamp: None,
        }
    }
}

impl LayerOptions {
    /// Sets the partitions (k_A, k_B).
    #[must_use]
    pub fn partitions(mut self, k_a: usize, k_b: usize) -> Self {
        self.partitions = Some((k_a, k_b));
        self
    }

    /// Sets the stragglers to survive.
    #[must_use]
    pub fn tolerate(mut self, tolerate: usize) -> Self {
        self.tolerate = tolerate;
        self
    }

    /// Sets the deadline.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets what to do when fewer results than needed can come.
    #[must_use]
    pub fn on_shortfall(mut self, on_shortfall: OnShortfall) -> Self {
        self.on_shortfall = on_shortfall;
        self
    }

    pub(super) fn policy(&self) -> Policy {
        Policy { deadline: self.deadline, on_shortfall: self.on_shortfall }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.deadline.is_zero() {
            return Err(Error::invalid(
                "deadline (--deadline)",
                "0",
                "give a time above zero, such as 500ms or 2s",
            ));
        }
        if self.subtasks == Some(0) {
            return Err(Error::invalid("number of subtasks n (--workers)", 0, "use at least one"));
        }
        if let Some(clamp) = self.clamp
            && (clamp.low.is_nan() || clamp.high.is_nan() || clamp.low > clamp.high)
        {
            let mend = "the low bound must not be above the high one, and neither NaN";
            return Err(Error::invalid("activation", format!("{} to {}", clamp.low, clamp.high), mend));
        }
        match self.max_error {
            Some(limit) if limit.is_nan() || limit <= 0.0 => Err(Error::invalid(
                "tolerance (--max-error)",
                limit,
                "give a relative error above zero, such as 1e-3",
            )),
            _ => Ok(()),
        }
    }
}
