//! Cache files that only save time, with measured rates or chosen kernels.
//!
//! This is advanced API: not needed for ordinary use.
//!
//! Relevant if you want to keep measurements of a machine between runs. A file that is missing, damaged, foreign or not a
//! regular file counts as empty. Invariant: one process at a time replaces a file as a whole, so that a reader finds the
//! old or the new text, and no process loses an entry that another has stored.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::files::{self, Identity, Kind};

/// Longest wait for other processes that update a file: each takes milliseconds.
const TURN: Duration = Duration::from_secs(10);
/// Pause between two attempts to lock.
const TRY: Duration = Duration::from_millis(5);

/// The folder of these files: `$FCDCC_CACHE`, else `fcdcc` in the user's cache folder; `None` if neither exists.
#[must_use]
pub fn folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("FCDCC_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|p| p.join("fcdcc")))
        .or_else(|| set("HOME").map(|p| p.join(".cache/fcdcc")))
        .or_else(|| set("LOCALAPPDATA").map(|p| p.join("fcdcc")))
}

/// The text of the file at `path`, of at most [`files::TEXT_BYTES`]; `None` if there is no file.
///
/// # Errors
/// [`Error::File`] for anything that cannot be read as text; pipes and devices are refused at once.
pub fn read(path: &Path) -> Result<Option<String>> {
    match Identity::of(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(place) if place.kind != Kind::Regular => {
            let cause = format!("is a {}, no file: remove it", place.kind.name());
            return Err(Error::File { path: path.display().to_string(), cause, input: true });
        }
        _ => {}
    }
    match files::read_text(path) {
        // The file was created or removed in between, or a link is dangling.
        Err(_) if !path.exists() => Ok(None),
        result => result.map(Some),
    }
}

/// Replaces the file at `path`, and creates its folder if it is missing. `merge` makes the new text of the old one, while
/// no other process updates a file of that folder.
///
/// # Errors
/// Errors of the file system or of `merge`; the old file is then unchanged.
pub fn update(path: &Path, merge: impl FnOnce(Option<String>) -> io::Result<String>) -> io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(folder)?;
    let _turn = turn(folder)?;
    // An unreadable file counts as empty; anything but a regular file is not replaced below.
    let text = merge(read(path).unwrap_or_else(|error| {
        tracing::info!(%error, "counts as empty");
        None
    }))?;
    files::replace_regular(path, text.as_bytes())
}

/// A lock on the folder, which ends when it is dropped or the process ends.
fn turn(folder: &Path) -> io::Result<Option<File>> {
    // On Unix the folder itself can be locked, which leaves no extra file.
    let lock = if cfg!(unix) {
        File::open(folder)?
    } else {
        File::options().create(true).truncate(false).write(true).open(folder.join("lock"))?
    };
    let until = Instant::now() + TURN;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(Some(lock)),
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(TRY),
            Err(TryLockError::WouldBlock) => {
                let cause = format!("another process has held its folder for {TURN:?}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, cause));
            }
            // No locks on this file system: an entry may be lost and is measured again.
            Err(TryLockError::Error(error)) => {
                tracing::debug!(folder = %folder.display(), %error, "cannot be locked");
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_from_many_threads_all_arrive() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/counts");
        // Locks belong to open files, so threads can stand for processes here.
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let path = &path;
                scope.spawn(move || {
                    for turn in 0..8 {
                        update(path, |old| Ok(format!("{}{thread}-{turn}\n", old.unwrap_or_default())))
                            .unwrap();
                    }
                });
            }
        });
        let text = read(&path).unwrap().unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 24);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_merge_that_fails_leaves_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        assert_eq!(read(&path).unwrap(), None);
        update(&path, |old| Ok(format!("{old:?}"))).unwrap();
        assert!(update(&path, |_| Err(io::Error::other("no"))).is_err());
        assert_eq!(read(&path).unwrap().unwrap(), "None");
    }

    #[test]
    #[cfg(unix)]
    fn what_is_no_file_is_neither_waited_for_nor_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
        let started = Instant::now();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("pipe, no file"), "{error}");
        assert!(update(&path, |old| Ok(format!("{old:?}"))).unwrap_err().to_string().contains("pipe"));
        assert!(started.elapsed() < TURN);
        assert_eq!(Identity::of(&path).unwrap().kind, Kind::Pipe);
    }
}
