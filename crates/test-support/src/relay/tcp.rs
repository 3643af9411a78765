//! The relay of streams: it delays and divides what it carries, pauses as TCP does before it sends something again, and holds
//! everything back during an outage, also the end of a connection.
//!
//! Each direction of a connection has a thread that reads and one that writes, with a bounded queue between them. During an
//! outage nothing is read, so that the sender's buffers fill as they do where acknowledgements do not come.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::{Direction, Shared, Tally};

/// Largest piece, in bytes.
const PIECE: usize = 16 << 10;
/// The largest number of pieces on their way in one direction of a connection.
const MOST_ON_THEIR_WAY: usize = 64;
/// Receive buffers of the relay, in bytes: what they take no longer counts as unsent for the sender.
const BUFFER: usize = 64 << 10;
/// Minimum retransmission timeout of Linux.
const SENT_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// The largest number of connections at a time; further ones are closed at once.
const MOST_CONNECTIONS: usize = 64;
/// Interval at which it is looked whether both halves of a connection are over.
const LOOK: Duration = Duration::from_millis(50);
/// Pending connections.
const BACKLOG: i32 = 64;

/// A piece of a stream and when it is due, or its end.
enum Piece {
    Bytes { due: Instant, bytes: Vec<u8>, at: usize },
    End,
}

/// Starts the thread that accepts; returns the address for clients.
pub(super) fn start(listen: SocketAddr, shared: &Arc<Shared>) -> (SocketAddr, Vec<JoinHandle<()>>) {
    let listener = socket(listen)
        .and_then(|socket| {
            socket.set_reuse_address(true)?;
            socket.bind(&listen.into())?;
            socket.listen(BACKLOG)?;
            Ok(TcpListener::from(socket))
        })
        .expect("the address is this machine's");
    let address = listener.local_addr().expect("it is bound");
    let shared = Arc::clone(shared);
    (address, vec![thread::spawn(move || accept(&listener, &shared))])
}

/// A socket whose receive buffer, and that of connections it accepts, is small.
fn socket(to: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_recv_buffer_size(BUFFER)?;
    Ok(socket)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut connections: Vec<JoinHandle<()>> = Vec::new();
    for client in listener.incoming() {
        if shared.is_closing() {
            break;
        }
        connections.retain(|connection| !connection.is_finished());
        let Ok(client) = client else { continue };
        if connections.len() < MOST_CONNECTIONS {
            let shared = Arc::clone(shared);
            connections.push(thread::spawn(move || relay(&client, &shared)));
        }
    }
    for connection in connections {
        // A panic of the thread was printed already.
        let _ = connection.join();
    }
}

/// Carries one connection until both directions have ended, or the relay closes.
fn relay(client: &TcpStream, shared: &Arc<Shared>) {
    let breaks = shared.state().breaks;
    // What connects needs the way to the target too.
    if !passable(shared, Direction::ToTarget) {
        return;
    }
    let connected = socket(shared.target).and_then(|socket| {
        socket.connect(&shared.target.into())?;
        Ok(TcpStream::from(socket))
    });
    let Ok(target) = connected else { return };
    // Errors show when the stream is used.
    let _ = (client.set_nodelay(true), target.set_nodelay(true));
    let (over, ended) = sync_channel::<()>(2);
    let ways = [(client, &target, Direction::ToTarget), (&target, client, Direction::ToClient)];
    thread::scope(|scope| {
        for (from, to, direction) in ways {
            let (sender, queue) = sync_channel(MOST_ON_THEIR_WAY);
            scope.spawn(move || read(from, &sender, shared, direction));
            let over = over.clone();
            scope.spawn(move || {
                write(&queue, to, shared, direction);
                // Closes half, unless writing failed: then the other half is of no use either.
                let _ = to.shutdown(Shutdown::Write);
                // The receiver counts to two.
                let _ = over.send(());
            });
        }
        drop(over);
        // Ends all waits of these threads when both halves are over, or the relay closes or breaks its connections.
        let mut halves = 2;
        shared.wait(|state, now| {
            halves -= ended.try_iter().count();
            if halves == 0 || state.breaks > breaks { Ok(()) } else { Err(now + LOOK) }
        });
        // They may be closed already.
        let _ = (client.shutdown(Shutdown::Both), target.shutdown(Shutdown::Both));
    });
}

/// Waits while a direction is cut; false once the relay closes.
fn passable(shared: &Shared, direction: Direction) -> bool {
    shared.wait(|state, now| state.cut_until(direction, now).map_or(Ok(()), Err))
}

fn read(mut from: &TcpStream, sender: &SyncSender<Piece>, shared: &Shared, direction: Direction) {
    let tally = shared.tally(direction);
    let mut buffer = vec![0; PIECE];
    // When the link has sent what it was given, and when that has arrived.
    let (mut free, mut arrived) = (Instant::now(), Instant::now());
    while passable(shared, direction) {
        let Ok(len @ 1..) = from.read(&mut buffer) else { break };
        let (_, fate) = shared.next(direction);
        let mut sent = Instant::now();
        if let Some(rate) = shared.rate(direction) {
            sent = free.max(sent) + Duration::from_secs_f64(len as f64 / f64::from(rate));
            free = sent;
        }
        let mut due = sent + fate.delay;
        if fate.delay > Duration::ZERO {
            Tally::add(&tally.delayed);
        }
        if fate.lost {
            Tally::add(&tally.lost);
            due += SENT_AGAIN_AFTER;
        }
        // What comes later arrives later.
        arrived = due.max(arrived);
        let at = (len as f64 * fate.split).floor();
        // A position within the piece.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to the length")]
        let at = at as usize;
        let piece = Piece::Bytes { due: arrived, bytes: buffer[..len].to_vec(), at };
        if sender.send(piece).is_err() {
            return;
        }
    }
    // The writer may have ended.
    let _ = sender.send(Piece::End);
}

fn write(queue: &Receiver<Piece>, mut to: &TcpStream, shared: &Shared, direction: Direction) {
    let tally = shared.tally(direction);
    for piece in queue {
        let Piece::Bytes { due, bytes, at } = piece else {
            // The end is held back too.
            passable(shared, direction);
            return;
        };
        if !shared.wait(|_, now| if due <= now { Ok(()) } else { Err(due) }) {
            return;
        }
        if shared.is_cut(direction) {
            Tally::add(&tally.cut);
            if !passable(shared, direction) {
                return;
            }
        }
        let (first, second) = bytes.split_at(at);
        if to.write_all(first).and_then(|()| to.write_all(second)).is_err() {
            return;
        }
        Tally::add(&tally.left);
        if !first.is_empty() && !second.is_empty() {
            Tally::add(&tally.split);
        }
    }
}
