//! One master, its link, machines and their links in virtual time, and requests that arrive whatever these do.
//!
//! Links are first come, first served in each direction, and a message crosses both links on its way at once. Machines
//! compute one task at a time, in the order of arrival. The master does one thing at a time with all its cores.
//!
//! Invariant: events depend only on plan, setting and arrivals; every request ends exactly once, answered or failed, unless
//! the run is given up.

mod fan_out;
mod machine;
mod parts;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::faults::{Draws, MachineFault};
use super::spec::Dispatch;
use super::timeline::{NEVER, SECOND, ns};
use super::work::{Placement, RequestPlan, Step};
use parts::{Active, Copies, CopyId, History, Machine};

/// Everything beside the requests.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) machines: usize,
    /// Bytes a second of a machine's link, and of the master's.
    pub(super) links: [f64; 2],
    pub(super) latency_s: f64,
    pub(super) faults: Vec<MachineFault>,
    pub(super) seed: u64,
    pub(super) dispatch: Dispatch,
    pub(super) most_copies: usize,
    pub(super) most_in_flight: usize,
    pub(super) most_events: u64,
}

/// Why a run was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// Too many requests waited.
    InFlight,
    /// Too many events.
    Events,
}

/// The busiest parts of the system between two arrivals, as shares of the time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Utilisation {
    pub(super) machine: f64,
    pub(super) link_out: f64,
    pub(super) link_in: f64,
    pub(super) master: f64,
}

/// What happened in a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct RunOutcome {
    /// Seconds from each arrival to its answer, in the order of arrival; infinite for requests that failed or were not
    /// answered before the run was given up.
    pub(super) latencies_s: Vec<f64>,
    /// Requests in the system when each request arrived, as far as the run went.
    pub(super) in_system: Vec<usize>,
    pub(super) answered: usize,
    pub(super) failed: usize,
    pub(super) given_up: Option<GivenUp>,
    /// Time from the first arrival that counts to the last arrival, and to the last event.
    pub(super) window_s: f64,
    pub(super) end_s: f64,
    /// Seconds at full speed that machines computed, and those of answers that were used.
    pub(super) work_s: f64,
    pub(super) used_s: f64,
    /// Seconds of the master.
    pub(super) master_s: f64,
    pub(super) bytes_out: f64,
    pub(super) bytes_in: f64,
    /// Copies of late parts, and parts sent again because a machine was lost.
    pub(super) hedged: usize,
    pub(super) redispatched: usize,
    pub(super) utilisation: Utilisation,
    pub(super) events: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives(usize),
    /// The master's present piece of work ends.
    MasterDone,
    /// The master's link can send the next message.
    OutFree,
    /// A task has reached its machine.
    TaskThere(CopyId),
    /// A machine's present task ends, unless its number has changed.
    Computed {
        machine: usize,
        number: u64,
    },
    /// A machine's link can send the next answer.
    AnswerSent(usize),
    /// An answer has reached the master.
    AnswerThere(CopyId),
    /// A machine learns that a task is cancelled.
    CancelThere(CopyId),
    /// The master learns that a machine has given up a cancelled task.
    Acknowledged(usize),
    /// Late parts of a step are sent a second time.
    Hedge {
        request: usize,
        step: usize,
    },
    /// A machine is lost or comes back.
    Turns(usize),
    /// The master learns that a task is lost.
    Noticed(CopyId),
}

/// A request in the system.
#[derive(Debug, Default)]
struct Request {
    arrival: u64,
    step: usize,
    /// First machine of its group.
    group: Option<usize>,
    active: Option<Active>,
    ended: bool,
}

struct Simulation<'a> {
    setting: &'a Setting,
    plan: &'a RequestPlan,
    draws: Draws,
    latency: u64,
    now: u64,
    scheduled: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    requests: Vec<Request>,
    copies: Copies,
    machines: Vec<Machine>,
    /// Requests whose steps the master has to do, with their nanoseconds; the first one is under way.
    master: VecDeque<(usize, u64)>,
    /// Messages that wait for the master's link.
    out: VecDeque<CopyId>,
    out_busy: bool,
    /// When the master's link has received everything that is on its way.
    in_free: u64,
    histories: Vec<History>,
    /// Where the next search in turns begins.
    turn: usize,
    /// Requests under way, by group.
    group_loads: Vec<usize>,
    in_flight: usize,
    /// Nanoseconds for which the master's link was used, out and in.
    link_ns: [f64; 2],
    /// Seconds that each machine, links and master were busy when the window began.
    before: Option<(u64, Vec<f64>, [f64; 3])>,
    outcome: RunOutcome,
}

/// Runs the requests that arrive at `arrivals` (nanoseconds, ascending), of which the first `warmup` do not count in
/// utilisations.
pub(super) fn run(setting: &Setting, plan: &RequestPlan, arrivals: &[u64], warmup: usize) -> RunOutcome {
    let mut simulation = Simulation::new(setting, plan, arrivals);
    simulation.run(warmup.min(arrivals.len().saturating_sub(1)));
    simulation.outcome
}

