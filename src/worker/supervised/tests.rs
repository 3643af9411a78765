//! Workers that panic, hang, are lost and come back.

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::*;
use crate::ids::SubtaskId;
use crate::worker::{CpuWorker, intercept};

const BACKOFF: Backoff = Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(4) };
/// A limit that only a defect reaches.
const LIMIT: Duration = Duration::from_mins(1);

struct Fake {
    supervision: Supervision,
    lost: Mutex<Vec<String>>,
    returned: Sender<Live>,
}

impl Owner for Fake {
    fn supervision(&self) -> &Supervision {
        &self.supervision
    }

    fn lost(&self, cause: &str) {
        self.lost.lock().unwrap().push(cause.to_owned());
    }

    fn returned(&self, live: Live) {
        self.returned.send(live).unwrap();
    }
}

impl Fake {
    fn losses(&self) -> usize {
        self.lost.lock().unwrap().len()
    }
}

fn supervised(worker: Box<dyn Worker>) -> (Arc<Fake>, Supervised<Fake>, Receiver<Live>) {
    let (returned, back) = unbounded();
    let supervision = Supervision::new("w".to_owned(), worker.respawn(), BACKOFF, CancelToken::new());
    let owner = Arc::new(Fake { supervision, lost: Mutex::default(), returned });
    (Arc::clone(&owner), Supervised::new(owner, Ok(worker)), back)
}

/// Blocks in its drop until the sender is gone.
struct Clings(Receiver<()>);

impl Drop for Clings {
    fn drop(&mut self) {
        let _ = self.0.recv();
    }
}

#[test]
fn a_panic_loses_the_worker_which_is_dropped_elsewhere_and_comes_back_probed() {
    let (release, held) = bounded(0);
    let clings = Clings(held);
    let attempts = AtomicUsize::new(0);
    let worker = intercept(CpuWorker::new("w", 1)).on_remove(move |_, _| {
        let _ = clings.0.try_recv();
    });
    let worker = worker.respawned(move |worker| {
        assert!(attempts.fetch_add(1, Ordering::SeqCst) > 0, "the driver panics at the first attempt");
        worker
    });
    let (owner, mut worker, back) = supervised(worker.boxed());
    let none = CancelToken::new();
    owner.supervision.count_task();
    assert!(worker.guarded(&none, 1, |_| Ok(())).is_ok());
    assert_eq!((owner.supervision.load(), owner.losses()), (0, 0), "nothing is lost without a panic");
    for _ in 0..2 {
        owner.supervision.count_task();
        let lost = worker.guarded(&none, 1, |_| -> Result<()> { panic!("scripted") });
        assert!(matches!(&lost, Err(Error::WorkerLost { cause, .. }) if cause == "it panicked: scripted"));
        assert_eq!((owner.supervision.load(), owner.losses()), (0, 1));
    }
    // The old worker is still being dropped.
    let live = back.recv_timeout(LIMIT).unwrap();
    assert_eq!(live.probed, [DType::F32]);
    worker.take_back(live);
    assert!(worker.guarded(&none, 0, |_| Ok(())).is_ok());
    assert!(back.try_recv().is_err(), "it is opened once");
    drop(release);
}

#[test]
fn no_attempt_is_made_after_the_owner_has_ended() {
    let (owner, mut worker, back) = supervised(Box::new(CpuWorker::new("w", 1)));
    owner.supervision.closing().cancel();
    assert!(worker.guarded(&CancelToken::new(), 0, |_| -> Result<()> { panic!("scripted") }).is_err());
    drop((owner, worker));
    assert!(back.recv_timeout(LIMIT).is_err_and(|error| error.is_disconnected()));
}

#[test]
fn a_hung_call_is_abandoned_once_and_changes_nothing_when_it_ends() {
    let (owner, mut worker, back) = supervised(Box::new(CpuWorker::new("w", 1)));
    let ((release, held), (entered, entry)) = (bounded::<()>(0), bounded(0));
    let cancel = CancelToken::new();
    let token = cancel.clone();
    owner.supervision.count_task();
    owner.supervision.count_task();
    assert!(abandon_if_hung(&owner, Duration::ZERO).is_none(), "nothing runs");
    let thread = thread::spawn(move || {
        let ended = worker.guarded(&token, 1, |_| -> Result<()> {
            entered.send(()).unwrap();
            let _ = held.recv();
            panic!("long after it was abandoned")
        });
        (ended.is_err(), worker.serves())
    });
    entry.recv_timeout(LIMIT).unwrap();
    assert!(abandon_if_hung(&owner, Duration::ZERO).is_none(), "it was not cancelled");
    cancel.cancel();
    assert!(abandon_if_hung(&owner, LIMIT).is_none(), "it has time left");
    let mut next = abandon_if_hung(&owner, Duration::ZERO).unwrap();
    assert!(abandon_if_hung(&owner, Duration::ZERO).is_none(), "it was abandoned");
    assert_eq!((owner.supervision.load(), owner.losses()), (1, 1), "the queued task is still counted");
    // A task that meets no worker ends, and hangs nowhere.
    assert!(next.serves() && next.guarded(&cancel, 1, |_| Ok(())).is_err());
    next.reopen_if_lost();
    next.take_back(back.recv_timeout(LIMIT).unwrap());
    drop(release);
    assert_eq!(thread.join().unwrap(), (true, false));
    assert_eq!((owner.supervision.load(), owner.losses()), (0, 1));
    assert!(next.serves() && next.live().is_some() && back.try_recv().is_err());
}

#[test]
fn filters_are_installed_and_removed_once() {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let (installs, removals) = (Arc::clone(&calls), Arc::clone(&calls));
    let worker = intercept(CpuWorker::new("w", 1))
        .on_install(move |_, key, _, _| {
            installs.lock().unwrap().push(key.subtask.0.cast_signed());
            Ok(())
        })
        .on_remove(move |_, key| removals.lock().unwrap().push(-(key.subtask.0.cast_signed())));
    let (_owner, mut worker, _back) = supervised(worker.boxed());
    let conv = crate::conv::ConvShape::new(&[1, 1, 3], &[1, 1, 1], &crate::conv::ConvParams::default());
    let shape = SubtaskShape { conv: conv.unwrap(), slabs: 1, banks: 1, plain: false };
    let key = |subtask| FilterKey { layer: 1, subtask: SubtaskId(subtask) };
    for subtask in [1, 1, 2] {
        worker.install(key(subtask), &shape, Values::F32(vec![1.0])).unwrap();
    }
    for subtask in [1, 1, 3] {
        worker.remove(key(subtask));
    }
    worker.install(key(1), &shape, Values::F32(vec![1.0])).unwrap();
    assert_eq!(*calls.lock().unwrap(), [1, 2, -1, 1]);
}
