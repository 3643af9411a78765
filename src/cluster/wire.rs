//! The wire protocol between masters and workers.
//!
//! Relevant if you want to read or change the protocol; using a cluster does not require it. A message has a header and,
//! where bulk data goes with it, a payload. The header is `FCDC`, the protocol's version (u16, little-endian) and a [`Call`]
//! or an [`Answer`] in [postcard](https://postcard.jamesmunns.com/wire-format) encoding; the payload is a sequence of
//! little-endian elements. Slabs and sub-results of f32 may be written as 16-bit numbers ([`WireFormat`]); the header says
//! how. Offsets and sizes of objects always count bytes in full width.
//!
//! Invariant: nothing here panics or allocates more than a small multiple of the bytes that arrived, whatever they are;
//! sizes in a [`Spec`] that [`Spec::subtask`] accepts can be multiplied and added without overflow.

mod host;
mod part;
mod spec;

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::array::{DType, WireFormat};
use crate::worker::PartSignature;

pub use host::{DeviceInfo, HostInfo};
pub use part::{MAX_PART_ARRAYS, MAX_PART_AXES, check_signature};
pub use spec::{ContentId, Spec};

/// Version of everything in this module. Sides of different versions do not work together; they report it.
pub const PROTOCOL: u16 = 5;

const MAGIC: [u8; 4] = *b"FCDC";

/// Maximum header size. The largest header that occurs describes [`MAX_DEVICES`] devices.
pub const MAX_HEADER_BYTES: usize = 512 << 10;

/// Maximum size of one object: the filters or the slabs of a subtask, one sub-result, or the file, an input or an output of a
/// part of a model.
pub const MAX_OBJECT_BYTES: u64 = 16 << 30;

/// Maximum size of a payload: a chunk of an object, or a small object as a whole.
pub const MAX_CHUNK_BYTES: usize = 1 << 20;

/// Maximum number of sub-results of a subtask.
pub const MAX_SUB_RESULTS: usize = 4096;

/// Maximum number of devices of one worker process.
pub const MAX_DEVICES: usize = 1024;

/// Maximum length of a name, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// Maximum length of an explanation, in bytes.
const MAX_TEXT_BYTES: usize = 2048;

/// Why bytes are not a valid message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not a header at all.
    #[error("not a message of fcdcc ({0})")]
    Malformed(String),
    /// A header of another version of the protocol.
    #[error(
        "it speaks version {theirs} of the protocol, this side {PROTOCOL}: run the same release of fcdcc on both"
    )]
    Version {
        /// The other side's version.
        theirs: u16,
    },
}

/// Identifies a master during its lifetime. Drawn at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MasterId(pub u128);

impl fmt::Display for MasterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A request and its sender.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// The sending master.
    pub from: MasterId,
    /// The request.
    pub request: Request,
}

/// What a process that connects says to the one that listens, every second. Answered with [`Answer::Done`], or with
/// [`Answer::Refused`] where the other side does not take it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The name of the machine, or that in the certificate of the master.
    pub name: String,
    /// Drawn at random when the process started.
    pub boot: u64,
    /// Version of fcdcc.
    pub release: String,
}

/// The object that a chunk belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Object {
    /// Coded filters.
    Filters(ContentId),
    /// Coded slabs.
    Slabs {
        /// Their name.
        name: SlabsName,
        /// Element type of the slabs.
        dtype: DType,
    },
    /// The file of a part of a model.
    Part(ContentId),
}

/// Names coded slabs, among those of one master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SlabsName {
    /// The slabs of the task with this number, and of no other. The worker drops them with the task.
    OfTask(u64),
    /// Slabs with this number, which tasks for several devices use. The worker keeps them until [`Request::Forget`], or until
    /// it needs the memory; then the next task is refused as [`Refusal::SlabsMissing`].
    Shared(u64),
    /// An input of a run of a part of a model, and of no other. The worker drops it with the run.
    Input {
        /// Number of the run.
        task: u64,
        /// Index of the input.
        index: u32,
    },
}

