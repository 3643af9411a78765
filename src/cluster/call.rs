//! One call of a remote worker: its requests and their answers.
//!
//! The engine keeps a timer for each request until the request's limit has passed, answered or not. A request for a task
//! therefore has a short limit, and a task that takes longer is requested again before the limit ([`Request::Await`]).
//!
//! Invariant: waiting ends with the first of an answer, the deadline, a cancelled token and the departure of the machine;
//! whatever a call leaves in the engine is gone a minute later.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::chunk_sizer::ChunkSizer;
use super::key_expr::WorkerKeys;
use super::link::{Payload, Response, TrafficClass};
use super::narrow::{self, Cut};
use super::rates::{LinkMeter, clock_us};
use super::registry::Claimed;
use super::shared::{Shared, brief};
use super::sharing::Waker;
use super::wire::{Answer, Object, Refusal, Request};
use crate::array::WireFormat;
use crate::worker::CancelHook;

/// Maximum number of chunks in flight.
pub(super) const WINDOW: usize = 8;
/// Time limit for the acknowledgement of a chunk; after it the other side counts as stuck.
const ACK_LIMIT: Duration = Duration::from_secs(5);
/// Maximum wait for a task, whatever its deadline.
pub(super) const TASK_LIMIT: Duration = Duration::from_mins(30);
/// Time limit of one request for a task.
const ASK_LIMIT: Duration = Duration::from_secs(6);
/// Time after which a task is requested again. The rest of [`ASK_LIMIT`] is for answers in flight: it equals the time for
/// which a machine may be silent before it counts as gone.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// An event that a call waits for. The requests of one call are numbered.
pub(super) enum Event {
    Response(u64, Response),
    /// The request has ended: there will be no more answers.
    Over(u64),
    Cancelled,
    /// What another worker did has ended: a transfer of slabs, or an installation of filters.
    Slabs,
    /// The machine left or fell silent.
    Gone,
}

/// How far an upload is.
pub(super) enum Sent {
    /// All chunks were handed to the network.
    HandedOver,
    /// A chunk of this number of bytes was acknowledged.
    Acknowledged(usize),
}

/// Forwards responses to the call that waits for them; dropping it reports the end of the request.
struct Line {
    number: u64,
    sender: Sender<Event>,
}

impl Drop for Line {
    fn drop(&mut self) {
        // The call may be over.
        let _ = self.sender.send(Event::Over(self.number));
    }
}

/// The requests of one call and the events that they cause.
pub(super) struct Wire<'a> {
    shared: &'a Shared,
    link: usize,
    key: String,
    ctl: String,
    pub(super) sender: Sender<Event>,
    events: Receiver<Event>,
    /// Events that arrived while another one was awaited, oldest first.
    kept: VecDeque<Event>,
    next: u64,
    task: Option<Asked>,
    meter: &'a Arc<LinkMeter>,
    _gone: CancelHook,
}

/// A task in progress and its open requests. Its events carry the number of the first request.
struct Asked {
    task: u64,
    number: u64,
    /// Requests that may still be answered, oldest first.
    open: VecDeque<u64>,
    again: Instant,
}

/// Why a call ended early.
pub(super) enum CallError {
    Cancelled,
    /// The other side is gone: the worker is lost.
    Gone(String),
    /// The other side refused the request or sent an invalid answer, and is still there.
    Failed(String),
}

impl<'a> Wire<'a> {
    pub(super) fn new(shared: &'a Shared, claimed: &'a Claimed, keys: &WorkerKeys) -> Self {
        let (sender, events) = unbounded();
        let (key, ctl) = (keys.call(), keys.ctl());
        let waker = sender.clone();
        let gone = claimed.gone.on_cancel(move || {
            // The call may be over.
            let _ = waker.send(Event::Gone);
        });
        Self {
            shared,
            link: claimed.link,
            key,
            ctl,
            sender,
            events,
            kept: VecDeque::new(),
            next: 0,
            task: None,
            meter: &claimed.meter,
            _gone: gone,
        }
    }

    /// Sends a task and returns the number that all its events carry.
    pub(super) fn ask_for_task(
        &mut self,
        task: u64,
        request: Request,
        payload: Payload,
    ) -> Result<u64, CallError> {
        let number = self.ask(request, payload, TrafficClass::Task, ASK_LIMIT)?;
        let again = Instant::now() + ASK_AGAIN;
        self.task = Some(Asked { task, number, open: VecDeque::from([number]), again });
        Ok(number)
    }

    /// What wakes this call with [`Event::Slabs`].
    pub(super) fn waker(&self) -> Waker {
        let events = self.sender.clone();
        Box::new(move || {
            // The call may be over.
            let _ = events.send(Event::Slabs);
        })
    }

    /// Ends a task that the other side has refused, so that it may be sent again.
    pub(super) fn task_refused(&mut self) {
        self.task = None;
    }

    /// The link of the machine, and the key under which it is told what needs no answer.
    pub(super) fn ctl(&self) -> (usize, String) {
        (self.link, self.ctl.clone())
    }

