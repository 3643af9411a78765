//! The worker that computes on threads of this machine.
//!
//! Relevant if you want to change how CPUs compute subtasks; [`CpuWorker::fleet`] suffices to assemble a pool. All subtasks
//! of a worker share one scratch buffer, so each further layer takes only the memory of its filters.
//!
//! Invariant: under [`Order::All`] each slab is convolved with all filter banks of the subtask at once, strip by strip. Its
//! sub-results therefore complete together and are emitted slab by slab, in ascending index. Under [`Order::Each`] one
//! slab is convolved with one bank, so cancelling loses at most the current sub-result. A worker computes only while it has
//! the [`turn`] on as many cores as it has threads.

use std::collections::HashMap;
use std::sync::Arc;

use super::cpu_parts::CpuParts;
use super::turns::turn;
use super::{
    CancelToken, FilterKey, LOCAL_HOST, Order, PartCompiler, PartFile, PartKey, PartSignature, Phase,
    Respawn, SubtaskShape, Task, Worker, WorkerInfo, WorkerKind, not_installed,
};
use crate::array::{DType, Element, Values, WireFormat};
use crate::conv::{ConvKernel, Filters, Scratch};
use crate::error::{Error, Result};

/// Computes subtasks in f32 and f64 on one or more threads of this machine.
///
/// With one thread everything runs on the thread that calls [`Worker::execute`]; with more, tiles are packed
/// and multiplied on the current rayon pool.
///
/// # Examples
///
/// ```
/// use fcdcc::{CpuWorker, Pool};
///
/// // Four workers of one thread each.
/// let pool = Pool::new(CpuWorker::fleet(4))?;
/// assert_eq!(pool.len(), 4);
/// # Ok::<(), fcdcc::Error>(())
/// ```
///
/// ```
/// use fcdcc::{CpuWorker, Worker};
///
/// let worker = CpuWorker::new("left", 2);
/// assert_eq!((worker.info().name.as_str(), worker.info().device.as_str()), ("left", "2 threads"));
/// ```
#[derive(Debug)]
pub struct CpuWorker {
    name: String,
    threads: usize,
    installed: HashMap<FilterKey, Installed>,
    scratch_f32: Scratch<f32>,
    scratch_f64: Scratch<f64>,
    parts: CpuParts,
}

/// The coded filters of one subtask, and the plan that uses them.
#[derive(Debug)]
struct Installed {
    shape: SubtaskShape,
    kernel: ConvKernel,
    /// Shared by the subtasks of a layer that is prepared for inputs of several sizes.
    banks: Arc<Banks>,
}

/// Filter banks in the layout that the kernel reads.
#[derive(Debug)]
enum Banks {
    F32(Vec<Filters<f32>>),
    F64(Vec<Filters<f64>>),
}

impl Banks {
    fn pack<T: Element>(kernel: &ConvKernel, banks: &[T]) -> Result<Vec<Filters<T>>> {
        banks.chunks_exact(kernel.shape().weight_elems()).map(|bank| kernel.pack(bank)).collect()
    }

    fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F64(_) => DType::F64,
        }
    }
}

impl CpuWorker {
    /// A worker called `name` that uses `threads` threads; zero counts as one.
    #[must_use]
    pub fn new(name: impl Into<String>, threads: usize) -> Self {
        Self {
            name: name.into(),
            threads: threads.max(1),
            installed: HashMap::new(),
            scratch_f32: Scratch::default(),
            scratch_f64: Scratch::default(),
            parts: CpuParts::default(),
        }
    }

    /// This worker, which takes parts of models too, made executable by `compiler`. Without one it refuses them.
    #[must_use]
    pub fn with_parts(self, compiler: Arc<dyn PartCompiler>) -> Self {
        Self { parts: CpuParts::new(Some(compiler)), ..self }
    }

    /// `count` workers of one thread each, called `cpu-0`, `cpu-1` and so on.
    #[must_use]
    pub fn fleet(count: usize) -> Vec<Box<dyn Worker>> {
        (0..count).map(|i| -> Box<dyn Worker> { Box::new(Self::new(format!("cpu-{i}"), 1)) }).collect()
    }

