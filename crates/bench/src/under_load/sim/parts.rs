//! Tasks under way, machines, and the recent times from which late tasks are recognised.
//!
//! Invariant: a number of a task that has ended never means another one.

use std::collections::VecDeque;

use super::super::faults::{Draws, MachineFault};
use super::super::timeline::{Losses, SECOND, Timeline};

/// A task: one part of one request on one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CopyId {
    index: usize,
    generation: u64,
}

/// Where a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waits for the master's link.
    AtMaster,
    OnTheWay,
    /// Waits for the machine's processor.
    Queued,
    Running,
    /// Its answer waits for the machine's link.
    Answering,
    /// Its answer is on its way, which nothing can stop.
    Answered,
    /// Its machine is lost, which the master does not know yet.
    Lost,
}

/// A task.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy {
    pub(super) request: usize,
    /// Its step of the request, and the index of that step on machines in the plan.
    pub(super) step: usize,
    pub(super) index: usize,
    pub(super) part: usize,
    pub(super) machine: usize,
    pub(super) phase: Phase,
    pub(super) up_bytes: f64,
    /// The master does not want it any more.
    pub(super) cancelled: bool,
}

/// All tasks under way.
#[derive(Debug, Default)]
pub(super) struct Copies {
    places: Vec<(u64, Option<Copy>)>,
    free: Vec<usize>,
}

impl Copies {
    pub(super) fn add(&mut self, copy: Copy) -> CopyId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            self.places.len() - 1
        });
        let (generation, place) = &mut self.places[index];
        *place = Some(copy);
        CopyId { index, generation: *generation }
    }

    pub(super) fn get(&mut self, id: CopyId) -> Option<&mut Copy> {
        let (generation, copy) = self.places.get_mut(id.index)?;
        if *generation == id.generation { copy.as_mut() } else { None }
    }

    pub(super) fn remove(&mut self, id: CopyId) -> Option<Copy> {
        let (generation, place) = self.places.get_mut(id.index)?;
        if *generation != id.generation {
            return None;
        }
        let copy = place.take()?;
        *generation += 1;
        self.free.push(id.index);
        Some(copy)
    }
}

/// The task that a machine computes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    pub(super) copy: CopyId,
    pub(super) since: u64,
    /// When computing begins, after a delay.
    pub(super) begins: u64,
    /// Nanoseconds at full speed.
    pub(super) work: f64,
}

/// A machine.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) timeline: Timeline,
    pub(super) losses: Losses,
    pub(super) lost: bool,
    /// The master takes it for lost.
    pub(super) suspected: bool,
    /// Tasks sent of which the master knows no end: neither an answer, nor that the machine has given them up. A machine that
    /// stands still acknowledges nothing, and so is avoided.
    pub(super) unanswered: usize,
    /// When its link has received everything that is on its way.
    pub(super) in_free: u64,
    pub(super) queue: VecDeque<CopyId>,
    pub(super) running: Option<Running>,
    /// Number of the present task.
    pub(super) number: u64,
    pub(super) answers: VecDeque<CopyId>,
    pub(super) answering: bool,
    busy_s: f64,
}

impl Machine {
    pub(super) fn new(draws: Draws, faults: &[MachineFault], index: usize) -> Self {
        Self {
            timeline: Timeline::new(draws, faults, index),
            losses: Losses::new(draws, faults, index),
            lost: false,
            suspected: false,
            unanswered: 0,
            in_free: 0,
            queue: VecDeque::new(),
            running: None,
            number: 0,
            answers: VecDeque::new(),
            answering: false,
            busy_s: 0.0,
        }
    }

    /// Seconds with a task up to `now`.
    pub(super) fn busy_s(&self, now: u64) -> f64 {
        self.busy_s + self.running.map_or(0.0, |running| (now - running.since) as f64 / SECOND)
    }

    /// Ends the present task at `now`; the work done for it, in nanoseconds at full speed.
    pub(super) fn stop(&mut self, now: u64) -> Option<(CopyId, f64)> {
        self.busy_s = self.busy_s(now);
        let running = self.running.take()?;
        self.number += 1;
        let done = if now > running.begins { self.timeline.done(running.begins, now) } else { 0.0 };
        Some((running.copy, done.min(running.work)))
    }
}

/// A step on machines that is under way.
#[derive(Debug)]
pub(super) struct Active {
    /// Index of the plan's step on machines.
    pub(super) index: usize,
    pub(super) since: u64,
    pub(super) done: Vec<bool>,
    pub(super) done_count: usize,
    /// How often each part was sent.
    pub(super) sent: Vec<usize>,
    /// Tasks that may still be answered.
    pub(super) live: Vec<CopyId>,
    /// Machines that have the input, if all parts share it.
    pub(super) have_input: Vec<usize>,
}

/// Recent times of a step.
#[derive(Debug, Default)]
pub(super) struct History {
    times: VecDeque<u64>,
    recorded: u64,
    quantile: Option<u64>,
}

/// Times kept.
const KEPT: usize = 512;
/// Fewest times from which a quantile is taken.
const FEWEST: usize = 20;
/// The quantile is computed again after this many times.
const RENEWED: u64 = 16;

impl History {
    pub(super) fn record(&mut self, time: u64) {
        if self.times.len() == KEPT {
            self.times.pop_front();
        }
        self.times.push_back(time);
        self.recorded += 1;
        if self.recorded.is_multiple_of(RENEWED) {
            self.quantile = None;
        }
    }

    /// The `q`-quantile of the times kept, at most a few times old.
    pub(super) fn quantile(&mut self, q: f64) -> Option<u64> {
        if self.times.len() < FEWEST {
            return None;
        }
        if self.quantile.is_none() {
            let mut times: Vec<u64> = self.times.iter().copied().collect();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below the length")]
            let at = (q * (times.len() - 1) as f64).round() as usize;
            self.quantile = Some(*times.select_nth_unstable(at).1);
        }
        self.quantile
    }
}
