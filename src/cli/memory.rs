//! What this process may still take.

/// Bytes that the machine and the control group of this process have left; `None` where the system does not say.
pub(crate) fn available() -> Option<u64> {
    [machine(), control_group()].into_iter().flatten().min()
}

/// Checks that `bytes` for `what` can be held.
pub(crate) fn check(bytes: u64, what: &str) -> Result<(), String> {
    match available() {
        Some(available) if bytes > available => Err(format!(
            "needs {bytes} bytes of memory for {what} where {available} are available: use a smaller one, or a machine \
             with more memory"
        )),
        _ => Ok(()),
    }
}

fn machine() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Of version 2; the tightest on the way to the root.
fn control_group() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = std::path::Path::new("/sys/fs/cgroup");
    let left = |group: &std::path::Path| {
        let read = |file: &str| std::fs::read_to_string(group.join(file)).ok();
        let limit: u64 = read("memory.max")?.trim().parse().ok()?;
        let used: u64 = read("memory.current")?.trim().parse().ok()?;
        // Cached files give way.
        let stat = read("memory.stat").unwrap_or_default();
        let cached = stat.lines().find_map(|line| line.strip_prefix("inactive_file "));
        let cached: u64 = cached.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0);
        Some(limit.saturating_sub(used.saturating_sub(cached)))
    };
    root.join(own).ancestors().take_while(|group| group.starts_with(root)).filter_map(left).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_named_with_both_numbers() {
        assert!(check(1, "nothing").is_ok());
        if let Some(available) = available() {
            let error = check(u64::MAX, "everything").unwrap_err();
            assert!(error.contains(&u64::MAX.to_string()) && available > 0, "{error}");
        }
    }
}
