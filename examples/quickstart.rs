//! One coded layer over six workers, two of which do not answer: the shortest complete use of the library.
//!
//!     cargo run --release --example quickstart

#![expect(clippy::print_stdout, reason = "printing is what an example is for")]

use fcdcc::worker::{CpuWorker, inject};
use fcdcc::{CodedConv, ConvParams, Pool, Result};
use ndarray::ArrayD;

fn main() -> Result<()> {
    // Six CPU workers; `inject` makes two of them silent.
    let workers = inject(CpuWorker::fleet(6), &["1,4:drop".parse()?], 0)?;
    let pool = Pool::new(workers)?;

    // A 3x3 convolution, 64 channels to 64, on 56x56 pixels: NCHW and OIHW.
    let input =
        ArrayD::from_shape_fn(vec![1, 64, 56, 56], |i| ((i[1] * 7 + i[2] * 3 + i[3]) as f32 * 0.1).sin());
    let weight =
        ArrayD::from_shape_fn(vec![64, 64, 3, 3], |i| ((i[0] + i[1] * 5 + i[2] + i[3]) as f32).cos() / 24.0);
    let params = ConvParams::default().padding([1]);

    // Prepare once (encodes the filters and installs them), then run any number of times.
    let layer = CodedConv::builder(&pool, input.shape(), weight.view()).params(params).prepare()?;
    let run = layer.run(input.view())?;

    let used: Vec<usize> = run.report.used.iter().map(|subtask| subtask.0).collect();
    println!("output {:?} decoded from subtasks {used:?}", run.output.shape());
    println!("waited {:.1} ms, error bound {:.1e}", run.report.wait_ms, run.report.error_bound);
    Ok(())
}
