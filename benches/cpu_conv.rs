//! Rates of the CPU convolution beside a plain GEMM with the same multiply-adds, on one thread.
//!
//! Throughput counts multiply-adds: GFLOP/s are twice the reported Gelem/s.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fcdcc::array::{Matrix, MatrixMut, matmul};
use fcdcc::conv::{ConvKernel, ConvParams, ConvShape, Scratch};

struct Layer {
    name: &'static str,
    input: [usize; 4],
    weight: [usize; 4],
    params: ConvParams,
}

/// The layers as a worker gets them: slabs include their padding.
fn layers() -> Vec<Layer> {
    let p = ConvParams::default;
    vec![
        Layer { name: "vgg_3x3_128", input: [1, 128, 58, 58], weight: [128, 128, 3, 3], params: p() },
        Layer { name: "vgg_3x3_512", input: [1, 512, 16, 16], weight: [512, 512, 3, 3], params: p() },
        Layer { name: "vgg_first", input: [1, 3, 226, 226], weight: [64, 3, 3, 3], params: p() },
        Layer {
            name: "alexnet_conv1",
            input: [1, 3, 227, 227],
            weight: [96, 3, 11, 11],
            params: p().stride([4]),
        },
        Layer { name: "resnet_1x1", input: [1, 256, 56, 56], weight: [64, 256, 1, 1], params: p() },
        Layer {
            name: "resnet_3x3_s2",
            input: [1, 128, 57, 57],
            weight: [128, 128, 3, 3],
            params: p().stride([2]),
        },
        Layer {
            name: "depthwise_3x3",
            input: [1, 144, 58, 58],
            weight: [144, 1, 3, 3],
            params: p().groups(144),
        },
        Layer {
            name: "resnext_3x3_g32",
            input: [1, 128, 58, 58],
            weight: [128, 4, 3, 3],
            params: p().groups(32),
        },
        Layer { name: "four_filters", input: [1, 64, 58, 58], weight: [4, 64, 3, 3], params: p() },
        Layer { name: "lenet_conv1", input: [1, 1, 32, 32], weight: [6, 1, 5, 5], params: p() },
    ]
}

fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect()
}

fn convolutions(c: &mut Criterion) {
    for Layer { name, input, weight, params } in layers() {
        let shape = ConvShape::new(&input, &weight, &params).expect("the shapes above are valid");
        let (x, k) = (numbers(shape.input_elems()), numbers(shape.weight_elems()));
        let mut y = vec![0.0_f32; shape.output_elems()];
        let kernel = ConvKernel::with_filtering(&shape);
        let mut scratch = Scratch::new();
        let filters = kernel.pack(&k).expect("all lengths fit");
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements((shape.output_elems() * shape.reduction()) as u64));
        group.bench_function("conv", |b| {
            b.iter(|| {
                kernel
                    .run(&mut scratch, black_box(&x), &[&filters], &mut [&mut y], 1, &|| false)
                    .expect("all lengths fit");
            });
        });
        // A GEMM of one group's size; depthwise layers have no comparable one.
        let (rows, terms, cols) =
            (shape.out_channels / shape.groups, shape.reduction(), shape.batch * shape.output_plane());
        if shape.groups == 1 {
            let columns = numbers(terms * cols);
            group.bench_function("gemm", |b| {
                b.iter(|| {
                    let mut y = MatrixMut::dense(&mut y, rows, cols);
                    let columns = Matrix::dense(black_box(&columns), terms, cols);
                    matmul(&mut y, Matrix::dense(&k, rows, terms), columns, false);
                });
            });
        }
        group.finish();
    }
}

/// The reference for all rates above: a square product that fits the caches well.
fn peak(c: &mut Criterion) {
    const SIZE: usize = 768;
    let (a, b, mut y) = (numbers(SIZE * SIZE), numbers(SIZE * SIZE), numbers(SIZE * SIZE));
    let mut group = c.benchmark_group("peak_gemm");
    group.throughput(Throughput::Elements((SIZE * SIZE * SIZE) as u64));
    group.bench_function("768", |bench| {
        bench.iter(|| {
            let mut y = MatrixMut::dense(&mut y, SIZE, SIZE);
            matmul(&mut y, Matrix::dense(black_box(&a), SIZE, SIZE), Matrix::dense(&b, SIZE, SIZE), false);
        });
    });
    group.finish();
}

criterion_group!(benches, peak, convolutions);
criterion_main!(benches);
