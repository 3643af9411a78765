//! Queueing formulas, conservation, and agreement with the simulator of single layers.

use super::super::faults::{Each, MachineFault, Span};
use super::super::spec::{Dispatch, LoadMethod, LoadSpec};
use super::super::study::arrivals;
use super::super::work::{FanOut, Placement, RequestPlan, Step, Workload};
use super::{GivenUp, RunOutcome, Setting, run};
use crate::layers::resolve;
use crate::stats::{mean, quantile};
use std::time::Duration;

fn setting(machines: usize, faults: Vec<MachineFault>) -> Setting {
    Setting {
        machines,
        links: [f64::INFINITY, f64::INFINITY],
        latency_s: 0.0,
        faults,
        seed: 11,
        dispatch: Dispatch::LeastQueue,
        most_copies: 3,
        most_in_flight: 100_000,
        most_events: 100_000_000,
    }
}

/// A request that is one task of `work_s` seconds, with these bytes each way.
fn task(work_s: f64, bytes: f64) -> RequestPlan {
    RequestPlan {
        steps: vec![Step::FanOut(0)],
        fan_outs: vec![FanOut {
            parts: 1,
            needed: 1,
            copies: 1,
            up_bytes: bytes,
            down_bytes: bytes,
            work_s,
            filter_bytes: 0.0,
            shares_input: false,
            layers: 1,
        }],
        placement: Placement::Any,
        hedge: None,
    }
}

fn poisson(rate: f64, count: usize) -> Vec<u64> {
    arrivals(&LoadSpec::default(), rate, count, 7)
}

/// Runs and gives mean and 99th percentile in seconds.
fn times(setting: &Setting, plan: &RequestPlan, rate: f64, count: usize) -> (f64, f64, RunOutcome) {
    let outcome = run(setting, plan, &poisson(rate, count), 100);
    let mut latencies = outcome.latencies_s.clone();
    latencies.sort_by(f64::total_cmp);
    (mean(&latencies), quantile(&latencies, 0.99), outcome)
}

fn exponential(mean_ms: u64) -> Vec<MachineFault> {
    let time = format!("exp({mean_ms}ms)").parse().unwrap();
    vec![MachineFault::Delay { chance: 1.0, time, each: Each::Task }]
}

/// Relative difference of a simulated mean or percentile from the formula: a few standard errors of 200 000 dependent
/// values at a load of 0.7.
const NEAR: f64 = 0.05;

fn close(found: f64, formula: f64) -> bool {
    (found / formula - 1.0).abs() < NEAR
}

#[test]
fn one_machine_with_exponential_times_is_an_mm1_queue() {
    for load in [0.3, 0.7] {
        let (mean, p99, outcome) =
            times(&setting(1, exponential(100)), &task(0.0, 0.0), load * 10.0, 200_000);
        let expected = 0.1 / (1.0 - load);
        assert!(close(mean, expected) && close(p99, -expected * 0.01_f64.ln()), "{load}: {mean} {p99}");
        assert!(close(outcome.utilisation.machine, load), "{}", outcome.utilisation.machine);
        // Negative control: the formula for another load is not met.
        assert!(!close(mean, 0.1 / (1.0 - load * 0.8)));
    }
}

#[test]
fn machines_links_and_master_with_fixed_times_are_md1_queues() {
    let rate = 7.0;
    let formula = |service: f64| {
        let load: f64 = rate * service;
        service + load * service / 2.0 / (1.0 - load)
    };
    let machine = times(&setting(1, Vec::new()), &task(0.1, 0.0), rate, 200_000).0;
    assert!(close(machine, formula(0.1)), "{machine} {}", formula(0.1));
    let master = RequestPlan { steps: vec![Step::Master(0.1)], ..task(0.0, 0.0) };
    let (host, _, outcome) = times(&setting(1, Vec::new()), &master, rate, 200_000);
    assert!(close(host, formula(0.1)) && close(outcome.utilisation.master, 0.7), "{host}");
    // The master's link, which many machines share: out it is a queue, and in the answers come in its pace.
    let slow = Setting { links: [f64::INFINITY, 1e6], ..setting(50, Vec::new()) };
    let (link, _, outcome) = times(&slow, &task(0.0, 1e5), rate, 200_000);
    assert!(close(link, formula(0.1) + 0.1), "{link} {}", formula(0.1) + 0.1);
    assert!(close(outcome.utilisation.link_out, 0.7) && close(outcome.utilisation.link_in, 0.7));
    // A machine's own link as slow as the master's adds nothing: a message crosses both at once.
    let both = Setting { links: [1e6, 1e6], ..setting(50, Vec::new()) };
    assert!(close(times(&both, &task(0.0, 1e5), rate, 200_000).0, link));
}

