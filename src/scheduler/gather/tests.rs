//! Scripted runs: which actions follow which events.

mod better_sets;
mod suspects;

use super::*;
use crate::array::{Pooled, Values};
use crate::ids::WorkerId;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// Any `delta` complete subtasks decode, or any `parts` sub-results. The error is that of a table, by the number
/// of complete subtasks.
#[derive(Default)]
struct Counted {
    delta: usize,
    /// Number of sub-results of any subtasks that decode, once parts count.
    parts: Option<usize>,
    counts_parts: bool,
    /// Predicted error by the number of complete subtasks beyond delta.
    errors: Vec<f64>,
    /// Verdicts still to be given; afterwards it accepts.
    verdicts: Vec<Verdict>,
    doubt: Option<usize>,
    judged: Vec<Vec<SubtaskId>>,
    wishes: bool,
}

impl Counted {
    fn error_of(&self, complete: usize) -> f64 {
        match complete.checked_sub(self.delta) {
            None => f64::INFINITY,
            Some(beyond) => self.errors.get(beyond).or(self.errors.last()).copied().unwrap_or(0.0),
        }
    }
}

impl Recovery for Counted {
    fn count_parts(&mut self, _: &Arrivals) {
        self.counts_parts = true;
    }
    fn error(&mut self, arrivals: &Arrivals) -> f64 {
        let complete = arrivals.complete().len();
        if self.doubt.is_some_and(|since| complete <= since) {
            return f64::INFINITY;
        }
        if self.counts_parts && self.parts.is_some_and(|parts| arrivals.in_order().count() >= parts) {
            return 0.0;
        }
        self.error_of(complete)
    }
    fn error_with(&mut self, arrivals: &Arrivals, more: &[SubtaskId]) -> f64 {
        let new = more.iter().filter(|i| !arrivals.is_complete(**i)).count();
        self.error_of(arrivals.complete().len() + new)
    }
    fn suffices_with(&self, arrivals: &Arrivals, also: &dyn Fn(SubtaskId) -> bool) -> bool {
        let complete = |i: SubtaskId| arrivals.is_complete(i) || also(i);
        arrivals.subtasks().filter(|i| complete(*i)).count() >= self.needed()
    }
    fn judge(&mut self, arrivals: &Arrivals) -> Verdict {
        self.judged.push(arrivals.complete().to_vec());
        let verdict = self.verdicts.pop().unwrap_or(Verdict::Accept);
        self.doubt = (verdict == Verdict::Doubt).then(|| arrivals.complete().len());
        verdict
    }
    fn in_doubt(&self) -> bool {
        self.doubt.is_some()
    }
    fn wishes(&self, _: &Arrivals) -> bool {
        self.wishes
    }
    fn used(&self, arrivals: &Arrivals) -> Vec<(SubtaskId, usize)> {
        arrivals.in_order().map(|a| (a.subtask, a.index)).collect()
    }
    fn needed(&self) -> usize {
        self.doubt.map_or(self.delta, |since| since + 1)
    }
}

fn policy(on_shortfall: OnShortfall) -> Policy {
    Policy { deadline: 8 * SECOND, on_shortfall, hedge: None, audit: Audit::Correct, ..Policy::default() }
}

fn counted(delta: usize) -> Counted {
    Counted { delta, ..Counted::default() }
}

/// n subtasks of two sub-results, any `delta` of which decode.
fn gather(on_shortfall: OnShortfall, n: usize, delta: usize) -> Gather<Counted> {
    Gather::new(policy(on_shortfall), RunEstimates::default(), n, 2, counted(delta))
}

fn arrive(g: &mut Gather<Counted>, now: Duration, subtask: usize, index: usize) -> Recorded {
    let values = Pooled::unpooled(Values::F32(Vec::new()));
    let subtask = SubtaskId(subtask);
    g.deliver(now, Arrival { subtask, index, worker: WorkerId(0), attempt: 0, values, sketch: None })
}

fn deliver_at(g: &mut Gather<Counted>, now: Duration, subtask: usize) {
    for index in 0..2 {
        arrive(g, now, subtask, index);
    }
}

fn deliver(g: &mut Gather<Counted>, subtask: usize) {
    deliver_at(g, Duration::ZERO, subtask);
}

