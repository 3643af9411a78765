//! Files by path: inputs are read within limits, outputs appear complete or not at all.
//!
//! This is advanced API: not needed for ordinary use.
//!
//! Relevant if you want to read or write any file of this crate: [`Input`] reads a path given by the user, [`Output`] is
//! checked before the work and written after it, and [`Identity`] tells whether two paths lead to the same place.
//! Invariant: every read has a limit of bytes and of time, and no regular file ever holds a part of an output.

mod descriptor;
mod input;
mod output;
mod part;
mod patient;
mod place;
mod whole;

pub use input::{Input, TEXT_BYTES, read_text};
pub use output::Output;
pub use place::{Identity, Kind};
pub use whole::replace_regular;

use std::io;
use std::path::Path;

use crate::error::Error;

/// The path that stands for standard input or standard output.
pub const STANDARD: &str = "-";

/// Whether a path stands for standard input or standard output.
#[must_use]
pub fn is_standard(path: &Path) -> bool {
    path == Path::new(STANDARD)
}

/// A path for messages; a very long one is abbreviated.
fn shown(path: &Path) -> String {
    const MOST: usize = 300;
    const ENDS: usize = 100;
    let text = path.display().to_string();
    let count = text.chars().count();
    if count <= MOST {
        return text;
    }
    let (start, end): (String, String) =
        (text.chars().take(ENDS).collect(), text.chars().skip(count - ENDS).collect());
    format!("{start}...{end}")
}

/// The error of a file that cannot be used, found before any work (exit status 2).
fn unfit(name: &str, cause: impl Into<String>) -> Error {
    Error::File { path: name.to_owned(), cause: cause.into(), input: true }
}

/// The error of the system for a file that cannot be read, found before any work (exit status 2).
fn unreadable(name: &str, source: io::Error) -> Error {
    Error::Io { path: name.to_owned(), cause: "cannot be read", source, input: true }
}

/// The error of the system for a place that cannot be written to, found before any work (exit status 2).
fn unwritable(name: &str, source: io::Error) -> Error {
    Error::Io { path: name.to_owned(), cause: "cannot be written", source, input: true }
}

/// The error of a file that could not be written (exit status 1).
fn unwritten(name: &str, source: io::Error) -> Error {
    Error::Io { path: name.to_owned(), cause: "cannot be written", source, input: false }
}
