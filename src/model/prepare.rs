//! Prepares a parsed model: codes its layers and places them on workers.

use std::collections::HashSet;

use tract_onnx::prelude::TractResult;
use tract_onnx::tract_core::internal::{InletId, OutletId, TypedModel, TypedOp};

use super::beside::Beside;
use super::compiled::shunt;
use super::filters::{copied_bytes, own_type, prepare_layer};
use super::find::{FilterOrder, Found, Layer, LayerOp, layers};
use super::guard::guarded;
use super::load::Model;
use super::memory::ModelMemory;
use super::op::CodedOp;
use super::options::{ModelOptions, Progress};
use super::place::{STAYS, of_layer, place, stays};
use super::prepared::{LayerPlacement, LocalLayer, PreparedModel};
use super::runnable::Program;
use super::signature::Signature;
use crate::array::DType;
use crate::coding::Code;
use crate::engine::{LayerOptions, integers_fit};
use crate::error::{Error, Result};
use crate::memory;
use crate::planner::{LayerMemory, LayerPlan, Way, subtask_shape};
use crate::scheduler::{Fleet, Pool};
use crate::worker::CancelToken;

impl Model {
    /// Codes the model's layers and installs their filters on the workers of `pool`, once for any number of runs.
    ///
    /// # Errors
    /// [`Error::Model`] when a size is not known or the graph is inconsistent, [`Error::Layer`] with an error of
    /// [`CodedConvBuilder::prepare`](crate::CodedConvBuilder::prepare) for a layer, [`Error::InvalidParameter`] for options
    /// that no layer can have, [`Error::Memory`] when the model does not fit into the memory of this machine.
    ///
    /// [`Error::Memory`]: crate::Error::Memory
    /// [`Error::Model`]: crate::Error::Model
    /// [`Error::Layer`]: crate::Error::Layer
    /// [`Error::InvalidParameter`]: crate::Error::InvalidParameter
    pub fn prepare(&self, pool: &Pool, options: &ModelOptions) -> Result<PreparedModel> {
        self.prepare_observed(pool, options, &mut |_| {})
    }

