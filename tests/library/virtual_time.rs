//! The scheduler on simulated workers: checked by hand, against real workers, and at scale.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::{Duration, Instant};

use fcdcc::coding::Code;
use fcdcc::engine::{SimulatedCosts, SimulatedLayer, SimulatedRun};
use fcdcc::planner::subtask_shape;
use fcdcc::scheduler::{Link, SimulatedFleet, SimulatedHost, SimulatedWork, SimulatedWorker, Usage};
use fcdcc::worker::{TaskFault, TaskFaults, Worker, WorkerKind, intercept};
use fcdcc::{
    Audit, CodeKind, CodedConv, Completion, ConvParams, ConvShape, CpuWorker, DType, Error, LayerOptions,
    OnShortfall, Outcome, Pool, SubtaskId, WorkerId,
};
use fcdcc_test_support::every_row;
use ndarray::{ArrayD, IxDyn};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const HEALTHY: TaskFault = TaskFault { delay: Duration::ZERO, slow: 1.0, crash: false, silent: false };
const SILENT: TaskFault = TaskFault { silent: true, ..HEALTHY };
const CRASH: TaskFault = TaskFault { crash: true, ..HEALTHY };

fn shape() -> ConvShape {
    ConvShape::new(&[1, 2, 64, 10], &[64, 2, 3, 3], &ConvParams::default()).unwrap()
}

/// Decodes from the first delta results, without any other policy.
fn plain(code: CodeKind, partitions: (usize, usize), n: usize) -> LayerOptions {
    LayerOptions { code, subtasks: Some(n), partitions: Some(partitions), ..LayerOptions::default() }
        .hedge(None)
        .partial(false)
        .patience(0.0)
        .deadline(ms(1000))
        .on_shortfall(OnShortfall::Fail)
        .audit(Audit::Off)
}

/// `n` uncoded subtasks of one part, all needed.
fn uncoded(n: usize) -> LayerOptions {
    plain(CodeKind::Uncoded, (n, 1), n)
}

/// Sub-results that take 10 ms, with 1000 bytes up and 500 bytes down.
fn work() -> SimulatedWork {
    SimulatedWork {
        upload_bytes: 1000,
        filter_bytes: 0,
        result_bytes: 500,
        sub_result: ms(10),
        fixed: Duration::ZERO,
        stops_within: Duration::MAX,
    }
}

fn layer(fleet: &mut SimulatedFleet, options: LayerOptions) -> SimulatedLayer {
    SimulatedLayer::prepare(fleet, shape(), options, SimulatedCosts::of(work())).unwrap()
}

/// Workers on separate machines at these paces; the memory is the master's.
fn at_paces(paces: &[f64]) -> SimulatedFleet {
    let host = |i: usize| SimulatedHost { name: format!("host-{i}"), cores: 1.0 };
    let worker = |(i, pace): (usize, &f64)| SimulatedWorker {
        name: format!("w-{i}"),
        host: i,
        pace: *pace,
        link: Link::NONE,
    };
    let hosts = (0..paces.len()).map(host).collect();
    SimulatedFleet::new(hosts, paces.iter().enumerate().map(worker).collect()).unwrap()
}

fn outcomes(run: &SimulatedRun) -> Vec<Outcome> {
    run.attempts.iter().map(|a| a.outcome).collect()
}

