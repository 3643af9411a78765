//! Shares work among cores and compiles loops for each instruction set.

#![expect(clippy::inline_always, reason = "it is compiled for each instruction set, which a call would lose")]

use pulp::{Arch, Simd, WithSimd};

use crate::share;

/// Least work of a piece, in elements copied. A thread that has to wake up costs about as much as copying this many.
const LEAST_WORK: usize = 1 << 14;

/// Pieces for each thread: the cores are not equally fast at every moment.
const PIECES_PER_THREAD: usize = 4;

/// Calls `work` with pieces of `output` that consist of whole units of `unit` elements, and with the index of the first
/// unit of each. `cost` is the work for an element, in copies of one.
pub(super) fn share<T: Send>(
    output: &mut [T],
    unit: usize,
    cost: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    let unit = unit.max(1);
    let units = output.len() / unit;
    let worth = output.len().saturating_mul(cost) / LEAST_WORK;
    let pieces = worth.min(units).min(share::threads() * PIECES_PER_THREAD);
    if pieces < 2 {
        return work(0, output);
    }
    let units = units.div_ceil(pieces);
    let pieces = output.chunks_mut(units * unit).enumerate();
    share::share(share::threads(), pieces, |(index, piece)| work(index * units, piece));
}

/// A loop that is compiled once for each instruction set. `run` has to be `inline(always)`.
pub(super) trait Vectorized {
    fn run(self);
}

struct Dispatched<W>(W);

impl<W: Vectorized> WithSimd for Dispatched<W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.0.run();
    }
}

/// Runs a loop with the widest vectors of this processor.
pub(super) fn vectorized(work: impl Vectorized) {
    Arch::new().dispatch(Dispatched(work));
}
