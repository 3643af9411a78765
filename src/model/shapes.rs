//! A model for inputs of any shape: prepared for each set of shapes when it first comes.
//!
//! Relevant if batches or pictures have different sizes. A prepared model has fixed shapes, since its memory and the partitions of
//! its layers are planned.
//!
//! Invariant: at most as many prepared models as allowed are kept; the one that was used longest ago goes first. Each has
//! coded filters of its own on the workers.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use super::load::Model;
use super::options::ModelOptions;
use super::prepared::{ModelRun, PreparedModel};
use super::tensor::Tensor;
use crate::error::{Error, Result};
use crate::scheduler::Pool;
use crate::sync::locked;
use crate::worker::CancelToken;

/// A model that is prepared for every set of input shapes that comes, and keeps a bounded number of these plans. Any
/// number of threads may run it at once.
///
/// # Examples
///
/// ```
/// use std::num::NonZeroUsize;
///
/// use fcdcc::model::ModelShapes;
/// use fcdcc::{CpuWorker, Model, ModelOptions, Pool};
/// use ndarray::ArrayD;
///
/// let pool = Pool::new(CpuWorker::fleet(6))?;
/// let model = Model::load("assets/digits/lenet5.onnx")?;
/// let shapes = ModelShapes::new(model, &pool, ModelOptions::default(), NonZeroUsize::new(4).unwrap());
/// for batch in [1, 3, 1] {
///     let digits = ArrayD::<f32>::zeros(vec![batch, 1, 32, 32]);
///     assert_eq!(shapes.run(&[digits.into()])?.outputs[0].tensor.shape(), [batch, 10]);
/// }
/// assert_eq!(shapes.prepared().len(), 2);
/// # Ok::<(), fcdcc::Error>(())
/// ```
pub struct ModelShapes {
    model: Model,
    pool: Pool,
    options: ModelOptions,
    most: usize,
    /// The one used last is at the end.
    plans: Mutex<Vec<Plan>>,
}

/// The model for one set of shapes; empty while it is being prepared.
struct Plan {
    shapes: Vec<Vec<usize>>,
    model: Arc<Mutex<Option<Arc<PreparedModel>>>>,
}

impl fmt::Debug for ModelShapes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelShapes")
            .field("model", &self.model.name())
            .field("prepared", &self.prepared())
            .finish_non_exhaustive()
    }
}

