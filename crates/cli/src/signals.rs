//! Signals to a server: SIGTERM and SIGINT end it, SIGHUP has it read its files again.

use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use fcdcc::{Error, Result};

/// Exit status of a server that a second signal ended.
const ENDED_EARLY: i32 = 1;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To end in order. A second such signal ends the process.
    End,
    /// To read certificates and tokens again.
    #[cfg(unix)]
    Reload,
}

/// The signals that arrived.
pub(crate) struct Signals(Receiver<Asked>);

impl Signals {
    /// Handles signals from now on.
    pub(crate) fn catch() -> Result<Self> {
        let (asked, signals) = bounded(16);
        listen(asked).map_err(|cause| Error::Unavailable {
            what: format!("the handler of signals ({cause})"),
            help: "run it without one of its own".into(),
        })?;
        Ok(Self(signals))
    }

    /// Waits for the next one.
    pub(crate) fn next(&self) -> Asked {
        // The sender lives until the process ends.
        self.0.recv().unwrap_or(Asked::End)
    }
}

/// Passes the first request for an end on; the second ends the process.
fn end(asked: &Sender<Asked>, before: &AtomicBool) {
    if before.swap(true, Ordering::SeqCst) {
        std::process::exit(ENDED_EARLY);
    }
    // The receiver lives until the end of the command.
    let _ = asked.try_send(Asked::End);
}

#[cfg(unix)]
fn listen(asked: Sender<Asked>) -> std::result::Result<(), String> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;
    use std::io::IsTerminal;

    // A terminal that is closed sends SIGHUP too, and then a server that was started in it ends with it.
    let in_terminal = std::io::stdin().is_terminal();
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).map_err(|error| error.to_string())?;
    let thread = std::thread::Builder::new().name("fcdcc signals".to_owned());
    let spawned = thread.spawn(move || {
        let before = AtomicBool::new(false);
        for signal in signals.forever() {
            if signal == SIGHUP && !in_terminal {
                // The receiver lives until the end of the command.
                let _ = asked.try_send(Asked::Reload);
            } else {
                end(&asked, &before);
            }
        }
    });
    spawned.map(drop).map_err(|error| error.to_string())
}

#[cfg(not(unix))]
fn listen(asked: Sender<Asked>) -> std::result::Result<(), String> {
    let before = AtomicBool::new(false);
    ctrlc::set_handler(move || end(&asked, &before)).map_err(|error| error.to_string())
}