#[test]
fn links_and_paces_take_the_time_that_arithmetic_says() {
    let link = Link { latency: ms(1), up_bytes_s: 1e6, down_bytes_s: 1e5 };
    let host = |i: usize| SimulatedHost { name: format!("host-{i}"), cores: 1.0 };
    let worker = |host, pace, link| SimulatedWorker { name: format!("w-{host}"), host, pace, link };
    let workers = vec![worker(0, 1.0, link), worker(1, 2.0, Link::NONE)];
    let mut fleet = SimulatedFleet::new(vec![host(0), host(1)], workers).unwrap();
    let costs = SimulatedCosts {
        encode: ms(2),
        decode: ms(3),
        ..SimulatedCosts::of(SimulatedWork { fixed: ms(1), ..work() })
    };
    let mut layer = SimulatedLayer::prepare(&mut fleet, shape(), uncoded(2), costs).unwrap();
    for run in 0..3 {
        assert_eq!(fleet.elapsed(), ms(27) * run);
        let run = layer.run(&mut fleet);
        // 1 to send, 1 latency, 11 to compute, 5 to send, 1 latency; the other worker: (1 + 10) * 2.
        assert_eq!(run.attempts.iter().map(|a| a.latency).collect::<Vec<_>>(), [Some(ms(19)), Some(ms(22))]);
        assert_eq!((run.encode, run.wait, run.decode, run.total), (ms(2), ms(22), ms(3), ms(27)));
        assert_eq!((run.bytes_up, run.bytes_down, run.used_sub_results), (2000, 1000, 2));
        assert_eq!((run.completion, &run.used[..]), (Completion::Exact, &[SubtaskId(0), SubtaskId(1)][..]));
        let usage = |busy, computing| Usage { busy, computing, sub_results: 1 };
        assert_eq!(fleet.reset_usage(), [usage(ms(19), ms(11)), usage(ms(22), ms(22))]);
    }
}

#[test]
fn sub_results_are_sent_while_the_next_is_computed_and_slabs_by_slab_unless_parts_count() {
    let link = Link { latency: ms(2), up_bytes_s: f64::INFINITY, down_bytes_s: 500.0 / 0.015 };
    let rows = [
        // Computed at 10, 20, 30, 40; 15 each to send: sent at 25, 40, 55, 70.
        (true, 2 + 70 + 2),
        // Both banks of a slab are sent together: the first at 20.
        (false, 2 + 20 + 4 * 15 + 2),
    ];
    every_row(rows, |(partial, wait)| {
        let mut fleet = SimulatedFleet::remote(1, link).unwrap();
        let options = plain(CodeKind::Crme, (2, 2), 1).partial(partial);
        let run = layer(&mut fleet, options).run(&mut fleet);
        assert_eq!((run.wait, run.used_sub_results), (ms(wait), 4));
    });
}

#[test]
fn workers_of_a_machine_share_its_cores_and_tasks_of_a_worker_wait_for_each_other() {
    every_row([(3, 2.0, 15), (3, 3.0, 10), (6, 2.0, 30), (4, 0.5, 80)], |(workers, cores, wait)| {
        let mut fleet = SimulatedFleet::local(workers, cores).unwrap();
        let run = layer(&mut fleet, uncoded(workers)).run(&mut fleet);
        assert_eq!(run.wait, ms(wait), "{workers} on {cores}");
        let usage = fleet.usage();
        assert!(usage.iter().all(|u| *u == Usage { busy: ms(wait), computing: ms(10), sub_results: 1 }));
    });
    let mut fleet = at_paces(&[1.0]);
    let run = layer(&mut fleet, uncoded(3)).run(&mut fleet);
    assert_eq!(
        run.attempts.iter().map(|a| a.latency).collect::<Vec<_>>(),
        [10, 20, 30].map(|at| Some(ms(at)))
    );
}

#[test]
fn fates_delay_and_slow_for_one_run() {
    let mut fleet = at_paces(&[1.0, 1.0]);
    let mut layer = layer(&mut fleet, uncoded(2));
    let delayed = TaskFault { delay: ms(7), slow: 3.0, ..HEALTHY };
    for (fates, latencies) in [(&[HEALTHY, delayed][..], [10, 37]), (&[delayed], [37, 10]), (&[], [10, 10])] {
        fleet.set_fates(fates);
        let run = layer.run(&mut fleet);
        assert_eq!(run.attempts.iter().map(|a| a.latency.unwrap()).collect::<Vec<_>>(), latencies.map(ms));
        fleet.advance(ms(50));
    }
    // The extra time of a slow worker counts as waiting, not as computing.
    assert_eq!(fleet.usage().iter().map(|u| u.computing).collect::<Vec<_>>(), [ms(30), ms(30)]);
}

