//! Probes: a small subtask with a known answer, to check a worker before it gets work.
//!
//! Relevant if you want to take a worker (back) into service; running layers does not require it. A probe detects faults
//! that affect every task (a broken driver or kernel, swapped sub-results); it may miss an intermittent fault.
//!
//! Invariant: the filters of a probe are installed under [`FilterKey::PROBE`] alone and are removed when
//! [`check`](Probe::check) returns, so a probe never affects a layer.

use std::sync::OnceLock;

use super::{CancelToken, FilterKey, SubtaskShape, Task, Worker};
use crate::array::{DType, Element, HALF_EPSILON, Values, WireFormat};
use crate::conv::{ConvParams, ConvShape, reference};
use crate::error::{Error, Result};

/// Number of slabs and of filter banks: two of each, so that swapping either is detected.
const SLABS: usize = 2;
const BANKS: usize = 2;

/// Inputs and expected results of every probe, in f64.
#[derive(Debug)]
struct Known {
    shape: SubtaskShape,
    slabs: Vec<f64>,
    banks: Vec<f64>,
    /// One for each sub-result.
    answers: Vec<Vec<f64>>,
}

/// Computes a known convolution on a worker and compares: 5,184 multiply-adds, four sub-results of 4 channels.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    dtype: DType,
    known: &'static Known,
}

/// Uniform numbers in [-1, 1), exact in f32, so that the same expected results serve both types. All 23 mantissa bits are
/// in use, so that computing with fewer bits is detected.
pub(crate) fn numbers(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 41) as f64 / f64::from(1 << 22) - 1.0
        })
        .collect()
}

impl Known {
    fn new() -> Result<Self> {
        // All lengths differ, so that swapped axes are detected too.
        let conv = ConvShape::new(&[1, 3, 5, 6], &[4, 3, 3, 3], &ConvParams::default())?;
        let shape = SubtaskShape { conv, slabs: SLABS, banks: BANKS, plain: false };
        let (slabs, banks) = (numbers(shape.upload_elems(), 1), numbers(shape.filter_elems(), 2));
        let mut answers = Vec::with_capacity(shape.sub_results());
        for slab in slabs.chunks_exact(shape.conv.input_elems()) {
            for bank in banks.chunks_exact(shape.conv.weight_elems()) {
                answers.push(reference(&shape.conv, slab, bank, None)?);
            }
        }
        Ok(Self { shape, slabs, banks, answers })
    }
}

pub(crate) fn values(numbers: &[f64], dtype: DType) -> Values {
    fn narrow<T: Element>(numbers: &[f64]) -> Values {
        T::wrap(numbers.iter().map(|n| T::from_f64(*n)).collect())
    }
    match dtype {
        DType::F32 => narrow::<f32>(numbers),
        DType::F64 => narrow::<f64>(numbers),
    }
}

/// Relative L2 distance; NaN if either side holds a NaN.
pub(crate) fn distance(got: &Values, answer: &[f64]) -> f64 {
    fn off<T: Element>(got: &[T], answer: &[f64]) -> f64 {
        got.iter().zip(answer).map(|(g, a)| (g.to_f64() - a).powi(2)).sum()
    }
    let off = match got {
        Values::F32(got) => off(got, answer),
        Values::F64(got) => off(got, answer),
    };
    (off / answer.iter().map(|a| a * a).sum::<f64>()).sqrt()
}

/// The tolerance of [`Probe::tolerance`] for sums of `reduction` products on a worker that stores operands in 16 bits
/// (`half`), or whose operands and results travel in this format.
pub(crate) fn tolerance(reduction: usize, dtype: DType, half: bool, wire: WireFormat) -> f64 {
    let stored = if half { HALF_EPSILON } else { 0.0 }.max(wire.of(dtype).epsilon());
    if stored > 0.0 {
        return 2.0 * stored;
    }
    let eps = match dtype {
        DType::F32 => f64::from(f32::EPSILON),
        DType::F64 => f64::EPSILON,
    };
    reduction as f64 * eps
}

impl Probe {
    /// A probe in `dtype`. The expected results are computed once in a process, by [`reference()`].
    #[must_use]
    pub fn new(dtype: DType) -> Self {
        static KNOWN: OnceLock<Known> = OnceLock::new();
        let known = KNOWN.get_or_init(|| Known::new().expect("the probe's own shape is valid"));
        Self { dtype, known }
    }

