//! Requests about parts of models.
//!
//! Invariant: a run is queued only with a part that its master holds, and with complete inputs of its sizes and types.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::Dispatcher;
use crate::array::{Values, WireFormat};
use crate::cluster::budget::Reservation;
use crate::cluster::link::{Incoming, Payload};
use crate::cluster::rates::clock_us;
use crate::cluster::serve::answering::Answering;
use crate::cluster::serve::device::{Job, NewPart, PartInstalled, PartJob, PartSource};
use crate::cluster::serve::parts::{HeldPart, PartState, PartUpload};
use crate::cluster::wire::{self, Answer, ContentId, MasterId, Refusal, Request, SlabsName};
use crate::worker::{PartArray, PhaseClock};

/// Why a request is refused.
type Refused = (Refusal, String);

fn malformed(text: impl Into<String>) -> Refused {
    (Refusal::Malformed, text.into())
}

impl Dispatcher {
    /// Handles a [`Request::InstallPart`].
    pub(super) fn install_part(
        &mut self,
        from: MasterId,
        incoming: &Arc<Incoming>,
        request: &Request,
        payload: &Payload,
    ) -> Result<(), Refused> {
        let &Request::InstallPart { device, content, bytes, memory_bytes } = request else {
            return Err(malformed("no part"));
        };
        let at = self.device(device)?;
        if bytes == 0 || bytes > wire::MAX_OBJECT_BYTES {
            let most = wire::MAX_OBJECT_BYTES;
            return Err(malformed(format!("a part of {bytes} bytes: 1 to {most} travel as one")));
        }
        if self.has_part((at, content), from, incoming) {
            return Ok(());
        }
        let own = self.parts.uploads.remove(&(from, content)).filter(|upload| upload.total() == bytes);
        let file = if payload.len() > 0 {
            drop(own);
            let mut upload = self.room_for_part(bytes)?;
            upload.accept(0, payload).map_err(malformed)?;
            PartSource::Sent(upload.finish(content).map_err(malformed)?)
        } else {
            match own {
                Some(upload) if upload.received() == bytes => {
                    let file = upload.finish(content).map_err(malformed)?;
                    if self.devices.len() > 1 {
                        self.parts.keep_for_others(content, &file);
                    }
                    PartSource::Sent(file)
                }
                Some(upload) => {
                    self.ask_for_part((from, content), upload, incoming);
                    return Ok(());
                }
                None => match self.parts.recent(content) {
                    Some(file) => PartSource::Sent(file),
                    None if self.common.cache.as_ref().is_some_and(|cache| cache.has(content, bytes)) => {
                        PartSource::Cached(self.reserve(bytes)?)
                    }
                    None => {
                        let upload = self.room_for_part(bytes)?;
                        self.ask_for_part((from, content), upload, incoming);
                        return Ok(());
                    }
                },
            }
        };
        let memory = self.reserve(memory_bytes)?;
        self.put_part((at, content), (from, incoming), memory, (file, bytes));
        Ok(())
    }

    /// Queues a part for a device.
    fn put_part(
        &mut self,
        (at, content): (usize, ContentId),
        (from, incoming): (MasterId, &Arc<Incoming>),
        memory: Reservation,
        (file, bytes): (PartSource, u64),
    ) {
        let memory_bytes = memory.bytes();
        let part = HeldPart {
            holders: HashSet::from([from]),
            _memory: memory,
            used: Instant::now(),
            state: PartState::Installing(vec![(from, Arc::clone(incoming))]),
        };
        self.parts.held.insert((at, content), part);
        self.devices[at].queue(Job::InstallPart(Box::new(NewPart { content, bytes, memory_bytes, file })));
    }

    /// Reserves memory for a file.
    fn room_for_part(&mut self, bytes: u64) -> Result<PartUpload, Refused> {
        let reservation = self.reserve(bytes)?;
        PartUpload::new(reservation).ok_or_else(|| malformed(format!("a part of {bytes} bytes")))
    }

    /// Asks for the chunks of a file that are missing.
    fn ask_for_part(&mut self, of: (MasterId, ContentId), upload: PartUpload, incoming: &Arc<Incoming>) {
        self.masters[&of.0].outbox.say(incoming, Answer::Send { from: upload.received() });
        self.parts.uploads.insert(of, upload);
    }

    /// Whether a device holds a part, or will: then the master is one of its holders, and is answered.
    fn has_part(&mut self, at: (usize, ContentId), from: MasterId, incoming: &Arc<Incoming>) -> bool {
        let Some(part) = self.parts.held.get_mut(&at) else { return false };
        part.used = Instant::now();
        part.holders.insert(from);
        match &mut part.state {
            PartState::Installing(waiting) => waiting.push((from, Arc::clone(incoming))),
            PartState::Held(signature) => {
                let answer = Answer::PartInstalled { signature: signature.as_ref().clone() };
                self.masters[&from].outbox.say(incoming, answer);
            }
        }
        true
    }

    /// Adds a chunk of a file; returns the offset of the first byte that is missing.
    pub(super) fn chunk_of_part(
        &mut self,
        of: (MasterId, ContentId),
        total: u64,
        offset: u64,
        payload: &Payload,
    ) -> Result<u64, Refused> {
        let Some(upload) = self.parts.uploads.get_mut(&of) else {
            let text = "these chunks were not asked for: ask for the installation first";
            return Err((Refusal::NotHeld, text.to_owned()));
        };
        if upload.total() != total {
            let there = upload.total();
            return Err(malformed(format!("a chunk of an object of {total} bytes where it has {there}")));
        }
        upload.accept(offset, payload).map_err(malformed)
    }

