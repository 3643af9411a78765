//! One layer, many runs, on workers of which one computes wrongly, one loses its device and one is slow: every output is
//! exact, and the pool shows the state of each worker.
//!
//! `cargo run --release --example unreliable`

#![allow(clippy::print_stdout, reason = "an example")]

use fcdcc::worker::{FaultSpec, inject};
use fcdcc::{Audit, CodedConv, ConvParams, CpuWorker, Pool, Result, SubtaskId, WorkerId};
use ndarray::ArrayD;

fn main() -> Result<()> {
    // The faulty worker is the fastest: the others need at least three milliseconds.
    let faults = ["0,2,3,4,5,6,7,8:delay=3ms", "1:corrupt=1e-2", "4:device-lost", "6:slow=5x"];
    let faults: Vec<FaultSpec> = faults.iter().map(|f| f.parse()).collect::<Result<_>>()?;
    let pool = Pool::new(inject(CpuWorker::fleet(9), &faults, 7)?)?;

    let wave = |shape: &[usize], step: f32| {
        let len = shape.iter().product::<usize>();
        let values = (0..len).scan(0.0_f32, |phase, _| {
            *phase = (*phase + step) % 6.0;
            Some(phase.sin())
        });
        ArrayD::from_shape_vec(shape.to_vec(), values.collect()).expect("as many values as the shape has")
    };
    let (input, weight) = (wave(&[1, 16, 48, 48], 1.7), wave(&[32, 16, 3, 3], 2.3));
    let params = ConvParams::default().padding([1]);
    // Any four of nine decode; spare results serve as checksums.
    let layer = CodedConv::builder(&pool, input.shape(), weight.view())
        .params(params)
        .partitions(4, 4)
        .audit(Audit::Correct)
        .prepare()?;

    let mut first = None;
    let numbers = |of: &[SubtaskId]| of.iter().map(|subtask| subtask.0).collect::<Vec<_>>();
    for run in 0..20 {
        let done = layer.run(input.view())?;
        let truth = first.get_or_insert_with(|| done.output.clone());
        let off = (&done.output - &*truth).iter().fold(0.0_f32, |most, d| most.max(d.abs()));
        assert!(off < 1e-4, "run {run} differs by {off}");
        let report = &done.report;
        if run == 0 || !report.flagged.is_empty() {
            println!(
                "run {run}: {}, decoded from {:?}, flagged {:?}, error bound {:.0e}",
                report.completion.name(),
                numbers(&report.used),
                numbers(&report.flagged),
                report.error_bound
            );
        }
    }
    for (id, worker) in (0..).map(WorkerId).zip(pool.workers()) {
        let Some(health) = pool.health(id) else { continue };
        let cause = health.cause.map_or_else(String::new, |cause| format!(" ({cause})"));
        println!("{:6} {:?}{cause}", worker.name, health.state);
    }
    Ok(())
}
