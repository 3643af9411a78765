//! A soak test in virtual time: thousands of runs on simulated workers that are slow, lost, silent or faulty, over links
//! that lose, delay and reorder messages.
//!
//! Job, gathering, tracking, encoding, sub-results and decoding are those of production; workers, links and clock are a
//! [`SimulatedFleet`], whose workers compute. A run depends on its seed alone. Set `FCDCC_SOAK_SEED` to run another seed; a
//! failure prints the seed it had.

mod checks;
mod layer;
mod workers;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use self::layer::{Layer, mean_square, numbers};
use self::workers::{
    Computing, Filters, Nature, Observed, any_message_faults, any_natures, ms, plain_sub_result,
};
use super::holdings::Holdings;
use super::tracker::DecodingTracker;
use crate::array::{Buffers, DType, Pooled, Values};
use crate::coding::{CodeKind, Rounding, encode_input};
use crate::conv::reference;
use crate::error::Error;
use crate::ids::WorkerId;
use crate::scheduler::{
    Audit, Decision, Fleet, JobLayer, JobPlan, Link, MessageFaults, OnShortfall, Policy, RunEstimates,
    RunOutcome, SimulatedFleet, SimulatedHost, SimulatedWork, SimulatedWorker, run_job,
};
use crate::worker::{CancelToken, TaskFault};

/// A code, its (k_A, k_B, n), and a condition number that lies between those of its responder sets (where they differ).
const CODES: [(CodeKind, (usize, usize, usize), f64); 8] = [
    (CodeKind::Crme, (4, 4, 6), 4.0),
    (CodeKind::Crme, (4, 8, 10), 7.0),
    (CodeKind::Crme, (1, 8, 6), 4.0),
    (CodeKind::Crme, (8, 1, 6), 4.0),
    (CodeKind::Crme, (8, 8, 20), 15.0),
    (CodeKind::Chebyshev, (2, 2, 7), 4.0),
    (CodeKind::Replication, (1, 2, 6), 2.0),
    (CodeKind::Replication, (3, 1, 11), 2.0),
];

const SEED: u64 = 20_261_122;
const DEADLINE: Duration = Duration::from_secs(1);
const EPSILON: f64 = f32::EPSILON as f64;

/// Maximum ratio of the true error to the predicted one. The prediction is an upper estimate: the true error is about a
/// sixth of it.
const SLACK: f64 = 1.0;

/// The smallest injected error, relative to a sub-result of average size: an audit must find it.
const LEAST_LIE: f64 = 1e-3;

/// Number of kinds of settings for each code and policy: one for each combination of five switches.
const SWITCHES: usize = 32;

/// The settings of one run.
#[derive(Clone, Debug)]
struct Setting {
    layer: usize,
    policy: Policy,
    limited: bool,
    /// Messages are lost, delayed and reordered, and links are cut in one direction.
    bad_network: bool,
    seed: u64,
}

/// Counts over all runs, to check that the soak test covered every kind of outcome.
#[derive(Clone, Debug, Default, PartialEq)]
struct Tally {
    decoded: usize,
    from_parts: usize,
    better_than_needed: usize,
    local: usize,
    refused: usize,
    failed: usize,
    over_the_limit: usize,
    hedged: usize,
    redispatched: usize,
    found: usize,
    audited: usize,
    /// Outputs decoded from a wrong sub-result.
    tainted: usize,
    visibly: usize,
    /// Runs over a bad network that decoded.
    over_bad_network: usize,
    /// The largest ratio of the true error to the predicted one.
    worst: f64,
    /// Digest of all attempts and decisions, in order.
    digest: u64,
}

