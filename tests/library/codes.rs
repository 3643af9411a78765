//! The code families side by side: which sets decode, how well, and runs on a pool of workers.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use crate::computed::Computed;
use fcdcc::coding::{Code, CodeKind, Decoder};
use fcdcc::conv::{ConvParams, ConvShape};
use fcdcc::{Audit, CodedConv, Completion, Error, LayerOptions, SubtaskId};
use fcdcc_test_support::layer::{EXACT_F32, Layer, fail, list, options, pool, small};
use fcdcc_test_support::{every_row, relative_l2, subsets};

/// The families that combine all parts in every subtask, with one coded slab and bank.
const DENSE: [CodeKind; 3] = [CodeKind::Chebyshev, CodeKind::Vandermonde, CodeKind::KhatriRao];

/// (k_A, k_B, n)
const SHAPES: [(usize, usize, usize); 7] =
    [(1, 1, 3), (2, 2, 6), (3, 2, 8), (1, 5, 7), (4, 1, 6), (2, 3, 6), (3, 3, 9)];

fn tiny() -> ConvShape {
    ConvShape::new(&[1, 2, 7, 5], &[5, 2, 3, 3], &ConvParams::default().padding([1])).unwrap()
}

fn with(code: CodeKind, options: LayerOptions) -> LayerOptions {
    LayerOptions { code, ..options }
}

/// Keeps the requested code, however few correct digits it leaves.
fn as_asked(options: LayerOptions) -> LayerOptions {
    LayerOptions { max_windowwise: fcdcc::engine::WindowwiseLimit::Off, ..options }
}

/// The complement of the set in `0..n`.
fn others(n: usize, set: &[usize]) -> Vec<usize> {
    (0..n).filter(|i| !set.contains(i)).collect()
}

/// Every subset of `0..n`.
fn all_subsets(n: usize) -> impl Iterator<Item = Vec<usize>> {
    (0..1_u32 << n).map(move |bits| (0..n).filter(|i| bits >> i & 1 == 1).collect())
}

#[test]
fn names_are_read_back_and_printed() {
    let names = ["crme", "chebyshev", "vandermonde", "khatri-rao", "replication", "uncoded"];
    assert_eq!(CodeKind::ALL.map(CodeKind::name), names);
    every_row(CodeKind::ALL.into_iter().zip(names), |(kind, name)| {
        assert_eq!((kind.to_string().as_str(), name.parse::<CodeKind>().unwrap()), (name, kind));
        assert_eq!(serde_json::to_value(kind).unwrap(), name);
    });
    assert!("khatri_rao".parse::<CodeKind>().unwrap_err().to_string().contains(&names.join(", ")));
}

#[test]
fn thresholds_parts_and_what_may_be_missing_fit_each_other() {
    every_row(CodeKind::ALL, |kind| {
        for (n, tolerate) in [(1, 0), (6, 0), (6, 1), (6, 2), (7, 3), (20, 4), (20, 19)] {
            let parts = kind.parts(n, tolerate);
            let Some(k_a) =
                (1..=2 * parts).rev().find(|k| kind.allows(*k) && kind.degree(*k, 1).unwrap() <= parts)
            else {
                panic!("{kind}: {n} subtasks of which {tolerate} may be missing");
            };
            let code = Code::new(kind, k_a, 1, n).unwrap();
            assert_eq!(code.recovery_threshold(), kind.recovery_threshold(k_a, 1, n).unwrap());
            assert_eq!(code.tolerated() + code.recovery_threshold(), code.n());
            assert!(kind == CodeKind::Uncoded || code.tolerated() >= tolerate, "{kind} {n} {tolerate}");
        }
        assert_eq!(kind.parts(6, 6), if kind == CodeKind::Uncoded { 6 } else { 0 });
        assert!(kind.allows(1) && kind.allows(4) && !kind.allows(0) && !kind.allows(1 << 13));
        assert_eq!(kind.allows(3), kind != CodeKind::Crme);
        assert_eq!(kind.mixes(), ![CodeKind::Replication, CodeKind::Uncoded].contains(&kind));
    });
    assert_eq!(CodeKind::Crme.degree(4, 8).unwrap(), 8);
    assert_eq!(CodeKind::Chebyshev.degree(4, 8).unwrap(), 32);
    // Any six of seven subtasks over three parts include every part: two parts have only two copies.
    assert_eq!(CodeKind::Replication.recovery_threshold(3, 1, 7).unwrap(), 6);
    assert_eq!(Code::new(CodeKind::Replication, 3, 1, 7).unwrap().tolerated(), 1);
    assert!(CodeKind::Replication.recovery_threshold(3, 3, 7).unwrap() > 7);
}

