//! The kernels side by side, each in every variant (tiles, splits of the reduction), on two layers: 128 -> 128 channels,
//! 3x3, 58x58 (padded) -> 56x56, as in VGG; and 512 -> 512, 3x3, 9x9 -> 7x7, with a small grid.
//!
//! Compare the results of one run only; the throughput is in multiply-adds (2 flops each). A whole call is timed: upload,
//! dispatch, read-back.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fcdcc::array::{DType, Values};
use fcdcc::conv::{ConvParams, ConvShape};
use fcdcc::gpu::{Candidate, ConvEngine, GpuDevice, Kernel, select};

fn kernels(criterion: &mut Criterion) {
    let Ok(adapters) = select(None) else { return };
    let gpu = GpuDevice::open(&adapters[0], "bench").expect("a selected adapter opens");
    let mut engine = ConvEngine::new(gpu);
    for (channels, side) in [(128, 58), (512, 9)] {
        layer(criterion, &mut engine, channels, side);
    }
}

fn layer(criterion: &mut Criterion, engine: &mut ConvEngine, channels: usize, side: usize) {
    let shape =
        ConvShape::new(&[1, channels, side, side], &[channels, channels, 3, 3], &ConvParams::default())
            .expect("a valid shape");
    let out = side - 2;
    let mut group = criterion.benchmark_group(format!("conv_{channels}x{channels}_3x3_{out}x{out}"));
    for dtype in [DType::F32, DType::F64] {
        let random = |elems: usize| -> Values {
            let numbers = (0..elems).map(|i| (i * 37 % 101) as f64 / 101.0 - 0.5);
            match dtype {
                #[expect(clippy::cast_possible_truncation, reason = "any numbers will do")]
                DType::F32 => Values::F32(numbers.map(|n| n as f32).collect()),
                DType::F64 => Values::F64(numbers.collect()),
            }
        };
        let (slab, bank) = (random(shape.input_elems()), random(shape.weight_elems()));
        for kernel in Kernel::ALL {
            if !kernel.runs_on(engine.device().caps(), dtype) {
                continue;
            }
            for way in Candidate::of(kernel, &shape, engine.device().caps(), dtype) {
                let filters = engine.install_as(&shape, 1, 1, &bank, way).expect("the layer fits");
                group.throughput(Throughput::Elements(filters.plan().macs()));
                group.bench_function(format!("{way} {dtype}"), |bencher| {
                    bencher.iter(|| {
                        let emit = &mut |_, values| {
                            black_box(values);
                        };
                        engine.run(&filters, 1, &slab, None, &|| false, emit).expect("the device works");
                    });
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, kernels);
criterion_main!(benches);
