//! Fault injection: accepted specifications, the effect of each fault, and repeatability.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

use std::time::{Duration, Instant};

use fcdcc::array::{DType, Values};
use fcdcc::conv::{ConvParams, ConvShape};
use fcdcc::worker::{
    CancelToken, CpuWorker, Delay, Fault, FaultSpec, FilterKey, Order, Probe, SubtaskShape, Task, Worker,
    WorkerInfo, WorkerKind, WorkerSet, faulty, inject,
};
use fcdcc::{Error, ErrorKind, Result, SubtaskId};
use fcdcc_test_support::every_row;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const MS: Duration = Duration::from_millis(1);
/// A delay that outlasts every test, so that no test passes by waiting for its end.
const AGES: &str = "delay=1h";
/// A worker that returns within this time was woken, and did not sleep its hour.
const SOON: Duration = Duration::from_mins(10);

#[test]
fn every_documented_form_is_read_and_printed_back() {
    let all = |fault| FaultSpec { workers: WorkerSet::All, fault };
    let table = [
        (
            "0,3:delay=300ms",
            FaultSpec {
                workers: WorkerSet::Indices(vec![0, 3]),
                fault: Fault::Delay(Delay::Constant(300 * MS)),
            },
        ),
        (
            "random:2:delay=exp(200ms)",
            FaultSpec {
                workers: WorkerSet::Random(2),
                fault: Fault::Delay(Delay::Exponential { mean: 200 * MS }),
            },
        ),
        (
            "all:delay=shifted-exp(50ms,100ms)",
            all(Fault::Delay(Delay::ShiftedExponential { shift: 50 * MS, mean: 100 * MS })),
        ),
        ("all:delay=1m 30s", all(Fault::Delay(Delay::Constant(90_000 * MS)))),
        ("7:slow=5x", FaultSpec { workers: WorkerSet::Indices(vec![7]), fault: Fault::Slow(5.0) }),
        ("all:slow=1.5x", all(Fault::Slow(1.5))),
        ("all:crash", all(Fault::Crash)),
        ("all:drop", all(Fault::Drop)),
        ("all:corrupt=1e-2", all(Fault::Corrupt(1e-2))),
        ("all:nan", all(Fault::Nan)),
        ("random:1:device-lost", FaultSpec { workers: WorkerSet::Random(1), fault: Fault::DeviceLost }),
    ];
    every_row(table, |(text, spec)| {
        assert_eq!(text.parse::<FaultSpec>().unwrap(), spec, "{text}");
        assert_eq!(spec.to_string(), text);
    });
    // Accepted, and printed in canonical form.
    let rows = [
        ("all:slow=5", "all:slow=5x"),
        (" 0 , 3 : delay=shifted-exp( 1s , 500ms ) ", "0,3:delay=shifted-exp(1s,500ms)"),
        ("all:delay=1500ms", "all:delay=1s 500ms"),
        ("all:corrupt=0.5", "all:corrupt=5e-1"),
        ("all:delay=0s", "all:delay=0s"),
    ];
    every_row(rows, |(text, printed)| {
        let spec: FaultSpec = text.parse().unwrap();
        assert_eq!(spec.to_string(), printed);
        assert_eq!(spec.to_string().parse::<FaultSpec>().unwrap(), spec);
    });
}

