//! Runs one layer or model under every scenario, by all methods in turns, on real or simulated workers.
//!
//! Invariant: all methods of a trial meet the same faults, in an order that changes from trial to trial.

use std::time::Duration;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::scenario::{Scenario, mix, straggler_delay};
use super::schema::{BreakEven, MethodPlan, MethodResult, ScenarioResult, Study};
use super::stats;
use fcdcc::error::{Error, Result};
use fcdcc::worker::TaskFault;

/// First trials of a scenario whose outputs are compared with the reference.
const CHECKED: usize = 2;
/// Initial trials without stragglers that measure the latency of each method.
const PROBES: usize = 5;
/// Warm-up runs of every method before a scenario counts: a layer evaluates its latency history every eight runs, and does
/// not hedge before the first evaluation.
const WARM_UP: usize = 9;
/// Warm-up runs if only the delay has changed.
const WARM_UP_AGAIN: usize = 3;
/// The delays of a break-even sweep, as multiples of the default delay.
const SWEEP: [f64; 6] = [0.0, 0.25, 0.5, 1.0, 2.0, 4.0];
/// A break-even point has the trials of a scenario divided by this, at least [`LEAST_SWEEP`].
const SWEEP_SHARE: usize = 4;
const LEAST_SWEEP: usize = 5;
/// Maximum number of straggler counts with a break-even sweep.
const MOST_SWEEPS: usize = 3;
/// Number of trials that the time estimate simulates.
const FORESEEN: usize = 20;

/// Runs one layer or model by one method.
pub trait MethodRunner {
    /// Runs once under these faults and returns when no worker computes any more. With `check`, compares the output with
    /// the reference.
    ///
    /// # Errors
    /// Errors unrelated to the faults; a run without output is a [`Trial`] too.
    fn run(&mut self, fates: &[TaskFault], check: bool) -> Result<Trial>;

    /// Forgets, as far as possible, what earlier runs have measured of its workers.
    ///
    /// # Errors
    /// The errors of preparing the layer again.
    fn forget(&mut self) -> Result<()> {
        Ok(())
    }
}

/// One run of one method.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trial {
    /// From the input to the output, or to the end of a run that failed.
    pub latency_ms: f64,
    /// Part of the latency: padding, cutting and encoding.
    pub encode_ms: f64,
    /// Part of the latency: from the first dispatch to the result that made decoding possible.
    pub wait_ms: f64,
    /// Part of the latency: decoding.
    pub decode_ms: f64,
    /// Bytes sent to workers.
    pub bytes_up: f64,
    /// Bytes received from workers.
    pub bytes_down: f64,
    /// Multiply-adds begun on workers.
    pub macs: f64,
    /// Share of the begun work whose results were not used.
    pub wasted: f64,
    /// Subtasks dispatched again.
    pub redispatched: f64,
    /// Subtasks copied to idle workers.
    pub hedged: f64,
    /// Condition number of the recovery matrix that was used.
    pub condition: f64,
    /// Relative L2 error against the reference and its limit, if the output was checked.
    pub error: Option<[f64; 2]>,
    /// Why there is no output; `None` if there is one.
    pub failure: Option<String>,
}

/// The available methods with their plans.
pub type Contestants<'a> = Vec<(MethodPlan, Box<dyn MethodRunner + 'a>)>;

/// What to study.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Workers of each method.
    pub workers: usize,
    /// Stragglers that coded methods are to survive.
    pub tolerate: usize,
    /// Trials of each method in each scenario.
    pub trials: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// Scenarios that replace the default suite.
    pub scenarios: Option<Vec<Scenario>>,
    /// Delay of the stragglers, in the suite and in the middle of a break-even sweep; by default [`straggler_delay`] of the
    /// first method's latency.
    pub delay: Option<Duration>,
    /// Whether to search for the break-even delay.
    pub break_even: bool,
}

/// Progress of a study.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress<'a> {
    /// The study begins.
    Begins {
        /// The study's name.
        study: &'a str,
        /// Estimated duration of the whole study.
        estimate: Duration,
    },
    /// A trial is done.
    Step {
        /// The study's name.
        study: &'a str,
        /// The scenario's name.
        scenario: &'a str,
        /// Trials done, of all methods together.
        done: usize,
        /// Total number of trials.
        total: usize,
    },
}

