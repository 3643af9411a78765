//! The findings of a report, as sentences: where coding loses, and what the measurement cannot tell.
//!
//! Invariant: every sentence has the numbers that it rests on.

use super::schema::{BreakEven, MethodPlan, MethodResult, ScenarioResult, Study};

/// Sentences from the data of all studies.
#[must_use]
pub fn findings(studies: &[Study]) -> Vec<String> {
    let mut said = Vec::new();
    for study in studies {
        calm(study, &mut said);
        lost(study, &mut said);
        never(study, &mut said);
        failed(study, &mut said);
    }
    said
}

/// The cost of coding without stragglers.
fn calm(study: &Study, said: &mut Vec<String>) {
    let Some(calm) = study.scenarios.iter().find(|s| s.faults.is_empty()) else { return };
    let Some((coded, first)) = calm.methods.last().zip(calm.methods.first()) else { return };
    if coded.method == first.method || coded.to_first.low <= 1.0 {
        return;
    }
    let why = plan(study, &coded.method).map_or_else(String::new, |plan| {
        format!("; its workers compute {:.2} times the layer where all do", plan.work)
    });
    said.push(format!(
        "{}: with nobody late {} takes {:.2} times as long as {} (95 % interval {:.2} to {:.2}; medians {} and {} ms){why}.",
        study.name,
        coded.method,
        coded.to_first.value,
        first.method,
        coded.to_first.low,
        coded.to_first.high,
        number(coded.median.value),
        number(first.median.value),
    ));
}

/// Scenarios where another method is significantly faster in the median or in the 90th percentile.
fn lost(study: &Study, said: &mut Vec<String>) {
    let Some(coded) = study.scenarios.first().and_then(|s| s.methods.last()) else { return };
    let others = study.scenarios[0].methods.iter().map(|m| &m.method).filter(|m| **m != coded.method);
    for other in others {
        let pair = |scenario: &ScenarioResult| -> Option<(MethodResult, MethodResult)> {
            let find = |name: &str| scenario.methods.iter().find(|m| m.method == name).cloned();
            find(&coded.method).zip(find(other))
        };
        // Without stragglers the first method has its own sentence.
        let own =
            |s: &&ScenarioResult| !(s.faults.is_empty() && *other == study.scenarios[0].methods[0].method);
        let beaten: Vec<String> = study
            .scenarios
            .iter()
            .filter(own)
            .filter_map(|s| {
                let (coded, other) = pair(s)?;
                let (mine, theirs) = (coded.median, other.median);
                (theirs.high < mine.low)
                    .then(|| format!("{} ({} to {} ms)", s.name, number(theirs.value), number(mine.value)))
            })
            .collect();
        if !beaten.is_empty() {
            said.push(format!(
                "{}: {other} has the lower median than {}, their intervals apart, under: {}.",
                study.name,
                coded.method,
                beaten.join("; ")
            ));
        }
    }
}

/// Sweeps in which coding never wins.
fn never(study: &Study, said: &mut Vec<String>) {
    let Some(coded) = study.scenarios.first().and_then(|s| s.methods.last()) else { return };
    // Two equally fast methods win by turns: that is no finding.
    let behind = |sweep: &&BreakEven| {
        sweep.delay_ms.is_none() && sweep.points.last().is_some_and(|[_, coded, other]| *coded > 1.05 * other)
    };
    for sweep in study.break_even.iter().filter(behind) {
        let most = sweep.points.iter().map(|[delay, ..]| *delay).fold(0.0, f64::max);
        said.push(format!(
            "{}: with {} straggling {} did not become faster than {} at any delay up to {} ms.",
            study.name,
            match sweep.stragglers {
                1 => "one worker".to_owned(),
                workers => format!("{workers} workers"),
            },
            coded.method,
            sweep.against,
            number(most),
        ));
    }
}

fn failed(study: &Study, said: &mut Vec<String>) {
    for scenario in &study.scenarios {
        for method in scenario.methods.iter().filter(|method| method.failed > 0) {
            said.push(format!(
                "{}: under {} {} of {} runs by {} gave no output; they count with the time they took to fail.",
                study.name,
                scenario.name,
                method.failed,
                method.latencies_ms.len(),
                method.method,
            ));
        }
    }
}

fn plan<'a>(study: &'a Study, method: &str) -> Option<&'a MethodPlan> {
    study.plans.iter().find(|plan| plan.method == method)
}

/// Three significant digits.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
