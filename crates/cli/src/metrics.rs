//! `--metrics`: the HTTP endpoint of metrics and readiness.

#[cfg(feature = "metrics")]
use std::sync::Arc;

use clap::Args;
#[cfg(feature = "onnx")]
use fcdcc::Pool;
use fcdcc::Result;
#[cfg(feature = "onnx")]
use fcdcc::engine::ReportObserver;

/// Where metrics are served.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct MetricsArgs {
    /// Serve Prometheus metrics (/metrics) and readiness (/readyz) here, such as 127.0.0.1:9464
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<String>,
}

impl MetricsArgs {
    /// The address of the option, else that of `file`, a configuration file.
    #[cfg(feature = "cluster")]
    pub(crate) fn address<'a>(&'a self, file: Option<&'a str>) -> Option<&'a str> {
        self.metrics.as_deref().or(file)
    }

    /// Serves the metrics of a pool, if requested.
    #[cfg(feature = "onnx")]
    pub(crate) fn of_pool(&self, pool: &Pool) -> Result<Option<Metrics>> {
        self.metrics.as_deref().map(|address| Metrics::of_pool(address, pool)).transpose()
    }
}

/// A source whose errors name the options of the command line.
#[cfg(all(feature = "metrics", feature = "onnx"))]
struct WithFlags(Arc<fcdcc::telemetry::Master>);

#[cfg(all(feature = "metrics", feature = "onnx"))]
impl fcdcc::telemetry::Source for WithFlags {
    fn metrics(&self) -> String {
        self.0.metrics()
    }

    fn ready(&self) -> Result<()> {
        self.0.ready().map_err(fcdcc_bench::with_flags)
    }
}

/// The counters of a pool, and of the clusters that its workers come from.
#[cfg(all(feature = "metrics", feature = "onnx"))]
fn master_of(pool: &Pool) -> Arc<fcdcc::telemetry::Master> {
    let master = fcdcc::telemetry::Master::new(pool);
    #[cfg(feature = "cluster")]
    for cluster in super::pool::clusters() {
        master.watch(&cluster);
    }
    master
}

/// The metrics and the check of a pool, and the observer that counts its layers.
#[cfg(feature = "serve")]
pub(crate) fn source_of(pool: &Pool) -> (Arc<dyn fcdcc::telemetry::Source>, ReportObserver) {
    let master = master_of(pool);
    let observer = master.observer();
    (Arc::new(WithFlags(master)), observer)
}

/// Serves until it is dropped.
pub(crate) struct Metrics {
    #[cfg(feature = "metrics")]
    exporter: fcdcc::telemetry::Exporter,
    #[cfg(all(not(feature = "metrics"), feature = "cluster"))]
    exporter: std::convert::Infallible,
    #[cfg(feature = "onnx")]
    observer: Option<ReportObserver>,
}

#[cfg(feature = "metrics")]
impl Metrics {
    #[cfg(feature = "onnx")]
    fn of_pool(address: &str, pool: &Pool) -> Result<Self> {
        let master = master_of(pool);
        let observer = Some(master.observer());
        let exporter = fcdcc::telemetry::Exporter::start(address, Arc::new(WithFlags(master)))?;
        Ok(Self { exporter, observer })
    }

    #[cfg(feature = "cluster")]
    pub(crate) fn of_worker(address: &str, server: &Arc<fcdcc::cluster::WorkerServer>) -> Result<Self> {
        let source: Arc<dyn fcdcc::telemetry::Source> = fcdcc::telemetry::WorkerProcess::new(server);
        Ok(Self {
            exporter: fcdcc::telemetry::Exporter::start(address, source)?,
            #[cfg(feature = "onnx")]
            observer: None,
        })
    }

    #[cfg(feature = "cluster")]
    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.exporter.address()
    }
}

#[cfg(not(feature = "metrics"))]
impl Metrics {
    #[cfg(feature = "onnx")]
    fn of_pool(_: &str, _: &Pool) -> Result<Self> {
        Err(Self::missing())
    }

    #[cfg(feature = "cluster")]
    pub(crate) fn of_worker(_: &str, _: &std::sync::Arc<fcdcc::cluster::WorkerServer>) -> Result<Self> {
        Err(Self::missing())
    }

    #[cfg(feature = "cluster")]
    pub(crate) fn address(&self) -> std::net::SocketAddr {
        match self.exporter {}
    }

    fn missing() -> fcdcc::Error {
        fcdcc::Error::Unavailable {
            what: "the metrics endpoint".to_owned(),
            help: "this binary was built without it: build or install it with `--features full`".into(),
        }
    }
}

#[cfg(feature = "onnx")]
impl Metrics {
    /// An observer that counts layers, for their options.
    pub(crate) fn observer(&self) -> Option<ReportObserver> {
        self.observer.clone()
    }
}
