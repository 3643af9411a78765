//! `fcdcc devices`: lists the GPU adapters and their capabilities.

use clap::Args;
use fcdcc::Result;
#[cfg(feature = "gpu")]
use fcdcc::gpu::{AdapterSummary, adapters};
use serde::Serialize;

use super::print::{out, out_json};

/// List the GPU adapters, what they can do, and what `--backend auto` would use.
#[derive(Args)]
#[command(after_help = "Example: fcdcc devices --json | jq '.adapters[].name'")]
pub(crate) struct DevicesArgs {
    /// Machine-readable output
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Devices {
    schema: u32,
    adapters: Vec<AdapterSummary>,
    cpu: Cpu,
    auto: Auto,
}

#[derive(Serialize)]
struct Cpu {
    threads: usize,
    arch: &'static str,
}

/// The choice of `--backend auto`.
#[derive(Serialize)]
struct Auto {
    backend: &'static str,
    /// Indices of the adapters; empty for CPU workers.
    adapters: Vec<usize>,
    reason: String,
}

#[cfg(not(feature = "gpu"))]
#[derive(Serialize)]
struct AdapterSummary {
    index: usize,
    name: String,
    software: bool,
}

#[cfg(not(feature = "gpu"))]
fn adapters() -> Vec<AdapterSummary> {
    Vec::new()
}

/// The adapters that `--backend auto` uses, or the reason for CPU workers.
pub(crate) fn auto() -> Result<Vec<usize>, String> {
    auto_of(&adapters())
}

fn auto_of(adapters: &[AdapterSummary]) -> Result<Vec<usize>, String> {
    let real: Vec<usize> = adapters.iter().filter(|a| !a.software).map(|a| a.index).collect();
    if !real.is_empty() {
        return Ok(real);
    }
    Err(match adapters.first() {
        _ if cfg!(not(feature = "gpu")) => "this binary was built without GPU support".to_owned(),
        None => "no GPU adapter found".to_owned(),
        Some(software) => {
            format!("the only adapter is a software one ({}), slower than native code", software.name)
        }
    })
}

pub(crate) fn run(args: &DevicesArgs) -> Result<()> {
    let adapters = adapters();
    let auto = match auto_of(&adapters) {
        Ok(indices) => Auto { backend: "gpu", adapters: indices, reason: "real GPUs are there".to_owned() },
        Err(reason) => Auto { backend: "cpu", adapters: Vec::new(), reason },
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let devices = Devices { schema: 1, adapters, cpu: Cpu { threads, arch: std::env::consts::ARCH }, auto };
    if args.json {
        return out_json(&devices);
    }
    for adapter in &devices.adapters {
        describe(adapter)?;
    }
    if devices.adapters.is_empty() {
        out("no GPU adapter")?;
    }
    out(format_args!("CPU: {} threads, {}", devices.cpu.threads, devices.cpu.arch))?;
    out(format_args!("--backend auto: {} ({})", devices.auto.backend, devices.auto.reason))
}

#[cfg(feature = "gpu")]
fn describe(a: &AdapterSummary) -> Result<()> {
    const MIB: u64 = 1 << 20;
    let f = &a.features;
    let can: Vec<&str> = [
        ("f64", f.f64),
        ("f16", f.f16),
        ("subgroups", f.subgroup),
        ("timestamps", f.timestamp),
        ("mapped buffers", f.mappable_primary_buffers),
    ]
    .into_iter()
    .filter_map(|(name, there)| there.then_some(name))
    .collect();
    let kind = if a.software { "software" } else { a.device_type };
    out(format_args!("{}: {} ({kind}, {})", a.index, a.name, a.backend))?;
    // Some drivers report no version.
    let driver = format!("{} {}", a.driver, a.driver_info);
    out(format_args!("   driver {}; vendor {:#06x}, device {:#06x}", driver.trim_end(), a.vendor, a.device))?;
    out(format_args!(
        "   can: {}; largest binding {} MiB, largest buffer {} MiB, {} KiB shared memory, {} threads a workgroup",
        if can.is_empty() { "f32 only".to_owned() } else { can.join(", ") },
        a.limits.max_storage_buffer_binding_bytes / MIB,
        a.limits.max_buffer_bytes / MIB,
        a.limits.max_workgroup_storage_bytes / 1024,
        a.limits.max_invocations_per_workgroup,
    ))
}

#[cfg(not(feature = "gpu"))]
fn describe(adapter: &AdapterSummary) -> Result<()> {
    out(&adapter.name)
}
