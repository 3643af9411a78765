//! AlexNet's first layer over twenty coded subtasks, decoded after every possible loss of four: all 4,845 of them.
//! Shows the low-level modules without a pool, and how close errors come to the error bound.
//!
//!     cargo run --release --example every_loss [cpu|gpu]

#![expect(clippy::print_stdout, reason = "printing is what an example is for")]

use fcdcc::array::Values;
use fcdcc::coding::{Code, CodeKind, Decoder, Epilogue, decode, encode_filters, encode_input};
use fcdcc::conv::{ConvParams, ConvShape, conv_uncoded};
use fcdcc::partition::{FilterPartition, InputPartition, OutputTiling};
use fcdcc::planner::subtask_shape;
use fcdcc::worker::{CancelToken, CpuWorker, FilterKey, Task, Worker};
use fcdcc::{Error, Result, SubtaskId};

const N: usize = 20;

fn worker(backend: &str) -> Result<Box<dyn Worker>> {
    match backend {
        "cpu" => Ok(Box::new(CpuWorker::new("cpu", 1))),
        #[cfg(feature = "gpu")]
        "gpu" => Ok(Box::new(fcdcc::worker::GpuWorker::open(&fcdcc::worker::GpuOptions::default())?)),
        other => Err(Error::invalid("backend", other, "use cpu or gpu")),
    }
}

/// Uncorrelated values of unit variance.
fn noise(len: usize, mut state: u64) -> Vec<f32> {
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..len).map(|_| uniform() * 12.0_f32.sqrt()).collect()
}

fn main() -> Result<()> {
    let mut worker = worker(&std::env::args().nth(1).unwrap_or_else(|| "cpu".to_owned()))?;
    let layer = ConvShape::new(&[1, 3, 227, 227], &[96, 3, 11, 11], &ConvParams::default().stride([4]))?;
    let (input, weight) = (noise(layer.input_elems(), 1), noise(layer.weight_elems(), 2));
    let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<f64>>();
    let truth = conv_uncoded(&layer, &wide(&input), &wide(&weight), None, 2, &|| false)?;
    let size: f64 = truth.iter().map(|t| t * t).sum();

    // Partition and encode.
    let code = Code::new(CodeKind::Crme, 8, 8, N)?;
    let slabs = InputPartition::new(&layer, code.k_a())?;
    let filters = FilterPartition::new(&layer, code.k_b())?;
    let shape = subtask_shape(&layer, &code)?;

    // Every subtask is computed once.
    let mut results = vec![Vec::new(); N * shape.sub_results()];
    let coded = encode_input(&code, &layer, &slabs, &input, Vec::new());
    for (subtask, coded) in (0..).map(SubtaskId).zip(coded) {
        let key = FilterKey { layer: 0, subtask };
        worker.install(key, &shape, Values::F32(encode_filters(&code, &filters, &weight, &[], subtask)))?;
        let mut keep = |index, values| {
            if let Values::F32(values) = values {
                results[subtask.0 * shape.sub_results() + index] = values;
            }
        };
        worker.execute(Task::new(key, &Values::F32(coded), &CancelToken::new()), &mut keep)?;
    }

    // Decodes after every loss of four.
    let tiling = OutputTiling::new(&layer, &slabs, &filters);
    let mut output = vec![0.0; layer.output_elems()];
    let (mut losses, mut over_bound, mut worst) = (0, 0, (0.0, 0.0, Vec::new()));
    for lost in (0..1u32 << N).filter(|set| set.count_ones() == 4) {
        let (missing, set): (Vec<usize>, Vec<usize>) = (0..N).partition(|i| lost >> i & 1 == 1);
        let decoder = Decoder::for_subtasks(&code, &set)?;
        let place = |s: usize, p: usize, r: usize| (s * code.l_a() + p) * code.l_b() + r;
        let used: Vec<&[f32]> = decoder
            .inputs()
            .iter()
            .map(|of| results[place(of.subtask.0, of.slab, of.bank)].as_slice())
            .collect();
        decode(&decoder, &tiling, &used, Epilogue::default(), &mut output)?;
        let off: f64 = output.iter().zip(&truth).map(|(o, t)| (f64::from(*o) - t).powi(2)).sum();
        let error = (off / size).sqrt();
        losses += 1;
        over_bound += u32::from(error > decoder.error_bound(f64::from(f32::EPSILON), layer.reduction()));
        if error > worst.0 {
            worst = (error, decoder.condition(), missing);
        }
    }
    println!("{losses} losses of 4 of {N} on {}: all decoded", worker.info().device);
    println!(
        "largest relative L2 error {:.1e}, without subtasks {:?} (condition number {:.0})",
        worst.0, worst.2, worst.1
    );
    println!("{over_bound} errors over their bound");
    Ok(())
}
