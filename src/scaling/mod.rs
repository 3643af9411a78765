//! Sizes of inputs and filters: what keeps coding exact for every element, whatever the data are.
//!
//! A coded operand is a sum of parts. Its rounding errors are as large as those of the *largest* part in the sum, and decoding
//! hands them to every part. So parts are brought to one size first, by powers of two, which lose nothing:
//!
//! * every filter is multiplied by a power of two that brings the sum of its magnitudes into `[1, 2)`, once
//!   ([`FilterScales`]);
//! * every slab of every image and group is multiplied by one that brings most of its windows near 1, at each run
//!   ([`InputScan::slab_scales`]); the pass that writes the decoded output divides by both.
//!
//! What is left are elements of uneven size *within* a slab. Decoding a window whose largest element is m from a mixture
//! that holds, at the same place of another slab, a window of M (both scaled) multiplies its rounding error by M / m: its
//! *amplification*. [`ScanPlan::scan`] finds it for every window before anything is computed, from the largest magnitude
//! over the channels at each position. The error is measured windowwise:
//!
//! `|dY[o, r, c]| <= bound * max|X in the window of (r, c), over the channels of o's group| * sum|K_o|`
//!
//! Relevant if you want to know how exact a coded convolution is; not needed to run one.
//!
//! Invariant: scales are powers of two whose product with what they scale neither overflows nor, for the largest element,
//! falls below the normal numbers of the element type.

mod filters;
mod input;
mod power;
mod spread;
mod windows;

pub use filters::FilterScales;
pub use input::{InputScan, ScanOptions, ScanPlan, ScanRoom, ZeroRun};
pub use power::power_of_two;
pub use spread::Spread;
