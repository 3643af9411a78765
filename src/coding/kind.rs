//! The code families by name, the parts that each can be built on, and the number of subtasks that each needs.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::crme;
use super::generators::{MAX_PARTS, product};
use crate::error::{Error, Result};

/// The code families.
///
/// # Examples
///
/// ```
/// use fcdcc::CodeKind;
///
/// // CRME: any four of six subtasks give the result of 4 x 4 parts.
/// assert_eq!(CodeKind::Crme.recovery_threshold(4, 4, 6)?, 4);
/// assert_eq!(CodeKind::Chebyshev.recovery_threshold(2, 2, 6)?, 4);
/// # Ok::<(), fcdcc::Error>(())
/// ```
///
/// ```
/// use fcdcc::CodeKind;
///
/// let kind: CodeKind = "khatri-rao".parse()?;
/// assert_eq!(kind, CodeKind::KhatriRao);
/// assert!("hamming".parse::<CodeKind>().is_err());
/// # Ok::<(), fcdcc::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CodeKind {
    /// Circulant and rotation matrix embeddings (arXiv 1910.06515): any [delta](crate::glossary#symbols) of n subtasks.
    #[default]
    Crme,
    /// Orthogonal polynomial code at Chebyshev nodes (arXiv 1903.08326): any k_A k_B of n.
    Chebyshev,
    /// Real polynomial code at equally spaced points (arXiv 1705.10464): any k_A k_B of n.
    Vandermonde,
    /// Random Khatri-Rao product code (arXiv 1907.05965): any k_A k_B of n, with probability 1.
    KhatriRao,
    /// Plain partitioning with copies: needs one copy of every [part](crate::glossary#dividing-and-coding-a-layer).
    Replication,
    /// Plain partitioning: every subtask is needed.
    Uncoded,
    /// A code of the caller's own, given by its generator blocks ([`Code::from_generators`](super::Code::from_generators)).
    Custom,
}

impl CodeKind {
    /// Every family that is known by name, in the order of the documentation.
    pub const ALL: [Self; 6] =
        [Self::Crme, Self::Chebyshev, Self::Vandermonde, Self::KhatriRao, Self::Replication, Self::Uncoded];

    /// The name used on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Crme => "crme",
            Self::Chebyshev => "chebyshev",
            Self::Vandermonde => "vandermonde",
            Self::KhatriRao => "khatri-rao",
            Self::Replication => "replication",
            Self::Uncoded => "uncoded",
            Self::Custom => "custom",
        }
    }

    /// Recovery threshold of this family for k_A x k_B parts and `n` subtasks: any set of that many subtasks suffices.
    /// The result exceeds n where even all n subtasks do not suffice.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for parts the family cannot be built on.
    pub fn recovery_threshold(self, k_a: usize, k_b: usize, n: usize) -> Result<usize> {
        let degree = self.degree(k_a, k_b)?;
        Ok(match self {
            // Worst case: every subtask has answered except all copies of the rarest part; one more completes the set.
            Self::Replication => n - n / degree + 1,
            _ => degree,
        })
    }

    /// The minimum number of subtasks of a code. One subtask does 1/degree of the work of the layer. CRME: d_A d_B; the
    /// others: k_A k_B.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for parts the family cannot be built on.
    pub fn degree(self, k_a: usize, k_b: usize) -> Result<usize> {
        match self {
            Self::Crme => Ok(crme::degree("k_A", k_a)? * crme::degree("k_B", k_b)?),
            _ => product(k_a, k_b),
        }
    }

    /// The largest [`degree`](Self::degree) with which `tolerate` of `n` subtasks may be missing; 0 if there is none.
    /// An uncoded layer has n parts for any `tolerate`, since it tolerates no missing subtask.
    #[must_use]
    pub fn parts(self, n: usize, tolerate: usize) -> usize {
        match self {
            Self::Crme | Self::Chebyshev | Self::Vandermonde | Self::KhatriRao | Self::Custom => {
                n.saturating_sub(tolerate)
            }
            Self::Replication => n / tolerate.saturating_add(1),
            Self::Uncoded => n,
        }
    }

    /// Whether one side may be split into `k` parts. CRME needs 1 or an even number.
    #[must_use]
    pub fn allows(self, k: usize) -> bool {
        let paired = self == Self::Crme && k > 1;
        (1..=MAX_PARTS).contains(&k) && (!paired || k.is_multiple_of(2))
    }

    /// Whether coded operands are sums of several parts, so that a NaN in one part spreads to the others.
    #[must_use]
    pub fn mixes(self) -> bool {
        !matches!(self, Self::Replication | Self::Uncoded)
    }
}

impl fmt::Display for CodeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CodeKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
            Error::invalid("code", format!("{text:?}"), format!("known codes: {}", known.join(", ")))
        })
    }
}
