//! Slabs that tasks share are sent once to each machine, whatever becomes of the tasks and of the machine's memory; results
//! come one by one.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded};
use fcdcc::array::{Values, WireFormat};
use fcdcc::cluster::wire::{Answer, HostInfo, Progress, Refusal, Request, pack};
use fcdcc::cluster::{ServeOptions, WorkerServer};
use fcdcc::worker::{CancelToken, FilterKey, Order, SharedSlabs, SubtaskShape, Task, intercept};
use fcdcc::{Audit, CodedConv, ConvParams, ConvShape, CpuWorker, Error, Pool, SubtaskId, Worker};
use fcdcc_test_support::fleet::{SOON, endpoint, master, pool_of, server, serving, until, usable, workers};
use fcdcc_test_support::layer::{EXACT_F32, Layer, fail, options};
use fcdcc_test_support::normal;

use super::garbage::{answer, impostor, info};

const KEY: FilterKey = FilterKey { layer: 1, subtask: SubtaskId(0) };

/// A subtask whose slabs have `side * side` elements, and its slabs.
fn subtask(side: usize) -> (SubtaskShape, Values) {
    let conv =
        ConvShape::new(&[1, 1, side, side], &[1, 1, 1, 1], &ConvParams::default().stride([8])).unwrap();
    (SubtaskShape { conv, slabs: 1, banks: 1, plain: false }, Values::F32(normal(side * side, 3)))
}

/// Installs a filter of one element, which is `scale`.
fn install(worker: &mut dyn Worker, shape: &SubtaskShape, scale: f32) {
    worker.install(KEY, shape, Values::F32(vec![scale])).unwrap();
}

fn results(worker: &mut dyn Worker, task: Task<'_>) -> Result<Vec<(usize, Values)>, Error> {
    let mut results = Vec::new();
    worker.execute(task, &mut |index, values| results.push((index, values)))?;
    Ok(results)
}

/// The result of the subtask on this machine.
fn expected(shape: &SubtaskShape, slabs: &Values, scale: f32) -> Vec<(usize, Values)> {
    let mut local = CpuWorker::new("local", 1);
    install(&mut local, shape, scale);
    results(&mut local, Task::new(KEY, slabs, &CancelToken::new())).unwrap()
}

fn received(server: &WorkerServer) -> u64 {
    server.traffic().received_bytes
}

#[test]
fn a_run_sends_shared_slabs_once_to_each_machine_and_others_once_to_each_task() {
    let at = endpoint();
    let cluster = master(&at);
    let machines = [server("alpha", &at, 3), server("beta", &at, 3)];
    let layer = Layer::<f32>::new(&[1, 8, 40, 40], &[32, 8, 3, 3], ConvParams::default());
    let sent = || machines.each_ref().map(received);
    let run = |pool: &Pool, k_a: usize, k_b: usize| {
        let prepared = layer.prepare(pool, fail(k_a, k_b).audit(Audit::Off).hedge(None)).unwrap();
        let slabs = 4 * prepared.subtask().upload_elems() as u64;
        let mut each = [0; 2];
        for _ in 0..5 {
            let before = sent();
            let run = prepared.run(layer.input.view()).unwrap();
            assert!(layer.error(&run.output) < EXACT_F32, "{:#?}", run.report);
            assert_eq!(run.report.bytes_up as u64, 6 * slabs, "the report counts every task");
            assert!(pool.wait_idle(SOON));
            let after = sent();
            each = [after[0] - before[0], after[1] - before[1]];
        }
        each.map(|bytes| bytes as f64 / slabs as f64)
    };
    let pool = pool_of(workers(&cluster, 6));
    // The last of five runs, in which no worker gave up before it had sent anything.
    assert_eq!(run(&pool, 1, 8), [1.0, 1.0]);
    // Negative controls: slabs that tasks do not share, and workers that are not told that they share them.
    let apart = run(&pool, 4, 4);
    assert!(apart.iter().all(|times| *times > 2.0), "{apart:?}");
    let unaware = workers(&cluster, 6).into_iter().map(|worker| {
        intercept(worker)
            .on_execute(|inner, task, emit| inner.execute(Task { shared: None, ..task }, emit))
            .boxed()
    });
    let unaware = run(&pool_of(unaware.collect()), 1, 8);
    assert!(unaware.iter().sum::<f64>() > 3.0, "{unaware:?}");
    // Nothing but filters is left of the runs.
    let used = |server: &WorkerServer| {
        let about = server.info();
        about.memory_used_bytes - about.devices.iter().map(|device| device.filter_bytes).sum::<u64>()
    };
    until("the slabs are dropped", || machines.iter().all(|server| used(server) == 0));
}

