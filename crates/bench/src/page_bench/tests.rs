use super::*;
use crate::format::malformed;
use crate::schema::*;
use crate::stats::{estimates, mean, paired_ratio, quantile};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

const METHODS: [&str; 5] = ["uncoded", "replication", "hedged", "mds", "crme"];
const LAYERS: [(&str, f64); 4] =
    [("lenet5/conv1", 0.3), ("alexnet/conv1", 9.0), ("vgg16/conv3_2", 42.0), ("resnet50/conv2_expand", 6.0)];
/// Name, faults, stragglers, delay.
type Kind = (&'static str, &'static [&'static str], Option<usize>, Option<f64>);
const SCENARIOS: [Kind; 7] = [
    ("no faults", &[], Some(0), None),
    ("1 of 6 workers 100 ms late", &["random:1:delay=100ms"], Some(1), Some(100.0)),
    ("2 of 6 workers 100 ms late", &["random:2:delay=100ms"], Some(2), Some(100.0)),
    ("3 of 6 workers 100 ms late", &["random:3:delay=100ms"], Some(3), Some(100.0)),
    ("exponential delays, mean 20 ms", &["all:exp=20ms"], None, None),
    ("one worker dies", &["random:1:die"], Some(1), None),
    ("one worker three times slower", &["random:1:slow=3"], Some(1), None),
];

fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (f64::from(rng.next_u32()) + 0.5) / 4_294_967_296.0
}

/// A made-up latency: the base with the method's overhead, and late if more workers straggle than the method tolerates.
fn latency(method: usize, base: f64, (_, _, stragglers, delay): &Kind, rng: &mut ChaCha8Rng) -> f64 {
    let overhead = [1.0, 1.9, 1.02, 1.35, 1.4][method];
    let spares = [0, 1, 1, 2, 2][method];
    let noise = 1.0 + 0.15 * uniform(rng) - 0.05 * uniform(rng).ln();
    let late = match (stragglers, delay) {
        (Some(count), Some(delay)) if *count > spares => *delay,
        (None, _) => -20.0 * (uniform(rng) * if spares == 2 { 0.5 } else { 0.1 } + 0.3).min(1.0).ln(),
        (Some(1), None) if spares == 0 => base,
        _ => 0.0,
    };
    0.4 + base * overhead * noise + late * (if method == 2 { 0.5 } else { 1.0 })
}

fn result(method: usize, latencies: Vec<f64>, first: &[f64], scenario: &Kind) -> MethodResult {
    let at = |q: f64| move |sorted: &[f64]| quantile(sorted, q);
    let [median, p90, p99, p999, mean] =
        estimates(&latencies, [&at(0.5), &at(0.9), &at(0.99), &at(0.999), &mean], 7);
    let coded = method >= 3;
    MethodResult {
        method: METHODS[method].to_owned(),
        to_first: paired_ratio(&latencies, first, 7),
        failed: if scenario.0 == "one worker dies" && method == 0 { 3 } else { 0 },
        encode_ms: if coded { 0.06 * median.value } else { 0.01 },
        decode_ms: if coded { 0.08 * median.value } else { 0.02 },
        wait_ms: 0.86 * median.value,
        median,
        p90,
        p99,
        p999,
        mean,
        latencies_ms: latencies,
        bytes_up: 3.2e6 * (1.0 + method as f64),
        bytes_down: 2.4e6,
        work: [1.0, 2.0, 1.1, 1.5, 1.5][method],
        wasted: [0.0, 0.5, 0.09, 0.33, 0.33][method],
        redispatched: 0.0,
        hedged: if method == 2 { 1.3 } else { 0.0 },
        max_error: Some([0.0, 0.0, 0.0, 3e-4, 2e-6][method]),
        condition: [1.0, 1.0, 1.0, 310.0, 8.2][method],
    }
}

fn study((name, base): (&str, f64), trials: usize) -> Study {
    let scenario = |kind: &Kind| {
        let mut rng = ChaCha8Rng::seed_from_u64(kind.0.len() as u64 + name.len() as u64);
        let mut latencies = |method| (0..trials).map(|_| latency(method, base, kind, &mut rng)).collect();
        let first: Vec<f64> = latencies(0);
        let others = (1..METHODS.len()).map(|m| result(m, latencies(m), &first, kind));
        let others: Vec<MethodResult> = others.collect();
        ScenarioResult {
            name: kind.0.to_owned(),
            faults: kind.1.iter().map(|f| (*f).to_owned()).collect(),
            stragglers: kind.2,
            delay_ms: kind.3,
            methods: std::iter::once(result(0, first.clone(), &first, kind)).chain(others).collect(),
        }
    };
    let plan = |method: usize| MethodPlan {
        method: METHODS[method].to_owned(),
        about: [
            "six parts, all needed",
            "three parts twice",
            "six parts, late ones copied",
            "real MDS code",
            "",
        ][method]
            .to_owned(),
        code: ["uncoded", "uncoded", "uncoded", "mds", "crme"][method].to_owned(),
        n: 6,
        recovery_threshold: [6, 3, 6, 4, 4][method],
        k_a: 2,
        k_b: [3, 3, 3, 2, 8][method],
        tolerated: [0, 1, 0, 2, 2][method],
        work: 1.5,
        upload_bytes: 3.1e6,
        download_bytes: 2.2e6,
        filter_bytes: 5.1e5,
        predicted_ms: (method > 0).then_some(base),
    };
    let even = |against: &str, stragglers, scale: f64| {
        let points: Vec<[f64; 3]> =
            [0.0, 10.0, 20.0, 50.0, 100.0].map(|d| [d, base * 1.4, base * scale + d]).into();
        BreakEven {
            against: against.to_owned(),
            stragglers,
            delay_ms: crate::stats::crossing(&points),
            points,
        }
    };
    Study {
        name: name.to_owned(),
        kind: "layer".to_owned(),
        shape: "256x56x56, 256 3x3".to_owned(),
        macs: base * 4.4e7,
        workers: 6,
        tolerate: 2,
        plans: (0..METHODS.len()).map(plan).collect(),
        scenarios: SCENARIOS.iter().map(scenario).collect(),
        break_even: vec![
            even("uncoded", 1, 1.0),
            even("uncoded", 2, 1.0),
            even("replication", 1, 1.9),
            even("hedged", 1, 1.2),
        ],
    }
}

fn report(trials: usize) -> BenchReport {
    let codec = |(i, (name, base)): (usize, &(&str, f64))| CodecCost {
        name: (*name).to_owned(),
        encode_cpu_ms: 0.2 + 0.01 * base,
        decode_cpu_ms: 0.1 + 0.01 * base,
        total_cpu_ms: 8.0 * base + i as f64,
    };
    let condition = |code: &str, worst| Conditions {
        code: code.to_owned(),
        n: 6,
        recovery_threshold: 4,
        k_a: 2,
        k_b: 8,
        sets: 15,
        exhaustive: true,
        median: 8.2,
        p90: 12.0,
        p99: 19.0,
        worst,
    };
    BenchReport {
        schema: SCHEMA,
        setting: Environment {
            version: "0.1.0".to_owned(),
            command: "fcdcc bench --layers vgg16,alexnet --trials 200 --seed 7 --html report.html".to_owned(),
            date: "2026-11-22T10:00:00Z".to_owned(),
            hardware: "AMD EPYC 7B13, 16 cores".to_owned(),
            system: "linux x86_64".to_owned(),
            mode: "real".to_owned(),
            workers: "6 x CPU thread".to_owned(),
            precision: "f32".to_owned(),
            seed: 7,
            trials,
        },
        studies: LAYERS.iter().map(|layer| study(*layer, trials)).collect(),
        codec: LAYERS.iter().enumerate().map(codec).collect(),
        conditions: vec![condition("crme", 21.5), condition("mds", f64::INFINITY)],
        findings: vec!["Without stragglers coding costs 30 to 40 % more time.".to_owned()],
    }
}

/// If `FCDCC_PAGE` is set to a path, writes the page there for inspection.
#[test]
fn a_page_names_everything_and_is_well_formed() {
    let html = page(&report(60)).html();
    if let Some(path) = std::env::var_os("FCDCC_PAGE") {
        std::fs::write(path, &html).unwrap();
    }
    assert_eq!(malformed(&html), None);
    assert!(!html.contains("NaN") && !html.replace("http://www.w3.org/2000/svg", "").contains("http"));
    let scenarios = SCENARIOS.iter().map(|s| s.0);
    for name in METHODS.into_iter().chain(LAYERS.map(|l| l.0)).chain(scenarios) {
        assert!(html.contains(name), "{name}");
    }
    for word in ["--seed 7", "EPYC", "Where crme loses", "random:2:delay=100ms", "∞", "30 to 40 %"] {
        assert!(html.contains(word), "{word}");
    }
    assert_eq!(html, page(&report(60)).html());
    // The answer and a picture of the tails of all four layers come before any table.
    let (before, _) = html.split_once("<table").unwrap();
    assert!(before.contains("With 2 of 6 workers late, the 99th percentile of crme is "), "{before:.3000}");
    assert_eq!(before.split("class=\"narrow-picture\"").next().unwrap().matches("<svg").count(), 4);
    // The page of ten studies with thousands of trials stays within what a browser handles well.
    assert!(html.len() < 1_500_000, "{}", html.len());
}

#[test]
fn hostile_names_are_escaped() {
    let mut report = report(5);
    let hostile = "<b>&\"'</title>".to_owned();
    for study in &mut report.studies {
        study.name.clone_from(&hostile);
        study.shape.clone_from(&hostile);
        for plan in &mut study.plans {
            plan.about.clone_from(&hostile);
        }
        for scenario in &mut study.scenarios {
            scenario.name.clone_from(&hostile);
            scenario.faults = vec![hostile.clone()];
            for method in &mut scenario.methods {
                method.method.insert_str(0, &hostile);
            }
        }
    }
    report.setting.command.clone_from(&hostile);
    let html = page(&report).html();
    assert_eq!(malformed(&html), None);
    assert!(!html.contains("<b>"));
}

#[test]
fn what_is_missing_or_infinite_is_no_harm() {
    let mut odd = report(5);
    odd.studies[1].plans.clear();
    odd.studies[2].scenarios.clear();
    for scenario in &mut odd.studies[0].scenarios {
        for method in &mut scenario.methods {
            method.latencies_ms = vec![f64::INFINITY, f64::NAN];
            method.median = Estimate { value: f64::NAN, low: f64::NEG_INFINITY, high: f64::INFINITY };
            method.to_first = method.median;
            (method.work, method.bytes_up, method.condition) = (f64::INFINITY, f64::NAN, f64::INFINITY);
        }
    }
    assert_eq!(malformed(&page(&odd).html()), None);
    let mut empty = report(1);
    empty.studies.clear();
    (empty.codec, empty.conditions) = (Vec::new(), Vec::new());
    let html = page(&empty).html();
    assert!(malformed(&html).is_none() && html.contains("nothing to compare"));
}

/// The findings of a report on two methods with these latencies in a single scenario.
fn duel(uncoded: &[f64], coded: &[f64], failed: [usize; 2]) -> String {
    let mut report = report(3);
    report.findings.clear();
    report.studies.truncate(1);
    let study = &mut report.studies[0];
    study.plans.retain(|plan| ["uncoded", "crme"].contains(&plan.method.as_str()));
    study.scenarios.truncate(1);
    let kind = &SCENARIOS[0];
    study.scenarios[0].methods =
        vec![result(0, uncoded.to_vec(), uncoded, kind), result(4, coded.to_vec(), uncoded, kind)];
    for (method, failed) in study.scenarios[0].methods.iter_mut().zip(failed) {
        method.failed = failed;
    }
    let page = page(&report);
    page.sections.iter().take(2).flat_map(|s| s.text.clone()).collect::<Vec<_>>().join("\n")
}

#[test]
fn only_what_the_intervals_bear_out_is_claimed() {
    let base: Vec<f64> = (0..40).map(|i| 10.0 + f64::from(i % 7)).collect();
    let times = |factor: f64| base.iter().map(|ms| ms * factor).collect::<Vec<_>>();
    let noisy: Vec<f64> =
        base.iter().enumerate().map(|(i, ms)| if i % 2 == 0 { ms * 0.8 } else { ms * 1.25 }).collect();
    let said = |coded: &[f64], failed| duel(&base, coded, failed);
    assert!(said(&times(0.5), [0, 0]).contains("faster by a factor of 2.00 [2.00, 2.00]"));
    assert!(said(&times(0.5), [0, 0]).contains("Nowhere"));
    assert!(said(&times(2.0), [0, 0]).contains("slower by a factor of 2.00"));
    assert!(said(&times(2.0), [0, 0]).contains("In 1 of 1 comparisons"));
    assert!(said(&noisy, [0, 0]).contains("no difference seen"));
    // An interval that barely excludes 1 does not count as a difference.
    assert!(said(&times(1.005), [0, 0]).contains("no difference seen"));
    // A method that fails does not win, however fast.
    let fast_failure = said(&times(0.1), [0, 2]);
    assert!(fast_failure.contains("failed 2 of 40") && !fast_failure.contains("faster by"), "{fast_failure}");
    assert!(said(&times(2.0), [2, 0]).contains("finished every run"));
}

#[test]
fn the_answer_is_about_the_tail_and_leaves_out_failures() {
    let mut one = report(60);
    one.studies.truncate(1);
    let told = page(&one).answer;
    assert!(
        told.starts_with("With 2 of 6 workers late, the 99th percentile of crme is ")
            && told.contains(" ms against ")
            && told.contains("; with none late it is "),
        "{told}"
    );
    // If the runs that would be compared failed, the medians of all scenarios are compared instead.
    for method in &mut one.studies[0].scenarios[2].methods {
        method.failed = 1;
    }
    assert!(page(&one).answer.starts_with("crme against uncoded: "), "{}", page(&one).answer);
    // Few trials have no tail to speak of, and the caption says so.
    assert!(
        page(&report(60)).caption.contains("With 60 trials")
            && !page(&report(100)).caption.contains("trials")
    );
}
