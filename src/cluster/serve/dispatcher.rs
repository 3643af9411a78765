//! Dispatches everything that arrives at a worker process, on one thread that tracks all state and never computes.
//!
//! Invariant: masters share nothing visible but filters of the same content, which are the same filters; everything that
//! a departed master held is released.

mod inputs;
mod parts;
mod storage;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::super::budget::Reservation;
use super::super::link::{Incoming, Payload};
use super::super::narrow::{Copies, Cut, cut};
use super::super::rates::clock_us;
use super::super::wire::{self, Answer, Call, ContentId, MasterId, Refusal, Request, SlabsName, Spec};
use super::device::{Common, Device, Installed, Told};
use super::outbox::Outbox;
use super::parts::Parts;
use super::reassembly::Reassembly;
use super::slabs::Chunk;
use crate::array::Values;

/// Interval of cleaning up expired state.
const TICK: Duration = Duration::from_secs(1);
/// Time without a message after which a master with no visible token is forgotten.
const SILENCE: Duration = Duration::from_mins(1);
/// Time without a new chunk after which an incomplete object is dropped.
const STALE: Duration = Duration::from_mins(1);
/// Time for which complete filters are kept for other devices of the machine, and their number.
const RECENT: Duration = Duration::from_secs(5);
const MOST_RECENT: usize = 4;
/// Maximum number of buffers kept for parts of sub-results in 16 bits.
const MOST_COPIES: usize = 16;
/// Maximum number of masters at a time: each has a thread.
const MAX_MASTERS: usize = 64;

/// An event for the dispatcher.
pub(super) enum Event {
    /// A request, and the size of its payload, which counts as pending until the request is handled. `None`: too much was
    /// pending already, and the payload was dropped.
    Call(Incoming, Option<u64>),
    /// A message that needs no answer.
    Ctl(Vec<u8>),
    /// A master's token became visible or vanished.
    Master(MasterId, bool),
    /// A message from a device.
    Device(usize, Told),
    /// The server is closing.
    Close,
}

/// Creates the answer to [`Request::Info`].
pub(super) type Describe = Box<dyn Fn() -> Answer + Send>;

pub(super) struct Dispatcher {
    pub(super) devices: Vec<Device>,
    pub(super) common: Common,
    pub(super) describe: Describe,
    /// The outbox for requesters that are not registered as masters.
    pub(super) default_outbox: Outbox,
    pub(super) pending: Arc<AtomicU64>,
    pub(super) received: Arc<AtomicU64>,
    pub(super) master_count: Arc<AtomicU32>,
    masters: HashMap<MasterId, Master>,
    visible: HashSet<MasterId>,
    held: HashMap<(usize, ContentId), Held>,
    /// Incomplete filters. They outlive a connection: the sender resumes where it was interrupted.
    uploads: HashMap<(MasterId, ContentId), Reassembly>,
    /// Filters that were complete of late, for other devices that need the same, oldest first.
    recent: VecDeque<Recent>,
    parts: Parts,
    copies: Copies,
}

/// Complete filters that another device may need.
struct Recent {
    content: ContentId,
    values: Values,
    since: Instant,
    _reservation: Reservation,
}

struct Master {
    outbox: Outbox,
    heard: Instant,
}

/// Filters on a device.
struct Held {
    spec: Spec,
    holders: HashSet<MasterId>,
    /// Shared by subtasks that share the filters.
    reservation: Arc<Reservation>,
    /// Whether they are the filters of another subtask, which were sent for that.
    shared: bool,
    used: Instant,
    /// Requests to answer once the filters are installed; `None` when they are.
    installing: Option<Vec<(MasterId, Arc<Incoming>)>>,
}

impl Dispatcher {
    pub(super) fn new(
        devices: Vec<Device>,
        common: Common,
        describe: Describe,
        default_outbox: Outbox,
        counters: [Arc<AtomicU64>; 2],
        master_count: Arc<AtomicU32>,
    ) -> Self {
        let [pending, received] = counters;
        Self {
            devices,
            common,
            describe,
            default_outbox,
            pending,
            received,
            master_count,
            masters: HashMap::new(),
            visible: HashSet::new(),
            held: HashMap::new(),
            uploads: HashMap::new(),
            recent: VecDeque::new(),
            parts: Parts::default(),
            copies: Copies::new(MOST_COPIES),
        }
    }

