//! `fcdcc serve`: answers the requests of other programs with models on coded workers, until it is stopped.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use fcdcc::array::DType;
use fcdcc::model::{AutoChoices, GemmChoice, InputInfo, ModelOptions, Tensor};
use fcdcc::{Error, Result};
use fcdcc_bench::with_flags;
use fcdcc_serve::{Engine, ModelConfig, Pictures, Server, ServerOptions, Tls, Tokens};

use super::ledger::Ledger;
use super::options::{LayerArgs, Precision, duration};
use super::picture::PictureArgs;
use super::signals::{Asked, Signals};
use super::{Console, metrics, pool};

/// Serve ONNX models over HTTP and gRPC by the Open Inference Protocol v2.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    fcdcc serve lenet5.onnx\n  \
    fcdcc serve models --pool pool.toml --http 0.0.0.0:8000 --grpc 0.0.0.0:8001 --token-file tokens.txt\n  \
    curl http://127.0.0.1:8000/v2/models/lenet5\n  \
    curl --data-binary @digit.png http://127.0.0.1:8000/v2/models/lenet5/classify\n\n\
    docs/serving.md describes requests, repositories and model.toml.")]
pub(crate) struct ServeArgs {
    /// Model files, and repositories of the form NAME/VERSION/model.onnx
    #[arg(value_name = "MODEL.onnx|DIR", required = true)]
    paths: Vec<PathBuf>,
    /// Where to listen; port 0 takes a free one
    #[arg(long, help_heading = "Server", value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
    http: String,
    /// Where to listen for gRPC; port 0 takes a free one, and `off` goes without
    #[arg(long, help_heading = "Server", value_name = "ADDRESS", default_value = "127.0.0.1:8001")]
    grpc: String,
    /// Certificate of the server in PEM, for TLS on both addresses
    #[arg(long, help_heading = "Server", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Key of the certificate
    #[arg(long, help_heading = "Server", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Authority of the certificates of clients, which then need one
    #[arg(long, help_heading = "Server", value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Tokens of clients, one a line: a client sends `Authorization: Bearer TOKEN`
    #[arg(long, help_heading = "Server", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Add every request to this file, one JSON object a line; - for standard output
    #[arg(long, help_heading = "Server", value_name = "FILE")]
    access_log: Option<PathBuf>,
    /// Allow an address beyond this machine without tokens and without TLS: anybody who can connect can use the models
    #[arg(long, help_heading = "Server")]
    insecure: bool,
    /// Runs of models at one time
    #[arg(long, help_heading = "Server", value_name = "N", default_value_t = 2)]
    threads: usize,
    /// Requests of a model that may wait [default: 64, or what its model.toml says]
    #[arg(long, help_heading = "Server", value_name = "N")]
    queue: Option<usize>,
    /// Time for a request, from its arrival to its answer [default: 60s, or what the model.toml says]
    #[arg(long, help_heading = "Server", value_name = "DUR", value_parser = duration)]
    timeout: Option<Duration>,
    /// Largest body of a request, unpacked, or message of gRPC, such as 64MiB
    #[arg(long, help_heading = "Server", value_name = "SIZE", default_value = "64MiB")]
    max_body: ByteSize,
    /// Connections of each address at one time
    #[arg(long, help_heading = "Server", value_name = "N", default_value_t = 1024)]
    max_connections: usize,
    /// Time for the requests in progress after SIGTERM or Ctrl-C
    #[arg(long, help_heading = "Server", value_name = "DUR", default_value = "30s", value_parser = duration)]
    drain: Duration,
    /// Names of the classes for `classify`, one a line, of models without a model.toml
    #[arg(long, help_heading = "Server", value_name = "FILE")]
    labels: Option<PathBuf>,
    #[command(flatten)]
    picture: PictureArgs,
    /// Fully connected layers (Gemm, MatMul) on the workers: auto (where it pays), on, off
    #[arg(long, help_heading = "Coding", value_name = "WHICH", default_value_t)]
    gemm: GemmChoice,
    /// Let the planner also choose, layer by layer, the number of subtasks, replication instead of the code, and what is
    /// left on the host because that is faster
    #[arg(long, help_heading = "Coding")]
    auto: bool,
    #[command(flatten, next_help_heading = "Coding")]
    layer: LayerArgs,
}