#[test]
fn everything_else_is_refused_with_the_text_and_the_mend() {
    let table = [
        ("", "0,3"),
        ("crash", "0,3"),
        ("0", "0,3"),
        (":crash", "random:COUNT"),
        ("some:crash", "random:COUNT"),
        ("0,:crash", "random:COUNT"),
        ("-1:crash", "random:COUNT"),
        ("1.5:crash", "random:COUNT"),
        ("random:crash", "random:COUNT"),
        ("random:0:crash", "random:COUNT"),
        ("random:-2:crash", "random:COUNT"),
        ("random:x:crash", "random:COUNT"),
        ("random::crash", "random:COUNT"),
        ("all:", "device-lost"),
        ("all:burn", "device-lost"),
        ("all:crash=1", "device-lost"),
        ("all:slow", "device-lost"),
        ("all:delay", "device-lost"),
        ("all:delay=", "300ms"),
        ("all:delay=300", "300ms"),
        ("all:delay=-3ms", "300ms"),
        ("all:delay=exp", "300ms"),
        ("all:delay=exp()", "300ms"),
        ("all:delay=exp(1s", "exp(200ms)"),
        ("all:delay=exp(1s,2s)", "exp(200ms)"),
        ("all:delay=shifted-exp(1s)", "exp(200ms)"),
        ("all:delay=normal(1s)", "exp(200ms)"),
        ("all:slow=0", "at least 1"),
        ("all:slow=0.5x", "at least 1"),
        ("all:slow=-5x", "at least 1"),
        ("all:slow=NaN", "at least 1"),
        ("all:slow=infx", "at least 1"),
        ("all:slow=5xx", "at least 1"),
        ("all:slow=", "at least 1"),
        ("all:corrupt=0", "above 0"),
        ("all:corrupt=-1e-2", "above 0"),
        ("all:corrupt=nan", "above 0"),
        ("all:corrupt=inf", "above 0"),
        ("all:corrupt=", "above 0"),
    ];
    every_row(table, |(text, help)| {
        let error = text.parse::<FaultSpec>().unwrap_err();
        assert!(matches!(error, Error::InvalidParameter { .. }), "{text}");
        assert_eq!(error.kind(), ErrorKind::BadInput);
        let Error::InvalidParameter { got, .. } = &error else { unreachable!() };
        let got = got.to_string();
        assert!(text.contains(got.trim_matches('`')), "{text}: {got}");
        assert!(error.to_string().contains(help), "{text}: {error}");
    });
}

#[test]
fn sets_resolve_to_workers_that_exist() {
    let resolve = |text: &str, workers, seed| text.parse::<WorkerSet>().unwrap().resolve(workers, seed);
    assert_eq!(resolve("all", 4, 0).unwrap(), [0, 1, 2, 3]);
    assert_eq!(resolve("3,0,3", 4, 0).unwrap(), [0, 3]);
    assert_eq!(resolve("random:4", 4, 9).unwrap(), [0, 1, 2, 3]);
    for seed in 0..50 {
        let drawn = resolve("random:3", 8, seed).unwrap();
        assert_eq!(drawn, resolve("random:3", 8, seed).unwrap());
        assert!(drawn.windows(2).all(|pair| pair[0] < pair[1]) && drawn.len() == 3 && drawn[2] < 8);
    }
    let draws: std::collections::BTreeSet<_> =
        (0..50).map(|seed| resolve("random:3", 8, seed).unwrap()).collect();
    assert!(draws.len() > 10, "seeds hardly matter: {draws:?}");
    let rows = [("1,4", ["is 4", "4 workers"]), ("random:5", ["is 5", "4 workers"])];
    every_row(rows, |(text, numbers)| {
        let error = resolve(text, 4, 0).unwrap_err().to_string();
        assert!(numbers.iter().all(|number| error.contains(number)), "{error}");
    });
}

#[test]
fn delays_have_the_means_they_name() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut mean = |text: &str| {
        let delay: Delay = text.parse().unwrap();
        (0..20_000).map(|_| delay.sample(&mut rng).as_secs_f64()).sum::<f64>() / 20_000.0
    };
    // The mean of 20,000 exponential draws is off by 0.7 % (one standard deviation).
    assert!((mean("exp(200ms)") / 0.2 - 1.0).abs() < 0.04);
    assert!((mean("shifted-exp(50ms,100ms)") / 0.15 - 1.0).abs() < 0.04);
    assert!((mean("300ms") / 0.3 - 1.0).abs() < 1e-9);
    let shifted: Delay = "shifted-exp(50ms,100ms)".parse().unwrap();
    assert!((0..1000).all(|_| shifted.sample(&mut rng) >= 50 * MS));
}

