//! Parts of models that several workers hold, on real threads.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fcdcc::array::Values;
use fcdcc::engine::{PartRun, ReplicatedOptions, ReplicatedPart};
use fcdcc::scheduler::{HealthOptions, PartDispatch, ReplicaPolicy, State};
use fcdcc::worker::{inject, intercept};
use fcdcc::{Audit, CancelToken, CpuWorker, Error, Outcome, Pool, PoolOptions, Result, Worker, WorkerId};
use fcdcc_test_support::every_row;
use fcdcc_test_support::parts::{Affine, compiler};

const LIMIT: Duration = Duration::from_mins(1);
const PART: Affine = Affine { a: 2.0, b: 1.0, elems: 100, millis: 2 };

fn fleet(count: usize) -> Vec<Box<dyn Worker>> {
    CpuWorker::fleet_with_parts(count, &compiler())
}

fn faulty(count: usize, specs: &[&str]) -> Pool {
    let specs: Vec<_> = specs.iter().map(|spec| spec.parse().unwrap()).collect();
    let health = HealthOptions { backoff: Duration::from_mins(10), ..HealthOptions::default() };
    let options = PoolOptions {
        health: HealthOptions { max_backoff: Duration::from_mins(20), ..health },
        ..PoolOptions::default()
    };
    Pool::with_options(inject(fleet(count), &specs, 3).unwrap(), options).unwrap()
}

fn options(audit: Audit) -> ReplicatedOptions {
    let policy = ReplicaPolicy { deadline: LIMIT, ..ReplicaPolicy::default() };
    ReplicatedOptions { policy, audit, ..ReplicatedOptions::default() }
}

fn install(pool: &Pool, options: &ReplicatedOptions) -> ReplicatedPart {
    ReplicatedPart::install(pool, &PART.file(), options).unwrap()
}

fn run(part: &ReplicatedPart, seed: u64) -> Result<PartRun> {
    let inputs = PART.inputs(seed);
    let run = part.run(Arc::clone(&inputs), None, &CancelToken::new())?;
    assert_eq!(run.outputs, PART.outputs(&inputs), "{:?}", run.report);
    Ok(run)
}

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < LIMIT, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn one_worker_computes_the_part_and_the_report_says_so() {
    let pool = faulty(3, &[]);
    let part = install(&pool, &options(Audit::Off));
    assert_eq!((part.holders().len(), part.signature().inputs.len()), (3, 2));
    let report = run(&part, 1).unwrap().report;
    assert_eq!((report.attempts.len(), report.hedged, report.redispatched), (1, 0, 0));
    assert_eq!((report.bytes_up, report.bytes_down), (800, 800));
    assert_eq!(report.worker.as_deref(), Some("cpu-0"));
    assert!(!report.confirmed && report.attempts[0].outcome == Outcome::Used);
    let bad = part.run(vec![Values::F32(vec![1.0])], None, &CancelToken::new());
    assert!(matches!(bad, Err(Error::Mismatch { .. })));
    assert!(run(&install(&pool, &options(Audit::Detect)), 2).unwrap().report.confirmed);
}