impl Pictures for PictureArgs {
    fn read(&self, input: &InputInfo, settings: Option<&toml::Table>, bytes: Vec<u8>) -> Result<Tensor> {
        let own: Self;
        let args = match settings {
            None => self,
            Some(table) => {
                own = table.clone().try_into().map_err(|e: toml::de::Error| {
                    Error::invalid("[picture] of model.toml", e.message(), "docs/serving.md lists its fields")
                })?;
                &own
            }
        };
        Ok(args.read_bytes(input, "the body", bytes).map_err(with_flags)?.into())
    }
}

pub(crate) fn run(args: &ServeArgs, console: Console) -> Result<()> {
    let mut ledger = Ledger::default();
    if args.layer.report.is_some() {
        let help = "leave it out: a server has metrics instead, at /metrics";
        return Err(Error::invalid("report of a server (--report)", "given", help));
    }
    pool::files(&args.layer, &mut ledger)?;
    let options = server_options(args)?;
    let signals = Signals::catch()?;
    let precision = args.layer.precision.map(|precision| match precision {
        Precision::F32 => DType::F32,
        Precision::F64 => DType::F64,
    });
    let mut model = ModelOptions {
        layer: args.layer.layer_options("")?,
        gemm: args.gemm,
        precision,
        freedom: if args.auto { AutoChoices::ALL } else { AutoChoices::default() },
    };
    let pool;
    (pool, model.layer.rates) = pool::assemble(&args.layer, precision.unwrap_or(DType::F32), true, console)?;
    let (source, observer) = metrics::source_of(&pool);
    model.layer.observer = Some(observer);
    let engine = Engine { pool, options: model };
    let server = Server::start(&options, &engine, source, Some(Arc::new(args.picture.clone())))?;
    let failures = server.failures();
    for (name, version, why) in &failures {
        console.notice(format_args!("notice: version {version} of {name} is not loaded: {why}"));
    }
    let loaded: Vec<String> =
        server.loaded().into_iter().map(|(name, version)| format!("{name} (version {version})")).collect();
    if loaded.is_empty() {
        let reasons: Vec<String> =
            failures.into_iter().map(|(name, _, why)| format!("{name}: {why}")).collect();
        return Err(Error::Unavailable { what: "every model".to_owned(), help: reasons.join("; ").into() });
    }
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    let grpc = server.grpc_address().map_or_else(String::new, |address| format!("; gRPC at {address}"));
    console.notice(format_args!(
        "serving {} at {scheme}://{}{grpc}; Ctrl-C ends it",
        loaded.join(", "),
        server.address()
    ));
    loop {
        match signals.next() {
            Asked::End => break,
            #[cfg(unix)]
            Asked::Reload => match server.reload() {
                Ok(()) => console.notice("certificates, tokens and the access log are those on disk now"),
                Err(error) => console.notice(format_args!("notice: {error}")),
            },
        }
    }
    console.notice("ending: requests in progress are answered first");
    match server.drain() {
        0 => Ok(()),
        cut => Err(Error::Timeout {
            what: format!("requests of {cut} connections"),
            limit: args.drain,
            help: "give the server more time to end (--drain)".into(),
        }),
    }
}

fn server_options(args: &ServeArgs) -> Result<ServerOptions> {
    let defaults = ModelConfig::default();
    let bytes = usize::try_from(args.max_body.as_u64()).unwrap_or(usize::MAX);
    let limits = ServerOptions::default();
    Ok(ServerOptions {
        sources: args.paths.clone(),
        address: args.http.clone(),
        grpc: Some(args.grpc.clone()).filter(|address| address != "off"),
        tls: tls(args),
        default: ModelConfig {
            labels: args.labels.clone(),
            queue_length: args.queue.unwrap_or(defaults.queue_length),
            timeout: args.timeout.unwrap_or(defaults.timeout),
            ..defaults
        },
        threads: args.threads,
        max_body_bytes: bytes,
        max_bodies_bytes: limits.max_bodies_bytes.max(bytes),
        max_connections: args.max_connections,
        drain_timeout: args.drain,
        tokens: args.token_file.as_deref().map(Tokens::read).transpose()?,
        access_log: args.access_log.clone(),
        insecure: args.insecure,
        ..limits
    })
}

fn tls(args: &ServeArgs) -> Option<Tls> {
    let (certificate, key) = (args.tls_cert.clone()?, args.tls_key.clone()?);
    Some(Tls { certificate, key, client_ca: args.tls_client_ca.clone() })
}
