//! Where the time of a task goes, and the measured rates of links: what is slow is what takes the time.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use fcdcc::array::Values;
use fcdcc::cluster::{Cluster, Endpoint, LinkSpeed, WorkerServer};
use fcdcc::engine::WorkerReport;
use fcdcc::worker::{
    CancelToken, Fault, FilterKey, PhaseClock, PhaseTimes, SubtaskShape, Task, faulty, intercept,
};
use fcdcc::{Audit, ConvParams, ConvShape, CpuWorker, SubtaskId, Worker};
use fcdcc_test_support::every_row;
use fcdcc_test_support::fleet::{endpoint, master, pool_of, serving, workers};
use fcdcc_test_support::layer::{EXACT_F32, Layer, fail};
use fcdcc_test_support::normal;
use fcdcc_test_support::relay::{Carries, Link, Path, Relay};

const KEY: FilterKey = FilterKey { layer: 1, subtask: SubtaskId(0) };

/// Bytes a second of a slow link.
const SLOW_RATE: u32 = 2_000_000;
const SLOW: f64 = SLOW_RATE as f64;
/// Time by which a slow worker is late: about that of the slabs, or of the results, on a slow link. It really sleeps, since the
/// clocks of both sides of a real connection are what is tested.
const LATE: Duration = Duration::from_millis(500);

/// A subtask with 1 MiB of slabs and one result of 1 MiB.
fn subtask() -> (SubtaskShape, Values) {
    let conv = ConvShape::new(&[1, 4, 256, 256], &[4, 4, 1, 1], &ConvParams::default()).unwrap();
    let shape = SubtaskShape { conv, slabs: 1, banks: 1, plain: false };
    let slabs = Values::F32(normal(shape.upload_elems(), 1));
    (shape, slabs)
}

fn install(worker: &mut dyn Worker, shape: &SubtaskShape) {
    worker.install(KEY, shape, Values::F32(normal(shape.filter_elems(), 2))).unwrap();
}

/// Executes the task; returns its phases up to its last result.
fn phases(worker: &mut dyn Worker, slabs: &Values) -> PhaseTimes {
    let (clock, token) = (PhaseClock::default(), CancelToken::new());
    let started = Instant::now();
    let mut times = None;
    let task = Task { phases: Some(&clock), ..Task::new(KEY, slabs, &token) };
    worker.execute(task, &mut |_, _| times = Some(clock.so_far())).unwrap();
    let times = times.unwrap();
    assert!(times.total() <= started.elapsed(), "{times:?}");
    times
}

/// A worker that begins every task late.
fn late(name: &str) -> Box<dyn Worker> {
    let late = intercept(CpuWorker::new(name, 1)).on_execute(|inner, task, emit| {
        thread::sleep(LATE);
        inner.execute(task, emit)
    });
    late.boxed()
}

/// A link to a master, slow or without a limit from it (`up`) and to it (`down`), and where it listens.
fn link_to(master: &Endpoint, up: bool, down: bool) -> (Relay, Endpoint) {
    let path = |slow: bool| Path { rate: slow.then_some(SLOW_RATE), ..Path::default() };
    // The machine connects.
    let link = Link { seed: 0, to_target: path(down), to_client: path(up) };
    let relay = Relay::start(Carries::Streams, master.to_string().parse().unwrap(), link);
    let at = relay.address().to_string().parse().unwrap();
    (relay, at)
}

/// The machine `alpha` with these devices behind a link that is slow to it (`up`) or from it (`down`).
fn alpha(devices: Vec<Box<dyn Worker>>, up: bool, down: bool) -> (Cluster, Relay, WorkerServer) {
    let at = endpoint();
    let cluster = master(&at);
    let (link, there) = link_to(&at, up, down);
    let server = WorkerServer::start(devices, &serving("alpha", &there)).unwrap();
    (cluster, link, server)
}

fn rates(cluster: &Cluster) -> LinkSpeed {
    cluster.link_speeds()["alpha"]
}

/// Whether a rate is that of a slow link. A busy machine makes the link slower.
fn is_slow(rate: Option<f64>) -> bool {
    rate.is_some_and(|rate| rate > SLOW / 2.5 && rate < SLOW * 1.3)
}

