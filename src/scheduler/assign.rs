//! Assigns subtasks to workers: counts by speed, positions by failure domain.
//!
//! Relevant if your workers differ in speed or fail together; for equal workers that fail independently, subtask i goes to
//! worker i mod W. Otherwise counts follow the speeds. A code decodes badly when *adjacent* subtasks are missing (they are
//! neighbouring points on a circle), so workers that fail together are spread over the circle: hosts first, then
//! adapters within a host, then the workers of an adapter.
//!
//! Invariant: every subtask has exactly one seat, and a seat without speed gets none while another has speed.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::ids::{SubtaskId, WorkerId};

/// How much slower than a fresh assignment the present one may be before subtasks move: moving a subtask costs the
/// installation of its filters, and measured speeds always fluctuate.
const TOLERATED: f64 = 1.3;

/// Finishing times within this factor count as equal: measured speeds are inexact, and the distance to the domain's other
/// subtasks matters more.
const ALIKE: f64 = 1.1;

/// A worker as the assignment sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seat {
    /// Failure domains of the worker, outermost first: `["local", "adapter 0", "gpu-1"]`. Seats may differ in depth.
    pub domain: Vec<String>,
    /// Subtasks per unit of time, in the same unit for all seats. A speed that is not positive and finite counts as 0:
    /// the seat gets nothing (the worker is lost or quarantined).
    pub speed: f64,
}

/// Assigns each of `n` subtasks to a seat, and returns the worker of each: the index of its seat.
///
/// Every seat with speed gets a subtask if there are enough, so that its speed stays measured; each further one goes
/// to the seat that would finish it first. With fewer subtasks than seats, the fastest get one each. Ties go to the lowest
/// index. If no seat has speed, all count as equal. The result is empty if there are no seats.
#[must_use]
pub fn assign(n: usize, seats: &[Seat]) -> Vec<WorkerId> {
    let counts = counts(n, &speeds(seats));
    let busy: Vec<usize> = (0..seats.len()).filter(|seat| counts[*seat] > 0).collect();
    spread(&busy, 0, seats, &counts).into_iter().map(WorkerId).collect()
}

/// A better assignment, or `None` when the present one is good enough.
///
/// Good enough means: nothing on a seat without speed, no idle seat with speed that [`assign`] would give work,
/// and no makespan above 1.3 times that of a fresh assignment. A seat that holds only the one subtask that it gets
/// at any speed is left out of that comparison; otherwise one very slow worker would excuse every other imbalance.
///
/// Otherwise as few subtasks as possible move, from seats with too many to the seats that finish them first; among
/// equals, to the seat whose failure domain's other subtasks are furthest away on the circle. The result is good enough
/// at the same speeds, so that repeated calls converge.
#[must_use]
pub fn rebalance(assignment: &[WorkerId], seats: &[Seat]) -> Option<Vec<WorkerId>> {
    if seats.is_empty() {
        return None;
    }
    let target = Target::new(assignment.len(), speeds(seats));
    let mut counts = count(assignment, seats.len());
    let placed = counts.iter().sum::<usize>() == assignment.len();
    if placed
        && (0..seats.len()).all(|s| counts[s] >= target.least(s) && target.fits(s, counts[s], TOLERATED))
    {
        return None;
    }
    let circle = Circle::new(seats);
    let mut assignment = assignment.to_vec();
    loop {
        let idle: Vec<usize> = (0..seats.len()).filter(|s| counts[*s] < target.least(*s)).collect();
        let too_many =
            |home: WorkerId| counts.get(home.0).is_none_or(|count| !target.fits(home.0, *count, 1.0));
        let homes = || (0..).map(SubtaskId).zip(assignment.iter().copied());
        let mut movable: Vec<SubtaskId> =
            homes().filter(|(_, home)| too_many(*home)).map(|(subtask, _)| subtask).collect();
        if movable.is_empty() {
            if idle.is_empty() {
                return Some(assignment);
            }
            // No seat has too many, but some have none: the seat that finishes last can best spare one.
            let spare = |seat: &usize| counts[*seat] > target.least(*seat);
            let latest =
                (0..seats.len()).filter(spare).map(|s| target.finish(s, counts[s])).fold(0.0, f64::max);
            let latest = |seat: usize| spare(&seat) && target.finish(seat, counts[seat]) == latest;
            movable = homes().filter(|(_, home)| latest(home.0)).map(|(subtask, _)| subtask).collect();
        }
        let receivers = if idle.is_empty() {
            let free: Vec<usize> =
                (0..seats.len()).filter(|s| target.fits(*s, counts[*s] + 1, 1.0)).collect();
            let finish = |seat: usize| target.finish(seat, counts[seat] + 1);
            let first = free.iter().map(|s| finish(*s)).fold(f64::INFINITY, f64::min);
            free.into_iter().filter(|s| finish(*s) <= first * ALIKE).collect()
        } else {
            idle
        };
        let moves = movable.iter().flat_map(|i| receivers.iter().map(move |to| (*i, *to)));
        // Reversed, because the last of equals would win and the lowest indices should.
        let best = moves.rev().max_by_key(|(subtask, to)| circle.distances(&assignment, *subtask, *to));
        // A move exists: a fresh assignment fits, so if one seat is above its share another is below its own.
        let (subtask, to) = best?;
        if let Some(count) = counts.get_mut(assignment[subtask.0].0) {
            *count -= 1;
        }
        counts[to] += 1;
        assignment[subtask.0] = WorkerId(to);
    }
}

