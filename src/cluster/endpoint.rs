//! Where sides listen and connect, who may talk to whom, and the refusal to do either in the open by accident.
//!
//! Invariant: nothing listens beyond loopback without mutual TLS unless [`Security::insecure`] says so.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};

/// The port of an endpoint that names none.
pub const DEFAULT_PORT: u16 = 7447;

/// `tcp/HOST:PORT` or `tls/HOST:PORT`; without `tcp/` or `tls/` it is TLS exactly where certificates are configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    scheme: Option<Scheme>,
    host: String,
    port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Tcp,
    Tls,
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |mend: &str| Error::invalid("endpoint", format!("{text:?}"), mend);
        let (scheme, address) = match text.split_once('/') {
            None => (None, text),
            Some(("tcp", address)) => (Some(Scheme::Tcp), address),
            Some(("tls", address)) => (Some(Scheme::Tls), address),
            Some(_) => return Err(bad("write tcp/HOST:PORT or tls/HOST:PORT")),
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
            Some(Scheme::Tls) => "tls/",
        };
        write!(f, "{scheme}{}:{}", self.host, self.port)
    }
}

impl Endpoint {
    /// Whether only processes of this machine reach it.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        let address = bare.parse::<std::net::IpAddr>();
        address.map_or(bare.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
    }

    /// As the engine writes it.
    pub(super) fn locator(&self, security: &Security) -> String {
        let tls = self.is_tls(security);
        format!("{}/{}:{}", if tls { "tls" } else { "tcp" }, self.host, self.port)
    }

    fn is_tls(&self, security: &Security) -> bool {
        self.scheme.map_or(security.tls.is_some(), |scheme| scheme == Scheme::Tls)
    }
}

/// Certificates of one side: mutual TLS, both show theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The authority that signed everybody's certificates (PEM).
    pub ca: PathBuf,
    /// This side's certificate (PEM). Its common name is what access control knows this side by.
    pub certificate: PathBuf,
    /// Its key (PEM).
    pub key: PathBuf,
}

/// How a side protects its endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// Certificates; without them everything is in the open.
    pub tls: Option<Tls>,
    /// Whether listening beyond loopback without certificates is meant.
    pub insecure: bool,
    /// Common names of certificates whose holders may list the cluster, and nothing else.
    pub viewers: Vec<String>,
}

impl Security {
    /// Checks that the files are there, and that nothing listens in the open by accident.
    ///
    /// # Errors
    /// [`Error::File`] for a certificate or key that cannot be read, [`Error::InvalidParameter`] for an endpoint
    /// that takes certificates where there are none, or that would listen beyond loopback without.
    pub fn check(&self, listen: &[Endpoint], connect: &[Endpoint]) -> Result<()> {
        for (what, path) in self
            .tls
            .iter()
            .flat_map(|tls| [("authority", &tls.ca), ("certificate", &tls.certificate), ("key", &tls.key)])
        {
            check_pem(what, path)?;
        }
        if let Some(endpoint) = listen.iter().chain(connect).find(|e| e.is_tls(self) && self.tls.is_none()) {
            let mend = "give the authority, certificate and key (scripts/dev_ca.sh makes them)";
            return Err(Error::invalid("endpoint", format!("{endpoint} without certificates"), mend));
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

fn check_pem(what: &str, path: &Path) -> Result<()> {
    let bad = |cause: String| Error::File { path: path.display().to_string(), cause, input: true };
    let text = std::fs::read(path).map_err(|e| bad(format!("the {what} cannot be read: {e}")))?;
    if text.windows(10).any(|w| w == b"-----BEGIN") {
        Ok(())
    } else {
        Err(bad(format!("the {what} is no PEM file: it has no line with -----BEGIN")))
    }
}

/// Checks a name that becomes a part of keys: machines and clusters.
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
            ("tls/[fe80::1]", "tls/[fe80::1]:7447", false),
            ("tls/node-1.lan:9", "tls/node-1.lan:9", false),
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
        assert!(open.check(&[endpoint("tls/127.0.0.1")], &[]).is_err());
        let gone = PathBuf::from("/nowhere/ca.pem");
        let tls = Tls { ca: gone.clone(), certificate: gone.clone(), key: gone };
        assert!(Security { tls: Some(tls), ..open }.check(&beyond, &[]).is_err());
    }
}
