//! The kernels side by side on one layer: 128 -> 128 channels, 3x3, 58x58 (padded) -> 56x56, as in VGG.
//!
//! One run gives the ratios; the throughput is in multiply-adds (2 flops each). A whole call is timed: upload,
//! dispatch, read-back.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fcdcc::array::{DType, Values};
use fcdcc::conv::{ConvParams, ConvShape};
use fcdcc::gpu::{ConvEngine, GpuDevice, Kernel, select};

fn kernels(criterion: &mut Criterion) {
    let Ok(adapters) = select(None) else { return };
    let gpu = GpuDevice::open(&adapters[0], "bench").expect("a selected adapter opens");
    let mut engine = ConvEngine::new(gpu);
    let shape =
        ConvShape::new(&[1, 128, 58, 58], &[128, 128, 3, 3], &ConvParams::default()).expect("a valid shape");
    let mut group = criterion.benchmark_group("conv_128x128_3x3_56x56");
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
            let filters = engine.install(&shape, 1, 1, &bank, Some(kernel)).expect("the layer fits");
            group.throughput(Throughput::Elements(filters.plan().macs()));
            group.bench_function(format!("{kernel}_{dtype}"), |bencher| {
                bencher.iter(|| {
                    let emit = &mut |_, values| {
                        black_box(values);
                    };
                    engine.run(&filters, 1, &slab, None, &|| false, emit).expect("the device works");
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, kernels);
criterion_main!(benches);
