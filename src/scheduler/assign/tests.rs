//! Assignments of any fleet: complete, as fast as can be, and far apart within a failure domain.

use proptest::prelude::*;

use super::*;

/// Workers as their seats' indices, which the tests compute with.
fn indices(workers: Vec<WorkerId>) -> Vec<usize> {
    workers.into_iter().map(|worker| worker.0).collect()
}

fn workers(seats: &[usize]) -> Vec<WorkerId> {
    seats.iter().copied().map(WorkerId).collect()
}

fn assign(n: usize, seats: &[Seat]) -> Vec<usize> {
    indices(super::assign(n, seats))
}

fn rebalance(assignment: &[usize], seats: &[Seat]) -> Option<Vec<usize>> {
    super::rebalance(&workers(assignment), seats).map(indices)
}

fn count(assignment: &[usize], seats: usize) -> Vec<usize> {
    super::count(&workers(assignment), seats)
}

/// When the last seat is finished, in the unit of time of the speeds: the greatest count / speed.
///
/// Infinite if a seat without speed (or one that does not exist) holds a subtask while another has speed; if none
/// has, all count as speed 1.
fn makespan(assignment: &[usize], seats: &[Seat]) -> f64 {
    let speeds = speeds(seats);
    let counts = count(assignment, seats.len());
    if counts.iter().sum::<usize>() < assignment.len() {
        return f64::INFINITY;
    }
    speeds
        .iter()
        .zip(counts)
        .filter(|(_, count)| *count > 0)
        .map(|(s, count)| count as f64 / s)
        .fold(0.0, f64::max)
}
use crate::coding::{Code, CodeKind, Decoder};
use crate::ids::WorkerId;

fn seat(domain: &[&str], speed: f64) -> Seat {
    Seat { domain: domain.iter().map(|name| (*name).to_owned()).collect(), speed }
}

/// Seats that fail independently.
fn flat(speeds: &[f64]) -> Vec<Seat> {
    speeds.iter().enumerate().map(|(i, speed)| seat(&[&format!("w{i}")], *speed)).collect()
}

/// `hosts` hosts of `each` workers of speed 1, listed host by host.
fn hosts(hosts: usize, each: usize) -> Vec<Seat> {
    let workers = (0..hosts).flat_map(|h| (0..each).map(move |w| (h, w)));
    workers.map(|(h, w)| seat(&[&format!("host {h}"), &format!("cpu-{w}")], 1.0)).collect()
}

/// Distances around the circle from each subtask of a set to the next.
fn gaps(n: usize, of: impl Fn(usize) -> bool) -> Vec<usize> {
    let at: Vec<usize> = (0..n).filter(|i| of(*i)).collect();
    let next = |k: usize| if k + 1 < at.len() { at[k + 1] } else { at[0] + n };
    (0..at.len()).map(|k| next(k) - at[k]).collect()
}

fn on_host(assignment: &[usize], seats: &[Seat], host: &str) -> Vec<usize> {
    (0..assignment.len()).filter(|i| seats[assignment[*i]].domain[0] == host).collect()
}

fn moved(from: &[usize], to: &[usize]) -> usize {
    from.iter().zip(to).filter(|(a, b)| a != b).count()
}

#[test]
fn equal_seats_take_turns() {
    for workers in 1..12 {
        let seats = flat(&vec![2.5; workers]);
        for times in 1..4 {
            let expected: Vec<usize> = (0..times * workers).map(|i| i % workers).collect();
            assert_eq!(assign(times * workers, &seats), expected);
        }
    }
    assert_eq!(assign(3, &flat(&[1.0; 7])), [0, 1, 2], "the first of equals");
    assert_eq!(assign(4, &flat(&[0.0; 2])), [0, 1, 0, 1], "no seat has a speed: all are equal");
    assert_eq!(assign(0, &flat(&[1.0])), [0; 0]);
    assert_eq!(assign(3, &[]), [0; 0]);
}

