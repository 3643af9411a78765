//! A device of another machine as a [`Worker`].
//!
//! Each call sends requests and waits for the answers, on the thread of the pool that owns this worker. Large objects go in
//! chunks, a few of which are in flight at a time; the chunk size adapts to the link.
//!
//! Invariant: `execute` returns as soon as its token is cancelled, whatever the network does, except while it copies a chunk
//! in transit; an emitted sub-result has the size and the checksum with which it was sent.

mod part;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::call::{CallError, Event, WINDOW, Wire, unexpected, wait_for_answer};
use super::key_expr::WorkerKeys;
use super::link::{Payload, TrafficClass, bytes_of};

use self::part::HeldPart;
use super::chunk_sizer::ChunkSizer;
use super::install_turns::InstallTurn;
use super::narrow::{Copies, Cut};
use super::registry::{Claimed, MemberId};
use super::remote_task::{RemoteTask, Sender};
use super::shared::Shared;
use super::task_phases::TaskPhases;
use super::wire::{Answer, ContentId, Object, Request, Spec};
use crate::array::{DType, Values, WireFormat};
use crate::error::{Error, Result};
use crate::worker::{
    CancelToken, FilterKey, Order, PartFile, PartKey, PartSignature, Presence, Respawn, SubtaskShape, Task,
    Worker, WorkerInfo, WorkerKind, not_installed,
};

/// Filters of at most this size are sent along with the question whether the device holds them.
const SMALL_BYTES: usize = 32 << 10;
/// Time limit for installing filters: a GPU may compile its kernels first.
const INSTALL_LIMIT: Duration = Duration::from_mins(2);

/// Maximum number of buffers kept for chunks in flight: one window, and some that the engine has not released yet.
const MOST_COPIES: usize = 2 * WINDOW;

/// A device of another machine, or a seat for one that has not joined yet.
pub struct RemoteWorker {
    shared: Arc<Shared>,
    /// Number of the pool that the worker belongs to.
    group: u64,
    /// Name of the machine, if only one will do.
    machine: Option<String>,
    name: String,
    /// The format in which slabs and sub-results travel.
    wire: WireFormat,
    seat: Seat,
    held: HashMap<FilterKey, Held>,
    parts: HashMap<PartKey, HeldPart>,
    pace: ChunkSizer,
    copies: Copies,
}

enum Seat {
    Taken {
        claimed: Box<Claimed>,
        keys: WorkerKeys,
    },
    /// No machine has joined for the seat yet.
    Empty,
    /// The worker was lost, for this reason.
    Lost(String),
}

struct Held {
    content: ContentId,
    shape: SubtaskShape,
    dtype: DType,
}

impl RemoteWorker {
    /// A worker for a seat. `claimed`: the device in the seat, if there is one.
    pub(super) fn new(
        shared: Arc<Shared>,
        group: u64,
        machine: Option<&str>,
        name: String,
        wire: WireFormat,
        claimed: Option<Claimed>,
    ) -> Self {
        let seat = match claimed {
            None => Seat::Empty,
            Some(claimed) => {
                let keys = shared.keys.worker(&claimed.id.0, claimed.id.1);
                Seat::Taken { claimed: Box::new(claimed), keys }
            }
        };
        Self {
            shared,
            group,
            machine: machine.map(str::to_owned),
            name,
            wire,
            seat,
            held: HashMap::new(),
            parts: HashMap::new(),
            pace: ChunkSizer::default(),
            copies: Copies::new(MOST_COPIES),
        }
    }

    fn waits_for(&self) -> String {
        match &self.machine {
            Some(machine) => format!("machine {machine} has not joined yet"),
            None => "no machine has joined for it yet".to_owned(),
        }
    }

