//! A coded layer on simulated workers: its scheduling without its numbers.
//!
//! Relevant if you want to study scheduling at scale. Assignment, latency history, gathering, hedging and redispatch are
//! those of [`CodedConv`](super::CodedConv); encoding, decoding and computing take the given virtual time.
//!
//! Invariant: a run differs from a real one only in the source of its times, apart from the exceptions listed at
//! [`SimulatedLayer`].

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::accuracy::Accuracy;
use super::holdings::{Holdings, TakeOver};
use super::options::LayerOptions;
use super::report::Completion;
use super::rules::{CACHED_DECODERS, RunRules};
use super::tracker::DecodingTracker;
use crate::array::{Buffers, DType, Pooled, Values};
use crate::coding::{Code, ParityCheckCache, Rounding};
use crate::conv::ConvShape;
use crate::error::{Error, Result};
use crate::ids::{SubtaskId, WorkerId};
use crate::planner::{choose_partitions, subtask_shape};
use crate::scheduler::{
    Arrivals, Audit, Banks, Decision, FilterHolders, Fleet, InstallRequest, JobLayer, JobPlan, OnShortfall,
    Outcome, Policy, Recovery, RunOutcome, SimulatedFleet, SimulatedWork, assign, rebalance, run_job,
};
use crate::worker::{CancelToken, FilterKey, SubtaskShape};

/// Up to this recovery threshold, responder sets are inverted for their condition numbers, which takes time in delta^3.
const EXACT_UP_TO: usize = 64;

/// Costs of a simulated layer beside those of the network and the workers' speeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimulatedCosts {
    /// Element type of inputs, filters and sub-results.
    pub dtype: DType,
    /// Costs of a subtask.
    pub work: SimulatedWork,
    /// Time to pad, partition and encode an input.
    pub encode: Duration,
    /// Time to decode and merge.
    pub decode: Duration,
    /// Time to encode the filters of one subtask again, for a worker that takes it over.
    pub encode_filters: Duration,
    /// Time to compute the layer locally when there are too few results.
    pub local: Duration,
}

impl SimulatedCosts {
    /// f32 subtasks with the costs `work`; everything else takes no time.
    #[must_use]
    pub fn of(work: SimulatedWork) -> Self {
        let none = Duration::ZERO;
        Self { dtype: DType::F32, work, encode: none, decode: none, encode_filters: none, local: none }
    }
}

/// Outcome of one run. Times are virtual.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SimulatedRun {
    /// How it ended.
    pub completion: Completion,
    /// The error, if there was no output.
    pub failure: Option<String>,
    /// Time to encode the input.
    pub encode: Duration,
    /// Time from the first dispatch to the decision.
    pub wait: Duration,
    /// Time to decode, or to compute locally.
    pub decode: Duration,
    /// Total time of the run.
    pub total: Duration,
    /// Bytes of coded slabs sent to workers.
    pub bytes_up: usize,
    /// Bytes of sub-results received before decoding.
    pub bytes_down: usize,
    /// Subtasks that were redispatched.
    pub redispatched: usize,
    /// Subtasks of which an idle worker got a copy.
    pub hedged: usize,
    /// Subtasks from which the output was decoded.
    pub used: Vec<SubtaskId>,
    /// Number of sub-results from which the output was decoded; all others were computed in vain.
    pub used_sub_results: usize,
    /// Every attempt at a subtask, in order of dispatch; the first attempts at all subtasks come first.
    pub attempts: Vec<SimulatedAttempt>,
    /// Condition number of the responder set; `None` if nothing was decoded or responders were only counted.
    pub condition: Option<f64>,
}

/// One attempt of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SimulatedAttempt {
    /// The subtask.
    pub subtask: SubtaskId,
    /// The worker.
    pub worker: WorkerId,
    /// Outcome of the attempt.
    pub outcome: Outcome,
    /// Time from the run's first dispatch to that of this attempt.
    pub since: Duration,
    /// Time from the attempt's dispatch to its last reply; `None` without a reply.
    pub latency: Option<Duration>,
    /// Sub-results that arrived in time.
    pub arrived: usize,
    /// Sub-results computed by the end of the run; a cancelled attempt may compute one more afterwards.
    pub computed: usize,
}

