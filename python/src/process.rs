//! The process that owns the library's threads.
//!
//! `fork` copies the memory of a process and one of its threads. The copies of pools then wait for threads that do not
//! exist. Relevant where a Python program forks (`multiprocessing`, data loaders).
//!
//! Invariant: in a forked child nothing of the parent is used, and nothing of it is dropped.

use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering};

use pyo3::prelude::*;

use super::errors;

/// The process that used the library first; 0: none yet.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Records this process as the owner, or refuses if another one is.
///
/// # Errors
/// `fcdcc.ForkedProcess` in a child that was forked from the owner.
pub(crate) fn enter(py: Python<'_>) -> PyResult<()> {
    let own = std::process::id();
    match OWNER.compare_exchange(0, own, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => Ok(()),
        Err(owner) if owner == own => Ok(()),
        Err(owner) => Err(errors::forked(py, owner, own)),
    }
}

fn forked() -> bool {
    let owner = OWNER.load(Ordering::Relaxed);
    owner != 0 && owner != std::process::id()
}

/// An object of the library that waits for threads when it is dropped: without the interpreter's lock, and not in a forked
/// child.
pub(crate) struct Held<T: Send>(Option<T>);

impl<T: Send> Held<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }
}

impl<T: Send> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("only dropping takes it")
    }
}

impl<T: Send> Drop for Held<T> {
    fn drop(&mut self) {
        let value = self.0.take();
        if forked() {
            std::mem::forget(value);
        } else {
            // Where the interpreter is gone, there is no lock to release: the value is dropped with the closure.
            Python::try_attach(move |py| py.detach(move || drop(value)));
        }
    }
}
