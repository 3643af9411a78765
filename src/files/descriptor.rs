//! Inherited file descriptors, which paths such as `/dev/fd/3` lead to.
//!
//! Such a path is not opened, since a reopened file begins at its first byte, and a socket cannot be reopened at all. The
//! descriptor is duplicated instead, so reading and writing continue where the caller of this process stopped.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::Path;

/// The number of the descriptor that `name` in `folder` (a path without links) stands for.
pub(super) fn number(folder: &Path, name: &OsStr) -> Option<i32> {
    let number = name.to_str()?.parse().ok()?;
    let own = format!("/proc/{}", std::process::id());
    let inside = folder == Path::new("/dev/fd")
        || folder.strip_prefix(&own).is_ok_and(|rest| {
            let parts: Vec<_> = rest.iter().collect();
            matches!(parts.as_slice(), [fd] if *fd == "fd")
                || matches!(parts.as_slice(), [task, _, fd] if *task == "task" && *fd == "fd")
        });
    inside.then_some(number)
}

/// A duplicate of descriptor `number`.
///
/// # Errors
/// The system's error, also where the descriptor is not open.
#[cfg(unix)]
pub(super) fn duplicate(number: i32) -> io::Result<File> {
    use std::os::fd::AsFd;

    let standard = match number {
        0 => io::stdin().as_fd().try_clone_to_owned(),
        1 => io::stdout().as_fd().try_clone_to_owned(),
        2 => io::stderr().as_fd().try_clone_to_owned(),
        other => return other_descriptor(other),
    };
    standard.map(File::from)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn other_descriptor(number: i32) -> io::Result<File> {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

    // The safe way to a descriptor of which only the number is known.
    let own = pidfd_open(getpid(), PidfdFlags::empty());
    match own.and_then(|own| pidfd_getfd(&own, number, PidfdGetfdFlags::empty())) {
        Ok(descriptor) => Ok(descriptor.into()),
        // The system has no such call, or forbids it.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => opened(number),
        Err(error) => Err(error.into()),
    }
}

#[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
fn other_descriptor(number: i32) -> io::Result<File> {
    opened(number)
}

#[cfg(unix)]
fn opened(number: i32) -> io::Result<File> {
    let path = format!("/dev/fd/{number}");
    File::options().write(true).open(&path).or_else(|_| File::open(&path))
}

#[cfg(not(unix))]
pub(super) fn duplicate(_: i32) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether an open file may be written (`write`) or read (otherwise).
#[cfg(unix)]
pub(super) fn allows(file: &File, write: bool) -> io::Result<bool> {
    use rustix::fs::{OFlags, fcntl_getfl};

    let mode = fcntl_getfl(file)? & OFlags::RWMODE;
    Ok(mode == OFlags::RDWR || mode == if write { OFlags::WRONLY } else { OFlags::RDONLY })
}

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "fails where there are descriptors")]
pub(super) fn allows(_: &File, _: bool) -> io::Result<bool> {
    Ok(true)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn paths_of_descriptors_are_recognised() {
        let own = format!("/proc/{}", std::process::id());
        for (folder, name, expected) in [
            (format!("{own}/fd"), "3", Some(3)),
            (format!("{own}/task/77/fd"), "12", Some(12)),
            ("/dev/fd".to_owned(), "0", Some(0)),
            (format!("{own}/fd"), "three", None),
            (format!("{own}/fdinfo"), "3", None),
            ("/proc/1/fd".to_owned(), "3", None),
            ("/tmp/fd".to_owned(), "3", None),
        ] {
            assert_eq!(number(Path::new(&folder), OsStr::new(name)), expected, "{folder}/{name}");
        }
    }

    #[test]
    fn duplicates_go_on_where_the_descriptor_is() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"one").unwrap();
        let mut again = duplicate(file.as_raw_fd()).unwrap();
        again.write_all(b" two").unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two");
        assert!(allows(&again, true).unwrap() && allows(&again, false).unwrap());
        let read_only = File::open("/proc/self/status").unwrap();
        assert!(allows(&read_only, false).unwrap() && !allows(&read_only, true).unwrap());
        let gone = 1_000_000;
        assert!(duplicate(gone).is_err());
    }
}
