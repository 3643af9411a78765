//! What masters and workers say to each other, as bytes.
//!
//! Who only uses clusters can skip this. A message has a header and, where bulk data goes with it, a payload. The header
//! is `FCDC`, the protocol's version (u16, little-endian) and a [`Call`] or an [`Answer`] in
//! [postcard](https://postcard.jamesmunns.com/wire-format)'s encoding; the payload is a run of little-endian elements.
//!
//! Invariant: nothing here panics or allocates more than a small multiple of the bytes that arrived, whatever they are;
//! what [`Spec::subtask`] accepts has sizes that can be multiplied and added without overflow.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::array::DType;
use crate::conv::{AXES, ConvParams, ConvShape};
use crate::error::{Error, Result};
use crate::worker::{SubtaskShape, WorkerKind};

/// Version of everything in this module. Sides of different versions do not work together; they say so.
pub const PROTOCOL: u16 = 2;

const MAGIC: [u8; 4] = *b"FCDC";

/// Longest header. The longest that is made is a description of [`MAX_DEVICES`] devices.
pub const MAX_HEADER_BYTES: usize = 512 << 10;

/// Most bytes of one object: the filters or the slabs of a subtask, one sub-result.
pub const MAX_OBJECT_BYTES: u64 = 16 << 30;

/// Most bytes of a payload, a chunk of an object or a small object whole.
pub const MAX_CHUNK_BYTES: usize = 1 << 20;

/// Most sub-results of a subtask.
pub const MAX_SUB_RESULTS: usize = 4096;

/// Most devices of one worker process.
pub const MAX_DEVICES: usize = 1024;

/// Longest name of anything, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// Longest explanation, in bytes.
const MAX_TEXT_BYTES: usize = 2048;

/// Why bytes are not a message.
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

/// Names a master for as long as it lives. Drawn at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MasterId(pub u128);

impl fmt::Display for MasterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Names coded filters by what they are: the BLAKE3 hash of their [`Spec`] and their elements.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContentId(pub [u8; 32]);

impl ContentId {
    /// The name of filters of this `spec` with these elements, little-endian.
    #[must_use]
    pub fn of(spec: &Spec, elements: &[u8]) -> Self {
        let mut hasher = Self::begin(spec);
        // Several threads are worth their start from about here on.
        if elements.len() < 1 << 20 {
            hasher.update(elements)
        } else {
            hasher.update_rayon(elements)
        };
        Self::end(&hasher)
    }

    /// Takes the elements of filters of this `spec` piece by piece.
    pub(super) fn begin(spec: &Spec) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&pack(spec));
        hasher
    }

    /// The name of what a hasher has taken.
    pub(super) fn end(hasher: &blake3::Hasher) -> Self {
        Self(*hasher.finalize().as_bytes())
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A subtask's shape and element type, as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Element type of filters, slabs and sub-results.
    pub dtype: DType,
    /// `[N, C, slab spatial...]`.
    pub input: Vec<u64>,
    /// `[O', C/g, kernel...]`.
    pub weight: Vec<u64>,
    /// One an axis.
    pub stride: Vec<u64>,
    /// One an axis.
    pub dilation: Vec<u64>,
    /// g.
    pub groups: u64,
    /// l_A.
    pub slabs: u64,
    /// l_B.
    pub banks: u64,
    /// [`SubtaskShape::plain`].
    pub plain: bool,
}

impl Spec {
    /// The shape of `subtask`, whose sub-results have no padding.
    #[must_use]
    pub fn of(subtask: &SubtaskShape, dtype: DType) -> Self {
        let conv = &subtask.conv;
        let own = |axes: &[usize; AXES]| -> Vec<u64> {
            axes[AXES - conv.rank..].iter().map(|v| *v as u64).collect()
        };
        let with = |first: [usize; 2], axes: &[usize; AXES]| -> Vec<u64> {
            first.iter().map(|v| *v as u64).chain(own(axes)).collect()
        };
        Self {
            dtype,
            input: with([conv.batch, conv.in_channels], &conv.input),
            weight: with([conv.out_channels, conv.in_channels / conv.groups], &conv.kernel),
            stride: own(&conv.stride),
            dilation: own(&conv.dilation),
            groups: conv.groups as u64,
            slabs: subtask.slabs as u64,
            banks: subtask.banks as u64,
            plain: subtask.plain,
        }
    }