#[test]
fn every_set_of_the_threshold_decodes_and_no_smaller_one() {
    for kind in DENSE {
        for (k_a, k_b, n) in SHAPES {
            let mut computed = Computed::<f64>::new(kind, &tiny(), k_a, k_b, n, 7);
            let delta = computed.code.recovery_threshold();
            assert_eq!((delta, computed.code.l_a(), computed.code.l_b()), (k_a * k_b, 1, 1));
            for size in delta..=n {
                for set in subsets(n, size) {
                    let decoder = Decoder::for_subtasks(&computed.code, &set).unwrap();
                    let error = relative_l2(&computed.decode(&decoder), &computed.truth);
                    let bound = decoder.error_bound(f64::EPSILON, tiny().reduction());
                    assert!(error < bound, "{kind} ({k_a},{k_b},{n}) {set:?}: {error:e}, bound {bound:e}");
                    let condition = computed.code.condition(&set);
                    assert!((condition / decoder.condition() - 1.0).abs() < 1e-6, "{condition}");
                    assert!(computed.code.determines(&|i| set.contains(&i.0)));
                }
            }
            for set in subsets(n, delta - 1) {
                let error = Decoder::for_subtasks(&computed.code, &set).unwrap_err();
                assert!(matches!(error, Error::Mismatch { .. }));
                let says = format!("is {} where at least the recovery threshold {delta}", delta - 1);
                assert!(error.to_string().contains(&says), "{error}");
                assert_eq!(computed.code.condition(&set), f64::INFINITY);
                assert!(!computed.code.determines(&|i| set.contains(&i.0)));
            }
            // The same subtask again does not count.
            let again = vec![0; delta];
            assert_eq!(computed.code.condition(&again) == f64::INFINITY, delta > 1);
            assert_eq!(Decoder::for_subtasks(&computed.code, &again).is_err(), delta > 1);
            // Negative control: one changed element of one result.
            let set: Vec<usize> = (0..delta).collect();
            let clean = computed.error(&set).0;
            computed.results[0][3] += 1e-3;
            let bound = Decoder::for_subtasks(&computed.code, &set).unwrap().error_bound(f64::EPSILON, 18);
            assert!(computed.error(&set).0 > bound.max(clean), "{kind}");
        }
    }
}

#[test]
fn copies_decode_when_they_cover_the_parts_and_only_then() {
    every_row([(1, 1, 3), (2, 1, 5), (2, 2, 8), (3, 1, 7), (2, 3, 6)], |(k_a, k_b, n)| {
        let mut computed = Computed::<f64>::new(CodeKind::Replication, &tiny(), k_a, k_b, n, 3);
        let (parts, threshold) = (k_a * k_b, computed.code.recovery_threshold());
        let whole = Computed::<f64>::new(CodeKind::Uncoded, &tiny(), k_a, k_b, parts, 3);
        let expected =
            whole.decode(&Decoder::for_subtasks(&whole.code, &(0..parts).collect::<Vec<_>>()).unwrap());
        for set in all_subsets(n) {
            let covers = (0..parts).all(|part| set.iter().any(|i| i % parts == part));
            assert!(covers || set.len() < threshold, "{set:?}");
            assert_eq!(computed.code.determines(&|i| set.contains(&i.0)), covers);
            match Decoder::for_subtasks(&computed.code, &set) {
                Ok(decoder) => {
                    assert!(covers, "{set:?}");
                    assert_eq!(computed.decode(&decoder), expected, "{set:?}");
                    assert_eq!((decoder.condition(), computed.code.condition(&set)), (1.0, 1.0));
                    // One copy of each part, the first.
                    for (part, of) in decoder.inputs().iter().enumerate() {
                        assert_eq!(set.iter().find(|i| **i % parts == part), Some(&of.subtask.0));
                    }
                }
                Err(error) => {
                    assert!(!covers, "{set:?}: {error}");
                    let part = (0..parts).find(|part| set.iter().all(|i| i % parts != *part)).unwrap();
                    let held = (0..parts).filter(|part| set.iter().any(|i| i % parts == *part)).count();
                    let says = format!("is {held} where all {parts} was expected: wait for part {part}");
                    assert!(matches!(error, Error::Mismatch { .. }) && error.to_string().contains(&says));
                    assert_eq!(computed.code.condition(&set), f64::INFINITY);
                }
            }
        }
        // One fewer than the threshold may miss a part; the threshold does not.
        assert!(subsets(n, threshold - 1).iter().any(|set| computed.code.condition(set).is_infinite()));
        let all: Vec<usize> = (0..n).collect();
        assert!(computed.error(&all).0 < 1e-14);
        computed.results[0][3] += 1e-3;
        assert!(computed.error(&all).0 > 1e-5);
    });
}

