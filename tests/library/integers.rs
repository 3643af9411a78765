//! Layers of integers: exact to the last bit, from any workers, and a lie is seen without a spare result.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::scripted;
use fcdcc::array::{Element, Values};
use fcdcc::coding::Clamp;
use fcdcc::scheduler::State;
use fcdcc::{Audit, Completion, ConvParams, Error, LayerOptions, Outcome, Pool, WorkerId};
use fcdcc_test_support::every_row;
use fcdcc_test_support::layer::{Layer, fail, options, pool};

/// Largest magnitude of the input.
const LARGEST: f64 = 20.0;

/// A layer of integers: a few large ones among many small ones and zeros in the input, filters of very different size.
fn integers<T: Element>(input: &[usize], weight: &[usize], params: ConvParams) -> Layer<T> {
    let mut layer = Layer::<T>::without_truth(input, weight, params);
    let mut count = 0;
    layer.input.mapv_inplace(|v| {
        count += 1;
        let size = if count % 7 == 0 { 1.0 } else { 0.03 };
        T::from_f64((v.to_f64() * size * LARGEST).round().clamp(-LARGEST, LARGEST))
    });
    for (filter, mut values) in layer.weight.outer_iter_mut().enumerate() {
        let size = if filter % 3 == 0 { 1.0 } else { 30.0 };
        values.mapv_inplace(|v| T::from_f64((v.to_f64() * size).round()));
    }
    for bias in &mut layer.bias {
        *bias = T::from_f64((bias.to_f64() * 500.0).round());
    }
    let (x, w) = (layer.input.as_slice().unwrap(), layer.weight.as_slice().unwrap());
    layer.truth = fcdcc::conv::reference(&layer.shape(), x, w, Some(&layer.bias)).unwrap();
    assert!(layer.truth.iter().all(|v| v.to_f64().fract() == 0.0));
    layer
}

fn is_exact<T: Element>(input: &[usize], weight: &[usize], params: ConvParams, partitions: (usize, usize)) {
    let layer = integers::<T>(input, weight, params);
    for faults in ["1,4:crash", "0,3:crash", "5:slow=3x"] {
        let options = fail(partitions.0, partitions.1).integers(LARGEST);
        let run = layer.prepare(&pool(6, &[faults]), options).unwrap().run(layer.input.view()).unwrap();
        assert_eq!(run.output.as_slice().unwrap(), layer.truth, "{faults} {:?}", run.report);
        let report = &run.report;
        assert_eq!((report.error_bound, report.windowwise_bound, report.recomputed), (0.0, 0.0, 0));
        assert!(report.fallback.is_none() && report.condition_number >= 1.0, "{report:?}");
    }
}

#[test]
fn outputs_are_exact_whoever_answers() {
    let padded = || ConvParams::default().padding([1]);
    let rows: [(&[usize], &[usize], ConvParams, (usize, usize)); 4] = [
        (&[1, 3, 17, 12], &[8, 3, 3, 3], padded(), (4, 4)),
        (&[2, 5, 16, 11], &[12, 5, 3, 2], padded(), (8, 1)),
        (&[1, 4, 13, 13], &[8, 2, 3, 3], ConvParams { groups: 2, ..padded() }, (2, 4)),
        (&[1, 4, 13, 13], &[16, 4, 3, 3], padded(), (1, 8)),
    ];
    every_row(rows, |(input, weight, params, partitions)| {
        is_exact::<f32>(input, weight, params.clone(), partitions);
        is_exact::<f64>(input, weight, params, partitions);
    });
}

/// Negative control: without the option decoding in f32 leaves fractions.
#[test]
fn without_rounding_outputs_are_not_exact() {
    let layer = integers::<f32>(&[1, 3, 17, 12], &[8, 3, 3, 3], ConvParams::default());
    let run = layer.prepare(&pool(6, &["1,4:crash"]), fail(4, 4)).unwrap().run(layer.input.view()).unwrap();
    assert!(run.output.iter().zip(&layer.truth).any(|(got, want)| got != want));
    assert!(run.report.error_bound > 0.0);
}

