//! The command line's names for the library's options.
//!
//! The reports of this module and the command line address users who know the options as flags; the library names them by
//! their paths.

use fcdcc::error::{Error, Parameter};

const FLAGS: [(Parameter, &str); 14] = [
    (Parameter::Subtasks, "--workers"),
    (Parameter::Workers, "--workers"),
    (Parameter::Tolerate, "--tolerate"),
    (Parameter::Partitions, "--partitions"),
    (Parameter::Deadline, "--deadline"),
    (Parameter::OnShortfall, "--on-shortfall"),
    (Parameter::Hedge, "--hedge"),
    (Parameter::Patience, "--patience"),
    (Parameter::Audit, "--audit"),
    (Parameter::MaxError, "--max-error"),
    (Parameter::MaxWindowwise, "--max-windowwise"),
    (Parameter::Groups, "--groups"),
    (Parameter::ElementType, "--precision"),
    (Parameter::DefaultRates, "--calibrate never"),
];

/// `error` with the flags of the command line in place of the library's names.
#[must_use]
pub fn with_flags(error: Error) -> Error {
    error.with_names(&|parameter| match parameter {
        Parameter::InputShape { input } => format!("--shape {input}=SIZES, or {parameter}"),
        other => {
            let flag = FLAGS.iter().find(|(known, _)| known == other);
            flag.map_or_else(|| other.to_string(), |(_, flag)| (*flag).to_owned())
        }
    })
}