#[test]
fn a_cancelled_worker_lets_go_within_one_sub_result() {
    let rows = [
        (Duration::MAX, HEALTHY, 100, 1),
        (ms(5), HEALTHY, 45, 0),
        (ms(500), HEALTHY, 100, 1),
        (Duration::MAX, SILENT, 40, 0),
        (Duration::MAX, TaskFault { delay: ms(300), ..HEALTHY }, 40, 0),
    ];
    every_row(rows, |(stops_within, fate, busy, computed)| {
        let mut fleet = at_paces(&[1.0, 10.0]);
        fleet.set_fates(&[HEALTHY, fate]);
        let costs = SimulatedCosts::of(SimulatedWork { stops_within, ..work() });
        let options = plain(CodeKind::Crme, (2, 2), 2);
        let mut layer = SimulatedLayer::prepare(&mut fleet, shape(), options, costs).unwrap();
        let run = layer.run(&mut fleet);
        assert_eq!((run.wait, outcomes(&run)), (ms(40), vec![Outcome::Used, Outcome::Cancelled]));
        fleet.advance(ms(1000));
        let usage = fleet.usage()[1];
        assert_eq!((usage.busy, usage.sub_results), (ms(busy), computed), "{stops_within:?} {fate:?}");
        // The interrupted task does not affect its next one.
        fleet.set_fates(&[]);
        assert_eq!(layer.run(&mut fleet).wait, ms(40));
    });
}

#[test]
fn overdue_subtasks_are_hedged_in_virtual_time() {
    let mut fleet = at_paces(&[1.0, 1.0, 1.0]);
    fleet.set_fates(&[SILENT]);
    let options = uncoded(2).hedge(Some(0.5)).on_shortfall(OnShortfall::Redispatch);
    let run = layer(&mut fleet, options).run(&mut fleet);
    // Half of the results came after 10, so the rest is overdue after three times as long; one of the idle workers is known
    // to be fast.
    assert_eq!((run.hedged, run.redispatched, run.wait), (1, 0, ms(40)));
    assert_eq!((run.attempts[2].worker, run.attempts[2].since), (WorkerId(1), ms(30)));
    assert_eq!(run.completion, Completion::ExactAfterRedispatch);
}

#[test]
fn subtasks_of_the_dead_are_handed_out_again() {
    let mut fleet = at_paces(&[1.0; 6]);
    fleet.set_fates(&[CRASH, CRASH, CRASH, CRASH]);
    let options = plain(CodeKind::Crme, (4, 4), 6).on_shortfall(OnShortfall::Redispatch);
    let mut coded = layer(&mut fleet, options);
    // Four of six are needed and two workers are left: each of them computes two subtasks.
    let run = coded.run(&mut fleet);
    assert_eq!(run.completion, Completion::ExactAfterRedispatch, "{:?}", run.failure);
    assert!(run.redispatched >= 2 && run.wait == ms(80), "{run:?}");
    assert!(run.condition.unwrap() > 1.0);
    fleet.set_fates(&[]);
    assert_eq!(coded.run(&mut fleet).completion, Completion::Exact);
    // Otherwise the run fails at once.
    fleet.set_fates(&[CRASH, CRASH, CRASH]);
    let failed = layer(&mut fleet, plain(CodeKind::Crme, (4, 4), 6)).run(&mut fleet);
    assert_eq!((failed.completion, failed.wait), (Completion::Failed, Duration::ZERO));
    assert!(failed.failure.unwrap().contains("injected crash"));
}

#[test]
fn silence_ends_at_the_deadline_or_with_the_local_computation() {
    let rows = [
        (ms(100), OnShortfall::Fail, Completion::Failed, ms(1000)),
        (ms(100), OnShortfall::Redispatch, Completion::ExactLocally, ms(850)),
        // Local computation begins early enough, if possible.
        (ms(300), OnShortfall::Local, Completion::ExactLocally, ms(700)),
        (ms(800), OnShortfall::Local, Completion::Failed, ms(1000)),
    ];
    every_row(rows, |(local, on_shortfall, completion, total)| {
        let mut fleet = at_paces(&[1.0; 6]);
        fleet.set_fates(&[SILENT; 6]);
        let options = plain(CodeKind::Crme, (4, 4), 6).on_shortfall(on_shortfall);
        let costs = SimulatedCosts { local, ..SimulatedCosts::of(work()) };
        let mut layer = SimulatedLayer::prepare(&mut fleet, shape(), options, costs).unwrap();
        let run = layer.run(&mut fleet);
        assert_eq!((run.completion, run.total), (completion, total));
        assert!(run.used.is_empty());
        fleet.set_fates(&[]);
        assert_eq!(layer.run(&mut fleet).completion, Completion::Exact);
    });
}