    /// As [`Model::prepare`]; `observe` is called after every layer.
    ///
    /// # Errors
    /// Those of [`Model::prepare`].
    pub fn prepare_observed(
        &self,
        pool: &Pool,
        options: &ModelOptions,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PreparedModel> {
        self.prepare_cancellable(pool, options, &CancelToken::new(), observe)
    }

    /// As [`Model::prepare_observed`], but ends with [`Error::Cancelled`] once `cancel` is cancelled, from any thread: after
    /// the layer that is being prepared.
    ///
    /// # Errors
    /// Those of [`Model::prepare`], and [`Error::Cancelled`].
    ///
    /// [`Error::Cancelled`]: crate::Error::Cancelled
    pub fn prepare_cancellable(
        &self,
        pool: &Pool,
        options: &ModelOptions,
        cancel: &CancelToken,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PreparedModel> {
        self.prepare_beside(pool, options, &Beside(&[]), cancel, observe)
    }

    /// As [`Model::prepare_cancellable`], but layers share the coded filters of earlier plans where they can.
    pub(super) fn prepare_beside(
        &self,
        pool: &Pool,
        options: &ModelOptions,
        beside: &Beside<'_>,
        cancel: &CancelToken,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PreparedModel> {
        options.check()?;
        if let Some(choice) = &options.segments {
            return self.prepare_segments(pool, options, choice, cancel, observe);
        }
        let mut graph = self.typed()?;
        let signature = Signature::of(self)?;
        let (places, to_code) = self.place_layers(&graph, pool, options, beside)?;
        let mut needed = ModelMemory::of(self.name(), &graph)?;
        for (name, _, found, code, dtype) in &to_code {
            let subtask = subtask_shape(&found.shape, code).map_err(|e| of_layer(name, e))?;
            let (share, cores) = (pool.share_here(), pool.cores());
            let mut layer = LayerMemory::of(&found.shape, code, &subtask, *dtype, share, cores);
            if beside.layer(name, code).is_some() {
                layer.filters = 0;
            }
            needed.add(&layer, copied_bytes(found, *dtype));
        }
        tracing::info!(estimated_bytes = needed.total(), ?needed, "memory");
        memory::require(&format!("{}, prepared and run,", self.name()), needed.additional())?;
        let total = to_code.len();
        let mut coded = Vec::with_capacity(total);
        for (index, (name, op, found, code, dtype)) in to_code.into_iter().enumerate() {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let layer = LayerOptions {
                name: name.clone(),
                code: code.kind(),
                subtasks: Some(code.n()),
                partitions: Some((code.k_a(), code.k_b())),
                clamp: found.folded.clamp,
                integers: found.folded.integers.map(|sums| f64::from(sums.largest)),
                ..options.layer.clone()
            };
            let other = beside.layer(&name, &code);
            // From here on the graph no longer needs the filters of the layer.
            guarded(self.name(), || replace(&mut graph, &name, &found, index))?;
            coded.push(prepare_layer(pool, found, op, layer, dtype, other).map_err(|e| of_layer(&name, e))?);
            observe(Progress { done: index + 1, total, layer: &name });
        }
        let program = guarded(self.name(), || Program::of(graph))?;
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        Ok(PreparedModel::new(signature, program, coded, places, needed))
    }

    /// Prepares the model without workers: every layer stays on the threads of this machine.
    pub(super) fn prepare_here(&self) -> Result<PreparedModel> {
        let graph = self.typed()?;
        let signature = Signature::of(self)?;
        let needed = ModelMemory::of(self.name(), &graph)?;
        memory::require(&format!("{}, prepared and run,", self.name()), needed.additional())?;
        let local = |Layer { name, op, .. }: Layer| {
            LayerPlacement::Local(LocalLayer { name, op, why: "its segment is computed whole".to_owned() })
        };
        let places = layers(self.name(), &graph)?.into_iter().map(local).collect();
        let program = guarded(self.name(), || Program::of(graph))?;
        Ok(PreparedModel::new(signature, program, Vec::new(), places, needed))
    }

    /// Where each layer of the file is computed, and those of them that are coded.
    fn place_layers(
        &self,
        graph: &TypedModel,
        pool: &Pool,
        options: &ModelOptions,
        beside: &Beside<'_>,
    ) -> Result<(Vec<LayerPlacement>, Vec<ToCode>)> {
        let found = layers(self.name(), graph)?;
        let rates = pool.shared(&options.layer.rates);
        let mut places = Vec::with_capacity(found.len());
        let mut to_code: Vec<ToCode> = Vec::new();
        let local =
            |why: String, name: String, op: LayerOp| LayerPlacement::Local(LocalLayer { name, op, why });
        for Layer { name, op, found } in found {
            let placed = match found {
                Err(why) => Err(why),
                Ok(_) if stays(op, options) => Err(STAYS.to_owned()),
                Ok(mut found) => {
                    let plan = place(&found, op, pool.len(), &rates, options);
                    match plan.map_err(|e| of_layer(&name, e))? {
                        LayerPlan { way: Way::Local, why, .. } => Err(why),
                        LayerPlan { way: Way::Coded { code, n, k_a, k_b, .. }, .. } => {
                            let dtype = options.precision.unwrap_or(own_type(&found));
                            let code = Code::new(code, k_a, k_b, n)
                                .and_then(|best| beside.code(&name, &found, best, dtype, &rates))
                                .map_err(|e| of_layer(&name, e))?;
                            precision(pool, &mut found, &code, options.precision)
                                .map(|dtype| (found, code, dtype))
                        }
                    }
                }
            };
            match placed {
                Err(why) => places.push(local(why, name, op)),
                Ok((found, code, dtype)) => {
                    places.push(LayerPlacement::Coded(to_code.len()));
                    to_code.push((name, op, found, code, dtype));
                }
            }
        }
        // tract drops nodes that lead to no output, but every layer of the file must be accounted for.
        let named = |place: &LayerPlacement| match place {
            LayerPlacement::Local(local) => local.name.clone(),
            LayerPlacement::Coded(index) => to_code[*index].0.clone(),
        };
        let mut placed: HashSet<String> = places.iter().map(named).collect();
        for (name, op) in self.convolutions() {
            if placed.insert(name.clone()) {
                places.push(local("nothing uses its output".to_owned(), name.clone(), *op));
            }
        }
        Ok((places, to_code))
    }
}

/// A layer for the workers: its name, operator, shapes and filters, code and arithmetic.
type ToCode = (String, LayerOp, Found, Code, DType);

/// Replaces the layer and the operators folded into it by a [`CodedOp`].
pub(super) fn replace(graph: &mut TypedModel, name: &str, found: &Found, index: usize) -> TractResult<()> {
    let data = graph.node(found.node).inputs[found.data];
    let output = match &found.interleave {
        Some(_) => found.shape.output_shape(),
        None => graph.outlet_fact(found.folded.last)?.shape.as_concrete().unwrap_or_default().to_vec(),
    };
    let op = CodedOp { index, dtype: found.dtype, output };
    let facts = op.output_facts(&[])?;
    let coded = graph.add_node(format!("{name}.coded"), op, facts)?;
    graph.add_edge(data, InletId::new(coded, 0))?;
    let mut last = OutletId::new(coded, 0);
    if let Some(op) = &found.interleave {
        let facts = op.output_facts(&[graph.outlet_fact(last)?])?;
        let node = graph.add_node(format!("{name}.interleave"), op.clone(), facts)?;
        graph.add_edge(last, InletId::new(node, 0))?;
        last = OutletId::new(node, 0);
    }
    shunt(graph, found.folded.last, last)
}

/// The arithmetic of the workers for a layer, where `asked` is what the caller wants. Sums of integers are computed in f32
/// where rounding then gives them exactly, otherwise in f64. If the caller asks for f32, or a worker has no f64, sums for
/// which the file asks in floats are computed as floats; others stay on the host, and the error says why.
fn precision(pool: &Pool, found: &mut Found, code: &Code, asked: Option<DType>) -> Result<DType, String> {
    let Some(sums) = found.folded.integers else { return Ok(asked.unwrap_or(own_type(found))) };
    let sum = f64::from(sums.largest) * largest_filter(found);
    if asked != Some(DType::F64) && integers_fit::<f32>(&found.shape, code, sum) {
        return Ok(DType::F32);
    }
    let able = pool.check_dtype(DType::F64);
    if sums.floats && (asked == Some(DType::F32) || able.is_err()) {
        found.folded.integers = None;
        return Ok(DType::F32);
    }
    let unable = |error| format!("its sums of integers reach {sum:.0}, too large for f32: {error}");
    able.map(|()| DType::F64).map_err(unable)
}

/// The largest sum of magnitudes of a filter.
fn largest_filter(found: &Found) -> f64 {
    let (terms, outputs) = (found.shape.reduction(), found.shape.out_channels);
    let mut sums = vec![0.0; outputs];
    let view = found.weight.as_plain_ram();
    // Sums of integers are in f64; of others, no bound is known.
    let Some(weights) = view.as_ref().and_then(|view| view.as_slice::<f64>().ok()) else {
        return f64::INFINITY;
    };
    for (at, weight) in weights.iter().enumerate() {
        match found.order {
            FilterOrder::ByOutputs => sums[at / terms] += weight.abs(),
            FilterOrder::ByInputs => sums[at % outputs] += weight.abs(),
            // A transposed convolution is never one of integers.
            FilterOrder::OfPhases(_) => return f64::INFINITY,
        }
    }
    sums.into_iter().fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use ndarray::ArrayD;

    use super::super::loaded::loaded;
    use super::super::signature::Output;
    use super::super::tensor::Tensor;
    use super::super::testing::{Attributes, Net};
    use super::*;
    use crate::worker::CpuWorker;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        let mut state = u32::try_from(seed).unwrap();
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn relative_l2(got: &[Output], want: &[Output]) -> f64 {
        let pairs = got[0].tensor.to_f64().into_iter().zip(want[0].tensor.to_f64());
        let (error, norm) = pairs.fold((0.0, 0.0), |(e, n), (g, w)| (e + (g - w).powi(2), n + w * w));
        (error / norm).sqrt()
    }

    /// `k - BatchNormalization(Conv(x))`, and an input for it.
    fn constant_minus_normalized(filters: usize, side: usize) -> (Model, Tensor) {
        let mut net = Net::new(&[1, 4, side, side]);
        net.floats("w", &[filters, 4, 3, 3], &numbers(filters * 36, 1));
        net.floats("k", &[filters, 1, 1], &numbers(filters, 2));
        for (name, seed) in [("scale", 3), ("shift", 4), ("mean", 5)] {
            net.floats(name, &[filters], &numbers(filters, seed));
        }
        net.floats("var", &[filters], &numbers(filters, 6).iter().map(|v| v.abs() + 0.5).collect::<Vec<_>>());
        net.node("Conv", &["x", "w"], "c").name = "conv".to_owned();
        net.node("BatchNormalization", &["c", "scale", "shift", "mean", "var"], "n");
        net.node("Sub", &["k", "n"], "y");
        let data = ArrayD::from_shape_vec(vec![1, 4, side, side], numbers(4 * side * side, 7)).unwrap();
        (loaded(net).unwrap(), data.into())
    }

    /// A prepared model whose only layer is folded with an injected mistake.
    fn with_mistake(model: &Model, pool: &Pool, mistake: impl FnOnce(&mut Found)) -> PreparedModel {
        let mut graph = model.typed().unwrap();
        let Layer { name, op, found } = layers(model.name(), &graph).unwrap().remove(0);
        let mut found = found.unwrap();
        mistake(&mut found);
        replace(&mut graph, &name, &found, 0).unwrap();
        let layer = LayerOptions { name, ..LayerOptions::default() };
        let layers = vec![prepare_layer(pool, found, op, layer, DType::F32, None).unwrap()];
        let signature = Signature::of(model).unwrap();
        let places = vec![LayerPlacement::Coded(0)];
        PreparedModel::new(signature, Program::of(graph).unwrap(), layers, places, ModelMemory::default())
    }

    /// The reference of a run shares nothing with the code that folds and codes.
    #[test]
    fn a_wrongly_folded_scale_is_noticed() {
        let (model, data) = constant_minus_normalized(8, 12);
        let data = [data];
        let pool = Pool::new(CpuWorker::fleet(6)).unwrap();
        let truth = model.on_host().unwrap().run(&data).unwrap();
        let deviation = |prepared: &PreparedModel| relative_l2(&prepared.run(&data).unwrap().outputs, &truth);
        let prepared = model.prepare(&pool, &ModelOptions::default()).unwrap();
        assert_eq!(prepared.coded_layers(), 1);
        assert!(deviation(&prepared) < 1e-6);
        assert!(deviation(&with_mistake(&model, &pool, |_| ())) < 1e-6);
        let scale = with_mistake(&model, &pool, |found| found.folded.scale[3] *= 1.01);
        assert!(deviation(&scale) > 1e-4);
        let sign = with_mistake(&model, &pool, |found| found.folded.scale.iter_mut().for_each(|s| *s = -*s));
        assert!(deviation(&sign) > 0.1);
    }

    /// The layer is too small to be coded; operators around it must not be moved into it.
    #[test]
    fn a_layer_on_the_host_keeps_its_sign() {
        let (model, data) = constant_minus_normalized(1, 3);
        let data = [data];
        let pool = Pool::new(CpuWorker::fleet(6)).unwrap();
        let prepared = model.prepare(&pool, &ModelOptions::default()).unwrap();
        assert_eq!(prepared.coded_layers(), 0);
        let got = prepared.run(&data).unwrap().outputs;
        assert!(relative_l2(&got, &model.on_host().unwrap().run(&data).unwrap()) < 1e-6);
        // By hand, for the only output.
        let product: f64 = data[0].to_f64().iter().zip(numbers(36, 1)).map(|(x, w)| x * f64::from(w)).sum();
        let one = |seed| f64::from(numbers(1, seed)[0]);
        let normalized = one(3) * (product - one(5)) / (one(6).abs() + 0.5 + 1e-5).sqrt() + one(4);
        assert!((got[0].tensor.to_f64()[0] - (one(2) - normalized)).abs() < 1e-5);
    }

    /// If time grew with the square of the number of nodes, this would take a quarter of an hour.
    #[test]
    fn a_chain_of_many_nodes_is_prepared_in_seconds() {
        const NODES: usize = 20_000;
        let mut net = Net::new(&[1, 2, 3]);
        let name = |index: usize| match index {
            0 => "x".to_owned(),
            NODES => "y".to_owned(),
            _ => format!("v{index}"),
        };
        for index in 0..NODES {
            // Every other node has its own constant.
            if index % 2 == 0 {
                net.node("Relu", &[&name(index)], &name(index + 1));
            } else {
                let constant = format!("k{index}");
                net.floats(&constant, &[3], &[index as f32, 1.0, 2.0]);
                net.node("Max", &[&name(index), &constant], &name(index + 1));
            }
        }
        let started = std::time::Instant::now();
        let model = loaded(net).unwrap();
        let pool = Pool::new(CpuWorker::fleet(2)).unwrap();
        let layer = LayerOptions::default().tolerate(0);
        let prepared = model.prepare(&pool, &ModelOptions { layer, ..ModelOptions::default() }).unwrap();
        let took = started.elapsed();
        let data = Tensor::from(
            ArrayD::from_shape_vec(vec![1, 2, 3], vec![-1.0f32, 2.0, -3.0, 4.0, -5.0, 6.0]).unwrap(),
        );
        let run = prepared.run(&[data]).unwrap();
        assert_eq!(run.outputs[0].tensor.to_f64(), [19_999.0, 2.0, 2.0, 19_999.0, 1.0, 6.0]);
        // Takes two seconds of processor time; the machine may be busy.
        assert!(took < std::time::Duration::from_secs(150), "{took:?}");
    }

    #[test]
    fn layers_without_output_are_refused_by_name() {
        let refused = |op: &str, kernel: i64, stride: i64| {
            let mut net = Net::new(&[1, 4, 4, 4]);
            net.floats("w", &[2, 4, 5, 5], &numbers(200, 1));
            let node = if op == "Conv" { net.node(op, &["x", "w"], "y") } else { net.node(op, &["x"], "y") };
            node.ints("kernel_shape", &[kernel, kernel]).ints("strides", &[stride, stride]).name =
                "layer".to_owned();
            let error = loaded(net).unwrap().typed().unwrap_err();
            assert_eq!(error.kind(), crate::error::ErrorKind::BadInput);
            error.to_string()
        };
        for (op, kernel) in [("Conv", 5), ("MaxPool", 5), ("AveragePool", 6)] {
            let why = refused(op, kernel, 1);
            let words = [format!("{op} node layer"), kernel.to_string(), "4".to_owned()];
            assert!(words.iter().all(|word| why.contains(word)) && !why.contains('\n'), "{why}");
        }
    }
}
