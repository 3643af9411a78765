//! A limit for every step: engines of this process cannot be interrupted, so what does not return ends the process.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The exit status of a run that was ended here.
pub(crate) const STUCK: u8 = 3;

static STEP: Mutex<Option<(String, Instant)>> = Mutex::new(None);

fn step(new: Option<(String, Instant)>) {
    *STEP.lock().unwrap_or_else(PoisonError::into_inner) = new;
}

/// Starts the thread that looks at the limits.
pub(crate) fn start() {
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let step = STEP.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((what, limit)) = &*step
                && Instant::now() > *limit
            {
                eprintln!("error: {what} does not return; giving up");
                fcdcc_peers::child::kill_all();
                std::process::exit(i32::from(STUCK));
            }
        }
    });
}

/// Runs `work`, which must return within `limit`.
pub(crate) fn within<R>(what: &str, limit: Duration, work: impl FnOnce() -> R) -> R {
    step(Some((what.to_owned(), Instant::now() + limit)));
    let result = work();
    step(None);
    result
}
