//! The memory available to this process, and the refusal of work that needs more.
//!
//! This is advanced API: not needed for ordinary use.
//!
//! Relevant if you want to know why a layer or a model is refused for lack of memory. A failed allocation ends the process
//! at once, and one that the system cannot back ends it later. Large needs are therefore checked beforehand against the
//! least of three limits: the available memory of the machine (swap included), what each cgroup above this process leaves
//! it (v1 and v2; page cache can be reclaimed and does not count as used), and the limit of the address space.
//!
//! Invariant: an [estimate](require) that is refused exceeds the least of these limits by a factor of more than [`MARGIN`];
//! where the system does not report its memory, nothing is refused.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Factor by which an estimate may be too high: work is refused only if its estimate exceeds the available memory by more,
/// so that nothing is refused that fits.
pub const MARGIN: f64 = 1.3;

/// Smaller needs are not checked: the check reads a few files, and such a need hardly matters.
const SMALL_BYTES: u64 = 64 << 20;

/// The memory that a process may still allocate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Available {
    /// Bytes.
    pub bytes: u64,
    /// What sets this limit, readable.
    pub limit: String,
}

/// The memory that this process may still allocate; `None` where the system does not report it.
#[must_use]
pub fn available() -> Option<Available> {
    Available::under(Path::new("/"))
}

/// Checks that there is memory for `what`, which needs about `bytes` more than what is allocated already.
///
/// # Errors
/// [`Error::Memory`] with both numbers if that is more than [`MARGIN`] times the available memory.
pub fn require(what: &str, bytes: u64) -> Result<()> {
    admit(what, bytes, MARGIN)
}

/// As [`require`], for an exact need of `bytes`.
///
/// # Errors
/// [`Error::Memory`] with both numbers if that is more than the available memory.
pub fn require_all(what: &str, bytes: u64) -> Result<()> {
    admit(what, bytes, 1.0)
}

fn admit(what: &str, bytes: u64, margin: f64) -> Result<()> {
    if bytes < SMALL_BYTES {
        return Ok(());
    }
    match available() {
        Some(available) => available.admit(what, bytes, margin),
        None => Ok(()),
    }
}

impl Available {
    fn admit(&self, what: &str, bytes: u64, margin: f64) -> Result<()> {
        if bytes as f64 <= self.bytes as f64 * margin {
            return Ok(());
        }
        Err(Error::Memory {
            what: what.to_owned(),
            needed_bytes: bytes,
            available_bytes: self.bytes,
            limit: self.limit.clone(),
        })
    }

    /// The least limit in the files below `root`.
    fn under(root: &Path) -> Option<Self> {
        let swap = meminfo(root, "SwapFree:").unwrap_or(0);
        let machine = meminfo(root, "MemAvailable:")
            .map(|free| Self { bytes: free.saturating_add(swap), limit: "this machine's memory".to_owned() });
        let all = machine.into_iter().chain(cgroups(root, swap)).chain(address_space(root));
        all.min_by_key(|available| available.bytes)
    }
}

/// A field of `/proc/meminfo`, in bytes.
fn meminfo(root: &Path, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The unused rest of the address space limit.
fn address_space(root: &Path) -> Option<Available> {
    let limits = std::fs::read_to_string(root.join("proc/self/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    // The soft limit; if it is not a number there is no limit.
    let limit = line.split_whitespace().next()?.parse::<u64>().ok()?;
    let status = std::fs::read_to_string(root.join("proc/self/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:"))?;
    let used = line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)?;
    let limit = (limit, "the limit of the address space (ulimit -v)".to_owned());
    Some(Available { bytes: limit.0.saturating_sub(used), limit: limit.1 })
}

/// What each memory cgroup, from that of this process upwards, leaves it. `swap`: free swap of the machine.
fn cgroups(root: &Path, swap: u64) -> Vec<Available> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let (own, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    let mut all = Vec::new();
    for (version, mount) in mounts.lines().filter_map(Mount::of).map(|mount| (mount.version, mount)) {
        // "N:controllers:path"; version 2 has no controllers.
        let path = own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let fits = match version {
                Version::One => controllers.split(',').any(|controller| controller == "memory"),
                Version::Two => controllers.is_empty(),
            };
            fits.then_some(path)
        });
        let Some(path) = path else { continue };
        // A container may see only a part of the tree, mounted elsewhere.
        let below = path.strip_prefix(mount.root.trim_end_matches('/')).unwrap_or("").trim_matches('/');
        let top = root.join(mount.point.trim_start_matches('/'));
        let mut folder = top.join(below);
        while folder.starts_with(&top) {
            all.extend(version.available(&folder, swap));
            if !folder.pop() {
                break;
            }
        }
    }
    all
}

