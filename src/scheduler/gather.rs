//! The gather state machine: from sub-results and failures to one decision.

use std::collections::VecDeque;
use std::time::Duration;

use super::policy::{OnShortfall, Policy};

/// Something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A usable sub-result of a subtask arrived.
    SubResult {
        /// Which subtask.
        subtask: usize,
        /// Which of its sub-results.
        index: usize,
    },
    /// One attempt at a subtask ended without all its results, and no more will come from it.
    Failed {
        /// Which subtask.
        subtask: usize,
    },
    /// Nothing but time passed.
    Tick,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// These whole subtasks decode; the run is over and the rest is to be cancelled.
    Decode(Vec<usize>),
    /// Hand this subtask to another worker. The caller answers [`Event::Failed`] when it has none.
    Redispatch(usize),
    /// Compute the layer locally; the run is over.
    Local,
    /// Too few results can come; the run is over.
    Fail,
}

#[derive(Clone, Debug)]
struct Subtask {
    arrived: Vec<bool>,
    /// Attempts that may still deliver.
    outstanding: usize,
    attempts: usize,
}

impl Subtask {
    fn complete(&self) -> bool {
        self.arrived.iter().all(|a| *a)
    }
}

/// One run of one layer. Feed it events in the order they happened; it answers with actions.
///
/// `can_decode` says whether a set of whole subtasks (sorted) determines the result; it must be monotone: a
/// superset of a decodable set decodes.
pub struct Gather<F> {
    policy: Policy,
    can_decode: F,
    subtasks: Vec<Subtask>,
    /// Complete subtasks in order of completion.
    complete: Vec<usize>,
    pending: VecDeque<Action>,
    redispatched_stragglers: bool,
    over: bool,
}

impl<F: Fn(&[usize]) -> bool> Gather<F> {
    /// A run of `n` subtasks of `sub_results` each, all just dispatched at time zero.
    pub fn new(policy: Policy, n: usize, sub_results: usize, can_decode: F) -> Self {
        let subtask = Subtask { arrived: vec![false; sub_results], outstanding: 1, attempts: 1 };
        Self {
            policy,
            can_decode,
            subtasks: vec![subtask; n],
            complete: Vec::with_capacity(n),
            pending: VecDeque::new(),
            redispatched_stragglers: false,
            over: false,
        }
    }

    /// Takes one event at `now` (since the first dispatch).
    pub fn handle(&mut self, now: Duration, event: Event) {
        if self.over {
            return;
        }
        match event {
            Event::SubResult { subtask, index } => self.sub_result(subtask, index),
            Event::Failed { subtask } => {
                if let Some(of) = self.subtasks.get_mut(subtask) {
                    of.outstanding = of.outstanding.saturating_sub(1);
                    self.replace_the_dead();
                }
            }
            Event::Tick => {}
        }
        self.watch_the_clock(now);
    }

    /// The next thing to do, oldest first. After `Decode`, `Local` or `Fail` there is nothing more.
    pub fn next_action(&mut self) -> Option<Action> {
        self.pending.pop_front()
    }

    /// When to send a [`Event::Tick`] if nothing else happens before.
    #[must_use]
    pub fn next_wake(&self) -> Duration {
        let redispatch = self.policy.redispatch_at().filter(|_| !self.redispatched_stragglers);
        [redispatch, self.policy.local_at()].into_iter().flatten().min().unwrap_or(self.policy.deadline)
    }

    /// Subtasks complete so far, in order of completion.
    #[must_use]
    pub fn complete(&self) -> &[usize] {
        &self.complete
    }

    fn sub_result(&mut self, subtask: usize, index: usize) {
        let Some(of) = self.subtasks.get_mut(subtask) else { return };
        let Some(slot) = of.arrived.get_mut(index) else { return };
        // Two attempts at one subtask may both deliver: the first counts.
        if std::mem::replace(slot, true) || !of.complete() {
            return;
        }
        self.complete.push(subtask);
        if let Some(set) = self.decodable(|_| false) {
            self.finish(Action::Decode(set));
        }
    }

    /// The complete subtasks and those that `also` admits, sorted, if they decode.
    fn decodable(&self, also: impl Fn(usize) -> bool) -> Option<Vec<usize>> {
        let set: Vec<usize> =
            (0..self.subtasks.len()).filter(|i| self.subtasks[*i].complete() || also(*i)).collect();
        (self.can_decode)(&set).then_some(set)
    }

