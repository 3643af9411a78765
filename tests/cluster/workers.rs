//! Remote workers, on loopback and in this process: the same results, filters sent once, cancellation, several masters,
//! memory, disk cache, lost devices.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fcdcc::array::{DType, Element, Values};
use fcdcc::cluster::{Seats, WorkerServer, survey};
use fcdcc::conv::reference;
use fcdcc::scheduler::FilterRefusals;
use fcdcc::testing::check_worker;
use fcdcc::worker::{
    CancelToken, Fault, FilterKey, Order, Probe, SubtaskShape, Task, WorkerKind, faulty, intercept,
};
use fcdcc::{Completion, ConvParams, ConvShape, CpuWorker, Error, Pool, SubtaskId, Worker, WorkerId};
use fcdcc_test_support::fleet::{
    self, endpoint, master, master_to, pool_of, server, serving, until, usable, workers,
};
use fcdcc_test_support::layer::{self, EXACT_F32, Layer, fail, options};
use fcdcc_test_support::normal;
use ndarray::ArrayD;

/// One device of one machine, for direct calls of the trait.
fn one_worker() -> (WorkerServer, Box<dyn Worker>) {
    let at = endpoint();
    let cluster = master(&at);
    let server = server("alpha", &at, 1);
    let worker = workers(&cluster, 1).remove(0);
    (server, worker)
}

fn key(layer: u64) -> FilterKey {
    FilterKey { layer, subtask: SubtaskId(0) }
}

fn wrap(dtype: DType, values: &[f64]) -> Values {
    match dtype {
        DType::F32 => Values::F32(values.iter().map(|v| f32::from_f64(*v)).collect()),
        DType::F64 => Values::F64(values.to_vec()),
    }
}

#[test]
fn every_kind_of_subtask_gives_what_the_same_worker_gives_here() {
    let (_server, mut remote) = one_worker();
    let mut local = CpuWorker::new("local", 1);
    assert_eq!(remote.info().kind, WorkerKind::Remote);
    assert_eq!((remote.info().host.as_str(), remote.info().device.as_str()), ("alpha", "1 thread"));
    let plain = ConvParams::default;
    let cases = [
        (vec![1, 3, 9, 8], vec![4, 3, 3, 3], plain(), 2, 2),
        (vec![2, 4, 17], vec![6, 2, 5], plain().groups(2).stride([2]), 1, 2),
        (vec![1, 2, 5, 6, 7], vec![3, 2, 2, 3, 2], plain().dilation([1, 2, 1]), 2, 1),
        // Slabs of 2 MiB and results of 1.6 MiB are sent in chunks, filters of 36 kB in one message.
        (vec![1, 32, 90, 91], vec![32, 32, 3, 3], plain(), 2, 1),
    ];
    for (at, (input, weight, params, slabs, banks)) in cases.into_iter().enumerate() {
        let shape = SubtaskShape {
            conv: ConvShape::new(&input, &weight, &params).unwrap(),
            slabs,
            banks,
            plain: false,
        };
        for dtype in [DType::F32, DType::F64] {
            let (x, w): (Vec<f64>, Vec<f64>) =
                (normal(shape.upload_elems(), 1), normal(shape.filter_elems(), 2));
            let all: Vec<usize> = (0..shape.sub_results()).rev().collect();
            let compute = |worker: &mut dyn Worker, order: Order<'_>| {
                worker.install(key(at as u64), &shape, wrap(dtype, &w)).unwrap();
                let mut results = Vec::new();
                let mut emit = |index, values| results.push((index, values));
                let token = CancelToken::new();
                worker
                    .execute(Task::new(key(at as u64), &wrap(dtype, &x), &token).with_order(order), &mut emit)
                    .unwrap();
                results
            };
            for order in [Order::All, Order::Each(&all), Order::Each(&all[..1])] {
                let (there, here) = (compute(remote.as_mut(), order), compute(&mut local, order));
                assert_eq!(there, here, "case {at}, {dtype}, {order:?}");
                assert!(!there.is_empty());
            }
        }
        // Negative control: a result that is off by one bit is not equal.
        assert_ne!(wrap(DType::F32, &[1.0]), Values::F32(vec![f32::from_bits(1.0f32.to_bits() + 1)]));
    }
    for dtype in [DType::F32, DType::F64] {
        Probe::new(dtype).check(remote.as_mut(), &CancelToken::new()).unwrap();
    }
}