const KEY: FilterKey = FilterKey { layer: 1, subtask: SubtaskId(0) };

fn shape() -> SubtaskShape {
    let conv = ConvShape::new(&[1, 2, 9, 9], &[5, 2, 3, 3], &ConvParams::default()).unwrap();
    SubtaskShape { conv, slabs: 2, banks: 2, plain: false }
}

fn ramp(len: usize) -> Values {
    Values::F32((0..len).map(|i| (i % 17) as f32 - 8.0).collect())
}

/// A CPU worker under the faults `kinds`, the last one outermost, with its filters installed.
fn worker(name: &str, kinds: &[&str], seed: u64) -> Box<dyn Worker> {
    let mut worker: Box<dyn Worker> = Box::new(CpuWorker::new(name, 1));
    for kind in kinds {
        worker = faulty(worker, kind.parse().unwrap(), seed).boxed();
    }
    worker.install(KEY, &shape(), ramp(shape().filter_elems())).unwrap();
    worker
}

fn execute(worker: &mut dyn Worker, cancel: &CancelToken) -> (Vec<(usize, Values)>, Result<()>) {
    let mut results = Vec::new();
    let slabs = ramp(shape().upload_elems());
    let end =
        worker.execute(Task::new(KEY, &slabs, cancel), &mut |index, values| results.push((index, values)));
    (results, end)
}

fn complete(worker: &mut dyn Worker) -> Vec<(usize, Values)> {
    let (results, end) = execute(worker, &CancelToken::new());
    end.unwrap();
    results
}

#[test]
fn a_faulty_worker_keeps_its_name() {
    let info = worker("cpu-9", &["nan", "slow=2"], 0).info();
    assert_eq!(info, CpuWorker::new("cpu-9", 1).info());
}

#[test]
fn a_crash_loses_the_worker_for_good_at_its_first_task() {
    every_row([("crash", "crash"), ("device-lost", "device lost")], |(kind, cause)| {
        let mut worker = worker("cpu-3", &[kind], 0);
        for _ in 0..2 {
            let (results, end) = execute(&mut *worker, &CancelToken::new());
            let Err(Error::WorkerLost { worker, cause: told }) = end else { panic!("{end:?}") };
            assert_eq!((worker.as_str(), results.len()), ("cpu-3", 0));
            assert!(told.contains(cause));
        }
        worker.remove(KEY);
        let again = worker.install(KEY, &shape(), ramp(shape().filter_elems()));
        assert!(matches!(again, Err(Error::WorkerLost { .. })));
    });
}

#[test]
fn probes_are_answered_honestly_until_the_worker_is_lost() {
    let probe = |worker: &mut dyn Worker| Probe::new(DType::F32).check(worker, &CancelToken::new());
    every_row([AGES, "slow=1e18x", "crash", "drop", "corrupt=1", "nan", "device-lost"], |kind| {
        let mut worker = worker("cpu", &[kind, "delay=0s"], 3);
        // Probes are not tasks: they do not advance the worker's faults.
        for _ in 0..3 {
            probe(&mut *worker).unwrap_or_else(|error| panic!("{kind}: {error}"));
        }
        if ["crash", "device-lost"].contains(&kind) {
            let (_, end) = execute(&mut *worker, &CancelToken::new());
            assert!(matches!(end, Err(Error::WorkerLost { .. })), "{kind}: {end:?}");
            assert!(matches!(probe(&mut *worker), Err(Error::WorkerLost { .. })), "{kind}");
        }
    });
    let noisy = |probes| {
        let mut worker = worker("cpu", &["corrupt=1e-2"], 3);
        (0..probes).for_each(|_| probe(&mut *worker).unwrap());
        complete(&mut *worker)
    };
    assert_eq!(noisy(0), noisy(2), "probes moved the stream of random numbers");
}

