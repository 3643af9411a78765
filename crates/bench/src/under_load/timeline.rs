//! The speed of one machine over time: when it is slow, stands still or is lost.
//!
//! Invariant: the timeline of a machine depends on the seed, the faults and the machine alone.

use super::faults::{Draws, Law, MachineFault};

/// Nanoseconds of a second.
pub(super) const SECOND: f64 = 1e9;
/// The end of all times, in nanoseconds: no event is later.
pub(super) const NEVER: u64 = u64::MAX / 4;

/// Whole nanoseconds of a time in seconds.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "limited to the range first")]
pub(super) fn ns(seconds: f64) -> u64 {
    (seconds * SECOND).round().clamp(0.0, NEVER as f64) as u64
}

/// A fault that comes and goes.
#[derive(Clone, Debug)]
struct Source {
    /// Index of the fault and number of the machine.
    purpose: [u64; 2],
    every_s: f64,
    lasting: Law,
    /// The speed while it lasts, as a share of the full one.
    speed: f64,
    /// How often it has come or gone.
    turns: u64,
    active: bool,
    /// When it comes or goes next.
    next: u64,
}

impl Source {
    fn new(draws: Draws, purpose: [u64; 2], every_s: f64, lasting: Law, speed: f64) -> Self {
        let mut source = Self { purpose, every_s, lasting, speed, turns: 0, active: true, next: 0 };
        source.turn(draws);
        source
    }

    fn turn(&mut self, draws: Draws) {
        self.active = !self.active;
        let purpose = [self.purpose[0], self.purpose[1], 1, self.turns];
        let length = if self.active {
            self.lasting.at(draws.uniform(purpose))
        } else {
            self.every_s * draws.exponential(purpose)
        };
        self.turns += 1;
        // At least a nanosecond, so that time goes on.
        self.next = self.next.saturating_add(ns(length).max(1)).min(NEVER);
    }
}

/// The speed of a machine over time.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    draws: Draws,
    sources: Vec<Source>,
    /// The speed without anything that comes and goes.
    base: f64,
    /// Starts of the stretches of equal speed, ascending, and the speeds.
    stretches: Vec<(u64, f64)>,
    /// The time up to which the stretches are known.
    known: u64,
}

impl Timeline {
    /// The timeline of machine `machine`.
    pub(super) fn new(draws: Draws, faults: &[MachineFault], machine: usize) -> Self {
        let machine = machine as u64;
        let (mut sources, mut base) = (Vec::new(), 1.0);
        for (index, fault) in (0_u64..).zip(faults) {
            let hit = |share: f64| share >= 1.0 || draws.uniform([index, machine, 0, 0]) < share;
            match *fault {
                MachineFault::Slow { factor, every, lasting, machines } if hit(machines) => {
                    sources.push(Source::new(
                        draws,
                        [index, machine],
                        every.seconds(),
                        lasting,
                        1.0 / factor,
                    ));
                }
                MachineFault::Pause { every, lasting, machines } if hit(machines) => {
                    sources.push(Source::new(draws, [index, machine], every.seconds(), lasting, 0.0));
                }
                MachineFault::Uneven { factor, machines } if hit(machines) => base /= factor,
                _ => {}
            }
        }
        let known = sources.iter().map(|source| source.next).min().unwrap_or(NEVER);
        Self { draws, sources, base, stretches: vec![(0, base)], known }
    }

    /// Adds the next stretch.
    fn extend(&mut self) {
        let at = self.known;
        for source in self.sources.iter_mut().filter(|source| source.next <= at) {
            source.turn(self.draws);
        }
        let active = self.sources.iter().filter(|source| source.active);
        let speed = active.fold(self.base, |speed, source| speed * source.speed);
        self.stretches.push((at, speed));
        self.known = self.sources.iter().map(|source| source.next).min().unwrap_or(NEVER);
    }

    /// The stretch that holds `at`.
    fn index(&mut self, at: u64) -> usize {
        while self.known <= at && self.known < NEVER {
            self.extend();
        }
        self.stretches.partition_point(|(start, _)| *start <= at).saturating_sub(1)
    }

    fn end(&mut self, index: usize) -> u64 {
        if index + 1 == self.stretches.len() {
            return self.known;
        }
        self.stretches[index + 1].0
    }

