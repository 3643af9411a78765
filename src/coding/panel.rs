//! What [`microkernel`](super::microkernel) computes with: packed coefficients, and panels of converted source rows.
//!
//! Who only encodes and decodes can skip this.
//!
//! Invariant: coefficients that fill up the last block are zeros; the rows of a panel are at least [`LANES`] long.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use crate::array::Element;

/// Combinations that are summed at once.
pub(super) const ROWS: usize = 4;
/// Vectors of each that are summed at once, if rows are long enough.
pub(super) const VECTORS: usize = 4;

/// The most lanes that a vector has: rows are at least so long.
pub(super) const LANES: usize = 16;
/// Bytes of a panel: half of the innermost cache, the rest is for what is read and written beside it.
const PANEL_BYTES: usize = 24 << 10;

/// Coefficients of combinations, [`ROWS`] together: `[block][source][row of the block]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Packed<A> {
    rows: usize,
    sources: usize,
    values: Vec<A>,
}

impl<A: Element> Packed<A> {
    /// `at(row, source)` for `rows` combinations of `sources` rows.
    pub(super) fn new(rows: usize, sources: usize, at: impl Fn(usize, usize) -> f64) -> Self {
        let mut values = Vec::with_capacity(rows.next_multiple_of(ROWS) * sources);
        for block in (0..rows).step_by(ROWS) {
            for source in 0..sources {
                let of = |row| if row < rows { at(row, source) } else { 0.0 };
                values.extend((block..block + ROWS).map(|row| A::from_f64(of(row))));
            }
        }
        Self { rows, sources, values }
    }

    /// The same in another type.
    pub(super) fn convert<B: Element>(&self) -> Packed<B> {
        let values = self.values.iter().map(|v| B::from_f64(v.to_f64())).collect();
        Packed { rows: self.rows, sources: self.sources, values }
    }

    /// Combinations.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Source rows of each combination.
    pub(super) fn sources(&self) -> usize {
        self.sources
    }

    /// The coefficients of [`ROWS`] combinations each.
    pub(super) fn blocks(&self) -> std::slice::ChunksExact<'_, A> {
        self.values.chunks_exact((ROWS * self.sources).max(1))
    }
}

/// Source rows, all as long: at least [`LANES`] and at least what targets want.
pub(super) trait Sources<A> {
    /// Row `row`.
    fn row(&self, row: usize) -> &[A];
}

/// A run of columns of each source row, converted.
#[derive(Debug)]
pub(super) struct Panel<A> {
    /// Elements from row to row, and those in use.
    pitch: usize,
    columns: usize,
    values: Vec<A>,
}

impl<A: Element> Panel<A> {
    /// Room for `rows` source rows, of at most `columns` columns.
    pub(super) fn new(rows: usize, columns: usize) -> Self {
        let fits = PANEL_BYTES / size_of::<A>() / rows.max(1) / LANES * LANES;
        let pitch = fits.max(LANES * VECTORS).min(columns.next_multiple_of(LANES)).max(LANES);
        Self { pitch, columns: LANES, values: vec![A::default(); rows * pitch] }
    }

    /// The most columns that it has room for.
    pub(super) fn room(&self) -> usize {
        self.pitch
    }

    /// From now on rows are `columns` long, at most [`room`](Self::room).
    pub(super) fn set_columns(&mut self, columns: usize) {
        self.columns = columns.clamp(LANES, self.pitch);
    }

    /// The first `columns` elements of a row, to be written.
    #[inline(always)]
    pub(super) fn row_mut(&mut self, row: usize, columns: usize) -> &mut [A] {
        &mut self.values[row * self.pitch..][..columns]
    }
}

impl<A> Sources<A> for Panel<A> {
    #[inline(always)]
    fn row(&self, row: usize) -> &[A] {
        &self.values[row * self.pitch..][..self.columns]
    }
}

/// Coefficients of pairs of combinations of quadruples of source rows: u of z00 - z11 and z01 + z10, v of z00 + z11 and
/// z10 - z01. `[block][quadruple][which of these four][row of the block]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PackedPairs<A> {
    quadruples: usize,
    values: Vec<A>,
}

impl<A: Element> PackedPairs<A> {
    /// `at(row, quadruple)` gives the four coefficients.
    pub(super) fn new(rows: usize, quadruples: usize, at: impl Fn(usize, usize) -> [f64; 4]) -> Self {
        let mut values = Vec::with_capacity(4 * rows.next_multiple_of(ROWS) * quadruples);
        for block in (0..rows).step_by(ROWS) {
            for quadruple in 0..quadruples {
                let of = |row| if row < rows { at(row, quadruple) } else { [0.0; 4] };
                let all: [[f64; 4]; ROWS] = std::array::from_fn(|row| of(block + row));
                values.extend((0..4).flat_map(|which| all.map(|of| A::from_f64(of[which]))));
            }
        }
        Self { quadruples, values }
    }

    /// The same in another type.
    pub(super) fn convert<B: Element>(&self) -> PackedPairs<B> {
        let values = self.values.iter().map(|v| B::from_f64(v.to_f64())).collect();
        PackedPairs { quadruples: self.quadruples, values }
    }

    /// The coefficients of [`ROWS`] pairs each.
    pub(super) fn blocks(&self) -> std::slice::ChunksExact<'_, A> {
        self.values.chunks_exact((4 * ROWS * self.quadruples).max(1))
    }
}
