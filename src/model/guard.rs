//! Converts errors and panics of tract to errors of this crate.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tract_onnx::prelude::TractResult;

use crate::error::{Error, Result, panic_text};

/// Maximum length of a message passed on from tract, since some quote whole shapes and graphs.
const MOST_CHARS: usize = 300;

/// Calls tract on behalf of `model`. A panic means that the file led to a state that tract does not handle; it is
/// returned as an error about the file.
pub(super) fn guarded<T>(model: &str, call: impl FnOnce() -> TractResult<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            Err(error.downcast::<Error>().unwrap_or_else(|e| refused(model, &format!("{e:#}"))))
        }
        Err(panic) => {
            let said = panic_text(&*panic);
            Err(refused(model, &format!("the ONNX library gave up on it: {said}")))
        }
    }
}

/// [`Error::Model`] with a message of any length and number of lines, shortened to fit one line.
pub(super) fn refused(model: &str, cause: &str) -> Error {
    Error::Model { model: model.to_owned(), cause: one_line(cause).into() }
}

/// A text of any length and number of lines, shortened to fit one line.
pub(super) fn one_line(text: &str) -> String {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match flat.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{} ...", &flat[..end]),
        None => flat,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_panics_become_one_line() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let panicked = guarded::<()>("m.onnx", || panic!("index out of\nbounds"));
        std::panic::set_hook(hook);
        let text = panicked.unwrap_err().to_string();
        assert_eq!(text, "m.onnx: the ONNX library gave up on it: index out of bounds");
        let long = guarded::<()>("m", || Err(tract_onnx::prelude::TractError::msg("x ".repeat(1000))));
        assert!(long.unwrap_err().to_string().len() < 320);
        // An error of this crate keeps its kind.
        let own = guarded::<()>("m", || Err(Error::Cancelled.into()));
        assert!(matches!(own, Err(Error::Cancelled)));
    }
}
