//! Condition numbers of a code over its responder sets, and codes of different families that can be compared.
//!
//! Invariant: the results depend on code, sampling and seed alone, not on the number of threads.

use rayon::prelude::*;

use super::responder_sets::{MissingSets, Sampling, responders};
use super::schema::Conditions;
use super::stats::quantile;
use fcdcc::coding::{Code, CodeKind};
use fcdcc::error::{Error, Result};

/// Condition numbers over responder sets of one size, with the sets of the median and of the worst.
#[derive(Clone, Debug, PartialEq)]
pub struct Survey {
    /// Quantiles over all sets, or over the random sets; the worst includes the structured sets.
    pub conditions: Conditions,
    /// Responders of the median condition number (the lower one of two).
    pub median: Vec<usize>,
    /// Responders of the worst condition number.
    pub worst: Vec<usize>,
}

/// Condition numbers over responder sets of exactly delta subtasks.
#[must_use]
pub fn conditions(code: &Code, sampling: &Sampling) -> Conditions {
    survey(code, code.recovery_threshold(), sampling).conditions
}

/// Condition numbers over sets of `answered` subtasks. More than delta subtasks are decoded by least squares.
///
/// # Panics
/// If `answered` exceeds n, or if `sampling` asks neither for all sets nor for samples.
#[must_use]
pub fn survey(code: &Code, answered: usize, sampling: &Sampling) -> Survey {
    let n = code.n();
    let sets = MissingSets::new(n, n - answered, &Sampling { samples: sampling.samples.max(1), ..*sampling });
    let looked: Vec<&Vec<usize>> = sets.typical.iter().chain(&sets.structured).collect();
    let found: Vec<f64> = looked.par_iter().map(|missing| code.condition(&responders(n, missing))).collect();
    let by_condition = |a: &usize, b: &usize| found[*a].total_cmp(&found[*b]).then(a.cmp(b));
    let mut order: Vec<usize> = (0..sets.typical.len()).collect();
    order.sort_unstable_by(by_condition);
    let median = order[(order.len() - 1) / 2];
    let worst = (0..found.len()).max_by(by_condition).expect("there is a set");
    let sorted: Vec<f64> = order.iter().map(|at| found[*at]).collect();
    Survey {
        conditions: Conditions {
            code: code.kind().name().to_owned(),
            n,
            recovery_threshold: code.recovery_threshold(),
            k_a: code.k_a(),
            k_b: code.k_b(),
            sets: sets.len(),
            exhaustive: sets.exhaustive,
            median: quantile(&sorted, 0.5),
            p90: quantile(&sorted, 0.9),
            p99: quantile(&sorted, 0.99),
            worst: found[worst],
        },
        median: responders(n, looked[median]),
        worst: responders(n, looked[worst]),
    }
}

/// The greatest numbers of partitions that a layer allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Partitions of the input: rows of the output.
    pub rows: usize,
    /// Partitions of the filters: output channels of a group.
    pub channels: usize,
}

impl Room {
    /// No limit, for codes without a layer.
    pub const ANY: Self = Self { rows: usize::MAX, channels: usize::MAX };
}

