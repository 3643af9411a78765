//! Runs that could decode and wait for a better conditioned set.

use super::*;
use crate::ids::SubtaskId;

/// A set that decodes with an error of 1e-3; with one more result 1e-5.
fn badly_conditioned(patience: f64, expected: [Option<Duration>; 6]) -> Gather<Counted> {
    let policy = Policy { patience, ..policy(OnShortfall::Fail) };
    let terms = RunEstimates { comfortable: 1e-4, expected: expected.to_vec(), ..RunEstimates::default() };
    let recovery = Counted { errors: vec![1e-3, 1e-5], ..counted(4) };
    let mut g = Gather::new(policy, terms, 6, 2, recovery);
    for subtask in 0..4 {
        deliver_at(&mut g, 100 * MS, subtask);
    }
    g
}

#[test]
fn one_more_result_is_worth_waiting_for_while_the_gain_pays_for_the_wait() {
    let at = |ms: u32| Some(ms * MS);
    // Two digits at a tenth of 100 ms each: up to 120 ms.
    let mut g = badly_conditioned(0.1, [None, None, None, None, at(115), at(500)]);
    assert_eq!((actions(&mut g), g.next_wake()), (vec![], 120 * MS));
    deliver_at(&mut g, 114 * MS, 4);
    assert_eq!(actions(&mut g), [Action::Decode]);
    assert_eq!(g.recovery().judged, [[0, 1, 2, 3, 4].map(SubtaskId)]);
    // The result is late. The later it is, the later it is expected, so the run stops waiting before the limit.
    for (end, late) in [(120, 117), (119, 116)] {
        let mut g = badly_conditioned(0.1, [None, None, None, None, at(115), at(500)]);
        g.handle(late * MS, Event::Tick);
        assert_eq!(actions(&mut g), []);
        g.handle(end * MS, Event::Tick);
        assert_eq!(actions(&mut g), [Action::Decode]);
    }
    // The result is expected too late, or no patience is requested.
    for (patience, next) in [(0.1, 125), (0.0, 101)] {
        let mut g = badly_conditioned(patience, [None, None, None, None, at(next), at(500)]);
        assert_eq!(actions(&mut g), [Action::Decode], "{patience} {next}");
    }
    // Without earlier latencies, the pace of the run counts: one result in 25 ms.
    let mut g = badly_conditioned(0.2, [None; 6]);
    assert_eq!((actions(&mut g), g.next_wake()), (vec![], 140 * MS));
    // The last subtask that could help fails.
    g.handle(110 * MS, Event::Failed { subtask: SubtaskId(4) });
    assert_eq!(actions(&mut g), []);
    g.handle(111 * MS, Event::Failed { subtask: SubtaskId(5) });
    assert_eq!(actions(&mut g), [Action::Decode]);
}

#[test]
fn what_would_be_refused_waits_for_whatever_may_help_and_no_longer() {
    let with = |max_error: f64| {
        let terms = RunEstimates { comfortable: 1e-2, max_error: Some(max_error), ..RunEstimates::default() };
        let recovery = Counted { errors: vec![1e-3, 1e-5], ..counted(4) };
        let mut g = Gather::new(policy(OnShortfall::Fail), terms, 6, 2, recovery);
        for subtask in 0..4 {
            deliver_at(&mut g, 100 * MS, subtask);
        }
        g
    };
    let mut g = with(1e-4);
    assert_eq!((actions(&mut g), g.next_wake()), (vec![], 6 * SECOND));
    deliver_at(&mut g, SECOND, 4);
    assert_eq!(actions(&mut g), [Action::Decode]);
    let mut g = with(1e-4);
    g.handle(6 * SECOND, Event::Tick);
    assert_eq!(actions(&mut g), [Action::Decode]);
    // No result that may come would be enough.
    assert_eq!(actions(&mut with(1e-6)), [Action::Decode]);
    assert_eq!(actions(&mut with(1e-2)), [Action::Decode]);
}

#[test]
fn waiting_for_something_better_sleeps_through_the_rungs_that_are_for_too_few_results() {
    let terms = RunEstimates { comfortable: 1e-2, max_error: Some(1e-4), ..RunEstimates::default() };
    let recovery = Counted { errors: vec![1e-3, 1e-5], ..counted(4) };
    let policy = Policy { hedge: Some(0.9), ..policy(OnShortfall::Redispatch) };
    let mut g = Gather::new(policy, terms, 6, 2, recovery);
    assert_eq!(g.next_wake(), SECOND);
    for subtask in 0..4 {
        deliver_at(&mut g, 100 * MS, subtask);
    }
    // It waits until the elapsed time has doubled: computing the layer locally takes no longer.
    for now in [100 * MS, 150 * MS, 199 * MS] {
        g.handle(now, Event::Tick);
        assert_eq!((actions(&mut g), g.next_wake()), (vec![], 200 * MS), "at {now:?}");
    }
    deliver_at(&mut g, 199 * MS, 4);
    assert_eq!(actions(&mut g), [Action::Decode]);
}
