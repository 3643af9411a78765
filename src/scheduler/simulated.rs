//! A fleet of hundreds of simulated workers on one thread, in virtual time.
//!
//! Relevant if you want to study scheduling at a scale that one machine cannot reach. The scheduler is the real one;
//! workers, links, cores and the clock are simulated (`simulation`).
//!
//! Invariant: a run depends only on the requests; repeated, it is the same to the nanosecond.

use std::cell::{RefCell, RefMut};
use std::time::{Duration, Instant};

use super::fleet::Fleet;
use super::health::State;
use super::mailbox::Taken;
use super::message_faults::MessageFaults;
use super::processor_sharing::Cores;
use super::sim_worker::{Link, SimWorker, SimulatedWork, Usage, ns};
use super::simulation::Simulation;
use super::slot::{InstallRequest, QueuedTask, Replies, Reply};
use crate::error::{Error, Result};
use crate::ids::WorkerId;
use crate::worker::{CancelToken, FilterKey, LOCAL_HOST, TaskFault};

/// A machine. Its workers share its cores equally, each getting at most one.
#[derive(Clone, Debug, PartialEq)]
pub struct SimulatedHost {
    /// Its name, and the failure domain of its workers. [`LOCAL_HOST`] is the master's machine, whose worker threads share
    /// cores with each other.
    pub name: String,
    /// Number of cores; may be infinite or a fraction.
    pub cores: f64,
}

/// A simulated worker.
#[derive(Clone, Debug, PartialEq)]
pub struct SimulatedWorker {
    /// Its name.
    pub name: String,
    /// The index of its host.
    pub host: usize,
    /// Factor on the times of [`SimulatedWork`]: 2 is half as fast.
    pub pace: f64,
    /// The link to the master.
    pub link: Link,
}

/// Simulated workers and their clock.
///
/// A worker behaves like its thread in a [`Pool`](super::Pool). It takes one task at a time, receives the slabs, waits if
/// its [`TaskFault`] says so, computes the sub-results one by one and sends each as soon as it is computed (where parts of
/// subtasks do not count, all of a slab together, as CPU workers do). It gets the next task when its last reply has
/// arrived. It learns of a cancellation after the link's latency: waiting ends then, computing with the present
/// sub-result ([`SimulatedWork::stops_within`]).
pub struct SimulatedFleet {
    hosts: Vec<SimulatedHost>,
    workers: Vec<SimulatedWorker>,
    base: Instant,
    simulation: RefCell<Simulation>,
}

impl SimulatedFleet {
    /// A fleet of these workers, at time zero, without faults.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for no workers, for a host index out of range, and for cores, paces or bytes per second
    /// that are not above zero.
    pub fn new(hosts: Vec<SimulatedHost>, workers: Vec<SimulatedWorker>) -> Result<Self> {
        if workers.is_empty() {
            return Err(Error::invalid("number of workers", 0, "a fleet needs at least one worker"));
        }
        let above = |what: &str, value: f64| {
            let positive = value > 0.0;
            if positive { Ok(()) } else { Err(Error::invalid(what, value, "give a number above zero")) }
        };
        for host in &hosts {
            above("cores of a simulated host", host.cores)?;
        }
        for worker in &workers {
            if worker.host >= hosts.len() {
                let help = format!("there are {} hosts, counted from 0", hosts.len());
                return Err(Error::invalid("host of a simulated worker", worker.host, help));
            }
            above("pace of a simulated worker", worker.pace)?;
            above("bytes per second of a link", worker.link.up_bytes_s)?;
            above("bytes per second of a link", worker.link.down_bytes_s)?;
        }
        let servants = workers.iter().map(|w| SimWorker::new(w.name.clone(), w.host, w.pace, w.link));
        let base = Instant::now();
        let cores = hosts.iter().map(|host| Cores::new(host.cores)).collect();
        let simulation = RefCell::new(Simulation::new(base, cores, servants.collect()));
        Ok(Self { hosts, workers, base, simulation })
    }

    /// `workers` equal hosts with one worker each.
    ///
    /// # Errors
    /// Those of [`SimulatedFleet::new`].
    pub fn remote(workers: usize, link: Link) -> Result<Self> {
        let host = |i| SimulatedHost { name: format!("host-{i}"), cores: f64::INFINITY };
        let worker = |i| SimulatedWorker { name: format!("remote-{i}"), host: i, pace: 1.0, link };
        Self::new((0..workers).map(host).collect(), (0..workers).map(worker).collect())
    }

    /// Threads of the master's machine.
    ///
    /// # Errors
    /// Those of [`SimulatedFleet::new`].
    pub fn local(workers: usize, cores: f64) -> Result<Self> {
        let worker = |i| SimulatedWorker { name: format!("cpu-{i}"), host: 0, pace: 1.0, link: Link::NONE };
        let host = SimulatedHost { name: LOCAL_HOST.to_owned(), cores };
        Self::new(vec![host], (0..workers).map(worker).collect())
    }