#[test]
fn a_remote_worker_keeps_the_contract_and_its_device() {
    let at = endpoint();
    let cluster = master(&at);
    let server = server("alpha", &at, 1);
    let findings = check_worker(fleet::SOON, || Ok(workers(&cluster, 1).remove(0)));
    assert!(findings.is_empty(), "{findings:#?}");
    assert_eq!(server.info().devices[0].lost, None);
}

#[test]
fn filters_are_sent_once_also_to_a_server_that_was_restarted() {
    let folder = tempfile::tempdir().unwrap();
    let at = endpoint();
    let cluster = master(&at);
    let cached = || {
        let cache = Some((folder.path().to_owned(), 1 << 30));
        let options = fcdcc::cluster::ServeOptions { cache, ..serving("alpha", &at) };
        WorkerServer::start(CpuWorker::fleet(6), &options).unwrap()
    };
    let first = cached();
    let pool = pool_of(workers(&cluster, 6));
    // Six times half of 3.5 MB of filters.
    let layer = Layer::<f32>::without_truth(&[1, 256, 6, 6], &[384, 256, 3, 3], ConvParams::default());
    let size = 4 * layer.weight.len() as u64;
    let prepared = layer.prepare(&pool, options(2, 8)).unwrap();
    let output = prepared.run(layer.input.view()).unwrap().output;
    let sent = first.traffic().received_bytes;
    assert!(sent > size, "{sent} of {size}");
    // The same layer again: only slabs are sent. The same holds for a layer that was dropped meanwhile.
    let again = layer.prepare(&pool, options(2, 8)).unwrap();
    drop((prepared, again));
    let third = layer.prepare(&pool, options(2, 8)).unwrap();
    assert!(
        first.traffic().received_bytes - sent < size / 4,
        "{} after {sent}",
        first.traffic().received_bytes
    );
    until("the cache is written", || std::fs::read_dir(folder.path()).unwrap().count() >= 6);
    drop(first);
    until("the loss is seen", || {
        // The result does not matter: a run must notice the loss.
        let _ = third.run(layer.input.view());
        usable(&pool) == 0
    });
    let second = cached();
    until("the workers are back", || usable(&pool) == 6);
    let run = third.run(layer.input.view()).unwrap();
    assert!(
        fcdcc_test_support::relative_l2(run.output.as_slice().unwrap(), output.as_slice().unwrap())
            < EXACT_F32
    );
    let sent = second.traffic().received_bytes;
    assert!(sent < size / 4, "{sent} bytes after a restart, of {size}");
    assert_eq!(second.traffic().cache_failures, 0);
}

#[test]
fn a_disk_that_takes_nothing_costs_the_cache_and_no_result() {
    let folder = tempfile::tempdir().unwrap();
    let at = endpoint();
    let cluster = master(&at);
    // Too small for any filter.
    let cache = Some((folder.path().join("filters"), 10));
    let options = fcdcc::cluster::ServeOptions { cache, ..serving("alpha", &at) };
    let server = WorkerServer::start(CpuWorker::fleet(6), &options).unwrap();
    let pool = pool_of(workers(&cluster, 6));
    let layer = layer::small();
    let run = layer.prepare(&pool, fail(4, 4)).unwrap().run(layer.input.view()).unwrap();
    assert!(layer.error(&run.output) < EXACT_F32);
    until("the failures are counted", || server.traffic().cache_failures >= 6);
}

/// A worker that sleeps before each sub-result, or until it is cancelled, and counts.
fn slow(pause: Duration, computed: &Arc<AtomicUsize>) -> Box<dyn Worker> {
    let computed = Arc::clone(computed);
    let slow = intercept(CpuWorker::new("slow", 1)).on_execute(move |inner, task, emit| {
        // Over the network a probe has an ordinary key.
        if task.slabs.len() < 1000 {
            return inner.execute(task, emit);
        }
        for index in 0..4 {
            if task.cancel.sleep(pause) {
                return Err(Error::Cancelled);
            }
            computed.fetch_add(1, Ordering::SeqCst);
            inner.execute(task.with_order(Order::Each(&[index])), emit)?;
        }
        Ok(())
    });
    slow.never_respawned().boxed()
}

