//! The segments of a model: which workers take parts, and how plans and runs of segments are shown.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use clap::Args;
use fcdcc::array::DType;
use fcdcc::model::{
    Model, ModelOptions, ModelRun, ModelSegment, OnnxParts, PreparedModel, Progress, SegmentChoice,
    SegmentReport, Tensor,
};
use fcdcc::planner::{ChainPlan, Objective, PartWorker, Rates, SegmentAlternative};
use fcdcc::worker::{LOCAL_HOST, PartKey};
use fcdcc::{Error, Result, Worker};
use serde::Serialize;

use super::Console;
use super::kept_rates::Measuring;
use super::options::LayerArgs;
use super::print::out;
use super::rates;

/// The key of the part that shows whether a worker takes parts. No part of a model has it.
const PROBE: PartKey = PartKey(u64::MAX);
/// Maximum number of batches that are computed at the same time.
const MOST_IN_FLIGHT: usize = 16;

/// `--objective` of the commands that plan a model.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct ObjectiveArgs {
    /// Let the planner also divide the model into segments that are computed on this machine, coded, or whole by workers that
    /// hold them: latency (one request as early as possible) or throughput (as many a second as possible)
    #[arg(long, value_name = "WHAT", requires = "auto")]
    pub(crate) objective: Option<Objective>,
}

/// Rates of a pool that is about to be made, and its workers that take parts of models.
pub(crate) fn choice(
    workers: &mut [Box<dyn Worker>],
    args: &LayerArgs,
    dtype: DType,
    objective: Objective,
    console: Console,
) -> Result<(Rates, SegmentChoice)> {
    let measuring = Measuring { how: args.calibrate, unknown: true };
    let measured = rates::each(workers, dtype, args.tolerated(), measuring, console)?;
    let smallest = OnnxParts::smallest();
    let mut parts = Vec::new();
    for (worker, rates) in workers.iter_mut().zip(measured.workers) {
        let machine = worker.info().host;
        // The planner gives workers of this machine no parts, so they need not show that they take them.
        if machine != LOCAL_HOST {
            if worker.unavailable_reason().is_some() {
                continue;
            }
            if let Err(error) = worker.install_part(PROBE, &smallest) {
                tracing::info!(worker = worker.info().name, %error, "takes no parts of models");
                continue;
            }
            worker.remove_part(PROBE);
        }
        parts.push(PartWorker { machine, rates, memory_bytes: None });
    }
    Ok((measured.rates, SegmentChoice { objective, workers: parts }))
}

/// Segments in plan.json.
#[derive(Serialize)]
pub(crate) struct SegmentsPlan {
    objective: Objective,
    /// Of one request.
    predicted_ms: f64,
    /// Between two requests of many in flight.
    period_ms: f64,
    bottleneck: &'static str,
    /// Why the model is one piece, or null.
    whole_only: Option<String>,
    segments: Vec<Segment>,
    /// The whole model in each place.
    whole: Vec<Alternative>,
}

#[derive(Serialize)]
struct Segment {
    from: Option<String>,
    to: Option<String>,
    layers: Vec<String>,
    place: String,
    predicted_ms: f64,
    /// Number of workers that would hold it.
    workers: usize,
    why: String,
    alternatives: Vec<Alternative>,
}

#[derive(Serialize)]
struct Alternative {
    place: String,
    /// Null where it cannot be computed there.
    predicted_ms: Option<f64>,
    period_ms: Option<f64>,
    why_not: Option<String>,
}

impl SegmentsPlan {
    /// The planner's segments of a model.
    pub(crate) fn plan(
        model: &Model,
        workers: usize,
        rates: &Rates,
        options: &ModelOptions,
        choice: &SegmentChoice,
    ) -> Result<Self> {
        let (sections, segments, plan) = model.plan_segments(workers, rates, options, choice)?;
        Ok(Self::of(&segments, &plan, sections.whole_only()))
    }

    fn of(segments: &[ModelSegment], plan: &ChainPlan, whole_only: Option<&str>) -> Self {
        let segment = |own: &ModelSegment| Segment {
            from: own.from.clone(),
            to: own.to.clone(),
            layers: own.layers.clone(),
            place: own.plan.place.to_string(),
            predicted_ms: own.plan.latency_s * 1e3,
            workers: own.plan.workers.len(),
            why: own.plan.why.clone(),
            alternatives: own.plan.alternatives.iter().map(alternative).collect(),
        };
        Self {
            objective: plan.objective,
            predicted_ms: plan.latency_s * 1e3,
            period_ms: plan.period_s * 1e3,
            bottleneck: plan.bottleneck,
            whole_only: whole_only.map(str::to_owned),
            segments: segments.iter().map(segment).collect(),
            whole: plan.whole.iter().map(alternative).collect(),
        }
    }

