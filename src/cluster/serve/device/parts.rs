//! Parts of models on a device.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{PartInstalled, Thread, Told, refusal};
use crate::array::Values;
use crate::cluster::budget::Reservation;
use crate::cluster::serve::answering::Answering;
use crate::cluster::serve::parts::PartBytes;
use crate::cluster::wire::{Answer, ContentId, Refusal};
use crate::error::Result;
use crate::sync::locked;
use crate::worker::{CancelToken, PartFile, PartKey, PartSignature, Phase};

/// A part to install.
pub(in crate::cluster::serve) struct NewPart {
    pub(in crate::cluster::serve) content: ContentId,
    /// Size of the file.
    pub(in crate::cluster::serve) bytes: u64,
    pub(in crate::cluster::serve) memory_bytes: u64,
    pub(in crate::cluster::serve) file: PartSource,
}

/// Where the file of a part is.
pub(in crate::cluster::serve) enum PartSource {
    /// Here, already checked.
    Sent(PartBytes),
    /// In the cache; there is room for it.
    Cached(Reservation),
}

/// One run of a part.
pub(in crate::cluster::serve) struct PartJob {
    pub(in crate::cluster::serve) content: ContentId,
    pub(in crate::cluster::serve) inputs: Vec<Values>,
    /// For the inputs.
    pub(in crate::cluster::serve) reservations: Vec<Reservation>,
    pub(in crate::cluster::serve) cancel: CancelToken,
    pub(in crate::cluster::serve) answering: Answering,
}

impl Thread {
    /// Installs a part and tells the dispatcher the outcome.
    pub(super) fn install_part(&mut self, part: NewPart) {
        let (content, bytes) = (part.content, part.bytes);
        let installed = match self.compile(part) {
            Ok(Some(signature)) => PartInstalled::Held(signature),
            Ok(None) => PartInstalled::Missing { bytes },
            Err(error) => PartInstalled::Refused(refusal(&error), error.to_string()),
        };
        (self.owner.tell)(Told::PartInstalled(content, installed));
    }

    /// Installs a part; `None` where the cache did not have it.
    fn compile(&mut self, part: NewPart) -> Result<Option<PartSignature>> {
        let NewPart { content, bytes, memory_bytes, file } = part;
        let cache = self.common.cache.clone();
        let sent = matches!(file, PartSource::Sent(_));
        let from_cache = |room: Reservation| {
            let cache = cache.as_ref()?;
            let file: Arc<[u8]> = cache.read_file(content, bytes).ok()?.into();
            let right = ContentId::of_part(&file) == content;
            if !right {
                cache.remove(content);
            }
            right.then(|| PartBytes::new(file, room))
        };
        let file = match file {
            PartSource::Sent(file) => Some(file),
            PartSource::Cached(room) => from_cache(room),
        };
        let Some(file) = file else { return Ok(None) };
        self.next_key += 1;
        let key = PartKey(self.next_key);
        let signature =
            self.supervised.install_part(key, &PartFile { bytes: Arc::clone(&file.bytes), memory_bytes })?;
        self.parts.insert(content, key);
        if let Some(cache) = cache.filter(|_| sent)
            && let Some(room) = self.common.budget.reserve(bytes)
        {
            cache.keep(content, Box::new(Arc::clone(&file.bytes)), room);
        }
        Ok(Some(signature))
    }

    pub(super) fn remove_part(&mut self, content: ContentId) {
        if let Some(key) = self.parts.remove(&content) {
            self.supervised.remove_part(key);
        }
    }

    pub(super) fn run_part(&mut self, job: PartJob) {
        let started = Instant::now();
        let PartJob { content, inputs, reservations, cancel, answering } = job;
        let result = self.compute_part(content, &inputs, &cancel, &answering);
        for values in inputs {
            drop(self.common.spare.adopt(values));
        }
        drop(reservations);
        let Answering { key, asker, outbox, .. } = answering;
        self.common.tasks.end(key);
        let stats = &self.stats;
        stats.busy_us.fetch_add(started.elapsed().as_micros() as u64, Ordering::Relaxed);
        match result {
            Ok(()) => {
                stats.done.fetch_add(1, Ordering::Relaxed);
                *locked(&stats.last_done) = Some(Instant::now());
                outbox.say(&asker.current(), Answer::Done);
            }
            Err((why, text)) => {
                let counter = if why == Refusal::Cancelled { &stats.cancelled } else { &stats.failed };
                counter.fetch_add(1, Ordering::Relaxed);
                self.common.results.forget(key.0, key.1);
                outbox.refuse(&asker.current(), why, text);
            }
        }
    }

    /// Computes a part and sends its outputs.
    fn compute_part(
        &mut self,
        content: ContentId,
        inputs: &[Values],
        cancel: &CancelToken,
        answering: &Answering,
    ) -> Result<(), (Refusal, String)> {
        let Some(key) = self.parts.get(&content).copied() else {
            self.stats.supervision.end_tasks(1);
            return Err(self.missing("part", content));
        };
        let ran = self.supervised.guarded(cancel, 1, |live| {
            answering.phases.enter(Phase::Compute);
            live.worker.run_part(key, inputs, cancel)
        });
        let outputs = ran.map_err(|error| (refusal(&error), error.to_string()))?;
        for (index, values) in outputs.into_iter().enumerate() {
            let sent = answering.send(&self.common.results, &mut self.copies, index, values);
            sent.map_err(|text| (Refusal::Memory, text))?;
        }
        Ok(())
    }
}