fn actions(g: &mut Gather<Counted>) -> Vec<Action> {
    std::iter::from_fn(|| g.next_action()).collect()
}

#[test]
fn decodes_at_the_first_decodable_set_in_any_order_and_then_is_deaf() {
    let mut g = gather(OnShortfall::Fail, 6, 4);
    for subtask in [5, 2, 0] {
        deliver(&mut g, subtask);
    }
    arrive(&mut g, Duration::ZERO, 3, 1);
    assert_eq!(actions(&mut g), []);
    assert_eq!(([3, 4, 5].map(|i| g.arrivals().missing(SubtaskId(i)))), [vec![0], vec![0, 1], vec![]]);
    arrive(&mut g, Duration::ZERO, 3, 0);
    assert_eq!(actions(&mut g), [Action::Decode]);
    assert_eq!(g.recovery().judged, [[0, 2, 3, 5].map(SubtaskId)]);
    assert_eq!(g.arrivals().complete(), [0, 2, 3, 5].map(SubtaskId));
    deliver(&mut g, 1);
    g.handle(100 * SECOND, Event::Tick);
    assert_eq!(actions(&mut g), []);
}

#[test]
fn repeated_and_unknown_sub_results_do_not_count() {
    let mut g = gather(OnShortfall::Fail, 2, 1);
    for (subtask, index, expected) in [
        (0, 0, Recorded::First),
        (0, 0, Recorded::Repeated),
        (7, 0, Recorded::Unknown),
        (1, 9, Recorded::Unknown),
    ] {
        assert_eq!(arrive(&mut g, Duration::ZERO, subtask, index), expected);
        assert_eq!(actions(&mut g), []);
    }
    for event in [Event::Failed { subtask: SubtaskId(7) }, Event::Declined { subtask: SubtaskId(7) }] {
        g.handle(Duration::ZERO, event);
        assert_eq!(actions(&mut g), []);
    }
}

#[test]
fn fails_as_soon_as_the_dead_are_known_not_at_the_deadline() {
    let mut g = gather(OnShortfall::Fail, 6, 4);
    for subtask in [0, 1] {
        g.handle(Duration::ZERO, Event::Failed { subtask: SubtaskId(subtask) });
        assert_eq!(actions(&mut g), []);
    }
    g.handle(Duration::ZERO, Event::Failed { subtask: SubtaskId(2) });
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
        g.handle(Duration::ZERO, Event::Failed { subtask: SubtaskId(subtask) });
    }
    assert_eq!(actions(&mut g), [Action::Redispatch(SubtaskId(1))]);
    for subtask in [0, 2, 4] {
        deliver(&mut g, subtask);
    }
    assert_eq!(actions(&mut g), []);
    deliver(&mut g, 1);
    assert_eq!(actions(&mut g), [Action::Decode]);
}

#[test]
fn when_every_attempt_dies_the_layer_is_computed_locally() {
    let mut g = gather(OnShortfall::Redispatch, 2, 1);
    let mut handed_out = 2;
    let mut queue = VecDeque::from([0, 1]);
    while let Some(subtask) = queue.pop_front() {
        g.handle(Duration::ZERO, Event::Failed { subtask: SubtaskId(subtask) });
        for action in actions(&mut g) {
            match action {
                Action::Redispatch(subtask) => {
                    handed_out += 1;
                    queue.push_back(subtask.0);
                }
                other => assert_eq!(other, Action::Local),
            }
        }
    }
    assert_eq!(handed_out, 2 * Policy::MAX_ATTEMPTS);
    assert!(g.over);
    let mut g = gather(OnShortfall::Local, 2, 2);
    g.handle(Duration::ZERO, Event::Failed { subtask: SubtaskId(0) });
    assert_eq!(actions(&mut g), [Action::Local]);
}

