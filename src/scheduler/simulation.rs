//! The events of a simulated fleet: links, shared cores, faults, and workers that do one task at a time.
//!
//! Invariant: events depend only on the requests and their order. Events at the same time happen in the order in which
//! they were scheduled. Times are nanoseconds since the beginning.

mod faults;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::message_faults::{Direction, MessageFates, MessageFaults};
use super::processor_sharing::{Cores, nanos};
use super::sim_worker::{Command, Current, Phase, Serving, SimWorker, SimulatedWork, ns, transfer};
use super::slot::{BACKLOG, QueuedTask, Replies, ReplyKind};
use crate::array::{Pooled, Values};
use crate::error::{Error, Result};
use crate::ids::WorkerId;
use crate::worker::{FilterKey, TaskFault};

/// The cause of injected losses.
const LOSS: &str = "injected loss";

/// A run may wait this often in a row for a time that has passed: for every reply that has arrived at that time.
const MOST_IDLE_WAITS: u32 = 100_000;

/// Computes sub-result `index` of a task on a worker.
pub(crate) type Compute = Box<dyn FnMut(WorkerId, &QueuedTask, usize) -> Result<Values>>;

/// A reply on its way to the master.
struct Message {
    task: Arc<QueuedTask>,
    what: ReplyKind,
}

pub(super) struct Simulation {
    /// The [`Instant`] at which `now` is 0.
    base: Instant,
    pub(super) now: u64,
    scheduled: u64,
    queue: BinaryHeap<Reverse<(u64, u64, SimEvent)>>,
    hosts: Vec<Host>,
    pub(super) workers: Vec<SimWorker>,
    /// Costs of a subtask, by layer.
    pub(super) works: Vec<SimulatedWork>,
    pub(super) fates: Vec<TaskFault>,
    pub(super) installed: HashSet<(WorkerId, FilterKey)>,
    /// Tokens were cancelled since workers were last notified.
    pub(super) cancelled: bool,
    /// The job of the latest task and its number, and the sub-results computed for each of its attempts.
    job: Option<(Arc<Replies>, u64)>,
    pub(super) computed: Vec<usize>,
    /// Without it sub-results are empty.
    pub(super) compute: Option<Compute>,
    fates_of_messages: MessageFates,
    /// Replies on their way, by number.
    messages: HashMap<u64, Message>,
    /// Number of successive waits for a time that has passed.
    idle_waits: u32,
}

struct Host {
    cores: Cores,
    /// Number of the latest [`SimEvent::Computed`]; earlier ones are out of date.
    watch: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SimEvent {
    /// A worker's phase ends, unless the worker has entered another one.
    Step { worker: WorkerId, step: u64 },
    /// The next computation on a host ends, unless the event is out of date.
    Computed { host: usize, watch: u64 },
    /// A reply arrives.
    Arrived { message: u64 },
    /// A worker is lost.
    Lost { worker: WorkerId },
    /// A lost worker is back.
    Returned { worker: WorkerId },
    /// A worker learns that its task is cancelled.
    Noticed { worker: WorkerId, served: u64 },
    /// A cancelled worker stops computing.
    Stopped { worker: WorkerId, served: u64 },
}

impl Simulation {
    pub(super) fn new(base: Instant, hosts: Vec<Cores>, workers: Vec<SimWorker>) -> Self {
        Self {
            base,
            now: 0,
            scheduled: 0,
            queue: BinaryHeap::new(),
            hosts: hosts.into_iter().map(|cores| Host { cores, watch: 0 }).collect(),
            fates: vec![TaskFault::default(); workers.len()],
            workers,
            works: Vec::new(),
            installed: HashSet::new(),
            cancelled: false,
            job: None,
            computed: Vec::new(),
            compute: None,
            fates_of_messages: MessageFates::new(MessageFaults::default()),
            messages: HashMap::new(),
            idle_waits: 0,
        }
    }

    /// A run waits until time `until`.
    ///
    /// # Panics
    /// If it waits again and again for a time that has passed: it would never end.
    pub(super) fn check_progress(&mut self, until: u64) {
        self.idle_waits = if until > self.now { 0 } else { self.idle_waits + 1 };
        assert!(self.idle_waits < MOST_IDLE_WAITS, "a run wakes again and again at {} ns", self.now);
    }

    pub(super) fn instant(&self) -> Instant {
        self.base + Duration::from_nanos(self.now)
    }