impl<'a> Simulation<'a> {
    fn new(setting: &'a Setting, plan: &'a RequestPlan, arrivals: &[u64]) -> Self {
        let draws = Draws(setting.seed);
        let machines =
            (0..setting.machines).map(|index| Machine::new(draws, &setting.faults, index)).collect();
        let groups = match plan.placement {
            Placement::Any => 1,
            Placement::Group(size) => (setting.machines / size.max(1)).max(1),
        };
        let request = |arrival: &u64| Request { arrival: *arrival, ..Request::default() };
        Self {
            setting,
            plan,
            draws,
            latency: ns(setting.latency_s),
            now: 0,
            scheduled: 0,
            queue: BinaryHeap::new(),
            requests: arrivals.iter().map(request).collect(),
            copies: Copies::default(),
            machines,
            master: VecDeque::new(),
            out: VecDeque::new(),
            out_busy: false,
            in_free: 0,
            histories: plan.fan_outs.iter().map(|_| History::default()).collect(),
            turn: 0,
            group_loads: vec![0; groups],
            in_flight: 0,
            link_ns: [0.0; 2],
            before: None,
            outcome: RunOutcome { latencies_s: vec![f64::INFINITY; arrivals.len()], ..RunOutcome::default() },
        }
    }

    fn run(&mut self, warmup: usize) {
        if let Some(first) = self.requests.first() {
            let at = first.arrival;
            self.schedule(at, Event::Arrives(0));
        }
        for machine in 0..self.machines.len() {
            self.schedule_turn(machine);
        }
        let total = self.requests.len();
        while self.outcome.answered + self.outcome.failed < total {
            let Some(Reverse((at, _, event))) = self.queue.pop() else { break };
            self.now = at;
            self.outcome.events += 1;
            if self.outcome.events > self.setting.most_events {
                self.outcome.given_up = Some(GivenUp::Events);
                break;
            }
            if let Event::Arrives(request) = event {
                if request == warmup {
                    self.before = Some(self.busy());
                }
                if self.in_flight >= self.setting.most_in_flight {
                    self.outcome.given_up = Some(GivenUp::InFlight);
                    self.close_window();
                    break;
                }
                self.arrives(request);
                if request + 1 == total {
                    self.close_window();
                }
            } else {
                self.handle(event);
            }
        }
        self.outcome.end_s = self.now as f64 / SECOND;
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.queue.push(Reverse((at.max(self.now).min(NEVER), self.scheduled, event)));
        self.scheduled += 1;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrives(_) => {}
            Event::MasterDone => self.master_done(),
            Event::OutFree => {
                self.out_busy = false;
                self.send_next();
            }
            Event::TaskThere(copy) => self.task_there(copy),
            Event::Computed { machine, number } => self.computed(machine, number),
            Event::AnswerSent(machine) => {
                self.machines[machine].answering = false;
                self.answer_next(machine);
            }
            Event::AnswerThere(copy) => self.answered(copy),
            Event::CancelThere(copy) => self.cancel_there(copy),
            Event::Acknowledged(machine) => self.machines[machine].unanswered -= 1,
            Event::Hedge { request, step } => self.hedge(request, step),
            Event::Turns(machine) => self.turns(machine),
            Event::Noticed(copy) => self.noticed(copy),
        }
    }

    fn arrives(&mut self, request: usize) {
        self.outcome.in_system.push(self.in_flight);
        self.in_flight += 1;
        if let Some(next) = self.requests.get(request + 1) {
            let at = next.arrival;
            self.schedule(at, Event::Arrives(request + 1));
        }
        self.enter_step(request);
    }

    /// Begins the present step of a request, or ends the request.
    fn enter_step(&mut self, request: usize) {
        match self.plan.steps.get(self.requests[request].step) {
            None => self.end(request, true),
            Some(Step::Master(seconds)) => {
                self.master.push_back((request, ns(*seconds)));
                if self.master.len() == 1 {
                    self.begin_master();
                }
            }
            Some(Step::FanOut(index)) => self.fan_out(request, *index),
        }
    }

    fn begin_master(&mut self) {
        if let Some((_, takes)) = self.master.front() {
            let at = self.now.saturating_add(*takes);
            self.schedule(at, Event::MasterDone);
        }
    }

    fn master_done(&mut self) {
        let Some((request, takes)) = self.master.pop_front() else { return };
        self.outcome.master_s += takes as f64 / SECOND;
        self.begin_master();
        self.requests[request].step += 1;
        self.enter_step(request);
    }

    fn end(&mut self, request: usize, answered: bool) {
        let of = &mut self.requests[request];
        if std::mem::replace(&mut of.ended, true) {
            return;
        }
        if let (Some(first), Placement::Group(size)) = (of.group, self.plan.placement) {
            self.group_loads[first / size.max(1)] -= 1;
        }
        self.in_flight -= 1;
        if answered {
            self.outcome.answered += 1;
            self.outcome.latencies_s[request] = (self.now - of.arrival) as f64 / SECOND;
        } else {
            self.outcome.failed += 1;
        }
    }

    /// The time, the seconds for which each machine was busy so far, and those of the link out, the link in and the master.
    fn busy(&self) -> (u64, Vec<f64>, [f64; 3]) {
        let machines = self.machines.iter().map(|machine| machine.busy_s(self.now)).collect();
        let [out, into] = self.link_ns.map(|ns| ns / SECOND);
        (self.now, machines, [out, into, self.outcome.master_s])
    }

    fn close_window(&mut self) {
        let (since, machines, others) = self.before.take().unwrap_or((0, Vec::new(), [0.0; 3]));
        let (now, machines_now, others_now) = self.busy();
        let seconds = (now - since) as f64 / SECOND;
        self.outcome.window_s = seconds;
        if seconds <= 0.0 {
            return;
        }
        let share = |now: f64, before: f64| ((now - before) / seconds).clamp(0.0, 1.0);
        let before = machines.into_iter().chain(std::iter::repeat(0.0));
        let each = machines_now.into_iter().zip(before);
        self.outcome.utilisation = Utilisation {
            machine: each.map(|(now, before)| share(now, before)).fold(0.0, f64::max),
            link_out: share(others_now[0], others[0]),
            link_in: share(others_now[1], others[1]),
            master: share(others_now[2], others[2]),
        };
    }
}
