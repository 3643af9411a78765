//! The code of one layer: generator blocks and recovery threshold.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::generators::{Generators, Structure};
use super::{crme, uncoded};
use crate::error::{Error, Result};

/// The code families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CodeKind {
    /// Circulant and rotation matrix embeddings (arXiv 1910.06515): any delta of n subtasks.
    #[default]
    Crme,
    /// Plain partitioning: every subtask is needed.
    Uncoded,
}

impl CodeKind {
    /// Every family, in the order of the documentation.
    pub const ALL: [Self; 2] = [Self::Crme, Self::Uncoded];

    /// The name used on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Crme => "crme",
            Self::Uncoded => "uncoded",
        }
    }

    /// Recovery threshold of this family for k_A x k_B parts, whatever n.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for parts the family cannot be built on.
    pub fn recovery_threshold(self, k_a: usize, k_b: usize) -> Result<usize> {
        match self {
            Self::Crme => Ok(crme::degree("k_A", k_a)? * crme::degree("k_B", k_b)?),
            Self::Uncoded => uncoded::parts(k_a, k_b),
        }
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

/// Sub-result (p, r) of subtask i.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubResult {
    /// i, below n.
    pub subtask: usize,
    /// p, below l_A.
    pub slab: usize,
    /// r, below l_B.
    pub bank: usize,
}

/// The code of one layer: n subtasks over k_A x k_B parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Code {
    kind: CodeKind,
    n: usize,
    k_a: usize,
    k_b: usize,
    l_a: usize,
    l_b: usize,
    recovery_threshold: usize,
    pub(super) structure: Structure,
    /// A_i, n blocks of k_A x l_A, row-major.
    input_blocks: Vec<f64>,
    /// B_i, n blocks of k_B x l_B, row-major.
    filter_blocks: Vec<f64>,
}

impl Code {
    /// The code `kind` of `n` subtasks over `k_a` x `k_b` parts.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] when the family does not exist for these parts (CRME: each 1 or even),
    /// [`Error::Mismatch`] when n is below the recovery threshold.
    pub fn new(kind: CodeKind, k_a: usize, k_b: usize, n: usize) -> Result<Self> {
        let threshold = kind.recovery_threshold(k_a, k_b)?;
        if n < threshold {
            return Err(Error::mismatch(
                "number of subtasks n (--workers)",
                n,
                format!("at least {threshold}, the recovery threshold of {kind} for partitions {k_a},{k_b}"),
                "use more workers or fewer partitions",
            ));
        }
        let (structure, generators) = match kind {
            CodeKind::Crme => crme::generators(k_a, k_b, n),
            CodeKind::Uncoded => uncoded::generators(k_a, k_b),
        };
        let Generators { n, l_a, l_b, input_blocks, filter_blocks } = generators;
        Ok(Self {
            kind,
            n,
            k_a,
            k_b,
            l_a,
            l_b,
            recovery_threshold: threshold,
            structure,
            input_blocks,
            filter_blocks,
        })
    }

    /// The family.
    #[must_use]
    pub fn kind(&self) -> CodeKind {
        self.kind
    }

    /// n, the number of subtasks (of an uncoded layer: its parts).
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// k_A, input partitions.
    #[must_use]
    pub fn k_a(&self) -> usize {
        self.k_a
    }

    /// k_B, filter partitions.
    #[must_use]
    pub fn k_b(&self) -> usize {
        self.k_b
    }

    /// l_A, coded slabs of a subtask.
    #[must_use]
    pub fn l_a(&self) -> usize {
        self.l_a
    }

    /// l_B, coded filter banks of a subtask.
    #[must_use]
    pub fn l_b(&self) -> usize {
        self.l_b
    }

    /// delta: any so many whole subtasks give the exact result.
    #[must_use]
    pub fn recovery_threshold(&self) -> usize {
        self.recovery_threshold
    }

    /// gamma = n - delta: subtasks that may be missing.
    #[must_use]
    pub fn tolerated(&self) -> usize {
        self.n - self.recovery_threshold
    }

    /// A_i, k_A x l_A row-major.
    #[must_use]
    pub fn input_block(&self, subtask: usize) -> &[f64] {
        let size = self.k_a * self.l_a;
        &self.input_blocks[subtask * size..(subtask + 1) * size]
    }

    /// B_i, k_B x l_B row-major.
    #[must_use]
    pub fn filter_block(&self, subtask: usize) -> &[f64] {
        let size = self.k_b * self.l_b;
        &self.filter_blocks[subtask * size..(subtask + 1) * size]
    }

    /// All sub-results of whole subtasks, in the order decoders take them: by subtask as given, then p, then r.
    #[must_use]
    pub fn sub_results_of(&self, subtasks: &[usize]) -> Vec<SubResult> {
        subtasks
            .iter()
            .flat_map(|&subtask| {
                (0..self.l_a)
                    .flat_map(move |slab| (0..self.l_b).map(move |bank| SubResult { subtask, slab, bank }))
            })
            .collect()
    }

    /// Column of the recovery matrix of one sub-result: `A_i[:,p] (x) B_i[:,r]`, k_A k_B values.
    pub fn recovery_column(&self, of: SubResult) -> impl Iterator<Item = f64> + '_ {
        let (a, b) = (self.input_block(of.subtask), self.filter_block(of.subtask));
        (0..self.k_a * self.k_b)
            .map(move |row| a[row / self.k_b * self.l_a + of.slab] * b[row % self.k_b * self.l_b + of.bank])
    }
}
