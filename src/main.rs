//! The `fcdcc` command: parses arguments, assembles a pool, calls the library, prints.

mod cli;

fn main() -> std::process::ExitCode {
    quiet_mesa();
    cli::main()
}

/// On a machine without a desktop session Mesa's device-select layer prints an `error:` line of its own for every
/// Vulkan instance. Errors on stderr are this program's to print, so the layer stays out there; it only orders
/// devices by a desktop user's preference.
#[expect(unsafe_code, reason = "setting an environment variable is unsafe in Rust; nothing else runs yet")]
fn quiet_mesa() {
    let unset = |name| std::env::var_os(name).is_none();
    if cfg!(target_os = "linux") && unset("XDG_RUNTIME_DIR") && unset("NODEVICE_SELECT") {
        // SAFETY: this is the first thing the process does: there is one thread, nobody reads the environment.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}
