//! Paired comparisons of methods: the ratios behind the words and colours of a report.
//!
//! Invariant: a difference counts only if its interval excludes 1, and a failed run never counts as fast.

use crate::format::number;
use crate::schema::{BenchReport, Estimate, MethodResult, ScenarioResult, Study};
use crate::stats::paired_ratio;

/// A smaller relative difference does not count, however narrow its interval.
const TO_SPEAK_OF: f64 = 0.01;

/// How one method compares with another in the same trials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The interval of the ratio is below 1, and the ratio is clearly below 1.
    Faster,
    /// The interval includes 1, or the ratio is practically 1.
    Same,
    /// The interval of the ratio is above 1, and the ratio is clearly above 1.
    Slower,
    /// This method had an output in every trial, the other had not.
    OtherFailed,
    /// The other method had an output in every trial, this one had not.
    Failed,
}

/// Two methods in one scenario of one study.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair<'a> {
    pub(super) study: &'a Study,
    pub(super) scenario: &'a ScenarioResult,
    pub(super) one: &'a MethodResult,
    pub(super) other: &'a MethodResult,
    /// Median over trials of the ratio of `one`'s latency to `other`'s.
    pub(super) ratio: Estimate,
}

impl<'a> Pair<'a> {
    fn new(
        study: &'a Study,
        scenario: &'a ScenarioResult,
        (one, other): (&'a MethodResult, &'a MethodResult),
        seed: u64,
    ) -> Self {
        let first = scenario.methods.first().is_some_and(|first| first.method == other.method);
        // Ratios to the first method are recorded; the others are computed from the trials.
        let ratio =
            if first { one.to_first } else { paired_ratio(&one.latencies_ms, &other.latencies_ms, seed) };
        Pair { study, scenario, one, other, ratio }
    }

    pub(super) fn outcome(&self) -> Outcome {
        match (self.one.failed > 0, self.other.failed > 0) {
            (true, false) => Outcome::Failed,
            (false, true) => Outcome::OtherFailed,
            (false, false) if is_less(&self.ratio) => Outcome::Faster,
            (false, false) if is_greater(&self.ratio) => Outcome::Slower,
            // If both failed, the time until they failed says nothing about the time they need to finish.
            _ => Outcome::Same,
        }
    }

    /// Whether the 99th percentile of `one` is below that of `other`, intervals included.
    pub(super) fn lower_tail(&self) -> bool {
        self.one.failed == 0 && self.other.failed == 0 && self.one.p99.high < self.other.p99.low
    }

    /// Whether the 99th percentile of `one` is above that of `other`, intervals included.
    pub(super) fn higher_tail(&self) -> bool {
        self.one.failed == 0 && self.other.failed == 0 && self.one.p99.low > self.other.p99.high
    }
}

/// Whether a ratio is significantly below 1.
fn is_less(ratio: &Estimate) -> bool {
    ratio.high < 1.0 && ratio.value < 1.0 - TO_SPEAK_OF
}

/// Whether a ratio is significantly above 1.
pub(super) fn is_greater(ratio: &Estimate) -> bool {
    ratio.low > 1.0 && ratio.value > 1.0 + TO_SPEAK_OF
}

/// The inverse ratio with its interval.
pub(super) fn inverse(ratio: &Estimate) -> Estimate {
    Estimate { value: 1.0 / ratio.value, low: 1.0 / ratio.high, high: 1.0 / ratio.low }
}

/// `0.62 [0.58, 0.71]`.
pub(super) fn with_interval(estimate: &Estimate) -> String {
    if estimate.value.is_nan() {
        return number(estimate.value);
    }
    format!("{} {}", number(estimate.value), interval(estimate))
}

/// `[0.58, 0.71]`.
pub(super) fn interval(estimate: &Estimate) -> String {
    format!("[{}, {}]", number(estimate.low), number(estimate.high))
}

/// All comparisons of a report.
pub(super) struct Compared<'a> {
    pub(super) report: &'a BenchReport,
    /// The method that the report is about; then the methods it is compared with, the uncoded one first.
    pub(super) coded: String,
    pub(super) others: Vec<String>,
    /// Every method with its colour.
    methods: Vec<(String, usize)>,
    /// Comparisons of the coded method with each of the others.
    pub(super) pairs: Vec<Pair<'a>>,
    /// Methods indistinguishable from the fastest, by study and scenario.
    best: Vec<Vec<Vec<&'a str>>>,
}

