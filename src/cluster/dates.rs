//! The clock of this machine, and how long certificates are still valid.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A certificate that ends earlier is a problem.
const LEAST_DAYS: i64 = 14;

/// Days from now to a time in seconds since 1970.
#[must_use]
pub fn days_until(unix_s: i64) -> i64 {
    (unix_s - i64::try_from(now().as_secs()).unwrap_or(i64::MAX)).div_euclid(24 * 60 * 60)
}

/// Why a certificate that ends in `days` needs attention, if it does; `whose` begins the sentence.
#[must_use]
pub fn certificate_problem(whose: &str, days: i64) -> Option<String> {
    (days < LEAST_DAYS).then(|| format!("{whose} certificate ends in {days} days: make a new one"))
}

/// Time since 1970.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_down() {
        let at = i64::try_from(now().as_secs()).unwrap_or_default();
        assert_eq!(days_until(at + 10 * 86_400 + 60), 10);
        assert_eq!(days_until(at - 60), -1);
    }
}
