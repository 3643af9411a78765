//! What a server adds to the library: time and processor time of a request, throughput, and what batching gains.
//!
//!     cargo bench -p fcdcc-serve --bench serving [-- MODEL.onnx ...]
//!
//! **The measure.** Server and library share one pool of six one-thread CPU workers, and take turns. The client is a thread
//! with a blocking socket on a kept loopback connection; it sends and reads binary tensors. *Time* is from the first byte
//! sent to the last one read, against the same input given to `PreparedModel::run`. *Processor time* is that of the whole
//! process without that of the client's thread, so that it holds server, workers and coding. Workers sleep between requests,
//! and waking them costs some 100 us. A program that pauses between calls of the library pays that too, so the library is also
//! called at the client's pace, by a thread that waits for work. *Throughput* is that of sixteen connections that send the
//! next request when they have an answer, against sixteen threads that call `run`; the client's work counts against the
//! server here. *Batching* compares a server of LeNet-5 with batches of up to sixteen images with one that runs each image
//! alone, for thirty-two connections.
//!
//! LeNet-5 comes with the repository. Other models are files with one input of f32; free axes are taken as 1.
//! `FCDCC_BENCH_ROUNDS` is the number of turns (default 9).

#![allow(clippy::print_stdout, reason = "a bench prints its table")]
#![allow(clippy::unwrap_used, reason = "a bench on fixed inputs")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use fcdcc::model::{Model, ModelOptions, PreparedModel, Tensor};
use fcdcc::telemetry::Master;
use fcdcc::{CpuWorker, Pool};
use fcdcc_serve::{Engine, Server, ServerOptions};
use ndarray::ArrayD;
use rustix::time::{ClockId, clock_gettime};

/// Requests of one turn of the comparison of times.
const CALLS: usize = 200;
/// The pause before a call of the library that is made at the pace of the client: with what a timer is late, as long as a
/// request is under way without being computed.
const PAUSE: Duration = Duration::from_micros(100);
/// Requests at one time in the comparison of throughputs.
const IN_FLIGHT: usize = 16;
/// Requests at one time in the comparison of batches with single runs, and the largest batch.
const FOR_BATCHES: usize = 32;
const MOST_IN_BATCH: usize = 16;
/// One turn of a throughput.
const TURN: Duration = Duration::from_secs(4);
/// The longest wait for an answer.
const LIMIT: Duration = Duration::from_mins(1);

