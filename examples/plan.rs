//! Measures the rates of a worker and asks the planner for the best division of a layer, with the rejected candidates.
//!
//! `cargo run --release --example plan`

#![allow(clippy::print_stdout, reason = "an example")]

use fcdcc::planner::{PlanOptions, calibrate, plan_layer};
use fcdcc::{ConvParams, ConvShape, CpuWorker, Result};

fn main() -> Result<()> {
    let found = calibrate::<f32>(&mut CpuWorker::new("cpu", 1), None)?;
    println!(
        "{:.1} G multiply-adds/s a worker (fit off by {:.0} % in the mean)",
        1e-9 / found.rates.worker.mac_s,
        found.worker_error * 100.0
    );
    for (channels, size) in [(64, 224), (256, 56), (512, 14)] {
        let params = ConvParams::default().padding([1]);
        let layer = ConvShape::new(&[1, channels, size, size], &[channels, channels, 3, 3], &params)?;
        // Twelve workers, any three of which may straggle; the planner chooses code and number of subtasks.
        let options =
            PlanOptions { code: None, subtasks: None, rates: found.rates, ..PlanOptions::new(12, 3) };
        let plan = plan_layer::<f32>(&layer, &options)?;
        println!("{channels} channels, {size}x{size}: {}, {}", plan.way, plan.why);
        for other in &plan.alternatives {
            println!("    {:7.2} ms  {}", other.total_s * 1e3, other.way);
        }
    }
    Ok(())
}
