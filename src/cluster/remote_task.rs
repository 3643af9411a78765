//! One task on a device of another machine: its slabs, its request, its results.
//!
//! Slabs that other tasks of the run use too are sent once to each machine (`sharing`); a machine that has dropped them
//! says so, and gets them again. Large slabs wait for their turn (`uplink`).
//!
//! Invariant: a task ends with an answer or an error, and gives up sharing after [`SHARED_ATTEMPTS`] attempts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::call::{CallError, Event, Sent, TASK_LIMIT, Wire, unexpected, wait_for_answer};
use super::chunk_sizer::ChunkSizer;
use super::link::{Payload, Response, TrafficClass};
use super::narrow::{self, Copies, Cut};
use super::registry::MemberId;
use super::shared::Shared;
use super::sharing::{Lead, Turn};
use super::task_phases::TaskPhases;
use super::uplink::{Permit, STALL};
use super::wire::{Answer, ContentId, MAX_CHUNK_BYTES, Object, Refusal, Request, SlabsName};
use crate::array::{Buffers, DType, Values, WireFormat};
use crate::worker::{PartArray, SharedSlabs, count_wait};

/// Slabs of fewer bytes go with each task: keeping track of them costs more than sending them.
const SHARED_FROM: usize = 16 << 10;
/// Slabs up to this number of bytes go with their task's request, without a turn.
const INLINE_BYTES: usize = 64 << 10;
/// Number of times that shared slabs are sent again, or waited for, before a task takes its own.
const SHARED_ATTEMPTS: usize = 3;
/// Time limit for the answer to how much of the slabs has arrived.
const RECEIVED_LIMIT: Duration = Duration::from_secs(5);

/// What receives sub-results, by their index.
pub(super) type Emit<'a> = &'a mut dyn FnMut(usize, Values);

/// See the module documentation.
pub(super) struct RemoteTask<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) member: &'a MemberId,
    pub(super) device: u32,
    pub(super) content: ContentId,
    pub(super) dtype: DType,
    /// The format for slabs and sub-results.
    pub(super) format: WireFormat,
    /// Elements of a sub-result.
    pub(super) elems: usize,
    /// The outputs of a part of a model, which stand in place of equal sub-results.
    pub(super) outputs: Option<&'a [PartArray]>,
    /// Indices of the sub-results wanted, in this order; all, in any order, when `None`.
    pub(super) order: Option<Vec<u32>>,
    /// Sub-results still to come.
    pub(super) wanted: Vec<usize>,
    pub(super) buffers: &'a Buffers,
    /// The task's number.
    pub(super) task: u64,
    pub(super) phases: TaskPhases<'a>,
}

/// What sends the messages of a task.
pub(super) struct Sender<'a, 'w> {
    pub(super) wire: &'a mut Wire<'w>,
    pub(super) pace: &'a mut ChunkSizer,
    pub(super) copies: &'a mut Copies,
}

/// How a request for a task ended.
enum Ended {
    Done,
    /// The machine does not hold the shared slabs.
    SlabsMissing,
}

