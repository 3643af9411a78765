//! The engine's sessions: configuration, opening, closing and reconnecting.
//!
//! Invariant: connecting in the background never blocks the caller.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use zenoh::{Session, Wait};

use super::endpoint::{Grant, Security, Side, locators};
use super::wire::{self, MAX_CHUNK_BYTES, MAX_HEADER_BYTES};
use crate::error::panic_text;

/// A connection without a message for this time is dead.
const LEASE: Duration = Duration::from_secs(4);
/// Time after which a peer that does not take a message loses its connection. Below the lease.
pub(super) const WAIT_BEFORE_CLOSE: Duration = Duration::from_secs(3);
/// Size of the system's send buffer of each connection: what it holds can no longer be overtaken by more urgent messages.
const SEND_BUFFER_BYTES: usize = 256 << 10;
/// Length of the send queue of one priority, in batches of 64 KiB.
const QUEUE_BATCHES: usize = 16;
/// Maximum message size; longer messages are not even reassembled.
const MAX_MESSAGE_BYTES: usize = MAX_CHUNK_BYTES + MAX_HEADER_BYTES + (64 << 10);
/// Maximum number of connections of one side.
const MAX_SESSIONS: usize = 4096;
/// Time limit of one attempt of the engine to connect; then it is checked whether the connection is still wanted.
pub(super) const ATTEMPT: Duration = Duration::from_secs(2);
/// Pause between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest time between two attempts to connect, in milliseconds.
const RETRY_MS: u64 = 250;
/// Maximum time for closing a session.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// The connection of a link, with its session while there is one. Sessions are opened in the background, since the
/// engine's own opening blocks its caller until the other side listens.
pub(super) struct Connection {
    config: zenoh::Config,
    /// Where it leads, readable.
    place: String,
    connects: bool,
    inner: Mutex<Inner>,
}

struct Inner {
    state: State,
    /// Declarations to make on each session.
    declared: Vec<Declare>,
}

enum State {
    Waiting,
    /// A session, and the declarations that last as long as it does.
    Open(Session, Vec<Kept>),
    Closed,
}

/// A token or anything else that ends when it is dropped.
pub(super) type Kept = Box<dyn Any + Send>;
pub(super) type Declare = Box<dyn Fn(&Session) -> Result<Kept, zenoh::Error> + Send + Sync>;

