//! Decides how a layer is computed, so that every element of its output is as exact as promised.
//!
//! The decision is a pure function of the input's scan, the code and the workers' arithmetic; real and simulated runs use
//! the same functions. The order of preference is: decode, and compute the few windows that stand out on this machine; use
//! a code that does not mix the input; compute the whole layer on this machine.
//!
//! Invariant: the windowwise error bound of decoded results is at most [`Accuracy::limit`], if there is one.

use crate::array::{DType, WireFormat};
use crate::coding::{Code, Rounding};
use crate::ids::SubtaskId;
use crate::scaling::Spread;

/// Default limits of the windowwise error bound.
const LIMIT_F32: f64 = 1e-4;
const LIMIT_F64: f64 = 1e-12;
/// Default limits where the user chose 16-bit storage, and messages in f16 or bf16: each allows the same condition numbers.
const LIMIT_HALF: f64 = 2e-2;
const LIMIT_F16: f64 = 4e-2;
const LIMIT_BF16: f64 = 0.3;

/// At most this share of a layer's windows is computed on this machine beside decoding the others.
const RECOMPUTED_SHARE: f64 = 0.02;
/// Windows of up to this many multiply-adds in total may be computed locally in any case: they take negligible time.
const RECOMPUTED_MACS: f64 = 131_072.0;

/// Responder sets over which the typical condition number is taken, for recovery thresholds up to the second number.
const SAMPLED_SETS: usize = 9;
const SAMPLED_UP_TO: usize = 64;

/// Limit of the windowwise error bound of decoded results.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum WindowwiseLimit {
    /// 1e-4 in f32, 1e-12 in f64, 2e-2 where workers store operands in 16 bits; where slabs and results travel in f16 or bf16,
    /// 4e-2 or 0.3 (added to 2e-2 for workers that do both).
    #[default]
    Automatic,
    /// No limit: the data never change how a layer is computed.
    Off,
    /// This number.
    At(f64),
}

/// What decides how one layer is computed under one code.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accuracy {
    pub(super) rounding: Rounding,
    /// Largest windowwise error bound of decoded results; `None`: no limit.
    pub(super) limit: Option<f64>,
    /// Expected condition number.
    pub(super) typical_condition: f64,
    /// Number of windows of the layer, and multiply-adds for the outputs of each.
    pub(super) windows: usize,
    pub(super) window_macs: f64,
}

/// What to do with an input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Assessment {
    /// Decode, and compute windows whose amplification exceeds this on this machine.
    Decode {
        /// At least 1.
        amplification: f64,
    },
    /// Do not decode under this code: the amplification of too many windows is too large.
    Uneven,
}

impl Accuracy {
    /// The limit that the options ask for, of results with this rounding: the windowwise limit, or the largest error where that
    /// is smaller.
    pub(super) fn limit(
        limit: WindowwiseLimit,
        max_error: Option<f64>,
        dtype: DType,
        rounding: &Rounding,
    ) -> Option<f64> {
        let stored = if rounding.half { LIMIT_HALF } else { 0.0 };
        let narrow = stored
            + match rounding.wire {
                WireFormat::Full => 0.0,
                WireFormat::F16 => LIMIT_F16,
                WireFormat::Bf16 => LIMIT_BF16,
            };
        let own = match (limit, narrow > 0.0, dtype) {
            (WindowwiseLimit::Off, ..) => return None,
            (WindowwiseLimit::At(limit), ..) => limit,
            (_, true, _) => narrow,
            (_, _, DType::F32) => LIMIT_F32,
            (_, _, DType::F64) => LIMIT_F64,
        };
        Some(max_error.map_or(own, |error| error.min(own)))
    }

    /// How to compute an input whose windows have this spread.
    pub(super) fn assess(&self, spread: &Spread) -> Assessment {
        let Some(limit) = self.limit else { return Assessment::Decode { amplification: f64::INFINITY } };
        let affordable = (self.windows as f64 * RECOMPUTED_SHARE).max(RECOMPUTED_MACS / self.window_macs);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rounding down a positive number"
        )]
        let amplification = spread.all_but(affordable as usize);
        let bound = |amplification| self.rounding.windowwise(self.typical_condition, amplification);
        // Where even perfectly even data would exceed the limit, the code is the cause. Its condition is known only once
        // results have arrived.
        if bound(amplification) <= limit || !self.is_met_by_even_data() {
            Assessment::Decode { amplification }
        } else {
            Assessment::Uneven
        }
    }

    /// Whether even data can be decoded within the limit, at the expected condition number.
    pub(super) fn is_met_by_even_data(&self) -> bool {
        self.typical_condition <= self.largest_condition(1.0)
    }

    /// The largest condition number at which windows up to this `amplification` may be decoded.
    pub(super) fn largest_condition(&self, amplification: f64) -> f64 {
        self.limit.map_or(f64::INFINITY, |limit| limit / self.rounding.windowwise(1.0, amplification))
    }

    /// The normwise bound above which results are refused: that of the largest condition number, or the caller's limit.
    pub(super) fn max_error(&self, amplification: f64, max_error: Option<f64>) -> Option<f64> {
        let own = self.limit.map(|_| self.rounding.normwise(self.largest_condition(amplification)));
        own.into_iter().chain(max_error).min_by(f64::total_cmp)
    }
}

