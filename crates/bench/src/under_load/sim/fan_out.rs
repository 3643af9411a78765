//! Steps on machines, as the master sees them: which machine gets which part, when enough answers have arrived, and what
//! is sent again.
//!
//! Invariant: a step ends with the answer that makes its parts enough, and nothing of it is live afterwards.

use super::super::spec::Dispatch;
use super::super::work::Placement;
use super::parts::{Active, Copy, CopyId, Phase};
use super::{Event, Simulation};

/// A part is sent at most this often; then its request fails.
const MOST_SENT: usize = 16;

impl Simulation<'_> {
    /// Begins a step on machines.
    pub(super) fn fan_out(&mut self, request: usize, index: usize) {
        let (parts, copies) = (self.plan.fan_outs[index].parts, self.plan.fan_outs[index].copies);
        self.requests[request].active = Some(Active {
            index,
            since: self.now,
            done: vec![false; parts],
            done_count: 0,
            sent: vec![0; parts],
            live: Vec::with_capacity(parts * copies),
            have_input: Vec::new(),
        });
        let group = self.group(request);
        for _ in 0..copies {
            for part in 0..parts {
                // Another part comes first in every request, so that no machine is always the last.
                let part = (part + request) % parts;
                let home = group.map(|first| first + part);
                match home {
                    Some(machine) if !self.machines[machine].suspected => self.send(request, part, machine),
                    Some(_) => {}
                    None => {
                        if let Some(machine) = self.choose(request, part) {
                            self.send(request, part, machine);
                        }
                    }
                }
            }
        }
        self.send_enough(request);
        self.schedule_hedge(request, index);
        self.send_next();
    }

    fn schedule_hedge(&mut self, request: usize, index: usize) {
        let step = self.requests[request].step;
        if let Some(quantile) = self.plan.hedge
            && let Some(after) = self.histories[index].quantile(quantile)
        {
            // What takes exactly as long as usual is not late.
            let at = self.now.saturating_add(after).saturating_add(1);
            self.schedule(at, Event::Hedge { request, step });
        }
    }

    /// First machine of a request's group, which is chosen at its first step.
    fn group(&mut self, request: usize) -> Option<usize> {
        let Placement::Group(size) = self.plan.placement else { return None };
        if self.requests[request].group.is_none() {
            let count = self.group_loads.len();
            let first = self.turn % count;
            self.turn = self.turn.wrapping_add(1);
            let in_turn = (0..count).map(|offset| (first + offset) % count);
            let group = match self.setting.dispatch {
                Dispatch::RoundRobin => first,
                Dispatch::LeastQueue => in_turn.min_by_key(|group| self.group_loads[*group]).unwrap_or(first),
            };
            self.group_loads[group] += 1;
            self.requests[request].group = Some(group * size);
        }
        self.requests[request].group
    }

    /// A machine for a part, other than those that have it already: the choice among all machines, or among the group.
    fn choose(&mut self, request: usize, part: usize) -> Option<usize> {
        let (from, count) = match (self.plan.placement, self.requests[request].group) {
            (Placement::Group(size), Some(first)) => (first, size),
            _ => (0, self.machines.len()),
        };
        let mut taken = Vec::new();
        if let Some(active) = &self.requests[request].active {
            for id in &active.live {
                if let Some(copy) = self.copies.get(*id).filter(|copy| copy.part == part) {
                    taken.push(copy.machine);
                }
            }
        }
        let start = self.turn % count;
        self.turn = self.turn.wrapping_add(1);
        let in_turn = || (0..count).map(|offset| from + (start + offset) % count);
        let free = |machine: &usize| !taken.contains(machine);
        let well = in_turn().filter(free).filter(|machine| !self.machines[*machine].suspected);
        let chosen = match self.setting.dispatch {
            Dispatch::RoundRobin => well.clone().next(),
            Dispatch::LeastQueue => well.min_by_key(|machine| self.machines[*machine].unanswered),
        };
        // If all are taken for lost, one may be back.
        chosen.or_else(|| in_turn().find(free))
    }

    fn send(&mut self, request: usize, part: usize, machine: usize) {
        let of = &mut self.requests[request];
        let (home, step) = (of.group.map(|first| first + part), of.step);
        let Some(active) = &mut of.active else { return };
        let fan_out = &self.plan.fan_outs[active.index];
        let mut up_bytes = fan_out.up_bytes;
        if fan_out.shares_input {
            if active.have_input.contains(&machine) {
                up_bytes = 0.0;
            } else {
                active.have_input.push(machine);
            }
        }
        if home.is_some_and(|home| home != machine) {
            up_bytes += fan_out.filter_bytes;
        }
        active.sent[part] += 1;
        let id = self.copies.add(Copy {
            request,
            step,
            index: active.index,
            part,
            machine,
            phase: Phase::AtMaster,
            up_bytes,
            cancelled: false,
        });
        active.live.push(id);
        self.machines[machine].unanswered += 1;
        self.out.push_back(id);
    }

    /// Sends parts again while those that are live are too few, or fails the request.
    fn send_enough(&mut self, request: usize) {
        loop {
            let Some(active) = &self.requests[request].active else { return };
            let needed = self.plan.fan_outs[active.index].needed;
            let mut live = active.done.clone();
            let mut count = active.done_count;
            for id in &active.live {
                if let Some(copy) = self.copies.get(*id)
                    && !std::mem::replace(&mut live[copy.part], true)
                {
                    count += 1;
                }
            }
            if count >= needed {
                return;
            }
            let missing = (0..live.len()).filter(|part| !live[*part]);
            let Some(part) = missing.min_by_key(|part| active.sent[*part]) else { return };
            let again = active.sent[part];
            match self.choose(request, part) {
                Some(machine) if again < MOST_SENT => self.send(request, part, machine),
                _ => return self.fail(request),
            }
            self.outcome.redispatched += usize::from(again > 0);
        }
    }

    fn fail(&mut self, request: usize) {
        if let Some(active) = self.requests[request].active.take() {
            for id in active.live {
                self.cancel(id);
            }
        }
        self.end(request, false);
    }

    /// An answer reaches the master.
    pub(super) fn answered(&mut self, id: CopyId) {
        let Some(copy) = self.copies.remove(id) else { return };
        self.machines[copy.machine].unanswered -= 1;
        if copy.cancelled {
            return;
        }
        let Some(active) = &mut self.requests[copy.request].active else { return };
        active.live.retain(|other| *other != id);
        if std::mem::replace(&mut active.done[copy.part], true) {
            return;
        }
        active.done_count += 1;
        let (index, since, enough) = (active.index, active.since, active.done_count);
        let fan_out = &self.plan.fan_outs[index];
        self.outcome.used_s += fan_out.work_s;
        self.histories[index].record(self.now - since);
        if enough < fan_out.needed {
            return self.cancel_part(copy.request, copy.part);
        }
        let active = self.requests[copy.request].active.take();
        if let Some(active) = active {
            // What is late had taken at least this long.
            for _ in active.done.iter().filter(|done| !**done) {
                self.histories[index].record(self.now - since);
            }
            for id in active.live {
                self.cancel(id);
            }
        }
        self.requests[copy.request].step += 1;
        self.enter_step(copy.request);
    }

    /// Cancels the other tasks of a part.
    fn cancel_part(&mut self, request: usize, part: usize) {
        let Some(active) = &mut self.requests[request].active else { return };
        let live = std::mem::take(&mut active.live);
        let (gone, kept): (Vec<CopyId>, Vec<CopyId>) =
            live.into_iter().partition(|id| self.copies.get(*id).is_none_or(|copy| copy.part == part));
        if let Some(active) = &mut self.requests[request].active {
            active.live = kept;
        }
        for id in gone {
            self.cancel(id);
        }
    }

    fn cancel(&mut self, id: CopyId) {
        let Some(copy) = self.copies.get(id) else { return };
        if std::mem::replace(&mut copy.cancelled, true) {
            return;
        }
        match (copy.machine, copy.phase) {
            (machine, Phase::AtMaster) => {
                self.machines[machine].unanswered -= 1;
                self.copies.remove(id);
            }
            // The master will notice.
            (_, Phase::Lost) => {}
            _ => {
                let at = self.now.saturating_add(self.latency);
                self.schedule(at, Event::CancelThere(id));
            }
        }
    }

    /// Sends what is late to further machines, and looks again after the same time.
    pub(super) fn hedge(&mut self, request: usize, step: usize) {
        let of = &self.requests[request];
        if of.step != step {
            return;
        }
        let Some(active) = &of.active else { return };
        let more = self.plan.fan_outs[active.index].needed - active.done_count;
        let most = self.setting.most_copies;
        let again = |part: &usize| !active.done[*part] && active.sent[*part] < most;
        let mut late: Vec<usize> = (0..active.done.len()).filter(again).collect();
        late.sort_by_key(|part| active.sent[*part]);
        late.truncate(more);
        let (index, any) = (active.index, !late.is_empty());
        for part in late {
            let taken = self.choose(request, part);
            if let Some(machine) = taken.filter(|machine| !self.machines[*machine].suspected) {
                self.send(request, part, machine);
                self.outcome.hedged += 1;
            }
        }
        if any {
            self.schedule_hedge(request, index);
        }
        self.send_next();
    }

    /// The master learns that a task is lost.
    pub(super) fn noticed(&mut self, id: CopyId) {
        let Some(copy) = self.copies.remove(id) else { return };
        let of = &mut self.machines[copy.machine];
        of.suspected = of.lost;
        of.unanswered -= 1;
        if copy.cancelled {
            return;
        }
        if let Some(active) = &mut self.requests[copy.request].active {
            active.live.retain(|other| *other != id);
        }
        self.send_enough(copy.request);
        self.send_next();
    }
}
