//! Quantiles, bootstrap intervals and crossings: turns trials into numbers that can be compared.
//!
//! Invariant: equal values and an equal seed give equal estimates, on every platform.

use super::schema::Estimate;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Resamples of a bootstrap interval.
const RESAMPLES: usize = 1000;
/// Limit of draws: a large sample gets fewer resamples; its interval is narrow.
const MAX_DRAWS: usize = 20_000_000;
/// Minimum number of resamples: the ends of a 95 % interval are then the fifth smallest and fifth greatest of two hundred.
const MIN_RESAMPLES: usize = 200;
/// Share of the resamples outside either end of an interval.
const TAIL: f64 = 0.025;

/// The `q`-quantile of an ascending sample without NaN, interpolated between neighbours (type 7 of Hyndman and Fan); NaN
/// for an empty sample.
#[must_use]
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = q.clamp(0.0, 1.0) * last as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and last")]
    let below = at as usize;
    let (low, high) = (sorted[below], sorted[(below + 1).min(last)]);
    let part = at - below as f64;
    // Skips the product if it does not matter: infinity times zero is NaN.
    if part == 0.0 || low == high { low } else { low + part * (high - low) }
}

/// The median of a sample without NaN, in any order; NaN for an empty sample.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    quantile(&sorted(values), 0.5)
}

/// The arithmetic mean; NaN for an empty sample.
#[must_use]
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// A statistic with its 95 % percentile bootstrap interval; `statistic` receives ascending samples.
#[must_use]
pub fn estimate(values: &[f64], statistic: impl Fn(&[f64]) -> f64, seed: u64) -> Estimate {
    let [one] = estimates(values, [&statistic], seed);
    one
}

/// Several statistics of one sample from the same resamples, at little more than the cost of one [`estimate`].
#[must_use]
pub fn estimates<const K: usize>(
    values: &[f64],
    statistics: [&dyn Fn(&[f64]) -> f64; K],
    seed: u64,
) -> [Estimate; K] {
    let values = sorted(values);
    let resamples = (MAX_DRAWS / values.len().max(1)).clamp(MIN_RESAMPLES, RESAMPLES);
    let mut seen = [(); K].map(|()| Vec::with_capacity(resamples));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut times = vec![0_u32; values.len()];
    let mut sample = Vec::with_capacity(values.len());
    for _ in 0..resamples {
        // Counting how often each value is drawn gives the resample in order, without sorting it.
        times.fill(0);
        for _ in 0..values.len() {
            times[below(values.len(), rng.next_u32())] += 1;
        }
        sample.clear();
        for (value, times) in values.iter().zip(&times) {
            sample.extend((0..*times).map(|_| *value));
        }
        for (seen, statistic) in seen.iter_mut().zip(statistics) {
            seen.push(statistic(&sample));
        }
    }
    let mut seen = seen.into_iter();
    statistics.map(|statistic| {
        let seen = sorted(&seen.next().expect("one for each statistic"));
        Estimate { value: statistic(&values), low: quantile(&seen, TAIL), high: quantile(&seen, 1.0 - TAIL) }
    })
}

/// Median over trials of the ratio of `values` to `base`, which come from the same trials, with its interval.
#[must_use]
pub fn paired_ratio(values: &[f64], base: &[f64], seed: u64) -> Estimate {
    let ratios = values.iter().zip(base).map(|(value, base)| value / base);
    let ratios: Vec<f64> = ratios.filter(|ratio| !ratio.is_nan()).collect();
    estimate(&ratios, |sorted| quantile(sorted, 0.5), seed)
}

