//! Selection of GPU kernels by measurement, on the available adapter: a wrong kernel is never chosen, measurements are
//! cached, and the cache is used.
//!
//! Without an adapter every test is shown as ignored, never as passed; with `CI=true`, a missing adapter fails them.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, here as under the usual harness")]

use std::path::{Path, PathBuf};

use crate::support::{self, Outcome, engine, random, shape, tolerance, values, widened};
use fcdcc::array::DType;
use fcdcc::conv::{ConvParams, ConvShape, reference};
use fcdcc::gpu::{Candidate, ConvEngine, TuneMode, Tuner};
use fcdcc::worker::{CancelToken, FilterKey, GpuOptions, GpuWorker, SubtaskShape, Task, Worker};
use fcdcc::{Error, SubtaskId};
use fcdcc_test_support::relative_l2;
use libtest_mimic::Trial;
use serde_json::Value;

fn layer() -> ConvShape {
    shape(&[1, 24, 15, 15], &[32, 24, 3, 3], &ConvParams::default())
}

fn tuner(tune: TuneMode, file: &Path) -> Tuner {
    Tuner::with_file(tune, Some(file.to_path_buf()))
}

/// The cached verdicts on the only layer class in a file, by candidate name.
fn verdicts(file: &Path) -> serde_json::Map<String, Value> {
    let text: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let devices = text["devices"].as_object().unwrap();
    let classes = devices.values().next().unwrap().as_object().unwrap();
    assert_eq!((devices.len(), classes.len()), (1, 1));
    classes.values().next().unwrap().as_object().unwrap().clone()
}

fn all(engine: &ConvEngine) -> Vec<Candidate> {
    Candidate::all(&layer(), engine.device().caps(), DType::F32)
}

/// Computes the layer by `candidate` and returns the error.
fn error(engine: &mut ConvEngine, candidate: Candidate) -> fcdcc::Result<f64> {
    let layer = layer();
    let (slab, bank) = (random(layer.input_elems(), 1), random(layer.weight_elems(), 2));
    let filters = engine.install_as(&layer, 1, 1, &values(&bank, DType::F32), candidate)?;
    let mut result = Vec::new();
    engine.run(&filters, 1, &values(&slab, DType::F32), None, &|| false, &mut |_, v| result = widened(&v))?;
    Ok(relative_l2(&result, &reference(&layer, &slab, &bank, None)?))
}

fn what_is_measured_is_kept_and_used() -> Outcome {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("kernels.json");
    let mut engine = engine()?;
    let list = all(&engine);
    // Nothing is measured yet: uses the built-in choice and writes no file.
    assert_eq!(tuner(TuneMode::CacheOnly, &file).pick(&mut engine, &layer(), DType::F32)?, list[0]);
    assert!(!file.exists());
    let chosen = tuner(TuneMode::Measure, &file).pick(&mut engine, &layer(), DType::F32)?;
    assert!(list.contains(&chosen));
    let measured = verdicts(&file);
    assert_eq!(measured.len(), list.len());
    assert!(measured[&chosen.way()]["seconds"].as_f64().unwrap() > 0.0);
    assert!(error(&mut engine, chosen)? <= tolerance(DType::F32));

    // The cache of another process in which another candidate was the fastest.
    for (number, other) in list.iter().enumerate() {
        let elsewhere = folder.path().join(format!("{number}.json"));
        let mut text: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
        let classes = text["devices"].as_object_mut().unwrap().values_mut().next().unwrap();
        let kept = classes.as_object_mut().unwrap().values_mut().next().unwrap();
        for name in list.iter().map(|c| c.way()) {
            let seconds = if name == other.way() { 1e-9 } else { 1.0 };
            kept[&name] = serde_json::json!({ "seconds": seconds });
        }
        std::fs::write(&elsewhere, serde_json::to_string(&text)?)?;
        for tune in [TuneMode::CacheOnly, TuneMode::Measure] {
            assert_eq!(tuner(tune, &elsewhere).pick(&mut engine, &layer(), DType::F32)?, *other);
        }
        // A new measurement ignores the cached choice.
        tuner(TuneMode::Remeasure, &elsewhere).pick(&mut engine, &layer(), DType::F32)?;
        let again = verdicts(&elsewhere);
        assert_ne!(again[&other.way()], serde_json::json!({ "seconds": 1e-9 }));
    }
    Ok(())
}

fn a_wrong_kernel_is_never_chosen() -> Outcome {
    let folder = tempfile::tempdir()?;
    let mut engine = engine()?;
    let list = all(&engine);
    assert!(list.len() > 1, "one way to run a layer leaves no choice");
    for (number, wrong) in list.iter().enumerate() {
        engine.spoil(&[*wrong]);
        assert!(error(&mut engine, *wrong)? > 10.0 * tolerance(DType::F32));
        let file = folder.path().join(format!("{number}.json"));
        let chosen = tuner(TuneMode::Measure, &file).pick(&mut engine, &layer(), DType::F32)?;
        assert_ne!(chosen, *wrong);
        assert!(error(&mut engine, chosen)? <= tolerance(DType::F32));
        let verdict = &verdicts(&file)[&wrong.way()];
        // The last candidates may not have been measured.
        assert!(
            verdict["failed"].as_str().is_some_and(|why| why.contains("off by")) || verdict == "unmeasured"
        );
    }
    // If all candidates are wrong, nothing is computed, now or later.
    engine.spoil(&list);
    let file = folder.path().join("all.json");
    for tune in [TuneMode::Measure, TuneMode::Measure, TuneMode::CacheOnly] {
        let refused = tuner(tune, &file).pick(&mut engine, &layer(), DType::F32);
        let Err(Error::Gpu { cause, .. }) = refused else { panic!("{refused:?}") };
        assert!(cause.contains("no kernel computes this layer right") && cause.contains(&list[0].way()));
    }
    // This verdict is cached for device, driver and class; only a new measurement replaces it.
    engine.spoil(&[]);
    assert!(tuner(TuneMode::Measure, &file).pick(&mut engine, &layer(), DType::F32).is_err());
    let chosen = tuner(TuneMode::Remeasure, &file).pick(&mut engine, &layer(), DType::F32)?;
    assert!(error(&mut engine, chosen)? <= tolerance(DType::F32));
    Ok(())
}

