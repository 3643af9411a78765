//! What a figure was measured on.

use std::time::SystemTime;

/// Processor and number of logical cores, e.g. `Intel(R) Xeon(R) Processor @ 2.90GHz, 2 cores`.
#[must_use]
pub fn hardware() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let name = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        // x86 names its model; many ARM kernels only the board.
        let value = |key: &str| {
            let line = text.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        value("model name").or_else(|| value("Hardware"))
    });
    let name = name.unwrap_or_else(|| format!("{} processor", std::env::consts::ARCH));
    format!("{name}, {cores} {}", if cores == 1 { "core" } else { "cores" })
}

/// Operating system and architecture, e.g. `linux x86_64`.
#[must_use]
pub fn system() -> String {
    format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)
}

/// The present time in UTC, e.g. `2026-11-22T10:00:00Z`.
#[must_use]
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_a_name_and_a_time() {
        assert!(hardware().contains("core") && !system().is_empty());
        let now = now();
        assert!(now.len() == 20 && now.ends_with('Z') && now[..4].parse::<u32>().unwrap() >= 2024, "{now}");
    }
}
