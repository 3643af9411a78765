//! The GPU worker: results, cancellation, refusals and lost devices, on the available adapter.
//!
//! Without an adapter every test is shown as ignored, never as passed; with `CI=true`, a missing adapter fails them. Runs on
//! the adapter named by `WGPU_ADAPTER_NAME`, or the preferred one.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, here as under the usual harness")]
#![expect(clippy::unnecessary_wraps, reason = "all tests have one signature")]

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::support::{self, Outcome, TOLERANCE_F32, engine, random, shape, tolerance, values, widened};
use fcdcc::array::DType;
use fcdcc::conv::{ConvParams, ConvShape, reference};
use fcdcc::gpu::{AdapterSelector, ConvEngine, ConvPlan, GpuDevice, Kernel, adapters, select};
use fcdcc::testing::check_worker;
use fcdcc::worker::{
    CancelToken, Fault, FilterKey, GpuOptions, GpuWorker, Probe, SubtaskShape, Task, Worker, WorkerKind,
    faulty,
};
use fcdcc::{Error, SubtaskId};
use fcdcc_test_support::{every_row, relative_l2};
use libtest_mimic::Trial;

/// Seconds, far below the minute that a submission may take: a call that returns within them did not wait for it.
const SOON: u64 = 20;

/// A subtask of two slabs and two banks with its data and results.
struct Subtask {
    shape: SubtaskShape,
    slabs: Vec<f64>,
    banks: Vec<f64>,
    expected: Vec<Vec<f64>>,
}

fn subtask(conv: ConvShape, seed: u64) -> Subtask {
    let shape = SubtaskShape { conv, slabs: 2, banks: 2, plain: false };
    let (slabs, banks) = (random(shape.upload_elems(), seed), random(shape.filter_elems(), seed + 100));
    let (input, weight) = (shape.conv.input_elems(), shape.conv.weight_elems());
    let expected = (0..4)
        .map(|i| {
            let (x, w) = (&slabs[i / 2 * input..][..input], &banks[i % 2 * weight..][..weight]);
            reference(&shape.conv, x, w, None).unwrap()
        })
        .collect();
    Subtask { shape, slabs, banks, expected }
}

impl Subtask {
    fn small(seed: u64) -> Self {
        subtask(shape(&[1, 6, 10, 10], &[12, 6, 3, 3], &ConvParams::default()), seed)
    }

    fn install(&self, worker: &mut dyn Worker, key: FilterKey, dtype: DType) -> fcdcc::Result<()> {
        worker.install(key, &self.shape, values(&self.banks, dtype))
    }

    /// Executes the subtask and compares; true if everything matches.
    fn matches(&self, worker: &mut dyn Worker, key: FilterKey, dtype: DType) -> fcdcc::Result<bool> {
        let mut good = Vec::new();
        worker.execute(Task::new(key, &values(&self.slabs, dtype), &CancelToken::new()), &mut |i, v| {
            good.push((i, relative_l2(&widened(&v), &self.expected[i]) <= tolerance(dtype)));
        })?;
        Ok(good == [(0, true), (1, true), (2, true), (3, true)])
    }
}

const KEY: FilterKey = FilterKey { layer: 7, subtask: SubtaskId(3) };

fn worker() -> Result<GpuWorker, Error> {
    GpuWorker::open(&GpuOptions::default())
}

/// Filters that were installed for one input size compute another one with every kernel.
fn filters_serve_other_input_sizes() -> Outcome {
    let p = ConvParams::default();
    let small = subtask(shape(&[1, 32, 12, 12], &[32, 32, 3, 3], &p), 3);
    let large = subtask(shape(&[2, 32, 17, 26], &[32, 32, 3, 3], &p), 3);
    assert_eq!(large.banks, small.banks);
    let other = FilterKey { layer: 8, ..KEY };
    let mut shared = 0;
    for kernel in Kernel::ALL.into_iter().map(Some).chain([None]) {
        let mut worker = GpuWorker::open(&GpuOptions { kernel, ..GpuOptions::default() })?;
        if small.install(&mut worker, KEY, DType::F32).is_err() {
            continue;
        }
        if !worker.share(other, KEY, &large.shape)? {
            assert!(kernel.is_none(), "{kernel:?}");
            continue;
        }
        shared += 1;
        assert!(large.matches(&mut worker, other, DType::F32)?, "{kernel:?}");
        worker.remove(KEY);
        assert!(large.matches(&mut worker, other, DType::F32)?, "{kernel:?}");
        assert!(small.matches(&mut worker, KEY, DType::F32).is_err());
    }
    assert!(shared >= 3, "{shared}");
    Ok(())
}

