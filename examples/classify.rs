//! A whole model over six workers, two of which crash: LeNet-5 reads eight digits.
//!
//!     cargo run --release --example classify

#![expect(clippy::print_stdout, reason = "printing is what an example is for")]

use fcdcc::model::{Model, ModelOptions};
use fcdcc::worker::{CpuWorker, inject};
use fcdcc::{Pool, Result};
use ndarray::{Array3, ArrayD};
use ndarray_npy::ReadNpyExt;

const DIGITS: &[u8] = include_bytes!("../assets/digits/digits.npy");
const COUNT: usize = 8;

fn main() -> Result<()> {
    let workers = inject(CpuWorker::fleet(6), &["1,4:crash".parse()?], 0)?;
    let pool = Pool::new(workers)?;

    // Fixes the batch size, which the file leaves open. Preparing encodes and installs the filters, once.
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/digits/lenet5.onnx");
    let model = Model::load(path)?.with_input_shape("image", &[COUNT, 1, 32, 32])?;
    let prepared = model.prepare(&pool, &ModelOptions::default())?;

    // Digits of 8x8 pixels, 0 to 16, enlarged to the model's input size.
    let digits: Array3<u8> = Array3::read_npy(DIGITS).expect("the file belongs to the repository");
    let images = ArrayD::from_shape_fn(vec![COUNT, 1, 32, 32], |i| {
        f32::from(digits[[i[0], i[2] / 4, i[3] / 4]]) / 16.0
    });
    let run = prepared.run(&[images.into()])?;

    let logits = run.outputs[0].tensor.to_f64();
    let largest = |scores: &[f64]| (0..10).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap_or(0);
    println!("digits: {:?}", logits.chunks(10).map(largest).collect::<Vec<_>>());
    for layer in &run.layers {
        let used: Vec<usize> = layer.used.iter().map(|subtask| subtask.0).collect();
        println!("{}: decoded from {used:?} in {:.2} ms", layer.name, layer.total_ms);
    }
    Ok(())
}