/// Two machines, the least queue: an M/M/2 queue if tasks could wait in common; waiting apart costs a little more.
#[test]
fn the_least_queue_lies_between_one_common_queue_and_turns() {
    let faults = exponential(100);
    let rate = 14.0;
    let (least, ..) = times(&setting(2, faults.clone()), &task(0.0, 0.0), rate, 200_000);
    let turns = Setting { dispatch: Dispatch::RoundRobin, ..setting(2, faults) };
    let (turns, ..) = times(&turns, &task(0.0, 0.0), rate, 200_000);
    let common = 0.1 / (1.0 - 0.7 * 0.7);
    let apart = 0.1 / (1.0 - 0.7);
    assert!(common < least && least < turns && turns < apart, "{common} {least} {turns} {apart}");
}

fn mixed_faults() -> Vec<MachineFault> {
    let (ms, law) = (|ms| Span(Duration::from_millis(ms)), |text: &str| text.parse().unwrap());
    vec![
        MachineFault::Delay { chance: 0.1, time: law("exp(200ms)"), each: Each::Layer },
        MachineFault::Pause { every: ms(5000), lasting: law("exp(300ms)"), machines: 1.0 },
        MachineFault::Slow { factor: 3.0, every: ms(9000), lasting: law("pareto(200ms, 2)"), machines: 0.5 },
        MachineFault::Crash { every: ms(20_000), lasting: law("exp(2s)"), notice: ms(100), machines: 1.0 },
    ]
}

fn office(change: impl FnOnce(&mut LoadSpec)) -> LoadSpec {
    let mut spec = LoadSpec { loads: vec![0.2], ..LoadSpec::default() };
    change(&mut spec);
    spec.check().unwrap();
    spec
}

fn outcome_of(spec: &LoadSpec, model: &str, method: LoadMethod, load: f64, count: usize) -> RunOutcome {
    let workload = Workload::new(resolve(model).unwrap(), spec);
    let rate = load * workload.capacity(spec.machines.count);
    let plan = workload.plan(method, Some(0.9)).unwrap();
    let links = [spec.machines.link_mbit, spec.master.link_mbit].map(|mbit| mbit * 1e6 / 8.0);
    let setting = Setting {
        links,
        latency_s: spec.machines.latency.seconds(),
        ..setting(spec.machines.count, spec.faults.clone())
    };
    run(&setting, &plan, &arrivals(spec, rate, count, 5), 0)
}

#[test]
fn every_request_ends_once_and_work_is_conserved() {
    let calm = office(|spec| spec.machines.count = 16);
    let rough = office(|spec| {
        spec.machines.count = 16;
        spec.faults = mixed_faults();
    });
    for method in LoadMethod::ALL {
        for (spec, faults) in [(&calm, false), (&rough, true)] {
            let outcome = outcome_of(spec, "alexnet", method, 0.2, 1500);
            assert_eq!(outcome.given_up, None, "{method:?}");
            assert_eq!(outcome.answered + outcome.failed, 1500, "{method:?}");
            let finite = outcome.latencies_s.iter().filter(|seconds| seconds.is_finite()).count();
            assert_eq!((finite, outcome.in_system.len()), (outcome.answered, 1500), "{method:?}");
            assert!(outcome.latencies_s.iter().all(|seconds| *seconds > 0.0), "{method:?}");
            let spare = outcome.work_s - outcome.used_s;
            assert!(spare >= -1e-6 * outcome.used_s, "{method:?}: {} {}", outcome.work_s, outcome.used_s);
            if !faults {
                assert_eq!(outcome.failed, 0, "{method:?}");
                // Planned requests may use no machine at all.
                let all_used =
                    matches!(method, LoadMethod::Replicas | LoadMethod::Uncoded) || outcome.used_s == 0.0;
                assert!((spare.abs() < 1e-6 * outcome.used_s.max(1e-9)) == all_used, "{method:?}: {spare}");
            }
        }
        // Negative control: the faults are felt, except by the master.
        let (calm, rough) = (
            outcome_of(&calm, "alexnet", method, 0.2, 1500),
            outcome_of(&rough, "alexnet", method, 0.2, 1500),
        );
        let slower = mean(&rough.latencies_s) > mean(&calm.latencies_s);
        assert_eq!(slower, calm.used_s > 0.0, "{method:?}");
    }
}

