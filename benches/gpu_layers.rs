//! Every candidate kernel and tile on layers of VGG-16, ResNet-50 and a depthwise network, f32.
//!
//! `cargo bench --bench gpu_layers [part of a layer's name]`, on the adapter named by `WGPU_ADAPTER_NAME`. The candidates
//! take turns, so that other load of the machine affects all of them alike. A whole call is timed: upload, dispatch,
//! read-back. The output shows the fastest call, the median, and the GFLOP/s of the fastest (two flops per multiply-add).

#![expect(clippy::expect_used, reason = "a bench ends with a message")]
#![expect(clippy::print_stdout, reason = "a bench prints its measurements")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use fcdcc::array::{DType, Values};
use fcdcc::conv::{ConvParams, ConvShape};
use fcdcc::gpu::{Candidate, ConvEngine, GpuDevice, select};

/// The rounds of a layer end after this time, or after [`MOST_ROUNDS`].
const BUDGET: Duration = Duration::from_secs(4);
const FEWEST_ROUNDS: usize = 3;
const MOST_ROUNDS: usize = 200;

/// Name; channels in and out; side of the slab, which includes its padding; kernel, stride, groups.
const LAYERS: [(&str, [usize; 2], usize, [usize; 3]); 18] = [
    ("vgg 64 3x3 @112", [64, 64], 114, [3, 1, 1]),
    ("vgg 128 3x3 @56", [128, 128], 58, [3, 1, 1]),
    ("vgg 256 3x3 @28", [256, 256], 30, [3, 1, 1]),
    ("vgg 512 3x3 @14", [512, 512], 16, [3, 1, 1]),
    ("resnet 512 3x3 @7", [512, 512], 9, [3, 1, 1]),
    ("resnet 256-64 1x1 @56", [256, 64], 56, [1, 1, 1]),
    ("resnet 64-256 1x1 @56", [64, 256], 56, [1, 1, 1]),
    ("resnet 512-2048 1x1 @7", [512, 2048], 7, [1, 1, 1]),
    ("resnet 128 3x3 stride 2 @56", [128, 128], 57, [3, 2, 1]),
    ("resnet 3-64 7x7 stride 2 @224", [3, 64], 229, [7, 2, 1]),
    ("depthwise 144 3x3 @56", [144, 144], 58, [3, 1, 144]),
    ("depthwise 144 3x3 stride 2 @56", [144, 144], 57, [3, 2, 144]),
    ("depthwise 144 5x5 @56", [144, 144], 60, [5, 1, 144]),
    ("depthwise 384 3x3 @14", [384, 384], 16, [3, 1, 384]),
    ("depthwise 960 3x3 @7", [960, 960], 9, [3, 1, 960]),
    ("depthwise 144 1x1 @56", [144, 144], 56, [1, 1, 144]),
    ("depthwise 144 7x7 stride 2 @56", [144, 144], 61, [7, 2, 144]),
    ("32 groups, 128 3x3 @56", [128, 128], 58, [3, 1, 32]),
];

fn numbers(elems: usize) -> Values {
    Values::F32((0..elems).map(|i| (i * 37 % 101) as f32 / 101.0 - 0.5).collect())
}

fn layer(engine: &mut ConvEngine, name: &str, shape: &ConvShape) {
    let (slab, bank) = (numbers(shape.input_elems()), numbers(shape.weight_elems()));
    let candidates: Vec<_> = Candidate::all(shape, engine.device().caps(), DType::F32)
        .into_iter()
        .map(|candidate| {
            let filters = engine.install_as(shape, 1, 1, &bank, candidate).expect("the layer fits");
            (candidate, filters)
        })
        .collect();
    let mut times = vec![Vec::new(); candidates.len()];
    let started = Instant::now();
    for round in 0..=MOST_ROUNDS {
        if round > FEWEST_ROUNDS && started.elapsed() > BUDGET {
            break;
        }
        for ((_, filters), times) in candidates.iter().zip(&mut times) {
            let call = Instant::now();
            let emit = &mut |_, values| {
                black_box(values);
            };
            engine.run(filters, 1, &slab, None, &|| false, emit).expect("the device works");
            // The first round is a warm-up.
            if round > 0 {
                times.push(call.elapsed());
            }
        }
    }
    for ((candidate, filters), mut times) in candidates.into_iter().zip(times) {
        times.sort_unstable();
        let (best, median) = (times[0].as_secs_f64(), times[times.len() / 2].as_secs_f64());
        let rate = 2.0 * filters.plan().macs() as f64 / best / 1e9;
        println!(
            "{name:32} {:26} {:9.2} ms {:9.2} ms {rate:8.2} GFLOP/s",
            candidate.to_string(),
            best * 1e3,
            median * 1e3,
        );
    }
}

fn main() {
    // Cargo passes `--bench`.
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with("--")).unwrap_or_default();
    let Ok(adapters) = select(None) else {
        println!("there is no GPU adapter");
        return;
    };
    println!("{} ({})", adapters[0].name, adapters[0].driver_info);
    let mut engine = ConvEngine::new(GpuDevice::open(&adapters[0], "bench").expect("the adapter opens"));
    for (name, [channels_in, channels_out], side, [kernel, stride, groups]) in LAYERS {
        if name.contains(&wanted) {
            let params = ConvParams::default().stride([stride]).groups(groups);
            let input = [1, channels_in, side, side];
            let weight = [channels_out, channels_in / groups, kernel, kernel];
            let shape = ConvShape::new(&input, &weight, &params).expect("a valid layer");
            layer(&mut engine, name, &shape);
        }
    }
}
