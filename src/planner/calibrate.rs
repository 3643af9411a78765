//! Measures the rates with a few convolutions on a worker and a few encodings and decodings on this machine, in about a
//! second.
//!
//! Relevant if you want to know where predicted times come from. Invariant: only [`FilterKey::PROBE`] is installed on a
//! worker, which takes no part in anything else, and it is removed again.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::cost::subtask_shape;
use super::nnls::fit;
use super::rates::{CodecWork, HostRates, Rates};
use super::work::{Work, WorkerRates};
use crate::array::{Element, once};
use crate::coding::{Code, CodeKind, Decoder, Epilogue, decode, encode_input};
use crate::conv::{ConvParams, ConvShape, conv_uncoded};
use crate::error::{Error, Message, Parameter, Result};
use crate::partition::{FilterPartition, InputPartition, OutputTiling};
use crate::worker::{CancelToken, CpuWorker, FilterKey, Order, SubtaskShape, Task, Worker};

/// Time limit of a single measurement; a worker that exceeds it has no rates.
const PATIENCE: Duration = Duration::from_secs(10);

/// Minimum total time over which a measurement is repeated, at least three times.
const SPENT: Duration = Duration::from_millis(12);
const LEAST_REPEATS: usize = 3;
const MOST_REPEATS: usize = 50;

/// (channels, height, width, filters, kernel, stride, groups, slabs, banks): subtasks whose times are dominated by
/// different kinds of work.
type Shape = (usize, usize, usize, usize, usize, usize, usize, usize, usize);

const SUBTASKS: [Shape; 18] = [
    // Hardly any work: the cost of the call itself.
    (1, 3, 3, 4, 3, 1, 1, 1, 1),
    (2, 4, 4, 4, 3, 1, 1, 2, 2),
    // Products of all proportions: large; few filters; few columns; few terms.
    (64, 30, 58, 32, 3, 1, 1, 1, 1),
    (64, 16, 58, 16, 3, 1, 1, 2, 2),
    (128, 9, 30, 64, 3, 1, 1, 2, 2),
    (64, 58, 58, 4, 3, 1, 1, 1, 2),
    (32, 30, 226, 4, 3, 1, 1, 1, 1),
    (256, 5, 16, 128, 3, 1, 1, 2, 2),
    (256, 3, 16, 256, 3, 1, 1, 1, 1),
    (3, 60, 227, 24, 11, 4, 1, 1, 2),
    (3, 58, 226, 16, 3, 1, 1, 2, 2),
    // Kernels of one tap.
    (64, 56, 56, 64, 1, 1, 1, 1, 1),
    (256, 14, 56, 64, 1, 1, 1, 2, 2),
    (512, 7, 28, 32, 1, 1, 1, 1, 2),
    // One output point: every filter element is read once.
    (1024, 1, 1, 512, 1, 1, 1, 1, 2),
    // One filter per group, and a few groups.
    (64, 30, 58, 64, 3, 1, 64, 1, 1),
    (128, 16, 30, 128, 3, 1, 128, 2, 1),
    (64, 30, 30, 64, 3, 1, 8, 1, 2),
];

/// (layer channels, size, filters, kernel, k_A, k_B, n)
const CODECS: [(usize, usize, usize, usize, usize, usize, usize); 6] = [
    (8, 16, 16, 3, 4, 4, 6),
    (64, 58, 64, 3, 4, 4, 6),
    (16, 114, 16, 3, 8, 1, 6),
    (128, 30, 128, 3, 1, 8, 6),
    (64, 58, 64, 3, 8, 8, 20),
    (128, 30, 256, 3, 4, 16, 20),
];

/// Rates, and how well they explain the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// The measured rates.
    pub rates: Rates,
    /// Mean relative error of the fitted rates on the subtasks measured.
    pub worker_error: f64,
    /// Mean relative error of the fitted rates on encoding and decoding.
    pub host_error: f64,
}

