//! The master's side: a cluster as a source of workers.
//!
//! Invariant: every wait here ends, at its deadline or when it is cancelled.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::endpoint::{Endpoint, Grant, Role, Security, Side, Tls, check_name, sides};
use super::hello::{self, Greeting, Refused, RefusedBy};
use super::key_expr::Keys;
use super::link::{Link, Payload, Response, TrafficClass};
use super::rates::{LinkSpeed, clock_us};
use super::registry::{Claimed, Member, MemberId};
use super::remote::RemoteWorker;
use super::shared::{Release, Shared, brief};
use super::solitude::Solitude;
use super::wire::{Answer, Hello, HostInfo, MasterId, Request};
use super::{no_thread, random};
use crate::array::WireFormat;
use crate::error::{Error, Result};
use crate::worker::Worker;

/// Time limit for a worker process to describe itself.
pub(super) const INFO_LIMIT: Duration = Duration::from_secs(2);
/// Interval between two questions to each worker process.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// A worker process that has not answered for this time is suspected: others compute its subtasks as well, and it gets none
/// of theirs. A healthy process answers within milliseconds, also while it computes.
const SUSPICION: Duration = Duration::from_secs(1);
/// A worker process that has not answered for this time counts as gone.
const SILENCE: Duration = Duration::from_secs(4);
/// Time for machines that are not needed, once those that are needed have joined. A busy machine takes seconds to start its
/// workers, and over QUIC they may notice only after more than a second that a master listens.
const LATECOMERS: Duration = Duration::from_secs(5);
/// Maximum number of events that the monitor handles before it checks which processes are silent.
const MOST_AT_ONCE: usize = 1024;
/// Interval at which the monitor checks which processes to query.
const TICK: Duration = Duration::from_millis(125);

/// How a master takes part in a cluster.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Name of the cluster; clusters of other names are invisible.
    pub cluster: String,
    /// Endpoints that machines connect to.
    pub listen: Vec<Endpoint>,
    /// Machines that listen, or routers, each over a link of its own.
    pub connect: Vec<Endpoint>,
    /// Certificates.
    pub security: Security,
    /// Common names of the certificates of machines that may join, where it listens with certificates.
    pub machines: Vec<String>,
}

impl Default for ClusterOptions {
    /// The cluster `default`, without endpoints.
    fn default() -> Self {
        Self {
            cluster: "default".to_owned(),
            listen: Vec::new(),
            connect: Vec::new(),
            security: Security::default(),
            machines: Vec::new(),
        }
    }
}

/// A request for devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seats {
    /// Name of the machine; any machine when `None`.
    pub machine: Option<String>,
    /// Number of devices. `None`: all devices of the machine if it joins in time, else one.
    pub count: Option<usize>,
    /// Format in which slabs and sub-results travel. 16-bit formats halve the traffic of layers in f32 and make their results
    /// less exact, which the error bounds include. Layers of integers, layers in f64 and data of very uneven magnitude travel
    /// in full width.
    pub wire: WireFormat,
}

/// A master's view of a cluster. Cheap to clone; it leaves when the last clone and the last of its workers are dropped.
#[derive(Clone)]
pub struct Cluster {
    pub(super) shared: Arc<Shared>,
}

enum Event {
    Token { id: MemberId, link: usize, there: bool },
    Answer(MemberId, Result<HostInfo, String>),
}

impl Cluster {
    /// Opens the links. Machines can join from then on, at any time.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for a bad name, no endpoints, unprotected endpoints beyond loopback, or certificates
    /// without machines that may join; [`Error::File`] for certificates that cannot be read; [`Error::Unavailable`]
    /// where it cannot listen.
    pub fn open(options: &ClusterOptions) -> Result<Self> {
        check_name("name of the cluster", &options.cluster)?;
        for machine in &options.machines {
            check_name("name of a machine", machine)?;
        }
        options.security.check(&options.listen, &options.connect)?;
        if options.listen.is_empty() && options.connect.is_empty() {
            return Err(Error::invalid(
                "endpoints of the cluster",
                "none",
                "listen on one, or connect to one",
            ));
        }
        if !options.listen.is_empty() && options.security.tls.is_some() && options.machines.is_empty() {
            let help = "name the machines whose certificates may join";
            return Err(Error::invalid("machines that may join", "none", help));
        }
        let keys = Keys::new(&options.cluster);
        let id = MasterId(u128::from(random()) << 64 | u128::from(random()));
        let (events, queue) = unbounded();
        let mut links = Vec::new();
        for (index, side) in sides(&options.listen, &options.connect).iter().enumerate() {
            links.push(open(side, index, &keys, id, options, &events)?);
        }
        let (releases, released) = unbounded();
        options.security.announced_end()?;
        let greetings = greetings(&keys, &links, options)?;
        let mut shared = Shared::new(id, keys, links, releases);
        shared.refused_by = greetings.iter().map(|(_, greeting)| greeting.refused()).collect();
        let shared = Arc::new(shared);
        tell_of_releases(&shared, released)?;
        judge_machines(&shared, options)?;
        let keeper = MembershipMonitor { shared: Arc::downgrade(&shared), events, greetings };
        std::thread::Builder::new()
            .name("fcdcc cluster".to_owned())
            .spawn(move || keeper.serve(&queue))
            .map_err(no_thread)?;
        Ok(Self { shared })
    }

