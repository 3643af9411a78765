//! Reads from and writes to other programs, which may stall, with a time limit.

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::Duration;

/// Longest time without a byte from or to another program.
pub(super) const PATIENCE: Duration = Duration::from_mins(10);

/// An open file. Every step waits for a program at the other end, if there is one, but with a time limit.
pub(super) struct Patient {
    file: File,
    /// The time limit of a step; `None` for a regular file, which never waits.
    patience: Option<Duration>,
}

impl Patient {
    /// `patience`: limit for each step with another program; unused for regular files.
    pub(super) fn new(file: File, patience: Duration) -> io::Result<Self> {
        let regular = file.metadata()?.is_file();
        Ok(Self { file, patience: (!regular).then_some(patience) })
    }

    /// The file, if it is a regular one.
    pub(super) fn regular(&self) -> Option<&File> {
        self.patience.is_none().then_some(&self.file)
    }

    /// Waits until the file is ready for a step.
    #[cfg(unix)]
    fn wait(&self, write: bool) -> io::Result<()> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};

        let Some(patience) = self.patience else { return Ok(()) };
        let limit = Timespec::try_from(patience).map_err(|_| io::ErrorKind::InvalidInput)?;
        let flags = if write { PollFlags::OUT } else { PollFlags::IN };
        loop {
            match poll(&mut [PollFd::new(&self.file, flags)], Some(&limit)) {
                Ok(0) => {
                    let (what, whom) = if write { ("taken", "by") } else { ("given", "by") };
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("nothing was {what} {whom} the program at the other end for {patience:?}"),
                    ));
                }
                // Any error will show in the step itself.
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    #[cfg(not(unix))]
    #[expect(clippy::unnecessary_wraps, reason = "fails where it can wait")]
    fn wait(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

/// Runs something that blocks and cannot be cancelled, for at most `limit`; after that its thread is abandoned.
pub(super) fn within<T: Send + 'static>(
    limit: Duration,
    blocking: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (done, result) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("fcdcc waits for a program".to_owned()).spawn(move || {
        // The receiver is gone after a timeout.
        let _ = done.send(blocking());
    })?;
    result.recv_timeout(limit).unwrap_or_else(|_| {
        let cause = format!("no program was at the other end for {limit:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, cause))
    })
}

/// Maximum size of one step: a pipe that is ready takes this much without blocking (PIPE_BUF: 4096 on Linux, at least 512
/// elsewhere).
const STEP: usize = if cfg!(target_os = "linux") { 4096 } else { 512 };

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.wait(false)?;
            match self.file.read(buffer) {
                // Another process took the data from a shared non-blocking descriptor.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.wait(true)?;
            let step = if self.patience.is_some() { bytes.len().min(STEP) } else { bytes.len() };
            match self.file.write(&bytes[..step]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn a_program_that_stalls_is_given_up() {
        let short = Duration::from_millis(20);
        let (reader, writer) = io::pipe().unwrap();
        let mut end = Patient::new(File::from(OwnedFd::from(reader)), short).unwrap();
        let error = end.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("20ms"), "{error}");
        // Negative control: what is sent is read, then the end.
        (&writer).write_all(b"now").unwrap();
        drop(writer);
        let mut all = Vec::new();
        end.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"now");
    }

    #[test]
    fn a_reader_that_stalls_is_given_up() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut end = Patient::new(File::from(OwnedFd::from(writer)), Duration::from_millis(20)).unwrap();
        let most = 1 << 24;
        let mut given = 0;
        let error = loop {
            match end.write(&[1; 1 << 12]) {
                Ok(bytes) => given += bytes,
                Err(error) => break error,
            }
            assert!(given < most, "a pipe without end");
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(end);
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), given);
    }
}
