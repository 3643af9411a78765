//! What a scan is asked and what it finds, and its scratch memory.

use std::sync::{Mutex, PoisonError};

use super::magnitudes::Extent;
use super::spread::Spread;

/// How the slabs of a layer are coded and computed, as far as it affects rounding errors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScanOptions {
    /// Whether coded slabs are sums of slabs.
    pub mixed: bool,
    /// Whether slabs are scaled even if nothing is mixed and their size is ordinary.
    pub always_scaled: bool,
    /// Scaled elements below this lose digits, since they are stored or multiplied as denormal numbers.
    pub floor: f64,
}

/// A run of windows that contain only zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroRun {
    /// Image and group: `image * groups + group`.
    pub group: usize,
    /// First output position, in the plane of a channel.
    pub start: usize,
    /// Number of windows.
    pub count: usize,
}

/// The result of a scan.
#[derive(Clone, Debug, Default)]
pub struct InputScan {
    /// Whether no element is NaN or infinite.
    pub finite: bool,
    /// `[N, g, k_A]`: factors by which the slabs are to be multiplied; empty if none is scaled.
    pub slab_scales: Vec<f64>,
    /// `[N, g, k_A]`: mean square of an element of each scaled slab.
    pub energies: Vec<f64>,
    /// Largest magnitude of an element.
    pub largest: f64,
    /// The smallest maximum of a window that is not all zeros; infinite for an input of zeros.
    pub smallest: f64,
    /// Amplifications of all windows.
    pub spread: Spread,
    /// Windows of zeros whose decoded outputs are not exactly zero.
    pub zeros: Vec<ZeroRun>,
    /// `[N, g]`: the largest amplification in each image and group.
    pub(super) amplifications: Vec<f64>,
}

impl InputScan {
    /// The images and groups with windows whose amplification exceeds `limit`.
    pub fn uneven(&self, limit: f64) -> impl Iterator<Item = usize> + '_ {
        (0..self.amplifications.len()).filter(move |group| self.amplifications[*group] > limit)
    }
}

/// Scratch memory of scans, kept for reuse.
#[derive(Debug, Default)]
pub struct ScanRoom<T>(Mutex<Vec<Room<T>>>);

#[derive(Debug, Default)]
pub(super) struct Room<T> {
    pub(super) plane: Vec<T>,
    pub(super) own: Vec<T>,
    pub(super) most: Vec<T>,
    pub(super) scratch: Vec<T>,
    /// Sums of squares of the bands.
    pub(super) bands: Vec<f64>,
    pub(super) extents: Vec<Extent>,
    /// Bits of sampled windows.
    pub(super) sample: Vec<u64>,
}

impl<T: Default> ScanRoom<T> {
    pub(super) fn take(&self) -> Room<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub(super) fn keep(&self, room: Room<T>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(room);
    }
}

/// The scan of one image and group, beside the scales and energies of its slabs.
#[derive(Default)]
pub(super) struct Found {
    /// Whether no element is NaN or infinite.
    pub(super) finite: bool,
    pub(super) largest: f64,
    pub(super) smallest: f64,
    pub(super) spread: Spread,
    pub(super) zeros: Vec<(usize, usize)>,
}
