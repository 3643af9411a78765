//! The state machine of a part of a model that several workers hold, in virtual time.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use fcdcc::WorkerId;
use fcdcc::scheduler::{
    Comparison, Holder, PartDispatch, ReplicaAction, ReplicaContext, ReplicaEvent, ReplicaHistory,
    ReplicaPolicy, Replicas,
};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const DEADLINE: Duration = ms(1000);
const RIGHT: f64 = 1.0;

/// What a worker does when it is asked.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Answers(Duration, f64),
    Fails(Duration),
    Silent,
}

use Fate::{Answers, Fails, Silent};

/// How a run went.
#[derive(Debug)]
struct Course {
    /// Worker, reason and time of each attempt.
    asked: Vec<(usize, PartDispatch, Duration)>,
    blamed: Vec<usize>,
    /// The worker whose result counts, and the result.
    end: Result<(usize, f64), ReplicaAction>,
    at: Duration,
}

/// Runs in virtual time, on workers each of which is on a machine of its own.
struct Bench {
    policy: ReplicaPolicy,
    comparison: Comparison,
    finite: bool,
    loads: Vec<usize>,
    history: ReplicaHistory,
    clock: Duration,
}

impl Bench {
    fn new(workers: usize) -> Self {
        Self {
            policy: ReplicaPolicy { deadline: DEADLINE, ..ReplicaPolicy::default() },
            comparison: Comparison::Off,
            finite: true,
            loads: vec![0; workers],
            history: ReplicaHistory::new(None),
            clock: Duration::ZERO,
        }
    }

    fn comparing(workers: usize, comparison: Comparison) -> Self {
        Self { comparison, ..Self::new(workers) }
    }

    fn run(&mut self, fates: &[Fate]) -> Course {
        self.history.begin();
        let loads = self.loads.clone();
        let holder = |(worker, load): (usize, &usize)| Holder {
            worker: WorkerId(worker),
            machine: worker as u64,
            load: *load,
            answers: true,
            spare: *load == 0,
        };
        let holders: Vec<Holder> = loads.iter().enumerate().map(holder).collect();
        let mut machine = Replicas::new(self.policy, self.comparison, self.finite, self.clock);
        let (mut now, mut event) = (Duration::ZERO, ReplicaEvent::Tick);
        let mut course = Course { asked: vec![], blamed: vec![], end: Err(ReplicaAction::Fail), at: now };
        // Time, attempt and result of what is still to come.
        let mut coming: Vec<(Duration, usize, Option<f64>)> = Vec::new();
        let mut values: Vec<f64> = Vec::new();
        for _ in 0..10_000 {
            let agree =
                |a: usize, b: usize| values[a] == values[b] || values[a].is_nan() && values[b].is_nan();
            let context = ReplicaContext { holders: &holders, history: &self.history, agree: &agree };
            let actions = machine.handle(now, event, context);
            for action in actions {
                match action {
                    ReplicaAction::Dispatch { worker, why } => {
                        let attempt = course.asked.len();
                        course.asked.push((worker.0, why, now));
                        values.push(0.0);
                        match fates[worker.0] {
                            Answers(after, value) => coming.push((now + after, attempt, Some(value))),
                            Fails(after) => coming.push((now + after, attempt, None)),
                            Silent => {}
                        }
                    }
                    ReplicaAction::Blame { attempt, .. } => course.blamed.push(course.asked[attempt].0),
                    end => {
                        course.end = match end {
                            ReplicaAction::Accept { attempt } => {
                                Ok((course.asked[attempt].0, values[attempt]))
                            }
                            other => Err(other),
                        };
                        course.at = now;
                        let still = |attempt: usize| coming.iter().any(|(_, other, _)| *other == attempt);
                        for (attempt, (worker, _, since)) in course.asked.iter().enumerate() {
                            if still(attempt) {
                                self.history.censored(WorkerId(*worker), now.saturating_sub(*since), 0);
                            }
                        }
                        self.clock += now;
                        return course;
                    }
                }
            }
            let wake = machine.next_wake(now, &self.history);
            let next = coming.iter().enumerate().min_by_key(|(_, (at, attempt, _))| (*at, *attempt));
            let Some((index, at)) = next.map(|(index, (at, ..))| (index, *at)).filter(|(_, at)| *at <= wake)
            else {
                assert!(wake > now, "a wake that is past, at {now:?}");
                (now, event) = (wake, ReplicaEvent::Tick);
                continue;
            };
            let (_, attempt, value) = coming.remove(index);
            let (worker, _, since) = course.asked[attempt];
            now = at;
            event = if let Some(value) = value {
                values[attempt] = value;
                let time = now.saturating_sub(since);
                self.history.observe(WorkerId(worker), time, time);
                ReplicaEvent::Arrived { attempt, finite: value.is_finite() }
            } else {
                self.history.failed(WorkerId(worker), self.clock + now);
                ReplicaEvent::Failed { attempt }
            };
        }
        panic!("no end: {course:?}");
    }
}