#[test]
fn silent_workers_are_replaced_at_half_time_and_given_up_at_three_quarters() {
    let mut g = gather(OnShortfall::Redispatch, 6, 4);
    deliver(&mut g, 0);
    deliver(&mut g, 1);
    assert_eq!(g.next_wake(), 4 * SECOND);
    g.handle(4 * SECOND, Event::Tick);
    assert_eq!(actions(&mut g), [Action::Redispatch(SubtaskId(2)), Action::Redispatch(SubtaskId(3))]);
    assert_eq!(g.next_wake(), 6 * SECOND);
    // The replacement of one subtask and the original of another finish the run.
    deliver(&mut g, 2);
    deliver(&mut g, 4);
    assert_eq!(actions(&mut g), [Action::Decode]);

    let mut g = gather(OnShortfall::Redispatch, 6, 4);
    g.handle(4 * SECOND, Event::Tick);
    assert_eq!(actions(&mut g).len(), 4);
    g.handle(6 * SECOND, Event::Tick);
    assert_eq!(actions(&mut g), [Action::Local]);
}

#[test]
fn a_slow_host_begins_its_own_computation_earlier() {
    let terms = RunEstimates { local: 3 * SECOND, ..RunEstimates::default() };
    let mut g = Gather::new(policy(OnShortfall::Local), terms, 6, 2, counted(4));
    assert_eq!(g.next_wake(), 2 * SECOND);
    g.handle(2 * SECOND, Event::Tick);
    assert_eq!(actions(&mut g), [Action::Local]);
}

#[test]
fn a_failed_copy_does_not_kill_a_subtask_whose_other_copy_works() {
    let mut g = gather(OnShortfall::Redispatch, 1, 1);
    g.handle(4 * SECOND, Event::Tick);
    assert_eq!(actions(&mut g), [Action::Redispatch(SubtaskId(0))]);
    g.handle(4 * SECOND, Event::Failed { subtask: SubtaskId(0) });
    assert_eq!(actions(&mut g), []);
    deliver(&mut g, 0);
    assert_eq!(actions(&mut g), [Action::Decode]);
}

fn hedge(subtask: usize, spare: bool) -> Action {
    Action::Hedge { subtask: SubtaskId(subtask), spare }
}

#[test]
fn overdue_subtasks_are_hedged_twice_as_far_as_needed_and_once() {
    let policy = Policy { hedge: Some(0.9), ..policy(OnShortfall::Redispatch) };
    let terms = RunEstimates { hedge_at: Some(50 * MS), ..RunEstimates::default() };
    let mut g = Gather::new(policy, terms, 9, 2, counted(4));
    deliver(&mut g, 0);
    deliver(&mut g, 1);
    // Subtask 2 has begun: subtasks that have not are hedged first.
    arrive(&mut g, 10 * MS, 2, 0);
    assert_eq!((g.next_wake(), actions(&mut g)), (50 * MS, vec![]));
    g.handle(49 * MS, Event::Tick);
    assert_eq!(actions(&mut g), []);
    g.handle(50 * MS, Event::Tick);
    assert_eq!(actions(&mut g), [3, 4, 5, 6].map(|i| hedge(i, true)));
    // No worker is idle for some of them. Their hedges are tried again when a worker becomes idle, if still needed.
    for subtask in [4, 5, 6] {
        g.handle(50 * MS, Event::Declined { subtask: SubtaskId(subtask) });
    }
    assert_eq!((g.next_wake(), actions(&mut g)), (100 * MS, vec![]));
    deliver_at(&mut g, 60 * MS, 8);
    assert_eq!(actions(&mut g), []);
    g.handle(60 * MS, Event::Idle);
    assert_eq!(actions(&mut g), [hedge(4, true)]);
    g.handle(60 * MS, Event::Declined { subtask: SubtaskId(4) });
    // Both the copy and the original fail. The next hedge is due when the elapsed time has doubled.
    g.handle(61 * MS, Event::Failed { subtask: SubtaskId(3) });
    g.handle(62 * MS, Event::Failed { subtask: SubtaskId(3) });
    assert_eq!((g.next_wake(), actions(&mut g)), (100 * MS, vec![]));
    g.handle(100 * MS, Event::Tick);
    assert_eq!(actions(&mut g), [hedge(3, false), hedge(4, false)]);
    deliver_at(&mut g, 130 * MS, 2);
    assert_eq!(actions(&mut g), [Action::Decode]);
}

