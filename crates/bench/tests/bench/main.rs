//! The benchmark harness on real workers: every method gives correct outputs, and wrong numbers are detected.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod flags;

use std::time::Duration;

use fcdcc::planner::Rates;
use fcdcc::scheduler::Link;
use fcdcc::worker::{CpuWorker, inject};
use fcdcc::{ConvParams, ConvShape, Error, ErrorKind, LayerOptions, Result, Worker};
use fcdcc_bench::layers::NamedLayer;
use fcdcc_bench::schema::{ScenarioResult, Study};
use fcdcc_bench::{Comparison, Method, Plan, Scenario, SimulatedSetting};
use fcdcc_test_support::every_row;

fn layer(name: &str, input: &[usize], weight: &[usize]) -> NamedLayer {
    let shape = ConvShape::new(input, weight, &ConvParams::default().padding([1])).unwrap();
    NamedLayer { name: name.to_owned(), shape, count: 1 }
}

fn comparison(methods: &[Method], scenarios: &[&str]) -> Comparison {
    let scenarios: Vec<Scenario> = scenarios.iter().map(|text| text.parse().unwrap()).collect();
    let plan = Plan {
        workers: 6,
        tolerate: 2,
        trials: 4,
        seed: 5,
        scenarios: Some(scenarios),
        delay: None,
        break_even: false,
    };
    let base = LayerOptions::default().deadline(Duration::from_secs(20));
    Comparison::new(plan, methods.to_vec(), base)
}

#[expect(clippy::unnecessary_wraps, reason = "the signature of a factory")]
fn honest(count: usize) -> Result<Vec<Box<dyn Worker>>> {
    Ok(CpuWorker::fleet(count))
}

fn median(scenario: &ScenarioResult, method: &str) -> f64 {
    scenario.methods.iter().find(|m| m.method == method).unwrap().median.value
}

fn check_all(study: &Study) {
    for scenario in &study.scenarios {
        for method in &scenario.methods {
            assert_eq!(method.failed, 0, "{} {}", scenario.name, method.method);
            // f32 and condition numbers below a hundred.
            assert!(method.max_error.unwrap() < 1e-4, "{} {}", scenario.name, method.method);
            assert!(method.work > 0.5 && (0.0..1.0).contains(&method.wasted), "{method:?}");
            assert!(method.bytes_up > 0.0 && method.bytes_down > 0.0 && method.condition >= 1.0);
            assert_eq!(method.latencies_ms.len(), 4);
        }
    }
}

#[test]
fn every_method_is_exact_with_nobody_late_with_stragglers_and_with_crashes() {
    let mut comparison =
        comparison(&Method::ALL, &["none", "random:2:delay=60ms", "random:2:crash", "0:slow=3x"]);
    let study = comparison
        .layer::<f32>(&layer("tiny", &[1, 4, 12, 10], &[16, 4, 3, 3]), &honest, &mut |_| {})
        .unwrap()
        .clone();
    assert_eq!(study.plans.len(), Method::ALL.len());
    check_all(&study);
    let late = &study.scenarios[1];
    // Methods that need all workers wait for the stragglers; the others do not.
    assert!(median(late, "uncoded") >= 60.0);
    every_row(["replication", "mds", "crme", "chebyshev"], |method| {
        assert!(median(late, method) < 60.0, "{method}: {}", median(late, method));
    });
    let of = |name: &str| study.plans.iter().find(|plan| plan.method == name).unwrap();
    assert_eq!((of("mds").k_b, of("mds").recovery_threshold, of("crme").recovery_threshold), (1, 4, 4));
    assert_eq!((of("uncoded").tolerated, of("replication").tolerated), (0, 2));
    // Unneeded work: three copies of everything.
    let calm = |name: &str| study.scenarios[0].methods.iter().find(|m| m.method == name).unwrap();
    assert!(calm("uncoded").wasted < 0.01);
    assert!(calm("replication").work > calm("uncoded").work * 1.3);
}

