//! Checks results against each other: surplus sub-results serve as checksums of the others.
//!
//! Relevant if you want to verify the results of workers. More sub-results than parts are linearly dependent: with G
//! their recovery matrix and N an orthonormal basis of its null space, `N^T Z = 0` up to rounding, for any parts. A
//! larger residual proves that a result is wrong. The relations are tested on [`Sketch`]es, so that each result is read
//! once.
//!
//! Invariant: a [`ParityCheck`] depends on code and sub-results alone, never on values. It has one row for each input,
//! and its columns are orthonormal.

use super::code::{Code, SubResult};
use super::parity::{Relations, square};
use super::sketch::Sketch;
use crate::error::{Error, Result};
use crate::ids::SubtaskId;

/// Relative error (L2, of one group's results against results of average size) that an audit must be able to detect.
/// Wait for more results while [`ParityCheck::floor`] is above it.
pub const TARGET: f64 = 1e-3;

/// The check of one ordered set of sub-results.
#[derive(Clone, Debug)]
pub struct ParityCheck {
    inputs: Vec<SubResult>,
    checks: Checks,
}

/// The sets of results that are compared with each other: all results at once or, where results are copies, the copies
/// of each part separately, so that a copy of a small part is measured by its own size.
#[derive(Clone, Debug)]
struct Checks {
    each: Vec<Relations>,
    /// Whether some results take part in no relation.
    unchecked: bool,
}

impl Checks {
    fn new(code: &Code, inputs: &[SubResult]) -> Self {
        if code.part_of(SubtaskId(0)).is_none() {
            return Self { each: vec![Relations::new(code, inputs)], unchecked: false };
        }
        let (mut each, mut unchecked) = (Vec::new(), false);
        for part in 0..code.k_a() * code.k_b() {
            let copies: Vec<usize> =
                (0..inputs.len()).filter(|m| code.part_of(inputs[*m].subtask) == Some(part)).collect();
            if copies.len() > 1 {
                each.push(Relations::of_copies(code, inputs, copies, part));
            } else {
                unchecked |= !copies.is_empty();
            }
        }
        Self { each, unchecked }
    }

    fn without(&self, out: impl Fn(usize) -> bool) -> Option<Self> {
        let rest: Vec<Relations> = self.each.iter().filter_map(|of| of.without(&out)).collect();
        let unchecked = self.unchecked || rest.len() < self.each.len();
        (!rest.is_empty()).then_some(Self { each: rest, unchecked })
    }

    fn floor(&self, groups: &[usize], energy: impl Fn(usize) -> f64, noise: f64) -> f64 {
        let least = if self.unchecked { f64::INFINITY } else { 0.0 };
        self.each.iter().map(|of| of.floor(groups, &energy, noise)).fold(least, f64::max)
    }

    fn residual(&self, sketches: &[&Sketch], noise: f64) -> f64 {
        self.each.iter().map(|of| of.residual(sketches, noise)).fold(0.0, f64::max)
    }
}

impl ParityCheck {
    /// The check of `inputs`, which may hold a sub-result more than once (computed by several workers).
    ///
    /// Computed by QR in O(M^2 k) for M inputs and k = k_A k_B parts; cache it
    /// ([`ParityCheckCache`](super::ParityCheckCache)).
    ///
    /// # Errors
    /// [`Error::Mismatch`] unless there are more inputs than parts, without which there is no redundancy.
    pub fn new(code: &Code, inputs: &[SubResult]) -> Result<Self> {
        let parts = code.k_a() * code.k_b();
        if inputs.len() <= parts {
            return Err(Error::mismatch(
                "number of sub-results to audit",
                inputs.len(),
                format!("more than k_A k_B = {parts}"),
                "wait for more results",
            ));
        }
        Ok(Self { inputs: inputs.to_vec(), checks: Checks::new(code, inputs) })
    }

    /// The sub-results that this checks. Sketches and groups are given in the same order.
    #[must_use]
    pub fn inputs(&self) -> &[SubResult] {
        &self.inputs
    }

    /// The detection limit: the smallest relative error that is certain to be detected, whichever group made it.
    /// Infinite, or larger than any bound, if a result takes part in no relation.
    ///
    /// `groups[m]` is the worker that computed input m. The error is the L2 norm of the errors of all results of a
    /// group, relative to that of as many results of average size; all results are taken to be of one size. The errors
    /// of a group's sub-results are taken to be independent of each other or confined to some of them: the check
    /// detects faults, not forgery. `noise` as in [`Self::residual`].
    ///
    /// # Panics
    /// When there are not as many groups as inputs.
    #[must_use]
    pub fn floor(&self, groups: &[usize], noise: f64) -> f64 {
        assert_eq!(groups.len(), self.inputs.len(), "every input has a group");
        self.checks.floor(groups, |_| 1.0, noise)
    }