#[test]
fn any_worker_may_be_dead_and_the_first_answer_counts() {
    for workers in 2..5 {
        for dead in 0..workers {
            for fate in [Fails(ms(0)), Fails(ms(30)), Silent] {
                let mut fates = vec![Answers(ms(10), RIGHT); workers];
                fates[dead] = fate;
                let mut bench = Bench::new(workers);
                let course = bench.run(&fates);
                assert_eq!(course.end, Ok((usize::from(dead == 0), RIGHT)), "{fates:?}: {course:?}");
                assert_eq!(course.asked.len(), if dead == 0 { 2 } else { 1 });
                // Without knowledge a silent worker is given up at half of the deadline, and later long before.
                let again = bench.run(&fates);
                assert!(again.end.is_ok() && again.at <= ms(60), "{fates:?}: {again:?}");
            }
        }
    }
}

#[test]
fn a_run_fails_when_all_are_dead_and_at_the_deadline_at_the_latest() {
    let course = Bench::new(3).run(&[Fails(ms(1)); 3]);
    assert_eq!((course.end, course.asked.len(), course.at), (Err(ReplicaAction::Fail), 3, ms(3)));
    let course = Bench::new(3).run(&[Silent; 3]);
    assert_eq!((course.end, course.at), (Err(ReplicaAction::Fail), DEADLINE));
    let course = Bench::new(0).run(&[]);
    assert_eq!((course.end, course.at), (Err(ReplicaAction::Fail), ms(0)));
    // Negative control: an answer just before the deadline counts.
    let course = Bench::new(1).run(&[Answers(ms(999), RIGHT)]);
    assert_eq!(course.end, Ok((0, RIGHT)));
}

