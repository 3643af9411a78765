//! The worker's side: lends the workers of this machine to masters.
//!
//! A [`WorkerServer`] serves over any number of links, each of which leads to other masters. The engine's callbacks hand
//! everything that arrives to one thread, the dispatcher, which tracks all state. Each device has a thread that owns a
//! [`Worker`], and each master has one that sends its answers. A device that hangs, a master that takes nothing and a link
//! that breaks therefore block no other.
//!
//! Invariant: memory that others can make it allocate is bounded by [`ServeOptions::memory_bytes`].

mod answering;
mod cache;
mod device;
mod dispatcher;
mod lines;
mod outbox;
mod parts;
mod reassembly;
mod slabs;
mod tasks;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Sender, bounded, unbounded};

use self::cache::Cache;
use self::device::{Common, Device, Job, Stats};
use self::dispatcher::{Dispatcher, Event};
use self::lines::{Lines, Plan};
use self::outbox::Outbox;
use super::budget::Budget;
use super::endpoint::{Endpoint, Grant, Role, Security, check_name, sides};
use super::hello::{Refusals, Refused};
use super::key_expr::Keys;
use super::rates::clock_us;
use super::wire::{Answer, Hello, HostInfo, MAX_DEVICES};
use super::{no_thread, random};
use crate::dates::since_1970;
use crate::error::{Error, Result};
use crate::worker::Worker;

/// A device that completed a task within this time needs no probe to count as ready.
const RECENT: Duration = Duration::from_secs(10);

/// Options of a worker process.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The machine's name in the cluster.
    pub name: String,
    /// Name of the cluster; clusters of other names are invisible.
    pub cluster: String,
    /// Endpoints that masters connect to.
    pub listen: Vec<Endpoint>,
    /// Masters (or routers) to connect to, each over a link of its own.
    pub connect: Vec<Endpoint>,
    /// Certificates.
    pub security: Security,
    /// Common names of the certificates of masters that may use it, where it listens with certificates.
    pub masters: Vec<String>,
    /// Limit for filters, slabs, parts of models and results together, in bytes.
    pub memory_bytes: u64,
    /// A folder that keeps filters across restarts, and its size limit in bytes.
    pub cache: Option<(PathBuf, u64)>,
}

/// Serves until it is dropped.
pub struct WorkerServer {
    /// `None` only while starting and ending.
    lines: Option<Lines>,
    events: Sender<Event>,
    shared: Arc<Shared>,
    /// The job queues of the devices, for probes.
    jobs: Vec<Arc<Sender<Job>>>,
    front: Option<std::thread::JoinHandle<()>>,
}

/// Everything that describes the process.
struct Shared {
    name: String,
    boot: u64,
    started: Instant,
    stats: Vec<Arc<Stats>>,
    budget: Budget,
    masters: Arc<AtomicU32>,
    received: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    cache: Option<Cache>,
    /// Masters that it does not take.
    refusals: Refusals,
    /// When its certificate ends, in seconds since 1970.
    certificate_until: Option<i64>,
}

/// Counters of a worker process beside those in its [`HostInfo`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Size of the payloads received: filters and slabs.
    pub received_bytes: u64,
    /// Size of the payloads sent: sub-results.
    pub sent_bytes: u64,
    /// Number of filters that could not be written to the cache.
    pub cache_failures: u64,
    /// Number of filters, slabs and results that were refused for lack of memory.
    pub memory_refusals: u64,
    /// Number of masters that were refused since the start.
    pub master_refusals: u64,
    /// Time that each device has spent on tasks.
    pub busy: Vec<Duration>,
}

impl Shared {
    fn hello(&self) -> Hello {
        Hello { name: self.name.clone(), boot: self.boot, release: env!("CARGO_PKG_VERSION").to_owned() }
    }

    fn info(&self) -> HostInfo {
        HostInfo {
            name: self.name.clone(),
            boot: self.boot,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.started.elapsed().as_secs(),
            devices: self.stats.iter().map(|stats| stats.info()).collect(),
            memory_limit_bytes: self.budget.limit(),
            memory_used_bytes: self.budget.used(),
            masters: self.masters.load(Ordering::Relaxed),
            clock_unix_ms: since_1970(SystemTime::now()).as_millis() as u64,
            clock_us: clock_us(),
            certificate_until_unix_s: self.certificate_until,
        }
    }
}

