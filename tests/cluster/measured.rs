//! A measurement: the bytes that one run of the convolutions of ResNet-50 sends and receives.
//!
//! `cargo test --features cluster --test cluster -- --ignored --nocapture resnet`

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed unwrap is a failed test; what was measured is told"
)]

use fcdcc::array::WireFormat;
use fcdcc::worker::{Task, intercept};
use fcdcc::{Audit, ConvParams, LayerOptions, Pool, Worker};
use fcdcc_test_support::fleet::{SOON, endpoint, master, pool_of, server, workers_sending};
use fcdcc_test_support::layer::Layer;

/// Number of such layers, input channels, input size, output channels, kernel, stride.
const RESNET_50: [[usize; 6]; 23] = [
    [1, 3, 224, 64, 7, 2],
    [1, 64, 56, 64, 1, 1],
    [3, 64, 56, 64, 3, 1],
    [4, 64, 56, 256, 1, 1],
    [2, 256, 56, 64, 1, 1],
    [1, 256, 56, 128, 1, 1],
    [1, 128, 56, 128, 3, 2],
    [3, 128, 28, 128, 3, 1],
    [4, 128, 28, 512, 1, 1],
    [1, 256, 56, 512, 1, 2],
    [3, 512, 28, 128, 1, 1],
    [1, 512, 28, 256, 1, 1],
    [1, 256, 28, 256, 3, 2],
    [5, 256, 14, 256, 3, 1],
    [6, 256, 14, 1024, 1, 1],
    [1, 512, 28, 1024, 1, 2],
    [5, 1024, 14, 256, 1, 1],
    [1, 1024, 14, 512, 1, 1],
    [1, 512, 14, 512, 3, 2],
    [2, 512, 7, 512, 3, 1],
    [3, 512, 7, 2048, 1, 1],
    [1, 1024, 14, 2048, 1, 2],
    [2, 2048, 7, 512, 1, 1],
];

/// Bytes of slabs and of sub-results of one run of every layer, and the bytes that the report counts up.
fn run_all(wire: WireFormat, shared: bool) -> [u64; 3] {
    let at = endpoint();
    let cluster = master(&at);
    let server = server("alpha", &at, 6);
    let unaware = |worker: Box<dyn Worker>| {
        intercept(worker)
            .on_execute(|inner, task, emit| inner.execute(Task { shared: None, ..task }, emit))
            .boxed()
    };
    let all = workers_sending(&cluster, 6, wire);
    let pool: Pool = pool_of(if shared { all } else { all.into_iter().map(unaware).collect() });
    let mut total = [0; 3];
    for [count, channels, side, outputs, kernel, stride] in RESNET_50 {
        let params = ConvParams::default().padding([kernel / 2]).stride([stride]);
        let (input, weight) = ([1, channels, side, side], [outputs, channels, kernel, kernel]);
        let layer = Layer::<f32>::without_truth(&input, &weight, params);
        // Hedging would make the numbers depend on the load of this machine.
        let options = LayerOptions::default().audit(Audit::Off).hedge(None);
        let prepared = layer.prepare(&pool, options).unwrap();
        let mut most = [0; 3];
        for _ in 0..2 {
            let before = server.traffic();
            let run = prepared.run(layer.input.view()).unwrap();
            assert!(run.report.fallback.is_none(), "{:#?}", run.report);
            assert!(pool.wait_idle(SOON));
            let after = server.traffic();
            let now = [
                after.received_bytes - before.received_bytes,
                after.sent_bytes - before.sent_bytes,
                run.report.bytes_up as u64,
            ];
            most = std::array::from_fn(|i| most[i].max(now[i]));
        }
        total = std::array::from_fn(|i| total[i] + count as u64 * most[i]);
    }
    total
}

#[test]
#[ignore = "a measurement of a minute"]
fn resnet_50_sends_and_receives() {
    assert_eq!(RESNET_50.iter().map(|[count, ..]| count).sum::<usize>(), 53);
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let mut rows = Vec::new();
    for (wire, shared) in [
        (WireFormat::Full, false),
        (WireFormat::Full, true),
        (WireFormat::F16, false),
        (WireFormat::F16, true),
        (WireFormat::Bf16, true),
    ] {
        let [up, down, counted] = run_all(wire, shared);
        println!(
            "{wire}, shared slabs {shared}: {:.1} MB up, {:.1} MB down ({:.1} MB of slabs handed out)",
            mb(up),
            mb(down),
            mb(counted)
        );
        rows.push((up, down));
    }
    assert!(rows[1].0 < rows[0].0 && rows[3].0 < rows[2].0, "{rows:?}");
    assert!(rows[2].0 < rows[0].0 * 6 / 10 && rows[2].1 < rows[0].1 * 6 / 10, "{rows:?}");
}
