//! In which order the slabs of tasks are sent to machines.
//!
//! All slabs leave through this machine's link. If it is the slowest part of the way, slabs that are sent at the same time all
//! arrive late, and so all tasks begin late. Sent one after the other, the first tasks compute and answer while the slabs of
//! later ones are on their way, and those of the last ones, which a coded layer does not need, are not sent at all. If the
//! machines' own links are slower, sending to one machine at a time would leave the others' links idle: [`Width`] measures
//! which it is.
//!
//! Slabs leave in the order in which runs dispatched their subtasks, to a machine one at a time. The next transfer begins when
//! the one before waits for its last acknowledgements only. A transfer without progress for [`STALL`] does not hold up those to
//! other machines.
//!
//! Invariant: of the tasks that wait, the first that may send is woken whenever one ends, and a task that gives up waiting
//! leaves its place.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::registry::MemberId;
use super::sharing::Waker;
use super::width::Width;
use crate::sync::locked;

/// A transfer in which nothing was acknowledged for this long does not count as one that uses the link.
pub(super) const STALL: Duration = Duration::from_millis(250);

/// See the module documentation.
#[derive(Default)]
pub(super) struct Uplink {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sending: Vec<Sending>,
    /// In the order in which they may send.
    waiting: BTreeMap<Turn, Waiting>,
    width: Width,
    next: u64,
}

/// The number of the slabs, which grows from subtask to subtask and from run to run, and of the transfer.
type Turn = (u64, u64);

struct Waiting {
    machine: MemberId,
    waker: Option<Waker>,
}

struct Sending {
    turn: Turn,
    machine: MemberId,
    progress: Instant,
    /// Whether everything was handed to the network, and only acknowledgements are missing.
    handed_over: bool,
}

/// A task's place among those that wait. Dropping it gives the place up.
pub(super) struct Place<'a> {
    uplink: &'a Uplink,
    turn: Turn,
}

/// The permission to send slabs, until it is dropped.
pub(super) struct Permit<'a> {
    uplink: &'a Uplink,
    turn: Turn,
}

impl State {
    /// The transfers that make progress.
    fn moving(&self, now: Instant) -> impl Iterator<Item = &Sending> {
        self.sending.iter().filter(move |sending| now.saturating_duration_since(sending.progress) < STALL)
    }

    /// The first task in order that may send.
    fn first(&self, now: Instant) -> Option<Turn> {
        // One transfer may wait for its last acknowledgements while the next one begins: the link would be idle meanwhile.
        let next_to = |sending: usize, handed_over: usize| sending - handed_over.min(1);
        let (all, handed_over) =
            (self.moving(now).count(), self.moving(now).filter(|sending| sending.handed_over).count());
        if next_to(all, handed_over) >= self.width.limit() {
            return None;
        }
        let free = |machine: &MemberId| {
            let here = || self.sending.iter().filter(|sending| sending.machine == *machine);
            next_to(here().count(), here().filter(|sending| sending.handed_over).count()) == 0
        };
        self.waiting.iter().find(|(_, waiting)| free(&waiting.machine)).map(|(turn, _)| *turn)
    }

    /// Takes the waker of the task that may send next.
    fn wake(&mut self, now: Instant) -> Option<Waker> {
        let first = self.first(now)?;
        self.waiting.get_mut(&first)?.waker.take()
    }
}

impl Uplink {
    /// Queues a transfer of the slabs of this number to a machine.
    pub(super) fn queue(&self, slabs: u64, machine: &MemberId) -> Place<'_> {
        let mut state = locked(&self.state);
        let turn = (slabs, state.next);
        state.next += 1;
        state.waiting.insert(turn, Waiting { machine: machine.clone(), waker: None });
        Place { uplink: self, turn }
    }

    /// Changes the state at `now`, and wakes the task that may send after it.
    fn change(&self, now: Instant, change: impl FnOnce(&mut State)) {
        let mut state = locked(&self.state);
        let busy = state.moving(now).count();
        state.width.observe(now, busy);
        change(&mut state);
        let waker = state.wake(now);
        drop(state);
        if let Some(wake) = waker {
            wake();
        }
    }

    /// Number of tasks that send or wait.
    #[cfg(test)]
    fn len(&self) -> usize {
        let state = locked(&self.state);
        state.sending.len() + state.waiting.len()
    }
}

impl<'a> Place<'a> {
    /// The permission, if it is this task's turn. Otherwise `waker` makes what wakes the task when it may be.
    pub(super) fn try_send(&self, now: Instant, waker: impl FnOnce() -> Waker) -> Option<Permit<'a>> {
        let (uplink, turn) = (self.uplink, self.turn);
        let mut granted = false;
        uplink.change(now, |state| {
            granted = state.first(now) == Some(turn);
            if granted {
                if let Some(Waiting { machine, .. }) = state.waiting.remove(&turn) {
                    state.sending.push(Sending { turn, machine, progress: now, handed_over: false });
                }
            } else if let Some(waiting) = state.waiting.get_mut(&turn) {
                waiting.waker = Some(waker());
            }
        });
        granted.then_some(Permit { uplink, turn })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // After a permission there is no place any more.
        self.uplink.change(Instant::now(), |state| drop(state.waiting.remove(&self.turn)));
    }
}

