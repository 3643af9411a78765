//! Relays that stand for bad links between real processes: one for streams (TCP) and one for datagrams (UDP, so also QUIC).
//!
//! A [`Link`] describes what the link does: loss, duplication, delay, jitter, a rate. Outages cut one direction or both for a
//! while. A stream cannot lose bytes: there a loss becomes a pause as long as a retransmission, and an outage holds back all
//! bytes until it is over, so that the sender's buffers fill.
//!
//! Invariant: what happens to a packet follows from the seed and the packet's number; the memory of a relay is bounded; its
//! threads end with it.

mod link;
mod tcp;
mod udp;

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use link::{Direction, Fate, Link, Path};

/// An outage without a planned end.
const ENDLESS: Duration = Duration::from_hours(1);
/// The largest number of outages that are planned at a time.
const MOST_OUTAGES: usize = 64;

/// What a relay carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    /// TCP.
    Streams,
    /// UDP.
    Datagrams,
}

/// What happened to the packets of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that came to the relay.
    pub came: u64,
    /// Packets that left it, copies included.
    pub left: u64,
    /// Losses; pieces of a stream that came as late as a retransmission.
    pub lost: u64,
    /// Datagrams that fell into an outage; pieces of a stream that waited for its end.
    pub cut: u64,
    /// Packets that took longer than no time.
    pub delayed: u64,
    /// Datagrams that came twice.
    pub duplicated: u64,
    /// Datagrams that left after a later one.
    pub reordered: u64,
    /// Pieces of a stream that left in two parts.
    pub split: u64,
}

/// A relay between clients and one target. Dropping it closes its connections.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    carries: Carries,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    /// A relay on loopback.
    pub fn start(carries: Carries, target: SocketAddr, link: Link) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), carries, target, link)
    }

    /// A relay that listens at an address of this machine.
    pub fn start_at(listen: SocketAddr, carries: Carries, target: SocketAddr, link: Link) -> Self {
        let state = State { link, outages: Vec::new(), breaks: 0, closing: false };
        let shared = Arc::new(Shared {
            target,
            state: Mutex::new(state),
            changed: Condvar::new(),
            tallies: [Tally::default(), Tally::default()],
        });
        let (address, threads) = match carries {
            Carries::Streams => tcp::start(listen, &shared),
            Carries::Datagrams => udp::start(listen, &shared),
        };
        Self { address, shared, carries, threads }
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what the link does to the packets that come from now on.
    pub fn become_link(&self, link: Link) {
        self.shared.change(|state| state.link = link);
    }

    /// Cuts these directions `after` some time, for a while.
    pub fn cut_between(&self, directions: &[Direction], after: Duration, lasts: Duration) {
        let from = Instant::now() + after;
        self.shared.change(|state| {
            state.outages.retain(|outage| outage.to > Instant::now());
            assert!(state.outages.len() < MOST_OUTAGES, "{MOST_OUTAGES} outages are planned already");
            let outage = |direction: &Direction| Outage { direction: *direction, from, to: from + lasts };
            state.outages.extend(directions.iter().map(outage));
        });
    }

    /// Cuts these directions until [`Relay::heal`].
    pub fn cut(&self, directions: &[Direction]) {
        self.cut_between(directions, Duration::ZERO, ENDLESS);
    }

    /// Ends all outages, also those that were planned.
    pub fn heal(&self) {
        self.shared.change(|state| state.outages.clear());
    }

    /// Breaks all connections of streams that are open; clients may connect again.
    pub fn break_connections(&self) {
        self.shared.change(|state| state.breaks += 1);
    }

    /// What has happened in one direction.
    pub fn counts(&self, direction: Direction) -> Counts {
        self.shared.tally(direction).counts()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.change(|state| state.closing = true);
        if self.carries == Carries::Streams {
            // Wakes the thread that accepts. An error means that it does not wait any more.
            let _ = TcpStream::connect(self.address);
        }
        for thread in self.threads.drain(..) {
            // A panic of a thread was printed already.
            let _ = thread.join();
        }
    }
}

struct Outage {
    direction: Direction,
    from: Instant,
    to: Instant,
}

struct State {
    link: Link,
    outages: Vec<Outage>,
    /// Number of times that all connections were broken.
    breaks: u64,
    closing: bool,
}

impl State {
    /// When the outage ends that holds now.
    fn cut_until(&self, direction: Direction, now: Instant) -> Option<Instant> {
        let holds = |outage: &&Outage| outage.direction == direction && outage.from <= now && now < outage.to;
        self.outages.iter().filter(holds).map(|outage| outage.to).max()
    }
}

/// What the threads of a relay share.
struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
    tallies: [Tally; 2],
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    fn tally(&self, direction: Direction) -> &Tally {
        &self.tallies[usize::from(direction == Direction::ToClient)]
    }

    fn is_closing(&self) -> bool {
        self.state().closing
    }

    /// The fate of the next packet of a direction, with its number.
    fn next(&self, direction: Direction) -> (u64, Fate) {
        let number = self.tally(direction).came.fetch_add(1, Ordering::Relaxed);
        (number, self.state().link.fate(direction, number))
    }

    fn rate(&self, direction: Direction) -> Option<u32> {
        self.state().link.path(direction).rate
    }

    fn is_cut(&self, direction: Direction) -> bool {
        self.state().cut_until(direction, Instant::now()).is_some()
    }

    /// Waits until `ready` says `Ok`; `ready` is asked at every change and whenever the time comes that it names. False once
    /// the relay closes.
    fn wait(&self, mut ready: impl FnMut(&State, Instant) -> Result<(), Instant>) -> bool {
        let mut state = self.state();
        loop {
            if state.closing {
                return false;
            }
            let now = Instant::now();
            let Err(until) = ready(&state, now) else { return true };
            let left = until.saturating_duration_since(now);
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The counters of one direction.
#[derive(Default)]
struct Tally {
    came: AtomicU64,
    left: AtomicU64,
    lost: AtomicU64,
    cut: AtomicU64,
    delayed: AtomicU64,
    duplicated: AtomicU64,
    reordered: AtomicU64,
    split: AtomicU64,
}

impl Tally {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            came: of(&self.came),
            left: of(&self.left),
            lost: of(&self.lost),
            cut: of(&self.cut),
            delayed: of(&self.delayed),
            duplicated: of(&self.duplicated),
            reordered: of(&self.reordered),
            split: of(&self.split),
        }
    }
}
