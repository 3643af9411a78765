//! How long to wait before a lost or quarantined worker gets another chance. Pure: times are arguments.

use std::time::{Duration, Instant};

/// Pauses that double with every failure, up to a longest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}

impl Backoff {
    /// The pause after `failures` failures in a row; none after none.
    pub(crate) fn after(self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        self.first.saturating_mul(2_u32.saturating_pow(doublings)).min(self.longest)
    }
}

/// The recent losses of one worker. Losses further apart than the longest pause do not add up.
#[derive(Debug)]
pub(super) struct Losses {
    backoff: Backoff,
    recent: u32,
    last: Option<Instant>,
}

impl Losses {
    pub(super) fn new(backoff: Backoff) -> Self {
        Self { backoff, recent: 0, last: None }
    }

    pub(super) fn count(&mut self, now: Instant) {
        let apart = self.last.map(|last| now.saturating_duration_since(last));
        let recent = apart.is_some_and(|apart| apart < self.backoff.longest);
        self.recent = if recent { self.recent.saturating_add(1) } else { 1 };
        self.last = Some(now);
    }

    /// The pause before the worker is opened again, after so many `failed` attempts. The first loss is treated as an
    /// accident; from then on the pause doubles with every loss and failed attempt.
    pub(super) fn pause(&self, failed: u32) -> Duration {
        self.backoff.after(self.recent.saturating_sub(1).saturating_add(failed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    const BACKOFF: Backoff = Backoff { first: ms(10), longest: ms(70) };

    #[test]
    fn pauses_double_up_to_the_longest_and_do_not_overflow() {
        let pauses = |backoff: Backoff| [0, 1, 2, 3, 4, 5, u32::MAX].map(|failures| backoff.after(failures));
        let expected = [0, 10, 20, 40, 70, 70, 70].map(ms);
        assert_eq!(pauses(BACKOFF), expected);
        // Negative controls: both parameters matter.
        assert_ne!(pauses(Backoff { longest: ms(80), ..BACKOFF }), expected);
        assert_ne!(pauses(Backoff { first: ms(11), ..BACKOFF }), expected);
        let unlimited = Backoff { longest: Duration::MAX, ..BACKOFF };
        assert_eq!(
            unlimited.after(40),
            ms(10) * u32::MAX,
            "doubled as often as a Duration can be multiplied"
        );
    }

    #[test]
    fn losses_and_failed_attempts_add_up_until_there_is_a_long_rest() {
        let (mut losses, start) = (Losses::new(BACKOFF), Instant::now());
        losses.count(start);
        assert_eq!([0, 1, 2].map(|failed| losses.pause(failed)), [0, 10, 20].map(ms), "an accident");
        losses.count(start + ms(69));
        losses.count(start + ms(138));
        assert_eq!([0, 1, 2].map(|failed| losses.pause(failed)), [20, 40, 70].map(ms));
        // A rest of the longest pause resets the count; a shorter one did not.
        losses.count(start + ms(208));
        assert_eq!(losses.pause(0), ms(0));
        // A clock that seems to run backwards is no rest.
        losses.count(start);
        assert_eq!(losses.pause(0), ms(10));
    }
}
