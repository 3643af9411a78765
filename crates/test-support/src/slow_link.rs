//! A link of limited rate between two processes, or two ends in one: a relay of TCP connections.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fcdcc::cluster::Endpoint;

/// Bytes that are passed on at once.
const PIECE: usize = 4 << 10;
/// Time that a relay which got no core may catch up.
const BEHIND: Duration = Duration::from_millis(20);

/// Relays connections from [`SlowLink::at`] to a target until it is dropped.
pub struct SlowLink {
    address: SocketAddr,
    closed: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl SlowLink {
    /// A link to `target` that carries so many bytes a second to it and from it.
    pub fn new(target: &Endpoint, to_bytes_per_s: f64, from_bytes_per_s: f64) -> Self {
        let target: SocketAddr = target.to_string().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (closed, open) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let link = Self { address, closed: Arc::clone(&closed), open: Arc::clone(&open) };
        // The threads end when the link is dropped and its connections are closed with it.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if closed.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(server) = TcpStream::connect(target) else { continue };
                for (from, to, rate) in
                    [(&client, &server, to_bytes_per_s), (&server, &client, from_bytes_per_s)]
                {
                    from.set_nodelay(true).unwrap();
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    thread::spawn(move || carry(from, to, rate));
                }
                open.lock().unwrap_or_else(PoisonError::into_inner).extend([client, server]);
            }
        });
        link
    }

    /// Where to connect to.
    pub fn at(&self) -> Endpoint {
        self.address.to_string().parse().unwrap()
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts. It may have ended already, and so may the connections.
        let _ = TcpStream::connect(self.address);
        for end in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

/// Passes everything on, at most at this rate.
fn carry(mut from: TcpStream, mut to: TcpStream, bytes_per_s: f64) {
    let (mut buffer, mut free) = ([0; PIECE], Instant::now());
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        let now = Instant::now();
        free = free.max(now.checked_sub(BEHIND).unwrap_or(now))
            + Duration::from_secs_f64(len as f64 / bytes_per_s);
        thread::sleep(free.saturating_duration_since(now));
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    // This ends the other direction too.
    let _ = to.shutdown(Shutdown::Both);
}