/// Whether a rate is far from that of a slow link.
fn is_fast(rate: Option<f64>) -> bool {
    rate.is_some_and(|rate| rate > SLOW * 3.0)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum SlowPart {
    Up,
    Device,
    /// A wrapper around the remote worker, on the side of the master.
    Wrapper,
    Down,
}

#[test]
fn the_phase_of_what_is_slow_takes_the_time() {
    every_row([SlowPart::Up, SlowPart::Device, SlowPart::Wrapper, SlowPart::Down], |slow| {
        let device = if slow == SlowPart::Device { late("late") } else { Box::new(CpuWorker::new("cpu", 1)) };
        let (cluster, _link, _server) = alpha(vec![device], slow == SlowPart::Up, slow == SlowPart::Down);
        let mut worker = workers(&cluster, 1).remove(0);
        if slow == SlowPart::Wrapper {
            let wrapper = intercept(worker).on_execute(|inner, task, emit| {
                inner.execute(task, &mut |index, values| {
                    thread::sleep(LATE);
                    emit(index, values);
                })
            });
            worker = wrapper.boxed();
        }
        let (shape, slabs) = subtask();
        install(worker.as_mut(), &shape);
        // The least of a few: this machine may be busy, and lets something else take time.
        let tasks: Vec<PhaseTimes> = (0..4).map(|_| phases(worker.as_mut(), &slabs)).collect();
        let least = |part: fn(&PhaseTimes) -> Duration| tasks.iter().map(part).min().unwrap();
        let of = [least(|t| t.send), least(|t| t.compute), least(|t| t.receive)];
        let place = match slow {
            SlowPart::Up => 0,
            SlowPart::Device | SlowPart::Wrapper => 1,
            SlowPart::Down => 2,
        };
        let least_time = if slow == SlowPart::Up || slow == SlowPart::Down {
            Duration::from_secs_f64(slabs.size_bytes() as f64 / SLOW)
        } else {
            LATE
        };
        assert!(of[place] > least_time * 4 / 5, "{slow:?}: {tasks:?}");
        for other in [0, 1, 2].into_iter().filter(|other| *other != place) {
            assert!(of[other] < of[place] / 3, "{slow:?}: {tasks:?}");
        }
        assert!(least(|t| t.queue) < LATE / 3, "{slow:?}: {tasks:?}");
        let measured = rates(&cluster);
        for (part, rate) in
            [(SlowPart::Up, measured.up_bytes_per_s), (SlowPart::Down, measured.down_bytes_per_s)]
        {
            let right = if slow == part { is_slow(rate) } else { is_fast(rate) };
            assert!(right, "{slow:?}: {measured:?}");
        }
    });
}

#[test]
fn a_task_that_waits_for_a_device_is_in_the_queue() {
    let (cluster, _link, _server) = alpha(vec![late("late")], false, false);
    // Two pools may use one device.
    let mut both = [workers(&cluster, 1).remove(0), workers(&cluster, 1).remove(0)];
    let (shape, slabs) = subtask();
    for worker in &mut both {
        install(worker.as_mut(), &shape);
    }
    let start = Barrier::new(2);
    let times: Vec<PhaseTimes> = thread::scope(|scope| {
        let threads = both.each_mut().map(|worker| {
            let (start, slabs) = (&start, &slabs);
            scope.spawn(move || {
                start.wait();
                phases(worker.as_mut(), slabs)
            })
        });
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(times.iter().all(|times| times.compute > LATE * 4 / 5), "{times:?}");
    let queued = times.iter().map(|times| times.queue).max().unwrap();
    assert!(queued > LATE / 2, "{times:?}");
}

#[test]
fn transfers_that_share_a_link_do_not_make_its_rate_smaller() {
    const DEVICES: usize = 4;
    let (cluster, _link, _server) = alpha(CpuWorker::fleet(DEVICES), true, true);
    let (shape, slabs) = subtask();
    let mut devices = workers(&cluster, DEVICES);
    for worker in &mut devices {
        install(worker.as_mut(), &shape);
    }
    let sends: Vec<Duration> = thread::scope(|scope| {
        let slabs = &slabs;
        let threads: Vec<_> = devices
            .iter_mut()
            .map(|worker| scope.spawn(move || [(); 2].map(|()| phases(worker.as_mut(), slabs).send)))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let measured = rates(&cluster);
    assert!(is_slow(measured.up_bytes_per_s) && is_slow(measured.down_bytes_per_s), "{measured:?}");
    // Negative control: the slowest transfer by itself.
    let slowest = sends.iter().max().unwrap();
    let alone = slabs.size_bytes() as f64 / slowest.as_secs_f64();
    assert!(!is_slow(Some(alone)), "{alone}: {sends:?}");
}

#[test]
fn a_report_says_of_each_worker_what_its_subtask_waited_for() {
    // Which machine has the slow link, and which the slow device.
    every_row([["alpha", "beta"], ["beta", "alpha"]], |[slow_link, slow_device]| {
        let at = endpoint();
        let cluster = master(&at);
        let (_link, there) = link_to(&at, true, false);
        let _far = WorkerServer::start(CpuWorker::fleet(1), &serving(slow_link, &there)).unwrap();
        let _near = WorkerServer::start(vec![late("late")], &serving(slow_device, &at)).unwrap();
        let mut all = workers(&cluster, 2);
        all.push(Box::new(CpuWorker::new("here", 1)));
        all.push(faulty(CpuWorker::new("slow", 1), Fault::Slow(2.0), 0).boxed());
        let hosts: Vec<String> = all.iter().map(|worker| worker.info().host).collect();
        let pool = pool_of(all);
        let layer = Layer::<f32>::new(&[1, 16, 128, 128], &[16, 16, 3, 3], ConvParams::default());
        // All four are needed.
        let options = fail(2, 8).audit(Audit::Off).hedge(None);
        let prepared = layer.prepare(&pool, options).unwrap();
        let run = prepared.run(layer.input.view()).unwrap();
        assert!(layer.error(&run.output) < EXACT_F32);
        let slabs = prepared.subtask().upload_elems() as f64 * 4.0;
        let rows = &run.report.workers;
        assert_eq!(rows.len(), 4, "{:#?}", run.report);
        for row in rows {
            let [queue, send, compute, receive] = all_phases(row);
            let total = queue + send + compute + receive;
            let latency = row.latency_ms.unwrap();
            assert!((total - latency).abs() < 1e-3, "{row:?}");
            let host = pool.workers().position(|info| info.name == row.worker).map(|at| hosts[at].as_str());
            if host == Some(slow_link) {
                assert!(send > 0.8e3 * slabs / SLOW, "{slabs} bytes: {row:?}");
                assert!(compute < send, "{row:?}");
            } else if host == Some(slow_device) {
                assert!(compute > 0.8 * LATE.as_secs_f64() * 1e3, "{row:?}");
                assert!(send < compute, "{row:?}");
            } else {
                assert!(send == 0.0 && receive == 0.0 && compute > 0.0, "{row:?}");
            }
        }
    });
}

/// Milliseconds in the queue, of sending, computing and receiving.
fn all_phases(row: &WorkerReport) -> [f64; 4] {
    [row.queue_ms, row.send_ms, row.compute_ms, row.receive_ms].map(Option::unwrap)
}
