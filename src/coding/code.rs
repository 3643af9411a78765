//! The code of one layer: generator blocks and recovery threshold.

use super::generators::{Generators, Structure};
use super::kind::CodeKind;
use super::{crme, khatri_rao, polynomial, selection};
use crate::error::{Error, Message, Parameter, Result};
use crate::ids::SubtaskId;

/// Sub-result (p, r) of subtask i.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubResult {
    /// i, below n.
    pub subtask: SubtaskId,
    /// p, below l_A.
    pub slab: usize,
    /// r, below l_B.
    pub bank: usize,
}

/// The code of one layer: n subtasks over k_A x k_B parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Code {
    pub(super) kind: CodeKind,
    pub(super) n: usize,
    pub(super) k_a: usize,
    pub(super) k_b: usize,
    pub(super) l_a: usize,
    pub(super) l_b: usize,
    pub(super) recovery_threshold: usize,
    pub(super) structure: Structure,
    /// A_i, n blocks of k_A x l_A, row-major.
    pub(super) input_blocks: Vec<f64>,
    /// B_i, n blocks of k_B x l_B, row-major.
    pub(super) filter_blocks: Vec<f64>,
}

impl Code {
    /// The code `kind` of `n` subtasks over `k_a` x `k_b` parts.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] when the family does not exist for these parts (CRME: each 1 or even),
    /// [`Error::Mismatch`] when n subtasks cannot determine them.
    pub fn new(kind: CodeKind, k_a: usize, k_b: usize, n: usize) -> Result<Self> {
        let least = kind.degree(k_a, k_b)?;
        if n < least {
            let why = match kind {
                CodeKind::Replication => "the parts",
                _ => "the recovery threshold",
            };
            return Err(Error::mismatch(
                Message::about("number of subtasks n", Parameter::Subtasks),
                n,
                format!("at least {least}, {why} of {kind} for partitions {k_a},{k_b}"),
                "use more workers or fewer partitions",
            ));
        }
        let (structure, generators) = match kind {
            CodeKind::Crme => crme::generators(k_a, k_b, n),
            CodeKind::Chebyshev => polynomial::chebyshev(k_a, k_b, n),
            CodeKind::Vandermonde => polynomial::vandermonde(k_a, k_b, n),
            CodeKind::KhatriRao => khatri_rao::generators(k_a, k_b, n),
            CodeKind::Replication => selection::generators(k_a, k_b, n),
            CodeKind::Uncoded => selection::generators(k_a, k_b, least),
            CodeKind::Custom => {
                let help =
                    "build it from its generator blocks (Code::from_generators), and hand it over as it is";
                return Err(Error::invalid("code", "custom, which has no generators of its own", help));
            }
        };
        let Generators { n, l_a, l_b, input_blocks, filter_blocks } = generators;
        Ok(Self {
            kind,
            n,
            k_a,
            k_b,
            l_a,
            l_b,
            recovery_threshold: kind.recovery_threshold(k_a, k_b, n)?,
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

    /// The number of subtasks [n](crate::glossary#symbols) (of an uncoded layer: the number of its parts).
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// [k_A](crate::glossary#symbols), input partitions.
    #[must_use]
    pub fn k_a(&self) -> usize {
        self.k_a
    }

    /// k_B, filter partitions.
    #[must_use]
    pub fn k_b(&self) -> usize {
        self.k_b
    }

    /// [l_A](crate::glossary#symbols), coded slabs of a subtask.
    #[must_use]
    pub fn l_a(&self) -> usize {
        self.l_a
    }

    /// l_B, coded filter banks of a subtask.
    #[must_use]
    pub fn l_b(&self) -> usize {
        self.l_b
    }

    /// Number of sub-results of a subtask, l_A * l_B.
    #[must_use]
    pub fn sub_results(&self) -> usize {
        self.l_a * self.l_b
    }

    /// The index of a sub-result in its subtask, slab * l_B + bank.
    #[must_use]
    pub fn index_of(&self, of: SubResult) -> usize {
        of.slab * self.l_b + of.bank
    }

    /// The sub-result of this index in its subtask.
    #[must_use]
    pub fn sub_result(&self, subtask: SubtaskId, index: usize) -> SubResult {
        SubResult { subtask, slab: index / self.l_b, bank: index % self.l_b }
    }

    /// The recovery threshold [delta](crate::glossary#symbols): any delta whole subtasks give the exact result. With replication certain smaller
    /// sets do too ([`determines`](Self::determines)).
    #[must_use]
    pub fn recovery_threshold(&self) -> usize {
        self.recovery_threshold
    }

    /// [gamma](crate::glossary#symbols) = n - delta: the number of subtasks that may be missing.
    #[must_use]
    pub fn tolerated(&self) -> usize {
        self.n - self.recovery_threshold
    }

    /// Whether the whole subtasks for which `holds` is true determine the parts. That takes recovery-threshold many of
    /// them or, where each computes one part, one copy of every part.
    #[must_use]
    pub fn determines(&self, holds: &dyn Fn(SubtaskId) -> bool) -> bool {
        let parts = self.k_a * self.k_b;
        match self.structure {
            Structure::Selection => {
                (0..parts).all(|part| (part..self.n).step_by(parts).map(SubtaskId).any(holds))
            }
            Structure::Rotation { .. } | Structure::Dense => {
                (0..self.n).filter(|i| holds(SubtaskId(*i))).nth(self.recovery_threshold - 1).is_some()
            }
        }
    }

    /// The one part that a subtask computes, as a row-major index in k_A x k_B, where results are copies of parts: with
    /// replication, without a code, and with polynomial and random codes of a single part (copies up to a factor).
    #[must_use]
    pub fn part_of(&self, subtask: SubtaskId) -> Option<usize> {
        let parts = self.k_a * self.k_b;
        match self.structure {
            Structure::Selection => Some(subtask.0 % parts),
            Structure::Dense if parts == 1 => Some(0),
            Structure::Rotation { .. } | Structure::Dense => None,
        }
    }

    /// Whether all subtasks have the same slabs and differ only in their filters, as with k_A = 1.
    #[must_use]
    pub fn shares_slabs(&self) -> bool {
        (1..self.n).all(|i| self.input_block(SubtaskId(i)) == self.input_block(SubtaskId(0)))
    }

    /// A_i, k_A x l_A row-major.
    #[must_use]
    pub fn input_block(&self, subtask: SubtaskId) -> &[f64] {
        let size = self.k_a * self.l_a;
        &self.input_blocks[subtask.0 * size..(subtask.0 + 1) * size]
    }

    /// B_i, k_B x l_B row-major.
    #[must_use]
    pub fn filter_block(&self, subtask: SubtaskId) -> &[f64] {
        let size = self.k_b * self.l_b;
        &self.filter_blocks[subtask.0 * size..(subtask.0 + 1) * size]
    }

    /// All sub-results of whole subtasks, in the order decoders take them: by subtask as given, then p, then r.
    #[must_use]
    pub fn sub_results_of(&self, subtasks: &[usize]) -> Vec<SubResult> {
        let of = |&i: &usize| (0..self.sub_results()).map(move |index| self.sub_result(SubtaskId(i), index));
        subtasks.iter().flat_map(of).collect()
    }

    /// Column of the recovery matrix of one sub-result: `A_i[:,p] (x) B_i[:,r]`, k_A k_B values.
    pub fn recovery_column(&self, of: SubResult) -> impl Iterator<Item = f64> + '_ {
        let (a, b) = (self.input_block(of.subtask), self.filter_block(of.subtask));
        (0..self.k_a * self.k_b)
            .map(move |row| a[row / self.k_b * self.l_a + of.slab] * b[row % self.k_b * self.l_b + of.bank])
    }
}
