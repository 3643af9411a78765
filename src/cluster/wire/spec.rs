//! Shapes of subtasks in transfer format, and the names of filters by content.
//!
//! Invariant: sizes that [`Spec::subtask`] accepts can be multiplied and added without overflow.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{MAX_OBJECT_BYTES, MAX_SUB_RESULTS, pack};
use crate::array::DType;
use crate::conv::{AXES, ConvParams, ConvShape};
use crate::error::{Error, Result};
use crate::worker::SubtaskShape;

/// Identifies coded filters by content: the BLAKE3 hash of their [`Spec`] and their elements. Likewise parts of models, by
/// that of their file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContentId(pub [u8; 32]);

impl ContentId {
    /// The identifier of filters with this `spec` and these little-endian `elements`.
    #[must_use]
    pub fn of(spec: &Spec, elements: &[u8]) -> Self {
        let mut hasher = Self::begin(spec);
        // From this size on several threads are worth starting.
        if elements.len() < 1 << 20 {
            hasher.update(elements)
        } else {
            hasher.update_rayon(elements)
        };
        Self::end(&hasher)
    }

    /// The identifier of the filters `of` where a subtask of shape `spec` shares them.
    #[must_use]
    pub fn shared(spec: &Spec, of: Self) -> Self {
        let mut hasher = Self::begin(spec);
        hasher.update(b"shared").update(&of.0);
        Self::end(&hasher)
    }

    /// Starts a hasher for the elements of filters with this `spec`, to be fed piece by piece.
    pub(in crate::cluster) fn begin(spec: &Spec) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&pack(spec));
        hasher
    }

    /// The identifier of a part of a model with this file.
    #[must_use]
    pub fn of_part(file: &[u8]) -> Self {
        let mut hasher = Self::begin_part();
        if file.len() < 1 << 20 {
            hasher.update(file)
        } else {
            hasher.update_rayon(file)
        };
        Self::end(&hasher)
    }

    /// Starts a hasher for the file of a part, to be fed piece by piece.
    pub(in crate::cluster) fn begin_part() -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"part of a model");
        hasher
    }

    /// The identifier of the data fed to a hasher.
    pub(in crate::cluster) fn end(hasher: &blake3::Hasher) -> Self {
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

/// Shape and element type of a subtask, in transfer format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Element type of filters, slabs and sub-results.
    pub dtype: DType,
    /// `[N, C, slab spatial...]`.
    pub input: Vec<u64>,
    /// `[O', C/g, kernel...]`.
    pub weight: Vec<u64>,
    /// One stride per axis.
    pub stride: Vec<u64>,
    /// One dilation per axis.
    pub dilation: Vec<u64>,
    /// g, the number of groups.
    pub groups: u64,
    /// l_A, the number of slabs.
    pub slabs: u64,
    /// l_B, the number of filter banks.
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

    /// Validates and converts the shape.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] or [`Error::Mismatch`] for an invalid convolution, more than [`MAX_SUB_RESULTS`]
    /// sub-results, or objects of more than [`MAX_OBJECT_BYTES`].
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
