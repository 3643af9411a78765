//! A destination for an output: checked before the work, written after it.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::part::{self, Part};
use super::patient::{PATIENCE, Patient, within};
use super::place::{self, Identity, Kind, Place, follow};
use super::{descriptor, is_standard, shown, unfit, unwritable, unwritten, whole};
use crate::error::Result;

/// Longest wait for a program that reads from a named pipe.
const READER: Duration = Duration::from_mins(1);
/// Interval of checking for such a program.
const LOOK: Duration = Duration::from_millis(10);
/// Size of the write buffer.
const BUFFER: usize = 1 << 16;

/// A destination that an output will be written to.
///
/// Regular files appear complete or not at all; an existing one keeps its mode, and its owner as far as the user may set
/// that. Links are followed. Everything else (devices, pipes, sockets, descriptors) is written into, never replaced.
pub struct Output {
    /// The path as the user gave it.
    name: String,
    identity: Identity,
    way: Way,
}

enum Way {
    /// A regular file at a path without links.
    Whole(PathBuf),
    /// A regular file in a folder that is created first.
    Within { folder: PathBuf, name: PathBuf },
    /// A device, pipe, socket or descriptor that is open already.
    Into(Patient),
    /// A pipe that no program reads from yet.
    Reader(PathBuf),
}

impl Output {
    /// Checks that `path`, or standard output for [`STANDARD`](super::STANDARD), can be written. Writes nothing; a
    /// destination with possible side effects is only opened.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) or [`Error::Io`](crate::Error::Io) of kind bad input.
    pub fn plan(path: &Path) -> Result<Self> {
        if is_standard(path) {
            let identity = Identity::standard_output();
            let identity = identity.map_err(|e| unwritable("standard output", e))?;
            return Self::open("standard output".to_owned(), identity, descriptor::duplicate(1));
        }
        let name = shown(path);
        if path.as_os_str().is_empty() {
            return Err(unfit("\"\"", "is no path: name a file"));
        }
        if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(unfit(&name, "is a folder: name a file"));
        }
        let place = follow(path).map_err(|e| unfit(&name, Self::unreachable(path, &e)))?;
        let (identity, way) = match place {
            Place::Descriptor(number) => {
                let identity = Identity::of(path);
                let identity = identity.map_err(|e| unwritable(&name, e))?;
                return Self::open(name, identity, descriptor::duplicate(number));
            }
            Place::Missing { folder, name: file } => {
                let identity = Identity::below(&folder, Path::new(&file));
                let identity = identity.map_err(|e| unwritable(&name, e))?;
                check_folder(&folder).map_err(|cause| unfit(&name, cause))?;
                (identity, Way::Whole(folder.join(file)))
            }
            Place::There { path, about } => {
                let identity = Identity::known(&path, &about);
                let way = Self::there(path, identity.kind).map_err(|cause| unfit(&name, cause))?;
                (identity, way)
            }
        };
        Ok(Self { name, identity, way })
    }

    /// Checks that `name` in `folder` can be written; the folder is created later if only its last part is missing.
    ///
    /// # Errors
    /// As [`Output::plan`].
    pub fn plan_within(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(name);
        let missing = match follow(folder) {
            Ok(Place::Missing { folder, name }) => Some((folder, name)),
            Ok(Place::There { about, .. }) if about.is_dir() => None,
            Ok(_) => {
                return Err(unfit(&shown(folder), "is a file: name a folder"));
            }
            Err(error) => {
                return Err(unfit(&shown(folder), Self::unreachable(folder, &error)));
            }
        };
        let Some((above, made)) = missing else { return Self::plan(&path) };
        let name_shown = shown(&path);
        check_folder(&above).map_err(|cause| unfit(&name_shown, cause))?;
        // The name may be too long for this file system, or the path as a whole.
        for path in [above.join(name), above.join(&made).join(name)] {
            match path.symlink_metadata() {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(unfit(&name_shown, Self::unreachable(&path, &error)));
                }
                _ => {}
            }
        }
        let below = Path::new(&made).join(name);
        let identity = Identity::below(&above, &below);
        let identity = identity.map_err(|e| unwritable(&name_shown, e))?;
        let way = Way::Within { folder: above.join(made), name: name.into() };
        Ok(Self { name: name_shown, identity, way })
    }

    /// Why `path` cannot be reached.
    fn unreachable(path: &Path, error: &io::Error) -> String {
        let folder = place::folder(path);
        if error.kind() == io::ErrorKind::InvalidFilename {
            let name = path.file_name().unwrap_or_default().len();
            return format!(
                "has a name of {name} bytes (a path of {}), too long for its file system: use a shorter one",
                path.as_os_str().len()
            );
        }
        if !folder.exists() && error.kind() == io::ErrorKind::NotFound {
            return format!("its folder {} does not exist: create it first", shown(folder));
        }
        format!("cannot be written: {error}")
    }

    /// How to write to something that exists.
    fn there(path: PathBuf, kind: Kind) -> Result<Way, String> {
        match kind {
            Kind::Folder => Err("is a folder: name a file".to_owned()),
            Kind::Regular => {
                writable(&path).map_err(|e| format!("may not be written ({e}): name another file"))?;
                if is_mounted(&path) {
                    return Err("is mounted by itself and cannot be replaced as a whole: name a file beside it, or mount \
                                its folder"
                        .to_owned());
                }
                check_folder(place::folder(&path))?;
                if is_kept_by_another(&path) {
                    return Err("is another user's in a folder where only its owner may replace it: name another file"
                        .to_owned());
                }
                Ok(Way::Whole(path))
            }
            Kind::Pipe => match open_pipe(&path) {
                Ok(Some(pipe)) => Ok(Way::Into(pipe)),
                Ok(None) => {
                    writable(&path).map_err(|e| format!("may not be written ({e})"))?;
                    Ok(Way::Reader(path))
                }
                Err(error) => Err(format!("cannot be written: {error}")),
            },
            Kind::Socket => match connect(&path).and_then(|file| Patient::new(file, PATIENCE)) {
                Ok(socket) => Ok(Way::Into(socket)),
                Err(error) => Err(format!("is a socket that nobody listens to ({error})")),
            },
            Kind::Device | Kind::Disk => {
                let opened = File::options().write(true).open(&path);
                let opened = opened.and_then(|file| Patient::new(file, PATIENCE));
                opened.map(Way::Into).map_err(|e| format!("cannot be written: {e}"))
            }
        }
    }

    fn open(name: String, identity: Identity, file: io::Result<File>) -> Result<Self> {
        let cannot = |e: io::Error| unwritable(&name, e);
        let file = file.map_err(cannot)?;
        if identity.kind == Kind::Folder || !descriptor::allows(&file, true).map_err(cannot)? {
            return Err(unfit(&name, "is not open for writing: redirect it to a file or a program"));
        }
        let way = Way::Into(Patient::new(file, PATIENCE).map_err(cannot)?);
        Ok(Self { name, identity, way })
    }

    /// The path as the user gave it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The identity of the place.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Writes the output that `write` produces.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) of kind internal with the error of the system or of `write`. A regular file is
    /// then unchanged.
    pub fn write(self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        let Self { name, way, .. } = self;
        let written = match way {
            Way::Whole(path) => whole::write(&path, write),
            Way::Within { folder, name } => match fs::create_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                _ => whole::write(&folder.join(name), write),
            },
            Way::Into(open) => into(open, write),
            Way::Reader(path) => wait_for_reader(&path, READER).and_then(|pipe| into(pipe, write)),
        };
        written.map_err(|error| unwritten(&name, error))
    }
}