    /// Largest violation of a linear relation among the results, relative to what rounding explains. Above 1 at least
    /// one result is wrong; infinite if a result is not finite.
    ///
    /// `noise` is an upper bound of the relative rms rounding error of one sub-result: `error_bound(1.0, T::EPSILON,
    /// reduction)` of [`error_bound`](super::error_bound). With e_m the rounding errors and N_m the rows of N,
    /// independent errors leave a residual of mean energy `sum ||N_m||^2 ||e_m||^2`; the threshold is 4 times (in norm)
    /// the value for `||e_m|| = noise ||Z_m||`. Where sums cancel to far less than their terms (filters that add up to
    /// zero on a constant input), rounding is relatively larger; scale `noise` up accordingly to avoid false alarms.
    ///
    /// # Panics
    /// When there are not as many sketches as inputs.
    #[must_use]
    pub fn residual(&self, sketches: &[&Sketch], noise: f64) -> f64 {
        assert_eq!(sketches.len(), self.inputs.len(), "every input has a sketch");
        self.checks.residual(sketches, noise)
    }

    /// Whether rounding explains the [`residual`](Self::residual).
    #[must_use]
    pub fn is_consistent(&self, sketches: &[&Sketch], noise: f64) -> bool {
        self.residual(sketches, noise) <= 1.0
    }
}

/// The smallest set of groups, of at most `most` members, without which the rest is consistent. Ascending; empty if all
/// results are consistent.
///
/// `groups[m]` is the worker that computed input m. None if no set explains the errors, if several sets of the same
/// size do, or if the rest is not redundant enough to verify itself, which takes more than k_A k_B sub-results and a
/// floor of at most [`TARGET`]. Locating f faulty workers takes delta + f + 1 whole subtasks at well-placed roots.
///
/// Tries all sets, so `most` above 2 suits small pools only.
///
/// # Panics
/// When there are not as many groups and sketches as inputs.
#[must_use]
pub fn locate_errors(
    code: &Code,
    inputs: &[SubResult],
    groups: &[usize],
    sketches: &[&Sketch],
    noise: f64,
    most: usize,
) -> Option<Vec<usize>> {
    assert!(
        groups.len() == inputs.len() && sketches.len() == inputs.len(),
        "every input has a group and a sketch"
    );
    let all = ParityCheck::new(code, inputs).ok()?.checks;
    let mut names = groups.to_vec();
    names.sort_unstable();
    names.dedup();
    for size in 0..=most.min(names.len()) {
        let mut found = None;
        let mut chosen: Vec<usize> = (0..size).collect();
        loop {
            let suspects: Vec<usize> = chosen.iter().map(|&at| names[at]).collect();
            let rest = all.without(|m| suspects.contains(&groups[m]));
            let consistent = rest.filter(|rest| rest.residual(sketches, noise) <= 1.0);
            if let Some(rest) = consistent
                && found.replace((suspects, rest)).is_some()
            {
                return None;
            }
            if !advance(&mut chosen, names.len()) {
                break;
            }
        }
        if let Some((suspects, rest)) = found {
            let floor = rest.floor(groups, |m| square(&sketches[m].0), noise);
            return (floor <= TARGET).then_some(suspects);
        }
    }
    None
}

