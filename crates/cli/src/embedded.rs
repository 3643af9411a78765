//! What a program that carries the command needs besides it: the parts that other front ends share with it.
//!
//! Relevant if you offer pool files and the benchmark harness in another language. Not a stable interface.
//!
//! Invariant: nothing here prints, or writes to a file.

use std::any::Any;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;

use clap::Parser;
use fcdcc::coding::Code;
use fcdcc::{Error, Result, Worker};
use fcdcc_bench::Progress;
use fcdcc_bench::schema::BenchReport;
use fcdcc_bench::stability_record::StabilityReport;

use super::bench::{self, BenchArgs};
use super::stability::{self, StabilityArgs};
use super::{environment, pool, usage_line};

/// Called with the number of steps done, their total number, and the step; may stop the work.
pub type Observer<'a> = &'a mut dyn FnMut(usize, usize, &str) -> ControlFlow<()>;

#[derive(Parser)]
#[command(name = "bench", no_binary_name = true, disable_help_flag = true)]
struct Bench {
    #[command(flatten)]
    args: BenchArgs,
}

#[derive(Parser)]
#[command(name = "stability", no_binary_name = true, disable_help_flag = true)]
struct Stability {
    #[command(flatten)]
    args: StabilityArgs,
}

/// The environment variables that the libraries beneath read and the process lacks, with the values that the command gives
/// them.
#[must_use]
pub fn missing_environment() -> Vec<(&'static str, &'static str)> {
    environment::missing()
}

/// The workers that a pool file describes, their faults included. Waits for machines until at most `tolerate` workers are
/// missing. `seed` decides which workers have random faults.
///
/// # Errors
/// [`Error::File`] for a file that cannot be read or describes no pool; those of the workers.
pub fn workers_of_file(path: &Path, seed: u64, tolerate: usize) -> Result<Vec<Box<dyn Worker>>> {
    pool::of_file(path, seed, tolerate)
}

/// The report of `fcdcc bench` with these options of the command line. `own_code` is the code of the method `custom`.
///
/// # Errors
/// [`Error::InvalidParameter`] for options that do not exist, [`Error::Cancelled`] if `observe` stops the work; those of
/// the comparison.
pub fn bench(
    options: impl IntoIterator<Item = OsString>,
    own_code: Option<Arc<Code>>,
    observe: Observer<'_>,
) -> Result<BenchReport> {
    let Bench { mut args } = Bench::try_parse_from(options).map_err(|e| refused(&e))?;
    args.own_code = own_code;
    stoppable(|| {
        bench::report(&args, &mut |progress| match progress {
            Progress::Begins { study, .. } => stop_if(observe(0, 0, study)),
            Progress::Step { study, scenario, done, total } => {
                stop_if(observe(done, total, &format!("{study}: {scenario}")));
            }
        })
    })
}

/// The report of `fcdcc stability` with these options of the command line.
///
/// # Errors
/// Those of [`bench()`].
pub fn stability(
    options: impl IntoIterator<Item = OsString>,
    observe: Observer<'_>,
) -> Result<StabilityReport> {
    let Stability { args } = Stability::try_parse_from(options).map_err(|e| refused(&e))?;
    stoppable(|| stability::report(&args, &mut |done, total, what| stop_if(observe(done, total, what))))
}

/// What unwinds the stack of a study that is stopped: the harness has no other way out between two steps.
struct Stopped;

fn stop_if(flow: ControlFlow<()>) {
    if flow.is_break() {
        resume_unwind(Box::new(Stopped));
    }
}

/// Runs `work`, and turns its end by [`stop_if`] into an error.
fn stoppable<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload: Box<dyn Any + Send>| {
        if payload.is::<Stopped>() { Err(Error::Cancelled) } else { resume_unwind(payload) }
    })
}

/// The error for options that the command line would refuse.
fn refused(error: &clap::Error) -> Error {
    let line = usage_line(error);
    let what = line.strip_prefix("error: ").unwrap_or(&line);
    Error::invalid("option", what, "see the help of the command (fcdcc bench --help, fcdcc stability --help)")
}

#[cfg(test)]
mod tests {
    use fcdcc::{CodeKind, SubtaskId};

    use super::*;

    fn options(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_simulated_comparison_can_be_stopped_and_runs_to_its_end() {
        let given = options("--virtual --layers lenet5/conv2 --trials 3 --no-break-even --scenario none");
        let mut steps = 0;
        let report = bench(given.clone(), None, &mut |_, _, _| {
            steps += 1;
            ControlFlow::Continue(())
        });
        assert!(report.unwrap().studies.len() == 1 && steps > 1);
        let stopped = bench(given, None, &mut |_, _, _| ControlFlow::Break(()));
        assert!(matches!(stopped, Err(Error::Cancelled)));
    }

    #[test]
    fn a_code_of_ones_own_is_a_method_beside_the_others() {
        let family = Code::new(CodeKind::Chebyshev, 4, 1, 6).unwrap();
        let blocks = |block: &dyn Fn(SubtaskId) -> Vec<f64>| (0..6).map(SubtaskId).flat_map(block).collect();
        let a = blocks(&|i| family.input_block(i).to_vec());
        let b = blocks(&|i| family.filter_block(i).to_vec());
        let own = Arc::new(Code::from_generators(6, (4, 1), (1, 1), a, b).unwrap());
        let text = "--virtual --layers vgg16/conv5_1 --trials 5 --no-break-even --scenario random:2:delay=1s \
                    --methods uncoded,mds,custom";
        let given = options(&text.split_whitespace().collect::<Vec<_>>().join(" "));
        let go = &mut |_: usize, _: usize, _: &str| ControlFlow::Continue(());
        let report = bench(given.clone(), Some(own), go).unwrap();
        let methods = &report.studies[0].scenarios[0].methods;
        assert_eq!(methods[2].method, "custom");
        // It is the code of method mds, and no straggler is waited for.
        assert!(methods[0].median.value > 1000.0 && methods[2].median.value < 1000.0);
        let plans = &report.studies[0].plans;
        assert_eq!((plans[1].recovery_threshold, plans[1].k_a), (plans[2].recovery_threshold, plans[2].k_a));
        // Without a code, and with one for another number of workers, there is no such method.
        let none = bench(given.clone(), None, go).map(drop).unwrap_err();
        assert!(matches!(none, Error::InvalidParameter { .. }), "{none}");
        let small = Code::from_generators(2, (1, 1), (1, 1), vec![1.0; 2], vec![1.0; 2]).unwrap();
        let report = bench(given, Some(Arc::new(small)), go).unwrap();
        assert!(report.studies[0].plans.iter().all(|plan| plan.method != "custom"));
        assert!(
            report.findings.iter().any(|text| text.contains("custom is left out")),
            "{:?}",
            report.findings
        );
    }

    #[test]
    fn options_that_do_not_exist_are_refused_by_name() {
        let error = stability(options("--quick --nonsense 3"), &mut |_, _, _| ControlFlow::Continue(()));
        let error = error.map(drop).unwrap_err();
        assert!(matches!(error, Error::InvalidParameter { .. }));
        assert!(error.to_string().contains("--nonsense"), "{error}");
    }
}
