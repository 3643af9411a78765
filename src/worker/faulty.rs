//! Makes any worker fail on purpose, reproducibly, by one [`Fault`].
//!
//! Relevant if you want to inject faults in tests, demonstrations or benchmarks. Wrapping several times combines faults;
//! [`inject`] does that for a whole pool.
//!
//! Invariant: everything random depends on seed, worker name, fault and task number alone, so a run is exactly
//! reproducible; and every wait ends when the task's [`CancelToken`] is cancelled.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::turns::{give_up, waited};
use super::{CancelToken, Fault, FaultSpec, Intercept, Order, PartKey, Task, Worker, intercept};
use crate::array::{Element, Values, normal};
use crate::error::{Error, Result};

/// Wraps `inner` in one [`Fault`]. Workers of different names draw different numbers from the same `seed`.
///
/// Faults apply to the tasks of layers and to runs of parts of models. The tasks of a [`Probe`](super::Probe) are exempt and are not counted: until the
/// worker is lost, the inner worker answers them unchanged. A worker that dies at its first task therefore does so at the
/// first task of a layer.
///
/// The respawned worker has the same fault, with two exceptions. After [`Fault::DeviceLost`] the new worker has no fault;
/// after [`Fault::Crash`] there is none.
#[must_use]
pub fn faulty(inner: impl Into<Box<dyn Worker>>, fault: Fault, seed: u64) -> Intercept {
    let inner = inner.into();
    let life = Life { worker: inner.info().name, end: Arc::default() };
    let identity = format!("{}:{fault}", life.worker);
    // The generator at the start of stream 0; each task uses the stream of its number.
    let start = ChaCha8Rng::seed_from_u64(seed ^ fnv1a(identity.as_bytes()));
    // Tasks and runs of parts are counted together.
    let tasks = AtomicU64::new(0);
    let draw = Arc::new(move || {
        let mut rng = start.clone();
        rng.set_stream(tasks.fetch_add(1, Ordering::Relaxed));
        rng
    });
    let (at_install, at_install_part, at_run) = (life.clone(), life.clone(), life.clone());
    let draw_for_run = Arc::clone(&draw);
    // Probes fail too once the worker is lost.
    let wrapped = intercept(inner).including_probes();
    let wrapped = wrapped
        .on_install(move |inner, key, shape, banks| {
            at_install.check()?;
            inner.install(key, shape, banks)
        })
        .on_execute(move |inner, task, emit| {
            life.check()?;
            if task.key.is_probe() {
                return inner.execute(task, emit);
            }
            execute(fault, &mut draw(), &life, inner, task, emit)
        })
        .on_install_part(move |inner, key, part| {
            at_install_part.check()?;
            inner.install_part(key, part)
        })
        .on_run_part(move |inner, key, inputs, cancel| {
            at_run.check()?;
            run_part(fault, &mut draw_for_run(), &at_run, inner, PartCall { key, inputs, cancel })
        });
    match fault {
        Fault::Crash => wrapped.never_respawned(),
        Fault::DeviceLost => wrapped,
        _ => wrapped.respawned(move |inner| faulty(inner, fault, seed).boxed()),
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
            workers[index] = workers[index].take().map(|inner| faulty(inner, spec.fault, seed).boxed());
        }
    }
    Ok(workers.into_iter().flatten().collect())
}

/// Whether a worker is lost by [`Fault::Crash`] or [`Fault::DeviceLost`]; every later call fails.
#[derive(Clone)]
struct Life {
    worker: String,
    /// The cause of the loss.
    end: Arc<OnceLock<String>>,
}

impl Life {
    fn check(&self) -> Result<()> {
        match self.end.get() {
            None => Ok(()),
            Some(cause) => Err(Error::WorkerLost { worker: self.worker.clone(), cause: cause.clone() }),
        }
    }

    fn lose(&self, cause: String) -> Result<()> {
        self.end.get_or_init(|| cause);
        self.check()
    }
}

/// Executes a task of a layer under `fault`.
fn execute(
    fault: Fault,
    rng: &mut ChaCha8Rng,
    life: &Life,
    inner: &mut dyn Worker,
    task: Task<'_>,
    emit: &mut dyn FnMut(usize, Values),
) -> Result<()> {
    match fault {
        Fault::Crash => life.lose("injected crash".to_owned()),
        Fault::DeviceLost => life.lose(lose_device(inner, task)),
        Fault::Drop => silent(task.cancel),
        Fault::Delay(delay) => {
            delayed(delay.sample(rng), task.cancel)?;
            inner.execute(task, emit)
        }
        Fault::Slow(factor) => slowed(inner, factor, task, emit),
        Fault::Corrupt(_) | Fault::Nan => inner.execute(task, &mut |index, mut values| {
            spoil(&mut values, fault, rng);
            emit(index, values);
        }),
    }
}

