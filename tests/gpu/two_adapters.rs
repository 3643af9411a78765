//! Pools over adapters of two makers at once, beside CPU workers.
//!
//! Ignored, with a line that says so, where all adapters are of one maker. With `VK_ADD_DRIVER_FILES`, which adds a driver
//! to those of the machine, a missing second maker fails the tests. CONTRIBUTING.md tells where to get one.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::Outcome;
use fcdcc::array::{DType, Values};
use fcdcc::engine::WindowwiseLimit;
use fcdcc::gpu::{AdapterSelector, AdapterSummary, ConvEngine, GpuDevice, TuneMode, Tuner, adapters, select};
use fcdcc::scheduler::State;
use fcdcc::worker::{CpuWorker, FaultSpec, GpuOptions, GpuWorker, WorkerInfo, inject, intercept};
use fcdcc::{CodedConv, ConvParams, ConvShape, Error, LayerOptions, LayerReport, Pool, Worker, WorkerId};
use fcdcc_test_support::layer::{EXACT_F32, Layer, fail, small};
use fcdcc_test_support::{normal, relative_l2};
use libtest_mimic::Trial;

/// Queues on each adapter, and as many CPU workers.
const EACH: usize = 4;
/// A code that needs two thirds of the workers: what is left when one adapter is lost.
const DELTA: usize = 2 * EACH;

/// The first adapter, and the first of another maker.
fn pair() -> Option<[AdapterSummary; 2]> {
    let found = adapters();
    let first = found.first()?;
    let second = found.iter().find(|adapter| adapter.vendor != first.vendor)?;
    Some([first.clone(), second.clone()])
}

/// Workers 0 to 3 on the first adapter, 4 to 7 on the second, 8 to 11 on the CPU.
fn workers(pair: &[AdapterSummary; 2]) -> Result<Vec<Box<dyn Worker>>, Error> {
    let mut workers: Vec<Box<dyn Worker>> = Vec::new();
    for (which, adapter) in pair.iter().enumerate() {
        for queue in which * EACH..(which + 1) * EACH {
            let adapter = Some(AdapterSelector::Index(adapter.index));
            workers.push(Box::new(GpuWorker::open(&GpuOptions { adapter, queue, ..GpuOptions::default() })?));
        }
    }
    workers.extend(CpuWorker::fleet(EACH));
    Ok(workers)
}

fn prepared(
    workers: Vec<Box<dyn Worker>>,
    fault: Option<&str>,
    layer: &Layer<f32>,
    options: LayerOptions,
) -> Result<(Pool, CodedConv<f32>), Error> {
    let faults: Vec<FaultSpec> = fault.iter().map(|fault| fault.parse()).collect::<Result<_, _>>()?;
    let pool = Pool::new(inject(workers, &faults, 0)?)?;
    let options = LayerOptions { max_windowwise: WindowwiseLimit::Off, ..options };
    let coded = layer.prepare(&pool, options.hedge(None).deadline(Duration::from_mins(1)))?;
    Ok((pool, coded))
}

/// The workers of one run from which the output was decoded, with their descriptions.
fn used<'a>(report: &'a LayerReport, infos: &'a [Arc<WorkerInfo>]) -> impl Iterator<Item = &'a WorkerInfo> {
    let rows = report.workers.iter().filter(|row| row.outcome == fcdcc::Outcome::Used);
    rows.map(|row| infos.iter().find(|info| info.name == row.worker).unwrap().as_ref())
}

/// A code that needs every result: the output depends on both adapters and on the CPU workers.
fn every_worker_of_both_adapters_contributes() -> Outcome {
    let (pair, layer) = (pair().ok_or("one maker")?, small());
    let run = |fault| {
        let mut workers = workers(&pair)?;
        // Eight of twelve: four workers of the first adapter and two of each other kind.
        for gone in [11, 10, 7, 6] {
            workers.remove(gone);
        }
        let (pool, coded) = prepared(workers, fault, &layer, fail(4, 8))?;
        let run = coded.run(layer.input.view())?;
        Ok::<_, Error>((layer.error(&run.output), run.report, pool.workers().collect::<Vec<_>>()))
    };
    let (error, report, infos) = run(None)?;
    assert!(error < EXACT_F32 && error <= report.error_bound, "{error:e}: {report:#?}");
    assert_eq!((report.backend.as_str(), report.n, report.recovery_threshold), ("mixed", DELTA, DELTA));
    for (adapter, count) in pair.iter().zip([4, 2]) {
        let of_it = |info: &&WorkerInfo| info.device.starts_with(&adapter.name);
        assert_eq!(used(&report, &infos).filter(of_it).count(), count, "{adapter:?}: {infos:#?}");
    }
    // Negative control: a wrong result of either adapter is in the output.
    for wrong in ["1:corrupt=1e-2", "5:corrupt=1e-2"] {
        let (error, report, _) = run(Some(wrong))?;
        assert!(error > EXACT_F32 && error > report.error_bound, "{wrong}: {error:e}");
    }
    Ok(())
}

