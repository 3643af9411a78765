//! The workers of the soak test, their links, and a tracker that watches the production one.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::LEAST_LIE;
use super::layer::{Layer, mean_square, numbers};
use crate::array::{Element, Values};
use crate::conv::reference;
use crate::engine::holdings::{Holdings, TakeOver};
use crate::engine::tracker::DecodingTracker;
use crate::error::{Error, Result};
use crate::ids::{SubtaskId, WorkerId};
use crate::scheduler::{
    Arrivals, Direction, FilterHolders, MessageFaults, Partition, Recovery, SimulatedFleet, Verdict,
};
use crate::worker::SubtaskShape;

/// Behaviour of a simulated worker throughout a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Nature {
    Honest,
    /// Takes this many times as long.
    Slow(f64),
    /// Is lost at this time, and perhaps back later.
    Mortal(Duration, Option<Duration>),
    /// Takes tasks and never replies.
    Silent,
    /// Returns NaN, which is rejected on arrival.
    Nan,
    /// Fails every other task.
    Moody,
    /// Faulty: adds errors of this size, relative to a sub-result of average size.
    Liar(f64),
}

pub(super) fn ms(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1e3)
}

pub(super) fn any_natures(layer: &Layer, rng: &mut ChaCha8Rng) -> Vec<Nature> {
    let n = layer.code.n();
    let count = [n, n, n / 2, n + 3][rng.random_range(0..4)];
    // Usually at most as many as the code survives, sometimes more.
    let survivable = layer.code.tolerated();
    let most = if rng.random_range(0..3) == 0 { survivable + 2 } else { survivable };
    let bad = rng.random_range(0..=most);
    let mut natures = vec![Nature::Honest; count];
    for nature in natures.iter_mut().take(bad) {
        *nature = match rng.random_range(0..10) {
            0 => Nature::Slow(rng.random_range(5.0..100.0)),
            1 | 2 => {
                let at = ms(rng.random_range(0.0..60.0));
                let back = rng.random_bool(0.5).then(|| at + ms(rng.random_range(1.0..100.0)));
                Nature::Mortal(at, back)
            }
            3 | 4 => Nature::Silent,
            5 => Nature::Nan,
            6 => Nature::Moody,
            _ => Nature::Liar(10.0_f64.powf(rng.random_range(LEAST_LIE.log10()..0.0))),
        };
    }
    for at in (1..count).rev() {
        natures.swap(at, rng.random_range(0..=at));
    }
    natures
}

pub(super) fn any_message_faults(workers: usize, rng: &mut ChaCha8Rng) -> MessageFaults {
    let direction = |to_worker: bool| if to_worker { Direction::ToWorker } else { Direction::ToMaster };
    let partition = |rng: &mut ChaCha8Rng| {
        let from = ms(rng.random_range(0.0..40.0));
        Partition {
            worker: WorkerId(rng.random_range(0..workers)),
            direction: direction(rng.random_bool(0.5)),
            from,
            until: from + ms(rng.random_range(1.0..400.0)),
        }
    };
    MessageFaults {
        seed: rng.random(),
        loss: [0.0, 0.01, 0.1][rng.random_range(0..3)],
        delay: ms(rng.random_range(0.0..20.0)),
        partitions: (0..rng.random_range(0..3)).map(|_| partition(rng)).collect(),
    }
}

/// Computes sub-results as workers of the given natures do.
pub(super) struct Computing {
    pub(super) subtask: Arc<SubtaskShape>,
    pub(super) banks: Arc<Vec<Vec<f32>>>,
    pub(super) natures: Vec<Nature>,
    /// Root mean square of a sub-result of average size.
    pub(super) size: f64,
    pub(super) rng: ChaCha8Rng,
    /// Attempts begun by each worker, and sub-results computed for each attempt.
    pub(super) begun: Vec<Vec<usize>>,
    pub(super) computed: HashMap<usize, usize>,
}

impl Computing {
    pub(super) fn sub_result(
        &mut self,
        worker: WorkerId,
        attempt: usize,
        subtask: SubtaskId,
        slabs: &[f32],
        index: usize,
    ) -> Result<Vec<f32>> {
        if !self.begun[worker.0].contains(&attempt) {
            self.begun[worker.0].push(attempt);
        }
        let done = self.computed.entry(attempt).or_default();
        *done += 1;
        let second = *done == 2;
        let mut values = plain_sub_result(&self.subtask, slabs, &self.banks[subtask.0], index);
        match self.natures[worker.0] {
            Nature::Nan => values[0] = f32::NAN,
            Nature::Moody if self.begun[worker.0].len() % 2 == 1 && second => {
                return Err(Error::WorkerFailed { worker: worker.to_string(), cause: "moody".to_owned() });
            }
            Nature::Liar(size) => self.corrupt(&mut values, size),
            _ => {}
        }
        Ok(values)
    }

