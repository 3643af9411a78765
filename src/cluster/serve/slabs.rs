//! Slabs that arrive, wait for their task, or are kept for several tasks of a run.
//!
//! That a run is over is more urgent than its slabs and may overtake them: it is remembered, so that they are not kept.
//!
//! Invariant: slabs that are kept have a reservation. Shared slabs that no task computes with make room for others, the
//! least recently used first.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::super::budget::Reservation;
use super::super::link::Payload;
use super::super::wire::{MasterId, SlabsName};
use super::reassembly::Reassembly;
use crate::array::{Buffers, Pooled, Values, WireFormat};
use crate::sync::locked;

/// Time without a new chunk, or without a task, after which slabs are dropped.
const STALE: Duration = Duration::from_mins(1);

/// Maximum number of runs remembered that are over.
const REMEMBERED: usize = 4096;

/// Slabs on this machine.
pub(super) struct HeldSlabs {
    pub(super) values: Pooled,
    _reservation: Reservation,
}

/// See the module documentation. Cheap to clone.
#[derive(Clone)]
pub(super) struct Slabs {
    table: Arc<Mutex<Table>>,
    /// Where buffers come from, and return to.
    spare: Buffers,
}

#[derive(Default)]
struct Table {
    slabs: HashMap<(MasterId, SlabsName), State>,
    /// Shared slabs whose run is over.
    forgotten: VecDeque<(MasterId, SlabsName)>,
}

enum State {
    Arriving(Reassembly),
    Whole { slabs: Arc<HeldSlabs>, used: Instant },
}

impl State {
    fn received(&self) -> u64 {
        match self {
            Self::Arriving(object) => object.received(),
            Self::Whole { slabs, .. } => slabs.values.size_bytes() as u64,
        }
    }

    fn total(&self) -> u64 {
        match self {
            Self::Arriving(object) => object.total(),
            Self::Whole { .. } => self.received(),
        }
    }
}

/// A chunk of slabs.
pub(super) struct Chunk<'a> {
    pub(super) offset: u64,
    pub(super) total: u64,
    pub(super) payload: &'a Payload,
    pub(super) crc: u32,
    pub(super) format: WireFormat,
}

impl Slabs {
    pub(super) fn new(spare: Buffers) -> Self {
        Self { table: Arc::default(), spare }
    }

    /// Offset of the first byte that is missing; `None` for slabs of which nothing has arrived.
    pub(super) fn received(&self, of: (MasterId, SlabsName)) -> Option<u64> {
        locked(&self.table).slabs.get(&of).map(State::received)
    }

    /// Makes room for slabs whose chunks are about to arrive.
    pub(super) fn begin(&self, of: (MasterId, SlabsName), room: Reassembly) {
        let mut table = locked(&self.table);
        if !table.forgotten.contains(&of) {
            table.slabs.insert(of, State::Arriving(room));
        }
    }

    /// Adds a chunk of slabs that were begun; returns the offset of the first byte that is missing.
    ///
    /// # Errors
    /// Why the chunk is invalid.
    pub(super) fn accept(&self, of: (MasterId, SlabsName), chunk: &Chunk<'_>) -> Result<u64, String> {
        let mut table = locked(&self.table);
        let Some(state) = table.slabs.get_mut(&of) else {
            return Err(format!("slabs {:?} are over, or do not begin at {}", of.1, chunk.offset));
        };
        if state.total() != chunk.total {
            return Err(format!(
                "a chunk of an object of {} bytes where it has {}",
                chunk.total,
                state.total()
            ));
        }
        match state {
            State::Arriving(object) => object.accept(chunk.offset, chunk.payload, chunk.crc, chunk.format),
            State::Whole { .. } => Ok(state.received()),
        }
    }

    /// The slabs for a task, if they are complete; slabs of this task alone are taken out.
    ///
    /// # Errors
    /// The number of bytes that have arrived; `None` if there are none.
    pub(super) fn take(&self, of: (MasterId, SlabsName)) -> Result<Arc<HeldSlabs>, Option<u64>> {
        let mut table = locked(&self.table);
        match table.slabs.remove(&of) {
            None => Err(None),
            Some(State::Arriving(object)) => match object.finish() {
                Ok((values, reservation)) => {
                    drop(table);
                    Ok(self.hold(of, values, reservation))
                }
                Err(object) => {
                    let received = object.received();
                    if matches!(of.1, SlabsName::Shared(_)) {
                        table.slabs.insert(of, State::Arriving(object));
                    }
                    Err(Some(received))
                }
            },
            Some(State::Whole { slabs, .. }) => {
                let used = Instant::now();
                table.slabs.insert(of, State::Whole { slabs: Arc::clone(&slabs), used });
                Ok(slabs)
            }
        }
    }

    /// Slabs that have arrived as a whole; shared ones are kept for other tasks.
    pub(super) fn hold(
        &self,
        of: (MasterId, SlabsName),
        values: Values,
        reservation: Reservation,
    ) -> Arc<HeldSlabs> {
        let values = self.spare.adopt(values);
        let slabs = Arc::new(HeldSlabs { values, _reservation: reservation });
        if matches!(of.1, SlabsName::Shared(_)) {
            let state = State::Whole { slabs: Arc::clone(&slabs), used: Instant::now() };
            let mut table = locked(&self.table);
            if !table.forgotten.contains(&of) {
                table.slabs.insert(of, state);
            }
        }
        slabs
    }

    /// Takes out a complete input of a run of a part.
    ///
    /// # Errors
    /// The number of bytes that have arrived; `None` if there are none.
    pub(super) fn take_input(&self, of: (MasterId, SlabsName)) -> Result<(Values, Reservation), Option<u64>> {
        match locked(&self.table).slabs.remove(&of) {
            Some(State::Arriving(object)) => object.finish().map_err(|object| Some(object.received())),
            Some(State::Whole { .. }) | None => Err(None),
        }
    }