/// A layer prepared on the workers of a [`SimulatedFleet`], which hold its filters from the beginning.
///
/// It differs from a real layer in three ways:
/// * There are no numbers, hence no audits ([`Audit::Watch`] counts as [`Audit::Off`]), and data count as even.
/// * Dispatching, recording and deciding take the master no time (in reality about a microsecond a subtask), and its own
///   network is as fast as all links together.
/// * Above a recovery threshold of 64 (or after [`SimulatedLayer::counted`]) responder sets are counted, not inverted:
///   any `delta` whole subtasks decode exactly, parts of subtasks do not count, and patience and a largest error have no
///   effect.
pub struct SimulatedLayer {
    id: u64,
    options: LayerOptions,
    rules: RunRules,
    subtask: Arc<SubtaskShape>,
    costs: SimulatedCosts,
    counted: bool,
    holdings: RefCell<Holdings>,
    /// Filters on their way to newly assigned workers.
    moves: Vec<(SubtaskId, WorkerId)>,
}

/// A layer's filters on the fleet that it runs on.
struct Placement<'a> {
    layer: &'a SimulatedLayer,
    fleet: &'a SimulatedFleet,
}

impl SimulatedLayer {
    /// Chooses code and partitions as [`CodedConvBuilder::prepare`](super::CodedConvBuilder::prepare) does and assigns the subtasks.
    /// Run the layer only on this fleet.
    ///
    /// # Errors
    /// Those of [`CodedConvBuilder::prepare`](super::CodedConvBuilder::prepare) about shape and options, and
    /// [`Error::InvalidParameter`] for an audit.
    pub fn prepare(
        fleet: &mut SimulatedFleet,
        shape: ConvShape,
        options: LayerOptions,
        costs: SimulatedCosts,
    ) -> Result<Self> {
        options.check()?;
        if matches!(options.policy.audit, Audit::Detect | Audit::Correct) {
            let help = "simulated results have no numbers to compare: use off";
            return Err(Error::invalid("audit of a simulated layer", options.policy.audit.to_string(), help));
        }
        let code = options.code_for(fleet.len(), |n| {
            Ok(choose_partitions::<f32>(&shape, options.code, n, options.tolerate, &options.rates)?.0)
        })?;
        let subtask = Arc::new(subtask_shape(&shape, &code)?);
        let reduction = shape.reduction();
        let rounding = match costs.dtype {
            DType::F32 => Rounding::plain::<f32>(reduction),
            DType::F64 => Rounding::plain::<f64>(reduction),
        };
        let accuracy = Accuracy {
            rounding,
            limit: Accuracy::limit(options.max_windowwise, options.max_error, costs.dtype, &rounding),
            typical_condition: 1.0,
            windows: shape.batch * shape.groups * shape.output_plane(),
            window_macs: shape.macs(),
        };
        let mut holdings = Holdings::new(assign(code.n(), &fleet.seats()), 0);
        let id = fleet.add_layer(costs.work);
        for (subtask, worker) in holdings.homes().collect::<Vec<_>>() {
            fleet.hold(worker, FilterKey { layer: id, subtask });
            holdings.send(worker, subtask);
        }
        Ok(Self {
            id,
            counted: code.recovery_threshold() > EXACT_UP_TO,
            rules: RunRules::new(code, accuracy, ParityCheckCache::new(CACHED_DECODERS)),
            holdings: RefCell::new(holdings),
            moves: Vec::new(),
            options,
            subtask,
            costs,
        })
    }

    /// Counts responders at any recovery threshold, for studies in which their condition does not matter.
    #[must_use]
    pub fn counted(self) -> Self {
        Self { counted: true, ..self }
    }

    /// The code in use.
    #[must_use]
    pub fn code(&self) -> &Code {
        &self.rules.code
    }

    /// What each subtask computes.
    #[must_use]
    pub fn subtask(&self) -> &SubtaskShape {
        &self.subtask
    }

    /// The worker currently assigned to each subtask.
    #[must_use]
    pub fn assignment(&self) -> Vec<WorkerId> {
        self.holdings.borrow().assignment().to_vec()
    }

    /// Runs the layer from the fleet's current time on, and advances that to the time at which the output is ready.
    /// Cancelled workers stop only after that, as real ones do.
    pub fn run(&mut self, fleet: &mut SimulatedFleet) -> SimulatedRun {
        self.arrive(fleet);
        let run = if self.counted {
            self.attempt(fleet, Counting { code: self.code() }, |_| None)
        } else {
            self.attempt(
                fleet,
                DecodingTracker::new(self.rules.recovery(&self.options, Audit::Off, Vec::new())),
                |responses| responses.chosen().map(|decoder| decoder.condition()),
            )
        };
        if self.options.policy.on_shortfall == OnShortfall::Redispatch {
            self.follow_the_speeds(fleet);
        }
        run
    }

