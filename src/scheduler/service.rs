//! A worker's thread: serves commands in order until the pool is dropped or the thread is abandoned.
//!
//! It qualifies its worker with a probe before the first filters of an element type and after quarantine, checks every
//! sub-result, and measures the speed. `worker::supervised` replaces the worker when it is lost or hangs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::health::State;
use super::mailbox::Taken;
use super::part_task::{PartInstalled, QueuedPart};
use super::slot::{Banks, Command, InstallRequest, Installed, QueuedTask, ReplyKind, Slot, same_filters};
use crate::array::DType;
use crate::error::{Error, Result};
use crate::sync::locked;
use crate::worker::{
    CancelToken, Live, Order, Owner, PartFile, PartKey, PartSignature, Phase, Supervised, Task,
    abandon_if_hung, waited,
};

/// Starts the thread of a worker. If the system starts none, the worker is lost for good.
pub(super) fn start(slot: &Arc<Slot>, supervised: Supervised<Slot>) {
    let service = Service { slot: Arc::clone(slot), supervised };
    let thread = std::thread::Builder::new().name(format!("fcdcc {}", slot.name()));
    match thread.spawn(move || service.serve()) {
        Ok(thread) => *locked(&slot.thread) = Some(thread),
        Err(error) => {
            let cause = format!("no thread could be started for it: {error}");
            tracing::warn!(worker = slot.name(), cause, "gone for good");
            slot.lost(&cause);
            slot.inbox.close();
            slot.decline_all();
        }
    }
}

/// Abandons a worker that is still busy long after its task was cancelled: everything queued is answered, and a new thread
/// takes the place of the hung one.
pub(super) fn replace_if_hung(slot: &Arc<Slot>, grace: Duration) {
    if let Some(supervised) = abandon_if_hung(slot, grace) {
        slot.decline_all();
        start(slot, supervised);
    }
}

struct Service {
    slot: Arc<Slot>,
    supervised: Supervised<Slot>,
}

impl Service {
    fn serve(mut self) {
        self.supervised.reopen_if_lost();
        let slot = Arc::clone(&self.slot);
        while self.supervised.serves() {
            // A new worker is probed with its first filters, which determine the element type.
            let probed = !self.supervised.probed().is_empty();
            let due = locked(&slot.health).next_probe().filter(|_| probed);
            match slot.inbox.take(due.map(|due| slot.shared.started + due)) {
                Taken::Item(Command::Install(request, reply, worker)) => {
                    let key = request.key;
                    let result = self.install(request);
                    slot.installing.fetch_sub(1, Ordering::Relaxed);
                    // The layer may have stopped waiting.
                    let _ = reply.send(Installed { key, worker, result });
                }
                Taken::Item(Command::Remove(key)) => self.supervised.remove(key),
                Taken::Item(Command::Execute(task)) => self.execute(task),
                Taken::Item(Command::InstallPart(key, part, reply, worker)) => {
                    let result = self.install_part(key, &part);
                    slot.part_installed(key, result.as_ref());
                    slot.installing.fetch_sub(1, Ordering::Relaxed);
                    // The receiver may have stopped waiting.
                    let _ = reply.send(PartInstalled { worker, result });
                }
                Taken::Item(Command::RemovePart(key)) => self.supervised.remove_part(key),
                Taken::Item(Command::RunPart(part)) => self.run_part(&part),
                Taken::Item(Command::Return(live)) => self.take_back(live),
                Taken::Item(Command::Wake) => {}
                Taken::Timeout => self.probe_again(),
                Taken::Closed => break,
            }
        }
    }

    fn install(&mut self, request: InstallRequest) -> Result<()> {
        let InstallRequest { key, shape, banks } = request;
        let dtype = banks.dtype();
        if self.supervised.live().is_some() && !self.supervised.probed().contains(&dtype) {
            // A worker that fails the probe is quarantined but still gets its filters, for the time after.
            self.qualify(dtype)?;
        }
        match banks {
            Banks::Coded(values) => self.supervised.install(key, &shape, values),
            Banks::Of(source) => {
                let (same, subtask) = (same_filters(source.as_ref(), key), key.subtask);
                // Encoding is guarded, as in the thread that opens a worker.
                self.supervised.share_or_install(key, same, &shape, || source.coded_filters(subtask))
            }
        }
    }

    fn install_part(&mut self, key: PartKey, part: &PartFile) -> Result<PartSignature> {
        // A worker that fails the probe is quarantined but still gets its parts, for the time after.
        if self.supervised.live().is_some() && self.supervised.probed().is_empty() {
            self.qualify(DType::F32)?;
        }
        self.supervised.install_part(key, part)
    }

    /// Probes the worker; an error means that it was lost meanwhile.
    fn qualify(&mut self, dtype: DType) -> Result<()> {
        let result = self.supervised.probe(dtype, &self.slot.shared.closing);
        if let Err(error @ Error::WorkerLost { .. }) = result {
            return Err(error);
        }
        if let Err(error) = &result {
            tracing::warn!(worker = self.slot.name(), %error, "failed its probe");
        }
        self.slot.update(|h, now| h.probed(now, result.map_err(|error| error.to_string())));
        Ok(())
    }