fn worker_computes_in_both_types() -> Outcome {
    let mut worker = worker()?;
    let info = worker.info();
    assert_eq!((info.kind, info.name.as_str()), (WorkerKind::Gpu, "gpu-0"));
    let task = Subtask::small(1);
    for dtype in [DType::F32, DType::F64] {
        if dtype == DType::F32 || info.f64 {
            task.install(&mut worker, KEY, dtype)?;
            assert!(task.matches(&mut worker, KEY, dtype)?);
        } else {
            let refused = task.install(&mut worker, KEY, dtype);
            assert!(matches!(refused, Err(Error::Unavailable { .. })));
        }
    }
    Ok(())
}

fn a_gpu_worker_keeps_the_contract() -> Outcome {
    let findings = check_worker(Duration::from_mins(1), || Ok(Box::new(worker()?)));
    assert!(findings.is_empty(), "{findings:#?}");
    Ok(())
}

fn a_larger_layer_after_a_smaller_one() -> Outcome {
    let mut worker = worker()?;
    let small = Subtask::small(1);
    let large = subtask(shape(&[2, 4, 30, 31], &[9, 4, 3, 3], &ConvParams::default()), 5);
    let large_key = FilterKey { layer: 8, ..KEY };
    small.install(&mut worker, KEY, DType::F32)?;
    large.install(&mut worker, large_key, DType::F32)?;
    for _ in 0..2 {
        assert!(small.matches(&mut worker, KEY, DType::F32)?);
        assert!(large.matches(&mut worker, large_key, DType::F32)?);
    }
    Ok(())
}

fn cancelled_work_ends_and_the_next_is_right() -> Outcome {
    let mut worker = worker()?;
    let task = Subtask::small(1);
    task.install(&mut worker, KEY, DType::F32)?;
    let slabs = values(&task.slabs, DType::F32);
    let token = CancelToken::new();
    let mut emitted = 0;
    let during = worker.execute(Task::new(KEY, &slabs, &token), &mut |_, _| {
        emitted += 1;
        token.cancel();
    });
    assert!(matches!(during, Err(Error::Cancelled)));
    assert_eq!(emitted, 1);
    assert!(task.matches(&mut worker, KEY, DType::F32)?);
    Ok(())
}

fn sub_results_of_several_submissions_come_in_the_order_asked_for() -> Outcome {
    let task = Subtask::small(3);
    let slabs = values(&task.slabs, DType::F32);
    let gpu = GpuDevice::open(&select(None)?[0], "test")?.with_submission_macs(1_000);
    let mut engine = ConvEngine::new(gpu);
    let filters = engine.install(&task.shape.conv, 2, 2, &values(&task.banks, DType::F32), None)?;
    engine.poison_outputs(true);
    let mut seen = Vec::new();
    engine.run(&filters, 2, &slabs, Some(&[3, 1, 0]), &|| false, &mut |i, v| {
        assert!(relative_l2(&widened(&v), &task.expected[i]) <= TOLERANCE_F32, "sub-result {i}");
        seen.push(i);
    })?;
    assert_eq!(seen, [3, 1, 0]);
    let beyond = engine.run(&filters, 2, &slabs, Some(&[4]), &|| false, &mut |_, _| {});
    assert!(matches!(beyond, Err(Error::InvalidParameter { .. })));
    Ok(())
}

fn layers_larger_than_a_binding_are_refused() -> Outcome {
    let engine = engine()?;
    let limit = engine.device().caps().max_binding_bytes;
    // Four more than fit: kernels that load four at once round up.
    let elems = usize::try_from(limit / 16 * 4 + 4)?;
    let shape = shape(&[1, 1, elems], &[1, 1, 1], &ConvParams::default());
    let error = ConvPlan::new(&shape, DType::F32, engine.device().caps(), None).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }));
    assert!(error.to_string().contains(&(elems * 4).to_string()), "{error}");
    Ok(())
}

fn an_unknown_adapter_is_unavailable() -> Outcome {
    every_row([AdapterSelector::from("no such adapter"), AdapterSelector::from("4711")], |adapter| {
        let options = GpuOptions { adapter: Some(adapter), ..GpuOptions::default() };
        let Err(error) = GpuWorker::open(&options) else { panic!("opened {options:?}") };
        assert!(matches!(error, Error::Unavailable { .. }));
        assert!(error.to_string().contains(&adapters()[0].name), "{error}");
    });
    Ok(())
}

fn adapters_are_found_by_number_and_part_of_the_name() -> Outcome {
    let first = &adapters()[0];
    let name = first.name.to_uppercase();
    let part: String = name.chars().take(4).collect();
    for selector in ["0", name.as_str(), part.as_str()] {
        assert_eq!(&select(Some(&AdapterSelector::from(selector)))?[0], first);
    }
    let json = serde_json::to_value(first)?;
    assert_eq!(json["index"], 0);
    assert!(json["limits"]["max_buffer_bytes"].as_u64().is_some());
    Ok(())
}

