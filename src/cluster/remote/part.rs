//! Parts of models on a device of another machine.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::{INSTALL_LIMIT, RemoteWorker, SMALL_BYTES, Seat, turn_to_install};
use crate::array::{Buffers, DType, Values, WireFormat};
use crate::cluster::call::{CallError, Event, Wire, unexpected, wait_for_answer};
use crate::cluster::chunk_sizer::ChunkSizer;
use crate::cluster::link::{Payload, TrafficClass};
use crate::cluster::narrow::Cut;
use crate::cluster::remote_task::{RemoteTask, Sender};
use crate::cluster::task_phases::TaskPhases;
use crate::cluster::wire::{Answer, ContentId, MAX_OBJECT_BYTES, Object, Request, check_signature};
use crate::error::{Error, Result};
use crate::worker::{CancelToken, PartFile, PartKey, PartSignature, no_part};

/// A part that the device holds.
pub(super) struct HeldPart {
    pub(super) content: ContentId,
    signature: Arc<PartSignature>,
}

impl RemoteWorker {
    pub(super) fn send_part(&mut self, key: PartKey, part: &PartFile) -> Result<PartSignature> {
        let bytes = part.bytes.len() as u64;
        if bytes == 0 || bytes > MAX_OBJECT_BYTES {
            let help =
                format!("1 to {MAX_OBJECT_BYTES} bytes travel as one: divide the model into more parts");
            return Err(Error::invalid("size of a part of a model in bytes", part.bytes.len(), help));
        }
        let content = ContentId::of_part(&part.bytes);
        let file = Bytes::from_owner(Arc::clone(&part.bytes));
        let shared = Arc::clone(&self.shared);
        let memory_bytes = part.memory_bytes;
        let signature = self.over_the_wire(|wire, pace, _, claimed| {
            let inline = file.len() <= SMALL_BYTES;
            // Larger files may be held already, so ask first.
            let _turn =
                if inline { None } else { Some(turn_to_install(&shared, wire, &claimed.id, content)?) };
            let install = Request::InstallPart { device: claimed.device, content, bytes, memory_bytes };
            offer(wire, pace, &install, content, &file)
        })?;
        if let Some(before) =
            self.parts.insert(key, HeldPart { content, signature: Arc::new(signature.clone()) })
        {
            self.release_part(before.content);
        }
        Ok(signature)
    }

    pub(super) fn release_part(&self, content: ContentId) {
        if self.parts.values().any(|part| part.content == content) {
            return;
        }
        if let Seat::Taken { claimed, keys } = &self.seat {
            let release = Request::ReleasePart { device: claimed.device, content };
            // In the class of installations: the same part may be installed again right after it.
            self.shared.ask_in_order(claimed.link, &keys.call(), release, TrafficClass::Background);
        }
    }

    pub(super) fn call_part(
        &mut self,
        key: PartKey,
        inputs: &[Values],
        cancel: &CancelToken,
    ) -> Result<Vec<Values>> {
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if !matches!(self.seat, Seat::Taken { .. }) {
            return self.over_the_wire(|_, _, _, _| Ok(Vec::new()));
        }
        let held = self.parts.get(&key).ok_or_else(|| no_part(&self.name, key))?;
        held.signature.check_inputs(inputs)?;
        let (content, signature, format) = (held.content, Arc::clone(&held.signature), self.wire);
        let shared = Arc::clone(&self.shared);
        let number = shared.next_task();
        let mut outputs: Vec<Option<Values>> = signature.outputs.iter().map(|_| None).collect();
        self.over_the_wire(|wire, pace, copies, claimed| {
            let waker = wire.sender.clone();
            let _hook = cancel.on_cancel(move || {
                // The call may be over.
                let _ = waker.send(Event::Cancelled);
            });
            let mut call = RemoteTask {
                shared: &shared,
                member: &claimed.id,
                device: claimed.device,
                content,
                dtype: DType::F32,
                format,
                elems: 0,
                outputs: Some(&signature.outputs),
                order: None,
                wanted: (0..outputs.len()).collect(),
                buffers: &Buffers::default(),
                task: number,
                phases: TaskPhases::new(None),
            };
            let sender = Sender { wire: &mut *wire, pace, copies };
            let result = call.run_part(sender, inputs, &mut |index, values| {
                if let Some(output) = outputs.get_mut(index) {
                    *output = Some(values);
                }
            });
            if matches!(result, Err(CallError::Cancelled | CallError::Failed(_))) {
                wire.tell(Request::Cancel { task: number });
            }
            result
        })?;
        // The task is done only when every output has come.
        Ok(outputs.into_iter().flatten().collect())
    }
}

/// Asks the machine to install a part, and sends what it lacks of the file.
fn offer(
    wire: &mut Wire<'_>,
    pace: &mut ChunkSizer,
    install: &Request,
    content: ContentId,
    file: &Bytes,
) -> Result<PartSignature, CallError> {
    let mut part = |range: Range<usize>| Cut {
        payload: Payload::from(file.slice(range)),
        crc: 0,
        format: WireFormat::Full,
    };
    // Ask once, again once the chunks are sent, and once more in case they were lost meanwhile.
    for _ in 0..3 {
        let inline = file.len() <= SMALL_BYTES;
        let payload = if inline { part(0..file.len()).payload } else { Payload::empty() };
        let number = wire.ask(install.clone(), payload, TrafficClass::Background, INSTALL_LIMIT)?;
        match wait_for_answer(wire, number, Instant::now() + INSTALL_LIMIT)? {
            Answer::PartInstalled { signature } => {
                check_signature(&signature).map_err(CallError::Failed)?;
                return Ok(signature);
            }
            Answer::Send { from } => {
                let (object, all) = (Object::Part(content), from..file.len() as u64);
                wire.upload(pace, object, all, TrafficClass::Background, &mut part, &mut |_| {})?;
            }
            other => return Err(unexpected(&other)),
        }
    }
    Err(CallError::Failed("it does not keep the chunks it is sent".to_owned()))
}
