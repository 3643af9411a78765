//! `fcdcc cluster`: lists the machines of a cluster and their state.

use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use fcdcc::Result;
use fcdcc::cluster::wire::HostInfo;
use fcdcc::cluster::{Endpoint, Member, survey};
use serde::Serialize;

use super::network::SecurityArgs;
use super::options::duration;
use super::print::{out, out_json};

/// List the machines of a cluster: devices, health, load, filters held.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    fcdcc cluster --connect 127.0.0.1:7447\n  \
    fcdcc cluster --connect quic/master.lan --ca ca.pem --certificate operator.pem --key operator.key --json")]
pub(crate) struct ClusterArgs {
    /// Where a master, a router or a machine listens: [tcp/|quic/]HOST[:PORT]
    #[arg(long, value_name = "ENDPOINT")]
    connect: Endpoint,
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
    let security = args.security.security(None);
    let members = survey(&args.connect, &args.cluster, &security, args.wait)?;
    let machines = members.into_iter().map(Machine::from).collect();
    let listing = Listing { schema: 1, cluster: args.cluster.clone(), machines };
    if args.json { out_json(&listing) } else { table(&listing, args) }
}

fn table(listing: &Listing, args: &ClusterArgs) -> Result<()> {
    if listing.machines.is_empty() {
        return out(format_args!("no machine in cluster {} at {}", listing.cluster, args.connect));
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
