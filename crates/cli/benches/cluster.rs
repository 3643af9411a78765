//! The cost of the network: installing and sending against raw TCP, and a layer's overhead against local workers.
//!
//!     [MB=20] cargo bench --features full --bench cluster [-- --tls DIR]
//!
//! Everything is on loopback, with the worker in a process of its own; both sides take turns, and medians count. `MB`: only
//! this size, in MiB. `--tls DIR`: with the certificates made by `scripts/dev_ca.sh DIR alpha master`.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_possible_truncation, reason = "a bench")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fcdcc::array::Values;
use fcdcc::cluster::{Cluster, ClusterOptions, Security, Tls};
use fcdcc::worker::{FilterKey, SubtaskShape, Task};
use fcdcc::{CancelToken, CodedConv, ConvParams, ConvShape, CpuWorker, Pool, SubtaskId, Worker};
use fcdcc_test_support::fleet::{self, Process, endpoint, workers};
use ndarray::ArrayD;

const ROUNDS: usize = 15;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

/// A TCP peer that receives `bytes` and then answers with one byte.
fn raw_peer(bytes: usize) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0u8; bytes];
        while stream.read_exact(&mut buffer).is_ok() {
            stream.write_all(&[1]).unwrap();
        }
    });
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A subtask of one product per output element, with `filters` or `slab` megabytes.
fn shape(filters: usize, slab: usize) -> SubtaskShape {
    let conv = if filters > 0 {
        // A million filters of one weight each are all filters and hardly any slab.
        ConvShape::new(&[1, 64, 1, 1], &[(filters << 20) / 256, 64, 1, 1], &ConvParams::default())
    } else {
        let side = 512;
        let channels = (slab << 20) / 4 / side / side;
        ConvShape::new(&[1, channels, side, side], &[1, channels, 1, 1], &ConvParams::default().stride([128]))
    };
    SubtaskShape { conv: conv.unwrap(), slabs: 1, banks: 1, plain: false }
}

fn traffic(worker: &mut dyn Worker, megabytes: usize) {
    let bytes = megabytes << 20;
    let (filters, slabs) = (shape(megabytes, 0), shape(0, megabytes));
    let key = |layer| FilterKey { layer, subtask: SubtaskId(0) };
    worker.install(key(0), &slabs, Values::F32(vec![1.0; slabs.filter_elems()])).unwrap();
    let data = Values::F32(vec![1.0; slabs.upload_elems()]);
    let mut raw = raw_peer(bytes);
    let payload = vec![1u8; bytes];
    let (mut by_raw, mut by_install, mut by_slab) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let raw = timed(|| {
            raw.write_all(&payload).unwrap();
            raw.read_exact(&mut [0]).unwrap();
        });
        // New filters each time: filters that the worker holds are not sent.
        let banks = Values::F32(vec![round as f32 + 2.0; filters.filter_elems()]);
        let install = timed(|| worker.install(key(1), &filters, banks).unwrap());
        let slab = timed(|| {
            worker.execute(Task::new(key(0), &data, &CancelToken::new()), &mut |_, _| {}).unwrap();
        });
        // The first round is a warm-up.
        if round > 0 {
            by_raw.push(raw);
            by_install.push(install);
            by_slab.push(slab);
        }
    }
    let rate = |time: Duration| bytes as f64 / 1e6 / time.as_secs_f64();
    let (raw, install, slab) = (rate(median(by_raw)), rate(median(by_install)), rate(median(by_slab)));
    println!(
        "{megabytes:>4} MiB: raw TCP {raw:.0} MB/s, filters {install:.0} ({:.2} of raw), slabs {slab:.0} ({:.2})",
        install / raw,
        slab / raw
    );
}

fn overhead(remote: &Pool, local: &Pool) {
    for (name, channels, size) in
        [("tiny 8->8 8x8", 8, 8), ("small 32->32 28x28", 32, 28), ("64->64 56x56", 64, 56)]
    {
        let x = ArrayD::<f32>::from_elem(vec![1, channels, size, size], 0.5);
        let w = ArrayD::<f32>::from_elem(vec![channels, channels, 3, 3], 0.25);
        let params = ConvParams::default().padding([1]);
        let prepare = |pool: &Pool| {
            CodedConv::builder(pool, x.shape(), w.view()).params(params.clone()).prepare().unwrap()
        };
        let (there, here) = (prepare(remote), prepare(local));
        let (mut far, mut near) = (Vec::new(), Vec::new());
        for _ in 0..200 {
            far.push(timed(|| drop(there.run(x.view()).unwrap())));
            near.push(timed(|| drop(here.run(x.view()).unwrap())));
        }
        let (far, near) = (median(far), median(near));
        println!("{name}: local {near:?}, remote {far:?}, {:?} more a layer", far.saturating_sub(near));
    }
}

fn main() {
    // SAFETY: this is the first call of the process.
    #[allow(unsafe_code, reason = "see there")]
    unsafe {
        fleet::prepare_environment();
    }
    let arguments: Vec<String> = std::env::args().collect();
    let folder = arguments.iter().position(|a| a == "--tls").map(|at| PathBuf::from(&arguments[at + 1]));
    let tls = |name: &str, folder: &Path| Tls {
        ca: folder.join("ca.pem"),
        certificate: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
    };
    let at = endpoint();
    let security = Security { tls: folder.as_deref().map(|f| tls("master", f)), ..Security::default() };
    let options = ClusterOptions {
        listen: vec![at.clone()],
        machines: vec!["alpha".to_owned()],
        security,
        ..ClusterOptions::default()
    };
    let cluster = Cluster::open(&options).unwrap();
    let at = at.to_string();
    let mut arguments = vec!["--connect", &at, "--backend", "cpu", "--workers", "6"];
    let files = folder.as_deref().map(|f| tls("alpha", f));
    let files: Vec<String> = files
        .iter()
        .flat_map(|t| [("--ca", &t.ca), ("--certificate", &t.certificate), ("--key", &t.key)])
        .flat_map(|(option, path)| [option.to_owned(), path.display().to_string()])
        .collect();
    arguments.extend(files.iter().map(String::as_str));
    let _process = Process::start("alpha", &arguments);
    let mut remote = workers(&cluster, 6);
    println!("{} over loopback", if folder.is_some() { "mutual TLS" } else { "TCP" });
    for megabytes in std::env::var("MB").map_or(vec![1, 4, 20, 64], |v| vec![v.parse().unwrap()]) {
        traffic(remote[0].as_mut(), megabytes);
    }
    overhead(&Pool::new(remote).unwrap(), &Pool::new(CpuWorker::fleet(6)).unwrap());
}
