//! A soak test over remote workers: the memory of a master (and of the machines, here in the same process) does not grow
//! with the number of its tasks.
//!
//! `scripts/soak_remote.sh` runs it with 50,000 tasks (`FCDCC_SOAK_TASKS`). It has a binary of its own, because the counting
//! allocator counts for the whole process.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed unwrap is a failed test; what it measures is shown"
)]

use std::time::{Duration, Instant};

use fcdcc::array::Values;
use fcdcc::worker::{CancelToken, FilterKey, SubtaskShape, Task};
use fcdcc::{ConvParams, ConvShape, SubtaskId, Worker};
use fcdcc_test_support::counting::{Counting, live_bytes};
use fcdcc_test_support::fleet::{self, endpoint, master, server, until, workers};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Number of tasks in the regular test suite.
const TASKS: usize = 6000;
/// Number of parts; memory is measured after each.
const PARTS: usize = 5;
/// Tolerated growth in bytes per task. It should be 0; a leaked timer of the network engine is several times as much.
const BYTES_A_TASK: usize = 100;
/// After this time the network engine has dropped all its records of requests.
const OVER: Duration = Duration::from_secs(20);

/// Slabs that are sent inline, with small results; and slabs and results that are sent in chunks.
fn shapes() -> [SubtaskShape; 2] {
    let conv = |size| ConvShape::new(&[1, 2, size, size], &[2, 2, 3, 3], &ConvParams::default()).unwrap();
    [
        SubtaskShape { conv: conv(8), slabs: 1, banks: 1, plain: false },
        SubtaskShape { conv: conv(160), slabs: 1, banks: 2, plain: false },
    ]
}

/// Runs `tasks` tasks on one worker; every twentieth is a large one.
fn work(worker: &mut dyn Worker, tasks: usize) {
    let slabs = shapes().map(|shape| Values::F32(vec![1.0; shape.upload_elems()]));
    for task in 0..tasks {
        let which = usize::from(task % 20 == 0);
        let key = FilterKey { layer: which as u64, subtask: SubtaskId(0) };
        let mut results = 0;
        let emit = &mut |_, values: Values| results += values.len();
        worker.execute(Task::new(key, &slabs[which], &CancelToken::new()), emit).unwrap();
        assert_eq!(results, shapes()[which].download_elems());
    }
}

/// Live bytes as soon as they are below `most`, or after [`OVER`].
fn settled(most: usize) -> usize {
    let end = Instant::now() + OVER;
    loop {
        let bytes = live_bytes();
        if bytes <= most || Instant::now() >= end {
            return bytes;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

#[test]
fn a_master_keeps_nothing_of_the_tasks_it_has_had() {
    let tasks: usize = std::env::var("FCDCC_SOAK_TASKS").map_or(TASKS, |text| text.parse().unwrap());
    let at = endpoint();
    let cluster = master(&at);
    let _servers = [server("alpha", &at, 1), server("beta", &at, 1), server("gamma", &at, 1)];
    let mut remote = workers(&cluster, 3);
    for (which, shape) in shapes().iter().enumerate() {
        for worker in &mut remote {
            let key = FilterKey { layer: which as u64, subtask: SubtaskId(0) };
            worker.install(key, shape, Values::F32(vec![1.0; shape.filter_elems()])).unwrap();
        }
    }
    let mut run = |tasks: usize| {
        std::thread::scope(|scope| {
            for worker in &mut remote {
                scope.spawn(|| work(worker.as_mut(), tasks.div_ceil(3)));
            }
        });
    };
    // Warm-up: queues, caches and the engine's tables reach their size.
    run(TASKS / 4);
    settled(0);
    let before = live_bytes();
    println!("{:>8} tasks: {:>9} bytes alive, {:>10} resident", 0, before, fleet::memory());
    let allowed = before + BYTES_A_TASK * tasks;
    for part in 1..=PARTS {
        run(tasks / PARTS);
        let (live, resident) = (live_bytes(), fleet::memory());
        println!("{:>8} tasks: {live:>9} bytes alive, {resident:>10} resident", part * tasks / PARTS);
    }
    let after = settled(allowed);
    println!("afterwards     : {after:>9} bytes alive, {:>10} resident", fleet::memory());
    assert!(after <= allowed, "{after} bytes are alive after {tasks} tasks, {before} were before");
    // Negative control: leaked memory of the size of timers is detected.
    let left: Vec<Vec<u8>> = (0..tasks).map(|_| vec![0; 2 * BYTES_A_TASK]).collect();
    assert!(live_bytes() > allowed, "{} blocks are not seen", left.len());
    drop(left);
    until("it is over", || live_bytes() <= allowed);
}
