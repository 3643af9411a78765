//! Runs a load file: every method at every load, and the cells of its map.
//!
//! Invariant: results depend on the file alone; runs on several threads are put together in order.

use rayon::prelude::*;

use super::faults::{ARRIVAL, Draws, MachineFault, Span};
use super::results::{Cell, Map, MethodLatencies, ModelStudy, Point, State, Usage, best, coding_gain};
use super::sim::{GivenUp, RunOutcome, Setting, run};
use super::spec::{Arrivals, LoadMethod, LoadSpec, MapSpec, Straggler};
use super::timeline::ns;
use super::work::{RequestPlan, Workload, bytes_s};
use crate::layers::resolve;
use crate::scenario::mix;
use crate::stats::{mean, quantile};
use fcdcc::error::{Error, Result};
use std::time::Duration;

/// Requests beyond a percentile that is reported.
const BEYOND: f64 = 5.0;
/// The queue grows if the requests found by the last quarter of arrivals are this multiple of those found by the second
/// quarter. In a queue that grows evenly it is 7/3.
const GROWS: f64 = 1.8;
/// And if this share of the requests is left at the last arrival.
const LEFT: f64 = 0.02;
/// A part that is busy for this share of the time cannot serve more.
const FULL: f64 = 0.995;

/// A method with one quantile for hedging, and its request.
struct Contestant {
    method: LoadMethod,
    hedge: Option<f64>,
    plan: RequestPlan,
}

/// Reads a trace: times in seconds, one a line; what follows a `#` is a comment.
///
/// # Errors
/// [`Error::File`] that names the line.
pub fn parse_trace(path: &str, text: &str) -> Result<Vec<f64>> {
    let bad = |cause: String| Error::File { path: path.to_owned(), cause, input: true };
    let mut times: Vec<f64> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let cell = line.split('#').next().unwrap_or("").trim();
        if cell.is_empty() {
            continue;
        }
        let time = cell.parse().ok().filter(|time: &f64| time.is_finite() && *time >= 0.0);
        let time = time.ok_or_else(|| {
            bad(format!("line {number}: {cell:?} is not a time: give seconds from the beginning, one a line"))
        })?;
        if times.last().is_some_and(|before| *before > time) {
            return Err(bad(format!("line {number}: {time} comes after a later time: sort the times")));
        }
        times.push(time);
    }
    if times.len() < 2 || times.last() == times.first() {
        return Err(bad(format!("holds {} different times: give at least two", times.len().min(1))));
    }
    Ok(times)
}

/// Runs the file: latency against load for each model, and its map. `observe` is told how many of how many runs are done.
///
/// # Errors
/// Those of [`LoadSpec::check`] and of dividing a layer.
pub fn study(
    spec: &LoadSpec,
    observe: &(dyn Fn(usize, usize) + Sync),
) -> Result<(Vec<ModelStudy>, Vec<Map>)> {
    spec.check()?;
    if spec.arrivals == Arrivals::Trace && spec.trace_times.len() < 2 {
        return Err(Error::invalid("trace", "empty", "give at least two times"));
    }
    let mut batches = Vec::new();
    for model in &spec.models {
        batches.push(Batch::of_loads(spec, model)?);
        if let Some(map) = &spec.map {
            batches.extend(Batch::of_map(spec, map, model)?);
        }
    }
    let results = simulate(&batches, observe);
    Ok(assemble(spec, batches, results))
}

/// Points that share machines and model.
struct Batch {
    spec: LoadSpec,
    model: String,
    workload: Workload,
    contestants: Vec<Contestant>,
    setting: Setting,
    rates: Vec<f64>,
    requests: usize,
    /// Of a cell: its two ratios.
    cell: Option<[f64; 2]>,
}

