//! A wrapper that makes any worker fail on purpose, reproducibly, by one [`Fault`].
//!
//! Relevant if you want to inject faults in tests, demonstrations or benchmarks. Wrapping several times combines faults;
//! [`inject`] does that for a whole pool.
//!
//! Invariant: everything random depends on seed, worker name, fault and task number alone, so a run is exactly
//! reproducible; and every wait ends when the task's [`CancelToken`] is cancelled.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{CancelToken, Fault, FaultSpec, FilterKey, Order, Respawn, SubtaskShape, Worker, WorkerInfo};
use crate::array::{Element, Values, normal};
use crate::error::{Error, Result};

/// A worker with one [`Fault`]; its [`info`](Worker::info) is that of the inner worker.
///
/// Faults apply to the tasks of layers. The tasks of a [`Probe`](super::Probe) are exempt and are not counted: until the
/// worker is lost, the inner worker answers them unchanged. A worker that dies at its first task therefore does so at the
/// first task of a layer.
pub struct FaultyWorker {
    inner: Box<dyn Worker>,
    fault: Fault,
    seed: u64,
    /// The generator at the start of stream 0; each task uses the stream of its number.
    rng: ChaCha8Rng,
    tasks: u64,
    /// The cause of a loss by [`Fault::Crash`] or [`Fault::DeviceLost`]; every later call fails.
    lost: Option<String>,
}

impl FaultyWorker {
    /// Wraps `inner`. Workers of different names draw different numbers from the same `seed`.
    #[must_use]
    pub fn new(inner: Box<dyn Worker>, fault: Fault, seed: u64) -> Self {
        let identity = format!("{}:{fault}", inner.info().name);
        let rng = ChaCha8Rng::seed_from_u64(seed ^ fnv1a(identity.as_bytes()));
        Self { inner, fault, seed, rng, tasks: 0, lost: None }
    }

    fn check_alive(&self) -> Result<()> {
        match &self.lost {
            None => Ok(()),
            Some(cause) => Err(Error::WorkerLost { worker: self.inner.info().name, cause: cause.clone() }),
        }
    }
}

/// Wraps the workers that `specs` name, in the order of the specs. Spec `i` draws from `seed + i`, so two
/// `random:1` choose workers independently.
///
/// # Errors
/// [`Error::InvalidParameter`] when a spec names workers that do not exist.
pub fn inject(workers: Vec<Box<dyn Worker>>, specs: &[FaultSpec], seed: u64) -> Result<Vec<Box<dyn Worker>>> {
    let count = workers.len();
    let mut workers: Vec<Option<Box<dyn Worker>>> = workers.into_iter().map(Some).collect();
    for (spec, seed) in specs.iter().zip((0..).map(|i| seed.wrapping_add(i))) {
        for index in spec.workers.resolve(count, seed)? {
            workers[index] = workers[index]
                .take()
                .map(|inner| -> Box<dyn Worker> { Box::new(FaultyWorker::new(inner, spec.fault, seed)) });
        }
    }
    Ok(workers.into_iter().flatten().collect())
}

/// A hash that is the same in every run and on every platform, unlike the standard library's.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Waits until it is cancelled, without emitting anything.
pub(super) fn silent(cancel: &CancelToken) -> Result<()> {
    cancel.wait();
    Err(Error::Cancelled)
}

/// Sleeps before the work of a task; an error when it is cancelled meanwhile.
pub(super) fn delayed(delay: Duration, cancel: &CancelToken) -> Result<()> {
    if cancel.sleep(delay) { Err(Error::Cancelled) } else { Ok(()) }
}

/// Executes a task on `inner` in `factor` times the time: delays each sub-result by `factor` - 1 times the time that it
/// took.
pub(super) fn slowed(
    inner: &mut dyn Worker,
    factor: f64,
    key: FilterKey,
    slabs: &Values,
    order: Order<'_>,
    cancel: &CancelToken,
    emit: &mut dyn FnMut(usize, Values),
) -> Result<()> {
    let mut started = Instant::now();
    let mut cut_short = false;
    let mut slowly = |index, values| {
        let pause = started.elapsed().as_secs_f64() * (factor - 1.0);
        cut_short |= cancel.sleep(Duration::try_from_secs_f64(pause).unwrap_or(Duration::MAX));
        if !cut_short {
            emit(index, values);
        }
        started = Instant::now();
    };
    inner.execute(key, slabs, order, cancel, &mut slowly)?;
    if cut_short { Err(Error::Cancelled) } else { Ok(()) }
}

