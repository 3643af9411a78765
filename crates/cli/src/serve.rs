//! `fcdcc serve`: answers the requests of other programs with models on coded workers, until it is stopped.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use fcdcc::array::DType;
use fcdcc::model::{AutoChoices, GemmChoice, InputInfo, ModelOptions, Tensor};
use fcdcc::{Error, Result};
use fcdcc_bench::with_flags;
use fcdcc_serve::{Engine, Pictures, Server};

use super::ledger::Ledger;
use super::options::{LayerArgs, Precision};
use super::picture::PictureArgs;
use super::segments::ObjectiveArgs;
use super::serve_options::ServerArgs;
use super::signals::{Asked, Signals};
use super::{Console, metrics, open_files, pool};

/// Open files of a server beside its connections: models, workers, logs.
const OWN_FILES: u64 = 128;

/// Serve ONNX models over HTTP and gRPC by the Open Inference Protocol v2.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    fcdcc serve lenet5.onnx\n  \
    fcdcc serve --config serve.toml\n  \
    fcdcc serve models --pool pool.toml --http 0.0.0.0:8000 --grpc 0.0.0.0:8001 --token-file tokens.txt\n  \
    curl http://127.0.0.1:8000/v2/models/lenet5\n  \
    curl --data-binary @digit.png http://127.0.0.1:8000/v2/models/lenet5/classify\n\n\
    docs/serving.md describes requests, repositories and model.toml.")]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// A TOML file with options of the server, by their long names with `_` for `-`, `models` and `pool`; those of the command
    /// line come first
    #[arg(long, help_heading = "Server", value_name = "FILE.toml")]
    config: Option<PathBuf>,
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
    objective: ObjectiveArgs,
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
    let server = args.server.clone().with_file(args.config.as_deref())?;
    let mut layer = args.layer.clone();
    layer.pool = layer.pool.or(server.pool.clone());
    if server.models.is_empty() {
        let help = "name a model file or a repository, here or as `models` in the file of --config";
        return Err(Error::invalid("number of models", 0, help));
    }
    pool::files(&layer, &mut ledger)?;
    let options = server.options()?;
    check_open_files(options.max_connections, console);
    let signals = Signals::catch()?;
    let precision = layer.precision.map(|precision| match precision {
        Precision::F32 => DType::F32,
        Precision::F64 => DType::F64,
    });
    let mut model = ModelOptions {
        layer: layer.layer_options("")?,
        gemm: args.gemm,
        precision,
        freedom: if args.auto { AutoChoices::ALL } else { AutoChoices::default() },
        segments: None,
    };
    let pool;
    let (dtype, objective) = (precision.unwrap_or(DType::F32), args.objective.objective);
    (pool, model.layer.rates, model.segments) = pool::assemble_for(&layer, dtype, objective, console)?;
    let (source, observer) = metrics::source_of(&pool);
    model.layer.observer = Some(observer);
    let engine = Engine { pool, options: model };
    let server = Server::start(&options, &engine, source, Some(Arc::new(args.picture.clone())))?;
    pool::tell_refusals(&engine.pool, console);
    let loaded = loaded(&server, console)?;
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
            limit: options.drain_timeout,
            help: "give the server more time to end (--drain)".into(),
        }),
    }
}

/// Raises the limit of open files, and says so where it does not suffice for `connections` of each protocol.
fn check_open_files(connections: usize, console: Console) {
    // A connection takes a file, and so do model files and the connections to workers.
    let needed = 2 * connections as u64 + OWN_FILES;
    if let Some(most) = open_files::raise().filter(|most| *most < needed) {
        console.notice(format_args!(
            "notice: the system allows {most} open files, and {connections} connections of each protocol need {needed}: \
             raise it (ulimit -n, LimitNOFILE), or lower --max-connections"
        ));
    }
}

/// The models that are served; prints a notice for each that is not.
///
/// # Errors
/// [`Error::Unavailable`] if there are none.
fn loaded(server: &Server, console: Console) -> Result<Vec<String>> {
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
    Ok(loaded)
}
