//! A seeded soak test: hundreds of layers over workers that are late, lost, silent, wrong and back again, on CPU threads and
//! on GPU queues.
//!
//! Every returned output is exact, every run ends by its deadline with an output or a typed error, and at the end there are
//! no more threads and hardly more memory than before. `FCDCC_CHAOS_SEED` sets another seed; a failure names its seed. The
//! seed alone determines the faults; when they strike depends on the machine too. (The library's own soak test in virtual
//! time repeats exactly.)

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fcdcc::array::Values;
use fcdcc::conv::conv_uncoded;
use fcdcc::scheduler::HealthOptions;
use fcdcc::worker::{CpuWorker, Respawn, Task, intercept};
use fcdcc::{
    Audit, CancelToken, Completion, ConvParams, Error, ErrorKind, LayerOptions, Pool, PoolOptions, Result,
    Worker,
};
use fcdcc_test_support::layer::Layer;
use libtest_mimic::{Failed, Trial};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const WORKERS: usize = 9;
/// The least corruption below is 2e-3 of a result; clean f32 results at the condition numbers of these codes are a
/// thousand times more accurate.
const EXACT: f64 = 1e-4;
/// Far more than any run takes, far less than a hang.
const DEADLINE: Duration = Duration::from_secs(6);

/// Counts of the events in a pool's tasks, by kind.
#[derive(Default)]
struct Tally([AtomicU64; 9]);

/// A worker with another fault in every task. A lost one comes back with another sequence of faults. A `liar` may give wrong
/// results: at most two workers of a pool.
fn chaotic(inner: Box<dyn Worker>, seed: u64, liar: bool, tally: Arc<Tally>) -> Box<dyn Worker> {
    let lost = Arc::new(AtomicBool::new(false));
    let mut chaos = Chaos { name: inner.info().name, seed, tasks: 0, liar, lost, tally: Arc::clone(&tally) };
    let before = chaos.clone();
    let lives = AtomicU64::new(1);
    // Probes fail too once the worker is lost.
    intercept(inner)
        .including_probes()
        .on_install(move |inner, key, shape, banks| {
            before.check()?;
            inner.install(key, shape, banks)
        })
        .on_execute(move |inner, task, emit| {
            chaos.check()?;
            if task.key.is_probe() { inner.execute(task, emit) } else { chaos.execute(inner, task, emit) }
        })
        .respawned(move |inner| {
            let life = lives.fetch_add(1, Ordering::Relaxed);
            chaotic(inner, seed ^ life << 32, liar, Arc::clone(&tally))
        })
        .boxed()
}

#[derive(Clone)]
struct Chaos {
    name: String,
    seed: u64,
    tasks: u64,
    liar: bool,
    lost: Arc<AtomicBool>,
    tally: Arc<Tally>,
}

impl Chaos {
    fn check(&self) -> Result<()> {
        if self.lost.load(Ordering::SeqCst) { self.lose("lost before") } else { Ok(()) }
    }

    fn lose(&self, cause: &str) -> Result<()> {
        self.lost.store(true, Ordering::SeqCst);
        Err(Error::WorkerLost { worker: self.name.clone(), cause: cause.to_owned() })
    }

    fn execute(
        &mut self,
        inner: &mut dyn Worker,
        task: Task<'_>,
        emit: &mut dyn FnMut(usize, Values),
    ) -> Result<()> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(self.tasks);
        self.tasks += 1;
        let fate = match rng.random_range(0..100) {
            0..74 => 0,
            74..84 => 1,
            84..88 => 2,
            88..90 => 3,
            90..92 => 4,
            92..94 => 5,
            94..97 => 6,
            97..98 => 7,
            _ if self.liar => 8,
            _ => 0,
        };
        self.tally.0[fate].fetch_add(1, Ordering::Relaxed);
        let pause = Duration::from_micros(rng.random_range(100..4000));
        match fate {
            1 if task.cancel.sleep(pause) => return Err(Error::Cancelled),
            2 => {
                task.cancel.wait();
                return Err(Error::Cancelled);
            }
            3 => {
                // A GPU worker really loses its device; for other workers the error is returned without one.
                inner.lose_device();
                let lost = inner.execute(task, emit);
                self.lost.store(true, Ordering::SeqCst);
                return if matches!(lost, Err(Error::WorkerLost { .. })) { lost } else { self.lose("chaos") };
            }
            5 => {
                return Err(Error::WorkerFailed { worker: self.name.clone(), cause: "chaos".to_owned() });
            }
            7 if rng.random_range(0..4) == 0 => panic!("chaos"),
            _ => {}
        }
        inner.execute(task, &mut |index, mut values| {
            if fate == 6 && task.cancel.sleep(pause / 4) {
                return;
            }
            if let Values::F32(values) = &mut values {
                let at = rng.random_range(0..values.len());
                match fate {
                    4 => values[at] = f32::NAN,
                    7 => values.truncate(at),
                    // A wrong scale has as much error as noise, but no sum of squares reveals it.
                    8 => values.iter_mut().for_each(|v| *v *= 1.002),
                    _ => {}
                }
            }
            emit(index, values);
        })
    }
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// Resident bytes.
fn memory() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