/// Rates of a worker for elements of type `T`, and the mean relative error of the fit. Takes about half a second.
///
/// # Errors
/// The worker's error, or [`Error::Timeout`] when it is too slow to be measured.
pub fn calibrate_worker<T: Element>(worker: &mut dyn Worker) -> Result<(WorkerRates, f64)> {
    let mut rows = Vec::with_capacity(SUBTASKS.len());
    let mut times = Vec::with_capacity(SUBTASKS.len());
    for (channels, height, width, filters, kernel, stride, groups, slabs, banks) in SUBTASKS {
        let params = ConvParams::default().stride([stride]).groups(groups);
        let conv = ConvShape::new(
            &[1, channels, height, width],
            &[filters, channels / groups, kernel, kernel],
            &params,
        )?;
        let shape = SubtaskShape { conv, slabs, banks, plain: false };
        rows.push(Work::of(&shape).amounts());
        times.push(time_subtask::<T>(worker, &shape)?);
    }
    let rates = fit(&rows, &times);
    let predicted = rows.iter().map(|row| row.iter().zip(&rates).map(|(a, r)| a * r).sum());
    Ok((WorkerRates::new(rates), mean_error(predicted, &times)))
}

fn time_subtask<T: Element>(worker: &mut dyn Worker, shape: &SubtaskShape) -> Result<f64> {
    let order: Vec<usize> = (0..shape.sub_results()).collect();
    worker.install(FilterKey::PROBE, shape, T::wrap(numbers(shape.filter_elems())))?;
    let slabs = T::wrap(numbers(shape.upload_elems()));
    let name = worker.info().name;
    let found = repeated(&format!("measuring worker {name}"), || {
        let cancel = CancelToken::new();
        let mut kept = Vec::with_capacity(order.len());
        let mut keep = |_, values| kept.push(values);
        let task = Task::new(FilterKey::PROBE, &slabs, &cancel);
        worker.execute(task.with_order(Order::Each(&order)), &mut keep)
    });
    worker.remove(FilterKey::PROBE);
    found
}

/// Rates of this machine for elements of type `T`, and the mean relative error of the fit. `thread` gives the rates of
/// [`HostRates::thread`], which are not measured here. Takes about a third of a second.
///
/// # Errors
/// [`Error::Timeout`] when the machine is too slow to be measured.
pub fn calibrate_host<T: Element>(thread: WorkerRates) -> Result<(HostRates, f64)> {
    let mut encoding = (Vec::new(), Vec::new());
    let mut decoding = (Vec::new(), Vec::new());
    for (channels, size, filters, kernel, k_a, k_b, n) in CODECS {
        let params = ConvParams::default().padding([kernel / 2]);
        let layer =
            ConvShape::new(&[1, channels, size, size], &[filters, channels, kernel, kernel], &params)?;
        let code = Code::new(CodeKind::Crme, k_a, k_b, n)?;
        let subtask = subtask_shape(&layer, &code)?;
        let slabs = InputPartition::new(&layer, k_a)?;
        let tiling = OutputTiling::new(&layer, &slabs, &FilterPartition::new(&layer, k_b)?);
        let work = CodecWork::of(&layer, &code, &slabs, &subtask);
        let input = numbers::<T>(layer.input_elems());
        let mut spare = Vec::new();
        encoding.1.push(repeated("measuring the encoder", || {
            spare = encode_input(&code, &layer, &slabs, &input, std::mem::take(&mut spare));
            Ok(())
        })?);
        encoding.0.push([1.0, work.encode_elems, work.encode_macs]);
        let subtasks: Vec<usize> = (0..code.recovery_threshold()).collect();
        let decoder = Decoder::for_subtasks(&code, &subtasks)?;
        let part = numbers::<T>(subtask.conv.output_elems());
        let parts: Vec<Vec<T>> = decoder.inputs().iter().map(|_| part.clone()).collect();
        let parts: Vec<&[T]> = parts.iter().map(Vec::as_slice).collect();
        let mut output = vec![T::default(); layer.output_elems()];
        decoding.1.push(repeated("measuring the decoder", || {
            decode(&decoder, &tiling, &parts, Epilogue::default(), &mut output).map(|_| ())
        })?);
        decoding.0.push([1.0, work.decode_elems, work.decode_macs]);
    }
    let [encode_call_s, encode_elem_s, encode_mac_s] = fit(&encoding.0, &encoding.1);
    let [decode_call_s, decode_elem_s, decode_mac_s] = fit(&decoding.0, &decoding.1);
    let explained = |rows: &[[f64; 3]], rates: [f64; 3]| {
        rows.iter().map(|row| row.iter().zip(rates).map(|(a, r)| a * r).sum()).collect::<Vec<f64>>()
    };
    let encode = explained(&encoding.0, [encode_call_s, encode_elem_s, encode_mac_s]);
    let decode = explained(&decoding.0, [decode_call_s, decode_elem_s, decode_mac_s]);
    let times = [encoding.1, decoding.1].concat();
    let error = mean_error(encode.into_iter().chain(decode), &times);
    let base = Rates::default().host;
    let rates = HostRates {
        layer_s: base.layer_s + encode_call_s + decode_call_s,
        encode_elem_s,
        encode_mac_s,
        decode_elem_s,
        decode_mac_s,
        thread,
        parallel: parallel::<T>()?,
        ..base
    };
    Ok((rates, error))
}

