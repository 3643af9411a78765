//! The `fcdcc` command: parses arguments, assembles a pool, calls the library, prints.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
