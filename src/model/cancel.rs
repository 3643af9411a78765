//! Lets operators that run for long end when their run is cancelled.
//!
//! Relevant if you want to add an operator that repeats something: the operators of tract get nothing of a run but their
//! inputs. The token of a run is known to the thread that computes it.
//!
//! Invariant: a thread knows a token only during the call that was given it.

use std::cell::RefCell;

use crate::error::{Error, Result};
use crate::worker::CancelToken;

thread_local! {
    static TOKEN: RefCell<Option<CancelToken>> = const { RefCell::new(None) };
}

/// Restores the token of the caller, also when a call panics.
struct Restore(Option<CancelToken>);

impl Drop for Restore {
    fn drop(&mut self) {
        TOKEN.set(self.0.take());
    }
}

/// Calls `call`, during which [`check`] looks at `token`.
pub(super) fn during<R>(token: &CancelToken, call: impl FnOnce() -> R) -> R {
    let restore = Restore(TOKEN.replace(Some(token.clone())));
    let result = call();
    drop(restore);
    result
}

/// Ends an operator whose run is cancelled.
///
/// # Errors
/// [`Error::Cancelled`].
pub(super) fn check() -> Result<()> {
    let cancelled = TOKEN.with_borrow(|token| token.as_ref().is_some_and(CancelToken::is_cancelled));
    if cancelled { Err(Error::Cancelled) } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_token_counts_until_its_call_ends() {
        let (outer, inner) = (CancelToken::new(), CancelToken::new());
        inner.cancel();
        during(&outer, || {
            assert!(check().is_ok());
            during(&inner, || assert!(matches!(check(), Err(Error::Cancelled))));
            assert!(check().is_ok());
            outer.cancel();
            assert!(check().is_err());
        });
        assert!(check().is_ok());
    }
}