#[test]
fn what_comes_back_has_its_other_faults_and_not_the_spent_one() {
    // The respawned worker of a stack of faults, with its filters; `None` if it cannot be respawned.
    let again = |kinds: &[&str]| {
        let made = worker("cpu-3", kinds, 7).respawn()?;
        let mut worker = made(&CancelToken::new()).unwrap();
        assert_eq!(worker.info(), CpuWorker::new("cpu-3", 1).info());
        worker.install(KEY, &shape(), ramp(shape().filter_elems())).unwrap();
        Some(worker)
    };
    let right = complete(&mut *worker("cpu-3", &[], 7));
    every_row([&["device-lost"][..], &["device-lost", "device-lost"], &[]], |spent| {
        let mut worker = again(spent).unwrap();
        assert_eq!(complete(&mut *worker), right);
        assert_eq!(complete(&mut *worker), right);
    });
    // The same fault, name and seed give the noise of a first task.
    let noise = complete(&mut *worker("cpu-3", &["corrupt=1e-2"], 7));
    assert_ne!(noise, right);
    let rows = [&["corrupt=1e-2"][..], &["corrupt=1e-2", "device-lost"], &["device-lost", "corrupt=1e-2"]];
    every_row(rows, |kept| {
        let mut worker = again(kept).unwrap();
        assert_eq!(complete(&mut *worker), noise, "{kept:?}");
        // It can be lost and respawned a second time.
        assert!(worker.respawn().is_some());
    });
    let rows = [&["crash"][..], &["crash", "device-lost"], &["device-lost", "crash"], &["crash", "delay=1s"]];
    every_row(rows, |gone| {
        assert!(again(gone).is_none(), "{gone:?}");
    });
}

#[test]
fn a_lost_device_gives_nothing_of_the_task_it_was_lost_at() {
    every_row([Order::All, Order::Each(&[3, 1]), Order::Each(&[])], |order| {
        let mut worker = worker("cpu", &["device-lost"], 0);
        let slabs = ramp(shape().upload_elems());
        let end = worker
            .execute(Task::new(KEY, &slabs, &CancelToken::new()).with_order(order), &mut |_, _| {
                panic!("emitted")
            });
        let Err(Error::WorkerLost { cause, .. }) = end else { panic!("{end:?}") };
        assert!(cause.contains("device lost"), "{cause}");
    });
}

#[test]
fn workers_of_this_machine_fail_one_by_one_unless_they_share_an_adapter() {
    let cpu = CpuWorker::new("cpu-1", 1).info();
    assert_eq!(cpu.domain(), ["local", "cpu-1"]);
    let mut gpu = WorkerInfo::new("gpu-2", WorkerKind::Gpu, "llvmpipe");
    gpu.adapter = Some("0 llvmpipe".to_owned());
    assert_eq!(gpu.domain(), ["local", "0 llvmpipe", "gpu-2"]);
}

/// Runs `kinds` on a thread and cancels; true when the task ended as cancelled with nothing emitted.
fn ends_when_cancelled(kinds: &[&str]) -> bool {
    let mut worker = worker("cpu", kinds, 0);
    let cancel = CancelToken::new();
    let theirs = cancel.clone();
    let started = Instant::now();
    let thread = std::thread::spawn(move || execute(&mut *worker, &theirs));
    cancel.cancel();
    let (results, end) = thread.join().unwrap();
    assert!(started.elapsed() < SOON, "waited it out");
    results.is_empty() && matches!(end, Err(Error::Cancelled))
}

#[test]
fn waiting_faults_end_when_cancelled() {
    assert!(ends_when_cancelled(&["drop"]));
    assert!(ends_when_cancelled(&[AGES]));
    assert!(ends_when_cancelled(&["delay=exp(1h)", "delay=shifted-exp(1h,1h)"]));
    // Even the fastest sub-result takes a nanosecond, so the wait is 1e18 ns.
    assert!(ends_when_cancelled(&["slow=1e18x"]));
}