#[derive(Clone, Copy)]
enum Version {
    One,
    Two,
}

/// A file system of memory cgroups.
struct Mount {
    version: Version,
    /// The cgroup that is visible at `point`.
    root: String,
    point: String,
}

impl Mount {
    /// Parses a line of `/proc/self/mountinfo`.
    fn of(line: &str) -> Option<Self> {
        let (mount, system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?.to_owned(), fields.next()?.to_owned());
        let mut system = system.split(' ');
        let version = match (system.next()?, system.nth(1)?) {
            ("cgroup2", _) => Version::Two,
            ("cgroup", options) if options.split(',').any(|option| option == "memory") => Version::One,
            _ => return None,
        };
        Some(Self { version, root, point })
    }
}

impl Version {
    /// What one cgroup leaves available; `None` if it has no limit.
    fn available(self, folder: &Path, swap: u64) -> Option<Available> {
        let number = |name: &str| -> Option<u64> {
            std::fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
        };
        let (limit, used, with_swap, cached) = match self {
            Self::One => {
                let names = ("memory.limit_in_bytes", "memory.usage_in_bytes");
                // A limit of memory and swap together bounds the swap.
                let both = number("memory.memsw.limit_in_bytes").zip(number("memory.memsw.usage_in_bytes"));
                let both = both.map(|(limit, used)| limit.saturating_sub(used));
                let cached = ["total_inactive_file", "total_active_file"];
                (number(names.0)?, number(names.1)?, both, cached)
            }
            Self::Two => {
                let left = |limit: u64| limit.saturating_sub(number("memory.swap.current").unwrap_or(0));
                let limit = number("memory.max")?;
                let used = number("memory.current")?;
                let swap = number("memory.swap.max").map_or(swap, left).min(swap);
                let both = limit.saturating_sub(used).saturating_add(swap);
                (limit, used, Some(both), ["inactive_file", "active_file"])
            }
        };
        // Without a limit version 1 reports a number larger than any machine's memory.
        if limit >= 1 << 60 {
            return None;
        }
        let statistics = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let cached: u64 = cached.iter().filter_map(|field| statistic(&statistics, field)).sum();
        let memory = limit.saturating_sub(used);
        // Swap left by the combined limit, at most what the machine has free.
        let swapped = with_swap.map_or(0, |both| both.saturating_sub(memory)).min(swap);
        let bytes = memory.saturating_add(swapped).saturating_add(cached.min(used));
        Some(Available { bytes, limit: format!("the cgroup {}", name_of(folder)) })
    }
}

fn statistic(statistics: &str, field: &str) -> Option<u64> {
    statistics.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(' ')?.parse().ok())
}

