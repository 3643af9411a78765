//! The scales of a chart: the position of a value between the ends of an axis, and the ticks.
//!
//! Invariant: both ends are finite, the lower one is less, and it is positive on a logarithmic axis.

use crate::format;

/// Values beyond are treated as infinite, so that spans stay finite.
const HUGE: f64 = 1e300;

/// One axis.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    /// An axis over `wanted` if that is a range, else over `values` with some margin, else over a default range.
    pub(super) fn new(values: impl Iterator<Item = f64>, wanted: Option<(f64, f64)>, log: bool) -> Self {
        let shown = |v: f64| drawable(v, log);
        if let Some((low, high)) = wanted.filter(|(low, high)| shown(*low) && shown(*high) && low < high) {
            return Axis { low, high, log };
        }
        let (low, high) = values
            .filter(|v| shown(*v))
            .fold((f64::INFINITY, -f64::INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let (low, high) = match (low, high, log) {
            (low, high, _) if low > high => (if log { 0.1 } else { 0.0 }, 1.0),
            (low, high, true) => {
                let room = (high / low).powf(0.04).max(if high / low < 1.2 { 1.5 } else { 1.0 });
                ((low / room).max(1.0 / HUGE), (high * room).min(HUGE))
            }
            (low, high, false) => {
                // Lengths are compared from zero on, unless that would leave most of the axis empty.
                let from_zero = low >= 0.0 && low <= 0.5 * high;
                let span = if high > low { high - low } else { high.abs().max(1e-300) };
                let low = if from_zero { 0.0 } else { low - 0.04 * span };
                (low, (high + 0.04 * span).max(low + 1e-300))
            }
        };
        if low < high {
            Axis { low, high, log }
        } else {
            Axis { low: low - 1.0, high: high + 1.0, log: false }
        }
    }

    /// The position of `value`: 0 at the lower end, 1 at the upper end, beyond these outside; `None` if it cannot be drawn.
    pub(super) fn at(&self, value: f64) -> Option<f64> {
        drawable(value, self.log).then(|| {
            if self.log {
                (value.ln() - self.low.ln()) / (self.high.ln() - self.low.ln())
            } else {
                (value - self.low) / (self.high - self.low)
            }
        })
    }

    /// About `count` tick values with their labels, ascending.
    pub(super) fn ticks(&self, count: usize) -> Vec<(f64, String)> {
        let decades = if self.log { self.high.log10() - self.low.log10() } else { 0.0 };
        if !self.log || decades <= 0.9 {
            return self.steps(count);
        }
        match self.powers(decades, count) {
            ticks if ticks.len() > 1 => ticks,
            _ if decades < 2.0 => self.steps(count),
            _ => self.ends(),
        }
    }

    fn powers(&self, decades: f64, count: usize) -> Vec<(f64, String)> {
        let digits: &[f64] = match count as f64 / decades {
            each if each > 3.2 => &[1.0, 2.0, 5.0],
            each if each > 2.1 => &[1.0, 3.0],
            _ => &[1.0],
        };
        #[expect(clippy::cast_possible_truncation, reason = "exponents of f64 are small")]
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let every = (decades / count.max(1) as f64).ceil();
        (first..=last)
            .filter(|power| f64::from(*power) % every == 0.0)
            .flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)))
            .filter(|value| self.holds(*value))
            .map(|value| (value, plain(value)))
            .collect()
    }

    fn steps(&self, count: usize) -> Vec<(f64, String)> {
        let rough = (self.high - self.low) / count.max(2) as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|d| d * power).into_iter().find(|s| *s >= rough * 0.999);
        let step = step.filter(|s| s.is_normal()).unwrap_or(rough);
        let (first, last) = ((self.low / step).ceil(), (self.high / step).floor());
        // The values are so close to each other, or so small, that steps between them cannot be told apart.
        if !(0.0..=100.0).contains(&(last - first)) || first.abs() > 1e9 {
            return self.ends();
        }
        let largest = self.low.abs().max(self.high.abs());
        // As many decimals as the step has; 2.5 has one more than 2 or 5.
        let decimals =
            (0..9).find(|d| (step * 10f64.powi(*d) - (step * 10f64.powi(*d)).round()).abs() < 1e-3);
        let decimals = decimals.and_then(|d| usize::try_from(d).ok());
        #[expect(clippy::cast_possible_truncation, reason = "at most a hundred and one")]
        let steps = (last - first) as i32;
        (0..=steps)
            .map(|i| (first + f64::from(i)) * step)
            .map(|value| {
                let label = match decimals {
                    _ if value == 0.0 => "0".to_owned(),
                    Some(decimals) if largest < 1e6 => {
                        let digits = format!("{:.decimals$}", value.abs());
                        let digits = if decimals == 0 { format::thousands(&digits) } else { digits };
                        format!("{}{digits}", if value < 0.0 { "−" } else { "" })
                    }
                    _ => format::number(value),
                };
                (value, label)
            })
            .collect()
    }

    fn ends(&self) -> Vec<(f64, String)> {
        [self.low, self.high].map(|value| (value, format::number(value))).into()
    }

    fn holds(&self, value: f64) -> bool {
        self.low * 0.9999 <= value && value <= self.high * 1.0001
    }
}