#[test]
fn faults_of_one_worker_do_not_change_the_outputs() {
    let rows = ["crash", "device-lost", "drop", "slow=50x", "delay=10s", "corrupt=1e-2", "nan"];
    every_row(rows, |fault| {
        let pool = faulty(3, &[&format!("0:{fault}")]);
        let lies = ["corrupt=1e-2", "nan"].contains(&fault);
        let mut options =
            ReplicatedOptions { predicted: Some(Duration::from_millis(5)), ..options(Audit::Detect) };
        // Where two others agree first, the run is over before the lie comes.
        options.policy.hedge = options.policy.hedge.filter(|_| !lies);
        let part = install(&pool, &options);
        let report = run(&part, 7).unwrap().report;
        let first = &report.attempts[0];
        assert_eq!(first.name, "cpu-0");
        let caught = first.outcome == Outcome::Corrupt
            && pool.health(WorkerId(0)).unwrap().state == State::Quarantined;
        assert_eq!(caught, lies, "{report:?}");
        let dies = ["crash", "device-lost"].contains(&fault);
        assert_eq!(first.outcome == Outcome::Failed, dies, "{report:?}");
        // Later runs do not ask it, where nothing brings it back.
        if lies || fault == "crash" {
            assert!(run(&part, 8).unwrap().report.attempts.iter().all(|attempt| attempt.name != "cpu-0"));
        }
    });
    // Negative control: without an audit a small error is not seen.
    let pool = faulty(2, &["0:corrupt=1e-2"]);
    let part = install(&pool, &options(Audit::Off));
    let inputs = PART.inputs(1);
    let got = part.run(Arc::clone(&inputs), None, &CancelToken::new()).unwrap();
    assert_ne!(got.outputs, PART.outputs(&inputs));
}

#[test]
fn a_slow_worker_is_hedged_and_a_dead_one_redispatched() {
    let predicted = Some(Duration::from_millis(5));
    let part = install(&faulty(2, &["0:drop"]), &ReplicatedOptions { predicted, ..options(Audit::Off) });
    let report = run(&part, 1).unwrap().report;
    assert_eq!((report.hedged, report.redispatched, report.attempts[1].why), (1, 0, PartDispatch::Hedge));
    assert_eq!(report.attempts[0].outcome, Outcome::Cancelled);
    let part = install(&faulty(2, &["0:crash"]), &options(Audit::Off));
    let report = run(&part, 1).unwrap().report;
    assert_eq!((report.hedged, report.redispatched), (0, 1));
    assert!(report.attempts[0].cause.as_deref().unwrap().contains("crash"));
}

#[test]
fn runs_without_a_worker_end_with_an_error_that_names_them_and_at_the_deadline() {
    let part = install(&faulty(2, &["all:crash"]), &options(Audit::Off));
    let error = run(&part, 1).unwrap_err();
    assert!(matches!(error, Error::Shortfall { arrived: 0, .. }), "{error}");
    assert!(["cpu-0", "cpu-1", "crash"].iter().all(|word| error.to_string().contains(word)), "{error}");
    // Nor later, when they hold nothing any more.
    assert!(matches!(run(&part, 2), Err(Error::Shortfall { .. })));

    let part = install(&faulty(2, &["all:drop"]), &options(Audit::Off));
    let started = Instant::now();
    let soon = Duration::from_millis(40);
    let (result, report) = part.run_reported(PART.inputs(1), Some(soon), &CancelToken::new()).unwrap();
    assert!(matches!(result, Err(Error::Shortfall { .. })) && report.worker.is_none(), "{report:?}");
    assert!(started.elapsed() >= soon && started.elapsed() < LIMIT / 2);

    let cancel = CancelToken::new();
    let result = std::thread::scope(|scope| {
        let run = scope.spawn(|| part.run(PART.inputs(1), None, &cancel));
        std::thread::sleep(Duration::from_millis(5));
        cancel.cancel();
        run.join().unwrap()
    });
    assert!(matches!(result, Err(Error::Cancelled)) && started.elapsed() < LIMIT / 2);

    let two = install(&faulty(2, &["0:corrupt=1"]), &options(Audit::Detect));
    assert!(matches!(run(&two, 1), Err(Error::Corrupted { .. })));
    let one = ReplicatedOptions { tolerate: 0, ..options(Audit::Off) };
    assert!(matches!(run(&install(&faulty(1, &["0:nan"]), &one), 1), Err(Error::NonFiniteResults { .. })));
}

