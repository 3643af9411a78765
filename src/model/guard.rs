//! Converts errors and panics of tract to errors of this crate.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tract_onnx::prelude::TractResult;

use crate::error::{Error, Result, panic_text};

/// Maximum length of a message passed on from tract, since some quote whole shapes and graphs.
const MOST_CHARS: usize = 400;

/// Calls tract on behalf of `model`. A panic means that the file led to a state that tract does not handle; it is
/// returned as an error about the file.
pub(super) fn guarded<T>(model: &str, call: impl FnOnce() -> TractResult<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            Err(error.downcast::<Error>().unwrap_or_else(|e| refused(model, &mended(&format!("{e:#}")))))
        }
        Err(panic) => {
            let said = panic_text(&*panic);
            Err(refused(model, &mended(&format!("the ONNX library gave up on it: {said}"))))
        }
    }
}

/// What to do about a refusal whose text does not say it.
const MEND: &str = ": check the shapes of the inputs, or export the model with other operators";
/// How the last part of a text begins that says what to do.
const VERBS: &[&str] = &[
    "add", "allow", "check", "choose", "export", "give", "leave", "make", "name", "only", "reshape", "set",
    "split", "use", "write",
];

/// A text of the ONNX library with what to do about it; a text of this crate says that itself.
fn mended(text: &str) -> String {
    let says = |part: &str| {
        let first = part.trim_start().split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        VERBS.contains(&first)
    };
    if text.split(": ").skip(1).any(says) {
        return text.to_owned();
    }
    // Leaves room for the words that callers put before.
    let most = MOST_CHARS - 2 * MEND.len();
    let cut = text.char_indices().nth(most).map(|(end, _)| &text[..end]);
    cut.map_or_else(|| format!("{}{MEND}", text.trim_end_matches('.')), |cut| format!("{cut} ...{MEND}"))
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
        let said = "m.onnx: the ONNX library gave up on it: index out of bounds";
        assert_eq!(text, format!("{said}{MEND}"));
        let long = guarded::<()>("m", || Err(tract_onnx::prelude::TractError::msg("x ".repeat(1000))));
        assert!(long.unwrap_err().to_string().len() < 420);
        // An error of this crate keeps its kind.
        let own = guarded::<()>("m", || Err(Error::Cancelled.into()));
        assert!(matches!(own, Err(Error::Cancelled)));
    }

    #[test]
    fn what_to_do_is_said_once() {
        for (text, is_said) in [
            ("node y: its direction is UP: give LEFT or RIGHT", true),
            ("Failed analyse for node #3: it has 1 input: give numbers and amounts", true),
            ("node y: Condition failed: `a_rank > 1`", false),
            ("Building node (Pad): Unsupported mode wrap", false),
            ("only", false),
        ] {
            let mended = mended(text);
            assert_eq!(mended.ends_with(MEND), !is_said, "{mended}");
            assert!(mended.starts_with(text));
        }
        let long = mended(&"x".repeat(2 * MOST_CHARS));
        assert!(long.ends_with(MEND) && long.len() + MEND.len() <= MOST_CHARS + 8, "{}", long.len());
    }
}