/// Whether `value` has a position on an axis.
fn drawable(value: f64, log: bool) -> bool {
    value.abs() <= HUGE && (!log || value >= 1.0 / HUGE)
}

/// The label of a tick on a logarithmic axis: `0.01`, `500`, `10⁶`.
fn plain(value: f64) -> String {
    if !(0.000_99..99_999.0).contains(&value) {
        return format::scientific(value, 0);
    }
    // One significant digit in every decade.
    let digits: f64 = format!("{value:.0e}").parse().unwrap_or(value);
    if digits >= 10_000.0 { format::thousands(&digits.to_string()) } else { digits.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(values: [f64; 2], log: bool) -> Vec<String> {
        Axis::new(values.into_iter(), None, log).ticks(6).into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(labels([0.0, 1.0], false), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(
            labels([0.0, 12_000.0], false),
            ["0", "2\u{202f}500", "5\u{202f}000", "7\u{202f}500", "10\u{202f}000"]
        );
        assert_eq!(labels([1.0, 1000.0], true), ["1", "10", "100", "1000"]);
        assert_eq!(labels([1.0, 30.0], true), ["1", "2", "5", "10", "20"]);
        assert_eq!(labels([0.9, 1.1], false), ["0.90", "0.95", "1.00", "1.05", "1.10"]);
        assert_eq!(labels([-1.0, 1.0], false), ["−1.0", "−0.5", "0", "0.5", "1.0"]);
        assert_eq!(labels([1.0, 1e24], true), ["1", "10⁵", "10¹⁰", "10¹⁵", "10²⁰"]);
    }

    #[test]
    fn what_cannot_be_drawn_has_no_place() {
        let log = Axis::new([1.0, 100.0].into_iter(), None, true);
        for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(log.at(value), None, "{value}");
        }
        let wanted = Axis::new([5.0].into_iter(), Some((0.0, 10.0)), false);
        assert_eq!((wanted.at(0.0), wanted.at(5.0), wanted.at(20.0)), (Some(0.0), Some(0.5), Some(2.0)));
        for nonsense in [(3.0, 1.0), (f64::NAN, 1.0), (0.0, f64::INFINITY)] {
            assert!(Axis::new([5.0].into_iter(), Some(nonsense), false).at(5.0).is_some());
        }
    }

    proptest! {
        #[test]
        fn every_value_has_its_place_and_ticks_are_few(
            values in prop::collection::vec(any::<f64>(), 0..6), log: bool, count in 1_usize..12,
        ) {
            let axis = Axis::new(values.iter().copied(), None, log);
            for value in values {
                if let Some(at) = axis.at(value) {
                    prop_assert!((-0.01..=1.01).contains(&at), "{value} at {at} of {axis:?}");
                }
            }
            let ticks = axis.ticks(count);
            prop_assert!(!ticks.is_empty() && ticks.len() <= 3 * count + 3, "{ticks:?}");
            prop_assert!(ticks.is_sorted_by(|a, b| a.0 < b.0), "{ticks:?}");
        }
    }
}
