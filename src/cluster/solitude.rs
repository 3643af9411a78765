//! Decides when a connection on which no other process is visible is replaced.
//!
//! The engine restores broken connections. A connection that breaks while it is being made is sometimes not restored, and a
//! restored one may lack what was declared on it. The side that connects therefore replaces its connection when no other
//! process has been visible on it for a while.
//!
//! Invariant: the pauses between replacements double up to [`LONGEST`], and start again at [`FIRST`] once a process was
//! visible.

use std::time::{Duration, Instant};

/// Time without a visible process before the first replacement.
const FIRST: Duration = Duration::from_secs(5);
/// Longest time between two replacements.
const LONGEST: Duration = Duration::from_secs(40);

/// How long no process has been visible on one link.
#[derive(Debug)]
pub(super) struct Solitude {
    since: Option<Instant>,
    pause: Duration,
}

impl Default for Solitude {
    fn default() -> Self {
        Self { since: None, pause: FIRST }
    }
}

impl Solitude {
    /// Records whether no process is visible now; true where the connection is to be replaced.
    pub(super) fn is_stuck(&mut self, alone: bool, now: Instant) -> bool {
        if !alone {
            *self = Self::default();
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let stuck = now.saturating_duration_since(since) >= self.pause;
        if stuck {
            *self = Self { since: Some(now), pause: (self.pause * 2).min(LONGEST) };
        }
        stuck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_alone_connects_again_in_longer_and_longer_pauses() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut solitude = Solitude::default();
        let stuck = |solitude: &mut Solitude, seconds: std::ops::Range<u32>| -> Vec<u32> {
            seconds.filter(|&at| solitude.is_stuck(true, start + at * second)).collect()
        };
        assert_eq!(stuck(&mut solitude, 0..200), [5, 15, 35, 75, 115, 155, 195]);
        assert!(!solitude.is_stuck(false, start + 200 * second));
        assert_eq!(stuck(&mut solitude, 201..220), [206, 216], "from the first moment alone");
    }
}