    /// Drops the slabs or inputs of a task that are not in use.
    pub(super) fn forget_task(&self, master: MasterId, task: u64) {
        locked(&self.table).slabs.retain(|(of, name), _| match name {
            SlabsName::OfTask(number) | SlabsName::Input { task: number, .. } => {
                (*of, *number) != (master, task)
            }
            SlabsName::Shared(_) => true,
        });
    }

    pub(super) fn forget(&self, of: (MasterId, SlabsName)) {
        let mut table = locked(&self.table);
        table.slabs.remove(&of);
        if matches!(of.1, SlabsName::Shared(_)) {
            table.forgotten.push_back(of);
            if table.forgotten.len() > REMEMBERED {
                table.forgotten.pop_front();
            }
        }
    }

    /// Drops all slabs of a master.
    pub(super) fn forget_master(&self, master: MasterId) {
        let mut table = locked(&self.table);
        table.slabs.retain(|of, _| of.0 != master);
        table.forgotten.retain(|of| of.0 != master);
    }

    /// Drops the shared slabs that were not used for the longest time and are not in use; false if there are none.
    pub(super) fn make_room(&self) -> bool {
        let mut table = locked(&self.table);
        let unused = |(of, state): (&(MasterId, SlabsName), &State)| match state {
            State::Whole { slabs, used } if Arc::strong_count(slabs) == 1 => Some((*used, *of)),
            State::Whole { .. } | State::Arriving(_) => None,
        };
        let oldest = table.slabs.iter().filter_map(unused).min_by_key(|(used, _)| *used);
        oldest.is_some_and(|(_, of)| table.slabs.remove(&of).is_some())
    }

    /// Drops what was forgotten by its master.
    pub(super) fn expire(&self) {
        locked(&self.table).slabs.retain(|_, state| match state {
            State::Arriving(object) => object.touched.elapsed() < STALE,
            State::Whole { slabs, used } => Arc::strong_count(slabs) > 1 || used.elapsed() < STALE,
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::array::DType;
    use crate::cluster::budget::Budget;

    fn chunk(payload: &Payload, offset: u64) -> Chunk<'_> {
        Chunk { offset, total: 8, payload, crc: payload.crc(), format: WireFormat::Full }
    }

    #[test]
    fn shared_slabs_stay_until_they_are_forgotten_and_others_go_with_their_task() {
        let (budget, slabs) = (Budget::new(16), Slabs::new(Buffers::default()));
        let (first, last) = (Payload::from(vec![0; 4]), Payload::from(vec![0; 4]));
        for name in [SlabsName::OfTask(1), SlabsName::Shared(1)] {
            let of = (MasterId(1), name);
            assert_eq!(slabs.received(of), None);
            assert!(slabs.accept(of, &chunk(&first, 0)).is_err(), "not begun");
            assert!(matches!(slabs.take(of), Err(None)));
            let room = Reassembly::new(DType::F32, budget.reserve(8).unwrap(), Values::zeros).unwrap();
            slabs.begin(of, room);
            assert_eq!(slabs.accept(of, &chunk(&first, 0)), Ok(4));
            assert!(slabs.accept(of, &Chunk { total: 12, ..chunk(&last, 4) }).is_err());
            let shared = matches!(name, SlabsName::Shared(_));
            if shared {
                assert!(matches!(slabs.take(of), Err(Some(4))), "it stays, and can be completed");
            }
            assert_eq!(slabs.accept(of, &chunk(&last, 4)), Ok(8));
            assert_eq!(slabs.received(of), Some(8));
            assert_eq!(slabs.take(of).unwrap().values.len(), 2);
            assert_eq!(slabs.take(of).is_ok(), shared);
            assert!(slabs.take((MasterId(2), name)).is_err(), "another master's");
            assert_eq!(budget.used(), if shared { 8 } else { 0 });
            if shared {
                assert_eq!(slabs.accept(of, &chunk(&first, 0)), Ok(8), "sent again");
            }
        }
        slabs.forget((MasterId(1), SlabsName::Shared(2)));
        slabs.forget_master(MasterId(2));
        assert_eq!(budget.used(), 8);
        let of = (MasterId(1), SlabsName::Shared(1));
        slabs.forget(of);
        assert_eq!(budget.used(), 0);
        // What arrives after the end of the run is used and not kept.
        let room = || Reassembly::new(DType::F32, budget.reserve(8).unwrap(), Values::zeros).unwrap();
        slabs.begin(of, room());
        assert!(slabs.accept(of, &chunk(&first, 0)).unwrap_err().contains("are over"));
        drop(slabs.hold(of, Values::F32(vec![0.0; 2]), budget.reserve(8).unwrap()));
        assert_eq!((slabs.received(of), budget.used()), (None, 0));
    }

    #[test]
    fn the_least_recently_used_slabs_make_room_but_not_those_in_use() {
        let (budget, slabs) = (Budget::new(24), Slabs::new(Buffers::default()));
        let of = |number| (MasterId(1), SlabsName::Shared(number));
        let hold = |number| slabs.hold(of(number), Values::F32(vec![0.0; 2]), budget.reserve(8).unwrap());
        let in_use = hold(1);
        drop((hold(2), hold(3)));
        assert!(slabs.take(of(2)).is_ok());
        assert!(slabs.make_room());
        assert_eq!((slabs.received(of(3)), slabs.received(of(2)), budget.used()), (None, Some(8), 16));
        assert!(slabs.make_room());
        assert!(!slabs.make_room(), "the rest is in use");
        drop(in_use);
        assert!(slabs.make_room());
        assert_eq!(budget.used(), 0);
    }
}
