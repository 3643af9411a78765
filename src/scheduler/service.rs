//! A worker's thread: serves commands in order until the pool is dropped or the thread is abandoned.
//!
//! It qualifies its worker with a probe before the first filters of an element type and after quarantine, checks every
//! sub-result, and measures the speed. A lost worker is dropped and respawned in the background.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::health::State;
use super::mailbox::{Mailbox, Taken};
use super::revive;
use super::slot::{Command, InstallRequest, Installed, QueuedTask, ReplyKind, Shared, Status, locked};
use crate::array::DType;
use crate::error::{Error, Result, panic_text};
use crate::worker::{CancelToken, FilterKey, Order, Probe, Respawn, Task, Worker};

pub(super) struct Service {
    pub(super) shared: Arc<Shared>,
    pub(super) name: String,
    pub(super) status: Arc<Status>,
    pub(super) respawn: Option<Respawn>,
    pub(super) epoch: u64,
    /// Element types in which the worker has been probed, successfully or not.
    pub(super) qualified: Vec<DType>,
    /// `None` while the worker is lost.
    pub(super) worker: Option<Box<dyn Worker>>,
}

impl Service {
    pub(super) fn serve(mut self, inbox: &Mailbox<Command>) {
        if self.worker.is_none() {
            // This thread replaces one that was abandoned.
            self.revive();
        }
        while self.status.serves(self.epoch) {
            // A new worker is probed with its first filters, which determine the element type.
            let due = locked(&self.status.health).next_probe().filter(|_| !self.qualified.is_empty());
            match inbox.take(due.map(|due| self.shared.started + due)) {
                Taken::Item(Command::Install(request, reply, worker)) => {
                    let key = request.key;
                    let result = self.install(request);
                    if self.status.serves(self.epoch) {
                        self.status.installing.fetch_sub(1, Ordering::Relaxed);
                    }
                    // The layer may have stopped waiting.
                    let _ = reply.send(Installed { key, worker, result });
                }
                // An error means that the worker is lost, and its filters with it.
                Taken::Item(Command::Remove(key)) => {
                    let _ = self.guarded(&CancelToken::new(), 0, |w| {
                        w.remove(key);
                        Ok(())
                    });
                }
                Taken::Item(Command::Execute(task)) => self.execute(task),
                Taken::Item(Command::Return(worker, holds)) => self.take_back(worker, &holds),
                Taken::Item(Command::Wake) => {}
                Taken::Timeout => self.probe_again(),
                Taken::Closed => break,
            }
        }
    }

    fn install(&mut self, request: InstallRequest) -> Result<()> {
        let dtype = request.banks.dtype();
        if self.worker.is_some() && !self.qualified.contains(&dtype) {
            // A worker that fails the probe is quarantined but still gets its filters, for the time after.
            self.qualify(dtype)?;
        }
        self.guarded(&CancelToken::new(), 0, |w| w.install(request.key, &request.shape, request.banks))
    }