fn into(open: Patient, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut buffered = BufWriter::with_capacity(BUFFER, open);
    let written = write(&mut buffered).and_then(|()| buffered.flush());
    if written.is_err() {
        // Otherwise the rest would be written when the buffer is dropped.
        let _ = buffered.into_parts();
    }
    written
}

/// Checks that a file can be created in `folder`, a path without links, and removes left-overs of dead processes there.
fn check_folder(folder: &Path) -> Result<(), String> {
    part::clear(folder);
    match Part::create(folder, true) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("cannot be written: no file can be made in {}: {error}", shown(folder))),
    }
}

#[cfg(unix)]
fn writable(path: &Path) -> io::Result<()> {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    Ok(accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS)?)
}

#[cfg(not(unix))]
fn writable(path: &Path) -> io::Result<()> {
    if path.metadata()?.permissions().readonly() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(())
}

/// Whether a file is a mount point of its own, as containers mount single files.
#[cfg(target_os = "linux")]
fn is_mounted(path: &Path) -> bool {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    // Older systems do not report it; replacing the file fails there in the end.
    statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE).is_ok_and(|about| {
        about.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
            && about.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
    })
}

#[cfg(not(target_os = "linux"))]
fn is_mounted(_: &Path) -> bool {
    false
}

/// Whether a file belongs to another user, in a folder that protects files from others (the sticky bit, as of `/tmp`).
#[cfg(unix)]
fn is_kept_by_another(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    const STICKY: u32 = 0o1000;
    let user = rustix::process::geteuid();
    let (Ok(file), Ok(folder)) = (path.metadata(), place::folder(path).metadata()) else { return false };
    let other = |owner: u32| owner != user.as_raw();
    !user.is_root() && folder.mode() & STICKY != 0 && other(file.uid()) && other(folder.uid())
}