/// The load at which each seat is as fast as in a fresh assignment.
struct Target {
    speeds: Vec<f64>,
    /// The minimum number of subtasks for each seat with speed.
    least: usize,
    /// The time at which the last seat with more than the minimum finishes.
    level: f64,
}

impl Target {
    fn new(n: usize, speeds: Vec<f64>) -> Self {
        let live = speeds.iter().filter(|s| **s > 0.0).count();
        let least = usize::from(n >= live);
        let fresh = counts(n, &speeds);
        let more = fresh.iter().zip(&speeds).filter(|(count, _)| **count > least);
        let level = more.map(|(count, speed)| *count as f64 / speed).fold(0.0, f64::max);
        Self { speeds, least, level }
    }

    fn least(&self, seat: usize) -> usize {
        if self.speeds[seat] > 0.0 { self.least } else { 0 }
    }

    fn finish(&self, seat: usize, count: usize) -> f64 {
        count as f64 / self.speeds[seat]
    }

    fn fits(&self, seat: usize, count: usize, slack: f64) -> bool {
        count <= self.least(seat) || self.finish(seat, count) <= self.level * slack
    }
}

/// The failure domains of seats, numbered, to measure distances between their subtasks on the circle.
struct Circle {
    /// For each seat the numbers of its domains, outermost first; the last number is the seat's own.
    domains: Vec<Vec<usize>>,
    depth: usize,
}

impl Circle {
    fn new(seats: &[Seat]) -> Self {
        let mut numbers: HashMap<&[String], usize> = HashMap::new();
        let mut domains: Vec<Vec<usize>> = Vec::with_capacity(seats.len());
        for (index, seat) in seats.iter().enumerate() {
            let outer = (1..=seat.domain.len()).map(|depth| {
                let next = seats.len() + numbers.len();
                *numbers.entry(&seat.domain[..depth]).or_insert(next)
            });
            domains.push(outer.chain([index]).collect());
        }
        let depth = domains.iter().map(Vec::len).max().unwrap_or(0);
        Self { domains, depth }
    }

    /// For each domain of seat `to`, outermost first, the distance from `subtask` to the nearest other subtask in it;
    /// the length of the circle if there is none.
    fn distances(&self, assignment: &[WorkerId], subtask: SubtaskId, to: usize) -> Vec<usize> {
        let n = assignment.len();
        let mut distances = vec![n; self.depth];
        for (other, home) in assignment.iter().enumerate().filter(|(other, _)| *other != subtask.0) {
            let Some(theirs) = self.domains.get(home.0) else { continue };
            let apart = other.abs_diff(subtask.0);
            let apart = apart.min(n - apart);
            for (level, domain) in self.domains[to].iter().enumerate() {
                if theirs.contains(domain) {
                    distances[level] = distances[level].min(apart);
                }
            }
        }
        distances
    }
}

