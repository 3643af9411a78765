//! `fcdcc bench --serve`: a load on a running server, with latencies that count from the times of arrival.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::options::duration;

/// What `--serve` excludes: a comparison of methods, and workers of its own.
const EXCLUDES: [&str; 8] = ["layers", "methods", "scenario", "delay", "simulated", "pool", "fault", "load"];

/// Options of a load.
#[derive(Args, Clone, Debug)]
pub(crate) struct LoadArgs {
    /// Measure a running server of the Open Inference Protocol, http://HOST:PORT or https://HOST:PORT, instead of
    /// comparing methods: requests for the model of --model arrive by a schedule, whatever the server does
    #[arg(long = "serve", value_name = "URL", conflicts_with_all = EXCLUDES)]
    pub(crate) url: Option<String>,
    /// Requests a second [default: 100]
    #[arg(long, value_name = "R", requires = "url", allow_negative_numbers = true)]
    rate: Option<f64>,
    /// Time during which requests arrive [default: 10s]
    #[arg(long, value_name = "DUR", requires = "url", value_parser = duration)]
    duration: Option<Duration>,
    /// How they arrive: poisson (independently, as those of many users) or constant (in equal gaps) [default: poisson]
    #[arg(long, value_name = "KIND", requires = "url")]
    arrivals: Option<String>,
    /// Most connections, and so most requests in flight [default: 64]
    #[arg(long, value_name = "N", requires = "url")]
    connections: Option<usize>,
    /// The longest time from sending a request to its answer [default: 10s]
    #[arg(long, value_name = "DUR", requires = "url", value_parser = duration)]
    limit: Option<Duration>,
    /// The first output that every answer must have [default: that of the first answer]
    #[arg(long, value_name = "Y.npy", requires = "url")]
    expect: Option<PathBuf>,
    /// Tokens of the server; the first one is used
    #[arg(long, value_name = "FILE", requires = "url")]
    token_file: Option<PathBuf>,
    /// Authority of the certificate of an https server, in PEM
    #[arg(long, value_name = "FILE", requires = "url")]
    ca: Option<PathBuf>,
}

/// What else the command line says of a load.
pub(crate) struct Request<'a> {
    pub(crate) url: &'a str,
    /// `--model`, which names a model of the server.
    pub(crate) model: Option<&'a Path>,
    pub(crate) inputs: &'a [PathBuf],
    pub(crate) output: Option<&'a Path>,
    pub(crate) report: Option<&'a Path>,
    pub(crate) seed: u64,
}

#[cfg(not(feature = "serve"))]
pub(crate) fn run(args: &LoadArgs, request: &Request<'_>, _: super::Console) -> fcdcc::Result<()> {
    let Request { url, model, inputs, output, report, seed } = request;
    tracing::debug!(?args, url, ?model, ?inputs, ?output, ?report, seed, "ignored");
    Err(fcdcc::Error::Unavailable {
        what: "a load on a server (--serve)".to_owned(),
        help: "this binary was built without it: build or install it with `--features full`".into(),
    })
}

#[cfg(feature = "serve")]
pub(crate) use served::run;

#[cfg(feature = "serve")]
mod served {
    use std::collections::BTreeMap;

    use fcdcc::files::Output;
    use fcdcc::{Error, Result};
    use fcdcc_bench::load::{Load, LoadReport, Outcomes, Times};
    use fcdcc_bench::{machine, page_load};
    use fcdcc_serve::Tokens;
    use fcdcc_serve::load::{self, LoadOptions, LoadOutcome, Outcome, Sample};

    use super::{Duration, LoadArgs, Request};
    use crate::ledger::Ledger;
    use crate::progress::Bar;
    use crate::{Console, arrays, print};

    /// Where results are written: report.html and bench.json of a folder, and a report.
    struct Places {
        folder: Option<(Output, Output)>,
        report: Option<Output>,
    }

    pub(crate) fn run(args: &LoadArgs, request: &Request<'_>, console: Console) -> Result<()> {
        let mut ledger = Ledger::default();
        let places = places(args, request, &mut ledger)?;
        let console = console.beside(&ledger);
        let options = options(args, request)?;
        let bar = Bar::new(console, "loading");
        let outcome = load::run(&options, &mut |done, total| bar.steps(done, total, "requests"))?;
        drop(bar);
        let report = report(&options, &outcome);
        if let Some((html, json)) = places.folder {
            arrays::write_bytes(html, page_load::page(&report).html().as_bytes())?;
            arrays::write_report(json, &report)?;
        }
        if let Some(place) = places.report {
            arrays::write_report(place, &report)?;
        }
        if console.tables {
            table(&report)?;
        }
        if report.outcomes.wrong == 0 {
            return Ok(());
        }
        let what = format!("{} of {} answers", report.outcomes.wrong, report.outcomes.sent);
        let help = "the results of the server differ from the expected ones".into();
        Err(Error::Inexact { what, error: outcome.distance, bound: load::AGREES, help })
    }