    /// Runs `call` over the wire; a departure of the other side becomes the loss of this worker.
    fn over_the_wire<R>(
        &mut self,
        call: impl FnOnce(&mut Wire<'_>, &mut ChunkSizer, &mut Copies, &Claimed) -> Result<R, CallError>,
    ) -> Result<R> {
        let lost = |name: &str, cause: String| Error::WorkerLost { worker: name.to_owned(), cause };
        let (claimed, keys) = match &self.seat {
            Seat::Taken { claimed, keys } => (claimed, keys),
            Seat::Empty => return Err(lost(&self.name, self.waits_for())),
            Seat::Lost(cause) => return Err(lost(&self.name, cause.clone())),
        };
        let mut wire = Wire::new(&self.shared, claimed, keys);
        match call(&mut wire, &mut self.pace, &mut self.copies, claimed) {
            Ok(result) => Ok(result),
            Err(CallError::Cancelled) => Err(Error::Cancelled),
            Err(CallError::Failed(cause)) => Err(Error::WorkerFailed { worker: self.name.clone(), cause }),
            Err(CallError::Gone(cause)) => {
                let cause = format!("{} on {}: {cause}", claimed.info.name, claimed.id.0);
                self.shared.suspect(&claimed.id);
                self.leave_seat(cause.clone());
                Err(lost(&self.name, cause))
            }
        }
    }

    /// Records filters that the device holds, in place of earlier ones.
    fn hold(&mut self, key: FilterKey, held: Held) {
        if let Some(before) = self.held.insert(key, held) {
            self.release(before.content);
        }
    }

    fn leave_seat(&mut self, cause: String) {
        if let Seat::Taken { claimed, .. } = std::mem::replace(&mut self.seat, Seat::Lost(cause)) {
            self.shared.release(&claimed);
        }
        self.held.clear();
        self.parts.clear();
    }

    fn release(&self, content: ContentId) {
        if self.held.values().any(|held| held.content == content) {
            return;
        }
        if let Seat::Taken { claimed, keys } = &self.seat {
            let release = Request::Release { device: claimed.device, content };
            // In the class of installations: the same filters may be installed again right after it.
            self.shared.ask_in_order(claimed.link, &keys.call(), release, TrafficClass::Background);
        }
    }
}

impl Drop for RemoteWorker {
    fn drop(&mut self) {
        let contents: HashSet<ContentId> = self.held.drain().map(|(_, held)| held.content).collect();
        for content in contents {
            self.release(content);
        }
        let parts: HashSet<ContentId> = self.parts.drain().map(|(_, part)| part.content).collect();
        for content in parts {
            self.release_part(content);
        }
        self.leave_seat(String::new());
    }
}

/// Waits until no other device of the machine is being given the same filters.
fn turn_to_install<'a>(
    shared: &'a Shared,
    wire: &mut Wire<'_>,
    machine: &MemberId,
    content: ContentId,
) -> Result<InstallTurn<'a>, CallError> {
    let end = Instant::now() + INSTALL_LIMIT;
    loop {
        if let Some(turn) = shared.installs.take(machine, content, || wire.waker()) {
            return Ok(turn);
        }
        while !matches!(wire.next(end)?, Event::Slabs) {}
    }
}

impl Worker for RemoteWorker {
    fn info(&self) -> WorkerInfo {
        match &self.seat {
            Seat::Taken { claimed, .. } => WorkerInfo {
                name: self.name.clone(),
                kind: WorkerKind::Remote,
                device: claimed.info.device.clone(),
                f64: claimed.info.f64,
                // Machines do not lend workers that use 16-bit storage: see `WorkerServer::start`.
                half: false,
                wire: self.wire,
                host: claimed.id.0.clone(),
                adapter: claimed.info.adapter.clone(),
            },
            Seat::Empty | Seat::Lost(_) => WorkerInfo {
                name: self.name.clone(),
                kind: WorkerKind::Remote,
                device: "not joined yet".to_owned(),
                f64: true,
                half: false,
                wire: self.wire,
                host: self.machine.clone().unwrap_or_else(|| self.name.clone()),
                adapter: None,
            },
        }
    }

    fn unavailable_reason(&self) -> Option<String> {
        matches!(self.seat, Seat::Empty).then(|| self.waits_for())
    }

    fn install(&mut self, key: FilterKey, shape: &SubtaskShape, banks: Values) -> Result<()> {
        shape.check_banks(&banks)?;
        let dtype = banks.dtype();
        let spec = Spec::of(shape, dtype);
        // Checks here what the other side would refuse, with the same error text.
        spec.subtask()?;
        let content = ContentId::of(&spec, banks.as_bytes());
        let bytes = bytes_of(banks);
        let total = bytes.len() as u64;
        let shared = Arc::clone(&self.shared);
        self.over_the_wire(|wire, pace, _, claimed| {
            let device = claimed.device;
            // Larger filters may be held already, so ask first.
            let inline = bytes.len() <= SMALL_BYTES;
            let mut part = |range: Range<usize>| Cut {
                payload: Payload::from(bytes.slice(range)),
                crc: 0,
                format: WireFormat::Full,
            };
            let _turn =
                if inline { None } else { Some(turn_to_install(&shared, wire, &claimed.id, content)?) };
            // Ask once, again once the chunks are sent, and once more in case they were lost meanwhile.
            for _ in 0..3 {
                let payload = if inline { part(0..bytes.len()).payload } else { Payload::empty() };
                let install = Request::Install { device, content, spec: spec.clone() };
                let number = wire.ask(install, payload, TrafficClass::Background, INSTALL_LIMIT)?;
                match wait_for_answer(wire, number, Instant::now() + INSTALL_LIMIT)? {
                    Answer::Installed => return Ok(()),
                    Answer::Send { from } => {
                        wire.upload(
                            pace,
                            Object::Filters(content),
                            from..total,
                            TrafficClass::Background,
                            &mut part,
                            &mut |_| {},
                        )?;
                    }
                    other => return Err(unexpected(&other)),
                }
            }
            Err(CallError::Failed("it does not keep the chunks it is sent".to_owned()))
        })?;
        self.hold(key, Held { content, shape: shape.clone(), dtype });
        Ok(())
    }

