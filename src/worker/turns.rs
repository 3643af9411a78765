//! The workers of this machine take turns on its cores.
//!
//! More threads than cores do not compute faster together, they only finish later: a layer that needs four of six
//! results would compute almost all six before the fourth arrives. Here as many threads compute at a time as there are
//! cores, in the order in which they asked. The results that a layer needs are computed one after the other, and those
//! that it does not need are never begun.
//!
//! Relevant if you want to know when a CPU worker starts to compute.
//!
//! Invariant: no thread waits for longer than [`STUCK`] while the threads that have a turn make no progress ([`UNSEEN`] where
//! they cannot show it), and none waits once its task is cancelled. So a thread that hangs, or waits for something else,
//! delays the others by milliseconds, in the middle of a part of a model by a second.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::CancelToken;
use crate::sync::locked;

/// Time without progress after which a thread has lost its turn. Progress is shown several times a millisecond.
const STUCK: Duration = Duration::from_millis(4);

/// Time for which a thread that cannot show progress keeps its turn: one that computes a part of a model.
const UNSEEN: Duration = Duration::from_secs(1);

/// Time between two looks of the first thread that waits, at whether its task was cancelled or a turn was lost, and of the
/// other threads.
const LOOK: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(5)];

static HERE: LazyLock<Cores> =
    LazyLock::new(|| Cores::new(std::thread::available_parallelism().map_or(1, usize::from), STUCK));

thread_local! {
    /// The ticket of this thread's turn on the cores of this machine.
    static TICKET: Cell<Option<u64>> = const { Cell::new(None) };
    /// How long this thread has waited for turns in total.
    static WAITED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// The cores of a machine, and the threads that wait for them.
struct Cores {
    state: Mutex<State>,
    started: Instant,
    /// For each core, the nanoseconds since `started` at which the thread that has it last made progress.
    progress: Vec<AtomicU64>,
    /// A thread that has made no progress for this long has lost its turn.
    stuck: Duration,
}

#[derive(Debug, Default)]
struct State {
    /// For each core, the ticket of the thread that has it.
    holders: Vec<Option<u64>>,
    /// The threads that wait, in their order, with their tickets.
    waiting: VecDeque<(u64, Thread)>,
    next: u64,
}

/// A turn on one or more cores, until it is dropped.
pub(super) struct Turn<'a> {
    cores: &'a Cores,
    ticket: u64,
    held: Vec<usize>,
}

/// Waits for `threads` cores of this machine, or all of them if there are fewer; `None` once `cancel` is cancelled.
pub(super) fn turn(threads: usize, cancel: &CancelToken) -> Option<Turn<'static>> {
    let turn = HERE.turn(threads, cancel);
    TICKET.set(turn.as_ref().map(|turn| turn.ticket));
    turn
}

/// Ends the turn of the calling thread, if it has one, before it sleeps.
pub(super) fn give_up() {
    if let Some(ticket) = TICKET.take() {
        HERE.release(ticket);
    }
}

/// Counts a time for which the calling thread has waited for other tasks, as for a link.
#[cfg(feature = "cluster")]
pub(crate) fn count_wait(time: Duration) {
    WAITED.set(WAITED.get() + time);
}

/// How long the calling thread has waited for turns in total.
pub(crate) fn waited() -> Duration {
    WAITED.get()
}

impl Cores {
    fn new(count: usize, stuck: Duration) -> Self {
        Self {
            state: Mutex::new(State { holders: vec![None; count], ..State::default() }),
            started: Instant::now(),
            progress: (0..count).map(|_| AtomicU64::new(0)).collect(),
            stuck,
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn turn(&self, threads: usize, cancel: &CancelToken) -> Option<Turn<'_>> {
        let since = Instant::now();
        let mut state = locked(&self.state);
        let wanted = threads.clamp(1, state.holders.len());
        let ticket = state.next;
        state.next += 1;
        state.waiting.push_back((ticket, std::thread::current()));
        let mut looked = false;
        let held = loop {
            let first = state.waiting.front().is_some_and(|(first, _)| *first == ticket);
            if first && let Some(held) = self.free(&state, wanted, looked) {
                break Some(held);
            }
            if cancel.is_cancelled() {
                break None;
            }
            drop(state);
            std::thread::park_timeout(LOOK[usize::from(!first)]);
            looked = true;
            state = locked(&self.state);
        };
        state.waiting.retain(|(other, _)| *other != ticket);
        for core in held.iter().flatten() {
            state.holders[*core] = Some(ticket);
            self.progress[*core].store(self.now(), Ordering::Relaxed);
        }
        // Cores may be left for the next one.
        state.wake_first();
        drop(state);
        if looked {
            WAITED.set(WAITED.get() + since.elapsed());
        }
        Some(Turn { cores: self, ticket, held: held? })
    }

    /// Ends the turn with this ticket, unless it was lost to another thread.
    fn release(&self, ticket: u64) {
        let mut state = locked(&self.state);
        state.holders.iter_mut().filter(|holder| **holder == Some(ticket)).for_each(|holder| *holder = None);
        state.wake_first();
    }

    /// `wanted` cores that are free or, with `stuck`, whose threads make no progress.
    fn free(&self, state: &State, wanted: usize, stuck: bool) -> Option<Vec<usize>> {
        let late = self.now().saturating_sub(u64::try_from(self.stuck.as_nanos()).unwrap_or(u64::MAX));
        let free = |core: &usize| {
            state.holders[*core].is_none() || stuck && self.progress[*core].load(Ordering::Relaxed) < late
        };
        let held: Vec<usize> = (0..state.holders.len()).filter(free).take(wanted).collect();
        (held.len() == wanted).then_some(held)
    }
}

impl State {
    fn wake_first(&self) {
        if let Some((_, thread)) = self.waiting.front() {
            thread.unpark();
        }
    }
}

impl Turn<'_> {
    /// Tells those who wait that this thread is computing.
    pub(super) fn progress(&self) {
        self.progress_at(self.cores.now());
    }