impl Batch {
    fn new(spec: LoadSpec, model: &str) -> Result<Self> {
        let workload = Workload::new(resolve(model)?, &spec);
        let mut contestants = Vec::new();
        for method in &spec.methods {
            let quantiles: Vec<Option<f64>> =
                if method.hedges() { spec.hedge.iter().copied().map(Some).collect() } else { vec![None] };
            for hedge in quantiles {
                contestants.push(Contestant { method: *method, hedge, plan: workload.plan(*method, hedge)? });
            }
        }
        let setting = Setting {
            machines: spec.machines.count,
            links: [bytes_s(spec.machines.link_mbit), bytes_s(spec.master.link_mbit)],
            latency_s: spec.machines.latency.seconds(),
            faults: spec.faults.clone(),
            seed: spec.seed,
            dispatch: spec.dispatch,
            most_copies: spec.most_copies,
            most_in_flight: spec.most_in_flight,
            most_events: spec.most_events,
        };
        let requests = spec.requests;
        let model = model.to_owned();
        Ok(Self { spec, model, workload, contestants, setting, rates: Vec::new(), requests, cell: None })
    }

    fn of_loads(spec: &LoadSpec, model: &str) -> Result<Self> {
        let batch = Self::new(spec.clone(), model)?;
        let capacity = batch.workload.capacity(spec.machines.count);
        let rates = spec.loads.iter().map(|load| load * capacity).chain(spec.rates.iter().copied()).collect();
        Ok(Self { rates, ..batch })
    }

    fn of_map(spec: &LoadSpec, map: &MapSpec, model: &str) -> Result<Vec<Self>> {
        let mut cells = Vec::new();
        for delay_ratio in &map.delay_ratio {
            for macs_per_byte in &map.macs_per_byte {
                let mut own = spec.clone();
                let mbit = spec.machines.mac_rate * 1e9 / macs_per_byte * 8.0 / 1e6;
                own.master.link_mbit *= mbit / own.machines.link_mbit;
                own.machines.link_mbit = mbit;
                let service_s = Workload::new(resolve(model)?, &own).service_s();
                own.faults = stragglers(map, delay_ratio * service_s);
                let batch = Self::new(own, model)?;
                let rates = vec![map.load * batch.workload.capacity(spec.machines.count)];
                let cell = Some([*macs_per_byte, *delay_ratio]);
                cells.push(Self { rates, requests: map.requests, cell, ..batch });
            }
        }
        Ok(cells)
    }
}

/// The faults of a cell whose stragglers are late by `mean_s` in the mean.
fn stragglers(map: &MapSpec, mean_s: f64) -> Vec<MachineFault> {
    if mean_s <= 0.0 {
        return Vec::new();
    }
    let span = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    let law = map.tail.law(span(mean_s));
    match map.straggler {
        Straggler::Delay => {
            vec![MachineFault::Delay { chance: map.share, time: law, each: super::faults::Each::Task }]
        }
        Straggler::Pause => {
            let every = Span(span(mean_s * (1.0 - map.share) / map.share));
            vec![MachineFault::Pause { every, lasting: law, machines: 1.0 }]
        }
    }
}

/// One run: indices of batch, rate, contestant and run.
#[derive(Clone, Copy)]
struct Job {
    batch: usize,
    rate: usize,
    contestant: usize,
    run: usize,
}

fn simulate(batches: &[Batch], observe: &(dyn Fn(usize, usize) + Sync)) -> Vec<(Job, RunOutcome)> {
    let mut jobs = Vec::new();
    for (batch, of) in batches.iter().enumerate() {
        for rate in 0..of.rates.len() {
            for contestant in 0..of.contestants.len() {
                jobs.extend((0..of.spec.runs).map(|run| Job { batch, rate, contestant, run }));
            }
        }
    }
    let (done, total) = (std::sync::atomic::AtomicUsize::new(0), jobs.len());
    let one = |job: Job| {
        let batch = &batches[job.batch];
        let spec = &batch.spec;
        let seed = mix(spec.seed, job.run as u64);
        let setting = Setting { seed, ..batch.setting.clone() };
        let times = arrivals(spec, batch.rates[job.rate], spec.warmup + batch.requests, seed);
        let outcome = run(&setting, &batch.contestants[job.contestant].plan, &times, spec.warmup);
        observe(done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1, total);
        (job, outcome)
    };
    jobs.into_par_iter().map(one).collect()
}

