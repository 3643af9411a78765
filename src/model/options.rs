//! The options of a model.

use std::fmt;
use std::str::FromStr;

use crate::array::DType;
use crate::engine::LayerOptions;
use crate::error::{Error, Result};
use crate::planner::{Objective, PartWorker};

/// The fully connected layers (Gemm or MatMul with constant weights) that are coded, as 1x1 convolutions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GemmChoice {
    /// Layers for which the cost model expects the workers to be faster than the host.
    #[default]
    Auto,
    /// All layers that can be split.
    On,
    /// No layer.
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

/// The choices left to the planner for each layer, beside the partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AutoChoices {
    /// Replication instead of CRME; [`LayerOptions::code`] is then ignored.
    pub code: bool,
    /// Fewer subtasks than workers; [`LayerOptions::subtasks`] is then ignored.
    pub subtasks: bool,
    /// Leaving convolutions on the host if that is predicted to be faster, not only if they cannot be split.
    pub local: bool,
}

impl AutoChoices {
    /// All choices.
    pub const ALL: Self = Self { code: true, subtasks: true, local: true };
}

/// Options of a model; the defaults are those of the command line.
///
/// # Examples
///
/// ```
/// use fcdcc::{CpuWorker, LayerOptions, Model, ModelOptions, Pool};
///
/// let pool = Pool::new(CpuWorker::fleet(6))?;
/// let model = Model::load("assets/digits/lenet5.onnx")?.with_input_shape("image", &[1, 1, 32, 32])?;
/// // Any three of the six workers may be late.
/// let options = ModelOptions { layer: LayerOptions::default().tolerate(3), ..ModelOptions::default() };
/// let prepared = model.prepare(&pool, &options)?;
/// assert!(prepared.coded_layers() > 0);
/// # Ok::<(), fcdcc::Error>(())
/// ```
///
/// ```
/// use fcdcc::ModelOptions;
/// use fcdcc::array::DType;
/// use fcdcc::model::AutoChoices;
///
/// // Codes, numbers of subtasks and places by the planner; arithmetic in f64 on the workers.
/// let options =
///     ModelOptions { freedom: AutoChoices::ALL, precision: Some(DType::F64), ..ModelOptions::default() };
/// assert!(options.freedom.code);
/// ```
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// Options of every layer, except its name and activation, which come from the model, and partitions for which a
    /// layer is too small, which the planner replaces.
    pub layer: LayerOptions,
    /// The fully connected layers that are coded.
    pub gemm: GemmChoice,
    /// Arithmetic of the workers; by default the element type of the model. The host always computes in the type of the
    /// model.
    pub precision: Option<DType>,
    /// The choices left to the planner; by default only partitions.
    pub freedom: AutoChoices,
    /// Whether the planner also divides the model into segments, some of which workers may compute whole; by default not.
    pub segments: Option<SegmentChoice>,
}

/// What the planner needs to divide a model into segments.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentChoice {
    /// What the segments are chosen for.
    pub objective: Objective,
    /// The workers of the pool that take parts of models.
    pub workers: Vec<PartWorker>,
}

impl ModelOptions {
    pub(super) fn check(&self) -> Result<()> {
        if self.layer.own_code.is_some() {
            let help = "a model divides each layer differently: name a code family, or run single layers";
            return Err(Error::invalid("code of a model", "one of the caller's own", help));
        }
        self.layer.check()
    }
}

/// Progress of preparing or running a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Number of coded layers finished.
    pub done: usize,
    /// Total number of coded layers.
    pub total: usize,
    /// The layer finished last.
    pub layer: &'a str,
}