    /// Adds an error of relative L2 norm `size` to a result of average size: noise, or a wrong scale.
    pub(super) fn corrupt(&mut self, values: &mut [f32], size: f64) {
        let scales = self.rng.random_bool(0.3);
        let direction: Vec<f32> = if scales { values.to_vec() } else { numbers(values.len(), &mut self.rng) };
        let factor = size * self.size / mean_square(&direction).sqrt();
        for (value, along) in values.iter_mut().zip(direction) {
            *value += f32::from_f64(factor * f64::from(along));
        }
    }
}

pub(super) fn plain_sub_result(
    subtask: &SubtaskShape,
    slabs: &[f32],
    banks: &[f32],
    index: usize,
) -> Vec<f32> {
    let conv = &subtask.conv;
    let slab = &slabs[index / subtask.banks * conv.input_elems()..][..conv.input_elems()];
    let bank = &banks[index % subtask.banks * conv.weight_elems()..][..conv.weight_elems()];
    reference(conv, slab, bank, None).unwrap()
}

/// The layer's filters on the fleet.
pub(super) struct Filters<'a> {
    pub(super) holdings: RefCell<Holdings>,
    pub(super) fleet: &'a SimulatedFleet,
}

impl FilterHolders for Filters<'_> {
    fn dispatch_all(&self, dispatch: &mut dyn FnMut(SubtaskId, WorkerId)) {
        self.holdings.borrow().homes().for_each(|(subtask, worker)| dispatch(subtask, worker));
    }

    fn holds(&self, subtask: SubtaskId, worker: WorkerId) -> bool {
        self.holdings.borrow().holds(subtask, worker)
    }

    fn take_over(&self, subtask: SubtaskId, worker: WorkerId) -> Option<Values> {
        match self.holdings.borrow_mut().take_over(subtask, worker) {
            TakeOver::Held => None,
            TakeOver::Send { .. } => {
                self.fleet.spend(ms(0.1));
                Some(Values::F32(Vec::new()))
            }
        }
    }
}

/// A tracker that records when its results first decoded.
pub(super) struct Observed<'a> {
    pub(super) tracker: DecodingTracker<'a>,
    pub(super) fleet: &'a SimulatedFleet,
    pub(super) decodable_at: Option<Duration>,
}

impl Recovery for Observed<'_> {
    fn arrived(&mut self, arrivals: &Arrivals, subtask: SubtaskId, index: usize) {
        self.tracker.arrived(arrivals, subtask, index);
    }
    fn count_parts(&mut self, arrivals: &Arrivals) {
        self.tracker.count_parts(arrivals);
    }
    fn error(&mut self, arrivals: &Arrivals) -> f64 {
        let error = self.tracker.error(arrivals);
        if error.is_finite() {
            self.decodable_at.get_or_insert(self.fleet.elapsed());
        } else {
            self.decodable_at = None;
        }
        error
    }
    fn error_with(&mut self, arrivals: &Arrivals, more: &[SubtaskId]) -> f64 {
        self.tracker.error_with(arrivals, more)
    }
    fn suffices_with(&self, arrivals: &Arrivals, also: &dyn Fn(SubtaskId) -> bool) -> bool {
        self.tracker.suffices_with(arrivals, also)
    }
    fn wants(&self, arrivals: &Arrivals, subtask: SubtaskId) -> bool {
        self.tracker.wants(arrivals, subtask)
    }
    fn judge(&mut self, arrivals: &Arrivals) -> Verdict {
        self.tracker.judge(arrivals)
    }
    fn in_doubt(&self) -> bool {
        self.tracker.in_doubt()
    }
    fn wishes(&self, arrivals: &Arrivals) -> bool {
        self.tracker.wishes(arrivals)
    }
    fn used(&self, arrivals: &Arrivals) -> Vec<(SubtaskId, usize)> {
        self.tracker.used(arrivals)
    }
    fn faulty(&self) -> &[WorkerId] {
        self.tracker.faulty()
    }
    fn needed(&self) -> usize {
        self.tracker.needed()
    }
}