    /// Probes the worker; an error means that it was lost meanwhile.
    fn qualify(&mut self, dtype: DType) -> Result<()> {
        let token = self.shared.closing.clone();
        let result = self.guarded(&token, 0, |w| Probe::new(dtype).check(w, &token));
        match result {
            Err(error @ Error::WorkerLost { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!(worker = self.name, %error, "failed its probe");
                self.status.update(&self.shared, |h, now| h.probed(now, Err(error.to_string())));
            }
            Ok(()) => self.status.update(&self.shared, |h, now| h.probed(now, Ok(()))),
        }
        if !self.qualified.contains(&dtype) {
            self.qualified.push(dtype);
        }
        Ok(())
    }

    /// Probes the worker again when the backoff of its quarantine is over.
    fn probe_again(&mut self) {
        for dtype in self.dtypes() {
            if self.qualify(dtype).is_err() || locked(&self.status.health).state() == State::Quarantined {
                return;
            }
        }
    }

    /// Element types to probe: all that the worker was used for.
    fn dtypes(&self) -> Vec<DType> {
        if self.qualified.is_empty() { vec![DType::F32] } else { self.qualified.clone() }
    }

    fn execute(&mut self, task: QueuedTask) {
        let reply = |what| task.reply(what);
        if task.cancel.is_cancelled() || !self.status.is_usable() {
            let quarantined = || Error::WorkerFailed {
                worker: self.name.clone(),
                cause: "quarantined while the task waited for it".to_owned(),
            };
            self.status.begin(self.epoch, &task.cancel);
            self.status.end(self.epoch, 1);
            let error = if task.cancel.is_cancelled() { Error::Cancelled } else { quarantined() };
            return reply(ReplyKind::Failed(error));
        }
        let (mut unusable, mut done) = (false, 0);
        let started = Instant::now();
        let name = self.name.clone();
        let result = self.guarded(&task.cancel, 1, |w| {
            let _span = tracing::debug_span!("execute", worker = name, subtask = task.key.subtask).entered();
            let order = task.order.as_deref().map_or(Order::All, Order::Each);
            let QueuedTask { key, slabs, cancel, buffers, .. } = &task;
            let call = Task { key: *key, slabs, order, cancel, buffers };
            w.execute(call, &mut |index, values| {
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
        let (busy, each) = (started.elapsed(), task.shape.conv.macs());
        // A failure gives no speed.
        if matches!(result, Ok(()) | Err(Error::Cancelled)) {
            self.status.measure(|speed| speed.ended(&result, each, done, busy));
        }
        match result {
            Ok(()) if unusable => {}
            Ok(()) => reply(ReplyKind::Finished),
            Err(error) => reply(ReplyKind::Failed(error)),
        }
    }

    /// A respawned worker takes the place of the lost one, with the filters it `holds`.
    fn take_back(&mut self, worker: Box<dyn Worker>, holds: &HashSet<FilterKey>) {
        tracing::info!(worker = self.name, "back");
        self.let_go();
        self.status.succeed(worker.info());
        self.worker = Some(worker);
        self.status.update(&self.shared, |h, now| {
            h.rejoined(now);
            // The worker passed its probe before it was given its filters.
            h.probed(now, Ok(()));
        });
        // Layers may have been added and removed meanwhile.
        let wanted = locked(&self.status.wanted).clone();
        for key in holds.iter().filter(|key| !wanted.contains_key(*key)) {
            let _ = self.guarded(&CancelToken::new(), 0, |w| {
                w.remove(*key);
                Ok(())
            });
        }
        for (key, shape) in wanted.into_iter().filter(|(key, _)| !holds.contains(key)) {
            let source = locked(&self.shared.sources).get(&key.layer).and_then(Weak::upgrade);
            if let Some(source) = source {
                let banks = source.coded_filters(key.subtask);
                let result = self.install(InstallRequest { key, shape, banks });
                if let Err(error) = result {
                    tracing::warn!(worker = self.name, %error, "filters not installed");
                }
            }
        }
    }

    /// Calls the worker, turns a panic into its loss, and drops a lost worker. `tasks` tasks are over afterwards.
    fn guarded(
        &mut self,
        cancel: &CancelToken,
        tasks: usize,
        call: impl FnOnce(&mut dyn Worker) -> Result<()>,
    ) -> Result<()> {
        let lost = |cause: String| Error::WorkerLost { worker: self.name.clone(), cause };
        self.status.begin(self.epoch, cancel);
        let Some(alive) = self.worker.as_mut() else {
            self.status.end(self.epoch, tasks);
            return Err(lost(locked(&self.status.health).cause().unwrap_or_default().to_owned()));
        };
        let result = catch_unwind(AssertUnwindSafe(|| call(alive.as_mut())))
            .unwrap_or_else(|panic| Err(lost(format!("it panicked: {}", panic_text(&*panic)))));
        let serves = self.status.end(self.epoch, tasks);
        if let (Err(Error::WorkerLost { cause, .. }), true) = (&result, serves) {
            tracing::warn!(worker = self.name, cause, "lost");
            self.status.lose(&self.shared, cause);
            self.let_go();
            self.revive();
        }
        result
    }

    /// Drops the worker on another thread, since dropping a hung device can block. If no thread can be started, the worker
    /// is dropped here with the closure.
    fn let_go(&mut self) {
        if let Some(gone) = self.worker.take() {
            let gone = std::sync::Mutex::new(gone);
            let reaper = std::thread::Builder::new().name(format!("fcdcc reaper {}", self.name));
            let _ = reaper.spawn(move || drop(gone));
        }
    }

    fn revive(&mut self) {
        let Some(respawn) = self.respawn.clone() else { return };
        revive::spawn(revive::Revival {
            respawn,
            shared: Arc::clone(&self.shared),
            status: Arc::clone(&self.status),
            name: self.name.clone(),
            dtypes: self.dtypes(),
        });
    }
}
