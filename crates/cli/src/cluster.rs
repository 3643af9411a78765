//! `fcdcc cluster`: lists the machines of a cluster and their state, and checks them.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use fcdcc::cluster::wire::HostInfo;
use fcdcc::cluster::{Endpoint, MachineCheck, Member, survey};
use fcdcc::dates::{certificate_notice, days_until};
use fcdcc::{Error, Result};
use serde::Serialize;

use super::network::SecurityArgs;
use super::options::duration;
use super::pool::{self, Checked};
use super::print::{out, out_json};

/// List the machines of a cluster: devices, health, load, filters held. Or check each of them.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "Examples:\n  \
    fcdcc cluster check pool.toml\n  \
    fcdcc cluster --connect 127.0.0.1:7447\n  \
    fcdcc cluster --connect quic/master.lan --ca ca.pem --certificate operator.pem --key operator.key --json")]
pub(crate) struct ClusterArgs {
    /// Where a master, a router or a machine listens: [tcp/|quic/]HOST[:PORT]
    #[arg(long, value_name = "ENDPOINT", required = true)]
    connect: Option<Endpoint>,
    /// The cluster
    #[arg(long, value_name = "NAME", default_value = "default")]
    cluster: String,
    /// How long to wait for a connection, and for answers
    #[arg(long, value_name = "DUR", default_value = "3s", value_parser = duration)]
    wait: Duration,
    /// Machine-readable output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    security: SecurityArgs,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Check names, certificates, ports, clocks and rates between this master and each machine
    ///
    /// Takes part in the cluster as the master of the pool file would, so that master has to be stopped where it listens. Exit
    /// status 2 if a machine cannot be used or needs attention.
    Check(CheckArgs),
}

#[derive(Args)]
struct CheckArgs {
    /// The pool file of the master
    #[arg(value_name = "POOL.toml")]
    pool: PathBuf,
    /// Time for the whole check; half of it is for machines to join
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = duration)]
    wait: Duration,
    /// Machine-readable output
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct CheckReport {
    schema: u32,
    cluster: String,
    at: String,
    certificate_days: Option<i64>,
    /// What is wrong on this side.
    problems: Vec<String>,
    machines: Vec<CheckRow>,
}

#[derive(Serialize)]
struct CheckRow {
    name: String,
    ok: bool,
    problems: Vec<String>,
    version: Option<String>,
    devices: Option<usize>,
    round_trip_ms: Option<f64>,
    up_bytes_per_s: Option<f64>,
    down_bytes_per_s: Option<f64>,
    clock_ahead_s: Option<f64>,
    certificate_days: Option<i64>,
}

impl From<MachineCheck> for CheckRow {
    fn from(check: MachineCheck) -> Self {
        let found = check.found.as_ref();
        let rate = |way: usize| found.and_then(|found| found.rates).map(|rates| rates[way]);
        Self {
            name: check.machine,
            ok: check.problems.is_empty(),
            version: found.map(|found| found.version.clone()),
            devices: found.map(|found| found.devices),
            round_trip_ms: found.and_then(|found| found.round_trip).map(|time| time.as_secs_f64() * 1e3),
            up_bytes_per_s: rate(0),
            down_bytes_per_s: rate(1),
            clock_ahead_s: found.map(|found| found.clock_ahead_s),
            certificate_days: found
                .and_then(|found| found.certificate_end)
                .map(|end| days_until(end, SystemTime::now())),
            problems: check.problems,
        }
    }
}

impl From<Checked> for CheckReport {
    fn from(checked: Checked) -> Self {
        let (end, now) = (checked.certificate_end, SystemTime::now());
        let problem = end.and_then(|end| certificate_notice("the certificate of this side", end, now));
        Self {
            schema: 1,
            cluster: checked.cluster,
            at: checked.places,
            certificate_days: end.map(|end| days_until(end, now)),
            problems: problem.into_iter().collect(),
            machines: checked.machines.into_iter().map(CheckRow::from).collect(),
        }
    }
}

fn check(args: &CheckArgs) -> Result<()> {
    let report = CheckReport::from(pool::check(&args.pool, args.wait)?);
    if args.json {
        out_json(&report)?;
    } else {
        check_table(&report)?;
    }
    let bad = report.machines.iter().filter(|machine| !machine.ok).count();
    if bad == 0 && report.problems.is_empty() && !report.machines.is_empty() {
        return Ok(());
    }
    Err(Error::Unavailable {
        what: match (bad, report.machines.len()) {
            (_, 0) => "the cluster (no machine is named, and none has joined)".to_owned(),
            (0, _) => "the cluster (this side needs attention)".to_owned(),
            (bad, all) => format!("the cluster ({bad} of {all} machines need attention)"),
        },
        help: "what to change is said of each".into(),
    })
}