    pub(super) fn serve(mut self, events: &Receiver<Event>) {
        let mut tidied = Instant::now();
        loop {
            match events.recv_timeout(TICK) {
                Ok(Event::Call(incoming, pending)) => {
                    self.call(incoming, pending);
                    self.pending.fetch_sub(pending.unwrap_or(0), Ordering::Relaxed);
                }
                Ok(Event::Ctl(header)) => self.ctl(&header),
                Ok(Event::Master(master, true)) => {
                    self.visible.insert(master);
                }
                Ok(Event::Master(master, false)) => {
                    self.visible.remove(&master);
                    self.forget(master);
                }
                Ok(Event::Device(device, told)) => self.told(device, told),
                Ok(Event::Close) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if tidied.elapsed() >= TICK {
                self.tidy();
                tidied = Instant::now();
            }
        }
        for master in self.masters.keys() {
            self.common.tasks.cancel_master(*master);
        }
    }

    fn call(&mut self, mut incoming: Incoming, pending: Option<u64>) {
        let call = wire::unpack::<Call>(&incoming.header);
        incoming.header = Vec::new();
        let payload = std::mem::replace(&mut incoming.payload, Payload::empty());
        self.received.fetch_add(payload.len() as u64, Ordering::Relaxed);
        let incoming = Arc::new(incoming);
        let Call { from, request } = match call {
            Ok(call) => call,
            Err(error) => return self.default_outbox.refuse(&incoming, Refusal::Malformed, error),
        };
        if request == Request::Info {
            return self.default_outbox.say(&incoming, (self.describe)());
        }
        if self.at_once(from, &request, &incoming) {
            return;
        }
        if pending.is_none() {
            return self.default_outbox.refuse(
                &incoming,
                Refusal::Busy,
                "too much has arrived at once: send it again",
            );
        }
        if let Err(text) = self.admit(from) {
            return self.default_outbox.refuse(&incoming, Refusal::Busy, text);
        }
        let result = match request {
            // Handled above.
            Request::Info | Request::Await { .. } | Request::Release { .. } | Request::ReleasePart { .. } => {
                Ok(())
            }
            Request::InstallPart { .. } => self.install_part(from, &incoming, &request, &payload),
            Request::RunPart { .. } => self.run_part(from, &incoming, &request, &payload),
            Request::Install { device, content, spec } => {
                self.install(from, &incoming, device, content, spec, &payload)
            }
            Request::Share { device, of, spec } => self.share(from, &incoming, device, of, spec),
            Request::Chunk { object, offset, total, crc, format } => {
                let chunk = Chunk { offset, total, payload: &payload, crc, format };
                self.chunk(from, &incoming, object, &chunk)
            }
            Request::Task { .. } => self.task(from, &incoming, request, &payload),
            Request::Fetch { task, index, offset, len, format } => self
                .common
                .results
                .fetch((from, task, index), offset, len)
                .map(|bytes| {
                    let Cut { payload, crc, format } = cut(&mut self.copies, bytes, format);
                    let answer = Answer::Bytes { crc, format, at_us: clock_us() };
                    self.masters[&from].outbox.send(&incoming, answer, payload);
                })
                .map_err(|text| (Refusal::Malformed, text)),
            Request::Cancel { .. } | Request::Forget { .. } => {
                Err((Refusal::Malformed, "this is told, not asked".to_owned()))
            }
        };
        if let Err((why, text)) = result {
            self.masters[&from].outbox.refuse(&incoming, why, text);
        }
    }

    /// Handles a request that is handled however much has arrived, and from whomever; false for all others.
    fn at_once(&mut self, from: MasterId, request: &Request, incoming: &Arc<Incoming>) -> bool {
        match *request {
            Request::Release { device, content } => {
                if let Some(held) = self.held.get_mut(&(device as usize, content)) {
                    held.holders.remove(&from);
                }
                self.default_outbox.say(incoming, Answer::Ack { received: 0, at_us: clock_us() });
            }
            Request::ReleasePart { device, content } => {
                if let Some(part) = self.parts.held.get_mut(&(device as usize, content)) {
                    part.holders.remove(&from);
                }
                self.default_outbox.say(incoming, Answer::Ack { received: 0, at_us: clock_us() });
            }
            Request::Await { task } => {
                let outbox = match self.masters.get_mut(&from) {
                    None => &self.default_outbox,
                    Some(master) => {
                        master.heard = Instant::now();
                        &master.outbox
                    }
                };
                if !self.common.tasks.renew((from, task), incoming) {
                    outbox.refuse(incoming, Refusal::Over, format_args!("task {task} is over"));
                }
            }
            _ => return false,
        }
        true
    }

    /// Registers a master if it is new; an error if there are too many or no thread can be started.
    fn admit(&mut self, from: MasterId) -> Result<(), String> {
        if let Some(master) = self.masters.get_mut(&from) {
            master.heard = Instant::now();
            return Ok(());
        }
        if self.masters.len() >= MAX_MASTERS {
            return Err(format!("{MAX_MASTERS} masters are served already"));
        }
        let outbox = self
            .default_outbox
            .another(&from.to_string())
            .map_err(|e| format!("no thread for a master: {e}"))?;
        let master = Master { outbox, heard: Instant::now() };
        self.masters.insert(from, master);
        self.master_count.store(self.masters.len() as u32, Ordering::Relaxed);
        tracing::info!(master = %from, "new master");
        Ok(())
    }

    fn device(&self, device: u32) -> Result<usize, (Refusal, String)> {
        let there = self.devices.len();
        let index = device as usize;
        if index < there {
            return Ok(index);
        }
        Err((Refusal::Malformed, format!("device {device} of {there}")))
    }

    fn ctl(&mut self, header: &[u8]) {
        match wire::unpack::<Call>(header) {
            Ok(Call { from, request: Request::Cancel { task } }) => {
                // The callback has cancelled the task already; only slabs that had not become a task are left.
                self.common.slabs.forget_task(from, task);
                self.common.results.forget(from, task);
            }
            Ok(Call { from, request: Request::Forget { slabs } }) => {
                self.common.slabs.forget((from, SlabsName::Shared(slabs)));
            }
            Ok(_) => tracing::debug!("something was told that is to be asked"),
            Err(error) => tracing::debug!(%error, "not understood"),
        }
    }

    fn told(&mut self, device: usize, told: Told) {
        match told {
            Told::PartInstalled(content, installed) => self.part_installed(device, content, installed),
            Told::Lost => {
                self.parts.lose(device);
                let gone: Vec<_> = self.held.keys().filter(|(at, _)| *at == device).copied().collect();
                for key in gone {
                    // Filters that are being installed are answered by the device.
                    if self.held[&key].installing.is_none()
                        && let Some(held) = self.held.remove(&key)
                    {
                        self.count(device, &held, false);
                    }
                }
            }
            Told::Installed(content, installed) => {
                let Some(held) = self.held.get_mut(&(device, content)) else { return };
                let waiting = held.installing.take().unwrap_or_default();
                let answer = match installed {
                    Installed::Held => {
                        let held = &self.held[&(device, content)];
                        self.count(device, held, true);
                        Answer::Installed
                    }
                    Installed::Missing => {
                        let held = self.held.remove(&(device, content));
                        return self.ask_for_chunks(content, held, waiting);
                    }
                    Installed::Refused(why, text) => {
                        self.held.remove(&(device, content));
                        Answer::refused(why, text)
                    }
                };
                for (from, incoming) in waiting {
                    if let Some(master) = self.masters.get(&from) {
                        master.outbox.say(&incoming, answer.clone());
                    }
                }
            }
        }
    }

    /// The cache did not have filters after all: requests the chunks from the masters that wait for them.
    fn ask_for_chunks(
        &mut self,
        content: ContentId,
        held: Option<Held>,
        waiting: Vec<(MasterId, Arc<Incoming>)>,
    ) {
        let Some(Held { spec, reservation, shared, .. }) = held else { return };
        let bytes = reservation.bytes();
        drop(reservation);
        for (from, incoming) in waiting {
            if shared {
                // The master will send them under a name of their own.
                if let Some(master) = self.masters.get(&from) {
                    master.outbox.say(&incoming, Answer::Send { from: 0 });
                }
                continue;
            }
            let upload = self.room(bytes, &spec);
            let Some(master) = self.masters.get_mut(&from) else { continue };
            match upload {
                Ok(upload) => {
                    self.uploads.insert((from, content), upload);
                    master.outbox.say(&incoming, Answer::Send { from: 0 });
                }
                Err((why, text)) => master.outbox.refuse(&incoming, why, text),
            }
        }
    }

    /// Removes a master that is gone: cancels its tasks and releases its filters, which may then be dropped.
    fn forget(&mut self, master: MasterId) {
        self.common.tasks.cancel_master(master);
        self.common.results.forget_master(master);
        self.common.slabs.forget_master(master);
        for held in self.held.values_mut() {
            held.holders.remove(&master);
        }
        self.parts.forget(master);
        if self.masters.remove(&master).is_some() {
            self.master_count.store(self.masters.len() as u32, Ordering::Relaxed);
            tracing::info!(%master, "master gone");
        }
    }

    fn tidy(&mut self) {
        self.common.results.expire();
        let silent = |(id, master): (&MasterId, &Master)| {
            (!self.visible.contains(id) && master.heard.elapsed() > SILENCE).then_some(*id)
        };
        let gone: Vec<MasterId> = self.masters.iter().filter_map(silent).collect();
        for master in gone {
            self.forget(master);
        }
        self.common.slabs.expire();
        self.uploads.retain(|_, object| object.touched.elapsed() < STALE);
        self.recent.retain(|recent| recent.since.elapsed() < RECENT);
        self.parts.expire(STALE, RECENT);
    }
}
