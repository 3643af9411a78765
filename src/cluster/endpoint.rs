//! Endpoints, TLS and access control, and the refusal of unprotected endpoints.
//!
//! Invariant: nothing listens beyond loopback without mutual TLS unless [`Security::insecure`] allows it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::dates::certificate_notice;
use crate::error::{Error, Result};
use crate::files;

/// How notices call the certificate of this side.
const OWN: &str = "the certificate of this side";

/// The port of an endpoint that names none.
pub const DEFAULT_PORT: u16 = 7447;

/// `tcp/HOST:PORT` without protection, or `quic/HOST:PORT` with mutual TLS (1.3, over QUIC and therefore UDP). An address
/// with neither prefix means QUIC exactly where certificates are configured. `tls/` is an alias of `quic/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    scheme: Option<Scheme>,
    host: String,
    port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Tcp,
    Quic,
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |help: &str| Error::invalid("endpoint", format!("{text:?}"), help);
        let (scheme, address) = match text.split_once('/') {
            None => (None, text),
            Some(("tcp", address)) => (Some(Scheme::Tcp), address),
            Some(("quic" | "tls", address)) => (Some(Scheme::Quic), address),
            Some(_) => return Err(bad("write tcp/HOST:PORT or quic/HOST:PORT")),
        };
        // The last colon outside of [..] separates the port.
        let outside = address.rfind(']').map_or(0, |end| end + 1);
        let (host, port) = match address[outside..].rfind(':') {
            None => (address, DEFAULT_PORT),
            Some(colon) => {
                let (host, port) = address.split_at(outside + colon);
                (host, port[1..].parse().map_err(|_| bad("the port is a number from 0 to 65535"))?)
            }
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]%".contains(c);
        let unbracketed = host.contains(':') && !host.starts_with('[');
        if host.is_empty() || unbracketed || !host.chars().all(plain) {
            return Err(bad("write HOST:PORT, the host being a name or an address, IPv6 in brackets"));
        }
        Ok(Self { scheme, host: host.to_owned(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            None => "",
            Some(Scheme::Tcp) => "tcp/",
            Some(Scheme::Quic) => "quic/",
        };
        write!(f, "{scheme}{}:{}", self.host, self.port)
    }
}

impl Endpoint {
    /// Whether only processes of this machine can reach it.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        let address = bare.parse::<std::net::IpAddr>();
        address.map_or(bare.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
    }

    /// The endpoint in the engine's notation.
    pub(super) fn locator(&self, security: &Security) -> String {
        let tls = self.is_tls(security);
        format!("{}/{}:{}", if tls { "quic" } else { "tcp" }, self.host, self.port)
    }

    fn is_tls(&self, security: &Security) -> bool {
        self.scheme.map_or(security.tls.is_some(), |scheme| scheme == Scheme::Quic)
    }
}

/// The certificates of one side. TLS is mutual: both sides present theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The authority that signed the certificates of all sides (PEM).
    pub ca: PathBuf,
    /// This side's certificate (PEM). Access control identifies this side by its common name.
    pub certificate: PathBuf,
    /// The private key of the certificate (PEM).
    pub key: PathBuf,
}

/// How a side protects its endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// Certificates; without them connections are not protected.
    pub tls: Option<Tls>,
    /// Whether listening beyond loopback without certificates is intended.
    pub insecure: bool,
    /// Common names of certificates whose holders may list the cluster, and nothing else.
    pub viewers: Vec<String>,
}

impl Security {
    /// Checks that certificates and keys fit together, and that nothing listens without protection by accident.
    ///
    /// # Errors
    /// [`Error::File`] for a certificate or key that cannot be read, does not fit or has expired;
    /// [`Error::InvalidParameter`] for an endpoint that requires certificates where there are none, or that would listen
    /// beyond loopback without them.
    pub fn check(&self, listen: &[Endpoint], connect: &[Endpoint]) -> Result<()> {
        self.tls.as_ref().map_or(Ok(()), check_certificates)?;
        if let Some(endpoint) = listen.iter().chain(connect).find(|e| e.is_tls(self) && self.tls.is_none()) {
            let help = "give the authority, certificate and key (scripts/dev_ca.sh makes them)";
            return Err(Error::invalid("endpoint", format!("{endpoint} without certificates"), help));
        }
        match listen.iter().find(|e| !e.is_loopback() && !e.is_tls(self) && !self.insecure) {
            None => Ok(()),
            Some(open) => Err(Error::invalid(
                "endpoint to listen on",
                format!("{open}, which other machines can reach, without mutual TLS"),
                "give certificates (scripts/dev_ca.sh makes some), listen on 127.0.0.1, or say insecure if the network \
                 is trusted",
            )),
        }
    }
}

