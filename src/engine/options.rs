//! Options of a coded layer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::accuracy::WindowwiseLimit;
use super::report::LayerReport;
use crate::coding::{Clamp, Code, CodeKind};
use crate::error::{Error, Message, Parameter, Result};
use crate::ids::SubtaskId;
use crate::planner::Rates;
use crate::scheduler::{Audit, OnShortfall, Policy};

/// Options of a coded layer. The defaults are those of the command line.
///
/// # Examples
///
/// Each option has a method:
///
/// ```
/// use std::time::Duration;
///
/// use fcdcc::{Audit, CodeKind, LayerOptions};
///
/// let options = LayerOptions::default()
///     .code(CodeKind::Chebyshev)
///     .tolerate(3)
///     .deadline(Duration::from_secs(2))
///     .hedge(None)
///     .audit(Audit::Correct);
/// assert_eq!((options.tolerate, options.policy.hedge), (3, None));
/// ```
///
/// Options that several layers share are values:
///
/// ```
/// # use fcdcc::{CodedConv, CpuWorker, Pool};
/// # use ndarray::ArrayD;
/// # let pool = Pool::new(CpuWorker::fleet(6))?;
/// # let (input, weight) = (ArrayD::<f32>::ones(vec![1, 2, 8, 8]), ArrayD::<f32>::ones(vec![4, 2, 3, 3]));
/// use fcdcc::{LayerOptions, OnShortfall};
///
/// let shared = LayerOptions::default().on_shortfall(OnShortfall::Fail);
/// let first = shared.clone().name("first");
/// let layer = CodedConv::builder(&pool, input.shape(), weight.view()).options(first).prepare()?;
/// assert_eq!(layer.name(), "first");
/// # Ok::<(), fcdcc::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LayerOptions {
    /// Name in reports.
    pub name: String,
    /// Code family.
    pub code: CodeKind,
    /// A code of the caller's own ([`Code::from_generators`]) instead of one of the family `code`; it decides `subtasks` and
    /// `partitions` too. For single layers: models divide each layer differently.
    pub own_code: Option<Arc<Code>>,
    /// Coded subtasks [n](crate::glossary#symbols); by default one for each worker of the pool.
    pub subtasks: Option<usize>,
    /// Stragglers [gamma](crate::glossary#symbols) to tolerate when the planner chooses the partitions.
    pub tolerate: usize,
    /// ([k_A, k_B](crate::glossary#symbols)); by default the planner's choice for `tolerate`.
    pub partitions: Option<(usize, usize)>,
    /// Rates from which the planner predicts times.
    pub rates: Rates,
    /// How long a run waits, what it checks, and what it does when waiting does not help.
    pub policy: Policy,
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
    /// Declares that filters, bias and all inputs are integers, and the largest magnitude of an input element. The outputs
    /// are then rounded to integers and exact: the layer is computed so that no error reaches a half before the rounding.
    /// Filters, bias and bounds of the activation are checked when the layer is prepared, inputs at every run. A decoded
    /// output that is too far from every integer proves that a result is wrong; the layer is then computed on this
    /// machine, and the worker is looked for.
    pub integers: Option<f64>,
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
        Self {
            name: "conv".to_owned(),
            code: CodeKind::Crme,
            own_code: None,
            subtasks: None,
            tolerate: 2,
            partitions: None,
            rates: Rates::default(),
            policy: Policy::default(),
            seed: 0,
            max_error: None,
            max_windowwise: WindowwiseLimit::Automatic,
            clamp: None,
            integers: None,
            observer: None,
        }
    }
}

impl LayerOptions {
    /// Whether this machine computes spare results that audits lack. Where subtasks are copies of parts, one subtask checks
    /// only one part; and a layer that fails on a shortfall computes nothing here.
    pub(super) fn computes_spares(&self, code: &Code) -> bool {
        self.policy.on_shortfall != OnShortfall::Fail && code.part_of(SubtaskId(0)).is_none()
    }