#[test]
fn speeds_decide_how_many() {
    let tally = |n, speeds: &[f64]| count(&assign(n, &flat(speeds)), speeds.len());
    assert_eq!(tally(20, &[4.0, 4.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0]), [4, 4, 4, 4, 1, 1, 1, 1]);
    assert_eq!(tally(6, &[1.0, 0.0, 2.0]), [2, 0, 4]);
    assert_eq!(tally(5, &[1.0, 1e-9, 1.0]), [2, 1, 2], "one each, however slow");
    assert_eq!(tally(2, &[1.0, 3.0, 0.0, 2.0]), [0, 1, 0, 1], "the fastest when there is not one for each");
    assert_eq!(tally(4, &[f64::NAN, 1.0, -2.0, f64::INFINITY]), [0, 4, 0, 0]);
}

#[test]
fn losing_a_host_leaves_a_well_conditioned_code() {
    let (code, seats) = (Code::new(CodeKind::Crme, 8, 8, 20).unwrap(), hosts(5, 4));
    let without = |assignment: &[usize], host: usize| {
        let left: Vec<usize> =
            (0..20).filter(|i| seats[assignment[*i]].domain[0] != format!("host {host}")).collect();
        Decoder::for_subtasks(&code, &left).unwrap().condition()
    };
    let (spread, naive) = (assign(20, &seats), (0..20).collect::<Vec<_>>());
    for host in 0..5 {
        assert_eq!(on_host(&spread, &seats, &format!("host {host}")), [host, host + 5, host + 10, host + 15]);
        let condition = without(&spread, host);
        assert!(condition < 8.0, "host {host}: {condition}");
    }
    // The points are 20 of 21 on the circle. The worst case is where the free one extends the gap.
    let worst = (0..5).map(|host| without(&naive, host)).fold(0.0, f64::max);
    assert!(worst > 1500.0, "adjacent subtasks: {worst}");
}

#[test]
fn every_level_of_domains_is_spread() {
    let mut seats = Vec::new();
    for (host, adapter, queue) in (0..8).map(|i| (i / 4, i / 2 % 2, i % 2)) {
        let names = [format!("host {host}"), format!("adapter {adapter}"), format!("gpu-{queue}")];
        seats.push(Seat { domain: names.to_vec(), speed: 1.0 });
    }
    let assignment = assign(16, &seats);
    for (depth, gap) in [(1, 2), (2, 4), (3, 8)] {
        for domain in seats.iter().map(|seat| &seat.domain[..depth]) {
            let gaps = gaps(16, |i| &seats[assignment[i]].domain[..depth] == domain);
            assert!(gaps.iter().all(|g| *g == gap), "{domain:?}: {gaps:?}");
        }
    }
    // A single worker beside a host of two, and one without any domain.
    let mixed = [seat(&["a", "0"], 1.0), seat(&["a", "1"], 1.0), seat(&["b"], 1.0), seat(&[], 1.0)];
    assert_eq!(assign(4, &mixed), [0, 2, 1, 3]);
}

#[test]
fn uneven_shares_are_spread_too() {
    for shares in [&[5, 3, 1][..], &[4, 4, 1], &[7, 2, 2, 1], &[10, 5, 3, 2]] {
        let n: usize = shares.iter().sum();
        let assignment = assign(n, &flat(&shares.iter().map(|share| *share as f64).collect::<Vec<_>>()));
        for (seat, &share) in shares.iter().enumerate() {
            let gaps = gaps(n, |i| assignment[i] == seat);
            assert_eq!(gaps.len(), share);
            // At most 1.5 times the distance they would have alone on the circle.
            assert!(gaps.iter().all(|gap| 2 * gap * share <= 3 * n), "{assignment:?} of {shares:?}");
            assert!(2 * share > n || gaps.iter().all(|gap| *gap >= 2), "{assignment:?} of {shares:?}");
        }
    }
}