fn name_of(folder: &Path) -> String {
    PathBuf::from(folder).display().to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    const MEMINFO: &str =
        "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    4000 kB\nSwapTotal: 8 kB\nSwapFree:  96 kB\n";
    const V2: &str = "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n";
    const V1: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                      35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";

    /// A machine whose files are these.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    fn left(files: &[(&str, &str)]) -> Option<(u64, String)> {
        let root = machine(files);
        let found = Available::under(root.path())?;
        let limit = found.limit.replace(root.path().to_str().unwrap(), "");
        Some((found.bytes, limit))
    }

    #[test]
    fn a_machine_has_what_is_available_and_its_swap() {
        assert_eq!(
            left(&[("proc/meminfo", MEMINFO)]),
            Some((4096 * 1024, "this machine's memory".to_owned()))
        );
        assert_eq!(left(&[]), None, "where nothing is said nothing is refused");
        assert_eq!(left(&[("proc/meminfo", "MemAvailable: many\n")]), None);
    }

    #[test]
    fn the_tightest_cgroup_above_the_process_counts_and_its_page_cache_does_not() {
        let inner = "sys/fs/cgroup/a/b";
        let files = |max: &'static str, outer: &'static str| {
            vec![
                ("proc/meminfo".to_owned(), MEMINFO),
                ("proc/self/cgroup".to_owned(), "0::/a/b\n"),
                ("proc/self/mountinfo".to_owned(), V2),
                (format!("{inner}/memory.max"), max),
                (format!("{inner}/memory.current"), "600000"),
                (format!("{inner}/memory.swap.max"), "0"),
                (format!("{inner}/memory.stat"), "anon 5\ninactive_file 100000\nactive_file 50000\n"),
                ("sys/fs/cgroup/a/memory.max".to_owned(), outer),
                ("sys/fs/cgroup/a/memory.current".to_owned(), "700000"),
                ("sys/fs/cgroup/a/memory.swap.max".to_owned(), "1000"),
            ]
        };
        let left = |max, outer| {
            let files = files(max, outer);
            left(&files.iter().map(|(path, text)| (path.as_str(), *text)).collect::<Vec<_>>())
        };
        let of = |bytes, limit: &str| Some((bytes, limit.to_owned()));
        assert_eq!(left("1000000\n", "max"), of(550_000, "the cgroup /sys/fs/cgroup/a/b"));
        assert_eq!(left("1000000\n", "800000"), of(101_000, "the cgroup /sys/fs/cgroup/a"));
        assert_eq!(left("max\n", "max\n"), of(4096 * 1024, "this machine's memory"));
        // More is used than allowed, as after the limit was lowered.
        assert_eq!(left("1000\n", "max"), of(150_000, "the cgroup /sys/fs/cgroup/a/b"));
    }

    #[test]
    fn cgroups_of_version_1_are_read_where_a_container_sees_them() {
        let folder = "sys/fs/cgroup/memory/inner";
        let files = |limit: &'static str| {
            [
                ("proc/meminfo".to_owned(), MEMINFO),
                ("proc/self/cgroup".to_owned(), "5:devices:/x\n4:memory:/docker/abc/inner\n0::/\n"),
                ("proc/self/mountinfo".to_owned(), V1),
                (format!("{folder}/memory.limit_in_bytes"), limit),
                (format!("{folder}/memory.usage_in_bytes"), "300"),
                (format!("{folder}/memory.memsw.limit_in_bytes"), "1100"),
                (format!("{folder}/memory.memsw.usage_in_bytes"), "350"),
                (format!("{folder}/memory.stat"), "inactive_file 1\ntotal_inactive_file 20\n"),
            ]
        };
        let left = |limit| {
            let files = files(limit);
            left(&files.iter().map(|(path, text)| (path.as_str(), *text)).collect::<Vec<_>>()).unwrap()
        };
        // 700 of memory, 50 more of swap, and 20 of page cache.
        assert_eq!(left("1000").0, 770);
        assert_eq!(left("9223372036854771712").1, "this machine's memory");
    }

    #[test]
    fn the_limit_of_the_address_space_counts() {
        let limits = |soft: &'static str| {
            [("proc/self/limits", soft), ("proc/self/status", "VmPeak: 9 kB\nVmSize:\t      10 kB\n")]
        };
        let limited = limits("Limit  Soft Limit Hard Limit Units\nMax address space 50240 unlimited bytes\n");
        assert_eq!(left(&limited).unwrap().0, 40_000);
        assert_eq!(left(&limits("Max address space unlimited unlimited bytes\n")), None);
    }

    #[test]
    fn what_exceeds_what_there_is_is_refused_with_both_numbers_and_what_may_fit_is_not() {
        let there = Available { bytes: 1_000_000_000, limit: "this machine's memory".to_owned() };
        assert!(there.admit("the layer", 1_299_000_000, MARGIN).is_ok());
        assert!(there.admit("the array", 1_000_000_001, 1.0).is_err());
        let error = there.admit("the layer", 25_000_000_000, MARGIN).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::BadInput);
        let text = error.to_string();
        for part in ["the layer", "25.0 GB", "1000 MB", "this machine's memory"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(require("anything", u64::MAX).is_err() == available().is_some());
        assert!(require("a little", SMALL_BYTES - 1).is_ok());
    }
}