    /// Workers for the `seats` of one pool; waits at most `wait` for machines to join. No two of them use the same device,
    /// but workers from another call may. Seats that stay empty become workers that are
    /// [unavailable](Worker::unavailable_reason): a pool gives them work once a machine has joined for them.
    #[must_use]
    pub fn workers(&self, seats: &[Seats], wait: Duration) -> Vec<Box<dyn Worker>> {
        self.workers_of_each(seats, wait, 0).into_iter().flatten().collect()
    }

    /// As [`Cluster::workers`], but grouped by entry of `seats`, and without waiting for machines that are not needed: once all
    /// but `spare` seats are taken, it waits for the others for five seconds at most.
    #[must_use]
    pub fn workers_of_each(
        &self,
        seats: &[Seats],
        wait: Duration,
        spare: usize,
    ) -> Vec<Vec<Box<dyn Worker>>> {
        let end = Instant::now() + wait;
        let pool = self.shared.next_group();
        let mut groups: Vec<Vec<Option<Claimed>>> =
            seats.iter().map(|seats| vec![None; seats.count.unwrap_or(1)]).collect();
        let mut enough: Option<Instant> = None;
        self.shared.wait_for(end, None, |registry| {
            for (seats, group) in seats.iter().zip(&mut groups) {
                let machine = seats.machine.as_deref();
                if let (None, Some(machine)) = (seats.count, machine)
                    && let Some(devices) = registry.devices(machine)
                {
                    group.resize(devices.max(group.len()).max(1), None);
                }
                for seat in group.iter_mut().filter(|seat| seat.is_none()) {
                    *seat = registry.claim(pool, machine);
                }
            }
            let missing = groups.iter().flatten().filter(|seat| seat.is_none()).count();
            let some = groups.iter().flatten().any(Option::is_some);
            if missing > 0 && missing <= spare && some {
                enough.get_or_insert_with(Instant::now);
            }
            (missing == 0 || enough.is_some_and(|since| since.elapsed() >= LATECOMERS)).then_some(())
        });
        let mut any = 0;
        let mut worker = |machine: Option<&str>, index: usize, wire, claimed| -> Box<dyn Worker> {
            let name = match machine {
                Some(machine) => format!("{machine}/{index}"),
                None => format!("remote-{any}"),
            };
            any += usize::from(machine.is_none());
            Box::new(RemoteWorker::new(Arc::clone(&self.shared), pool, machine, name, wire, claimed))
        };
        let mut made = Vec::with_capacity(groups.len());
        for (Seats { machine, wire, .. }, group) in seats.iter().zip(groups) {
            let (machine, wire) = (machine.as_deref(), *wire);
            let seats = group.into_iter().enumerate();
            made.push(seats.map(|(index, seat)| worker(machine, index, wire, seat)).collect());
        }
        made
    }

    /// All worker processes in the cluster.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        self.shared.registry().list()
    }

    /// The measured rates of the link to each machine that has joined, by its name. They are measured on what this master sends
    /// to and receives from the machine, and start again when its process does.
    #[must_use]
    pub fn link_speeds(&self) -> BTreeMap<String, LinkSpeed> {
        self.shared.registry().link_speeds()
    }

    /// Machines that connect and are not taken, each with the reason.
    #[must_use]
    pub fn refused(&self) -> Vec<Refused> {
        self.shared.refusals.listed()
    }

    /// Endpoints of machines that do not take this master, each with the reason.
    #[must_use]
    pub fn refused_by(&self) -> Vec<Refused> {
        self.shared.refused_by.iter().filter_map(RefusedBy::listed).collect()
    }

    /// Number of machines refused since the start, each counted once for each reason.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.shared.refusals.count()
    }

    /// Endpoints where it listens or connects, readable.
    #[must_use]
    pub fn places(&self) -> Vec<String> {
        self.shared.links.iter().map(|link| link.place().to_owned()).collect()
    }
}

