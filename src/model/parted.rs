//! A model whose segments are computed in different places, and its runs.
//!
//! Relevant if you want to run a plan of [`Sections::plan`], or segments of your own choice.
//!
//! Invariant: a run returns the outputs of the model in its order, whichever workers answered. A replicated segment that no
//! worker computed is computed on this machine, unless a shortfall is to fail.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::load::Model;
use super::memory::ModelMemory;
use super::options::{ModelOptions, Progress};
use super::parts::values;
use super::prepared::{ModelRun, PreparedModel, Segmented};
use super::replicated::{Replicated, tensor};
use super::sections::Sections;
use super::segments::{ModelSegment, SegmentReport, check};
use super::signature::{Output, Signature};
use super::tensor::Tensor;
use super::view::TensorView;
use crate::array::Values;
use crate::engine::LayerReport;
use crate::error::{Error, Result};
use crate::planner::Place;
use crate::scheduler::{OnShortfall, PartReport, Pool};
use crate::worker::CancelToken;

/// A model ready to run any number of times, from several threads at once, whose segments are computed in different places.
/// Segments of different runs are computed at the same time.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
///
/// use fcdcc::model::{OnnxParts, PartedModel};
/// use fcdcc::planner::Place;
/// use fcdcc::worker::PartCompiler;
/// use fcdcc::{CpuWorker, Model, ModelOptions, Pool};
/// use ndarray::ArrayD;
///
/// let compiler: Arc<dyn PartCompiler> = Arc::new(OnnxParts);
/// let pool = Pool::new(CpuWorker::fleet_with_parts(3, &compiler))?;
/// let model = Model::load("assets/digits/lenet5.onnx")?.with_input_shape("image", &[1, 1, 32, 32])?;
/// let sections = model.sections()?;
/// let segments = [(0..1, Place::Host), (1..sections.pieces(), Place::Replicated)];
/// let parted = PartedModel::prepare(&model, &sections, &segments, &pool, &ModelOptions::default())?;
/// let run = parted.run(&[ArrayD::<f32>::zeros(vec![1, 1, 32, 32]).into()])?;
/// assert_eq!(run.outputs[0].tensor.shape(), [1, 10]);
/// assert!(run.segments[1].workers.as_ref().unwrap().worker.is_some());
/// # Ok::<(), fcdcc::Error>(())
/// ```
pub struct PartedModel {
    signature: Signature,
    segments: Vec<Segment>,
    /// Number of coded layers.
    coded: usize,
    /// The plan, if the segments are the planner's.
    plan: Vec<ModelSegment>,
}

struct Segment {
    place: Place,
    ends: (Option<String>, Option<String>),
    work: Work,
}

enum Work {
    /// On this machine, with or without coded layers.
    Prepared(Box<PreparedModel>),
    Replicated(Box<Replicated>),
}

impl PartedModel {
    /// Prepares the segments of a model: ranges of pieces, in order, and where each is computed.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] unless the segments are all pieces in order; those of [`Model::prepare`],
    /// [`Sections::part`] and [`ReplicatedPart::install`](crate::engine::ReplicatedPart::install).
    pub fn prepare(
        model: &Model,
        sections: &Sections,
        segments: &[(Range<usize>, Place)],
        pool: &Pool,
        options: &ModelOptions,
    ) -> Result<Self> {
        Self::prepare_cancellable(
            model,
            sections,
            segments,
            (pool, options),
            &CancelToken::new(),
            &mut |_| {},
        )
    }