fn corrupt<T: Element>(values: &mut [T], size: f64, rng: &mut impl Rng) {
    let square: f64 = values.iter().map(|v| v.to_f64() * v.to_f64()).sum();
    let noise = size * (square / values.len().max(1) as f64).sqrt();
    for value in values {
        *value = T::from_f64(value.to_f64() + noise * normal(rng));
    }
}

fn plant_nan<T: Element>(values: &mut [T], rng: &mut impl Rng) {
    if !values.is_empty() {
        let at = rng.random_range(0..values.len());
        values[at] = T::from_f64(f64::NAN);
    }
}

impl Worker for FaultyWorker {
    fn info(&self) -> WorkerInfo {
        self.inner.info()
    }

    /// As the inner worker; an error after a crash or the loss of the device.
    fn install(&mut self, key: FilterKey, shape: &SubtaskShape, banks: Values) -> Result<()> {
        self.check_alive()?;
        self.inner.install(key, shape, banks)
    }

    fn remove(&mut self, key: FilterKey) {
        self.inner.remove(key);
    }

    fn recycle(&mut self, buffer: Values) {
        self.inner.recycle(buffer);
    }

    fn execute(
        &mut self,
        key: FilterKey,
        slabs: &Values,
        order: Order<'_>,
        cancel: &CancelToken,
        emit: &mut dyn FnMut(usize, Values),
    ) -> Result<()> {
        self.check_alive()?;
        if key.is_probe() {
            return self.inner.execute(key, slabs, order, cancel, emit);
        }
        let mut rng = self.rng.clone();
        rng.set_stream(self.tasks);
        self.tasks += 1;
        match self.fault {
            Fault::Crash => {
                self.lost = Some("injected crash".to_owned());
                self.check_alive()
            }
            Fault::DeviceLost => {
                self.inner.lose_device();
                // One sub-result suffices to get the error of the lost device; it must not be emitted.
                let first = match order {
                    Order::All => &[0],
                    Order::Each(indices) => &indices[..indices.len().min(1)],
                };
                let end = self.inner.execute(key, slabs, Order::Each(first), cancel, &mut |_, _| {});
                self.lost = Some(match end {
                    Err(Error::WorkerLost { cause, .. }) => cause,
                    // There was no device to lose; the pool sees the same error.
                    _ => "device lost (injected)".to_owned(),
                });
                self.check_alive()
            }
            Fault::Drop => silent(cancel),
            Fault::Delay(delay) => {
                delayed(delay.sample(&mut rng), cancel)?;
                self.inner.execute(key, slabs, order, cancel, emit)
            }
            Fault::Slow(factor) => slowed(self.inner.as_mut(), factor, key, slabs, order, cancel, emit),
            Fault::Corrupt(size) => {
                self.inner.execute(key, slabs, order, cancel, &mut |index, mut values| {
                    match &mut values {
                        Values::F32(values) => corrupt(values, size, &mut rng),
                        Values::F64(values) => corrupt(values, size, &mut rng),
                    }
                    emit(index, values);
                })
            }
            Fault::Nan => self.inner.execute(key, slabs, order, cancel, &mut |index, mut values| {
                match &mut values {
                    Values::F32(values) => plant_nan(values, &mut rng),
                    Values::F64(values) => plant_nan(values, &mut rng),
                }
                emit(index, values);
            }),
        }
    }

    /// The inner worker's, wrapped in this fault. After [`Fault::DeviceLost`] the new worker has no fault; after
    /// [`Fault::Crash`] there is none.
    fn respawn(&self) -> Option<Respawn> {
        let (fault, seed) = (self.fault, self.seed);
        match fault {
            Fault::Crash => None,
            Fault::DeviceLost => self.inner.respawn(),
            _ => {
                let inner = self.inner.respawn()?;
                Some(Arc::new(move |token| Ok(Box::new(Self::new(inner(token)?, fault, seed)))))
            }
        }
    }

    fn unavailable_reason(&self) -> Option<String> {
        self.inner.unavailable_reason()
    }

    fn lose_device(&mut self) {
        self.inner.lose_device();
    }
}