/// A request from a master to a worker. Devices count from 0; task numbers are assigned by the master and never reused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Describe the process. Answered with [`Answer::Info`].
    Info,
    /// Hold these filters on this device. The payload is all of them or empty. Answered with [`Answer::Installed`], or
    /// with [`Answer::Send`] where chunks are missing; then repeat the request after sending them.
    Install {
        /// Index of the device.
        device: u32,
        /// Identifier of the filters.
        content: ContentId,
        /// Shape of the subtask.
        spec: Spec,
    },
    /// A chunk of an object, answered with [`Answer::Ack`]. Chunks follow each other without gaps. Slabs have a checksum;
    /// filters and parts need none, since their identifier is a hash. An empty chunk of slabs asks how much of them has arrived.
    Chunk {
        /// The object.
        object: Object,
        /// Offset of the first byte.
        offset: u64,
        /// Size of the whole object in bytes.
        total: u64,
        /// CRC-32 of the payload; 0 for filters.
        crc: u32,
        /// How the payload is written; filters always in full width.
        format: WireFormat,
    },
    /// Compute a subtask. The payload is all slabs, or empty where they were sent before. Answered with [`Answer::Accepted`]
    /// once the task and its slabs are there, then with [`Answer::Part`] or [`Answer::Ready`] for each sub-result as it is complete, then
    /// [`Answer::Done`]. Requests have short limits, so a long task is requested again with [`Request::Await`].
    Task {
        /// Number of the task.
        task: u64,
        /// Index of the device.
        device: u32,
        /// Identifier of the filters.
        content: ContentId,
        /// Indices of the sub-results wanted, in this order; all, in any order, when `None`.
        order: Option<Vec<u32>>,
        /// Name of the slabs.
        slabs: SlabsName,
        /// Sub-results larger than this are announced with [`Answer::Ready`], to be fetched.
        inline_bytes: u32,
        /// CRC-32 of the payload.
        crc: u32,
        /// How the payload is written.
        format: WireFormat,
        /// The format wanted for sub-results.
        results: WireFormat,
    },
    /// Fetch a part of a sub-result that is [ready](Answer::Ready). Answered with [`Answer::Bytes`]. Fetching the last
    /// part frees it.
    Fetch {
        /// Number of the task.
        task: u64,
        /// Index of the sub-result.
        index: u32,
        /// Offset of the first byte.
        offset: u64,
        /// Number of bytes.
        len: u32,
        /// The format wanted.
        format: WireFormat,
    },
    /// Drop shared slabs: their run is over. Not answered.
    Forget {
        /// Their number.
        slabs: u64,
    },
    /// Release these filters. Asked, so that it arrives in order with installations, and answered with [`Answer::Ack`].
    Release {
        /// Index of the device.
        device: u32,
        /// Identifier of the filters.
        content: ContentId,
    },
    /// Cancel a task. Not answered.
    Cancel {
        /// Number of the task.
        task: u64,
    },
    /// Send further answers of a task to this request; the [`Request::Task`] before may end. Refused as [`Refusal::Over`]
    /// where the task is over; its last answers went to the previous request.
    Await {
        /// Number of the task.
        task: u64,
    },
    /// Use filters that this device holds for a subtask of another shape, under the name [`ContentId::shared`]. Answered with
    /// [`Answer::Installed`], or with [`Answer::Send`] where that is impossible; then install the filters.
    Share {
        /// Index of the device.
        device: u32,
        /// Identifier of the filters that it holds.
        of: ContentId,
        /// Shape of the other subtask.
        spec: Spec,
    },
    /// Hold this part of a model on this device. The payload is all of its file or empty. Answered with
    /// [`Answer::PartInstalled`], or with [`Answer::Send`] where chunks are missing; then repeat the request after sending
    /// them.
    InstallPart {
        /// Index of the device.
        device: u32,
        /// Identifier of the file.
        content: ContentId,
        /// Size of the file.
        bytes: u64,
        /// Bytes to hold and compute the part, as in [`PartFile`](crate::worker::PartFile).
        memory_bytes: u64,
    },
    /// Release this part, as [`Request::Release`] does filters.
    ReleasePart {
        /// Index of the device.
        device: u32,
        /// Identifier of the file.
        content: ContentId,
    },
    /// Compute a part of a model. The payload is the first input, or empty where it was sent before; all other inputs are sent
    /// before, as [`SlabsName::Input`]. Answered as a [`Request::Task`] of all sub-results, whose indices are those of the
    /// outputs.
    RunPart {
        /// Number of the run, among those of tasks.
        task: u64,
        /// Index of the device.
        device: u32,
        /// Identifier of the file.
        content: ContentId,
        /// As in [`Request::Task`].
        inline_bytes: u32,
        /// CRC-32 of the payload.
        crc: u32,
        /// How the payload is written.
        format: WireFormat,
        /// The format wanted for outputs of f32.
        results: WireFormat,
    },
}

