//! The seam to the distributed engine: all that this crate asks of it, and the only file that names it.
//!
//! A [`Link`] is one session: it listens (and routes between those who connect) or connects. Beneath is
//! [zenoh](https://zenoh.io), set up so that one bad peer costs nobody else anything: leases of a few seconds, small
//! messages, no discovery. Another engine would have to offer the same: tokens that vanish with their process, requests
//! whose end is noticed, priorities, mutual TLS.
//!
//! Invariant: callbacks only hand over what arrived; whoever sends may be made to wait for a slow peer, at most
//! [`WAIT_BEFORE_CLOSE`], after which the connection to that peer is closed.

use std::any::Any;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use zenoh::bytes::ZBytes;
use zenoh::key_expr::KeyExpr;
use zenoh::qos::{CongestionControl, Priority};
use zenoh::query::{ConsolidationMode, Query, QueryTarget, Reply};
use zenoh::sample::SampleKind;
use zenoh::{Session, Wait};

use super::endpoint::{Endpoint, Security};
use super::wire::{self, Answer, MAX_CHUNK_BYTES, MAX_HEADER_BYTES, WireError};
use crate::error::{Error, Result};

/// After so long without a word a connection is dead.
pub(super) const LEASE: Duration = Duration::from_secs(4);
/// A message that a peer does not take for so long closes the connection to it. Below the lease.
pub(super) const WAIT_BEFORE_CLOSE: Duration = Duration::from_secs(3);
/// Of the system, for each connection: what is in it can no longer be overtaken by something more urgent.
const SEND_BUFFER_BYTES: usize = 256 << 10;
/// Longer messages are not even put together.
const MAX_MESSAGE_BYTES: usize = MAX_CHUNK_BYTES + MAX_HEADER_BYTES + (64 << 10);
/// Connections that one side holds.
const MAX_SESSIONS: usize = 4096;
/// How long closing may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// The threads that send and receive: with one sender, a peer that takes nothing would hold up all others. zenoh reads
/// this variable when the first session is opened; the `fcdcc` command sets it, other programs may.
pub const RUNTIME_VARIABLE: (&str, &str) =
    ("ZENOH_RUNTIME", "(tx:(worker_threads:16),rx:(worker_threads:4))");

/// What a link does.
#[derive(Clone, Debug)]
pub(super) enum Side {
    /// Waits for others, and routes between them.
    Listen(Vec<Endpoint>),
    /// Connects to one that listens, and again whenever the connection breaks.
    Connect(Endpoint),
}

/// What the holder of a certificate may do with some keys, over a link that listens. Everything else is denied: a message
/// passes where one of `keys` includes its key as a whole, wildcards too.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    /// Common name of the certificate.
    pub(super) holder: String,
    pub(super) keys: Vec<String>,
    pub(super) role: Role,
}

/// Roles; each is a list of messages that may come from the holder, and one of those that may go to it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Role {
    /// Be there, and answer.
    Serve,
    /// Ask, tell, and see who is there.
    Use,
    /// See who is there, and ask.
    View,
    /// Be asked, with questions to all at once.
    Asked,
    /// Be there.
    Announce,
}

impl Role {
    fn messages(self) -> [&'static [&'static str]; 2] {
        const SEE: [&str; 2] = ["reply", "liveliness_token"];
        match self {
            Self::Serve => {
                [&["liveliness_token", "declare_queryable", "declare_subscriber", "reply"], &["query", "put"]]
            }
            Self::Use => [&["query", "put", "liveliness_query", "declare_liveliness_subscriber"], &SEE],
            Self::View => [&["query", "liveliness_query", "declare_liveliness_subscriber"], &SEE],
            Self::Asked => [&[], &["query"]],
            Self::Announce => [&["liveliness_token"], &[]],
        }
    }
}

/// How urgent a message is, and whether more may follow in its batch.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lane {
    /// Cancellations, questions.
    Control,
    /// Tasks and their results.
    Task,
    /// Slabs.
    Data,
    /// Filters.
    Background,
}

/// Bulk data of a message.
pub(super) struct Payload(ZBytes);

/// One link to listen on all endpoints, and one for each to connect to.
pub(super) fn sides(listen: &[Endpoint], connect: &[Endpoint]) -> Vec<Side> {
    let own = (!listen.is_empty()).then(|| Side::Listen(listen.to_vec()));
    own.into_iter().chain(connect.iter().cloned().map(Side::Connect)).collect()
}

/// What comes back for a request.
pub(super) enum Said {
    /// An answer.
    Answer(Answer, Payload),
    /// Something that is none, or the engine's own error.
    Garbage(String),
}

/// A request that arrived. It is answered by [`Incoming::answer`], as often as needed, and over when it is dropped.
pub(super) struct Incoming {
    query: Query,
    /// Under which it is answered: that of the request may have wildcards, which only its asker may say.
    key: KeyExpr<'static>,
    /// The header as it came.
    pub(super) header: Vec<u8>,
    /// The payload.
    pub(super) payload: Payload,
}