/// The code of a family that survives the loss of any n - delta of n subtasks, with both sides split as evenly as
/// possible.
///
/// A subtask is 1 / delta of the layer for every family but replication, where it is 1 / floor(n / (n - delta + 1)).
///
/// # Errors
/// [`Error::InvalidParameter`] if there is no such code: delta is 0 or above n, an uncoded layer is to miss subtasks, or
/// `room` does not allow the partitions.
pub fn comparable(kind: CodeKind, n: usize, delta: usize, room: Room) -> Result<Code> {
    if delta == 0 || delta > n {
        return Err(Error::invalid("delta", delta, format!("use 1 to n = {n}")));
    }
    let degree = kind.parts(n, n - delta);
    if kind == CodeKind::Uncoded && delta < n {
        let help = format!("without a code every subtask is needed: delta = n = {n}");
        return Err(Error::invalid("delta", delta, help));
    }
    let pairs = (1..=degree).filter(|a| degree.is_multiple_of(*a)).map(|a| (a, degree / a));
    let mut splits: Vec<(usize, usize)> = match kind {
        CodeKind::Crme => {
            pairs.map(|(a, b)| (2 * a, 2 * b)).chain([(1, 2 * degree), (2 * degree, 1)]).collect()
        }
        _ => pairs.collect(),
    };
    splits.retain(|(a, b)| *a <= room.rows && *b <= room.channels && kind.allows(*a) && kind.allows(*b));
    // Minimizes the greater side; of two mirror images it takes the one with fewer slabs.
    let Some((k_a, k_b)) = splits.into_iter().min_by_key(|(a, b)| (*a.max(b), a.abs_diff(*b), *a)) else {
        let (rows, channels) = (room.rows, room.channels);
        let help =
            format!("{degree} parts of {kind} are too many for {rows} output rows and {channels} channels");
        return Err(Error::invalid("delta", delta, help));
    };
    Code::new(kind, k_a, k_b, n)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: Sampling = Sampling { limit: 20_000, samples: 2000, seed: 0 };

    fn crme(k_a: usize, k_b: usize, n: usize) -> Code {
        Code::new(CodeKind::Crme, k_a, k_b, n).unwrap()
    }

    /// Equal to three significant digits.
    fn same(got: f64, want: f64) -> bool {
        (got / want - 1.0).abs() < 5e-4
    }

    #[test]
    fn crme_has_the_condition_numbers_of_an_independent_implementation() {
        for (k_a, k_b, n, delta, worst, median) in [
            (4, 4, 5, 4, 2.236, 2.236),
            (4, 4, 6, 4, 8.935, 4.192),
            (4, 8, 10, 8, 29.21, 6.616),
            (8, 8, 18, 16, 117.8, 8.655),
            (8, 8, 20, 16, 1551.0, 18.79),
            (2, 32, 20, 16, 1551.0, 18.79),
        ] {
            let found = conditions(&crme(k_a, k_b, n), &DEFAULT);
            assert!(found.exhaustive && found.recovery_threshold == delta, "{found:?}");
            assert!(same(found.worst, worst) && same(found.median, median), "{found:?}");
            assert!(found.median <= found.p90 && found.p90 <= found.p99 && found.p99 <= found.worst);
        }
        let found = conditions(&crme(8, 8, 24), &DEFAULT);
        assert!(!found.exhaustive && found.sets > 1900, "{found:?}");
        assert!(found.worst >= 1e4 && (found.median / 52.0 - 1.0).abs() < 0.15, "{found:?}");
    }

    #[test]
    fn hosts_should_hold_subtasks_that_are_far_apart() {
        let code = crme(8, 8, 20);
        let lost = |missing: &[usize]| code.condition(&responders(20, missing));
        for host in 0..5 {
            let adjacent = lost(&[4 * host, 4 * host + 1, 4 * host + 2, 4 * host + 3]);
            let interleaved = lost(&[host, host + 5, host + 10, host + 15]);
            assert!(adjacent < 1551.5 && (host != 0 || same(adjacent, 1551.0)), "{host}: {adjacent}");
            assert!(interleaved < 7.5 && (host != 0 || interleaved > 7.3), "{host}: {interleaved}");
        }
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        for kind in [CodeKind::Crme, CodeKind::KhatriRao] {
            let code = comparable(kind, 24, 20, Room::ANY).unwrap();
            let on = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| survey(&code, 20, &Sampling { limit: 10, samples: 200, seed: 9 }))
            };
            let (one, three) = (on(1), on(3));
            assert_eq!(one, three);
            assert!(code.condition(&one.worst) == one.conditions.worst && one.worst.len() == 20);
            assert!((code.condition(&one.median) / one.conditions.median - 1.0).abs() < 0.1);
        }
    }

    #[test]
    fn a_sample_never_sees_worse_than_there_is() {
        for kind in CodeKind::ALL.into_iter().filter(|kind| *kind != CodeKind::Uncoded) {
            let code = comparable(kind, 18, 15, Room::ANY).unwrap();
            let all = conditions(&code, &DEFAULT);
            let some = conditions(&code, &Sampling { limit: 0, samples: 100, seed: 1 });
            assert!(all.exhaustive && !some.exhaustive && some.sets < all.sets);
            assert!(some.worst <= all.worst, "{kind}: {} and {}", some.worst, all.worst);
            if kind == CodeKind::Crme {
                // The structured sets include the worst case.
                assert!(same(some.worst, all.worst));
            }
            if kind == CodeKind::Replication {
                assert_eq!((all.worst, all.median), (1.0, 1.0));
            }
        }
    }

    #[test]
    fn families_are_compared_at_one_recovery_threshold() {
        for (n, delta, crme, others) in [
            (20, 16, (8, 8), (4, 4)),
            (31, 28, (8, 14), (4, 7)),
            (18, 16, (8, 8), (4, 4)),
            (40, 32, (8, 16), (4, 8)),
            (6, 5, (2, 10), (1, 5)),
            (5, 1, (2, 2), (1, 1)),
        ] {
            for kind in [CodeKind::Crme, CodeKind::Chebyshev, CodeKind::Vandermonde, CodeKind::KhatriRao] {
                let code = comparable(kind, n, delta, Room::ANY).unwrap();
                let split = if kind == CodeKind::Crme { crme } else { others };
                assert_eq!((code.k_a(), code.k_b(), code.recovery_threshold()), (split.0, split.1, delta));
            }
            let copies = comparable(CodeKind::Replication, n, delta, Room::ANY).unwrap();
            assert!(copies.recovery_threshold() <= delta);
        }
        let narrow = comparable(CodeKind::Crme, 20, 16, Room { rows: 3, channels: 99 }).unwrap();
        assert_eq!((narrow.k_a(), narrow.k_b()), (2, 32));
        let one_row = comparable(CodeKind::Crme, 20, 16, Room { rows: 1, channels: 99 }).unwrap();
        assert_eq!((one_row.k_a(), one_row.k_b(), one_row.recovery_threshold()), (1, 32, 16));
    }

    #[test]
    fn what_cannot_be_built_is_refused_with_both_numbers() {
        let refused = |kind, n, delta, room| comparable(kind, n, delta, room).unwrap_err().to_string();
        assert!(refused(CodeKind::Crme, 4, 5, Room::ANY).contains("delta is 5: use 1 to n = 4"));
        assert!(refused(CodeKind::Crme, 4, 0, Room::ANY).contains("delta is 0"));
        assert!(
            refused(CodeKind::Uncoded, 6, 4, Room::ANY).contains("every subtask is needed: delta = n = 6")
        );
        let small = Room { rows: 1, channels: 6 };
        assert!(refused(CodeKind::Chebyshev, 20, 16, small).contains("1 output rows and 6 channels"));
        assert!(comparable(CodeKind::Uncoded, 6, 6, Room::ANY).is_ok());
    }
}
