//! The environment variables that libraries read, set before anything else runs.

/// The variables that are to be set and are not, with their values. On a machine without a desktop session, Mesa's
/// device-select layer prints an `error:` line of its own for every Vulkan instance. That layer only orders devices by a
/// desktop user's preference, so it is disabled, and stderr holds the errors of this program alone. The distributed engine
/// reads its number of threads.
pub(super) fn missing() -> Vec<(&'static str, &'static str)> {
    let unset = |name: &str| std::env::var_os(name).is_none();
    let mut missing = Vec::new();
    if cfg!(target_os = "linux") && unset("XDG_RUNTIME_DIR") && unset("NODEVICE_SELECT") {
        missing.push(("NODEVICE_SELECT", "1"));
    }
    #[cfg(feature = "cluster")]
    {
        let (name, value) = fcdcc::cluster::RUNTIME_VARIABLE;
        if unset(name) {
            missing.push((name, value));
        }
    }
    missing
}

/// Sets the [`missing`] variables.
#[expect(unsafe_code, reason = "setting an environment variable is unsafe in Rust; nothing else runs yet")]
pub(super) fn prepare() {
    for (name, value) in missing() {
        // SAFETY: the process does this first: it has one thread, and nothing else reads the environment.
        unsafe { std::env::set_var(name, value) };
    }
}