    /// The shape, checked.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] or [`Error::Mismatch`] for what is no convolution, or has more sub-results than
    /// [`MAX_SUB_RESULTS`] or objects of more than [`MAX_OBJECT_BYTES`].
    pub fn subtask(&self) -> Result<SubtaskShape> {
        let sizes = |values: &[u64]| -> Result<Vec<usize>> {
            let fits = |v: &u64| usize::try_from(*v).ok().filter(|v| *v <= 1 << 40);
            let all: Option<Vec<usize>> = values.iter().take(AXES + 3).map(fits).collect();
            all.ok_or_else(|| Error::invalid("size of an axis", format!("{values:?}"), "use at most 2^40"))
        };
        let [slabs, banks, groups] = sizes(&[self.slabs, self.banks, self.groups])?[..] else {
            return Err(Error::invalid("sizes", "missing", "a subtask has slabs, banks and groups"));
        };
        let params = ConvParams::default()
            .stride(sizes(&self.stride)?)
            .dilation(sizes(&self.dilation)?)
            .groups(groups);
        let conv = ConvShape::new(&sizes(&self.input)?, &sizes(&self.weight)?, &params)?;
        let sub_results = slabs.checked_mul(banks).filter(|n| (1..=MAX_SUB_RESULTS).contains(n));
        let Some(sub_results) = sub_results else {
            let help = format!("use 1 to {MAX_SUB_RESULTS} in all");
            return Err(Error::invalid("slabs and filter banks", format!("{slabs} and {banks}"), help));
        };
        let bytes = |elems: usize, count: usize| {
            (elems as u64).checked_mul(count as u64)?.checked_mul(self.dtype.size_bytes() as u64)
        };
        let largest = [
            bytes(conv.input_elems(), slabs),
            bytes(conv.weight_elems(), banks),
            bytes(conv.output_elems(), sub_results),
        ];
        if largest.iter().any(|bytes| bytes.is_none_or(|bytes| bytes > MAX_OBJECT_BYTES)) {
            let help =
                format!("at most {MAX_OBJECT_BYTES} bytes travel as one: divide the layer into more parts");
            return Err(Error::invalid("size of a subtask", format!("{:?} x {slabs}", self.input), help));
        }
        Ok(SubtaskShape { conv, slabs, banks, plain: self.plain })
    }
}

/// A request with whom it is from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// The master.
    pub from: MasterId,
    /// What it wants.
    pub request: Request,
}

/// What a chunk is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Object {
    /// Coded filters.
    Filters(ContentId),
    /// The coded slabs of a task.
    Slabs {
        /// Its number.
        task: u64,
        /// Their element type.
        dtype: DType,
    },
}

/// What a master asks of a worker. Devices count from 0; tasks are numbered by the master and never twice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Who are you? Answered with [`Answer::Info`].
    Info,
    /// Hold these filters on this device. The payload is all of them or nothing. Answered with
    /// [`Answer::Installed`], or with [`Answer::Send`] where chunks are missing; then ask again after sending them.
    Install {
        /// Device.
        device: u32,
        /// Their name.
        content: ContentId,
        /// Their shape.
        spec: Spec,
    },
    /// A part of an object, answered with [`Answer::Ack`]. Chunks follow each other without gaps. Slabs have a checksum;
    /// filters need none, their name is one.
    Chunk {
        /// Of what.
        object: Object,
        /// First byte.
        offset: u64,
        /// Bytes of the whole object.
        total: u64,
        /// CRC-32 of the payload; 0 for filters.
        crc: u32,
    },
    /// Compute. The payload is all slabs, or nothing where they were sent in chunks. Answered with [`Answer::Part`] or
    /// [`Answer::Ready`] for each sub-result as it is complete, then [`Answer::Done`]. A task that takes long is asked for
    /// again, with [`Request::Await`]: requests end soon, whatever becomes of them.
    Task {
        /// Its number.
        task: u64,
        /// Device.
        device: u32,
        /// The filters.
        content: ContentId,
        /// Sub-results wanted, in this order; all, in any order, when `None`.
        order: Option<Vec<u32>>,
        /// Larger sub-results are announced with [`Answer::Ready`], to be fetched.
        inline_bytes: u32,
        /// CRC-32 of the payload.
        crc: u32,
    },
    /// A part of a sub-result that is [ready](Answer::Ready). Answered with [`Answer::Bytes`]. The last part frees it.
    Fetch {
        /// The task.
        task: u64,
        /// Sub-result.
        index: u32,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// These filters are not needed any more. Not answered.
    Release {
        /// Device.
        device: u32,
        /// Their name.
        content: ContentId,
    },
    /// Stop. Not answered.
    Cancel {
        /// The task.
        task: u64,
    },
    /// Answer a task to this request from now on, as to its [`Request::Task`], which may end. Refused as [`Refusal::Over`]
    /// where the task is over; its last answers went to the request before.
    Await {
        /// The task.
        task: u64,
    },
}