/// The delay from which on coding wins, in `points` of (delay, median of the coded method, median of the other), ascending
/// in delay: interpolated between the last point that coding does not win and the next one; 0 if it wins every point,
/// `None` if it does not win the last.
#[must_use]
pub fn crossing(points: &[[f64; 3]]) -> Option<f64> {
    let wins = |[_, coded, other]: &[f64; 3]| coded < other;
    let Some(lost) = points.iter().rposition(|point| !wins(point)) else {
        return (!points.is_empty()).then_some(0.0);
    };
    let (from, to) = (points[lost], points.get(lost + 1)?);
    let (behind, ahead) = (from[1] - from[2], to[2] - to[1]);
    let part = behind / (behind + ahead);
    Some(if part.is_finite() { from[0] + part * (to[0] - from[0]) } else { to[0] })
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

/// One of `len` equally likely indices; the bias is below `len` / 2^32.
fn below(len: usize, random: u32) -> usize {
    ((len as u64 * u64::from(random)) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn middle(sorted: &[f64]) -> f64 {
        quantile(sorted, 0.5)
    }

    /// Exponentially distributed numbers with mean 1.
    fn exponential(len: usize, seed: u64) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..len).map(|_| -((f64::from(rng.next_u32()) + 1.0) / 4_294_967_297.0).ln()).collect()
    }

    #[test]
    fn quantiles_interpolate() {
        let sample = [1.0, 2.0, 4.0, 8.0];
        for (q, expected) in [(0.0, 1.0), (0.25, 1.75), (0.5, 3.0), (1.0, 8.0), (2.0, 8.0), (-1.0, 1.0)] {
            assert_eq!(quantile(&sample, q), expected, "{q}");
        }
        assert_eq!(median(&[9.0, 1.0, 5.0]), 5.0);
        assert!(quantile(&[], 0.5).is_nan() && median(&[]).is_nan() && mean(&[]).is_nan());
        assert_eq!(quantile(&[1.0, f64::INFINITY, f64::INFINITY], 0.5), f64::INFINITY);
        assert_eq!(quantile(&[1.0, f64::INFINITY], 0.0), 1.0);
    }

    #[test]
    fn intervals_contain_the_truth_about_as_often_as_they_claim() {
        const REPEATS: u64 = 300;
        let covered = |truth: f64| {
            let within = |seed: &u64| {
                let found = estimate(&exponential(80, *seed), middle, *seed);
                found.low <= truth && truth <= found.high
            };
            (0..REPEATS).filter(within).count() as f64 / REPEATS as f64
        };
        // Four standard errors of a share of 95 % over 300 repeats are 5 percentage points.
        let share = covered(std::f64::consts::LN_2);
        assert!((0.90..=0.99).contains(&share), "{share}");
        // Negative control: the mean of this distribution is not its median.
        assert!(covered(1.0) < 0.5);
    }

    #[test]
    fn intervals_narrow_with_the_root_of_the_sample() {
        let width = |len| {
            let found = estimate(&exponential(len, 3), mean, 7);
            found.high - found.low
        };
        // The standard error of the mean is 1 / sqrt(len); the interval is 3.92 standard errors wide.
        for len in [100, 1600] {
            let expected = 3.92 / (len as f64).sqrt();
            assert!((width(len) / expected - 1.0).abs() < 0.3, "{len}: {} for {expected}", width(len));
        }
    }

    #[test]
    fn large_samples_stay_cheap() {
        let values = exponential(200_000, 1);
        let found = estimate(&values, middle, 1);
        assert!(found.low < found.value && found.value < found.high && found.high - found.low < 0.02);
    }

    #[test]
    fn empty_and_single_samples_have_an_estimate() {
        let none = estimate(&[], middle, 1);
        assert!(none.value.is_nan() && none.low.is_nan() && none.high.is_nan());
        assert_eq!(estimate(&[3.0], middle, 1), Estimate { value: 3.0, low: 3.0, high: 3.0 });
    }

    #[test]
    fn ratios_are_of_pairs() {
        // Latencies differ a hundredfold between trials, and twofold between the methods of each trial.
        let base: Vec<f64> = exponential(50, 2).iter().map(|x| 10f64.powf(*x)).collect();
        let values: Vec<f64> = base.iter().map(|x| 2.0 * x).collect();
        assert_eq!(paired_ratio(&values, &base, 4), Estimate { value: 2.0, low: 2.0, high: 2.0 });
        let mut shuffled = values.clone();
        shuffled.rotate_left(1);
        let unpaired = paired_ratio(&shuffled, &base, 4);
        assert!(unpaired.high - unpaired.low > 0.1, "{unpaired:?}");
        assert!(paired_ratio(&[0.0], &[0.0], 1).value.is_nan());
    }

    #[test]
    fn coding_wins_from_where_it_stays_ahead() {
        let cases: &[(&[[f64; 3]], Option<f64>)] = &[
            (&[], None),
            (&[[0.0, 5.0, 6.0], [10.0, 5.0, 9.0]], Some(0.0)),
            (&[[0.0, 5.0, 4.0], [10.0, 5.0, 6.0]], Some(5.0)),
            (&[[0.0, 5.0, 4.0], [10.0, 5.0, 5.0]], None),
            (&[[0.0, 5.0, 9.0], [10.0, 5.0, 4.0]], None),
            // Ahead, behind, and ahead to the end: the second crossing counts.
            (&[[0.0, 5.0, 9.0], [10.0, 6.0, 4.0], [20.0, 4.0, 10.0]], Some(12.5)),
            (&[[0.0, 5.0, f64::NAN], [10.0, 4.0, 5.0]], Some(10.0)),
            (&[[0.0, 5.0, 4.0], [10.0, 5.0, f64::INFINITY]], Some(0.0)),
        ];
        for (points, expected) in cases {
            assert_eq!(crossing(points), *expected, "{points:?}");
        }
    }

    proptest! {
        #[test]
        fn quantiles_are_within_the_sample_and_ascend(
            values in prop::collection::vec(-1e6_f64..1e6, 1..50), p in 0.0_f64..1.0, q in 0.0_f64..1.0,
        ) {
            let values = sorted(&values);
            let (low, high) = (quantile(&values, p.min(q)), quantile(&values, p.max(q)));
            prop_assert!(values[0] <= low && low <= high && high <= values[values.len() - 1]);
        }

        #[test]
        fn estimates_repeat_scale_and_ignore_order(
            values in prop::collection::vec(0.5_f64..100.0, 1..40), seed: u64, turn in 0_usize..40,
        ) {
            let found = estimate(&values, middle, seed);
            prop_assert!(found.low <= found.high);
            prop_assert_eq!(found.value, median(&values));
            let mut turned = values.clone();
            turned.rotate_left(turn % values.len());
            prop_assert_eq!(estimate(&turned, middle, seed), found);
            // Exact: a power of two.
            let twice: Vec<f64> = values.iter().map(|x| 2.0 * x).collect();
            prop_assert_eq!(estimate(&twice, middle, seed).high, 2.0 * found.high);
            let [same, mean_of_it] = estimates(&values, [&middle, &mean], seed);
            prop_assert_eq!(same, found);
            prop_assert_eq!(mean_of_it, estimate(&values, mean, seed));
        }

        #[test]
        fn crossings_lie_within_what_was_measured(
            medians in prop::collection::vec((0.1_f64..10.0, 0.1_f64..10.0), 1..8),
        ) {
            let points: Vec<[f64; 3]> =
                medians.iter().enumerate().map(|(i, (a, b))| [i as f64, *a, *b]).collect();
            let wins_last = medians[medians.len() - 1].0 < medians[medians.len() - 1].1;
            prop_assert_eq!(crossing(&points).is_some(), wins_last);
            if let Some(delay) = crossing(&points) {
                prop_assert!(points.iter().filter(|p| p[0] > delay).all(|p| p[1] < p[2]));
                prop_assert!(delay >= 0.0 && delay <= points[points.len() - 1][0]);
            }
        }
    }
}
