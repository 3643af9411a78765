//! One simulated worker: what it is like, what waits for it and what it is at.
//!
//! Invariant: it is at one thing at a time, and its step tells whether an event is still about that.

use std::collections::VecDeque;
use std::time::Duration;

use super::health::{Health, HealthOptions};
use super::processor_sharing::{Ticket, nanos};
use super::slot::Task;
use super::speed::Speed;
use crate::array::DType;
use crate::error::Error;
use crate::worker::{FilterKey, SubtaskShape, TaskFault};

/// Between the master and one worker. Its two directions do not disturb each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Each way.
    pub latency: Duration,
    /// Bytes per second to the worker; may be infinite.
    pub up_bytes_s: f64,
    /// Bytes per second from the worker; may be infinite. Sub-results wait for each other, not for computing.
    pub down_bytes_s: f64,
}

impl Link {
    /// Memory that both sides see.
    pub const NONE: Self =
        Self { latency: Duration::ZERO, up_bytes_s: f64::INFINITY, down_bytes_s: f64::INFINITY };
}

/// What one subtask of a layer takes. Computing times are those of a worker of pace 1 on a core of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SimulatedWork {
    /// Coded slabs, sent before it can begin.
    pub upload_bytes: usize,
    /// Coded filters, sent to a worker that is to hold them.
    pub filter_bytes: usize,
    /// Each sub-result.
    pub result_bytes: usize,
    /// Computing each sub-result.
    pub sub_result: Duration,
    /// Computing, before the first.
    pub fixed: Duration,
    /// A worker that learns that its task is cancelled lets go of it so long after, if the sub-result in hand is not
    /// complete by then. With [`Duration::MAX`] it always completes that.
    pub stops_within: Duration,
}

impl SimulatedWork {
    /// Subtasks of this shape, a sub-result of which takes so long; workers complete what they have in hand.
    #[must_use]
    pub fn of(subtask: &SubtaskShape, dtype: DType, sub_result: Duration) -> Self {
        let size = dtype.size_bytes();
        Self {
            upload_bytes: subtask.upload_elems() * size,
            filter_bytes: subtask.filter_elems() * size,
            result_bytes: subtask.conv.output_elems() * size,
            sub_result,
            fixed: Duration::ZERO,
            stops_within: Duration::MAX,
        }
    }
}

/// What a worker did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// With a task or filters in hand, from when they are sent to it until its last word has arrived.
    pub busy: Duration,
    /// Of a core, for sub-results that are computed or given up: what they would take undisturbed. Being slow by
    /// [`TaskFault`] is waiting, not computing.
    pub computing: Duration,
    /// Sub-results computed, whether or not anybody still wanted them.
    pub sub_results: usize,
}

/// One worker.
pub(super) struct SimWorker {
    pub(super) name: String,
    pub(super) host: usize,
    pub(super) pace: f64,
    pub(super) link: Link,
    pub(super) queue: VecDeque<Command>,
    /// What it is at, and how much it has been at before.
    pub(super) current: Option<Current>,
    pub(super) served: u64,
    /// Counts its steps, so that one that was overtaken is known.
    pub(super) step: u64,
    /// Tasks queued or running.
    pub(super) load: usize,
    pub(super) health: Health,
    pub(super) speed: Speed,
    pub(super) rate: Option<f64>,
    pub(super) usage: Usage,
    /// Until when its time is in `usage`.
    pub(super) counted: u64,
}

pub(super) enum Command {
    Install(FilterKey),
    Execute(Task, u64),
}

pub(super) enum Current {
    Installing(FilterKey),
    Serving(Box<Serving>),
}

pub(super) struct Serving {
    pub(super) task: Task,
    pub(super) job: u64,
    pub(super) fate: TaskFault,
    pub(super) work: SimulatedWork,
    pub(super) begun: u64,
    pub(super) phase: Phase,
    /// It knows that it is cancelled.
    pub(super) noticed: bool,
    pub(super) order: Vec<usize>,
    /// Sub-results that are handed on together.
    pub(super) group: usize,
    /// Sub-results computed, and those of them that are on their way.
    pub(super) done: usize,
    pub(super) sent: usize,
    /// When it began with the present group.
    pub(super) group_begun: u64,
    /// Work of the sub-result in hand.
    pub(super) in_hand: f64,
    pub(super) ticket: Option<Ticket>,
    /// When its last sub-result has left.
    pub(super) down_free: u64,
    pub(super) end: Option<Error>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Uploading,
    Delayed,
    Silent,
    Computing,
    /// The slower pace of its fate.
    Pausing,
    Answering,
}

impl SimWorker {
    pub(super) fn new(name: String, host: usize, pace: f64, link: Link) -> Self {
        let mut health = Health::with_options(HealthOptions::default());
        // What is simulated needs no probe to be trusted.
        health.probed(Duration::ZERO, Ok(()));
        Self {
            name,
            host,
            pace,
            link,
            queue: VecDeque::new(),
            current: None,
            served: 0,
            step: 0,
            load: 0,
            health,
            speed: Speed::new(),
            rate: None,
            usage: Usage::default(),
            counted: 0,
        }
    }

    pub(super) fn serving(&mut self) -> Option<&mut Serving> {
        match &mut self.current {
            Some(Current::Serving(serving)) => Some(serving),
            _ => None,
        }
    }

    pub(super) fn count(&mut self, now: u64) {
        if self.current.is_some() {
            self.usage.busy += Duration::from_nanos(now - self.counted);
        }
        self.counted = now;
    }

    /// What it did since it was last reset.
    pub(super) fn usage(&mut self, now: u64, reset: bool) -> Usage {
        self.count(now);
        let usage = self.usage;
        if reset {
            self.usage = Usage::default();
        }
        usage
    }

    /// Takes a task.
    pub(super) fn serve(&mut self, serving: Serving) {
        self.served += 1;
        self.current = Some(Current::Serving(Box::new(serving)));
    }
}

impl Serving {
    pub(super) fn new(task: Task, job: u64, fate: TaskFault, work: SimulatedWork, now: u64) -> Self {
        // As CPU workers do: one by one where that is asked for, else all that meet a slab together.
        let (order, group) = match &task.order {
            Some(order) => (order.clone(), 1),
            None => ((0..task.shape.sub_results()).collect(), task.shape.banks.max(1)),
        };
        Self {
            task,
            job,
            fate,
            work,
            begun: now,
            phase: Phase::Uploading,
            noticed: false,
            order,
            group,
            done: 0,
            sent: 0,
            group_begun: now,
            in_hand: 0.0,
            ticket: None,
            down_free: 0,
            end: None,
        }
    }
}

pub(super) fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Moving bytes over a link that is free.
pub(super) fn transfer(bytes: usize, bytes_s: f64) -> u64 {
    nanos(bytes as f64 / bytes_s * 1e9)
}