#[test]
fn lost_machines_lose_tasks_and_the_rest_answers() {
    let spec = office(|spec| {
        let (ms, law) = (|ms| Span(Duration::from_millis(ms)), |text: &str| text.parse().unwrap());
        let crash =
            MachineFault::Crash { every: ms(3000), lasting: law("2s"), notice: ms(50), machines: 1.0 };
        spec.faults = vec![crash];
    });
    for method in [LoadMethod::Replicas, LoadMethod::Uncoded, LoadMethod::Crme] {
        let outcome = outcome_of(&spec, "alexnet", method, 0.1, 2000);
        assert!(outcome.redispatched > 0, "{method:?}");
        assert!(outcome.answered > 1900, "{method:?}: {}", outcome.answered);
    }
    // No machine is ever there for long enough: requests fail and are not answered.
    let lost = office(|spec| {
        let (ms, law) = (|ms| Span(Duration::from_millis(ms)), |text: &str| text.parse().unwrap());
        let crash = MachineFault::Crash { every: ms(2), lasting: law("30ms"), notice: ms(1), machines: 1.0 };
        spec.faults = vec![crash];
    });
    let outcome = outcome_of(&lost, "vgg16", LoadMethod::Replicas, 0.01, 20);
    assert_eq!((outcome.answered, outcome.failed), (0, 20));
}

#[test]
fn latency_grows_with_load_until_the_run_is_given_up() {
    let spec = office(|spec| spec.faults = mixed_faults()[..2].to_vec());
    let p90 = |method, load| {
        let mut latencies = outcome_of(&spec, "alexnet", method, load, 3000).latencies_s;
        latencies.sort_by(f64::total_cmp);
        quantile(&latencies, 0.9)
    };
    for method in [LoadMethod::Replicas, LoadMethod::Crme, LoadMethod::UncodedHedged] {
        let values: Vec<f64> = [0.02, 0.2, 0.35].map(|load| p90(method, load)).into();
        assert!(values.is_sorted(), "{method:?}: {values:?}");
    }
    let cap = Setting { most_in_flight: 50, ..setting(1, Vec::new()) };
    let outcome = run(&cap, &task(0.1, 0.0), &poisson(20.0, 5000), 0);
    assert_eq!(outcome.given_up, Some(GivenUp::InFlight));
    assert!(outcome.latencies_s.iter().any(|seconds| seconds.is_infinite()));
    let few = Setting { most_events: 500, ..setting(1, Vec::new()) };
    assert_eq!(run(&few, &task(0.1, 0.0), &poisson(1.0, 5000), 0).given_up, Some(GivenUp::Events));
}

#[test]
fn hedging_without_stragglers_sends_little_and_with_them_it_helps() {
    let calm = office(|_| {});
    let count = 3000;
    let plain = outcome_of(&calm, "alexnet", LoadMethod::Replicas, 0.05, count);
    let hedged = outcome_of(&calm, "alexnet", LoadMethod::ReplicasHedged, 0.05, count);
    // Equal machines take equal times; what waits in a queue is hedged at times.
    assert!(hedged.hedged < count * 15 / 100, "{}", hedged.hedged);
    assert!(hedged.work_s < 1.1 * plain.work_s);
    let p99 = |outcome: &RunOutcome| {
        let mut latencies = outcome.latencies_s.clone();
        latencies.sort_by(f64::total_cmp);
        quantile(&latencies, 0.99)
    };
    assert!((p99(&hedged) / p99(&plain) - 1.0).abs() < 0.1, "{} {}", p99(&hedged), p99(&plain));
    let rough = office(|spec| {
        let time = "1s".parse().unwrap();
        spec.faults = vec![MachineFault::Delay { chance: 0.05, time, each: Each::Task }];
    });
    let plain = outcome_of(&rough, "alexnet", LoadMethod::Replicas, 0.05, count);
    let hedged = outcome_of(&rough, "alexnet", LoadMethod::ReplicasHedged, 0.05, count);
    assert!(p99(&hedged) < 0.5 * p99(&plain), "{} {}", p99(&hedged), p99(&plain));
}

#[test]
fn equal_seeds_give_equal_runs_and_methods_meet_the_same_faults() {
    let spec = office(|spec| spec.faults = mixed_faults());
    let once = outcome_of(&spec, "alexnet", LoadMethod::CrmeHedged, 0.2, 800);
    assert_eq!(once, outcome_of(&spec, "alexnet", LoadMethod::CrmeHedged, 0.2, 800));
    let other = office(|spec| {
        spec.faults = mixed_faults();
        spec.seed = 2;
    });
    // The seed of arrivals and of faults is an argument of the run, not of the file.
    assert_eq!(once, outcome_of(&other, "alexnet", LoadMethod::CrmeHedged, 0.2, 800));
}

mod agreement {
    //! One request at a time, against the simulator that runs the real scheduler.

    use super::*;
    use crate::{Comparison, Method, Plan, Scenario, SimulatedSetting};
    use fcdcc::engine::LayerOptions;
    use fcdcc::planner::Rates;
    use fcdcc::scheduler::{Audit, Link, Policy};

    /// Greatest relative difference of medians: both count what the other leaves out (the order of sub-results, and the
    /// time for dispatching each subtask).
    const AGREES: f64 = 0.15;

