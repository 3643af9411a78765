//! Whole models: coded over six CPU workers, without stragglers and with two, and uncoded over the same workers.
//!
//!     cargo bench --bench model
//!     FCDCC_BENCH_MODELS=a.onnx:b.onnx cargo bench --bench model      other models, with known input sizes

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use fcdcc::model::{Model, ModelOptions, Tensor};
use fcdcc::worker::{CpuWorker, FaultSpec, inject};
use fcdcc::{CodeKind, LayerOptions, Pool};
use ndarray::ArrayD;

const WORKERS: usize = 6;

/// LeNet-5 for one digit and for ninety, or the models named in the environment.
fn models() -> Vec<(String, Model)> {
    if let Ok(paths) = std::env::var("FCDCC_BENCH_MODELS") {
        let load = |path: &str| (path.to_owned(), Model::load(path).expect("the model can be loaded"));
        return paths.split(':').map(load).collect();
    }
    let lenet = |batch: usize| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/digits/lenet5.onnx");
        let model = Model::load(path).and_then(|m| m.with_input_shape("image", &[batch, 1, 32, 32]));
        (format!("LeNet-5, batch {batch}"), model.expect("the model belongs to the repository"))
    };
    vec![lenet(1), lenet(90)]
}

/// Seeded data for every input.
fn inputs(model: &Model) -> Vec<Tensor> {
    let one = |shape: Vec<usize>| {
        let mut state = 1u32;
        ArrayD::from_shape_simple_fn(shape, || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 16_777_216.0
        })
    };
    model.inputs().iter().map(|i| one(i.fixed_shape().expect("every size is known")).into()).collect()
}

fn bench(criterion: &mut Criterion) {
    for (name, model) in models() {
        let inputs = inputs(&model);
        let mut group = criterion.benchmark_group(name);
        group.sample_size(20).measurement_time(Duration::from_secs(8));
        let cases = [
            ("coded, nobody late", CodeKind::Crme, "0:delay=0ms"),
            ("coded, two of six 200 ms late", CodeKind::Crme, "1,4:delay=200ms"),
            ("uncoded, nobody late", CodeKind::Uncoded, "0:delay=0ms"),
        ];
        for (case, code, fault) in cases {
            let fault: FaultSpec = fault.parse().expect("a valid fault");
            let workers = inject(CpuWorker::fleet(WORKERS), &[fault], 0).expect("six workers");
            let pool = Pool::new(workers).expect("a pool");
            let layer = LayerOptions { code, ..LayerOptions::default() };
            let options = ModelOptions { layer, ..ModelOptions::default() };
            let prepared = model.prepare(&pool, &options).expect("the model can be prepared");
            group.bench_function(case, |b| b.iter(|| prepared.run(&inputs).expect("a result")));
        }
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
