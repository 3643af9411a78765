//! The links of a worker process, and the check that masters are heard over them.
//!
//! The engine restores broken connections, but a restored one may work in one direction only. Therefore a connection is
//! replaced when masters are visible over it but none sends requests. It is also replaced when its last master vanishes:
//! that master may come back before the other side has forgotten the old connection. While no master is visible, it is
//! replaced from time to time (`solitude`).

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::super::endpoint::{Grant, Security, Side};
use super::super::hello::{self, Greeting, Refusals, Refused, RefusedBy};
use super::super::key_expr::{Keys, WorkerKeys};
use super::super::link::{Incoming, Link, Payload};
use super::super::solitude::Solitude;
use super::super::wire::{self, Call, Hello, MasterId, Request};
use super::dispatcher::Event;
use super::tasks::Tasks;
use crate::error::Result;
use crate::worker::CancelToken;

/// Maximum size of payload that has arrived and is not yet handled; more is refused.
const MOST_PENDING_BYTES: u64 = 256 << 20;
/// Time without a request after which a connection counts as broken: masters send four a second.
const SILENCE: Duration = Duration::from_secs(6);
/// Interval of this check, and of the questions whether it is taken.
const TICK: Duration = Duration::from_millis(250);

/// The declarations for every link.
pub(super) struct Plan<'a> {
    pub(super) keys: &'a Keys,
    pub(super) own: WorkerKeys,
    pub(super) security: &'a Security,
    /// Access rules, where it listens with certificates.
    pub(super) grants: Option<&'a [Grant]>,
    pub(super) events: Sender<Event>,
    pub(super) tasks: Tasks,
    pub(super) pending: Arc<AtomicU64>,
    /// What it says where it connects.
    pub(super) hello: Hello,
    /// Where it listens: the masters that it takes, if only some, and those that it refused.
    pub(super) masters: Option<Vec<String>>,
    pub(super) refusals: Refusals,
}

/// All links. Dropping it leaves the cluster.
pub(super) struct Lines {
    all: Arc<Vec<Line>>,
    /// What is said where it connects.
    refused: Vec<RefusedBy>,
    closing: CancelToken,
}

struct Line {
    link: Link,
    heard: Heard,
}

/// The masters visible over a link, and the time of the last request.
#[derive(Clone)]
struct Heard(Arc<Mutex<(HashSet<MasterId>, Instant)>>);

impl Heard {
    fn lock(&self) -> MutexGuard<'_, (HashSet<MasterId>, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) {
        self.lock().1 = Instant::now();
    }
}

impl Lines {
    /// Opens a link for each side.
    pub(super) fn open(sides: &[Side], plan: &Plan<'_>) -> Result<Self> {
        let (wake, lonely) = unbounded();
        let lines = sides.iter().enumerate().map(|(index, side)| {
            let wake = wake.clone();
            Line::open(side, plan, move || {
                // The watcher may have ended.
                let _ = wake.send(index);
            })
        });
        let lines = Arc::new(lines.collect::<Result<Vec<_>>>()?);
        let closing = CancelToken::new();
        let connecting = lines.iter().enumerate().filter(|(_, line)| line.link.connects());
        let greeting = |(index, line): (_, &Line)| {
            (index, Greeting::new(&line.link, plan.keys.machine_hello(), &plan.hello))
        };
        let greetings: Vec<_> = connecting.map(greeting).collect();
        let refused = greetings.iter().map(|(_, greeting)| greeting.refused()).collect();
        let watcher = Watcher {
            greetings,
            lines: Arc::clone(&lines),
            closing: closing.clone(),
            events: plan.events.clone(),
        };
        let thread = std::thread::Builder::new().name("fcdcc links".to_owned());
        if let Err(error) = thread.spawn(move || watcher.watch(&lonely)) {
            tracing::warn!(%error, "no thread to watch the links");
        }
        Ok(Self { all: lines, refused, closing })
    }

    /// Endpoints where they listen or connect, readable.
    pub(super) fn places(&self) -> Vec<String> {
        self.all.iter().map(|line| line.link.place().to_owned()).collect()
    }
}

impl Lines {
    /// The endpoints whose other side does not take this process.
    pub(super) fn refused(&self) -> Vec<Refused> {
        self.refused.iter().filter_map(RefusedBy::listed).collect()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.closing.cancel();
        for line in self.all.iter() {
            line.link.withdraw();
        }
        for line in self.all.iter() {
            line.link.close();
        }
    }
}

