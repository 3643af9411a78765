//! The interface to the distributed engine: all that this crate needs from it. Only this file and `session` name the engine.
//!
//! A [`Link`] is one session: it listens (and routes between its peers) or connects. The engine is
//! [zenoh](https://zenoh.io), configured so that one bad peer does not affect others: leases of a few seconds, small
//! messages, no discovery. Another engine would have to offer the same: tokens that vanish with their process, requests
//! that report their end, priorities, mutual TLS.
//!
//! Invariant: callbacks only hand over what arrived. A sender may have to wait for a slow peer, at most
//! [`WAIT_BEFORE_CLOSE`](super::session::WAIT_BEFORE_CLOSE), after which the connection to that peer is closed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use zenoh::bytes::ZBytes;
use zenoh::key_expr::KeyExpr;
use zenoh::qos::{CongestionControl, Priority};
use zenoh::query::{ConsolidationMode, Query, QueryTarget, Reply};
use zenoh::sample::SampleKind;
use zenoh::{Session, Wait};

use super::endpoint::{Grant, Security, Side};
use super::session::{ATTEMPT, Connection, Kept, brief, config};
use super::wire::{self, Answer, WireError};
use crate::array::Values;
use crate::error::{Error, Result};

/// The number of threads that send and receive: with one sender, a peer that takes nothing would block all others. zenoh
/// reads this variable when the first session is opened. The `fcdcc` command sets it; other programs may.
pub const RUNTIME_VARIABLE: (&str, &str) =
    ("ZENOH_RUNTIME", "(tx:(worker_threads:16),rx:(worker_threads:4),net:(worker_threads:4))");

/// The urgency of a message, and whether more may follow in its batch.
#[derive(Clone, Copy, Debug)]
pub(super) enum TrafficClass {
    /// Questions that are repeated if no answer comes.
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

/// A response to a request.
pub(super) enum Response {
    /// An answer.
    Answer(Answer, Payload),
    /// A message that is not a valid answer.
    Garbage(String),
    /// The engine reports that no answer came in time.
    Nothing(String),
}

/// A request that arrived. [`Incoming::answer`] may be called several times; dropping it ends the request.
pub(super) struct Incoming {
    query: Query,
    /// The key to answer under. The key of the request may contain wildcards, which only the requester may use.
    key: KeyExpr<'static>,
    /// The header, not yet decoded.
    pub(super) header: Vec<u8>,
    /// The payload.
    pub(super) payload: Payload,
}

pub(super) struct Link {
    door: Arc<Connection>,
}

impl Payload {
    pub(super) fn empty() -> Self {
        Self(ZBytes::default())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// A payload that arrives in these pieces.
    #[cfg(test)]
    pub(super) fn in_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut writer = ZBytes::writer();
        for part in parts {
            writer.append(part.to_vec().into());
        }
        Self(writer.finish())
    }

    /// CRC-32 of the payload.
    pub(super) fn crc(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        self.0.slices().for_each(|slice| hasher.update(slice));
        hasher.finalize()
    }

    /// Passes the bytes to `take` piece by piece, in order.
    pub(super) fn each(&self, mut take: impl FnMut(&[u8])) {
        for slice in self.0.slices() {
            take(slice);
        }
    }

    /// Copies the payload to the start of `to`, which is long enough. Returns its CRC-32, computed piece by piece while each
    /// piece is in the cache.
    pub(super) fn copy_and_check(&self, to: &mut [u8]) -> u32 {
        let (mut hasher, mut at) = (crc32fast::Hasher::new(), 0);
        for slice in self.0.slices() {
            hasher.update(slice);
            to[at..at + slice.len()].copy_from_slice(slice);
            at += slice.len();
        }
        hasher.finalize()
    }
}

/// Allows a buffer of elements to be sent without copying it.
struct Elements(Values);

impl AsRef<[u8]> for Elements {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// The elements as bytes to send.
pub(super) fn bytes_of(values: Values) -> Bytes {
    Bytes::from_owner(Elements(values))
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
    /// Sends an answer; waits for a slow requester, at most [`WAIT_BEFORE_CLOSE`](super::session::WAIT_BEFORE_CLOSE).
    pub(super) fn answer(&self, answer: &Answer, payload: Payload) -> std::result::Result<(), String> {
        let reply = self.query.reply(self.key.clone(), payload.0).attachment(wire::pack(answer));
        reply.wait().map_err(|e| e.to_string())
    }
}

impl TrafficClass {
    fn priority(self) -> Priority {
        match self {
            // Of no other message: see `congestion_control`.
            Self::Control => Priority::RealTime,
            Self::Task => Priority::DataHigh,
            Self::Data => Priority::Data,
            Self::Background => Priority::Background,
        }
    }