    /// As [`PartedModel::prepare`], but ends with [`Error::Cancelled`] once `cancel` is cancelled, after the layer or segment
    /// at hand; `observe` is called after every coded layer.
    ///
    /// # Errors
    /// Those of [`PartedModel::prepare`], and [`Error::Cancelled`].
    pub fn prepare_cancellable(
        model: &Model,
        sections: &Sections,
        segments: &[(Range<usize>, Place)],
        (pool, options): (&Pool, &ModelOptions),
        cancel: &CancelToken,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self> {
        check(sections, segments)?;
        let mut prepared = Vec::with_capacity(segments.len());
        for (pieces, place) in segments {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let whole = *pieces == (0..sections.pieces());
            let part = || if whole { Ok(model.clone()) } else { sections.model(pieces) };
            let work = match place {
                Place::Host => Work::Prepared(Box::new(part()?.prepare_here()?)),
                Place::Coded => {
                    Work::Prepared(Box::new(part()?.prepare_cancellable(pool, options, cancel, observe)?))
                }
                Place::Replicated => {
                    Work::Replicated(Box::new(Replicated::install(sections, pieces, pool, options)?))
                }
            };
            prepared.push(Segment { place: *place, ends: sections.ends_of(pieces), work });
        }
        let coded = prepared.iter().map(|segment| segment.work.coded_layers()).sum();
        Ok(Self { signature: Signature::of(model)?, segments: prepared, coded, plan: Vec::new() })
    }

    /// Computes every output from `inputs`, in the model's order.
    ///
    /// # Errors
    /// Those of [`PreparedModel::run`] and [`ReplicatedPart::run`](crate::engine::ReplicatedPart::run).
    pub fn run(&self, inputs: &[Tensor]) -> Result<ModelRun> {
        let inputs: Vec<TensorView<'_>> = inputs.iter().map(TensorView::from).collect();
        self.run_views(&inputs, &CancelToken::new(), &mut |_| {})
    }

    /// As [`PartedModel::run`], on inputs that may lie in memory of others; ends with [`Error::Cancelled`] once `cancel` is
    /// cancelled. `observe` is called after every coded layer.
    ///
    /// # Errors
    /// Those of [`PartedModel::run`], and [`Error::Cancelled`].
    pub fn run_views(
        &self,
        inputs: &[TensorView<'_>],
        cancel: &CancelToken,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<ModelRun> {
        let started = Instant::now();
        let mut run = Run {
            model: self,
            cancel,
            observe,
            done: 0,
            layers: Vec::new(),
            reports: Vec::new(),
            host: Duration::ZERO,
        };
        let mut outputs: Vec<Output> = Vec::new();
        for (at, segment) in self.segments.iter().enumerate() {
            outputs = match (&segment.work, at) {
                (Work::Prepared(prepared), 0) => run.prepared(segment, prepared, inputs)?,
                (Work::Prepared(prepared), _) => {
                    let tensors: Vec<Tensor> = outputs.into_iter().map(|output| output.tensor).collect();
                    let views: Vec<TensorView<'_>> = tensors.iter().map(TensorView::from).collect();
                    run.prepared(segment, prepared, &views)?
                }
                (Work::Replicated(replicated), 0) => {
                    let given = self.signature.accept(inputs)?;
                    let arrays = given.iter().zip(&replicated.signature.inputs);
                    let copied = arrays.map(|(given, array)| given.to_values(array.dtype));
                    run.replicated(segment, replicated, copied.collect::<Result<_>>()?)?
                }
                (Work::Replicated(replicated), _) => {
                    let moved = outputs.into_iter().map(|output| values(output.tensor));
                    run.replicated(segment, replicated, moved.collect::<Result<_>>()?)?
                }
            };
        }
        let (layers, segments, host) = (run.layers, run.reports, run.host);
        Ok(ModelRun { outputs, layers, segments, total: started.elapsed(), host })
    }

    /// The same as any prepared model, whose segments are those of `plan`.
    pub(super) fn planned(self, plan: Vec<ModelSegment>) -> PreparedModel {
        PreparedModel::segmented(self.signature.clone(), Box::new(Self { plan, ..self }))
    }

    /// The inputs of the model.
    #[must_use]
    pub fn input_shapes(&self) -> Vec<(&str, &[usize])> {
        self.signature.inputs.iter().map(|input| (input.name.as_str(), input.shape.as_slice())).collect()
    }

    /// The estimated memory on this machine.
    #[must_use]
    pub fn memory(&self) -> ModelMemory {
        let prepared = self.segments.iter().filter_map(|segment| match &segment.work {
            Work::Prepared(prepared) => Some(prepared.memory()),
            Work::Replicated(_) => None,
        });
        prepared.fold(ModelMemory::default(), ModelMemory::plus)
    }

    /// Number of layers that are coded on workers.
    #[must_use]
    pub fn coded_layers(&self) -> usize {
        self.coded
    }

    /// Name, operator and reason of every layer left on the host, those of replicated segments excluded.
    pub fn local_layers(&self) -> impl Iterator<Item = (&str, &'static str, &str)> {
        self.segments.iter().flat_map(|segment| match &segment.work {
            Work::Prepared(prepared) => prepared.local_layers().collect(),
            Work::Replicated(_) => Vec::new(),
        })
    }
}

impl fmt::Debug for PartedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<Place> = self.segments.iter().map(|segment| segment.place).collect();
        f.debug_struct("PartedModel")
            .field("model", &self.signature.model)
            .field("segments", &places)
            .finish_non_exhaustive()
    }
}

impl Segmented for PartedModel {
    fn run(
        &self,
        inputs: &[TensorView<'_>],
        cancel: &CancelToken,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<ModelRun> {
        self.run_views(inputs, cancel, observe)
    }

    fn memory(&self) -> ModelMemory {
        PartedModel::memory(self)
    }

    fn coded_layers(&self) -> usize {
        PartedModel::coded_layers(self)
    }

    fn local_layers(&self) -> Vec<(&str, &'static str, &str)> {
        PartedModel::local_layers(self).collect()
    }

    fn segments(&self) -> &[ModelSegment] {
        &self.plan
    }
}

impl Work {
    fn coded_layers(&self) -> usize {
        match self {
            Self::Prepared(prepared) => prepared.coded_layers(),
            Self::Replicated(_) => 0,
        }
    }
}

/// A run in progress.
struct Run<'a, 'b> {
    model: &'a PartedModel,
    cancel: &'a CancelToken,
    observe: &'a mut (dyn FnMut(Progress<'_>) + 'b),
    /// Number of coded layers of earlier segments.
    done: usize,
    layers: Vec<LayerReport>,
    reports: Vec<SegmentReport>,
    host: Duration,
}

impl Run<'_, '_> {
    fn prepared(
        &mut self,
        segment: &Segment,
        prepared: &PreparedModel,
        inputs: &[TensorView<'_>],
    ) -> Result<Vec<Output>> {
        let (before, total) = (self.done, self.model.coded);
        let observe = &mut *self.observe;
        let run = prepared.run_views(inputs, self.cancel, &mut |progress| {
            observe(Progress { done: before + progress.done, total, layer: progress.layer });
        })?;
        self.done += prepared.coded_layers();
        self.host += run.host;
        self.layers.extend(run.layers);
        self.report(segment, run.total, None, None);
        Ok(run.outputs)
    }

    fn replicated(
        &mut self,
        segment: &Segment,
        replicated: &Replicated,
        inputs: Vec<Values>,
    ) -> Result<Vec<Output>> {
        let started = Instant::now();
        let inputs: Arc<[Values]> = inputs.into();
        let (result, report) = replicated.part.run_reported(Arc::clone(&inputs), None, self.cancel)?;
        let error = match result {
            Ok(outputs) => {
                self.report(segment, started.elapsed(), Some(report), None);
                return replicated.named(outputs);
            }
            Err(
                error @ (Error::Shortfall { .. } | Error::NonFiniteResults { .. } | Error::Corrupted { .. }),
            ) if replicated.on_shortfall != OnShortfall::Fail => error,
            Err(error) => return Err(error),
        };
        tracing::warn!(part = replicated.name, %error, "no worker computed it: computed on this machine");
        let here = replicated.here()?;
        let arrays = replicated.signature.inputs.iter().zip(inputs.iter());
        let tensors: Vec<Tensor> =
            arrays.map(|(array, values)| tensor(array, values.clone())).collect::<Result<_>>()?;
        let views: Vec<TensorView<'_>> = tensors.iter().map(TensorView::from).collect();
        let run = here.run_views(&views, self.cancel, &mut |_| {})?;
        self.host += run.total;
        self.report(segment, started.elapsed(), Some(report), Some(error.to_string()));
        Ok(run.outputs)
    }

    fn report(
        &mut self,
        segment: &Segment,
        took: Duration,
        workers: Option<PartReport>,
        fallback: Option<String>,
    ) {
        let (from, to) = segment.ends.clone();
        let total_ms = took.as_secs_f64() * 1e3;
        self.reports.push(SegmentReport { place: segment.place, from, to, total_ms, workers, fallback });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use ndarray::ArrayD;

    use super::super::options::SegmentChoice;
    use super::super::parts::OnnxParts;
    use super::*;
    use crate::planner::{LinkRates, Objective, PartWorker, Rates};
    use crate::scheduler::Audit;
    use crate::worker::{CpuWorker, FaultSpec, PartCompiler, inject};

    fn lenet() -> Model {
        let model = Model::load("assets/digits/lenet5.onnx").unwrap();
        model.with_input_shape("image", &[1, 1, 32, 32]).unwrap()
    }

    fn pool(faults: &[&str]) -> Pool {
        let compiler: Arc<dyn PartCompiler> = Arc::new(OnnxParts);
        let faults: Vec<FaultSpec> = faults.iter().map(|fault| fault.parse().unwrap()).collect();
        Pool::new(inject(CpuWorker::fleet_with_parts(4, &compiler), &faults, 1).unwrap()).unwrap()
    }

    fn image(seed: usize) -> Tensor {
        ArrayD::from_shape_fn(vec![1, 1, 32, 32], |at| ((at[2] * 7 + at[3] * 3 + seed) % 11) as f32 / 11.0)
            .into()
    }

    fn is_near(run: &ModelRun, truth: &[Output]) -> bool {
        let pairs = run.outputs.iter().zip(truth);
        run.outputs.len() == truth.len()
            && pairs.into_iter().all(|(got, want)| {
                let near = |(g, w): (&f64, &f64)| (g - w).abs() < 1e-4 * (1.0 + w.abs());
                got.name == want.name && got.tensor.to_f64().iter().zip(&want.tensor.to_f64()).all(near)
            })
    }

    fn options(on_shortfall: OnShortfall) -> ModelOptions {
        let mut options = ModelOptions::default();
        options.layer.tolerate = 1;
        (options.layer.policy.on_shortfall, options.layer.policy.audit) = (on_shortfall, Audit::Off);
        options
    }

    #[test]
    fn every_place_of_every_segment_gives_the_outputs_of_the_model() {
        let (model, pool) = (lenet(), pool(&[]));
        let sections = model.sections().unwrap();
        let all = sections.pieces();
        let truth = model.on_host().unwrap().run(&[image(0)]).unwrap();
        let (host, coded, out) = (Place::Host, Place::Coded, Place::Replicated);
        for segments in [
            vec![(0..all, host)],
            vec![(0..all, coded)],
            vec![(0..all, out)],
            vec![(0..2, coded), (2..4, out), (4..5, host), (5..all, out)],
            vec![(0..1, out), (1..3, host), (3..all, coded)],
        ] {
            let options = options(OnShortfall::Redispatch);
            let parted = PartedModel::prepare(&model, &sections, &segments, &pool, &options).unwrap();
            // Many runs at the same time.
            let runs: Vec<ModelRun> = std::thread::scope(|scope| {
                let threads: Vec<_> =
                    (0..3).map(|_| scope.spawn(|| parted.run(&[image(0)]).unwrap())).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            for run in runs {
                assert!(is_near(&run, &truth), "{segments:?}");
                let places: Vec<Place> = run.segments.iter().map(|report| report.place).collect();
                assert_eq!(places, segments.iter().map(|(_, place)| *place).collect::<Vec<_>>());
                for report in &run.segments {
                    let asked = report.workers.as_ref().is_some_and(|part| part.worker.is_some());
                    assert_eq!(asked, report.place == out && report.fallback.is_none());
                }
                let coded = run.layers.iter().filter(|layer| layer.n > 0).count();
                assert!(coded <= parted.coded_layers() && (coded > 0) == (parted.coded_layers() > 0));
            }
            // Negative control: another picture has other outputs.
            assert!(!is_near(&parted.run(&[image(5)]).unwrap(), &truth));
            let refused = parted.run(&[ArrayD::<f32>::zeros(vec![1, 1, 3, 3]).into()]).unwrap_err();
            assert!(refused.to_string().contains("input image"), "{refused}");
        }
        let gaps = [(0..1, host), (2..all, host)];
        assert!(PartedModel::prepare(&model, &sections, &gaps, &pool, &options(OnShortfall::Fail)).is_err());
    }

    #[test]
    fn a_segment_that_no_worker_computes_is_computed_here_unless_that_is_to_fail() {
        let model = lenet();
        let sections = model.sections().unwrap();
        let segments = [(0..2, Place::Replicated), (2..sections.pieces(), Place::Host)];
        let truth = model.on_host().unwrap().run(&[image(1)]).unwrap();
        for (on_shortfall, works) in [(OnShortfall::Local, true), (OnShortfall::Fail, false)] {
            let pool = pool(&["all:crash"]);
            let options = options(on_shortfall);
            let parted = PartedModel::prepare(&model, &sections, &segments, &pool, &options).unwrap();
            match parted.run(&[image(1)]) {
                Ok(run) => {
                    assert!(works && is_near(&run, &truth));
                    assert!(run.segments[0].fallback.as_ref().unwrap().contains("crash"));
                }
                Err(error) => assert!(!works && matches!(error, Error::Shortfall { .. }), "{error}"),
            }
        }
        // One that crashes is replaced by another.
        let pool = pool(&["0:crash"]);
        let options = options(OnShortfall::Fail);
        let parted = PartedModel::prepare(&model, &sections, &segments, &pool, &options).unwrap();
        for _ in 0..4 {
            assert!(is_near(&parted.run(&[image(1)]).unwrap(), &truth));
        }
    }

    #[test]
    fn a_plan_of_segments_is_prepared_and_run_like_any_model() {
        let (model, pool) = (lenet(), pool(&[]));
        // Fast machines behind fast links, and a slow host.
        let fast =
            Rates::default().worker.over(LinkRates { call_s: 1e-6, upload_s: 1e-12, download_s: 1e-12 });
        let mut rates = Rates::default();
        rates.host.thread.mac_s *= 1e4;
        let worker = |at: usize| PartWorker { machine: format!("m{at}"), rates: fast, memory_bytes: None };
        let choice = |workers: usize| SegmentChoice {
            objective: Objective::Throughput,
            workers: (0..workers).map(worker).collect(),
        };
        let truth = model.on_host().unwrap().run(&[image(2)]).unwrap();
        let mut options = options(OnShortfall::Redispatch);
        options.freedom = super::super::AutoChoices::ALL;
        options.layer.rates = rates;
        for (workers, place) in [(4, Some(Place::Replicated)), (0, None)] {
            options.segments = Some(choice(workers));
            let prepared = model.prepare(&pool, &options).unwrap();
            assert_eq!(prepared.segments().iter().any(|own| Some(own.plan.place) == place), place.is_some());
            let names: usize = prepared.segments().iter().map(|own| own.layers.len()).sum();
            assert_eq!(names, model.plan(4, &rates, &options).unwrap().len());
            assert_eq!(prepared.input_shapes()[0].0, "image");
            let run = prepared.run(&[image(2)]).unwrap();
            assert!(is_near(&run, &truth) && run.segments.len() == prepared.segments().len());
        }
        // Workers that take no parts after all: planned without them.
        let plain = Pool::new(CpuWorker::fleet(4)).unwrap();
        options.segments = Some(choice(4));
        let prepared = model.prepare(&plain, &options).unwrap();
        assert!(prepared.segments().iter().all(|own| own.plan.place != Place::Replicated));
        assert!(is_near(&prepared.run(&[image(2)]).unwrap(), &truth));
    }
}