impl ServeOptions {
    /// Checks everything that can be checked without workers or a network.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for a bad name or one that is not the certificate's, no endpoints, or unprotected
    /// endpoints beyond loopback; [`Error::File`] for certificates that cannot be used.
    pub fn check(&self) -> Result<()> {
        check_name("name of the machine", &self.name)?;
        check_name("name of the cluster", &self.cluster)?;
        if self.listen.is_empty() && self.connect.is_empty() {
            return Err(Error::invalid("endpoints", "none", "listen on one, or connect to one"));
        }
        self.security.check(&self.listen, &self.connect)?;
        self.security.check_machine(&self.name, &self.connect)
    }
}

impl WorkerServer {
    /// Serves `workers`, or fewer of them if the system runs out of threads.
    ///
    /// # Errors
    /// Those of [`ServeOptions::check`]; [`Error::InvalidParameter`] for no workers or too many;
    /// [`Error::File`] for certificates or a cache folder that cannot be used; [`Error::Unavailable`] where it cannot
    /// listen.
    pub fn start(workers: Vec<Box<dyn Worker>>, options: &ServeOptions) -> Result<Self> {
        options.check()?;
        if workers.is_empty() || workers.len() > MAX_DEVICES {
            return Err(Error::invalid(
                "number of workers",
                workers.len(),
                format!("serve 1 to {MAX_DEVICES}"),
            ));
        }
        if let Some(half) = workers.iter().map(|worker| worker.info()).find(|info| info.half) {
            let help = "lend it with f32 storage: masters could not state how exact its results are";
            return Err(Error::invalid("f16 storage of a lent worker", half.name, help));
        }
        let keys = Keys::new(&options.cluster);
        let cache = match &options.cache {
            None => None,
            Some((folder, limit)) => Some(Cache::open(folder, *limit)?),
        };
        let budget = Budget::new(options.memory_bytes);
        let common = Common::new(&budget, cache.clone());
        let (events, queue) = unbounded();
        let mut devices = Vec::with_capacity(workers.len());
        let mut refused = None;
        for worker in workers {
            let (events, index) = (events.clone(), devices.len());
            // The dispatcher outlives its devices.
            let tell = move |told| drop(events.send(Event::Device(index, told)));
            match Device::start(worker, common.clone(), tell) {
                Ok(device) => devices.push(device),
                // Fewer workers are lent if the system runs out of threads.
                Err(error) => {
                    tracing::warn!(%error, "not lent");
                    refused = Some(error);
                }
            }
        }
        if let Some(error) = refused.filter(|_| devices.is_empty()) {
            return Err(error);
        }
        let sent = Arc::new(AtomicU64::new(0));
        let default_outbox = Outbox::start("default", &sent).map_err(no_thread)?;
        let shared = Arc::new(Shared {
            name: options.name.clone(),
            boot: random(),
            started: Instant::now(),
            stats: devices.iter().map(|device| Arc::clone(&device.stats)).collect(),
            budget,
            masters: Arc::default(),
            received: Arc::default(),
            sent,
            cache,
            refusals: Refusals::default(),
            certificate_until: options.security.announced_end()?,
        });
        let jobs = devices.iter().map(Device::jobs).collect();
        let describing = Arc::clone(&shared);
        let pending = Arc::new(AtomicU64::new(0));
        let front = Dispatcher::new(
            devices,
            common.clone(),
            Box::new(move || Answer::Info(Box::new(describing.info()))),
            default_outbox,
            [Arc::clone(&pending), Arc::clone(&shared.received)],
            Arc::clone(&shared.masters),
        );
        let front = std::thread::Builder::new()
            .name("fcdcc front".to_owned())
            .spawn(move || front.serve(&queue))
            .map_err(no_thread)?;
        let granted = options.security.tls.as_ref().map(|_| grants(&keys, options));
        let plan = Plan {
            own: keys.worker(&options.name, shared.boot),
            keys: &keys,
            security: &options.security,
            grants: granted.as_deref(),
            events: events.clone(),
            tasks: common.tasks,
            pending,
            hello: shared.hello(),
            masters: options.security.tls.as_ref().map(|_| options.masters.clone()),
            refusals: shared.refusals.clone(),
        };
        let lines = Lines::open(&sides(&options.listen, &options.connect), &plan);
        // From here on a failure drops the server, which ends its threads.
        let mut server = Self { lines: None, events, shared, jobs, front: Some(front) };
        server.lines = Some(lines?);
        Ok(server)
    }

