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

use clap::Parser;
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

/// The report of `fcdcc bench` with these options of the command line.
///
/// # Errors
/// [`Error::InvalidParameter`] for options that do not exist, [`Error::Cancelled`] if `observe` stops the work; those of
/// the comparison.
pub fn bench(options: impl IntoIterator<Item = OsString>, observe: Observer<'_>) -> Result<BenchReport> {
    let Bench { args } = Bench::try_parse_from(options).map_err(|e| refused(&e))?;
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
/// Those of [`bench`].
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
    use super::*;

    fn options(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_simulated_comparison_can_be_stopped_and_runs_to_its_end() {
        let given = options("--virtual --layers lenet5/conv2 --trials 3 --no-break-even --scenario none");
        let mut steps = 0;
        let report = bench(given.clone(), &mut |_, _, _| {
            steps += 1;
            ControlFlow::Continue(())
        });
        assert!(report.unwrap().studies.len() == 1 && steps > 1);
        let stopped = bench(given, &mut |_, _, _| ControlFlow::Break(()));
        assert!(matches!(stopped, Err(Error::Cancelled)));
    }

    #[test]
    fn options_that_do_not_exist_are_refused_by_name() {
        let error = stability(options("--quick --nonsense 3"), &mut |_, _, _| ControlFlow::Continue(()));
        let error = error.map(drop).unwrap_err();
        assert!(matches!(error, Error::InvalidParameter { .. }));
        assert!(error.to_string().contains("--nonsense"), "{error}");
    }
}
