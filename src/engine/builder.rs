//! The builder of a coded layer.

use std::sync::Arc;
use std::time::Duration;

use ndarray::{ArrayView1, ArrayViewD};

use super::layer::CodedConv;
use super::options::LayerOptions;
use crate::array::Element;
use crate::coding::CodeKind;
use crate::conv::{ConvParams, ConvShape};
use crate::error::Result;
use crate::scheduler::{Audit, OnShortfall, Pool};

/// A layer to be prepared: created by [`CodedConv::builder`], completed by [`prepare`](Self::prepare).
///
/// It has methods for the options that most layers need; [`options`](Self::options) sets all of them at once.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is prepared"]
pub struct CodedConvBuilder<'a, T> {
    pool: &'a Pool,
    input_shape: &'a [usize],
    weight: ArrayViewD<'a, T>,
    bias: Option<ArrayView1<'a, T>>,
    params: ConvParams,
    options: LayerOptions,
}

impl<T: Element> CodedConv<T> {
    /// Begins a layer on the workers of `pool`.
    ///
    /// `input_shape` is `[N, C, spatial...]`, `weight` `[O, C/groups, kernel...]` with 1, 2 or 3 spatial axes. Without
    /// further calls the layer has no bias, stride 1, no padding and the default options.
    pub fn builder<'a>(
        pool: &'a Pool,
        input_shape: &'a [usize],
        weight: ArrayViewD<'a, T>,
    ) -> CodedConvBuilder<'a, T> {
        let (params, options) = (ConvParams::default(), LayerOptions::default());
        CodedConvBuilder { pool, input_shape, weight, bias: None, params, options }
    }
}

impl<'a, T: Element> CodedConvBuilder<'a, T> {
    /// Sets the bias, `[O]`.
    pub fn bias(mut self, bias: impl Into<Option<ArrayView1<'a, T>>>) -> Self {
        self.bias = bias.into();
        self
    }

    /// Sets stride, padding, dilation and groups.
    pub fn params(mut self, params: ConvParams) -> Self {
        self.params = params;
        self
    }

    /// Sets all options; those set before are lost.
    pub fn options(mut self, options: LayerOptions) -> Self {
        self.options = options;
        self
    }

    fn with(self, change: impl FnOnce(LayerOptions) -> LayerOptions) -> Self {
        Self { options: change(self.options), ..self }
    }

    /// Sets the name in reports.
    pub fn name(self, name: impl Into<String>) -> Self {
        self.with(|options| options.name(name))
    }

    /// Sets the code family.
    pub fn code(self, code: CodeKind) -> Self {
        self.with(|options| options.code(code))
    }

    /// Sets the number of stragglers to tolerate.
    pub fn tolerate(self, tolerate: usize) -> Self {
        self.with(|options| options.tolerate(tolerate))
    }

    /// Sets the partitions ([k_A, k_B](crate::glossary#symbols)), which the planner otherwise chooses.
    pub fn partitions(self, k_a: usize, k_b: usize) -> Self {
        self.with(|options| options.partitions(k_a, k_b))
    }

    /// Sets the time limit of a run.
    pub fn deadline(self, deadline: Duration) -> Self {
        self.with(|options| options.deadline(deadline))
    }

    /// Sets what to do when fewer results than needed can come.
    pub fn on_shortfall(self, on_shortfall: OnShortfall) -> Self {
        self.with(|options| options.on_shortfall(on_shortfall))
    }

    /// Sets whether spare results are used as checksums of the others.
    pub fn audit(self, audit: Audit) -> Self {
        self.with(|options| options.audit(audit))
    }

    /// Validates the layer, chooses its code, encodes its filters and installs them on the pool's workers.
    ///
    /// Subtasks are assigned to workers by measured speed, and those of one failure domain are kept far apart
    /// ([`assign`](crate::scheduler::assign())). With as many subtasks as workers and no speeds measured yet, subtask i goes
    /// to worker i. Workers that fail to take their filters, or are much slower at it than the others, are stragglers
    /// from the start.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`](crate::Error::InvalidParameter), [`Error::Mismatch`](crate::Error::Mismatch) or
    /// [`Error::NonFinite`](crate::Error::NonFinite) for a layer that cannot be built;
    /// [`Error::Memory`](crate::Error::Memory) for one that does not fit into this machine;
    /// [`Error::Unavailable`](crate::Error::Unavailable) when a worker cannot compute in this type; the first worker's error
    /// when too few workers could take their filters.
    pub fn prepare(self) -> Result<CodedConv<T>> {
        let Self { pool, input_shape, weight, bias, params, options } = self;
        let shape = ConvShape::new(input_shape, weight.shape(), &params)?;
        let weight = match weight.as_slice() {
            Some(slice) => slice.to_vec(),
            None => weight.iter().copied().collect(),
        };
        CodedConv::prepare_shared(pool, shape, Arc::new(weight), bias.map(|bias| bias.to_vec()), options)
    }
}
