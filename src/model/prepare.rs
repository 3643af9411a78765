//! From a parsed model to one whose layers lie on workers.

use std::sync::Arc;

use tract_onnx::prelude::{DatumType, TractResult};
use tract_onnx::tract_core::internal::{Datum, Tensor as TractTensor, TypedModel, TypedModelPatch};

use super::find::{Found, Layer, LayerOp, layers};
use super::guard::guarded;
use super::load::Model;
use super::memory::ModelMemory;
use super::op::CodedOp;
use super::options::{ModelOptions, Progress};
use super::place::{STAYS, of_layer, place, stays};
use super::prepared::{CodedLayer, LocalLayer, Place, PreparedModel, Signature};
use super::repair::runnable;
use crate::array::{DType, Element};
use crate::coding::Code;
use crate::engine::{CodedConv, LayerOptions, SharedWeight};
use crate::error::Result;
use crate::memory;
use crate::planner::{LayerMemory, LayerPlan, Way, subtask_shape};
use crate::scheduler::{Fleet, Pool};

impl Model {
    /// Codes the model's layers and installs their filters on the workers of `pool`, once for any number of runs.
    ///
    /// # Errors
    /// [`Error::Model`] when a size is not known or the graph does not fit together, [`Error::Layer`] with what
    /// [`CodedConv::prepare`] says of a layer, [`Error::InvalidParameter`] for options that no layer can have,
    /// [`Error::Memory`] where it does not fit into this machine.
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
        options.layer.check()?;
        let mut graph = self.typed()?;
        let signature = Signature::of(self)?;
        let found = layers(self.name(), &graph)?;
        let rates = pool.shared(&options.layer.rates);
        let mut places = Vec::with_capacity(found.len());
        let mut to_code = Vec::new();
        let local = |why: String, name: String, op: LayerOp| Place::Local(LocalLayer { name, op, why });
        for Layer { name, op, found } in found {
            let placed = match found {
                Err(why) => Err(why),
                Ok(_) if stays(op, options) => Err(STAYS.to_owned()),
                Ok(found) => {
                    let plan = place(&found, op, pool.len(), &rates, options);
                    match plan.map_err(|e| of_layer(&name, e))? {
                        LayerPlan { way: Way::Local, why, .. } => Err(why),
                        LayerPlan { way: Way::Coded { code, n, k_a, k_b, .. }, .. } => {
                            Ok((found, (code, n, (k_a, k_b))))
                        }
                    }
                }
            };
            match placed {
                Err(why) => places.push(local(why, name, op)),
                Ok((found, way)) => {
                    places.push(Place::Coded(to_code.len()));
                    to_code.push((name, op, found, way));
                }
            }
        }
        // tract drops what leads to no output, and the file's layers are to be accounted for.
        let placed = |name: &str, places: &[Place]| {
            let local = |place: &Place| matches!(place, Place::Local(l) if l.name == name);
            places.iter().any(local) || to_code.iter().any(|(coded, ..)| coded == name)
        };
        for name in self.convolutions() {
            if !placed(name, &places) {
                places.push(local("nothing uses its output".to_owned(), name.clone(), LayerOp::Conv));
            }
        }
        let mut needed = ModelMemory::of(self.name(), &graph)?;
        for (name, _, found, (code, n, (k_a, k_b))) in &to_code {
            let layer = || -> Result<LayerMemory> {
                let code = Code::new(*code, *k_a, *k_b, *n)?;
                let subtask = subtask_shape(&found.shape, &code)?;
                let dtype = arithmetic(found, options.precision);
                Ok(LayerMemory::of(&found.shape, &code, &subtask, dtype, pool.share_here(), pool.cores()))
            };
            needed.add(&layer().map_err(|e| of_layer(name, e))?, copied_bytes(found, options.precision));
        }
        tracing::info!(estimated_bytes = needed.total(), ?needed, "memory");
        memory::require(&format!("{}, prepared and run,", self.name()), needed.additional())?;
        let total = to_code.len();
        let mut coded = Vec::with_capacity(total);
        for (index, (name, op, found, (code, n, partitions))) in to_code.into_iter().enumerate() {
            let layer = LayerOptions {
                name: name.clone(),
                code,
                subtasks: Some(n),
                partitions: Some(partitions),
                clamp: found.folded.clamp,
                ..options.layer.clone()
            };
            // From here on the graph needs the layer's filters no longer.
            guarded(self.name(), || replace(&mut graph, &name, &found, index))?;
            coded.push(
                prepare_layer(pool, found, op, layer, options.precision).map_err(|e| of_layer(&name, e))?,
            );
            observe(Progress { done: index + 1, total, layer: &name });
        }
        let plan = guarded(self.name(), || runnable(graph))?;
        Ok(PreparedModel { signature, plan, layers: coded, places, memory: needed })
    }
}

