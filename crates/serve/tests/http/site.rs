//! Servers, repositories and data for the tests.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fcdcc::model::{Model, ModelOptions, Tensor};
use fcdcc::telemetry::Master;
use fcdcc::worker::intercept;
use fcdcc::{CpuWorker, Error, Pool, Worker};
use fcdcc_serve::{Engine, Pictures, Server, ServerOptions};
use ndarray::ArrayD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::LIMIT;

/// f32 results of two responder sets, or of two batch sizes, differ by rounding only.
pub(crate) const TOLERANCE: f32 = 1e-4;
/// Elements of one image.
pub(crate) const PIXELS: usize = 32 * 32;

/// Holds the workers while it is closed.
#[derive(Default)]
pub(crate) struct Gate {
    closed: AtomicBool,
    /// Tasks that wait, and tasks that were cancelled while they did.
    pub(crate) waiting: AtomicUsize,
    pub(crate) cancelled: AtomicUsize,
}

impl Gate {
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }

    fn worker(self: &Arc<Self>, index: usize) -> Box<dyn Worker> {
        let gate = Arc::clone(self);
        let worker = intercept(CpuWorker::new(format!("cpu-{index}"), 1));
        let worker = worker.on_execute(move |inner, task, emit| {
            gate.waiting.fetch_add(1, Ordering::SeqCst);
            while gate.closed.load(Ordering::SeqCst) {
                if task.cancel.sleep(Duration::from_millis(2)) {
                    gate.waiting.fetch_sub(1, Ordering::SeqCst);
                    gate.cancelled.fetch_add(1, Ordering::SeqCst);
                    return Err(Error::Cancelled);
                }
            }
            gate.waiting.fetch_sub(1, Ordering::SeqCst);
            inner.execute(task, emit)
        });
        worker.boxed()
    }
}

/// Waits for something to become true.
pub(crate) fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is() {
        assert!(Instant::now() < end, "{what} did not happen within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A server with one repository.
pub(crate) struct Site {
    pub(crate) server: Option<Server>,
    pub(crate) address: SocketAddr,
    pub(crate) grpc: SocketAddr,
    pub(crate) folder: TempDir,
    pub(crate) gate: Arc<Gate>,
}

/// A picture is its bytes: 1024 grey values.
struct Grey;

impl Pictures for Grey {
    fn read(
        &self,
        _: &fcdcc::model::InputInfo,
        settings: Option<&toml::Table>,
        bytes: Vec<u8>,
    ) -> fcdcc::Result<Tensor> {
        let divisor: u8 = settings.and_then(|table| table.get("divisor")).map_or(255, |_| 2);
        let values: Vec<f32> = bytes.iter().map(|byte| f32::from(*byte) / f32::from(divisor)).collect();
        let count = values.len();
        let array = ArrayD::from_shape_vec(vec![1, 1, 32, 32], values);
        array.map(Tensor::from).map_err(|_| Error::mismatch("picture", count, PIXELS, "send 1024 bytes"))
    }
}

pub(crate) fn lenet() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/digits/lenet5.onnx")
}

/// Puts LeNet-5 into a repository, with a `model.toml` unless that is empty.
pub(crate) fn put(folder: &Path, name: &str, version: u64, config: &str) {
    let place = folder.join(name).join(version.to_string());
    std::fs::create_dir_all(&place).unwrap();
    std::fs::copy(lenet(), place.join("model.onnx")).unwrap();
    if !config.is_empty() {
        std::fs::write(place.join("model.toml"), config).unwrap();
    }
}

impl Site {
    pub(crate) fn new(config: &str) -> Self {
        Self::with(config, |_| {})
    }

    /// A server of LeNet-5 as `digits`, version 1, with a `model.toml` and other options than the default.
    pub(crate) fn with(config: &str, change: impl FnOnce(&mut ServerOptions)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), "digits", 1, config);
        let gate = Arc::new(Gate::default());
        let pool = Pool::new((0..4).map(|index| gate.worker(index)).collect()).unwrap();
        let mut options = ServerOptions {
            sources: vec![folder.path().to_owned()],
            address: "127.0.0.1:0".to_owned(),
            grpc: Some("127.0.0.1:0".to_owned()),
            ..ServerOptions::default()
        };
        change(&mut options);
        let source = Master::new(&pool);
        let engine = Engine { pool, options: ModelOptions::default() };
        let server = Server::start(&options, &engine, source, Some(Arc::new(Grey))).unwrap();
        let grpc = server.grpc_address().unwrap();
        Self { address: server.address(), grpc, server: Some(server), folder, gate }
    }

    /// Whether the workers are computing, and held by the gate.
    pub(crate) fn held(&self) -> bool {
        self.gate.waiting.load(Ordering::SeqCst) > 0
    }

    /// The value of a series in the metrics, 0 where there is none.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let text = crate::client::get(self.address, "/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // Workers that wait would hold the server's end.
        self.gate.open();
    }
}

/// `count` images, each different.
pub(crate) fn images(count: usize, seed: usize) -> Vec<f32> {
    let value = |index: usize| ((index + 1) * (seed * 7 + 31) % 97) as f32 / 97.0;
    (0..count * PIXELS).map(value).collect()
}

/// The scores that the library computes for images, one model run an image.
pub(crate) fn expected(images: &[f32]) -> Vec<f32> {
    let pool = Pool::new(CpuWorker::fleet(4)).unwrap();
    let model = Model::load(lenet()).unwrap().with_input_shape("image", &[1, 1, 32, 32]).unwrap();
    let prepared = model.prepare(&pool, &ModelOptions::default()).unwrap();
    let run = |image: &[f32]| {
        let image = ArrayD::from_shape_vec(vec![1, 1, 32, 32], image.to_vec()).unwrap();
        let Tensor::F32(scores) = prepared.run(&[image.into()]).unwrap().outputs.remove(0).tensor else {
            panic!("scores are f32")
        };
        scores.into_iter().collect::<Vec<f32>>()
    };
    images.chunks(PIXELS).flat_map(run).collect()
}

/// Whether all scores agree but for rounding.
pub(crate) fn close(got: &[f32], expected: &[f32]) -> bool {
    let largest = expected.iter().fold(1.0f32, |largest, value| largest.max(value.abs()));
    got.len() == expected.len()
        && got.iter().zip(expected).all(|(got, want)| (got - want).abs() <= TOLERANCE * largest)
}

/// Panics unless scores are those of the library, and unless one wrong score would be noticed.
pub(crate) fn check(got: &[f32], images: &[f32]) {
    let expected = expected(images);
    assert!(close(got, &expected), "{got:?} where {expected:?} was expected");
    let mut wrong = got.to_vec();
    wrong[0] += 1.0;
    assert!(!close(&wrong, &expected), "the comparison sees nothing");
}

/// A request with its images as JSON.
pub(crate) fn body(images: &[f32]) -> Vec<u8> {
    let count = images.len() / PIXELS;
    let input = json!({ "name": "image", "shape": [count, 1, 32, 32], "datatype": "FP32", "data": images });
    json!({ "inputs": [input] }).to_string().into_bytes()
}

/// The scores of an answer in JSON.
pub(crate) fn scores(answer: &Value) -> Vec<f32> {
    let data = answer["outputs"][0]["data"].as_array().unwrap_or_else(|| panic!("{answer}"));
    #[expect(clippy::cast_possible_truncation, reason = "they were f32")]
    data.iter().map(|value| value.as_f64().unwrap() as f32).collect()
}
