//! Parts of a model that a worker computes whole.
//!
//! A *part* is a connected piece of a model between two cuts, as a file that a [`PartCompiler`] makes executable. A worker
//! that holds a part computes all of its operators and returns its outputs: nothing of it is coded, and another worker that
//! holds the same part gives the same results within rounding. Workers take parts with [`Worker::install_part`] and compute
//! them with [`Worker::run_part`].
//!
//! [`Worker::install_part`]: super::Worker::install_part
//! [`Worker::run_part`]: super::Worker::run_part
//!
//! Invariant: this module knows no format of model files. What reads them is given to the workers as a compiler.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::CancelToken;
use crate::array::{DType, Values};
use crate::error::{Error, Result};

/// Identifies an installed part on a worker; unique within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartKey(pub u64);

/// The file of a part, and what it takes to hold it.
#[derive(Clone)]
pub struct PartFile {
    /// A self-contained model file, its weights included. All of its shapes are fixed.
    pub bytes: Arc<[u8]>,
    /// Bytes that a worker needs to hold the part and to compute it: packed weights and planned memory.
    pub memory_bytes: u64,
}

impl fmt::Debug for PartFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PartFile({} bytes, {} in memory)", self.bytes.len(), self.memory_bytes)
    }
}

/// Element type and shape of an array that enters or leaves a part.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PartArray {
    /// Element type.
    pub dtype: DType,
    /// Extents of the axes, outermost first; the elements are row-major.
    pub shape: Vec<usize>,
}

impl PartArray {
    /// Number of elements; `None` if it exceeds the range of the type.
    #[must_use]
    pub fn elems(&self) -> Option<usize> {
        self.shape.iter().try_fold(1_usize, |elems, extent| elems.checked_mul(*extent))
    }

    /// Size in bytes; `None` if it exceeds the range of the type.
    #[must_use]
    pub fn size_bytes(&self) -> Option<usize> {
        self.elems()?.checked_mul(self.dtype.size_bytes())
    }
}

/// What enters and leaves a part, in the order of its file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PartSignature {
    /// The inputs.
    pub inputs: Vec<PartArray>,
    /// The outputs.
    pub outputs: Vec<PartArray>,
}

impl PartSignature {
    /// Checks arrays that enter the part: their number, types and sizes.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with both sides of the first disagreement.
    pub fn check_inputs(&self, inputs: &[Values]) -> Result<()> {
        check("input", "inputs", inputs, &self.inputs)
    }

    /// Checks arrays that leave the part, as [`check_inputs`](Self::check_inputs) does those that enter it.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with both sides of the first disagreement.
    pub fn check_outputs(&self, outputs: &[Values]) -> Result<()> {
        check("output", "outputs", outputs, &self.outputs)
    }
}

fn check(one: &str, all: &str, got: &[Values], expected: &[PartArray]) -> Result<()> {
    if got.len() != expected.len() {
        let help = format!("a part has the {all} of its file, in their order");
        return Err(Error::mismatch(format!("number of {all} of a part"), got.len(), expected.len(), help));
    }
    for (index, (values, array)) in got.iter().zip(expected).enumerate() {
        if values.dtype() != array.dtype {
            let what = format!("element type of {one} {index} of a part");
            let help = "use the type of the file: parts convert nothing";
            return Err(Error::mismatch(what, values.dtype(), array.dtype, help));
        }
        if Some(values.len()) != array.elems() {
            let what = format!("number of elements of {one} {index} of a part");
            let help = format!("its shape is {:?}", array.shape);
            return Err(Error::mismatch(what, values.len(), array.elems().unwrap_or(usize::MAX), help));
        }
    }
    Ok(())
}

/// Makes files of parts executable.
pub trait PartCompiler: Send + Sync {
    /// Reads a file, with the checks and limits that a file from elsewhere needs, and prepares it for `threads` threads.
    ///
    /// # Errors
    /// Those of reading a model: the file is malformed, uses operators that cannot be run, or needs more memory than there
    /// is.
    fn compile(&self, file: &PartFile, threads: usize) -> Result<Box<dyn CompiledPart>>;
}

/// A part that is ready to be computed any number of times.
pub trait CompiledPart: Send {
    /// What enters and leaves it.
    fn signature(&self) -> &PartSignature;

    /// Bytes that it occupies: packed weights and planned memory.
    fn memory_bytes(&self) -> u64;

    /// Computes the outputs from inputs that fit the signature.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled) if the token was cancelled, at the latest after the operator at hand;
    /// any other error of a run.
    fn run(&mut self, inputs: &[Values], cancel: &CancelToken) -> Result<Vec<Values>>;
}
