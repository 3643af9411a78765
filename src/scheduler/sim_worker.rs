//! One simulated worker: its properties, its queue and its present command.
//!
//! Invariant: a worker does one command at a time, and its step number shows whether an event is still current.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::health::{Health, HealthOptions};
use super::processor_sharing::{Ticket, nanos};
use super::slot::QueuedTask;
use super::speed::Speed;
use crate::array::DType;
use crate::error::Error;
use crate::worker::{FilterKey, SubtaskShape, TaskFault};

/// The link between the master and one worker. The two directions are independent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Latency in each direction.
    pub latency: Duration,
    /// Bytes per second to the worker; may be infinite.
    pub up_bytes_s: f64,
    /// Bytes per second from the worker; may be infinite. Sub-results wait for each other, but computing does not wait.
    pub down_bytes_s: f64,
}

impl Link {
    /// Memory that both sides share: no latency, infinite bandwidth.
    pub const NONE: Self =
        Self { latency: Duration::ZERO, up_bytes_s: f64::INFINITY, down_bytes_s: f64::INFINITY };
}

/// Costs of one subtask of a layer. Computing times are those of a worker of pace 1 on its own core.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SimulatedWork {
    /// Bytes of coded slabs, sent before computing begins.
    pub upload_bytes: usize,
    /// Bytes of coded filters, sent when they are installed.
    pub filter_bytes: usize,
    /// Bytes of each sub-result.
    pub result_bytes: usize,
    /// Time to compute each sub-result.
    pub sub_result: Duration,
    /// Computing time before the first sub-result.
    pub fixed: Duration,
    /// Time after which a worker that learns of a cancellation stops, unless it completes the present sub-result before.
    /// With [`Duration::MAX`] it always completes that.
    pub stops_within: Duration,
}

impl SimulatedWork {
    /// Costs of subtasks of this shape, with `sub_result` for each sub-result. Cancelled workers complete the one at hand.
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

/// What a worker was used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time with a task or filters, from when they are sent until the last reply has arrived.
    pub busy: Duration,
    /// Core time for sub-results that were computed or given up, as if undisturbed by others. Slowness by [`TaskFault`]
    /// counts as waiting, not as computing.
    pub computing: Duration,
    /// Sub-results computed, needed or not.
    pub sub_results: usize,
}

/// A simulated worker.
pub(super) struct SimWorker {
    pub(super) name: String,
    pub(super) host: usize,
    pub(super) pace: f64,
    pub(super) link: Link,
    pub(super) queue: VecDeque<Command>,
    /// The present command, and the number of tasks begun so far.
    pub(super) current: Option<Current>,
    pub(super) served: u64,
    /// Number of the present phase, by which outdated events are recognized.
    pub(super) step: u64,
    /// Tasks queued or running.
    pub(super) load: usize,
    pub(super) health: Health,
    pub(super) speed: Speed,
    pub(super) rate: Option<f64>,
    /// It is lost: its tasks fail at once.
    pub(super) lost: bool,
    pub(super) usage: Usage,
    /// Time up to which `usage` has been accumulated.
    pub(super) counted: u64,
}

pub(super) enum Command {
    Install(FilterKey),
    Execute(QueuedTask, u64),
}

pub(super) enum Current {
    Installing(FilterKey),
    Serving(Box<Serving>),
}

pub(super) struct Serving {
    pub(super) task: Arc<QueuedTask>,
    pub(super) job: u64,
    pub(super) fate: TaskFault,
    pub(super) work: SimulatedWork,
    pub(super) begun: u64,
    pub(super) phase: Phase,
    /// The worker knows that the task is cancelled.
    pub(super) noticed: bool,
    pub(super) order: Vec<usize>,
    /// Number of sub-results that are sent together.
    pub(super) group: usize,
    /// Number of sub-results computed, and of those sent.
    pub(super) done: usize,
    pub(super) sent: usize,
    /// Time at which the present group was begun.
    pub(super) group_begun: u64,
    /// Work of the present sub-result, in nanoseconds.
    pub(super) in_hand: f64,
    pub(super) ticket: Option<Ticket>,
    /// Time at which the last sub-result has left.
    pub(super) down_free: u64,
    pub(super) end: Option<Error>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Uploading,
    Delayed,
    Silent,
    Computing,
    /// Waits for the slowness of its fault.
    Pausing,
    Answering,
}

impl SimWorker {
    pub(super) fn new(name: String, host: usize, pace: f64, link: Link) -> Self {
        let mut health = Health::with_options(HealthOptions::default());
        // A simulated worker needs no probe.
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
            lost: false,
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

    /// Usage since the last reset.
    pub(super) fn usage(&mut self, now: u64, reset: bool) -> Usage {
        self.count(now);
        let usage = self.usage;
        if reset {
            self.usage = Usage::default();
        }
        usage
    }

    /// Begins a task.
    pub(super) fn serve(&mut self, serving: Serving) {
        self.served += 1;
        self.current = Some(Current::Serving(Box::new(serving)));
    }
}

impl Serving {
    pub(super) fn new(task: QueuedTask, job: u64, fate: TaskFault, work: SimulatedWork, now: u64) -> Self {
        // As CPU workers do: one by one where an order is given, else all sub-results of a slab together.
        let (order, group) = match &task.order {
            Some(order) => (order.clone(), 1),
            None => ((0..task.shape.sub_results()).collect(), task.shape.banks.max(1)),
        };
        Self {
            task: Arc::new(task),
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

/// Time in nanoseconds to move bytes over a free link.
pub(super) fn transfer(bytes: usize, bytes_s: f64) -> u64 {
    nanos(bytes as f64 / bytes_s * 1e9)
}