/// Speed of all cores on a convolution, as a multiple of the speed of one.
fn parallel<T: Element>() -> Result<f64> {
    let layer = ConvShape::new(&[1, 64, 58, 58], &[64, 64, 3, 3], &ConvParams::default())?;
    let (input, weight) = (numbers::<T>(layer.input_elems()), numbers::<T>(layer.weight_elems()));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let time = |threads| {
        repeated("measuring the processors", || {
            conv_uncoded(&layer, &input, &weight, None, threads, &|| false).map(drop)
        })
    };
    Ok((time(1)? / time(cores)?).clamp(1.0, cores as f64))
}

/// All rates for elements of type `T` of a pool whose workers are like `worker`. `cores` is as in [`Rates::cores`].
///
/// # Errors
/// Those of [`calibrate_worker`] and [`calibrate_host`].
pub fn calibrate<T: Element>(worker: &mut dyn Worker, cores: Option<usize>) -> Result<Calibration> {
    once!(T as E; fn(worker: &mut dyn Worker = worker, cores: Option<usize> = cores) -> Result<Calibration> {
        calibrate_here::<E>(worker, cores)
    }, std::convert::identity)
}

/// [`calibrate`], in the crate that calls it.
fn calibrate_here<T: Element>(worker: &mut dyn Worker, cores: Option<usize>) -> Result<Calibration> {
    let (rates, worker_error) = calibrate_worker::<T>(worker)?;
    let mut here = CpuWorker::new("this machine", 1);
    let (info, own) = (worker.info(), here.info());
    // A thread of another machine may describe itself alike.
    let alike = (info.kind, &info.device, &info.host) == (own.kind, &own.device, &own.host);
    let thread = if alike { rates } else { calibrate_worker::<T>(&mut here)?.0 };
    let (host, host_error) = calibrate_host::<T>(thread)?;
    let rates = Rates { worker: rates, host, cores, ..Rates::default() };
    Ok(Calibration { rates, worker_error, host_error })
}