impl Security {
    /// Checks that a machine which connects with certificates uses the name in its own certificate. A listening side permits
    /// no other name, so the machine would never become visible.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] with both names, [`Error::File`] for a certificate that cannot be read.
    pub(super) fn check_machine(&self, name: &str, connect: &[Endpoint]) -> Result<()> {
        let Some(tls) = &self.tls else { return Ok(()) };
        if !connect.iter().any(|endpoint| endpoint.is_tls(self)) {
            return Ok(());
        }
        let path = tls.certificate.display();
        let holder = tls.holder()?;
        if holder.as_deref() == Some(name) {
            return Ok(());
        }
        let (of, help) = match holder {
            Some(holder) => (
                format!("made out to {holder:?}"),
                format!("serve under the name {holder}, or with a certificate for {name}"),
            ),
            None => ("without a common name".to_owned(), format!("make one for {name}")),
        };
        Err(Error::invalid(
            "name of the machine",
            format!("{name:?} and its certificate {path} is {of}, so that no master would accept it"),
            help,
        ))
    }
}

impl Security {
    /// When the certificate of this side ends, in seconds since 1970, if it has one.
    ///
    /// # Errors
    /// [`Error::File`] for a certificate that cannot be read.
    pub fn certificate_end(&self) -> Result<Option<i64>> {
        let end = |certificate: &X509Certificate<'_>| certificate.validity().not_after.timestamp();
        self.tls.as_ref().map(|tls| tls.certificate(end)).transpose()
    }

    /// As [`Self::certificate_end`]; the log warns if that is soon.
    pub(super) fn announced_end(&self) -> Result<Option<i64>> {
        let end = self.certificate_end()?;
        if let Some(notice) = end.and_then(|end| certificate_notice(OWN, end, SystemTime::now())) {
            tracing::warn!("{notice}");
        }
        Ok(end)
    }
}

impl Tls {
    /// The name under which a process with this certificate is known, if it has one: its common name, as the other side's
    /// access control reads it.
    ///
    /// # Errors
    /// [`Error::File`] for a certificate that cannot be read.
    pub(super) fn holder(&self) -> Result<Option<String>> {
        self.certificate(|certificate| {
            let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
            name.map(str::to_owned)
        })
    }

    /// What `read` finds in the certificate.
    fn certificate<R>(&self, read: impl FnOnce(&X509Certificate<'_>) -> R) -> Result<R> {
        let bad = |cause: String| Error::File {
            path: self.certificate.display().to_string(),
            cause: format!("the certificate cannot be read: {cause}"),
            input: true,
        };
        let bytes = pem("certificate", &self.certificate)?;
        let certificate = CertificateDer::from_pem_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|e| bad(e.to_string()))?;
        Ok(read(&parsed))
    }
}

/// Maximum size of a file of certificates; those of all public authorities together take a quarter of it.
const MOST_PEM_BYTES: u64 = 1 << 20;

/// Reads a PEM file; errors call it `what`.
fn pem(what: &str, path: &Path) -> Result<Vec<u8>> {
    let read = files::Input::open(path).and_then(|file| file.into_bytes(MOST_PEM_BYTES, "name a PEM file"));
    read.map_err(|error| match error {
        Error::File { path, cause, input } => {
            Error::File { path, cause: format!("the {what} {cause}"), input }
        }
        Error::Io { path, cause, source, input } => {
            Error::File { path, cause: format!("the {what} {cause}: {source}"), input }
        }
        other => other,
    })
}

/// Checks that the key belongs to the certificate and that the authority signed it. Otherwise every connection would fail
/// later, and be retried forever.
fn check_certificates(tls: &Tls) -> Result<()> {
    let bad =
        |path: &Path, cause: String| Error::File { path: path.display().to_string(), cause, input: true };
    let certificates = |what: &str, path: &Path| -> Result<Vec<CertificateDer<'static>>> {
        let bytes = pem(what, path)?;
        let read: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        match read {
            Err(error) => Err(bad(path, format!("the {what} cannot be read as PEM: {error}"))),
            Ok(none) if none.is_empty() => {
                Err(bad(path, format!("the {what} is missing: it has no CERTIFICATE")))
            }
            Ok(all) => Ok(all),
        }
    };
    let mut roots = RootCertStore::empty();
    for authority in certificates("authority", &tls.ca)? {
        roots.add(authority).map_err(|e| bad(&tls.ca, format!("the authority is no certificate: {e}")))?;
    }
    let chain = certificates("certificate", &tls.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&pem("key", &tls.key)?)
        .map_err(|e| bad(&tls.key, format!("the key cannot be read as PEM: {e}")))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    CertifiedKey::from_der(chain.clone(), key, &provider).map_err(|e| {
        bad(&tls.certificate, format!("the certificate does not go with key {}: {e}", tls.key.display()))
    })?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|e| bad(&tls.ca, format!("the authority cannot be used: {e}")))?;
    verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()).map_err(|e| {
        bad(&tls.certificate, format!("the certificate does not hold before {}: {e}", tls.ca.display()))
    })?;
    Ok(())
}

