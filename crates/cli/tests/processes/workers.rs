//! Many worker processes that are stopped, killed and restarted.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed unwrap is a failed test; what was seen is told"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fcdcc::array::Values;
use fcdcc::cluster::{Security, survey};
use fcdcc::worker::{FilterKey, SubtaskShape, Task};
use fcdcc::{CancelToken, Completion, ConvParams, ConvShape, SubtaskId};
use fcdcc_test_support::fleet::{Process, SOON, endpoint, master, memory, pool_of, until, usable, workers};
use fcdcc_test_support::folder::Folder;
use fcdcc_test_support::layer::{EXACT_F32, Layer, options};
use libtest_mimic::{Failed, Trial};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Three of four workers are stopped while megabytes are being sent to them: the fourth does not notice. Other load on this
/// machine may delay it once; a stopped peer would delay it every time.
fn stopped_workers_hold_up_nobody() -> Result<(), Failed> {
    let attempts = (0..3).map(|_| the_fourth_while_three_are_stopped());
    let mut failed = None;
    for attempt in attempts {
        match attempt {
            Ok(()) => return Ok(()),
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(()), Err)
}

fn the_fourth_while_three_are_stopped() -> Result<(), Failed> {
    /// Tolerated delay of the fourth worker.
    const LIMIT: Duration = Duration::from_millis(50);
    let at = endpoint();
    let cluster = master(&at);
    let processes: Vec<Process> = (0..4).map(|i| Process::connect(&format!("m{i}"), &at, 1)).collect();
    let mut all = workers(&cluster, 4);
    let small = SubtaskShape {
        conv: ConvShape::new(&[1, 2, 8, 8], &[2, 2, 3, 3], &ConvParams::default())?,
        slabs: 2,
        banks: 2,
        plain: false,
    };
    // 8 MiB of slabs, and next to nothing to compute.
    let large = SubtaskShape {
        conv: ConvShape::new(&[1, 32, 256, 256], &[1, 32, 1, 1], &ConvParams::default().stride([64]))?,
        slabs: 1,
        banks: 1,
        plain: false,
    };
    let key = FilterKey { layer: 1, subtask: SubtaskId(0) };
    for worker in &mut all {
        let shape = if worker.info().host == "m3" { &small } else { &large };
        worker.install(key, shape, Values::F32(vec![1.0; shape.filter_elems()]))?;
    }
    let at_fourth = all.iter().position(|w| w.info().host == "m3").unwrap();
    let mut fourth = all.swap_remove(at_fourth);
    let slabs = Values::F32(vec![1.0; small.upload_elems()]);
    let mut latencies = |during: Duration| -> Result<Vec<Duration>, Failed> {
        let (mut times, end) = (Vec::new(), Instant::now() + during);
        while Instant::now() < end {
            let started = Instant::now();
            fourth.execute(Task::new(key, &slabs, &CancelToken::new()), &mut |_, _| {})?;
            times.push(started.elapsed());
            std::thread::sleep(Duration::from_millis(2));
        }
        times.sort();
        Ok(times)
    };
    // The other workers are kept busy in both phases, so that the phases differ only in the stop.
    let closing = AtomicBool::new(false);
    let (before, during) = std::thread::scope(|scope| {
        for mut worker in all {
            let (large, closing) = (&large, &closing);
            scope.spawn(move || {
                let slabs = Values::F32(vec![1.0; large.upload_elems()]);
                while !closing.load(Ordering::Relaxed) {
                    let token = CancelToken::new();
                    if worker.execute(Task::new(key, &slabs, &token), &mut |_, _| {}).is_err() {
                        return;
                    }
                }
            });
        }
        let before = latencies(Duration::from_secs(2));
        for process in processes.iter().filter(|p| p.name != "m3") {
            process.signal("STOP");
        }
        // Longer than the timeout that closes their connections.
        let during = latencies(Duration::from_secs(7));
        closing.store(true, Ordering::Relaxed);
        for process in &processes {
            process.signal("CONT");
        }
        (before, during)
    });
    let (before, during) = (before?, during?);
    let (median, worst) =
        (|times: &[Duration]| times[times.len() / 2], |times: &[Duration]| times[times.len() - 1]);
    let story = format!(
        "median {:?} before and {:?} while three are stopped, worst {:?} and {:?}",
        median(&before),
        median(&during),
        worst(&before),
        worst(&during)
    );
    println!("{story}");
    // A busy machine may cause the worst latency itself; a stopped peer causes delays of seconds.
    let limit = worst(&before) + LIMIT;
    if worst(&during) > limit || median(&during) > median(&before) + LIMIT {
        Err(story.into())
    } else {
        Ok(())
    }
}

/// Two of three machines are stopped for less time than it takes to lose them: the third computes their subtasks within a
/// second or so, and they go on with their filters.
fn stopped_machines_are_suspected_and_not_lost() -> Result<(), Failed> {
    /// Time without an answer after which a machine is lost.
    const SILENCE: Duration = Duration::from_secs(4);
    let at = endpoint();
    let cluster = master(&at);
    let machines: Vec<Process> = (0..3).map(|i| Process::connect(&format!("m{i}"), &at, 2)).collect();
    let pool = pool_of(workers(&cluster, 6));
    let layer = Layer::<f32>::new(&[1, 8, 40, 40], &[32, 8, 3, 3], ConvParams::default());
    let prepared = layer.prepare(&pool, options(4, 4).hedge(None).audit(fcdcc::Audit::Off))?;
    let run = || -> Result<(Duration, usize), Failed> {
        let started = Instant::now();
        let run = prepared.run(layer.input.view())?;
        let error = layer.error(&run.output);
        if error > EXACT_F32 || run.report.completion == Completion::ExactLocally {
            return Err(format!("off by {error:e}: {:#?}", run.report).into());
        }
        Ok((started.elapsed(), run.report.redispatched))
    };
    let silent = || (0..6).filter(|i| pool.health(fcdcc::WorkerId(*i)).is_some_and(|h| h.silent)).count();
    let before = run()?;
    let stopped = Instant::now();
    machines[1..].iter().for_each(|machine| machine.signal("STOP"));
    let (first, seen, second) = (run()?, silent(), run()?);
    let (after, still) = (stopped.elapsed(), silent());
    machines[1..].iter().for_each(|machine| machine.signal("CONT"));
    let story = format!(
        "{before:?} before; {first:?}, then {second:?} with {seen} and {still} of 4 workers silent, {after:?} after the stop"
    );
    println!("{story}");
    if after >= SILENCE {
        // This machine was too busy for the test.
        return Err(format!("too late: {story}").into());
    }
    until("they answer again", || silent() == 0);
    let right = before.1 == 0 && first.1 > 0 && second.1 > 0 && (seen, still) == (4, 4);
    let lost = (0..6).filter_map(|i| pool.lost(fcdcc::WorkerId(i))).collect::<Vec<_>>();
    until("nothing is redispatched", || run().is_ok_and(|(_, redispatched)| redispatched == 0));
    if right && lost.is_empty() { Ok(()) } else { Err(format!("{lost:?}: {story}").into()) }
}

/// Many processes join at once, serve one layer together, and leave in order.
fn sixty_four_join_serve_and_leave() -> Result<(), Failed> {
    const MACHINES: usize = 64;
    let at = endpoint();
    let cluster = master(&at);
    let started = Instant::now();
    let processes: Vec<Process> =
        (0..MACHINES).map(|i| Process::connect(&format!("m{i:02}"), &at, 1)).collect();
    let pool = pool_of(workers(&cluster, MACHINES));
    println!("{MACHINES} joined within {:?}", started.elapsed());
    let layer = Layer::<f32>::new(&[1, 6, 40, 16], &[64, 6, 3, 3], ConvParams::default().padding([1]));
    // Any error is accepted, because every machine must serve.
    let any = fcdcc::LayerOptions { max_windowwise: fcdcc::engine::WindowwiseLimit::Off, ..options(8, 16) };
    let prepared = layer.prepare(&pool, any)?;
    for _ in 0..20 {
        let run = prepared.run(layer.input.view())?;
        let error = layer.error(&run.output);
        // delta = 32 of 64: badly conditioned sets occur, and are reported as such.
        if error > run.report.error_bound || run.report.completion == Completion::ExactLocally {
            return Err(format!("off by {error:e}: {:#?}", run.report).into());
        }
    }
    let members = survey(&at, "default", &Security::default(), SOON)?;
    let served =
        members.iter().filter_map(|m| m.info.as_ref().ok()).filter(|i| i.devices[0].done > 0).count();
    if (members.len(), served) != (MACHINES, MACHINES) {
        return Err(format!("{} listed, {served} of them served", members.len()).into());
    }
    drop((prepared, pool));
    for process in processes {
        let name = process.name.clone();
        assert_eq!(process.terminate(), Some(0), "{name}");
    }
    until("all have left", || cluster.members().is_empty());
    Ok(())
}

/// A day of work, scaled down: thousands of layers while processes are killed and restarted.
fn a_days_soak() -> Result<(), Failed> {
    const MACHINES: usize = 6;
    const ROUNDS: usize = 2000;
    /// Approximate number of rounds between kills.
    const PACE: u32 = 40;
    let seed =
        std::env::var("FCDCC_CHAOS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_125);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let layers = [
        Layer::<f32>::new(&[1, 3, 12, 10], &[8, 3, 3, 3], ConvParams::default().padding([1])),
        Layer::<f32>::new(&[2, 8, 9, 9], &[16, 4, 3, 3], ConvParams::default().groups(2)),
        // Sent in chunks and fetched: 300 kB of filters and of slabs per subtask.
        Layer::<f32>::new(&[1, 48, 38, 40], &[192, 48, 3, 3], ConvParams::default()),
    ];
    let at = endpoint();
    let cluster = master(&at);
    let mut processes: Vec<Process> =
        (0..MACHINES).map(|i| Process::connect(&format!("m{i}"), &at, 1)).collect();
    let pool = pool_of(workers(&cluster, MACHINES));
    let prepared =
        layers.iter().map(|layer| layer.prepare(&pool, options(4, 4))).collect::<Result<Vec<_>, _>>()?;
    let (mut kills, mut locally, mut half_way, mut slowest) = (0, 0, 0, Duration::ZERO);
    for round in 0..ROUNDS {
        if round == ROUNDS / 2 {
            half_way = memory();
        }
        if random.random_range(0..PACE) == 0 {
            let victim = &mut processes[random.random_range(0..MACHINES)];
            kills += 1;
            // Some are restarted at once, some are stopped for a while before they are killed.
            if random.random_range(0..4) == 0 {
                victim.signal("STOP");
            }
            victim.restart();
        }
        let which = round % layers.len();
        let started = Instant::now();
        let run = prepared[which].run(layers[which].input.view());
        let run = run.map_err(|e| format!("seed {seed}, round {round}: {e}"))?;
        slowest = slowest.max(started.elapsed());
        let error = layers[which].error(&run.output);
        if error > EXACT_F32 {
            return Err(format!("seed {seed}, round {round}: off by {error:e}: {:#?}", run.report).into());
        }
        locally += usize::from(run.report.completion == Completion::ExactLocally);
    }
    let grown = memory().saturating_sub(half_way);
    let story = format!(
        "seed {seed}: {kills} kills, {locally} of {ROUNDS} layers locally, slowest {slowest:?}, {grown} bytes more in \
         the second half"
    );
    println!("{story}");
    until("everybody is back", || usable(&pool) == MACHINES);
    if kills < 20 || locally * 4 > ROUNDS || grown > 48 << 20 || slowest > SOON {
        Err(story.into())
    } else {
        Ok(())
    }
}

/// The most specific key of a pool file counts, and `--wire` more than any of them.
fn wire_formats() -> Result<(), Failed> {
    let (folder, at) = (Folder::new(), endpoint());
    let _alpha = Process::connect("alpha", &at, 6);
    let cluster = format!("[cluster]\nlisten = \"{at}\"\nwait = \"30s\"\nwire = \"f16\"\n");
    let remote = "[[worker]]\nkind = \"remote\"\nname = \"alpha\"\n";
    folder.write("default.toml", format!("{cluster}{remote}"));
    folder.write("own.toml", format!("{cluster}{remote}wire = \"f32\"\n"));
    for (pool, option, wire) in [
        ("default", "", "f16"),
        ("own", "", "f32"),
        ("own", "--wire bf16", "bf16"),
        ("default", "--wire f32", "f32"),
    ] {
        let said = folder.conv(&format!("--pool {pool}.toml {option} --report r.json"));
        assert_eq!(said.status, 0, "{}", said.err);
        let layer = &folder.json("r.json")["layers"][0];
        if layer["wire"] != wire {
            return Err(format!("{pool}.toml {option}: {layer}").into());
        }
    }
    Ok(())
}

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("workers::stopped_workers_hold_up_nobody", stopped_workers_hold_up_nobody),
        Trial::test(
            "workers::stopped_machines_are_suspected_and_not_lost",
            stopped_machines_are_suspected_and_not_lost,
        ),
        Trial::test("workers::sixty_four_join_serve_and_leave", sixty_four_join_serve_and_leave),
        Trial::test("workers::the_wire_format_of_a_pool_and_of_the_option", wire_formats),
        Trial::test("workers::a_days_soak", a_days_soak),
    ]
}