/// All queues of one adapter lose their device in one run. Their subtasks lie apart, so that the remaining results decode well,
/// and new devices take their place.
fn one_adapter_is_lost() -> Outcome {
    let (pair, layer) = (pair().ok_or("one maker")?, small());
    for (fault, lost) in [("0,1,2,3:device-lost", 0..EACH), ("4,5,6,7:device-lost", EACH..2 * EACH)] {
        let (pool, coded) = prepared(workers(&pair)?, Some(fault), &layer, fail(4, 8))?;
        let before: Vec<_> = pool.workers().collect();
        let run = coded.run(layer.input.view())?;
        let (error, report) = (layer.error(&run.output), run.report);
        assert!(error < EXACT_F32 && error <= report.error_bound, "{fault}: {error:e}: {report:#?}");
        assert_eq!((report.used.len(), report.recovery_threshold), (DELTA, DELTA));
        for info in &before[lost.clone()] {
            let row = report.workers.iter().find(|row| row.worker == info.name).unwrap();
            assert!(row.cause.as_ref().is_some_and(|cause| cause.contains("lost")), "{row:?}");
            assert!(used(&report, &before).all(|used| used.adapter != info.adapter));
        }
        // Negative control: without the names of their adapters the lost workers hold adjacent subtasks.
        let nameless = workers(&pair)?.into_iter().map(|worker| {
            let forget = |info: &mut WorkerInfo| info.adapter = None;
            intercept(worker).with_info(forget).boxed()
        });
        let (_pool, naive) = prepared(nameless.collect(), Some(fault), &layer, fail(4, 8))?;
        let naive = naive.run(layer.input.view())?.report.condition_number;
        let apart = report.condition_number;
        assert!(apart * 5.0 < naive, "{fault}: {apart} apart, {naive} adjacent");

        // The new devices are on the same adapter.
        let started = Instant::now();
        while lost.clone().any(|worker| pool.health(WorkerId(worker)).unwrap().state == State::Lost) {
            assert!(
                started.elapsed() < Duration::from_mins(2),
                "{fault}: not back: {:?}",
                pool.lost(WorkerId(lost.start))
            );
            assert!(layer.error(&coded.run(layer.input.view())?.output) < EXACT_F32);
        }
        assert!(pool.workers().eq(before), "{:#?}", pool.workers().collect::<Vec<_>>());
        assert!(layer.error(&coded.run(layer.input.view())?.output) < EXACT_F32);
    }
    Ok(())
}

/// Fleets take turns on the adapters that match: those of a name, or the preferred ones.
fn fleets_take_turns() -> Outcome {
    let named = |fleet: Vec<Box<dyn Worker>>| -> Vec<_> {
        fleet.iter().map(|worker| worker.info().adapter.unwrap()).collect()
    };
    let name = |adapter: &AdapterSummary| format!("{} {}", adapter.index, adapter.name);
    for adapter in pair().ok_or("one maker")? {
        let selector = AdapterSelector::Name(adapter.name.clone());
        assert_eq!(named(GpuWorker::fleet(2, Some(&selector))?), vec![name(&adapter); 2]);
    }
    let preferred: Vec<_> = select(None)?.iter().map(name).cycle().take(3).collect();
    assert_eq!(named(GpuWorker::fleet(3, None)?), preferred);
    Ok(())
}

/// Kernels measured on one adapter are not used on another: both have their own entry in one file.
fn kernels_are_kept_by_adapter() -> Outcome {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("kernels.json");
    let shape = ConvShape::new(&[1, 8, 10, 10], &[16, 8, 3, 3], &ConvParams::default())?;
    let (x, w) = (normal::<f32>(shape.input_elems(), 1), normal::<f32>(shape.weight_elems(), 2));
    let truth = fcdcc::conv::reference(&shape, &x, &w, None)?;
    let tuner = |tune| Tuner::with_file(tune, Some(file.clone()));
    for (index, adapter) in pair().ok_or("one maker")?.iter().enumerate() {
        let mut engine = ConvEngine::new(GpuDevice::open(adapter, "test")?);
        let candidate = tuner(TuneMode::Measure).pick(&mut engine, &shape, DType::F32)?;
        assert_eq!(tuner(TuneMode::CacheOnly).pick(&mut engine, &shape, DType::F32)?, candidate);
        let filters = engine.install_as(&shape, 1, 1, &Values::F32(w.clone()), candidate)?;
        let mut error = f64::INFINITY;
        engine.run(&filters, 1, &Values::F32(x.clone()), None, &|| false, &mut |_, result| {
            if let Values::F32(result) = result {
                error = relative_l2(&result, &truth);
            }
        })?;
        assert!(error < EXACT_F32, "{}: {candidate}: {error:e}", adapter.name);
        let kept: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
        let devices = kept["devices"].as_object().unwrap();
        assert_eq!(devices.len(), index + 1);
        assert!(devices.keys().any(|key| key.starts_with(&adapter.name)), "{devices:?}");
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "tests that are not run must be seen")]
pub(crate) fn trials() -> Vec<Trial> {
    let present = pair().is_some();
    let required = std::env::var_os("VK_ADD_DRIVER_FILES").is_some_and(|files| !files.is_empty());
    if !present && !required {
        eprintln!(
            "NOTICE: no two adapters of different makers: tests over both are ignored (see CONTRIBUTING.md)"
        );
    }
    let tests: [(&str, fn() -> Outcome); 4] = [
        ("every_worker_of_both_adapters_contributes", every_worker_of_both_adapters_contributes),
        ("one_adapter_is_lost", one_adapter_is_lost),
        ("fleets_take_turns", fleets_take_turns),
        ("kernels_are_kept_by_adapter", kernels_are_kept_by_adapter),
    ];
    let trial = |(name, test): (&str, fn() -> Outcome)| {
        let trial = Trial::test(format!("two_adapters::{name}"), move || {
            if present {
                test()
            } else {
                Err("VK_ADD_DRIVER_FILES is set, but all adapters are of one maker".into())
            }
        });
        trial.with_ignored_flag(!present && !required)
    };
    tests.into_iter().map(trial).collect()
}
