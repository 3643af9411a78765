//! The table that `fcdcc bench` prints for one layer or model.

use fcdcc::Result;
use fcdcc_bench::schema::{Estimate, Study};

use super::print;

/// Prints plans, scenarios and break-even delays of a study.
pub(crate) fn one(study: &Study) -> Result<()> {
    print::out(format_args!(
        "{} ({}; {:.3} G multiply-adds), {} workers, {} stragglers tolerated",
        study.name,
        study.shape,
        study.macs / 1e9,
        study.workers,
        study.tolerate
    ))?;
    for plan in &study.plans {
        print::out(format_args!(
            "  {:12} {},{} parts, {} of {} subtasks, work {:.2}: {}",
            plan.method, plan.k_a, plan.k_b, plan.recovery_threshold, plan.n, plan.work, plan.about
        ))?;
    }
    for scenario in &study.scenarios {
        let failed = scenario.methods.iter().any(|method| method.failed > 0);
        print::out(format_args!(
            "  {}\n    {:12} {:>9} {:>19} {:>9} {:>9} {:>10} {:>6} {:>6} {:>8}{}",
            scenario.name,
            "method",
            "median ms",
            "95 % interval",
            "p90",
            "p99",
            format!("to {}", scenario.methods.first().map_or("first", |m| &m.method)),
            "work",
            "wasted",
            "error",
            if failed { "  failed" } else { "" }
        ))?;
        for method in &scenario.methods {
            let interval = |of: Estimate| format!("{:.2} - {:.2}", of.low, of.high);
            let error = method.max_error.map_or_else(|| "-".to_owned(), |error| format!("{error:.1e}"));
            print::out(format_args!(
                "    {:12} {:>9.2} {:>19} {:>9.2} {:>9.2} {:>10.3} {:>6.2} {:>5.0}% {:>8}{}",
                method.method,
                method.median.value,
                interval(method.median),
                method.p90.value,
                method.p99.value,
                method.to_first.value,
                method.work,
                method.wasted * 100.0,
                error,
                if method.failed > 0 { format!("  {}", method.failed) } else { String::new() }
            ))?;
        }
    }
    for sweep in &study.break_even {
        let from = match sweep.delay_ms {
            Some(0.0) => "at every delay".to_owned(),
            Some(delay) => format!("from a delay of {delay:.1} ms on"),
            None => "at no delay that was tried".to_owned(),
        };
        let judged = study.scenarios.first().and_then(|s| s.methods.last()).map_or("", |m| &m.method);
        print::out(format_args!(
            "  {judged} beats {} with {} straggling {from}",
            sweep.against, sweep.stragglers
        ))?;
    }
    print::out("")
}