#[cfg(not(unix))]
fn is_kept_by_another(_: &Path) -> bool {
    false
}

/// Opens a named pipe, if a program reads from it.
#[cfg(unix)]
fn open_pipe(path: &Path) -> io::Result<Option<Patient>> {
    use std::os::unix::fs::OpenOptionsExt;

    use rustix::fs::OFlags;

    let mut options = File::options();
    options.write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    match options.open(path) {
        // The pipe stays non-blocking: each step waits until it is ready, with a limit.
        Ok(file) => Patient::new(file, PATIENCE).map(Some),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(not(unix))]
fn open_pipe(_: &Path) -> io::Result<Option<Patient>> {
    Err(io::ErrorKind::Unsupported.into())
}

fn wait_for_reader(path: &Path, limit: Duration) -> io::Result<Patient> {
    let until = Instant::now() + limit;
    loop {
        if let Some(pipe) = open_pipe(path)? {
            return Ok(pipe);
        }
        if Instant::now() >= until {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("nobody read the pipe for {limit:?}"),
            ));
        }
        // The system notifies only a blocking open, which has no limit.
        std::thread::sleep(LOOK);
    }
}

#[cfg(unix)]
fn connect(path: &Path) -> io::Result<File> {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    let path = path.to_owned();
    // Connecting blocks if too many connections are waiting.
    within(READER, move || Ok(File::from(OwnedFd::from(UnixStream::connect(path)?))))
}

#[cfg(not(unix))]
fn connect(_: &Path) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn refused(result: Result<Output>) -> String {
        match result {
            Ok(output) => panic!("{} was not refused", output.name()),
            Err(error) => {
                assert_eq!(error.kind(), crate::error::ErrorKind::BadInput, "{error}");
                error.to_string()
            }
        }
    }

    #[test]
    fn planning_writes_nothing_and_writing_makes_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let new = folder.path().join("new");
        let outputs = ["a", "b"].map(|name| Output::plan_within(&new, name).unwrap());
        let file = Output::plan(&folder.path().join("c")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        for output in outputs {
            let name = output.name().to_owned();
            output.write(|out| out.write_all(name.as_bytes())).unwrap();
            assert_eq!(fs::read_to_string(&name).unwrap(), name);
        }
        assert!(file.write(|_| Err(io::Error::other("no"))).unwrap_err().to_string().contains("no"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(fs::read_dir(&new).unwrap().count(), 2);
    }

    #[test]
    fn names_that_are_too_long_are_refused_also_in_folders_to_come() {
        let folder = tempfile::tempdir().unwrap();
        let long = "n".repeat(256);
        let new = folder.path().join("new");
        for result in [
            Output::plan(&folder.path().join(&long)),
            Output::plan_within(folder.path(), &long),
            Output::plan_within(&new, &long),
            Output::plan_within(&folder.path().join(&long), "a"),
            Output::plan_within(&folder.path().join("d/".repeat(2100)), "a"),
        ] {
            let error = refused(result);
            assert!(error.contains("too long") && error.len() < 600, "{error}");
        }
        // Negative control: the longest name that is allowed.
        assert!(Output::plan_within(&new, &long[1..]).is_ok());
        for (path, says) in
            [("", "no path"), ("new/", "folder"), ("missing/a", "does not exist"), (".", "folder")]
        {
            let path = if path.is_empty() { PathBuf::new() } else { folder.path().join(path) };
            let error = refused(Output::plan(&path));
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_pipe_without_a_reader_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
        let output = Output::plan(&path).unwrap();
        assert!(matches!(&output.way, Way::Reader(_)));
        let error = wait_for_reader(&path, Duration::from_millis(20)).err().unwrap().to_string();
        assert!(error.contains("nobody read the pipe for 20ms"), "{error}");
        let reader = std::thread::spawn({
            let path = path.clone();
            move || fs::read(path).unwrap()
        });
        let long = vec![7; 1 << 20];
        output.write(|out| out.write_all(&long)).unwrap();
        assert!(reader.join().unwrap() == long);
    }
}