    /// Keeps the turn of a thread that will show no progress, for at most [`UNSEEN`].
    pub(super) fn progress_unseen(&self) {
        let unseen = u64::try_from(UNSEEN.as_nanos()).unwrap_or(u64::MAX);
        self.progress_at(self.cores.now().saturating_add(unseen));
    }

    fn progress_at(&self, time: u64) {
        for core in &self.held {
            self.cores.progress[*core].store(time, Ordering::Relaxed);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.cores.release(self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// A thread of a test may be descheduled for long.
    const NEVER: Duration = Duration::from_hours(1);

    /// Lets `count` threads take turns of `each` on `cores`. Returns how many had a turn at once.
    fn crowd(cores: &Cores, count: usize, threads: usize, each: Duration) -> usize {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..count {
                scope.spawn(|| {
                    let turn = cores.turn(threads, &CancelToken::new()).unwrap();
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let end = Instant::now() + each;
                    while Instant::now() < end {
                        turn.progress();
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    now.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        most.into_inner()
    }

    #[test]
    fn as_many_threads_compute_at_once_as_there_are_cores() {
        assert_eq!(crowd(&Cores::new(2, NEVER), 7, 1, Duration::from_millis(4)), 2);
        assert_eq!(crowd(&Cores::new(4, NEVER), 5, 2, Duration::from_millis(4)), 2);
        // More threads than cores take all of them.
        assert_eq!(crowd(&Cores::new(3, NEVER), 3, 8, Duration::from_millis(4)), 1);
        assert!(crowd(&Cores::new(8, NEVER), 5, 1, Duration::from_millis(40)) > 1);
    }

    #[test]
    fn a_thread_without_progress_loses_its_turn() {
        let cores = Cores::new(1, STUCK);
        let stuck = cores.turn(1, &CancelToken::new()).unwrap();
        let since = Instant::now();
        let next = cores.turn(1, &CancelToken::new()).unwrap();
        assert!(since.elapsed() >= STUCK && waited() >= STUCK);
        // The turn that was lost frees nothing that another thread has.
        drop(stuck);
        assert!(locked(&cores.state).holders == [Some(next.ticket)]);
        drop(next);
        let waited_before = waited();
        drop(cores.turn(1, &CancelToken::new()).unwrap());
        assert_eq!(waited(), waited_before);
    }

    #[test]
    fn who_is_cancelled_leaves_the_queue() {
        let cores = Cores::new(1, NEVER);
        let _held = cores.turn(1, &CancelToken::new()).unwrap();
        let cancel = CancelToken::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let end = Instant::now() + Duration::from_secs(10);
                while locked(&cores.state).waiting.is_empty() && Instant::now() < end {
                    std::thread::yield_now();
                }
                cancel.cancel();
            });
            assert!(cores.turn(1, &cancel).is_none());
        });
        assert!(locked(&cores.state).waiting.is_empty());
    }

    #[test]
    fn turns_come_in_the_order_in_which_they_were_asked_for() {
        let (cores, order) = (Cores::new(1, NEVER), Mutex::new(Vec::new()));
        let held = cores.turn(1, &CancelToken::new()).unwrap();
        std::thread::scope(|scope| {
            for index in 0..5 {
                let (cores, order) = (&cores, &order);
                scope.spawn(move || {
                    let turn = cores.turn(1, &CancelToken::new()).unwrap();
                    locked(order).push(index);
                    drop(turn);
                });
                while locked(&cores.state).waiting.len() <= index {
                    std::thread::yield_now();
                }
            }
            drop(held);
        });
        assert_eq!(order.into_inner().unwrap(), [0, 1, 2, 3, 4]);
    }
}