/// What a worker answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Request::Info`].
    Info(Box<HostInfo>),
    /// The device holds the filters.
    Installed,
    /// Chunks are wanted from this byte on.
    Send {
        /// First byte that is missing.
        from: u64,
    },
    /// Bytes of the object so far.
    Ack {
        /// First byte that is missing.
        received: u64,
    },
    /// A sub-result; the payload is all of it.
    Part {
        /// Which.
        index: u32,
        /// CRC-32 of the payload.
        crc: u32,
    },
    /// A sub-result that can be fetched.
    Ready {
        /// Which.
        index: u32,
        /// Its size.
        bytes: u64,
    },
    /// The payload is a part of a sub-result.
    Bytes {
        /// CRC-32 of the payload.
        crc: u32,
    },
    /// The task is complete.
    Done,
    /// No.
    Refused {
        /// In which way.
        why: Refusal,
        /// Readable, with numbers.
        text: String,
    },
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// It makes no sense: sizes, checksums, numbers.
    Malformed,
    /// The filters that it needs are not (or no longer) there: install them.
    NotHeld,
    /// There is no memory for it.
    Memory,
    /// The device is lost for now.
    DeviceLost,
    /// The work failed; the device lives on.
    Failed,
    /// It was cancelled.
    Cancelled,
    /// Too much at once.
    Busy,
    /// The task that is [asked for again](Request::Await) is over, or was never there.
    Over,
}

/// A worker process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostInfo {
    /// The machine's name in the cluster.
    pub name: String,
    /// Drawn at random when the process started.
    pub boot: u64,
    /// Release of fcdcc.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// What it lends.
    pub devices: Vec<DeviceInfo>,
    /// Bytes that filters, slabs and results may take.
    pub memory_limit_bytes: u64,
    /// Bytes they take.
    pub memory_used_bytes: u64,
    /// Masters it works for.
    pub masters: u32,
}

/// One device of a worker process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Its name within the process.
    pub name: String,
    /// Threads or a GPU queue.
    pub gpu: bool,
    /// Readable: adapter and driver, or number of threads.
    pub device: String,
    /// Whether it computes in f64.
    pub f64: bool,
    /// What it is lost together with.
    pub adapter: Option<String>,
    /// Why it does no work at present, if it does not.
    pub lost: Option<String>,
    /// Tasks queued or running.
    pub load: u32,
    /// Filters it holds.
    pub filters: u32,
    /// Their bytes.
    pub filter_bytes: u64,
    /// Tasks completed since the start.
    pub done: u64,
    /// Tasks cancelled.
    pub cancelled: u64,
    /// Tasks failed.
    pub failed: u64,
}

impl DeviceInfo {
    /// Kind of the device where it is.
    #[must_use]
    pub fn kind(&self) -> WorkerKind {
        if self.gpu { WorkerKind::Gpu } else { WorkerKind::Cpu }
    }
}

impl HostInfo {
    /// Whether every name, text and count is within its limit.
    ///
    /// # Errors
    /// [`WireError::Malformed`] with the first that is not.
    pub fn check(&self) -> Result<(), WireError> {
        let long = |what: &str, text: &str, limit: usize| {
            if text.len() <= limit { Ok(()) } else { Err(WireError::Malformed(format!("{what} too long"))) }
        };
        if self.devices.len() > MAX_DEVICES {
            return Err(WireError::Malformed(format!("{} devices", self.devices.len())));
        }
        long("name", &self.name, MAX_NAME_BYTES)?;
        long("version", &self.version, MAX_NAME_BYTES)?;
        for device in &self.devices {
            long("name of a device", &device.name, MAX_NAME_BYTES)?;
            long("description of a device", &device.device, MAX_TEXT_BYTES)?;
            long("adapter", device.adapter.as_deref().unwrap_or_default(), MAX_TEXT_BYTES)?;
            long("state", device.lost.as_deref().unwrap_or_default(), MAX_TEXT_BYTES)?;
        }
        Ok(())
    }
}

impl Answer {
    /// A refusal; the text is cut where it is too long.
    #[must_use]
    pub fn refused(why: Refusal, text: impl fmt::Display) -> Self {
        Self::Refused { why, text: clipped(&text.to_string()) }
    }
}

/// `text`, cut to what may travel.
pub(super) fn clipped(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT_BYTES)].to_owned()
}

/// The header of `body`.
#[must_use]
pub fn pack<T: Serialize>(body: &T) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(PROTOCOL.to_le_bytes());
    // Serializing these types cannot fail: they hold numbers, text and sequences of known length.
    postcard::to_extend(body, bytes).expect("numbers, text and sequences of known length have an encoding")
}

/// The body of a header.
///
/// # Errors
/// [`WireError`] for anything but one whole message of this version.
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