#[test]
fn f64_is_compared_to_its_own_bound() {
    let mut comparison = comparison(&[Method::Uncoded, Method::Crme], &["random:1:delay=2ms"]);
    let study =
        comparison.layer::<f64>(&layer("tiny", &[1, 2, 8, 8], &[8, 2, 3, 3]), &honest, &mut |_| {}).unwrap();
    assert!(study.scenarios[0].methods.iter().all(|m| m.max_error.unwrap() < 1e-12));
}

#[test]
fn workers_that_compute_wrongly_are_caught() {
    let faulty = |count| inject(CpuWorker::fleet(count), &["all:corrupt=1e-2".parse()?], 1);
    let mut comparison = comparison(&[Method::Uncoded, Method::Crme], &["none"]);
    let error = comparison
        .layer::<f32>(&layer("tiny", &[1, 2, 8, 8], &[8, 2, 3, 3]), &faulty, &mut |_| {})
        .unwrap_err();
    assert!(matches!(error, Error::Inexact { .. }) && error.kind() == ErrorKind::Refused, "{error}");
}

#[test]
fn methods_that_cannot_be_had_are_accounted_for() {
    let mut comparison = comparison(&[Method::Uncoded, Method::Mds, Method::Crme], &["none"]);
    let one_row = layer("row", &[1, 4, 1, 4], &[32, 4, 3, 3]);
    let study = comparison.layer::<f32>(&one_row, &honest, &mut |_| {}).unwrap();
    let methods: Vec<&str> = study.plans.iter().map(|plan| plan.method.as_str()).collect();
    assert_eq!(methods, ["uncoded", "crme"]);
    let setting = fcdcc_bench::schema::Environment {
        version: String::new(),
        command: String::new(),
        date: String::new(),
        hardware: String::new(),
        system: String::new(),
        mode: "real".to_owned(),
        workers: String::new(),
        precision: "f32".to_owned(),
        seed: 5,
        trials: 4,
    };
    let report = comparison.report(setting, vec!["a note".to_owned()]);
    assert_eq!(report.findings[0], "a note");
    assert!(
        report.findings[1].contains("row: mds is left out: layer is one of 1 output rows"),
        "{:?}",
        report.findings
    );
    assert_eq!((report.conditions.len(), report.codec.len()), (1, 1));
    assert!((0.0..1.0).contains(&report.codec[0].share()));
    let text = serde_json::to_string(&report).unwrap();
    let back: fcdcc_bench::schema::BenchReport = serde_json::from_str(&text).unwrap();
    assert_eq!((back.studies[0].plans.len(), back.findings), (2, report.findings));
}

#[test]
fn simulated_workers_meet_the_same_scenarios_and_repeat_exactly() {
    let found = || {
        let methods = [Method::Uncoded, Method::Hedged, Method::Replication, Method::Mds, Method::Crme];
        let mut comparison =
            comparison(&methods, &["none", "random:6:delay=200ms", "random:8:crash", "random:5:slow=4x"]);
        (comparison.plan.workers, comparison.plan.tolerate, comparison.plan.break_even) = (60, 6, true);
        let link = Link { latency: Duration::from_micros(200), up_bytes_s: 1e9, down_bytes_s: 1e9 };
        let setting = SimulatedSetting { link, rates: Rates::default() };
        let big = layer("big", &[1, 64, 112, 112], &[128, 64, 3, 3]);
        comparison.simulated_layer::<f32>(&big, &setting, &mut |_| {}).unwrap().clone()
    };
    let study = found();
    assert_eq!(study, found());
    let late = &study.scenarios[1];
    assert!(median(late, "uncoded") > 200.0 && median(late, "crme") < 50.0, "{late:?}");
    assert!(median(late, "replication") < 50.0 && median(late, "hedged") < median(late, "uncoded"));
    assert!(study.scenarios.iter().flat_map(|s| &s.methods).all(|m| m.failed == 0 && m.max_error.is_none()));
    // One, three and all six tolerated stragglers, each against four methods.
    assert_eq!(study.break_even.len(), 12);
    assert!(study.break_even.iter().all(|sweep| sweep.against != "uncoded" || sweep.delay_ms.is_some()));
}
