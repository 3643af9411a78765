//! Certificates and tokens in force, which change when their files do.
//!
//! Relevant if you want to know what a renewal of a certificate takes: nothing. The files are read again every few seconds and
//! on demand ([`Credentials::reload`]); a connection keeps the certificates it began with, and tokens are compared at every request.
//!
//! Invariant: what is in force was checked as a whole. Files that cannot be used change nothing: the log says so once for
//! each content, and the metric of refused ones counts it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use fcdcc::Result;
use fcdcc::dates::certificate_notice;
use ring::digest::{Context, SHA256};
use tokio_rustls::TlsAcceptor;

use crate::protocol::Protocol;
use crate::tls::Tls;
use crate::tokens::Tokens;

/// How often it warns.
const WARN_EVERY: Duration = Duration::from_hours(24);

/// Who may connect, and who this server says that it is.
pub(crate) struct Credentials {
    tls: Option<Watched<Secured>>,
    tokens: Option<Watched<Tokens>>,
    reloaded: AtomicU64,
    refused: AtomicU64,
    warned: Mutex<Option<SystemTime>>,
}

/// What the files of TLS hold.
struct Secured {
    http: TlsAcceptor,
    grpc: TlsAcceptor,
    /// The first end of a certificate of the server's chain, in seconds since 1970.
    ends: i64,
}

/// Something made of files.
struct Watched<T> {
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T> + Send + Sync>,
    now: RwLock<Arc<T>>,
    /// The contents that were tried last.
    tried: Mutex<Digest>,
}

type Digest = Vec<u8>;

/// Whether files changed what is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    None,
    Taken,
    Refused(String),
}

impl<T> Watched<T> {
    fn new(files: Vec<PathBuf>, make: impl Fn() -> Result<T> + Send + Sync + 'static) -> Result<Self> {
        // Read before they are used: a file that changes in between is used again.
        let tried = Mutex::new(digest(&files));
        let now = RwLock::new(Arc::new(make()?));
        Ok(Self { files, make: Box::new(make), now, tried })
    }

    fn get(&self) -> Arc<T> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn look(&self) -> Change {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        let found = digest(&self.files);
        if *tried == found {
            return Change::None;
        }
        *tried = found;
        match (self.make)() {
            Ok(made) => {
                *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(made);
                Change::Taken
            }
            Err(error) => Change::Refused(error.to_string()),
        }
    }
}

/// A digest of the contents of files; one that cannot be read counts as empty.
fn digest(files: &[PathBuf]) -> Digest {
    let mut context = Context::new(&SHA256);
    for file in files {
        let content = std::fs::read(file).unwrap_or_default();
        context.update(&(content.len() as u64).to_le_bytes());
        context.update(&content);
    }
    context.finish().as_ref().to_vec()
}

impl Credentials {
    /// Reads the files of `tls`; `tokens` were read.
    ///
    /// # Errors
    /// Those of [`Tls::config`].
    pub(crate) fn new(tls: Option<&Tls>, tokens: Option<&Tokens>) -> Result<Self> {
        let tls = tls.map(|tls| {
            let of = tls.clone();
            let make = move || {
                let acceptor = |protocol: Protocol| of.config(protocol.alpn()).map(TlsAcceptor::from);
                let (http, grpc) = (acceptor(Protocol::Http)?, acceptor(Protocol::Grpc)?);
                Ok(Secured { http, grpc, ends: of.ends()? })
            };
            Watched::new(tls.files(), make)
        });
        let tokens = tokens.map(|tokens| {
            let path = tokens.path().to_owned();
            Watched::new(vec![path.clone()], move || Tokens::read(&path))
        });
        Ok(Self {
            tls: tls.transpose()?,
            tokens: tokens.transpose()?,
            reloaded: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            warned: Mutex::new(None),
        })
    }

    /// Whether a request with this header may pass.
    pub(crate) fn admit(&self, authorization: Option<&[u8]>) -> bool {
        self.tokens.as_ref().is_none_or(|tokens| tokens.get().admit(authorization))
    }

