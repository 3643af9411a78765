//! Parts of models on a worker process: files that arrive, and which device holds which part for which masters.
//!
//! Invariant: whatever is kept has a reservation; a file that is complete has the hash under which it was sent.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::budget::Reservation;
use super::super::link::{Incoming, Payload};
use super::super::wire::{ContentId, MasterId};
use crate::worker::PartSignature;

/// Maximum number of complete files kept for other devices of the machine.
const MOST_RECENT: usize = 4;

/// The parts of all devices.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) held: HashMap<(usize, ContentId), HeldPart>,
    /// Incomplete files. They outlive a connection: the sender resumes where it was interrupted.
    pub(super) uploads: HashMap<(MasterId, ContentId), PartUpload>,
    /// Files that were complete of late, for other devices that need the same, oldest first.
    recent: VecDeque<(ContentId, PartBytes, Instant)>,
}

/// A part on a device.
pub(super) struct HeldPart {
    pub(super) holders: HashSet<MasterId>,
    /// For its packed weights and planned memory.
    pub(super) _memory: Reservation,
    pub(super) used: Instant,
    pub(super) state: PartState,
}

pub(super) enum PartState {
    /// The requests to answer once it is installed.
    Installing(Vec<(MasterId, Arc<Incoming>)>),
    Held(Arc<PartSignature>),
}

/// The bytes of a file, which the devices of the machine share.
#[derive(Clone)]
pub(super) struct PartBytes {
    pub(super) bytes: Arc<[u8]>,
    _reservation: Arc<Reservation>,
}

impl PartBytes {
    pub(super) fn new(bytes: Arc<[u8]>, reservation: Reservation) -> Self {
        Self { bytes, _reservation: Arc::new(reservation) }
    }
}

impl Parts {
    /// Keeps a complete file for a while where other devices may need it too.
    pub(super) fn keep_for_others(&mut self, content: ContentId, file: &PartBytes) {
        if self.recent.len() == MOST_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((content, file.clone(), Instant::now()));
    }

    /// A file that was complete of late.
    pub(super) fn recent(&self, content: ContentId) -> Option<PartBytes> {
        self.recent.iter().find(|(of, ..)| *of == content).map(|(_, file, _)| file.clone())
    }

    /// Drops what can be sent again: a file kept for other devices, or incomplete files of masters that are gone. False if
    /// there is none.
    pub(super) fn make_room(&mut self, visible: &HashSet<MasterId>) -> bool {
        if self.recent.pop_front().is_some() {
            return true;
        }
        let before = self.uploads.len();
        self.uploads.retain(|(master, _), _| visible.contains(master));
        self.uploads.len() < before
    }

    /// The part that no master has used for the longest time.
    pub(super) fn unused(&self) -> Option<(usize, ContentId)> {
        let free = |part: &HeldPart| part.holders.is_empty() && matches!(part.state, PartState::Held(_));
        let oldest = self.held.iter().filter(|(_, part)| free(part)).min_by_key(|(_, part)| part.used);
        oldest.map(|(at, _)| *at)
    }

    /// Drops incomplete files without a new chunk for `stale`, and files kept for other devices after `recent`, unless the
    /// part is still being installed.
    pub(super) fn expire(&mut self, stale: Duration, recent: Duration) {
        self.uploads.retain(|_, upload| upload.touched.elapsed() < stale);
        let Self { held, recent: files, .. } = self;
        let installing = |content: ContentId| {
            held.iter()
                .any(|((_, of), part)| *of == content && matches!(part.state, PartState::Installing(_)))
        };
        files.retain(|(content, _, since)| since.elapsed() < recent || installing(*content));
    }

    /// Removes a device that was lost; those that are being installed are answered by the device.
    pub(super) fn lose(&mut self, device: usize) {
        self.held.retain(|(at, _), part| *at != device || matches!(part.state, PartState::Installing(_)));
    }

    /// Removes a master that is gone; its parts may then be dropped.
    pub(super) fn forget(&mut self, master: MasterId) {
        self.held.values_mut().for_each(|part| {
            part.holders.remove(&master);
        });
    }
}

