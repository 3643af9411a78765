//! Whether a worker on another machine answers at present.
//!
//! Invariant: neither writing nor reading it waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the machine of a worker answers. Clones share one state; a new one answers.
///
/// A worker whose machine is silent is not lost yet: it keeps its filters and its tasks. Meanwhile runs give its subtasks to
/// other workers as well, and nothing new to it.
///
/// # Examples
///
/// ```
/// use fcdcc::worker::Presence;
///
/// let own = Presence::default();
/// let seen = own.clone();
/// assert!(!seen.is_silent());
/// own.set_silent(true);
/// assert!(seen.is_silent());
/// ```
///
/// ```
/// use fcdcc::worker::Presence;
///
/// // Each worker of a machine has a clone.
/// let machine = Presence::default();
/// let workers = [machine.clone(), machine.clone()];
/// machine.set_silent(true);
/// machine.set_silent(false);
/// assert!(workers.iter().all(|worker| !worker.is_silent()));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Presence(Arc<AtomicBool>);

impl Presence {
    /// Whether the machine has not answered for a while.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Records whether the machine is silent.
    pub fn set_silent(&self, silent: bool) {
        self.0.store(silent, Ordering::Relaxed);
    }
}
