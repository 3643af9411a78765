//! `fcdcc worker`: lends this machine's workers to masters until it is stopped.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytesize::ByteSize;
use clap::Args;
use crossbeam_channel::bounded;
use fcdcc::cluster::{Endpoint, ServeOptions, WorkerServer};
use fcdcc::{Error, Result, Worker};
use serde::Deserialize;

use super::Console;
use super::kept_rates::{Calibrate, Measuring};
use super::metrics::{self, Metrics};
use super::network::{Endpoints, SecurityArgs, TlsEntry, read_toml};
use super::options::Backend;
use super::pool::{self, WorkerEntry};

/// Default limit of the filter cache.
const CACHE_LIMIT: ByteSize = ByteSize::gib(8);
/// Default limit for filters, slabs and results if the system does not report its available memory.
const MEMORY: ByteSize = ByteSize::gib(4);

/// Lend this machine's GPUs and cores to masters on other machines.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    fcdcc worker --connect quic/master.lan:7447 --ca ca.pem --certificate alpha.pem --key alpha.key\n  \
    fcdcc worker --config /etc/fcdcc/worker.toml\n  \
    fcdcc worker --listen 127.0.0.1:7447 --workers 6     # to try it on one machine")]
pub(crate) struct WorkerArgs {
    /// Wait here for masters: [tcp/|quic/]HOST[:PORT] (may be repeated)
    #[arg(long, value_name = "ENDPOINT")]
    listen: Vec<Endpoint>,
    /// Connect to a master or a router, and again whenever the connection breaks (may be repeated)
    #[arg(long, value_name = "ENDPOINT")]
    connect: Vec<Endpoint>,
    /// This machine's name in the cluster [default: its host name]
    #[arg(long)]
    name: Option<String>,
    /// All of this from a TOML file, see docs/cluster.md; options go before what it says
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// The cluster; those of other names do not see each other [default: default]
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Workers to lend [default: one for each core, or each GPU]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Who computes
    #[arg(long, value_enum)]
    backend: Option<Backend>,
    /// GPU adapter: its number or part of its name (see `fcdcc devices`)
    #[arg(long, value_name = "ADAPTER")]
    adapter: Option<String>,
    /// Where the choice of GPU kernels comes from [default: auto]
    #[arg(long, value_enum, value_name = "WHEN")]
    calibrate: Option<Calibrate>,
    /// What filters, slabs and results may take, such as 4GiB [default: half of the memory that is free now]
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Keep filters in this folder, so that they need not be sent again after a restart
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// What they may take there [default: 8GiB]
    #[arg(long, value_name = "SIZE", requires = "cache")]
    cache_limit: Option<ByteSize>,
    /// Certificates of masters that may use this machine where it listens: their common name (may be repeated)
    /// [default: master]
    #[arg(long, value_name = "NAME")]
    master: Vec<String>,
    #[command(flatten)]
    security: SecurityArgs,
    #[command(flatten)]
    metrics: metrics::MetricsArgs,
}

/// `worker.toml`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    listen: Endpoints,
    #[serde(default)]
    connect: Endpoints,
    name: Option<String>,
    cluster: Option<String>,
    calibrate: Option<Calibrate>,
    memory: Option<ByteSize>,
    cache: Option<PathBuf>,
    cache_limit: Option<ByteSize>,
    metrics: Option<String>,
    #[serde(default)]
    masters: Vec<String>,
    #[serde(default = "pool::default_viewers")]
    viewers: Vec<String>,
    #[serde(default)]
    insecure: bool,
    tls: Option<TlsEntry>,
    #[serde(default)]
    worker: Vec<WorkerEntry>,
}

pub(crate) fn run(args: &WorkerArgs, console: Console) -> Result<()> {
    let (config, folder): (Config, &Path) = match &args.config {
        Some(path) => (read_toml(path, "a worker's configuration")?, path),
        None => (Config { viewers: pool::default_viewers(), ..Config::default() }, Path::new("")),
    };
    let options = serve_options(args, &config, folder)?;
    options.check()?;
    let workers = workers(args, &config, folder, console)?;
    let lent: Vec<String> =
        workers.iter().map(|w| w.info()).map(|i| format!("{} ({})", i.name, i.device)).collect();
    let server = Arc::new(WorkerServer::start(workers, &options)?);
    let address = args.metrics.address(config.metrics.as_deref());
    let metrics = address.map(|address| Metrics::of_worker(address, &server)).transpose()?;
    let (stop, stopped) = bounded(1);
    ctrlc::set_handler(move || {
        // One signal is enough.
        let _ = stop.try_send(());
    })
    .map_err(|e| Error::Unavailable {
        what: format!("the handler of signals ({e})"),
        help: "run it without one of its own".into(),
    })?;
    console.notice(format_args!(
        "{} lends {} at {} (cluster {}, at most {} of memory); Ctrl-C ends it",
        options.name,
        summary(&lent),
        server.places().join(", "),
        options.cluster,
        ByteSize::b(options.memory_bytes),
    ));
    if let Some(metrics) = &metrics {
        console.notice(format_args!("metrics at http://{}/metrics", metrics.address()));
    }
    // The sender lives in the handler until the process ends.
    let _ = stopped.recv();
    let info = server.info();
    let done: u64 = info.devices.iter().map(|device| device.done).sum();
    console.notice(format_args!("{} leaves after {done} tasks", options.name));
    Ok(())
}

