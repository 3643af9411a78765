//! What a caller may choose about a model.

use std::fmt;
use std::str::FromStr;

use crate::array::DType;
use crate::engine::LayerOptions;
use crate::error::{Error, Result};

/// Which fully connected layers (Gemm or MatMul with constant weights) are coded, as 1x1 convolutions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GemmChoice {
    /// Those for which the cost model expects the workers to be faster than the host.
    #[default]
    Auto,
    /// All that can be split.
    On,
    /// None.
    Off,
}

impl GemmChoice {
    const NAMES: [(&'static str, Self); 3] = [("auto", Self::Auto), ("on", Self::On), ("off", Self::Off)];
}

impl fmt::Display for GemmChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES.iter().find(|(_, value)| value == self).map_or("", |(name, _)| name))
    }
}

impl FromStr for GemmChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        found.ok_or_else(|| {
            Error::invalid("choice of Gemm layers", format!("{text:?}"), "use auto, on or off")
        })
    }
}

/// What the planner may choose of its own accord, layer by layer, beside the partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AutoChoices {
    /// Replication instead of CRME; [`LayerOptions::code`] is then not looked at.
    pub code: bool,
    /// Fewer subtasks than workers; [`LayerOptions::subtasks`] is then not looked at.
    pub subtasks: bool,
    /// Leaving convolutions on the host because that is predicted to be faster, not only where they cannot be split.
    pub local: bool,
}

impl AutoChoices {
    /// Everything.
    pub const ALL: Self = Self { code: true, subtasks: true, local: true };
}

/// Options of a model; the defaults are those of the command line.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// For every layer. Its name, partitions where they fit, and activation come from the model instead: partitions
    /// that a layer is too small for are replaced by the planner's.
    pub layer: LayerOptions,
    /// Which fully connected layers are coded.
    pub gemm: GemmChoice,
    /// Arithmetic of the workers; by default the element type of the model. What the host computes stays in the
    /// model's type.
    pub precision: Option<DType>,
    /// What the planner may choose; by default nothing but partitions.
    pub freedom: AutoChoices,
}

/// How far preparing or running a model has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Coded layers done.
    pub done: usize,
    /// Coded layers in all.
    pub total: usize,
    /// The layer that was done last.
    pub layer: &'a str,
}
