//! Scales of inputs and filters, which keep coding exact for every element, whatever the data.
//!
//! This is advanced API: not needed for ordinary use.
//!
//! A coded operand is a sum of parts. Its rounding error is as large as that of the *largest* part, and decoding
//! passes it on to every part. The parts are therefore first scaled to one size by powers of two, which is exact:
//!
//! * Every filter is multiplied once by a power of two that brings the sum of its magnitudes into `[1, 2)`
//!   ([`FilterScales`]).
//! * In each run, every slab of every image and group is multiplied by a power of two that brings most of its windows near
//!   1 ([`InputScan::slab_scales`]). The pass that writes the decoded output divides by both.
//!
//! Elements of uneven size *within* a slab remain. Decoding a window whose largest element is m from a mixture
//! that has, at the same place of another slab, a window of M (both scaled) multiplies its rounding error by M / m, its
//! *amplification*. [`ScanPlan::scan`] computes it for every window before any subtask runs, from the largest magnitude
//! over the channels at each position. The error is bounded windowwise:
//!
//! `|dY[o, r, c]| <= bound * max|X in the window of (r, c), over the channels of o's group| * sum|K_o|`
//!
//! Relevant if you want to know how exact a coded convolution is; not needed to run one.
//!
//! Invariant: scales are powers of two. Their product with what they scale does not overflow, and for the largest element
//! it does not fall below the normal numbers of the element type.

mod filters;
mod input;
mod magnitudes;
mod power;
mod scan;
mod spread;
mod windows;

pub use filters::FilterScales;
pub use input::ScanPlan;
pub use power::power_of_two;
pub use scan::{InputScan, ScanOptions, ScanRoom, ZeroRun};
pub use spread::Spread;