impl RemoteTask<'_> {
    /// Sends the task with its `slabs`, and passes its results to `emit`. `identity`: of slabs that other tasks may use.
    pub(super) fn run(
        &mut self,
        mut sender: Sender<'_, '_>,
        slabs: &[u8],
        identity: Option<&SharedSlabs>,
        emit: Emit<'_>,
    ) -> Result<(), CallError> {
        self.phases.sending();
        let identity = identity.filter(|identity| slabs.len() >= SHARED_FROM && !identity.is_released());
        if let Some(identity) = identity {
            for _ in 0..SHARED_ATTEMPTS {
                match self.with_shared(&mut sender, slabs, identity, emit)? {
                    Ended::Done => return Ok(()),
                    Ended::SlabsMissing => {
                        sender.wire.task_refused();
                        self.phases.sending();
                        self.shared.sharing.lost(&(self.member.clone(), identity.id()));
                    }
                }
            }
            tracing::debug!(machine = self.member.0, "it keeps no shared slabs");
        }
        let name = SlabsName::OfTask(self.task);
        let inline = slabs.len() <= INLINE_BYTES.min(sender.pace.chunk_bytes());
        if !inline {
            self.upload(&mut sender, (name, self.dtype), 0, slabs, None)?;
        }
        let number = self.ask(&mut sender, name, if inline { slabs } else { &[] })?;
        match self.results(&mut sender, number, None, emit)? {
            Ended::Done => Ok(()),
            Ended::SlabsMissing => Err(CallError::Failed("it does not keep the slabs it is sent".to_owned())),
        }
    }

    /// The task with slabs that stay on the machine for other tasks: sent by this one if no other has.
    fn with_shared(
        &mut self,
        sender: &mut Sender<'_, '_>,
        slabs: &[u8],
        identity: &SharedSlabs,
        emit: Emit<'_>,
    ) -> Result<Ended, CallError> {
        let (shared, name) = (self.shared, SlabsName::Shared(identity.id()));
        let of = (self.member.clone(), identity.id());
        let lead = loop {
            let forget = || {
                let (shared, of, (link, key)) = (Arc::downgrade(shared), of.clone(), sender.wire.ctl());
                identity.on_release(move || {
                    if let Some(shared) = shared.upgrade() {
                        shared.forget_slabs(&of, link, key);
                    }
                });
            };
            match shared.sharing.turn(&of, || sender.wire.waker(), forget) {
                Turn::Use => break None,
                Turn::Send(lead) => break Some(lead),
                Turn::Wait => {
                    let end = Instant::now() + TASK_LIMIT;
                    while !matches!(sender.wire.next(end)?, Event::Slabs) {}
                }
            }
        };
        let number = match lead {
            Some(lead) if lead.first && slabs.len() <= INLINE_BYTES.min(sender.pace.chunk_bytes()) => {
                let number = self.ask(sender, name, slabs)?;
                return self.results(sender, number, Some(lead), emit);
            }
            Some(lead) => {
                let from = if lead.first { 0 } else { self.received(sender, name, slabs.len())? };
                self.upload(sender, (name, self.dtype), from, slabs, Some(identity.id()))?;
                lead.arrived();
                self.ask(sender, name, &[])?
            }
            None => self.ask(sender, name, &[])?,
        };
        self.results(sender, number, None, emit)
    }

    /// How many bytes of slabs have arrived, which another worker may have sent.
    fn received(&self, sender: &mut Sender<'_, '_>, name: SlabsName, total: usize) -> Result<u64, CallError> {
        let object = Object::Slabs { name, dtype: self.dtype };
        let total = total as u64;
        let empty = Request::Chunk { object, offset: 0, total, crc: 0, format: WireFormat::Full };
        // In the class of the chunks, so that it arrives after all that were sent before.
        let number = sender.wire.ask(empty, Payload::empty(), TrafficClass::Background, RECEIVED_LIMIT)?;
        match wait_for_answer(sender.wire, number, Instant::now() + RECEIVED_LIMIT)? {
            Answer::Ack { received, .. } if received <= total => Ok(received),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends the slabs from the byte `from` on. `turn`: the number of the slabs, which wait for their turn; without it they
    /// are sent at once.
    fn upload(
        &self,
        sender: &mut Sender<'_, '_>,
        (name, dtype): (SlabsName, DType),
        from: u64,
        slabs: &[u8],
        turn: Option<u64>,
    ) -> Result<(), CallError> {
        let permit = turn.map(|number| self.permit(sender.wire, number)).transpose()?;
        let (object, format) = (Object::Slabs { name, dtype }, self.format.of(dtype));
        let Sender { wire, pace, copies } = sender;
        let mut part = |range: std::ops::Range<usize>| copies.cut(&slabs[range], format);
        let mut sent = |how| match (&permit, how) {
            (Some(permit), Sent::HandedOver) => permit.handed_over(Instant::now()),
            (Some(permit), Sent::Acknowledged(bytes)) => permit.acknowledged(bytes, Instant::now()),
            (None, _) => {}
        };
        let all = from..slabs.len() as u64;
        wire.upload(pace, object, all, TrafficClass::Background, &mut part, &mut sent)
    }

    /// Waits until the slabs of this number may be sent.
    fn permit(&self, wire: &mut Wire<'_>, number: u64) -> Result<Permit<'_>, CallError> {
        self.phases.waits_for_its_turn();
        let since = Instant::now();
        let place = self.shared.uplink.queue(number, self.member);
        let permit = loop {
            if let Some(permit) = place.try_send(Instant::now(), || wire.waker()) {
                break Ok(permit);
            }
            // Also in case the transfers before it make no progress.
            if let Err(error) = wire.pause(Instant::now() + STALL) {
                break Err(error);
            }
        };
        // The wait says nothing about the worker.
        count_wait(since.elapsed());
        self.phases.has_its_turn();
        permit
    }

    /// Sends the request, with these slabs in it if there are any.
    fn ask(&self, sender: &mut Sender<'_, '_>, name: SlabsName, slabs: &[u8]) -> Result<u64, CallError> {
        let cut = if slabs.is_empty() {
            Cut { payload: Payload::empty(), crc: 0, format: WireFormat::Full }
        } else {
            sender.copies.cut(slabs, self.format)
        };
        let request = Request::Task {
            task: self.task,
            device: self.device,
            content: self.content,
            order: self.order.clone(),
            slabs: name,
            inline_bytes: sender.pace.chunk_bytes().min(MAX_CHUNK_BYTES) as u32,
            crc: cut.crc,
            format: cut.format,
            results: self.format,
        };
        sender.wire.ask_for_task(self.task, request, cut.payload)
    }

    /// Computes a part of a model: sends the inputs, and passes the outputs to `emit`.
    pub(super) fn run_part(
        &mut self,
        mut sender: Sender<'_, '_>,
        inputs: &[Values],
        emit: Emit<'_>,
    ) -> Result<(), CallError> {
        self.phases.sending();
        let inline = INLINE_BYTES.min(sender.pace.chunk_bytes());
        let mut first = Cut { payload: Payload::empty(), crc: 0, format: WireFormat::Full };
        for (index, values) in (0..).zip(inputs) {
            let (bytes, dtype) = (values.as_bytes(), values.dtype());
            if index == 0 && bytes.len() <= inline {
                first = sender.copies.cut(bytes, self.format.of(dtype));
            } else {
                let name = SlabsName::Input { task: self.task, index };
                self.upload(&mut sender, (name, dtype), 0, bytes, None)?;
            }
        }
        let request = Request::RunPart {
            task: self.task,
            device: self.device,
            content: self.content,
            inline_bytes: sender.pace.chunk_bytes().min(MAX_CHUNK_BYTES) as u32,
            crc: first.crc,
            format: first.format,
            results: self.format,
        };
        let number = sender.wire.ask_for_task(self.task, request, first.payload)?;
        match self.results(&mut sender, number, None, emit)? {
            Ended::Done => Ok(()),
            Ended::SlabsMissing => {
                Err(CallError::Failed("it does not keep the inputs it is sent".to_owned()))
            }
        }
    }

    /// A buffer for the sub-result or output of this index.
    fn room(&self, index: usize) -> Values {
        match self.outputs.and_then(|outputs| outputs.get(index)) {
            // `check_signature` bounds the size.
            Some(output) => self.buffers.take_values(output.dtype, output.elems().unwrap_or_default()),
            None => self.buffers.take_values(self.dtype, self.elems),
        }
    }

    /// Passes on the results of the request `number` until the task has ended. `lead`: to be ended when the slabs that went
    /// with the request have arrived.
    fn results(
        &mut self,
        sender: &mut Sender<'_, '_>,
        number: u64,
        mut lead: Option<Lead<'_>>,
        emit: Emit<'_>,
    ) -> Result<Ended, CallError> {
        let end = Instant::now() + TASK_LIMIT;
        loop {
            let said = match sender.wire.next(end)? {
                Event::Over(of) if of == number => {
                    return Err(CallError::Gone("it is gone in the middle of a task".to_owned()));
                }
                Event::Response(of, said) if of == number => said,
                Event::Over(_) | Event::Response(..) | Event::Cancelled | Event::Slabs | Event::Gone => {
                    continue;
                }
            };
            match said {
                Response::Answer(Answer::Accepted { .. }, _) => {
                    self.phases.accepted();
                    if let Some(lead) = lead.take() {
                        lead.arrived();
                    }
                }
                Response::Answer(Answer::Part { index, crc, format, progress }, payload) => {
                    let index = take(&mut self.wanted, index)?;
                    let mut values = self.room(index);
                    let into = values.as_bytes_mut();
                    if narrow::read(&payload, format, into) != Some(crc) {
                        return Err(CallError::Failed(format!(
                            "a result came with {} bytes of {format} for {} in full width, or another checksum",
                            payload.len(),
                            into.len()
                        )));
                    }
                    self.phases.received(&progress);
                    self.phases.pass_on(|| emit(index, values));
                }
                Response::Answer(Answer::Ready { index, bytes, progress }, _) => {
                    let at = take(&mut self.wanted, index)?;
                    let mut values = self.room(at);
                    let format = self.format.of(values.dtype());
                    let into = values.as_bytes_mut();
                    if bytes != into.len() as u64 {
                        return Err(CallError::Failed(format!(
                            "a result of {bytes} bytes where {} were expected",
                            into.len()
                        )));
                    }
                    self.phases.fetching();
                    sender.wire.fetch(sender.pace, self.task, index, format, into)?;
                    self.phases.received(&progress);
                    self.phases.pass_on(|| emit(at, values));
                }
                Response::Answer(Answer::Done, _) if self.wanted.is_empty() => return Ok(Ended::Done),
                Response::Answer(Answer::Done, _) => {
                    return Err(CallError::Failed(format!("sub-results {:?} did not come", self.wanted)));
                }
                Response::Answer(Answer::Refused { why: Refusal::SlabsMissing, .. }, _) => {
                    return Ok(Ended::SlabsMissing);
                }
                Response::Answer(answer, _) => return Err(unexpected(&answer)),
                Response::Garbage(text) | Response::Nothing(text) => return Err(CallError::Failed(text)),
            }
        }
    }
}

/// Removes a sub-result from the list of those still wanted, and returns its index.
fn take(wanted: &mut Vec<usize>, index: u32) -> Result<usize, CallError> {
    let at = wanted.iter().position(|w| *w == index as usize);
    let at =
        at.ok_or_else(|| CallError::Failed(format!("sub-result {index} came, which was not requested")))?;
    Ok(wanted.remove(at))
}
