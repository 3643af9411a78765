//! The scheme without workers: partition, encode, convolve by the reference, decode, compare.
//!
//! Every responder set is decoded. Pools are tested elsewhere.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use crate::computed::Computed;
use fcdcc::SubtaskId;
use fcdcc::coding::{Code, CodeKind, Decoder, Epilogue, SubResult, decode, encode_input};
use fcdcc::conv::{ConvParams, ConvShape};
use fcdcc::partition::{FilterPartition, InputPartition, OutputTiling};
use fcdcc_test_support::{every_row, mean_squared_error, relative_l2, subsets};
use proptest::prelude::*;

/// f64 throughout: condition number (below 2e3 here) times epsilon times growth of the sums (below 1e3 terms).
const EXACT_F64: f64 = 1e-10;
/// f32 workers at condition numbers below 100: 100 * 1.2e-7 * a small factor.
const EXACT_F32: f64 = 3e-5;

fn shape(input: &[usize], weight: &[usize], params: ConvParams) -> ConvShape {
    ConvShape::new(input, weight, &params).unwrap()
}

#[test]
fn every_responder_set_of_small_codes_is_exact() {
    let layer = shape(&[2, 3, 9, 7], &[6, 3, 3, 3], ConvParams::default().padding([1]).stride([1, 2]));
    let rows = [(4, 4, 6), (4, 8, 10), (8, 4, 9), (2, 2, 3), (1, 8, 6), (6, 1, 5), (2, 6, 4), (1, 1, 3)];
    every_row(rows, |(k_a, k_b, n)| {
        let computed = Computed::<f64>::new(CodeKind::Crme, &layer, k_a, k_b, n, 7);
        let delta = computed.code.recovery_threshold();
        for size in delta..=n {
            for set in subsets(n, size) {
                let (error, condition) = computed.error(&set);
                assert!(error < EXACT_F64, "({k_a},{k_b},{n}) {set:?}: {error:e} at cond {condition:.1}");
            }
        }
        let too_few: Vec<usize> = (0..delta - 1).collect();
        let error = Decoder::for_subtasks(&computed.code, &too_few).unwrap_err().to_string();
        assert!(
            error.contains(&format!("is {} where at least the recovery threshold {delta}", delta - 1)),
            "{error}"
        );
    });
}

#[test]
fn f32_results_decode_to_f32_accuracy_from_every_set() {
    let layer = shape(&[1, 5, 16, 11], &[12, 5, 3, 3], ConvParams::default().padding([1]));
    every_row([(4, 4, 6), (4, 8, 10)], |(k_a, k_b, n)| {
        let computed = Computed::<f32>::new(CodeKind::Crme, &layer, k_a, k_b, n, 3);
        for set in subsets(n, computed.code.recovery_threshold()) {
            let decoder = Decoder::for_subtasks(&computed.code, &set).unwrap();
            let error = relative_l2(&computed.decode(&decoder), &computed.truth);
            assert!(error < EXACT_F32, "{set:?}: {error:e}");
            assert!(
                error < decoder.error_bound(f64::from(f32::EPSILON), layer.reduction()),
                "{set:?}: {error:e}"
            );
        }
    });
}

#[test]
fn a_corrupted_sub_result_is_seen_by_the_comparison() {
    let layer = shape(&[1, 3, 8, 8], &[8, 3, 3, 3], ConvParams::default());
    let mut computed = Computed::<f64>::new(CodeKind::Crme, &layer, 4, 4, 6, 11);
    assert!(computed.error(&[0, 2, 3, 5]).0 < EXACT_F64);
    computed.results[2 * 4][5] += 0.01;
    assert!(computed.error(&[0, 2, 3, 5]).0 > 1e-6);
    // A set without the corrupted subtask is correct.
    assert!(computed.error(&[0, 1, 3, 5]).0 < EXACT_F64);
}

