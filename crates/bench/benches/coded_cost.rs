//! The processor time of a coded layer beside the same layer uncoded: the 13 convolutions of VGG-16, n = 6, delta = 4,
//! without stragglers.
//!
//!     cargo bench --bench coded_cost
//!
//! **The measure.** Both are prepared on pools of six one-thread CPU workers, with the partitions chosen by the planner. The
//! processor time of a run is that of the whole process (all threads, user and system) from before `CodedConv::run_into`
//! until every worker is idle again. All n subtasks are computed to the end: no worker begins before all six have their
//! task, and workers do not receive cancellations (by the wrapper `steadfast`; checked by counting). Coded and uncoded runs
//! of a layer alternate; medians count. The sum over the layers should be at most n/delta times 1.06 of the uncoded sum.
//!
//! In addition, on the calling thread alone: encoding and decoding (each by itself, medians), and the layer as one pass of
//! `ConvKernel` over the input, without workers, partitions, bias and copy of the output.
//!
//! `FCDCC_BENCH_ROUNDS` is the number of runs of each layer and kind (default 15).

#![allow(clippy::print_stdout, reason = "a bench prints its table")]
#![allow(clippy::unwrap_used, reason = "a bench on fixed shapes")]

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use fcdcc::coding::{Clamp, Decoder, Epilogue, decode, encode_distinct};
use fcdcc::conv::{ConvKernel, Scratch};
use fcdcc::partition::{FilterPartition, InputPartition, OutputTiling};
use fcdcc::worker::{Task, intercept};
use fcdcc::{CancelToken, CodeKind, CodedConv, ConvShape, CpuWorker, LayerOptions, Pool, Worker};
use fcdcc_bench::layers::network;
use ndarray::{ArrayD, IxDyn};
use rustix::time::{ClockId, clock_gettime};

const N: usize = 6;
const DELTA: usize = 4;
/// Limit of the ratio of the sums over the layers.
const TARGET: f64 = 1.06 * N as f64 / DELTA as f64;
/// Maximum wait of a worker for the others; beyond it something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);