impl Tally {
    fn digest(&mut self, values: impl IntoIterator<Item = u64>) {
        for value in values {
            self.digest = (self.digest.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }

    fn digest_time(&mut self, time: Duration) {
        self.digest([time.as_secs(), time.subsec_nanos().into()]);
    }
}

/// One run with everything that was drawn for it.
struct Run<'a> {
    layer: &'a Layer,
    setting: &'a Setting,
    rng: ChaCha8Rng,
    natures: Vec<Nature>,
    /// All workers are equally fast.
    in_step: bool,
    faults: MessageFaults,
    estimates: RunEstimates,
    /// Upper limit of predicted errors, if any.
    limit: Option<f64>,
    tally: &'a mut Tally,
}

impl<'a> Run<'a> {
    fn new(layer: &'a Layer, setting: &'a Setting, mut rng: ChaCha8Rng, tally: &'a mut Tally) -> Self {
        let n = layer.code.n();
        let limit = setting.limited.then_some(layer.limit);
        let known = rng.random_bool(0.5);
        let comfortable = if rng.random_bool(0.5) { 2.0 } else { 100.0 };
        let estimates = RunEstimates {
            comfortable: Rounding::plain::<f32>(layer.shape.reduction()).normwise(comfortable),
            max_error: limit,
            parts_at: Some(ms(rng.random_range(0.0..20.0))),
            hedge_at: known.then(|| ms(rng.random_range(10.0..60.0))),
            expected: (0..n).map(|_| known.then(|| ms(rng.random_range(5.0..40.0)))).collect(),
            local: [Duration::ZERO, DEADLINE / 3, DEADLINE][rng.random_range(0..3)],
            spare: (known && setting.policy.on_shortfall != OnShortfall::Fail).then(|| ms(5.0)),
        };
        let natures = any_natures(layer, &mut rng);
        let faults = any_message_faults(natures.len(), &mut rng);
        let faults = if setting.bad_network { faults } else { MessageFaults::default() };
        Self { layer, setting, rng, natures, in_step: false, faults, estimates, limit, tally }
    }

    /// Workers with these natures, each on its own machine.
    fn fleet(&mut self, slabs: &[Vec<f32>]) -> SimulatedFleet {
        let (rng, in_step) = (&mut self.rng, self.in_step);
        let link = Link { latency: ms(0.2), ..Link::NONE };
        let host = |i| SimulatedHost { name: format!("host-{i}"), cores: f64::INFINITY };
        let hosts = (0..self.natures.len()).map(host).collect();
        let worker = |host| SimulatedWorker {
            name: format!("worker-{host}"),
            host,
            pace: if in_step { 4.0 } else { rng.random_range(2.0..6.0) },
            link,
        };
        let workers = (0..self.natures.len()).map(worker).collect();
        let mut fleet = SimulatedFleet::new(hosts, workers).unwrap();
        for (worker, nature) in (0..).map(WorkerId).zip(&self.natures) {
            if let Nature::Mortal(at, back) = nature {
                fleet.lose(worker, *at, *back);
            }
        }
        let fault = |nature: &Nature| TaskFault {
            delay: ms(if in_step { 0.0 } else { rng.random_range(0.0..3.0) }),
            slow: if let Nature::Slow(factor) = nature { *factor } else { 1.0 },
            silent: *nature == Nature::Silent,
            crash: false,
        };
        let fates: Vec<TaskFault> = self.natures.iter().map(fault).collect();
        fleet.set_fates(&fates);
        fleet.set_message_faults(self.faults.clone());
        let (code, subtask) = (&self.layer.code, &self.layer.subtask);
        let each = (0..code.n()).flat_map(|i| (0..code.sub_results()).map(move |index| (i, index)));
        let squares = each.map(|(i, index)| {
            mean_square(&plain_sub_result(subtask, &slabs[i], &self.layer.banks[i], index))
        });
        let mut computing = Computing {
            subtask: Arc::clone(subtask),
            banks: Arc::clone(&self.layer.banks),
            size: (squares.sum::<f64>() / (code.n() * code.sub_results()) as f64).sqrt(),
            rng: ChaCha8Rng::seed_from_u64(rng.random()),
            begun: vec![Vec::new(); self.natures.len()],
            computed: HashMap::new(),
            natures: self.natures.clone(),
        };
        fleet.compute_with(Box::new(move |worker, task, index| {
            let slabs = task.slabs.as_slice::<f32>()?;
            computing.sub_result(worker, task.attempt, task.key.subtask, slabs, index).map(Values::F32)
        }));
        fleet
    }

