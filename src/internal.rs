//! Items for the command line and the harness of the same version; not a stable interface.

/// A standard normal number.
pub fn normal(rng: &mut impl rand::Rng) -> f64 {
    crate::array::normal(rng)
}

/// The model and the digits of `fcdcc demo`; assets/digits/README.md describes them.
pub mod digits {
    /// LeNet-5, trained by scripts/train_lenet5.py on digits other than [`DIGITS`].
    pub const MODEL: &[u8] = include_bytes!("../assets/digits/lenet5.onnx");
    /// A `.npy` file: u8 `[450, 8, 8]`, 0 (paper) to 16 (ink).
    pub const DIGITS: &[u8] = include_bytes!("../assets/digits/digits.npy");
    /// A `.npy` file: u8 `[450]`, the digits themselves.
    pub const LABELS: &[u8] = include_bytes!("../assets/digits/labels.npy");
}