    const WORKERS: usize = 10;
    const TOLERATE: usize = 3;
    const LATENCY: Duration = Duration::from_micros(300);

    /// Medians of the real scheduler in virtual time, in milliseconds.
    fn scheduled(layer: &str, mbit: f64, scenario: &str, methods: &[Method]) -> Vec<f64> {
        let plan = Plan {
            workers: WORKERS,
            tolerate: TOLERATE,
            trials: 300,
            seed: 3,
            scenarios: Some(vec![scenario.parse::<Scenario>().unwrap()]),
            delay: None,
            break_even: false,
        };
        let bytes_s = mbit * 1e6 / 8.0;
        let link = Link { latency: LATENCY, up_bytes_s: bytes_s, down_bytes_s: bytes_s };
        let mut rates = Rates::default();
        rates.worker.call_s += 2.0 * LATENCY.as_secs_f64();
        rates.worker.upload_s += 4.0 / bytes_s;
        rates.worker.download_s += 4.0 / bytes_s;
        let policy = Policy { hedge: None, audit: Audit::Off, patience: 0.0, ..Policy::default() };
        let base = LayerOptions {
            rates,
            tolerate: TOLERATE,
            policy,
            max_error: Some(1.0),
            ..LayerOptions::default()
        };
        let mut comparison = Comparison::new(plan, methods.to_vec(), base);
        let setting = SimulatedSetting { link, rates: Rates::default() };
        let layer = resolve(layer).unwrap().remove(0);
        let study = comparison.simulated_layer::<f32>(&layer, &setting, &mut |_| {}).unwrap();
        study.scenarios[0].methods.iter().map(|method| method.median.value).collect()
    }

    /// Medians under load, with one request at a time.
    fn loaded(layer: &str, mbit: f64, faults: Vec<MachineFault>, method: LoadMethod) -> f64 {
        let mut spec = LoadSpec::default();
        spec.coding.group = WORKERS;
        spec.coding.tolerate = TOLERATE;
        spec.machines.count = WORKERS;
        spec.machines.link_mbit = mbit;
        // Each link on its own: the master's link is as fast as all of them.
        spec.master.link_mbit = 1e9;
        spec.machines.latency = Span(LATENCY);
        let mut layers = resolve(layer).unwrap();
        // Networks may have the layer more than once.
        layers[0].count = 1;
        let workload = Workload::new(layers, &spec).at(&Rates::default());
        let plan = workload.plan(method, None).unwrap();
        let bytes_s = mbit * 1e6 / 8.0;
        let setting = Setting {
            links: [bytes_s, f64::INFINITY],
            latency_s: LATENCY.as_secs_f64(),
            ..setting(WORKERS, faults)
        };
        let times: Vec<u64> = (1..=400).map(|i| i * 20_000_000_000).collect();
        let outcome = run(&setting, &plan, &times, 0);
        assert!(outcome.in_system.iter().all(|waiting| *waiting == 0), "one request at a time");
        let ms: Vec<f64> = outcome.latencies_s.iter().map(|seconds| seconds * 1e3).collect();
        crate::stats::median(&ms)
    }

    #[test]
    fn single_requests_take_as_long_as_with_the_real_scheduler() {
        let rows = [
            ("vgg16/conv4_2", 1000.0, "none"),
            ("vgg16/conv4_2", 100.0, "none"),
            ("vgg16/conv1_2", 1000.0, "none"),
            ("alexnet/conv3", 1000.0, "none"),
            ("resnet50/conv4_3x3", 1000.0, "all:delay=exp(20ms)"),
            ("vgg16/conv3_2", 1000.0, "all:delay=exp(50ms)"),
        ];
        for (layer, mbit, scenario) in rows {
            let mean = scenario.split_once("exp(").map(|(_, rest)| rest.trim_end_matches(')').to_owned());
            let faults = mean.map_or_else(Vec::new, |mean| {
                let time = format!("exp({mean})").parse().unwrap();
                vec![MachineFault::Delay { chance: 1.0, time, each: Each::Task }]
            });
            let real = scheduled(layer, mbit, scenario, &[Method::Uncoded, Method::Crme]);
            for (method, real) in [LoadMethod::Uncoded, LoadMethod::Crme].into_iter().zip(real) {
                let ours = loaded(layer, mbit, faults.clone(), method);
                assert!(
                    (ours / real - 1.0).abs() < AGREES,
                    "{layer} at {mbit} Mbit/s, {scenario}, {method:?}: {ours} ms, real scheduler {real} ms"
                );
                // Negative control: less bandwidth, or delays left out, are seen.
                let (mbit, none) = (if faults.is_empty() { mbit / 8.0 } else { mbit }, Vec::new());
                let other = loaded(layer, mbit, none, method);
                assert!((other / real - 1.0).abs() > AGREES, "{layer} {method:?}: {other} {real}");
            }
        }
    }
}