    /// The largest accepted relative L2 error of a sub-result: K eps, where K = 27 products are summed up; with `half`,
    /// four times the error of rounding both operands to 16 bits.
    ///
    /// The K roundings of a sum stay below K eps/2 times the sum of the magnitudes. They hardly ever add up in one
    /// direction, so a correct sum is off by about sqrt(K) eps/2, a tenth of the limit, in any order and with or without
    /// fused multiply-adds. Computing with 10-bit mantissas exceeds the limit of f32 a hundredfold.
    #[must_use]
    pub fn tolerance(&self, half: bool) -> f64 {
        // Probes travel in full width.
        tolerance(self.known.shape.conv.reduction(), self.dtype, half, WireFormat::Full)
    }

    /// Installs the known filters, computes all sub-results, removes the filters and compares. Only `cancel` limits the time
    /// that this takes.
    ///
    /// # Errors
    /// [`Error::ProbeFailed`] when a sub-result is missing, comes twice, has an index out of range, has another length or
    /// type, or is off by more than [`Self::tolerance`]; otherwise the worker's error, mainly [`Error::WorkerLost`] and
    /// [`Error::Cancelled`].
    pub fn check(&self, worker: &mut dyn Worker, cancel: &CancelToken) -> Result<()> {
        let Known { shape, slabs, banks, answers } = self.known;
        let half = worker.info().half;
        let mut flaw = None;
        let mut came = vec![false; answers.len()];
        let mut judge = |index: usize, got: Values| {
            let found = match (came.get_mut(index), answers.get(index)) {
                (Some(came), Some(answer)) => {
                    let again = std::mem::replace(came, true);
                    self.flaw(index, again, &got, answer, half)
                }
                _ => Some(format!("gave sub-result {index} of {}, counted from 0", answers.len())),
            };
            flaw = flaw.take().or(found);
        };
        worker.install(FilterKey::PROBE, shape, values(banks, self.dtype))?;
        let slabs = values(slabs, self.dtype);
        let end = worker.execute(Task::new(FilterKey::PROBE, &slabs, cancel), &mut judge);
        worker.remove(FilterKey::PROBE);
        end?;
        let missing = came.iter().position(|came| !came);
        let flaw = flaw.or_else(|| missing.map(|index| format!("gave no sub-result {index}")));
        match flaw {
            None => Ok(()),
            Some(cause) => Err(Error::ProbeFailed { worker: worker.info().name, cause }),
        }
    }