/// An answer of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// The answer to [`Request::Info`].
    Info(Box<HostInfo>),
    /// The device holds the filters.
    Installed,
    /// Chunks are wanted from this byte onwards.
    Send {
        /// First byte that is missing.
        from: u64,
    },
    /// The chunk was received.
    Ack {
        /// First byte that is missing.
        received: u64,
        /// When the chunk arrived, by [`HostInfo::clock_us`].
        at_us: u64,
    },
    /// A task has arrived with all of its slabs, and waits for its device.
    Accepted {
        /// When that was, by [`HostInfo::clock_us`].
        at_us: u64,
    },
    /// A sub-result; the payload holds all of it.
    Part {
        /// Index of the sub-result.
        index: u32,
        /// CRC-32 of the payload.
        crc: u32,
        /// How the payload is written.
        format: WireFormat,
        /// How far the task was when the sub-result was complete.
        progress: Progress,
    },
    /// A sub-result is ready to be fetched.
    Ready {
        /// Index of the sub-result.
        index: u32,
        /// Its size in full width, in bytes.
        bytes: u64,
        /// As in [`Answer::Part`].
        progress: Progress,
    },
    /// The payload is a part of a sub-result.
    Bytes {
        /// CRC-32 of the payload.
        crc: u32,
        /// How the payload is written.
        format: WireFormat,
        /// When it was sent, by [`HostInfo::clock_us`].
        at_us: u64,
    },
    /// The task is complete.
    Done,
    /// The request is refused.
    Refused {
        /// The kind of refusal.
        why: Refusal,
        /// Readable explanation, with numbers.
        text: String,
    },
    /// The device holds the part.
    PartInstalled {
        /// What enters and leaves it.
        signature: PartSignature,
    },
}

/// How far a task was when one of its sub-results was complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// When that was, by [`HostInfo::clock_us`].
    pub at_us: u64,
    /// Time since [`Answer::Accepted`] in which the task waited for its device or for a core, in microseconds.
    pub queued_us: u64,
    /// Time in which the device computed for the task, in microseconds.
    pub computed_us: u64,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The request is invalid: sizes, checksums or numbers.
    Malformed,
    /// The required filters are not held (any more) and have to be installed.
    NotHeld,
    /// The shared slabs are not held (any more) and have to be sent again.
    SlabsMissing,
    /// There is not enough memory.
    Memory,
    /// The device is lost for now.
    DeviceLost,
    /// The work failed; the device is still usable.
    Failed,
    /// The task was cancelled.
    Cancelled,
    /// A limit on concurrent work is reached.
    Busy,
    /// The task of a [`Request::Await`] is over or unknown.
    Over,
    /// The process that connects is not one that this side takes.
    Unwanted,
}

impl Answer {
    /// A refusal; a text that is too long is cut.
    #[must_use]
    pub fn refused(why: Refusal, text: impl fmt::Display) -> Self {
        Self::Refused { why, text: clipped(&text.to_string()) }
    }
}