/// Worst and median condition number over all sets of delta subtasks.
fn conditions(code: &Code) -> (f64, f64) {
    let sets = subsets(code.n(), code.recovery_threshold());
    let mut all: Vec<f64> = sets.iter().map(|set| code.condition(set)).collect();
    all.sort_by(f64::total_cmp);
    (all[all.len() - 1], f64::midpoint(all[(all.len() - 1) / 2], all[all.len() / 2]))
}

#[test]
fn condition_numbers_at_twenty_subtasks_are_as_documented() {
    // The families differ by orders of magnitude: this is the purpose of CRME.
    let rows = [
        (CodeKind::Crme, 8, 1551.0, 18.79),
        (CodeKind::Chebyshev, 4, 4.870e5, 43.36),
        (CodeKind::Vandermonde, 4, 1.167e8, 8.179e6),
        (CodeKind::KhatriRao, 4, 2.650e5, 85.71),
    ];
    every_row(rows, |(kind, k, worst, median)| {
        let code = Code::new(kind, k, k, 20).unwrap();
        assert_eq!(code.recovery_threshold(), 16);
        let got = conditions(&code);
        assert!((got.0 / worst - 1.0).abs() < 1e-2, "worst of {kind}: {}", got.0);
        assert!((got.1 / median - 1.0).abs() < 1e-2, "median of {kind}: {}", got.1);
    });
}

#[test]
fn condition_numbers_are_known_beyond_what_decodes() {
    // 36 powers of 40 points would leave no correct digit of f64 results.
    let code = Code::new(CodeKind::Vandermonde, 6, 6, 40).unwrap();
    let set: Vec<usize> = (0..36).collect();
    assert!(code.condition(&set) > 1e13 && code.condition(&set).is_finite());
    let error = Decoder::for_subtasks(&code, &set).unwrap_err();
    assert!(matches!(error, Error::Singular { .. }), "{error}");
    // Such a code is refused before anything is sent to workers, with both numbers.
    let weight = ndarray::ArrayD::from_elem(ndarray::IxDyn(&[1, 1, 1, 1]), 1.0_f64);
    let options = LayerOptions { subtasks: Some(60), ..with(CodeKind::Vandermonde, options(55, 1)) };
    let params = ConvParams::default();
    let layer = CodedConv::builder(&pool(2, &[]), &[1, 1, 64, 1], weight.view())
        .params(params.clone())
        .options(options)
        .prepare();
    let error = layer.err().unwrap().to_string();
    assert!(error.contains("code vandermonde from all 60 subtasks") && error.contains("1e13"), "{error}");
}