/// Processor time in milliseconds by this clock.
fn cpu_ms(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

/// State shared by the workers of a pool.
#[derive(Default)]
struct Together {
    begun: Mutex<usize>,
    all: Condvar,
    ended: Mutex<usize>,
    last: Condvar,
    completed: AtomicUsize,
    /// Processor time of all workers inside [`Worker::execute`].
    cpu_ns: AtomicU64,
}

/// A worker that begins together with the others and computes to the end in spite of cancellation.
fn steadfast(inner: Box<dyn Worker>, together: &Arc<Together>) -> Box<dyn Worker> {
    let together = Arc::clone(together);
    let steadfast = intercept(inner).on_execute(move |inner, task, emit| {
        let mut begun = together.begun.lock().unwrap();
        *begun += 1;
        let goal = begun.div_ceil(N) * N;
        together.all.notify_all();
        while *begun < goal {
            let (guard, late) = together.all.wait_timeout(begun, PATIENCE).unwrap();
            assert!(!late.timed_out(), "a worker got no task");
            begun = guard;
        }
        drop(begun);
        let started = cpu_ms(ClockId::ThreadCPUTime);
        let result = inner.execute(Task { cancel: &CancelToken::new(), ..task }, emit);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time of a task")]
        let spent = ((cpu_ms(ClockId::ThreadCPUTime) - started) * 1e6) as u64;
        together.cpu_ns.fetch_add(spent, Ordering::Relaxed);
        together.completed.fetch_add(usize::from(result.is_ok()), Ordering::Relaxed);
        *together.ended.lock().unwrap() += 1;
        together.last.notify_all();
        result
    });
    steadfast.never_respawned().boxed()
}

/// One layer on a pool of its own.
struct Side {
    pool: Pool,
    together: Arc<Together>,
    layer: CodedConv<f32>,
    output: ArrayD<f32>,
    total: Vec<f64>,
    workers: Vec<f64>,
    codec: Option<[f64; 2]>,
}

impl Side {
    fn new(kind: CodeKind, shape: &ConvShape, weight: &Arc<Vec<f32>>, bias: &[f32]) -> Self {
        let together = Arc::new(Together::default());
        let workers = CpuWorker::fleet(N).into_iter().map(|inner| steadfast(inner, &together));
        let pool = Pool::new(workers.collect()).unwrap();
        let options = LayerOptions {
            code: kind,
            subtasks: Some(N),
            tolerate: N - DELTA,
            clamp: Some(Clamp::RELU),
            ..LayerOptions::default()
        }
        .hedge(None);
        let weight: Arc<dyn AsRef<[f32]> + Send + Sync> = Arc::<Vec<f32>>::clone(weight);
        let layer =
            CodedConv::prepare_shared(&pool, shape.clone(), weight, Some(bias.to_vec()), options).unwrap();
        assert_eq!(layer.code().n(), N);
        let output = ArrayD::zeros(IxDyn(&shape.output_shape()));
        Self { pool, together, layer, output, total: Vec::new(), workers: Vec::new(), codec: None }
    }

    fn run(&mut self, input: &ArrayD<f32>) {
        let before = self.together.completed.load(Ordering::Relaxed);
        self.together.cpu_ns.store(0, Ordering::Relaxed);
        let started = cpu_ms(ClockId::ProcessCPUTime);
        self.layer.run_into(input.view(), &mut self.output).unwrap();
        // Waits asleep: polling for idle workers would cost more than some layers do.
        let ended = self.together.ended.lock().unwrap();
        let all = |ended: &mut usize| !ended.is_multiple_of(N);
        assert!(!self.together.last.wait_timeout_while(ended, PATIENCE, all).unwrap().1.timed_out());
        assert!(self.pool.wait_idle(PATIENCE));
        self.total.push(cpu_ms(ClockId::ProcessCPUTime) - started);
        self.workers.push(self.together.cpu_ns.load(Ordering::Relaxed) as f64 / 1e6);
        assert_eq!(self.together.completed.load(Ordering::Relaxed) - before, N, "all subtasks");
    }

    /// Encoding and decoding alone.
    fn codec(&mut self, input: &[f32], bias: &[f32]) -> [f64; 2] {
        let (shape, code) = (self.layer.shape(), self.layer.code());
        let slabs = InputPartition::new(shape, code.k_a()).unwrap();
        let filters = FilterPartition::new(shape, code.k_b()).unwrap();
        let tiling = OutputTiling::new(shape, &slabs, &filters);
        let mut spare = Vec::new();
        let encode =
            timed(|| spare = encode_distinct(code, shape, &slabs, input, &[], std::mem::take(&mut spare)));
        // Every set is equally likely; in the first one the missing subtasks are adjacent.
        let set: Vec<usize> = (0..code.recovery_threshold()).collect();
        let decoder = Decoder::for_subtasks(code, &set).unwrap();
        let results = vec![vec![0.5_f32; tiling.part_elems()]; decoder.inputs().len()];
        let results: Vec<&[f32]> = results.iter().map(Vec::as_slice).collect();
        let epilogue = Epilogue { bias: Some(bias), clamp: Some(Clamp::RELU), ..Epilogue::default() };
        let output = self.output.as_slice_mut().unwrap();
        let decode = timed(|| {
            decode(&decoder, &tiling, &results, epilogue, output).unwrap();
        });
        [encode, decode]
    }
}

/// Median processor time of a call on this thread.
fn timed(mut call: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..9)
        .map(|_| {
            let started = cpu_ms(ClockId::ThreadCPUTime);
            call();
            cpu_ms(ClockId::ThreadCPUTime) - started
        })
        .collect();
    median(&mut times)
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn numbers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| (((i + seed) * 7919 % 1009) as f32 - 504.0) / 504.0).collect()
}

/// The layer as one single-threaded pass.
fn plain(shape: &ConvShape, input: &[f32], weight: &[f32]) -> impl FnMut() + use<> {
    let kernel = ConvKernel::new(shape);
    let (input, weight) = (input.to_vec(), kernel.pack(weight).unwrap());
    let mut output = vec![0.0_f32; shape.output_elems()];
    let mut scratch = Scratch::new();
    move || kernel.run(&mut scratch, &input, &[&weight], &mut [&mut output], 1, &|| false).unwrap()
}

