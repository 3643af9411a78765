//! Parts of models on the workers of a pool: installing, removing, computing.
//!
//! Commands about parts and the tasks of layers share one queue for each worker, in order.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::Sender;

use super::fleet::Fleet;
use super::part_task::{PartInstalled, QueuedPart};
use super::pool::Pool;
use super::replicas::Holder;
use super::slot::{Command, Slot, SlotPart};
use crate::ids::WorkerId;
use crate::sync::locked;
use crate::worker::{PartFile, PartKey};

impl Pool {
    /// Queues the installation of a part; the answer is sent to `reply`. A worker that is lost gets the part when it is back.
    pub(crate) fn install_part(
        &self,
        worker: WorkerId,
        key: PartKey,
        part: &PartFile,
        reply: &Sender<PartInstalled>,
    ) {
        let slot = self.slot(worker);
        locked(&slot.parts).insert(key, SlotPart { file: part.clone(), held: false });
        slot.installing.fetch_add(1, Ordering::Relaxed);
        slot.send(Command::InstallPart(key, part.clone(), reply.clone(), worker));
    }

    /// Queues the removal of a part from a worker that has it or would get it.
    pub(crate) fn remove_part(&self, worker: WorkerId, key: PartKey) {
        let slot = self.slot(worker);
        if locked(&slot.parts).remove(&key).is_some() {
            slot.send(Command::RemovePart(key));
        }
    }

    /// Queues the computation of a part. A worker that must not take it answers at once with a failure.
    pub(crate) fn run_part(&self, worker: WorkerId, part: QueuedPart) {
        let slot = self.slot(worker);
        if !self.admits(slot) {
            return part.fail(slot.refusal());
        }
        slot.supervision.count_task();
        slot.send(Command::RunPart(part));
    }

    /// The workers that hold a part, and their present state.
    pub(crate) fn part_holders(&self, key: PartKey) -> Vec<Holder> {
        let here = |worker: &WorkerId| self.is_thread_here(*worker);
        let at_work = self.ids().filter(|worker| here(worker) && self.load(*worker) > 0).count();
        let full = at_work >= self.cores();
        let holds =
            |worker: &WorkerId| locked(&self.slot(*worker).parts).get(&key).is_some_and(|part| part.held);
        let holder = |worker: WorkerId| {
            let load = self.load(worker);
            Holder {
                worker,
                machine: machine(self.slot(worker)),
                load,
                answers: self.is_usable(worker) && !self.is_silent(worker),
                spare: load == 0 && !self.straggles(worker) && !(full && here(&worker)),
            }
        };
        self.ids().filter(holds).map(holder).collect()
    }

    /// A number for the machine of a worker.
    pub(crate) fn machine_of(&self, worker: WorkerId) -> u64 {
        machine(self.slot(worker))
    }
}

fn machine(slot: &Arc<Slot>) -> u64 {
    let mut hasher = DefaultHasher::new();
    slot.info().host.hash(&mut hasher);
    hasher.finish()
}