    /// When what lives can no longer be enough: redispatch, then local, then give up.
    fn replace_the_dead(&mut self) {
        if self.decodable(|i| self.subtasks[i].outstanding > 0).is_some() {
            return;
        }
        if self.policy.on_shortfall == OnShortfall::Redispatch {
            let mut revived: Vec<usize> = Vec::new();
            let dead = (0..self.subtasks.len()).filter(|i| {
                let s = &self.subtasks[*i];
                !s.complete() && s.outstanding == 0 && s.attempts < Policy::MAX_ATTEMPTS
            });
            let dead: Vec<usize> = dead.collect();
            for subtask in dead {
                revived.push(subtask);
                if self.decodable(|i| self.subtasks[i].outstanding > 0 || revived.contains(&i)).is_some() {
                    self.redispatch(&revived);
                    return;
                }
            }
        }
        let last = if self.policy.on_shortfall == OnShortfall::Fail { Action::Fail } else { Action::Local };
        self.finish(last);
    }

    fn redispatch(&mut self, subtasks: &[usize]) {
        for subtask in subtasks {
            let of = &mut self.subtasks[*subtask];
            of.outstanding += 1;
            of.attempts += 1;
            self.pending.push_back(Action::Redispatch(*subtask));
        }
    }

    fn watch_the_clock(&mut self, now: Duration) {
        if self.over {
            return;
        }
        if now >= self.policy.deadline {
            self.finish(Action::Fail);
        } else if self.policy.local_at().is_some_and(|at| now >= at) {
            self.finish(Action::Local);
        } else if !self.redispatched_stragglers && self.policy.redispatch_at().is_some_and(|at| now >= at) {
            self.redispatched_stragglers = true;
            let mut again: Vec<usize> = Vec::new();
            for i in 0..self.subtasks.len() {
                if self.decodable(|i| again.contains(&i)).is_some() {
                    break;
                }
                if !self.subtasks[i].complete() && self.subtasks[i].attempts < Policy::MAX_ATTEMPTS {
                    again.push(i);
                }
            }
            self.redispatch(&again);
        }
    }