impl ModelShapes {
    /// Keeps at most `most` prepared models of `model` on `pool`. Nothing is prepared yet.
    #[must_use]
    pub fn new(model: Model, pool: &Pool, options: ModelOptions, most: NonZeroUsize) -> Self {
        Self { model, pool: pool.clone(), options, most: most.get(), plans: Mutex::default() }
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The sets of shapes that the model is prepared for, or being prepared for; the one used last is at the end.
    #[must_use]
    pub fn prepared(&self) -> Vec<Vec<Vec<usize>>> {
        locked(&self.plans).iter().map(|plan| plan.shapes.clone()).collect()
    }

    /// Runs the model on inputs in its order; prepares it first if it is not yet prepared for their shapes.
    ///
    /// # Errors
    /// Those of [`ModelShapes::prepare`] and [`PreparedModel::run`].
    pub fn run(&self, inputs: &[Tensor]) -> Result<ModelRun> {
        self.run_cancellable(inputs, &CancelToken::new())
    }

    /// As [`ModelShapes::run`]. `cancel` ends the run early, but no preparation.
    ///
    /// # Errors
    /// [`Error::Cancelled`] as well.
    pub fn run_cancellable(&self, inputs: &[Tensor], cancel: &CancelToken) -> Result<ModelRun> {
        let shapes: Vec<Vec<usize>> = inputs.iter().map(|tensor| tensor.shape().to_vec()).collect();
        self.prepare(&shapes)?.run_cancellable(inputs, cancel, &mut |_| {})
    }

    /// The model prepared for inputs of these shapes, in the order of [`Model::inputs`]. Threads that need the same shapes wait
    /// for the one that prepares them.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for shapes that the model does not have, those of [`Model::prepare`].
    pub fn prepare(&self, shapes: &[Vec<usize>]) -> Result<Arc<PreparedModel>> {
        let inputs = self.model.inputs();
        if shapes.len() != inputs.len() {
            let what = format!("inputs of {}", self.model.name());
            return Err(Error::mismatch(what, shapes.len(), inputs.len(), "give one array for each input"));
        }
        for (info, shape) in inputs.iter().zip(shapes) {
            if !info.admits(shape) {
                let what = format!("shape of input {}", info.name);
                let help = "sizes that the file fixes are fixed";
                return Err(Error::mismatch(what, shape.as_slice(), info.described.clone(), help));
            }
        }
        let plan = self.plan(shapes);
        let mut own = locked(&plan);
        if let Some(prepared) = &*own {
            return Ok(Arc::clone(prepared));
        }
        let named = inputs.iter().zip(shapes);
        let shaped = named
            .into_iter()
            .try_fold(self.model.clone(), |model, (info, shape)| model.with_input_shape(&info.name, shape));
        match shaped.and_then(|shaped| shaped.prepare(&self.pool, &self.options)) {
            Ok(prepared) => {
                tracing::info!(model = self.model.name(), ?shapes, "prepared");
                Ok(Arc::clone(own.insert(Arc::new(prepared))))
            }
            Err(error) => {
                locked(&self.plans).retain(|other| !Arc::ptr_eq(&other.model, &plan));
                Err(error)
            }
        }
    }

    /// The plan for these shapes. Others that are one too many go; runs in progress keep theirs.
    fn plan(&self, shapes: &[Vec<usize>]) -> Arc<Mutex<Option<Arc<PreparedModel>>>> {
        let mut plans = locked(&self.plans);
        let plan = match plans.iter().position(|plan| plan.shapes == shapes) {
            Some(index) => plans.remove(index),
            None => Plan { shapes: shapes.to_vec(), model: Arc::default() },
        };
        let model = Arc::clone(&plan.model);
        plans.push(plan);
        let surplus = plans.len().saturating_sub(self.most);
        plans.drain(..surplus);
        model
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use ndarray::ArrayD;

    use super::*;
    use crate::worker::CpuWorker;

    fn shapes(most: usize) -> ModelShapes {
        let pool = Pool::new(CpuWorker::fleet(6)).unwrap();
        let model = Model::load("assets/digits/lenet5.onnx").unwrap();
        ModelShapes::new(model, &pool, ModelOptions::default(), NonZeroUsize::new(most).unwrap())
    }

    fn digits(batch: usize) -> Tensor {
        let value = |i: ndarray::IxDyn| ((i[0] * 31 + i[2] * 7 + i[3] * 3) % 17) as f32 / 17.0;
        ArrayD::from_shape_fn(vec![batch, 1, 32, 32], value).into()
    }

    #[test]
    fn plans_are_kept_and_the_oldest_goes() {
        let shapes = shapes(2);
        for batch in [1, 2, 1, 3] {
            assert_eq!(shapes.run(&[digits(batch)]).unwrap().outputs[0].tensor.shape(), [batch, 10]);
        }
        assert_eq!(shapes.prepared(), [[[1, 1, 32, 32]], [[3, 1, 32, 32]]]);
        let kept = shapes.prepare(&[vec![1, 1, 32, 32]]).unwrap();
        assert!(Arc::ptr_eq(&kept, &shapes.prepare(&[vec![1, 1, 32, 32]]).unwrap()));
    }

    #[test]
    fn threads_that_need_the_same_shapes_share_a_plan() {
        let shapes = shapes(3);
        let plans: Vec<_> = std::thread::scope(|scope| {
            let all: Vec<_> =
                (0..4).map(|_| scope.spawn(|| shapes.prepare(&[vec![5, 1, 32, 32]]).unwrap())).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(plans.iter().all(|plan| Arc::ptr_eq(plan, &plans[0])));
    }

    #[test]
    fn shapes_that_the_model_does_not_have_are_refused() {
        let shapes = shapes(1);
        let why = |shape: &[usize]| shapes.prepare(&[shape.to_vec()]).map(drop).unwrap_err().to_string();
        assert!(why(&[1, 3, 32, 32]).contains("[1, 3, 32, 32]"));
        assert!(why(&[1, 1, 32]).contains("shape of input image"));
        assert!(shapes.prepare(&[]).map(drop).unwrap_err().to_string().contains("one array for each input"));
        // What cannot be prepared leaves nothing behind that others wait for.
        assert!(shapes.run(&[digits(1)]).is_ok());
    }
}
