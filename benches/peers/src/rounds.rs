//! Engines that take turns on one layer.
//!
//! Each makes the layer ready, is checked, warmed up, and then timed in rounds: in every round each engine computes
//! for about the same time, in an order that rotates. Ratios are made within a round, so that what slows the machine
//! down for longer than a round slows both sides.

use std::time::{Duration, Instant};

use anyhow::Result;
use fcdcc_peers::numbers::median;

use crate::engine::{Engine, Job, Span};
use crate::watchdog::within;

/// Longest time an engine of this process may take for one step: loading and checking, or one turn.
const STEP: Duration = Duration::from_mins(4);
/// Most calls of one turn.
const CALLS: f64 = 2000.0;

/// How long a layer is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// No further round begins after this, once there are `least` rounds.
    pub(crate) layer: Duration,
    /// Seconds of one turn, as nearly as whole calls allow.
    pub(crate) turn: f64,
    pub(crate) least: usize,
    pub(crate) most: usize,
}

/// What became of an engine on a layer.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// It has no result: why.
    Missing(String),
    Timed(Timed),
}

#[derive(Clone, Debug)]
pub(crate) struct Timed {
    /// What the engine says about how it computes.
    pub(crate) note: String,
    /// Relative L2 error against f64.
    pub(crate) error: f64,
    /// Seconds of a call in each round.
    pub(crate) rounds: Vec<f64>,
}

impl Outcome {
    /// Seconds of a call.
    pub(crate) fn seconds(&self) -> Option<f64> {
        match self {
            Self::Missing(_) => None,
            Self::Timed(timed) => Some(median(&timed.rounds)),
        }
    }

    /// How many times as fast as `peer` this is: the median over the rounds.
    pub(crate) fn ratio(&self, peer: &Self) -> Option<f64> {
        let (Self::Timed(ours), Self::Timed(theirs)) = (self, peer) else { return None };
        let ratios: Vec<_> = ours.rounds.iter().zip(&theirs.rounds).map(|(a, b)| b / a).collect();
        Some(median(&ratios))
    }
}

/// Makes `engine` ready for a layer and checks its result: its note and error.
pub(crate) fn prepare(engine: &mut dyn Engine, job: &Job<'_>) -> Result<(String, f64)> {
    let note = engine.load(job)?;
    let error = job.data.verify(&engine.run()?)?;
    Ok((note, error))
}

/// Compares `engines` on a layer: the outcome of each engine for each of `spans`.
pub(crate) fn compare(
    engines: &mut [Box<dyn Engine>],
    job: &Job<'_>,
    spans: &[Span],
    limits: Limits,
) -> Vec<Vec<Outcome>> {
    let step = |name: &str, what: &str| format!("{name} {what} {}", job.layer.name);
    let prepared: Vec<_> = engines
        .iter_mut()
        .map(|engine| within(&step(engine.name(), "preparing"), STEP, || prepare(engine.as_mut(), job)))
        .collect();
    spans
        .iter()
        .map(|&span| {
            let mut turns: Vec<_> = engines
                .iter_mut()
                .zip(&prepared)
                .map(|(engine, prepared)| {
                    Turn::new(engine.as_mut(), prepared, |engine, calls| {
                        within(&step(engine.name(), "computing"), STEP, || engine.time(span, calls))
                    })
                })
                .collect();
            for turn in &mut turns {
                turn.warm_up(limits.turn);
            }
            let begin = Instant::now();
            for round in 0..limits.most {
                if round >= limits.least && begin.elapsed() > limits.layer {
                    break;
                }
                let count = turns.len();
                (0..count).for_each(|place| turns[(place + round) % count].take());
            }
            turns.into_iter().map(|turn| turn.outcome).collect()
        })
        .collect()
}

/// An engine's part in the rounds.
struct Turn<'a, F> {
    engine: &'a mut dyn Engine,
    time: F,
    calls: usize,
    outcome: Outcome,
}

impl<'a, F: Fn(&mut dyn Engine, usize) -> Result<f64>> Turn<'a, F> {
    fn new(engine: &'a mut dyn Engine, prepared: &Result<(String, f64)>, time: F) -> Self {
        let outcome = match prepared {
            Ok((note, error)) => {
                Outcome::Timed(Timed { note: note.clone(), error: *error, rounds: Vec::new() })
            }
            Err(error) => Outcome::Missing(format!("{error:#}")),
        };
        Self { engine, time, calls: 1, outcome }
    }

    /// Computes twice and chooses how many calls make a turn.
    fn warm_up(&mut self, turn: f64) {
        for _ in 0..2 {
            if let Some(seconds) = self.seconds() {
                self.calls = (turn / seconds).clamp(1.0, CALLS) as usize;
            }
        }
    }

    fn take(&mut self) {
        if let Some(seconds) = self.seconds()
            && let Outcome::Timed(timed) = &mut self.outcome
        {
            timed.rounds.push(seconds);
        }
    }

    /// The seconds of a call; `None`, now and from now on, for an engine that fails.
    fn seconds(&mut self) -> Option<f64> {
        if matches!(self.outcome, Outcome::Missing(_)) {
            return None;
        }
        match (self.time)(self.engine, self.calls) {
            Ok(seconds) => Some(seconds),
            Err(error) => {
                self.outcome = Outcome::Missing(format!("{error:#}"));
                None
            }
        }
    }
}