    pub(crate) fn table(&self) -> Result<()> {
        out("")?;
        let names = |own: &Segment| span(own.from.as_deref(), own.to.as_deref());
        let width =
            self.segments.iter().map(|own| names(own).chars().count()).max().unwrap_or(0).clamp(7, 48);
        out(format_args!("{:width$}  {:10} {:>6} {:>12}  why", "segment", "place", "layers", "predicted"))?;
        for own in &self.segments {
            let name: String = names(own).chars().take(width).collect();
            let (place, layers, ms) = (&own.place, own.layers.len(), own.predicted_ms);
            out(format_args!("{name:width$}  {place:10} {layers:>6} {ms:>9.2} ms  {}", own.why))?;
        }
        let rate = 1e3 / self.period_ms.max(f64::MIN_POSITIVE);
        out(format_args!(
            "{:width$}  {:.2} ms predicted for one request; {rate:.1} requests a second with many in flight, limited by {}",
            "", self.predicted_ms, self.bottleneck
        ))?;
        if let Some(why) = &self.whole_only {
            out(format_args!("{:width$}  the model is one segment: {why}", ""))?;
        }
        Ok(())
    }
}

fn alternative(own: &SegmentAlternative) -> Alternative {
    let ms = |s: Option<f64>| s.map(|s| s * 1e3);
    Alternative {
        place: own.place.to_string(),
        predicted_ms: ms(own.latency_s),
        period_ms: ms(own.period_s),
        why_not: own.why_not.clone(),
    }
}

/// The values between which a segment lies.
fn span(from: Option<&str>, to: Option<&str>) -> String {
    format!("{} to {}", from.unwrap_or("inputs"), to.unwrap_or("outputs"))
}

/// Prints where the segments of all runs were computed.
pub(crate) fn table(reports: &[SegmentReport]) -> Result<()> {
    let mut spans: Vec<(String, Vec<&SegmentReport>)> = Vec::new();
    for report in reports {
        let name = span(report.from.as_deref(), report.to.as_deref());
        match spans.iter_mut().find(|(own, _)| *own == name) {
            Some((_, all)) => all.push(report),
            None => spans.push((name, vec![report])),
        }
    }
    for (name, all) in spans {
        let count = all.len() as f64;
        let mean = all.iter().map(|report| report.total_ms).sum::<f64>() / count;
        let mut line = format!("segment {name}: {}, {mean:.1} ms", all[0].place);
        let parts = all.iter().filter_map(|report| report.workers.as_ref());
        let mut workers: Vec<&str> = parts.clone().filter_map(|part| part.worker.as_deref()).collect();
        workers.sort_unstable();
        workers.dedup();
        if !workers.is_empty() {
            line += " on ";
            line += &workers.join(", ");
        }
        let sum = |of: fn(&fcdcc::scheduler::PartReport) -> usize| parts.clone().map(of).sum::<usize>();
        let (hedged, again) = (sum(|part| part.hedged), sum(|part| part.redispatched));
        let here = all.iter().filter(|report| report.fallback.is_some()).count();
        for (number, what) in
            [(hedged, "hedged"), (again, "redispatched"), (here, "computed on this machine instead")]
        {
            if number > 0 {
                // Writing to a String cannot fail.
                let _ = write!(line, "; {number} {what}");
            }
        }
        out(line)?;
    }
    Ok(())
}

/// Runs all batches, many of them at the same time if `at_once` holds, and gives their runs in order.
pub(crate) fn run_all(
    prepared: &PreparedModel,
    batches: &[Vec<Tensor>],
    at_once: bool,
    observe: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<ModelRun>> {
    if !at_once || batches.len() < 2 {
        return batches.iter().map(|inputs| prepared.run_observed(inputs, observe)).collect();
    }
    let next = AtomicUsize::new(0);
    let mut runs: Vec<Option<ModelRun>> = batches.iter().map(|_| None).collect();
    std::thread::scope(|scope| {
        let (done, results) = mpsc::channel();
        for _ in 0..batches.len().min(MOST_IN_FLIGHT) {
            let (done, next) = (done.clone(), &next);
            let work = move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(inputs) = batches.get(at) else { break };
                    if done.send((at, prepared.run(inputs))).is_err() {
                        break;
                    }
                }
            };
            let thread = std::thread::Builder::new().name("fcdcc batch".to_owned());
            thread.spawn_scoped(scope, work).map_err(|error| Error::Unavailable {
                what: format!("a thread for a batch ({error})"),
                help: "the system is out of threads".into(),
            })?;
        }
        drop(done);
        let total = batches.len();
        for (count, (at, run)) in results.into_iter().enumerate() {
            let run = run.inspect_err(|_| next.store(total, Ordering::Relaxed))?;
            runs[at] = Some(run);
            observe(Progress { done: count + 1, total, layer: "batches" });
        }
        Ok(())
    })?;
    Ok(runs.into_iter().flatten().collect())
}