    /// Probes the worker again when the backoff of its quarantine is over, in all element types that it was used for.
    fn probe_again(&mut self) {
        for dtype in self.supervised.probed().to_vec() {
            if self.qualify(dtype).is_err() || locked(&self.slot.health).state() == State::Quarantined {
                return;
            }
        }
    }

    fn execute(&mut self, task: QueuedTask) {
        if task.cancel.is_cancelled() || !self.slot.is_usable() {
            // An error means that the worker is lost; the task fails in any case.
            let _ = self.supervised.guarded(&task.cancel, 1, |_| Ok(()));
            return task.fail(if task.cancel.is_cancelled() {
                Error::Cancelled
            } else {
                self.slot.refusal()
            });
        }
        let reply = |what| task.reply(what);
        let (mut unusable, mut done) = (false, 0);
        let (started, waited_before, name) = (Instant::now(), waited(), self.slot.name());
        let result = self.supervised.guarded(&task.cancel, 1, |live| {
            let _span =
                tracing::debug_span!("execute", worker = name, subtask = task.key.subtask.0).entered();
            let order = task.order.as_deref().map_or(Order::All, Order::Each);
            let QueuedTask { key, slabs, shared, cancel, buffers, phases, .. } = &task;
            let call =
                Task { key: *key, slabs, shared: Some(shared), order, cancel, buffers, phases: Some(phases) };
            phases.enter(Phase::Compute);
            live.worker.execute(call, &mut |index, values| {
                done += 1;
                let values = buffers.adopt(values);
                match task.inspect(&values) {
                    Ok(sketch) => reply(ReplyKind::SubResult { index, values, sketch }),
                    Err(cause) => {
                        unusable = true;
                        reply(ReplyKind::Unusable { cause });
                    }
                }
            })
        });
        // Waiting for a core says nothing about the worker.
        let busy = started.elapsed().saturating_sub(waited().saturating_sub(waited_before));
        let each = task.shape.conv.macs();
        // A failure gives no speed, nor does a call that was abandoned: it would count for the worker that took over.
        if matches!(result, Ok(()) | Err(Error::Cancelled)) && self.supervised.serves() {
            self.slot.measure(|speed| speed.ended(&result, each, done, busy));
        }
        match result {
            Ok(()) if unusable => {}
            Ok(()) => reply(ReplyKind::Finished),
            Err(error) => reply(ReplyKind::Failed(error)),
        }
    }

    fn run_part(&mut self, part: &QueuedPart) {
        if part.cancel.is_cancelled() || !self.slot.is_usable() {
            // As for a task.
            let _ = self.supervised.guarded(&part.cancel, 1, |_| Ok(()));
            return part.fail(if part.cancel.is_cancelled() {
                Error::Cancelled
            } else {
                self.slot.refusal()
            });
        }
        let (started, waited_before, name) = (Instant::now(), waited(), self.slot.name());
        let result = self.supervised.guarded(&part.cancel, 1, |live| {
            let _span = tracing::debug_span!("part", worker = name, part = part.key.0).entered();
            live.worker.run_part(part.key, &part.inputs, &part.cancel)
        });
        let busy = started.elapsed().saturating_sub(waited().saturating_sub(waited_before));
        part.reply(busy, part.inspect(result));
    }

    /// A worker that was opened again takes the place of the lost one.
    fn take_back(&mut self, live: Live) {
        let slot = Arc::clone(&self.slot);
        slot.succeed(live.worker.as_ref());
        // Layers may have been added and removed meanwhile.
        let wanted = locked(&slot.wanted).clone();
        let unwanted: Vec<_> = live.holds.iter().filter(|key| !wanted.contains_key(*key)).copied().collect();
        let missing = slot.missing(&live.holds);
        let unwanted_parts: Vec<PartKey> = {
            let wanted = locked(&slot.parts);
            live.parts.iter().filter(|key| !wanted.contains_key(key)).copied().collect()
        };
        self.supervised.take_back(live);
        slot.update(|h, now| {
            h.rejoined(now);
            // The worker passed its probe before it was given its filters.
            h.probed(now, Ok(()));
        });
        for key in unwanted {
            self.supervised.remove(key);
        }
        for (key, shape, source) in missing {
            let installed = self.install(InstallRequest { key, shape, banks: Banks::Of(source) });
            if let Err(error) = installed {
                tracing::warn!(worker = slot.name(), %error, "filters not installed");
                if self.supervised.live().is_none() {
                    return;
                }
            }
        }
        for key in unwanted_parts {
            self.supervised.remove_part(key);
        }
        // An error means that the worker is lost again; the next one gets the parts.
        let _ = self.supervised.guarded(&CancelToken::new(), 0, |live| slot.equip_parts(live));
    }
}

#[cfg(test)]
mod tests;