    /// When `work`, in nanoseconds at full speed, is done if it begins at `from`.
    pub(super) fn finish(&mut self, from: u64, work: f64) -> u64 {
        let (mut index, mut at, mut left) = (self.index(from), from, work);
        loop {
            let (end, speed) = (self.end(index), self.stretches[index].1);
            let possible = (end - at) as f64 * speed;
            if possible >= left {
                let time = ns(left / speed / SECOND);
                return at.saturating_add(time).min(NEVER);
            }
            if end >= NEVER {
                return NEVER;
            }
            left -= possible;
            at = end;
            if index + 1 == self.stretches.len() {
                self.extend();
            }
            index += 1;
        }
    }

    /// The work, in nanoseconds at full speed, done from `from` to `to`.
    pub(super) fn done(&mut self, from: u64, to: u64) -> f64 {
        let (mut index, mut at, mut work) = (self.index(from), from, 0.0);
        while at < to {
            let (end, speed) = (self.end(index).min(to), self.stretches[index].1);
            work += (end - at) as f64 * speed;
            at = end;
            if at < to {
                if index + 1 == self.stretches.len() {
                    self.extend();
                }
                index += 1;
            }
        }
        work
    }
}

/// The losses of one machine, one after the other.
#[derive(Clone, Debug)]
pub(super) struct Losses(Option<(Draws, Source)>);

impl Losses {
    /// The losses of machine `machine`; those of the first kind of crash that happens to it.
    pub(super) fn new(draws: Draws, faults: &[MachineFault], machine: usize) -> Self {
        let machine = machine as u64;
        Self((0_u64..).zip(faults).find_map(|(index, fault)| match *fault {
            MachineFault::Crash { every, lasting, machines, .. }
                if machines >= 1.0 || draws.uniform([index, machine, 0, 0]) < machines =>
            {
                Some((draws, Source::new(draws, [index, machine], every.seconds(), lasting, 0.0)))
            }
            _ => None,
        }))
    }

    /// When the machine is lost or comes back next.
    pub(super) fn next(&mut self) -> Option<u64> {
        let (draws, source) = self.0.as_mut()?;
        let at = source.next;
        source.turn(*draws);
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::under_load::faults::Span;
    use std::time::Duration;

    fn pause(every_ms: u64, lasting: &str) -> Vec<MachineFault> {
        let (every, lasting) = (Span(Duration::from_millis(every_ms)), lasting.parse().unwrap());
        vec![MachineFault::Pause { every, lasting, machines: 1.0 }]
    }

    #[test]
    fn work_and_time_agree() {
        let faults = pause(20, "exp(5ms)");
        for machine in 0..50 {
            let mut line = Timeline::new(Draws(3), &faults, machine);
            let from = machine as u64 * 1_000_000;
            let end = line.finish(from, 3e7);
            assert!(end >= from + 30_000_000);
            assert!((line.done(from, end) - 3e7).abs() < 2.0, "{}", line.done(from, end));
            // In two pieces as in one.
            let middle = from + (end - from) / 3;
            let pieces = line.done(from, middle) + line.done(middle, end);
            assert!((pieces - 3e7).abs() < 2.0);
        }
    }

    #[test]
    fn a_machine_stands_still_for_the_share_that_the_law_says() {
        let faults = pause(30, "exp(10ms)");
        let mut line = Timeline::new(Draws(9), &faults, 0);
        let share = line.done(0, ns(400.0)) / (400.0 * SECOND);
        // About 10 000 periods: a standard error below 0.3 %.
        assert!((share - 0.75).abs() < 0.01, "{share}");
        // Negative control: a machine without faults, and one that is three times slower.
        assert_eq!(Timeline::new(Draws(9), &[], 0).done(5, 105), 100.0);
        let uneven = [MachineFault::Uneven { factor: 4.0, machines: 1.0 }];
        assert_eq!(Timeline::new(Draws(9), &uneven, 0).finish(10, 100.0), 410);
    }

    #[test]
    fn machines_differ_and_seeds_repeat() {
        let faults = pause(20, "5ms");
        let end = |seed, machine| Timeline::new(Draws(seed), &faults, machine).finish(0, 1e9);
        assert_eq!(end(1, 4), end(1, 4));
        assert_ne!(end(1, 4), end(1, 5));
        assert_ne!(end(1, 4), end(2, 4));
    }

    #[test]
    fn a_share_of_the_machines_is_hit() {
        let faults = [MachineFault::Uneven { factor: 2.0, machines: 0.25 }];
        let slow = (0..2000).filter(|m| Timeline::new(Draws(1), &faults, *m).finish(0, 10.0) == 20).count();
        assert!((420..580).contains(&slow), "{slow}");
    }
}