    /// Drops messages that are repeated anyway where a peer takes nothing; a router would otherwise wait for that peer.
    ///
    /// The engine has a queue for each peer and priority, and a message that waits for its peer holds the lock of the queue,
    /// also against messages that may be dropped. The latter therefore have a priority of their own: one thread asks all
    /// machines, and must not wait for one of them.
    fn congestion_control(self) -> CongestionControl {
        match self {
            Self::Control => CongestionControl::Drop,
            Self::Task | Self::Data | Self::Background => CongestionControl::Block,
        }
    }
}

impl Link {
    /// Opens a session. A connecting session does so in the background and keeps trying; declarations are made once it is
    /// connected. With `patience`, not being connected by then is an error.
    pub(super) fn open(
        side: &Side,
        security: &Security,
        access: Option<&[Grant]>,
        patience: Option<Duration>,
    ) -> Result<Self> {
        let place = side.place(security);
        let failed = |error: zenoh::Error| Error::Unavailable {
            what: format!("the cluster at {place} ({})", brief(&error.to_string())),
            help: match side {
                _ if error.to_string().contains("thread") => {
                    "allow this process more threads (ulimit -u, the pids.max of its cgroup)".into()
                }
                Side::Listen(_) => "is the address this machine's, and the port free?".into(),
                Side::Connect(_) => {
                    "is the other side running, and do both use certificates or both none?".into()
                }
            },
        };
        let config = config(side, security, access, patience.unwrap_or(ATTEMPT)).map_err(&failed)?;
        let connects = matches!(side, Side::Connect(_));
        let door = Connection::new(config, place.clone(), connects);
        if connects && patience.is_none() {
            Connection::connect_in_background(&door).map_err(|e| failed(e.into()))?;
        } else {
            door.open().map_err(&failed)?;
        }
        Ok(Self { door })
    }

    pub(super) fn place(&self) -> &str {
        self.door.place()
    }

    /// Whether this side initiates the connection.
    pub(super) fn connects(&self) -> bool {
        self.door.connects()
    }

    /// Drops the connection and makes another under a new identity; everything is declared again. Has no effect on links
    /// that listen or are not connected.
    ///
    /// The engine restores broken connections by itself. But the other side may still be about to forget the old connection,
    /// and then forgets the new one with it.
    pub(super) fn renew(&self) {
        Connection::renew(&self.door);
    }

    fn declare(
        &self,
        declare: impl Fn(&Session) -> std::result::Result<Kept, zenoh::Error> + Send + Sync + 'static,
    ) -> Result<()> {
        self.door.declare(Box::new(declare)).map_err(|e| self.error(e))
    }

    fn session(&self) -> Result<Session> {
        self.door.session().ok_or_else(|| Error::Unavailable {
            what: format!("the cluster at {} (no connection)", self.place()),
            help: "is the other side running, and do both use certificates or both none?".into(),
        })
    }

    /// Makes `key` visible to all peers while the link lives.
    pub(super) fn announce(&self, key: &str) -> Result<()> {
        let key = key.to_owned();
        self.declare(move |session| {
            let token = session.liveliness().declare_token(key.clone()).wait()?;
            Ok(Box::new(token))
        })
    }

    /// Withdraws everything that was declared.
    pub(super) fn withdraw(&self) {
        self.door.withdraw();
    }

    /// Ends the link, and waits a while for the other side to be notified.
    pub(super) fn close(&self) {
        self.door.close();
    }