/// The role of a link.
#[derive(Clone, Debug)]
pub(super) enum Side {
    /// Listens for connections, and routes between them.
    Listen(Vec<Endpoint>),
    /// Connects to a listening side, and reconnects whenever the connection breaks.
    Connect(Endpoint),
}

/// What the holder of a certificate may do with some keys, over a link that listens. Everything else is denied: a message
/// passes only if one of `keys` includes the whole key of the message, wildcards too.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    /// Common name of the certificate; every certificate of the authority when `None`.
    pub(super) holder: Option<String>,
    pub(super) keys: Vec<String>,
    pub(super) role: Role,
}

/// Roles. Each is one list of messages that may come from the holder and one of messages that may go to it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Role {
    /// Announce a token and answer requests.
    Serve,
    /// Send requests and messages, and see tokens.
    Use,
    /// See tokens and send requests.
    View,
    /// Receive requests, also those sent to all workers at once.
    Asked,
    /// Announce a token.
    Announce,
    /// Send requests.
    Ask,
}

impl Role {
    pub(super) fn messages(self) -> [&'static [&'static str]; 2] {
        const SEE: [&str; 2] = ["reply", "liveliness_token"];
        match self {
            Self::Serve => {
                [&["liveliness_token", "declare_queryable", "declare_subscriber", "reply"], &["query", "put"]]
            }
            Self::Use => [&["query", "put", "liveliness_query", "declare_liveliness_subscriber"], &SEE],
            Self::View => [&["query", "liveliness_query", "declare_liveliness_subscriber"], &SEE],
            Self::Asked => [&[], &["query"]],
            Self::Announce => [&["liveliness_token"], &[]],
            Self::Ask => [&["query"], &["reply"]],
        }
    }
}

/// The sides of all links: one link that listens on all endpoints, and one for each endpoint to connect to.
pub(super) fn sides(listen: &[Endpoint], connect: &[Endpoint]) -> Vec<Side> {
    let own = (!listen.is_empty()).then(|| Side::Listen(listen.to_vec()));
    own.into_iter().chain(connect.iter().cloned().map(Side::Connect)).collect()
}

impl Side {
    /// Where it listens or connects, readable.
    pub(super) fn place(&self, security: &Security) -> String {
        match self {
            Self::Listen(endpoints) => locators(endpoints, security).join(", "),
            Self::Connect(endpoint) => endpoint.locator(security),
        }
    }
}

pub(super) fn locators(endpoints: &[Endpoint], security: &Security) -> Vec<String> {
    endpoints.iter().map(|endpoint| endpoint.locator(security)).collect()
}

/// Checks a name that becomes a part of keys, such as those of machines and clusters.
pub(super) fn check_name(what: &str, name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !name.is_empty() && name.len() <= 64 && name.chars().all(plain) {
        return Ok(());
    }
    Err(Error::invalid(what, format!("{name:?}"), "use 1 to 64 letters, digits, '-', '_' and '.'"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    #[test]
    fn endpoints_are_read_with_and_without_scheme_and_port() {
        let open = Security::default();
        for (text, locator, loopback) in [
            ("tcp/127.0.0.1:7000", "tcp/127.0.0.1:7000", true),
            ("127.8.0.1", "tcp/127.8.0.1:7447", true),
            ("localhost:1", "tcp/localhost:1", true),
            ("[::1]:7000", "tcp/[::1]:7000", true),
            ("quic/[fe80::1]", "quic/[fe80::1]:7447", false),
            ("tls/node-1.lan:9", "quic/node-1.lan:9", false),
            ("0.0.0.0:9", "tcp/0.0.0.0:9", false),
        ] {
            let endpoint = endpoint(text);
            assert_eq!((endpoint.locator(&open).as_str(), endpoint.is_loopback()), (locator, loopback));
        }
        for text in ["", "udp/x:1", "tcp/", "x:99999", "::1:7", "a b:1", "tcp/x:1?y", "tcp/x#iface=y"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_listens_in_the_open_by_accident() {
        let open = Security::default();
        let beyond = [endpoint("tcp/0.0.0.0:7447")];
        let error = open.check(&beyond, &[]).unwrap_err().to_string();
        assert!(error.contains("0.0.0.0:7447") && error.contains("mutual TLS"), "{error}");
        assert!(open.check(&[endpoint("127.0.0.1")], &beyond).is_ok());
        assert!(Security { insecure: true, ..open.clone() }.check(&beyond, &[]).is_ok());
        // TLS without certificates is no protection either.
        assert!(open.check(&[endpoint("quic/127.0.0.1")], &[]).is_err());
        let gone = PathBuf::from("/nowhere/ca.pem");
        let tls = Tls { ca: gone.clone(), certificate: gone.clone(), key: gone };
        assert!(Security { tls: Some(tls), ..open }.check(&beyond, &[]).is_err());
    }
}