fn soak(recipes: Vec<Respawn>, rounds: usize, seed: u64) -> Result<(), Failed> {
    let layers = [
        Layer::<f32>::new(&[1, 3, 12, 10], &[8, 3, 3, 3], ConvParams::default().padding([1])),
        Layer::<f32>::new(&[2, 8, 9, 9], &[16, 4, 3, 3], ConvParams::default().groups(2)),
        Layer::<f32>::new(&[1, 6, 16], &[12, 6, 5], ConvParams::default().stride([2])),
    ];
    let tally = Arc::new(Tally::default());
    let workers = recipes.into_iter().enumerate().map(|(i, respawn)| {
        let inner = respawn(&CancelToken::new())?;
        Ok(chaotic(inner, seed.wrapping_add(i as u64 * 7919), i % 5 == 1, Arc::clone(&tally)))
    });
    let health = HealthOptions {
        backoff: Duration::from_millis(2),
        max_backoff: Duration::from_millis(20),
        ..HealthOptions::default()
    };
    // Starts the threads that stay for the life of the process.
    let warm = Pool::new(CpuWorker::fleet(4))?;
    layers[0].prepare(&warm, LayerOptions::default().partitions(4, 4))?.run(layers[0].input.view())?;
    drop(warm);
    // Those that help this thread where a layer is computed on this machine.
    let wide = Layer::<f32>::without_truth(&[1, 16, 64, 64], &[32, 16, 3, 3], ConvParams::default());
    let (x, w) = (wide.input.as_slice().unwrap_or_default(), wide.weight.as_slice().unwrap_or_default());
    conv_uncoded(&wide.shape(), x, w, None, 2, &|| false)?;
    let before = threads();
    let options = PoolOptions { health, ..PoolOptions::default() };
    let pool = Pool::with_options(workers.collect::<Result<Vec<_>>>()?, options)?;
    let with = |audit| {
        let options = LayerOptions::default().audit(audit);
        options.partitions(4, 4).deadline(DEADLINE)
    };
    let (mut refused, mut by_completion, mut half_way) = (0, [0; 3], 0);
    let mut prepared: Vec<_> = Vec::new();
    for round in 0..rounds {
        if round % 60 == 0 {
            // Layers are prepared and dropped while workers are lost and return.
            prepared =
                layers.iter().map(|l| l.prepare(&pool, with(Audit::Correct))).collect::<Result<_>>()?;
        }
        if round == rounds / 2 {
            half_way = memory();
        }
        let which = round % layers.len();
        let started = Instant::now();
        let result = prepared[which].run(layers[which].input.view());
        let took = started.elapsed();
        if took > DEADLINE + Duration::from_secs(5) {
            return Err(format!("seed {seed}, round {round}: took {took:?}").into());
        }
        match result {
            Ok(run) => {
                let error = layers[which].error(&run.output);
                if error > EXACT {
                    return Err(
                        format!("seed {seed}, round {round}: off by {error:e}: {:#?}", run.report).into()
                    );
                }
                by_completion[match run.report.completion {
                    Completion::Exact => 0,
                    Completion::ExactAfterRedispatch => 1,
                    _ => 2,
                }] += 1;
            }
            // More faulty workers at once than the spare results can locate.
            Err(error) if error.kind() == ErrorKind::Refused => refused += 1,
            Err(error) => return Err(format!("seed {seed}, round {round}: {error}").into()),
        }
    }
    let grown = memory().saturating_sub(half_way);
    drop((prepared, pool));
    let counts = tally.0.each_ref().map(|count| count.load(Ordering::Relaxed));
    let story = format!(
        "seed {seed}: fates {counts:?}, exact {by_completion:?}, refused {refused}, {grown} bytes more in the second half"
    );
    println(&story);
    // If some workers are much faster than others, they take over subtasks often.
    if refused * 10 > rounds || counts.contains(&0) || by_completion[0] * 3 < rounds {
        return Err(story.into());
    }
    if grown > 64 << 20 {
        return Err(format!("memory grows: {story}").into());
    }
    let end = Instant::now() + Duration::from_secs(20);
    while threads() > before {
        if Instant::now() > end {
            return Err(format!("{} threads before, {} after: {story}", before, threads()).into());
        }
        // Threads of the operating system end in real time.
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "seen with --no-capture alone")]
fn println(text: &str) {
    eprintln!("{text}");
}

fn cpu_recipe(index: usize) -> Respawn {
    Arc::new(move |_| Ok(Box::new(CpuWorker::new(format!("cpu-{index}"), 1)) as Box<dyn Worker>))
}

#[cfg(feature = "gpu")]
fn gpu_trial(seed: u64) -> Trial {
    use fcdcc::worker::{GpuOptions, GpuWorker};
    let available = fcdcc::gpu::select(None);
    let in_ci = std::env::var("CI").is_ok_and(|v| v == "true");
    let ignored = available.is_err() && !in_ci;
    Trial::test("chaos::gpu queues", move || {
        available?;
        // Most workers are CPU workers: every device of a software adapter has threads of its own.
        let gpu = |queue: usize| -> Respawn {
            Arc::new(move |_| {
                let options = GpuOptions { queue, ..GpuOptions::default() };
                Ok(Box::new(GpuWorker::open(&options)?) as Box<dyn Worker>)
            })
        };
        let workers = (0..WORKERS).map(|i| if i % 2 == 0 { gpu(i) } else { cpu_recipe(i) }).collect();
        quietly(|| soak(workers, 240, seed))
    })
    .with_ignored_flag(ignored)
}

/// Runs a test without printing its panics: they are intended here, and a trace of each would take longer than the run.
fn quietly<T>(test: impl FnOnce() -> T) -> T {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = test();
    std::panic::set_hook(usual);
    result
}

/// The tests count threads: none of the binary may run beside them.
pub(crate) fn trials() -> Vec<Trial> {
    let given = std::env::var("FCDCC_CHAOS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or(20_261_122);
    let cpu = move || quietly(|| soak((0..WORKERS).map(cpu_recipe).collect(), 600, seed));
    let cpu = Trial::test("chaos::cpu threads", cpu);
    #[cfg(feature = "gpu")]
    let trials = vec![cpu, gpu_trial(seed)];
    #[cfg(not(feature = "gpu"))]
    let trials = vec![cpu];
    trials
}