/// Starts the thread that tells machines which slabs they may drop; it ends with the cluster. A machine that takes
/// nothing delays such messages to others by seconds, and nothing else.
fn tell_of_releases(shared: &Arc<Shared>, released: Receiver<Release>) -> Result<()> {
    let shared = Arc::downgrade(shared);
    let tell = move || {
        for Release { link, key, slabs } in released {
            let Some(shared) = shared.upgrade() else { return };
            shared.tell(link, &key, Request::Forget { slabs });
        }
    };
    std::thread::Builder::new().name("fcdcc slabs".to_owned()).spawn(tell).map(drop).map_err(no_thread)
}

/// Tells the machines that connect whether they are taken.
fn judge_machines(shared: &Arc<Shared>, options: &ClusterOptions) -> Result<()> {
    let own = Arc::downgrade(shared);
    let listed = options.security.tls.as_ref().map(|_| options.machines.clone());
    let Some(link) = shared.links.iter().find(|link| !link.connects()) else { return Ok(()) };
    hello::answer(link, &shared.keys.machine_hello(), "machine", &shared.refusals, move |hello| {
        let name = &hello.name;
        if listed.as_ref().is_some_and(|listed| !listed.contains(name)) {
            return Err(format!(
                "{name} is not listed: name it in a [[worker]] table, or in `machines`, of the master's pool file"
            ));
        }
        let taken = own.upgrade().and_then(|shared| shared.registry().taken(name, hello.boot));
        taken.map_or(Ok(()), Err)
    })
}

/// What this master says to the machines that it connects to, by link. Without a certificate it has no name.
fn greetings(keys: &Keys, links: &[Link], options: &ClusterOptions) -> Result<Vec<(usize, Greeting)>> {
    let holder = options.security.tls.as_ref().map(Tls::holder).transpose()?.flatten();
    let Some(name) = holder else { return Ok(Vec::new()) };
    let hello = Hello { name, boot: random(), release: env!("CARGO_PKG_VERSION").to_owned() };
    let connecting = links.iter().enumerate().filter(|(_, link)| link.connects());
    let greeting = |(index, link): (_, &Link)| (index, Greeting::new(link, keys.master_hello(), &hello));
    Ok(connecting.map(greeting).collect())
}

fn open(
    side: &Side,
    index: usize,
    keys: &Keys,
    id: MasterId,
    options: &ClusterOptions,
    events: &Sender<Event>,
) -> Result<Link> {
    let grants = match (side, &options.security.tls) {
        (Side::Listen(_), Some(_)) => Some(grants(keys, options)),
        _ => None,
    };
    let link = Link::open(side, &options.security, grants.as_deref(), None)?;
    // Workers need to see the token of this master before any of its messages.
    link.announce(&keys.master(id))?;
    let (events, own) = (events.clone(), keys.clone());
    link.watch(&keys.all_alive(), move |key, there| {
        if let Some(id) = own.parse_worker(key) {
            // The receiver is gone once the cluster is left.
            let _ = events.send(Event::Token { id, link: index, there });
        }
    })?;
    Ok(link)
}

/// Machines may serve under their own name, receive the question sent to all machines, and see masters. Viewers may see
/// the machines and query them.
fn grants(keys: &Keys, options: &ClusterOptions) -> Vec<Grant> {
    let mut grants = Vec::new();
    for machine in &options.machines {
        let own = vec![keys.machine(machine)];
        grants.push(Grant { holder: Some(machine.clone()), keys: own, role: Role::Serve });
        grants.push(Grant { holder: Some(machine.clone()), keys: vec![keys.all_info()], role: Role::Asked });
        grants.push(Grant {
            holder: Some(machine.clone()),
            keys: vec![keys.all_masters()],
            role: Role::View,
        });
    }
    grants.push(Grant { holder: None, keys: vec![keys.machine_hello()], role: Role::Ask });
    for holder in &options.security.viewers {
        let seen = vec![keys.all_alive(), keys.all_info()];
        grants.push(Grant { holder: Some(holder.clone()), keys: seen, role: Role::View });
    }
    grants
}