#[test]
fn a_cancellation_reaches_the_other_side_at_once() {
    let at = endpoint();
    let cluster = master(&at);
    let computed = Arc::new(AtomicUsize::new(0));
    let slow = slow(Duration::from_secs(20), &computed);
    let server = WorkerServer::start(vec![slow], &serving("alpha", &at)).unwrap();
    let mut remote = workers(&cluster, 1).remove(0);
    let conv = ConvShape::new(&[1, 2, 30, 30], &[2, 2, 3, 3], &ConvParams::default()).unwrap();
    let shape = SubtaskShape { conv, slabs: 2, banks: 2, plain: false };
    let banks = Values::F32(vec![1.0; shape.filter_elems()]);
    remote.install(key(1), &shape, banks).unwrap();
    let token = CancelToken::new();
    let canceller = token.clone();
    let load = || server.info().devices[0].load;
    let (sender, went) = std::sync::mpsc::channel();
    let slabs = Values::F32(vec![1.0; shape.upload_elems()]);
    let thread = std::thread::spawn(move || {
        let result = remote.execute(Task::new(key(1), &slabs, &token), &mut |_, _| {});
        sender.send((Instant::now(), result)).unwrap();
        remote
    });
    until("the task is there", || load() == 1);
    let cancelled = Instant::now();
    canceller.cancel();
    let (returned, result) = went.recv_timeout(fleet::SOON).unwrap();
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert!(returned - cancelled < Duration::from_secs(1), "{:?}", returned - cancelled);
    until("the device is idle", || load() == 0);
    assert!(cancelled.elapsed() < Duration::from_secs(5));
    assert_eq!(computed.load(Ordering::SeqCst), 0);
    assert_eq!(server.info().devices[0].cancelled, 1);
    // The worker is ready for the next task.
    let mut remote = thread.join().unwrap();
    Probe::new(DType::F32).check(remote.as_mut(), &CancelToken::new()).unwrap();
}

#[test]
fn a_task_that_outlives_its_requests_is_answered() {
    let at = endpoint();
    let cluster = master(&at);
    let computed = Arc::new(AtomicUsize::new(0));
    // A task that lasts longer than one request: its parts arrive under several requests.
    let slow = slow(Duration::from_millis(2300), &computed);
    let _server = WorkerServer::start(vec![slow], &serving("alpha", &at)).unwrap();
    let mut remote = workers(&cluster, 1).remove(0);
    // Results that are sent inline, and others that are fetched.
    for (layer, size) in [(1, 30), (2, 150)] {
        let conv = ConvShape::new(&[1, 2, size, size], &[2, 2, 3, 3], &ConvParams::default()).unwrap();
        let shape = SubtaskShape { conv, slabs: 2, banks: 2, plain: false };
        let (banks, slabs) = (normal(shape.filter_elems(), layer), normal(shape.upload_elems(), 7));
        let (banks, slabs) = (wrap(DType::F32, &banks), wrap(DType::F32, &slabs));
        let compute = |worker: &mut dyn Worker| {
            worker.install(key(layer), &shape, banks.clone()).unwrap();
            let mut results = Vec::new();
            let mut emit = |index, values| results.push((index, values));
            worker.execute(Task::new(key(layer), &slabs, &CancelToken::new()), &mut emit).unwrap();
            results
        };
        let started = Instant::now();
        let there = compute(remote.as_mut());
        assert!(started.elapsed() > Duration::from_secs(9), "it was not slow: {:?}", started.elapsed());
        assert_eq!(there, compute(&mut CpuWorker::new("local", 1)));
        assert_eq!(there.len(), 4);
    }
    assert_eq!(computed.load(Ordering::SeqCst), 8, "nothing was computed twice");
}

#[test]
fn masters_share_machines_without_mixing_their_layers() {
    let at = endpoint();
    let listening = fcdcc::cluster::ServeOptions {
        listen: vec![at.clone()],
        connect: Vec::new(),
        ..serving("alpha", &at)
    };
    let server = WorkerServer::start(CpuWorker::fleet(6), &listening).unwrap();
    let run = |seed: usize, rounds: usize| {
        let pool = pool_of(workers(&master_to(&at), 6));
        // Equal shapes with different filters: a confusion of keys would be noticed.
        let mut layer = Layer::<f32>::without_truth(&[1, 4, 14, 11], &[8, 4, 3, 3], ConvParams::default());
        layer.weight.mapv_inplace(|v| v * seed as f32);
        let (x, w) = (layer.input.as_slice().unwrap(), layer.weight.as_slice().unwrap());
        layer.truth = reference(&layer.shape(), x, w, Some(&layer.bias)).unwrap();
        let prepared = layer.prepare(&pool, options(4, 4)).unwrap();
        for _ in 0..rounds {
            let run = prepared.run(layer.input.view()).unwrap();
            assert!(layer.error(&run.output) < EXACT_F32, "{:#?}", run.report);
        }
    };
    std::thread::scope(|scope| {
        for seed in 1..=3 {
            // The first master leaves early.
            scope.spawn(move || run(seed, if seed == 1 { 5 } else { 60 }));
        }
    });
    until("all have left", || server.info().masters == 0);
    // Filters of disconnected masters may be evicted, and are.
    assert!(server.info().devices.iter().all(|d| d.load == 0));
}

