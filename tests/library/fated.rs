//! Workers that fail by a schedule, run by run.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use fcdcc::array::Values;
use fcdcc::scheduler::State;
use fcdcc::worker::{FilterKey, Task, TaskFault, TaskFaults};
use fcdcc::{CancelToken, CodedConv, CpuWorker, Error, LayerOptions, Pool, SubtaskId, Worker, WorkerId};
use ndarray::{ArrayD, IxDyn};

const HEALTHY: TaskFault = TaskFault { delay: Duration::ZERO, slow: 1.0, crash: false, silent: false };
const SILENT: TaskFault = TaskFault { silent: true, ..HEALTHY };
const CRASH: TaskFault = TaskFault { crash: true, ..HEALTHY };

#[test]
fn a_worker_that_obeys_fates_lives_on_and_is_not_quarantined() {
    let board = TaskFaults::new(2);
    let pool = Pool::new(board.wrap(CpuWorker::fleet(2))).unwrap();
    let x = ArrayD::<f32>::ones(IxDyn(&[1, 2, 64, 10]));
    let w = ArrayD::<f32>::ones(IxDyn(&[64, 2, 3, 3]));
    let options = LayerOptions::default().partitions(2, 2).hedge(None).partial(false);
    let layer = CodedConv::builder(&pool, x.shape(), w.view()).options(options).prepare().unwrap();
    for fate in [
        CRASH,
        SILENT,
        TaskFault { delay: Duration::from_hours(1), ..HEALTHY },
        TaskFault { slow: f64::INFINITY, ..HEALTHY },
    ] {
        board.set(&[HEALTHY, fate]);
        assert_eq!(board.get(WorkerId(1)), fate);
        assert_eq!(board.get(WorkerId(7)), HEALTHY);
        for _ in 0..10 {
            layer.run(x.view()).unwrap();
        }
        assert_ne!(pool.health(WorkerId(1)).unwrap().state, State::Quarantined);
        assert_eq!(pool.lost(WorkerId(1)), None, "{fate:?}");
    }
    board.set(&[SILENT, HEALTHY]);
    let run = layer.run(x.view()).unwrap();
    assert_eq!(run.report.used, [SubtaskId(1)], "it is back");
    // A crash is reported as an error.
    let mut worker = board.around(CpuWorker::new("w", 1), WorkerId(1));
    board.set(&[HEALTHY, CRASH]);
    let (key, slabs) = (FilterKey { layer: 1, subtask: SubtaskId(0) }, Values::F32(Vec::new()));
    let end = worker.execute(Task::new(key, &slabs, &CancelToken::new()), &mut |_, _| {});
    assert!(matches!(end, Err(Error::WorkerFailed { .. })));
    assert!(matches!(
        worker.execute(Task::new(FilterKey::PROBE, &slabs, &CancelToken::new()), &mut |_, _| {}),
        Err(Error::WorkerFailed { cause, .. }) if cause.contains("no filters")
    ));
}