#[test]
fn the_generic_decoder_agrees_with_the_fast_path_and_takes_partial_subtasks() {
    let layer = shape(&[1, 2, 8, 6], &[8, 2, 3, 3], ConvParams::default().padding([1]));
    let computed = Computed::<f64>::new(CodeKind::Crme, &layer, 4, 4, 6, 5);
    for set in subsets(6, 4) {
        let fast = Decoder::for_subtasks(&computed.code, &set).unwrap();
        let generic = Decoder::generic(&computed.code, fast.inputs()).unwrap();
        assert!(relative_l2(&computed.decode(&generic), &computed.truth) < EXACT_F64);
        assert!((generic.condition() / fast.condition() - 1.0).abs() < 1e-9, "cond(G) = cond(V)");
    }
    // Three of four sub-results of every subtask, starting at i mod 4: 18 columns for 16 unknowns.
    let partial: Vec<SubResult> = (0..6)
        .flat_map(|i| {
            (0..3).map(move |k| (i + k) % 4).map(move |s| SubResult {
                subtask: SubtaskId(i),
                slab: s / 2,
                bank: s % 2,
            })
        })
        .collect();
    let decoder = Decoder::generic(&computed.code, &partial).unwrap();
    assert!(decoder.condition() < 1e4);
    assert!(relative_l2(&computed.decode(&decoder), &computed.truth) < EXACT_F64 * 10.0);
    // Four copies of one sub-result are one equation: an error says that the set is singular.
    let mut singular = partial[..12].to_vec();
    singular.extend([partial[0]; 4]);
    assert!(Decoder::generic(&computed.code, &singular).unwrap_err().to_string().contains("singular"));
    assert!(
        Decoder::generic(&computed.code, &partial[..15])
            .unwrap_err()
            .to_string()
            .contains("15 where at least k_A k_B = 16")
    );
}

#[test]
fn condition_numbers_match_the_published_table() {
    // (k_A, k_B, n) -> delta, worst and median over all responder sets.
    let rows = [
        (4, 4, 5, 4, 2.236, 2.236),
        (4, 4, 6, 4, 8.935, 4.192),
        (4, 8, 10, 8, 29.21, 6.616),
        (8, 8, 18, 16, 117.8, 8.655),
    ];
    every_row(rows, |(k_a, k_b, n, delta, worst, median)| {
        let code = Code::new(CodeKind::Crme, k_a, k_b, n).unwrap();
        assert_eq!(code.recovery_threshold(), delta);
        let mut conditions: Vec<f64> = subsets(n, delta)
            .iter()
            .map(|set| Decoder::for_subtasks(&code, set).unwrap().condition())
            .collect();
        conditions.sort_by(f64::total_cmp);
        let middle = conditions.len() / 2;
        let got = if conditions.len() % 2 == 1 {
            conditions[middle]
        } else {
            f64::midpoint(conditions[middle - 1], conditions[middle])
        };
        assert!((conditions[conditions.len() - 1] / worst - 1.0).abs() < 1e-3, "worst of {n}");
        assert!((got / median - 1.0).abs() < 1e-3, "median of {n}: {got}");
    });
    // Four adjacent missing subtasks of twenty are the worst case of that code; four evenly spaced ones are harmless.
    let code = Code::new(CodeKind::Crme, 8, 8, 20).unwrap();
    let without = |missing: [usize; 4]| {
        let set: Vec<usize> = (0..20).filter(|i| !missing.contains(i)).collect();
        Decoder::for_subtasks(&code, &set).unwrap().condition()
    };
    assert!((without([0, 1, 2, 3]) / 1551.0 - 1.0).abs() < 0.01, "{}", without([0, 1, 2, 3]));
    assert!((without([0, 5, 10, 15]) / 7.4 - 1.0).abs() < 0.02, "{}", without([0, 5, 10, 15]));
    // With all subtasks and an odd n the Vandermonde matrix is unitary up to scale.
    let code = Code::new(CodeKind::Crme, 4, 4, 5).unwrap();
    assert!((Decoder::for_subtasks(&code, &[0, 1, 2, 3, 4]).unwrap().condition() - 1.0).abs() < 1e-12);
}

