//! The metrics endpoints of masters and worker processes, over HTTP.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use fcdcc::array::Values;
use fcdcc::cluster::WorkerServer;
use fcdcc::telemetry::{Exporter, Master, WorkerProcess};
use fcdcc::worker::{Fault, faulty, intercept};
use fcdcc::{ConvParams, CpuWorker, LayerOptions, Worker};
use fcdcc_test_support::fleet::{self, endpoint, master, pool_of, serving, until, workers};
use fcdcc_test_support::layer::{Layer, small};

/// Returns status line and body.
fn get(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(fleet::SOON)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// The value of the metric whose line begins with `name`.
fn value(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(name));
    let line = line.unwrap_or_else(|| panic!("{name} is not in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn both_sides_of_a_cluster_show_what_they_did() {
    let at = endpoint();
    let cluster = master(&at);
    let server = Arc::new(WorkerServer::start(CpuWorker::fleet(6), &serving("alpha", &at)).unwrap());
    let there = Exporter::start("127.0.0.1:0", WorkerProcess::new(&server)).unwrap();
    let pool = pool_of(workers(&cluster, 6));
    let counting = Master::new(&pool);
    let observer = Some(counting.observer());
    let here = Exporter::start("127.0.0.1:0", counting).unwrap();
    let layer = small();
    let prepared = layer.prepare(&pool, LayerOptions { observer, ..LayerOptions::default() }).unwrap();
    for _ in 0..3 {
        prepared.run(layer.input.view()).unwrap();
    }
    let (status, text) = get(here.address(), "/metrics");
    assert_eq!(status, "HTTP/1.1 200 OK");
    let layers: f64 = ["exact", "exact-after-redispatch", "exact-locally"]
        .iter()
        .filter(|how| text.contains(&format!("completion=\"{how}\"")))
        .map(|how| value(&text, &format!("fcdcc_layers_total{{completion=\"{how}\"}}")))
        .sum();
    assert_eq!(layers, 3.0);
    assert_eq!(value(&text, "fcdcc_layer_seconds_count{phase=\"total\"}"), 3.0);
    assert!(value(&text, "fcdcc_payload_bytes_total{direction=\"down\"}") > 0.0);
    assert!(text.contains("outcome=\"used\",worker=\"remote-"), "{text}");
    let (status, text) = get(there.address(), "/metrics");
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(value(&text, "fcdcc_worker_payload_bytes_total{direction=\"received\"}") > 0.0);
    assert_eq!(value(&text, "fcdcc_worker_up{device=\"cpu-0\"}"), 1.0);
    assert!(value(&text, "fcdcc_worker_tasks_total{device=\"cpu-0\",outcome=\"done\"}") > 0.0);
    assert!(text.ends_with("# EOF\n"));
    for exporter in [&here, &there] {
        assert_eq!(get(exporter.address(), "/readyz"), ("HTTP/1.1 200 OK".to_owned(), "ready\n".to_owned()));
        assert_eq!(get(exporter.address(), "/healthz").0, "HTTP/1.1 200 OK");
        assert_eq!(get(exporter.address(), "/other").0, "HTTP/1.1 404 Not Found");
    }
    // Without its machine the master cannot compute anything, and reports this.
    drop((there, server));
    until("the loss is noticed", || get(here.address(), "/readyz").0 == "HTTP/1.1 503 Service Unavailable");
    let (_, text) = get(here.address(), "/metrics");
    assert!(value(&text, "fcdcc_workers{state=\"lost\"}") > 0.0, "{text}");
}

#[test]
fn phases_of_tasks_and_rates_of_links_are_metrics() {
    let at = endpoint();
    let cluster = master(&at);
    let server = WorkerServer::start(CpuWorker::fleet(4), &serving("alpha", &at)).unwrap();
    let pool = pool_of(workers(&cluster, 4));
    let counting = Master::new(&pool);
    counting.watch(&cluster);
    let observer = Some(counting.observer());
    let here = Exporter::start("127.0.0.1:0", counting).unwrap();
    let metrics = || get(here.address(), "/metrics").1;
    assert!(!metrics().contains("fcdcc_link_bytes_per_second{"), "nothing was sent yet");
    let layer = Layer::<f32>::without_truth(&[1, 16, 128, 128], &[16, 16, 3, 3], ConvParams::default());
    let options = LayerOptions { observer, ..LayerOptions::default().partitions(2, 4) };
    let prepared = layer.prepare(&pool, options).unwrap();
    for _ in 0..5 {
        prepared.run(layer.input.view()).unwrap();
    }
    let text = metrics();
    for phase in ["send", "compute"] {
        let seconds = value(&text, &format!("fcdcc_task_seconds_sum{{phase=\"{phase}\"}}"));
        let count = value(&text, &format!("fcdcc_task_seconds_count{{phase=\"{phase}\"}}"));
        assert!(seconds > 0.0 && (1.0..=40.0).contains(&count), "{phase}: {seconds} s, {count} tasks");
    }
    // Each of the five runs sends half of a megabyte or more to each of its devices.
    let rate = value(&text, "fcdcc_link_bytes_per_second{machine=\"alpha\",direction=\"up\"}");
    assert!(rate > 1e6, "{rate}");
    drop(server);
    until("it has left", || cluster.members().is_empty());
    assert!(!metrics().contains("fcdcc_link_bytes_per_second{"));
}

#[test]
fn a_worker_process_that_computes_wrongly_or_not_at_all_is_not_ready() {
    let ready = |device: Box<dyn Worker>| {
        let at = endpoint();
        let _cluster = master(&at);
        let server = Arc::new(WorkerServer::start(vec![device], &serving("alpha", &at)).unwrap());
        let exporter = Exporter::start("127.0.0.1:0", WorkerProcess::new(&server)).unwrap();
        get(exporter.address(), "/readyz")
    };
    assert_eq!(ready(Box::new(CpuWorker::new("good", 1))).0, "HTTP/1.1 200 OK");
    let (status, text) = ready(liar("bad"));
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(text.contains("bad failed its probe"), "{text}");
    // A worker that fails tasks but passes its probe.
    let late = faulty(CpuWorker::new("late", 1), Fault::Crash, 0);
    assert_eq!(ready(late.boxed()).0, "HTTP/1.1 200 OK");
    assert!(Exporter::start("256.0.0.1:1", WorkerProcess::new(&Arc::new(idle()))).is_err());
}

fn idle() -> WorkerServer {
    WorkerServer::start(CpuWorker::fleet(1), &serving("idle", &endpoint())).unwrap()
}

/// A worker whose results are wrong by one.
fn liar(name: &str) -> Box<dyn Worker> {
    let liar = intercept(CpuWorker::new(name, 1)).including_probes().on_execute(|inner, task, emit| {
        inner.execute(task, &mut |index, mut values| {
            if let Values::F32(values) = &mut values {
                values[0] += 1.0;
            }
            emit(index, values);
        })
    });
    liar.boxed()
}