    pub(super) fn execute(&mut self, worker: WorkerId, task: QueuedTask) {
        let number = match &self.job {
            Some((replies, number)) if Arc::ptr_eq(replies, &task.replies) => *number,
            before => {
                let number = before.as_ref().map_or(0, |(_, number)| number + 1);
                self.job = Some((Arc::clone(&task.replies), number));
                self.computed.clear();
                number
            }
        };
        let at = self.instant();
        let of = &mut self.workers[worker.0];
        if of.lost {
            let lost = Error::WorkerLost { worker: of.name.clone(), cause: LOSS.to_owned() };
            return task.reply_at(at, ReplyKind::Failed(lost));
        }
        if of.load >= BACKLOG {
            let before = of.queue.len();
            of.queue.retain(|c| !matches!(c, Command::Execute(task, _) if task.cancel.is_cancelled()));
            of.load -= before - of.queue.len();
        }
        of.load += 1;
        of.queue.push_back(Command::Execute(task, number));
        self.begin(worker);
    }

    pub(super) fn install(&mut self, worker: WorkerId, key: FilterKey) {
        self.workers[worker.0].queue.push_back(Command::Install(key));
        self.begin(worker);
    }

    /// Handles the next event up to time `until`; false when there is none.
    pub(super) fn happen(&mut self, until: u64) -> bool {
        self.spread_the_word();
        match self.queue.peek() {
            Some(Reverse((at, ..))) if *at <= until => {}
            _ => return false,
        }
        if let Some(Reverse((at, _, happening))) = self.queue.pop() {
            self.now = at;
            self.handle(happening);
        }
        true
    }

    /// Advances the time to `until`.
    pub(super) fn advance(&mut self, until: u64) {
        while self.happen(until) {}
        self.now = self.now.max(until);
    }

    fn schedule(&mut self, at: u64, happening: SimEvent) {
        self.queue.push(Reverse((at.max(self.now), self.scheduled, happening)));
        self.scheduled += 1;
    }

    fn handle(&mut self, happening: SimEvent) {
        match happening {
            SimEvent::Step { worker, step } => {
                if self.workers[worker.0].step == step {
                    self.step(worker);
                }
            }
            SimEvent::Computed { host, watch } => {
                if self.hosts[host].watch != watch {
                    return;
                }
                while let Some(worker) = self.hosts[host].cores.take_done(self.now) {
                    self.computed(worker);
                }
                self.watch(host);
            }
            SimEvent::Arrived { message } => {
                if let Some(Message { task, what }) = self.messages.remove(&message) {
                    task.reply_at(self.instant(), what);
                }
            }
            SimEvent::Lost { worker } => self.lost(worker),
            SimEvent::Returned { worker } => {
                let of = &mut self.workers[worker.0];
                if std::mem::take(&mut of.lost) {
                    let now = Duration::from_nanos(self.now);
                    of.health.rejoined(now);
                    of.health.probed(now, Ok(()));
                }
            }
            SimEvent::Noticed { worker, served } => self.notice(worker, served),
            SimEvent::Stopped { worker, served } => {
                let of = &mut self.workers[worker.0];
                let same = of.served == served;
                if of.serving().is_some_and(|serving| same && serving.phase == Phase::Computing) {
                    self.stop(worker);
                }
            }
        }
    }

    /// Notifies the workers whose tasks were cancelled.
    fn spread_the_word(&mut self) {
        if !std::mem::take(&mut self.cancelled) {
            return;
        }
        for worker in (0..self.workers.len()).map(WorkerId) {
            let of = &mut self.workers[worker.0];
            let (latency, served) = (ns(of.link.latency), of.served);
            if of.serving().is_some_and(|serving| !serving.noticed && serving.task.cancel.is_cancelled()) {
                let sent = self.fates_of_messages.cut_until(self.now, worker, Direction::ToWorker);
                let at = sent.unwrap_or(self.now).saturating_add(latency);
                self.schedule(at, SimEvent::Noticed { worker, served });
            }
        }
    }

    fn notice(&mut self, worker: WorkerId, served: u64) {
        let now = self.now;
        let of = &mut self.workers[worker.0];
        if of.served != served {
            return;
        }
        let Some(serving) = of.serving() else { return };
        serving.noticed = true;
        match serving.phase {
            Phase::Delayed | Phase::Silent | Phase::Pausing => self.answer(worker, Some(Error::Cancelled)),
            Phase::Computing => {
                let at = now.saturating_add(ns(serving.work.stops_within));
                self.schedule(at, SimEvent::Stopped { worker, served });
            }
            // A transfer under way cannot be stopped.
            Phase::Uploading | Phase::Answering => {}
        }
    }