    /// Number of workers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.workers.len()
    }

    /// Never true: a fleet has at least one worker.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// The workers, in order.
    #[must_use]
    pub fn workers(&self) -> &[SimulatedWorker] {
        &self.workers
    }

    /// Sets the faults of the tasks that begin from now on; workers beyond them have none.
    pub fn set_fates(&mut self, fates: &[TaskFault]) {
        for (index, fate) in self.simulation.get_mut().fates.iter_mut().enumerate() {
            *fate = fates.get(index).copied().unwrap_or_default();
        }
    }

    /// Sets the faults of all messages sent from now on.
    pub fn set_message_faults(&mut self, faults: MessageFaults) {
        self.simulation.get_mut().set_message_faults(faults);
    }

    /// Loses a worker at virtual time `at`, with its tasks. It is back at `until`, if that is given, with all filters that
    /// it should hold.
    pub fn lose(&mut self, worker: WorkerId, at: Duration, until: Option<Duration>) {
        self.simulation.get_mut().lose(worker, ns(at), until.map(ns));
    }

    /// Lets workers compute sub-results of the next runs. Without it sub-results are empty.
    #[cfg(test)]
    pub(crate) fn compute_with(&mut self, compute: super::simulation::Compute) {
        self.simulation.get_mut().compute = Some(compute);
    }

    /// Virtual time since the beginning.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.state().now)
    }

    /// Lets `time` pass; workers continue their work.
    pub fn advance(&mut self, time: Duration) {
        self.spend(time);
    }

    /// Usage of each worker since the last reset.
    #[must_use]
    pub fn usage(&self) -> Vec<Usage> {
        self.usages(false)
    }

    /// As [`SimulatedFleet::usage`], and resets it.
    pub fn reset_usage(&mut self) -> Vec<Usage> {
        self.usages(true)
    }

    /// Adds a layer; returns its number in tasks and filter keys.
    pub(crate) fn add_layer(&self, work: SimulatedWork) -> u64 {
        let mut state = self.state();
        state.works.push(work);
        state.works.len() as u64 - 1
    }

    /// Gives a worker filters, without any delay.
    pub(crate) fn hold(&self, worker: WorkerId, key: FilterKey) {
        self.state().installed.insert((worker, key));
    }

    /// Whether filters have arrived at a worker.
    pub(crate) fn holds(&self, worker: WorkerId, key: FilterKey) -> bool {
        self.state().installed.contains(&(worker, key))
    }

    /// Removes filters from a worker.
    pub(crate) fn forget(&self, worker: WorkerId, key: FilterKey) {
        self.state().installed.remove(&(worker, key));
    }

    /// As [`SimulatedFleet::advance`], through a shared reference.
    pub(crate) fn spend(&self, time: Duration) {
        let mut state = self.state();
        let until = u64::try_from(time.as_nanos()).map_or(u64::MAX, |ns| state.now.saturating_add(ns));
        state.advance(until);
    }

    /// Sub-results computed so far for an attempt of the last job.
    pub(crate) fn computed(&self, attempt: usize) -> usize {
        self.state().computed.get(attempt).copied().unwrap_or(0)
    }

    fn usages(&self, reset: bool) -> Vec<Usage> {
        let mut state = self.state();
        let now = state.now;
        state.workers.iter_mut().map(|worker| worker.usage(now, reset)).collect()
    }

    fn state(&self) -> RefMut<'_, Simulation> {
        self.simulation.borrow_mut()
    }
}

impl std::fmt::Debug for SimulatedFleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.workers).finish()
    }
}

impl Fleet for SimulatedFleet {
    fn now(&self) -> Instant {
        self.state().instant()
    }

    fn wait(&self, replies: &Replies, until: Instant) -> Taken<Reply> {
        let until = until.saturating_duration_since(self.base);
        let until = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        let mut state = self.state();
        state.check_progress(until);
        loop {
            if let Some(reply) = replies.try_take() {
                return Taken::Item(reply);
            }
            if !state.happen(until) {
                state.advance(until);
                return Taken::Timeout;
            }
        }
    }

    fn execute(&self, worker: WorkerId, task: QueuedTask) {
        self.state().execute(worker, task);
    }

    fn equip(&self, worker: WorkerId, request: InstallRequest) {
        self.state().install(worker, request.key);
    }

    fn cancel(&self, token: &CancelToken) {
        token.cancel();
        self.state().cancelled = true;
    }

    fn flag(&self, worker: WorkerId, cause: &str) {
        let now = self.elapsed();
        self.state().workers[worker.0].health.flagged(now, cause.to_owned());
    }

    fn accept(&self, worker: WorkerId) {
        self.state().workers[worker.0].health.accepted();
    }

    fn pace(&self, worker: WorkerId, ratio: f64) {
        self.state().workers[worker.0].health.paced(ratio);
    }

    fn size(&self) -> usize {
        self.workers.len()
    }

    fn name(&self, worker: WorkerId) -> &str {
        &self.workers[worker.0].name
    }

    fn domain(&self, worker: WorkerId) -> Vec<String> {
        let of = &self.workers[worker.0];
        vec![self.hosts[of.host].name.clone(), of.name.clone()]
    }

    fn is_thread_here(&self, worker: WorkerId) -> bool {
        self.hosts[self.workers[worker.0].host].name == LOCAL_HOST
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is positive")]
    fn cores(&self) -> usize {
        let here = self.hosts.iter().filter(|host| host.name == LOCAL_HOST).map(|host| host.cores);
        (here.sum::<f64>() as usize).max(1)
    }

    fn load(&self, worker: WorkerId) -> usize {
        self.state().workers[worker.0].load
    }

    fn rate(&self, worker: WorkerId) -> Option<f64> {
        self.state().workers[worker.0].rate
    }

    fn rate_or(&self, worker: WorkerId, typical: f64) -> f64 {
        self.state().workers[worker.0].speed.estimate_or(typical)
    }

    fn is_usable(&self, worker: WorkerId) -> bool {
        self.state().workers[worker.0].health.usable()
    }

    fn straggles(&self, worker: WorkerId) -> bool {
        self.state().workers[worker.0].health.state() == State::Straggling
    }
}
