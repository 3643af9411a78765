//! The operands of [`microkernel`](super::microkernel): packed coefficients, and panels of converted source rows.
//!
//! Relevant if you want to change the inner loop of encoding or decoding.
//!
//! Invariant: coefficients that pad the last block are zeros; the rows of a panel have at least [`LANES`] elements.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use crate::array::Element;

/// Combinations that are summed at once.
pub(super) const ROWS: usize = 4;
/// Vectors of columns that are summed at once, if rows are long enough.
pub(super) const VECTORS: usize = 4;

/// The maximum number of lanes of a vector, and the minimum length of a row.
pub(super) const LANES: usize = 16;
/// Size of a panel in bytes: half of the innermost cache, which leaves room for the streamed data.
const PANEL_BYTES: usize = 24 << 10;

/// Coefficients of combinations in blocks of [`ROWS`]: `[block][source][row of the block]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Packed<A> {
    rows: usize,
    sources: usize,
    values: Vec<A>,
}

impl<A: Element> Packed<A> {
    /// Packs `at(row, source)` for `rows` combinations of `sources` rows.
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

    /// The same coefficients in another type.
    pub(super) fn convert<B: Element>(&self) -> Packed<B> {
        let values = self.values.iter().map(|v| B::from_f64(v.to_f64())).collect();
        Packed { rows: self.rows, sources: self.sources, values }
    }

    /// The number of combinations.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The number of source rows of each combination.
    pub(super) fn sources(&self) -> usize {
        self.sources
    }

    /// The coefficients, one slice for each [`ROWS`] combinations.
    pub(super) fn blocks(&self) -> std::slice::ChunksExact<'_, A> {
        self.values.chunks_exact((ROWS * self.sources).max(1))
    }
}

/// Source rows of equal length: at least [`LANES`] elements and at least as many as the targets need.
pub(super) trait Sources<A> {
    /// Row `row`.
    fn row(&self, row: usize) -> &[A];
}

/// A run of columns of each source row, converted to the arithmetic type.
#[derive(Debug)]
pub(super) struct Panel<A> {
    /// Stride between rows, in elements, and the length in use.
    pitch: usize,
    columns: usize,
    values: Vec<A>,
}

impl<A: Element> Panel<A> {
    /// Allocates `rows` source rows of at most `columns` columns.
    pub(super) fn new(rows: usize, columns: usize) -> Self {
        let fits = PANEL_BYTES / size_of::<A>() / rows.max(1) / LANES * LANES;
        let pitch = fits.max(LANES * VECTORS).min(columns.next_multiple_of(LANES)).max(LANES);
        Self { pitch, columns: LANES, values: vec![A::default(); rows * pitch] }
    }

    /// The maximum number of columns.
    pub(super) fn room(&self) -> usize {
        self.pitch
    }

    /// Sets the length of rows to `columns`, at most [`room`](Self::room).
    pub(super) fn set_columns(&mut self, columns: usize) {
        self.columns = columns.clamp(LANES, self.pitch);
    }

    /// The first `columns` elements of a row, for writing.
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
/// z10 - z01. Layout: `[block][quadruple][which of these four][row of the block]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PackedPairs<A> {
    quadruples: usize,
    values: Vec<A>,
}

impl<A: Element> PackedPairs<A> {
    /// Packs the four coefficients that `at(row, quadruple)` returns.
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

    /// The same coefficients in another type.
    pub(super) fn convert<B: Element>(&self) -> PackedPairs<B> {
        let values = self.values.iter().map(|v| B::from_f64(v.to_f64())).collect();
        PackedPairs { quadruples: self.quadruples, values }
    }

    /// The coefficients, one slice for each [`ROWS`] pairs.
    pub(super) fn blocks(&self) -> std::slice::ChunksExact<'_, A> {
        self.values.chunks_exact((4 * ROWS * self.quadruples).max(1))
    }
}