/// Random faults of one run: every worker is delayed, a few are slow, crashed or silent.
fn any_fates(workers: usize, rng: &mut ChaCha8Rng) -> Vec<TaskFault> {
    let fate = |_| {
        let delay = Duration::from_secs_f64(-0.005 * (1.0 - rng.random::<f64>()).ln());
        let kind = rng.random_range(0..40);
        TaskFault { delay, slow: if kind < 4 { 5.0 } else { 1.0 }, crash: kind == 4, silent: kind == 5 }
    };
    (0..workers).map(fate).collect()
}

fn many_runs(workers: usize, partitions: (usize, usize), runs: usize) -> (Vec<SimulatedRun>, Vec<Usage>) {
    let link = Link { latency: Duration::from_micros(200), up_bytes_s: 1e9, down_bytes_s: 1e9 };
    let mut fleet = SimulatedFleet::remote(workers, link).unwrap();
    let options = LayerOptions { subtasks: None, partitions: Some(partitions), ..LayerOptions::default() }
        .deadline(ms(2000));
    let code = Code::new(options.code, partitions.0, partitions.1, workers).unwrap();
    let subtask = subtask_shape(&shape(), &code).unwrap();
    let costs = SimulatedCosts::of(SimulatedWork::of(&subtask, DType::F32, ms(2)));
    let mut layer = SimulatedLayer::prepare(&mut fleet, shape(), options, costs).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let run = |_| {
        fleet.set_fates(&any_fates(workers, &mut rng));
        layer.run(&mut fleet)
    };
    let runs = (0..runs).map(run).collect();
    (runs, fleet.usage())
}

#[test]
fn what_is_repeated_is_the_same() {
    every_row([(12, (4, 8), 60), (60, (8, 16), 20)], |(workers, partitions, runs)| {
        let (first, usage) = many_runs(workers, partitions, runs);
        let again = many_runs(workers, partitions, runs);
        assert!(first == again.0 && usage == again.1);
        assert!(first.iter().any(|run| run.hedged > 0));
        // Consistent accounts: every result that arrived was computed, and no worker worked longer than the elapsed time.
        for run in &first {
            assert!(run.attempts.iter().all(|a| a.arrived <= a.computed));
            assert!(run.wait <= run.total && run.used_sub_results * 4 >= run.used.len());
        }
        let computed: usize = usage.iter().map(|u| u.sub_results).sum();
        assert!(computed >= first.iter().map(|run| run.used_sub_results).sum());
        assert!(usage.iter().all(|u| u.computing <= u.busy));
    });
}

