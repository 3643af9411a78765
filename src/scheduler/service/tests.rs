use std::sync::Mutex;

use crossbeam_channel::{bounded, unbounded};

use super::*;
use crate::array::{Buffers, Pooled, Values};
use crate::conv::{ConvParams, ConvShape};
use crate::ids::{SubtaskId, WorkerId};
use crate::scheduler::slot::{FilterSource, Replies, Reply};
use crate::scheduler::{Fleet, HealthOptions, Pool, PoolOptions};
use crate::worker::{CancelToken, CpuWorker, FilterKey, Intercept, SubtaskShape, intercept};

/// A limit that only a defect reaches.
const LIMIT: Duration = Duration::from_mins(1);
const KEY: FilterKey = FilterKey { layer: 1, subtask: SubtaskId(0) };

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < LIMIT, "in vain: {what}");
        std::thread::yield_now();
    }
}

fn shape() -> Arc<SubtaskShape> {
    let conv = ConvShape::new(&[1, 1, 3], &[1, 1, 1], &ConvParams::default()).unwrap();
    Arc::new(SubtaskShape { conv, slabs: 1, banks: 1, plain: false })
}

struct Ones;

impl FilterSource for Ones {
    fn dtype(&self) -> DType {
        DType::F32
    }

    fn coded_filters(&self, _: SubtaskId) -> Values {
        Values::F32(vec![1.0])
    }
}

/// A pool of one worker, and the layer whose filters it is given. Hung calls are abandoned at once.
fn pool_of(worker: Intercept) -> (Pool, Arc<dyn FilterSource>) {
    let health = HealthOptions {
        backoff: Duration::from_millis(1),
        max_backoff: Duration::from_millis(4),
        ..HealthOptions::default()
    };
    let options = PoolOptions { health, hang_grace: Duration::ZERO };
    let pool = Pool::with_options(vec![worker.boxed()], options).unwrap();
    let source: Arc<dyn FilterSource> = Arc::new(Ones);
    pool.register(KEY.layer, Arc::downgrade(&source));
    (pool, source)
}

fn install(pool: &Pool) -> Result<()> {
    let (reply, replies) = unbounded();
    let banks = Banks::Coded(Ones.coded_filters(KEY.subtask));
    pool.install(WorkerId(0), InstallRequest { key: KEY, shape: shape(), banks }, &reply);
    replies.recv_timeout(LIMIT).unwrap().result
}

fn task(attempt: usize, replies: &Arc<Replies>) -> QueuedTask {
    QueuedTask {
        key: KEY,
        shape: shape(),
        slabs: Arc::new(Pooled::unpooled(Values::F32(vec![1.0; 3]))),
        shared: Arc::default(),
        order: None,
        finite: true,
        sketcher: None,
        cancel: CancelToken::new(),
        attempt,
        replies: Arc::clone(replies),
        buffers: Buffers::default(),
        phases: Arc::default(),
    }
}

fn reply_to(replies: &Replies) -> Reply {
    match replies.take(Some(Instant::now() + LIMIT)) {
        Taken::Item(reply) => reply,
        Taken::Timeout | Taken::Closed => panic!("no reply"),
    }
}

#[test]
fn a_worker_lost_at_its_first_probe_is_probed_again_after_a_later_quarantine() {
    let lost = intercept(CpuWorker::new("w", 1)).including_probes().on_execute(|_, _, _| panic!("scripted"));
    let (pool, _source) = pool_of(lost.respawned(|worker| worker));
    assert!(install(&pool).is_err());
    until("it is back with its filters", || pool.health(WorkerId(0)).unwrap().state == State::Healthy);
    pool.flag(WorkerId(0), "wrong by 1");
    until("it has passed a probe", || pool.is_usable(WorkerId(0)));
}

#[test]
fn filters_that_a_worker_got_at_its_return_are_removed_with_their_layer() {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&calls);
    let panics = intercept(CpuWorker::new("w", 1)).on_install(|_, _, _, _| panic!("scripted"));
    let (pool, source) = pool_of(panics.respawned(move |worker| {
        let (installed, removed) = (Arc::clone(&noted), Arc::clone(&noted));
        intercept(worker)
            .on_install(move |_, key, _, _| {
                installed.lock().unwrap().push(("installed", key));
                Ok(())
            })
            .on_remove(move |_, key| removed.lock().unwrap().push(("removed", key)))
            .boxed()
    }));
    // The layer is told that the filters are not installed, and so will never remove them itself.
    assert!(install(&pool).is_err());
    until("it is back with its filters", || pool.is_usable(WorkerId(0)));
    assert_eq!(*calls.lock().unwrap(), [("installed", KEY)]);
    pool.unregister(KEY.layer);
    until("they are removed", || *calls.lock().unwrap() == [("installed", KEY), ("removed", KEY)]);
    drop(source);
}

#[test]
fn an_abandoned_call_counts_neither_as_load_nor_as_speed_of_the_next_worker() {
    let ((release, held), (entered, entry)) = (bounded::<()>(0), bounded(0));
    let hangs = intercept(CpuWorker::new("w", 1)).on_execute(move |_, _, emit| {
        entered.send(()).unwrap();
        let _ = held.recv();
        emit(0, Values::F32(vec![1.0; 3]));
        Ok(())
    });
    let (open, opened) = bounded::<()>(0);
    let (pool, _source) = pool_of(hangs.respawned(move |worker| {
        let _ = opened.recv();
        worker
    }));
    install(&pool).unwrap();
    let replies = Arc::new(Replies::new());
    let hung = task(0, &replies);
    let cancel = hung.cancel.clone();
    pool.execute(WorkerId(0), hung);
    entry.recv_timeout(LIMIT).unwrap();
    pool.execute(WorkerId(0), task(1, &replies));
    cancel.cancel();
    // Both queued tasks are answered, the second by the worker's state.
    pool.execute(WorkerId(0), task(2, &replies));
    for _ in 0..2 {
        let Reply { attempt: 1 | 2, what: ReplyKind::Failed(error), .. } = reply_to(&replies) else {
            panic!("another reply")
        };
        assert!(matches!(&error, Error::WorkerLost { cause, .. } if cause.contains("hung")), "{error}");
    }
    assert_eq!(pool.load(WorkerId(0)), 0);
    drop(release);
    assert!(matches!(reply_to(&replies), Reply { attempt: 0, what: ReplyKind::SubResult { .. }, .. }));
    assert!(matches!(reply_to(&replies), Reply { attempt: 0, what: ReplyKind::Finished, .. }));
    assert_eq!((pool.load(WorkerId(0)), pool.rate(WorkerId(0))), (0, None));
    // Negative control: a call that is not abandoned counts.
    drop(open);
    until("it is back", || pool.is_usable(WorkerId(0)));
    pool.execute(WorkerId(0), task(3, &replies));
    until("it has a speed", || pool.rate(WorkerId(0)).is_some());
    assert_eq!(pool.load(WorkerId(0)), 0);
    assert!(pool.wait_idle(LIMIT));
}
