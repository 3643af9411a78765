//! Links and machines: messages on their way, queues, and the loss of machines.
//!
//! Invariant: links and machines are never idle while something waits for them, except for lost machines.

use super::super::faults::{Each, MachineFault};
use super::super::timeline::{SECOND, ns};
use super::parts::{Copy, CopyId, Phase, Running};
use super::{Event, Simulation};

/// Purposes of draws for the delay of a task begin here; lower ones are those of the machines' timelines.
const DELAYS: u64 = 2;
/// A machine that needs longer for a nanosecond of work stands still.
const STILL: u64 = 100_000;
/// Most layers of a task, and most steps of a request, to which draws belong.
const LAYERS: u64 = 1 << 12;

impl Simulation<'_> {
    /// Sends the next message, if the master's link is free. A message crosses both links at once.
    pub(super) fn send_next(&mut self) {
        while !self.out_busy {
            let Some(id) = self.out.pop_front() else { return };
            let now = self.now;
            let [machine_rate, master_rate] = self.setting.links;
            // What was cancelled meanwhile is not sent.
            let Some(copy) = self.copies.get(id) else { continue };
            copy.phase = Phase::OnTheWay;
            let (machine, bytes) = (copy.machine, copy.up_bytes);
            let leaves = now.saturating_add(ns(bytes / master_rate));
            let of = &mut self.machines[machine];
            let through = of.in_free.max(now).saturating_add(ns(bytes / machine_rate));
            of.in_free = through.max(leaves);
            let there = of.in_free.saturating_add(self.latency);
            self.out_busy = true;
            self.outcome.bytes_out += bytes;
            self.link_ns[0] += (leaves - now) as f64;
            self.schedule(leaves, Event::OutFree);
            self.schedule(there, Event::TaskThere(id));
        }
    }

    pub(super) fn task_there(&mut self, id: CopyId) {
        let Some(copy) = self.copies.get(id) else { return };
        let machine = copy.machine;
        if self.machines[machine].lost {
            return self.lose(id);
        }
        copy.phase = Phase::Queued;
        self.machines[machine].queue.push_back(id);
        self.compute_next(machine);
    }

    /// Begins the next task of an idle machine.
    pub(super) fn compute_next(&mut self, machine: usize) {
        let now = self.now;
        while self.machines[machine].running.is_none() {
            let Some(id) = self.machines[machine].queue.pop_front() else { return };
            let Some(copy) = self.copies.get(id) else { continue };
            copy.phase = Phase::Running;
            let copy = *copy;
            let begins = now.saturating_add(ns(self.delay_s(&copy)));
            let work = self.plan.fan_outs[copy.index].work_s * SECOND;
            let of = &mut self.machines[machine];
            let ends = of.timeline.finish(begins, work);
            of.running = Some(Running { copy: id, since: now, begins, work });
            let number = of.number;
            self.schedule(ends, Event::Computed { machine, number });
        }
    }

    /// The delay of a task, which depends on its request, its place in the request and its machine.
    fn delay_s(&self, copy: &Copy) -> f64 {
        let (request, step, machine) = (copy.request as u64, copy.step as u64, copy.machine as u64);
        let layers = self.plan.fan_outs[copy.index].layers as u64;
        let mut delay = 0.0;
        for (index, fault) in (0_u64..).zip(&self.setting.faults) {
            let MachineFault::Delay { chance, time, each } = *fault else { continue };
            let times = if each == Each::Task { 1 } else { layers };
            for layer in 0..times {
                let purpose = |what| [index, machine, DELAYS + request, (step * LAYERS + layer) * 2 + what];
                if chance >= 1.0 || self.draws.uniform(purpose(0)) < chance {
                    delay += time.at(self.draws.uniform(purpose(1)));
                }
            }
        }
        delay
    }

    pub(super) fn computed(&mut self, machine: usize, number: u64) {
        let of = &mut self.machines[machine];
        if of.number != number {
            return;
        }
        let work = of.running.map_or(0.0, |running| running.work);
        if let Some((id, _)) = of.stop(self.now) {
            of.answers.push_back(id);
            self.outcome.work_s += work / SECOND;
            if let Some(copy) = self.copies.get(id) {
                copy.phase = Phase::Answering;
            }
        }
        self.answer_next(machine);
        self.compute_next(machine);
    }

    /// Sends the next answer of a machine, if its link is free.
    pub(super) fn answer_next(&mut self, machine: usize) {
        let now = self.now;
        let [machine_rate, master_rate] = self.setting.links;
        while !self.machines[machine].answering {
            let Some(id) = self.machines[machine].answers.pop_front() else { return };
            let Some(copy) = self.copies.get(id) else { continue };
            copy.phase = Phase::Answered;
            let bytes = self.plan.fan_outs[copy.index].down_bytes;
            let takes = ns(bytes / master_rate);
            self.in_free = self.in_free.max(now).saturating_add(takes);
            let through = now.saturating_add(ns(bytes / machine_rate)).max(self.in_free);
            self.machines[machine].answering = true;
            self.outcome.bytes_in += bytes;
            self.link_ns[1] += takes as f64;
            self.schedule(through, Event::AnswerSent(machine));
            self.schedule(through.saturating_add(self.latency), Event::AnswerThere(id));
        }
    }

    /// A machine learns that a task is cancelled, and stops at once if it computes it. One that stands still learns it when
    /// it goes on.
    pub(super) fn cancel_there(&mut self, id: CopyId) {
        let Some(copy) = self.copies.get(id) else { return };
        let (machine, phase) = (copy.machine, copy.phase);
        if phase == Phase::Lost {
            return;
        }
        if self.machines[machine].lost {
            return self.lose(id);
        }
        let goes_on = self.machines[machine].timeline.finish(self.now, 1.0);
        if goes_on > self.now.saturating_add(STILL) {
            return self.schedule(goes_on, Event::CancelThere(id));
        }
        let at = self.now.saturating_add(self.latency);
        self.schedule(at, Event::Acknowledged(machine));
        self.copies.remove(id);
        // Queues skip what is gone, and what is on its way is dropped when it arrives.
        if phase == Phase::Running {
            if let Some((_, done)) = self.machines[machine].stop(self.now) {
                self.outcome.work_s += done / SECOND;
            }
            self.compute_next(machine);
        }
    }

    pub(super) fn schedule_turn(&mut self, machine: usize) {
        if let Some(at) = self.machines[machine].losses.next() {
            self.schedule(at, Event::Turns(machine));
        }
    }

    /// A machine is lost with its tasks, or comes back without any.
    pub(super) fn turns(&mut self, machine: usize) {
        let of = &mut self.machines[machine];
        of.lost = !of.lost;
        if of.lost {
            let mut gone: Vec<CopyId> = of.queue.drain(..).chain(of.answers.drain(..)).collect();
            if let Some((running, done)) = of.stop(self.now) {
                self.outcome.work_s += done / SECOND;
                gone.push(running);
            }
            for id in gone {
                self.lose(id);
            }
        } else {
            of.suspected = false;
        }
        self.schedule_turn(machine);
    }

    /// A task is lost; the master notices later.
    fn lose(&mut self, id: CopyId) {
        let notice = self.setting.faults.iter().find_map(|fault| match fault {
            MachineFault::Crash { notice, .. } => Some(ns(notice.seconds())),
            _ => None,
        });
        let Some(copy) = self.copies.get(id) else { return };
        copy.phase = Phase::Lost;
        let at = self.now.saturating_add(notice.unwrap_or(0));
        self.schedule(at, Event::Noticed(id));
    }
}
