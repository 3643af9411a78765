//! The distribution of the amplifications of an input's windows.

/// Smaller amplifications are not distinguished: they cost less than two of the seven digits of f32.
pub(super) const EVEN: f64 = 16.0;

/// Number of powers of two that are distinguished, from [`EVEN`] on.
const BUCKETS: usize = 64;

/// Histogram of the amplifications of windows.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// The largest amplification; at least 1.
    largest: f64,
    /// Number of windows by the power of two of their amplification, from [`EVEN`] on; the last bucket has no upper end.
    counts: Option<Box<[usize; BUCKETS]>>,
}

impl Default for Spread {
    fn default() -> Self {
        Self { largest: 1.0, counts: None }
    }
}

impl Spread {
    /// The largest amplification of a window.
    #[must_use]
    pub fn largest(&self) -> f64 {
        self.largest
    }

    /// The least amplification above which at most `windows` windows lie: a power of two from 16 on, or the largest
    /// amplification if no such power of two is below it.
    #[must_use]
    pub fn all_but(&self, windows: usize) -> f64 {
        let Some(counts) = &self.counts else { return self.largest };
        let (mut above, mut level) = (0, BUCKETS);
        for bucket in (0..BUCKETS).rev() {
            above += counts[bucket];
            if above > windows {
                break;
            }
            level = bucket;
        }
        if level == BUCKETS { self.largest } else { (EVEN * 2.0_f64.powi(index(level))).min(self.largest) }
    }

    /// The spread of windows with these amplifications.
    #[cfg(test)]
    pub(crate) fn of(ratios: impl IntoIterator<Item = f64>) -> Self {
        let mut spread = Self::default();
        ratios.into_iter().for_each(|ratio| spread.add(ratio));
        spread
    }

    /// Adds a window of amplification `ratio`.
    pub(super) fn add(&mut self, ratio: f64) {
        self.largest = self.largest.max(ratio);
        if ratio > EVEN {
            let bucket = (ratio / EVEN).log2().clamp(0.0, (BUCKETS - 1) as f64);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
            let bucket = bucket as usize;
            self.counts.get_or_insert_with(|| Box::new([0; BUCKETS]))[bucket] += 1;
        }
    }

    /// Adds the counts of another spread.
    pub(super) fn merge(&mut self, other: &Self) {
        self.largest = self.largest.max(other.largest);
        if let Some(counts) = &other.counts {
            let own = self.counts.get_or_insert_with(|| Box::new([0; BUCKETS]));
            own.iter_mut().zip(counts.iter()).for_each(|(own, more)| *own += more);
        }
    }
}

fn index(bucket: usize) -> i32 {
    i32::try_from(bucket).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_leave_out_as_many_windows_as_asked() {
        let mut spread = Spread::default();
        assert_eq!((spread.largest(), spread.all_but(0)), (1.0, 1.0));
        spread.add(3.0);
        assert_eq!(spread.all_but(100), 3.0);
        for ratio in [17.0, 40.0, 41.0, 1e30] {
            spread.add(ratio);
        }
        assert_eq!(spread.largest(), 1e30);
        // All but 0 windows: the largest. All but 1: below 64. All but 3: below 32.
        assert_eq!([0, 1, 2, 3, 4].map(|n| spread.all_but(n)), [1e30, 64.0, 64.0, 32.0, 16.0]);
        let mut both = Spread::default();
        both.merge(&spread);
        both.merge(&spread);
        assert_eq!([1, 2, 6, 8].map(|n| both.all_but(n)), [1e30, 64.0, 32.0, 16.0]);
        let mut huge = Spread::default();
        huge.add(f64::INFINITY);
        assert_eq!((huge.all_but(0), huge.all_but(1)), (f64::INFINITY, 16.0));
    }
}