    /// A worker enters `phase`, which ends at `until`, or by another event.
    fn enter(&mut self, worker: WorkerId, phase: Phase, until: Option<u64>) {
        let of = &mut self.workers[worker.0];
        of.step += 1;
        let step = of.step;
        if let Some(serving) = of.serving() {
            serving.phase = phase;
        }
        if let Some(at) = until {
            self.schedule(at, SimEvent::Step { worker, step });
        }
    }

    /// Lets an idle worker begin its next command.
    fn begin(&mut self, worker: WorkerId) {
        let now = self.now;
        let at = self.instant();
        loop {
            let of = &mut self.workers[worker.0];
            if of.current.is_some() {
                return;
            }
            let Some(command) = of.queue.pop_front() else { return };
            of.count(now);
            let (latency, up) = (ns(of.link.latency), of.link.up_bytes_s);
            match command {
                Command::Install(key) => {
                    let bytes = self.work(key.layer).filter_bytes;
                    self.workers[worker.0].current = Some(Current::Installing(key));
                    let there = now.saturating_add(transfer(bytes, up)).saturating_add(latency);
                    self.enter(worker, Phase::Uploading, Some(there.saturating_add(latency)));
                    return;
                }
                Command::Execute(task, job) => {
                    let fate = self.fates[worker.0];
                    let end = if task.cancel.is_cancelled() {
                        Error::Cancelled
                    } else if fate.crash {
                        Error::WorkerFailed { worker: of.name.clone(), cause: "injected crash".to_owned() }
                    } else {
                        let work = self.work(task.key.layer);
                        let arrives = self.fates_of_messages.draw(now, worker, Direction::ToWorker);
                        let fate = TaskFault { silent: fate.silent || arrives.is_none(), ..fate };
                        let sent = now.saturating_add(arrives.unwrap_or(0));
                        let there = sent.saturating_add(transfer(work.upload_bytes, up));
                        self.workers[worker.0].serve(Serving::new(task, job, fate, work, now));
                        self.enter(worker, Phase::Uploading, Some(there.saturating_add(latency)));
                        return;
                    };
                    of.load -= 1;
                    task.reply_at(at, ReplyKind::Failed(end));
                }
            }
        }
    }

    fn work(&self, layer: u64) -> SimulatedWork {
        usize::try_from(layer).ok().and_then(|layer| self.works.get(layer)).copied().unwrap_or_default()
    }

    /// Handles the end of a worker's phase.
    fn step(&mut self, worker: WorkerId) {
        let now = self.now;
        let serving = match &mut self.workers[worker.0].current {
            None => return,
            Some(Current::Installing(key)) => {
                let key = *key;
                self.installed.insert((worker, key));
                return self.finish(worker);
            }
            Some(Current::Serving(serving)) => serving,
        };
        match serving.phase {
            Phase::Uploading if serving.noticed => self.answer(worker, Some(Error::Cancelled)),
            Phase::Uploading if serving.fate.silent => self.enter(worker, Phase::Silent, None),
            Phase::Uploading => {
                let until = now.saturating_add(ns(serving.fate.delay));
                self.enter(worker, Phase::Delayed, Some(until));
            }
            Phase::Delayed => {
                serving.group_begun = now;
                let fixed = serving.work.fixed;
                self.compute(worker, fixed);
            }
            Phase::Pausing => self.send(worker),
            Phase::Answering => self.answered(worker),
            // These phases end by other events.
            Phase::Silent | Phase::Computing => {}
        }
    }

    /// Begins the next sub-result.
    fn compute(&mut self, worker: WorkerId, beside: Duration) {
        let now = self.now;
        let of = &mut self.workers[worker.0];
        let (host, pace) = (of.host, of.pace);
        let Some(serving) = of.serving() else { return };
        let work = ((serving.work.sub_result + beside).as_nanos() as f64 * pace).round();
        serving.in_hand = work;
        serving.ticket = Some(self.hosts[host].cores.begin(now, worker, work));
        self.enter(worker, Phase::Computing, None);
        self.watch(host);
    }

    /// Schedules an event for the next computation that ends on a host.
    fn watch(&mut self, host: usize) {
        let of = &mut self.hosts[host];
        of.watch += 1;
        let watch = of.watch;
        if let Some(at) = of.cores.next() {
            self.schedule(at, SimEvent::Computed { host, watch });
        }
    }

