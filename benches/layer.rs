//! Whole coded layers on CPU workers, with and without stragglers, beside the same layer uncoded on as many workers.
//!
//!     cargo bench --bench layer

#![allow(missing_docs, reason = "criterion's macros generate undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a bench on fixed shapes")]

use criterion::{Criterion, criterion_group, criterion_main};
use fcdcc::worker::{CpuWorker, FaultSpec, inject};
use fcdcc::{CodeKind, CodedConv, ConvParams, LayerOptions, Pool};
use ndarray::ArrayD;

fn layers(c: &mut Criterion) {
    let params = ConvParams::default().padding([1]);
    for (name, channels, size) in [("vgg 128->128 56x56", 128, 56), ("tiny 8->8 8x8", 8, 8)] {
        let mut group = c.benchmark_group(name);
        let x = ArrayD::from_shape_fn(vec![1, channels, size, size], |i| {
            ((i[1] * 7 + i[2] * 3 + i[3]) as f32).sin()
        });
        let w = ArrayD::from_shape_fn(vec![channels, channels, 3, 3], |i| {
            ((i[0] * 5 + i[1] + i[2]) as f32).cos()
        });
        for (what, code, fault) in [
            ("coded n=6", CodeKind::Crme, None),
            ("coded n=6, two delayed 200 ms", CodeKind::Crme, Some("1,4:delay=200ms")),
            ("uncoded on 6", CodeKind::Uncoded, None),
            ("uncoded on 6, two delayed 200 ms", CodeKind::Uncoded, Some("1,4:delay=200ms")),
        ] {
            let faults: Vec<FaultSpec> = fault.iter().map(|f| f.parse().unwrap()).collect();
            let pool = Pool::new(inject(CpuWorker::fleet(6), &faults, 0).unwrap()).unwrap();
            let options = LayerOptions { code, ..LayerOptions::default() };
            let layer = CodedConv::builder(&pool, x.shape(), w.view())
                .params(params.clone())
                .options(options)
                .prepare()
                .unwrap();
            group.sample_size(10);
            group.bench_function(what, |b| b.iter(|| layer.run(x.view()).unwrap()));
        }
        group.finish();
    }
}

criterion_group!(benches, layers);
criterion_main!(benches);