#[test]
fn a_random_code_is_the_same_for_everybody_and_another_for_other_numbers() {
    let blocks = |k_a, k_b, n| {
        let code = Code::new(CodeKind::KhatriRao, k_a, k_b, n).unwrap();
        (0..n)
            .map(SubtaskId)
            .flat_map(|i| [code.input_block(i), code.filter_block(i)].concat())
            .collect::<Vec<f64>>()
    };
    assert_eq!(blocks(2, 3, 8), blocks(2, 3, 8));
    for other in [blocks(3, 2, 8), blocks(2, 3, 9)] {
        assert!(other.iter().zip(&blocks(2, 3, 8)).all(|(a, b)| a != b));
    }
    // Standard normal: mean and variance of 40,000 numbers, to five standard errors.
    let many = blocks(10, 10, 2000);
    let mean = |of: &dyn Fn(f64) -> f64| many.iter().map(|v| of(*v)).sum::<f64>() / many.len() as f64;
    assert!(mean(&|v| v).abs() < 0.025 && (mean(&|v| v * v) - 1.0).abs() < 0.04);
}

#[test]
fn parts_that_no_code_has_are_refused_with_both_numbers() {
    let refused = |kind, k_a, k_b, n| Code::new(kind, k_a, k_b, n).unwrap_err().to_string();
    every_row(CodeKind::ALL, |kind| {
        assert!(refused(kind, 0, 3, 6).contains('0'), "{kind}");
        assert!(refused(kind, 1, 1, 0).contains("is 0 where at least 1"), "{kind}");
        assert!(refused(kind, 1 << 13, 1, 6).contains("4096"), "{kind}");
        assert!(refused(kind, usize::MAX, 2, 6).contains("4096"), "{kind}");
        let least = kind.degree(4, 2).unwrap();
        let says = format!("is {} where at least {least}", least - 1);
        assert!(refused(kind, 4, 2, least - 1).contains(&says), "{kind}");
    });
    assert!(refused(CodeKind::Chebyshev, 4096, 4096, 6).contains("their product"));
    assert!(refused(CodeKind::Replication, 3, 2, 5).contains("the parts of replication"));
}

#[test]
fn real_layers_survive_every_loss_that_the_code_does() {
    let layer = small();
    let rows = [
        (CodeKind::Chebyshev, 3, 1, 5),
        (CodeKind::Chebyshev, 2, 2, 6),
        (CodeKind::Vandermonde, 2, 2, 6),
        (CodeKind::KhatriRao, 2, 2, 6),
        (CodeKind::Replication, 3, 1, 6),
        (CodeKind::Replication, 1, 2, 5),
        (CodeKind::Uncoded, 2, 2, 4),
    ];
    every_row(rows, |(kind, k_a, k_b, n)| {
        let code = Code::new(kind, k_a, k_b, n).unwrap();
        for survivors in all_subsets(n).filter(|set| set.len() + 1 >= kind.degree(k_a, k_b).unwrap()) {
            let dead = others(n, &survivors);
            let fault =
                if dead.is_empty() { "0:delay=0ms".to_owned() } else { format!("{}:crash", list(&dead)) };
            let prepared = layer.prepare(&pool(n, &[&fault]), as_asked(with(kind, fail(k_a, k_b)))).unwrap();
            let result = prepared.run(layer.input.view());
            if code.determines(&|i| survivors.contains(&i.0)) {
                let run = result.unwrap();
                let report = &run.report;
                let tolerance = report.error_bound.max(EXACT_F32);
                assert!(layer.error(&run.output) < tolerance, "{kind} {survivors:?}");
                assert!(report.used.iter().all(|i| survivors.contains(&i.0)), "{kind} {survivors:?}");
                assert_eq!((report.code.as_str(), report.completion), (kind.name(), Completion::Exact));
                // Negative control.
                let mut wrong = run.output.clone();
                wrong[[0, 1, 2, 3]] += 1.0;
                assert!(layer.error(&wrong) > tolerance);
            } else {
                let error = result.unwrap_err();
                let Error::Shortfall { needed, total, arrived, .. } = &error else { panic!("{error}") };
                assert_eq!((*needed, *total), (code.recovery_threshold(), n));
                assert!(*arrived <= survivors.len() && arrived < needed, "{error}");
                for subtask in dead {
                    assert!(
                        error.to_string().contains(&format!("subtask {subtask} on cpu-{subtask}")),
                        "{error}"
                    );
                }
            }
        }
    });
}

