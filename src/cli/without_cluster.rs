//! What `worker`, `cluster` and remote workers in pool files say in a binary that was built without clusters.

use fcdcc::{Error, Result};

/// Not in this binary: it was built without feature `cluster`.
#[derive(clap::Args)]
pub(crate) struct WorkerArgs {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Likewise.
pub(crate) type ClusterArgs = WorkerArgs;

/// How to get what is not there.
pub(crate) fn without_cluster() -> Error {
    Error::Unavailable {
        what: "working with other machines".to_owned(),
        help: "this binary was built without it: build with feature `cluster`".to_owned(),
    }
}

pub(crate) fn run(args: &WorkerArgs) -> Result<()> {
    tracing::debug!(?args.rest, "ignored");
    Err(without_cluster())
}