    fn attempt<R: Recovery>(
        &self,
        fleet: &SimulatedFleet,
        recovery: R,
        condition: impl Fn(&R) -> Option<f64>,
    ) -> SimulatedRun {
        let started = fleet.elapsed();
        fleet.spend(self.costs.encode);
        let crowded = fleet.is_crowded();
        let nothing = Arc::new(Pooled::unpooled(Values::F32(Vec::new())));
        let mut gathered = run_job(JobPlan {
            fleet,
            layer: JobLayer { id: self.id, shape: Arc::clone(&self.subtask), finite: true, sketcher: None },
            filters: &Placement { layer: self, fleet },
            policy: Policy { audit: Audit::Off, ..self.options.policy },
            estimates: self.rules.estimates(&self.options, 1.0, crowded, self.costs.local),
            slabs: std::iter::repeat_n(nothing, self.code().n()).collect(),
            buffers: Buffers::default(),
            recovery,
            cancel: &CancelToken::new(),
        });
        let decoding = fleet.elapsed();
        let end = std::mem::replace(&mut gathered.end, Decision::Decode);
        let condition = condition(&gathered.recovery);
        let local = match end {
            Decision::Local => true,
            Decision::Decode => !self.suffices(condition),
            Decision::Failed(_) => false,
        };
        let result = match end {
            Decision::Failed(error) => Err(error),
            Decision::Decode | Decision::Local if local => self.compute_locally(fleet, gathered.left),
            Decision::Decode | Decision::Local => {
                fleet.spend(self.costs.decode);
                Ok(())
            }
        };
        let decode = fleet.elapsed().saturating_sub(decoding);
        self.rules.learn(&mut gathered);
        let times = [self.costs.encode, decode, fleet.elapsed().saturating_sub(started)];
        self.report(fleet, &gathered, &result, local, condition, times)
    }

    fn report<R: Recovery>(
        &self,
        fleet: &SimulatedFleet,
        gathered: &RunOutcome<R>,
        result: &Result<()>,
        local: bool,
        condition: Option<f64>,
        [encode, decode, total]: [Duration; 3],
    ) -> SimulatedRun {
        let decoded = result.is_ok() && !local;
        let decoder_inputs = if decoded { gathered.recovery.used(&gathered.arrivals) } else { Vec::new() };
        let mut used: Vec<SubtaskId> = decoder_inputs.iter().map(|(subtask, _)| *subtask).collect();
        let used_sub_results = used.len();
        used.sort_unstable();
        used.dedup();
        let attempts: Vec<SimulatedAttempt> = gathered
            .attempts
            .iter()
            .enumerate()
            .map(|(index, a)| SimulatedAttempt {
                subtask: a.subtask,
                worker: a.worker,
                outcome: a.outcome,
                since: a.since,
                latency: a.latency,
                arrived: a.arrived,
                computed: fleet.computed(index),
            })
            .collect();
        let arrived: usize = attempts.iter().map(|a| a.arrived).sum();
        SimulatedRun {
            completion: Completion::of(result, local, gathered.traffic.repeated()),
            failure: result.as_ref().err().map(ToString::to_string),
            encode,
            wait: gathered.wait,
            decode,
            total,
            bytes_up: attempts.len() * self.costs.work.upload_bytes,
            bytes_down: arrived * self.costs.work.result_bytes,
            redispatched: gathered.traffic.redispatched,
            hedged: gathered.traffic.hedged,
            used,
            used_sub_results,
            attempts,
            condition: condition.filter(|_| decoded),
        }
    }

    /// Whether results decoded at `condition` from even data meet the error limits.
    fn suffices(&self, condition: Option<f64>) -> bool {
        let limit = self.rules.accuracy.max_error(1.0, self.options.max_error);
        let bound = condition.map(|condition| self.rules.accuracy.rounding.normwise(condition));
        bound.zip(limit).is_none_or(|(bound, limit)| bound <= limit)
    }

    /// Computes locally as the last rung, within the time `left` of the deadline.
    fn compute_locally(&self, fleet: &SimulatedFleet, left: Duration) -> Result<()> {
        fleet.spend(self.costs.local.min(left));
        if self.costs.local <= left {
            return Ok(());
        }
        Err(Error::Shortfall {
            needed: self.code().recovery_threshold(),
            total: self.code().n(),
            arrived: 0,
            waited_ms: u64::try_from(self.options.policy.deadline.as_millis()).unwrap_or(u64::MAX),
            missing: "too few workers answered, and computing the layer locally took too long".to_owned(),
            help: "raise the deadline".into(),
        })
    }