    /// Calls `seen` for every key that matches `keys`: with true when it is or becomes visible, with false when it vanishes.
    pub(super) fn watch(&self, keys: &str, seen: impl Fn(&str, bool) + Send + Sync + 'static) -> Result<()> {
        let (keys, seen) = (keys.to_owned(), Arc::new(seen));
        self.declare(move |session| {
            let seen = Arc::clone(&seen);
            let watcher = session
                .liveliness()
                .declare_subscriber(keys.clone())
                .history(true)
                .callback(move |sample| seen(sample.key_expr().as_str(), sample.kind() == SampleKind::Put))
                .wait()?;
            Ok(Box::new(watcher))
        })
    }

    /// Calls `arrived` with every request for `key`.
    pub(super) fn serve(&self, key: &str, arrived: impl Fn(Incoming) + Send + Sync + 'static) -> Result<()> {
        let (key, arrived) = (key.to_owned(), Arc::new(arrived));
        self.declare(move |session| {
            let arrived = Arc::clone(&arrived);
            let key = KeyExpr::new(key.clone())?;
            let own = key.clone();
            let served = session
                .declare_queryable(key)
                .callback(move |query| {
                    let header = query.attachment().map(|a| a.to_bytes().into_owned()).unwrap_or_default();
                    let payload = Payload(query.payload().cloned().unwrap_or_default());
                    arrived(Incoming { query, key: own.clone(), header, payload });
                })
                .wait()?;
            Ok(Box::new(served))
        })
    }

    /// Calls `heard` with every header that is published under `key`.
    pub(super) fn hear(&self, key: &str, heard: impl Fn(Vec<u8>) + Send + Sync + 'static) -> Result<()> {
        let (key, heard) = (key.to_owned(), Arc::new(heard));
        self.declare(move |session| {
            let heard = Arc::clone(&heard);
            let heard = session
                .declare_subscriber(key.clone())
                .callback(move |sample| heard(sample.payload().to_bytes().into_owned()))
                .wait()?;
            Ok(Box::new(heard))
        })
    }

    /// Publishes a message that needs no answer.
    pub(super) fn tell(&self, key: &str, header: Vec<u8>) -> Result<()> {
        self.session()?
            .put(key.to_owned(), header)
            .priority(Priority::InteractiveHigh)
            .congestion_control(CongestionControl::Block)
            .express(true)
            .wait()
            .map_err(|e| self.error(e))
    }

    /// Sends a request to all that serve `key`. `said` is called with each response, and dropped when there will be no more:
    /// the other side has finished the request, is gone, or `limit` has passed.
    pub(super) fn ask(
        &self,
        key: &str,
        header: Vec<u8>,
        payload: Payload,
        lane: TrafficClass,
        limit: Duration,
        said: impl Fn(Response) + Send + Sync + 'static,
    ) -> Result<()> {
        self.session()?
            .get(key.to_owned())
            .attachment(header)
            .payload(payload.0)
            .target(QueryTarget::All)
            .consolidation(ConsolidationMode::None)
            .congestion_control(lane.congestion_control())
            .priority(lane.priority())
            .express(true)
            .timeout(limit)
            .callback(move |reply| said(understood(reply)))
            .wait()
            .map_err(|e| self.error(e))
    }

    fn error(&self, error: zenoh::Error) -> Error {
        Error::Unavailable {
            what: format!("the cluster at {} ({})", self.place(), brief(&error.to_string())),
            help: "is the network up?".into(),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

fn understood(reply: Reply) -> Response {
    match reply.into_result() {
        Err(error) => {
            let text = error.payload().try_to_string();
            Response::Nothing(brief(text.as_deref().unwrap_or("an unreadable error")))
        }
        Ok(sample) => {
            let header = sample.attachment().map(ZBytes::to_bytes).unwrap_or_default();
            match wire::unpack(&header) {
                Ok(answer) => Response::Answer(answer, Payload(sample.payload().clone())),
                Err(error @ (WireError::Malformed(_) | WireError::Version { .. })) => {
                    Response::Garbage(error.to_string())
                }
            }
        }
    }
}
