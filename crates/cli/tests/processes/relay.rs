//! A relay process that simulates a long and lossy link: it delays data, sometimes holds the stream back as TCP does during
//! a retransmission, and cuts its connections on command.
//!
//! It ends when its standard input ends, at the latest with the test.

use std::io::{BufRead, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Set to two addresses `LISTEN TARGET`, it turns a test binary into a relay.
pub(crate) const VARIABLE: &str = "FCDCC_TEST_RELAY";
/// The line that cuts all connections.
pub(crate) const CUT: &str = "cut";

/// One-way delay.
const DELAY: Duration = Duration::from_millis(25);
/// One piece in this number is lost.
const LOST_EVERY: usize = 100;
/// Minimum retransmission timeout of Linux.
const REPEATED_AFTER: Duration = Duration::from_millis(200);
/// Pieces in flight in one direction.
const ON_THEIR_WAY: usize = 256;

/// Relays between `LISTEN` and `TARGET` until standard input ends.
pub(crate) fn serve(addresses: &str) {
    let (listen, target) = addresses.split_once(' ').expect("two addresses");
    let listener = TcpListener::bind(listen).expect("the address is this machine's");
    let open: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    let (accepted, target) = (Arc::clone(&open), target.to_owned());
    // This thread and those it starts end with the process.
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(&target) else { continue };
            if let Ok(ends) = both_ways(&client, &server) {
                accepted.lock().unwrap_or_else(PoisonError::into_inner).extend(ends);
            }
        }
    });
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        if line == CUT {
            for end in open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                // The connection may be closed already.
                let _ = end.shutdown(Shutdown::Both);
            }
        }
    }
}

fn both_ways(client: &TcpStream, server: &TcpStream) -> std::io::Result<[TcpStream; 2]> {
    for (from, to) in [(client, server), (server, client)] {
        from.set_nodelay(true)?;
        one_way(from.try_clone()?, to.try_clone()?);
    }
    Ok([client.try_clone()?, server.try_clone()?])
}

fn one_way(mut from: TcpStream, mut to: TcpStream) {
    let (sender, queue) = sync_channel::<(Instant, Vec<u8>)>(ON_THEIR_WAY);
    thread::spawn(move || {
        let mut buffer = [0; 16 << 10];
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            if sender.send((Instant::now() + DELAY, buffer[..len].to_vec())).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (number, (due, piece)) in queue.iter().enumerate() {
            let lost = number % LOST_EVERY == LOST_EVERY - 1;
            let repeated = if lost { REPEATED_AFTER } else { Duration::ZERO };
            thread::sleep((due + repeated).saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        // This ends the other direction too.
        let _ = to.shutdown(Shutdown::Both);
    });
}