#[test]
fn copies_that_are_silent_too_are_hedged_again_after_as_long_again() {
    let policy = Policy { hedge: Some(0.9), ..policy(OnShortfall::Redispatch) };
    let terms = RunEstimates { hedge_at: Some(50 * MS), ..RunEstimates::default() };
    let mut g = Gather::new(policy, terms, 2, 2, counted(1));
    for (at, next) in [(50, 100), (100, 200), (200, 400)] {
        assert_eq!(g.next_wake(), at * MS);
        g.handle(at * MS, Event::Tick);
        // Three attempts at each subtask are the maximum.
        let expected = if at == 200 { vec![] } else { vec![hedge(0, at == 50), hedge(1, at == 50)] };
        assert_eq!((actions(&mut g), g.next_wake()), (expected, next * MS));
    }
}

#[test]
fn without_experience_the_run_itself_tells_what_is_overdue() {
    let policy = Policy { hedge: Some(0.9), ..policy(OnShortfall::Redispatch) };
    let mut g = Gather::new(policy, RunEstimates::default(), 6, 2, counted(4));
    deliver_at(&mut g, 10 * MS, 0);
    deliver_at(&mut g, 12 * MS, 1);
    assert_eq!(g.next_wake(), SECOND);
    deliver_at(&mut g, 15 * MS, 2);
    assert_eq!(g.next_wake(), 45 * MS);
    g.handle(45 * MS, Event::Tick);
    assert_eq!(actions(&mut g), [hedge(3, true), hedge(4, true)]);
    for on_shortfall in [OnShortfall::Fail, OnShortfall::Local] {
        let policy = Policy { hedge: Some(0.9), ..self::policy(on_shortfall) };
        let terms = RunEstimates { hedge_at: Some(MS), ..RunEstimates::default() };
        let mut g = Gather::new(policy, terms, 6, 2, counted(4));
        g.handle(SECOND, Event::Tick);
        assert_eq!(actions(&mut g), [], "hedging is a kind of redispatch");
    }
}

#[test]
fn parts_of_subtasks_count_from_their_time_on() {
    let with = |partial| {
        let recovery = Counted { parts: Some(8), ..counted(4) };
        let terms = RunEstimates { parts_at: Some(2 * MS), ..RunEstimates::default() };
        let policy = Policy { partial, ..policy(OnShortfall::Fail) };
        let mut g = Gather::new(policy, terms, 6, 2, recovery);
        deliver(&mut g, 0);
        deliver(&mut g, 1);
        for subtask in 2..6 {
            arrive(&mut g, MS, subtask, 0);
            assert_eq!(actions(&mut g), []);
        }
        g
    };
    let mut g = with(true);
    assert_eq!(g.next_wake(), 2 * MS);
    g.handle(2 * MS, Event::Tick);
    assert_eq!(actions(&mut g), [Action::Decode]);
    let mut g = with(false);
    assert_eq!(g.next_wake(), 8 * SECOND);
    g.handle(3 * MS, Event::Tick);
    assert_eq!(actions(&mut g), []);
    deliver(&mut g, 2);
    deliver(&mut g, 3);
    assert_eq!(actions(&mut g), [Action::Decode]);
}

#[test]
fn doubt_waits_for_more_results_and_is_never_covered_up() {
    let with = |on_shortfall, verdicts: Vec<Verdict>| {
        let recovery = Counted { verdicts, ..counted(4) };
        let mut g = Gather::new(policy(on_shortfall), RunEstimates::default(), 6, 2, recovery);
        for subtask in 0..4 {
            deliver(&mut g, subtask);
        }
        g
    };
    let mut g = with(OnShortfall::Fail, vec![Verdict::Doubt]);
    assert_eq!(actions(&mut g), []);
    deliver(&mut g, 4);
    assert_eq!(actions(&mut g), [Action::Decode]);
    assert_eq!(g.recovery().judged.len(), 2);
    // No more results come: redispatch where allowed, and refuse in the end instead of computing locally.
    let mut g = with(OnShortfall::Redispatch, vec![Verdict::Doubt, Verdict::Doubt]);
    g.handle(MS, Event::Failed { subtask: SubtaskId(4) });
    assert_eq!(actions(&mut g), []);
    g.handle(MS, Event::Failed { subtask: SubtaskId(5) });
    assert_eq!(actions(&mut g), [Action::Redispatch(SubtaskId(4))]);
    deliver(&mut g, 4);
    assert_eq!(actions(&mut g), [Action::Redispatch(SubtaskId(5))]);
    g.handle(MS, Event::Failed { subtask: SubtaskId(5) });
    assert_eq!(actions(&mut g), [Action::Redispatch(SubtaskId(5))]);
    g.handle(MS, Event::Failed { subtask: SubtaskId(5) });
    assert_eq!(actions(&mut g), [Action::Refuse]);
    let mut g = with(OnShortfall::Local, vec![Verdict::Doubt]);
    g.handle(7 * SECOND, Event::Tick);
    assert_eq!(actions(&mut g), [Action::Refuse]);
    let mut g = with(OnShortfall::Fail, vec![Verdict::Refuse]);
    assert_eq!(actions(&mut g), [Action::Refuse]);
}

