//! Which runs of a layer are audited.
//!
//! Invariant: with [`Audit::Watch`], at least one of any [`Audit::WATCH_EVERY`] consecutive runs of a layer waits for a
//! result to compare with, or computes one on this machine. If there was none in time, following runs try as well, at
//! growing intervals.

use std::sync::Mutex;

use crate::scheduler::Audit;
use crate::sync::locked;

/// The audits of one layer.
#[derive(Debug)]
pub(super) struct Watch {
    audit: Audit,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Runs until the next audited one.
    due_in: u32,
    /// Unaudited runs that follow that one.
    pause: u32,
    /// Runs until the audit after that, if nothing could be compared.
    retry_in: u32,
    /// Number of following runs that are audited in any case.
    strict: u32,
    /// [`Pool::caught`](crate::scheduler::Pool::caught) at the last check.
    caught: u64,
}

impl Watch {
    /// A schedule for `audit`, in a pool in which `caught` workers were caught so far. The second audit comes in the run of
    /// number `1 + layer % WATCH_EVERY`: layers of one model are audited in different runs, none of which takes much longer.
    pub(super) fn new(audit: Audit, caught: u64, layer: u64) -> Self {
        let every = u64::from(Audit::WATCH_EVERY);
        // The remainder is below `WATCH_EVERY`.
        let pause = u32::try_from(layer % every).unwrap_or_default();
        Self { audit, state: Mutex::new(State { due_in: 0, pause, retry_in: 1, strict: 0, caught }) }
    }

    /// The audit of the run that begins.
    pub(super) fn next(&self, caught: u64) -> Audit {
        if self.audit != Audit::Watch {
            return self.audit;
        }
        let mut state = locked(&self.state);
        if state.caught != caught {
            (state.caught, state.strict) = (caught, Audit::WATCH_EVERY);
        }
        let due = state.due_in == 0;
        state.due_in =
            if due { std::mem::replace(&mut state.pause, Audit::WATCH_EVERY - 1) } else { state.due_in - 1 };
        let strict = state.strict > 0;
        state.strict = state.strict.saturating_sub(1);
        if due || strict { Audit::Watch } else { Audit::Off }
    }

    /// Records whether a run that was to be audited was in fact audited.
    pub(super) fn done(&self, audited: bool) {
        let mut state = locked(&self.state);
        if audited {
            state.retry_in = 1;
            return;
        }
        state.due_in = state.due_in.min(state.retry_in - 1);
        state.retry_in = (2 * state.retry_in).min(Audit::WATCH_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_run_and_one_in_so_many_are_audited_and_all_after_a_worker_was_caught() {
        let watch = Watch::new(Audit::Watch, 3, 31);
        let next = |caught, runs: u32| (0..runs).filter(|_| watch.next(caught) == Audit::Watch).count();
        assert_eq!(watch.next(3), Audit::Watch);
        assert_eq!(next(3, Audit::WATCH_EVERY - 1), 0);
        assert_eq!(watch.next(3), Audit::Watch);
        assert_eq!(next(4, Audit::WATCH_EVERY), Audit::WATCH_EVERY as usize);
        // Back to one run in `WATCH_EVERY`.
        assert_eq!(next(4, 10 * Audit::WATCH_EVERY), 10);
        for other in [Audit::Off, Audit::Detect, Audit::Correct] {
            let watch = Watch::new(other, 0, 7);
            assert!((0..40).all(|run| watch.next(run) == other));
        }
    }

    #[test]
    fn layers_are_audited_in_different_runs_and_each_often_enough() {
        let every = Audit::WATCH_EVERY as usize;
        let mut seconds: Vec<usize> = (0..Audit::WATCH_EVERY)
            .map(|layer| {
                let watch = Watch::new(Audit::Watch, 0, 64 + u64::from(layer));
                let audited: Vec<bool> = (0..5 * every).map(|_| watch.next(0) == Audit::Watch).collect();
                assert!(audited[0] && audited.windows(every).all(|runs| runs.contains(&true)), "{layer}");
                let count = audited.iter().filter(|audited| **audited).count();
                assert!((5..=6).contains(&count), "{layer}: {count}");
                audited.iter().skip(1).position(|audited| *audited).unwrap_or(usize::MAX)
            })
            .collect();
        seconds.sort_unstable();
        assert_eq!(seconds, (0..every).collect::<Vec<_>>());
    }

    #[test]
    fn what_could_not_be_compared_is_tried_again_ever_less_often() {
        let watch = Watch::new(Audit::Watch, 0, 31);
        let mut tried = Vec::new();
        for run in 0..200 {
            if watch.next(0) == Audit::Watch {
                tried.push(run);
                watch.done(false);
            }
        }
        assert_eq!(tried, [0, 1, 3, 7, 15, 31, 63, 95, 127, 159, 191]);
        watch.done(true);
        let again = (0..64).filter(|_| watch.next(0) == Audit::Watch).inspect(|_| watch.done(true)).count();
        assert_eq!(again, 2);
    }
}