    /// The filters stay where they are; their names alone go over the wire.
    fn share(&mut self, key: FilterKey, from: FilterKey, shape: &SubtaskShape) -> Result<bool> {
        let Some(held) = self.held.get(&from).filter(|held| held.shape.has_filters_of(shape)) else {
            return Ok(false);
        };
        let (of, dtype) = (held.content, held.dtype);
        let spec = Spec::of(shape, dtype);
        spec.subtask()?;
        let content = ContentId::shared(&spec, of);
        let shared = self.over_the_wire(|wire, _, _, claimed| {
            let share = Request::Share { device: claimed.device, of, spec };
            let number = wire.ask(share, Payload::empty(), TrafficClass::Background, INSTALL_LIMIT)?;
            match wait_for_answer(wire, number, Instant::now() + INSTALL_LIMIT) {
                Ok(Answer::Installed) => Ok(true),
                // They are sent then, and an error shows.
                Ok(_) | Err(CallError::Failed(_)) => Ok(false),
                Err(other) => Err(other),
            }
        })?;
        if shared {
            self.hold(key, Held { content, shape: shape.clone(), dtype });
        }
        Ok(shared)
    }

    fn remove(&mut self, key: FilterKey) {
        if let Some(held) = self.held.remove(&key) {
            self.release(held.content);
        }
    }

    fn execute(&mut self, task: Task<'_>, emit: &mut dyn FnMut(usize, Values)) -> Result<()> {
        let Task { key, slabs, shared: identity, order, cancel, buffers, phases } = task;
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if !matches!(self.seat, Seat::Taken { .. }) {
            return self.over_the_wire(|_, _, _, _| Ok(()));
        }
        let held = self.held.get(&key).ok_or_else(|| not_installed(&self.name, key))?;
        held.shape.check_slabs(slabs, held.dtype)?;
        held.shape.check_order(order)?;
        // A probe checks the device, and the more strictly the more digits it sees.
        let full = held.shape.plain || key.is_probe();
        let format = if full { WireFormat::Full } else { self.wire.of(held.dtype) };
        let (content, dtype, elems) = (held.content, held.dtype, held.shape.conv.output_elems());
        let wanted = task.indices(held.shape.sub_results());
        // The cast is safe: `Spec::subtask` bounds the number of sub-results.
        let order = match order {
            Order::All => None,
            Order::Each(indices) => Some(indices.iter().map(|i| *i as u32).collect()),
        };
        let shared = Arc::clone(&self.shared);
        let number = shared.next_task();
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
                dtype,
                format,
                elems,
                outputs: None,
                order,
                wanted,
                buffers,
                task: number,
                phases: TaskPhases::new(phases),
            };
            let sender = Sender { wire: &mut *wire, pace, copies };
            let result = call.run(sender, slabs.as_bytes(), identity, emit);
            if matches!(result, Err(CallError::Cancelled | CallError::Failed(_))) {
                wire.tell(Request::Cancel { task: number });
            }
            result
        })
    }

    fn install_part(&mut self, key: PartKey, part: &PartFile) -> Result<PartSignature> {
        self.send_part(key, part)
    }

    fn remove_part(&mut self, key: PartKey) {
        if let Some(part) = self.parts.remove(&key) {
            self.release_part(part.content);
        }
    }

    fn run_part(&mut self, key: PartKey, inputs: &[Values], cancel: &CancelToken) -> Result<Vec<Values>> {
        self.call_part(key, inputs, cancel)
    }

    fn presence(&self) -> Option<Presence> {
        match &self.seat {
            Seat::Taken { claimed, .. } => Some(claimed.presence.clone()),
            Seat::Empty | Seat::Lost(_) => None,
        }
    }

    /// Another device for the same seat, as soon as one is free.
    fn respawn(&self) -> Option<Respawn> {
        let (shared, group) = (Arc::clone(&self.shared), self.group);
        let (machine, name, wire) = (self.machine.clone(), self.name.clone(), self.wire);
        Some(Arc::new(move |cancel| {
            let claimed = shared.claim(group, machine.as_deref(), cancel).ok_or(Error::Cancelled)?;
            let worker =
                Self::new(Arc::clone(&shared), group, machine.as_deref(), name.clone(), wire, Some(claimed));
            Ok(Box::new(worker))
        }))
    }
}