/// Every worker but the first waits for it, so that its results are among those that decode.
fn led_by_a_liar(change: fn(Values) -> Values) -> Pool {
    let answered = Arc::new(AtomicBool::new(false));
    let worker = |i: usize| {
        let answered = Arc::clone(&answered);
        scripted::worker(format!("cpu-{i}"), move |worker, call| {
            if i == 0 {
                let result = call.answer_with(worker, change);
                answered.store(true, Ordering::SeqCst);
                return result;
            }
            let started = std::time::Instant::now();
            while !answered.load(Ordering::SeqCst) && started.elapsed().as_secs() < 10 {
                std::thread::yield_now();
            }
            call.answer(worker)
        })
        .boxed()
    };
    Pool::new((0..6).map(worker).collect()).unwrap()
}

/// One element of a result that is off by one: what a liar who knows the numbers would choose.
fn off_by_one(mut values: Values) -> Values {
    match &mut values {
        Values::F32(values) => values[0] += 1.0,
        Values::F64(values) => values[0] += 1.0,
    }
    values
}

/// Results that are wrong in their last hundredth of a millionth.
fn off_a_little(mut values: Values) -> Values {
    if let Values::F64(values) = &mut values {
        for value in values {
            *value *= 1.0 + 1e-8;
        }
    }
    values
}

fn is_seen<T: Element>(change: fn(Values) -> Values) {
    let layer = integers::<T>(&[1, 3, 17, 12], &[8, 3, 3, 3], ConvParams::default());
    let pool = led_by_a_liar(change);
    let options = options(4, 4).partial(false).audit(Audit::Off).integers(LARGEST);
    let prepared = layer.prepare(&pool, options).unwrap();
    let run = prepared.run(layer.input.view()).unwrap();
    let report = &run.report;
    assert_eq!(run.output.as_slice().unwrap(), layer.truth, "{report:?}");
    assert_eq!(report.completion, Completion::ExactLocally, "{report:?}");
    let wrong: Vec<&str> =
        report.workers.iter().filter(|w| w.outcome == Outcome::Corrupt).map(|w| w.worker.as_str()).collect();
    assert_eq!(wrong, ["cpu-0"]);
    assert_eq!(pool.health(WorkerId(0)).unwrap().state, State::Quarantined);
    // Without the liar nothing is computed here.
    let run = prepared.run(layer.input.view()).unwrap();
    assert_eq!(run.output.as_slice().unwrap(), layer.truth);
    assert!(run.report.fallback.is_none(), "{:?}", run.report);
}

#[test]
fn a_lie_is_seen_and_its_worker_found_without_an_audit() {
    is_seen::<f32>(off_by_one);
    is_seen::<f64>(off_by_one);
    is_seen::<f64>(off_a_little);
}

#[test]
fn what_breaks_the_promise_is_refused() {
    let layer = integers::<f32>(&[1, 3, 12, 10], &[8, 3, 3, 3], ConvParams::default());
    let pool = pool(6, &["0:delay=0ms"]);
    let own = || options(4, 4).integers(LARGEST);
    let prepared = layer.prepare(&pool, own()).unwrap();
    for (value, says) in [(0.5, "0.5"), (21.0, "21")] {
        let mut input = layer.input.clone();
        input[[0, 1, 2, 3]] = value;
        let error = prepared.run(input.view()).unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(says) && text.contains("20"), "{text}");
    }
    let refused = |layer: &Layer<f32>, options: LayerOptions, says: &str| {
        let error = layer.prepare(&pool, options).err().unwrap().to_string();
        assert!(error.contains(says), "{error}");
    };
    let mut broken = integers::<f32>(&[1, 3, 12, 10], &[8, 3, 3, 3], ConvParams::default());
    broken.weight[[3, 0, 1, 1]] = 1.25;
    refused(&broken, own(), "1.25");
    broken.weight[[3, 0, 1, 1]] = 1.0;
    broken.bias[2] = 0.125;
    refused(&broken, own(), "0.125");
    refused(&layer, own().clamp(Clamp { low: 0.0, high: 6.5 }), "6.5");
    refused(&layer, options(4, 4).integers(f64::NAN), "NaN");
    refused(&layer, options(4, 4).integers(1e9), "use f64");
    // Negative control: bounds that are integers or infinite.
    assert!(layer.prepare(&pool, own().clamp(Clamp { low: 0.0, high: f64::INFINITY })).is_ok());
}