fn main() {
    let rounds: usize =
        std::env::var("FCDCC_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(9);
    let files: Vec<PathBuf> =
        std::env::args().skip(1).filter(|text| !text.starts_with("--")).map(PathBuf::from).collect();
    let lenet = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/digits/lenet5.onnx");
    overhead(&Subject::new(&lenet, ServerOptions::default().threads), rounds);
    println!("\n{IN_FLIGHT} at one time, requests a second, medians of {rounds} turns");
    println!("{:<14} {:>9} {:>9} {:>7}", "model", "library", "server", "ratio");
    for file in [lenet.clone()].iter().chain(&files) {
        throughput(&Subject::new(file, IN_FLIGHT), rounds);
    }
    batching(&lenet, rounds);
}

/// A model, ready in the library and in a server on the same pool.
struct Subject {
    name: String,
    prepared: PreparedModel,
    input: Tensor,
    request: Vec<u8>,
    server: Server,
}

impl Subject {
    fn new(file: &Path, threads: usize) -> Self {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let pool = Pool::new(CpuWorker::fleet(6)).unwrap();
        let model = Model::load(file).unwrap();
        let info = model.inputs()[0].clone();
        let axes = info.shape.clone().expect("a model whose input has a known number of axes");
        let shape: Vec<usize> = axes.into_iter().map(|axis| axis.unwrap_or(1)).collect();
        let elems: usize = shape.iter().product();
        let values: Vec<f32> = (0..elems).map(|i| (i * 7919 % 1009) as f32 / 1009.0).collect();
        let request = request(&name, &info.name, &shape, &values);
        let prepared = model
            .with_input_shape(&info.name, &shape)
            .unwrap()
            .prepare(&pool, &ModelOptions::default())
            .unwrap();
        let input = Tensor::from(ArrayD::from_shape_vec(shape, values).unwrap());
        let server = serve(&pool, vec![file.to_owned()], threads);
        Self { name, prepared, input, request, server }
    }

    fn run(&self) {
        self.prepared.run(std::slice::from_ref(&self.input)).unwrap();
    }
}

fn serve(pool: &Pool, sources: Vec<PathBuf>, threads: usize) -> Server {
    let options =
        ServerOptions { sources, threads, address: "127.0.0.1:0".to_owned(), ..ServerOptions::default() };
    let engine = Engine { pool: pool.clone(), options: ModelOptions::default() };
    let server = Server::start(&options, &engine, Master::new(pool), None).unwrap();
    assert!(server.failures().is_empty(), "{:?}", server.failures());
    server
}

/// A request with its tensor in binary, which asks for a binary answer.
fn request(model: &str, input: &str, shape: &[usize], values: &[f32]) -> Vec<u8> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let json = format!(
        r#"{{"inputs":[{{"name":"{input}","shape":{shape:?},"datatype":"FP32","parameters":{{"binary_data_size":{}}}}}],"parameters":{{"binary_data_output":true}}}}"#,
        bytes.len()
    );
    let head = format!(
        "POST /v2/models/{model}/infer HTTP/1.1\r\nHost: bench\r\nContent-Length: {}\r\nInference-Header-Content-Length: \
         {}\r\n\r\n",
        json.len() + bytes.len(),
        json.len()
    );
    [head.into_bytes(), json.into_bytes(), bytes].concat()
}

/// A connection that is kept.
struct Client {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Client {
    fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, LIMIT).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Self { stream, answer: vec![0; 64 << 10] }
    }

    /// Sends a request and reads its answer, whose status must be 200.
    fn call(&mut self, request: &[u8]) {
        self.stream.write_all(request).unwrap();
        let mut have = 0;
        loop {
            let count = self.stream.read(&mut self.answer[have..]).unwrap();
            assert!(count > 0, "the server closed the connection");
            have += count;
            let got = &self.answer[..have];
            let Some(end) = got.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
            let head = std::str::from_utf8(&got[..end]).unwrap().to_ascii_lowercase();
            assert!(head.starts_with("http/1.1 200"), "{}", String::from_utf8_lossy(got));
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if have >= end + 4 + length.parse::<usize>().unwrap() {
                return;
            }
        }
    }
}

fn seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Time and processor time of a request, and of the same call of the library, in turns.
/// Who computes the model in the comparison of times.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    /// The library, called again as soon as a call is over.
    Library,
    /// The library, called by a thread that waits for work, with pauses that make as many calls a second as the client does.
    Paced,
    Server,
}

impl Side {
    const ALL: [Self; 3] = [Self::Library, Self::Paced, Self::Server];

    fn name(self) -> &'static str {
        match self {
            Self::Library => "library",
            Self::Paced => "with pauses",
            Self::Server => "server",
        }
    }
}