#[test]
fn memory_is_bounded_and_what_nobody_needs_makes_room() {
    let at = endpoint();
    let cluster = master(&at);
    let small = fcdcc::cluster::ServeOptions { memory_bytes: 1_200_000, ..serving("alpha", &at) };
    let server = WorkerServer::start(CpuWorker::fleet(6), &small).unwrap();
    let pool = pool_of(workers(&cluster, 6));
    // Six times 148 kB of filters.
    let layer = |seed: f32| {
        let mut layer = Layer::<f32>::without_truth(&[1, 64, 6, 6], &[256, 64, 3, 3], ConvParams::default());
        // The seed is added: multiplying by powers of two would give equal filters.
        layer.weight.mapv_inplace(|v| v + 0.1 * seed);
        layer
    };
    for seed in 1..=4 {
        let layer = layer(seed as f32);
        let prepared = layer.prepare(&pool, fail(1, 8)).unwrap();
        let run = prepared.run(layer.input.view()).unwrap();
        assert_eq!(run.report.completion, Completion::Exact);
        assert!(server.info().memory_used_bytes <= 1_200_000);
    }
    // Both do not fit: the second is refused with the numbers, and computed locally if that is allowed.
    let (first, second) = (layer(1.0), layer(2.0));
    let held = first.prepare(&pool, fail(1, 8)).unwrap();
    held.run(first.input.view()).unwrap();
    let (listed, refusals) = (pool.refusals(), server.traffic().memory_refusals);
    assert_eq!(listed, []);
    let squeezed = second.prepare(&pool, options(1, 8)).unwrap();
    let told = pool.refusals();
    let of_memory = |row: &FilterRefusals| row.layers == 1 && row.cause.contains("raise the worker's memory");
    assert!(!told.is_empty() && told.iter().all(of_memory), "{told:?}");
    assert!(server.traffic().memory_refusals >= refusals + told.len() as u64);
    let run = squeezed.run(second.input.view()).unwrap();
    assert_eq!(run.report.completion, Completion::ExactLocally, "{:#?}", run.report);
    drop(squeezed);
    assert_eq!(pool.refusals(), [], "of a layer that no longer exists");
    let refused = second.prepare(&pool, fail(1, 8)).unwrap().run(second.input.view());
    assert!(matches!(refused, Err(Error::Shortfall { .. })), "{refused:?}");
    assert!(held.run(first.input.view()).is_ok(), "the first layer is untouched");
}

#[test]
fn a_device_that_is_lost_there_comes_back_here() {
    let at = endpoint();
    let cluster = master(&at);
    let mut devices = CpuWorker::fleet(5);
    devices.push(faulty(CpuWorker::new("fragile", 1), Fault::DeviceLost, 1).boxed());
    let server = WorkerServer::start(devices, &serving("alpha", &at)).unwrap();
    let pool = pool_of(workers(&cluster, 6));
    let layer = layer::small();
    let prepared = layer.prepare(&pool, options(4, 4)).unwrap();
    let run = |what: &str| {
        let run = prepared.run(layer.input.view()).unwrap();
        assert!(layer.error(&run.output) < EXACT_F32, "{what}");
    };
    run("its device may be lost in the middle");
    until("it was lost and is back", || {
        run("meanwhile");
        let device = &server.info().devices[5];
        device.failed >= 1 && device.lost.is_none() && usable(&pool) == 6
    });
    until("it works again", || {
        run("afterwards");
        server.info().devices[5].done > 0
    });
    server.check_ready(fleet::SOON).unwrap();
}