#[test]
fn a_slow_worker_cancelled_at_its_last_sub_result_says_so() {
    // Cancelled from the emission before the last: the last sub-result never comes.
    let mut worker = worker("cpu", &["slow=1.001x"], 0);
    let (cancel, mut seen) = (CancelToken::new(), 0);
    let last = shape().sub_results() - 1;
    let end = worker.execute(Task::new(KEY, &ramp(shape().upload_elems()), &cancel), &mut |_, _| {
        seen += 1;
        if seen == last {
            cancel.cancel();
        }
    });
    assert!(matches!(end, Err(Error::Cancelled)));
    assert_eq!(seen, last);
    assert_eq!(complete(&mut *worker).len(), shape().sub_results());
}

#[test]
fn delayed_and_slow_results_are_late_but_right() {
    let right = complete(&mut *worker("cpu", &[], 0));
    let started = Instant::now();
    assert_eq!(complete(&mut *worker("cpu", &["delay=20ms"], 0)), right);
    assert!(started.elapsed() >= 20 * MS);
    // Stacked faults: the slow wrapper stretches the delay too, so 20 ms become at least 60 ms.
    let started = Instant::now();
    assert_eq!(complete(&mut *worker("cpu", &["delay=20ms", "slow=3x"], 0)), right);
    assert!(started.elapsed() >= 60 * MS);
}

fn f32s(values: &Values) -> &[f32] {
    values.as_slice().unwrap()
}

#[test]
fn corruption_has_the_size_it_names() {
    let right = complete(&mut *worker("cpu", &[], 0));
    let wrong = complete(&mut *worker("cpu", &["corrupt=1e-2"], 7));
    let (mut off, mut size) = (0.0, 0.0);
    for ((_, right), (_, wrong)) in right.iter().zip(&wrong) {
        for (r, w) in f32s(right).iter().zip(f32s(wrong)) {
            off += f64::from(r - w).powi(2);
            size += f64::from(*r).powi(2);
        }
    }
    // 980 normal numbers: the ratio is off by 2 % (one standard deviation).
    assert!(((off / size).sqrt() / 1e-2 - 1.0).abs() < 0.15, "{}", (off / size).sqrt());
}

#[test]
fn one_nan_in_every_sub_result() {
    let wrong = complete(&mut *worker("cpu", &["nan"], 7));
    assert_eq!(wrong.len(), shape().sub_results());
    for (_, values) in &wrong {
        assert_eq!(f32s(values).iter().filter(|v| v.is_nan()).count(), 1);
    }
}

#[test]
fn the_same_seed_repeats_the_same_faults() {
    let two_tasks = |name: &str, seed| {
        let mut worker = worker(name, &["corrupt=1e-3"], seed);
        [complete(&mut *worker), complete(&mut *worker)]
    };
    let first = two_tasks("cpu-0", 1);
    assert_eq!(first, two_tasks("cpu-0", 1));
    assert_ne!(first[0], first[1], "each task has noise of its own");
    assert_ne!(first, two_tasks("cpu-0", 2));
    assert_ne!(first, two_tasks("cpu-1", 1), "workers of one seed differ");
}

#[test]
fn injecting_wraps_the_named_workers_of_a_pool() {
    let specs = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<FaultSpec>>();
    let mut pool =
        inject(CpuWorker::fleet(4), &specs(&["1,2:nan", "2:slow=1x", "random:1:crash"]), 5).unwrap();
    let (mut lost, mut nans) = (0, 0);
    for (index, worker) in pool.iter_mut().enumerate() {
        assert_eq!(worker.info().name, format!("cpu-{index}"));
        worker.install(KEY, &shape(), ramp(shape().filter_elems())).unwrap();
        let (results, end) = execute(&mut **worker, &CancelToken::new());
        lost += usize::from(end.is_err());
        nans += usize::from(results.iter().any(|(_, v)| v.first_non_finite().is_some()));
    }
    assert_eq!(lost, 1);
    assert!((1..=2).contains(&nans), "{nans}");
    assert!(inject(CpuWorker::fleet(2), &specs(&["2:crash"]), 0).is_err());
}