    fn finish(&mut self, action: Action) {
        self.over = true;
        self.pending.clear();
        self.pending.push_back(action);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy(on_shortfall: OnShortfall) -> Policy {
        Policy { deadline: 8 * SECOND, on_shortfall }
    }

    /// n subtasks of two sub-results, any `delta` of which decode.
    fn gather(on_shortfall: OnShortfall, n: usize, delta: usize) -> Gather<impl Fn(&[usize]) -> bool> {
        Gather::new(policy(on_shortfall), n, 2, move |set| set.len() >= delta)
    }

    fn deliver<F: Fn(&[usize]) -> bool>(g: &mut Gather<F>, subtask: usize) {
        for index in 0..2 {
            g.handle(Duration::ZERO, Event::SubResult { subtask, index });
        }
    }

    fn actions<F: Fn(&[usize]) -> bool>(g: &mut Gather<F>) -> Vec<Action> {
        std::iter::from_fn(|| g.next_action()).collect()
    }

    #[test]
    fn decodes_at_the_first_decodable_set_in_any_order_and_then_is_deaf() {
        let mut g = gather(OnShortfall::Fail, 6, 4);
        for subtask in [5, 2, 0] {
            deliver(&mut g, subtask);
        }
        g.handle(Duration::ZERO, Event::SubResult { subtask: 3, index: 1 });
        assert_eq!(actions(&mut g), []);
        g.handle(Duration::ZERO, Event::SubResult { subtask: 3, index: 0 });
        assert_eq!(actions(&mut g), [Action::Decode(vec![0, 2, 3, 5])]);
        assert_eq!(g.complete(), [5, 2, 0, 3]);
        deliver(&mut g, 1);
        g.handle(100 * SECOND, Event::Tick);
        assert_eq!(actions(&mut g), []);
    }

    #[test]
    fn repeated_and_unknown_sub_results_do_not_count() {
        let mut g = gather(OnShortfall::Fail, 2, 1);
        for event in [
            Event::SubResult { subtask: 0, index: 0 },
            Event::SubResult { subtask: 0, index: 0 },
            Event::SubResult { subtask: 7, index: 0 },
            Event::SubResult { subtask: 1, index: 9 },
            Event::Failed { subtask: 7 },
        ] {
            g.handle(Duration::ZERO, event);
            assert_eq!(actions(&mut g), []);
        }
    }

    #[test]
    fn fails_as_soon_as_the_dead_are_known_not_at_the_deadline() {
        let mut g = gather(OnShortfall::Fail, 6, 4);
        for subtask in [0, 1] {
            g.handle(Duration::ZERO, Event::Failed { subtask });
            assert_eq!(actions(&mut g), []);
        }
        g.handle(Duration::ZERO, Event::Failed { subtask: 2 });
        assert_eq!(actions(&mut g), [Action::Fail]);
    }

    #[test]
    fn silence_fails_at_the_deadline_and_not_before() {
        let mut g = gather(OnShortfall::Fail, 6, 4);
        assert_eq!(g.next_wake(), 8 * SECOND);
        g.handle(Duration::from_nanos(7_999_999_999), Event::Tick);
        assert_eq!(actions(&mut g), []);
        g.handle(8 * SECOND, Event::Tick);
        assert_eq!(actions(&mut g), [Action::Fail]);
    }

    #[test]
    fn the_dead_are_replaced_just_as_far_as_needed() {
        let mut g = gather(OnShortfall::Redispatch, 6, 4);
        for subtask in [1, 3, 5] {
            g.handle(Duration::ZERO, Event::Failed { subtask });
        }
        assert_eq!(actions(&mut g), [Action::Redispatch(1)]);
        for subtask in [0, 2, 4] {
            deliver(&mut g, subtask);
        }
        assert_eq!(actions(&mut g), []);
        deliver(&mut g, 1);
        assert_eq!(actions(&mut g), [Action::Decode(vec![0, 1, 2, 4])]);
    }

    #[test]
    fn when_every_attempt_dies_the_layer_is_computed_locally() {
        let mut g = gather(OnShortfall::Redispatch, 2, 1);
        let mut handed_out = 2;
        let mut queue = VecDeque::from([0, 1]);
        while let Some(subtask) = queue.pop_front() {
            g.handle(Duration::ZERO, Event::Failed { subtask });
            for action in actions(&mut g) {
                match action {
                    Action::Redispatch(subtask) => {
                        handed_out += 1;
                        queue.push_back(subtask);
                    }
                    other => assert_eq!(other, Action::Local),
                }
            }
        }
        assert_eq!(handed_out, 2 * Policy::MAX_ATTEMPTS);
        assert!(g.over);
        let mut g = gather(OnShortfall::Local, 2, 2);
        g.handle(Duration::ZERO, Event::Failed { subtask: 0 });
        assert_eq!(actions(&mut g), [Action::Local]);
    }

    #[test]
    fn silent_workers_are_replaced_at_half_time_and_given_up_at_three_quarters() {
        let mut g = gather(OnShortfall::Redispatch, 6, 4);
        deliver(&mut g, 0);
        deliver(&mut g, 1);
        assert_eq!(g.next_wake(), 4 * SECOND);
        g.handle(4 * SECOND, Event::Tick);
        assert_eq!(actions(&mut g), [Action::Redispatch(2), Action::Redispatch(3)]);
        assert_eq!(g.next_wake(), 6 * SECOND);
        // The replacement of one and the original of another finish it.
        deliver(&mut g, 2);
        deliver(&mut g, 4);
        assert_eq!(actions(&mut g), [Action::Decode(vec![0, 1, 2, 4])]);

        let mut g = gather(OnShortfall::Redispatch, 6, 4);
        g.handle(4 * SECOND, Event::Tick);
        assert_eq!(actions(&mut g).len(), 4);
        g.handle(6 * SECOND, Event::Tick);
        assert_eq!(actions(&mut g), [Action::Local]);
    }

    #[test]
    fn a_failed_copy_does_not_kill_a_subtask_whose_other_copy_works() {
        let mut g = gather(OnShortfall::Redispatch, 1, 1);
        g.handle(4 * SECOND, Event::Tick);
        assert_eq!(actions(&mut g), [Action::Redispatch(0)]);
        g.handle(4 * SECOND, Event::Failed { subtask: 0 });
        assert_eq!(actions(&mut g), []);
        deliver(&mut g, 0);
        assert_eq!(actions(&mut g), [Action::Decode(vec![0])]);
    }

    /// Every order of deliveries and deaths of a small code: decodes exactly when delta are complete, fails
    /// exactly when too few are left, and never does both.
    #[test]
    fn every_history_of_a_small_code_ends_in_the_right_action() {
        let (n, delta) = (4, 2);
        for history in 0..3usize.pow(4) * 24 {
            let (fates, order) = (history % 81, history / 81);
            let mut left: Vec<usize> = (0..n).collect();
            let mut code = order;
            let mut g = gather(OnShortfall::Fail, n, delta);
            let (mut done, mut dead) = (0, 0);
            let mut ended = None;
            for step in (1..=n).rev() {
                let subtask = left.remove(code % step);
                code /= step;
                match fates / 3usize.pow(u32::try_from(subtask).unwrap()) % 3 {
                    0 => {
                        deliver(&mut g, subtask);
                        done += 1;
                    }
                    1 => {
                        g.handle(Duration::ZERO, Event::Failed { subtask });
                        dead += 1;
                    }
                    _ => {}
                }
                let got = actions(&mut g);
                let expected = match ended {
                    None if done >= delta => vec!["decode"],
                    None if n - dead < delta => vec!["fail"],
                    _ => vec![],
                };
                let names: Vec<_> = got
                    .iter()
                    .map(|a| if matches!(a, Action::Decode(_)) { "decode" } else { "fail" })
                    .collect();
                assert_eq!(names, expected, "history {history}");
                if !got.is_empty() {
                    ended = Some(());
                }
            }
        }
    }
}
