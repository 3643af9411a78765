//! Encoding and decoding of VGG-16 and AlexNet layers, beside a plain copy of as many bytes: the cost of the code for the
//! master.
//!
//!     cargo bench --bench codec

#![allow(missing_docs, reason = "criterion's macros generate undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a bench on fixed shapes")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fcdcc::coding::{Code, CodeKind, Decoder, Epilogue, decode, encode_input};
use fcdcc::conv::{ConvParams, ConvShape};
use fcdcc::partition::{FilterPartition, InputPartition, OutputTiling};

struct Case {
    name: &'static str,
    shape: ConvShape,
    code: Code,
}

fn case(
    name: &'static str,
    input: [usize; 4],
    weight: [usize; 4],
    params: ConvParams,
    code: [usize; 3],
) -> Case {
    let [k_a, k_b, n] = code;
    Case {
        name,
        shape: ConvShape::new(&input, &weight, &params).unwrap(),
        code: Code::new(CodeKind::Crme, k_a, k_b, n).unwrap(),
    }
}

fn cases() -> Vec<Case> {
    let same = || ConvParams::default().padding([1]);
    vec![
        case("vgg 128->128 56x56 n=6", [1, 128, 56, 56], [128, 128, 3, 3], same(), [4, 4, 6]),
        case("vgg 512->512 14x14 n=6", [1, 512, 14, 14], [512, 512, 3, 3], same(), [4, 4, 6]),
        case(
            "alexnet conv1 n=20",
            [1, 3, 227, 227],
            [96, 3, 11, 11],
            ConvParams::default().stride([4]),
            [8, 8, 20],
        ),
    ]
}

fn data(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * 0.37).sin()).collect()
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    for Case { name, shape, code } in cases() {
        let parts = InputPartition::new(&shape, code.k_a()).unwrap();
        let input = data(shape.input_elems());
        let sent = code.n() * code.l_a() * shape.batch * shape.in_channels * parts.slab_plane();
        group.throughput(Throughput::Bytes(sent as u64 * 4));
        group.bench_function(BenchmarkId::new("code", name), |b| {
            let mut buffers = Vec::new();
            b.iter(|| buffers = encode_input(&code, &shape, &parts, &input, std::mem::take(&mut buffers)));
        });
        let source = data(sent);
        let mut target = source.clone();
        group.bench_function(BenchmarkId::new("copy of as many bytes", name), |b| {
            b.iter(|| target.copy_from_slice(&source));
        });
    }
    group.finish();
}

fn decode_layers(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    for Case { name, shape, code } in cases() {
        let slabs = InputPartition::new(&shape, code.k_a()).unwrap();
        let filters = FilterPartition::new(&shape, code.k_b()).unwrap();
        let tiling = OutputTiling::new(&shape, &slabs, &filters);
        // Every other subtask is missing, from the first on: an average condition number.
        let spare = code.n() - code.recovery_threshold();
        let set: Vec<usize> = (0..code.n()).filter(|i| i % 2 == 0 || *i >= 2 * spare).collect();
        let fast = Decoder::for_subtasks(&code, &set).unwrap();
        let generic = Decoder::generic(&code, fast.inputs()).unwrap();
        let results = vec![data(tiling.part_elems()); fast.inputs().len()];
        let results: Vec<&[f32]> = results.iter().map(Vec::as_slice).collect();
        let mut output = vec![0.0; shape.output_elems()];
        group.throughput(Throughput::Bytes(output.len() as u64 * 4));
        for (which, decoder) in [("fast path", &fast), ("generic", &generic)] {
            group.bench_function(BenchmarkId::new(which, name), |b| {
                let nothing = Epilogue::default();
                b.iter(|| decode(decoder, &tiling, &results, nothing, &mut output).unwrap());
            });
        }
        let source = data(output.len());
        group.bench_function(BenchmarkId::new("copy of as many bytes", name), |b| {
            b.iter(|| output.copy_from_slice(&source));
        });
    }
    group.finish();
}

fn invert(c: &mut Criterion) {
    let mut group = c.benchmark_group("invert");
    for (k_a, k_b, n) in [(4, 4, 6), (8, 8, 20), (8, 16, 40)] {
        let code = Code::new(CodeKind::Crme, k_a, k_b, n).unwrap();
        let set: Vec<usize> = (0..code.recovery_threshold()).collect();
        group.bench_function(format!("{k_a},{k_b} of {n}"), |b| {
            b.iter(|| Decoder::for_subtasks(&code, &set).unwrap().condition());
        });
    }
    group.finish();
}

criterion_group!(benches, encode, decode_layers, invert);
criterion_main!(benches);
