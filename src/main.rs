//! The `fcdcc` command: parses arguments, assembles a pool, calls the library, prints.

mod cli;

fn main() -> std::process::ExitCode {
    prepare_environment();
    cli::main()
}

/// Variables that libraries read. Mesa: on a machine without a desktop session its device-select layer prints an `error:`
/// line of its own for every Vulkan instance. Errors on stderr are this program's to print, so the layer stays out there;
/// it only orders devices by a desktop user's preference. The distributed engine: how many threads send.
#[expect(unsafe_code, reason = "setting an environment variable is unsafe in Rust; nothing else runs yet")]
fn prepare_environment() {
    let unset = |name| std::env::var_os(name).is_none();
    if cfg!(target_os = "linux") && unset("XDG_RUNTIME_DIR") && unset("NODEVICE_SELECT") {
        // SAFETY: this is the first thing the process does: there is one thread, nobody reads the environment.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
    #[cfg(feature = "cluster")]
    {
        let (name, value) = fcdcc::cluster::RUNTIME_VARIABLE;
        if unset(name) {
            // SAFETY: as above.
            unsafe { std::env::set_var(name, value) };
        }
    }
}
