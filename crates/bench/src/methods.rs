//! The methods under comparison: ways to distribute a layer over workers.
//!
//! Invariant: methods differ only in code, partitions and the policies that define them; workers, deadline and the handling
//! of failed workers are the same for all.

use std::fmt;
use std::str::FromStr;

use super::schema::MethodPlan;
use fcdcc::array::Element;
use fcdcc::coding::{Code, CodeKind};
use fcdcc::conv::ConvShape;
use fcdcc::engine::LayerOptions;
use fcdcc::error::{Error, Result};
use fcdcc::planner::{SubtaskCost, choose_partitions, subtask_shape};
use fcdcc::scheduler::Audit;

/// A way to compute a layer on unreliable workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// One part for each worker, all needed. Parts of failed workers are dispatched again; late ones are waited for.
    Uncoded,
    /// [`Method::Uncoded`], with copies of overdue parts on idle workers.
    Hedged,
    /// Enough copies of each part to survive the stragglers; the first copy of each counts.
    Replication,
    /// A maximum distance separable code over the input alone, as in CoCoI (arXiv 2501.06856): every worker holds all
    /// filters. Uses Chebyshev nodes, because the paper's Vandermonde generator would spoil the accuracy.
    Mds,
    /// This library with its policies and CRME over input and filters.
    Crme,
    /// This library with Chebyshev polynomial codes.
    Chebyshev,
    /// This library with polynomial codes at equally spaced points.
    Vandermonde,
    /// This library with random Khatri-Rao product codes.
    KhatriRao,
    /// This library with a code of the caller's own, which [`LayerOptions::own_code`] of the shared options holds.
    Custom,
}

impl Method {
    /// Every method that needs no code of the caller's, in the order of a table.
    pub const ALL: [Self; 8] = [
        Self::Uncoded,
        Self::Hedged,
        Self::Replication,
        Self::Mds,
        Self::Vandermonde,
        Self::Chebyshev,
        Self::KhatriRao,
        Self::Crme,
    ];