/// A study in progress; the runner fills in the frame.
struct Runner<'a, 'b> {
    plan: &'a Plan,
    name: &'a str,
    macs: f64,
    contestants: &'a mut Contestants<'b>,
    observe: &'a mut dyn FnMut(Progress<'_>),
    done: usize,
    total: usize,
}

/// Runs all methods under all scenarios. `frame` has the names and numbers of the study. Its plans, scenarios and
/// break-even delays are filled in, and its multiply-adds if they are 0 (with those of the first method).
///
/// # Errors
/// [`Error::InvalidParameter`] for no methods, no trials or scenarios that name nonexistent workers; [`Error::Inexact`] if
/// an output exceeds its error bound; the errors of the method runners.
pub fn study(
    plan: &Plan,
    frame: Study,
    mut contestants: Contestants<'_>,
    observe: &mut dyn FnMut(Progress<'_>),
) -> Result<Study> {
    if contestants.is_empty() {
        return Err(Error::invalid("number of methods", 0, format!("none can be had for {}", frame.name)));
    }
    if plan.trials == 0 {
        return Err(Error::invalid("number of trials (--trials)", 0, "use at least one"));
    }
    let mut runner = Runner {
        plan,
        name: &frame.name,
        macs: frame.macs,
        contestants: &mut contestants,
        observe,
        done: 0,
        total: 0,
    };
    let calm = runner.probe()?;
    let delay = plan
        .delay
        .unwrap_or_else(|| straggler_delay(Duration::try_from_secs_f64(calm[0] / 1e3).unwrap_or_default()));
    let scenarios = plan
        .scenarios
        .clone()
        .unwrap_or_else(|| fitting(Scenario::suite(plan.tolerate, delay), plan.workers));
    scenarios.iter().try_for_each(|scenario| scenario.check(plan.workers))?;
    let sweeps = if plan.break_even { sweeps(plan, delay) } else { Vec::new() };
    runner.foresee(&calm, &scenarios, &sweeps);
    let results = scenarios.iter().enumerate();
    let scenarios: Vec<ScenarioResult> =
        results.map(|(index, scenario)| runner.scenario(index, scenario)).collect::<Result<_>>()?;
    let break_even = runner.break_even(&sweeps)?;
    let macs = runner.macs;
    let mut plans: Vec<MethodPlan> = contestants.into_iter().map(|(plan, _)| plan).collect();
    if frame.kind == "model" {
        // Each layer has its own plans.
        plans.clear();
    }
    Ok(Study { macs, plans, scenarios, break_even, ..frame })
}

fn fitting(mut suite: Vec<Scenario>, workers: usize) -> Vec<Scenario> {
    suite.retain(|scenario| scenario.check(workers).is_ok());
    suite
}

/// The scenarios of a break-even sweep, for some numbers of stragglers, with their delays.
fn sweeps(plan: &Plan, delay: Duration) -> Vec<(usize, Vec<(f64, Scenario)>)> {
    let most = plan.tolerate.min(plan.workers);
    let mut stragglers: Vec<usize> =
        if most <= MOST_SWEEPS { (1..=most).collect() } else { vec![1, most.div_ceil(2), most] };
    stragglers.dedup();
    let of = |stragglers: usize| {
        let point = |factor: &f64| {
            let delay = delay.mul_f64(*factor);
            let scenario =
                if delay.is_zero() { Scenario::default() } else { Scenario::late(stragglers, delay) };
            (delay.as_secs_f64() * 1e3, scenario)
        };
        (stragglers, SWEEP.iter().map(point).collect())
    };
    stragglers.into_iter().map(of).collect()
}

impl Runner<'_, '_> {
    fn sweep_trials(&self) -> usize {
        (self.plan.trials / SWEEP_SHARE).max(LEAST_SWEEP).min(self.plan.trials)
    }

    /// Median latency of each method without stragglers. If the layer's work is unknown, it is taken from the first method.
    fn probe(&mut self) -> Result<Vec<f64>> {
        let trials = self.trials("nobody late", &Scenario::default(), 0, PROBES, self.plan.seed)?;
        if self.macs == 0.0 {
            self.macs = trials[0].iter().map(|trial| trial.macs).fold(0.0, f64::max);
        }
        Ok(trials
            .iter()
            .map(|of| stats::median(&of.iter().map(|t| t.latency_ms).collect::<Vec<_>>()))
            .collect())
    }

    /// Counts the trials to come and estimates their duration: the first method waits for all workers, the others for all
    /// but those that may be missing.
    fn foresee(&mut self, calm: &[f64], scenarios: &[Scenario], sweeps: &[(usize, Vec<(f64, Scenario)>)]) {
        let (trials, sweep) = (self.plan.trials, self.sweep_trials());
        let points = sweeps.iter().flat_map(|(_, points)| points.iter().enumerate());
        let points = points.map(|(index, (_, scenario))| (scenario, sweep + warm_up(index == 0)));
        let all = scenarios.iter().map(|scenario| (scenario, trials + warm_up(true))).chain(points);
        let (mut total, mut ms) = (0, 0.0);
        for (scenario, trials) in all {
            total += trials * calm.len();
            let mut late = vec![0.0; calm.len()];
            for trial in 0..FORESEEN {
                let fates = scenario.fates(self.plan.workers, trial, self.plan.seed);
                let mut times: Vec<f64> = fates.iter().map(|fate| fate.delay.as_secs_f64() * 1e3).collect();
                times.sort_by(|a, b| b.total_cmp(a));
                for (late, (plan, _)) in late.iter_mut().zip(&*self.contestants) {
                    *late += times.get(plan.tolerated).copied().unwrap_or(0.0) / FORESEEN as f64;
                }
            }
            ms += trials as f64 * calm.iter().zip(late).map(|(calm, late)| calm + late).sum::<f64>();
        }
        self.total = total;
        let estimate = Duration::try_from_secs_f64(ms / 1e3).unwrap_or(Duration::MAX);
        (self.observe)(Progress::Begins { study: self.name, estimate });
    }

    /// Runs the trials `from..from + count` of a scenario by every method; the results by method.
    fn trials(
        &mut self,
        name: &str,
        scenario: &Scenario,
        from: usize,
        count: usize,
        seed: u64,
    ) -> Result<Vec<Vec<Trial>>> {
        let methods = self.contestants.len();
        let mut trials: Vec<Vec<Trial>> = vec![Vec::with_capacity(count); methods];
        let mut order: Vec<usize> = (0..methods).collect();
        for trial in from..from + count {
            let fates = scenario.fates(self.plan.workers, trial, seed);
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(mix(mix(seed, trial as u64), u64::MAX)));
            for method in &order {
                let (plan, contestant) = &mut self.contestants[*method];
                let outcome = contestant.run(&fates, trial - from < CHECKED)?;
                check(&outcome, self.name, &plan.method, name)?;
                trials[*method].push(outcome);
                // Steps are reported only after the estimate.
                if self.total > 0 {
                    self.done += 1;
                    let (study, done, total) = (self.name, self.done, self.total);
                    (self.observe)(Progress::Step { study, scenario: name, done, total });
                }
            }
        }
        Ok(trials)
    }

    /// Trials after a warm-up that does not count; with `fresh`, the methods first forget earlier runs.
    fn measured(
        &mut self,
        name: &str,
        scenario: &Scenario,
        count: usize,
        salt: u64,
        fresh: bool,
    ) -> Result<Vec<Vec<Trial>>> {
        if fresh {
            self.contestants.iter_mut().try_for_each(|(_, contestant)| contestant.forget())?;
        }
        let seed = mix(self.plan.seed, salt);
        self.trials(name, scenario, count, warm_up(fresh), seed)?;
        self.trials(name, scenario, 0, count, seed)
    }

    fn scenario(&mut self, index: usize, scenario: &Scenario) -> Result<ScenarioResult> {
        let name = scenario.name(self.plan.workers);
        let trials = self.measured(&name, scenario, self.plan.trials, index as u64, true)?;
        let first: Vec<f64> = trials[0].iter().map(|trial| trial.latency_ms).collect();
        let methods = self.contestants.iter().zip(&trials).map(|((plan, _), trials)| {
            result(&plan.method, trials, &first, self.macs, mix(self.plan.seed, index as u64))
        });
        Ok(ScenarioResult {
            faults: scenario.faults.iter().map(ToString::to_string).collect(),
            stragglers: scenario.stragglers(),
            delay_ms: scenario.delay().map(|delay| delay.as_secs_f64() * 1e3),
            methods: methods.collect(),
            name,
        })
    }

    /// The break-even delays of the last method against each other method.
    fn break_even(&mut self, sweeps: &[(usize, Vec<(f64, Scenario)>)]) -> Result<Vec<BreakEven>> {
        let mut found = Vec::new();
        let count = self.sweep_trials();
        for (stragglers, scenarios) in sweeps {
            let mut medians = Vec::new();
            for (index, (delay, scenario)) in scenarios.iter().enumerate() {
                let name = format!("break-even: {}", scenario.name(self.plan.workers));
                let salt = mix(*stragglers as u64, index as u64);
                let trials = self.measured(&name, scenario, count, salt, index == 0)?;
                let median =
                    |of: &Vec<Trial>| stats::median(&of.iter().map(|t| t.latency_ms).collect::<Vec<_>>());
                medians.push((*delay, trials.iter().map(median).collect::<Vec<f64>>()));
            }
            let last = self.contestants.len() - 1;
            for (method, (plan, _)) in self.contestants[..last].iter().enumerate() {
                let points: Vec<[f64; 3]> =
                    medians.iter().map(|(delay, of)| [*delay, of[last], of[method]]).collect();
                let (against, stragglers) = (plan.method.clone(), *stragglers);
                found.push(BreakEven { against, stragglers, delay_ms: stats::crossing(&points), points });
            }
        }
        Ok(found)
    }
}

