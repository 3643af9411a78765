//! The access log: one JSON object a line, for each request.
//!
//! Relevant if you want to know who asked for what, with which status, and where the time went. Probes, metrics and the page
//! are left out. A request that a client abandoned has status 499.
//!
//! Invariant: writing never delays a request. Lines wait in a bounded queue; where the disk is slower than the requests,
//! lines are lost and counted.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use fcdcc::{Error, Result};
use serde::Serialize;

use crate::cost::RunTimes;
use crate::origin::Origin;
use crate::protocol::Protocol;

/// Most lines that wait.
const MOST_LINES: usize = 8192;
/// How long a line may stay in memory.
const FLUSH: Duration = Duration::from_millis(200);
/// Longest text of a client in a line.
const MOST_CHARACTERS: usize = 200;

/// The log.
pub(crate) struct AccessLog {
    sender: Mutex<Option<SyncSender<Message>>>,
    lost: Arc<AtomicU64>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Message {
    Line(Vec<u8>),
    /// Opens the file again, which may have been moved; the answer says whether that worked.
    Reopen(SyncSender<std::io::Result<()>>),
}

/// A request that has ended.
pub(crate) struct Entry<'a> {
    pub(crate) origin: &'a Origin,
    pub(crate) model: Option<(&'a str, u64)>,
    pub(crate) id: Option<&'a str>,
    pub(crate) items: Option<usize>,
    pub(crate) status: u16,
    pub(crate) time: Duration,
    pub(crate) times: Option<RunTimes>,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<String>,
    method: &'static str,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    items: Option<usize>,
    status: u16,
    ms: f64,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    phases: Option<Phases>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<String>,
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "names of the log, with their unit")]
struct Phases {
    queue_ms: f64,
    encode_ms: f64,
    wait_ms: f64,
    decode_ms: f64,
    host_ms: f64,
}

/// Milliseconds with three decimals.
fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// The beginning of a text that a client sent.
fn short(text: &str) -> String {
    text.chars().take(MOST_CHARACTERS).collect()
}

