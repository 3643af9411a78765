//! Decides where each layer of a model runs.

use tract_onnx::tract_core::internal::Datum;

use super::find::{Found, Layer, LayerOp, layers};
use super::load::Model;
use super::options::{GemmChoice, ModelOptions};
use crate::array::DType;
use crate::conv::ConvShape;
use crate::error::{Error, Result};
use crate::planner::{LayerPlan, PlanOptions, Rates, plan_layer};

/// A layer of a model and its planned placement.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PlannedLayer {
    /// Its name in the file.
    pub name: String,
    /// `Conv`, `ConvTranspose` or `Gemm`.
    pub op: &'static str,
    /// The layer as a convolution, and its plan; or the reason why only the host can run it.
    pub plan: Result<(ConvShape, LayerPlan), String>,
}

/// Predicted times of those layers of a model that can run on workers, without stragglers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Forecast {
    /// As planned, seconds.
    pub planned_s: f64,
    /// Every layer on this machine, seconds.
    pub local_s: f64,
}

impl Forecast {
    /// The sums over the layers of a plan.
    #[must_use]
    pub fn of(planned: &[PlannedLayer]) -> Self {
        let plans = planned.iter().filter_map(|layer| layer.plan.as_ref().ok());
        plans.fold(Self::default(), |sum, (_, plan)| Self {
            planned_s: sum.planned_s + plan.total_s(),
            local_s: sum.local_s + plan.local_s,
        })
    }
}

impl Model {
    /// The plan of [`Model::prepare`] for each layer on `workers` workers with `rates`; needs no workers.
    ///
    /// # Errors
    /// Those of [`Model::prepare`] that concern the model or the options.
    pub fn plan(&self, workers: usize, rates: &Rates, options: &ModelOptions) -> Result<Vec<PlannedLayer>> {
        options.layer.check()?;
        let found = layers(self.name(), &self.typed()?)?;
        let planned = |Layer { name, op, found }: Layer| {
            let plan = match found {
                Err(why) => Err(why),
                Ok(_) if stays(op, options) => Err(STAYS.to_owned()),
                Ok(found) => {
                    let plan = place(&found, op, workers, rates, options).map_err(|e| of_layer(&name, e))?;
                    Ok((found.shape, plan))
                }
            };
            Ok(PlannedLayer { name, op: op.name(), plan })
        };
        found.into_iter().map(planned).collect()
    }
}

pub(super) fn of_layer(name: &str, source: Error) -> Error {
    Error::Layer { layer: name.to_owned(), source: Box::new(source) }
}

/// The reason for leaving a fully connected layer on the host if none is wanted on the workers.
pub(super) const STAYS: &str = "fully connected layers are to stay on the host";

/// Whether a layer stays on the host without being planned.
pub(super) fn stays(op: LayerOp, options: &ModelOptions) -> bool {
    op == LayerOp::Gemm && options.gemm == GemmChoice::Off
}

/// The plan of a layer: with the caller's partitions if they fit, otherwise with the planner's.
pub(super) fn place(
    found: &Found,
    op: LayerOp,
    workers: usize,
    rates: &Rates,
    options: &ModelOptions,
) -> Result<LayerPlan> {
    let (layer, free) = (&options.layer, options.freedom);
    let choice = PlanOptions {
        workers,
        subtasks: (!free.subtasks).then_some(layer.subtasks.unwrap_or(workers)),
        tolerate: layer.tolerate,
        code: (!free.code).then_some(layer.code),
        // The caller's partitions are meant for convolutions.
        partitions: layer.partitions.filter(|_| op != LayerOp::Gemm),
        local_if_faster: free.local || (op == LayerOp::Gemm && options.gemm == GemmChoice::Auto),
        rates: *rates,
    };
    let own = if found.dtype == f64::datum_type() { DType::F64 } else { DType::F32 };
    match options.precision.unwrap_or(own) {
        DType::F32 => plan_layer::<f32>(&found.shape, &choice),
        DType::F64 => plan_layer::<f64>(&found.shape, &choice),
    }
}
