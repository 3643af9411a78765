//! A model for inputs of any shape: prepared for each set of shapes when it first comes.
//!
//! Relevant if batches or pictures have different sizes. A prepared model has fixed shapes, since its memory and the partitions of
//! its layers are planned.
//!
//! Invariant: at most as many prepared models as allowed are kept; the one that was used longest ago goes first. Layers with
//! the same code share their coded filters, on workers that can. One thread at a time prepares for a set of shapes.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::beside::Beside;
use super::load::Model;
use super::options::{ModelOptions, Progress};
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

/// The model for one set of shapes.
struct Plan {
    shapes: Vec<Vec<usize>>,
    model: Arc<Slot>,
}

/// The place of a prepared model.
#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
enum State {
    /// Nothing has begun.
    #[default]
    Empty,
    /// A thread prepares it.
    Preparing,
    Ready(Arc<PreparedModel>),
    /// It could not be prepared; there is no plan with this place any more.
    Failed,
}

/// What a thread has to do that needs the model of a place.
enum Turn {
    Run(Arc<PreparedModel>),
    Prepare,
    /// Ask for the plan once more.
    Ask,
}

impl Slot {
    fn set(&self, state: State) {
        *locked(&self.state) = state;
        self.changed.notify_all();
    }

    /// Waits while another thread prepares the model.
    fn turn(self: &Arc<Self>, cancel: &CancelToken) -> Result<Turn> {
        let mut hook = None;
        let mut state = locked(&self.state);
        loop {
            match &*state {
                State::Ready(model) => return Ok(Turn::Run(Arc::clone(model))),
                State::Failed => return Ok(Turn::Ask),
                State::Empty => {
                    *state = State::Preparing;
                    return Ok(Turn::Prepare);
                }
                State::Preparing if cancel.is_cancelled() => return Err(Error::Cancelled),
                State::Preparing if hook.is_none() => {
                    drop(state);
                    let slot = Arc::clone(self);
                    hook = Some(cancel.on_cancel(move || {
                        // Taking the lock orders the call after the check of a thread that is about to wait.
                        drop(locked(&slot.state));
                        slot.changed.notify_all();
                    }));
                    state = locked(&self.state);
                }
                State::Preparing => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

/// A thread that prepares a model. Unless that ends well, the plan is forgotten when this is dropped.
struct Preparing<'a> {
    plans: &'a Mutex<Vec<Plan>>,
    slot: Arc<Slot>,
    ready: Option<Arc<PreparedModel>>,
}

impl Drop for Preparing<'_> {
    fn drop(&mut self) {
        let Some(ready) = self.ready.take() else {
            locked(self.plans).retain(|plan| !Arc::ptr_eq(&plan.model, &self.slot));
            return self.slot.set(State::Failed);
        };
        self.slot.set(State::Ready(ready));
    }
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
        self.prepare_cancellable(shapes, &CancelToken::new(), &mut |_| {})
    }

    /// As [`ModelShapes::prepare`], but ends with [`Error::Cancelled`] once `cancel` is cancelled, as
    /// [`Model::prepare_cancellable`] does, or at once where another thread prepares the model. `observe` is called after every
    /// layer that this call prepares.
    ///
    /// # Errors
    /// Those of [`ModelShapes::prepare`], and [`Error::Cancelled`].
    pub fn prepare_cancellable(
        &self,
        shapes: &[Vec<usize>],
        cancel: &CancelToken,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Arc<PreparedModel>> {
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
        let slot = loop {
            let slot = self.plan(shapes);
            match slot.turn(cancel)? {
                Turn::Run(model) => return Ok(model),
                Turn::Prepare => break slot,
                Turn::Ask => {}
            }
        };
        let mut preparing = Preparing { plans: &self.plans, slot, ready: None };
        let named = inputs.iter().zip(shapes);
        let shaped = named
            .into_iter()
            .try_fold(self.model.clone(), |model, (info, shape)| model.with_input_shape(&info.name, shape))?;
        let ready = self.ready();
        let beside = Beside(&ready);
        let prepared = shaped.prepare_beside(&self.pool, &self.options, &beside, cancel, observe)?;
        let prepared = Arc::new(prepared);
        tracing::info!(model = self.model.name(), ?shapes, "prepared");
        Ok(Arc::clone(preparing.ready.insert(prepared)))
    }

    /// The prepared model that was used last, if one is ready.
    #[must_use]
    pub fn latest(&self) -> Option<Arc<PreparedModel>> {
        self.ready().into_iter().next()
    }

    /// The prepared models that are ready, the one used last first.
    fn ready(&self) -> Vec<Arc<PreparedModel>> {
        let ready = |plan: &Plan| match &*locked(&plan.model.state) {
            State::Ready(model) => Some(Arc::clone(model)),
            State::Empty | State::Preparing | State::Failed => None,
        };
        locked(&self.plans).iter().rev().filter_map(ready).collect()
    }

    /// The plan for these shapes. Others that are one too many go; runs in progress keep theirs.
    fn plan(&self, shapes: &[Vec<usize>]) -> Arc<Slot> {
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
    use std::sync::Barrier;

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
    fn what_is_cancelled_is_prepared_by_the_next_that_needs_it() {
        let shapes = shapes(2);
        let wanted = [vec![2, 1, 32, 32]];
        let (begun, released, waiting) = (Barrier::new(2), CancelToken::new(), CancelToken::new());
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                let cancel = CancelToken::new();
                let mut layers = 0;
                let end = shapes.prepare_cancellable(&wanted, &cancel, &mut |_| {
                    layers += 1;
                    if layers == 1 {
                        begun.wait();
                        released.wait();
                        cancel.cancel();
                    }
                });
                (layers, matches!(end, Err(Error::Cancelled)))
            });
            begun.wait();
            assert!(shapes.latest().is_none());
            let second = scope.spawn(|| shapes.prepare_cancellable(&wanted, &waiting, &mut |_| {}).map(drop));
            let third = scope.spawn(|| shapes.prepare(&wanted));
            waiting.cancel();
            // Ends although the first one has not.
            assert!(matches!(second.join().unwrap(), Err(Error::Cancelled)));
            released.cancel();
            assert_eq!(first.join().unwrap(), (1, true));
            let prepared = third.join().unwrap().unwrap();
            assert_eq!(prepared.input_shapes(), [("image", wanted[0].as_slice())]);
            assert!(
                Arc::ptr_eq(&prepared, &shapes.latest().unwrap()),
                "a plan that was forgotten is kept again"
            );
        });
        assert!(shapes.run(&[digits(2)]).is_ok());
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