impl Connection {
    pub(super) fn new(config: zenoh::Config, place: String, connects: bool) -> Arc<Self> {
        let inner = Mutex::new(Inner { state: State::Waiting, declared: Vec::new() });
        Arc::new(Self { config, place, connects, inner })
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) fn connects(&self) -> bool {
        self.connects
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session, waits for it, and makes all declarations on it.
    pub(super) fn open(&self) -> Result<(), zenoh::Error> {
        // The engine panics where the system cannot start its threads.
        let opening = AssertUnwindSafe(|| zenoh::open(self.config.clone()).wait());
        let session = catch_unwind(opening).unwrap_or_else(|panic| Err(panic_text(&*panic).into()))?;
        let mut inner = self.inner();
        if matches!(inner.state, State::Waiting) {
            let mut kept = Vec::new();
            for declare in &inner.declared {
                match declare(&session) {
                    Ok(declared) => kept.push(declared),
                    Err(error) => tracing::warn!(error = brief(&error.to_string()), "not declared"),
                }
            }
            inner.state = State::Open(session, kept);
        }
        Ok(())
    }

    /// Tries to open a session in the background until that succeeds or the connection is closed.
    pub(super) fn connect_in_background(door: &Arc<Self>) -> std::io::Result<()> {
        let door = Arc::clone(door);
        let knocking = move || {
            let mut tried = false;
            while matches!(door.inner().state, State::Waiting) {
                match door.open() {
                    Ok(()) => {
                        tracing::info!(place = door.place, "connected");
                        return;
                    }
                    Err(error) if !tried => {
                        tracing::debug!(place = door.place, %error, "not connected");
                        let error = brief(&error.to_string());
                        tracing::warn!(
                            place = door.place,
                            error,
                            "not connected, trying again: is the other side running, the port open (UDP for quic/), and do \
                             both use certificates of one authority, or both none?"
                        );
                    }
                    Err(error) => tracing::debug!(place = door.place, %error, "not connected"),
                }
                tried = true;
                std::thread::sleep(PAUSE);
            }
        };
        std::thread::Builder::new().name("fcdcc connect".to_owned()).spawn(knocking).map(drop)
    }

    /// Makes a declaration now and on every later session.
    pub(super) fn declare(&self, declare: Declare) -> Result<(), zenoh::Error> {
        let mut inner = self.inner();
        if let State::Open(session, kept) = &mut inner.state {
            kept.push(declare(session)?);
        }
        inner.declared.push(declare);
        Ok(())
    }

    pub(super) fn withdraw(&self) {
        let mut inner = self.inner();
        inner.declared.clear();
        if let State::Open(_, kept) = &mut inner.state {
            kept.clear();
        }
    }

    pub(super) fn session(&self) -> Option<Session> {
        match &self.inner().state {
            State::Open(session, _) => Some(session.clone()),
            State::Waiting | State::Closed => None,
        }
    }

    /// Drops the session and connects again in the background.
    pub(super) fn renew(door: &Arc<Self>) {
        if !door.connects {
            return;
        }
        let before = {
            let mut inner = door.inner();
            match &inner.state {
                State::Open(..) => std::mem::replace(&mut inner.state, State::Waiting),
                State::Waiting | State::Closed => return,
            }
        };
        tracing::info!(place = door.place, "connecting anew");
        // Closing a session with a silent peer takes long, so it is not waited for.
        drop(end(before));
        if let Err(error) = Self::connect_in_background(door) {
            tracing::warn!(%error, "no thread to connect again");
        }
    }

    /// Closes the session and waits for that, at most `CLOSE_LIMIT`.
    pub(super) fn close(&self) {
        let state = std::mem::replace(&mut self.inner().state, State::Closed);
        if let Some(closed) = end(state)
            && closed.recv_timeout(CLOSE_LIMIT).is_err()
        {
            tracing::debug!(place = self.place, "the session did not close in {CLOSE_LIMIT:?}");
        }
    }
}

/// Ends a session on a thread of its own, since a peer that takes nothing delays it.
fn end(state: State) -> Option<std::sync::mpsc::Receiver<bool>> {
    let State::Open(session, kept) = state else { return None };
    let (done, closed) = std::sync::mpsc::channel();
    let closer = std::thread::Builder::new().name("fcdcc close".to_owned());
    let spawned = closer.spawn(move || {
        drop(kept);
        let result = session.close().wait();
        // The receiver may have stopped waiting.
        let _ = done.send(result.is_ok());
    });
    spawned.ok().map(|_| closed)
}

/// The configuration of a session.
pub(super) fn config(
    side: &Side,
    security: &Security,
    access: Option<&[Grant]>,
    patience: Duration,
) -> Result<zenoh::Config, zenoh::Error> {
    let mut config = zenoh::Config::default();
    let mut set = |key: &str, value: serde_json::Value| config.insert_json5(key, &value.to_string());
    // QUIC has buffers of its own.
    let buffered = |locator: String| {
        if locator.starts_with("tcp/") { format!("{locator}#so_sndbuf={SEND_BUFFER_BYTES}") } else { locator }
    };
    match side {
        Side::Listen(endpoints) => {
            let locators: Vec<_> = locators(endpoints, security).into_iter().map(buffered).collect();
            set("mode", json!("router"))?;
            set("listen/endpoints", json!(locators))?;
            set("listen/exit_on_failure", json!(true))?;
            set("connect/endpoints", json!([]))?;
        }
        Side::Connect(endpoint) => {
            set("mode", json!("client"))?;
            set("listen/endpoints", json!([]))?;
            set("connect/endpoints", json!([buffered(endpoint.locator(security))]))?;
            set("connect/timeout_ms", json!(patience.as_millis() as u64))?;
            set("connect/exit_on_failure", json!(true))?;
            // A quarter of a second at most, less a share that differs between processes: a master that listens waits as long
            // for its machines, and they do not all come at once.
            let most = RETRY_MS - super::random() % (RETRY_MS / 4);
            let retry =
                json!({"period_init_ms": most / 2, "period_max_ms": most, "period_increase_factor": 2});
            set("connect/retry", retry)?;
        }
    }
    // No discovery: two clusters on one network stay separate.
    set("scouting/multicast/enabled", json!(false))?;
    set("scouting/gossip/enabled", json!(false))?;
    set("scouting/delay", json!(0))?;
    set("transport/link/tx/lease", json!(LEASE.as_millis() as u64))?;
    set("transport/link/tx/keep_alive", json!(4))?;
    let wait = WAIT_BEFORE_CLOSE.as_micros() as u64;
    set("transport/link/tx/queue/congestion_control/block/wait_before_close", json!(wait))?;
    // A sender need not wait for each batch of a chunk.
    for queue in ["data", "background"] {
        set(&format!("transport/link/tx/queue/size/{queue}"), json!(QUEUE_BATCHES))?;
    }
    set("transport/link/rx/max_message_size", json!(MAX_MESSAGE_BYTES))?;
    set("transport/unicast/max_sessions", json!(MAX_SESSIONS))?;
    set("transport/unicast/accept_pending", json!(MAX_SESSIONS))?;
    if let Some(tls) = &security.tls {
        let files = [
            ("root_ca_certificate", &tls.ca),
            ("listen_certificate", &tls.certificate),
            ("listen_private_key", &tls.key),
            ("connect_certificate", &tls.certificate),
            ("connect_private_key", &tls.key),
        ];
        for (key, path) in files {
            set(&format!("transport/link/tls/{key}"), json!(path))?;
        }
        set("transport/link/tls/enable_mtls", json!(true))?;
    }
    if let Some(access) = access {
        set("access_control", rules(access))?;
    }
    Ok(config)
}

/// Access rules: deny by default, and one rule for each grant and direction.
fn rules(grants: &[Grant]) -> serde_json::Value {
    let (mut rules, mut subjects, mut policies) = (Vec::new(), Vec::new(), Vec::new());
    for (index, grant) in grants.iter().enumerate() {
        let mut own = Vec::new();
        for (flow, messages) in ["ingress", "egress"].into_iter().zip(grant.role.messages()) {
            if !messages.is_empty() {
                let id = format!("{flow}-{index}");
                rules.push(json!({
                    "id": id, "messages": messages, "flows": [flow], "permission": "allow", "key_exprs": grant.keys,
                }));
                own.push(id);
            }
        }
        let subject = format!("holder-{index}");
        subjects.push(match &grant.holder {
            Some(holder) => json!({"id": subject, "cert_common_names": [holder]}),
            None => json!({"id": subject}),
        });
        policies.push(json!({"rules": own, "subjects": [subject]}));
    }
    json!({
        "enabled": true, "default_permission": "deny", "rules": rules, "subjects": subjects, "policies": policies,
    })
}

/// The first sentence of an error of the engine, without its source positions.
pub(super) fn brief(text: &str) -> String {
    if text.contains("Unable to connect") {
        return "no connection could be made".to_owned();
    }
    let first = text.split(" at /").next().unwrap_or(text);
    let first = first.split(" - ").next().unwrap_or(first);
    wire::clipped(first.trim().trim_end_matches('.'))
}
