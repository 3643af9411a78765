//! Reads endpoints and certificates from options and from TOML files.

use std::path::{Path, PathBuf};

#[cfg(feature = "cluster")]
use clap::Args;
#[cfg(feature = "cluster")]
use fcdcc::cluster::{Endpoint, Security, Tls};
use fcdcc::{Error, Result};
use serde::Deserialize;

/// Certificates of this side.
#[cfg(feature = "cluster")]
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct SecurityArgs {
    /// Certificate of the authority that signed everybody's (PEM); with --certificate and --key: mutual TLS
    #[arg(long, value_name = "FILE.pem", requires_all = ["certificate", "key"])]
    pub(crate) ca: Option<PathBuf>,
    /// This side's certificate (PEM)
    #[arg(long, value_name = "FILE.pem", requires = "ca")]
    pub(crate) certificate: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE.pem", requires = "ca")]
    pub(crate) key: Option<PathBuf>,
    /// Allow listening beyond this machine without certificates: anybody who can connect can use it
    #[arg(long)]
    pub(crate) insecure: bool,
}

/// `[tls]` in a file. Paths are relative to the folder of that file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TlsEntry {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

/// One endpoint or a list.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
#[cfg_attr(not(feature = "cluster"), expect(dead_code, reason = "read to say what this binary lacks"))]
pub(crate) enum Endpoints {
    One(String),
    Several(Vec<String>),
}

impl Default for Endpoints {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

#[cfg(feature = "cluster")]
impl Endpoints {
    pub(crate) fn parsed(&self) -> Result<Vec<Endpoint>> {
        match self {
            Self::One(one) => Ok(vec![one.parse()?]),
            Self::Several(all) => all.iter().map(|text| text.parse()).collect(),
        }
    }
}

impl TlsEntry {
    /// The files it names; relative paths are resolved from the folder of `file`.
    pub(crate) fn files(&self, file: &Path) -> [PathBuf; 3] {
        let folder = file.parent().unwrap_or(Path::new(""));
        [&self.ca, &self.certificate, &self.key].map(|path| folder.join(path))
    }
}

#[cfg(feature = "cluster")]
impl TlsEntry {
    /// The settings with paths resolved from the folder of `file`.
    pub(crate) fn beside(&self, file: &Path) -> Tls {
        let [ca, certificate, key] = self.files(file);
        Tls { ca, certificate, key }
    }
}

#[cfg(feature = "cluster")]
impl SecurityArgs {
    /// The settings of the options, else those of `file`, a configuration file.
    pub(crate) fn security(&self, file: Option<Tls>) -> Security {
        let given = match (&self.ca, &self.certificate, &self.key) {
            (Some(ca), Some(certificate), Some(key)) => {
                Some(Tls { ca: ca.clone(), certificate: certificate.clone(), key: key.clone() })
            }
            _ => None,
        };
        Security { tls: given.or(file), insecure: self.insecure, viewers: Vec::new() }
    }
}

/// Reads a TOML file; errors name the line.
pub(crate) fn read_toml<T: serde::de::DeserializeOwned>(path: &Path, what: &str) -> Result<T> {
    let bad = |cause: String| Error::File { path: path.display().to_string(), cause, input: true };
    let text = fcdcc::files::read_text(path)?;
    toml::from_str(&text).map_err(|e| {
        let line =
            text.bytes().take(e.span().map_or(0, |span| span.start)).filter(|b| *b == b'\n').count() + 1;
        bad(format!("is not {what}, line {line}: {}", e.message().replace('\n', " ")))
    })
}