pub(super) struct Link {
    session: Session,
    /// Where it listens or connects, readable.
    place: String,
    /// Tokens and whatever else lasts as long as the link.
    kept: Mutex<Vec<Box<dyn Any + Send>>>,
}

impl Payload {
    pub(super) fn empty() -> Self {
        Self(ZBytes::default())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// CRC-32 of all of it.
    pub(super) fn crc(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        self.0.slices().for_each(|slice| hasher.update(slice));
        hasher.finalize()
    }

    /// Copies all of it to the start of `to`, which is long enough.
    pub(super) fn copy_to(&self, to: &mut [u8]) {
        let mut at = 0;
        for slice in self.0.slices() {
            to[at..at + slice.len()].copy_from_slice(slice);
            at += slice.len();
        }
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self(bytes.into())
    }
}

impl Incoming {
    /// Sends an answer; waits for a slow asker, at most [`WAIT_BEFORE_CLOSE`].
    pub(super) fn answer(&self, answer: &Answer, payload: Payload) -> std::result::Result<(), String> {
        let reply = self.query.reply(self.key.clone(), payload.0).attachment(wire::pack(answer));
        reply.wait().map_err(|e| e.to_string())
    }
}

impl Lane {
    fn priority(self) -> Priority {
        match self {
            Self::Control => Priority::InteractiveHigh,
            Self::Task => Priority::DataHigh,
            Self::Data => Priority::Data,
            Self::Background => Priority::Background,
        }
    }
}

impl Link {
    /// Opens a session. One that connects does so in the background, and keeps trying; with `patience` it is an error
    /// not to be connected after so long.
    pub(super) fn open(
        side: &Side,
        security: &Security,
        access: Option<&[Grant]>,
        patience: Option<Duration>,
    ) -> Result<Self> {
        let place = match side {
            Side::Listen(endpoints) => locators(endpoints, security).join(", "),
            Side::Connect(endpoint) => endpoint.locator(security),
        };
        let failed = |error: zenoh::Error| Error::Unavailable {
            what: format!("the cluster at {place} ({})", brief(&error.to_string())),
            mend: match side {
                Side::Listen(_) => "is the address this machine's, and the port free?".to_owned(),
                Side::Connect(_) => {
                    "is the other side running, and do both use certificates or both none?".to_owned()
                }
            },
        };
        let config = config(side, security, access, patience).map_err(&failed)?;
        let session = zenoh::open(config).wait().map_err(&failed)?;
        Ok(Self { session, place, kept: Mutex::default() })
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    fn keep(&self, what: impl Any + Send) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(what));
    }

    /// Lets everybody see `key` for as long as the link lives.
    pub(super) fn announce(&self, key: &str) -> Result<()> {
        let token = self.session.liveliness().declare_token(key.to_owned()).wait();
        self.keep(token.map_err(|e| self.error(e))?);
        Ok(())
    }

    /// Takes back what it announced.
    pub(super) fn withdraw(&self) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Calls `seen` with every key like `keys` that is or becomes visible (true) or vanishes (false).
    pub(super) fn watch(&self, keys: &str, seen: impl Fn(&str, bool) + Send + Sync + 'static) -> Result<()> {
        let watcher = self
            .session
            .liveliness()
            .declare_subscriber(keys.to_owned())
            .history(true)
            .callback(move |sample| seen(sample.key_expr().as_str(), sample.kind() == SampleKind::Put))
            .wait();
        self.keep(watcher.map_err(|e| self.error(e))?);
        Ok(())
    }

    /// Calls `arrived` with every request for `key`.
    pub(super) fn serve(&self, key: &str, arrived: impl Fn(Incoming) + Send + Sync + 'static) -> Result<()> {
        let key = KeyExpr::new(key.to_owned()).map_err(|e| self.error(e))?;
        let own = key.clone();
        let served = self
            .session
            .declare_queryable(key)
            .callback(move |query| {
                let header = query.attachment().map(|a| a.to_bytes().into_owned()).unwrap_or_default();
                let payload = Payload(query.payload().cloned().unwrap_or_default());
                arrived(Incoming { query, key: own.clone(), header, payload });
            })
            .wait();
        self.keep(served.map_err(|e| self.error(e))?);
        Ok(())
    }

    /// Calls `heard` with every header that is told under `key`.
    pub(super) fn hear(&self, key: &str, heard: impl Fn(Vec<u8>) + Send + Sync + 'static) -> Result<()> {
        let heard = self
            .session
            .declare_subscriber(key.to_owned())
            .callback(move |sample| heard(sample.payload().to_bytes().into_owned()))
            .wait();
        self.keep(heard.map_err(|e| self.error(e))?);
        Ok(())
    }

