//! Errors of `worker`, `cluster` and remote workers in pool files in a binary without feature `cluster`.

use fcdcc::{Error, Result};

/// Not in this binary: it was built without feature `cluster`.
#[derive(clap::Args)]
pub(crate) struct WorkerArgs {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// The arguments of `cluster`, equally missing.
pub(crate) type ClusterArgs = WorkerArgs;

/// The error, with how to get a binary that has the feature.
pub(crate) fn without_cluster() -> Error {
    Error::Unavailable {
        what: "working with other machines".to_owned(),
        help: "this binary was built without it: build or install it with `--features full`".into(),
    }
}

pub(crate) fn run(args: &WorkerArgs) -> Result<()> {
    tracing::debug!(?args.rest, "ignored");
    Err(without_cluster())
}