/// Seconds for one `call`: the fastest of several, after one for warming up. On a busy machine most calls wait for other
/// programs, which says nothing about the rates.
fn repeated(what: &str, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let first = Instant::now();
    call()?;
    let limit = PATIENCE;
    if first.elapsed() > limit {
        let help = Message::from("give partitions, or use ").and(Parameter::DefaultRates);
        return Err(Error::Timeout { what: what.to_owned(), limit, help });
    }
    let started = Instant::now();
    let (mut fastest, mut repeats) = (f64::INFINITY, 0);
    while repeats < LEAST_REPEATS || (started.elapsed() < SPENT && repeats < MOST_REPEATS) {
        let at = Instant::now();
        call()?;
        fastest = fastest.min(at.elapsed().as_secs_f64());
        repeats += 1;
    }
    Ok(fastest.max(1e-9))
}

fn mean_error(predicted: impl Iterator<Item = f64>, times: &[f64]) -> f64 {
    predicted.zip(times).map(|(p, t)| (p / t - 1.0).abs()).sum::<f64>() / times.len() as f64
}

/// Values of ordinary magnitude: arithmetic with zeros or denormal numbers may take another time.
pub(super) fn numbers<T: Element>(len: usize) -> Vec<T> {
    (0..len).map(|i| T::from_f64((i * 7919 % 1000) as f64 / 500.0 - 1.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::Values;
    use crate::worker::{WorkerInfo, WorkerKind, intercept};

    #[test]
    fn rates_explain_what_they_were_fitted_to() {
        let mut worker = CpuWorker::new("cpu", 1);
        let found = calibrate::<f32>(&mut worker, Some(2)).unwrap();
        // Generous limits, since the machine may be busy. A fit that explains nothing is off by about 1.
        assert!(found.worker_error < 0.6 && found.host_error < 0.6, "{found:?}");
        let rates = found.rates;
        assert!(rates.worker.mac_s > 1e-12 && rates.worker.mac_s < 1e-8, "{rates:?}");
        assert!(rates.host.parallel >= 1.0 && rates.cores == Some(2));
        // The filters were removed.
        let (slabs, token) = (f32::wrap(vec![0.0; 9]), CancelToken::new());
        let without = worker.execute(Task::new(FilterKey::PROBE, &slabs, &token), &mut |_, _| {});
        assert!(without.is_err());
    }

    #[test]
    fn the_rates_of_this_machine_are_not_those_of_a_thread_elsewhere() {
        let away =
            || WorkerInfo { kind: WorkerKind::Remote, host: "far".into(), ..CpuWorker::new("far", 1).info() };
        let slow = intercept(CpuWorker::new("far", 1)).including_probes();
        let slow = slow.on_execute(|inner, task, emit| {
            std::thread::sleep(Duration::from_millis(2));
            inner.execute(task, emit)
        });
        let mut slow = Away(slow.boxed(), away());
        let rates = calibrate::<f32>(&mut slow, None).unwrap().rates;
        assert!(rates.worker.call_s > 1e-3, "{rates:?}");
        assert!(rates.host.thread.call_s < 1e-3, "{rates:?}");
    }

    /// A worker that describes itself in another way.
    struct Away(Box<dyn Worker>, WorkerInfo);

    impl Worker for Away {
        fn info(&self) -> WorkerInfo {
            self.1.clone()
        }

        fn install(&mut self, key: FilterKey, shape: &SubtaskShape, banks: Values) -> Result<()> {
            self.0.install(key, shape, banks)
        }

        fn remove(&mut self, key: FilterKey) {
            self.0.remove(key);
        }

        fn execute(&mut self, task: Task<'_>, emit: &mut dyn FnMut(usize, Values)) -> Result<()> {
            self.0.execute(task, emit)
        }
    }

    #[test]
    fn a_worker_that_fails_is_an_error() {
        let lost = || Error::WorkerLost { worker: "broken".to_owned(), cause: "unplugged".to_owned() };
        let broken = intercept(CpuWorker::new("broken", 1)).including_probes();
        let mut broken = broken.on_execute(move |_, _, _| Err(lost()));
        let error = calibrate::<f32>(&mut broken, None).unwrap_err();
        assert!(error.to_string().contains("unplugged"), "{error}");
    }
}