fn summary(lent: &[String]) -> String {
    match lent {
        [one] => one.clone(),
        [first, .., last] => format!("{} workers, {first} to {last}", lent.len()),
        [] => "nothing".to_owned(),
    }
}

fn workers(
    args: &WorkerArgs,
    config: &Config,
    path: &Path,
    console: Console,
) -> Result<Vec<Box<dyn Worker>>> {
    let how = args.calibrate.or(config.calibrate).unwrap_or_default();
    let measuring = Measuring { how, unknown: true };
    let chosen = args.workers.is_some() || args.backend.is_some() || args.adapter.is_some();
    if !config.worker.is_empty() && !chosen {
        return pool::local_workers(&config.worker, path, measuring);
    }
    let backend = args.backend.unwrap_or_default();
    let gpus = || super::devices::auto().map(|adapters| adapters.len());
    let count = match (args.workers, backend) {
        (Some(count), _) => count,
        (None, Backend::Auto) => gpus().unwrap_or_else(|_| cores()),
        (None, Backend::Gpu) => gpus().unwrap_or(1),
        (None, Backend::Cpu) => cores(),
    };
    pool::check_count(count)?;
    pool::from_backend(backend, args.adapter.as_deref(), count, measuring, console)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn serve_options(args: &WorkerArgs, config: &Config, path: &Path) -> Result<ServeOptions> {
    let listed = |given: &[Endpoint], file: &Endpoints| -> Result<Vec<Endpoint>> {
        if given.is_empty() { file.parsed() } else { Ok(given.to_vec()) }
    };
    let (mut listen, mut connect) = (args.listen.clone(), args.connect.clone());
    if listen.is_empty() && connect.is_empty() {
        (listen, connect) = (listed(&[], &config.listen)?, listed(&[], &config.connect)?);
    }
    if listen.is_empty() && connect.is_empty() {
        return Err(Error::invalid(
            "endpoint",
            "missing",
            "give --connect ENDPOINT (a master's), --listen ENDPOINT, or --config with one of them",
        ));
    }
    let mut security = args.security.security(config.tls.as_ref().map(|tls| tls.beside(path)));
    security.insecure |= config.insecure;
    security.viewers.clone_from(&config.viewers);
    let masters = if args.master.is_empty() { &config.masters } else { &args.master };
    let folder = path.parent().unwrap_or(Path::new(""));
    let cache = args.cache.clone().or_else(|| config.cache.as_ref().map(|cache| folder.join(cache)));
    let limit = args.cache_limit.or(config.cache_limit).unwrap_or(CACHE_LIMIT);
    Ok(ServeOptions {
        name: args.name.clone().or_else(|| config.name.clone()).unwrap_or_else(host_name),
        cluster: args
            .cluster
            .clone()
            .or_else(|| config.cluster.clone())
            .unwrap_or_else(pool::default_cluster),
        listen,
        connect,
        security,
        masters: if masters.is_empty() { vec!["master".to_owned()] } else { masters.clone() },
        memory_bytes: args.memory.or(config.memory).unwrap_or_else(half_of_the_memory).as_u64(),
        cache: cache.map(|cache| (cache, limit.as_u64())),
    })
}

/// The machine's host name, with `-` for characters that names in a cluster must not contain.
fn host_name() -> String {
    #[cfg(unix)]
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    let name = std::env::var("COMPUTERNAME").unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let name: String = name.chars().map(plain).take(64).collect();
    if name.is_empty() { "worker".to_owned() } else { name }
}

/// Half of the memory that the system reports as available to this process.
fn half_of_the_memory() -> ByteSize {
    fcdcc::memory::available().map_or(MEMORY, |available| ByteSize::b(available.bytes / 2))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: WorkerArgs,
    }

    fn options(line: &str, config: &str) -> Result<ServeOptions> {
        let args = Command::parse_from(line.split_whitespace()).args;
        let config: Config = toml::from_str(config).unwrap();
        serve_options(&args, &config, Path::new("/etc/fcdcc/worker.toml"))
    }

    #[test]
    fn options_go_before_the_file_whose_paths_are_its_own() {
        let file = "connect = \"quic/m:1\"\nname = \"alpha\"\nmemory = \"2GiB\"\ncache = \"filters\"\n\
                    [tls]\nca = \"ca.pem\"\ncertificate = \"/abs/a.pem\"\nkey = \"a.key\"";
        let both = options("worker --name beta --connect 127.0.0.1:2", file).unwrap();
        assert_eq!((both.name.as_str(), both.cluster.as_str()), ("beta", "default"));
        assert_eq!(both.connect, ["127.0.0.1:2".parse().unwrap()]);
        assert_eq!(both.memory_bytes, 2 << 30);
        assert_eq!(both.cache, Some((PathBuf::from("/etc/fcdcc/filters"), 8 << 30)));
        let tls = both.security.tls.unwrap();
        assert_eq!(tls.ca, Path::new("/etc/fcdcc/ca.pem"));
        assert_eq!(tls.certificate, Path::new("/abs/a.pem"));
        assert_eq!(options("worker", file).unwrap().connect, ["quic/m:1".parse().unwrap()]);
        assert!(options("worker", "").unwrap_err().to_string().contains("--connect"));
        assert!(half_of_the_memory().as_u64() > 0);
        assert!(!host_name().is_empty());
    }
}