impl Line {
    /// Opens a link and makes all declarations on it, the token last. `lonely` is called when its last master vanishes.
    fn open(side: &Side, plan: &Plan<'_>, lonely: impl Fn() + Send + Sync + 'static) -> Result<Self> {
        let grants = plan.grants.filter(|_| matches!(side, Side::Listen(_)));
        let link = Link::open(side, plan.security, grants, None)?;
        let heard = Heard(Arc::new(Mutex::new((HashSet::new(), Instant::now()))));
        let (own, events) = (&plan.own, &plan.events);
        let (to, waiting, hearing) = (events.clone(), Arc::clone(&plan.pending), heard.clone());
        link.serve(&own.call(), move |incoming| {
            hearing.now();
            arrived(incoming, &to, &waiting);
        })?;
        let (to, waiting, hearing) = (events.clone(), Arc::clone(&plan.pending), heard.clone());
        link.serve(&own.info(), move |mut incoming| {
            hearing.now();
            // Viewers may send requests under this key, but only for the description of this machine.
            incoming.payload = Payload::empty();
            if matches!(wire::unpack(&incoming.header), Ok(Call { request: Request::Info, .. }) | Err(_)) {
                arrived(incoming, &to, &waiting);
            }
        })?;
        let (to, tasks) = (events.clone(), plan.tasks.clone());
        link.hear(&own.ctl(), move |header| {
            // Cancels at once: the dispatcher may have chunks to copy first.
            if let Ok(Call { from, request: Request::Cancel { task } }) = wire::unpack::<Call>(&header) {
                tasks.cancel((from, task));
            }
            // The dispatcher lives as long as the link.
            let _ = to.send(Event::Ctl(header));
        })?;
        let (to, keys, hearing) = (events.clone(), plan.keys.clone(), heard.clone());
        link.watch(&keys.all_masters(), move |key, there| {
            let Some(master) = keys.parse_master(key) else { return };
            let last = {
                let (visible, heard) = &mut *hearing.lock();
                *heard = Instant::now();
                if there {
                    visible.insert(master)
                } else {
                    visible.remove(&master)
                };
                visible.is_empty()
            };
            // The dispatcher lives as long as the link.
            let _ = to.send(Event::Master(master, there));
            if last {
                lonely();
            }
        })?;
        if !link.connects() {
            judge_masters(&link, plan)?;
        }
        link.announce(&own.alive())?;
        tracing::info!(place = link.place(), "serving");
        Ok(Self { link, heard })
    }
}

/// Tells the masters that connect whether they may use this machine.
fn judge_masters(link: &Link, plan: &Plan<'_>) -> Result<()> {
    let (machine, masters) = (plan.hello.name.clone(), plan.masters.clone());
    hello::answer(link, &plan.keys.master_hello(), "master", &plan.refusals, move |hello| {
        let name = &hello.name;
        if masters.as_ref().is_some_and(|masters| !masters.contains(name)) {
            return Err(format!(
                "{name} may not use machine {machine}: add it to the `masters` of that machine"
            ));
        }
        Ok(())
    })
}

struct Watcher {
    /// What is asked on which lines.
    greetings: Vec<(usize, Greeting)>,
    lines: Arc<Vec<Line>>,
    closing: CancelToken,
    events: Sender<Event>,
}

impl Watcher {
    fn watch(mut self, lonely: &Receiver<usize>) {
        let mut solitudes: Vec<Solitude> = self.lines.iter().map(|_| Solitude::default()).collect();
        loop {
            let left = match lonely.recv_timeout(TICK) {
                Ok(index) => Some(index),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if self.closing.is_cancelled() {
                return;
            }
            for (index, greeting) in &mut self.greetings {
                greeting.ask(&self.lines[*index].link, Instant::now());
            }
            for (index, line) in self.lines.iter().enumerate().filter(|(_, line)| line.link.connects()) {
                let gone: Vec<MasterId> = {
                    let (visible, heard) = &mut *line.heard.lock();
                    let silent = !visible.is_empty() && heard.elapsed() > SILENCE;
                    let stuck = solitudes[index].is_stuck(visible.is_empty(), Instant::now());
                    let abandoned = left == Some(index) && visible.is_empty();
                    if !silent && !abandoned && !stuck {
                        continue;
                    }
                    *heard = Instant::now();
                    visible.drain().collect()
                };
                line.link.renew();
                for master in gone {
                    // The dispatcher lives as long as the links.
                    let _ = self.events.send(Event::Master(master, false));
                }
            }
        }
    }
}

/// Hands a request to the dispatcher, without its payload where too much is pending already.
fn arrived(mut incoming: Incoming, events: &Sender<Event>, pending: &AtomicU64) {
    let bytes = incoming.payload.len() as u64;
    let fits = pending.fetch_add(bytes, Ordering::Relaxed) + bytes <= MOST_PENDING_BYTES;
    if !fits {
        pending.fetch_sub(bytes, Ordering::Relaxed);
        incoming.payload = Payload::empty();
    }
    // The dispatcher lives as long as the links.
    let _ = events.send(Event::Call(incoming, fits.then_some(bytes)));
}
