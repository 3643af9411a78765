//! The cost of one condition number and of a decoder, for each code family at three sizes.
//!
//!     cargo bench --bench condition

#![allow(missing_docs, reason = "criterion's macros generate undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a bench on fixed sizes")]

use criterion::{Criterion, criterion_group, criterion_main};
use fcdcc::CodeKind;
use fcdcc::coding::Decoder;
use fcdcc_bench::conditions::{Room, comparable};

/// (n, delta)
const SIZES: [(usize, usize); 3] = [(6, 4), (20, 16), (40, 32)];

fn families(c: &mut Criterion) {
    for kind in CodeKind::ALL.into_iter().filter(|kind| *kind != CodeKind::Uncoded) {
        let mut group = c.benchmark_group(kind.name());
        group.sample_size(20).measurement_time(std::time::Duration::from_secs(2));
        for (n, delta) in SIZES {
            let code = comparable(kind, n, delta, Room::ANY).unwrap();
            // Every other subtask is missing, from the first on: an average condition number.
            let missing = code.tolerated();
            let set: Vec<usize> = (0..n).filter(|i| i % 2 == 0 || *i >= 2 * missing).collect();
            group.bench_function(format!("condition {n},{delta}"), |b| b.iter(|| code.condition(&set)));
            // With n = 40 the real polynomial code is too badly conditioned to invert.
            if code.condition(&set) < 1e13 {
                group.bench_function(format!("decoder {n},{delta}"), |b| {
                    b.iter(|| Decoder::for_subtasks(&code, &set).unwrap().condition());
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, families);
criterion_main!(benches);
