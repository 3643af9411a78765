//! Caches filters on disk, so that they need not be sent again to a restarted worker.
//!
//! Invariant: callers check the hash of what they read, so wrong content is never used; a full or broken disk disables the
//! cache but fails no task.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Sender, bounded};

use super::super::budget::Reservation;
use super::super::wire::ContentId;
use crate::array::{DType, Values};
use crate::error::{Error, Result};
use crate::files;

/// Maximum number of filters waiting to be written; further ones are not cached.
const QUEUE: usize = 64;

/// Filters, or the file of a part of a model.
type Kept = Box<dyn AsRef<[u8]> + Send>;

/// A folder of filters and parts of models in files `<hash>.filters`. Cheap to clone.
#[derive(Clone)]
pub(super) struct Cache {
    folder: PathBuf,
    writer: Sender<(ContentId, Kept, Reservation)>,
    failures: Arc<AtomicU64>,
}

impl Cache {
    /// Opens the folder, and creates it if it is missing.
    ///
    /// # Errors
    /// [`Error::File`] if the folder cannot be opened or created.
    pub(super) fn open(folder: &Path, limit_bytes: u64) -> Result<Self> {
        let bad = |cause: String| Error::File { path: folder.display().to_string(), cause, input: true };
        fs::create_dir_all(folder).map_err(|e| bad(format!("cannot be made: {e}")))?;
        let (writer, queue) = bounded::<(ContentId, Kept, Reservation)>(QUEUE);
        let failures = Arc::new(AtomicU64::new(0));
        let (own, failed) = (folder.to_owned(), Arc::clone(&failures));
        let thread = std::thread::Builder::new().name("fcdcc filter cache".to_owned());
        let spawned = thread.spawn(move || {
            for (content, values, reservation) in queue {
                if let Err(error) = write(&own, content, (*values).as_ref(), limit_bytes) {
                    failed.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%content, %error, "not kept on disk");
                }
                drop(reservation);
            }
        });
        spawned.map_err(|e| bad(format!("no thread to write to it: {e}")))?;
        Ok(Self { folder: folder.to_owned(), writer, failures })
    }

    /// Number of writes that failed.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Whether there is a file of these filters with the right size.
    pub(super) fn has(&self, content: ContentId, bytes: u64) -> bool {
        fs::metadata(path(&self.folder, content)).is_ok_and(|meta| meta.len() == bytes)
    }

    /// Reads the elements; their hash is not checked.
    pub(super) fn read(&self, content: ContentId, dtype: DType, elems: usize) -> std::io::Result<Values> {
        let mut values = Values::zeros(dtype, elems);
        let target = values.as_bytes_mut();
        let file = files::Input::open(&path(&self.folder, content)).map_err(std::io::Error::other)?;
        let bytes =
            file.into_bytes(target.len() as u64, "it is sent again").map_err(std::io::Error::other)?;
        if bytes.len() != target.len() {
            return Err(std::io::Error::other(format!("{} of {} bytes", bytes.len(), target.len())));
        }
        target.copy_from_slice(&bytes);
        Ok(values)
    }

    /// Reads the file of a part of a model; its hash is not checked.
    pub(super) fn read_file(&self, content: ContentId, bytes: u64) -> std::io::Result<Vec<u8>> {
        let file = files::Input::open(&path(&self.folder, content)).map_err(std::io::Error::other)?;
        let read = file.into_bytes(bytes, "it is sent again").map_err(std::io::Error::other)?;
        if read.len() as u64 != bytes {
            return Err(std::io::Error::other(format!("{} of {bytes} bytes", read.len())));
        }
        Ok(read)
    }

    /// Removes a file whose content does not match its hash.
    pub(super) fn remove(&self, content: ContentId) {
        // The file may be gone already.
        let _ = fs::remove_file(path(&self.folder, content));
    }

    /// Writes filters or a part in the background, unless too many are waiting already.
    pub(super) fn keep(&self, content: ContentId, kept: Kept, reservation: Reservation) {
        if self.writer.try_send((content, kept, reservation)).is_err() {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn path(folder: &Path, content: ContentId) -> PathBuf {
    folder.join(format!("{content}.filters"))
}

/// Writes a file atomically; the oldest files are removed to make room.
fn write(folder: &Path, content: ContentId, bytes: &[u8], limit: u64) -> std::io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|e| e == "filters") {
            let meta = entry.metadata()?;
            files.push((meta.modified()?, meta.len(), entry.path()));
        }
    }
    files.sort();
    let mut total = files.iter().map(|(_, len, _)| len).sum::<u64>() + bytes.len() as u64;
    for (_, len, path) in files {
        if total <= limit {
            break;
        }
        fs::remove_file(path)?;
        total -= len;
    }
    if total > limit {
        return Err(std::io::Error::other(format!("{} bytes where the cache may take {limit}", bytes.len())));
    }
    files::replace_regular(&path(folder, content), bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn filters_come_back_and_the_oldest_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let values = Values::F64(vec![1.0, 2.0]);
        let id = |n: u8| ContentId([n; 32]);
        for n in 0..3 {
            write(folder.path(), id(n), values.as_bytes(), 32).unwrap();
            // Modification times tell the oldest.
            let earlier = std::time::SystemTime::now() - std::time::Duration::from_secs(60 - u64::from(n));
            fs::File::options()
                .write(true)
                .open(path(folder.path(), id(n)))
                .unwrap()
                .set_modified(earlier)
                .unwrap();
        }
        let cache = Cache::open(folder.path(), 32).unwrap();
        assert!(
            !cache.has(id(0), 16) && cache.has(id(1), 16) && cache.has(id(2), 16) && !cache.has(id(2), 8)
        );
        assert_eq!(cache.read(id(2), DType::F64, 2).unwrap(), values);
        assert!(cache.read(id(2), DType::F64, 3).is_err() && cache.read(id(0), DType::F64, 2).is_err());
        assert!(write(folder.path(), id(4), &[0; 72], 32).is_err());
        cache.remove(id(2));
        assert!(!cache.has(id(2), 16));
        // Nowhere to write to: the caller counts the error.
        assert!(write(Path::new("/proc/nowhere"), id(5), values.as_bytes(), 32).is_err());
    }
}
