//! Regular files that appear complete or not at all.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::part::{self, Part};
use super::place::{self, Kind, Place, follow};

/// Size of the write buffer.
const BUFFER: usize = 1 << 16;

/// Creates the file at `to`, a path without links, or replaces the regular file there.
///
/// # Errors
/// The error of the file system or of `write`; an existing file is then unchanged.
pub(super) fn write(to: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let old = match to.symlink_metadata() {
        Ok(about) if about.is_file() => Some(about),
        Ok(about) => {
            let kind = Kind::of(&about).name();
            return Err(io::Error::other(format!("it has become a {kind} since it was checked")));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let mut part = Part::create(place::folder(to), old.is_some())?;
    let mut buffered = BufWriter::with_capacity(BUFFER, part.file());
    write(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    if let Some(old) = &old {
        part.take_after(old);
    }
    part.put(to, old.is_some())
}

/// Replaces a file that this crate keeps for itself, and creates its folder if it is missing. Anything but a regular file
/// is left alone.
///
/// # Errors
/// The file system's error; the old file is then unchanged.
pub fn replace_regular(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(place::folder(path))?;
    let to = match follow(path)? {
        Place::There { path, about } if about.is_file() => path,
        Place::Missing { folder, name } => folder.join(name),
        Place::There { about, .. } => {
            return Err(io::Error::other(format!("it is a {}", Kind::of(&about).name())));
        }
        Place::Descriptor(_) => return Err(io::Error::other("it is a descriptor of this process")),
    };
    part::clear(place::folder(&to));
    write(&to, |out| out.write_all(bytes))
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_keeps_its_mode_and_owner_and_its_links_lead_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("a"), folder.path().join("link"));
        fs::write(&path, "old").unwrap();
        symlink("a", &link).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4640)).unwrap();
        // Root may give files to other users; for other users nothing changes.
        let _ = std::os::unix::fs::chown(&path, Some(1234), Some(4321));
        // A change of owner clears these bits.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4640)).unwrap();
        let before = path.metadata().unwrap();
        replace_regular(&link, b"new").unwrap();
        let after = path.metadata().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert!(link.symlink_metadata().unwrap().is_symlink());
        let rights = |about: &fs::Metadata| (about.mode(), about.uid(), about.gid());
        assert_eq!(rights(&before), rights(&after));
        assert_ne!(before.ino(), after.ino());
    }

    #[test]
    fn what_fails_in_the_middle_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["new", "old"] {
            let path = folder.path().join(name);
            if name == "old" {
                fs::write(&path, "old").unwrap();
            }
            let failed = write(&path, |out| {
                out.write_all(&vec![1; 1 << 20])?;
                Err(io::Error::other("no more"))
            });
            assert!(failed.unwrap_err().to_string().contains("no more"));
        }
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["old"]);
        assert_eq!(fs::read_to_string(folder.path().join("old")).unwrap(), "old");
    }

    #[test]
    fn only_regular_files_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let error = replace_regular(&socket, b"x").unwrap_err().to_string();
        assert!(error.contains("socket"), "{error}");
        assert!(replace_regular(folder.path(), b"x").is_err());
        let deep = folder.path().join("not/yet/there");
        replace_regular(&deep, b"x").unwrap();
        assert_eq!(fs::read(&deep).unwrap(), b"x");
    }
}
