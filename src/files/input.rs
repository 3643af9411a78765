//! Opens and reads inputs by path.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use super::patient::{PATIENCE, Patient, within};
use super::place::{Kind, Place, follow};
use super::{descriptor, is_standard, shown, unfit, unreadable};
use crate::error::Result;

/// Maximum size of a text: labels, TOML, traces, JSON.
pub const TEXT_BYTES: u64 = 16 << 20;
/// Longest wait for a program that writes to a named pipe.
const WRITER: Duration = Duration::from_mins(1);
/// Maximum size of one read in [`Input::head`].
const STEP: usize = 512;

/// An input: a regular file, or a stream from a pipe, a device, a socket or standard input.
pub struct Input {
    /// The path as the user gave it.
    name: String,
    source: Patient,
    /// Bytes that were read ahead; `given` of them were returned already.
    head: Vec<u8>,
    given: usize,
    /// Length of a regular file.
    length: Option<u64>,
}

impl Input {
    /// Opens `path`, or standard input for [`STANDARD`](super::STANDARD).
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) of kind bad input: the path leads nowhere, to a folder, to a file that may not be
    /// read, or to a pipe that no program writes to.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_within(path, WRITER)
    }

    fn open_within(path: &Path, limit: Duration) -> Result<Self> {
        let name = if is_standard(path) { "standard input".to_owned() } else { shown(path) };
        let cannot = |e: io::Error| unreadable(&name, e);
        let file = if is_standard(path) {
            descriptor::duplicate(0).map_err(cannot)?
        } else {
            match follow(path).map_err(cannot)? {
                Place::Descriptor(number) => descriptor::duplicate(number).map_err(cannot)?,
                // Opening it yields the system's error text.
                Place::Missing { folder, name } => File::open(folder.join(name)).map_err(cannot)?,
                Place::There { path, about } => match Kind::of(&about) {
                    Kind::Pipe => open_pipe(&path, limit).map_err(cannot)?,
                    Kind::Folder => {
                        return Err(unfit(&name, "cannot be read: it is a folder; name a file in it"));
                    }
                    Kind::Socket => {
                        return Err(unfit(&name, "cannot be read: it is a socket; name a file or a pipe"));
                    }
                    Kind::Regular | Kind::Device | Kind::Disk => File::open(&path).map_err(cannot)?,
                },
            }
        };
        let about = file.metadata().map_err(cannot)?;
        if about.is_dir() {
            return Err(unfit(&name, "cannot be read: it is a folder; name a file in it"));
        }
        if !descriptor::allows(&file, false).map_err(cannot)? {
            return Err(unfit(&name, "is not open for reading: redirect it from a file or a program"));
        }
        // Files of /proc report a length of 0 although they have content.
        let length = Some(about.len()).filter(|length| about.is_file() && *length > 0 && !goes_on(&file));
        let source = Patient::new(file, PATIENCE).map_err(cannot)?;
        Ok(Self { name, source, head: Vec::new(), given: 0, length })
    }

    /// The path as the user gave it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The length of a regular file that is read from its beginning; `None` for a stream, whose length is unknown.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The first `count` bytes, fewer if there are no more. Later reads return them again.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    pub fn head(&mut self, count: usize) -> Result<&[u8]> {
        while self.head.len() < count {
            let mut more = [0; STEP];
            let most = STEP.min(count - self.head.len());
            match self.source.read(&mut more[..most]) {
                Ok(0) => break,
                Ok(read) => self.head.extend_from_slice(&more[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(&self.name, error)),
            }
        }
        Ok(&self.head[..count.min(self.head.len())])
    }

    /// A handle at the first byte, if this is a regular file that can be read in any order.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    pub fn reopen(&self) -> Result<Option<File>> {
        use io::Seek;

        let Some(file) = self.source.regular().filter(|_| self.length.is_some()) else { return Ok(None) };
        let handle = file.try_clone().and_then(|mut handle| handle.rewind().map(|()| handle));
        handle.map(Some).map_err(|error| unreadable(&self.name, error))
    }

    /// The whole content, at most `most` bytes.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) with both numbers if there is more; it ends with `help`.
    pub fn into_bytes(mut self, most: u64, help: &str) -> Result<Vec<u8>> {
        if let Some(length) = self.length.filter(|length| *length > most) {
            return Err(unfit(
                &self.name,
                format!("has {length} bytes where at most {most} are read: {help}"),
            ));
        }
        let mut bytes = Vec::new();
        let read = (&mut self).take(most.saturating_add(1)).read_to_end(&mut bytes);
        let read = read.map_err(|error| unreadable(&self.name, error))?;
        if read as u64 > most {
            let name = &self.name;
            return Err(unfit(
                name,
                format!("goes on after {most} bytes, and at most {most} are read: {help}"),
            ));
        }
        Ok(bytes)
    }

    /// The whole content, as text of at most [`TEXT_BYTES`].
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File), also if the bytes are not UTF-8.
    pub fn into_text(self) -> Result<String> {
        let name = self.name.clone();
        let bytes = self.into_bytes(TEXT_BYTES, "give a shorter text")?;
        String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            unfit(&name, format!("is no text in UTF-8 (byte {at}): write it as UTF-8"))
        })
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.head.len() {
            return self.source.read(buffer);
        }
        let count = buffer.len().min(self.head.len() - self.given);
        buffer[..count].copy_from_slice(&self.head[self.given..self.given + count]);
        self.given += count;
        Ok(count)
    }
}

