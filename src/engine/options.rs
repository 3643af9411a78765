//! Options of a coded layer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::accuracy::WindowwiseLimit;
use super::report::LayerReport;
use crate::coding::{Clamp, CodeKind};
use crate::error::{Error, Message, Parameter, Result};
use crate::planner::Rates;
use crate::scheduler::{Audit, OnShortfall, Policy};

/// Options of a coded layer. The defaults are those of the command line.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerOptions {
    /// Name in reports.
    pub name: String,
    /// Code family.
    pub code: CodeKind,
    /// Coded subtasks n; by default one for each worker of the pool.
    pub subtasks: Option<usize>,
    /// Stragglers gamma to tolerate when the planner chooses the partitions.
    pub tolerate: usize,
    /// (k_A, k_B); by default the planner's choice for `tolerate`.
    pub partitions: Option<(usize, usize)>,
    /// Rates from which the planner predicts times.
    pub rates: Rates,
    /// Time limit from the first dispatch to a result.
    pub deadline: Duration,
    /// What to do when fewer results than needed can come.
    pub on_shortfall: OnShortfall,
    /// The quantile of the layer's subtask latencies after which idle workers get copies of missing subtasks; `None`:
    /// never. Requires [`OnShortfall::Redispatch`].
    pub hedge: Option<f64>,
    /// Whether sub-results of incomplete subtasks are used for decoding.
    pub partial: bool,
    /// Maximum extra wait for one more result in a badly conditioned run, as a fraction of the elapsed time per decimal
    /// digit of predicted error gained. 0: the first results that decode are taken.
    pub patience: f64,
    /// Whether spare results are used as checksums of the others.
    pub audit: Audit,
    /// Seed of the audit's random signs.
    pub seed: u64,
    /// Largest acceptable error bound, normwise and windowwise, also for layers computed on this machine; `None`: any.
    /// A result above it is refused if no other way of computing the layer brings it below.
    pub max_error: Option<f64>,
    /// Windowwise error bound of decoded results above which the layer is computed differently: a few windows that stand
    /// out are computed on this machine; otherwise the filters are split instead of the input, or parts are replicated, or
    /// the whole layer is computed on this machine.
    pub max_windowwise: WindowwiseLimit,
    /// Activation applied to the output, after the bias.
    pub clamp: Option<Clamp>,
    /// Receives the report of every run, also of runs without output.
    pub observer: Option<ReportObserver>,
}

/// Called with the report of every run of a layer, on the thread that runs it. Cheap to clone; equal only to its clones.
#[derive(Clone)]
pub struct ReportObserver(Arc<dyn Fn(&LayerReport) + Send + Sync>);

impl ReportObserver {
    /// Calls `observe`.
    pub fn new(observe: impl Fn(&LayerReport) + Send + Sync + 'static) -> Self {
        Self(Arc::new(observe))
    }

    pub(super) fn observe(&self, report: &LayerReport) {
        (self.0)(report);
    }
}

impl fmt::Debug for ReportObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReportObserver")
    }
}

impl PartialEq for ReportObserver {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
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
            rates: Rates::default(),
            deadline: policy.deadline,
            on_shortfall: policy.on_shortfall,
            hedge: policy.hedge,
            partial: policy.partial,
            patience: policy.patience,
            audit: policy.audit,
            seed: 0,
            max_error: None,
            max_windowwise: WindowwiseLimit::Automatic,
            clamp: None,
            observer: None,
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

    /// Sets the number of stragglers to tolerate.
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

    /// Sets the audit.
    #[must_use]
    pub fn audit(mut self, audit: Audit) -> Self {
        self.audit = audit;
        self
    }

    pub(super) fn policy(&self) -> Policy {
        Policy {
            deadline: self.deadline,
            on_shortfall: self.on_shortfall,
            hedge: self.hedge,
            partial: self.partial,
            patience: self.patience,
            audit: self.audit,
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.deadline.is_zero() {
            return Err(Error::invalid(
                Message::about("deadline", Parameter::Deadline),
                "0",
                "give a time above zero, such as 500ms or 2s",
            ));
        }
        if self.subtasks == Some(0) {
            let what = Message::about("number of subtasks n", Parameter::Subtasks);
            return Err(Error::invalid(what, 0, "use at least one"));
        }
        if let Some(q) = self.hedge
            && !(q > 0.0 && q < 1.0)
        {
            return Err(Error::invalid(
                Message::about("hedging quantile", Parameter::Hedge),
                q,
                "give a number between 0 and 1, or off",
            ));
        }
        if !(self.patience.is_finite() && self.patience >= 0.0) {
            return Err(Error::invalid(
                Message::about("patience", Parameter::Patience),
                self.patience,
                "give a number of at least 0",
            ));
        }
        if let Some(clamp) = self.clamp
            && (clamp.low.is_nan() || clamp.high.is_nan() || clamp.low > clamp.high)
        {
            let help = "the low bound must not be above the high one, and neither NaN";
            return Err(Error::invalid("activation", format!("{} to {}", clamp.low, clamp.high), help));
        }
        if let WindowwiseLimit::At(limit) = self.max_windowwise
            && (limit.is_nan() || limit <= 0.0)
        {
            let help = "give a relative error above zero, such as 1e-4, or off";
            let what = Message::about("windowwise limit", Parameter::MaxWindowwise);
            return Err(Error::invalid(what, limit, help));
        }
        match self.max_error {
            Some(limit) if limit.is_nan() || limit <= 0.0 => Err(Error::invalid(
                Message::about("tolerance", Parameter::MaxError),
                limit,
                "give a relative error above zero, such as 1e-3",
            )),
            _ => Ok(()),
        }
    }
}
