//! The `fcdcc` binary: the command of the library beside it, on the arguments of the process.

use std::process::ExitCode;

fn main() -> ExitCode {
    fcdcc_cli::prepare_environment();
    ExitCode::from(fcdcc_cli::command(std::env::args_os()))
}