    /// What agrees on TLS for a new connection.
    pub(crate) fn acceptor(&self, protocol: Protocol) -> Option<TlsAcceptor> {
        let secured = self.tls.as_ref()?.get();
        Some(match protocol {
            Protocol::Http => secured.http.clone(),
            Protocol::Grpc => secured.grpc.clone(),
        })
    }

    /// Takes what the files hold now, if they changed. Returns what was taken, and why other files were refused.
    pub(crate) fn reload(&self) -> (Vec<&'static str>, Vec<String>) {
        let changes = [
            ("certificate", self.tls.as_ref().map(Watched::look)),
            ("tokens", self.tokens.as_ref().map(Watched::look)),
        ];
        let (mut taken, mut refused) = (Vec::new(), Vec::new());
        for (what, change) in changes {
            match change.unwrap_or(Change::None) {
                Change::None => {}
                Change::Taken => {
                    tracing::info!("the {what} changed: the new content is in force");
                    self.reloaded.fetch_add(1, Ordering::Relaxed);
                    taken.push(what);
                }
                Change::Refused(why) => {
                    tracing::warn!(
                        "the {what} changed and cannot be used, the earlier one stays in force: {why}"
                    );
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    refused.push(why);
                }
            }
        }
        if taken.contains(&"certificate") {
            *self.warned.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        self.warn(SystemTime::now());
        (taken, refused)
    }

    /// Warns of the end of the certificate, at most once a day.
    pub(crate) fn warn(&self, now: SystemTime) {
        let Some(ends) = self.ends() else { return };
        let Some(text) = warning(ends, now) else { return };
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = warned.is_some_and(|then| now.duration_since(then).is_ok_and(|past| past < WARN_EVERY));
        if !lately {
            *warned = Some(now);
            tracing::warn!("{text}");
        }
    }

    /// The first end of a certificate of the server's chain, in seconds since 1970.
    pub(crate) fn ends(&self) -> Option<i64> {
        self.tls.as_ref().map(|tls| tls.get().ends)
    }

    /// How often changed files were taken and refused.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.reloaded.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }
}

/// What the log says of a certificate that ends soon, or has ended.
fn warning(ends: i64, now: SystemTime) -> Option<String> {
    certificate_notice("the certificate of the server", ends, now)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn what_changes_is_taken_and_what_cannot_be_used_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("first-token-of-many\n");
        let credentials = Credentials::new(None, Some(&Tokens::read(&path).unwrap())).unwrap();
        let admits = |token: &str| credentials.admit(Some(format!("Bearer {token}").as_bytes()));
        assert!(admits("first-token-of-many") && !admits("second-token-of-many"));
        assert_eq!(credentials.reload(), (vec![], vec![]));
        write("second-token-of-many\n");
        assert_eq!(credentials.reload(), (vec!["tokens"], vec![]));
        assert!(!admits("first-token-of-many") && admits("second-token-of-many"));
        // Refused once, and the earlier ones stay.
        write("short\n");
        let (taken, refused) = credentials.reload();
        assert!(taken.is_empty() && refused[0].contains("is no token"), "{refused:?}");
        assert_eq!(credentials.reload(), (vec![], vec![]));
        assert!(admits("second-token-of-many") && !admits("short"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(credentials.reload().1.len(), 1);
        assert!(admits("second-token-of-many"));
        write("third-token-of-many\n");
        assert_eq!(credentials.reload().0, ["tokens"]);
        assert!(admits("third-token-of-many"));
        assert_eq!(credentials.counts(), (2, 2));
        assert!(Credentials::new(None, None).unwrap().admit(None) && !credentials.admit(None));
    }

    #[test]
    fn the_end_of_a_certificate_is_announced_two_weeks_ahead() {
        let day = 86_400;
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(warning(100 * day, at(85 * 86_400)), None);
        assert!(warning(100 * day, at(87 * 86_400)).unwrap().contains("in 13 days"));
        assert!(warning(100 * day, at(101 * 86_400)).unwrap().contains("has ended"));
    }
}
