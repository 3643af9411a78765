//! Lost workers, and messages that are lost, delayed or reordered.
//!
//! Invariant: a lost worker holds no task, and every task that it had is answered.

use std::sync::Arc;

use super::{LOSS, Message, SimEvent, Simulation};
use crate::error::Error;
use crate::ids::WorkerId;
use crate::scheduler::message_faults::{Direction, MessageFates, MessageFaults};
use crate::scheduler::sim_worker::{Command, Current};
use crate::scheduler::slot::{QueuedTask, ReplyKind};

impl Simulation {
    /// Sets the faults of all messages sent from now on.
    pub(in crate::scheduler) fn set_message_faults(&mut self, faults: MessageFaults) {
        self.fates_of_messages = MessageFates::new(faults);
    }

    /// A worker is lost at time `at`, and back at `until` if that is given.
    pub(in crate::scheduler) fn lose(&mut self, worker: WorkerId, at: u64, until: Option<u64>) {
        self.schedule(at, SimEvent::Lost { worker });
        if let Some(until) = until {
            self.schedule(until, SimEvent::Returned { worker });
        }
    }

    /// Sends a reply that arrives at time `at`, unless a fault delays or loses it.
    pub(super) fn post(&mut self, worker: WorkerId, at: u64, task: &Arc<QueuedTask>, what: ReplyKind) {
        let Some(delay) = self.fates_of_messages.draw(self.now, worker, Direction::ToMaster) else { return };
        self.post_at(at.saturating_add(delay), task, what);
    }

    pub(super) fn post_at(&mut self, at: u64, task: &Arc<QueuedTask>, what: ReplyKind) {
        let message = self.scheduled;
        self.messages.insert(message, Message { task: Arc::clone(task), what });
        self.schedule(at, SimEvent::Arrived { message });
    }

    /// A worker is lost, with its filters and its tasks.
    pub(super) fn lost(&mut self, worker: WorkerId) {
        let (now, at) = (self.now, self.instant());
        let of = &mut self.workers[worker.0];
        if std::mem::replace(&mut of.lost, true) {
            return;
        }
        of.count(now);
        of.health.lost(LOSS.to_owned());
        of.load = 0;
        of.step += 1;
        let (host, name) = (of.host, of.name.clone());
        let (mut tasks, mut keys) = (Vec::new(), Vec::new());
        match of.current.take() {
            Some(Current::Serving(mut serving)) => {
                if let Some(ticket) = serving.ticket.take() {
                    self.hosts[host].cores.end(now, ticket);
                }
                tasks.push(serving.task);
            }
            Some(Current::Installing(key)) => keys.push(key),
            None => {}
        }
        for command in std::mem::take(&mut self.workers[worker.0].queue) {
            match command {
                Command::Execute(task, _) => tasks.push(Arc::new(task)),
                Command::Install(key) => keys.push(key),
            }
        }
        // A pool gives a worker that returns all filters that it should hold.
        self.installed.extend(keys.into_iter().map(|key| (worker, key)));
        for task in tasks {
            let lost = Error::WorkerLost { worker: name.clone(), cause: LOSS.to_owned() };
            task.reply_at(at, ReplyKind::Failed(lost));
        }
        self.watch(host);
    }
}