/// The expected condition number of `code`: the median over a few responder sets of as many subtasks as it needs.
pub(super) fn typical_condition(code: &Code) -> f64 {
    let (n, delta) = (code.n(), code.recovery_threshold());
    if code.part_of(SubtaskId(0)).is_some() || delta > SAMPLED_UP_TO {
        return 1.0;
    }
    // Each set leaves out other subtasks, spread over all of them.
    let set = |sample: usize| {
        let step = (2 * sample + 1) % n.max(1);
        let mut missing: Vec<usize> = (0..n - delta).map(|m| (sample + m * step.max(1)) % n).collect();
        missing.sort_unstable();
        missing.dedup();
        (0..n).filter(|i| !missing.contains(i)).take(delta).collect::<Vec<_>>()
    };
    let mut conditions: Vec<f64> = (0..SAMPLED_SETS).map(|sample| code.condition(&set(sample))).collect();
    conditions.sort_by(f64::total_cmp);
    conditions[conditions.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coding::CodeKind;

    fn accuracy(limit: Option<f64>, condition: f64) -> Accuracy {
        Accuracy {
            rounding: Rounding::plain::<f32>(72),
            limit,
            typical_condition: condition,
            windows: 10_000,
            window_macs: 72.0 * 512.0,
        }
    }

    fn spread(ratios: &[(f64, usize)]) -> Spread {
        Spread::of(ratios.iter().flat_map(|(ratio, count)| std::iter::repeat_n(*ratio, *count)))
    }

    #[test]
    fn few_windows_that_stand_out_are_computed_here_and_many_send_the_layer_another_way() {
        let accuracy = accuracy(Some(1e-4), 4.0);
        let even = accuracy.assess(&spread(&[(3.0, 9000)]));
        assert_eq!(even, Assessment::Decode { amplification: 3.0 });
        let few = accuracy.assess(&spread(&[(3.0, 9000), (1e7, 200)]));
        assert_eq!(few, Assessment::Decode { amplification: 16.0 });
        assert_eq!(accuracy.assess(&spread(&[(3.0, 9000), (1e7, 201)])), Assessment::Uneven);
        // Amplifications that are large but within the limit are decoded.
        let some = accuracy.assess(&spread(&[(3.0, 9000), (30.0, 201)]));
        assert_eq!(some, Assessment::Decode { amplification: 30.0 });
        // Where the code exceeds the limit even for even data, partitioning the input differently does not help.
        let bad = Accuracy { typical_condition: 1e6, ..accuracy }.assess(&spread(&[(1e7, 5000)]));
        assert!(matches!(bad, Assessment::Decode { .. }));
        let off = Accuracy { limit: None, ..accuracy }.assess(&spread(&[(1e7, 5000)]));
        assert_eq!(off, Assessment::Decode { amplification: f64::INFINITY });
        assert!(accuracy.largest_condition(16.0) > 10.0 && accuracy.largest_condition(1e4) < 0.1);
    }

    #[test]
    fn limits_are_those_of_the_type_unless_the_caller_wants_less() {
        use WindowwiseLimit::{At, Automatic, Off};
        let plain = Rounding::plain::<f32>(9);
        let limit = |limit, error| Accuracy::limit(limit, error, DType::F32, &plain);
        assert_eq!(limit(Automatic, None), Some(1e-4));
        assert_eq!(limit(Automatic, Some(1e-6)), Some(1e-6));
        assert_eq!(limit(At(1e-2), Some(1.0)), Some(1e-2));
        assert_eq!(limit(Off, Some(1e-6)), None);
        assert_eq!(Accuracy::limit(Automatic, None, DType::F64, &plain), Some(1e-12));
        let narrow = |half, wire| {
            Accuracy::limit(Automatic, None, DType::F32, &Rounding { half, wire, ..plain }).unwrap()
        };
        assert_eq!((narrow(true, WireFormat::Full), narrow(false, WireFormat::F16)), (2e-2, 4e-2));
        assert_eq!((narrow(false, WireFormat::Bf16), narrow(true, WireFormat::F16)), (0.3, 2e-2 + 4e-2));
        let accuracy = accuracy(Some(1e-4), 4.0);
        assert_eq!(accuracy.max_error(1.0, Some(1e-9)), Some(1e-9));
        assert!(accuracy.max_error(1.0, None).unwrap() > 1e-4);
    }

    #[test]
    fn typical_conditions_lie_between_best_and_worst() {
        for (k_a, k_b, n, least, most) in [(4, 4, 6, 2.0, 9.0), (8, 8, 20, 1.5, 200.0), (1, 1, 3, 1.0, 1.0)] {
            let code = Code::new(CodeKind::Crme, k_a, k_b, n).unwrap();
            let typical = typical_condition(&code);
            assert!((least..=most).contains(&typical), "{k_a},{k_b},{n}: {typical}");
        }
        let copies = Code::new(CodeKind::Replication, 2, 1, 6).unwrap();
        assert_eq!(typical_condition(&copies), 1.0);
        let bad = Code::new(CodeKind::Vandermonde, 4, 4, 20).unwrap();
        assert!(typical_condition(&bad) > 1e5);
    }
}
