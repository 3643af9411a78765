//! Divides the work of encoding and decoding among threads.
//!
//! Relevant if you want to change how encoding or decoding uses threads.
//!
//! Invariant: units cover every plane once; only a unit of one plane is split.

use crate::share::{share, threads};

/// Units of work for each thread; small units keep the wait for a late thread short.
const UNITS: usize = 8;

/// A unit is several planes or, if planes are few, some columns of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Units {
    /// Planes of a unit.
    pub(super) together: usize,
    /// Columns of each of them.
    pub(super) columns: usize,
    /// Whether all work is done on the calling thread, because waking others would take as long.
    alone: bool,
}

impl Units {
    /// Splits `planes` planes of `plane` columns into units of at least `least` columns. Set `alone` for small work.
    pub(super) fn new(planes: usize, plane: usize, least: usize, alone: bool) -> Self {
        let wanted = if alone { 1 } else { UNITS * threads() };
        if planes >= wanted {
            return Self { together: planes.div_ceil(wanted), columns: plane, alone };
        }
        let columns = plane.div_ceil(wanted.div_ceil(planes)).max(least).min(plane);
        Self { together: 1, columns, alone }
    }

    /// Calls `work` with the number of each unit and its `each` of `items`.
    pub(super) fn for_each<I: Send>(
        self,
        items: &mut [I],
        each: usize,
        work: impl Fn((usize, &mut [I])) + Send + Sync,
    ) {
        let units = items.chunks_mut(each.max(1)).enumerate();
        share(if self.alone { 1 } else { threads() }, units, work);
    }

    /// As [`Self::for_each`]; returns the sum of the results of `work`.
    pub(super) fn sum<I: Send>(
        self,
        items: &mut [I],
        each: usize,
        work: impl Fn((usize, &mut [I])) -> f64 + Send + Sync,
    ) -> f64 {
        if self.alone {
            items.chunks_mut(each.max(1)).enumerate().map(work).sum()
        } else {
            // Added up in order, so that the bits do not depend on the number of threads.
            let mut sums = vec![0.0; items.len().div_ceil(each.max(1))];
            let units = items.chunks_mut(each.max(1)).enumerate().zip(&mut sums);
            share(threads(), units, |(unit, sum)| *sum = work(unit));
            sums.iter().sum()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_many_enough_for_the_threads_and_cut_only_single_planes() {
        for planes in [1, 2, 5, 64, 1000] {
            for plane in [1, 700, 10_000] {
                let many = Units::new(planes, plane, 512, false);
                assert!(many.together == 1 || many.columns == plane);
                assert!(many.columns >= 512.min(plane) && many.columns <= plane);
                let units = planes.div_ceil(many.together) * plane.div_ceil(many.columns);
                let wanted = UNITS * threads();
                // As many as wanted, less the effect of rounding and of the minimum width.
                assert!(2 * units >= wanted.min(planes * plane.div_ceil(512)) || units >= planes, "{many:?}");
                let alone = Units::new(planes, plane, 512, true);
                assert_eq!((alone.together, alone.columns), (planes, plane));
            }
        }
    }

    #[test]
    fn every_item_is_worked_on_once() {
        for alone in [false, true] {
            let mut items = vec![0; 23];
            Units::new(23, 4, 1, alone).for_each(&mut items, 3, |(unit, items)| {
                for item in items {
                    *item += unit + 1;
                }
            });
            assert_eq!(items, (0..23).map(|i| i / 3 + 1).collect::<Vec<_>>());
            let units = Units::new(23, 4, 1, alone);
            assert_eq!(units.sum(&mut items, 3, |(unit, items)| (unit * items.len()) as f64), 77.0);
        }
    }
}