#[test]
fn makespan_is_the_last_seats() {
    assert_eq!(makespan(&[0, 0, 1], &flat(&[4.0, 1.0])), 1.0);
    assert_eq!(makespan(&[0, 0, 1], &flat(&[1.0, 1.0])), 2.0);
    assert_eq!(makespan(&[0, 1], &flat(&[1.0, 0.0])), f64::INFINITY);
    assert_eq!(makespan(&[0, 7], &flat(&[1.0, 1.0])), f64::INFINITY);
    assert_eq!(makespan(&[0, 1, 1], &flat(&[0.0, 0.0])), 2.0);
    assert_eq!(makespan(&[], &[]), 0.0);
}

#[test]
fn good_homes_stay() {
    let seats = flat(&[1.0; 8]);
    let assignment = assign(20, &seats);
    assert_eq!(rebalance(&assignment, &seats), None);
    // Measured speeds, not quite equal.
    assert_eq!(rebalance(&assignment, &flat(&[1.1, 0.95, 1.0, 0.9, 1.05, 1.0, 0.97, 1.1])), None);
    assert_eq!(rebalance(&[0, 1, 2, 0], &flat(&[0.0; 3])), None);
    assert_eq!(rebalance(&[], &seats), None);
    assert_eq!(rebalance(&[0], &[]), None);
    assert_eq!(rebalance(&[1], &seats), None, "fewer subtasks than seats: some are idle");
}

#[test]
fn slow_halves_give_to_fast_halves() {
    let seats = flat(&[4.0, 1.0, 4.0, 1.0, 4.0, 1.0, 4.0, 1.0]);
    let before = assign(20, &flat(&[1.0; 8]));
    let assignment = rebalance(&before, &seats).unwrap();
    assert_eq!(count(&assignment, 8), [4, 1, 4, 1, 4, 1, 4, 1]);
    assert_eq!(moved(&before, &assignment), 6, "{before:?} to {assignment:?}");
    assert_eq!(rebalance(&assignment, &seats), None);
    assert!(makespan(&assignment, &seats) <= 20.0 / 20.0 / 0.85);
}

#[test]
fn a_very_slow_seat_excuses_nobody_else() {
    let seats = flat(&[1.0, 0.4, 1.0, 1.0, 0.01]);
    let before = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 4];
    let assignment = rebalance(&before, &seats).unwrap();
    assert_eq!(makespan(&assignment, &seats), 100.0, "which nothing can change");
    let counts = count(&assignment, 5);
    assert_eq!((counts[1], counts[4]), (1, 1));
    assert!(counts.iter().all(|count| *count <= 4), "{counts:?}");
}

#[test]
fn a_lost_hosts_subtasks_go_where_they_are_far_from_others() {
    let mut seats = hosts(5, 4);
    let before = assign(20, &seats);
    for seat in &mut seats[4..8] {
        seat.speed = 0.0;
    }
    let assignment = rebalance(&before, &seats).unwrap();
    assert_eq!(moved(&before, &assignment), 4);
    for host in ["host 0", "host 2", "host 3", "host 4"] {
        let gaps = gaps(20, |i| seats[assignment[i]].domain[0] == host);
        assert!(gaps.iter().all(|gap| *gap >= 2), "{host}: {assignment:?}");
    }
    // The host comes back: each of its workers gets work again.
    for seat in &mut seats {
        seat.speed = 1.0;
    }
    let again = rebalance(&assignment, &seats).unwrap();
    assert_eq!(count(&again, 20), [1; 20]);
    assert_eq!(moved(&assignment, &again), 4);
}

#[test]
fn homes_that_do_not_exist_are_left() {
    assert_eq!(rebalance(&[0, 9, 1, 9], &flat(&[1.0; 2])), Some(vec![0, 0, 1, 1]));
    assert_eq!(rebalance(&[0, 0], &flat(&[0.0, 1.0])), Some(vec![1, 1]));
    assert_eq!(rebalance(&[1], &flat(&[4.0, 1.0])), Some(vec![0]));
}