#[test]
fn devices_that_need_the_same_slabs_at_once_send_them_once() {
    let at = endpoint();
    let cluster = master(&at);
    let server = server("alpha", &at, 4);
    let mut devices = workers(&cluster, 4);
    // In one message, and in chunks.
    for side in [96, 1024] {
        let (shape, slabs) = subtask(side);
        for (scale, worker) in devices.iter_mut().enumerate() {
            install(worker.as_mut(), &shape, scale as f32);
        }
        let (shared, token, start) = (SharedSlabs::new(), CancelToken::new(), Barrier::new(4));
        let before = received(&server);
        std::thread::scope(|scope| {
            for (scale, worker) in devices.iter_mut().enumerate() {
                let (shape, slabs, shared, token, start) = (&shape, &slabs, &shared, &token, &start);
                scope.spawn(move || {
                    start.wait();
                    for _ in 0..3 {
                        let task = Task { shared: Some(shared), ..Task::new(KEY, slabs, token) };
                        let got = results(worker.as_mut(), task).unwrap();
                        assert_eq!(got, expected(shape, slabs, scale as f32));
                    }
                });
            }
        });
        assert_eq!(received(&server) - before, slabs.size_bytes() as u64);
        drop(shared);
        until("the slabs are dropped", || server.info().memory_used_bytes < 1000);
        // Other slabs of the same size have another identity, and are sent.
        let (other, before) = (SharedSlabs::new(), received(&server));
        let Values::F32(values) = &slabs else { unreachable!() };
        let changed = Values::F32(values.iter().map(|v| v + 1.0).collect());
        let task = Task { shared: Some(&other), ..Task::new(KEY, &changed, &token) };
        assert_eq!(results(devices[1].as_mut(), task).unwrap(), expected(&shape, &changed, 1.0));
        assert_eq!(received(&server) - before, slabs.size_bytes() as u64);
    }
}

#[test]
fn slabs_dropped_for_want_of_memory_are_sent_again() {
    let at = endpoint();
    let cluster = master(&at);
    let small = ServeOptions { memory_bytes: 600_000, ..serving("alpha", &at) };
    let server = WorkerServer::start(CpuWorker::fleet(2), &small).unwrap();
    let mut devices = workers(&cluster, 2);
    // 256 kB.
    let (shape, slabs) = subtask(256);
    let (shared, token) = (SharedSlabs::new(), CancelToken::new());
    for worker in &mut devices {
        install(worker.as_mut(), &shape, 2.0);
    }
    let mut run = |device: usize| {
        let before = received(&server);
        let task = Task { shared: Some(&shared), ..Task::new(KEY, &slabs, &token) };
        assert_eq!(results(devices[device].as_mut(), task).unwrap(), expected(&shape, &slabs, 2.0));
        assert!(server.info().memory_used_bytes <= 600_000);
        received(&server) - before
    };
    let size = slabs.size_bytes() as u64;
    assert_eq!((run(0), run(1), run(0)), (size, 0, 0));
    // Slabs of 360 kB for which there is room only without the others.
    let (large, values) = subtask(300);
    let other = FilterKey { layer: 2, ..KEY };
    let mut third = workers(&cluster, 1).remove(0);
    third.install(other, &large, Values::F32(vec![1.0])).unwrap();
    assert_eq!(results(third.as_mut(), Task::new(other, &values, &token)).unwrap().len(), 1);
    assert_eq!((run(1), run(0)), (size, 0));
}