/// A file that arrives in chunks.
pub(super) struct PartUpload {
    bytes: Arc<[u8]>,
    received: usize,
    hasher: Box<blake3::Hasher>,
    pub(super) touched: Instant,
    reservation: Reservation,
}

impl PartUpload {
    /// Room for a file of the size reserved; `None` if no memory can have that size.
    pub(super) fn new(reservation: Reservation) -> Option<Self> {
        let len = usize::try_from(reservation.bytes()).ok()?;
        Some(Self {
            bytes: std::iter::repeat_n(0, len).collect(),
            received: 0,
            hasher: Box::new(ContentId::begin_part()),
            touched: Instant::now(),
            reservation,
        })
    }

    pub(super) fn total(&self) -> u64 {
        self.reservation.bytes()
    }

    /// Offset of the first missing byte.
    pub(super) fn received(&self) -> u64 {
        self.received as u64
    }

    /// Adds a chunk and returns the offset of the first byte still missing. A chunk that was received before is ignored.
    ///
    /// # Errors
    /// Why the chunk is invalid.
    pub(super) fn accept(&mut self, offset: u64, payload: &Payload) -> Result<u64, String> {
        let (len, total, there) = (payload.len() as u64, self.total(), self.received());
        let end = offset.checked_add(len).filter(|end| *end <= total);
        let Some(end) = end else { return Err(format!("a chunk of {len} at {offset} of {total} bytes")) };
        if end <= there && offset < there {
            return Ok(there);
        }
        if offset != there {
            return Err(format!("a chunk at {offset} where {there} was expected"));
        }
        let Some(bytes) = Arc::get_mut(&mut self.bytes) else {
            return Err("the file is complete".to_owned());
        };
        let (hasher, mut at) = (&mut self.hasher, self.received);
        payload.each(|slice| {
            hasher.update(slice);
            bytes[at..at + slice.len()].copy_from_slice(slice);
            at += slice.len();
        });
        // The end is within the bytes, which are in memory and therefore within usize.
        self.received = at;
        self.touched = Instant::now();
        Ok(end)
    }

    /// The file, if it is complete and its hash is `content`.
    ///
    /// # Errors
    /// Which of both it is not.
    pub(super) fn finish(self, content: ContentId) -> Result<PartBytes, String> {
        if self.received() != self.total() {
            return Err(format!("{} of {} bytes of a part", self.received, self.total()));
        }
        if ContentId::end(&self.hasher) != content {
            return Err(format!(
                "this part is not {content}: changed on the way, or sent under a wrong name"
            ));
        }
        Ok(PartBytes::new(self.bytes, self.reservation))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::cluster::budget::Budget;

    #[test]
    fn only_the_next_chunk_is_taken_and_only_the_announced_file() {
        let budget = Budget::new(100);
        let payload = |bytes: &[u8]| Payload::from(bytes.to_vec());
        let upload = || PartUpload::new(budget.reserve(5).unwrap()).unwrap();
        let mut object = upload();
        assert!(
            object.accept(1, &payload(&[2])).is_err() && object.accept(u64::MAX, &payload(&[2])).is_err()
        );
        assert_eq!(object.accept(0, &payload(&[1, 2, 3])), Ok(3));
        assert_eq!(object.accept(0, &payload(&[1, 2, 3])), Ok(3), "sent again");
        assert!(object.accept(2, &payload(&[3, 4])).is_err() && object.accept(3, &payload(&[4; 3])).is_err());
        assert_eq!(object.accept(3, &payload(&[4, 5])), Ok(5));
        let content = ContentId::of_part(&[1, 2, 3, 4, 5]);
        let file = object.finish(content).unwrap();
        assert_eq!((&file.bytes[..], budget.used()), (&[1, 2, 3, 4, 5][..], 5));
        drop(file);
        assert_eq!(budget.used(), 0);
        // Negative controls: an incomplete file, and another one.
        assert!(upload().finish(content).is_err_and(|text| text.contains("0 of 5")));
        let mut object = upload();
        object.accept(0, &payload(&[0; 5])).unwrap();
        assert!(object.finish(content).is_err_and(|text| text.contains("is not")));
    }
}
