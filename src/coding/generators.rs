//! What a code family builds: generator blocks, and the structure that decides how to decode.

/// How the columns of the recovery matrix are built, which decides how to decode.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Structure {
    /// Rotations by multiples of this angle a subtask; the complex fast path applies.
    Rotation {
        /// theta = 2 pi / q.
        theta: f64,
    },
    /// Every sub-result is one of the parts: decoding copies.
    Selection,
}

/// What a family builds.
pub(super) struct Generators {
    pub(super) n: usize,
    pub(super) l_a: usize,
    pub(super) l_b: usize,
    pub(super) input_blocks: Vec<f64>,
    pub(super) filter_blocks: Vec<f64>,
}