#[test]
fn a_transfer_whose_sender_is_cancelled_is_continued_by_another_device() {
    let at = endpoint();
    let cluster = master(&at);
    let server = server("alpha", &at, 2);
    let mut devices = workers(&cluster, 2);
    // 64 MiB.
    let (shape, slabs) = subtask(4096);
    let (size, shared) = (slabs.size_bytes() as u64, SharedSlabs::new());
    for worker in &mut devices {
        install(worker.as_mut(), &shape, 3.0);
    }
    let tokens = [CancelToken::new(), CancelToken::new()];
    let (mut second, mut first) = (devices.remove(1), devices.remove(0));
    let begun = received(&server);
    let run = |worker: &mut dyn Worker, token: &CancelToken| {
        results(worker, Task { shared: Some(&shared), ..Task::new(KEY, &slabs, token) })
    };
    std::thread::scope(|scope| {
        let (tokens, run) = (&tokens, &run);
        let leader = scope.spawn(move || run(first.as_mut(), &tokens[0]));
        until("the transfer has begun", || received(&server) > begun);
        let follower = scope.spawn(move || run(second.as_mut(), &tokens[1]));
        until("a part has arrived", || received(&server) - begun > 1 << 20);
        tokens[0].cancel();
        let cancelled = leader.join().unwrap();
        assert!(matches!(cancelled, Err(Error::Cancelled)), "{cancelled:?}");
        assert!(received(&server) - begun < size, "it was over before it was cancelled");
        assert_eq!(follower.join().unwrap().unwrap(), expected(&shape, &slabs, 3.0));
    });
    // At most the chunks in flight were sent twice.
    let sent = received(&server) - begun;
    assert!((size..size + (16 << 20)).contains(&sent), "{sent} of {size}");
}

#[test]
fn a_machine_that_is_restarted_gets_the_slabs_of_the_next_run() {
    let at = endpoint();
    let cluster = master(&at);
    let first = server("alpha", &at, 6);
    let layer = Layer::<f32>::new(&[1, 8, 40, 40], &[32, 8, 3, 3], ConvParams::default());
    let pool = pool_of(workers(&cluster, 6));
    let prepared = layer.prepare(&pool, options(1, 8)).unwrap();
    let run = |what: &str| {
        let run = prepared.run(layer.input.view()).unwrap();
        assert!(layer.error(&run.output) < EXACT_F32, "{what}: {:#?}", run.report);
        run.report.completion
    };
    assert_eq!(run("before"), fcdcc::Completion::Exact);
    drop(first);
    run("while it is gone");
    let second = server("alpha", &at, 6);
    until("it is back", || {
        usable(&pool) == 6 && second.info().devices.iter().all(|device| device.filters > 0)
    });
    until("it works", || run("afterwards") == fcdcc::Completion::Exact);
    assert!(second.traffic().sent_bytes > 0);
}