fn check_table(report: &CheckReport) -> Result<()> {
    out(format_args!("cluster {} at {}", report.cluster, report.at))?;
    if let Some(days) = report.certificate_days {
        out(format_args!("  this side: certificate for {days} days"))?;
    }
    for problem in &report.problems {
        out(format_args!("    {problem}"))?;
    }
    for machine in &report.machines {
        let mut parts = Vec::new();
        if let (Some(version), Some(devices)) = (&machine.version, machine.devices) {
            let plural = if devices == 1 { "" } else { "s" };
            parts.push(format!("fcdcc {version}, {devices} device{plural}"));
        }
        parts.extend(machine.round_trip_ms.map(|ms| format!("round trip {ms:.1} ms")));
        let megabits = |bytes: f64| bytes * 8.0 / 1e6;
        if let (Some(up), Some(down)) = (machine.up_bytes_per_s, machine.down_bytes_per_s) {
            parts.push(format!("{:.0} Mbit/s there and {:.0} back", megabits(up), megabits(down)));
        }
        // The sum makes a negative zero positive.
        let tenths = |seconds: f64| (seconds * 10.0).round() / 10.0 + 0.0;
        parts.extend(machine.clock_ahead_s.map(|ahead| format!("clock {:+.1} s", tenths(ahead))));
        parts.extend(machine.certificate_days.map(|days| format!("certificate for {days} days")));
        let verdict = if machine.ok { "ok" } else { "needs attention" };
        out(format_args!(
            "  {}: {verdict}{}{}",
            machine.name,
            if parts.is_empty() { "" } else { ": " },
            parts.join(", ")
        ))?;
        for problem in &machine.problems {
            out(format_args!("    {problem}"))?;
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct Listing {
    schema: u32,
    cluster: String,
    machines: Vec<Machine>,
}

#[derive(Serialize)]
struct Machine {
    name: String,
    boot: String,
    /// The reason if the machine cannot be used.
    problem: Option<String>,
    #[serde(flatten)]
    info: Option<HostInfoJson>,
}

#[derive(Serialize)]
struct HostInfoJson {
    version: String,
    uptime_s: u64,
    memory_used_bytes: u64,
    memory_limit_bytes: u64,
    masters: u32,
    devices: Vec<Device>,
}

#[derive(Serialize)]
struct Device {
    name: String,
    kind: &'static str,
    what: String,
    f64: bool,
    /// `ready`, `busy` or `lost`.
    state: &'static str,
    /// The reason if it is `lost`.
    cause: Option<String>,
    load: u32,
    filters: u32,
    filter_bytes: u64,
    done: u64,
    cancelled: u64,
    failed: u64,
}

impl From<Member> for Machine {
    fn from(member: Member) -> Self {
        let boot = format!("{:016x}", member.boot);
        match member.info {
            Ok(info) => Self { name: member.machine, boot, problem: None, info: Some(info.into()) },
            Err(problem) => Self { name: member.machine, boot, problem: Some(problem), info: None },
        }
    }
}

impl From<HostInfo> for HostInfoJson {
    fn from(info: HostInfo) -> Self {
        let device = |d: fcdcc::cluster::wire::DeviceInfo| Device {
            kind: d.kind().name(),
            state: match (&d.lost, d.load) {
                (Some(_), _) => "lost",
                (None, 0) => "ready",
                (None, _) => "busy",
            },
            name: d.name,
            what: d.device,
            f64: d.f64,
            cause: d.lost,
            load: d.load,
            filters: d.filters,
            filter_bytes: d.filter_bytes,
            done: d.done,
            cancelled: d.cancelled,
            failed: d.failed,
        };
        Self {
            version: info.version,
            uptime_s: info.uptime_s,
            memory_used_bytes: info.memory_used_bytes,
            memory_limit_bytes: info.memory_limit_bytes,
            masters: info.masters,
            devices: info.devices.into_iter().map(device).collect(),
        }
    }
}

pub(crate) fn run(args: &ClusterArgs) -> Result<()> {
    if let Some(Action::Check(args)) = &args.action {
        return check(args);
    }
    let Some(connect) = &args.connect else {
        return Err(Error::invalid("endpoint", "missing", "give --connect ENDPOINT"));
    };
    let security = args.security.security(None);
    let members = survey(connect, &args.cluster, &security, args.wait)?;
    let machines = members.into_iter().map(Machine::from).collect();
    let listing = Listing { schema: 1, cluster: args.cluster.clone(), machines };
    if args.json { out_json(&listing) } else { table(&listing, connect) }
}

fn table(listing: &Listing, connect: &Endpoint) -> Result<()> {
    if listing.machines.is_empty() {
        return out(format_args!("no machine in cluster {} at {connect}", listing.cluster));
    }
    for machine in &listing.machines {
        let Some(info) = &machine.info else {
            let problem = machine.problem.as_deref().unwrap_or_default();
            out(format_args!("{}: cannot be used: {problem}", machine.name))?;
            continue;
        };
        out(format_args!(
            "{}: fcdcc {}, up {}, {} of {} memory, {} master{}",
            machine.name,
            info.version,
            humantime::format_duration(Duration::from_secs(info.uptime_s)),
            ByteSize::b(info.memory_used_bytes),
            ByteSize::b(info.memory_limit_bytes),
            info.masters,
            if info.masters == 1 { "" } else { "s" },
        ))?;
        let width = info.devices.iter().map(|d| d.name.len()).max().unwrap_or(0).max(6);
        out(format_args!(
            "  {:width$}  state  load  filters       size     done  cancelled  failed  what",
            "device"
        ))?;
        for d in &info.devices {
            out(format_args!(
                "  {:width$}  {:5}  {:>4}  {:>7}  {:>9}  {:>7}  {:>9}  {:>6}  {} {}{}",
                d.name,
                d.state,
                d.load,
                d.filters,
                ByteSize::b(d.filter_bytes).to_string(),
                d.done,
                d.cancelled,
                d.failed,
                d.kind,
                d.what,
                d.cause.as_ref().map_or_else(String::new, |cause| format!(" (lost: {cause})")),
            ))?;
        }
    }
    Ok(())
}