fn a_lost_device_leaves_no_verdicts() -> Outcome {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("kernels.json");
    let mut lost = engine()?;
    lost.device().destroy();
    let refused = tuner(TuneMode::Measure, &file).pick(&mut lost, &layer(), DType::F32);
    assert!(matches!(refused, Err(Error::Gpu { .. })));
    assert!(!file.exists());
    // The measurement lock is free.
    tuner(TuneMode::Measure, &file).pick(&mut engine()?, &layer(), DType::F32)?;
    assert!(file.exists());
    Ok(())
}

fn what_a_device_cannot_run_is_no_verdict_on_kernels() -> Outcome {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("kernels.json");
    let mut engine = engine()?;
    let padded = shape(&[1, 4, 9, 9], &[4, 4, 3, 3], &ConvParams::default().padding([1]));
    let large = shape(&[1, 1, 80_000, 60_000], &[4, 1, 3, 3], &ConvParams::default());
    for tune in [TuneMode::Off, TuneMode::Measure] {
        let refused = tuner(tune, &file).pick(&mut engine, &padded, DType::F32);
        assert!(matches!(refused, Err(Error::InvalidParameter { .. })), "{refused:?}");
        let refused = tuner(tune, &file).pick(&mut engine, &large, DType::F32);
        assert!(matches!(refused, Err(Error::Mismatch { .. })), "{refused:?}");
    }
    assert!(!file.exists());
    Ok(())
}

fn workers_measure_together_and_compute_right() -> Outcome {
    let folder = tempfile::tempdir()?;
    let file: PathBuf = folder.path().join("kernels.json");
    let options = GpuOptions { tuner: tuner(TuneMode::Measure, &file), ..GpuOptions::default() };
    let shape = SubtaskShape { conv: layer(), slabs: 1, banks: 1, plain: false };
    let (slab, bank) = (random(shape.conv.input_elems(), 3), random(shape.conv.weight_elems(), 4));
    let truth = reference(&shape.conv, &slab, &bank, None)?;
    let key = FilterKey { layer: 1, subtask: SubtaskId(0) };
    let compute = |mut worker: Box<dyn Worker>| -> fcdcc::Result<f64> {
        worker.install(key, &shape, values(&bank, DType::F32))?;
        let mut result = Vec::new();
        let slab = values(&slab, DType::F32);
        worker.execute(Task::new(key, &slab, &CancelToken::new()), &mut |_, v| result = widened(&v))?;
        Ok(relative_l2(&result, &truth))
    };
    let fleet = GpuWorker::fleet_with(3, &options)?;
    let names: Vec<String> = fleet.iter().map(|w| w.info().name).collect();
    assert_eq!(names, ["gpu-0", "gpu-1", "gpu-2"]);
    let errors = std::thread::scope(|scope| {
        let threads: Vec<_> = fleet.into_iter().map(|worker| scope.spawn(|| compute(worker))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<fcdcc::Result<Vec<f64>>>()
    })?;
    assert!(errors.iter().all(|error| *error <= tolerance(DType::F32)), "{errors:?}");
    assert!(!verdicts(&file).is_empty());
    // A file that is damaged is replaced.
    let damaged = folder.path().join("damaged.json");
    std::fs::write(&damaged, "{\"schema\": 1, \"devices\"")?;
    let mut engine = engine()?;
    tuner(TuneMode::Measure, &damaged).pick(&mut engine, &layer(), DType::F32)?;
    assert!(!verdicts(&damaged).is_empty());
    Ok(())
}

pub(crate) fn trials() -> Vec<Trial> {
    let tests: Vec<(&str, fn() -> Outcome)> = vec![
        ("what_is_measured_is_kept_and_used", what_is_measured_is_kept_and_used),
        ("a_wrong_kernel_is_never_chosen", a_wrong_kernel_is_never_chosen),
        ("a_lost_device_leaves_no_verdicts", a_lost_device_leaves_no_verdicts),
        (
            "what_a_device_cannot_run_is_no_verdict_on_kernels",
            what_a_device_cannot_run_is_no_verdict_on_kernels,
        ),
        ("workers_measure_together_and_compute_right", workers_measure_together_and_compute_right),
    ];
    let boxed = tests.into_iter().map(|(name, test)| {
        let test: Box<dyn FnOnce() -> Outcome + Send> = Box::new(test);
        (name.to_owned(), test)
    });
    support::trials("tuning", boxed.collect(), &[])
}