    /// As [`CpuWorker::fleet`], of workers that take [parts](CpuWorker::with_parts).
    #[must_use]
    pub fn fleet_with_parts(count: usize, compiler: &Arc<dyn PartCompiler>) -> Vec<Box<dyn Worker>> {
        let worker = |i| Self::new(format!("cpu-{i}"), 1).with_parts(Arc::clone(compiler));
        (0..count).map(|i| -> Box<dyn Worker> { Box::new(worker(i)) }).collect()
    }
}

impl Installed {
    fn compute<T: Element>(
        &self,
        banks: &[Filters<T>],
        (scratch, threads): (&mut Scratch<T>, usize),
        task: Task<'_>,
        emit: &mut dyn FnMut(usize, Values),
    ) -> Result<()> {
        let (shape, Task { order, cancel, buffers, .. }) = (&self.shape, task);
        let slabs = task.slabs.as_slice::<T>()?;
        let slab = |p: usize| &slabs[p * shape.conv.input_elems()..][..shape.conv.input_elems()];
        let buffer = || buffers.take::<T>(shape.conv.output_elems());
        task.enter(Phase::Queue);
        let Some(turn) = turn(threads, cancel) else { return Err(Error::Cancelled) };
        task.enter(Phase::Compute);
        let stop = || {
            turn.progress();
            cancel.is_cancelled()
        };
        match order {
            Order::All => {
                let banks: Vec<&Filters<T>> = banks.iter().collect();
                for p in 0..shape.slabs {
                    let mut outputs: Vec<Vec<T>> = banks.iter().map(|_| buffer()).collect();
                    let mut views: Vec<&mut [T]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
                    self.kernel.run(scratch, slab(p), &banks, &mut views, threads, &stop)?;
                    for (r, output) in outputs.into_iter().enumerate() {
                        emit(p * shape.banks + r, T::wrap(output));
                    }
                }
            }
            Order::Each(indices) => {
                for neighbours in indices.chunk_by(|a, b| a / shape.banks == b / shape.banks) {
                    let p = neighbours[0] / shape.banks;
                    let mut input = self.kernel.one_input(scratch, slab(p), threads);
                    for index in neighbours {
                        let mut output = buffer();
                        input.run(&banks[index % shape.banks], &mut output, &stop)?;
                        emit(*index, T::wrap(output));
                    }
                }
            }
        }
        Ok(())
    }
}

impl Worker for CpuWorker {
    fn info(&self) -> WorkerInfo {
        WorkerInfo {
            name: self.name.clone(),
            kind: WorkerKind::Cpu,
            device: match self.threads {
                1 => "1 thread".to_owned(),
                threads => format!("{threads} threads"),
            },
            f64: true,
            half: false,
            wire: WireFormat::Full,
            host: LOCAL_HOST.to_owned(),
            adapter: None,
        }
    }

    fn install(&mut self, key: FilterKey, shape: &SubtaskShape, banks: Values) -> Result<()> {
        shape.check_banks(&banks)?;
        let kernel = shape.cpu_kernel();
        let banks = match &banks {
            Values::F32(banks) => Banks::F32(Banks::pack(&kernel, banks)?),
            Values::F64(banks) => Banks::F64(Banks::pack(&kernel, banks)?),
        };
        self.installed.insert(key, Installed { shape: shape.clone(), kernel, banks: Arc::new(banks) });
        Ok(())
    }

    /// Filters are shared if the plans for both sizes read the same layout.
    fn share(&mut self, key: FilterKey, from: FilterKey, shape: &SubtaskShape) -> Result<bool> {
        let Some(other) = self.installed.get(&from).filter(|other| other.shape.has_filters_of(shape)) else {
            return Ok(false);
        };
        let kernel = shape.cpu_kernel();
        if !kernel.reads_filters_of(&other.kernel) {
            return Ok(false);
        }
        let banks = Arc::clone(&other.banks);
        self.installed.insert(key, Installed { shape: shape.clone(), kernel, banks });
        Ok(true)
    }

    fn remove(&mut self, key: FilterKey) {
        self.installed.remove(&key);
    }

    fn execute(&mut self, task: Task<'_>, emit: &mut dyn FnMut(usize, Values)) -> Result<()> {
        let Task { key, slabs, order, .. } = task;
        if task.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let layer = self.installed.get(&key).ok_or_else(|| not_installed(&self.name, key))?;
        layer.shape.check_slabs(slabs, layer.banks.dtype())?;
        layer.shape.check_order(order)?;
        match &*layer.banks {
            Banks::F32(banks) => layer.compute(banks, (&mut self.scratch_f32, self.threads), task, emit),
            Banks::F64(banks) => layer.compute(banks, (&mut self.scratch_f64, self.threads), task, emit),
        }
    }

