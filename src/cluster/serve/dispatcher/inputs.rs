//! Chunks and tasks as they arrive.
//!
//! Invariant: a task is queued only with filters that its master holds and with complete slabs of the right size.

use std::sync::Arc;
use std::time::Instant;

use super::Dispatcher;
use crate::array::{DType, WireFormat};
use crate::cluster::link::{Incoming, Payload};
use crate::cluster::rates::clock_us;
use crate::cluster::serve::answering::Answering;
use crate::cluster::serve::device::{Job, TaskJob};
use crate::cluster::serve::slabs::{Chunk, HeldSlabs};
use crate::cluster::wire::{self, Answer, MasterId, Object, Refusal, Request, SlabsName};
use crate::worker::{PhaseClock, SubtaskShape};

/// Why a request is refused.
type Refused = (Refusal, String);

fn malformed(text: impl Into<String>) -> Refused {
    (Refusal::Malformed, text.into())
}

impl Dispatcher {
    pub(super) fn chunk(
        &mut self,
        from: MasterId,
        incoming: &Arc<Incoming>,
        object: Object,
        chunk: &Chunk<'_>,
    ) -> Result<(), Refused> {
        let Chunk { offset, total, payload, crc, format } = *chunk;
        if payload.len() > wire::MAX_CHUNK_BYTES || total > wire::MAX_OBJECT_BYTES {
            return Err(malformed(format!("a chunk of {} of {total} bytes", payload.len())));
        }
        let received = match object {
            Object::Filters(content) => {
                let Some(assembly) = self.uploads.get_mut(&(from, content)) else {
                    let text = "these chunks were not asked for: ask for the installation first";
                    return Err((Refusal::NotHeld, text.to_owned()));
                };
                if assembly.total() != total {
                    let there = assembly.total();
                    return Err(malformed(format!(
                        "a chunk of an object of {total} bytes where it has {there}"
                    )));
                }
                assembly.accept(offset, payload, crc, format).map_err(malformed)?
            }
            Object::Slabs { name, dtype } => self.chunk_of_slabs((from, name), dtype, chunk)?,
            Object::Part(content) => self.chunk_of_part((from, content), total, offset, payload)?,
        };
        self.masters[&from].outbox.say(incoming, Answer::Ack { received, at_us: clock_us() });
        Ok(())
    }

    /// Adds a chunk of slabs, and makes room for them with the first; returns the offset of the first byte that is missing.
    fn chunk_of_slabs(
        &mut self,
        of: (MasterId, SlabsName),
        dtype: DType,
        chunk: &Chunk<'_>,
    ) -> Result<u64, Refused> {
        let received = self.common.slabs.received(of);
        if chunk.payload.len() == 0 {
            return Ok(received.unwrap_or(0));
        }
        if received.is_none() && chunk.offset == 0 {
            let room = self.room_for_slabs(chunk.total, dtype)?;
            self.common.slabs.begin(of, room);
        }
        self.common.slabs.accept(of, chunk).map_err(malformed)
    }

    /// Queues a [`Request::Task`].
    pub(super) fn task(
        &mut self,
        from: MasterId,
        incoming: &Arc<Incoming>,
        request: Request,
        payload: &Payload,
    ) -> Result<(), Refused> {
        let Request::Task { task, device, content, order, slabs: name, inline_bytes, crc, format, results } =
            request
        else {
            return Err(malformed("no task"));
        };
        let at = self.device(device)?;
        let Some(held) = self.held.get_mut(&(at, content)).filter(|held| held.holders.contains(&from)) else {
            self.common.slabs.forget((from, SlabsName::OfTask(task)));
            return Err((Refusal::NotHeld, format!("filters {content} are not held for this master")));
        };
        held.used = Instant::now();
        let dtype = held.spec.dtype;
        let shape = held.spec.subtask().map_err(|e| malformed(e.to_string()))?;
        if let Some(order) = &order
            && (order.len() > wire::MAX_SUB_RESULTS
                || order.iter().any(|i| *i as usize >= shape.sub_results()))
        {
            return Err(malformed(format!("an order beyond {} sub-results", shape.sub_results())));
        }
        if results.of(dtype) != results {
            return Err(malformed(format!("{results} for results of {dtype}")));
        }
        let slabs = self.slabs_of_task((from, name), &shape, dtype, (payload, crc, format))?;
        let outbox = self.masters[&from].outbox.clone();
        outbox.say(incoming, Answer::Accepted { at_us: clock_us() });
        let phases = PhaseClock::default();
        let Some((cancel, asker)) = self.common.tasks.begin((from, task), incoming) else {
            return Err((Refusal::Cancelled, "cancelled before it came".to_owned()));
        };
        self.devices[at].queue(Job::Execute(TaskJob {
            content,
            order: order.map(|order| order.into_iter().map(|i| i as usize).collect()),
            slabs,
            cancel,
            answering: Answering {
                key: (from, task),
                inline_bytes: (inline_bytes as usize).min(wire::MAX_CHUNK_BYTES),
                results,
                asker,
                outbox,
                phases,
            },
        }));
        Ok(())
    }

    /// The slabs of a task, from its payload if it has one.
    fn slabs_of_task(
        &mut self,
        of: (MasterId, SlabsName),
        shape: &SubtaskShape,
        dtype: DType,
        (payload, crc, format): (&Payload, u32, WireFormat),
    ) -> Result<Arc<HeldSlabs>, Refused> {
        let bytes = (shape.upload_elems() * dtype.size_bytes()) as u64;
        let incomplete = |got: u64| malformed(format!("{got} of {bytes} bytes of slabs"));
        if payload.len() > 0 {
            let mut object = self.room_for_slabs(bytes, dtype)?;
            object.accept(0, payload, crc, format).map_err(malformed)?;
            let (values, reservation) = object.finish().map_err(|object| incomplete(object.received()))?;
            return Ok(self.common.slabs.hold(of, values, reservation));
        }
        match (self.common.slabs.take(of), of.1) {
            (Ok(slabs), _) if slabs.values.size_bytes() as u64 == bytes => Ok(slabs),
            (Ok(slabs), _) => Err(incomplete(slabs.values.size_bytes() as u64)),
            (Err(None), SlabsName::Shared(number)) => {
                Err((Refusal::SlabsMissing, format!("slabs {number} are not held")))
            }
            (Err(received), _) => Err(incomplete(received.unwrap_or(0))),
        }
    }
}