/// The next combination of indices below `of`, in lexicographic order.
fn advance(chosen: &mut [usize], of: usize) -> bool {
    let size = chosen.len();
    let Some(at) = (0..size).rev().find(|&at| chosen[at] < of - size + at) else {
        return false;
    };
    chosen[at] += 1;
    for next in at + 1..size {
        chosen[next] = chosen[next - 1] + 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use rand::seq::IndexedRandom;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::array::Element;
    use crate::coding::synthetic::{Fault, Synthetic};
    use crate::coding::{CodeKind, Sketcher, encode_filters, encode_input, error_bound};
    use crate::conv::{ConvParams, ConvShape, reference};
    use crate::partition::{FilterPartition, InputPartition};

    const CODES: [(usize, usize, usize); 6] =
        [(4, 4, 6), (4, 8, 10), (8, 8, 20), (1, 8, 6), (8, 1, 6), (2, 2, 4)];
    const REDUCTIONS: [usize; 4] = [27, 147, 576, 4608];

    fn crme((k_a, k_b, n): (usize, usize, usize)) -> Code {
        Code::new(CodeKind::Crme, k_a, k_b, n).unwrap()
    }

    #[test]
    fn clean_results_never_alarm() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let (mut runs, mut largest) = (0, 0.0_f64);
        while runs < 10_000 {
            let code = crme(CODES[runs / 20 % CODES.len()]);
            let elems = *[37, 64, 100, 128].choose(&mut random).unwrap();
            let responders = random.random_range(code.recovery_threshold() + 1..=code.n());
            let layer = Synthetic::random(&code, responders, elems, &mut random);
            let checker = ParityCheck::new(&code, &layer.inputs).unwrap();
            for _ in 0..20 {
                let reduction = *REDUCTIONS.choose(&mut random).unwrap();
                let sketches = layer.sketches::<f32>(reduction, Fault::None, &mut random);
                let noise = error_bound(1.0, f32::EPSILON.into(), reduction);
                let residual = checker.residual(&sketches.iter().collect::<Vec<_>>(), noise);
                assert!(residual <= 1.0, "{:?}, {responders} responders: {residual}", code.kind());
                largest = largest.max(residual);
                runs += 1;
            }
        }
        // The threshold is generous but still sensitive.
        assert!((0.05..0.5).contains(&largest), "{largest}");
    }

    #[test]
    fn errors_of_the_size_promised_are_always_found() {
        let mut random = ChaCha8Rng::seed_from_u64(4);
        let (mut found, mut blind, mut missed) = (0, 0, 0);
        for trial in 0..900 {
            let code = crme(CODES[trial % CODES.len()]);
            let elems = *[512, 777].choose(&mut random).unwrap();
            let responders = random.random_range(code.recovery_threshold() + 1..=code.n());
            let layer = Synthetic::random(&code, responders, elems, &mut random);
            let checker = ParityCheck::new(&code, &layer.inputs).unwrap();
            let reduction = *REDUCTIONS.choose(&mut random).unwrap();
            let noise = error_bound(1.0, f32::EPSILON.into(), reduction);
            let floor = checker.floor(&layer.groups, noise);
            let bad = *layer.groups.choose(&mut random).unwrap();
            let mut residual = |fault| {
                let sketches = layer.sketches::<f32>(reduction, fault, &mut random);
                checker.residual(&sketches.iter().collect::<Vec<_>>(), noise)
            };
            if floor > TARGET {
                blind += 1;
                continue;
            }
            // Errors at the floor are detected too, not only those at the target above it.
            for size in [floor, TARGET] {
                for fault in [Fault::Noise(bad, size), Fault::Spike(bad, size), Fault::Scale(bad, size)] {
                    let residual = residual(fault);
                    assert!(residual > 1.0, "{fault:?} of {responders} at floor {floor:.1e}: {residual}");
                    found += 1;
                }
            }
            missed += usize::from(residual(Fault::Noise(bad, floor / 50.0)) <= 1.0);
        }
        assert!(found > 4000 && blind > 5, "{found} found, {blind} sets too badly placed");
        // Negative control: the check also misses some errors below the floor.
        assert!(missed > 600, "{missed}");
    }

    #[test]
    fn badly_placed_spares_say_so_and_better_ones_end_it() {
        let code = crme((8, 8, 20));
        let noise = error_bound(1.0, f32::EPSILON.into(), 4608);
        let floor = |subtasks: &[usize]| {
            let inputs = code.sub_results_of(subtasks);
            let groups: Vec<_> = inputs.iter().map(|of| of.subtask.0).collect();
            ParityCheck::new(&code, &inputs).unwrap().floor(&groups, noise)
        };
        let neighbours: Vec<usize> = (0..17).collect();
        let spread: Vec<usize> = (0..20).filter(|i| ![4, 10, 16].contains(i)).collect();
        assert!(floor(&neighbours) > 2.0 * TARGET && floor(&spread) < TARGET / 2.0);
        assert!(floor(&(0..20).collect::<Vec<_>>()) < TARGET / 2.0);
        let parts = code.sub_results_of(&neighbours[..16]);
        assert!(matches!(ParityCheck::new(&code, &parts), Err(Error::Mismatch { .. })));
        // A part with a single copy can have any value.
        let uncoded = Code::new(CodeKind::Uncoded, 2, 2, 4).unwrap();
        let inputs = uncoded.sub_results_of(&[0, 1, 2, 3, 1]);
        assert!(ParityCheck::new(&uncoded, &inputs).unwrap().floor(&[0, 1, 2, 3, 4], noise) > 1.0);
    }

    #[test]
    fn all_sizes_of_values_and_types_work() {
        fn check<T: Element>(scales: &[f64]) {
            let mut random = ChaCha8Rng::seed_from_u64(5);
            let code = crme((4, 8, 10));
            let noise = error_bound(1.0, T::EPSILON, 576);
            for &scale in scales {
                let mut layer = Synthetic::random(&code, 10, 300, &mut random);
                layer.scale(scale);
                let checker = ParityCheck::new(&code, &layer.inputs).unwrap();
                let mut residual = |fault| {
                    let sketches = layer.sketches::<T>(576, fault, &mut random);
                    checker.residual(&sketches.iter().collect::<Vec<_>>(), noise)
                };
                assert!(residual(Fault::None) < 0.3, "{}", residual(Fault::None));
                assert!(scale == 0.0 || residual(Fault::Noise(3, 1000.0 * noise)) > 1.0, "{scale}");
                assert_eq!(residual(Fault::Lost(3)), f64::INFINITY);
            }
        }
        check::<f32>(&[1.0, 1e30, 1e-30, 0.0]);
        check::<f64>(&[1.0, 1e30, 1e-30, 0.0, 1e300, 1e-300]);
    }

    #[test]
    fn real_convolutions_are_consistent_and_a_wrong_one_is_named() {
        let shape =
            ConvShape::new(&[1, 16, 12, 12], &[16, 16, 3, 3], &ConvParams::default().padding([1])).unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(6);
        let mut values = |count| (0..count).map(|_| random.random_range(-1.0..1.0_f32)).collect::<Vec<_>>();
        let (input, weight) = (values(shape.input_elems()), values(shape.weight_elems()));
        let code = crme((4, 4, 6));
        let (slabs, filters) =
            (InputPartition::new(&shape, 4).unwrap(), FilterPartition::new(&shape, 4).unwrap());
        let conv = slabs.slab_conv(filters.bank_channels());
        let sketcher = Sketcher::new(conv.output_elems(), 7);
        let mut sketches = Vec::new();
        for (i, coded) in encode_input(&code, &shape, &slabs, &input, Vec::new()).iter().enumerate() {
            let coded_banks = encode_filters(&code, &filters, &weight, &[], SubtaskId(i));
            for slab in coded.chunks(conv.input_elems()) {
                for bank in coded_banks.chunks(conv.weight_elems()) {
                    let mut result = reference(&conv, slab, bank, None).unwrap();
                    // Subtask 2 computes one element of 144 wrong, by a hundredth.
                    result[5] *= if i == 2 { 1.01 } else { 1.0 };
                    sketches.push(sketcher.sketch(&result));
                }
            }
        }
        let noise = error_bound(1.0, f32::EPSILON.into(), conv.reduction());
        let audit = |subtasks: &[usize]| {
            let inputs = code.sub_results_of(subtasks);
            let sketches: Vec<&Sketch> = subtasks.iter().flat_map(|i| &sketches[4 * i..4 * i + 4]).collect();
            let groups: Vec<usize> = inputs.iter().map(|of| of.subtask.0).collect();
            let consistent = ParityCheck::new(&code, &inputs).unwrap().is_consistent(&sketches, noise);
            (consistent, locate_errors(&code, &inputs, &groups, &sketches, noise, 1))
        };
        assert_eq!(audit(&[0, 1, 3, 4, 5]), (true, Some(vec![])));
        assert_eq!(audit(&[0, 1, 2, 3, 4, 5]), (false, Some(vec![2])));
        assert_eq!(audit(&[5, 1, 2, 3, 4]), (false, None));
    }

    /// The answer of [`locate_errors`] for a layer with these faults.
    fn named(
        code: &Code,
        layer: &Synthetic,
        faults: &[Fault],
        most: usize,
        random: &mut ChaCha8Rng,
    ) -> Option<Vec<usize>> {
        let sketches = layer.faulty::<f32>(576, faults, random);
        let noise = error_bound(1.0, f32::EPSILON.into(), 576);
        locate_errors(code, &layer.inputs, &layer.groups, &sketches.iter().collect::<Vec<_>>(), noise, most)
    }

    #[test]
    fn a_liar_is_named_with_two_spares_and_never_with_one() {
        let mut random = ChaCha8Rng::seed_from_u64(8);
        let mut silent = 0;
        for trial in 0..600 {
            let code = crme([(4, 4, 6), (4, 8, 10), (1, 8, 6), (8, 1, 6), (8, 8, 20)][trial % 5]);
            let delta = code.recovery_threshold();
            let layer = Synthetic::random(&code, delta + 2, 256, &mut random);
            let bad = *layer.groups.choose(&mut random).unwrap();
            let fault = [Fault::Noise(bad, TARGET), Fault::Spike(bad, TARGET), Fault::Lost(bad)][trial % 3];
            match named(&code, &layer, &[fault], 1, &mut random) {
                Some(who) => assert_eq!(who, [bad], "{fault:?}"),
                // With 18 of 20 some roots are badly placed; then no worker is accused.
                None if code.n() == 20 => silent += 1,
                None => panic!("{fault:?} found nobody"),
            }
            let one = Synthetic::random(&code, delta + 1, 256, &mut random);
            let bad = *one.groups.choose(&mut random).unwrap();
            // (With few responders the floor of (8, 8, 20) may exceed an error of the target's size, which then stays
            // undetected.)
            let answer = named(&code, &one, &[Fault::Noise(bad, 0.1)], 2, &mut random);
            assert_eq!(answer, None);
            assert!(code.n() == 20 || named(&code, &one, &[], 1, &mut random) == Some(vec![]));
        }
        assert!(silent < 100, "{silent} of 120");
    }

    #[test]
    fn two_liars_and_workers_with_two_subtasks_are_named() {
        let mut random = ChaCha8Rng::seed_from_u64(9);
        let code = crme((4, 4, 9));
        for trial in 0..100 {
            let mut layer = Synthetic::random(&code, 9 - trial % 2, 256, &mut random);
            let two: Vec<usize> = layer.subtasks().sample(&mut random, 2).copied().collect();
            let (mut sorted, size) = (two.clone(), [TARGET, 0.3][trial % 2]);
            sorted.sort_unstable();
            let faults = [Fault::Noise(two[0], size), Fault::Noise(two[1], TARGET)];
            assert_eq!(named(&code, &layer, &faults, 2, &mut random), Some(sorted));
            assert_eq!(named(&code, &layer, &faults, 1, &mut random), None);
            // Workers 0 to 4 hold subtasks i and i + 5: eight results, of which only one may be wrong.
            layer.groups.iter_mut().for_each(|group| *group %= 5);
            let fault = [Fault::Noise(1, TARGET), Fault::Spike(1, TARGET)][trial / 2 % 2];
            assert_eq!(named(&code, &layer, &[fault], 1, &mut random), Some(vec![1]));
        }
    }

    #[test]
    fn copies_are_compared_each_to_its_own_size() {
        let mut random = ChaCha8Rng::seed_from_u64(11);
        let code = Code::new(CodeKind::Replication, 2, 1, 6).unwrap();
        let noise = error_bound(1.0, f32::EPSILON.into(), 576);
        let mut layer = Synthetic::random(&code, 6, 256, &mut random);
        // Part 1 is a hundred million times smaller than part 0.
        layer.scale_each(|input| if code.part_of(input.subtask) == Some(1) { 1e-8 } else { 1.0 });
        let small: Vec<usize> =
            layer.groups.iter().copied().filter(|i| code.part_of(SubtaskId(*i)) == Some(1)).collect();
        let checker = ParityCheck::new(&code, &layer.inputs).unwrap();
        let mut residual = |fault| {
            let sketches = layer.sketches::<f32>(576, fault, &mut random);
            checker.residual(&sketches.iter().collect::<Vec<_>>(), noise)
        };
        assert!(residual(Fault::None) < 1.0);
        assert!(residual(Fault::Noise(small[0], 1e-2)) > 1.0);
        assert!(checker.floor(&layer.groups, noise) < TARGET);
        for bad in [small[0], *layer.groups.iter().find(|i| !small.contains(i)).unwrap()] {
            let answer = named(&code, &layer, &[Fault::Noise(bad, 1e-2)], 1, &mut random);
            assert_eq!(answer, Some(vec![bad]));
        }
        // Two copies of a part contradict each other, and either may be wrong.
        let five: Vec<SubResult> =
            layer.inputs.iter().copied().filter(|of| of.subtask.0 != small[2]).collect();
        layer.keep(&five);
        let answer = named(&code, &layer, &[Fault::Noise(small[0], 1e-2)], 1, &mut random);
        assert_eq!(answer, None);
        // A single copy is not checked.
        let alone: Vec<SubResult> = five.into_iter().filter(|of| of.subtask.0 != small[1]).collect();
        let floor = ParityCheck::new(&code, &alone).unwrap().floor(&[0, 1, 2, 3], noise);
        assert_eq!(floor, f64::INFINITY);
    }

    #[test]
    fn combinations_are_enumerated_once_each() {
        let mut chosen = vec![0, 1];
        let mut seen = vec![chosen.clone()];
        while advance(&mut chosen, 4) {
            seen.push(chosen.clone());
        }
        assert_eq!(seen, [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]);
        assert!(!advance(&mut [], 4));
    }
}