#[test]
fn uncoded_layers_copy_bit_for_bit_and_need_every_part() {
    let layer = shape(&[1, 3, 9, 5], &[5, 3, 3, 3], ConvParams::default().padding([1]));
    let computed = Computed::<f32>::new(CodeKind::Uncoded, &layer, 2, 3, 6, 1);
    assert_eq!(computed.code.recovery_threshold(), 6);
    let (error, condition) = computed.error(&[5, 4, 3, 2, 1, 0]);
    assert!(error < 1e-6);
    assert_eq!(condition, 1.0);
    assert!(Decoder::for_subtasks(&computed.code, &[0, 1, 2, 3, 4]).is_err());
}

#[test]
fn a_selection_without_a_bias_keeps_the_sign_of_zero() {
    let layer = shape(&[1, 1, 4, 1], &[2, 1, 1, 1], ConvParams::default());
    let code = Code::new(CodeKind::Uncoded, 2, 1, 2).unwrap();
    let (slabs, filters) =
        (InputPartition::new(&layer, 2).unwrap(), FilterPartition::new(&layer, 1).unwrap());
    let tiling = OutputTiling::new(&layer, &slabs, &filters);
    let decoder = Decoder::for_subtasks(&code, &[0, 1]).unwrap();
    let part = [-0.0_f32, 1.5, -0.0, -2.5];
    let decoded = |bias: Option<&[f32]>| {
        let mut output = vec![7.0; 8];
        decode(&decoder, &tiling, &[&part, &part], Epilogue { bias, ..Epilogue::default() }, &mut output)
            .unwrap();
        output.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    let zeros = |bits: &[u32]| bits.iter().filter(|b| **b == (-0.0_f32).to_bits()).count();
    assert_eq!(zeros(&decoded(None)), 4);
    // Negative control: adding 0.0 changes the sign of a zero.
    assert_eq!(zeros(&decoded(Some(&[0.0, 0.0]))), 0);
}

#[test]
fn an_infinity_stays_where_it_belongs_in_an_uncoded_layer() {
    let layer = shape(&[1, 1, 8, 1], &[2, 1, 1, 1], ConvParams::default());
    let mut input = vec![1.0_f64; 8];
    input[3] = f64::INFINITY;
    let code = Code::new(CodeKind::Uncoded, 4, 1, 4).unwrap();
    let parts = InputPartition::new(&layer, 4).unwrap();
    let coded = encode_input(&code, &layer, &parts, &input, vec![vec![9.0; 3]; 2]);
    assert_eq!(coded, [vec![1.0, 1.0], vec![1.0, f64::INFINITY], vec![1.0, 1.0], vec![1.0, 1.0]]);
}

#[test]
fn impossible_codes_name_both_numbers() {
    let refused = |kind, k_a, k_b, n| Code::new(kind, k_a, k_b, n).unwrap_err().to_string();
    assert!(refused(CodeKind::Crme, 3, 4, 20).contains("k_A is 3"));
    assert!(refused(CodeKind::Crme, 4, 0, 20).contains("k_B is 0"));
    assert!(refused(CodeKind::Crme, 8, 8, 15).contains("is 15 where at least 16"));
    assert!(refused(CodeKind::Uncoded, 2, 3, 5).contains("is 5 where at least 6"));
    assert!(refused(CodeKind::Uncoded, 0, 3, 5).contains("0,3"));
    assert!(refused(CodeKind::Uncoded, usize::MAX, 3, 5).contains("few enough"));
    assert!("turbo".parse::<CodeKind>().unwrap_err().to_string().contains("replication, uncoded"));
}

#[test]
fn wrong_lengths_are_refused_by_the_decoder() {
    let layer = shape(&[1, 1, 4, 4], &[4, 1, 1, 1], ConvParams::default());
    let computed = Computed::<f64>::new(CodeKind::Crme, &layer, 4, 4, 5, 1);
    let decoder = Decoder::for_subtasks(&computed.code, &[0, 1, 2, 3]).unwrap();
    let results: Vec<&[f64]> = decoder.inputs().iter().map(|of| computed.result(*of)).collect();
    let none = Epilogue::default();
    let mut output = vec![0.0; 64];
    assert!(decode(&decoder, &computed.tiling, &results[1..], none, &mut output).is_err());
    assert!(decode(&decoder, &computed.tiling, &results, none, &mut output[1..]).is_err());
    assert!(
        decode(
            &decoder,
            &computed.tiling,
            &results,
            Epilogue { bias: Some(&[1.0]), ..Epilogue::default() },
            &mut output
        )
        .is_err()
    );
    let mut short = results.clone();
    short[3] = &short[3][1..];
    assert!(decode(&decoder, &computed.tiling, &short, none, &mut output).is_err());
    assert!(decode(&decoder, &computed.tiling, &results, none, &mut output).is_ok());
}

/// f64 mean squared error of AlexNet's first layer, at the level of the paper.
#[test]
fn f64_error_of_a_large_code_is_at_machine_precision() {
    // The layer's channels and kernel on a smaller picture: the reference is slow, and the sums are equally long.
    let layer = shape(&[1, 3, 67, 35], &[32, 3, 11, 11], ConvParams::default().stride([4]));
    let computed = Computed::<f64>::new(CodeKind::Crme, &layer, 8, 8, 20, 9);
    let set: Vec<usize> = (0..20).filter(|i| i % 5 != 2).collect();
    let decoder = Decoder::for_subtasks(&computed.code, &set).unwrap();
    assert!(decoder.condition() < 20.0);
    let mse = mean_squared_error(&computed.decode(&decoder), &computed.truth);
    assert!(mse < 1e-26, "{mse:e}");
}

/// The worst responder set of a large code still decodes f32 results to four digits.
#[test]
fn the_worst_set_of_a_large_code_keeps_f32_useful() {
    let layer = shape(&[1, 3, 67, 35], &[32, 3, 11, 11], ConvParams::default().stride([4]));
    let computed = Computed::<f32>::new(CodeKind::Crme, &layer, 8, 8, 20, 9);
    for first_missing in 0..20 {
        let set: Vec<usize> = (0..20).filter(|i| (i + 20 - first_missing) % 20 >= 4).collect();
        let (error, condition) = computed.error(&set);
        assert!(error < 1e-4, "{first_missing}: {error:e} at cond {condition:.0}");
    }
}

fn any_layer() -> impl Strategy<Value = (ConvShape, usize)> {
    let axes = |rank| {
        prop::collection::vec((1usize..12, 1usize..4, 1usize..4, 1usize..3, 0usize..3, 0usize..3), rank)
    };
    (1usize..=3)
        .prop_flat_map(move |rank| (axes(rank), 1usize..3, 1usize..4, 1usize..4, 1usize..6))
        .prop_filter_map("no convolution", |(axes, batch, groups, in_per, out_per)| {
            let mut input = vec![batch, groups * in_per];
            let mut weight = vec![groups * out_per, in_per];
            let (mut stride, mut dilation, mut begin, mut end) = (vec![], vec![], vec![], vec![]);
            for (size, kernel, s, d, b, e) in axes {
                input.push(size);
                weight.push(kernel);
                stride.push(s);
                dilation.push(d);
                begin.push(b);
                end.push(e);
            }
            begin.extend(end);
            let params = ConvParams { stride, padding: begin, dilation, groups };
            ConvShape::new(&input, &weight, &params).ok().map(|shape| (shape, groups))
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Any layer with any CRME code that fits and any responder set is exact.
    #[test]
    fn any_layer_any_code_any_responders(
        (layer, _) in any_layer(),
        d_a in 0usize..4,
        d_b in 0usize..4,
        spare in 0usize..3,
        pick in any::<u64>(),
    ) {
        let rows = layer.output[layer.split_axis()];
        let k_a = if 2 * d_a <= rows && d_a > 0 { 2 * d_a } else { 1 };
        let k_b = if d_b > 0 { 2 * d_b } else { 1 };
        let delta = CodeKind::Crme.degree(k_a, k_b).unwrap();
        let n = delta + spare;
        let computed = Computed::<f64>::new(CodeKind::Crme, &layer, k_a, k_b, n, pick);
        let all = subsets(n, delta);
        let set = &all[usize::try_from(pick % all.len() as u64).unwrap()];
        let (error, condition) = computed.error(set);
        prop_assert!(error < EXACT_F64, "{layer:?} ({k_a},{k_b},{n}) {set:?}: {error:e} at {condition:.1}");
    }
}