#[test]
fn a_machine_that_keeps_no_slabs_ends_the_task_in_time() {
    let at = endpoint();
    let cluster = master(&at);
    let about = || pack(&Answer::Info(Box::new(HostInfo { ..info("evil", 7) })));
    let missing = || pack(&Answer::refused(Refusal::SlabsMissing, "not here"));
    let _evil = impostor(&at, "evil", about, move |query, request| match request {
        Request::Chunk { total, .. } => {
            answer(query, pack(&Answer::Ack { received: total, at_us: 0 }), Vec::new());
        }
        Request::Task { .. } => answer(query, missing(), Vec::new()),
        _ => answer(query, pack(&Answer::Installed), Vec::new()),
    });
    let mut worker = workers(&cluster, 1).remove(0);
    let (shape, slabs) = subtask(512);
    install(worker.as_mut(), &shape, 1.0);
    let (shared, token, started) = (SharedSlabs::new(), CancelToken::new(), Instant::now());
    let task = Task { shared: Some(&shared), ..Task::new(KEY, &slabs, &token) };
    let error = results(worker.as_mut(), task).unwrap_err();
    assert!(error.to_string().contains("does not keep the slabs"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn results_are_sent_when_they_are_complete_without_waiting_for_others() {
    let at = endpoint();
    let cluster = master(&at);
    let (proceed, gate) = bounded::<()>(4);
    // Computes each sub-result of a large subtask only when it may.
    let held = |batched: bool| {
        let gate = gate.clone();
        intercept(CpuWorker::new("held", 1)).on_execute(move |inner, task, emit| {
            if task.slabs.len() < 1000 {
                return inner.execute(task, emit);
            }
            let mut kept = Vec::new();
            for index in 0..4 {
                gate.recv_timeout(SOON).map_err(|_| Error::Cancelled)?;
                inner.execute(task.with_order(Order::Each(&[index])), &mut |index, values| {
                    if batched { kept.push((index, values)) } else { emit(index, values) }
                })?;
            }
            for (index, values) in kept {
                emit(index, values);
            }
            Ok(())
        })
    };
    // Results that go with the answer, and results that are fetched.
    for (side, batched) in [(30, false), (300, false), (30, true)] {
        let mut devices = vec![held(batched).never_respawned().boxed()];
        devices.extend(CpuWorker::fleet(1));
        let server = WorkerServer::start(devices, &serving("alpha", &at)).unwrap();
        let mut remote = workers(&cluster, 2);
        let free = remote.remove(usize::from(server.info().devices[0].name == "held"));
        let (mut free, mut slow) = (free, remote.remove(0));
        let conv = ConvShape::new(&[1, 2, side, side], &[2, 2, 3, 3], &ConvParams::default()).unwrap();
        let shape = SubtaskShape { conv, slabs: 2, banks: 2, plain: false };
        let slabs = Values::F32(normal(shape.upload_elems(), 1));
        for worker in [&mut slow, &mut free] {
            worker.install(KEY, &shape, Values::F32(normal(shape.filter_elems(), 2))).unwrap();
        }
        let (sender, came) = unbounded();
        std::thread::scope(|scope| {
            let slabs = &slabs;
            let thread = scope.spawn(move || {
                let token = CancelToken::new();
                slow.execute(Task::new(KEY, slabs, &token), &mut |index, _| sender.send(index).unwrap())
            });
            until("the task is there", || server.info().devices.iter().any(|device| device.load == 1));
            // The other device of the machine is not held up.
            let token = CancelToken::new();
            assert_eq!(results(free.as_mut(), Task::new(KEY, slabs, &token)).unwrap().len(), 4);
            assert!(came.is_empty());
            for index in 0..3 {
                proceed.send(()).unwrap();
                if batched {
                    // Negative control: results that the device itself holds back do not come.
                    assert!(came.recv_timeout(Duration::from_millis(200)).is_err());
                } else {
                    // The next one has not begun.
                    assert_eq!(came.recv_timeout(SOON), Ok(index));
                }
            }
            proceed.send(()).unwrap();
            thread.join().unwrap().unwrap();
        });
        assert_eq!(came.iter().count(), if batched { 4 } else { 1 });
        drop((free, server));
        until("it has left", || cluster.members().is_empty());
    }
}

/// The last answer to a task may arrive while an earlier sub-result is fetched, and the end of its request while a later one is.
#[test]
fn a_task_whose_request_ends_while_its_results_are_fetched_is_complete() {
    let at = endpoint();
    let cluster = master(&at);
    let conv = ConvShape::new(&[1, 1, 4, 4], &[1, 1, 1, 1], &ConvParams::default()).unwrap();
    let shape = SubtaskShape { conv, slabs: 2, banks: 1, plain: false };
    let slabs = Values::F32(normal(32, 3));
    let sent = slabs.clone();
    let asked = Mutex::new(None);
    let _machine = impostor(
        &at,
        "alpha",
        || pack(&Answer::Info(Box::new(info("alpha", 7)))),
        move |query, request| match request {
            Request::Task { .. } => {
                for index in 0..2 {
                    answer(
                        query,
                        pack(&Answer::Ready { index, bytes: 64, progress: Progress::default() }),
                        Vec::new(),
                    );
                }
                *asked.lock().unwrap() = Some(query.clone());
            }
            Request::Fetch { index, offset, len, .. } => {
                let asked = &mut *asked.lock().unwrap();
                match (index, &*asked) {
                    (0, Some(task)) => answer(task, pack(&Answer::Done), Vec::new()),
                    // Ends the request.
                    _ => *asked = None,
                }
                let from = 64 * index as usize + usize::try_from(offset).unwrap();
                let bytes = sent.as_bytes()[from..from + len as usize].to_vec();
                let (crc, format) = (crc32fast::hash(&bytes), WireFormat::Full);
                let header = Answer::Bytes { crc, format, at_us: 0 };
                answer(query, pack(&header), bytes);
            }
            _ => answer(query, pack(&Answer::Installed), Vec::new()),
        },
    );
    let mut worker = workers(&cluster, 1).swap_remove(0);
    install(worker.as_mut(), &shape, 1.0);
    let cancel = CancelToken::new();
    for _ in 0..20 {
        let task = Task::new(KEY, &slabs, &cancel);
        let mut elements = Vec::new();
        for (_, values) in results(worker.as_mut(), task).unwrap() {
            elements.extend_from_slice(values.as_bytes());
        }
        assert_eq!(elements, slabs.as_bytes());
    }
}

#[test]
fn layers_of_other_sizes_send_no_filters() {
    let at = endpoint();
    let cluster = master(&at);
    let server = server("alpha", &at, 6);
    let pool = pool_of(workers(&cluster, 6));
    // Six times a quarter of 590 kB of filters, the same in both.
    let first = Layer::<f32>::new(&[1, 128, 10, 10], &[128, 128, 3, 3], ConvParams::default());
    let second = Layer::<f32>::new(&[2, 128, 12, 10], &[128, 128, 3, 3], ConvParams::default());
    assert_eq!(first.weight, second.weight);
    let prepare = |layer: &Layer<f32>, other: Option<&CodedConv<f32>>| {
        let weight: fcdcc::engine::SharedWeight<f32> = Arc::new(layer.weight.as_slice().unwrap().to_vec());
        let bias = Some(layer.bias.clone());
        CodedConv::prepare_beside(&pool, layer.shape(), weight, bias, options(2, 8), other).unwrap()
    };
    let held = || {
        let devices = server.info().devices;
        let filters = devices.iter().map(|device| u64::from(device.filters)).sum::<u64>();
        (
            filters,
            devices.iter().map(|device| device.filter_bytes).sum::<u64>(),
            server.info().memory_used_bytes,
        )
    };
    let before = received(&server);
    let one = prepare(&first, None);
    let filters = received(&server) - before;
    let bytes = held().1;
    assert!(bytes > 500_000 && filters > bytes, "{filters} for {bytes}");
    let (before, (count, _, memory)) = (received(&server), held());
    let two = prepare(&second, Some(&one));
    let sent = received(&server) - before;
    assert!(sent < filters / 50, "{sent} of {filters}");
    assert_eq!(held(), (count + 6, bytes, memory), "memory is used once");
    let error = |prepared: &CodedConv<f32>, layer: &Layer<f32>| {
        layer.error(&prepared.run(layer.input.view()).unwrap().output)
    };
    assert!(error(&two, &second) < EXACT_F32 && error(&one, &first) < EXACT_F32);
    // Without the first layer, the memory of the filters stays in use, and so do the filters.
    drop(one);
    assert!(error(&two, &second) < EXACT_F32);
    let before = received(&server);
    let three = prepare(&first, Some(&two));
    assert!(received(&server) - before < filters / 50, "sent again");
    assert!(error(&three, &first) < EXACT_F32);
    // Negative control: a layer that is not prepared beside another one is sent.
    let before = received(&server);
    let alone = prepare(&second, None);
    assert!(received(&server) - before > filters / 10 * 9);
    assert!(error(&alone, &second) < EXACT_F32);
}
