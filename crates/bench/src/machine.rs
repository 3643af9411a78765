//! Describes the machine, the command line and the date of a measurement.

use std::time::SystemTime;

use super::schema::Environment;

/// Logical cores.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Processor and number of logical cores, e.g. `Intel(R) Xeon(R) Processor @ 2.90GHz, 2 cores`.
#[must_use]
pub fn hardware() -> String {
    let cores = cores();
    let name = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        // x86 names its model; many ARM kernels name only the board.
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

/// The [`Environment`] of this process, now.
#[must_use]
pub fn setting(mode: &str, workers: String, precision: String, seed: u64, trials: usize) -> Environment {
    let given: Vec<String> = std::env::args().skip(1).map(quoted).collect();
    Environment {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        command: format!("fcdcc {}", given.join(" ")),
        date: now(),
        hardware: hardware(),
        system: system(),
        mode: mode.to_owned(),
        workers,
        precision,
        seed,
        trials,
    }
}

/// The word quoted for a shell.
fn quoted(word: String) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_=.,:/+".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word } else { format!("'{word}'") }
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