#[test]
fn the_worker_that_is_done_first_is_asked_and_one_that_fails_fast_is_left_alone() {
    let mut bench = Bench::new(3);
    for (worker, time) in [(0, 30), (1, 10), (2, 12)] {
        bench.history.observe(WorkerId(worker), ms(time), ms(time));
    }
    let fates = [Answers(ms(30), RIGHT), Answers(ms(10), RIGHT), Answers(ms(12), RIGHT)];
    assert_eq!(bench.run(&fates).asked[0].0, 1);
    // One task before it: 20 ms where the other takes 12.
    bench.loads[1] = 1;
    assert_eq!(bench.run(&fates).asked[0].0, 2);
    bench.loads[1] = 0;
    let failing = [fates[0], Fails(ms(0)), fates[2]];
    let first = bench.run(&failing);
    assert_eq!(first.asked.iter().map(|(worker, ..)| *worker).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(first.asked[1].1, PartDispatch::Redispatch);
    assert_eq!(bench.run(&failing).asked.len(), 1, "it is not asked first again");
    // The pause ends.
    bench.clock += ms(10_000);
    assert_eq!(bench.run(&fates).asked[0].0, 1);
}

#[test]
fn as_many_copies_as_asked_for_start_at_once_and_the_first_counts() {
    let mut bench = Bench::new(4);
    bench.policy = ReplicaPolicy { copies: 3, max_copies: 3, ..bench.policy };
    let course = bench.run(&[Silent, Fails(ms(1)), Answers(ms(20), RIGHT), Answers(ms(5), RIGHT)]);
    let whys: Vec<_> = course.asked.iter().map(|(_, why, at)| (*why, *at)).collect();
    let copies = [PartDispatch::First, PartDispatch::Copy, PartDispatch::Copy].map(|why| (why, ms(0)));
    assert_eq!((whys, course.end), (copies.to_vec(), Ok((2, RIGHT))));
}

#[test]
fn a_liar_is_found_by_a_third_worker() {
    for comparison in [Comparison::Wish, Comparison::Required] {
        for liar in 0..3 {
            for [a, b, c] in [[5, 10, 15], [15, 10, 5], [10, 10, 10]] {
                let mut fates = [Answers(ms(a), RIGHT), Answers(ms(b), RIGHT), Answers(ms(c), RIGHT)];
                fates[liar] = Answers(ms(7), 2.0);
                let course = Bench::comparing(3, comparison).run(&fates);
                assert_eq!(course.end.map(|(_, value)| value), Ok(RIGHT), "{fates:?}");
                // The third worker is asked only where the first two contradict each other.
                assert_eq!(course.blamed, if liar == 2 { vec![] } else { vec![liar] });
            }
        }
        let two = [Answers(ms(5), 2.0), Answers(ms(6), RIGHT)];
        assert_eq!(Bench::comparing(2, comparison).run(&two).end, Err(ReplicaAction::Refuse));
    }
    // Negative control: without a comparison the liar is believed.
    let course = Bench::new(3).run(&[Answers(ms(5), 2.0), Answers(ms(5), RIGHT), Answers(ms(5), RIGHT)]);
    assert_eq!((course.end, course.blamed), (Ok((0, 2.0)), vec![]));
}

#[test]
fn a_result_that_must_be_confirmed_is_not_used_alone_and_otherwise_soon() {
    for (second, tolerates) in [(Silent, true), (Fails(ms(1)), true), (Answers(ms(900), RIGHT), true)] {
        let fates = [Answers(ms(10), RIGHT), second];
        let wished = Bench::comparing(2, Comparison::Wish).run(&fates);
        assert_eq!((wished.end.is_ok(), wished.at <= ms(30)), (tolerates, true), "{fates:?}");
        let required = Bench::comparing(2, Comparison::Required).run(&fates);
        assert_eq!(required.end.is_ok(), matches!(second, Answers(..)), "{fates:?}");
    }
}

#[test]
fn a_nan_is_an_error_where_another_worker_has_none() {
    let nan = Answers(ms(5), f64::NAN);
    let fine = Answers(ms(9), RIGHT);
    let course = Bench::new(2).run(&[nan, fine]);
    assert_eq!((course.end, course.blamed), (Ok((1, RIGHT)), vec![0]));
    let course = Bench::new(3).run(&[nan; 3]);
    assert!(course.end.is_ok_and(|(_, value)| value.is_nan()) && course.blamed.is_empty());
    assert_eq!(course.asked.len(), 2);
    assert_eq!(Bench::new(1).run(&[nan]).end, Err(ReplicaAction::Fail));
    // Negative control: a NaN in the inputs explains one in the outputs.
    let mut bench = Bench { finite: false, ..Bench::new(2) };
    assert_eq!(bench.run(&[nan, fine]).asked.len(), 1);
}

#[test]
fn in_a_healthy_pool_hedging_costs_little_and_it_shortens_the_tail() {
    let course = |quantile: f64, tail: f64| {
        let mut bench = Bench::new(4);
        bench.policy.hedge = Some(quantile);
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let (mut extra, mut total, mut hedges, mut times) = (0.0, 0.0, 0, Vec::new());
        for _ in 0..1000 {
            let mut time = || {
                let slow = rng.random::<f64>() < tail;
                Duration::from_secs_f64((0.008 + 0.004 * rng.random::<f64>()) * if slow { 20.0 } else { 1.0 })
            };
            let fates = [(); 4].map(|()| Answers(time(), RIGHT));
            let run = bench.run(&fates);
            let (winner, _) = run.end.unwrap();
            for (worker, _, since) in &run.asked {
                let spent = run.at.saturating_sub(*since).as_secs_f64();
                total += spent;
                extra += if *worker == winner { 0.0 } else { spent };
            }
            hedges += run.asked.len() - 1;
            times.push(run.at);
        }
        times.sort_unstable();
        (extra / total, hedges, times[times.len() / 100 * 99])
    };
    let (extra, hedges, _) = course(0.95, 0.0);
    assert!(extra <= 0.05 && hedges <= 50, "{extra} of the work, {hedges} hedges");
    let (_, _, hedged) = course(0.95, 0.03);
    assert!(hedged < ms(40), "{hedged:?}");
    // Negative controls: an early quantile costs much; a late one leaves the tail.
    assert!(course(0.3, 0.0).1 > 200);
    assert!(course(0.9999, 0.03).2 > ms(100));
}

#[test]
fn whatever_happens_a_run_ends_once_in_time_and_believes_no_contradicted_result() {
    for seed in 0..300 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut draw = |below: u32| rng.next_u32() % below;
        let many = 1 + draw(6);
        let workers = many as usize;
        let comparisons = [Comparison::Off, Comparison::Wish, Comparison::Required];
        let comparison = comparisons[draw(3) as usize];
        let mut bench = Bench::comparing(workers, comparison);
        let copies = 1 + draw(3) as usize;
        bench.policy.copies = copies;
        bench.policy.max_copies = copies + draw(2) as usize;
        let liar = draw(many * 2) as usize;
        for _ in 0..20 {
            bench.loads.iter_mut().for_each(|load| *load = draw(3) as usize);
            let fates: Vec<Fate> = (0..workers)
                .map(|worker| match draw(8) {
                    0 => Silent,
                    1 => Fails(ms(u64::from(draw(50)))),
                    _ if worker == liar => {
                        Answers(ms(u64::from(draw(50))), [f64::NAN, 3.0][draw(2) as usize])
                    }
                    _ => Answers(ms(u64::from(1 + draw(1200))), RIGHT),
                })
                .collect();
            let run = bench.run(&fates);
            let mut asked: Vec<usize> = run.asked.iter().map(|(worker, ..)| *worker).collect();
            asked.sort_unstable();
            asked.dedup();
            assert_eq!(asked.len(), run.asked.len(), "{seed}: a worker was asked twice");
            assert!(run.at <= DEADLINE && run.blamed.iter().all(|worker| *worker == liar), "{seed}: {run:?}");
            if comparison == Comparison::Required {
                assert!(run.end.is_err() || run.end == Ok((run.end.unwrap().0, RIGHT)), "{seed}: {run:?}");
            }
            let can = fates.iter().any(|fate| matches!(fate, Answers(at, RIGHT) if *at < DEADLINE / 4));
            if can && comparison == Comparison::Off && liar >= workers {
                assert!(run.end.is_ok() || run.at == DEADLINE, "{seed}: {fates:?} {run:?}");
            }
        }
    }
}