fn workers_run_side_by_side() -> Outcome {
    let fleet = GpuWorker::fleet(3, None)?;
    let names: Vec<_> = fleet.iter().map(|w| w.info().name).collect();
    assert_eq!(names, ["gpu-0", "gpu-1", "gpu-2"]);
    let threads: Vec<_> = (1..)
        .zip(fleet)
        .map(|(seed, mut worker)| {
            std::thread::spawn(move || {
                let task = Subtask::small(seed);
                task.install(worker.as_mut(), KEY, DType::F32).unwrap();
                (0..5).all(|_| task.matches(worker.as_mut(), KEY, DType::F32).unwrap())
            })
        })
        .collect();
    assert!(threads.into_iter().all(|t| t.join().unwrap()));
    Ok(())
}

fn a_lost_device_is_a_lost_worker() -> Outcome {
    let mut worker = worker()?;
    let task = Subtask::small(1);
    task.install(&mut worker, KEY, DType::F32)?;
    worker.lose_device();
    let started = Instant::now();
    for _ in 0..2 {
        let lost = task.matches(&mut worker, KEY, DType::F32);
        assert!(matches!(lost, Err(Error::WorkerLost { .. })), "{lost:?}");
    }
    assert!(matches!(task.install(&mut worker, KEY, DType::F32), Err(Error::WorkerLost { .. })));
    assert!(started.elapsed().as_secs() < 30);
    // Recovery makes a new worker on the same adapter.
    let mut next = self::worker()?;
    task.install(&mut next, KEY, DType::F32)?;
    assert!(task.matches(&mut next, KEY, DType::F32)?);
    Ok(())
}

/// A device lost at any moment of a run, or by another thread while the run waits, causes an error soon, and no panic.
fn a_device_lost_in_the_middle_of_a_run_ends_it() -> Outcome {
    let task = subtask(shape(&[1, 32, 40, 40], &[32, 32, 3, 3], &ConvParams::default()), 1);
    let slabs = values(&task.slabs, DType::F32);
    let open = |staging: bool, macs: u64| -> Result<_, Error> {
        let gpu = GpuDevice::open(&select(None)?[0], "test")?.with_submission_macs(macs);
        let mut engine = ConvEngine::new(if staging { gpu.with_staging() } else { gpu });
        let filters = engine.install(&task.shape.conv, 2, 2, &values(&task.banks, DType::F32), None)?;
        Ok((engine, filters))
    };
    for staging in [false, true] {
        // Before the n-th submission or retirement; some of these lie between two submissions of a sub-result.
        for moment in 0..8 {
            let (mut engine, filters) = open(staging, 6_000_000)?;
            let lose = engine.device().destroyer();
            let asked = Cell::new(0);
            let stop = || {
                if asked.replace(asked.get() + 1) == moment {
                    lose();
                }
                false
            };
            let started = Instant::now();
            let end = engine.run(&filters, 2, &slabs, None, &stop, &mut |i, v| {
                assert!(relative_l2(&widened(&v), &task.expected[i]) <= TOLERANCE_F32);
            });
            assert!(matches!(end, Err(Error::Gpu { .. })), "{moment}: {end:?}");
            assert!(engine.device().lost().is_some());
            let again = engine.run(&filters, 2, &slabs, None, &|| false, &mut |_, _| panic!("emitted"));
            assert!(matches!(again, Err(Error::Gpu { .. })), "{moment}: {again:?}");
            let install = engine.install(&task.shape.conv, 2, 2, &values(&task.banks, DType::F32), None);
            assert!(matches!(install, Err(Error::Gpu { .. })), "{moment}");
            assert!(started.elapsed().as_secs() < SOON, "{moment}: {:?}", started.elapsed());
        }
        // By another thread, at any time of a run, including during a submission.
        let one_submission = 1 << 40;
        let (mut engine, filters) = open(staging, one_submission)?;
        let started = Instant::now();
        engine.run(&filters, 2, &slabs, None, &|| false, &mut |_, _| {})?;
        let one_run = started.elapsed();
        for eighths in 0..8 {
            let (mut engine, filters) = open(staging, one_submission)?;
            let lose = engine.device().destroyer();
            let started = Instant::now();
            let end = std::thread::scope(|scope| {
                scope.spawn(|| {
                    while started.elapsed() < one_run * eighths / 8 {
                        std::thread::yield_now();
                    }
                    lose();
                });
                loop {
                    let end = engine.run(&filters, 2, &slabs, None, &|| false, &mut |i, v| {
                        assert!(relative_l2(&widened(&v), &task.expected[i]) <= TOLERANCE_F32);
                    });
                    if end.is_err() || started.elapsed().as_secs() >= SOON {
                        return end;
                    }
                }
            });
            assert!(matches!(end, Err(Error::Gpu { .. })), "{end:?}");
            assert!(started.elapsed().as_secs() < SOON, "{:?}", started.elapsed());
        }
    }
    Ok(())
}