/// Puts a [`CodedOp`] where the layer and what is folded into it were.
fn replace(graph: &mut TypedModel, name: &str, found: &Found, index: usize) -> TractResult<()> {
    let mut patch = TypedModelPatch::new("coded layer");
    let data = patch.tap_model(graph, graph.node(found.node).inputs[found.data])?;
    let fact = graph.outlet_fact(found.folded.last)?;
    let output = fact.shape.as_concrete().unwrap_or_default().to_vec();
    let op = CodedOp { index, dtype: found.dtype, output };
    let coded = patch.wire_node(format!("{name}.coded"), op, &[data])?;
    patch.shunt_outside(graph, found.folded.last, coded[0])?;
    patch.apply(graph)
}

/// The type a layer is computed in.
fn arithmetic(found: &Found, precision: Option<DType>) -> DType {
    let own = if found.dtype == f64::datum_type() { DType::F64 } else { DType::F32 };
    precision.unwrap_or(own)
}

/// Bytes of the filters that a layer does not share with the model.
fn copied_bytes(found: &Found, precision: Option<DType>) -> u64 {
    let dtype = arithmetic(found, precision);
    let shared = match dtype {
        DType::F32 => Shared::<f32>::of(found).is_some(),
        DType::F64 => Shared::<f64>::of(found).is_some(),
    };
    if shared { 0 } else { (found.shape.weight_elems() * dtype.size_bytes()) as u64 }
}

fn prepare_layer(
    pool: &Pool,
    found: Found,
    op: LayerOp,
    options: LayerOptions,
    precision: Option<DType>,
) -> Result<CodedLayer> {
    Ok(match (arithmetic(&found, None), arithmetic(&found, precision)) {
        (DType::F32, DType::F32) => CodedLayer::f32(op, convolution::<f32, f32>(pool, found, options)?),
        (DType::F32, DType::F64) => CodedLayer::f64(op, convolution::<f32, f64>(pool, found, options)?),
        (DType::F64, DType::F32) => CodedLayer::f32(op, convolution::<f64, f32>(pool, found, options)?),
        (DType::F64, DType::F64) => CodedLayer::f64(op, convolution::<f64, f64>(pool, found, options)?),
    })
}

/// A coded layer in `T` from filters in `S`.
fn convolution<S: Element + Datum, T: Element>(
    pool: &Pool,
    found: Found,
    options: LayerOptions,
) -> Result<CodedConv<T>> {
    let bias = found.folded.shift.iter().map(|b| T::from_f64(*b)).collect();
    let weight: SharedWeight<T> = match Shared::<T>::of(&found) {
        Some(shared) => Arc::new(shared),
        None => Arc::new(scaled::<S, T>(&found)?),
    };
    CodedConv::prepare_shared(pool, found.shape, weight, Some(bias), options)
}

/// The model's own filters, where neither order, type nor scale have to change.
struct Shared<T> {
    tensor: Arc<TractTensor>,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> Shared<T> {
    fn of(found: &Found) -> Option<Self> {
        let same = matches!(
            (T::DTYPE, found.weight.datum_type()),
            (DType::F32, DatumType::F32) | (DType::F64, DatumType::F64)
        );
        let fits = same && !found.transposed && found.folded.keeps_filters();
        let shared = Self { tensor: Arc::clone(&found.weight), element: std::marker::PhantomData };
        (fits && shared.as_ref().len() == found.weight.len()).then_some(shared)
    }
}

impl<T: Element> AsRef<[T]> for Shared<T> {
    fn as_ref(&self) -> &[T] {
        let bytes = self.tensor.as_plain_ram().map_or(&[][..], |view| view.as_bytes());
        // Tensors are aligned to more than any element; were one not, `Shared::of` would see a wrong length.
        bytemuck::try_cast_slice(bytes).unwrap_or_default()
    }
}

/// A copy of the filters `[O, C/g, kernel...]`, each multiplied by its channel's scale.
fn scaled<S: Element + Datum, T: Element>(found: &Found) -> Result<Vec<T>> {
    guarded("filters", || {
        let view = found.weight.try_as_plain_ram()?;
        let from = view.as_slice::<S>()?;
        let terms = found.shape.reduction();
        let outputs = found.shape.out_channels;
        let at =
            |o: usize, c: usize| if found.transposed { from[c * outputs + o] } else { from[o * terms + c] };
        let mut to = Vec::with_capacity(from.len());
        for (o, scale) in found.folded.scale.iter().enumerate() {
            to.extend((0..terms).map(|c| T::from_f64(at(o, c).to_f64() * scale)));
        }
        Ok(to)
    })
}
