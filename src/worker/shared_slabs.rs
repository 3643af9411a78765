//! The identity of slabs that several tasks of a run use.
//!
//! Relevant if you write a worker that keeps copies of slabs elsewhere, as remote workers do: tasks with the same
//! [`SharedSlabs`] have the same slabs, so one copy serves all of them until the run is over.
//!
//! Invariant: everything registered with [`SharedSlabs::on_release`] is called exactly once.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sync::locked;

/// See the module documentation.
pub struct SharedSlabs {
    id: u64,
    /// `None` once the run is over.
    hooks: Mutex<Option<Vec<Hook>>>,
}

type Hook = Box<dyn FnOnce() + Send>;

impl SharedSlabs {
    /// A new identity, unlike any other in this process.
    #[must_use]
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), hooks: Mutex::new(Some(Vec::new())) }
    }

    /// The number of these slabs, unique in the process.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether the run is over, so that copies are no longer worth keeping.
    #[must_use]
    pub fn is_released(&self) -> bool {
        locked(&self.hooks).is_none()
    }

    /// Calls `hook` when the run is over, or at once if it is. The hook must not block: it is called on the thread that ends
    /// the run.
    pub fn on_release(&self, hook: impl FnOnce() + Send + 'static) {
        let mut hooks = locked(&self.hooks);
        if let Some(hooks) = &mut *hooks {
            hooks.push(Box::new(hook));
            return;
        }
        drop(hooks);
        hook();
    }

    /// Ends the run.
    pub(crate) fn release(&self) {
        let hooks = locked(&self.hooks).take();
        for hook in hooks.into_iter().flatten() {
            hook();
        }
    }
}

impl Default for SharedSlabs {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SharedSlabs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedSlabs").field(&self.id).finish()
    }
}

impl Drop for SharedSlabs {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn every_hook_is_called_once_at_the_end_or_when_it_comes_too_late() {
        let called = Arc::new(AtomicUsize::new(0));
        let hook = || {
            let called = Arc::clone(&called);
            move || {
                called.fetch_add(1, Ordering::Relaxed);
            }
        };
        let slabs = SharedSlabs::new();
        assert_ne!(slabs.id(), SharedSlabs::new().id());
        slabs.on_release(hook());
        assert_eq!((called.load(Ordering::Relaxed), slabs.is_released()), (0, false));
        slabs.release();
        assert_eq!((called.load(Ordering::Relaxed), slabs.is_released()), (1, true));
        slabs.on_release(hook());
        assert_eq!(called.load(Ordering::Relaxed), 2);
        drop(slabs);
        assert_eq!(called.load(Ordering::Relaxed), 2);
        let dropped = SharedSlabs::new();
        dropped.on_release(hook());
        drop(dropped);
        assert_eq!(called.load(Ordering::Relaxed), 3);
    }
}