    /// Runs the job, and checks what must hold for any end of it.
    fn run(&mut self, input: &[f32], truth: &[f64]) -> Result<(), String> {
        let layer = self.layer;
        let slabs = encode_input(&layer.code, &layer.shape, &layer.slabs, input, Vec::new());
        let mut fleet = self.fleet(&slabs);
        let workers = self.natures.len();
        let assignment = (0..layer.code.n()).map(|subtask| WorkerId(subtask % workers)).collect();
        let mut holdings = Holdings::new(assignment, 0);
        for (subtask, worker) in holdings.homes().collect::<Vec<_>>() {
            holdings.send(worker, subtask);
        }
        let filters = Filters { holdings: RefCell::new(holdings), fleet: &fleet };
        let id = fleet.add_layer(SimulatedWork::of(&layer.subtask, DType::F32, ms(1.0)));
        let policy = self.setting.policy;
        let audited = policy.audit != Audit::Off;
        let tracker = DecodingTracker::new(layer.scheme(&policy));
        let mut outcome = run_job(JobPlan {
            fleet: &fleet,
            layer: JobLayer {
                id,
                shape: Arc::clone(&layer.subtask),
                finite: true,
                sketcher: audited.then(|| Arc::clone(&layer.sketcher)),
            },
            filters: &filters,
            policy,
            estimates: self.estimates.clone(),
            slabs: slabs.into_iter().map(|slabs| Arc::new(Pooled::unpooled(Values::F32(slabs)))).collect(),
            buffers: Buffers::default(),
            recovery: Observed { tracker, fleet: &fleet, decodable_at: None },
            cancel: &CancelToken::new(),
        });
        self.count(&outcome);
        self.check(&mut outcome, truth).map_err(|e| {
            let ended = match &outcome.end {
                Decision::Failed(error) => error.to_string(),
                end => format!("{end:?}"),
            };
            format!("{e} (after {:?}, {} attempts: {ended})", outcome.wait, outcome.attempts.len())
        })?;
        drop(outcome);
        // A cancelled worker learns of it, if only when its link is back, and is then free.
        fleet.advance(Duration::from_secs(3));
        let busy: Vec<usize> = (0..workers).filter(|worker| fleet.load(WorkerId(*worker)) > 0).collect();
        require(busy.is_empty(), &format!("workers {busy:?} still work on a run that is over"))
    }