    /// Says something that needs no answer.
    pub(super) fn tell(&self, key: &str, header: Vec<u8>) -> Result<()> {
        self.session
            .put(key.to_owned(), header)
            .priority(Priority::InteractiveHigh)
            .congestion_control(CongestionControl::Block)
            .express(true)
            .wait()
            .map_err(|e| self.error(e))
    }

    /// Asks whoever serves `key`. `said` is called with each answer, and dropped when there will be no more: the other
    /// side is done with the request, is gone, or `limit` is over.
    pub(super) fn ask(
        &self,
        key: &str,
        header: Vec<u8>,
        payload: Payload,
        lane: Lane,
        limit: Duration,
        said: impl Fn(Said) + Send + Sync + 'static,
    ) -> Result<()> {
        self.session
            .get(key.to_owned())
            .attachment(header)
            .payload(payload.0)
            .target(QueryTarget::All)
            .consolidation(ConsolidationMode::None)
            .congestion_control(CongestionControl::Block)
            .priority(lane.priority())
            .express(true)
            .timeout(limit)
            .callback(move |reply| said(understood(reply)))
            .wait()
            .map_err(|e| self.error(e))
    }

    fn error(&self, error: zenoh::Error) -> Error {
        Error::Unavailable {
            what: format!("the cluster at {} ({})", self.place, brief(&error.to_string())),
            mend: "is the network up?".to_owned(),
        }
    }
}

impl Drop for Link {
    /// Closes the session on a thread of its own: a peer that takes nothing holds that up, but not the caller for long.
    fn drop(&mut self) {
        self.withdraw();
        let session = self.session.clone();
        let (done, closed) = std::sync::mpsc::channel();
        let closer = std::thread::Builder::new().name("fcdcc close".to_owned());
        let spawned = closer.spawn(move || {
            let result = session.close().wait();
            // The one who waits may have given up.
            let _ = done.send(result.is_ok());
        });
        if spawned.is_ok() && closed.recv_timeout(CLOSE_LIMIT).is_err() {
            tracing::warn!(place = self.place, "the session did not close in {CLOSE_LIMIT:?}");
        }
    }
}

fn understood(reply: Reply) -> Said {
    match reply.into_result() {
        Err(error) => {
            let text = error.payload().try_to_string();
            Said::Garbage(brief(text.as_deref().unwrap_or("an unreadable error")))
        }
        Ok(sample) => {
            let header = sample.attachment().map(ZBytes::to_bytes).unwrap_or_default();
            match wire::unpack(&header) {
                Ok(answer) => Said::Answer(answer, Payload(sample.payload().clone())),
                Err(error @ (WireError::Malformed(_) | WireError::Version { .. })) => {
                    Said::Garbage(error.to_string())
                }
            }
        }
    }
}

fn locators(endpoints: &[Endpoint], security: &Security) -> Vec<String> {
    endpoints.iter().map(|endpoint| endpoint.locator(security)).collect()
}

/// The first sentence of what an error of the engine says, without its source positions.
fn brief(text: &str) -> String {
    let first = text.split(" at /").next().unwrap_or(text);
    let first = first.split(" - ").next().unwrap_or(first);
    wire::clipped(first.trim().trim_end_matches('.'))
}

fn config(
    side: &Side,
    security: &Security,
    access: Option<&[Grant]>,
    patience: Option<Duration>,
) -> std::result::Result<zenoh::Config, zenoh::Error> {
    let mut config = zenoh::Config::default();
    let mut set = |key: &str, value: serde_json::Value| config.insert_json5(key, &value.to_string());
    let buffered = |locator: String| format!("{locator}#so_sndbuf={SEND_BUFFER_BYTES}");
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
            let limit = patience.map_or(-1, |limit| i64::try_from(limit.as_millis()).unwrap_or(i64::MAX));
            set("connect/timeout_ms", json!(limit))?;
            set("connect/exit_on_failure", json!(patience.is_some()))?;
            let retry = json!({"period_init_ms": 200, "period_max_ms": 1000, "period_increase_factor": 2});
            set("connect/retry", retry)?;
        }
    }
    // Nobody is found by chance: two clusters on one network stay two.
    set("scouting/multicast/enabled", json!(false))?;
    set("scouting/gossip/enabled", json!(false))?;
    set("scouting/delay", json!(0))?;
    set("transport/link/tx/lease", json!(LEASE.as_millis() as u64))?;
    set("transport/link/tx/keep_alive", json!(4))?;
    let wait = WAIT_BEFORE_CLOSE.as_micros() as u64;
    set("transport/link/tx/queue/congestion_control/block/wait_before_close", json!(wait))?;
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

/// Default deny, and for each grant a rule for each direction.
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
        subjects.push(json!({"id": subject, "cert_common_names": [grant.holder]}));
        policies.push(json!({"rules": own, "subjects": [subject]}));
    }
    json!({
        "enabled": true, "default_permission": "deny", "rules": rules, "subjects": subjects, "policies": policies,
    })
}