#[test]
fn a_run_waits_for_the_parts_and_not_for_a_number_of_copies() {
    let layer = small();
    // Silent from the start: three of six answer, and the threshold is five.
    let three = pool(6, &["1,3,5:drop"]);
    let prepared = layer.prepare(&three, with(CodeKind::Replication, fail(3, 1))).unwrap();
    assert_eq!(prepared.code().recovery_threshold(), 5);
    let run = prepared.run(layer.input.view()).unwrap();
    assert_eq!(
        (layer.error(&run.output) < EXACT_F32, run.report.used),
        (true, [0, 2, 4].map(SubtaskId).to_vec())
    );
    // Both copies of part 2 are lost: only one of them is computed again.
    let two = pool(6, &["2,5:crash"]);
    let options = with(CodeKind::Replication, options(3, 1)).hedge(None);
    let run = layer.prepare(&two, options).unwrap().run(layer.input.view()).unwrap();
    assert!(layer.error(&run.output) < EXACT_F32);
    assert_eq!((run.report.completion, run.report.redispatched), (Completion::ExactAfterRedispatch, 1));
}

#[test]
fn the_planner_takes_as_many_parts_as_may_be_missing_allow() {
    let layer = small();
    let rows = [
        (CodeKind::Crme, 2, 4),
        (CodeKind::Chebyshev, 2, 4),
        (CodeKind::Vandermonde, 1, 5),
        (CodeKind::KhatriRao, 3, 3),
        (CodeKind::Replication, 0, 6),
        (CodeKind::Replication, 1, 3),
        (CodeKind::Replication, 2, 2),
        (CodeKind::Replication, 3, 1),
        (CodeKind::Uncoded, 2, 6),
    ];
    every_row(rows, |(kind, tolerate, degree)| {
        let options = LayerOptions { code: kind, tolerate, ..LayerOptions::default() };
        let prepared = layer.prepare(&pool(6, &[]), options).unwrap();
        let code = prepared.code();
        assert_eq!(kind.degree(code.k_a(), code.k_b()).unwrap(), degree, "{kind} {tolerate}");
        assert!(kind == CodeKind::Uncoded || code.tolerated() >= tolerate);
        let run = prepared.run(layer.input.view()).unwrap();
        let tolerance = run.report.error_bound.max(EXACT_F32);
        assert!(tolerance < 1e-2 && layer.error(&run.output) < tolerance, "{kind} {tolerate}");
    });
    let none = LayerOptions { code: CodeKind::Replication, tolerate: 6, ..LayerOptions::default() };
    assert!(layer.prepare(&pool(6, &[]), none).err().unwrap().to_string().contains("is 6"));
}

#[test]
fn a_nan_passes_where_nothing_is_mixed_and_is_refused_elsewhere() {
    let layer = small();
    let mut poisoned = layer.input.clone();
    poisoned[[0, 1, 2, 3]] = f32::NAN;
    every_row(CodeKind::ALL, |kind| {
        let prepared = layer.prepare(&pool(6, &["0:crash"]), with(kind, options(2, 1))).unwrap();
        match prepared.run(poisoned.view()) {
            // The 3 x 3 windows that include the NaN, in each of the 8 output channels.
            Ok(run) => {
                assert!(!kind.mixes());
                assert_eq!(run.output.iter().filter(|v| v.is_nan()).count(), 8 * 9, "{kind}");
            }
            Err(error) => {
                assert!(kind.mixes() && matches!(error, Error::NonFinite { .. }), "{kind}: {error}");
            }
        }
    });
    // Copies can be compared only if they are numbers.
    let audited = with(CodeKind::Replication, options(2, 1)).audit(Audit::Detect);
    let error = layer.prepare(&pool(6, &[]), audited).unwrap().run(poisoned.view()).unwrap_err();
    assert!(matches!(error, Error::NonFinite { .. }), "{error}");
}