    /// Requests the task again if that is due; returns when it is due next.
    fn ask_again(&mut self) -> Result<Option<Instant>, CallError> {
        let Some(Asked { task, again, .. }) = self.task else { return Ok(None) };
        let now = Instant::now();
        if now < again {
            return Ok(Some(again));
        }
        let number = self.ask(Request::Await { task }, Payload::empty(), TrafficClass::Task, ASK_LIMIT)?;
        let next = now + ASK_AGAIN;
        if let Some(asked) = &mut self.task {
            asked.open.push_back(number);
            asked.again = next;
        }
        Ok(Some(next))
    }

    /// Renumbers an event of any request for the task to the first request. `None` where a request ended and a newer one is
    /// open.
    fn of_task(&mut self, event: Event) -> Option<Event> {
        let Some(asked) = &mut self.task else { return Some(event) };
        match event {
            // The request was replaced by a newer one, or the task was over before it came: answers go to the others.
            Event::Response(
                number,
                Response::Nothing(_) | Response::Answer(Answer::Refused { why: Refusal::Over, .. }, _),
            ) if asked.open.contains(&number) && asked.open.len() > 1 => None,
            Event::Response(number, said) if asked.open.contains(&number) => {
                Some(Event::Response(asked.number, said))
            }
            Event::Over(number) if asked.open.contains(&number) => {
                asked.open.retain(|open| *open != number);
                asked.open.is_empty().then_some(Event::Over(asked.number))
            }
            other => Some(other),
        }
    }

    /// Sends a request and returns the number that its answers carry.
    pub(super) fn ask(
        &mut self,
        request: Request,
        payload: Payload,
        lane: TrafficClass,
        limit: Duration,
    ) -> Result<u64, CallError> {
        let number = self.next;
        self.next += 1;
        let line = Line { number, sender: self.sender.clone() };
        let header = self.shared.call(request);
        let (meter, sent) = (Arc::clone(self.meter), (clock_us(), payload.len()));
        let said = move |said| {
            if let Response::Answer(answer, payload) = &said {
                meter.answered(answer, sent, payload.len());
            }
            // The call may be over.
            let _ = line.sender.send(Event::Response(line.number, said));
        };
        let asked = self.shared.links[self.link].ask(&self.key, header, payload, lane, limit, said);
        asked.map(|()| number).map_err(|e| CallError::Gone(e.to_string()))
    }

    /// The next event; kept events come first.
    pub(super) fn next(&mut self, end: Instant) -> Result<Event, CallError> {
        if let Some(event) = self.kept.pop_front() {
            return Ok(event);
        }
        self.fresh(end)
    }

    /// Waits for something to happen, at most until `end`. Only for calls that have asked nothing yet: what happens is forgotten.
    pub(super) fn pause(&mut self, end: Instant) -> Result<(), CallError> {
        self.fresh_until(end).map(drop)
    }

    /// The next new event, passing over kept ones.
    fn fresh(&mut self, end: Instant) -> Result<Event, CallError> {
        self.fresh_until(end)?.ok_or_else(|| CallError::Failed("it took too long to answer".to_owned()))
    }

    /// The next new event; `None` if there is none until `end`.
    fn fresh_until(&mut self, end: Instant) -> Result<Option<Event>, CallError> {
        loop {
            let again = self.ask_again()?;
            match self.events.recv_deadline(again.map_or(end, |again| again.min(end))) {
                Ok(Event::Cancelled) => return Err(CallError::Cancelled),
                Ok(Event::Gone) => {
                    return Err(CallError::Gone("it left, or does not answer any more".to_owned()));
                }
                Ok(event) => {
                    if let Some(event) = self.of_task(event) {
                        return Ok(Some(event));
                    }
                }
                Err(_) if Instant::now() < end => {}
                Err(_) => return Ok(None),
            }
        }
    }

    pub(super) fn tell(&self, request: Request) {
        self.shared.tell(self.link, &self.ctl, request);
    }