/// A worker under a stack of faults is lost and respawned several times, as the pool does it.
fn a_lost_worker_is_made_again_by_its_recipe() -> Outcome {
    let task = Subtask::small(4);
    let mut worker: Box<dyn Worker> = Box::new(worker()?);
    let info = worker.info();
    assert!(info.adapter.as_ref().is_some_and(|adapter| info.device.starts_with(&adapter[2..])), "{info:?}");
    for _ in 0..3 {
        worker = faulty(worker, Fault::DeviceLost, 0).boxed();
        let respawn = worker.respawn().unwrap();
        task.install(worker.as_mut(), KEY, DType::F32)?;
        Probe::new(DType::F32).check(worker.as_mut(), &CancelToken::new())?;
        let Err(Error::WorkerLost { cause, .. }) = task.matches(worker.as_mut(), KEY, DType::F32) else {
            panic!("the device was not lost");
        };
        // The cause is the device's message, not the fault's.
        assert!(!cause.contains("injected"), "{cause}");
        let refused = task.install(worker.as_mut(), KEY, DType::F32);
        assert!(matches!(refused, Err(Error::WorkerLost { .. })));
        worker = respawn(&CancelToken::new())?;
        assert_eq!(worker.info(), info);
        let empty = task.matches(worker.as_mut(), KEY, DType::F32);
        assert!(matches!(empty, Err(Error::WorkerFailed { .. })), "{empty:?}");
        Probe::new(DType::F32).check(worker.as_mut(), &CancelToken::new())?;
        if info.f64 {
            Probe::new(DType::F64).check(worker.as_mut(), &CancelToken::new())?;
        }
        task.install(worker.as_mut(), KEY, DType::F32)?;
        assert!(task.matches(worker.as_mut(), KEY, DType::F32)?);
    }
    Ok(())
}

/// Runs in a process of its own, because threads of other tests would be counted too.
fn losses_leave_no_threads_behind() -> Outcome {
    const ALONE: &str = "FCDCC_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let child = std::process::Command::new(std::env::current_exe()?)
            .args(["--exact", "worker::losses_leave_no_threads_behind", "--test-threads", "1"])
            .env(ALONE, "1")
            .output()?;
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
        return Ok(());
    }
    let threads = || std::fs::read_dir("/proc/self/task").map(Iterator::count);
    let task = Subtask::small(5);
    let mut worker: Box<dyn Worker> = Box::new(worker()?);
    let respawn = worker.respawn().unwrap();
    let mut before = None;
    for round in 0..6 {
        task.install(worker.as_mut(), KEY, DType::F32)?;
        assert!(task.matches(worker.as_mut(), KEY, DType::F32)?);
        // The first round may start threads that stay for the life of the process.
        if round == 1 {
            before = Some(threads()?);
        }
        worker.lose_device();
        assert!(matches!(task.matches(worker.as_mut(), KEY, DType::F32), Err(Error::WorkerLost { .. })));
        worker = respawn(&CancelToken::new())?;
    }
    let (before, started) = (before.unwrap(), Instant::now());
    // A thread of its own drops each lost device.
    while threads()? > before {
        assert!(started.elapsed().as_secs() < SOON, "{} threads, {before} before the losses", threads()?);
        std::thread::yield_now();
    }
    Ok(())
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut tests: Vec<(String, Box<dyn FnOnce() -> Outcome + Send>)> = Vec::new();
    macro_rules! add {
        ($($test:ident),* $(,)?) => {$(tests.push((stringify!($test).to_owned(), Box::new($test)));)*};
    }
    add!(
        worker_computes_in_both_types,
        filters_serve_other_input_sizes,
        a_gpu_worker_keeps_the_contract,
        a_larger_layer_after_a_smaller_one,
        cancelled_work_ends_and_the_next_is_right,
        sub_results_of_several_submissions_come_in_the_order_asked_for,
        layers_larger_than_a_binding_are_refused,
        an_unknown_adapter_is_unavailable,
        adapters_are_found_by_number_and_part_of_the_name,
        workers_run_side_by_side,
        a_lost_device_is_a_lost_worker,
        a_device_lost_in_the_middle_of_a_run_ends_it,
        a_lost_worker_is_made_again_by_its_recipe,
    );
    if std::path::Path::new("/proc/self/task").exists() {
        add!(losses_leave_no_threads_behind);
    }
    support::trials("worker", tests, &[])
}
