//! The cost of the default audit: layers of VGG-16 with `Audit::Watch` beside the same layers with `Audit::Off`, n = 6,
//! delta = 4, without stragglers.
//!
//!     cargo bench --bench audit_cost
//!
//! **The measure.** Both layers are prepared on the same pool of six one-thread CPU workers, with the partitions chosen by
//! the planner. A hundred runs of each take turns. The processor time of a run is that of the whole process (all threads,
//! user and system) from before `CodedConv::run_into` until every worker is idle again; its time is the caller's wait. The
//! mean of the hundred runs counts, because only four of them are audited; the sum over the layers should increase by at
//! most 1 %. A second series of unaudited runs shows the noise.
//!
//! `FCDCC_BENCH_ROUNDS` is the number of runs (default 100).

#![allow(clippy::print_stdout, reason = "a bench prints its table")]
#![allow(clippy::unwrap_used, reason = "a bench on fixed shapes")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use fcdcc::{Audit, CodedConv, CpuWorker, LayerOptions, Pool};
use fcdcc_bench::layers::network;
use ndarray::{ArrayD, IxDyn};
use rustix::time::{ClockId, clock_gettime};

/// Maximum wait for idle workers; beyond it something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);
/// Two series without audits, to compare with each other, and one with.
const SIDES: [Audit; 3] = [Audit::Off, Audit::Off, Audit::Watch];

fn cpu_ms() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn numbers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| (((i + seed) * 7919 % 1009) as f32 - 504.0) / 504.0).collect()
}

fn main() {
    let rounds: usize =
        std::env::var("FCDCC_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(100);
    println!("means of {rounds} runs in turns; processor time and time in ms");
    println!(
        "{:<9} {:>7} {:>7} {:>7} {:>6} {:>6}  {:>7} {:>7} {:>6}  {:>7}",
        "layer", "off", "off", "watch", "off", "watch", "off", "watch", "watch", "audited"
    );
    let mut sums = [[0.0; SIDES.len()]; 2];
    for named in network("vgg16").unwrap() {
        let shape = &named.shape;
        let pool = Pool::new(CpuWorker::fleet(6)).unwrap();
        let input =
            ArrayD::from_shape_vec(IxDyn(&shape.input_shape()), numbers(shape.input_elems(), 1)).unwrap();
        let weight = Arc::new(numbers(shape.weight_elems(), 2));
        let sides = SIDES.map(|audit| {
            let options =
                LayerOptions { subtasks: Some(6), tolerate: 2, ..LayerOptions::default() }.hedge(None);
            let weight: Arc<dyn AsRef<[f32]> + Send + Sync> = Arc::<Vec<f32>>::clone(&weight);
            CodedConv::prepare_shared(&pool, shape.clone(), weight, None, options.audit(audit)).unwrap()
        });
        let mut output = ArrayD::zeros(IxDyn(&shape.output_shape()));
        let mut means = [[0.0; SIDES.len()]; 2];
        let mut audited = 0;
        for round in 0..rounds {
            // Takes turns at the first place, because the first series finds other cache contents.
            for turn in 0..SIDES.len() {
                let side = (turn + round) % SIDES.len();
                let (cpu, started) = (cpu_ms(), Instant::now());
                let report = sides[side].run_into(input.view(), &mut output).unwrap();
                means[1][side] += started.elapsed().as_secs_f64() * 1e3 / rounds as f64;
                assert!(pool.wait_idle(PATIENCE));
                means[0][side] += (cpu_ms() - cpu) / rounds as f64;
                audited += usize::from(report.audited && SIDES[side] == Audit::Watch);
            }
        }
        let [cpu, time] = means;
        println!(
            "{:<9} {:>7.2} {:>7.2} {:>7.2} {:>6.3} {:>6.3}  {:>7.2} {:>7.2} {:>6.3}  {audited:>7}",
            named.name.trim_start_matches("vgg16/"),
            cpu[0],
            cpu[1],
            cpu[2],
            cpu[1] / cpu[0],
            cpu[2] * 2.0 / (cpu[0] + cpu[1]),
            time[0],
            time[2],
            time[2] * 2.0 / (time[0] + time[1]),
        );
        for (sum, mean) in sums.iter_mut().flatten().zip(means.iter().flatten()) {
            *sum += named.count as f64 * mean;
        }
    }
    let [cpu, time] = sums;
    println!(
        "all layers: processor time off/off {:.3}, watch/off {:.3}; time off/off {:.3}, watch/off {:.3}",
        cpu[1] / cpu[0],
        cpu[2] * 2.0 / (cpu[0] + cpu[1]),
        time[1] / time[0],
        time[2] * 2.0 / (time[0] + time[1]),
    );
}
