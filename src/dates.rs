//! The clock of this machine, and the ends of certificates.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time before the end of a certificate from which it is announced.
const AHEAD: Duration = Duration::from_hours(14 * 24);
const DAY_S: i64 = 24 * 60 * 60;

/// Time since 1970; zero before.
#[must_use]
pub fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Seconds from `now` to a time in seconds since 1970.
fn left(ends: i64, now: SystemTime) -> i64 {
    ends.saturating_sub(i64::try_from(since_1970(now).as_secs()).unwrap_or(i64::MAX))
}

/// Whole days from `now` to a time in seconds since 1970; negative after it.
#[must_use]
pub fn days_until(ends: i64, now: SystemTime) -> i64 {
    left(ends, now).div_euclid(DAY_S)
}

/// What is to be said of a certificate that ends within two weeks, or has ended; `None` before. `what` begins the sentence,
/// `ends` is in seconds since 1970.
#[must_use]
pub fn certificate_notice(what: &str, ends: i64, now: SystemTime) -> Option<String> {
    let left = left(ends, now);
    if left < 0 {
        return Some(format!("{what} has ended: others refuse it, renew it"));
    }
    let ahead = i64::try_from(AHEAD.as_secs()).unwrap_or(i64::MAX);
    (left < ahead).then(|| format!("{what} ends in {} days: renew it", left / DAY_S))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_down_and_announced_two_weeks_ahead() {
        let at = |days: u64| UNIX_EPOCH + Duration::from_hours(24 * days);
        let notice = |now| certificate_notice("it", 100 * DAY_S, at(now));
        assert_eq!((notice(85), notice(86)), (None, None));
        assert_eq!(notice(87).unwrap(), "it ends in 13 days: renew it");
        assert_eq!(notice(100).unwrap(), "it ends in 0 days: renew it");
        assert!(notice(101).unwrap().contains("has ended"));
        assert_eq!(days_until(100 * DAY_S, at(90)), 10);
        assert_eq!(days_until(100 * DAY_S - 1, at(100)), -1);
    }
}