impl Entry<'_> {
    fn line(&self, now: SystemTime) -> Vec<u8> {
        let origin = self.origin;
        let line = Line {
            time: humantime::format_rfc3339_millis(now).to_string(),
            protocol: match origin.protocol {
                Protocol::Http => "http",
                Protocol::Grpc => "grpc",
            },
            client: origin.client.map(|client| client.to_string()),
            method: origin.method,
            path: short(&origin.path),
            model: self.model.map(|(name, _)| name),
            version: self.model.map(|(_, version)| version),
            id: self.id.map(short),
            items: self.items,
            status: self.status,
            ms: ms(self.time),
            phases: self.times.map(|times| Phases {
                queue_ms: ms(times.queue),
                encode_ms: ms(times.encode),
                wait_ms: ms(times.wait),
                decode_ms: ms(times.decode),
                host_ms: ms(times.host),
            }),
            trace: origin.trace.map(|trace| trace.to_string()),
        };
        // A structure of texts and numbers has a JSON.
        let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

/// Where lines go.
enum Place {
    Standard,
    File(PathBuf),
}

impl Place {
    fn open(&self) -> std::io::Result<Box<dyn Write + Send>> {
        match self {
            Self::Standard => Ok(Box::new(std::io::stdout())),
            // Lines are added to what is there, which `fcdcc::files`, made for whole results, does not do.
            Self::File(path) => {
                let file: File = OpenOptions::new().create(true).append(true).open(path)?;
                Ok(Box::new(file))
            }
        }
    }
}

impl AccessLog {
    /// A log that adds to the file at `path`; `-` is standard output.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be opened, [`Error::Unavailable`] where no thread can be started.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let place = if path == Path::new("-") { Place::Standard } else { Place::File(path.to_owned()) };
        let unwritable = |source| Error::Io {
            path: path.display().to_string(),
            cause: "cannot be written",
            source,
            input: true,
        };
        let to = place.open().map_err(unwritable)?;
        let (sender, receiver) = sync_channel(MOST_LINES);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&lost);
        let thread = std::thread::Builder::new().name("fcdcc access".to_owned());
        let thread = thread.spawn(move || write(&place, to, &receiver, &counter)).map_err(unwritable)?;
        Ok(Self { sender: Mutex::new(Some(sender)), lost, thread: Mutex::new(Some(thread)) })
    }

    /// Adds a request.
    pub(crate) fn add(&self, entry: &Entry<'_>) {
        let line = entry.line(SystemTime::now());
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if sender.as_ref().is_none_or(|sender| sender.try_send(Message::Line(line)).is_err()) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Opens the file again, after a program that keeps logs short moved it.
    ///
    /// # Errors
    /// Where it cannot be opened; lines then go on to the earlier file.
    pub(crate) fn reopen(&self) -> std::io::Result<()> {
        let (reply, answer) = sync_channel(1);
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let ended = || std::io::Error::other("the log has ended");
        sender.ok_or_else(ended)?.send(Message::Reopen(reply)).map_err(|_| ended())?;
        answer.recv().unwrap_or_else(|_| Err(ended()))
    }

    /// Lines that were lost.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Writes what waits, and ends.
    pub(crate) fn end(&self) {
        drop(self.sender.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

/// Writes lines until no sender is left.
fn write(place: &Place, to: Box<dyn Write + Send>, lines: &Receiver<Message>, lost: &AtomicU64) {
    let mut to = BufWriter::new(to);
    let mut failing = false;
    loop {
        let written = match lines.recv_timeout(FLUSH) {
            Ok(Message::Line(line)) => to.write_all(&line),
            Ok(Message::Reopen(reply)) => {
                let _ = to.flush();
                let opened = place.open().map(|new| to = BufWriter::new(new));
                // The one who asked may be gone.
                let _ = reply.send(opened);
                Ok(())
            }
            Err(RecvTimeoutError::Timeout) => to.flush(),
            Err(RecvTimeoutError::Disconnected) => {
                let _ = to.flush();
                return;
            }
        };
        match written {
            Ok(()) => failing = false,
            Err(error) => {
                lost.fetch_add(1, Ordering::Relaxed);
                if !failing {
                    tracing::warn!("the access log cannot be written: {error}");
                }
                failing = true;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use serde_json::Value;

    use super::*;

    fn entry<'a>(origin: &'a Origin, id: &'a str) -> Entry<'a> {
        Entry {
            origin,
            model: Some(("m", 3)),
            id: Some(id),
            items: Some(2),
            status: 200,
            time: Duration::from_micros(1500),
            times: Some(RunTimes { wait: Duration::from_millis(1), ..RunTimes::default() }),
        }
    }

    #[test]
    fn every_request_is_a_line_and_a_moved_file_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("log"), folder.path().join("log.1"));
        let log = AccessLog::open(&path).unwrap();
        let traceparent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let origin = Origin::grpc("/a/b", Some(([127, 0, 0, 1], 80).into()), Some(traceparent));
        log.add(&entry(&origin, "a\n\"b"));
        log.reopen().unwrap();
        std::fs::rename(&path, &moved).unwrap();
        log.reopen().unwrap();
        log.add(&entry(&origin, &"x".repeat(1000)));
        log.end();
        let lines = |path: &Path| -> Vec<Value> {
            std::fs::read_to_string(path)
                .unwrap()
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect()
        };
        let [first] = &lines(&moved)[..] else { panic!("one line was expected") };
        let [second] = &lines(&path)[..] else { panic!("one line was expected") };
        assert_eq!(
            (&first["id"], &first["status"], &first["ms"]),
            (&"a\n\"b".into(), &200.into(), &1.5.into())
        );
        assert_eq!(
            (&first["wait_ms"], &first["version"], &first["items"]),
            (&1.0.into(), &3.into(), &2.into())
        );
        assert_eq!((&first["client"], &first["protocol"]), (&"127.0.0.1:80".into(), &"grpc".into()));
        assert_eq!(first["trace"], "0af7651916cd43dd8448eb211c80319c");
        assert!(first["time"].as_str().unwrap().ends_with('Z'));
        assert_eq!(second["id"].as_str().unwrap().len(), MOST_CHARACTERS);
        assert_eq!(log.lost(), 0);
        // After the end lines are lost, and counted.
        log.add(&entry(&origin, "late"));
        assert_eq!(log.lost(), 1);
        assert!(log.reopen().is_err());
        assert!(AccessLog::open(&folder.path().join("no/such/folder")).is_err());
    }
}