/// Speeds as the assignment uses them: none is negative, infinite or NaN, and at least one is positive.
fn speeds(seats: &[Seat]) -> Vec<f64> {
    let usable = |speed: f64| if speed.is_finite() && speed > 0.0 { speed } else { 0.0 };
    let speeds: Vec<f64> = seats.iter().map(|seat| usable(seat.speed)).collect();
    if speeds.iter().all(|s| *s == 0.0) { vec![1.0; seats.len()] } else { speeds }
}

/// Number of subtasks of each seat; subtasks of seats that do not exist are not counted.
fn count(assignment: &[WorkerId], seats: usize) -> Vec<usize> {
    let mut counts = vec![0; seats];
    for home in assignment {
        if let Some(count) = counts.get_mut(home.0) {
            *count += 1;
        }
    }
    counts
}

/// Number of subtasks, out of `n`, that each seat gets.
fn counts(n: usize, speeds: &[f64]) -> Vec<usize> {
    let mut live: Vec<usize> = (0..speeds.len()).filter(|s| speeds[*s] > 0.0).collect();
    // Stable sort: equal speeds keep the order of their index.
    live.sort_by(|a, b| speeds[*b].total_cmp(&speeds[*a]));
    let mut counts = vec![0; speeds.len()];
    for seat in live.iter().take(n) {
        counts[*seat] = 1;
    }
    live.sort_unstable();
    for _ in live.len()..n {
        let finish = |seat: &usize| (counts[*seat] + 1) as f64 / speeds[*seat];
        if let Some(first) = live.iter().copied().min_by(|a, b| finish(a).total_cmp(&finish(b))) {
            counts[first] += 1;
        }
    }
    counts
}

/// The order around the circle of the subtasks of the seats `members`, each given as its seat: their domains at this
/// depth take turns in proportion to their counts, and so do the domains of the next depth within each.
fn spread(members: &[usize], depth: usize, seats: &[Seat], counts: &[usize]) -> Vec<usize> {
    if let [seat] = members {
        return vec![*seat; counts[*seat]];
    }
    let mut domains: Vec<(Option<&String>, Vec<usize>)> = Vec::new();
    for &seat in members {
        let name = seats[seat].domain.get(depth);
        match domains.iter_mut().find(|(of, _)| name.is_some() && *of == name) {
            Some((_, inside)) => inside.push(seat),
            // A seat whose domains end here shares no further failure domain.
            None => domains.push((name, vec![seat])),
        }
    }
    let mut lanes: Vec<Lane> = domains
        .iter()
        .map(|(_, inside)| Lane { seats: spread(inside, depth + 1, seats, counts), taken: 0 })
        .collect();
    let total = lanes.iter().map(|lane| lane.seats.len()).sum();
    (0..total).filter_map(|turn| take_turn(&mut lanes, turn, total)).collect()
}

/// The subtasks of one domain, to be merged into the common order.
struct Lane {
    seats: Vec<usize>,
    taken: usize,
}

/// Fills position `turn` of `total`. The k-th of a lane's c subtasks belongs between k/c and (k + 1)/c of the circle. Among
/// the lanes whose next subtask may come, the position goes to the one with the earliest deadline (then to the longest, then
/// to the first). Earliest deadline first meets all deadlines, so two of a lane are never 2 total/c + 1 apart.
fn take_turn(lanes: &mut [Lane], turn: usize, total: usize) -> Option<usize> {
    let may_come =
        |lane: &&mut Lane| lane.taken < lane.seats.len() && lane.taken * total / lane.seats.len() <= turn;
    let must_come = |lane: &Lane| ((lane.taken + 1) * total).div_ceil(lane.seats.len());
    let lane =
        lanes.iter_mut().filter(may_come).min_by_key(|lane| (must_come(lane), Reverse(lane.seats.len())))?;
    lane.taken += 1;
    lane.seats.get(lane.taken - 1).copied()
}

#[cfg(test)]
mod tests;
