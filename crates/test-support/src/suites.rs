//! Several suites of trials in one test binary.

use libtest_mimic::{Arguments, Trial};

/// Collects the trials of suites and runs them. The name of a trial begins with that of its suite: `netns::a_test`.
pub struct Suites {
    arguments: Arguments,
    trials: Vec<Trial>,
}

impl Suites {
    /// With the arguments of this process.
    pub fn from_arguments() -> Self {
        Self { arguments: Arguments::from_args(), trials: Vec::new() }
    }

    /// Never runs two trials at the same time.
    pub fn one_at_a_time(mut self) -> Self {
        self.arguments.test_threads = Some(1);
        self
    }

    /// Adds the trials of a suite. `trials` is not called if the process is asked for another suite's alone: listing may
    /// open devices or run commands, and some runners start a process for each trial.
    pub fn add(mut self, suite: &str, trials: impl FnOnce() -> Vec<Trial>) -> Self {
        let asked = self.arguments.filter.as_deref().and_then(|filter| filter.split_once("::"));
        if asked.is_none_or(|(other, _)| other == suite) {
            let trials = trials();
            let prefix = format!("{suite}::");
            let foreign = trials.iter().find(|trial| !trial.name().starts_with(&prefix));
            assert!(foreign.is_none(), "{foreign:?} is not named {prefix}...");
            self.trials.extend(trials);
        }
        self
    }

    /// Runs the trials and ends the process.
    pub fn run(self) -> ! {
        libtest_mimic::run(&self.arguments, self.trials).exit()
    }
}