fn overhead(subject: &Subject, rounds: usize) {
    let mut client = Client::new(subject.server.address());
    let mut turns = Side::ALL.map(|side| (side, Vec::new(), Vec::new()));
    std::thread::scope(|scope| {
        let ((ask, asked), (answer, answered)) = (sync_channel(1), sync_channel(1));
        scope.spawn(move || {
            while asked.recv().is_ok() {
                subject.run();
                answer.send(()).unwrap();
            }
        });
        // The first turn warms all of them up.
        for round in 0..=rounds {
            for (side, times, processor) in &mut turns {
                let (process, thread) = (seconds(ClockId::ProcessCPUTime), seconds(ClockId::ThreadCPUTime));
                let mut walls = Vec::with_capacity(CALLS);
                for _ in 0..CALLS {
                    if *side == Side::Paced {
                        std::thread::sleep(PAUSE);
                    }
                    let began = Instant::now();
                    match side {
                        Side::Library => subject.run(),
                        Side::Paced => {
                            ask.send(()).unwrap();
                            answered.recv().unwrap();
                        }
                        Side::Server => client.call(&subject.request),
                    }
                    walls.push(began.elapsed().as_secs_f64() * 1e6);
                }
                // This thread is part of the library where it calls it, and no part of the others.
                let own = seconds(ClockId::ThreadCPUTime) - thread;
                let own = if *side == Side::Library { 0.0 } else { own };
                let spent = (seconds(ClockId::ProcessCPUTime) - process - own) * 1e6 / CALLS as f64;
                if round > 0 {
                    times.push(median(&mut walls));
                    processor.push(spent);
                }
            }
        }
        drop(ask);
    });
    println!("{}, medians of {rounds} turns of {CALLS} calls, microseconds a call", subject.name);
    println!("{:<16} {:>9} {:>15}", "", "time", "processor time");
    for (side, mut times, mut processor) in turns {
        println!("{:<16} {:>9.0} {:>15.0}", side.name(), median(&mut times), median(&mut processor));
    }
}

/// Calls a second of `threads` threads, each of which makes the next call when the last one is over.
fn rate<C: FnMut()>(threads: usize, call: impl Fn() -> C + Sync) -> f64 {
    let (over, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut call = call();
                while !over.load(Ordering::Relaxed) {
                    call();
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        std::thread::sleep(TURN);
        over.store(true, Ordering::Relaxed);
    });
    calls.into_inner() as f64 / began.elapsed().as_secs_f64()
}

/// The rate at which a server answers `connections` clients.
fn served(server: &Server, request: &[u8], connections: usize) -> f64 {
    rate(connections, || {
        let mut client = Client::new(server.address());
        move || client.call(request)
    })
}

fn throughput(subject: &Subject, rounds: usize) {
    let (mut library, mut server) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        library.push(rate(IN_FLIGHT, || || subject.run()));
        server.push(served(&subject.server, &subject.request, IN_FLIGHT));
    }
    let (library, server) = (median(&mut library), median(&mut server));
    println!("{:<14} {library:>9.1} {server:>9.1} {:>7.2}", subject.name, server / library);
}

/// LeNet-5 with batches and without.
fn batching(lenet: &Path, rounds: usize) {
    let folder = tempfile::tempdir().unwrap();
    let pool = Pool::new(CpuWorker::fleet(6)).unwrap();
    let batches = format!("[batching]\nmax_size = {MOST_IN_BATCH}\nmax_delay = '2ms'\n");
    let servers = ["", &batches].map(|config| {
        let sources = folder.path().join(if config.is_empty() { "alone" } else { "together" });
        let version = sources.join("lenet5").join("1");
        std::fs::create_dir_all(&version).unwrap();
        std::fs::copy(lenet, version.join("model.onnx")).unwrap();
        std::fs::write(version.join("model.toml"), config).unwrap();
        serve(&pool, vec![sources], 2)
    });
    let request = Subject::new(lenet, 1).request;
    let mut rates: [Vec<f64>; 2] = Default::default();
    for _ in 0..rounds {
        for (server, rates) in servers.iter().zip(&mut rates) {
            rates.push(served(server, &request, FOR_BATCHES));
        }
    }
    let [alone, together] = rates.map(|mut rates| median(&mut rates));
    println!("\nLeNet-5, {FOR_BATCHES} at one time, requests a second");
    println!(
        "each alone {alone:.0}, in batches of at most {MOST_IN_BATCH} {together:.0}: {:.2} times",
        together / alone
    );
}