fn main() {
    let rounds: usize =
        std::env::var("FCDCC_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(15);
    let only = std::env::var("FCDCC_BENCH_LAYER").unwrap_or_default();
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    println!(
        "processor time in ms, medians of {rounds}; n = {N}, delta = {DELTA}, {TARGET:.2} wanted in the sum"
    );
    println!(
        "{:<9} {:>2} {:>5} {:>5}  {:>6} {:>6} {:>7} {:>7}  {:>6} {:>6} {:>7} {:>7}  {:>7}  {:>6} {:>6}",
        "layer",
        "x",
        "coded",
        "unc.",
        "encode",
        "decode",
        "workers",
        "total",
        "encode",
        "decode",
        "workers",
        "total",
        "plain",
        "ratio",
        "plain"
    );
    let (mut sums, mut codec_share) = ([0.0; 3], 0.0);
    for named in network("vgg16").unwrap() {
        let shape = &named.shape;
        let name = named.name.trim_start_matches("vgg16/");
        if !name.contains(&only) {
            continue;
        }
        let input =
            ArrayD::from_shape_vec(IxDyn(&shape.input_shape()), numbers(shape.input_elems(), 1)).unwrap();
        let weight = Arc::new(numbers(shape.weight_elems(), 2));
        let bias = numbers(shape.out_channels, 3);
        let mut sides =
            [CodeKind::Crme, CodeKind::Uncoded].map(|kind| Side::new(kind, shape, &weight, &bias));
        let mut pass = plain(shape, input.as_slice().unwrap(), &weight);
        let mut passes = Vec::new();
        for round in 0..rounds + 3 {
            for side in &mut sides {
                side.run(&input);
            }
            let started = cpu_ms(ClockId::ThreadCPUTime);
            pass();
            passes.push(cpu_ms(ClockId::ThreadCPUTime) - started);
            // The first runs allocate buffers and fill the latency history.
            if round == 2 {
                passes.clear();
                for side in &mut sides {
                    side.total.clear();
                    side.workers.clear();
                }
            }
        }
        let difference = sides[0].output.iter().zip(&sides[1].output).map(|(a, b)| f64::from(a - b).powi(2));
        let size: f64 = sides[1].output.iter().map(|v| f64::from(*v).powi(2)).sum();
        let error = (difference.sum::<f64>() / size).sqrt();
        assert!(error < 1e-4, "coded and uncoded outputs differ by {error:e}");
        for side in &mut sides {
            side.codec = Some(one.install(|| side.codec(input.as_slice().unwrap(), &bias)));
        }
        let pass = median(&mut passes);
        let [coded, uncoded] = sides.each_mut().map(|side| {
            let codec = side.codec.unwrap();
            [codec[0], codec[1], median(&mut side.workers), median(&mut side.total)]
        });
        let pair = |side: &Side| format!("{},{}", side.layer.code().k_a(), side.layer.code().k_b());
        println!(
            "{name:<9} {:>2} {:>5} {:>5}  {:>6.2} {:>6.2} {:>7.2} {:>7.2}  {:>6.2} {:>6.2} {:>7.2} {:>7.2}  {pass:>7.2}  \
             {:>6.3} {:>6.3}",
            named.count,
            pair(&sides[0]),
            pair(&sides[1]),
            coded[0],
            coded[1],
            coded[2],
            coded[3],
            uncoded[0],
            uncoded[1],
            uncoded[2],
            uncoded[3],
            coded[3] / uncoded[3],
            coded[3] / pass,
        );
        let count = named.count as f64;
        for (sum, value) in sums.iter_mut().zip([coded[3], uncoded[3], pass]) {
            *sum += count * value;
        }
        codec_share += count * (coded[0] + coded[1]);
    }
    let [coded, uncoded, pass] = sums;
    println!(
        "13 layers: coded {coded:.1}, uncoded {uncoded:.1}, plain {pass:.1}; ratio {:.3} ({:.3} of n/delta), to plain \
         {:.3}; encoding and decoding {:.1} ({:.1} % of the coded time)",
        coded / uncoded,
        coded / uncoded * DELTA as f64 / N as f64,
        coded / pass,
        codec_share,
        100.0 * codec_share / coded
    );
}