    /// Sends the bytes of `object` in the given range, the rest of it, in chunks. `sent` hears how far it is.
    pub(super) fn upload(
        &mut self,
        pace: &mut ChunkSizer,
        object: Object,
        Range { start, end: total }: Range<u64>,
        lane: TrafficClass,
        part: &mut dyn FnMut(Range<usize>) -> Cut,
        sent: &mut dyn FnMut(Sent),
    ) -> Result<(), CallError> {
        let mut offset = start;
        let mut on_their_way: VecDeque<(u64, Instant, usize)> = VecDeque::new();
        loop {
            while on_their_way.len() < WINDOW && offset < total {
                let end = total.min(offset + pace.chunk_bytes() as u64);
                // The range lies within the object, which is in memory.
                let Cut { payload, crc, format } = part(offset as usize..end as usize);
                let chunk = Request::Chunk { object, offset, total, crc, format };
                let since = Instant::now();
                let bytes = payload.len();
                let number = self.ask(chunk, payload, lane, ACK_LIMIT)?;
                on_their_way.push_back((number, since, bytes));
                offset = end;
                if offset == total {
                    sent(Sent::HandedOver);
                }
            }
            let Some((_, oldest, _)) = on_their_way.front() else { return Ok(()) };
            match self.next(*oldest + ACK_LIMIT)? {
                Event::Response(number, said) => match said {
                    Response::Answer(Answer::Ack { .. }, _) => {
                        if let Some(at) = on_their_way.iter().position(|(n, ..)| *n == number)
                            && let Some((_, since, bytes)) = on_their_way.remove(at)
                        {
                            pace.acknowledged(since.elapsed());
                            sent(Sent::Acknowledged(bytes));
                        }
                    }
                    Response::Answer(answer, _) => return Err(unexpected(&answer)),
                    Response::Garbage(text) | Response::Nothing(text) => return Err(CallError::Failed(text)),
                },
                Event::Over(number) if on_their_way.iter().any(|(n, ..)| *n == number) => {
                    return Err(CallError::Gone("it is gone, or takes nothing any more".to_owned()));
                }
                Event::Over(_) | Event::Cancelled | Event::Slabs | Event::Gone => {}
            }
        }
    }

    /// Fetches a sub-result that was announced. Other events that arrive meanwhile are kept, behind those of earlier fetches:
    /// the last answer to a task comes before the end of its request.
    pub(super) fn fetch(
        &mut self,
        pace: &mut ChunkSizer,
        task: u64,
        index: u32,
        format: WireFormat,
        into: &mut [u8],
    ) -> Result<(), CallError> {
        let total = into.len();
        let mut asked = 0;
        let mut on_their_way: VecDeque<(u64, Range<usize>, Instant)> = VecDeque::new();
        let end = Instant::now() + TASK_LIMIT;
        loop {
            while on_their_way.len() < WINDOW && asked < total {
                let range = asked..total.min(asked + pace.chunk_bytes());
                // A chunk is at most `MAX_CHUNK_BYTES` long.
                let (offset, len) = (asked as u64, range.len() as u32);
                let part = Request::Fetch { task, index, offset, len, format };
                let sent = Instant::now();
                let number = self.ask(part, Payload::empty(), TrafficClass::Data, pace.limit())?;
                asked = range.end;
                on_their_way.push_back((number, range, sent));
            }
            if on_their_way.is_empty() {
                return Ok(());
            }
            let event = self.fresh(end)?;
            let of = match &event {
                Event::Response(number, _) | Event::Over(number) => *number,
                Event::Cancelled | Event::Slabs | Event::Gone => continue,
            };
            let Some(at) = on_their_way.iter().position(|(number, ..)| *number == of) else {
                self.kept.push_back(event);
                continue;
            };
            match event {
                Event::Response(_, Response::Answer(Answer::Bytes { crc, format, .. }, payload)) => {
                    let Some((_, range, sent)) = on_their_way.remove(at) else { continue };
                    pace.acknowledged(sent.elapsed());
                    if narrow::read(&payload, format, &mut into[range.clone()]) != Some(crc) {
                        return Err(CallError::Failed(format!(
                            "part of a result came with {} bytes of {format} for {} in full width, or another checksum",
                            payload.len(),
                            range.len()
                        )));
                    }
                }
                Event::Response(_, Response::Answer(answer, _)) => return Err(unexpected(&answer)),
                Event::Response(_, Response::Nothing(text)) => {
                    pace.failed();
                    return Err(CallError::Failed(text));
                }
                Event::Response(_, Response::Garbage(text)) => return Err(CallError::Failed(text)),
                Event::Over(_) | Event::Cancelled | Event::Slabs | Event::Gone => {
                    return Err(CallError::Gone("it is gone in the middle of a result".to_owned()));
                }
            }
        }
    }
}

/// The error for an answer that ends a call.
pub(super) fn unexpected(answer: &Answer) -> CallError {
    match answer {
        Answer::Refused { why: Refusal::Cancelled, .. } => CallError::Cancelled,
        Answer::Refused { why: Refusal::NotHeld | Refusal::DeviceLost, text } => {
            CallError::Gone(text.clone())
        }
        Answer::Refused { text, .. } => CallError::Failed(text.clone()),
        other => CallError::Failed(format!("it answers {}", brief(other))),
    }
}

/// Waits for the only answer to a request.
pub(super) fn wait_for_answer(wire: &mut Wire<'_>, number: u64, end: Instant) -> Result<Answer, CallError> {
    loop {
        match wire.next(end)? {
            Event::Response(of, said) if of == number => match said {
                Response::Answer(answer, _) => return Ok(answer),
                Response::Garbage(text) | Response::Nothing(text) => return Err(CallError::Failed(text)),
            },
            Event::Over(of) if of == number => return Err(CallError::Gone("it is gone".to_owned())),
            Event::Response(..) | Event::Over(_) | Event::Cancelled | Event::Slabs | Event::Gone => {}
        }
    }
}
