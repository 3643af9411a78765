//! Filters on machines with several devices: the same filters are sent once, and may be installed again at any time.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Barrier;

use fcdcc::array::Values;
use fcdcc::worker::{CancelToken, FilterKey, SubtaskShape, Task};
use fcdcc::{ConvParams, ConvShape, Pool, SubtaskId, Worker};
use fcdcc_test_support::fleet::{endpoint, master, pool_of, server, workers};
use fcdcc_test_support::layer::{EXACT_F32, Layer, fail};
use fcdcc_test_support::normal;

const KEY: FilterKey = FilterKey { layer: 1, subtask: SubtaskId(0) };

/// A subtask with `filters` filters of 64 channels, one element each.
fn subtask(filters: usize) -> SubtaskShape {
    let conv = ConvShape::new(&[1, 64, 2, 2], &[filters, 64, 1, 1], &ConvParams::default()).unwrap();
    SubtaskShape { conv, slabs: 1, banks: 1, plain: false }
}

/// The first element of the result for slabs of ones.
fn sum(worker: &mut dyn Worker) -> f32 {
    let mut sums = Vec::new();
    let (slabs, token) = (Values::F32(vec![1.0; 256]), CancelToken::new());
    let keep = &mut |_, values: Values| sums.push(values.as_slice::<f32>().unwrap()[0]);
    worker.execute(Task::new(KEY, &slabs, &token), keep).unwrap();
    sums[0]
}

#[test]
fn devices_that_need_the_same_filters_are_sent_them_once() {
    let at = endpoint();
    let cluster = master(&at);
    let server = server("alpha", &at, 4);
    let mut devices = workers(&cluster, 4);
    let shape = subtask(16 << 10);
    let bytes = 4 * shape.filter_elems() as u64;
    for (round, same) in [(0, true), (1, false), (2, true)] {
        let (before, start) = (server.traffic().received_bytes, Barrier::new(devices.len()));
        std::thread::scope(|scope| {
            for (at, worker) in devices.iter_mut().enumerate() {
                let (shape, start) = (&shape, &start);
                scope.spawn(move || {
                    let mut filters = normal(shape.filter_elems(), 100 + round);
                    // Another filter for each device.
                    filters[0] += if same { 0.0 } else { at as f32 };
                    let want: f32 = filters[..64].iter().sum();
                    start.wait();
                    worker.install(KEY, shape, Values::F32(filters)).unwrap();
                    assert!((sum(worker.as_mut()) - want).abs() < 1e-3, "round {round}, device {at}");
                });
            }
        });
        let sent = (server.traffic().received_bytes - before) as f64 / bytes as f64;
        let want = if same { 1.0 } else { 4.0 };
        assert!((sent - want).abs() < 0.01, "round {round}: {sent} times the filters");
    }
}

#[test]
fn filters_may_be_installed_again_right_after_they_were_removed() {
    let at = endpoint();
    let cluster = master(&at);
    let _server = server("alpha", &at, 1);
    let mut devices = workers(&cluster, 1);
    let worker = devices[0].as_mut();
    // Sent with the question, and in chunks.
    for (filters, rounds) in [(16, 300), (4096, 60)] {
        let shape = subtask(filters);
        let values = normal(shape.filter_elems(), 3);
        let want: f32 = values[..64].iter().sum();
        for round in 0..rounds {
            worker.install(KEY, &shape, Values::F32(values.clone())).unwrap();
            assert!((sum(worker) - want).abs() < 1e-3, "round {round}");
            worker.remove(KEY);
        }
    }
}

#[test]
fn a_layer_whose_subtasks_share_filters_is_sent_once_to_each_machine() {
    let at = endpoint();
    let cluster = master(&at);
    let machines = [server("alpha", &at, 3), server("beta", &at, 3)];
    let layer = Layer::<f32>::new(&[1, 64, 24, 10], &[96, 64, 3, 3], ConvParams::default());
    let filters = 4 * 96 * 64 * 9;
    let sent = |pool: &Pool, k_a: usize, k_b: usize| {
        let before: u64 = machines.iter().map(|server| server.traffic().received_bytes).sum();
        let prepared = layer.prepare(pool, fail(k_a, k_b)).unwrap();
        let after: u64 = machines.iter().map(|server| server.traffic().received_bytes).sum();
        let run = prepared.run(layer.input.view()).unwrap();
        assert!(layer.error(&run.output) < EXACT_F32, "{:#?}", run.report);
        (after - before) as f64 / f64::from(filters)
    };
    let pool = pool_of(workers(&cluster, 6));
    // With k_B = 1 every subtask has all filters.
    let once = sent(&pool, 8, 1);
    assert!((2.0..2.1).contains(&once), "{once} times the filters");
    // Negative control: six different pairs of quarters.
    let different = sent(&pool, 2, 4);
    assert!(different > 2.9, "{different} times the filters");
}
