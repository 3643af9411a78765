//! Incomplete files: without a name if the system supports that, else under a recognizable name.
//!
//! Invariant: the process that writes a part holds a lock on it, so a part that can be locked belongs to a process that has
//! ended.

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Seek};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Prefix and suffix of the names of parts; 16 hexadecimal digits are between them.
const PREFIX: &str = ".fcdcc-";
const SUFFIX: &str = ".part";
/// Age at which a part that cannot be locked at all counts as a left-over: some file systems have no locks.
const OLD: Duration = Duration::from_hours(24);
/// Maximum number of attempts to find an unused name.
const TRIES: usize = 16;

/// A file that is not visible yet, or visible only as a part.
pub(super) struct Part {
    file: File,
    /// The folder of the complete file.
    folder: PathBuf,
    /// The name of the part; `None` if it has none.
    name: Option<PathBuf>,
}

impl Part {
    /// Creates a part in `folder`. `private`: other users cannot read it before it is complete.
    ///
    /// # Errors
    /// The file system's error if no file can be created in the folder.
    pub(super) fn create(folder: &Path, private: bool) -> io::Result<Self> {
        match unnamed(folder, private) {
            Some(file) => {
                // Held until the file has its name. On file systems without locks the age decides.
                let _ = file.try_lock();
                Ok(Self { file, folder: folder.to_owned(), name: None })
            }
            None => Self::named(folder, private),
        }
    }

    fn named(folder: &Path, private: bool) -> io::Result<Self> {
        for _ in 0..TRIES {
            let name = fresh_name(folder);
            let mut options = File::options();
            options.read(true).write(true).create_new(true);
            mode(&mut options, private);
            let file = match options.open(&name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                result => result?,
            };
            let part = Self { file, folder: folder.to_owned(), name: Some(name) };
            // A process that removes left-overs may have locked it first: then the file is gone, or about to be.
            let taken = matches!(part.file.try_lock(), Err(TryLockError::WouldBlock));
            if !taken && linked(&part.file)? {
                return Ok(part);
            }
        }
        Err(io::Error::other(format!("{TRIES} names in a row were taken")))
    }

    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Takes over the owner and the permissions of `old`, as far as the user may set them.
    pub(super) fn take_after(&self, old: &Metadata) {
        take_after(&self.file, old);
    }

    /// Gives the file its final name, `path` in its folder. `over`: replaces a file of that name.
    ///
    /// # Errors
    /// The file system's error; then nothing has changed.
    pub(super) fn put(mut self, path: &Path, over: bool) -> io::Result<()> {
        if self.name.is_none() {
            match link(&self.file, path, over) {
                Linked::Done => return Ok(()),
                Linked::Beside(name) => self.name = Some(name),
                // This file system does not support it after all.
                Linked::Not => self.copy()?,
            }
        }
        let name = self.name.as_ref().expect("a part without a name got one above");
        fs::rename(name, path)?;
        self.name = None;
        Ok(())
    }

    /// Copies an unnamed part into a named one, which takes its place.
    fn copy(&mut self) -> io::Result<()> {
        let mut named = Self::named(&self.folder, true)?;
        self.file.rewind()?;
        io::copy(&mut self.file, &mut named.file)?;
        named.file.set_permissions(self.file.metadata()?.permissions())?;
        named.take_after(&self.file.metadata()?);
        *self = named;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // If this fails, the next run removes the file.
            let _ = fs::remove_file(name);
        }
    }
}

fn fresh_name(folder: &Path) -> PathBuf {
    // The standard library has no other source of randomness.
    let random = RandomState::new().hash_one(std::process::id());
    folder.join(format!("{PREFIX}{random:016x}{SUFFIX}"))
}

#[cfg(unix)]
fn mode(options: &mut fs::OpenOptions, private: bool) {
    use std::os::unix::fs::OpenOptionsExt;
    // The umask restricts this further.
    options.mode(if private { 0o600 } else { 0o666 });
}

#[cfg(not(unix))]
fn mode(_: &mut fs::OpenOptions, _: bool) {}

#[cfg(unix)]
fn linked(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(file.metadata()?.nlink() > 0)
}

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "fails where links are counted")]
fn linked(_: &File) -> io::Result<bool> {
    Ok(true)
}

#[cfg(unix)]
fn take_after(file: &File, old: &Metadata) {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
    // Root may set any owner, other users only one of their groups.
    let owned = fchown(file, Some(old.uid()), Some(old.gid())).is_ok();
    if !owned {
        let _ = fchown(file, None, Some(old.gid()));
    }
    // Keep the set-user and set-group bits only if the owner is the same.
    let mode = old.mode() & if owned { 0o7777 } else { 0o1777 };
    let _ = file.set_permissions(fs::Permissions::from_mode(mode));
}

#[cfg(not(unix))]
fn take_after(file: &File, old: &Metadata) {
    let _ = file.set_permissions(old.permissions());
}

/// The outcome of naming an unnamed file.
enum Linked {
    Done,
    /// It has the name of a part, to be renamed over the existing file.
    Beside(PathBuf),
    Not,
}