fn warm_up(fresh: bool) -> usize {
    if fresh { WARM_UP } else { WARM_UP_AGAIN }
}

/// Fails if the output of a checked trial exceeds its error bound.
fn check(trial: &Trial, study: &str, method: &str, scenario: &str) -> Result<()> {
    match trial.error {
        Some([error, bound]) if error.is_nan() || error > bound => {
            let what = format!("{study} by {method} ({scenario})");
            let help = "no time measured with such results counts; check the workers with fcdcc conv --audit correct";
            Err(Error::Inexact { what, error, bound, help: help.into() })
        }
        _ => Ok(()),
    }
}

fn result(method: &str, trials: &[Trial], first: &[f64], macs: f64, seed: u64) -> MethodResult {
    let of = |get: fn(&Trial) -> f64| trials.iter().map(get).collect::<Vec<f64>>();
    let (mean, median) = (|get| stats::mean(&of(get)), |get| stats::median(&of(get)));
    let latencies = of(|trial| trial.latency_ms);
    let quantile = |q: f64| move |sorted: &[f64]| stats::quantile(sorted, q);
    let (q50, q90, q99, q999) = (quantile(0.5), quantile(0.9), quantile(0.99), quantile(0.999));
    let [m50, m90, m99, m999, average] =
        stats::estimates(&latencies, [&q50, &q90, &q99, &q999, &stats::mean], seed);
    let errors = trials.iter().filter_map(|trial| trial.error).map(|[error, _]| error);
    MethodResult {
        method: method.to_owned(),
        failed: trials.iter().filter(|trial| trial.failure.is_some()).count(),
        median: m50,
        p90: m90,
        p99: m99,
        p999: m999,
        mean: average,
        to_first: stats::paired_ratio(&latencies, first, seed),
        encode_ms: median(|t| t.encode_ms),
        wait_ms: median(|t| t.wait_ms),
        decode_ms: median(|t| t.decode_ms),
        bytes_up: mean(|t| t.bytes_up),
        bytes_down: mean(|t| t.bytes_down),
        work: if macs > 0.0 { mean(|t| t.macs) / macs } else { 0.0 },
        wasted: mean(|t| t.wasted),
        redispatched: mean(|t| t.redispatched),
        hedged: mean(|t| t.hedged),
        max_error: errors.reduce(f64::max),
        condition: median(|t| t.condition),
        latencies_ms: latencies,
    }
}

#[cfg(test)]
mod tests;
