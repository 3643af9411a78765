//! The relay of datagrams: it loses, delays, repeats and reorders them.
//!
//! Each client has a socket towards the target, as behind an address translation. One thread sends everything when it is due.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Direction, Shared, Tally};

/// The largest number of datagrams on their way; further ones are lost.
const MOST_ON_THEIR_WAY: usize = 8192;
/// The longest time that datagrams wait for a rate; those that would wait longer are lost.
const MOST_QUEUED: Duration = Duration::from_millis(250);
/// The largest number of clients; of further ones, the longest silent is forgotten.
const MOST_CLIENTS: usize = 64;
/// Interval at which threads that wait for datagrams look whether the relay closes.
const LOOK: Duration = Duration::from_millis(50);
/// Largest datagram.
const MOST_BYTES: usize = 64 << 10;

/// A client, and the socket that stands for it before the target.
struct Client {
    address: SocketAddr,
    socket: UdpSocket,
    last: Mutex<Instant>,
    forgotten: AtomicBool,
}

/// A datagram on its way, ordered by the time at which it is due.
struct OnItsWay {
    due: Instant,
    /// Breaks ties.
    order: u64,
    number: u64,
    direction: Direction,
    client: Arc<Client>,
    bytes: Arc<[u8]>,
}

impl PartialEq for OnItsWay {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for OnItsWay {}

impl PartialOrd for OnItsWay {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for OnItsWay {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

#[derive(Default)]
struct Queue {
    heap: BinaryHeap<Reverse<OnItsWay>>,
    taken: u64,
    /// When the link of each direction has sent what it was given.
    free: [Option<Instant>; 2],
}

struct Post {
    shared: Arc<Shared>,
    /// The socket that clients know.
    front: UdpSocket,
    queue: Mutex<Queue>,
    queued: Condvar,
}

/// Starts the threads; returns the address for clients.
pub(super) fn start(listen: SocketAddr, shared: &Arc<Shared>) -> (SocketAddr, Vec<JoinHandle<()>>) {
    let front = UdpSocket::bind(listen).expect("the address is this machine's");
    front.set_read_timeout(Some(LOOK)).expect("a time above zero");
    let address = front.local_addr().expect("it is bound");
    let post =
        Arc::new(Post { shared: Arc::clone(shared), front, queue: Mutex::default(), queued: Condvar::new() });
    let (sending, receiving) = (Arc::clone(&post), post);
    (address, vec![thread::spawn(move || sending.send()), thread::spawn(move || from_clients(&receiving))])
}

/// Takes the datagrams of all clients, and starts a thread for each new one.
fn from_clients(post: &Arc<Post>) {
    let mut clients: HashMap<SocketAddr, (Arc<Client>, JoinHandle<()>)> = HashMap::new();
    let mut buffer = vec![0; MOST_BYTES];
    while !post.shared.is_closing() {
        let Some((len, from)) = received(post.front.recv_from(&mut buffer)) else { continue };
        if !clients.contains_key(&from) {
            if clients.len() >= MOST_CLIENTS {
                forget_one(&mut clients);
            }
            let Some(client) = Client::new(from, post.shared.target) else { continue };
            let client = Arc::new(client);
            let (own, answering) = (Arc::clone(&client), Arc::clone(post));
            clients.insert(from, (client, thread::spawn(move || answering.answers(&own))));
        }
        let client = &clients[&from].0;
        *locked(&client.last) = Instant::now();
        post.take(Direction::ToTarget, client, &buffer[..len]);
    }
    for (_, thread) in clients.into_values() {
        // A panic of the thread was printed already.
        let _ = thread.join();
    }
}

fn forget_one(clients: &mut HashMap<SocketAddr, (Arc<Client>, JoinHandle<()>)>) {
    let silent =
        clients.values().min_by_key(|(client, _)| *locked(&client.last)).map(|(client, _)| client.address);
    if let Some((client, thread)) = silent.and_then(|address| clients.remove(&address)) {
        client.forgotten.store(true, Ordering::Relaxed);
        // It ends within `LOOK`.
        let _ = thread.join();
    }
}

/// What was received; `None` where nothing came in time, or the other side has closed its port.
fn received<R>(result: std::io::Result<R>) -> Option<R> {
    match result {
        Ok(received) => Some(received),
        Err(error) => {
            let harmless = [ErrorKind::WouldBlock, ErrorKind::TimedOut, ErrorKind::ConnectionRefused];
            if !harmless.contains(&error.kind()) {
                thread::sleep(LOOK);
            }
            None
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    fn new(address: SocketAddr, target: SocketAddr) -> Option<Self> {
        let any = if target.ip().is_loopback() { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(target).ok()?;
        socket.set_read_timeout(Some(LOOK)).ok()?;
        Some(Self { address, socket, last: Mutex::new(Instant::now()), forgotten: AtomicBool::new(false) })
    }
}

impl Post {
    /// Takes the answers of the target to one client.
    fn answers(&self, client: &Arc<Client>) {
        let mut buffer = vec![0; MOST_BYTES];
        while !self.shared.is_closing() && !client.forgotten.load(Ordering::Relaxed) {
            if let Some(len) = received(client.socket.recv(&mut buffer)) {
                self.take(Direction::ToClient, client, &buffer[..len]);
            }
        }
    }

    /// Decides about a datagram, and queues what is to arrive.
    fn take(&self, direction: Direction, client: &Arc<Client>, bytes: &[u8]) {
        let tally = self.shared.tally(direction);
        let (number, fate) = self.shared.next(direction);
        if self.shared.is_cut(direction) {
            return Tally::add(&tally.cut);
        }
        if fate.lost {
            return Tally::add(&tally.lost);
        }
        let (now, rate) = (Instant::now(), self.shared.rate(direction));
        let mut queue = locked(&self.queue);
        let free = &mut queue.free[usize::from(direction == Direction::ToClient)];
        let mut sent = now;
        if let Some(rate) = rate {
            sent = free.map_or(now, |free| free.max(now));
            if sent - now > MOST_QUEUED {
                return Tally::add(&tally.lost);
            }
            sent += Duration::from_secs_f64(bytes.len() as f64 / f64::from(rate));
            *free = Some(sent);
        }
        if queue.heap.len() >= MOST_ON_THEIR_WAY {
            return Tally::add(&tally.lost);
        }
        let bytes: Arc<[u8]> = bytes.into();
        for delay in [Some(fate.delay), fate.copy].into_iter().flatten() {
            let order = queue.taken;
            queue.taken += 1;
            let (client, bytes) = (Arc::clone(client), Arc::clone(&bytes));
            queue.heap.push(Reverse(OnItsWay { due: sent + delay, order, number, direction, client, bytes }));
        }
        drop(queue);
        if fate.delay > Duration::ZERO {
            Tally::add(&tally.delayed);
        }
        if fate.copy.is_some() {
            Tally::add(&tally.duplicated);
        }
        self.queued.notify_one();
    }

    /// Sends datagrams when they are due.
    fn send(&self) {
        let mut latest = [0; 2];
        while let Some(next) = self.next_due() {
            let OnItsWay { number, direction, client, bytes, .. } = next;
            let tally = self.shared.tally(direction);
            let latest = &mut latest[usize::from(direction == Direction::ToClient)];
            if number < *latest {
                Tally::add(&tally.reordered);
            }
            *latest = number.max(*latest);
            // What cannot be sent is lost, as on any link.
            let sent = match direction {
                Direction::ToTarget => client.socket.send(&bytes),
                Direction::ToClient => self.front.send_to(&bytes, client.address),
            };
            Tally::add(if sent.is_ok() { &tally.left } else { &tally.lost });
        }
    }

    /// The next datagram, once it is due; `None` when the relay closes.
    fn next_due(&self) -> Option<OnItsWay> {
        let mut queue = locked(&self.queue);
        loop {
            let now = Instant::now();
            let wait = match queue.heap.peek() {
                Some(Reverse(first)) if first.due <= now => {
                    return queue.heap.pop().map(|Reverse(first)| first);
                }
                Some(Reverse(first)) => (first.due - now).min(LOOK),
                None => LOOK,
            };
            queue = self.queued.wait_timeout(queue, wait).unwrap_or_else(PoisonError::into_inner).0;
            if self.shared.is_closing() {
                return None;
            }
        }
    }
}