/// The arguments of [`Worker::run_part`].
#[derive(Clone, Copy)]
pub(super) struct PartCall<'a> {
    pub(super) key: PartKey,
    pub(super) inputs: &'a [Values],
    pub(super) cancel: &'a CancelToken,
}

impl PartCall<'_> {
    pub(super) fn on(self, inner: &mut dyn Worker) -> Result<Vec<Values>> {
        inner.run_part(self.key, self.inputs, self.cancel)
    }

    /// As [`slowed`]: delays the outputs by `factor` - 1 times the time that they took.
    pub(super) fn slowed(self, inner: &mut dyn Worker, factor: f64) -> Result<Vec<Values>> {
        let started = (Instant::now(), waited());
        let outputs = self.on(inner)?;
        delayed(pause_after(started, factor), self.cancel)?;
        Ok(outputs)
    }
}

/// Computes a part under `fault`.
fn run_part(
    fault: Fault,
    rng: &mut ChaCha8Rng,
    life: &Life,
    inner: &mut dyn Worker,
    call: PartCall<'_>,
) -> Result<Vec<Values>> {
    match fault {
        Fault::Crash => life.lose("injected crash".to_owned())?,
        Fault::DeviceLost => {
            inner.lose_device();
            let cause = match call.on(inner) {
                Err(Error::WorkerLost { cause, .. }) => cause,
                _ => "device lost (injected)".to_owned(),
            };
            life.lose(cause)?;
        }
        Fault::Drop => silent(call.cancel)?,
        Fault::Delay(delay) => delayed(delay.sample(rng), call.cancel)?,
        Fault::Slow(factor) => return call.slowed(inner, factor),
        Fault::Corrupt(_) | Fault::Nan => {}
    }
    let mut outputs = call.on(inner)?;
    for values in &mut outputs {
        spoil(values, fault, rng);
    }
    Ok(outputs)
}

/// Makes a result wrong, if the fault is one that does.
fn spoil(values: &mut Values, fault: Fault, rng: &mut impl Rng) {
    match (fault, values) {
        (Fault::Corrupt(size), Values::F32(values)) => corrupt(values, size, rng),
        (Fault::Corrupt(size), Values::F64(values)) => corrupt(values, size, rng),
        (Fault::Nan, Values::F32(values)) => plant_nan(values, rng),
        (Fault::Nan, Values::F64(values)) => plant_nan(values, rng),
        _ => {}
    }
}

/// Loses the device of `inner` during a task; returns the cause.
fn lose_device(inner: &mut dyn Worker, task: Task<'_>) -> String {
    inner.lose_device();
    // One sub-result suffices to get the error of the lost device; it must not be emitted.
    let first = match task.order {
        Order::All => &[0],
        Order::Each(indices) => &indices[..indices.len().min(1)],
    };
    match inner.execute(task.with_order(Order::Each(first)), &mut |_, _| {}) {
        Err(Error::WorkerLost { cause, .. }) => cause,
        // There was no device to lose; the pool sees the same error.
        _ => "device lost (injected)".to_owned(),
    }
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
    task: Task<'_>,
    emit: &mut dyn FnMut(usize, Values),
) -> Result<()> {
    let mut started = (Instant::now(), waited());
    let mut cut_short = false;
    let mut slowly = |index, values| {
        let pause = pause_after(started, factor);
        // A slow machine does not keep others from computing.
        give_up();
        cut_short |= task.cancel.sleep(pause);
        if !cut_short {
            emit(index, values);
        }
        started = (Instant::now(), waited());
    };
    inner.execute(task, &mut slowly)?;
    if cut_short { Err(Error::Cancelled) } else { Ok(()) }
}

/// The pause that makes work take `factor` times as long, which began at this time and with this total of waiting.
fn pause_after(started: (Instant, Duration), factor: f64) -> Duration {
    let busy = started.0.elapsed().saturating_sub(waited().saturating_sub(started.1));
    Duration::try_from_secs_f64(busy.as_secs_f64() * (factor - 1.0)).unwrap_or(Duration::MAX)
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