    fn install_part(&mut self, key: PartKey, part: &PartFile) -> Result<PartSignature> {
        self.parts.install(&self.name, self.threads, key, part)
    }

    fn remove_part(&mut self, key: PartKey) {
        self.parts.remove(key);
    }

    fn run_part(&mut self, key: PartKey, inputs: &[Values], cancel: &CancelToken) -> Result<Vec<Values>> {
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        self.parts.run(&self.name, self.threads, key, inputs, cancel)
    }

    /// Threads do not get lost, but a defect may panic; and an injected loss should be recoverable on every kind of worker.
    fn respawn(&self) -> Option<Respawn> {
        let (name, threads, compiler) = (self.name.clone(), self.threads, self.parts.compiler());
        Some(Arc::new(move |_| {
            let parts = CpuParts::new(compiler.clone());
            Ok(Box::new(Self { parts, ..Self::new(name.clone(), threads) }))
        }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::conv::{ConvParams, ConvShape};
    use crate::ids::SubtaskId;
    use crate::worker::CancelToken;

    fn key(layer: u64) -> FilterKey {
        FilterKey { layer, subtask: SubtaskId(0) }
    }

    fn shape(input: &[usize], weight: &[usize], plain: bool) -> SubtaskShape {
        let conv = ConvShape::new(input, weight, &ConvParams::default()).unwrap();
        SubtaskShape { conv, slabs: 1, banks: 2, plain }
    }

    fn numbers(count: usize) -> Values {
        Values::F32((0..count).map(|i| (i * 7 % 23) as f32 - 11.0).collect())
    }

    /// The results of all slabs with all banks.
    fn results(worker: &mut CpuWorker, layer: u64, shape: &SubtaskShape) -> Vec<Values> {
        let (slabs, cancel) = (numbers(shape.upload_elems()), CancelToken::new());
        let mut all = Vec::new();
        worker.execute(Task::new(key(layer), &slabs, &cancel), &mut |_, values| all.push(values)).unwrap();
        all
    }

    #[test]
    fn shared_filters_give_the_results_of_installed_ones() {
        for plain in [true, false] {
            let mut worker = CpuWorker::new("one", 1);
            let small = shape(&[1, 32, 12, 12], &[32, 32, 3, 3], plain);
            let large = shape(&[3, 32, 17, 30], &[32, 32, 3, 3], plain);
            let banks = numbers(small.filter_elems());
            worker.install(key(1), &small, banks.clone()).unwrap();
            worker.install(key(2), &large, banks).unwrap();
            assert!(worker.share(key(3), key(1), &large).unwrap());
            let banks = |worker: &CpuWorker, layer| Arc::clone(&worker.installed[&key(layer)].banks);
            assert!(Arc::ptr_eq(&banks(&worker, 1), &banks(&worker, 3)));
            assert!(!Arc::ptr_eq(&banks(&worker, 1), &banks(&worker, 2)));
            worker.remove(key(1));
            assert_eq!(results(&mut worker, 3, &large), results(&mut worker, 2, &large));
        }
    }

    #[test]
    fn other_filters_are_not_shared() {
        let mut worker = CpuWorker::new("one", 1);
        let given = shape(&[1, 32, 12, 12], &[32, 32, 3, 3], true);
        worker.install(key(1), &given, numbers(given.filter_elems())).unwrap();
        let mut refused = |from, shape: &SubtaskShape| !worker.share(key(2), key(from), shape).unwrap();
        assert!(refused(7, &given), "nothing is installed there");
        assert!(refused(1, &shape(&[1, 32, 12, 12], &[32, 32, 1, 9], true)), "as many elements");
        assert!(refused(1, &shape(&[1, 32, 12, 12], &[32, 32, 3, 3], false)), "another arithmetic");
        // A plane of one point is a product of matrices, which reads filters as they come.
        assert!(refused(1, &shape(&[1, 32, 3, 3], &[32, 32, 3, 3], true)), "another layout");
        assert!(!refused(1, &shape(&[2, 32, 40, 12], &[32, 32, 3, 3], true)));
    }
}
