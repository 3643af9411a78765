//! Tests over tables of independent cases.

use std::any::Any;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Longest text of a row in the message, in characters.
const ROW_CHARS: usize = 200;

/// Calls `check` with every row, and panics at the end if it panicked for any: the message has every such row with the
/// text of its panic. An empty table panics too, since it checks nothing.
#[track_caller]
pub fn every_row<R: Debug>(rows: impl IntoIterator<Item = R>, check: impl Fn(R)) {
    let (mut count, mut failed) = (0, Vec::new());
    for row in rows {
        count += 1;
        let told = shortened(&format!("{row:?}"));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(row))) {
            failed.push(format!("{told}: {}", text_of(&*panic)));
        }
    }
    assert!(count > 0, "the table has no rows, so nothing was checked");
    assert!(failed.is_empty(), "{} of {count} rows failed:\n{}", failed.len(), failed.join("\n"));
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(ROW_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a text")
}
