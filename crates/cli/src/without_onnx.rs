//! Errors of `run`, `inspect` and `demo` in a binary without feature `onnx`.

use fcdcc::{Error, Result};

use super::Console;

/// Not in this binary: it was built without feature `onnx`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: &Args, _: Console) -> Result<()> {
    tracing::debug!(?args.rest, "ignored");
    Err(Error::Unavailable {
        what: "running ONNX models".to_owned(),
        help: "this binary was built without it: build or install it with `--features full`".into(),
    })
}