#[test]
fn audits_find_liars_whatever_the_code() {
    let layer = small();
    let rows = [
        (CodeKind::Crme, 4, 4),
        (CodeKind::Chebyshev, 2, 2),
        (CodeKind::Vandermonde, 2, 2),
        (CodeKind::KhatriRao, 2, 2),
        (CodeKind::Replication, 1, 2),
        (CodeKind::Replication, 1, 1),
        (CodeKind::KhatriRao, 1, 1),
    ];
    every_row(rows, |(kind, k_a, k_b)| {
        let audit = |audit, faults: &[&str]| {
            let options = with(kind, fail(k_a, k_b)).audit(audit);
            layer.prepare(&pool(6, faults), options).unwrap().try_run(layer.input.view()).unwrap()
        };
        let clean = audit(Audit::Detect, &[]);
        assert!(layer.error(&clean.output.unwrap()) < EXACT_F32, "{kind}");
        assert!(clean.report.audit_floor.unwrap() <= 1e-3, "{kind}");
        let (mut refused, mut named) = (0, 0);
        for liar in 0..6 {
            // The others answer a little later, so that the wrong result is among the compared ones.
            let late = format!("{}:delay=10ms", list(&others(6, &[liar])));
            let faults = [&*format!("{liar}:corrupt=1e-2"), &late];
            let detected = audit(Audit::Detect, &faults);
            match detected.output {
                // On a busy machine enough other results may arrive earlier.
                Ok(output) => assert!(layer.error(&output) < EXACT_F32, "{kind} {liar}"),
                Err(Error::Corrupted { .. }) => refused += 1,
                Err(error) => panic!("{kind} {liar}: {error}"),
            }
            let corrected = audit(Audit::Correct, &faults);
            assert!(layer.error(&corrected.output.unwrap()) < EXACT_F32, "{kind} {liar}");
            assert!(corrected.report.flagged.iter().all(|i| i.0 == liar), "{kind} {liar}");
            named += corrected.report.flagged.len();
        }
        assert!(refused > 0 && named > 0, "{kind}: {refused} refused, {named} named");
    });
}

#[test]
fn audits_that_a_code_cannot_carry_are_refused_with_the_mend() {
    let layer = small();
    let refused = |workers, options: LayerOptions| {
        layer.prepare(&pool(workers, &[]), options).err().unwrap().to_string()
    };
    let error = refused(6, with(CodeKind::Uncoded, fail(3, 2)).audit(Audit::Detect));
    assert!(error.contains("is 0 where at least 1"), "{error}");
    let error = refused(6, with(CodeKind::Replication, fail(2, 2)).audit(Audit::Detect));
    assert!(error.contains("is 0 where at least 1") && error.contains("LayerOptions::subtasks"), "{error}");
    let error = refused(6, with(CodeKind::Replication, fail(3, 1)).audit(Audit::Correct));
    assert!(error.contains("is 1 where at least 2"), "{error}");
    // Three workers with two subtasks each: worker i has both copies of part i, which would agree.
    let doubled = LayerOptions { subtasks: Some(6), ..with(CodeKind::Replication, fail(3, 1)) };
    let error = refused(3, doubled.audit(Audit::Detect));
    assert!(error.contains("same part is 1 where at least 2") && error.contains("6 subtasks"), "{error}");
    // At the ends of [-1, 1] the results of powers hardly check each other.
    let ends = LayerOptions { subtasks: Some(12), ..with(CodeKind::Vandermonde, fail(11, 1)) };
    let error = refused(12, ends.audit(Audit::Detect));
    assert!(error.contains("audit of this code would find"), "{error}");
}

#[test]
fn hedges_and_deadlines_hold_for_every_code() {
    let layer = Layer::<f64>::new(&[1, 2, 8, 6], &[4, 2, 3, 3], ConvParams::default().padding([1]));
    every_row(CodeKind::ALL, |kind| {
        let options = with(kind, options(2, 2)).deadline(Duration::from_millis(600));
        let n = if kind == CodeKind::Uncoded { 4 } else { 8 };
        let prepared = layer.prepare(&pool(n, &["0,1,2:drop"]), options).unwrap();
        let run = prepared.run(layer.input.view()).unwrap();
        assert!(layer.error(&run.output) < run.report.error_bound.max(1e-12), "{kind}");
    });
    let nobody = layer.prepare(
        &pool(8, &["all:drop"]),
        with(CodeKind::Replication, fail(2, 2)).deadline(Duration::from_millis(50)),
    );
    let error = nobody.unwrap().run(layer.input.view()).unwrap_err().to_string();
    assert!(error.contains("needs 7 of 8 results, 0 came"), "{error}");
}