#[test]
fn a_worker_that_was_slow_once_is_worth_trying_again_and_a_failing_one_pauses() {
    let mut history = ReplicaHistory::new(Some(ms(7)));
    assert!((history.expected(WorkerId(0)) - 0.007).abs() < 1e-9, "the prediction");
    history.begin();
    history.observe(WorkerId(0), ms(100), ms(100));
    history.observe(WorkerId(1), ms(10), ms(10));
    assert!((history.expected(WorkerId(0)) - 0.1).abs() < 1e-9);
    // Nine more runs, eight of which have passed without it.
    for _ in 0..9 {
        history.begin();
        history.observe(WorkerId(1), ms(10), ms(10));
    }
    assert!((history.expected(WorkerId(0)) - 0.055).abs() < 1e-9);
    history.censored(WorkerId(1), ms(90), 2);
    assert!((history.expected(WorkerId(1)) - 0.03).abs() < 1e-9, "three tasks in 90 ms");

    assert!(!history.pauses(WorkerId(1), ms(0)));
    history.failed(WorkerId(1), ms(50));
    assert!(history.pauses(WorkerId(1), ms(149)) && !history.pauses(WorkerId(1), ms(150)));
    history.failed(WorkerId(1), ms(150));
    assert!(history.pauses(WorkerId(1), ms(349)));
    history.observe(WorkerId(1), ms(10), ms(10));
    assert!(!history.pauses(WorkerId(1), ms(200)));
}

#[test]
fn without_knowledge_nothing_is_overdue_and_with_little_of_it_late() {
    assert_eq!(ReplicaHistory::new(None).overdue_after(0.95), None);
    let mut history = ReplicaHistory::new(Some(ms(5)));
    assert_eq!(history.overdue_after(0.95), Some(ms(20)));
    history.observe(WorkerId(0), ms(8), ms(8));
    assert_eq!(history.overdue_after(0.95), Some(ms(32)));
    for _ in 0..32 {
        history.observe(WorkerId(0), ms(9), ms(9));
    }
    // A tenth later, so that a run that is about to end is left alone.
    let after = history.overdue_after(0.95).unwrap();
    assert!((9_800..10_000).contains(&after.as_micros()), "{after:?}");
}