#[cfg(target_os = "linux")]
fn unnamed(folder: &Path, private: bool) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;

    use rustix::fs::OFlags;

    let mut options = File::options();
    options.read(true).write(true).custom_flags(OFlags::TMPFILE.bits().cast_signed());
    mode(&mut options, private);
    // The file is named through /proc.
    let file = options.open(folder).ok()?;
    Path::new("/proc/self/fd").is_dir().then_some(file)
}

#[cfg(target_os = "linux")]
fn link(file: &File, path: &Path, over: bool) -> Linked {
    use std::os::fd::AsRawFd;

    use rustix::fs::{AtFlags, CWD, linkat};
    use rustix::io::Errno;

    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    let named = |path: &Path| linkat(CWD, own.as_str(), CWD, path, AtFlags::SYMLINK_FOLLOW);
    if !over {
        match named(path) {
            Ok(()) => return Linked::Done,
            // Another file of that name appeared in the meantime.
            Err(Errno::EXIST) => {}
            Err(_) => return Linked::Not,
        }
    }
    let beside = fresh_name(super::place::folder(path));
    if named(&beside).is_ok() { Linked::Beside(beside) } else { Linked::Not }
}

#[cfg(not(target_os = "linux"))]
fn unnamed(_: &Path, _: bool) -> Option<File> {
    None
}

#[cfg(not(target_os = "linux"))]
fn link(_: &File, _: &Path, _: bool) -> Linked {
    Linked::Not
}

/// Removes parts that dead processes left in `folder`; once for each folder and process.
pub(super) fn clear(folder: &Path) {
    static CLEARED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    if CLEARED.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.to_owned()) {
        clear_again(folder);
    }
}

fn clear_again(folder: &Path) {
    // A left-over that cannot be removed only costs space.
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if is_part(name) && is_left(&entry.path(), false) || is_former(name) && is_left(&entry.path(), true) {
            let path = entry.path();
            if let Err(error) = fs::remove_file(&path) {
                tracing::debug!(path = %path.display(), %error, "a left-over stays");
            } else {
                tracing::info!(path = %path.display(), "cleared what a process that ended had left");
            }
        }
    }
}

fn is_part(name: &str) -> bool {
    let digits = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX));
    digits.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether this is the name of a part from versions that did not lock parts.
fn is_former(name: &str) -> bool {
    let random = name.strip_prefix(PREFIX);
    random.is_some_and(|random| random.len() == 6 && random.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// Whether a part belongs to no process. `by_age`: decides by age alone, since it may never have been locked.
fn is_left(path: &Path, by_age: bool) -> bool {
    let Ok(about) = path.symlink_metadata() else { return false };
    let old = || about.modified().is_ok_and(|then| then.elapsed().is_ok_and(|age| age > OLD));
    // Anything but a regular file is not a part, despite its name.
    if !about.is_file() {
        return false;
    }
    if by_age {
        return old();
    }
    let Ok(file) = File::open(path) else { return false };
    match file.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(_)) => old(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::SystemTime;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_part_is_seen_only_when_it_is_put() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("a");
        for (over, named) in [(false, false), (true, false), (false, true), (true, true)] {
            let make = if named { Part::named } else { Part::create };
            let mut part = make(folder.path(), false).unwrap();
            let text = format!("{over} {named}");
            part.file().write_all(text.as_bytes()).unwrap();
            let seen = names(folder.path());
            assert!(seen.iter().all(|n| n == "a" || is_part(n)), "{seen:?}");
            part.put(&to, over).unwrap();
            assert_eq!(
                (fs::read_to_string(&to).unwrap(), names(folder.path())),
                (text, vec!["a".to_owned()])
            );
        }
        drop(Part::named(folder.path(), false).unwrap());
        drop(Part::create(folder.path(), false).unwrap());
        assert_eq!(names(folder.path()), ["a"]);
        let mut part = Part::create(folder.path(), false).unwrap();
        part.file().write_all(b"copied").unwrap();
        part.copy().unwrap();
        part.put(&to, true).unwrap();
        assert_eq!(
            (fs::read_to_string(&to).unwrap(), names(folder.path())),
            ("copied".to_owned(), vec!["a".to_owned()])
        );
        assert!(Part::create(&folder.path().join("missing"), false).is_err());
    }

    #[test]
    fn only_what_nobody_holds_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let held = Part::named(folder.path(), false).unwrap();
        let left = fresh_name(folder.path());
        let old = folder.path().join(".fcdcc-aB3xYz");
        let young = folder.path().join(".fcdcc-cD4xYz");
        for path in
            [&left, &old, &young, &folder.path().join(".fcdcc-0123.part"), &folder.path().join("mine")]
        {
            fs::write(path, "x").unwrap();
        }
        fs::create_dir(fresh_name(folder.path())).unwrap();
        let long_ago = SystemTime::now() - 2 * OLD;
        File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();
        let before = names(folder.path()).len();
        clear_again(folder.path());
        assert!(!left.exists() && !old.exists() && young.exists());
        assert!(held.name.as_ref().unwrap().exists());
        assert_eq!(names(folder.path()).len(), before - 2);
        drop(held);
    }
}