#[test]
fn several_parts_and_runs_at_once_share_the_workers() {
    let pool = faulty(3, &[]);
    let parts = [install(&pool, &options(Audit::Off)), install(&pool, &options(Audit::Watch))];
    let used = [const { AtomicUsize::new(0) }; 3];
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (parts, used) = (&parts, &used);
            scope.spawn(move || {
                for seed in 0..10 {
                    // The second part follows the first, as in a pipeline.
                    for part in parts {
                        for attempt in run(part, thread * 100 + seed).unwrap().report.attempts {
                            used[attempt.worker.0].fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let used = used.map(AtomicUsize::into_inner);
    assert!(used.iter().all(|runs| *runs > 0) && used.iter().sum::<usize>() >= 80, "{used:?}");
    assert!(pool.wait_idle(LIMIT));
}

#[test]
fn a_respawned_worker_gets_its_parts_again_and_a_dropped_part_is_removed() {
    let pool = faulty(2, &["0:device-lost"]);
    let part = install(&pool, &options(Audit::Off));
    assert_eq!(run(&part, 1).unwrap().report.attempts[0].outcome, Outcome::Failed);
    until("it is back with its part", || part.holders().len() == 2 && pool.lost(WorkerId(0)).is_none());
    // The other one is busy, so that the new one computes.
    let mut seen = false;
    until("it computes again", || {
        std::thread::scope(|scope| {
            let runs: Vec<_> = (0..3)
                .map(|seed| {
                    scope.spawn({
                        let part = &part;
                        move || run(part, seed)
                    })
                })
                .collect();
            for run in runs {
                seen |= run.join().unwrap().unwrap().report.worker.as_deref() == Some("cpu-0");
            }
        });
        seen
    });

    let removed = Arc::new(AtomicUsize::new(0));
    let held = Arc::clone(&removed);
    let noting = intercept(CpuWorker::new("one", 1).with_parts(compiler())).on_install_part(
        move |inner, key, part| {
            held.fetch_add(1, Ordering::SeqCst);
            inner.install_part(key, part)
        },
    );
    let pool = Pool::new(vec![noting.boxed()]).unwrap();
    let one = ReplicatedOptions { tolerate: 0, ..options(Audit::Off) };
    let part = install(&pool, &one);
    // The handle of the caller goes first, in the middle of a run.
    std::thread::scope(|scope| {
        let runs = scope.spawn(|| (0..5).try_for_each(|seed| run(&part, seed).map(drop)));
        drop(pool);
        runs.join().unwrap().unwrap();
    });
    assert_eq!(removed.load(Ordering::SeqCst), 1);
}

#[test]
fn workers_that_refuse_a_part_are_named_and_others_take_their_place() {
    let mut workers = fleet(3);
    workers[1] = Box::new(CpuWorker::new("plain", 1));
    let pool = Pool::new(workers).unwrap();
    let part = install(&pool, &ReplicatedOptions { holders: Some(2), ..options(Audit::Off) });
    assert_eq!(part.holders(), [WorkerId(0), WorkerId(2)]);
    drop(part);
    let refused = |file, options: &ReplicatedOptions| {
        ReplicatedPart::install(&pool, &file, options).unwrap_err().to_string()
    };
    let error = refused(PART.file(), &ReplicatedOptions { tolerate: 2, ..options(Audit::Off) });
    assert!(
        error.contains("plain") && error.contains("no compiler") && error.contains("3 workers (2"),
        "{error}"
    );
    let mut file = PART.file();
    file.bytes = Arc::from(*b"something else");
    let error = refused(file, &options(Audit::Off));
    assert!(error.contains("no affine function") && error.contains("(0 hold it)"), "{error}");
    let error = refused(PART.file(), &ReplicatedOptions { tolerate: 3, ..options(Audit::Off) });
    assert!(error.contains("is 3: the part needs 4"), "{error}");
    let policy = ReplicaPolicy { copies: 3, ..ReplicaPolicy::default() };
    assert!(
        refused(PART.file(), &ReplicatedOptions { policy, ..options(Audit::Off) })
            .contains("3 start at once")
    );
}