#[test]
fn machines_join_late_leave_and_take_each_others_seats() {
    let at = endpoint();
    let cluster = master(&at);
    let seats = [
        Seats { machine: Some("alpha".to_owned()), count: Some(3), ..Seats::default() },
        Seats { count: Some(3), ..Seats::default() },
    ];
    let pool = pool_of(cluster.workers(&seats, Duration::ZERO));
    assert_eq!(usable(&pool), 0);
    let cause = pool.lost(WorkerId(0)).unwrap();
    assert!(cause.contains("alpha has not joined"), "{cause}");
    let layer = layer::small();
    let prepared = layer.prepare(&pool, options(4, 4)).unwrap();
    let alone = prepared.run(layer.input.view()).unwrap();
    assert_eq!(alone.report.completion, Completion::ExactLocally);
    // Other machines do not get alpha's seats.
    let beta = server("beta", &at, 6);
    until("beta sits down", || usable(&pool) == 3);
    let _alpha = server("alpha", &at, 3);
    until("alpha sits down", || usable(&pool) == 6);
    until("they work", || {
        let run = prepared.run(layer.input.view()).unwrap();
        assert!(layer.error(&run.output) < EXACT_F32);
        run.report.completion == Completion::Exact
    });
    let hosts: Vec<String> = pool.workers().map(|info| info.host.clone()).collect();
    assert_eq!(hosts, ["alpha", "alpha", "alpha", "beta", "beta", "beta"]);
    assert_eq!(survey(&at, "default", &fcdcc::cluster::Security::default(), fleet::SOON).unwrap().len(), 2);
    assert!(survey(&at, "other", &fcdcc::cluster::Security::default(), fleet::SOON).unwrap().is_empty());
    drop(beta);
    let _gamma = server("gamma", &at, 3);
    until("gamma has taken beta's seats", || {
        let run = prepared.run(layer.input.view()).unwrap();
        assert!(layer.error(&run.output) < EXACT_F32);
        pool.workers().filter(|info| info.host == "gamma").count() == 3 && usable(&pool) == 6
    });
}

#[test]
fn local_and_remote_workers_mix() {
    let at = endpoint();
    let cluster = master(&at);
    let _server = server("alpha", &at, 3);
    let mut mixed = workers(&cluster, 3);
    mixed.extend(CpuWorker::fleet(3));
    let pool = Pool::new(mixed).unwrap();
    let layer = layer::small();
    let run = layer.prepare(&pool, fail(4, 4)).unwrap().run(layer.input.view()).unwrap();
    assert!(layer.error(&run.output) < EXACT_F32);
    assert_eq!(run.report.backend, "mixed");
    let wrong = ArrayD::<f32>::zeros(layer.input.shape());
    assert!(
        layer.error(&run.output) < layer.error(&wrong.into_shape_with_order(layer.input.shape()).unwrap())
    );
}

#[test]
fn a_master_that_is_restarted_finds_its_filters_where_it_left_them() {
    let at = endpoint();
    let first = master(&at);
    let server = server("alpha", &at, 6);
    // Six times a quarter of 884 kB of filters.
    let layer = Layer::<f32>::without_truth(&[1, 96, 6, 6], &[256, 96, 3, 3], ConvParams::default());
    let run = |cluster: &fcdcc::cluster::Cluster| {
        let pool = pool_of(workers(cluster, 6));
        layer.prepare(&pool, fail(2, 8)).unwrap().run(layer.input.view()).unwrap().output
    };
    let output = run(&first);
    drop(first);
    until("the master has left", || server.info().masters == 0);
    let sent = server.traffic().received_bytes;
    let second = master(&at);
    let (again, before) = (run(&second), output);
    assert!(
        fcdcc_test_support::relative_l2(again.as_slice().unwrap(), before.as_slice().unwrap()) < EXACT_F32
    );
    let again = server.traffic().received_bytes - sent;
    assert!(again < 4 * layer.weight.len() as u64 / 4, "{again} bytes after {sent}");
}

#[test]
fn bad_options_are_refused_before_anything_listens() {
    let at = endpoint();
    let refused = |change: fn(&mut fcdcc::cluster::ServeOptions)| {
        let mut options = serving("alpha", &at);
        change(&mut options);
        let error = WorkerServer::start(CpuWorker::fleet(1), &options).err().unwrap();
        assert_eq!(error.kind(), fcdcc::ErrorKind::BadInput, "{error}");
        error.to_string()
    };
    assert!(refused(|o| o.name = "a/b".to_owned()).contains("letters"));
    assert!(refused(|o| o.cluster = String::new()).contains("letters"));
    assert!(refused(|o| o.connect.clear()).contains("listen on one"));
    assert!(refused(|o| o.listen = vec!["0.0.0.0:0".parse().unwrap()]).contains("mutual TLS"));
    assert!(refused(|o| o.cache = Some(("/proc/nowhere".into(), 1))).contains("/proc/nowhere"));
    assert!(WorkerServer::start(Vec::new(), &serving("alpha", &at)).is_err());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string().parse().unwrap();
    let options = fcdcc::cluster::ClusterOptions { listen: vec![address], ..Default::default() };
    let error = fcdcc::cluster::Cluster::open(&options).err().unwrap().to_string();
    assert!(error.contains("port free"), "{error}");
    let nobody =
        survey(&endpoint(), "default", &fcdcc::cluster::Security::default(), Duration::from_millis(300));
    assert!(nobody.unwrap_err().to_string().contains("is the other side running"));
}