    /// Reassigns subtasks whose filters have arrived at their new workers.
    fn arrive(&mut self, fleet: &SimulatedFleet) {
        let (id, holdings) = (self.id, self.holdings.get_mut());
        self.moves.retain(|(subtask, worker)| {
            let key = FilterKey { layer: id, subtask: *subtask };
            let there = fleet.holds(*worker, key);
            if there {
                fleet.forget(holdings.end_move(*subtask, *worker), key);
            }
            !there
        });
    }

    /// Sends filters to the workers that the current speeds call for, beside their other work.
    fn follow_the_speeds(&mut self, fleet: &SimulatedFleet) {
        let holdings = self.holdings.get_mut();
        holdings.count_run();
        if !self.moves.is_empty() || !holdings.check_due(0) {
            return;
        }
        let assignment = holdings.assignment().to_vec();
        let Some(better) = rebalance(&assignment, &fleet.seats()) else { return };
        for (subtask, (old, new)) in (0..).map(SubtaskId).zip(assignment.into_iter().zip(better)) {
            if old == new {
                continue;
            }
            if holdings.begin_move(subtask, new) {
                let key = FilterKey { layer: self.id, subtask };
                let (shape, banks) = (Arc::clone(&self.subtask), Banks::Coded(Values::F32(Vec::new())));
                fleet.equip(new, InstallRequest { key, shape, banks });
            }
            self.moves.push((subtask, new));
        }
    }
}

impl FilterHolders for Placement<'_> {
    fn dispatch_all(&self, dispatch: &mut dyn FnMut(SubtaskId, WorkerId)) {
        let homes: Vec<_> = self.layer.holdings.borrow().homes().collect();
        for (subtask, worker) in homes {
            dispatch(subtask, worker);
        }
    }

    fn holds(&self, subtask: SubtaskId, worker: WorkerId) -> bool {
        self.layer.holdings.borrow().holds(subtask, worker)
    }

    fn take_over(&self, subtask: SubtaskId, worker: WorkerId) -> Option<Values> {
        let taken = self.layer.holdings.borrow_mut().take_over(subtask, worker);
        let TakeOver::Send { evicted } = taken else { return None };
        if let Some((worker, subtask)) = evicted {
            self.fleet.forget(worker, FilterKey { layer: self.layer.id, subtask });
        }
        self.fleet.spend(self.layer.costs.encode_filters);
        Some(Values::F32(Vec::new()))
    }
}

/// Counts responders: any `delta` whole subtasks decode, exactly.
struct Counting<'a> {
    code: &'a Code,
}

impl Counting<'_> {
    fn decodes(&self, arrivals: &Arrivals) -> bool {
        match self.code.part_of(SubtaskId(0)) {
            // With hundreds of workers, looking at each of them for every arrival would take most of the time.
            None => arrivals.complete().len() >= self.code.recovery_threshold(),
            Some(_) => self.code.determines(&|i| arrivals.is_complete(i)),
        }
    }
}

impl Recovery for Counting<'_> {
    fn error(&mut self, arrivals: &Arrivals) -> f64 {
        if self.decodes(arrivals) { 0.0 } else { f64::INFINITY }
    }

    fn error_with(&mut self, arrivals: &Arrivals, _: &[SubtaskId]) -> f64 {
        self.error(arrivals)
    }

    fn suffices_with(&self, arrivals: &Arrivals, also: &dyn Fn(SubtaskId) -> bool) -> bool {
        self.code.determines(&|i| arrivals.is_complete(i) || also(i))
    }

    fn wants(&self, arrivals: &Arrivals, subtask: SubtaskId) -> bool {
        // Of several copies of a part, one is enough.
        let part = self.code.part_of(subtask);
        part.is_none() || !arrivals.complete().iter().any(|i| self.code.part_of(*i) == part)
    }

    fn used(&self, arrivals: &Arrivals) -> Vec<(SubtaskId, usize)> {
        let each = |subtask: &SubtaskId| arrivals.of(*subtask).map(|a| (a.subtask, a.index));
        arrivals.complete().iter().flat_map(each).collect()
    }

    fn needed(&self) -> usize {
        let parts = self.code.k_a() * self.code.k_b();
        if self.code.part_of(SubtaskId(0)).is_some() { parts } else { self.code.recovery_threshold() }
    }
}