/// The thread that maintains the registry.
struct MembershipMonitor {
    shared: Weak<Shared>,
    events: Sender<Event>,
    /// What is asked on which links.
    greetings: Vec<(usize, Greeting)>,
}

impl MembershipMonitor {
    fn serve(mut self, queue: &Receiver<Event>) {
        let mut solitudes = Vec::new();
        let mut checked = Instant::now();
        loop {
            let first = match queue.recv_timeout(TICK) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let Some(shared) = self.shared.upgrade() else { return };
            for event in first.into_iter().chain(queue.try_iter().take(MOST_AT_ONCE)) {
                record(&shared, event);
            }
            let (now, paused) = (Instant::now(), checked.elapsed());
            checked = now;
            let (mut due, mut silent, mut suspects) = (Vec::new(), Vec::new(), Vec::new());
            shared.change(|registry| {
                if paused > SUSPICION / 2 {
                    registry.excuse(now, paused);
                }
                due = registry.due(now, HEARTBEAT);
                suspects = registry.suspects(now, SUSPICION);
                silent = registry.fallen_silent(now, SILENCE);
            });
            for id in suspects {
                tracing::warn!(
                    machine = id.0,
                    "has not answered for {SUSPICION:?}: others compute its subtasks"
                );
            }
            for (id, link) in silent {
                tracing::warn!(machine = id.0, "has not answered for {SILENCE:?}");
                renew_if_silent(&shared, link);
            }
            replace_stuck(&shared, &mut solitudes, now);
            for (index, greeting) in &mut self.greetings {
                greeting.ask(&shared.links[*index], now);
            }
            for (id, link) in due {
                self.ask(&shared, id, link);
            }
        }
    }

    fn ask(&self, shared: &Shared, id: MemberId, link: usize) {
        let key = shared.keys.worker(&id.0, id.1).info();
        let events = self.events.clone();
        let (meter, sent_us) = (shared.registry().meter(&id), clock_us());
        let asked = shared.links[link].ask(
            &key,
            shared.call(Request::Info),
            Payload::empty(),
            TrafficClass::Control,
            INFO_LIMIT,
            move |said| {
                let answer = match said {
                    Response::Answer(Answer::Info(info), _) => {
                        if let Some(meter) = &meter {
                            meter.exchanged(sent_us, info.clock_us, clock_us());
                        }
                        Ok(*info)
                    }
                    Response::Answer(other, _) => Err(format!("it answers {}", brief(&other))),
                    Response::Garbage(text) => Err(text),
                    Response::Nothing(_) => return,
                };
                // The receiver is gone once the cluster is left.
                let _ = events.send(Event::Answer(id.clone(), answer));
            },
        );
        if let Err(error) = asked {
            tracing::debug!(%error, "not asked");
        }
    }
}

/// Records what a link reports.
fn record(shared: &Shared, event: Event) {
    match event {
        Event::Token { id, link, there: true } => {
            tracing::info!(machine = id.0, "joined");
            shared.change(|registry| registry.seen(id, link));
        }
        Event::Token { id, link, there: false } => {
            tracing::info!(machine = id.0, "left");
            shared.change(|registry| registry.gone(&id, link));
            renew_if_silent(shared, link);
        }
        Event::Answer(id, answer) => {
            let mut problem = None;
            shared.change(|registry| problem = registry.answered(&id, answer, Instant::now()));
            if let Some(problem) = problem {
                tracing::warn!(machine = id.0, problem, "cannot be used");
            }
        }
    }
}

/// Drops a connection over which no worker process answers any more, if this side made it.
fn renew_if_silent(shared: &Shared, link: usize) {
    let mut silent = false;
    shared.change(|registry| {
        silent = registry.is_silent(link) && shared.links[link].connects();
        if silent {
            registry.forget_link(link);
        }
    });
    if silent {
        shared.links[link].renew();
    }
}

/// Replaces connections on which no worker process has been visible for a while, if this side made them.
fn replace_stuck(shared: &Shared, solitudes: &mut Vec<Solitude>, now: Instant) {
    solitudes.resize_with(shared.links.len(), Solitude::default);
    for (index, solitude) in solitudes.iter_mut().enumerate() {
        let alone = shared.links[index].connects() && shared.registry().is_alone(index);
        if solitude.is_stuck(alone, now) {
            shared.change(|registry| registry.forget_link(index));
            shared.links[index].renew();
        }
    }
}
