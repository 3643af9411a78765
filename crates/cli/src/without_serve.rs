//! The error of `serve` in a binary without feature `serve`.

use fcdcc::{Error, Result};

use super::Console;

/// Not in this binary: it was built without feature `serve`.
#[derive(clap::Args)]
pub(crate) struct ServeArgs {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: &ServeArgs, _: Console) -> Result<()> {
    tracing::debug!(?args.rest, "ignored");
    Err(Error::Unavailable {
        what: "serving models".to_owned(),
        help: "this binary was built without it: build or install it with `--features full`".into(),
    })
}
