//! Facts about the machine that belong beside every figure.

use std::path::Path;

/// The processor and how busy it is.
#[must_use]
pub fn describe() -> String {
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or(std::env::consts::ARCH, |(_, model)| model);
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or("unknown");
    format!("{model}, {} processors, load {load}", cores())
}

/// Number of processors that this process may use.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The caches of the first processor as the system describes them (Linux), such as `L1 data 32K`.
#[must_use]
pub fn caches() -> Vec<String> {
    let folder = Path::new("/sys/devices/system/cpu/cpu0/cache");
    let cache = |index: usize| {
        let field = |name| {
            let text = std::fs::read_to_string(folder.join(format!("index{index}")).join(name)).ok()?;
            Some(text.trim().to_lowercase())
        };
        let kind = field("type").filter(|kind| kind != "unified").map_or_else(String::new, |kind| kind + " ");
        Some(format!("L{} {kind}{}", field("level")?, field("size")?.to_uppercase()))
    };
    (0..16).map_while(cache).collect()
}

/// The vector instructions of the processor that kernels choose between, as this system names them.
#[must_use]
pub fn vectors() -> String {
    let cpuinfo = read("/proc/cpuinfo");
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")?.split_once(": "));
    let known = ["avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16"];
    let flags: Vec<&str> = flags.map_or_else(Vec::new, |(_, flags)| flags.split_whitespace().collect());
    let found: Vec<&str> = known.into_iter().filter(|name| flags.contains(name)).collect();
    found.join(" ")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
