//! The helper of tests that go through tables.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::cell::Cell;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fcdcc_test_support::every_row;

/// The message with which a table fails.
fn message<R: Debug>(rows: impl IntoIterator<Item = R>, check: impl Fn(R)) -> String {
    let panic = catch_unwind(AssertUnwindSafe(|| every_row(rows, check))).unwrap_err();
    *panic
        .downcast::<String>()
        .unwrap_or_else(|other| Box::new((*other.downcast::<&str>().unwrap()).to_owned()))
}

#[test]
fn a_table_without_failures_is_gone_through_once() {
    let sum = Cell::new(0);
    every_row([1, 2, 4], |row| sum.set(sum.get() + row));
    assert_eq!(sum.get(), 7);
}

#[test]
fn every_failing_row_is_named_with_its_reason() {
    let seen = Cell::new(0);
    let text = message([("first", 1), ("second", 2), ("third", 3)], |(name, number)| {
        seen.set(seen.get() + 1);
        assert!(number == 2, "{name} is not 2");
    });
    assert_eq!(seen.get(), 3);
    assert_eq!(text, "2 of 3 rows failed:\n(\"first\", 1): first is not 2\n(\"third\", 3): third is not 2");
}

#[test]
fn a_text_that_is_no_string_and_a_panic_without_a_text_are_told() {
    let text = message([true, false], |plain| if plain { panic!("plain") } else { std::panic::panic_any(7) });
    assert_eq!(text, "2 of 2 rows failed:\ntrue: plain\nfalse: a panic without a text");
}

#[test]
fn a_long_row_is_shortened_between_characters() {
    let text = message(["é".repeat(1000)], |_| panic!("too long"));
    assert!(text.ends_with(&format!("\"{}...: too long", "é".repeat(199))), "{text}");
}

#[test]
fn a_table_without_rows_fails() {
    assert!(message([0; 0], |_| {}).contains("no rows"));
}