fn any_seats() -> impl Strategy<Value = Vec<Seat>> {
    let speed = prop_oneof![1 => Just(0.0), 2 => Just(1.0), 5 => 0.05..20.0_f64];
    let domain = (0..3_u8, 0..2_u8, 0..4_usize);
    let seat = (domain, speed).prop_map(|((host, adapter, depth), speed)| {
        let names = [format!("host {host}"), format!("adapter {adapter}"), "queue".to_owned()];
        Seat { domain: names.into_iter().take(depth).collect(), speed }
    });
    proptest::collection::vec(seat, 1..12)
}

/// The least makespan of any assignment that gives each live seat at least one subtask: the first of the times at which
/// some seat finishes a whole number of subtasks by which all seats together have finished `n`.
fn optimal(n: usize, speeds: &[f64]) -> f64 {
    let live = || speeds.iter().filter(|s| **s > 0.0);
    let mut times: Vec<f64> = live().flat_map(|s| (1..=n).map(move |c| c as f64 / s)).collect();
    times.sort_by(f64::total_cmp);
    let done = |time: f64| -> usize {
        live().map(|s| (1..=n).take_while(|c| *c as f64 / s <= time).count().max(1)).sum()
    };
    let slowest = live().map(|s| 1.0 / s).fold(0.0, f64::max);
    times.into_iter().find(|time| done(*time) >= n).unwrap_or(0.0).max(slowest)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn assignments_cover_all_subtasks_as_fast_as_can_be(n in 0_usize..60, seats in any_seats()) {
        let assignment = assign(n, &seats);
        prop_assert_eq!(assignment.len(), n);
        let (speeds, counts) = (speeds(&seats), count(&assignment, seats.len()));
        let live = speeds.iter().filter(|s| **s > 0.0).count();
        for (speed, count) in speeds.iter().zip(&counts) {
            let right = if *speed > 0.0 { n < live || *count > 0 } else { *count == 0 };
            prop_assert!(right, "{} of {} at speed {}", count, n, speed);
        }
        let mut fastest = speeds.clone();
        fastest.sort_by(|a, b| b.total_cmp(a));
        let span = makespan(&assignment, &seats);
        let best = match n {
            0 => 0.0,
            n if n < live => 1.0 / fastest[n - 1],
            _ => optimal(n, &speeds),
        };
        prop_assert!(span <= best * (1.0 + 1e-12), "{} where {} is possible: {:?}", span, best, counts);
    }

    #[test]
    fn no_domain_has_to_wait_for_two_of_its_turns(n in 1_usize..60, seats in any_seats()) {
        let assignment = assign(n, &seats);
        for host in seats.iter().filter_map(|seat| seat.domain.first()) {
            let gaps = gaps(n, |i| seats[assignment[i]].domain.first() == Some(host));
            let limit = (2 * n).div_ceil(gaps.len().max(1));
            prop_assert!(gaps.iter().all(|gap| *gap <= limit), "{host}: {gaps:?} in {assignment:?}");
        }
    }

    #[test]
    fn rebalancing_moves_little_and_comes_to_rest(
        assignment in proptest::collection::vec(0_usize..12, 0..40),
        seats in any_seats(),
    ) {
        let (n, speeds) = (assignment.len(), speeds(&seats));
        let fresh = assign(n, &seats);
        let Some(after) = rebalance(&assignment, &seats) else {
            prop_assert!(makespan(&assignment, &seats) <= TOLERATED * makespan(&fresh, &seats));
            return Ok(());
        };
        prop_assert_eq!(after.len(), n);
        prop_assert!(makespan(&after, &seats) <= makespan(&fresh, &seats));
        prop_assert_eq!(rebalance(&after, &seats), None);
        prop_assert_eq!(rebalance(&fresh, &seats), None);
        let (before, goal) = (count(&assignment, seats.len()), count(&fresh, seats.len()));
        let nowhere = n - before.iter().sum::<usize>();
        let surplus: usize = before.iter().zip(&goal).map(|(b, g)| b.saturating_sub(*g)).sum();
        prop_assert!(moved(&assignment, &after) <= surplus + nowhere);
        prop_assert!(after.iter().all(|s| speeds[*s] > 0.0));
    }
}
