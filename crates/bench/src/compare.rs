//! Runs studies one after the other and gathers them into a report.
//!
//! Invariant: the findings of a report account for everything that is missing from it.

use super::codec::{affordable_conditions, codec_cost};
use super::findings::findings;
use super::layers::NamedLayer;
use super::methods::Method;
use super::real_workers::{LayerCase, Workers, layer_contestants};
use super::runner::{Contestants, Plan, Progress, study};
use super::schema::{BenchReport, CodecCost, Conditions, Environment, MethodPlan, SCHEMA, Study};
use fcdcc::array::Element;
use fcdcc::coding::{Code, CodeKind};
use fcdcc::conv::ConvShape;
use fcdcc::engine::LayerOptions;
use fcdcc::error::Result;

/// Below this number of trials the 99.9th percentile is little more than the greatest latency.
const ENOUGH_FOR_P999: usize = 1000;

/// What is compared, and the results so far.
pub struct Comparison {
    /// Number of workers and trials, scenarios.
    pub plan: Plan,
    /// In the order of the tables: the first method is the baseline, the last one is the method to be judged.
    pub methods: Vec<Method>,
    /// Options that all methods share, and the policies that a user chose for the coded methods.
    pub base: LayerOptions,
    studies: Vec<Study>,
    codec: Vec<CodecCost>,
    conditions: Vec<Conditions>,
    left_out: Vec<String>,
}

impl Comparison {
    /// A comparison without studies.
    #[must_use]
    pub fn new(plan: Plan, methods: Vec<Method>, base: LayerOptions) -> Self {
        let (studies, codec, conditions, left_out) = <(Vec<_>, Vec<_>, Vec<_>, Vec<_>)>::default();
        Self { plan, methods, base, studies, codec, conditions, left_out }
    }

    /// Studies one layer on real workers that compute in `T`.
    ///
    /// # Errors
    /// The errors of [`study`] and [`layer_contestants`].
    pub fn layer<T: Element>(
        &mut self,
        layer: &NamedLayer,
        workers: Workers<'_>,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<&Study> {
        let case = LayerCase::<T>::random(layer, self.plan.seed)?;
        let (contestants, left_out) =
            layer_contestants(&case, &self.methods, &self.plan, &self.base, workers)?;
        let plans: Vec<MethodPlan> = contestants.iter().map(|(plan, _)| plan.clone()).collect();
        let frame = layer_frame(&self.plan, layer);
        let done = self.take(frame, contestants, left_out, observe)?;
        if let Some(judged) = plans.last() {
            let method: Method = judged.method.parse()?;
            let options =
                method.options::<T>(&layer.shape, self.plan.workers, self.plan.tolerate, &self.base)?;
            self.codec.extend(codec_cost(&case, &options)?);
        }
        self.condition(&plans)?;
        Ok(&self.studies[done])
    }

    /// Runs a study, keeps its result and returns its index.
    pub(super) fn take(
        &mut self,
        frame: Study,
        contestants: Contestants<'_>,
        left_out: Vec<String>,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<usize> {
        self.left_out.extend(left_out);
        self.studies.push(study(&self.plan, frame, contestants, observe)?);
        Ok(self.studies.len() - 1)
    }

    /// The study of this index.
    pub(super) fn study(&self, index: usize) -> &Study {
        &self.studies[index]
    }

    /// Computes the condition numbers of those codes of a study that have none yet.
    pub(super) fn condition(&mut self, plans: &[MethodPlan]) -> Result<()> {
        for plan in plans {
            let own = self.base.own_code.as_ref().filter(|_| plan.code == CodeKind::Custom.name());
            let kind = own.map_or_else(|| plan.code.parse(), |own| Ok(own.kind()))?;
            let known = |c: &Conditions| {
                (c.code.as_str(), c.n, c.k_a, c.k_b) == (plan.code.as_str(), plan.n, plan.k_a, plan.k_b)
            };
            if kind.mixes() && !self.conditions.iter().any(known) {
                let code = match own {
                    Some(own) => own.as_ref().clone(),
                    None => Code::new(kind, plan.k_a, plan.k_b, plan.n)?,
                };
                self.conditions.extend(affordable_conditions(&code, self.plan.seed));
            }
        }
        Ok(())
    }

    /// The whole report. Its findings begin with `notes`.
    #[must_use]
    pub fn report(self, setting: Environment, notes: Vec<String>) -> BenchReport {
        let mut said = notes;
        said.extend(self.left_out);
        said.extend(findings(&self.studies));
        if self.plan.trials < ENOUGH_FOR_P999 {
            let trials = self.plan.trials;
            let what =
                if trials < 100 { "The 99th and 99.9th percentiles" } else { "The 99.9th percentiles" };
            said.push(format!("{what} of {trials} trials are little more than their greatest latency."));
        }
        BenchReport {
            schema: SCHEMA,
            setting,
            studies: self.studies,
            codec: self.codec,
            conditions: self.conditions,
            findings: said,
        }
    }
}

/// The names and numbers of a layer's study.
pub(super) fn layer_frame(plan: &Plan, layer: &NamedLayer) -> Study {
    Study {
        name: layer.name.clone(),
        kind: "layer".to_owned(),
        shape: readable(&layer.shape),
        macs: layer.shape.macs(),
        workers: plan.workers,
        tolerate: plan.tolerate,
        plans: Vec::new(),
        scenarios: Vec::new(),
        break_even: Vec::new(),
    }
}

/// `256x56x56, 256 3x3`.
fn readable(shape: &ConvShape) -> String {
    let times = |sizes: &[usize]| sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join("x");
    let (input, axis) = (shape.input_shape(), shape.split_axis());
    let batch = if shape.batch == 1 { String::new() } else { format!("{} of ", shape.batch) };
    let strided = shape.stride[axis..].iter().any(|s| *s > 1);
    let stride = if strided { format!(", stride {}", times(&shape.stride[axis..])) } else { String::new() };
    let groups = if shape.groups > 1 { format!(", {} groups", shape.groups) } else { String::new() };
    let kernel = times(&shape.kernel[axis..]);
    format!("{batch}{}, {} {kernel}{stride}{groups}", times(&input[1..]), shape.out_channels)
}