    fn count(&mut self, outcome: &RunOutcome<Observed<'_>>) {
        let end = match &outcome.end {
            Decision::Decode => 0,
            Decision::Local => 1,
            Decision::Failed(Error::Corrupted { .. }) => 2,
            Decision::Failed(_) => 3,
        };
        self.tally.digest([end]);
        self.tally.digest_time(outcome.wait);
        for attempt in &outcome.attempts {
            self.tally.digest([attempt.subtask.0, attempt.worker.0, attempt.arrived].map(|n| n as u64));
            self.tally.digest_time(attempt.since);
        }
        self.tally.hedged += outcome.traffic.hedged;
        self.tally.redispatched += outcome.traffic.redispatched;
    }
}

fn require(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

fn run(layers: &[Layer], setting: &Setting, tally: &mut Tally) -> Result<(), String> {
    let layer = &layers[setting.layer];
    let mut rng = ChaCha8Rng::seed_from_u64(setting.seed);
    let input = numbers(layer.shape.input_elems(), &mut rng);
    let wide: Vec<f64> = input.iter().copied().map(f64::from).collect();
    let truth = reference(&layer.shape, &wide, &layer.weight, None).unwrap();
    let mut run = Run::new(layer, setting, rng, tally);
    run.run(&input, &truth)
        .map_err(|error| format!("{error} ({:?}, {:?}, {:?})", run.natures, run.faults, run.estimates))
}

/// Every combination of code and policy, each with its own seed.
fn settings(seed: u64) -> Vec<Setting> {
    let mut settings = Vec::new();
    for on_shortfall in [OnShortfall::Fail, OnShortfall::Redispatch, OnShortfall::Local] {
        for audit in [Audit::Off, Audit::Watch, Audit::Detect, Audit::Correct] {
            for choice in 0..SWITCHES * CODES.len() {
                let (layer, bit) = (choice / SWITCHES, |bit: usize| choice >> bit & 1 == 1);
                let policy = Policy {
                    deadline: DEADLINE,
                    on_shortfall,
                    hedge: bit(0).then_some(0.9),
                    partial: bit(1),
                    patience: if bit(2) { 0.1 } else { 0.0 },
                    audit,
                };
                let seed = seed.wrapping_add(settings.len() as u64);
                settings.push(Setting { layer, policy, limited: bit(3), bad_network: bit(4), seed });
            }
        }
    }
    settings
}

fn soak(layers: &[Layer], settings: &[Setting], seed: u64) -> Tally {
    let mut tally = Tally::default();
    for setting in settings {
        if let Err(error) = run(layers, setting, &mut tally) {
            panic!("FCDCC_SOAK_SEED={seed}: {setting:?}: {error}");
        }
    }
    tally
}

#[test]
fn thousands_of_runs_end_as_they_must_and_the_same_way_again() {
    let given = std::env::var("FCDCC_SOAK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or(SEED);
    let layers: Vec<Layer> = CODES.iter().map(|code| Layer::new(*code, seed)).collect();
    let all = settings(seed);
    assert!(all.len() >= 3000);
    let tally = soak(&layers, &all, seed);
    let met = [
        tally.decoded,
        tally.from_parts,
        tally.better_than_needed,
        tally.local,
        tally.refused,
        tally.failed,
        tally.over_the_limit,
        tally.hedged,
        tally.redispatched,
        tally.found,
        tally.audited,
        tally.over_bad_network,
        // Without an audit wrong results get into outputs, where they are seen.
        tally.visibly,
    ];
    assert!(met.iter().all(|times| *times > 0), "FCDCC_SOAK_SEED={seed}: not all was met: {tally:?}");
    assert!(tally.worst > 0.01, "FCDCC_SOAK_SEED={seed}: errors are far from what is predicted: {tally:?}");
    // A seed repeats a run exactly, and another seed gives other runs.
    let some: Vec<Setting> = all.into_iter().step_by(7).collect();
    let first = soak(&layers, &some, seed);
    assert_eq!(
        soak(&layers, &some, seed),
        first,
        "FCDCC_SOAK_SEED={seed}: decides otherwise the second time"
    );
    let other: Vec<Setting> = settings(seed ^ 1 << 40).into_iter().step_by(7).collect();
    assert_ne!(soak(&layers, &other, seed ^ 1 << 40).digest, first.digest);
}

/// All workers send their first three of four sub-results at the same times: 18, of which 16 suffice to decode, although no
/// subtask is complete.
#[test]
fn workers_in_step_are_compared_too() {
    let layer = Layer::new(CODES[0], SEED);
    for (audit, audited) in [(Audit::Watch, 1), (Audit::Off, 0)] {
        let policy = Policy { audit, on_shortfall: OnShortfall::Fail, hedge: None, ..Policy::default() };
        let policy = Policy { deadline: DEADLINE, partial: true, patience: 0.0, ..policy };
        let setting = Setting { layer: 0, policy, limited: false, bad_network: false, seed: SEED };
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        let input = numbers(layer.shape.input_elems(), &mut rng);
        let wide: Vec<f64> = input.iter().copied().map(f64::from).collect();
        let truth = reference(&layer.shape, &wide, &layer.weight, None).unwrap();
        let mut tally = Tally::default();
        let mut run = Run::new(&layer, &setting, rng, &mut tally);
        run.natures = vec![Nature::Honest; layer.code.n()];
        run.in_step = true;
        run.estimates =
            RunEstimates { comfortable: 1.0, parts_at: Some(Duration::ZERO), ..RunEstimates::default() };
        run.run(&input, &truth).unwrap();
        // Without an audit the run ends as soon as the parts decode.
        assert_eq!((tally.decoded, tally.audited, tally.from_parts), (1, audited, 1 - audited), "{audit:?}");
    }
}
