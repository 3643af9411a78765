//! The findings of a report, one sentence a kind: where coding loses, and what the measurement cannot tell.
//!
//! Invariant: every sentence has the numbers that it rests on: how many cases there are, and the worst one.

use super::format::number;
use super::schema::{BreakEven, Estimate, MethodResult, ScenarioResult, Study};

/// Cases that a sentence names; of more it names the first and the number of the others.
const NAMED: usize = 4;

/// Sentences from the data of all studies.
#[must_use]
pub fn findings(studies: &[Study]) -> Vec<String> {
    [calm(studies), lost(studies), never(studies), failed(studies)].into_iter().flatten().collect()
}

/// `a, b and c`.
pub(super) fn listed(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// The first few items, then how many more there are.
fn some(items: &[String]) -> String {
    if items.len() <= NAMED + 1 {
        return listed(items);
    }
    format!("{} and {} more", items[..NAMED].join(", "), items.len() - NAMED)
}

fn coded(study: &Study) -> Option<&str> {
    study.scenarios.first().and_then(|scenario| scenario.methods.last()).map(|method| &*method.method)
}

fn calm_of(study: &Study) -> Option<(&MethodResult, &MethodResult)> {
    let calm = study.scenarios.iter().find(|s| s.faults.is_empty())?;
    calm.methods.last().zip(calm.methods.first())
}

/// The cost of coding without stragglers.
fn calm(studies: &[Study]) -> Option<String> {
    let mut compared = 0;
    let mut slower: Vec<(&Study, &MethodResult, &MethodResult)> = Vec::new();
    for study in studies {
        let Some((coded, first)) = calm_of(study).filter(|(coded, first)| coded.method != first.method)
        else {
            continue;
        };
        compared += 1;
        if coded.to_first.low > 1.0 {
            slower.push((study, coded, first));
        }
    }
    let &(_, coded, first) = slower.first()?;
    let cases: Vec<String> = slower
        .iter()
        .map(|(study, coded, first)| {
            format!(
                "{} times {} on {} ({} instead of {} ms)",
                number(coded.to_first.value),
                interval(&coded.to_first),
                study.name,
                number(coded.median.value),
                number(first.median.value),
            )
        })
        .collect();
    let work = slower.iter().filter_map(|(study, coded, _)| {
        study.plans.iter().find(|plan| plan.method == coded.method).map(|plan| plan.work)
    });
    let most = work.fold(0.0, f64::max);
    let why = if most > 0.0 {
        format!("; its workers compute up to {} times the layer", number(most))
    } else {
        String::new()
    };
    Some(format!(
        "With no worker late, {} takes longer than {} on {} of {compared} (95 % intervals in brackets): {}{why}.",
        coded.method,
        first.method,
        slower.len(),
        some(&cases)
    ))
}

fn interval(estimate: &Estimate) -> String {
    format!("[{}, {}]", number(estimate.low), number(estimate.high))
}

/// A case in which another method has the lower median, the intervals apart.
struct Loss<'a> {
    study: &'a Study,
    scenario: &'a ScenarioResult,
    coded: &'a MethodResult,
    other: &'a MethodResult,
}

impl Loss<'_> {
    fn factor(&self) -> f64 {
        self.coded.median.value / self.other.median.value
    }
}

/// Scenarios where another method is significantly faster in the median.
fn lost(studies: &[Study]) -> Option<String> {
    let (mut compared, mut losses) = (0, Vec::new());
    for study in studies {
        let Some(name) = coded(study) else { continue };
        for scenario in &study.scenarios {
            let Some(coded) = scenario.methods.iter().find(|m| m.method == name) else { continue };
            // Without stragglers the first method has its own sentence.
            let first = study.scenarios[0].methods[0].method.as_str();
            let own = |other: &&MethodResult| {
                other.method != name && !(scenario.faults.is_empty() && other.method == first)
            };
            for other in scenario.methods.iter().filter(own) {
                compared += 1;
                if other.median.high < coded.median.low {
                    losses.push(Loss { study, scenario, coded, other });
                }
            }
        }
    }
    let name = &losses.first()?.coded.method;
    let mut others: Vec<&str> = losses.iter().map(|loss| &*loss.other.method).collect();
    others.sort_unstable();
    others.dedup();
    let of = |other: &&str| {
        let these: Vec<&Loss<'_>> = losses.iter().filter(|loss| loss.other.method == *other).collect();
        let worst = these.iter().max_by(|a, b| a.factor().total_cmp(&b.factor()))?;
        Some(format!(
            "{other} in {}, at most {} times as fast ({}, {}: {} and {} ms)",
            these.len(),
            number(worst.factor()),
            worst.study.name,
            worst.scenario.name,
            number(worst.other.median.value),
            number(worst.coded.median.value)
        ))
    };
    let cases: Vec<String> = others.iter().filter_map(of).collect();
    Some(format!(
        "Another method has a lower median than {name}, their intervals apart, in {} of {compared} comparisons: {}.",
        losses.len(),
        listed(&cases)
    ))
}

/// Sweeps in which coding never wins.
fn never(studies: &[Study]) -> Option<String> {
    // Two equally fast methods win by turns: that is no finding.
    let behind = |sweep: &&BreakEven| {
        sweep.delay_ms.is_none() && sweep.points.last().is_some_and(|[_, coded, other]| *coded > 1.05 * other)
    };
    let all = studies.iter().map(|study| study.break_even.len()).sum::<usize>();
    let mut cases = Vec::new();
    let mut name = None;
    for study in studies {
        for sweep in study.break_even.iter().filter(behind) {
            name = name.or_else(|| coded(study));
            let most = sweep.points.iter().map(|[delay, ..]| *delay).fold(0.0, f64::max);
            cases.push(format!(
                "{} with {} late on {} (up to {} ms)",
                sweep.against,
                sweep.stragglers,
                study.name,
                number(most)
            ));
        }
    }
    let name = name?;
    Some(format!(
        "In {} of {all} sweeps of the delay {name} is not faster at any delay tried: than {}.",
        cases.len(),
        some(&cases)
    ))
}

fn failed(studies: &[Study]) -> Option<String> {
    let mut cases = Vec::new();
    let mut total = 0;
    for study in studies {
        for scenario in &study.scenarios {
            for method in scenario.methods.iter().filter(|method| method.failed > 0) {
                total += method.failed;
                cases.push(format!(
                    "{} of {} by {} ({}, {})",
                    method.failed,
                    method.latencies_ms.len(),
                    method.method,
                    study.name,
                    scenario.name
                ));
            }
        }
    }
    let runs = if total == 1 { "1 run" } else { &format!("{total} runs") };
    (!cases.is_empty()).then(|| {
        format!("No output from {runs}, which count with the time they took to fail: {}.", some(&cases))
    })
}

#[cfg(test)]
mod tests;