    /// The outcome of an installation.
    pub(super) fn part_installed(&mut self, device: usize, content: ContentId, installed: PartInstalled) {
        let at = (device, content);
        let Some(part) = self.parts.held.get_mut(&at) else { return };
        let PartState::Installing(waiting) = &mut part.state else { return };
        let waiting = std::mem::take(waiting);
        let answer = match installed {
            PartInstalled::Held(signature) => match wire::check_signature(&signature) {
                Ok(()) => {
                    part.state = PartState::Held(Arc::new(signature.clone()));
                    Answer::PartInstalled { signature }
                }
                Err(text) => {
                    self.drop_part(at);
                    Answer::refused(Refusal::Failed, text)
                }
            },
            PartInstalled::Missing { bytes } => {
                self.parts.held.remove(&at);
                return self.ask_again_for_part(content, bytes, waiting);
            }
            PartInstalled::Refused(why, text) => {
                self.parts.held.remove(&at);
                Answer::refused(why, text)
            }
        };
        for (from, incoming) in waiting {
            if let Some(master) = self.masters.get(&from) {
                master.outbox.say(&incoming, answer.clone());
            }
        }
    }

    /// The cache did not have a file after all: requests the chunks from the masters that wait for it.
    fn ask_again_for_part(
        &mut self,
        content: ContentId,
        bytes: u64,
        waiting: Vec<(MasterId, Arc<Incoming>)>,
    ) {
        for (from, incoming) in waiting {
            if !self.masters.contains_key(&from) {
                continue;
            }
            match self.room_for_part(bytes) {
                Ok(upload) => self.ask_for_part((from, content), upload, &incoming),
                Err((why, text)) => self.masters[&from].outbox.refuse(&incoming, why, text),
            }
        }
    }

    /// Removes a part from a device.
    pub(super) fn drop_part(&mut self, at: (usize, ContentId)) {
        if self.parts.held.remove(&at).is_some() {
            self.devices[at.0].queue(Job::RemovePart(at.1));
        }
    }

    /// Queues a [`Request::RunPart`].
    pub(super) fn run_part(
        &mut self,
        from: MasterId,
        incoming: &Arc<Incoming>,
        request: &Request,
        payload: &Payload,
    ) -> Result<(), Refused> {
        let &Request::RunPart { task, device, content, inline_bytes, crc, format, results } = request else {
            return Err(malformed("no part"));
        };
        let job = self.device(device).and_then(|at| {
            let held = self.parts.held.get_mut(&(at, content)).filter(|part| part.holders.contains(&from));
            let Some(HeldPart { state: PartState::Held(signature), used, .. }) = held else {
                return Err((Refusal::NotHeld, format!("part {content} is not held for this master")));
            };
            *used = Instant::now();
            let signature = Arc::clone(signature);
            let inputs = self.inputs_of_part((from, task), &signature.inputs, (payload, crc, format))?;
            Ok((at, inputs))
        });
        let (at, (inputs, reservations)) = job.inspect_err(|_| self.common.slabs.forget_task(from, task))?;
        let outbox = self.masters[&from].outbox.clone();
        outbox.say(incoming, Answer::Accepted { at_us: clock_us() });
        let Some((cancel, asker)) = self.common.tasks.begin((from, task), incoming) else {
            return Err((Refusal::Cancelled, "cancelled before it came".to_owned()));
        };
        let answering = Answering {
            key: (from, task),
            inline_bytes: (inline_bytes as usize).min(wire::MAX_CHUNK_BYTES),
            results,
            asker,
            outbox,
            phases: PhaseClock::default(),
        };
        self.devices[at].queue(Job::RunPart(Box::new(PartJob {
            content,
            inputs,
            reservations,
            cancel,
            answering,
        })));
        Ok(())
    }

    /// The inputs of a run: the first from its payload if it has one, all others as they were sent before.
    fn inputs_of_part(
        &mut self,
        (from, task): (MasterId, u64),
        arrays: &[PartArray],
        (payload, crc, format): (&Payload, u32, WireFormat),
    ) -> Result<(Vec<Values>, Vec<Reservation>), Refused> {
        let mut inputs = (Vec::with_capacity(arrays.len()), Vec::with_capacity(arrays.len()));
        if payload.len() > 0 && arrays.is_empty() {
            return Err(malformed("an input of a part without inputs"));
        }
        for (index, array) in (0..).zip(arrays) {
            // `check_signature` bounds the size.
            let bytes = array.size_bytes().unwrap_or_default() as u64;
            let incomplete = |got: u64| malformed(format!("{got} of {bytes} bytes of input {index}"));
            let object = if index == 0 && payload.len() > 0 {
                let mut object = self.room_for_slabs(bytes, array.dtype)?;
                object.accept(0, payload, crc, format).map_err(malformed)?;
                object.finish().map_err(|object| incomplete(object.received()))?
            } else {
                let name = SlabsName::Input { task, index };
                let taken = self.common.slabs.take_input((from, name));
                taken.map_err(|received| incomplete(received.unwrap_or(0)))?
            };
            let (values, reservation) = object;
            if values.dtype() != array.dtype || values.size_bytes() as u64 != bytes {
                let got = format!("{} bytes of {}", values.size_bytes(), values.dtype());
                return Err(malformed(format!(
                    "{got} for input {index} of {bytes} bytes of {}",
                    array.dtype
                )));
            }
            inputs.0.push(values);
            inputs.1.push(reservation);
        }
        Ok(inputs)
    }
}