    /// The name used on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Uncoded => "uncoded",
            Self::Hedged => "hedged",
            Self::Replication => "replication",
            Self::Mds => "mds",
            Self::Crme => "crme",
            Self::Chebyshev => "chebyshev",
            Self::Vandermonde => "vandermonde",
            Self::KhatriRao => "khatri-rao",
            Self::Custom => "custom",
        }
    }

    /// A description in a few words.
    #[must_use]
    pub fn about(self) -> &'static str {
        match self {
            Self::Uncoded => "one part a worker, all needed",
            Self::Hedged => "uncoded, copies of overdue parts to idle workers",
            Self::Replication => "tolerate + 1 copies of each part",
            Self::Mds => "MDS code over the input alone (as CoCoI), Chebyshev nodes",
            Self::Crme => "CRME over input and filters, all policies",
            Self::Chebyshev => "Chebyshev polynomial code over input and filters, all policies",
            Self::Vandermonde => "polynomial code at equally spaced points, all policies",
            Self::KhatriRao => "random Khatri-Rao product code, all policies",
            Self::Custom => "a code given by its generator blocks, all policies",
        }
    }

    /// Its code family.
    #[must_use]
    pub fn code(self) -> CodeKind {
        match self {
            Self::Uncoded | Self::Hedged => CodeKind::Uncoded,
            Self::Replication => CodeKind::Replication,
            Self::Mds | Self::Chebyshev => CodeKind::Chebyshev,
            Self::Crme => CodeKind::Crme,
            Self::Vandermonde => CodeKind::Vandermonde,
            Self::KhatriRao => CodeKind::KhatriRao,
            Self::Custom => CodeKind::Custom,
        }
    }

    /// The method that uses this library with the given code.
    #[must_use]
    pub fn of(code: CodeKind) -> Self {
        match code {
            CodeKind::Crme => Self::Crme,
            CodeKind::Chebyshev => Self::Chebyshev,
            CodeKind::Vandermonde => Self::Vandermonde,
            CodeKind::KhatriRao => Self::KhatriRao,
            CodeKind::Replication => Self::Replication,
            CodeKind::Uncoded => Self::Uncoded,
            CodeKind::Custom => Self::Custom,
        }
    }

    /// Whether the method is this library with all its policies. A user's choice of policies and partitions applies to
    /// these methods only.
    #[must_use]
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Crme | Self::Chebyshev | Self::Vandermonde | Self::KhatriRao | Self::Custom)
    }

    /// The policies of this method, for a layer of any shape. `base` has the options that all methods share, and the
    /// policies that a user chose for the coded methods.
    #[must_use]
    pub fn policies(self, n: usize, tolerate: usize, base: &LayerOptions) -> LayerOptions {
        let own = LayerOptions {
            code: self.code(),
            subtasks: Some(n),
            tolerate,
            name: self.name().to_owned(),
            own_code: base.own_code.clone().filter(|_| self == Self::Custom),
            ..base.clone()
        };
        if self.is_ours() {
            return own;
        }
        let defaults = LayerOptions::default();
        LayerOptions { partitions: None, ..own }
            .hedge(defaults.policy.hedge.filter(|_| self == Self::Hedged))
            .partial(false)
            .patience(0.0)
            .audit(Audit::Off)
    }

    /// All options of this method on `n` workers for one layer, partitions included.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] where the layer is too small for it, or `tolerate` leaves it no worker to wait for.
    pub fn options<T: Element>(
        self,
        shape: &ConvShape,
        n: usize,
        tolerate: usize,
        base: &LayerOptions,
    ) -> Result<LayerOptions> {
        let policies = self.policies(n, tolerate, base);
        if self == Self::Custom {
            return with_own_code(policies, n);
        }
        let pair = match (self, policies.partitions) {
            (_, Some(pair)) => pair,
            (Self::Mds, None) => self.input_alone(shape, n, tolerate)?,
            (_, None) => choose_partitions::<T>(shape, self.code(), n, tolerate, &policies.rates)?.0,
        };
        if pair == (1, 1) && policies.partitions.is_none() && self.code().parts(n, tolerate) > 1 {
            return Err(self.too_small(shape));
        }
        Ok(LayerOptions { partitions: Some(pair), ..policies })
    }

    /// Partitions of the input alone: n - `tolerate`, or fewer if the output has fewer rows.
    fn input_alone(self, shape: &ConvShape, n: usize, tolerate: usize) -> Result<(usize, usize)> {
        let rows = shape.output[shape.split_axis()];
        match self.code().parts(n, tolerate) {
            0 => Err(Error::invalid(
                "stragglers to tolerate (--tolerate)",
                tolerate,
                format!("it must be below the number of subtasks, {n}"),
            )),
            parts => Ok((parts.min(rows), 1)),
        }
    }

    fn too_small(self, shape: &ConvShape) -> Error {
        let (rows, filters) = (shape.output[shape.split_axis()], shape.out_channels / shape.groups);
        Error::invalid(
            "layer",
            format!("one of {rows} output rows and {filters} filters a group"),
            format!("{self} cannot split it: every worker would compute all of it"),
        )
    }

    /// The division of a layer by `options` among workers that compute in `T`.
    ///
    /// # Errors
    /// The errors of the code.
    pub fn plan<T: Element>(self, shape: &ConvShape, options: &LayerOptions) -> Result<MethodPlan> {
        let code = code_of(options)?;
        let (k_a, k_b) = (code.k_a(), code.k_b());
        let cost = SubtaskCost::of(&subtask_shape(shape, &code)?);
        let (n, bytes) = (code.n() as f64, T::DTYPE.size_bytes() as f64);
        Ok(MethodPlan {
            method: self.name().to_owned(),
            about: self.about().to_owned(),
            code: code.kind().to_string(),
            n: code.n(),
            recovery_threshold: code.recovery_threshold(),
            k_a,
            k_b,
            tolerated: code.tolerated(),
            work: n * cost.macs / shape.macs(),
            upload_bytes: n * cost.upload_elems as f64 * bytes,
            download_bytes: n * cost.download_elems as f64 * bytes,
            filter_bytes: cost.storage_elems as f64 * bytes,
            predicted_ms: Some(options.rates.predict::<T>(shape, &code)?.total_s() * 1e3),
        })
    }
}

/// The options with the partitions of their own code, which must have one subtask for each of `n` workers.
fn with_own_code(options: LayerOptions, n: usize) -> Result<LayerOptions> {
    let Some(code) = &options.own_code else {
        let help = "it is for programs that hand over a code of their own: name a family";
        return Err(Error::invalid("method", Method::Custom.name(), help));
    };
    if code.n() != n {
        let help = "each worker gets one subtask: use as many workers";
        return Err(Error::mismatch("number of subtasks of the code", code.n(), n, help));
    }
    let (pair, tolerate) = ((code.k_a(), code.k_b()), code.tolerated());
    Ok(LayerOptions { partitions: Some(pair), tolerate, ..options })
}

/// The code of a layer with these options, whose partitions are known.
pub(super) fn code_of(options: &LayerOptions) -> Result<Code> {
    if let Some(own) = &options.own_code {
        return Ok(own.as_ref().clone());
    }
    let (k_a, k_b) = options.partitions.unwrap_or((1, 1));
    Code::new(options.code, k_a, k_b, options.subtasks.unwrap_or(1))
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut all = Self::ALL.into_iter().chain([Self::Custom]);
        all.find(|method| method.name() == text.trim()).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|method| method.name()).collect();
            Error::invalid(
                "method (--methods)",
                format!("{text:?}"),
                format!("known methods: {}", known.join(", ")),
            )
        })
    }
}