    /// Name, devices and state of the machine.
    #[must_use]
    pub fn info(&self) -> HostInfo {
        self.shared.info()
    }

    /// Endpoints where it listens or connects, readable.
    #[must_use]
    pub fn places(&self) -> Vec<String> {
        self.lines.as_ref().map_or_else(Vec::new, Lines::places)
    }

    /// Endpoints that it connects to whose other side does not take it, each with the reason.
    #[must_use]
    pub fn refused(&self) -> Vec<Refused> {
        self.lines.as_ref().map_or_else(Vec::new, Lines::refused)
    }

    /// The counters of the process.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        Traffic {
            received_bytes: self.shared.received.load(Ordering::Relaxed),
            sent_bytes: self.shared.sent.load(Ordering::Relaxed),
            cache_failures: self.shared.cache.as_ref().map_or(0, Cache::failures),
            memory_refusals: self.shared.budget.refused(),
            master_refusals: self.shared.refusals.count(),
            busy: self.shared.stats.iter().map(|stats| stats.busy()).collect(),
        }
    }

    /// Checks that every device computes correctly: it has completed a task recently, or passes a probe within `limit`.
    ///
    /// # Errors
    /// [`Error::ProbeFailed`] for the first device that does not.
    pub fn check_ready(&self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        let asked: Vec<_> = self
            .jobs
            .iter()
            .zip(&self.shared.stats)
            .map(|(jobs, stats)| {
                let recent = stats.info().lost.is_none() && stats.worked_within(RECENT);
                let (sender, answer) = bounded(1);
                // The thread of a device ends only with the server.
                let asked = recent || jobs.send(Job::Probe(sender)).is_ok();
                (stats, recent, asked, answer)
            })
            .collect();
        for (stats, recent, asked, answer) in asked {
            if recent {
                continue;
            }
            let said = if asked { answer.recv_deadline(end).ok() } else { None };
            let cause = match said {
                Some(Ok(())) => continue,
                Some(Err(cause)) => cause,
                None => format!("no answer within {limit:?}"),
            };
            return Err(Error::ProbeFailed { worker: stats.info().name, cause });
        }
        Ok(())
    }
}

impl Drop for WorkerServer {
    /// Leaves the cluster, then ends its threads.
    fn drop(&mut self) {
        drop(self.lines.take());
        // The dispatcher may have ended already.
        let _ = self.events.send(Event::Close);
        if let Some(front) = self.front.take() {
            let _ = front.join();
        }
    }
}

/// Masters may use this machine; they and viewers may see it.
fn grants(keys: &Keys, options: &ServeOptions) -> Vec<Grant> {
    let mut grants = Vec::new();
    for holder in &options.masters {
        let own = vec![keys.machine(&options.name)];
        grants.push(Grant { holder: Some(holder.clone()), keys: own, role: Role::Use });
        grants.push(Grant {
            holder: Some(holder.clone()),
            keys: vec![keys.all_masters()],
            role: Role::Announce,
        });
    }
    grants.push(Grant { holder: None, keys: vec![keys.master_hello()], role: Role::Ask });
    // They search for all machines, and find this one here.
    for holder in options.masters.iter().chain(&options.security.viewers) {
        let seen = vec![keys.all_alive(), keys.all_info()];
        grants.push(Grant { holder: Some(holder.clone()), keys: seen, role: Role::View });
    }
    grants
}