/// `text`, cut to the maximum length of an explanation.
pub(super) fn clipped(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT_BYTES)].to_owned()
}

/// Encodes `body` as a header.
#[must_use]
pub fn pack<T: Serialize>(body: &T) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(PROTOCOL.to_le_bytes());
    // Serializing these types cannot fail: they hold numbers, text and sequences of known length.
    postcard::to_extend(body, bytes).expect("numbers, text and sequences of known length have an encoding")
}

/// Decodes the body of a header.
///
/// # Errors
/// [`WireError`] for anything but one complete message of this version.
pub fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let malformed = |cause: &str| WireError::Malformed(cause.to_owned());
    if bytes.len() > MAX_HEADER_BYTES {
        return Err(WireError::Malformed(format!("a header of {} bytes", bytes.len())));
    }
    let Some((magic, rest)) = bytes.split_first_chunk::<4>() else { return Err(malformed("too short")) };
    if *magic != MAGIC {
        return Err(malformed("no magic number"));
    }
    let Some((version, body)) = rest.split_first_chunk::<2>() else { return Err(malformed("too short")) };
    let theirs = u16::from_le_bytes(*version);
    if theirs != PROTOCOL {
        return Err(WireError::Version { theirs });
    }
    match postcard::take_from_bytes(body) {
        Ok((body, [])) => Ok(body),
        Ok((_, rest)) => Err(WireError::Malformed(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(WireError::Malformed(error.to_string())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::conv::{ConvParams, ConvShape};
    use crate::worker::SubtaskShape;

    fn spec() -> Spec {
        let conv =
            ConvShape::new(&[1, 4, 9, 7], &[6, 2, 3, 3], &ConvParams::default().groups(2).stride([2, 1]));
        Spec::of(&SubtaskShape { conv: conv.unwrap(), slabs: 2, banks: 2, plain: false }, DType::F32)
    }

    #[test]
    fn messages_come_back_as_they_went_and_a_spec_is_the_same_shape() {
        let content = ContentId::of(&spec(), &[1, 2, 3]);
        let install = Request::Install { device: 3, content, spec: spec() };
        let call = Call { from: MasterId(7), request: install };
        assert_eq!(unpack::<Call>(&pack(&call)).unwrap(), call);
        let shape = spec().subtask().unwrap();
        assert_eq!(Spec::of(&shape, DType::F32), spec());
        assert_ne!(ContentId::of(&Spec { dtype: DType::F64, ..spec() }, &[1, 2, 3]), content);
        assert_ne!(ContentId::of(&spec(), &[1, 2, 4]), content);
    }

    #[test]
    fn other_versions_and_truncated_or_padded_messages_are_told_apart() {
        let good = pack(&Answer::Done);
        for end in 0..good.len() {
            assert!(matches!(unpack::<Answer>(&good[..end]), Err(WireError::Malformed(_))), "{end}");
        }
        let mut padded = good.clone();
        padded.push(0);
        assert!(matches!(unpack::<Answer>(&padded), Err(WireError::Malformed(_))));
        let mut other = good;
        other[4] = 99;
        assert_eq!(unpack::<Answer>(&other), Err(WireError::Version { theirs: 99 }));
    }

    #[test]
    fn impossible_shapes_are_refused_without_overflow() {
        let huge = |change: fn(&mut Spec)| {
            let mut spec = spec();
            change(&mut spec);
            spec.subtask()
        };
        assert!(huge(|s| s.slabs = u64::MAX).is_err());
        assert!(huge(|s| s.slabs = 0).is_err());
        assert!(huge(|s| s.banks = 1 << 20).is_err());
        assert!(huge(|s| s.input[2] = u64::MAX).is_err());
        assert!(huge(|s| s.input[2] = 1 << 36).is_err());
        assert!(huge(|s| s.stride = vec![1; 1000]).is_err());
        assert!(huge(|s| s.groups = 0).is_err());
        assert!(huge(|s| s.weight.clear()).is_err());
        assert!(huge(|_| ()).is_ok());
    }
}