#[test]
fn a_result_to_compare_with_is_waited_for_as_long_again_and_no_longer() {
    let watched = |on_shortfall| {
        let recovery = Counted { wishes: true, ..counted(4) };
        let policy = Policy { audit: Audit::Watch, ..policy(on_shortfall) };
        let mut g = Gather::new(policy, RunEstimates::default(), 6, 2, recovery);
        for subtask in 0..4 {
            deliver_at(&mut g, 100 * MS, subtask);
        }
        g
    };
    let mut g = watched(OnShortfall::Fail);
    assert_eq!((actions(&mut g), g.next_wake()), (vec![], 200 * MS));
    deliver_at(&mut g, 150 * MS, 5);
    assert_eq!(actions(&mut g), [], "it still wishes for more");
    g.handle(200 * MS, Event::Tick);
    assert_eq!(actions(&mut g), [Action::Decode]);
    // No more results can come: another worker is asked, where allowed.
    let mut g = watched(OnShortfall::Redispatch);
    g.handle(110 * MS, Event::Failed { subtask: SubtaskId(4) });
    assert_eq!(actions(&mut g), []);
    g.handle(120 * MS, Event::Failed { subtask: SubtaskId(5) });
    assert_eq!(actions(&mut g), [Action::Spare(SubtaskId(4))]);
    g.handle(200 * MS, Event::Tick);
    assert_eq!(actions(&mut g), [Action::Decode]);
    let mut g = watched(OnShortfall::Local);
    g.handle(110 * MS, Event::Failed { subtask: SubtaskId(4) });
    g.handle(120 * MS, Event::Failed { subtask: SubtaskId(5) });
    assert_eq!(actions(&mut g), [Action::Decode]);
}

#[test]
fn where_this_machine_can_compute_a_spare_result_the_wait_is_no_longer_than_that_takes() {
    let watched = |own| {
        let recovery = Counted { wishes: true, ..counted(4) };
        let policy = Policy { audit: Audit::Watch, ..policy(OnShortfall::Redispatch) };
        let estimates = RunEstimates { spare: Some(own), ..RunEstimates::default() };
        let mut g = Gather::new(policy, estimates, 6, 2, recovery);
        for subtask in 0..4 {
            deliver_at(&mut g, 100 * MS, subtask);
        }
        g
    };
    // The longest wait is that of other layers.
    for (own, until) in [(30 * MS, 130 * MS), (Duration::ZERO, 100 * MS + MS / 20), (7 * SECOND, 200 * MS)] {
        let mut g = watched(own);
        assert_eq!((actions(&mut g), g.next_wake()), (vec![], until), "{own:?}");
        g.handle(until, Event::Tick);
        assert_eq!(actions(&mut g), [Action::Decode], "{own:?}");
    }
    // No more results can come: no worker is asked.
    let mut g = watched(30 * MS);
    g.handle(110 * MS, Event::Failed { subtask: SubtaskId(4) });
    g.handle(120 * MS, Event::Failed { subtask: SubtaskId(5) });
    assert_eq!(actions(&mut g), [Action::Decode]);
}

/// Every order of deliveries and failures for a small code: the run decodes exactly when delta subtasks are complete, fails
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
                    g.handle(Duration::ZERO, Event::Failed { subtask: SubtaskId(subtask) });
                    dead += 1;
                }
                _ => {}
            }
            let expected = match ended {
                None if done >= delta => vec![Action::Decode],
                None if n - dead < delta => vec![Action::Fail],
                _ => vec![],
            };
            let got = actions(&mut g);
            assert_eq!(got, expected, "history {history}");
            if !got.is_empty() {
                ended = Some(());
            }
        }
    }
}