    fn places(args: &LoadArgs, request: &Request<'_>, ledger: &mut Ledger) -> Result<Places> {
        for path in request.inputs {
            ledger.input("--input", path)?;
        }
        for (option, path) in
            [("--expect", &args.expect), ("--token-file", &args.token_file), ("--ca", &args.ca)]
        {
            if let Some(path) = path {
                ledger.input(option, path)?;
            }
        }
        let folder = match request.output {
            None => None,
            Some(folder) => Some((
                ledger.output_within("--output", folder, "report.html")?,
                ledger.output_within("--output", folder, "bench.json")?,
            )),
        };
        let report = request.report.map(|path| ledger.output("--report", path)).transpose()?;
        Ok(Places { folder, report })
    }

    fn options(args: &LoadArgs, request: &Request<'_>) -> Result<LoadOptions> {
        let model = request.model.map(|model| model.display().to_string()).ok_or_else(|| {
            let help = "name a model of the server: its address /v2/repository/index lists them";
            Error::invalid("model of the server (--model)", "missing", help)
        })?;
        let read = |path: &std::path::PathBuf| arrays::read_tensor(arrays::Source::open(path, &[])?);
        Ok(LoadOptions {
            url: request.url.to_owned(),
            model,
            inputs: request.inputs.iter().map(read).collect::<Result<_>>()?,
            expected: args.expect.as_ref().map(read).transpose()?,
            arrivals: args.arrivals.as_deref().map_or_else(|| Ok(load::Arrivals::default()), str::parse)?,
            rate: args.rate.unwrap_or(100.0),
            duration: args.duration.unwrap_or(Duration::from_secs(10)),
            connections: args.connections.unwrap_or(64),
            limit: args.limit.unwrap_or(Duration::from_secs(10)),
            seed: request.seed,
            token: args.token_file.as_deref().map(Tokens::read).transpose()?.map(|tokens| tokens.first()),
            authority: args.ca.clone(),
        })
    }

    fn report(options: &LoadOptions, outcome: &LoadOutcome) -> LoadReport {
        let mut of = Outcomes { sent: outcome.samples.len(), ..Outcomes::default() };
        let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
        for sample in &outcome.samples {
            match sample.outcome {
                Outcome::Right => of.right += 1,
                Outcome::Wrong => of.wrong += 1,
                Outcome::TimedOut => of.timed_out += 1,
                Outcome::Broken => of.broken += 1,
                Outcome::Status(status) => *statuses.entry(status).or_default() += 1,
            }
        }
        of.statuses = statuses;
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let times = |sample: &Sample| Times {
            latency_ms: ms(sample.latency()),
            service_ms: ms(sample.service()),
            counts: matches!(sample.outcome, Outcome::Right | Outcome::Wrong | Outcome::TimedOut),
        };
        let times: Vec<Times> = outcome.samples.iter().map(times).collect();
        let load = Load {
            url: options.url.clone(),
            model: options.model.clone(),
            version: outcome.version.clone(),
            inputs: outcome.inputs.clone(),
            arrivals: options.arrivals.to_string(),
            rate: options.rate,
            seconds: options.duration.as_secs_f64(),
            connections: options.connections,
            limit_ms: ms(options.limit),
        };
        let workers = format!("those of {}", options.url);
        let setting =
            machine::setting("served", workers, "as served".to_owned(), options.seed, outcome.samples.len());
        LoadReport::new(setting, load, of, &times, outcome.elapsed.as_secs_f64(), outcome.distance)
    }

    fn table(report: &LoadReport) -> Result<()> {
        let (load, of) = (&report.load, &report.outcomes);
        print::out(format_args!(
            "{} (version {}) at {}: {} {} requests a second for {} s, at most {} in flight",
            load.model, load.version, load.url, load.rate, load.arrivals, load.seconds, load.connections
        ))?;
        print::out(format_args!(
            "  sent {}, right {}, wrong {}, no answer in time {}, no connection {}",
            of.sent, of.right, of.wrong, of.timed_out, of.broken
        ))?;
        for (status, count) in &of.statuses {
            print::out(format_args!("  status {status}: {count}"))?;
        }
        print::out(format_args!("  {:12} {:>12} {:>12}", "ms", "from arrival", "from sending"))?;
        let text = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.2}"));
        for ((name, latency), (_, service)) in report.latency.rows().into_iter().zip(report.service.rows()) {
            print::out(format_args!("  {name:12} {:>12} {:>12}", text(latency), text(service)))?;
        }
        for sentence in &report.findings {
            print::out(format_args!("- {sentence}"))?;
        }
        Ok(())
    }
}
