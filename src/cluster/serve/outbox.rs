//! Answers in transit to a master, and sub-results that wait to be fetched.
//!
//! Each master has a thread that sends its answers, so a master that takes nothing delays no other.
//!
//! Invariant: a master that does not take its answers costs at most [`MOST_QUEUED_BYTES`] and a thread, until its
//! connection is closed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Sender, unbounded};

use super::super::budget::{Budget, Reservation};
use super::super::link::{Incoming, Payload};
use super::super::wire::{Answer, MasterId, Refusal};
use super::slabs::Slabs;

/// Maximum size of the answers queued for one master.
const MOST_QUEUED_BYTES: u64 = 512 << 20;

/// Time after which a sub-result that was not fetched is dropped.
const KEPT: Duration = Duration::from_mins(1);

/// The queue of answers to one master. Cheap to clone; its thread ends with the last clone.
#[derive(Clone)]
pub(super) struct Outbox {
    sender: Sender<Outgoing>,
    queued: Arc<AtomicU64>,
    /// Total size of the payloads that the process has sent.
    sent: Arc<AtomicU64>,
}

struct Outgoing {
    to: Arc<Incoming>,
    answer: Answer,
    payload: Payload,
}

impl Outbox {
    /// Starts the thread; an error when the system has none left.
    pub(super) fn start(name: &str, sent: &Arc<AtomicU64>) -> std::io::Result<Self> {
        let (sender, receiver) = unbounded::<Outgoing>();
        let queued = Arc::new(AtomicU64::new(0));
        let (waiting, total) = (Arc::clone(&queued), Arc::clone(sent));
        std::thread::Builder::new().name(format!("fcdcc to {name}")).spawn(move || {
            for outgoing in receiver {
                let bytes = outgoing.payload.len() as u64;
                match outgoing.to.answer(&outgoing.answer, outgoing.payload) {
                    Ok(()) => {
                        total.fetch_add(bytes, Ordering::Relaxed);
                    }
                    // The master sees its request end without an answer.
                    Err(error) => tracing::warn!(error, "an answer could not be sent"),
                }
                waiting.fetch_sub(bytes, Ordering::Relaxed);
            }
        })?;
        Ok(Self { sender, queued, sent: Arc::clone(sent) })
    }

    /// Starts an outbox for another master.
    pub(super) fn another(&self, name: &str) -> std::io::Result<Self> {
        Self::start(name, &self.sent)
    }

    /// Queues an answer. An answer over the limit is dropped, and its request with it.
    pub(super) fn send(&self, to: &Arc<Incoming>, answer: Answer, payload: Payload) {
        let bytes = payload.len() as u64;
        if self.queued.fetch_add(bytes, Ordering::Relaxed) + bytes > MOST_QUEUED_BYTES {
            self.queued.fetch_sub(bytes, Ordering::Relaxed);
            tracing::warn!(bytes, "a master does not take its results: dropped");
            return;
        }
        // The thread lives as long as this sender.
        let _ = self.sender.send(Outgoing { to: Arc::clone(to), answer, payload });
    }

    pub(super) fn say(&self, to: &Arc<Incoming>, answer: Answer) {
        self.send(to, answer, Payload::empty());
    }

    pub(super) fn refuse(&self, to: &Arc<Incoming>, why: Refusal, text: impl std::fmt::Display) {
        tracing::debug!(?why, %text, "refused");
        self.say(to, Answer::refused(why, text));
    }
}

/// Sub-results that are too large to be sent without a request.
#[derive(Clone)]
pub(super) struct Results {
    ready: Arc<Mutex<HashMap<(MasterId, u64, u32), Ready>>>,
    budget: Budget,
    /// What makes room.
    slabs: Slabs,
}

struct Ready {
    bytes: Bytes,
    since: Instant,
    _reservation: Reservation,
}

impl Results {
    pub(super) fn new(budget: Budget, slabs: Slabs) -> Self {
        Self { ready: Arc::default(), budget, slabs }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(MasterId, u64, u32), Ready>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a sub-result until it is fetched. Shared slabs that are not in use make room for it.
    ///
    /// # Errors
    /// The text of the refusal, with the numbers, if there is not enough memory.
    pub(super) fn keep(&self, of: (MasterId, u64, u32), bytes: Bytes) -> Result<(), String> {
        let size = bytes.len() as u64;
        let reservation = loop {
            match self.budget.reserve(size) {
                Some(reservation) => break reservation,
                None if self.slabs.make_room() => {}
                None => return Err(self.budget.refuse(size)),
            }
        };
        self.lock().insert(of, Ready { bytes, since: Instant::now(), _reservation: reservation });
        Ok(())
    }

    /// Reads a part of a sub-result; the last part frees it.
    ///
    /// # Errors
    /// If there is no such sub-result, or it has no such part.
    pub(super) fn fetch(&self, of: (MasterId, u64, u32), offset: u64, len: u32) -> Result<Bytes, String> {
        let mut all = self.lock();
        let Some(ready) = all.get_mut(&of) else {
            return Err(format!("sub-result {} of task {} is not here", of.2, of.1));
        };
        let total = ready.bytes.len();
        let range = usize::try_from(offset).ok().and_then(|from| {
            let to = from.checked_add(len as usize)?;
            (to <= total).then_some(from..to)
        });
        let Some(range) = range else { return Err(format!("{len} bytes at {offset} of {total}")) };
        let last = range.end == total;
        let part = ready.bytes.slice(range);
        ready.since = Instant::now();
        if last {
            all.remove(&of);
        }
        Ok(part)
    }

    /// Drops the sub-results of a task that is over.
    pub(super) fn forget(&self, master: MasterId, task: u64) {
        self.lock().retain(|of, _| (of.0, of.1) != (master, task));
    }

    /// Drops all sub-results of a master.
    pub(super) fn forget_master(&self, master: MasterId) {
        self.lock().retain(|of, _| of.0 != master);
    }

    /// Drops sub-results that were not fetched in time.
    pub(super) fn expire(&self) {
        self.lock().retain(|_, ready| ready.since.elapsed() < KEPT);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::array::{Buffers, Values};
    use crate::cluster::link::bytes_of;

    #[test]
    fn a_result_is_fetched_in_parts_and_freed_by_the_last() {
        let budget = Budget::new(10);
        let results = Results::new(budget.clone(), Slabs::new(Buffers::default()));
        let of = (MasterId(1), 2, 3);
        let values = bytes_of(Values::F32(vec![1.0, 2.0]));
        results.keep(of, values.clone()).unwrap();
        assert!(results.keep((MasterId(1), 2, 4), values.clone()).unwrap_err().contains("8 of 10"));
        assert!(results.fetch((MasterId(2), 2, 3), 0, 4).is_err(), "another master's");
        assert!(results.fetch(of, 4, 5).is_err() && results.fetch(of, u64::MAX, 1).is_err());
        assert_eq!(results.fetch(of, 0, 4).unwrap(), values.slice(..4));
        assert_eq!(results.fetch(of, 4, 4).unwrap(), values.slice(4..));
        assert!(results.fetch(of, 0, 4).is_err());
        assert_eq!(budget.used(), 0);
        results.keep(of, values.clone()).unwrap();
        results.forget(MasterId(1), 9);
        assert_eq!(budget.used(), 8);
        results.forget(MasterId(1), 2);
        assert_eq!(budget.used(), 0);
    }
}
