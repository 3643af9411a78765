//! The master's record of the slabs that machines hold, so that tasks that share them send them once.
//!
//! The workers of one machine run on threads of their own. The first that needs some slabs on the machine sends them; the
//! others wait until they have arrived. If the sender fails or is cancelled, the next one continues.
//!
//! Invariant: a transfer ends with its [`Lead`], however that ends, and its end wakes everything that waits for it.

use std::collections::HashMap;
use std::sync::Mutex;

use super::registry::MemberId;
use crate::sync::locked;

/// A machine and the number of shared slabs.
pub(super) type Copy = (MemberId, u64);

/// Wakes a call that waits.
pub(super) type Waker = Box<dyn FnOnce() + Send>;

/// See the module documentation.
#[derive(Default)]
pub(super) struct Sharing {
    copies: Mutex<HashMap<Copy, State>>,
}

enum State {
    Absent,
    /// A worker sends them; these calls wait for the end.
    Sending(Vec<Waker>),
    There,
}

/// What a call has to do that needs slabs on a machine.
pub(super) enum Turn<'a> {
    /// Use them: they are there.
    Use,
    /// Send them.
    Send(Lead<'a>),
    /// Wait until the waker is called, then ask again.
    Wait,
}

/// The right and duty to send slabs to a machine. Dropping it ends the transfer without success.
pub(super) struct Lead<'a> {
    sharing: &'a Sharing,
    of: Copy,
    /// Whether nothing was sent to the machine before, as far as is known.
    pub(super) first: bool,
    arrived: bool,
}

impl Sharing {
    /// What a call has to do. `waker` makes what wakes it, where it has to wait; `new` is called if these slabs were never needed
    /// on the machine.
    pub(super) fn turn(&self, of: &Copy, waker: impl FnOnce() -> Waker, new: impl FnOnce()) -> Turn<'_> {
        let mut copies = locked(&self.copies);
        let lead = |first| Turn::Send(Lead { sharing: self, of: of.clone(), first, arrived: false });
        match copies.get_mut(of) {
            Some(State::There) => Turn::Use,
            Some(State::Sending(waiting)) => {
                waiting.push(waker());
                Turn::Wait
            }
            Some(state @ State::Absent) => {
                *state = State::Sending(Vec::new());
                lead(false)
            }
            None => {
                copies.insert(of.clone(), State::Sending(Vec::new()));
                drop(copies);
                new();
                lead(true)
            }
        }
    }

    /// Records that the machine does not hold the slabs any more.
    pub(super) fn lost(&self, of: &Copy) {
        if let Some(state @ State::There) = locked(&self.copies).get_mut(of) {
            *state = State::Absent;
        }
    }

    /// Forgets slabs whose run is over.
    pub(super) fn forget(&self, of: &Copy) {
        let before = locked(&self.copies).remove(of);
        wake(before);
    }

    fn end(&self, of: &Copy, state: State) {
        let mut copies = locked(&self.copies);
        // Slabs of a run that is over stay forgotten.
        let before = copies.get_mut(of).map(|own| std::mem::replace(own, state));
        drop(copies);
        wake(before);
    }

    /// Number of copies on record.
    #[cfg(test)]
    fn len(&self) -> usize {
        locked(&self.copies).len()
    }
}

fn wake(before: Option<State>) {
    if let Some(State::Sending(waiting)) = before {
        for wake in waiting {
            wake();
        }
    }
}

impl Lead<'_> {
    /// Records that the slabs have arrived.
    pub(super) fn arrived(mut self) {
        self.arrived = true;
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.sharing.end(&self.of, if self.arrived { State::There } else { State::Absent });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use crossbeam_channel::{Sender, unbounded};

    use super::*;

    fn waker(sender: &Sender<()>) -> Waker {
        let sender = sender.clone();
        Box::new(move || sender.send(()).unwrap())
    }

    #[test]
    fn one_sends_the_others_wait_and_the_next_takes_over_if_it_fails() {
        let sharing = Sharing::default();
        let (of, other) = ((("alpha".to_owned(), 1), 7), (("alpha".to_owned(), 2), 7));
        let (sender, events) = unbounded();
        let mut new = 0;
        let Turn::Send(lead) = sharing.turn(&of, || waker(&sender), || new += 1) else {
            panic!("the first sends")
        };
        assert!(lead.first);
        assert!(matches!(sharing.turn(&of, || waker(&sender), || new += 1), Turn::Wait));
        // Another boot of the machine has no copy.
        assert!(matches!(sharing.turn(&other, || waker(&sender), || new += 1), Turn::Send(_)));
        assert_eq!(new, 2);
        assert!(events.is_empty());
        drop(lead);
        assert!(matches!(events.try_recv(), Ok(())));
        let Turn::Send(lead) = sharing.turn(&of, || waker(&sender), || new += 1) else {
            panic!("the next sends")
        };
        assert!(!lead.first);
        assert!(matches!(sharing.turn(&of, || waker(&sender), || new += 1), Turn::Wait));
        lead.arrived();
        assert!(matches!(events.try_recv(), Ok(())));
        assert!(matches!(sharing.turn(&of, || waker(&sender), || new += 1), Turn::Use));
        sharing.lost(&of);
        assert!(matches!(sharing.turn(&of, || waker(&sender), || new += 1), Turn::Send(_)));
        assert_eq!(new, 2);
    }

    #[test]
    fn a_run_that_ends_wakes_those_that_wait_and_leaves_nothing() {
        let sharing = Sharing::default();
        let of = (("alpha".to_owned(), 1), 7);
        let (sender, events) = unbounded();
        let Turn::Send(lead) = sharing.turn(&of, || waker(&sender), || ()) else { panic!("the first sends") };
        assert!(matches!(sharing.turn(&of, || waker(&sender), || ()), Turn::Wait));
        sharing.forget(&of);
        assert!(matches!(events.try_recv(), Ok(())));
        // The transfer ends after its run.
        lead.arrived();
        assert_eq!(sharing.len(), 0);
    }
}
