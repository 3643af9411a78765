//! Options of a server: those of the command line, and those of its file (`--config`), which the former replace.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use fcdcc::{Error, Result};
use fcdcc_serve::{ModelConfig, ServerOptions, Tls, Tokens, Traces};
use serde::{Deserialize, Deserializer};

use super::network::read_toml;
use super::options::duration;

/// Options of the server itself. A file has the same names, with `_` for `-`.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ServerArgs {
    /// Model files, and repositories of the form NAME/VERSION/model.onnx
    #[arg(value_name = "MODEL.onnx|DIR", required_unless_present = "config")]
    pub(crate) models: Vec<PathBuf>,
    /// Where to listen; port 0 takes a free one [default: 127.0.0.1:8000]
    #[arg(long, help_heading = "Server", value_name = "ADDRESS")]
    http: Option<String>,
    /// Where to listen for gRPC; port 0 takes a free one, and `off` goes without [default: 127.0.0.1:8001]
    #[arg(long, help_heading = "Server", value_name = "ADDRESS")]
    grpc: Option<String>,
    /// Certificate of the server in PEM, for TLS on both addresses
    #[arg(long, help_heading = "Server", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Key of the certificate
    #[arg(long, help_heading = "Server", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Authority of the certificates of clients, which then need one
    #[arg(long, help_heading = "Server", value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    /// Tokens of clients, one a line: a client sends `Authorization: Bearer TOKEN`
    #[arg(long, help_heading = "Server", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Add every request to this file, one JSON object a line; - for standard output
    #[arg(long, help_heading = "Server", value_name = "FILE")]
    access_log: Option<PathBuf>,
    /// Export spans of requests to a collector of OTLP over gRPC, such as http://127.0.0.1:4317 (feature otlp)
    #[arg(long, help_heading = "Server", value_name = "URL")]
    otlp: Option<String>,
    /// Share of the requests without a traceparent that begin a trace, 0 to 1 [default: 1]
    #[arg(long, help_heading = "Server", value_name = "R", allow_negative_numbers = true)]
    otlp_ratio: Option<f64>,
    /// Allow an address beyond this machine without tokens and without TLS: anybody who can connect can use the models
    #[arg(long, help_heading = "Server")]
    insecure: bool,
    /// Runs of models at one time [default: 2]
    #[arg(long, help_heading = "Server", value_name = "N")]
    threads: Option<usize>,
    /// Requests of a model that may wait [default: 64, or what its model.toml says]
    #[arg(long, help_heading = "Server", value_name = "N")]
    queue: Option<usize>,
    /// Time for a request, from its arrival to its answer [default: 60s, or what the model.toml says]
    #[arg(long, help_heading = "Server", value_name = "DUR", value_parser = duration)]
    #[serde(deserialize_with = "time")]
    timeout: Option<Duration>,
    /// Largest body of a request, unpacked, or message of gRPC [default: 64MiB]
    #[arg(long, help_heading = "Server", value_name = "SIZE")]
    max_body: Option<ByteSize>,
    /// Connections of each address at one time [default: 1024]
    #[arg(long, help_heading = "Server", value_name = "N")]
    max_connections: Option<usize>,
    /// Time for the requests in progress after SIGTERM or Ctrl-C [default: 30s]
    #[arg(long, help_heading = "Server", value_name = "DUR", value_parser = duration)]
    #[serde(deserialize_with = "time")]
    drain: Option<Duration>,
    /// Names of the classes for `classify`, one a line, of models without a model.toml
    #[arg(long, help_heading = "Server", value_name = "FILE")]
    labels: Option<PathBuf>,
    /// The pool file, which the command line has among the options of coding.
    #[arg(skip)]
    pub(crate) pool: Option<PathBuf>,
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    duration(&text).map(Some).map_err(serde::de::Error::custom)
}