/// Reads a text of at most [`TEXT_BYTES`].
///
/// # Errors
/// [`Error::File`](crate::Error::File) of kind bad input.
pub fn read_text(path: &Path) -> Result<String> {
    Input::open(path)?.into_text()
}

/// Whether the descriptor is beyond its first byte, so that the file's length does not tell how much is left.
fn goes_on(mut file: &File) -> bool {
    use io::Seek;
    file.stream_position().is_ok_and(|at| at > 0)
}

/// Opens a named pipe as soon as a program writes to it.
fn open_pipe(path: &Path, limit: Duration) -> io::Result<File> {
    let path = path.to_owned();
    within(limit, move || File::open(path))
}

#[cfg(all(test, unix))]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn limits_of_bytes_are_told_with_both_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "twelve bytes").unwrap();
        let read = |most| Input::open(&path).unwrap().into_bytes(most, "shorten it");
        assert_eq!(read(12).unwrap(), b"twelve bytes");
        let error = read(11).unwrap_err().to_string();
        assert!(
            error.contains("12 bytes") && error.contains("at most 11") && error.contains("shorten"),
            "{error}"
        );
        let endless = Input::open(Path::new("/dev/zero")).unwrap();
        assert_eq!(endless.length(), None);
        let error = endless.into_bytes(1000, "shorten it").unwrap_err().to_string();
        assert!(error.contains("goes on after 1000"), "{error}");
        // Files of /proc report a length of 0.
        let status = read_text(Path::new("/proc/self/status")).unwrap_or_default();
        assert!(cfg!(not(target_os = "linux")) || status.contains("Pid"));
        std::fs::write(&path, b"ab\xff").unwrap();
        let error = read_text(&path).unwrap_err().to_string();
        assert!(error.contains("UTF-8 (byte 2)"), "{error}");
        for (path, says) in
            [(folder.path().to_owned(), "folder"), (folder.path().join("b"), "cannot be read")]
        {
            let error = read_text(&path).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn what_was_looked_at_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "0123456789").unwrap();
        let mut input = Input::open(&path).unwrap();
        assert_eq!(input.head(4).unwrap(), b"0123");
        assert_eq!(input.head(2).unwrap(), b"01");
        assert_eq!(input.head(20).unwrap(), b"0123456789");
        let mut whole = String::new();
        input.reopen().unwrap().unwrap().read_to_string(&mut whole).unwrap();
        assert_eq!(whole, "0123456789");
        assert_eq!(Input::open(&path).unwrap().into_text().unwrap(), "0123456789");
        let mut again = Input::open(&path).unwrap();
        again.head(4).unwrap();
        assert_eq!(again.into_text().unwrap(), "0123456789");
    }

    #[test]
    fn a_pipe_is_read_when_somebody_writes_it_and_given_up_when_nobody_does() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = |name: &str| {
            let path = folder.path().join(name);
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
            path
        };
        let error = Input::open_within(&pipe("a"), Duration::from_millis(20)).err().unwrap().to_string();
        assert!(error.contains("20ms"), "{error}");
        // A second pipe: the thread of the first wait still waits for the first.
        let path = pipe("b");
        let writer = std::thread::spawn({
            let path = path.clone();
            move || File::options().write(true).open(path).unwrap().write_all(b"text").unwrap()
        });
        let read = Input::open_within(&path, Duration::from_secs(10)).and_then(Input::into_text);
        assert_eq!(read.unwrap(), "text");
        writer.join().unwrap();
    }
}