impl Permit<'_> {
    /// Records that everything was handed to the network.
    pub(super) fn handed_over(&self, now: Instant) {
        self.uplink.change(now, |state| {
            if let Some(own) = state.sending.iter_mut().find(|sending| sending.turn == self.turn) {
                own.handed_over = true;
            }
        });
    }

    /// Records that the machine acknowledged this number of bytes.
    pub(super) fn acknowledged(&self, bytes: usize, now: Instant) {
        self.uplink.change(now, |state| {
            state.width.delivered(bytes);
            if let Some(own) = state.sending.iter_mut().find(|sending| sending.turn == self.turn) {
                own.progress = now;
            }
        });
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.uplink.change(Instant::now(), |state| state.sending.retain(|sending| sending.turn != self.turn));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use crossbeam_channel::{Receiver, Sender, unbounded};

    use super::*;

    fn machine(name: &str) -> MemberId {
        (name.to_owned(), 1)
    }

    fn waker(sender: &Sender<u64>, slabs: u64) -> impl FnOnce() -> Waker {
        let sender = sender.clone();
        move || {
            Box::new(move || {
                let _ = sender.send(slabs);
            })
        }
    }

    fn woken(events: &Receiver<u64>) -> Vec<u64> {
        events.try_iter().collect()
    }

    /// An uplink that sends to one machine at a time.
    fn narrow() -> Uplink {
        let uplink = Uplink::default();
        locked(&uplink.state).width = Width::narrow();
        uplink
    }

    #[test]
    fn slabs_leave_in_the_order_of_their_subtasks() {
        let (uplink, now) = (narrow(), Instant::now());
        let (sender, events) = unbounded();
        let machines = ["a", "b", "c"].map(machine);
        // They ask in another order.
        let places = [7, 5, 6].map(|slabs| uplink.queue(slabs, &machines[slabs as usize - 5]));
        let ask = |at: usize, slabs| places[at].try_send(now, waker(&sender, slabs));
        assert!(ask(0, 7).is_none() && ask(2, 6).is_none());
        assert_eq!(woken(&events), [] as [u64; 0], "nobody who waits may send");
        let first = ask(1, 5).unwrap();
        assert!(ask(2, 6).is_none());
        drop(first);
        assert_eq!(woken(&events), [6]);
        let second = ask(2, 6).unwrap();
        assert!(ask(0, 7).is_none());
        drop(second);
        assert_eq!(woken(&events), [7]);
        drop(ask(0, 7).unwrap());
        drop(places);
        assert_eq!(uplink.len(), 0);
    }

    #[test]
    fn the_next_one_begins_while_one_waits_for_its_last_acknowledgements() {
        let (uplink, now) = (narrow(), Instant::now());
        let (sender, events) = unbounded();
        let places = [1, 2, 3].map(|slabs| uplink.queue(slabs, &machine("a")));
        let ask = |at: usize| places[at].try_send(now, waker(&sender, at as u64));
        let first = ask(0).unwrap();
        assert!(ask(1).is_none());
        first.handed_over(now);
        assert_eq!(woken(&events), [1]);
        let second = ask(1).unwrap();
        assert!(ask(2).is_none());
        second.handed_over(now);
        assert!(ask(2).is_none(), "the first one is not acknowledged yet");
        drop(first);
        assert_eq!(woken(&events), [2]);
        assert!(ask(2).is_some());
    }

    #[test]
    fn a_machine_gets_one_at_a_time_also_where_many_machines_do() {
        let (uplink, now) = (Uplink::default(), Instant::now());
        let (sender, events) = unbounded();
        let (a, b) = (machine("a"), machine("b"));
        let places = [uplink.queue(1, &a), uplink.queue(2, &a), uplink.queue(3, &b)];
        let first = places[0].try_send(now, waker(&sender, 1)).unwrap();
        assert!(places[1].try_send(now, waker(&sender, 2)).is_none(), "the same machine");
        let other = places[2].try_send(now, waker(&sender, 3));
        assert!(other.is_some(), "another machine, whose slabs come later");
        drop(first);
        assert_eq!(woken(&events), [2]);
        assert!(places[1].try_send(now, waker(&sender, 2)).is_some());
    }

    #[test]
    fn who_gives_up_is_passed_over_and_a_stalled_transfer_holds_up_no_other_machine() {
        let (uplink, now) = (narrow(), Instant::now());
        let (sender, events) = unbounded();
        let machines = ["a", "b", "c", "a"].map(machine);
        let [first, gives_up, other, same] = [0, 1, 2, 3].map(|at| uplink.queue(at, &machines[at as usize]));
        let ask = |place: &Place<'_>, now| place.try_send(now, waker(&sender, place.turn.0)).is_some();
        let permit = first.try_send(now, waker(&sender, 0)).unwrap();
        assert!(!ask(&gives_up, now) && !ask(&other, now) && !ask(&same, now));
        // As after a cancellation.
        drop(gives_up);
        let later = now + STALL / 2;
        permit.acknowledged(1000, later);
        assert!(!ask(&other, later + STALL / 2), "the first one makes progress");
        assert!(!ask(&same, later + STALL), "its own machine is stuck too");
        assert!(ask(&other, later + STALL), "the first one is stuck");
        drop(permit);
        assert!(woken(&events).contains(&3), "the machine of the first one is free");
    }

    #[test]
    fn every_task_gets_its_turn_under_contention() {
        let uplink = Uplink::default();
        let count = 64;
        let done = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for slabs in 0..count {
                let (uplink, done) = (&uplink, &done);
                scope.spawn(move || {
                    let (sender, events) = unbounded();
                    let place = uplink.queue(slabs, &machine(&format!("{}", slabs % 4)));
                    let permit = loop {
                        if let Some(permit) = place.try_send(Instant::now(), waker(&sender, slabs)) {
                            break permit;
                        }
                        // Every fifth gives up once.
                        if slabs % 5 == 0 {
                            return;
                        }
                        events.recv_timeout(Duration::from_secs(20)).unwrap();
                    };
                    permit.acknowledged(1 << 20, Instant::now());
                    drop(permit);
                    done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                });
            }
        });
        assert!(done.into_inner() >= 51);
        assert_eq!(uplink.len(), 0);
    }
}
