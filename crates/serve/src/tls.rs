//! TLS of both addresses: the server's certificate, and the authority of its clients.
//!
//! Relevant if you want to encrypt connections, or to admit only clients with a certificate (mutual TLS).
//!
//! Invariant: files that do not fit together are refused when they are read, not at the first connection.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fcdcc::{Error, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The files of TLS, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificate of the server, followed by those between it and its authority.
    pub certificate: PathBuf,
    /// The key of the certificate.
    pub key: PathBuf,
    /// The authority that signs the certificates of clients; with it clients need one.
    pub client_ca: Option<PathBuf>,
}

impl Tls {
    /// All files.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// When the first certificate of the server's chain ends, in seconds since 1970.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is no certificate, [`Error::Io`] where it cannot be read.
    pub(crate) fn ends(&self) -> Result<i64> {
        let mut first = i64::MAX;
        for certificate in certificates(&self.certificate)? {
            let parsed = X509Certificate::from_der(&certificate);
            let (_, parsed) =
                parsed.map_err(|e| bad(&self.certificate, format!("holds no certificate: {e}")))?;
            first = first.min(parsed.validity().not_after.timestamp());
        }
        Ok(first)
    }

    /// The configuration for a protocol, `http/1.1` or `h2`, which is the only one offered.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is no PEM of its kind, or does not go with the others; [`Error::Io`] where it cannot
    /// be read.
    pub(crate) fn config(&self, protocol: &str) -> Result<Arc<ServerConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = certificates(&self.certificate)?;
        let key = fcdcc::files::read_text(&self.key)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|e| bad(&self.key, format!("holds no key in PEM: {e}")))?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(&self.certificate, format!("cannot be used: {e}")))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut trusted = RootCertStore::empty();
                roots(path, &mut trusted)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(trusted), provider);
                let verifier = verifier.build().map_err(|e| bad(path, format!("cannot be used: {e}")))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|e| {
            bad(&self.certificate, format!("does not go with the key {}: {e}", self.key.display()))
        })?;
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        Ok(Arc::new(config))
    }
}

/// Adds the authorities of a file to those that are trusted.
///
/// # Errors
/// [`Error::File`] for a file that is no certificate of an authority, [`Error::Io`] where it cannot be read.
pub(crate) fn roots(path: &Path, trusted: &mut RootCertStore) -> Result<()> {
    for authority in certificates(path)? {
        trusted.add(authority).map_err(|e| bad(path, format!("holds no authority: {e}")))?;
    }
    Ok(())
}

fn bad(path: &Path, cause: String) -> Error {
    Error::File { path: path.display().to_string(), cause, input: true }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = fcdcc::files::read_text(path)?;
    let all = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<std::result::Result<Vec<_>, _>>();
    let all = all.map_err(|e| bad(path, format!("holds no certificate in PEM: {e}")))?;
    if all.is_empty() {
        return Err(bad(path, "holds no certificate in PEM".to_owned()));
    }
    Ok(all)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn files_that_do_not_fit_together_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let own = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        let certificate = write("own.pem", &own.pem());
        let (key, other) =
            (write("own.key", &key.serialize_pem()), write("other.key", &other.serialize_pem()));
        let tls = |certificate: &PathBuf, key: &PathBuf, client_ca: Option<&PathBuf>| Tls {
            certificate: certificate.clone(),
            key: key.clone(),
            client_ca: client_ca.cloned(),
        };
        let config = tls(&certificate, &key, Some(&certificate)).config("h2").unwrap();
        assert_eq!(config.alpn_protocols, [b"h2"]);
        // The generator's default.
        assert_eq!(tls(&certificate, &key, None).ends().unwrap(), 67_090_118_400);
        let empty = write("empty.pem", "");
        let rows = [
            (tls(&certificate, &other, None), "own.pem: does not go with the key"),
            (tls(&key, &key, None), "own.key: holds no certificate"),
            (tls(&empty, &key, None), "empty.pem: holds no certificate"),
            (tls(&certificate, &certificate, None), "own.pem: holds no key"),
            (tls(&certificate, &key, Some(&key)), "own.key: holds no certificate"),
            (tls(&folder.path().join("missing"), &key, None), "missing"),
        ];
        for (tls, part) in rows {
            let error = tls.config("h2").unwrap_err().to_string();
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