    /// Handles the end of a sub-result's computation.
    fn computed(&mut self, worker: WorkerId) {
        let now = self.now;
        let job = self.job.as_ref().map(|(_, number)| *number);
        let of = &mut self.workers[worker.0];
        let Some(Current::Serving(serving)) = &mut of.current else { return };
        serving.ticket = None;
        serving.done += 1;
        of.usage.computing += Duration::from_nanos(nanos(serving.in_hand));
        of.usage.sub_results += 1;
        if job == Some(serving.job) {
            let attempt = serving.task.attempt;
            if self.computed.len() <= attempt {
                self.computed.resize(attempt + 1, 0);
            }
            self.computed[attempt] += 1;
        }
        if serving.noticed {
            return self.answer(worker, Some(Error::Cancelled));
        }
        if serving.done % serving.group != 0 && serving.done < serving.order.len() {
            return self.compute(worker, Duration::ZERO);
        }
        let pause = (now - serving.group_begun) as f64 * (serving.fate.factor() - 1.0);
        if pause > 0.0 {
            self.enter(worker, Phase::Pausing, Some(now.saturating_add(nanos(pause))));
        } else {
            self.send(worker);
        }
    }

    /// Sends the computed sub-results, and continues with the next.
    fn send(&mut self, worker: WorkerId) {
        let now = self.now;
        let of = &mut self.workers[worker.0];
        let link = of.link;
        let Some(serving) = of.serving() else { return };
        let ready: Vec<usize> = serving.order[serving.sent..serving.done].to_vec();
        serving.sent = serving.done;
        serving.group_begun = now;
        let mut arrivals = Vec::with_capacity(ready.len());
        for index in ready {
            let takes = transfer(serving.work.result_bytes, link.down_bytes_s);
            serving.down_free = serving.down_free.max(now).saturating_add(takes);
            arrivals.push((serving.down_free.saturating_add(ns(link.latency)), index));
        }
        let last = serving.done == serving.order.len();
        let task = Arc::clone(&serving.task);
        for (at, index) in arrivals {
            let what = match &mut self.compute {
                None => {
                    let values = Pooled::unpooled(Values::F32(Vec::new()));
                    ReplyKind::SubResult { index, values, sketch: None }
                }
                Some(compute) => match compute(worker, &task, index).map(Pooled::unpooled) {
                    Err(error) => return self.answer(worker, Some(error)),
                    Ok(values) => match task.inspect(&values) {
                        Ok(sketch) => ReplyKind::SubResult { index, values, sketch },
                        Err(cause) => ReplyKind::Unusable { cause },
                    },
                },
            };
            self.post(worker, at, &task, what);
        }
        if last { self.answer(worker, None) } else { self.compute(worker, Duration::ZERO) }
    }

    /// A worker stops computing.
    fn stop(&mut self, worker: WorkerId) {
        let now = self.now;
        let of = &mut self.workers[worker.0];
        let host = of.host;
        if let Some(Current::Serving(serving)) = &mut of.current
            && let Some(ticket) = serving.ticket.take()
        {
            let left = self.hosts[host].cores.end(now, ticket);
            of.usage.computing += Duration::from_nanos(nanos(serving.in_hand - left));
        }
        self.answer(worker, Some(Error::Cancelled));
        self.watch(host);
    }

    /// A worker sends its last reply to a task, which arrives after all earlier ones.
    fn answer(&mut self, worker: WorkerId, end: Option<Error>) {
        let now = self.now;
        let of = &mut self.workers[worker.0];
        let latency = ns(of.link.latency);
        let Some(serving) = of.serving() else { return };
        serving.end = end;
        let at = serving.down_free.max(now).saturating_add(latency);
        self.enter(worker, Phase::Answering, Some(at));
    }

    /// Handles the arrival of the last reply.
    fn answered(&mut self, worker: WorkerId) {
        let (now, at) = (self.now, self.instant());
        let of = &mut self.workers[worker.0];
        let Some(Current::Serving(serving)) = of.current.as_mut() else { return };
        let (busy, done) = (Duration::from_nanos(now - serving.begun), serving.sent);
        let result = serving.end.take().map_or(Ok(()), Err);
        of.speed.ended(&result, serving.task.shape.conv.macs(), done, busy);
        of.rate = of.speed.estimate();
        of.load -= 1;
        let task = Arc::clone(&serving.task);
        let what = result.map_or_else(ReplyKind::Failed, |()| ReplyKind::Finished);
        match self.fates_of_messages.draw(now, worker, Direction::ToMaster) {
            Some(0) => task.reply_at(at, what),
            Some(delay) => self.post_at(now.saturating_add(delay), &task, what),
            None => {}
        }
        self.finish(worker);
    }

    fn finish(&mut self, worker: WorkerId) {
        let now = self.now;
        let of = &mut self.workers[worker.0];
        of.count(now);
        of.current = None;
        self.begin(worker);
    }
}