impl ServerArgs {
    /// These options, and those of a file where they are not given. Paths in a file are relative to its folder.
    pub(crate) fn with_file(self, path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Ok(self) };
        let mut file: Self = read_toml(path, "a server's configuration")?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let standard = Path::new("-");
        for own in file.paths().into_iter().filter(|own| own.as_path() != standard) {
            *own = folder.join(&*own);
        }
        Ok(Self {
            models: if self.models.is_empty() { file.models } else { self.models },
            http: self.http.or(file.http),
            grpc: self.grpc.or(file.grpc),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            tls_client_ca: self.tls_client_ca.or(file.tls_client_ca),
            token_file: self.token_file.or(file.token_file),
            access_log: self.access_log.or(file.access_log),
            otlp: self.otlp.or(file.otlp),
            otlp_ratio: self.otlp_ratio.or(file.otlp_ratio),
            insecure: self.insecure || file.insecure,
            threads: self.threads.or(file.threads),
            queue: self.queue.or(file.queue),
            timeout: self.timeout.or(file.timeout),
            max_body: self.max_body.or(file.max_body),
            max_connections: self.max_connections.or(file.max_connections),
            drain: self.drain.or(file.drain),
            labels: self.labels.or(file.labels),
            pool: self.pool.or(file.pool),
        })
    }

    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let single = [
            &mut self.tls_cert,
            &mut self.tls_key,
            &mut self.tls_client_ca,
            &mut self.token_file,
            &mut self.access_log,
            &mut self.labels,
            &mut self.pool,
        ];
        self.models.iter_mut().chain(single.into_iter().flatten()).collect()
    }

    /// The options for the library.
    pub(crate) fn options(&self) -> Result<ServerOptions> {
        let (defaults, limits) = (ModelConfig::default(), ServerOptions::default());
        let bytes = self
            .max_body
            .map_or(limits.max_body_bytes, |most| usize::try_from(most.as_u64()).unwrap_or(usize::MAX));
        if self.otlp_ratio.is_some() && self.otlp.is_none() {
            let help = "give the address of a collector (--otlp) as well";
            return Err(Error::invalid("share of traced requests (--otlp-ratio)", "given", help));
        }
        let grpc = self.grpc.clone().unwrap_or_else(|| "127.0.0.1:8001".to_owned());
        Ok(ServerOptions {
            sources: self.models.clone(),
            address: self.http.clone().unwrap_or(limits.address),
            grpc: Some(grpc).filter(|address| address != "off"),
            tls: self.tls()?,
            default: ModelConfig {
                labels: self.labels.clone(),
                queue_length: self.queue.unwrap_or(defaults.queue_length),
                timeout: self.timeout.unwrap_or(defaults.timeout),
                ..defaults
            },
            threads: self.threads.unwrap_or(limits.threads),
            max_body_bytes: bytes,
            max_bodies_bytes: limits.max_bodies_bytes.max(bytes),
            max_connections: self.max_connections.unwrap_or(limits.max_connections),
            drain_timeout: self.drain.unwrap_or(limits.drain_timeout),
            tokens: self.token_file.as_deref().map(Tokens::read).transpose()?,
            access_log: self.access_log.clone(),
            traces: self
                .otlp
                .clone()
                .map(|endpoint| Traces { endpoint, ratio: self.otlp_ratio.unwrap_or(1.0) }),
            insecure: self.insecure,
            head_timeout: limits.head_timeout,
            body_timeout: limits.body_timeout,
        })
    }

    fn tls(&self) -> Result<Option<Tls>> {
        match (&self.tls_cert, &self.tls_key, &self.tls_client_ca) {
            (Some(certificate), Some(key), client_ca) => {
                let (certificate, key) = (certificate.clone(), key.clone());
                Ok(Some(Tls { certificate, key, client_ca: client_ca.clone() }))
            }
            (None, None, None) => Ok(None),
            _ => {
                let help = "give the certificate (--tls-cert) and its key (--tls-key)";
                Err(Error::invalid("half of what TLS needs", "given", help))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_comes_before_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serve.toml");
        let text = "models = ['models', '/m.onnx']\nhttp = '0.0.0.0:80'\ngrpc = 'off'\nqueue = 7\ndrain = '5s'\n\
            max_body = '1MiB'\ninsecure = true\naccess_log = '-'\npool = 'pool.toml'\notlp = 'http://c:4317'\n";
        std::fs::write(&path, text).unwrap();
        let given = ServerArgs { http: Some("127.0.0.1:1".to_owned()), ..ServerArgs::default() };
        let merged = given.clone().with_file(Some(&path)).unwrap();
        let options = merged.options().unwrap();
        assert_eq!(options.sources, [folder.path().join("models"), "/m.onnx".into()]);
        assert_eq!((options.address.as_str(), options.grpc), ("127.0.0.1:1", None));
        assert_eq!((options.default.queue_length, options.drain_timeout), (7, Duration::from_secs(5)));
        assert_eq!((options.max_body_bytes, options.insecure), (1 << 20, true));
        assert_eq!(options.access_log, Some("-".into()));
        assert_eq!(merged.pool, Some(folder.path().join("pool.toml")));
        assert_eq!(options.traces.unwrap().ratio, 1.0);
        // Without a file everything has its default.
        let plain = ServerArgs::default().with_file(None).unwrap().options().unwrap();
        let limits = ServerOptions::default();
        assert_eq!((plain.address, plain.grpc.as_deref()), (limits.address, Some("127.0.0.1:8001")));
        assert_eq!((plain.threads, plain.max_body_bytes), (limits.threads, limits.max_body_bytes));
        for (text, part) in [
            ("\nport = 3", "line 2: unknown field `port`"),
            ("drain = 'soon'", "duration is"),
            ("tls_cert = 'c.pem'", "half of what TLS needs"),
            ("otlp_ratio = 0.5", "address of a collector"),
        ] {
            std::fs::write(&path, text).unwrap();
            let merged = ServerArgs::default().with_file(Some(&path));
            let error = merged.and_then(|merged| merged.options()).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