#[test]
fn a_thousand_workers_take_hardly_any_real_time() {
    let started = Instant::now();
    let (runs, _) = many_runs(1000, (40, 40), 200);
    let took = started.elapsed();
    assert!(runs.iter().all(|run| run.completion == Completion::Exact || run.redispatched + run.hedged > 0));
    assert!(runs.iter().all(|run| run.used.len() == 400 && run.condition.is_none()));
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn faster_workers_are_given_more() {
    let mut fleet = at_paces(&[1.0, 1.0, 4.0, 4.0]);
    let options = uncoded(10).on_shortfall(OnShortfall::Redispatch);
    let mut layer = layer(&mut fleet, options);
    let runs: Vec<Duration> = (0..40).map(|_| layer.run(&mut fleet).wait).collect();
    assert_eq!((runs[0], runs[39]), (ms(80), ms(40)), "{:?}", layer.assignment());
}

#[test]
fn what_cannot_be_simulated_is_refused() {
    assert!(SimulatedFleet::local(0, 2.0).is_err() && SimulatedFleet::local(2, 0.0).is_err());
    let worker = |host, pace| SimulatedWorker { name: "w".to_owned(), host, pace, link: Link::NONE };
    let host = SimulatedHost { name: "h".to_owned(), cores: 1.0 };
    every_row([worker(1, 1.0), worker(0, 0.0), worker(0, f64::NAN)], |bad| {
        assert!(SimulatedFleet::new(vec![host.clone()], vec![bad]).is_err());
    });
    let mut fleet = SimulatedFleet::local(6, 2.0).unwrap();
    let audited = plain(CodeKind::Crme, (4, 4), 6).audit(Audit::Detect);
    let costs = SimulatedCosts::of(work());
    let error = SimulatedLayer::prepare(&mut fleet, shape(), audited, costs).err().unwrap();
    assert!(error.to_string().contains("audit"), "{error}");
}

/// Workers like separate machines, each of which delivers a sub-result every `pace`.
fn paced(workers: usize, pace: Duration) -> Vec<Box<dyn Worker>> {
    let worker = |i| {
        intercept(CpuWorker::new(format!("w-{i}"), 1))
            .with_info(|own| (own.kind, own.host) = (WorkerKind::Remote, own.name.clone()))
            .on_execute(move |inner, task, emit| {
                let (mut begun, mut late) = (Instant::now(), false);
                inner.execute(task, &mut |index, values| {
                    late |= task.cancel.sleep(pace.saturating_sub(begun.elapsed()));
                    if !late {
                        emit(index, values);
                    }
                    begun = Instant::now();
                })?;
                if late { Err(Error::Cancelled) } else { Ok(()) }
            })
            .never_respawned()
            .boxed()
    };
    (0..workers).map(worker).collect()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

const PACE: Duration = ms(4);
const RUNS: usize = 30;

/// Median waits of the same runs under the same faults, real and simulated.
fn both(options: &LayerOptions, fates: &[Vec<TaskFault>]) -> [f64; 2] {
    let shape = shape();
    let numbers = |shape: &[usize]| ArrayD::from_shape_fn(IxDyn(shape), |at| (at[1] + at[2]) as f32 * 0.1);
    let (x, w) = (numbers(shape.input_shape().as_slice()), numbers(&[64, 2, 3, 3]));
    let workers = fates[0].len();
    let board = TaskFaults::new(workers);
    let pool = Pool::new(board.wrap(paced(workers, PACE))).unwrap();
    let real = CodedConv::builder(&pool, x.shape(), w.view()).options(options.clone()).prepare().unwrap();
    let mut fleet = at_paces(&vec![1.0; workers]);
    let work = SimulatedWork { sub_result: PACE, stops_within: Duration::ZERO, ..work() };
    let mut simulated =
        SimulatedLayer::prepare(&mut fleet, shape, options.clone(), SimulatedCosts::of(work)).unwrap();
    let mut waits = [Vec::new(), Vec::new()];
    for fates in fates {
        board.set(fates);
        fleet.set_fates(fates);
        let report = real.try_run(x.view()).unwrap().report;
        waits[0].push(Duration::from_secs_f64(report.wait_ms / 1e3));
        waits[1].push(simulated.run(&mut fleet).wait);
    }
    waits.map(median)
}

#[test]
fn real_workers_under_the_same_fates_take_the_same_time() {
    let delayed = TaskFault { delay: ms(12), ..HEALTHY };
    let slow = TaskFault { slow: 4.0, ..HEALTHY };
    // More workers are delayed than the code tolerates, so that the wait depends on the delays.
    let fates: Vec<Vec<TaskFault>> = (0..RUNS)
        .map(|run| (0..6).map(|w| [delayed, slow, delayed, CRASH, HEALTHY, HEALTHY][(w + run) % 6]).collect())
        .collect();
    let plain = plain(CodeKind::Crme, (4, 4), 6).on_shortfall(OnShortfall::Redispatch);
    let policies =
        LayerOptions { subtasks: Some(6), ..LayerOptions::default().partitions(4, 4).audit(Audit::Off) }
            .deadline(ms(1000));
    every_row([plain, policies], |options| {
        let agree = |[real, simulated]: [f64; 2]| (real / simulated - 1.0).abs() < 0.15;
        let first = both(&options, &fates);
        if !agree(first) {
            // The machine may have been busy; measures again.
            let again = both(&options, &fates);
            assert!(agree(again), "{first:?} {again:?}, hedge {:?}", options.policy.hedge);
        }
    });
}
