use super::*;

fn result(method: &str, median: f64, to_first: f64) -> MethodResult {
    let about = |value: f64| Estimate { value, low: 0.9 * value, high: 1.1 * value };
    MethodResult {
        method: method.to_owned(),
        latencies_ms: vec![median; 20],
        failed: 0,
        median: about(median),
        p90: about(median),
        p99: about(median),
        p999: about(median),
        mean: about(median),
        to_first: about(to_first),
        encode_ms: 0.0,
        wait_ms: 0.0,
        decode_ms: 0.0,
        bytes_up: 0.0,
        bytes_down: 0.0,
        work: 1.0,
        wasted: 0.0,
        redispatched: 0.0,
        hedged: 0.0,
        max_error: None,
        condition: 1.0,
    }
}

/// A study of two methods, by their medians with no worker late and with one late.
fn study(name: &str, calm: [f64; 2], late: [f64; 2]) -> Study {
    let scenario = |name: &str, faults: &[&str], [first, coded]: [f64; 2]| ScenarioResult {
        name: name.to_owned(),
        faults: faults.iter().map(|fault| (*fault).to_owned()).collect(),
        stragglers: Some(faults.len()),
        delay_ms: None,
        methods: vec![result("uncoded", first, 1.0), result("crme", coded, coded / first)],
    };
    Study {
        name: name.to_owned(),
        kind: "layer".to_owned(),
        shape: String::new(),
        macs: 1.0,
        workers: 6,
        tolerate: 2,
        plans: Vec::new(),
        scenarios: vec![scenario("none late", &[], calm), scenario("one late", &["a"], late)],
        break_even: Vec::new(),
    }
}

#[test]
fn findings_of_one_kind_are_one_sentence() {
    let slow = [study("a", [1.0, 2.0], [1.0, 3.0]), study("b", [1.0, 1.5], [2.0, 8.0])];
    let found = findings(&slow);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains(
        "on 2 of 2 (95 % intervals in brackets): 2.00 times [1.80, 2.20] on a (2.00 instead of 1.00 ms)"
    ));
    assert!(
        found[1].contains("in 2 of 2 comparisons: uncoded in 2, at most 4.00 times as fast (b, one late")
    );
    // Negative control: where coding is as fast or faster there is nothing to report.
    assert!(findings(&[study("a", [1.0, 1.0], [3.0, 1.0])]).is_empty());
}

#[test]
fn failures_and_sweeps_that_never_cross_are_counted() {
    let mut all: Vec<Study> = (0..9).map(|i| study(&format!("s{i}"), [1.0, 1.0], [3.0, 1.0])).collect();
    for study in &mut all {
        study.scenarios[1].methods[0].failed = 3;
        let sweep = |delay_ms, other: f64| BreakEven {
            against: "uncoded".to_owned(),
            stragglers: 1,
            points: vec![[0.0, 2.0, 1.0], [10.0, 2.0, other]],
            delay_ms,
        };
        study.break_even = vec![sweep(None, 1.0), sweep(Some(5.0), 9.0), sweep(None, 1.99)];
    }
    let found = findings(&all);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("In 9 of 27 sweeps") && found[0].ends_with("and 5 more."), "{found:#?}");
    assert!(found[1].starts_with("No output from 27 runs") && found[1].contains("3 of 20 by uncoded (s0"));
}