    /// Sets the name in reports.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets the code family.
    #[must_use]
    pub fn code(mut self, code: CodeKind) -> Self {
        self.code = code;
        self
    }

    /// Sets a code of the caller's own, instead of one of a family.
    #[must_use]
    pub fn own_code(mut self, code: impl Into<Arc<Code>>) -> Self {
        self.own_code = Some(code.into());
        self
    }

    /// Sets the number of coded subtasks n.
    #[must_use]
    pub fn subtasks(mut self, subtasks: usize) -> Self {
        self.subtasks = Some(subtasks);
        self
    }

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

    /// Sets the rates from which the planner predicts times.
    #[must_use]
    pub fn rates(mut self, rates: Rates) -> Self {
        self.rates = rates;
        self
    }

    /// Sets the whole policy of a run.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets [`Policy::deadline`].
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.policy.deadline = deadline;
        self
    }

    /// Sets [`Policy::on_shortfall`].
    #[must_use]
    pub fn on_shortfall(mut self, on_shortfall: OnShortfall) -> Self {
        self.policy.on_shortfall = on_shortfall;
        self
    }

    /// Sets [`Policy::hedge`], a quantile or `None`.
    #[must_use]
    pub fn hedge(mut self, hedge: impl Into<Option<f64>>) -> Self {
        self.policy.hedge = hedge.into();
        self
    }

    /// Sets [`Policy::partial`].
    #[must_use]
    pub fn partial(mut self, partial: bool) -> Self {
        self.policy.partial = partial;
        self
    }

    /// Sets [`Policy::patience`].
    #[must_use]
    pub fn patience(mut self, patience: f64) -> Self {
        self.policy.patience = patience;
        self
    }

    /// Sets [`Policy::audit`].
    #[must_use]
    pub fn audit(mut self, audit: Audit) -> Self {
        self.policy.audit = audit;
        self
    }

    /// Sets the seed of the audit's random signs.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the largest acceptable error bound; `None`: any.
    #[must_use]
    pub fn max_error(mut self, max_error: impl Into<Option<f64>>) -> Self {
        self.max_error = max_error.into();
        self
    }

    /// Sets the windowwise error bound above which the layer is computed differently.
    #[must_use]
    pub fn max_windowwise(mut self, max_windowwise: WindowwiseLimit) -> Self {
        self.max_windowwise = max_windowwise;
        self
    }

    /// Sets the activation applied after the bias.
    #[must_use]
    pub fn clamp(mut self, clamp: Clamp) -> Self {
        self.clamp = Some(clamp);
        self
    }

    /// Declares that filters, bias and inputs are integers, with the largest magnitude of an input element:
    /// [`LayerOptions::integers`].
    #[must_use]
    pub fn integers(mut self, largest: f64) -> Self {
        self.integers = Some(largest);
        self
    }

    /// Sets the observer of every run.
    #[must_use]
    pub fn observer(mut self, observer: ReportObserver) -> Self {
        self.observer = Some(observer);
        self
    }

    /// The code for a pool of `workers` workers; `choose` chooses the partitions where the options leave them open.
    pub(super) fn code_for(
        &self,
        workers: usize,
        choose: impl FnOnce(usize) -> Result<(usize, usize)>,
    ) -> Result<Code> {
        if let Some(own) = &self.own_code {
            return Ok(own.as_ref().clone());
        }
        let n = self.subtasks.unwrap_or(workers);
        let (k_a, k_b) = self.partitions.map_or_else(|| choose(n), Ok)?;
        Code::new(self.code, k_a, k_b, n)
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.policy.check()?;
        if self.subtasks == Some(0) {
            let what = Message::about("number of subtasks n", Parameter::Subtasks);
            return Err(Error::invalid(what, 0, "use at least one"));
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
        if let Some(largest) = self.integers
            && !(largest.is_finite() && largest >= 0.0)
        {
            let help = "give a finite number that is not negative, such as 255";
            return Err(Error::invalid("largest magnitude of integers in the input", largest, help));
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
