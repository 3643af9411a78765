//! Resolves a path through links, and tells whether two paths lead to the same place.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use super::descriptor;

/// Paths with more links than this count as circular, as on Linux.
const MOST_LINKS: usize = 40;

/// The place that a path leads to.
pub(super) enum Place {
    /// A descriptor of this process.
    Descriptor(i32),
    /// Something that exists, at a path without links.
    There { path: PathBuf, about: Metadata },
    /// An unused name in a folder, a path without links.
    Missing { folder: PathBuf, name: OsString },
}

/// The folder of a path, `.` if it names none.
pub(super) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Follows every link of a path, also a link to something that does not exist yet.
pub(super) fn follow(path: &Path) -> io::Result<Place> {
    // Distinguishes a path that is too long as a whole from one that leads nowhere.
    if let Err(error) = path.symlink_metadata()
        && error.kind() == io::ErrorKind::InvalidFilename
    {
        return Err(error);
    }
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Some(name) = path.file_name().map(ToOwned::to_owned) else {
            // `/`, or a path that ends with `..`: a folder.
            let path = path.canonicalize()?;
            let about = path.metadata()?;
            return Ok(Place::There { path, about });
        };
        let folder = folder(&path).canonicalize()?;
        if let Some(number) = descriptor::number(&folder, &name) {
            return Ok(Place::Descriptor(number));
        }
        let at = folder.join(&name);
        match at.symlink_metadata() {
            // A link to another process's descriptor may lead to something without a path.
            Ok(about) if about.is_symlink() && folder.starts_with("/proc") => {
                let about = at.metadata()?;
                return Ok(Place::There { path: at, about });
            }
            Ok(about) if about.is_symlink() => path = folder.join(fs::read_link(&at)?),
            Ok(about) => return Ok(Place::There { path: at, about }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Place::Missing { folder, name });
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(format!("more than {MOST_LINKS} links lead to one another")))
}

/// The kind of file that a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file, or an unused name for one.
    Regular,
    /// A folder.
    Folder,
    /// A pipe, named or not.
    Pipe,
    /// A socket.
    Socket,
    /// A character device: a terminal, `/dev/null`.
    Device,
    /// A block device: a disk.
    Disk,
}

impl Kind {
    pub(super) fn of(about: &Metadata) -> Self {
        #[cfg(unix)]
        {
            use std::os::unix::fs::FileTypeExt;

            let kind = about.file_type();
            if kind.is_fifo() {
                return Self::Pipe;
            } else if kind.is_socket() {
                return Self::Socket;
            } else if kind.is_char_device() {
                return Self::Device;
            } else if kind.is_block_device() {
                return Self::Disk;
            }
        }
        if about.is_dir() { Self::Folder } else { Self::Regular }
    }

    /// A description for messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Regular => "file",
            Self::Folder => "folder",
            Self::Pipe => "pipe",
            Self::Socket => "socket",
            Self::Device | Self::Disk => "device",
        }
    }
}

/// The identity of the place that a path leads to: equal for two paths that lead to the same place through symbolic links,
/// hard links and descriptors, even if nothing exists there yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The kind of file.
    pub kind: Kind,
    key: Key,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    /// Device and inode.
    #[cfg(unix)]
    Node(u64, u64),
    /// A path without links.
    #[cfg(not(unix))]
    Path(PathBuf),
    /// An unused name below an existing place.
    Below(Box<Key>, PathBuf),
}

impl Key {
    #[cfg(unix)]
    fn of(_: &Path, about: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self::Node(about.dev(), about.ino())
    }

    #[cfg(not(unix))]
    fn of(path: &Path, _: &Metadata) -> Self {
        Self::Path(path.to_owned())
    }
}

impl Identity {
    /// The place that `path` leads to; [`STANDARD`](super::STANDARD) has no meaning here.
    ///
    /// # Errors
    /// The file system's error for a path that cannot be followed.
    pub fn of(path: &Path) -> io::Result<Self> {
        match follow(path)? {
            Place::Descriptor(number) => Self::of_descriptor(number),
            Place::There { path, about } => Ok(Self::known(&path, &about)),
            Place::Missing { folder, name } => Self::below(&folder, Path::new(&name)),
        }
    }

    /// The place that standard input reads from.
    ///
    /// # Errors
    /// The system's error.
    pub fn standard_input() -> io::Result<Self> {
        Self::of_descriptor(0)
    }

    /// The place that standard output writes to.
    ///
    /// # Errors
    /// The system's error.
    pub fn standard_output() -> io::Result<Self> {
        Self::of_descriptor(1)
    }

    fn of_descriptor(number: i32) -> io::Result<Self> {
        let about = descriptor::duplicate(number)?.metadata()?;
        Ok(Self::known(Path::new(&format!("/dev/fd/{number}")), &about))
    }

    pub(super) fn known(path: &Path, about: &Metadata) -> Self {
        Self { kind: Kind::of(about), key: Key::of(path, about) }
    }

    /// The identity of an unused name in an existing folder.
    pub(super) fn below(folder: &Path, name: &Path) -> io::Result<Self> {
        let about = folder.metadata()?;
        let key = Key::Below(Box::new(Key::of(folder, &about)), name.to_owned());
        Ok(Self { kind: Kind::Regular, key })
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn paths_to_one_place_are_told_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("a"), "a").unwrap();
        fs::write(path("b"), "a").unwrap();
        fs::hard_link(path("a"), path("hard")).unwrap();
        symlink("a", path("soft")).unwrap();
        symlink(path("soft"), path("twice")).unwrap();
        symlink("new", path("to_new")).unwrap();
        symlink(".", path("here")).unwrap();
        symlink("circle", path("circle")).unwrap();
        let id = |name: &str| Identity::of(&path(name)).unwrap();
        for same in ["hard", "soft", "twice", "./a", "here/a", "here/./here/soft"] {
            assert_eq!(id("a"), id(same), "{same}");
        }
        assert_ne!(id("a"), id("b"));
        assert_eq!(id("new"), id("to_new"));
        assert_eq!(id("new"), id("here/new"));
        assert_ne!(id("new"), id("newer"));
        assert_eq!((id("new").kind, id("here").kind), (Kind::Regular, Kind::Folder));
        let circle = Identity::of(&path("circle")).unwrap_err().to_string();
        assert!(circle.contains("40 links"), "{circle}");
        assert!(Identity::of(&path("missing/new")).is_err());
        assert!(Identity::of(&path(&"n".repeat(300))).is_err());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn descriptors_are_what_they_were_opened_on() {
        use std::os::fd::AsRawFd;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let file = fs::File::create(&path).unwrap();
        let number = file.as_raw_fd();
        for way in [format!("/dev/fd/{number}"), format!("/proc/self/fd/{number}")] {
            assert_eq!(Identity::of(Path::new(&way)).unwrap(), Identity::of(&path).unwrap(), "{way}");
            assert!(matches!(follow(Path::new(&way)), Ok(Place::Descriptor(n)) if n == number));
        }
        assert_eq!(Identity::of(Path::new("/dev/stdout")).unwrap(), Identity::standard_output().unwrap());
        assert!(Identity::of(Path::new("/dev/fd/1000000")).is_err());
        let (reader, _writer) = io::pipe().unwrap();
        let pipe = Identity::of(Path::new(&format!("/dev/fd/{}", reader.as_raw_fd()))).unwrap();
        assert_eq!(pipe.kind, Kind::Pipe);
    }
}