fn assemble(
    spec: &LoadSpec,
    batches: Vec<Batch>,
    results: Vec<(Job, RunOutcome)>,
) -> (Vec<ModelStudy>, Vec<Map>) {
    let (mut models, mut maps): (Vec<ModelStudy>, Vec<Map>) = (Vec::new(), Vec::new());
    let mut results = results.into_iter().map(|(_, outcome)| outcome);
    for batch in batches {
        let capacity = batch.workload.capacity(batch.spec.machines.count);
        let mut points = Vec::new();
        for rate in &batch.rates {
            let mut methods: Vec<MethodLatencies> = Vec::new();
            for contestant in &batch.contestants {
                let runs: Vec<RunOutcome> = results.by_ref().take(batch.spec.runs).collect();
                keep_better(&mut methods, measured(contestant, &runs, spec.warmup));
            }
            points.push(Point { load: rate / capacity, rate: *rate, methods });
        }
        match batch.cell {
            None => models.push(ModelStudy {
                model: batch.model,
                macs: batch.workload.macs(),
                service_ms: batch.workload.service_s() * 1e3,
                local_ms: batch.workload.local_s() * 1e3,
                capacity,
                points,
            }),
            Some([macs_per_byte, delay_ratio]) => {
                let methods = points.pop().map(|point| point.methods).unwrap_or_default();
                let cell = Cell {
                    macs_per_byte,
                    delay_ratio,
                    best: best(&methods, |_| true).map(|method| method.method),
                    coding_gain: coding_gain(&methods),
                    methods,
                };
                match maps.last_mut().filter(|map| map.model == batch.model) {
                    Some(map) => map.cells.push(cell),
                    None => maps.push(Map {
                        load: spec.map.as_ref().map_or(0.0, |map| map.load),
                        macs_per_byte_of_ends: batch.workload.macs()
                            / batch.workload.ends().iter().sum::<f64>(),
                        model: batch.model,
                        cells: vec![cell],
                    }),
                }
            }
        }
    }
    (models, maps)
}

/// Of one method under several quantiles, the one with the least 99th percentile stays.
fn keep_better(methods: &mut Vec<MethodLatencies>, new: MethodLatencies) {
    let value = |of: &MethodLatencies| match of.state {
        State::Steady => of.p99.or(of.mean).unwrap_or(f64::MAX),
        State::Saturated | State::Unfinished => f64::INFINITY,
    };
    match methods.last_mut().filter(|last| last.method == new.method) {
        None => methods.push(new),
        Some(last) => {
            if value(&new) < value(last) {
                *last = new;
            }
        }
    }
}

/// The arrivals of a run, in nanoseconds.
pub(super) fn arrivals(spec: &LoadSpec, rate: f64, count: usize, seed: u64) -> Vec<u64> {
    let draws = Draws(seed);
    let mut at = 0.0;
    (0..count)
        .map(|index| {
            match spec.arrivals {
                Arrivals::Poisson => at += draws.exponential([ARRIVAL, 0, 0, index as u64]) / rate,
                Arrivals::Constant => at = index as f64 / rate,
                Arrivals::Trace => at = traced(&spec.trace_times, rate, index),
            }
            ns(at)
        })
        .collect()
}

/// Arrival `index` of a trace that is repeated, and stretched to `rate`.
fn traced(times: &[f64], rate: f64, index: usize) -> f64 {
    let (first, last) = (times[0], times[times.len() - 1]);
    // The gap between the last time and the first one of the next round is as long as the mean gap.
    let round = (last - first) * times.len() as f64 / (times.len() - 1) as f64;
    let (rounds, place) = (index / times.len(), index % times.len());
    let stretch = times.len() as f64 / rate / round;
    (rounds as f64 * round + times[place] - first) * stretch
}