/// Methods with the same colour in every report.
const COLORS: [(&str, usize); 5] =
    [("uncoded", 0), ("replication", 1), ("hedged", 2), ("mds", 3), ("crme", 4)];

impl<'a> Compared<'a> {
    pub(super) fn new(report: &'a BenchReport) -> Self {
        let mut names: Vec<&str> = Vec::new();
        for study in &report.studies {
            let planned = study.plans.iter().map(|plan| plan.method.as_str());
            let measured = study.scenarios.iter().flat_map(|s| s.methods.iter().map(|m| m.method.as_str()));
            for name in planned.chain(measured) {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        let mut free = [5, 6, 7].into_iter().cycle();
        let color = |name: &str| COLORS.iter().find(|(known, _)| *known == name).map(|(_, color)| *color);
        let methods = names
            .iter()
            .map(|name| ((*name).to_owned(), color(name).unwrap_or_else(|| free.next().unwrap_or(7))))
            .collect();
        let coded = report.studies.first().and_then(|study| {
            let measured = study.scenarios.first().and_then(|s| s.methods.last()).map(|m| m.method.clone());
            study.plans.last().map(|plan| plan.method.clone()).or(measured)
        });
        let coded = coded.unwrap_or_default();
        let others = names.iter().filter(|name| **name != coded).map(|name| (*name).to_owned()).collect();
        let seed = report.setting.seed;
        let mut pairs = Vec::new();
        let mut best = Vec::new();
        for study in &report.studies {
            let mut of_study = Vec::new();
            for scenario in &study.scenarios {
                if let Some(one) = scenario.methods.iter().find(|m| m.method == coded) {
                    let others = scenario.methods.iter().filter(|m| m.method != coded);
                    pairs.extend(others.map(|other| Pair::new(study, scenario, (one, other), seed)));
                }
                of_study.push(fastest(study, scenario, seed));
            }
            best.push(of_study);
        }
        Compared { report, coded, others, methods, pairs, best }
    }

    /// All methods, in the order of the report.
    pub(super) fn methods(&self) -> impl Iterator<Item = &str> {
        self.methods.iter().map(|(name, _)| name.as_str())
    }

    pub(super) fn color(&self, method: &str) -> usize {
        self.methods.iter().find(|(name, _)| name == method).map_or(7, |(_, color)| *color)
    }

    /// All comparisons of the coded method with `other`.
    pub(super) fn against(&self, other: &str) -> Vec<&Pair<'a>> {
        self.pairs.iter().filter(|pair| pair.other.method == other).collect()
    }

    /// Comparisons of the coded method with `other` in the scenario of this name.
    pub(super) fn within(&self, scenario: &str, other: &str) -> Vec<&Pair<'a>> {
        self.against(other).into_iter().filter(|pair| pair.scenario.name == scenario).collect()
    }

    /// The comparison of the coded method with `other` in one scenario of one study.
    pub(super) fn pair(&self, study: &Study, scenario: &ScenarioResult, other: &str) -> Option<&Pair<'a>> {
        self.pairs.iter().find(|p| {
            p.other.method == other && std::ptr::eq(p.study, study) && std::ptr::eq(p.scenario, scenario)
        })
    }

    /// Whether the method is indistinguishable from the fastest.
    pub(super) fn is_best(&self, study: usize, scenario: usize, method: &str) -> bool {
        self.best[study][scenario].contains(&method)
    }
}

/// The method with the least median, and the methods without a significant difference to it.
fn fastest<'a>(study: &'a Study, scenario: &'a ScenarioResult, seed: u64) -> Vec<&'a str> {
    let finished = || scenario.methods.iter().filter(|m| m.failed == 0 && !m.median.value.is_nan());
    let Some(first) = finished().min_by(|a, b| a.median.value.total_cmp(&b.median.value)) else {
        return Vec::new();
    };
    let equal = finished().filter(|m| {
        m.method == first.method
            || Pair::new(study, scenario, (m, first), seed).outcome() == Outcome::Same
                && m.median.low <= first.median.high
    });
    equal.map(|m| m.method.as_str()).collect()
}
