//! Starts the threads that use all cores: as many as the system grants.
//!
//! Relevant if the process may have few threads (`ulimit -u`, a container's `pids.max`): rayon's own start panics if it
//! cannot get all the threads it wants.

use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};

use fcdcc::{Error, Result};

/// Starts rayon's threads: one per core (or `RAYON_NUM_THREADS`), or as many as possible.
///
/// # Errors
/// [`Error::Unavailable`] if not even one thread can be started.
pub(crate) fn start() -> Result<()> {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|count| count.parse::<usize>().ok());
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = asked.filter(|count| *count > 0).unwrap_or_else(cores);
    let unavailable = |cause: &dyn std::fmt::Display| Error::Unavailable {
        what: format!("a thread beside the first ({cause})"),
        help: "allow this process more threads (ulimit -u, the pids.max of its cgroup)".into(),
    };
    // Starts the threads before rayon learns their number: rayon cannot be initialized twice.
    let (hand_over, begin) = mpsc::channel::<rayon::ThreadBuilder>();
    let begin = Arc::new(Mutex::new(begin));
    let mut started = 0;
    let mut refused = None;
    while started < wanted {
        let begin = Arc::clone(&begin);
        let thread = std::thread::Builder::new().name(format!("fcdcc core {started}"));
        let serve = move || {
            let next = begin.lock().unwrap_or_else(PoisonError::into_inner).recv();
            // An error means that rayon was not initialized.
            if let Ok(thread) = next {
                thread.run();
            }
        };
        match thread.spawn(serve) {
            Ok(_) => started += 1,
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    if let Some(error) = &refused {
        tracing::warn!(started, wanted, %error, "fewer threads than wanted");
        if started == 0 {
            return Err(unavailable(error));
        }
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(started)
        .spawn_handler(|thread| hand_over.send(thread).map_err(|e| std::io::Error::other(e.to_string())))
        .build_global()
        .map_err(|e| unavailable(&e))
}