/// The runs of one contestant together.
fn measured(of: &Contestant, runs: &[RunOutcome], warmup: usize) -> MethodLatencies {
    let coded_layers = if of.method.codes() {
        of.plan.steps.iter().filter(|step| matches!(step, super::work::Step::FanOut(_))).count()
    } else {
        0
    };
    let sorted = |latencies: &mut Vec<f64>| latencies.sort_by(f64::total_cmp);
    let counted = |run: &RunOutcome| -> Vec<f64> {
        let mut latencies: Vec<f64> =
            run.latencies_s.iter().skip(warmup).map(|seconds| seconds * 1e3).collect();
        sorted(&mut latencies);
        latencies
    };
    let each: Vec<Vec<f64>> = runs.iter().map(counted).collect();
    let mut all: Vec<f64> = each.iter().flatten().copied().collect();
    sorted(&mut all);
    let reason = runs.iter().find_map(|run| trouble(run, warmup));
    let (state, reason) = reason.unwrap_or((State::Steady, String::new()));
    let steady = state == State::Steady;
    let finite = |value: f64| Some(value).filter(|value| steady && value.is_finite());
    let at = |q: f64| finite(quantile(&all, q)).filter(|_| all.len() as f64 * (1.0 - q) >= BEYOND - 1e-9);
    let p99 = at(0.99);
    let of_runs: Vec<f64> = each.iter().map(|latencies| quantile(latencies, 0.99)).collect();
    let low = of_runs.iter().copied().fold(f64::INFINITY, f64::min);
    let high = of_runs.iter().copied().fold(0.0, f64::max);
    MethodLatencies {
        method: of.method,
        hedge: of.hedge,
        coded_layers,
        state,
        reason,
        requests: all.len(),
        failed: runs.iter().map(|run| run.failed).sum(),
        mean: finite(mean(&all)),
        p50: at(0.5),
        p90: at(0.9),
        p99,
        p99_of_runs: p99.filter(|_| high.is_finite()).map(|_| [low, high]),
        p999: at(0.999),
        throughput: mean(&runs.iter().map(|run| run.answered as f64 / run.end_s).collect::<Vec<_>>()),
        usage: usage(runs),
    }
}

fn usage(runs: &[RunOutcome]) -> Usage {
    let sum = |of: fn(&RunOutcome) -> f64| runs.iter().map(of).sum::<f64>();
    // Requests that were given up have cost something too.
    let requests = sum(|run| run.in_system.len() as f64).max(1.0);
    let average = |of: fn(&RunOutcome) -> f64| sum(of) / runs.len().max(1) as f64;
    let work = sum(|run| run.work_s);
    Usage {
        machine_s: work / requests,
        master_s: sum(|run| run.master_s) / requests,
        wasted: if work > 0.0 { (1.0 - sum(|run| run.used_s) / work).max(0.0) } else { 0.0 },
        bytes_out: sum(|run| run.bytes_out) / requests,
        bytes_in: sum(|run| run.bytes_in) / requests,
        hedged: sum(|run| run.hedged as f64) / requests,
        redispatched: sum(|run| run.redispatched as f64) / requests,
        busiest_machine: average(|run| run.utilisation.machine),
        link_out: average(|run| run.utilisation.link_out),
        link_in: average(|run| run.utilisation.link_in),
        master: average(|run| run.utilisation.master),
    }
}

/// Why a run is not steady.
pub(super) fn trouble(run: &RunOutcome, warmup: usize) -> Option<(State, String)> {
    match run.given_up {
        Some(GivenUp::InFlight) => {
            let waiting = run.in_system.last().map_or(0, |before| before + 1);
            return Some((
                State::Saturated,
                format!("{waiting} requests were waiting when the run was given up"),
            ));
        }
        Some(GivenUp::Events) => {
            let cause = format!("{} events were not enough: raise most_events or lower requests", run.events);
            return Some((State::Unfinished, cause));
        }
        None => {}
    }
    let found = run.in_system.get(warmup.min(run.in_system.len())..).unwrap_or_default();
    let quarter = found.len() / 4;
    if quarter == 0 {
        return None;
    }
    let average =
        |part: &[usize]| part.iter().map(|waiting| *waiting as f64).sum::<f64>() / part.len() as f64;
    let (second, last) = (average(&found[quarter..2 * quarter]), average(&found[found.len() - quarter..]));
    let left = average(&found[found.len() - quarter.div_ceil(4)..]);
    let used = run.utilisation;
    let (name, most) = [
        ("the busiest machine", used.machine),
        ("the master's link out", used.link_out),
        ("the master's link in", used.link_in),
        ("the master", used.master),
    ]
    .into_iter()
    .max_by(|a, b| a.1.total_cmp(&b.1))?;
    let grows = last > GROWS * second && left > LEFT * found.len() as f64;
    let full = most >= FULL && left > LEFT / 2.0 * found.len() as f64;
    (grows || full).then(|| {
        let cause = format!(
            "the queue grew to {left:.0} requests; {name} was busy {:.0} % of the time",
            most * 100.0
        );
        (State::Saturated, cause)
    })
}