    /// What is wrong with a sub-result; `None` if it is correct.
    fn flaw(&self, index: usize, again: bool, got: &Values, answer: &[f64], half: bool) -> Option<String> {
        if again {
            return Some(format!("gave sub-result {index} twice"));
        }
        if (got.len(), got.dtype()) != (answer.len(), self.dtype) {
            return Some(format!(
                "sub-result {index} has {} {} elements where {} {} were expected",
                got.len(),
                got.dtype(),
                answer.len(),
                self.dtype
            ));
        }
        let (distance, limit) = (distance(got, answer), self.tolerance(half));
        // In this form a NaN counts as wrong.
        let right = distance <= limit;
        (!right)
            .then(|| format!("sub-result {index} is off by {distance:.1e} (relative L2), over {limit:.1e}"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicIsize, Ordering};

    use super::*;
    use crate::worker::{CpuWorker, intercept};

    type Emit<'a> = &'a mut dyn FnMut(usize, Values);

    /// Probes a CPU worker whose sub-results pass through `flaw`.
    fn flawed(flaw: fn(usize, Values, Emit<'_>), end: fn() -> Result<()>, dtype: DType) -> Result<()> {
        let held = Arc::new(AtomicIsize::new(0));
        let (installed, removed) = (Arc::clone(&held), Arc::clone(&held));
        let mut worker = intercept(CpuWorker::new("flawed", 1))
            .including_probes()
            .on_install(move |inner, key, shape, banks| {
                assert!(key.is_probe());
                installed.fetch_add(1, Ordering::SeqCst);
                inner.install(key, shape, banks)
            })
            .on_remove(move |inner, key| {
                removed.fetch_sub(1, Ordering::SeqCst);
                inner.remove(key);
            })
            .on_execute(move |inner, task, emit| {
                inner.execute(task, &mut |i, v| flaw(i, v, emit))?;
                end()
            });
        let outcome = Probe::new(dtype).check(&mut worker, &CancelToken::new());
        assert_eq!(held.load(Ordering::SeqCst), 0, "filters were left behind");
        outcome
    }

    fn mapped(values: &Values, map: impl Fn(&[f64]) -> Vec<f64>) -> Values {
        let wide: Vec<f64> = match values {
            Values::F32(v) => v.iter().map(|v| f64::from(*v)).collect(),
            Values::F64(v) => v.clone(),
        };
        super::values(&map(&wide), values.dtype())
    }

    #[test]
    fn honest_workers_pass_with_room() {
        for dtype in [DType::F32, DType::F64] {
            for threads in [1, 2] {
                Probe::new(dtype).check(&mut CpuWorker::new("cpu", threads), &CancelToken::new()).unwrap();
            }
            flawed(|i, v, emit| emit(i, v), || Ok(()), dtype).unwrap();
        }
        let known = Probe::new(DType::F32).known;
        let macs = known.shape.sub_results() * known.shape.conv.output_elems() * known.shape.conv.reduction();
        assert_eq!(macs, 5184);
        // Sums of random terms: a mean error of a tenth of the limit leaves room for other orders of summation.
        let mut worst = 0.0_f64;
        let mut cpu = CpuWorker::new("cpu", 1);
        cpu.install(FilterKey::PROBE, &known.shape, values(&known.banks, DType::F32)).unwrap();
        let slabs = values(&known.slabs, DType::F32);
        cpu.execute(Task::new(FilterKey::PROBE, &slabs, &CancelToken::new()), &mut |i, v| {
            worst = worst.max(distance(&v, &known.answers[i]));
        })
        .unwrap();
        assert!(worst > 0.0 && worst < Probe::new(DType::F32).tolerance(false) / 5.0, "{worst:e}");
    }

    #[test]
    fn systematic_flaws_fail_with_the_numbers() {
        let flaws: [(&str, fn(usize, Values, Emit<'_>), &str); 11] = [
            (
                "scaled",
                |i, v, emit| emit(i, mapped(&v, |v| v.iter().map(|v| v * 1.001).collect())),
                "off by 1.0e-3",
            ),
            (
                "10-bit mantissas",
                |i, v, emit| emit(i, mapped(&v, |v| v.iter().map(|v| v + v * 2e-4).collect())),
                "off by",
            ),
            ("banks swapped", |i, v, emit| emit(i ^ 1, v), "off by"),
            ("slabs swapped", |i, v, emit| emit(i ^ 2, v), "off by"),
            (
                "shifted as by padding",
                |i, v, emit| emit(i, mapped(&v, |v| [&[0.0], &v[..v.len() - 1]].concat())),
                "off by",
            ),
            (
                "a wrong element",
                |i, v, emit| emit(i, mapped(&v, |v| [&[v[0] + 0.01], &v[1..]].concat())),
                "off by",
            ),
            ("NaN", |i, v, emit| emit(i, mapped(&v, |v| [&[f64::NAN], &v[1..]].concat())), "off by NaN"),
            (
                "one twice",
                |i, v, emit| (0..=usize::from(i == 2)).for_each(|_| emit(i, v.clone())),
                "sub-result 2 twice",
            ),
            (
                "one missing",
                |i, v, emit| {
                    if i != 3 {
                        emit(i, v);
                    }
                },
                "no sub-result 3",
            ),
            (
                "one too many",
                |i, v, emit| (0..=usize::from(i == 3)).for_each(|n| emit(i + n, v.clone())),
                "sub-result 4 of 4",
            ),
            ("short", |i, v, emit| emit(i, mapped(&v, |v| v[1..].to_vec())), "47 f"),
        ];
        for dtype in [DType::F32, DType::F64] {
            for (name, flaw, said) in flaws {
                let error = flawed(flaw, || Ok(()), dtype).unwrap_err();
                assert!(matches!(error, Error::ProbeFailed { .. }), "{name}: {error}");
                let text = error.to_string();
                assert!(text.contains("flawed") && text.contains(said), "{name}: {text}");
            }
        }
        let typed = flawed(|i, v, emit| emit(i, mapped(&v, <[f64]>::to_vec)), || Ok(()), DType::F32);
        typed.unwrap();
        let typed =
            flawed(|i, _, emit| emit(i, Values::F64(vec![0.0; 48])), || Ok(()), DType::F32).unwrap_err();
        assert!(typed.to_string().contains("48 f64 elements where 48 f32"), "{typed}");
    }

    #[test]
    fn what_the_worker_reports_passes_through() {
        let lost = || Err(Error::WorkerLost { worker: "w".to_owned(), cause: "gone".to_owned() });
        let end = flawed(|_, _, _| {}, lost, DType::F32);
        assert!(matches!(end, Err(Error::WorkerLost { .. })), "{end:?}");
        let cancelled = CancelToken::new();
        cancelled.cancel();
        let end = Probe::new(DType::F64).check(&mut CpuWorker::new("cpu", 1), &cancelled);
        assert!(matches!(end, Err(Error::Cancelled)));
    }
}
